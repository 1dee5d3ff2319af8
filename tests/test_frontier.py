import itertools
import json
from pathlib import Path

import cv2
import pytest
from matplotlib.figure import Figure

from tests import measure_frontier
from utils import charts, frontier
from utils.frontier import Point


def results(kb: float, score: float, meters: dict[str, int] | None = None, nb_classes: int = 100) -> dict:
    """What results.json holds of a run with one file, as far as it matters here."""
    per_meter = {meter: {"n": count} for meter, count in (meters or {"a": 30, "b": 70}).items()}
    sets = {"test": {"within_0.1": 0.99, "per_meter": {}}, "cellar": {"within_0.1": score, "per_meter": per_meter}}
    files = {"m.keras": {"bytes": 9, "sets": {}}, "m.tflite": {"bytes": kb * 1024, "sets": sets}}
    return {"nb_classes": nb_classes, "recommended": "m.tflite", "files": files}


def run(folder: Path, name: str, content: dict | str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


@pytest.fixture
def zoo(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(frontier, "ZOO", tmp_path / "runs" / "zoo")
    return tmp_path / "runs" / "zoo"


def test_only_models_measured_on_the_same_pictures_are_compared(tmp_path, zoo):
    own = results(50, 0.95)
    folder = run(tmp_path / "runs", "own", own)
    run(tmp_path / "runs", "beside", results(80, 0.97))
    run(zoo, "small", results(20, 0.93))
    run(tmp_path / "runs", "other pictures", results(10, 0.99, {"a": 30, "b": 71}))
    run(tmp_path / "runs", "other meters", results(10, 0.99, {"a": 30, "c": 70}))
    run(tmp_path / "runs", "other classes", results(10, 0.99, nb_classes=10))
    found = frontier.points(folder, own, "within_0.1")
    assert found == [
        Point("own", "this run", 50, 0.95),
        Point("small", "zoo", 20, 0.93),
        Point("beside", "other run", 80, 0.97),
    ]


def test_as_many_pictures_of_other_names_are_others(tmp_path, zoo):
    own, same, other, unknown = results(50, 0.95), results(80, 0.97), results(10, 0.99), results(20, 0.93)
    for content, pictures in ((own, "1a"), (same, "1a"), (other, "2b")):
        content["files"]["m.tflite"]["sets"]["cellar"]["pictures"] = pictures
    folder = run(tmp_path / "runs", "own", own)
    for name, content in {"same": same, "other": other, "unknown": unknown}.items():
        run(tmp_path / "runs", name, content)
    assert [one.name for one in frontier.points(folder, own, "within_0.1")] == ["own", "same", "unknown"]


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", "[" * 100_000, '{"nb_classes": 100}', json.dumps(results(10, 7.0))],
)
def test_damaged_results_beside_a_run_are_passed_over(tmp_path, zoo, damage):
    own = results(50, 0.95)
    folder = run(tmp_path / "runs", "own", own)
    run(tmp_path / "runs", "bad", damage)
    assert [one.name for one in frontier.points(folder, own, "within_0.1")] == ["own"]


def test_a_model_of_the_zoo_is_not_its_own_rival(zoo):
    own = results(50, 0.95)
    folder = run(zoo, "own", own)
    assert [one.kind for one in frontier.points(folder, own, "within_0.1")] == ["this run"]


@pytest.mark.parametrize(("count", "there"), [(3903 - 14, True), (3903 - 13, False)])
def test_the_baseline_stands_beside_runs_on_its_pictures(tmp_path, zoo, count, there):
    own = results(50, 0.95, {"first": count, **{f"m{number}": 1 for number in range(14)}})
    found = frontier.points(run(tmp_path, "own", own), own, "within_0.1")
    assert (frontier.BASELINE in found) == there


def test_the_frontier_has_no_model_that_is_larger_and_no_better():
    points = [
        Point(str(n), "zoo", *at) for n, at in enumerate([(80, 0.97), (20, 0.93), (50, 0.93), (60, 0.9), (20, 0.9)])
    ]
    assert [one.name for one in frontier.best(points)] == ["1", "0"]


def test_charts_name_strangers_and_take_the_page_s_colours():
    points = [Point("$x_{<script>", "zoo", 20, 0.93), Point("own", "this run", 50, 0.95)]
    svg = charts.sizes(points, "within 0.1")
    assert svg.startswith("<svg")
    assert "$x_{&lt;script&gt;</text>" in svg
    assert "<script" not in svg
    assert ">this run</text>" in svg
    assert "currentColor" in svg
    assert charts._INK not in svg
    assert svg == charts.sizes(points, "within 0.1")
    assert "$1_{ $2</text>" in charts.sizes(points, "within 0.1, $1_{ $2")


def test_a_charts_names_do_not_stand_on_one_another(monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "Figure", lambda **more: figures.append(Figure(**more)) or figures[-1])
    names = ("v15_tenths", "v7_tenths", "v7_again", "v6_tenths", "high_accuracy_validator")
    at = ((68.6, 0.9841), (34.1, 0.98409), (33.9, 0.98408), (18.4, 0.9751), (11477.7, 0.9887))
    kinds = ("this run", *["zoo"] * 4)
    charts.sizes([Point(name, kind, *one) for name, kind, one in zip(names, kinds, at, strict=True)], "within 0.1")
    texts = {text.get_text(): text.get_window_extent() for text in figures[0].axes[0].texts}
    # The third near name finds no place; the page's table has it.
    assert set(texts) == {"this run", "v7_tenths", "v6_tenths", "high_accuracy_validator"}
    assert not any(one.overlaps(other) for one, other in itertools.combinations(texts.values(), 2))


def test_the_readmes_table_and_plot_come_from_the_results(tmp_path, capsys):
    small, large = results(20, 0.93), results(80, 0.97)
    for model, name in ((small, "digit_recognizer_v6"), (large, "cnn32")):
        model |= {"architecture": name, "parameters": 12_332, "multiply_accumulates": 666_752}
    scores = small["files"]["m.tflite"]["sets"]["cellar"]
    scores["per_meter"]["a"]["within_0.1"] = 0.97
    scores |= {"digit": 0.91, "mean_over_meters": {"within_0.1": 0.92}, "interval_95": {"within_0.1": [0.9, 0.95]}}
    folders = [str(run(tmp_path, name, model)) for name, model in (("large", large), ("small", small))]
    measure_frontier.main([*folders, "--test_set", "cellar", "--plot", str(tmp_path / "plots" / "frontier.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        "| `small` | 20.0 | 12,332 | 666,752 | 0.9300 (0.900..0.950) | 0.9200 | 0.9100 |",
        "| `large` | 80.0 | 12,332 | 666,752 | 0.9700 | - | - |",
    ]
    assert lines[5:7] == ["| meter | pictures | `small` | `large` |", "| --- | --- | --- | --- |"]
    assert lines[7:] == ["| `a` | 30 | 0.970 | - |", "| `b` | 70 | - | - |"]
    assert cv2.imread(str(tmp_path / "plots" / "frontier.png")).shape[1] == 900
    with pytest.raises(SystemExit, match="no scores of 100 classes on attic"):
        measure_frontier.main([*folders, "--test_set", "attic", "--plot", str(tmp_path / "frontier.png")])
    assert not (tmp_path / "frontier.png").exists()
