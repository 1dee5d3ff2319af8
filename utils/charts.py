"""Charts for pages as SVG, which follow the browser's light or dark colours."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from utils import frontier, markup, report
from utils.frontier import Point

# Replaced by the colour of the page's text, which no chart can know.
_INK = "#010203"
_STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **{"grid.color": _INK, "legend.framealpha": 0, "legend.fontsize": 9, "axes.titlesize": 11},
    **{"axes.spines.top": False, "axes.spines.right": False},
    # The same chart gives the same text, and text stays text.
    **{"svg.hashsalt": "chart", "svg.fonttype": "none"},
}
_COLOURS = "<style>svg{color:#44443f}@media(prefers-color-scheme:dark){svg{color:#b8b8b2}}</style>"
_MARKERS = {
    "this run": {"marker": "o", "s": 110, "color": "#d1600a", "zorder": 4},
    "other run": {"marker": "o", "s": 30, "color": "#8a8a85"},
    "zoo": {"marker": "s", "s": 36, "color": "#3b82c4"},
    "baseline": {"marker": "D", "s": 48, "color": "#a0479c"},
}


def history(rows: list[dict[str, float]], best_epoch: int) -> dict[str, str]:
    """SVG of each panel of the training history, by title; ``rows`` as in ``training_log.csv``."""
    charts = {}
    with matplotlib.rc_context(_STYLE):
        for title in report.HISTORY:
            figure, axes = _figure(3.4, 2.8)
            report.draw_history(axes, title, rows, best_epoch)
            charts[title] = _svg(figure)
    return charts


def sizes(found: Sequence[Point], title: str) -> str:
    """SVG of size against score; the frontier is a line, its models, this run and the baseline have names."""
    front = frontier.best(found)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(6.2, 4)
        steps = [one.kb for one in front], [one.score for one in front]
        axes.step(*steps, where="post", color="#8a8a85", linewidth=1, zorder=1)
        for kind in frontier.KINDS:
            mine = [one for one in found if one.kind == kind]
            if mine:
                axes.scatter([one.kb for one in mine], [one.score for one in mine], label=kind, **_MARKERS[kind])
        axes.set(xlabel="KB of the file for the device", ylabel=markup.plotted(title))
        axes.margins(y=0.15)
        report.size_axis(axes, [one.kb for one in found])
        axes.grid(alpha=0.2)
        # Outside: a mark within the axes would pass for a model.
        figure.legend(loc="outside lower center", ncols=len(frontier.KINDS), frameon=False)
        _names(axes, [one for one in found if one in front or one.kind in ("this run", "baseline")])
        return _svg(figure)


def coverage(kept: Sequence[float], scores: Sequence[float], title: str) -> str:
    """SVG of the score of the readings that are kept, against their share of all readings, both 0..1."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.6, 3.6)
        axes.plot([100 * share for share in kept], scores, marker=".", color="#d1600a")
        axes.set(xlabel="readings kept, %", ylabel=f"{title} of those kept")
        axes.grid(alpha=0.2)
        return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _names(axes: Axes, named: Sequence[Point]) -> None:
    """Writes names above their marks, or below where another one stands; the table alone has what fits nowhere."""
    # Lays the chart out: before that nobody knows what stands where.
    axes.figure.draw_without_rendering()
    taken: list[Bbox] = []
    for one in named:
        name = one.kind if one.kind == "this run" else markup.visible(one.name)
        shown = name if len(name) <= 34 else f"{name[:33]}…"
        for up, align in ((9, "baseline"), (-9, "top")):
            # A stranger's folder may have dollars in its name, which begin a formula.
            text = axes.annotate(
                shown,
                (one.kb, one.score),
                xytext=(0, up),
                textcoords="offset points",
                ha="center",
                va=align,
                fontsize=9,
                parse_math=False,
            )
            box = text.get_window_extent()
            if not any(map(box.overlaps, taken)):
                taken.append(box)
                break
            text.remove()


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    end = text.index(">") + 1
    return text[:end] + _COLOURS + text[end:]
