"""What a person looks at after a run: plots, a sheet of the worst errors, the final table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from utils import confidence, labels, markup, runs
from utils.confidence import Readings

CONFUSION_FILE = "confusion_matrix.png"
SHEET_COLUMNS = 10
SHEET_ROWS = 5
# Of each panel of the training history the columns of training_log.csv that it shows.
HISTORY = {
    "loss": ("loss", "val_loss"),
    "accuracy": ("accuracy", "val_accuracy"),
    "learning rate": ("learning_rate",),
}
MIN_READINGS = 20  # from which on a share is drawn: that of few jumps between none and all
SCORE_TITLES = {
    **{"accuracy": "accuracy", "within_0.1": "within 0.1", "within_0.2": "within 0.2", "digit": "digit"},
    "whole_digit_errors": "off by a digit",
}
HEADING = ["model", "file", "measured on", "KB", "pictures", *SCORE_TITLES.values(), "ties", "agrees with Keras"]


def training_history(path: Path, rows: list[dict[str, float]], best_epoch: int) -> None:
    """Loss, accuracy and learning rate over the epochs as a PNG; the best epoch is marked."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, title in zip(figure.subplots(1, 3), HISTORY, strict=True):
        draw_history(axes, title, rows, best_epoch)
    _save(figure, path)


def draw_history(axes: Axes, title: str, rows: list[dict[str, float]], best_epoch: int) -> None:
    """One panel of :func:`training_history`, by its title in ``HISTORY``."""
    epochs = [row["epoch"] for row in rows]
    for name in HISTORY[title]:
        label = "validation" if name.startswith("val_") else "training"
        axes.plot(epochs, [row[name] for row in rows], marker=".", label=label if len(HISTORY[title]) > 1 else None)
    axes.axvline(best_epoch, color="grey", linestyle="--", label=f"best epoch {best_epoch}")
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Makes x the axis of these sizes of files, KB: logarithmic, since a teacher is a hundred times as large."""
    axes.set_xscale("log")
    # At least a factor of four has one of the figures, however alike the sizes are.
    axes.set_xlim(0.5 * min(sizes), 2 * max(sizes))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()


def confusion_matrix(path: Path, true: np.ndarray, predicted: np.ndarray, nb_classes: int, title: str) -> None:
    """Number of pictures of each true class (row) read as each class (column), as a PNG."""
    matrix = np.zeros((nb_classes, nb_classes), int)
    np.add.at(matrix, (true, predicted), 1)
    names = labels.class_names(nb_classes)
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_equal(matrix, 0), norm=LogNorm(1, max(2, matrix.max())), cmap="viridis")
    step = nb_classes // 10
    axes.set_xticks(range(0, nb_classes, step), names[::step])
    axes.set_yticks(range(0, nb_classes, step), names[::step])
    axes.set(title=markup.plotted(title), xlabel="predicted", ylabel="true")
    if nb_classes == 10:
        for row, column in np.argwhere(matrix):
            color = "black" if matrix[row, column] > matrix.max() / 4 else "white"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontweight="bold")
    figure.colorbar(image, label="pictures", shrink=0.8)
    _save(figure, path)


def worst_predictions(
    path: Path, images: np.ndarray, true: np.ndarray, logits: np.ndarray, nb_classes: int, title: str
) -> None:
    """The errors of which the model was surest, as a PNG sheet with true and predicted label and confidence.

    See :func:`surest_errors` for what counts as an error.

    Args:
        path: of the PNG.
        images: ``(N, H, W, C)`` uint8.
        true: class numbers ``(N,)``.
        logits: ``(N, nb_classes)``.
        nb_classes: 10 or 100.
        title: printed above the sheet.
    """
    predicted, sure = logits.argmax(axis=1), confidence.of(logits)
    wrong = surest_errors(true, logits, nb_classes)
    shown = wrong[: SHEET_COLUMNS * SHEET_ROWS]
    rows = max(1, math.ceil(len(shown) / SHEET_COLUMNS))
    figure = Figure(figsize=(1.2 * SHEET_COLUMNS, 0.6 + 2.3 * rows), layout="constrained")
    title = markup.plotted(title)
    figure.suptitle(f"{title}: {len(wrong)} of {len(true)} pictures wrong" + (", surest first" if len(shown) else ""))
    names = labels.class_names(nb_classes)
    for number, axes in enumerate(figure.subplots(rows, SHEET_COLUMNS, squeeze=False).flat):
        axes.axis("off")
        if number < len(shown):
            index = shown[number]
            axes.imshow(_rgb(images[index]))
            text = f"true {names[true[index]]}\nread {names[predicted[index]]}\n{sure[index]:.0%}"
            axes.set_title(text, fontsize=8)
    _save(figure, path)


def surest_errors(true: np.ndarray, logits: np.ndarray, nb_classes: int) -> np.ndarray:
    """Indices of the pictures that were read wrongly, ``(E,)`` int64, the surest error first.

    With 100 classes only readings more than a tenth off count as errors, since people disagree by a tenth.

    Args:
        true: class numbers ``(N,)``.
        logits: ``(N, nb_classes)``.
        nb_classes: 10 or 100.
    """
    wrong = np.flatnonzero(~labels.alike(logits.argmax(axis=1), true, nb_classes))
    return wrong[np.argsort(-confidence.of(logits)[wrong], kind="stable")]


def reliability(
    path: Path, readings: Mapping[str, Readings], threshold: float | None, nb_classes: int, title: str
) -> None:
    """How far confidence can be believed, as a PNG, one line a test set.

    At the left, in bins of confidence, the share of readings that are right, and how many there are; at the right,
    which share of the accepted readings is right when the least sure ones are refused.

    Args:
        path: of the PNG.
        readings: of each test set.
        threshold: the recommended confidence, 0..1, or None; marked at the right.
        nb_classes: 10 or 100.
        title: printed above.
    """
    figure = Figure(figsize=(12, 5.5 + 0.22 * len(readings)), layout="constrained")
    figure.suptitle(markup.plotted(title))
    readings = {markup.plotted(name): read for name, read in readings.items()}
    panels = figure.subplot_mosaic("ac;ac;ac;bc")
    right = "within 0.1" if nb_classes == 100 else "right"
    _calibration(panels["a"], panels["b"], readings, right)
    _coverage(panels["c"], readings, threshold, right)
    for axes in panels.values():
        axes.grid(alpha=0.3)
    # Below, as the names of a few test sets would hide the lines.
    figure.legend(loc="outside lower center", frameon=False)
    _save(figure, path)


def _calibration(upper: Axes, lower: Axes, readings: Mapping[str, Readings], right: str) -> None:
    lower.sharex(upper)
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    for name, read in readings.items():
        mean, share, counts = confidence.bins(read.confidences, read.right).T
        error = confidence.calibration_error(read.confidences, read.right)
        many = counts >= MIN_READINGS
        upper.plot(mean[many], share[many], marker=".", label=f"{name}: confidence off by {error:.3f} on average")
        lower.plot(mean, counts, marker=".")
    upper.set(ylabel=f"share of readings {right}", xlim=(0, 1), ylim=(0, 1))
    upper.tick_params(labelbottom=False)
    lower.set(xlabel="confidence", ylabel="pictures", yscale="log")


def _coverage(axes: Axes, readings: Mapping[str, Readings], threshold: float | None, right: str) -> None:
    axes.axhline(confidence.GOAL, color="grey", linestyle="--", linewidth=1, label=f"{confidence.GOAL:.1%}")
    for read in readings.values():
        thresholds, counts, shares = confidence.accepted(read.confidences, read.right)
        seen = counts >= min(len(read.right), MIN_READINGS)
        (line,) = axes.plot(counts[seen] / len(read.right), shares[seen])
        above = np.flatnonzero(thresholds >= (2 if threshold is None else threshold))
        if len(above):
            at = above[-1]
            axes.plot(counts[at] / len(read.right), shares[at], "o", color=line.get_color())
    if threshold is not None:
        axes.plot([], [], "ok", label=f"confidence {threshold:.3f} and up")
    axes.set(xlabel="share of readings accepted, surest first", ylabel=f"share of them {right}", xlim=(0, 1))


def tuning(path: Path, trials: list[dict], objective: str) -> None:
    """Score of every completed trial against each axis, as a PNG: one dot a trial, a bar at each value's mean.

    Args:
        path: of the PNG.
        trials: ``values`` (axis -> value) and ``score`` (None for a failed one) of each.
        objective: what the score is.
    """
    done = [trial for trial in trials if trial["score"] is not None]
    names = list(done[0]["values"]) if done else ["no trial completed"]
    figure = Figure(figsize=(4 * min(len(names), 3), 3.6 * math.ceil(len(names) / 3)), layout="constrained")
    panels = list(figure.subplots(math.ceil(len(names) / 3), min(len(names), 3), squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        values = [trial["values"].get(name) for trial in done]
        scores = np.array([trial["score"] for trial in done])
        places = sorted(set(values))
        at = np.array([places.index(value) for value in values], int)
        # Values stand side by side at equal distance: learning rates lie decades apart.
        axes.scatter(at + np.linspace(-0.15, 0.15, max(len(done), 1))[: len(done)], scores, s=22, alpha=0.7)
        for place in range(len(places)):
            axes.hlines(scores[at == place].mean(), place - 0.3, place + 0.3, color="black", linewidth=1.5)
        axes.set_xticks(range(len(places)), [str(place) for place in places], rotation=20 if len(places) > 4 else 0)
        axes.set(title=name.upper(), ylabel=objective, xlim=(-0.6, max(len(places), 1) - 0.4))
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.axis("off")
    _save(figure, path)


def table(rows: list[list[str]], texts: int = 3) -> str:
    """Text table: the first row is the heading, columns are as wide as needed, those behind the ``texts`` first stand
    at the right.
    """
    widths = [max(markup.columns(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            markup.padded(cell, width, right=column >= texts)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(markup.columns, lines)), *lines[1:]])


def result_rows(results: dict) -> list[list[str]]:
    """Rows of one run for :func:`table`, one for each file and test set; columns as in ``HEADING``.

    A fine-tuned model's begin with "before": the model it was made from.
    """
    rows = []
    before = {"before": results["before"]} if "before" in results else {}
    for file, entry in {**before, **results["files"]}.items():
        for test_set, scores in entry["sets"].items():
            shown = [f"{scores[name]:.4f}" if name in scores else "-" for name in (*SCORE_TITLES, "ties", "agreement")]
            size = f"{entry['bytes'] / 1024:.1f}" if "bytes" in entry else "-"
            rows.append([results["architecture"], file, markup.visible(test_set), size, str(scores["n"]), *shown])
    return rows


def _rgb(image: np.ndarray) -> np.ndarray:
    return image if image.shape[-1] == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)


def _save(figure: Figure, path: Path) -> None:
    runs.write(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))
