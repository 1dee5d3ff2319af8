"""Reads a data source into one array of pictures with labels and meters."""

import codecs
import contextlib
import functools
import itertools
import logging
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import labels, markup, pictures, synthetic
from utils.labels import Label, LabelError
from utils.pictures import EXTENSIONS, File, Shape
from utils.sources import DataSource, SourceData, SourceError

log = logging.getLogger(__name__)

NOT_READABLE = "not readable"
BAD_LABEL = "bad label"
MISSING = "missing picture"
TWO_LABELS = "two labels"
# Behind a picture's ending, as its name may have commas, too.
_CSV_LINE = re.compile(rf"(.+(?:{'|'.join(map(re.escape, EXTENSIONS))}))\s*([,;])\s*(.*)", re.IGNORECASE)


class Entry(NamedTuple):
    """A picture file with its label, None if nobody can read it, and its meter."""

    file: File
    label: Label | None
    meter: str


class Problem(NamedTuple):
    """What keeps an entry of a source from being used."""

    where: str  # file, or label file and line
    reason: str  # the kind that is counted
    detail: str
    file: str = ""  # the picture, posix path below the source, if there is one

    def __str__(self) -> str:
        return markup.visible(f"{self.where}: {self.reason}: {self.detail}")


_Found = Iterator[Entry | Problem]


def read(source: DataSource, height: int, width: int, channels: int, nb_classes: int, seed: int) -> SourceData:
    """Reads or draws all pictures of a source in the given size (pixels), 3 channels as RGB or 1 as grey.

    Unreadable labels are left out. Damaged entries are, too, with a warning, if they are under 1 %.
    ``seed`` is for synthetic pictures.

    Raises:
        SourceError: the source is missing, empty, damaged to 1 % or more, reaches out of its folder, contradicts
            itself, or lacks the tenths that 100 classes need.
    """
    shape = (height, width, channels)
    return _draw(source, shape, seed) if source.type == "synthetic" else _read_folder(source, shape, nb_classes)


def entries(source: DataSource) -> list[Entry | Problem]:
    """What a source that is a folder holds, undecoded.

    Raises:
        SourceError: the folder is missing, can't be listed or holds no picture, or its label file can't be read or
            reaches out of the folder.
    """
    if not source.path.exists():
        raise _error(source, f"folder {source.path} not found; {_mend(source)}")
    if not source.path.is_dir():
        raise _error(source, f"{source.path} is a file, a folder is needed; {_mend(source)}")
    found = list(LISTERS[source.type](source, os.path.abspath(source.path)))
    if not found:
        nothing = f"no picture ({' '.join(EXTENSIONS)}) found in {source.path}"
        if source.type == "label_file":
            nothing = f"{source.path / source.labels} lists no picture"
        raise _error(source, f"{nothing}; {_mend(source)}")
    return found


def _draw(source: DataSource, shape: Shape, seed: int) -> SourceData:
    drawn = synthetic.draw(source.count, seed, shape[0], shape[1], source.system_fonts)
    images = pictures.grey(drawn.images) if shape[2] == 1 else drawn.images
    files = tuple(f"synthetic/{number:06d}" for number in range(len(images)))
    ids = drawn.typeface_ids.astype(np.int32)
    return SourceData(source.name, images, drawn.tenths, tuple(drawn.typefaces), ids, files, {})


def _read_folder(source: DataSource, shape: Shape, nb_classes: int) -> SourceData:
    root = os.path.abspath(source.path)
    found = entries(source)
    problems = [one for one in found if isinstance(one, Problem)]
    _judge(source, problems, len(found))
    labelled = [one for one in found if isinstance(one, Entry)]
    usable = [entry for entry in labelled if entry.label]
    not_readable = len(labelled) - len(usable)
    if not usable:
        raise _error(source, f'every one of its {len(found)} pictures is labelled "not readable"; {_mend(source)}')
    _check_tenths(source, usable, nb_classes)
    images, failures = pictures.load(source.name, root, [entry.file for entry in usable], shape)
    if failures:
        problems += [Problem(usable[i].file.name, *failure) for i, failure in failures.items()]
        _judge(source, problems, len(found))
        kept = np.setdiff1d(np.arange(len(usable)), list(failures))
        images, usable = images[kept], [usable[i] for i in kept]
    if problems:
        share = f"{len(problems)} of {len(found)}"
        log.warning("data source '%s': %s skipped, first: %s", source.name, share, problems[0])
    meters = sorted({entry.meter for entry in usable})
    ids = {meter: number for number, meter in enumerate(meters)}
    return SourceData(
        name=source.name,
        images=images,
        tenths=np.array([entry.label.tenths for entry in usable], np.int16),
        meters=tuple(meters),
        meter_ids=np.array([ids[entry.meter] for entry in usable], np.int32),
        files=tuple(entry.file.name for entry in usable),
        skipped=dict(Counter([problem.reason for problem in problems] + [NOT_READABLE] * not_readable)),
    )


def _error(source: DataSource, text: str) -> SourceError:
    return SourceError(f"data source '{source.name}': {text}")


def _mend(source: DataSource, key: str = "path") -> str:
    if source.parameter.startswith("--"):
        return f"give another folder to {source.parameter}"
    given = "" if source.parameter == "TEST_SOURCES" or key != "path" else ", or give another folder where you gave it"
    return f'mend its "{key}" in {source.parameter} in parameters.py{given}'


def _judge(source: DataSource, problems: list[Problem], total: int) -> None:
    # Nobody knows which of the two is right, so not even one such picture is skipped.
    if twice := {problem.file: problem.detail for problem in problems if problem.reason == TWO_LABELS}:
        examples = markup.visible("; ".join(list(twice.values())[:3]))
        count = markup.count(len(twice), "picture")
        raise _error(source, f"{source.labels} gives {count} two labels: {examples}. Leave one line for each")
    if problems and 100 * len(problems) >= total:
        share = f"{len(problems)} of {total} entries are unusable (under 1 % would be skipped)"
        examples = "; ".join(map(str, problems[:3]))
        hint = ""
        if source.type == "filename" and all(problem.reason == BAD_LABEL for problem in problems):
            hint = (
                "The label stands in front of a picture's name (3.4_a.jpg), where predict.py with --threshold 1 --save "
                "FOLDER puts what a model reads, or is its folder's name (3.4/a.jpg) if no picture lies elsewhere, or "
                f"stands in the folder's {labels.LABEL_FILE} with a line for each picture: name, tab, label (its type "
                'in DATA_SOURCES is "label_file"). '
            )
        raise _error(source, f"{share}: {examples}. {hint}Correct or remove them, or {_mend(source)}")


def _check_tenths(source: DataSource, entries: list[Entry], nb_classes: int) -> None:
    if nb_classes == 100 and not source.whole_digits and not any(entry.label.has_tenth for entry in entries):
        raise _error(
            source,
            f"none of its {len(entries)} labels has a tenth (3.0), all are digits (3). If the display only ever shows "
            f'whole digits (LCD), list the folder in {source.parameter} in parameters.py with "whole_digits": True; '
            "otherwise these pictures can only train NB_CLASSES = 10",
        )


def _labelled(file: File, meter: str, where: str, text: str, parse: Callable = labels.parse) -> Entry | Problem:
    try:
        return Entry(file, parse(text), meter)
    except LabelError as error:
        return Problem(where, BAD_LABEL, str(error), file.name)


def _meter(source: DataSource, root: str, folder: str) -> str:
    return pictures.without_time(root, folder) or source.name


def _list_by_name(source: DataSource, root: str) -> _Found:
    found = []
    for file in _walked(source, root):
        folder, name = os.path.split(file.name)
        meter = _meter(source, root, folder)
        found.append((folder, _labelled(file, meter, file.name, name, labels.parse_file_name)))
    # Of pictures sorted by digit each folder would be a meter that shows nothing else.
    by_digit = all(_lies_by_its_digit(folder, one) for folder, one in found)
    for folder, one in found:
        if by_digit and isinstance(one, Entry):
            one = one._replace(meter=_meter(source, root, os.path.dirname(folder)))
        yield one


def _lies_by_its_digit(folder: str, one: Entry | Problem) -> bool:
    if isinstance(one, Problem) or one.label is None:
        return True
    try:
        digit = labels.parse(os.path.basename(folder))
    except LabelError:
        return False
    return digit is not None and labels.ring_distance(digit.tenths, one.label.tenths, labels.NB_TENTHS) < 10


def _list_by_folder(source: DataSource, root: str) -> _Found:
    files = _walked(source, root)
    parents = [pictures.without_time(root, os.path.dirname(file.name)).rpartition("/") for file in files]
    numbered = labels.are_class_numbers({folder for _, _, folder in parents})
    if numbered:
        log.info("data source '%s': folder names are class numbers of 100 (34/ is 3.4, 7/ is 0.7)", source.name)
    parse = functools.partial(labels.parse_folder_name, numbered=numbered)
    for file, (meter, _, folder) in zip(files, parents, strict=True):
        yield _labelled(file, _meter(source, root, meter), file.name, folder, parse)


def _walked(source: DataSource, root: str) -> list[File]:
    try:
        return sorted(pictures.walk(root))
    except OSError as error:
        raise _error(source, f"folder can't be listed: {error}; mend its permissions or {_mend(source)}") from error


def _list_by_label_file(source: DataSource, root: str) -> _Found:
    # Resolving is slow, and there are far fewer folders than pictures.
    resolve = functools.cache(os.path.realpath)
    first: dict[str, tuple[int, str, int | None]] = {}
    listed = set()
    for place, (number, name, label) in enumerate(_lines(source, root)):
        where = f"{source.labels} line {number}"
        # No file can be called \0, not even to find out where it lies.
        file = None if "\0" in name else _locate(source, root, where, name, resolve)
        if file is None and place == 0 and not name.lower().endswith(EXTENSIONS) and not re.search("[0-9]", label):
            heading = markup.visible(f"{name} {label}".strip())
            log.info("data source '%s': %s is passed over as a heading: %s", source.name, where, heading)
            continue
        if file is None:
            hint = "a line needs the picture's name, a tab, comma or semicolon, and the label, nothing more"
            yield Problem(where, MISSING, f"{name} is neither beside it nor in images/; {hint}")
            continue
        listed.add(file.name)
        folder = file.name.removeprefix("images/").rpartition("/")[0]
        found = _labelled(file, _meter(source, root, folder), where, label)
        if isinstance(found, Entry):
            tenths = found.label and found.label.tenths
            earlier, other, other_tenths = first.setdefault(file.name, (number, label, tenths))
            if tenths != other_tenths:
                two = f"{file.name}: {other!r} in line {earlier} and {label!r} in line {number}"
                found = Problem(where, TWO_LABELS, two, file.name)
            elif earlier != number:
                continue
        yield found
    _warn_of_unlisted(source, [file.name for file in _walked(source, root) if file.name not in listed])


def _warn_of_unlisted(source: DataSource, files: list[str]) -> None:
    if files:
        commented = any("/#" in f"/{file}" for file in files)
        log.warning(
            "data source '%s': %d pictures are not listed in %s and are left out, first: %s; to read them, add lines%s",
            *(source.name, len(files), source.labels, files[0]),
            " (./ in front of a name keeps its # from beginning a comment)" if commented else "",
        )


def _lines(source: DataSource, root: str) -> Iterator[tuple[int, str, str]]:
    """Number, picture's name and label of each line that is neither empty nor a comment."""
    place = os.path.join(root, source.labels)
    try:
        data = Path(place).read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        hint = _mend(source, "labels")
        raise _error(source, f"label file {place} can't be read ({error.strerror}); {hint}") from error
    # Bytes, as text would be split at what other scripts take for the end of a line, too.
    for number, encoded in enumerate(data.splitlines(), 1):
        try:
            line = encoded.decode().strip()
        except UnicodeDecodeError as error:
            raise _error(source, f"{source.labels} line {number} is not UTF-8; save the file as UTF-8") from error
        if line and not line.startswith("#"):
            name, label = _parted(line)
            yield number, name.replace("\\", "/"), label


def _parted(line: str) -> tuple[str, str]:
    """A picture's name and its label, in which a comma is the decimal one of spreadsheets unless one separates them."""
    if csv := _CSV_LINE.fullmatch(line):
        name, separator, label = csv.groups()
    else:
        (name, label), separator = (*line.rsplit(None, 1), "")[:2], ""
    return name, label if separator == "," else label.replace(",", ".", 1)


def _locate(source: DataSource, root: str, where: str, named: str, resolve: Callable[[str], str]) -> File | None:
    """The picture a line names, None if there is none; SourceError for every way out of the source's folder."""
    below = os.path.join(resolve(root), "")
    outside = f"{where}: {named} lies outside the folder {source.path}; copy the picture into it and name it from there"
    if os.path.isabs(named):
        # Nothing is looked up: on Windows \\server\x would log on to a stranger's machine.
        known = os.path.normpath(named).startswith((below, os.path.join(os.path.abspath(root), "")))
        inside = f"{where}: {named} is an absolute path; name it from the folder {source.path} on"
        raise _error(source, inside if known else outside)
    folders = dict.fromkeys((os.path.dirname(source.labels), "images"))
    # Archives packed on macOS have an accent behind its letter, which looks the same as a letter with an accent.
    spelt = dict.fromkeys([named, *(unicodedata.normalize(form, named) for form in ("NFC", "NFD"))])
    for folder, spelling in itertools.product(folders, spelt):
        name = os.path.normpath(os.path.join(folder, spelling)).replace(os.sep, "/")
        above, last = os.path.split(os.path.join(root, name))
        place = os.path.join(resolve(above), last)
        real = os.path.realpath(place) if os.path.islink(place) else place
        if name.split("/")[0] == ".." or not os.path.join(real, "").startswith(below):
            raise _error(source, outside)
        with contextlib.suppress(OSError):
            status = os.stat(place)
            if stat.S_ISREG(status.st_mode):
                return File.of(name, status)
    return None


LISTERS: dict[str, Callable[[DataSource, str], _Found]] = {
    "filename": _list_by_name,
    "label_file": _list_by_label_file,
    "folder_structure": _list_by_folder,
}
