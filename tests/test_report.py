import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from utils import report
from utils.confidence import Readings


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures that report draws, by file name."""
    figures = {}
    save = report._save

    def keep(figure, path):
        figures[path.name] = figure
        save(figure, path)

    monkeypatch.setattr(report, "_save", keep)
    return figures


def test_history_marks_the_best_epoch(tmp_path, drawn):
    rows = [
        {"epoch": n, "loss": 1 / n, "val_loss": 2 / n, "accuracy": 0.1 * n, "val_accuracy": 0.1, "learning_rate": 0.01}
        for n in (1, 2, 3)
    ]
    report.training_history(tmp_path / "history.png", rows, best_epoch=2)
    loss, accuracy, rate = drawn["history.png"].axes
    assert [line.get_ydata().tolist() for line in loss.lines[:2]] == [[1, 1 / 2, 1 / 3], [2, 1, 2 / 3]]
    assert [axes.lines[-1].get_xdata()[0] for axes in (loss, accuracy, rate)] == [2, 2, 2]
    assert cv2.imread(str(tmp_path / "history.png")).shape[2] == 3


@pytest.mark.parametrize("nb_classes", [10, 100])
def test_confusion_counts_true_in_rows(tmp_path, drawn, nb_classes):
    report.confusion_matrix(tmp_path / "c.png", np.array([1, 1, 4]), np.array([2, 2, 4]), nb_classes, "title")
    matrix = drawn["c.png"].axes[0].images[0].get_array()
    assert matrix.shape == (nb_classes, nb_classes)
    assert matrix[1, 2] == 2
    assert matrix[4, 4] == 1
    assert matrix.filled(0).sum() == 3


def test_worst_predictions_come_surest_first_and_a_tenth_is_no_error(tmp_path, drawn, rng):
    images = rng.integers(0, 256, (4, 32, 20, 1)).astype(np.uint8)
    true = np.array([0, 34, 50, 70])
    logits = np.zeros((4, 100), np.float32)
    logits[np.arange(4), [99, 36, 90, 70]] = [9, 3, 8, 9]
    report.worst_predictions(tmp_path / "w.png", images, true, logits, 100, "file on test")
    shown = [axes for axes in drawn["w.png"].axes if axes.images]
    assert [axes.get_title().split("\n")[:2] for axes in shown] == [["true 5.0", "read 9.0"], ["true 3.4", "read 3.6"]]
    assert drawn["w.png"].get_suptitle() == "file on test: 2 of 4 pictures wrong, surest first"


def test_folders_names_are_shown_as_they_are_not_as_formulas(tmp_path, drawn):
    name = "f\udce4r $1_and_$2 (kept aside)"
    shown, digits = f"{name[0]}\\udce4{name[2:]}", np.arange(10)
    logits = np.eye(10, dtype=np.float32)
    report.confusion_matrix(tmp_path / "c.png", digits, digits, 10, name)
    report.worst_predictions(tmp_path / "w.png", np.zeros((10, 32, 20, 3), np.uint8), digits, logits, 10, name)
    report.reliability(tmp_path / "r.png", {name: Readings(np.full(30, 0.9), np.arange(30) > 0)}, 0.5, 10, name)
    legend = drawn["r.png"].legends[0].get_texts()[0].get_text()
    titles = [drawn["c.png"].axes[0].get_title(), drawn["w.png"].get_suptitle(), drawn["r.png"].get_suptitle()]
    dollars = [text.replace(r"\$", "$") for text in (*titles, legend)]
    off = f"{shown}: confidence off by 0.067 on average"
    assert dollars == [shown, f"{shown}: 0 of 10 pictures wrong", shown, off]
    scores = {"n": 1, "ties": 0.0, "agreement": 1.0}
    results = {"architecture": "a", "files": {"f": {"bytes": 1024, "sets": {name: scores}}}}
    assert report.result_rows(results)[0][:4] == ["a", "f", shown, "1.0"]


def test_no_error_gives_an_empty_sheet(tmp_path, drawn):
    logits = np.eye(10, dtype=np.float32)
    report.worst_predictions(tmp_path / "w.png", np.zeros((10, 32, 20, 3), np.uint8), np.arange(10), logits, 10, "t")
    assert drawn["w.png"].get_suptitle() == "t: 0 of 10 pictures wrong"
    assert (tmp_path / "w.png").stat().st_size > 0


def test_reliability_shows_what_came_true_and_what_refusing_gains(tmp_path, drawn):
    sure = np.repeat([0.95, 0.5, 0.02], [60, 40, 2])
    right = np.arange(102) < 70
    readings = {"test": Readings(sure, right)}
    report.reliability(tmp_path / "r.png", readings, 0.9, 100, "file")
    upper, coverage, lower = drawn["r.png"].axes
    # Two readings are too few for a share.
    np.testing.assert_allclose(upper.lines[1].get_xydata(), [[0.5, 0.25], [0.95, 1]])
    assert list(lower.lines[0].get_ydata()) == [2, 40, 60]
    curve, point = coverage.lines[1:3]
    np.testing.assert_allclose(curve.get_xydata(), [[60 / 102, 1], [100 / 102, 0.7], [1, 70 / 102]])
    np.testing.assert_allclose(point.get_xydata(), [[60 / 102, 1]])
    assert coverage.get_ylabel() == "share of them within 0.1"
    report.reliability(tmp_path / "r.png", readings, None, 10, "file")
    assert len(drawn["r.png"].axes[1].lines) == 2


def test_table_lines_up():
    text = report.table([["a", "b", "c", "n"], ["long", "x", "y", "12"]])
    assert text.splitlines() == ["a     b  c   n", "--------------", "long  x  y  12"]
    # A terminal shows a Chinese letter two columns wide, and an accent upon its letter.
    text = report.table([["a", "n"], ["\u6c34\u8868", "12"], ["u\u0308ber", "3"]], texts=1)
    assert text.splitlines() == ["a      n", "--------", "\u6c34\u8868  12", "u\u0308ber   3"]


@pytest.mark.parametrize("sizes", [[68.6, 69.2], [34.1], [18.4, 34.1], [18.0, 11477.7]])
def test_an_axis_of_sizes_always_has_figures(sizes):
    axes = Figure().subplots()
    report.size_axis(axes, sizes)
    low, high = axes.get_xlim()
    shown = [text.get_text() for text in axes.get_xticklabels(which="both")]
    assert next(float(text) for text in shown if low <= float(text) <= high) in (10, 20, 50)
    assert low < min(sizes) <= max(sizes) < high


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(tmp_path, drawn):
    readings = Readings(np.full(30, 0.9), np.arange(30) > 0)
    report.reliability(tmp_path / "r.png", {"_new": readings}, 0.5, 10, "file")
    texts = [text.get_text().strip() for text in drawn["r.png"].legends[0].get_texts()]
    assert texts == ["_new: confidence off by 0.067 on average", "99.5%", "confidence 0.500 and up"]


@pytest.mark.parametrize("count", [1, 20])
def test_the_names_of_many_test_sets_do_not_hide_the_lines(tmp_path, drawn, count):
    readings = Readings(np.full(30, 0.9), np.arange(30) > 0)
    names = [f"watermeter_in_the_cellar_of_the_neighbours_{number}" for number in range(count)]
    report.reliability(tmp_path / "r.png", dict.fromkeys(names, readings), 0.5, 10, "file")
    figure = drawn["r.png"]
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axes.bbox) or axes.get_legend() for axes in figure.axes)
    assert min(axes.bbox.height for axes in figure.axes) > 60
