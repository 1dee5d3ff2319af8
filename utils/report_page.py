"""``report.html`` of a run: one page with everything that was measured, for the browser; made from the run's files."""

import json
from pathlib import Path

from utils import labels, markup, runs
from utils.report_sections import SECTIONS, Run
from utils.runs import RunError

REPORT_FILE = "report.html"


def write(run_dir: Path) -> Path:
    """Makes ``report.html`` of a finished run from the files of its folder and the results of the runs next to it.

    What wasn't measured is left out.

    Raises:
        RunError: no finished run, a damaged file in it, or the folder can't be written to.
    """
    if not (run_dir / runs.RESULTS_FILE).is_file():
        raise RunError(f"{run_dir}: no finished run ({runs.RESULTS_FILE} is missing)")
    try:
        text = _page(run_dir.resolve())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RunError(f"{run_dir}: its files are not those of a run of this version ({what})") from error
    with runs.written(run_dir / REPORT_FILE):
        runs.write_text(run_dir / REPORT_FILE, text)
    return run_dir / REPORT_FILE


def _page(folder: Path) -> str:
    results = json.loads((folder / runs.RESULTS_FILE).read_bytes())
    run = Run(folder, results, labels.main_metric(results["nb_classes"]))
    made = {title: text for title, make in SECTIONS.items() if (text := make(run))}
    links = "".join(f"<li><a href='#{markup.anchor(title)}'>{title}</a></li>" for title in made)
    parts = (f"<section id='{markup.anchor(title)}'><h2>{title}</h2>{text}</section>" for title, text in made.items())
    return "\n".join(
        [
            markup.head(folder.name, _STYLE, markup.SORT_SCRIPT),
            f"<header>{_headline(run)}<nav aria-label='Contents'><ul>{links}</ul></nav></header><main>",
            *parts,
            f"</main><script>{markup.SORT_SCRIPT}</script></body></html>\n",
        ]
    )


def _headline(run: Run) -> str:
    results = run.results
    height, width, channels = results["input_shape"]
    about = (
        f"{results['architecture']}, {results['nb_classes']} classes, {width}x{height} pixels, "
        f"{'grey' if channels == 1 else 'RGB'}, {results['parameters']:,} parameters, "
        f"{results['multiply_accumulates']:,} multiply-accumulates"
    )
    cards = [
        _tile(title, name, f"{results['files'][name]['bytes'] / 1024:.1f} KB", "file") for title, name in _to_flash(run)
    ]
    cards += [_score_tile(run, name, scores) for name, scores in run.scores.items()]
    if (confidence := results.get("recommended_confidence")) is not None:
        cards.append(_tile("Recommended confidence", f"{confidence:g}", "below it a reading is unsure"))
    if judgement := results.get("judgement"):
        verdict = "ACCEPTED" if judgement["accepted"] else "REJECTED"
        cards.append(_tile("In place of the old model", verdict, "; ".join(judgement["reasons"])))
    heading = f"<h1>{markup.breakable(run.folder.name)}</h1><p>{markup.escaped(about)}</p>"
    return f"{heading}<ul class='tiles'>{''.join(cards)}</ul>"


def _to_flash(run: Run) -> list[tuple[str, str]]:
    """Title and file for each device that takes one; without such a device, the recommended file."""
    taken = [(f"File for {target}", file) for target, file in runs.device_files(run.results).items()]
    return taken or [("Recommended file", run.results["recommended"])]


def _score_tile(run: Run, name: str, scores: dict) -> str:
    # "test" may be drawn digits alone, which would else pass for those of the meter that was learnt.
    sources = " and ".join(source for source in scores.get("per_source", {}) if source != name)
    note = markup.count(scores["n"], "picture") + (f" of {sources}" if sources else "")
    if meters := scores.get("mean_over_meters", {}).get("n"):
        note += f", {markup.count(meters, 'meter')}"
    if interval := scores.get("interval_95", {}).get(run.metric):
        low, high = interval
        note += f"; 95 % interval {100 * low:.1f} to {markup.percent(high)}"
    return _tile(f"{run.title}, {name}", markup.percent(scores[run.metric]), note)


def _tile(title: str, value: str, note: str, kind: str = "") -> str:
    return (
        f"<li class='{kind}'><span>{markup.breakable(title)}</span><b>{markup.breakable(value)}</b>"
        f"<small>{markup.breakable(note)}</small></li>"
    )


_STYLE = (
    markup.COLOURS
    + markup.TABLES
    + """
body { margin: 0 auto; max-width: 78rem; padding: 0 1.5rem 3rem; background: var(--ground); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 1.4rem 0 0.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 0.6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 0; overflow-wrap: anywhere; }
p { margin: 0.3rem 0; max-width: 80ch; }
a { color: var(--accent); }
small, .note, header > p { color: var(--soft); }
.tiles { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: 0.8rem;
  grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.tiles li, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem 1rem; }
.tiles li { display: flex; flex-direction: column; overflow-wrap: anywhere; }
.tiles span { color: var(--soft); font-size: 0.85rem; }
.tiles b { font-size: 1.5rem; line-height: 1.3; }
.tiles .file b { font-size: 1.15rem; line-height: 1.7; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; }
section { margin-top: 1rem; padding: 1rem 1.2rem 1.2rem; scroll-margin-top: 1rem; }
.scroll + .scroll { margin-top: 1rem; }
.charts, .side { display: flex; flex-wrap: wrap; gap: 0.6rem 1.5rem; align-items: flex-start; }
.side > .scroll { flex: 1 1 22rem; }
.chart { min-width: 0; max-width: 100%; height: auto; }
.sheet { max-width: min(100%, 46rem); height: auto; border-radius: 6px; }
.grid { list-style: none; margin: 0.5rem 0; padding: 0; display: grid; gap: 0.5rem;
  grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); }
.grid li { display: flex; gap: 0.6rem; align-items: center; font-size: 0.85rem; }
.grid img { height: 64px; width: 40px; image-rendering: pixelated; border-radius: 3px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1.2rem; margin: 0.8rem 0 0;
  font-size: 0.85rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
details { margin-top: 0.8rem; }
summary { cursor: pointer; color: var(--accent); margin-bottom: 0.5rem; }
@media (max-width: 40rem) { body { padding: 0 0.7rem 2rem; } section { padding: 0.8rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.4rem; } }
"""
)
