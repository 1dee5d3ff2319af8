"""Looks through folders of labelled pictures for what hurts training: damage, copies, contradictions, gaps."""

import csv
import io
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils import console, labels, markup, measuring, pictures, readers, recognizers, sources, twins
from utils.pictures import PictureError
from utils.readers import Entry, Problem
from utils.recognizers import Recognizer
from utils.sources import DataSource

log = logging.getLogger(__name__)

SHAPE = (32, 20, 3)  # at which pictures are compared: the networks' usual input, in colour
CONFIDENT = 0.9  # from here on a model's disagreement makes a label suspicious, unless its papers say otherwise
DIGIT_REACH = 6  # tenths between a digit and a tenth that are one: half a turn, and people disagree by a tenth
ODD_FACTOR = 1.5  # of the meter's usual width or height
CHUNK = 512  # pictures a model reads at a time
EXAMPLES = 3

# Kinds of findings, the worst first, and their titles.
KINDS = {
    "unreadable": "Files that can't be read",
    "bad label": "Labels that are not understood",
    "two labels": "Identical pictures with two labels",
    "suspicious": "Labels that the model confidently disagrees with",
    "odd size": "Odd sizes",
    "duplicate": "Exact duplicates",
    "near twin": "Near twins (same camera, minutes apart)",
}


@dataclass(eq=False)
class Inspected:
    """One picture, or one line of a label file that is wrong.

    ``place`` is the picture's path, or says which line; ``picture`` is the path, empty if there is none; ``tenths`` the
    label 0..99, None if it has none; ``label`` that as text; ``size`` width and height in the file; ``image`` SHAPE
    uint8; ``group`` has one number for identical pictures, ``cluster`` one for near twins; ``doubt`` is the confidence
    0..1 of a model that reads another label; ``findings`` say what is wrong, by kind.
    """

    source: str
    place: str
    picture: str
    meter: str = ""
    tenths: int | None = None
    label: str = ""
    size: tuple[int, int] | None = None
    image: np.ndarray | None = None
    group: int = -1
    cluster: int = -1
    doubt: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """All that was found, and the kinds of findings that were looked for."""

    found: list[Inspected]
    kinds: tuple[str, ...]


def inspect(folders: Sequence[Path], model: Recognizer | None = None) -> Inspection:
    """Looks at everything in the folders, each taken for what it looks like (see ``sources.declare``).

    Raises:
        SourceError: no such folder, no picture in it, one that lies in another, or a label file that can't be read or
            leads out of its folder.
        RecognizerError: the model doesn't run.
    """
    sources.check_apart(folders)
    declared: list[dict] = []
    for folder in folders:
        declared, _ = sources.with_source(declared, folder, 1.0)
    found = [one for entry in declared for one in _read(DataSource.from_dict(entry, "DATA_SOURCES"), model)]
    good = [one for one in found if one.image is not None]
    if good:
        _compare(good)
        _find_odd_sizes(good)
    return Inspection(found, tuple(kind for kind in KINDS if model or kind != "suspicious"))


def missing(tenths: Sequence[int]) -> list[str]:
    """Labels that do not occur, neighbours together ("3.6-3.9"); whole digits, and a word for the others, if none of
    the others does.
    """
    step = 1 if any(value % 10 for value in tenths) else 10
    names = labels.class_names(100 if step == 1 else 10)
    present = {value // step for value in tenths}
    runs: list[list[str]] = []
    for number, name in enumerate(names):
        if number in present:
            continue
        if runs and number - 1 not in present:
            runs[-1].append(name)
        else:
            runs.append([name])
    shown = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return shown if step == 1 else [*shown, "tenths between digits"]


def picture_count(found: Sequence[Inspected]) -> int:
    """How many pictures there are: several lines may name one, or none."""
    return len({one.picture for one in found if one.picture})


def by_source(found: Sequence[Inspected]) -> dict[str, list[Inspected]]:
    """The pictures that can be learnt from: decoded and with a label; a source without any has an empty list."""
    parts: dict[str, list[Inspected]] = {one.source: [] for one in found}
    for one in found:
        if one.image is not None and one.tenths is not None:
            parts[one.source].append(one)
    return parts


def of_kind(found: Sequence[Inspected], kind: str) -> list[Inspected]:
    """The pictures with a finding of that kind; copies and twins stand together, doubtful labels surest first."""
    chosen = [one for one in found if kind in one.findings]
    if kind == "suspicious":
        return sorted(chosen, key=lambda one: -one.doubt)
    if kind == "near twin":
        return sorted(chosen, key=lambda one: one.cluster)
    return sorted(chosen, key=lambda one: one.group) if kind in ("duplicate", "two labels") else chosen


def meter_counts(part: Sequence[Inspected]) -> dict[str, list[int]]:
    """Of each meter the number of pictures, of different labels, and of pictures with each digit 0..9 first."""
    meters: dict[str, list[int]] = defaultdict(list)
    for one in part:
        meters[one.meter].append(one.tenths)
    counts = {}
    for meter, tenths in sorted(meters.items()):
        digits = np.bincount(np.array(tenths) // 10, minlength=10)
        counts[meter] = [len(tenths), len(set(tenths)), *digits.tolist()]
    return counts


def label_counts(part: Sequence[Inspected]) -> list[list[int]]:
    """How often each label occurs: a row a digit, a column a tenth."""
    return np.bincount([one.tenths for one in part], minlength=100).reshape(10, 10).tolist()


def is_damaged(inspection: Inspection) -> bool:
    """Whether a file can't be read, a label isn't understood, or a label file gives a picture two."""
    return any(one.image is None for one in inspection.found)


def summary(inspection: Inspection) -> str:
    """All counts as text, with a few examples of each finding."""
    found, lines = inspection.found, []
    for source, part in by_source(found).items():
        lines += [*_source_lines(source, part, picture_count([one for one in found if one.source == source])), ""]
    for kind in inspection.kinds:
        chosen = of_kind(found, kind)
        lines.append(f"{KINDS[kind]}: {len(chosen):,}" if chosen else f"{KINDS[kind]}: none")
        lines += [markup.visible(f"    {one.place}: {one.findings[kind]}") for one in chosen[:EXAMPLES]]
        if len(chosen) > EXAMPLES:
            lines.append(f"    and {len(chosen) - EXAMPLES:,} more, which --html FILE and --csv FILE have")
    return "\n".join(lines)


def as_csv(inspection: Inspection) -> str:
    """One row a picture, one column a kind of finding."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["source", "file", "meter", "label", "width", "height", *inspection.kinds])
    for one in inspection.found:
        texts = [one.source, one.place, one.meter, one.label]
        findings = [one.findings.get(kind, "") for kind in inspection.kinds]
        writer.writerow([*map(_cell, texts), *(one.size or ("", "")), *map(_cell, findings)])
    return stream.getvalue()


def _read(source: DataSource, model: Recognizer | None) -> list[Inspected]:
    entries = readers.entries(source)
    good = [entry for entry in entries if isinstance(entry, Entry)]
    root = os.path.abspath(source.path)
    images, failures = pictures.load(source.name, root, [entry.file for entry in good], SHAPE)
    found = []
    for number, entry in enumerate(good):
        one = _inspected(source, entry)
        if number in failures:
            one.findings["unreadable"] = ": ".join(failures[number])
        else:
            one.image, one.size = images[number], pictures.size(os.path.join(root, entry.file.name))
        found.append(one)
    if model:
        model = _in_its_range(model, source, good, found)
        own = images
        if model.input_shape != SHAPE:
            own, _ = pictures.load(source.name, root, [entry.file for entry in good], model.input_shape)
        _doubt(found, own, model)
    found += [_problem(source, problem) for problem in entries if not isinstance(problem, Entry)]
    return found


def _in_its_range(model: Recognizer, source: DataSource, entries: list[Entry], found: list[Inspected]) -> Recognizer:
    """The model, fed with the range of numbers with which it reads most labels, where its file doesn't say which."""
    usable = [number for number, one in enumerate(found) if one.image is not None and one.tenths is not None]
    if model.facts.known or not usable:
        return model
    files = [entries[number].file for number in usable]
    images, _ = pictures.load(source.name, os.path.abspath(source.path), files, (*model.input_shape[:2], 3))
    pixels = measuring.best_range(model.file, images, np.array([found[number].tenths for number in usable]))
    return recognizers.load(model.file, Path(), pixels)


def _inspected(source: DataSource, entry: Entry) -> Inspected:
    tenths = entry.label.tenths if entry.label else None
    label = readers.NOT_READABLE if tenths is None else labels.text(tenths, 100)
    place = os.path.join(source.path, entry.file.name)
    return Inspected(source.name, place, place, entry.meter, tenths, label)


def _problem(source: DataSource, problem: Problem) -> Inspected:
    kind = {readers.BAD_LABEL: "bad label", readers.TWO_LABELS: "two labels"}.get(problem.reason, "unreadable")
    place, picture = (name and os.path.join(source.path, name) for name in (problem.where, problem.file))
    findings = {kind: f"{problem.reason}: {problem.detail}"}
    if kind == "bad label" and picture:
        # To put the label of a damaged picture right would be in vain.
        try:
            pictures.decode(picture, *SHAPE)
        except PictureError as error:
            findings["unreadable"] = ": ".join(error.args)
    return Inspected(source.name, place, picture, findings=findings)


def _doubt(found: list[Inspected], images: np.ndarray, model: Recognizer) -> None:
    if taught := measuring.learnt(model, images).sum():
        told = "%s has learnt %d of these pictures and agrees with their labels, wrong or not: ask another model"
        log.warning(told, model.file, taught)
    threshold = CONFIDENT if model.threshold is None else model.threshold
    # As everywhere: where no label has a tenth, 3 is what is nearest to a 3.
    whole = not any(one.tenths % 10 for one in found if one.tenths is not None)
    for start in console.progress(range(0, len(found), CHUNK), "reading with the model", unit="chunk"):
        answers = recognizers.decide(model, images[start : start + CHUNK])
        for one, number, confidence in zip(found[start : start + CHUNK], *answers, strict=True):
            if one.image is None or one.tenths is None or confidence < threshold:
                continue
            if _contradicts(int(number), one.tenths, len(model.names), whole):
                one.doubt = float(confidence)
                read = f"read as {model.names[number]} ({confidence:.0%})"
                one.findings["suspicious"] = f"labelled {one.label}, but {read}"


def _contradicts(number: int, tenths: int, nb_classes: int, whole: bool) -> bool:
    if nb_classes == labels.NB_TENTHS:
        return bool(labels.ring_distance(number, tenths, labels.NB_TENTHS) > (DIGIT_REACH if whole else 1))
    # The eleventh class says that nobody can read it.
    return number == 10 or bool(labels.ring_distance(10 * number, tenths, labels.NB_TENTHS) > DIGIT_REACH)


def _compare(good: list[Inspected]) -> None:
    images = np.stack([one.image for one in good])
    copies: dict[int, list[Inspected]] = defaultdict(list)
    clusters: dict[int, list[Inspected]] = defaultdict(list)
    numbers = zip(good, twins.exact_groups(images).tolist(), twins.twin_clusters(images).tolist(), strict=True)
    for one, one.group, one.cluster in numbers:
        copies[one.group].append(one)
        clusters[one.cluster].append(one)
    for same in copies.values():
        for one in same[1:]:
            one.findings["duplicate"] = f"same pixels as {same[0].place}"
        unlike = next((one for one in same if one.tenths != same[0].tenths), None)
        for one in same if unlike else ():
            other = unlike if one.tenths == same[0].tenths else same[0]
            one.findings["two labels"] = f"labelled {one.label}, but {other.label} in {other.place}"
    for alike in clusters.values():
        different = len({one.group for one in alike})
        if different > 1:
            for one in alike:
                one.findings["near twin"] = f"group {one.cluster} of {different} different pictures"


def _find_odd_sizes(good: list[Inspected]) -> None:
    meters: dict[tuple[str, str], list[Inspected]] = defaultdict(list)
    for one in good:
        if one.size:
            meters[one.source, one.meter].append(one)
    for part in meters.values():
        usual = np.median([one.size for one in part], axis=0)
        for one in part:
            width, height = one.size
            if max(*(one.size / usual), *(usual / one.size)) > ODD_FACTOR:
                one.findings["odd size"] = f"{width}x{height}, usual for this meter is {usual[0]:.0f}x{usual[1]:.0f}"
            elif width > height:
                one.findings["odd size"] = f"{width}x{height}, wider than high"


def _source_lines(source: str, part: list[Inspected], total: int) -> list[str]:
    meters = {markup.visible(meter): counts for meter, counts in meter_counts(part).items()}
    usable = f"{len(part):,} of them with a label, {markup.count(len(meters), 'meter')}"
    lines = [f"{markup.visible(source)}: {markup.count(total, 'picture')}, {usable}"]
    width = max(map(markup.columns, [*meters, "meter"]))
    lines.append(f"  {'meter':{width}}  pictures  labels" + "".join(f"{digit:>6}" for digit in range(10)))
    for meter, (count, different, *digits) in meters.items():
        lines.append(f"  {markup.padded(meter, width)}  {count:8}  {different:6}" + "".join(f"{n:6}" for n in digits))
    lines.append("  label " + "".join(f"{f'.{tenth}':>6}" for tenth in range(10)))
    for digit, counts in enumerate(label_counts(part)):
        lines.append(f"  {digit:>5} " + "".join(f"{count:6}" for count in counts))
    gaps = missing([one.tenths for one in part])
    return [*lines, f"  {', '.join(gaps)}: none" if gaps else "  every label occurs"]


def _cell(text: str) -> str:
    # A spreadsheet would take a stranger's file name for a formula.
    text = markup.visible(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
