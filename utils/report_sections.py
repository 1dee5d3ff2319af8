"""The sections of a run's page, each from the files of the run folder; one whose files are missing is empty."""

import base64
import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils import charts, frontier, markup, report, runs
from utils.markup import Cell

TITLES = {
    **report.SCORE_TITLES,
    "agreement": "agrees with Keras",
    "whole_digit_errors": "a digit or more off",
}


@dataclass(frozen=True)
class Run:
    """What a section is made from: the folder, what ``results.json`` holds, and the name of the main metric."""

    folder: Path
    results: dict
    metric: str

    @property
    def title(self) -> str:
        """The main metric's title."""
        return TITLES[self.metric]

    @property
    def scores(self) -> dict[str, dict]:
        """Scores of the recommended file by test set."""
        return self.results["files"][self.results["recommended"]]["sets"]

    def read(self, name: str) -> dict:
        """A JSON file of the folder; empty if the run has none."""
        path = self.folder / name
        return json.loads(path.read_bytes()) if path.is_file() else {}


def _results(run: Run) -> str:
    files = {run.results["recommended"]: {}}
    files |= {"before": run.results["before"]} if "before" in run.results else {}
    entries = [
        (file, entry.get("bytes"), name, scores)
        for file, entry in (files | run.results["files"]).items()
        for name, scores in entry["sets"].items()
    ]
    names = _metrics([scores for *_, scores in entries])
    rows = [
        [file, size and size / 1024, name, scores["n"], *map(scores.get, names)] for file, size, name, scores in entries
    ]
    heading = ["file", "KB", "measured on", "pictures", *_titles(names)]
    return (
        markup.table("Each file on each test set, shares of the pictures", heading, rows, heading.index(run.title))
        + _means(run)
        + "<p class='note'>A click on a heading sorts.</p>"
    )


def _means(run: Run) -> str:
    """Every meter counts the same, however many pictures it has."""
    means = {name: scores["mean_over_meters"] for name, scores in run.scores.items() if scores.get("mean_over_meters")}
    names = _metrics(list(means.values()))
    rows = [[name, scores.get("n"), *map(scores.get, names)] for name, scores in means.items()]
    caption = f"{run.results['recommended']}, mean over the meters"
    return markup.table(caption, ["measured on", "meters", *_titles(names)], rows) if rows else ""


def _meters(run: Run) -> str:
    entries = [
        (meter, name, scores) for name, of_set in run.scores.items() for meter, scores in of_set["per_meter"].items()
    ]
    entries.sort(key=lambda entry: entry[2][run.metric])
    names = _metrics([scores for *_, scores in entries])
    rows = [[meter, name, scores["n"], *map(scores.get, names)] for meter, name, scores in entries]
    heading = ["meter", "measured on", "pictures", *_titles(names)]
    caption = f"{run.results['recommended']}, worst meter first"
    return markup.table(caption, heading, rows, heading.index(run.title))


def _frontier(run: Run) -> str:
    found = frontier.points(run.folder, run.results, run.metric)
    name = frontier.test_set(run.results)
    own = found[0]
    better = [one for one in found[1:] if one.kb <= own.kb and one.score >= own.score]
    if len(found) == 1:
        text = "No other model was measured on the same pictures."
    elif better:
        text = f"{len(better)} of {markup.count(len(found) - 1, 'other model')}: no larger, and no worse at reading."
    else:
        text = f"On the frontier: of {markup.count(len(found) - 1, 'other model')} none is as small and reads as well."
    rows = [[one.name, one.kind, one.kb, one.score] for one in sorted(found, key=lambda one: -one.score)]
    table = markup.table("", ["model", "which", "KB", run.title], rows)
    chart = _picture(charts.sizes(found, f"{run.title}, {name}"), "size and score of each model")
    return (
        f"<p>{text} Compared are the runs next to this one, the zoo and the public baseline, as far as they were "
        f"measured on the same pictures of {markup.escaped(name)}.</p><div class='side'>{chart}{table}</div>"
    )


def _training(run: Run) -> str:
    path = run.folder / runs.TRAINING_LOG_FILE
    if not path.is_file():
        return ""
    with path.open(newline="") as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    shown = charts.history(rows, run.results["training"]["best_epoch"])
    return f"<div class='charts'>{''.join(_picture(svg, title) for title, svg in shown.items())}</div>"


def _confusion(run: Run) -> str:
    path = run.folder / report.CONFUSION_FILE
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img class='sheet' alt='true class against class read' src='data:image/png;base64,{data}'>"


def _worst(run: Run) -> str:
    worst = run.read(runs.WORST_READINGS_FILE).get("meters", [])
    return "".join(
        f"<h3>{markup.breakable(one['meter'])}</h3><p>{one['wrong']:,} of {markup.count(one['n'], 'picture')} wrong, "
        f"{markup.percent(one['wrong'] / one['n'])}</p><ul class='grid'>{''.join(map(_card, one['pictures']))}</ul>"
        for one in worst
    )


def _card(one: dict) -> str:
    return (
        f"<li title='{markup.escaped(one['file'])}'>"
        f"<img alt='' src='data:image/png;base64,{markup.escaped(one['png'])}'>"
        f"<div>true <b>{markup.escaped(one['true'])}</b><br>read <b>{markup.escaped(one['read'])}</b><br>"
        f"<small>{100 * one['confidence']:.0f} % sure</small></div></li>"
    )


def _reliability(run: Run) -> str:
    parts = []
    for name, scores in run.scores.items():
        kept = [one for one in scores.get("coverage", []) if one.get(run.metric) is not None]
        if kept:
            # To six digits, as a network that is sure has many above 0.9999, and 1.0000 would refuse everything.
            rows = [[f"{one['confidence']:g}", one["coverage"], one[run.metric]] for one in kept]
            svg = charts.coverage([one["coverage"] for one in kept], [one[run.metric] for one in kept], run.title)
            table = markup.table("", ["confidence from", "readings kept", run.title], rows)
            chart = _picture(svg, f"readings kept and {run.title}")
            parts.append(f"<h3>{markup.breakable(name)}</h3><div class='side'>{chart}{table}</div>")
    note = "<p>Readings below a confidence are left out: how many are kept, and how right those are.</p>"
    return note + "".join(parts) if parts else ""


def _robustness(run: Run) -> str:
    measured = run.read(runs.ROBUSTNESS_FILE)
    if not measured:
        return ""
    unchanged, *_ = measured["changes"]
    rows = [[one["name"], float(one["score"]), float(one["score"] - unchanged["score"])] for one in measured["changes"]]
    caption = f"The same {markup.count(measured['pictures'], 'picture')}, changed"
    return markup.table(caption, ["change", TITLES[measured["metric"]], "difference"], rows, 1)


def _devices(run: Run) -> str:
    rows: list[list[Cell]] = [
        [
            target,
            verdict["file"],
            "accepted" if verdict["accepted"] else f"REFUSED: {'; '.join(verdict['reasons'])}",
            verdict.get("checked_with"),
            f"{verdict['arena_bytes']:,} bytes" if verdict.get("arena_bytes") else None,
            "; ".join(verdict.get("warnings", [])),
        ]
        for target, verdict in run.results.get("devices", {}).items()
    ]
    return markup.table("", ["device", "file", "verdict", "checked with", "memory", "to know"], rows) if rows else ""


def _data(run: Run) -> str:
    data = run.results["data"]
    names = ["pictures", "training", "training_weighted", "validation", "measured"]
    facts = {name: value for name, value in data.items() if not isinstance(value, list | dict)}
    if "strategy" in run.results["training"]:
        # A lesson has no epochs of weighted pictures: what is new has its share of each batch, told under "Settings".
        names.remove("training_weighted")
        facts.pop("training_pictures", None)
    rows = [[one["name"], *map(one.get, names), _counted(one["skipped"])] for one in data["sources"]]
    heading = ["source", *(name.replace("_", ", ") for name in names), "skipped"]
    return markup.table("Pictures of each source", heading, rows) + _facts(facts)


def _counted(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.items()) or "none"


def _settings(run: Run) -> str:
    kept = ("mode", "notes", "training", "timing", "tuned_by")
    facts: dict = {}
    for name in kept:
        value = run.results.get(name)
        facts |= value if isinstance(value, dict) else {name: value} if value else {}
    settings = run.read(runs.SETTINGS_FILE).get("settings", {})
    rows = [[name.upper(), _value(value)] for name, value in settings.items()]
    table = markup.table("", ["parameter", "value"], rows) if rows else ""
    return f"{_facts(facts)}<details><summary>All parameters</summary>{table}</details>"


def _facts(facts: dict) -> str:
    shown = (
        f"<dt>{markup.escaped(name.replace('_', ' '))}</dt><dd>{markup.breakable(_value(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{''.join(shown)}</dl>"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _metrics(scored: list[dict]) -> list[str]:
    """Names of the figures that any of these has, in their order."""
    names = (name for scores in scored for name, value in scores.items() if isinstance(value, int | float))
    return [name for name in dict.fromkeys(names) if name != "n"]


def _titles(names: list[str]) -> list[str]:
    return [TITLES.get(name, name.replace("_", " ")) for name in names]


def _picture(svg: str, alt: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f"<img class='chart' alt='{markup.escaped(alt)}' src='data:image/svg+xml;base64,{data}'>"


SECTIONS: dict[str, Callable[[Run], str]] = {
    "Results": _results,
    "Size and accuracy": _frontier,
    "Meters": _meters,
    "Worst readings": _worst,
    "Reliability": _reliability,
    "Robustness": _robustness,
    "Training": _training,
    "Confusion": _confusion,
    "Devices": _devices,
    "Data": _data,
    "Settings": _settings,
}
