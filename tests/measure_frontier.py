"""Makes the README's table of sizes and scores and its plot: ``python -m tests.measure_frontier [RUN_DIR ...]``.

Reads ``results.json`` of finished runs of 100 classes, without a folder those in ``exported_models/zoo``, and measures
nothing itself. A score that a run lacks is "-" in the table.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from utils import frontier, runs
from utils.frontier import Point

METRIC = "within_0.1"
TICKS = (15, 20, 30, 40, 60, 80, 150, 250, 500, 1000, 2000, 4000, 8000)  # KB


@dataclass(frozen=True)
class Model:
    """One finished run: its folder's name, what ``results.json`` says, and the recommended file's scores."""

    name: str
    results: dict
    kb: float
    scores: dict

    @property
    def interval(self) -> list[float] | None:
        return self.scores.get("interval_95", {}).get(METRIC)


def read(run_dir: Path, test_set: str) -> Model:
    """A run's scores on a test set; ends the script where there are none."""
    path = run_dir / runs.RESULTS_FILE
    try:
        results = json.loads(path.read_text())
        entry = results["files"][results["recommended"]]
        model = Model(run_dir.name, results, entry["bytes"] / 1024, entry["sets"][test_set])
        row(model)
        return model
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: no scores of 100 classes on {test_set} ({type(error).__name__}: {error})") from error


def row(model: Model) -> str:
    """A model as a row of the Markdown table."""
    low_high = " ({:.3f}..{:.3f})".format(*model.interval) if model.interval else ""
    mean, digit = model.scores.get("mean_over_meters", {}).get(METRIC), model.scores.get("digit")
    cells = [f"`{model.name}`", f"{model.kb:.1f}", f"{model.results['parameters']:,}"]
    cells += [f"{model.results['multiply_accumulates']:,}", f"{model.scores[METRIC]:.4f}{low_high}"]
    cells += ["-" if value is None else f"{value:.4f}" for value in (mean, digit)]
    return f"| {' | '.join(cells)} |"


def meters(found: list[Model]) -> list[str]:
    """Within 0.1 of each meter (rows) and model (columns) as a Markdown table."""
    first = found[0].scores["per_meter"]
    lines = [["meter", "pictures", *(f"`{model.name}`" for model in found)], ["---"] * (2 + len(found))]
    for meter, scores in first.items():
        shares = [model.scores["per_meter"].get(meter, {}).get(METRIC) for model in found]
        cells = ["-" if share is None else f"{share:.3f}" for share in shares]
        lines.append([f"`{meter.split('/')[-1]}`", str(scores["n"]), *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def _tenths(path: Path) -> bool:
    return json.loads(path.read_text()).get("nb_classes") == 100


def draw(path: Path, found: list[Model], test_set: str) -> None:
    """Score against KB (logarithmic) as a PNG: 95 % intervals, the frontier as a line, the public baseline beside."""
    points = [Point(model.name, "zoo", model.kb, model.scores[METRIC]) for model in found]
    if any(model.scores.get("n") == frontier.BASELINE_PICTURES for model in found):
        points.append(frontier.BASELINE)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    front = frontier.best(points)
    axes.plot([one.kb for one in front], [one.score for one in front], color="tab:blue", alpha=0.4, zorder=1)
    for model in found:
        if model.interval:
            axes.vlines(model.kb, *model.interval, color="grey", alpha=0.4, zorder=1)
    largest = max(point.kb for point in points)
    for point in points:
        _mark(axes, point, to_the_left=point in front or point.kind == "baseline" or point.kb == largest)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([tick for tick in TICKS if tick < 1.3 * largest])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="KB of the recommended file", ylabel=f"read within 0.1 on {test_set}", title="Size and accuracy")
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    runs.write(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))


def _mark(axes: Axes, point: Point, to_the_left: bool) -> None:
    is_baseline = point.kind == "baseline"
    color, marker = ("tab:red", "s") if is_baseline else ("tab:blue", "o")
    axes.scatter(point.kb, point.score, color=color, marker=marker, zorder=2)
    axes.annotate(
        point.name.removeprefix("digit_recognizer_"),
        (point.kb, point.score),
        xytext=(-4, 4) if to_the_left else (4, -4),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        va="bottom" if to_the_left else "top",
    )


def main(argv: list[str] | None = None) -> None:
    """Prints a row a model as Markdown, smallest file first, and writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders; without any those in exported_models/zoo")
    parser.add_argument("--test_set", default="unseen_meters", metavar="NAME")
    parser.add_argument("--plot", type=Path, default=Path("docs/frontier.png"), metavar="FILE")
    arguments = parser.parse_args(argv)
    folders = arguments.runs or [
        path.parent for path in sorted(frontier.ZOO.glob(f"*/{runs.RESULTS_FILE}")) if _tenths(path)
    ]
    if not folders:
        parser.error(f"no runs of 100 classes in {frontier.ZOO}: name run folders")
    found = sorted((read(folder, arguments.test_set) for folder in folders), key=lambda model: model.kb)
    print("| model | KB | parameters | multiply-accumulates | within 0.1 (95 % interval) | mean over meters | digit |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(map(row, found)), end="\n\n")
    print("\n".join(meters(found)))
    draw(arguments.plot, found, arguments.test_set)


if __name__ == "__main__":
    main()
