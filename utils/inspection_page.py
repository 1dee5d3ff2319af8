"""What an inspection found as a page of pictures for the browser; needs no script and nothing from outside."""

from collections.abc import Sequence

import numpy as np

from utils import inspection, markup, pictures
from utils.inspection import KINDS, Inspected, Inspection

MOST_SHOWN = 300  # pictures of one kind; a page with thousands of near twins would help nobody


def page(title: str, inspected: Inspection) -> str:
    """The page as HTML: counts of each source, then the pictures with each kind of finding."""
    chosen = {kind: inspection.of_kind(inspected.found, kind) for kind in inspected.kinds}
    sources, count = inspection.by_source(inspected.found), inspection.picture_count(inspected.found)
    return "\n".join(
        [
            markup.head(title, _STYLE),
            f"<header><h1>{markup.escaped(title)}</h1>",
            f"<p>{markup.count(count, 'picture')} in {markup.count(len(sources), 'folder')}</p>",
            f"<ul class='kinds'>{''.join(_link(kind, len(part)) for kind, part in chosen.items())}</ul></header><main>",
            *(_source(name, part) for name, part in sources.items()),
            *(_kind(kind, part) for kind, part in chosen.items() if part),
            "</main></body></html>\n",
        ]
    )


def _link(kind: str, count: int) -> str:
    if not count:
        return f"<li>{KINDS[kind]} <b>none</b></li>"
    return f"<li><a href='#{markup.anchor(kind)}'>{KINDS[kind]}</a> <b>{count:,}</b></li>"


def _source(name: str, part: Sequence[Inspected]) -> str:
    gaps = inspection.missing([one.tenths for one in part])
    labels = [[str(digit), *counts] for digit, counts in enumerate(inspection.label_counts(part))]
    meters = [[meter, *counts] for meter, counts in inspection.meter_counts(part).items()]
    return (
        f"<section><h2>{markup.escaped(name)}</h2><p>{markup.count(len(part), 'picture')} with a label. "
        f"{'No picture of: ' + ', '.join(gaps) if gaps else 'Every label occurs'}.</p><div class='tables'>"
        + markup.table("Pictures by meter and digit", ["meter", "all", "labels", *map(str, range(10))], meters)
        + markup.table("Pictures by label", ["digit", *(f".{tenth}" for tenth in range(10))], labels)
        + "</div></section>"
    )


def _kind(kind: str, chosen: Sequence[Inspected]) -> str:
    left_out = len(chosen) - MOST_SHOWN
    more = f"<p>The first {MOST_SHOWN} of {len(chosen):,}; the CSV file lists all.</p>" if left_out > 0 else ""
    cards = "".join(_card(one, one.findings[kind]) for one in chosen[:MOST_SHOWN])
    heading = f"<h2>{KINDS[kind]} ({len(chosen):,})</h2>"
    return f"<section id='{markup.anchor(kind)}'>{heading}{more}<ul class='grid'>{cards}</ul></section>"


def _card(one: Inspected, finding: str) -> str:
    image = _image(one)
    picture = "<span class='gone'>no picture</span>" if image is None else markup.picture(image)
    return (
        f"<li>{picture}<div><b>{markup.escaped(one.label or 'no label')}</b><p>{markup.breakable(finding)}</p>"
        f"<small><bdi>{markup.breakable(one.place)}</bdi></small></div></li>"
    )


def _image(one: Inspected) -> np.ndarray | None:
    """Also of a picture without a usable label, which an inspection leaves aside: whoever mends it has to see it."""
    if one.image is not None or not one.picture:
        return one.image
    try:
        return pictures.decode(one.picture, *inspection.SHAPE)
    except pictures.PictureError:
        return None


_STYLE = (
    markup.COLOURS
    + markup.TABLES
    + """
body { margin: 0; padding: 0 1.5rem 3rem; background: var(--ground); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 1.2rem 0 0.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.4rem; overflow-wrap: anywhere; }
p { margin: 0.4rem 0; }
a { color: var(--accent); }
.kinds { columns: 25rem; padding: 0; list-style: none; max-width: 70rem; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start; }
.grid { list-style: none; margin: 0.8rem 0; padding: 0; display: grid; gap: 0.6rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.grid li { display: flex; gap: 0.8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.6rem 0.8rem; content-visibility: auto; contain-intrinsic-size: auto 7rem; }
.grid div { min-width: 0; overflow-wrap: anywhere; font-size: 0.85rem; }
.grid b { font-size: 1.05rem; }
small { color: var(--soft); }
img { height: 96px; width: 60px; flex: none; image-rendering: pixelated; }
.gone { width: 60px; height: 96px; flex: none; display: grid; place-items: center; text-align: center;
  border: 1px dashed var(--line); color: var(--soft); font-size: 0.75rem; }
"""
)
