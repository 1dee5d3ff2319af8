"""A page on which a person looks through the pictures of a retraining and corrects their labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils import labels, markup
from utils.labels import LABEL_FILE

LEARNT, ASIDE, LEFT_OUT = "trained on", "kept aside", "not trained on"
# Of each filter its title; "all" is no kind of picture.
FILTERS = {"all": "All", "suspicious": "Label looks wrong", "wrong": "Still wrong", "aside": "Kept aside"}

_SENTENCE = (
    "Pictures whose label looks wrong come first: both models read them alike, but not as they are labelled. Correct "
    "the labels that are wrong, tick “not readable” where nobody can tell, and download the list of all labels. "
)


@dataclass(frozen=True, eq=False)
class Reviewed:
    """One picture of a retraining.

    ``file`` is a posix path relative to the folder; ``image`` (H, W, C) uint8, RGB or grey; ``label`` what it was
    labelled, as a class name ("3.4", "3"; for 10 classes tenths may stand, too, and are kept); ``old`` and ``new``
    what the model read before and after, as class name and confidence 0..1; ``part`` is ``LEARNT``, ``ASIDE`` (to
    measure on) or ``LEFT_OUT`` (a twin of a measured picture, or its source has little weight).
    """

    file: str
    image: np.ndarray
    label: str
    old: tuple[str, float]
    new: tuple[str, float]
    part: str


def is_wrong(entry: Reviewed, nb_classes: int) -> bool:
    """Whether the new model's reading differs from the label, for 100 classes by more than a tenth."""
    return not _alike(entry.new[0], entry.label, nb_classes)


def is_suspicious(entry: Reviewed, nb_classes: int) -> bool:
    """Whether both models read the same, but not what the label says: then it is often the label that is wrong."""
    return _alike(entry.old[0], entry.new[0], nb_classes) and is_wrong(entry, nb_classes)


def ordered(entries: Sequence[Reviewed], nb_classes: int) -> list[Reviewed]:
    """The suspicious ones, the new model's other errors, both surest first, then the rest as they came.

    Of a suspicious one the less sure model decides.
    """

    def rank(entry: Reviewed) -> tuple[int, float]:
        if is_suspicious(entry, nb_classes):
            return 0, -min(entry.old[1], entry.new[1])
        return (1, -entry.new[1]) if is_wrong(entry, nb_classes) else (2, 0)

    return sorted(entries, key=rank)


def name_in_label_file(file: str) -> str | None:
    """How a label file names a picture, None if it can't (see readers): a line holds a name, whitespace and a label.

    Lines end at a line feed or a carriage return and are stripped, a backslash is taken for a slash, and the file is
    UTF-8. ``./`` keeps whitespace in front from being stripped and # from beginning a comment.
    """
    # A file name that is no UTF-8 has half a surrogate pair for each byte.
    if not file or file[-1].isspace() or any(c in "\n\r\\\0" or "\ud800" <= c <= "\udfff" for c in file):
        return None
    return f"./{file}" if file[0].isspace() or file[0] == "#" else file


def page(title: str, entries: Sequence[Reviewed], nb_classes: int, folder: str) -> str:
    """The page as HTML that needs nothing but itself; see :class:`Reviewed` for the entries, :func:`ordered` for order.

    Args:
        title: the page's heading.
        entries: the pictures, in any order.
        nb_classes: 10 or 100.
        folder: where the pictures lie, for the page to say where the downloaded list belongs.
    """
    entries = ordered(entries, nb_classes)
    kinds = [_kinds(entry, nb_classes) for entry in entries]
    names = [name_in_label_file(entry.file) for entry in entries]
    counts = {kind: sum(kind in one for one in kinds) for kind in FILTERS} | {"all": len(entries)}
    pattern = r"[0-9]\.[0-9]" if nb_classes == 100 else r"[0-9](\.[0-9])?"
    example = "3.4" if nb_classes == 100 else "3"
    cards = (
        _card(number, entry, kind, name is not None, pattern, example)
        for number, (entry, kind, name) in enumerate(zip(entries, kinds, names, strict=True))
    )
    return "\n".join(
        [
            markup.head(title, _STYLE, SCRIPT),
            f"<header><h1>{markup.escaped(title)}</h1>",
            f"<p>{markup.count(len(entries), 'picture')}: {counts['suspicious']} with a label that looks wrong, "
            f"{counts['wrong']} still read wrong by the new model, {counts['aside']} kept aside to measure.</p>",
            f"<p>{_SENTENCE}Save it as <code>{LABEL_FILE}</code> in <code>{markup.escaped(folder)}</code>: the next "
            "retraining on that folder goes by it.</p>",
            _warning(names.count(None)),
            "<noscript><p class='note'>Correcting labels needs JavaScript.</p></noscript></header>",
            _bar(counts),
            f"<main><ul id='grid' data-show='all'>{''.join(cards)}</ul></main>",
            # < is the only character that could end the element early.
            f"<script type='application/json' id='names'>{json.dumps(names).replace('<', chr(92) + 'u003c')}</script>",
            f"<script>{SCRIPT}</script>",
            "</body></html>\n",
        ]
    )


def _alike(label: str, other: str, nb_classes: int) -> bool:
    classes = [labels.to_classes(labels.parse(text).tenths, nb_classes) for text in (label, other)]
    return bool(labels.alike(*classes, nb_classes))


def _kinds(entry: Reviewed, nb_classes: int) -> list[str]:
    is_kind = {
        "suspicious": is_suspicious(entry, nb_classes),
        "wrong": is_wrong(entry, nb_classes),
        "aside": entry.part == ASIDE,
    }
    return [kind for kind, holds in is_kind.items() if holds]


def _warning(unnamed: int) -> str:
    if not unnamed:
        return ""
    return (
        f"<p class='note'>{markup.count(unnamed, 'picture')} can't stand in a label file because of the file's name (a "
        "line break, a backslash, whitespace at the end or bytes that are no UTF-8) and will be missing from the list: "
        "rename the file and retrain.</p>"
    )


def _bar(counts: dict[str, int]) -> str:
    choices = "".join(
        f"<label><input type='radio' name='show' value='{kind}' autocomplete='off'"
        f"{' checked' if kind == 'all' else '' if counts[kind] else ' disabled'}> {shown} ({counts[kind]})</label>"
        for kind, shown in FILTERS.items()
    )
    return (
        f"<div class='bar'><fieldset id='filter'><legend>Show</legend>{choices}</fieldset>"
        "<p class='save'><span id='state' role='status'>No changes</span> "
        f"<button type='button' id='download'>Download {LABEL_FILE}</button></p><p id='message' role='alert'></p></div>"
    )


def _card(number: int, entry: Reviewed, kinds: list[str], named: bool, pattern: str, example: str) -> str:
    suspicious = "suspicious" in kinds
    take = f"<button type='button' class='take' value='{entry.new[0]}'>Take {entry.new[0]}</button>"
    return (
        f"<li class='{' '.join(kinds)}'><fieldset{'' if named else ' disabled'}>"
        f"<legend><bdi>{markup.escaped(entry.file)}</bdi></legend>"
        f"<div class='seen'>{markup.picture(entry.image)}"
        f"<dl><dt>Labelled</dt><dd>{markup.escaped(entry.label)}</dd>{_read('Old model', entry.old)}"
        f"{_read('New model', entry.new)}</dl></div>"
        f"<p class='tags'>{_tags(kinds, entry.part)}</p>"
        f"<p class='edit'><label>Label <input class='label' value='{markup.escaped(entry.label)}' pattern='{pattern}' "
        f"aria-describedby='e{number}' inputmode='decimal' autocomplete='off' size='4' maxlength='3' required></label>"
        f"{take if suspicious else ''}</p>"
        "<p><label><input type='checkbox' class='out' autocomplete='off'> not readable, leave out</label></p>"
        f"<p class='error' id='e{number}'>Write a label such as {example}.</p>"
        + ("" if named else "<p class='note'>The file's name can't stand in a label file: rename it.</p>")
        + "</fieldset></li>"
    )


def _tags(kinds: list[str], part: str) -> str:
    shown = ["label looks wrong" if "suspicious" in kinds else "still wrong" if "wrong" in kinds else "read right"]
    return " ".join(f"<span>{tag}</span>" for tag in [*shown, part])


def _read(who: str, reading: tuple[str, float]) -> str:
    return f"<dt>{who}</dt><dd>{markup.escaped(reading[0])} <small>{reading[1]:.0%}</small></dd>"


_STYLE = (
    markup.COLOURS
    + """
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
header, .bar, main { padding: 0 1.5rem; }
header > p { max-width: 80ch; }
h1 { font-size: 1.5rem; margin: 1.2rem 0 0.4rem; overflow-wrap: anywhere; }
p { margin: 0.5rem 0; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
legend { padding: 0; }
.bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; align-items: center; gap: 0 2rem;
  background: var(--ground); border-bottom: 1px solid var(--line); }
.bar fieldset { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.bar legend { position: absolute; clip-path: inset(50%); }
.bar label:has(:disabled) { color: var(--soft); }
.save { margin-left: auto; }
#state { margin-right: 0.7rem; }
#message { flex-basis: 100%; margin-top: 0; color: var(--bad); font-weight: 600; }
#message:empty { display: none; }
button { font: inherit; color: var(--accent); background: none; border: 1px solid var(--accent); border-radius: 5px;
  padding: 0.1rem 0.6rem; cursor: pointer; }
#download { background: var(--accent); color: var(--on); padding: 0.35rem 0.9rem; }
button:disabled { opacity: 0.5; cursor: default; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
#grid { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: 0.9rem;
  grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); }
#grid > li { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.7rem 0.9rem;
  content-visibility: auto; contain-intrinsic-size: auto 17rem; scroll-margin-top: 8rem; }
#grid > li.changed { background: var(--edit); border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
#grid > li.invalid { border-color: var(--bad); box-shadow: 0 0 0 1px var(--bad); }
#grid legend { width: 100%; overflow-wrap: anywhere; font-size: 0.85rem; color: var(--soft); margin-bottom: 0.4rem; }
.seen { display: flex; gap: 1rem; align-items: center; }
img { height: 120px; width: auto; max-width: 9rem; object-fit: contain; image-rendering: pixelated; }
dl { margin: 0; }
dt { font-size: 0.8rem; color: var(--soft); }
dd { margin: 0 0 0.15rem; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
small { font-weight: 400; font-size: 0.85rem; color: var(--soft); }
.tags span { display: inline-block; font-size: 0.8rem; border: 1px solid var(--line); border-radius: 99px;
  padding: 0 0.6rem; color: var(--soft); }
.suspicious .tags span:first-child { color: var(--doubt); background: var(--doubt-ground); border-color: var(--doubt); }
.wrong:not(.suspicious) .tags span:first-child { color: var(--bad); border-color: var(--bad); }
.edit { display: flex; gap: 0.7rem; align-items: center; }
.label { font: inherit; font-weight: 600; padding: 0.15rem 0.4rem; margin-left: 0.3rem; border-radius: 5px;
  border: 1px solid var(--soft); background: var(--card); color: inherit; }
.label:disabled { opacity: 0.5; text-decoration: line-through; }
.error { display: none; }
.invalid .error { display: block; }
.error, .note { color: var(--bad); }
[data-show=suspicious] > li:not(.suspicious), [data-show=wrong] > li:not(.wrong),
[data-show=aside] > li:not(.aside) { display: none; }
"""
)

SCRIPT = r"""
"use strict";
const names = JSON.parse(document.getElementById("names").textContent);
const grid = document.getElementById("grid");
const cards = Array.from(grid.children);
const state = document.getElementById("state");
const message = document.getElementById("message");
const changed = new Set(), invalid = new Set();
let saved = true;

const fields = card => [card.querySelector(".label"), card.querySelector(".out")];

function mark(set, name, card, holds) {
  card.classList.toggle(name, holds);
  if (holds) set.add(card); else set.delete(card);
}

function judge(card) {
  const [label, out] = fields(card);
  label.disabled = out.checked;
  const bad = !out.checked && !label.validity.valid;
  label.setAttribute("aria-invalid", String(bad));
  mark(invalid, "invalid", card, bad);
  mark(changed, "changed", card, out.checked || label.value !== label.defaultValue);
}

function tell() {
  const n = changed.size;
  state.textContent = n === 0 ? "No changes" : n === 1 ? "1 change" : n + " changes";
  message.textContent = "";
}

function show(kind) {
  grid.dataset.show = kind;
  document.querySelector(`[name=show][value=${kind}]`).checked = true;
}

function edited(card) {
  judge(card);
  tell();
  saved = false;
}

function line(card, i) {
  const [label, out] = fields(card);
  // The shown name has no line breaks.
  if (names[i] === null) return "# can't be named here: " + card.querySelector("bdi").textContent;
  return names[i] + "\t" + (out.checked ? "N" : label.value);
}

function complain(card, text) {
  message.textContent = text;
  if (card === undefined) return;
  show("all");
  fields(card)[0].focus();
}

function download() {
  if (invalid.size > 0) {
    const first = cards.find(card => invalid.has(card));
    return complain(first, "Not downloaded: " + invalid.size + (invalid.size === 1 ? " label is" : " labels are") +
      " not understood. Correct the marked ones or tick “not readable”.");
  }
  if (!cards.some((card, i) => names[i] !== null && !fields(card)[1].checked)) {
    return complain(undefined, "Not downloaded: no picture is left, and a label file needs one.");
  }
  // A first line that is a comment also keeps a byte order mark in a name from being taken for the file's.
  const text = ["# picture, label; N: not readable", ...cards.map(line), ""].join("\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/plain;charset=utf-8"}));
  link.download = "labels.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  message.textContent = "";
  saved = true;
}

grid.addEventListener("input", event => {
  const input = event.target;
  if (input.matches(".label") && /[,\s]/.test(input.value)) input.value = input.value.replace(",", ".").trim();
  edited(input.closest("li"));
});
grid.addEventListener("click", event => {
  const take = event.target.closest(".take");
  if (take === null) return;
  const card = take.closest("li"), [label, out] = fields(card);
  label.value = take.value;
  out.checked = false;
  edited(card);
});
document.getElementById("filter").addEventListener("change", event => show(event.target.value));
document.getElementById("download").addEventListener("click", download);
addEventListener("beforeunload", event => { if (!saved && changed.size > 0) event.preventDefault(); });

// A browser may have kept what was typed before a reload.
cards.forEach(judge);
tell();
"""
