import base64
import hashlib
import importlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils import frontier, markup, report_page, runs

HOSTILE = "<img src=x onerror=alert(1)>'\""


def scores(within: float, meters: dict[str, tuple[int, float]]) -> dict:
    per_meter = {name: {"n": n, "accuracy": 0.5, "within_0.1": share} for name, (n, share) in meters.items()}
    count = sum(n for n, _ in meters.values())
    return {"n": count, "accuracy": 0.61, "within_0.1": within, "agreement": 0.99, "per_meter": per_meter}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A finished run's folder with nothing optional in it."""
    monkeypatch.setattr(frontier, "ZOO", tmp_path / "zoo")
    folder = tmp_path / "runs" / "cnn32_100cls"
    folder.mkdir(parents=True)
    meters = {f"cellar/{HOSTILE}": (1200, 0.9), "cellar/b": (30, 0.95), "cellar/c": (70, 0.1234)}
    results = {
        **{"architecture": "cnn32", "nb_classes": 100, "input_shape": [32, 20, 3], "parameters": 213_348},
        **{"multiply_accumulates": 5_133_312, "mode": "PTQ", "notes": [], "recommended": "m.tflite"},
        "training": {"epochs": 2, "best_epoch": 2},
        "timing": {"run_s": 40.5},
        "data": {"split_by": "cluster", "sources": []},
        "files": {
            "best_model.keras": {"bytes": 900_000, "sets": {"cellar": scores(0.9, meters)}},
            "m.tflite": {"bytes": 51_200, "sets": {"cellar": scores(0.8567, meters)}},
        },
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def change(folder: Path, edit) -> None:
    results = json.loads((folder / "results.json").read_text())
    edit(results, results["files"]["m.tflite"]["sets"]["cellar"])
    (folder / "results.json").write_text(json.dumps(results))


def complete(folder: Path) -> None:
    """Adds all that a run may have, and another run beside it."""
    change(folder, lambda results, cellar: results.update(recommended_confidence=0.9965))
    change(folder, lambda results, cellar: cellar.update(interval_95={"within_0.1": [0.801, 0.902]}))
    change(folder, lambda results, cellar: cellar.update(mean_over_meters={"n": 2, "within_0.1": 0.6587}))
    kept = [
        {"confidence": 0.0, "coverage": 1.0, "within_0.1": 0.85},
        {"confidence": 0.9, "coverage": 0.4321, "within_0.1": 0.99},
    ]
    kept.append({"confidence": 1.0, "coverage": 0.0, "within_0.1": None})
    change(folder, lambda results, cellar: cellar.update(coverage=kept))
    verdict = {"file": "m.tflite", "accepted": False, "reasons": ["too large"], "arena_bytes": 29_472, "warnings": []}
    verdict["checked_with"] = "operator table"
    change(folder, lambda results, cellar: results.update(devices={"tflite_micro": verdict}))
    source = {"name": "kitchen", "pictures": 1000, "training": 800, "training_weighted": 1600, "validation": 100}
    source |= {"measured": 100, "skipped": {"not readable": 3}}
    change(folder, lambda results, cellar: results["data"].update(sources=[source]))
    changes = [{"name": "unchanged", "score": 0.9}, {"name": "rotate 8 degrees", "score": 0.8}]
    runs.write_json(folder / "robustness.json", {"pictures": 50, "metric": "within_0.1", "changes": changes})
    runs.write_json(folder / "settings.json", {"settings": {"epochs": 2, "test_sources": [{"name": HOSTILE}]}})
    header = "epoch,accuracy,loss,val_accuracy,val_loss,learning_rate\n"
    (folder / "training_log.csv").write_text(header + "1,0.1,3,0.2,2.5,0.001\n2,0.5,1,0.6,0.9,0.0001\n")
    cv2.imwrite(str(folder / "confusion_matrix.png"), np.zeros((20, 20, 3), np.uint8))
    picture = {"file": HOSTILE, "true": "3.4", "read": "7.0", "confidence": 0.987}
    picture["png"] = markup.png(np.full((32, 20, 3), 90, np.uint8))
    meters = [{"meter": HOSTILE, "n": 40, "wrong": 10, "pictures": [picture] * 3}]
    runs.write_json(folder / "worst_readings.json", {"file": "m.tflite", "meters": meters})
    (folder.parent / HOSTILE.replace("/", "")).mkdir()
    other = json.loads((folder / "results.json").read_text())
    other["files"]["m.tflite"]["bytes"] = 20_480
    (folder.parent / HOSTILE / "results.json").write_text(json.dumps(other))


def page_of(folder: Path) -> str:
    return report_page.write(folder).read_text(encoding="utf-8")


def sections(page: str) -> list[str]:
    found = re.findall("<section id='([^']+)'", page)
    assert found == re.findall("<a href='#([^']+)'", page)
    return found


def test_what_was_not_measured_is_left_out(run):
    page = page_of(run)
    assert sections(page) == ["results", "size-and-accuracy", "meters", "data", "settings"]
    assert "Recommended confidence" not in page
    assert "95 %" not in page
    assert "No other model was measured on the same pictures." in page


def test_all_sections_and_their_figures(run):
    complete(run)
    page = page_of(run)
    assert sections(page) == [
        *("results", "size-and-accuracy", "meters", "worst-readings", "reliability", "robustness", "training"),
        *("confusion", "devices", "data", "settings"),
    ]
    for text in (
        *("m.tflite</b><small>50.0 KB", "<b>85.7 %</b>", "<b>0.9965</b>", "0.6587"),
        "1,300 pictures, 2 meters; 95 % interval 80.1 to 90.2 %",
        *("1 of 1 other model: no larger, and no worse", "10 of 40 pictures wrong, 25.0 %", "99 % sure", "0.4321"),
        *("<td>-0.1000</td>", "REFUSED: too large", "29,472 bytes", "3 not readable", "TEST_<wbr>SOURCES", ">1,300<"),
        "operator table",
    ):
        assert text in page, text
    assert page.count("<img class='chart'") == 5


def test_of_a_lesson_no_weighted_pictures_are_told(run):
    complete(run)
    change(run, lambda results, cellar: results["data"].update(training_pictures=1654))
    told = page_of(run)
    assert "training, weighted" in told and ">1,600<" in told and ">1654<" in told
    (run / "training_log.csv").unlink()
    change(run, lambda results, cellar: results.update(training={"strategy": "full", "new_share_of_a_batch": 0.5}))
    told = page_of(run)
    assert "weighted" not in told and ">1,600<" not in told and ">1654<" not in told
    assert ">800<" in told and "new share of a batch</dt><dd>0.5<" in told


def test_a_score_says_whose_pictures_it_is_of(run):
    change(run, lambda results, cellar: cellar.update(per_source={"cellar": {"n": 1300}}))
    test = json.loads((run / "results.json").read_text())["files"]["m.tflite"]["sets"]["cellar"]
    test["per_source"] = {"synthetic": {"n": 900}, "kitchen": {"n": 400}}
    change(run, lambda results, cellar: results["files"]["m.tflite"]["sets"].update(test=test))
    page = page_of(run)
    assert "within 0.1, test</span><b>85.7 %</b><small>1,300 pictures of synthetic and kitchen<" in page
    assert "within 0.1, cellar</span><b>85.7 %</b><small>1,300 pictures<" in page


def test_the_file_of_each_device_stands_on_top(run):
    assert "<span>Recommended file</span><b>m.tflite</b>" in page_of(run)
    verdicts = {
        "tflite_micro": {"file": "m.tflite", "accepted": False, "reasons": ["too large"]},
        "esphome": {"file": "m_esphome.tflite", "accepted": True, "reasons": []},
    }
    change(run, lambda results, cellar: results.update(devices=verdicts))
    change(run, lambda results, cellar: results["files"].update({"m_esphome.tflite": {"bytes": 10_240, "sets": {}}}))
    headline = page_of(run).split("</header>")[0]
    assert "<span>File for esphome</span><b>m_<wbr>esphome.tflite</b><small>10.0 KB" in headline
    assert ">m.tflite<" not in headline


def test_meters_stand_worst_first(run):
    table = page_of(run).split("<section id='meters'>")[1].split("</section>")[0]
    assert re.findall(r"--share: ([\d.]+)", table) == ["0.1234", "0.9000", "0.9500"]


def test_nothing_of_a_stranger_gets_out_of_its_place(run):
    complete(run)
    page = page_of(run)
    assert "<img src=x" not in page
    assert markup.escaped(HOSTILE) in page
    assert page.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(markup.SORT_SCRIPT.encode()).digest()).decode()
    assert (
        f"content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in page
    )
    assert not re.search(r"(src|href)=['\"](?!data:|#)", page)
    assert not re.search(r"https?:|fetch|XMLHttpRequest|innerHTML|eval", markup.SORT_SCRIPT)


def test_before_and_judgement_of_a_retraining(run):
    change(run, lambda results, cellar: results.update(before={"file": "old.keras", "sets": {"cellar": cellar}}))
    judgement = {"accepted": False, "reasons": ["cellar is read worse by 0.50 points"]}
    change(run, lambda results, cellar: results.update(judgement=judgement))
    page = page_of(run)
    assert "<b>REJECTED</b><small>cellar is read worse by 0.50 points" in page
    assert re.search(
        "<th scope='row'>before</th><td class=none>-</td><td class='words'>cellar</td><td>1,300</td>", page
    )


def test_ten_classes_are_judged_by_accuracy(run):
    change(run, lambda results, cellar: results.update(nb_classes=10, input_shape=[32, 20, 1]))
    page = page_of(run)
    assert "<b>61.0 %</b>" in page
    assert "10 classes, 20x32 pixels, grey" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{"),
        ("results.json", "[]"),
        ("robustness.json", '{"changes": []}'),
        ("training_log.csv", "x\n1\n"),
    ],
)
def test_damaged_files_are_refused_and_the_old_page_stays(run, name, content):
    old = page_of(run)
    (run / name).write_text(content)
    with pytest.raises(runs.RunError, match="cnn32_100cls: its files are not those of a run of this version"):
        report_page.write(run)
    assert (run / "report.html").read_text(encoding="utf-8") == old


def test_the_command_makes_the_page_anew(run, door_within, capsys):
    door = importlib.import_module("report")
    assert door.main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    (run / "results.json").unlink()
    assert door.main([str(run)]) == 2
    assert "no finished run (results.json is missing)" in capsys.readouterr().err


@pytest.mark.slow
def test_page_in_the_browser(run, browser):
    complete(run)
    path = report_page.write(run)
    browser.open(path)
    images = "[...document.images]"
    assert browser.run(f"{images}.length") == 9
    assert browser.run(f"Promise.all({images}.map(one => one.decode())).then(() => true)")
    assert browser.run(f"{images}.every(one => one.naturalWidth > 0)")
    column = "[...document.querySelectorAll('#meters tbody tr')].map(row => row.cells[{}].textContent)"
    assert browser.run(column.format(2)) == ["70", "1,200", "30"]
    browser.click("#meters th:nth-child(3) button")
    assert browser.run(column.format(2)) == ["30", "70", "1,200"]
    assert browser.run("document.querySelector('#meters [aria-sort]').textContent") == "pictures"
    browser.click("#meters th:nth-child(3) button")
    assert browser.run(column.format(2)) == ["1,200", "70", "30"]
    browser.click("#meters th:nth-child(1) button")
    assert browser.run(column.format(0)) == [f"cellar/{HOSTILE}", "cellar/b", "cellar/c"]
    # On a telephone only tables that are too wide scroll, not the page.
    browser.send("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.complaints == []
    assert [url for url in browser.requested if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.slow
def test_cells_without_a_value_are_sorted_to_the_end(browser, tmp_path):
    rows = [["a", 2], ["b", None], ["c", 10], ["d", None], ["e", 0.5]]
    head = markup.head("t", "", markup.SORT_SCRIPT)
    table = markup.table("", ["name", "value"], rows)
    (tmp_path / "t.html").write_text(f"{head}{table}<script>{markup.SORT_SCRIPT}</script></body></html>")
    browser.open(tmp_path / "t.html")
    names = "[...document.querySelectorAll('tbody th')].map(one => one.textContent).join('')"
    for expected in ("eacbd", "caebd"):
        browser.click("th:nth-child(2) button")
        assert browser.run(names) == expected


def test_confidences_near_one_are_told_apart(run):
    """``1.0000``, as they are with four digits, would refuse every reading."""
    kept = [{"confidence": 0.999962, "coverage": 0.9, "within_0.1": 0.99}]
    kept.append({"confidence": 0.999987, "coverage": 0.8, "within_0.1": 1.0})
    change(run, lambda results, cellar: cellar.update(coverage=kept))
    change(run, lambda results, cellar: results.update(recommended_confidence=0.999974))
    page = page_of(run)
    assert all(f">{confidence}<" in page for confidence in (0.999962, 0.999974, 0.999987))
