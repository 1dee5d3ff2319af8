import csv
import io
import itertools
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests import foreign_files as foreign
from tests.crashing import crash
from utils import benchmark, benchmark_pictures, benchmark_report, comparison, loader, measuring, micro, runs, twins
from utils import settings as settings_module
from utils.benchmark import Options
from utils.sources import SourceError


@pytest.fixture(scope="module")
def meters(tmp_path_factory) -> Path:
    """A folder with a picture of every tenth: 0.0 to 4.9 of one meter, the others of a second."""
    root = tmp_path_factory.mktemp("meters")
    for tenth, image in enumerate(foreign.pictures()):
        folder = root / ("first" if tenth < 50 else "second")
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{tenth / 10:.1f}_x.png"), image)
    return root


@pytest.fixture(scope="module")
def results(meters, tmp_path_factory) -> dict:
    """Six models on these pictures: three that read every one, a stranger's range, and two that are none."""
    work = tmp_path_factory.mktemp("models")
    run = work / "run"
    run.mkdir()
    (run / "good.tflite").write_bytes(foreign.as_float(foreign.network(100)))
    (run / "results.json").write_text(json.dumps({"recommended": "good.tflite", "recommended_confidence": 0.5}))
    runs.save_learnt(run, twins.marks(foreign.pictures()[3:8]))
    (work / "clock.tflite").write_bytes(foreign.as_float(foreign.network(2)))
    (work / "eleven.tflite").write_bytes(foreign.as_float(foreign.network(11)))
    (work / "unit.tflite").write_bytes(foreign.as_float(foreign.picky(0.0)))
    content = (run / "good.tflite").read_bytes()
    (work / "damaged.tflite").write_bytes(content[: len(content) // 2])
    (work / "text.txt").write_text("no model")
    names = ("run", "clock.tflite", "eleven.tflite", "unit.tflite", "damaged.tflite", "text.txt")
    found = benchmark.run([work / name for name in names], benchmark_pictures.load([str(meters)]), Options(True, 3))
    return found | {"folder": work}


def entry(results: dict, name: str) -> dict:
    return next(one for one in results["models"] if one["name"] == name)


def test_every_kind_of_model_stands_in_the_table(results):
    run, clock, eleven, unit = (entry(results, n) for n in ("run", "clock.tflite", "eleven.tflite", "unit.tflite"))
    assert run["file"].endswith("run/good.tflite")
    assert set(run["scores"].values()) == {1.0, 0.0}
    assert run["scores"]["whole_digit_errors"] == 0
    assert clock["scores"] == run["scores"]
    assert (clock["outputs"], run["outputs"]) == ("sine and cosine", "100 tenths, logits")
    # Tenths from 9.0 on are not readable for it, and 9.5 on is the digit 0.
    assert (eleven["scores"]["digit"], eleven["scores"]["not_readable"]) == (0.9, 0.1)
    assert eleven["scores"]["whole_digit_errors"] == 0
    assert eleven["scores"]["mean_over_meters"] == 0.9
    assert "within_0.1" not in eleven["scores"]
    assert (unit["pixels"], unit["pixels_found"], unit["scores"]["digit"]) == ("0..1", "by trial", 1.0)
    assert all(one["ms"] > 0 for one in (run, clock, eleven, unit))
    assert (clock["parameters"], clock["multiply_accumulates"]) in ((1920 * 2, 1920 * 2), (1920 * 2 + 2, 1920 * 2))
    if micro.available():
        assert run["arena_bytes"] > 1920 * 4
    assert (results["metric"], results["pictures"]["n"], results["pictures"]["meters"]) == ("digit", 100, 2)


def test_memory_that_could_not_be_measured_has_a_reason(results, monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(micro, "available", lambda there=there: there)
        assert (f"Micro KB: not measured, {micro.MISSING}" in benchmark_report.summary(results)) != there


def test_what_is_no_model_has_a_row_with_the_reason(results):
    assert "damaged" in entry(results, "damaged.tflite")["error"]
    assert "this is no model" in entry(results, "text.txt")["error"]
    text = benchmark_report.summary(results)
    assert "text.txt FAILED: " in text
    assert "eleven.tflite calls 10.00% of the pictures not readable" in text


def test_pictures_that_a_model_has_learnt_are_told(results):
    # None is not 0: of files outside a run's folder nothing is on record.
    assert [one.get("learnt_pictures", "FAILED") for one in results["models"]] == [5, *[None] * 3, *["FAILED"] * 2]
    assert benchmark_report.summary(results).count("run has learnt 5 of these pictures: its scores flatter it, ") == 1


@pytest.mark.parametrize("channels", [3, 1])
def test_learnt_pictures_are_known_in_the_models_own_colours(meters, tmp_path, channels):
    source = {"name": "own", "type": "filename", "path": str(meters)}
    pool = loader.load(settings_module.load(data_sources=[source], input_channels=channels)).pool
    runs.save_learnt(tmp_path, twins.marks(pool.images(np.arange(7))))
    model = measuring.Described(tmp_path / "a.tflite", pool.arrays[0].shape[1:], (), None, None, 0)
    assert measuring.learnt(model, benchmark_pictures.load([str(meters)]).rgb(32, 20)).sum() == 7


def test_pairs_are_compared_by_what_both_read(results):
    pairs = {(pair["better"], pair["worse"]): pair for pair in results["pairs"]}
    assert len(pairs) == 6
    assert pairs["run", "clock.tflite"]["metric"] == "within_0.1"
    assert not pairs["run", "clock.tflite"]["differs"]
    pair = pairs["run", "eleven.tflite"]
    assert (pair["metric"], pair["only_better"], pair["only_worse"], pair["differs"]) == ("digit", 10, 0, True)
    text = benchmark_report.summary(results)
    assert "run is better than eleven.tflite (digit 1.0000 and 0.9000; 10 pictures only the first, 0 only" in text
    # The first of three equally good ones against each of the others.
    alone = "no picture that is new to both is read right by one alone"
    assert [line.split(" (")[0] for line in text.splitlines() if "only the first" in line or alone in line] == [
        f"run, clock.tflite: {alone}",
        "run is better than eleven.tflite",
        f"run, unit.tflite: {alone}",
    ]
    unsure = pair | {"only_better": 3, "only_worse": 1, "p_holm": 0.625, "differs": False}
    text = benchmark_report.summary(results | {"pairs": [unsure]})
    shares = "digit 1.0000 and 0.9000; 3 pictures only the first, 1 only the second; p = 0.62"
    assert f"run, eleven.tflite: no more than chance ({shares})" in text


def test_copies_with_one_label_are_one_picture_whatever_their_meter(meters, tmp_path):
    shutil.copytree(meters / "first", tmp_path / "first")
    shutil.copytree(meters / "first", tmp_path / "again")
    (tmp_path / "again" / "4.9_x.png").rename(tmp_path / "again" / "5.0_x.png")
    found = benchmark_pictures.load([str(tmp_path)])
    assert (len(found.tenths), len(found.different)) == (100, 51)
    assert sorted(found.tenths[found.different]) == list(range(51))


def test_drawn_digits_beside_a_meter_do_not_show_its_readings(meters):
    both = benchmark_pictures.load([str(meters / "first"), benchmark_pictures.SYNTHETIC])
    plan = benchmark._simulation(both, 2).plan
    # The one meter has half of the labels, so that it can show some of the readings.
    assert 0 < plan.drawn.mean() < 1
    assert (both.counted[plan.pictures[~plan.drawn]] >= 0).all()
    assert benchmark._simulation(benchmark_pictures.load([benchmark_pictures.SYNTHETIC]), 2).plan.drawn.all()


def test_displays_are_no_drums_and_drawn_digits_are_enlarged_smoothly():
    drawn = benchmark_pictures.load([benchmark_pictures.SYNTHETIC])
    share = 1 - drawn.rolling.mean()
    assert 0.1 < share < 0.25
    assert set(drawn.tenths[~drawn.rolling] % 10) == {0}
    assert set(drawn.tenths[drawn.rolling]) == set(range(100))
    large = drawn.rgb(64, 40)[:50].astype(int)
    assert (large[:, 1::2] != large[:, ::2]).mean() > 0.3


def test_robustness_cards(results):
    card = entry(results, "run")["robustness"]
    scores = {change["name"]: change["score"] for change in card["changes"]}
    assert (card["pictures"], card["metric"], card["changes"][0]) == (
        100,
        "within_0.1",
        {"name": "unchanged", "score": 1},
    )
    assert (scores["red and blue swapped"], scores["grey"]) == (1, 1)
    # The bright pixel stands for another tenth two pixels further on.
    assert scores["2 px to the right"] < 0.1
    assert entry(results, "eleven.tflite")["robustness"]["metric"] == "digit"


def test_readings_at_the_recommended_confidence(results):
    run = entry(results, "run")["readings"]
    assert (run["digits"], run["readings"], run["threshold"], run["threshold_from"]) == (3, 10_000, 0.5, "recommended")
    shown = run["drawn"]
    # No meter has all labels, so most readings are drawn, of which this model reads nothing.
    assert 5000 < shown < 10_000
    assert run["false_unrefused"] <= shown
    assert entry(results, "clock.tflite")["readings"]["threshold_from"] == "default"
    assert entry(results, "eleven.tflite")["readings"]["refused"] > 0


def test_files(results, tmp_path):
    run = results["folder"] / "run"
    plain = {key: value for key, value in results.items() if key != "folder"}
    paths = [tmp_path / name for name in ("a.csv", "a.json", "sizes.png", "cards.png")]
    benchmark_report.write(plain, *paths)
    rows = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert [row["name"] for row in rows][:2] == ["run", "clock.tflite"]
    assert (rows[0]["accuracy"], rows[0]["input_shape"], rows[4]["accuracy"]) == ("1.0", "32x20x3", "")
    assert "damaged" in rows[4]["error"]
    assert json.loads(paths[1].read_text()) == plain
    assert json.loads((run / "robustness.json").read_text()) == entry(results, "run")["robustness"]
    for picture in (*paths[2:], run / "robustness.png"):
        image = cv2.imread(str(picture))
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert not list(results["folder"].glob("*.json"))


def test_a_change_that_costs_exactly_two_points_is_green():
    scores = {"unchanged": 0.937, "blur": 0.917, "noise": 0.916, "grey": 0.837, "glare": 0.836, "inverted": 0.94}
    changes = [{"name": name, "score": score} for name, score in scores.items()]
    axes = Figure().subplots()
    benchmark_report._bars(axes, "model", {"metric": "digit", "changes": changes})
    expected = ("tab:green", "tab:green", "gold", "gold", "tab:red", "tab:green")
    assert [bar.get_facecolor() for bar in axes.patches] == [to_rgba(color) for color in expected]


def test_a_row_of_a_file_whose_name_is_no_text(tmp_path):
    entry = {"name": "z\udce4hler.tflite", "path": "old/z\udce4hler.tflite", "input_shape": [32, 20, 3]}
    results = {"models": [entry], "pictures": {"n": 1}}
    benchmark_report.write(results, tmp_path / "a.csv", None, None, None)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text()))
    assert (row["name"], row["path"], row["input_shape"]) == (
        *(r"z\udce4hler.tflite", r"old/z\udce4hler.tflite", "32x20x3"),
    )


def test_names_of_equal_models_stand_apart_in_the_plot(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(benchmark_report, "Figure", lambda **more: figures.append(Figure(**more)) or figures[-1])
    names = {"_a.tflite", *(f"model{number}.tflite" for number in range(20))}
    entries = [{"name": name, "bytes": 70_000, "scores": {"digit": 0.9}} for name in names]
    plot = {"metric": "digit", "models": entries, "pictures": {"n": 5}}
    benchmark_report.plot_sizes(tmp_path / "sizes.png", plot)
    texts = [text for text in figures[0].findobj(Text) if text.get_text().strip() in names]
    boxes = [text.get_window_extent() for text in texts]
    assert {text.get_text().strip() for text in texts} == names
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.y0 >= 0 and box.y1 <= figures[0].bbox.y1 and box.x1 <= figures[0].bbox.x1 for box in boxes)


def test_a_model_that_ends_the_process_is_a_row(meters, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "describe", crash)
    found = benchmark.run([tmp_path / "a"], benchmark_pictures.load([str(meters)]), Options())
    assert "SIGABRT" in found["models"][0]["error"]
    assert (found["pairs"], found["metric"]) == ([], "within_0.1")


def test_names_tell_files_apart():
    paths = [Path(path) for path in ("/x/a/m.tflite", "/x/b/m.tflite", "/x/b/n.tflite")]
    assert benchmark._names(paths) == ["a/m.tflite", "b/m.tflite", "b/n.tflite"]
    assert benchmark._names(paths[1:]) == ["m.tflite", "n.tflite"]
    assert benchmark._names([paths[0], paths[0]]) == ["m.tflite #1", "m.tflite #2"]


def test_sources(meters, tmp_path):
    pictures = benchmark_pictures.load([str(meters), "synthetic", "synthetic"])
    assert len(pictures.tenths) == 100 + benchmark_pictures.SYNTHETIC_COUNT
    assert pictures.has_tenths
    # Typefaces are no meters.
    assert len(pictures.meter_names) > 10
    assert len(np.unique(pictures.counted)) == 3
    assert pictures.meter_names[:2] == (f"{meters.name}/first", f"{meters.name}/second")
    assert (pictures.rgb(32, 20)[:100] == foreign.pictures()[np.argsort([f"{t / 10:.1f}" for t in range(100)])]).all()
    assert pictures.rgb(28, 28).shape == (2100, 28, 28, 3)
    with pytest.raises(SourceError, match="not found"):
        benchmark_pictures.load([str(tmp_path / "gone")])
    with pytest.raises(SourceError, match=r"first lies in .*: its pictures would count twice"):
        benchmark_pictures.load([str(meters), str(meters / "first"), "synthetic"])


def test_labels_without_tenths(tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "3_a.png"), np.zeros((32, 20, 3), np.uint8))
    assert not benchmark_pictures.load([str(tmp_path)]).has_tenths
    assert "models are compared by digit" in caplog.text
    assert comparison.common_metric([{"within_0.1": 1.0}], False) == "digit"


def test_a_source_without_tenths_beside_one_with_tenths_is_named(meters, tmp_path, caplog):
    benchmark_pictures.load([str(meters), "synthetic"])
    assert not caplog.messages
    digits = tmp_path / "kitchen"
    digits.mkdir()
    cv2.imwrite(str(digits / "3_a.png"), np.zeros((32, 20, 3), np.uint8))
    assert benchmark_pictures.load([str(meters), str(digits)]).has_tenths
    assert [text for text in caplog.messages if text.startswith("no label of kitchen has a tenth but .0")]
