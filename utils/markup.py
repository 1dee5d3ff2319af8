"""What pages for the browser are made of: the head, colours, tables, a stranger's text, pictures."""

import base64
import hashlib
import html
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline';{allowed} base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<style>{style}</style></head><body>"""

Cell = str | int | float | None

COLOURS = """
:root { color-scheme: light dark; --ground: #f5f5f3; --card: #fff; --line: #d4d4cf; --text: #1d1d1b; --soft: #5c5c57;
  --accent: #0b57a4; --on: #fff; --doubt: #a34700; --doubt-ground: #fdebd8; --bad: #b3151b; --edit: #e2eefb; }
@media (prefers-color-scheme: dark) { :root { --ground: #161617; --card: #222224; --line: #45454a; --text: #ececea;
  --soft: #acaca6; --accent: #85baf2; --on: #10253c; --doubt: #ffb877; --doubt-ground: #452c14; --bad: #ff8f8f;
  --edit: #1a3149; } }
* { box-sizing: border-box; }
"""

TABLES = """
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.3rem; }
th, td { padding: 0.15rem 0.5rem; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
th:first-child, .words { text-align: left; overflow-wrap: break-word; }
th:first-child { min-width: 8rem; max-width: 22rem; }
thead th { color: var(--soft); vertical-align: bottom; }
thead button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
thead button:hover { color: var(--accent); text-decoration: underline; }
[aria-sort=ascending] button::after { content: " \\2191"; }
[aria-sort=descending] button::after { content: " \\2193"; }
.none { color: var(--soft); opacity: 0.6; }
.share { background: linear-gradient(to right, var(--edit) calc(100% * var(--share)), transparent 0); }
"""

# Makes every heading of a table a button that sorts by its column, cells without a value last.
SORT_SCRIPT = r"""
"use strict";
const collator = new Intl.Collator("en", {numeric: true});

function keys(rows, column) {
  const texts = rows.map(row => row.cells[column].textContent);
  const numbers = texts.map(text => Number(text.replaceAll(",", "")));
  return texts.every((text, i) => text === "-" || text !== "" && !Number.isNaN(numbers[i])) ? numbers : texts;
}

function sort(table, head) {
  const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
  const body = table.tBodies[0], rows = Array.from(body.rows), values = keys(rows, head.cellIndex);
  const order = Array.from(rows.keys()).sort((a, b) => {
    const [x, y] = [values[a], values[b]];
    if (typeof x === "string") return turn * collator.compare(x, y);
    return Number.isNaN(x) - Number.isNaN(y) || turn * (x - y) || 0;
  });
  body.append(...order.map(i => rows[i]));
}

for (const table of document.querySelectorAll("table")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}
"""


def head(title: str, style: str, script: str = "") -> str:
    """Begins a page that connects to nowhere (Content-Security-Policy): pictures within it, this script alone."""
    # Should a name ever get past the escaping, it still runs nothing.
    allowed = f" script-src '{_digest(script)}';" if script else ""
    return _HEAD.format(allowed=allowed, title=escaped(title), style=style)


def table(caption: str, heading: Sequence[str], rows: Sequence[Sequence[Cell]], bar: int | None = None) -> str:
    """A table as HTML.

    Whole numbers get thousands separators; other numbers up to 1 are shares and have four decimals, larger ones have
    one; None is a dash.

    Args:
        caption: stands above it.
        heading: titles of the columns.
        rows: their cells; the first of each is the row's title.
        bar: number of a column of shares 0..1 that are shown as bars, too.
    """
    head = "".join(
        f"<th scope='col'{_words(cell)}>{escaped(text)}</th>"
        for text, cell in zip(heading, rows[0] if rows else heading, strict=True)
    )
    body = "".join(
        f"<tr><th scope='row'>{_shown(first)}</th>"
        + "".join(_cell(cell, number == bar) for number, cell in enumerate(cells, 1))
        + "</tr>"
        for first, *cells in rows
    )
    caption = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return f"<div class='scroll'><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def png(image: np.ndarray) -> str:
    """A picture (H, W, C) uint8, RGB or grey, as PNG in base64 for a ``data:`` address."""
    _, data = cv2.imencode(".png", image if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return base64.b64encode(data).decode()


def picture(image: np.ndarray) -> str:
    """A picture (H, W, C) uint8 as an element of a page with many: it is decoded when it comes into view."""
    height, width = image.shape[:2]
    size = f"width='{width}' height='{height}'"
    return f"<img alt='' loading='lazy' decoding='async' {size} src='data:image/png;base64,{png(image)}'>"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 picture, 1,200 pictures."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share 0..1 as 63.6 %."""
    return f"{100 * share:.1f} %"


def visible(text: str) -> str:
    """Characters nobody sees, that turn the direction of writing, or that UTF-8 has not, are spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def columns(text: str) -> int:
    """How wide a terminal shows a text: Chinese letters take two columns, an accent that follows its letter none."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def padded(text: str, width: int, right: bool = False) -> str:
    """A text with spaces behind it, or with ``right`` in front, to fill so many :func:`columns`."""
    spaces = " " * (width - columns(text))
    return spaces + text if right else text + spaces


def plotted(text: str) -> str:
    """A stranger's text for a plot.

    Matplotlib takes what stands between dollars for a formula, and leaves out of a legend what begins with ``_``.
    """
    text = visible(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def escaped(text: str) -> str:
    """A stranger's text as HTML, in element or attribute."""
    return html.escape(visible(text))


def breakable(text: str) -> str:
    """Escaped text with paths in it, which a browser would not break at their slashes."""
    return escaped(text).replace("/", "/<wbr>").replace("_", "_<wbr>")


def anchor(title: str) -> str:
    """What links to a section of the page name it by."""
    return title.lower().replace(" ", "-")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _words(cell: Cell) -> str:
    return " class='words'" if isinstance(cell, str) else ""


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return breakable(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}" if abs(cell) <= 1 else f"{cell:,.1f}"


def _cell(cell: Cell, bar: bool) -> str:
    if bar and isinstance(cell, float):
        return f"<td class='share' style='--share: {cell:.4f}'>{_shown(cell)}</td>"
    nothing = cell is None or (isinstance(cell, int) and cell == 0)
    return f"<td{' class=none' if nothing else _words(cell)}>{_shown(cell)}</td>"
