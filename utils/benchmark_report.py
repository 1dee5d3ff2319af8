"""What a person sees of a benchmark: tables, a CSV file, plots."""

import csv
import io
import itertools
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils import markup, micro, report, report_page, runs

log = logging.getLogger(__name__)

ROBUSTNESS_PICTURE = "robustness.png"
TITLES = {
    "accuracy": "exact",
    "within_0.1": "within 0.1",
    "within_0.2": "within 0.2",
    "digit": "digit",
    "whole_digit_errors": "whole digits off",
    "mean_over_meters": "mean over meters",
}
# Colour of a bar by what a change costs at most, in shares of the pictures.
CARD_COLORS = ((0.02, "tab:green"), (0.1, "gold"), (1.0, "tab:red"))
TINY = 0.0001  # smaller probabilities are not told apart
NAME_WIDTH = 24  # characters of a model's name in one line of a plot
LINE_HEIGHT = 0.17  # inches, of the names beside a plot
MARKERS = "os^DvP*"  # of models in a plot; as many as share no factor with its ten colours
COLUMNS = (
    *("name", "path", "file", "error", "bytes", "parameters", "multiply_accumulates", "ms", "arena_bytes"),
    *("arena_note", "input_shape", "input_dtype", "pixels", "pixels_found", "outputs"),
)


def summary(results: dict[str, Any]) -> str:
    """All tables, one after the other, and the reasons of what could not be measured."""
    parts = [_scores(results), _notes(results["models"]), _pairs(results)]
    parts += [_robustness(results["models"]), _readings(results["models"])]
    return "\n\n".join(filter(None, parts))


def write(
    results: dict[str, Any], table: Path | None, everything: Path | None, sizes: Path | None, cards: Path | None
) -> None:
    """Writes the files that were asked for, and ``robustness.json`` and ``.png`` into run folders that have a card.

    Raises:
        RunError: one of the files can't be written.
    """
    carded = [(entry["name"], entry["robustness"]) for entry in results["models"] if "robustness" in entry]
    scored = any("scores" in entry for entry in results["models"])
    writers = (
        (table, lambda path: runs.write_text(path, as_csv(results)), True),
        (everything, lambda path: runs.write_json(path, results), True),
        (sizes, lambda path: plot_sizes(path, results), scored),
        (cards, lambda path: plot_cards(path, carded), bool(carded)),
    )
    for path, writer, possible in writers:
        if path and possible:
            with runs.written(path):
                writer(path)
    for entry in results["models"]:
        if "robustness" in entry and Path(entry["path"]).is_dir():
            _into_run(Path(entry["path"]), entry["name"], entry["robustness"])


def _into_run(folder: Path, name: str, card: dict[str, Any]) -> None:
    try:
        runs.write_json(folder / runs.ROBUSTNESS_FILE, card)
        plot_cards(folder / ROBUSTNESS_PICTURE, [(name, card)])
        report_page.write(folder)
    except OSError as error:
        # Another one's run, perhaps on a disk that takes no changes.
        log.warning("%s: %s cannot be written there (%s)", folder, runs.ROBUSTNESS_FILE, error.strerror)
    except runs.RunError as error:
        # A run of an older version, or of somebody else's tool: its card is written, its page stays as it was.
        log.warning("%s", error)


def as_csv(results: dict[str, Any]) -> str:
    """One row a model: its facts, scores, and readings if there were any."""
    text = io.StringIO()
    readings = ("digits", "threshold", "false", "refused", "false_unrefused")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *TITLES, "not_readable", *(f"readings_{key}" for key in readings)])
    for entry in results["models"]:
        facts = [_cell(entry.get(name)) for name in COLUMNS]
        scores = [entry.get("scores", {}).get(name) for name in (*TITLES, "not_readable")]
        writer.writerow([*facts, *scores, *(entry.get("readings", {}).get(key) for key in readings)])
    return text.getvalue()


def plot_sizes(path: Path, results: dict[str, Any]) -> None:
    """Score of every model against the size of its file, as a PNG."""
    metric = results["metric"]
    shown = [entry for entry in results["models"] if "scores" in entry]
    names = [_plain(entry["name"]) for entry in shown]
    # At the side, as models of one size and score would write their names over one another.
    lines = sum(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(9, max(5, LINE_HEIGHT * lines)), layout="constrained")
    axes = figure.subplots()
    for entry, name, marker in zip(shown, names, itertools.cycle(MARKERS), strict=False):
        # Hollow, so that one shows inside another.
        axes.plot(entry["bytes"] / 1024, entry["scores"][metric], marker, fillstyle="none", markersize=7, label=name)
    figure.legend(loc="outside right upper", fontsize=8)
    report.size_axis(axes, [entry["bytes"] / 1024 for entry in shown])
    axes.margins(y=0.15)
    axes.set(
        xlabel="size of the file, KB", ylabel=TITLES[metric], title=markup.count(results["pictures"]["n"], "picture")
    )
    axes.grid(alpha=0.3)
    runs.write(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))


def plot_cards(path: Path, cards: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Robustness of one or several models as a PNG: a bar for every change, a panel for every model.

    Args:
        path: of the PNG.
        cards: name of each model, and its card as in ``robustness.json``.
    """
    rows = len(cards[0][1]["changes"])
    figure = Figure(figsize=(2.2 + 3.2 * len(cards), 1 + 0.28 * rows), layout="constrained")
    for axes, (name, card) in zip(figure.subplots(1, len(cards), sharey=True, squeeze=False)[0], cards, strict=True):
        _bars(axes, name, card)
    figure.suptitle(f"{markup.count(cards[0][1]['pictures'], 'picture')}, changed one thing at a time", fontsize=10)
    runs.write(path, lambda partial: figure.savefig(partial, dpi=80, format="png"))


def _bars(axes: Axes, name: str, card: dict[str, Any]) -> None:
    scores = np.array([change["score"] for change in card["changes"]])
    places = np.arange(len(scores))
    # Two points are 0.02000000000000002 by floats.
    losses = (scores[0] - scores).clip(0).round(6)
    colors = [next(color for most, color in CARD_COLORS if loss <= most) for loss in losses]
    axes.barh(places, scores, color=colors, height=0.75)
    axes.axvline(scores[0], color="grey", linestyle="--", linewidth=1)
    for place, score in zip(places, scores, strict=True):
        axes.text(0.02, place, f"{score:.3f}", va="center", fontsize=8)
    axes.set_yticks(places, [change["name"] for change in card["changes"]])
    axes.set(xlim=(0, 1), ylim=(len(scores) - 0.5, -0.5), xlabel=TITLES[card["metric"]])
    axes.set_title(_plain(name), fontsize=8)


def _scores(results: dict[str, Any]) -> str:
    heading = ["model", "reads", "input", "KB", "parameters", "MACs", "ms", "Micro KB", *TITLES.values()]
    rows = [heading]
    for entry in results["models"]:
        name = markup.visible(entry["name"])
        rows.append([name, "FAILED", *["-"] * (len(heading) - 2)] if "error" in entry else [name, *_figures(entry)])
    n, meters = results["pictures"]["n"], results["pictures"]["meters"]
    return f"{report.table(rows)}\n{markup.count(n, 'picture')} of {markup.count(meters, 'meter')}"


def _figures(entry: dict[str, Any]) -> list[str]:
    height, width, channels = entry["input_shape"]
    trial = " (by trial)" if entry["pixels_found"] == "by trial" else ""
    scores = [f"{entry['scores'][key]:.4f}" if key in entry["scores"] else "-" for key in TITLES]
    return [
        entry["outputs"],
        f"{height}x{width}x{channels} {entry['input_dtype']} {entry['pixels']}{trial}",
        f"{entry['bytes'] / 1024:.1f}",
        *("-" if entry[key] is None else f"{entry[key]:,}" for key in ("parameters", "multiply_accumulates")),
        "-" if entry["ms"] is None else f"{entry['ms']:.3f}",
        "-" if entry["arena_bytes"] is None else f"{entry['arena_bytes'] / 1024:.1f}",
        *scores,
    ]


def _notes(entries: Sequence[dict[str, Any]]) -> str:
    lines = []
    for entry in entries:
        name = markup.visible(entry["name"])
        if "error" in entry:
            lines.append(f"{name} FAILED: {markup.visible(entry['error'])}")
        if "arena_note" in entry:
            lines.append(f"{name} doesn't run in TFLite Micro: {markup.visible(entry['arena_note'])}")
        if known := entry.get("learnt_pictures"):
            lines.append(f"{name} has learnt {known:,} of these pictures: its scores flatter it, p leaves them out")
        if share := entry.get("scores", {}).get("not_readable"):
            lines.append(f"{name} calls {share:.2%} of the pictures not readable; they count as not right")
    if not micro.available():
        lines.append(f"Micro KB: not measured, {micro.MISSING}")
    return "\n".join(lines)


def _pairs(results: dict[str, Any]) -> str:
    """The best model against each of the others; all pairs of thirty models would be 435 lines."""
    scored = [entry for entry in results["models"] if "scores" in entry]
    best = max(scored, key=lambda entry: entry["scores"][results["metric"]], default={"name": None})["name"]
    return "\n".join(_pair(pair) for pair in results["pairs"] if best in (pair["better"], pair["worse"]))


def _pair(pair: dict[str, Any]) -> str:
    better, worse = markup.visible(pair["better"]), markup.visible(pair["worse"])
    shares = f"{TITLES[pair['metric']]} {pair['better_score']:.4f} and {pair['worse_score']:.4f}"
    counts = f"{markup.count(pair['only_better'], 'picture')} only the first, {pair['only_worse']} only the second"
    if not pair["only_better"] + pair["only_worse"]:
        # Chance was not asked: maybe one of them has learnt them all.
        return f"{better}, {worse}: no picture that is new to both is read right by one alone ({shares})"
    verdict = f"{better} is better than {worse}" if pair["differs"] else f"{better}, {worse}: no more than chance"
    chance = f"p = {pair['p_holm']:.2g}" if pair["p_holm"] >= TINY else f"p < {TINY:g}"
    return f"{verdict} ({shares}; {counts}; {chance})"


def _robustness(entries: Sequence[dict[str, Any]]) -> str:
    carded = [entry for entry in entries if "robustness" in entry]
    if not carded:
        return ""
    cards = [entry["robustness"] for entry in carded]
    rows = [["change", *(markup.visible(entry["name"]) for entry in carded)]]
    for number, change in enumerate(cards[0]["changes"]):
        rows.append([change["name"], *(f"{card['changes'][number]['score']:.4f}" for card in cards)])
    metrics = " or ".join(dict.fromkeys(TITLES[card["metric"]] for card in cards))
    pictures = markup.count(cards[0]["pictures"], "picture")
    return f"{report.table(rows, texts=1)}\nshare of {pictures} read {metrics}, changed one thing at a time"


def _readings(entries: Sequence[dict[str, Any]]) -> str:
    simulated = [entry for entry in entries if "readings" in entry]
    if not simulated:
        return ""
    rows = [["model", "refused below", "false", "refused", "false if none is refused"]]
    for entry in simulated:
        found = entry["readings"]
        limit = f"{found['threshold']:g} ({found['threshold_from']})"
        counts = [f"{found[key]:,}" for key in ("false", "refused", "false_unrefused")]
        rows.append([markup.visible(entry["name"]), limit, *counts])
    first = simulated[0]["readings"]
    return (
        f"{report.table(rows, texts=2)}\nof {first['readings']:,} readings of a counter with {first['digits']} digits, "
        f"{first['drawn']:,} of them shown on drawn drums"
    )


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "x".join(map(str, value))
    # A file name that is no UTF-8 can't be written as it is.
    return markup.visible(value) if isinstance(value, str) else value


def _plain(name: str) -> str:
    """A file's name for a plot, in short lines."""
    lines = textwrap.wrap(markup.visible(name).replace("_", "_ "), NAME_WIDTH)
    return "\n".join(map(markup.plotted, lines)).replace("_ ", "_")
