"""Data sources as declared in parameters.py, and what reading one gives."""

import argparse
import difflib
import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils import labels, pictures
from utils.errors import UserError
from utils.labels import LABEL_FILE

MAX_COUNT = 10_000_000  # synthetic pictures
MAX_WEIGHT = 10_000  # repeats of each training picture


class SourceError(UserError):
    """A data source is declared wrongly, missing or too damaged. The message names source and file."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any, *kinds: type) -> bool:
    # Python's own alone: settings.json holds no others, such as numpy's.
    return isinstance(value, kinds) and not _is_bool(value)


# Of each key what tells whether a value is accepted, and what is.
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    # A meter is named by its source and folder: with "/" in both, two meters could have one name.
    "name": (lambda v: _is_text(v) and "/" not in v, 'a text that is not empty, without "/"'),
    "type": (_is_text, "a text"),
    "path": (lambda v: isinstance(v, Path) or (_is_text(v) and "\0" not in v), "a folder's path as text"),
    "weight": (lambda v: _is_number(v, int, float) and 0 <= v <= MAX_WEIGHT, f"a number of 0 to {MAX_WEIGHT:,}"),
    "labels": (lambda v: _is_text(v) and not os.path.isabs(v) and "\0" not in v, "a label file's name below the path"),
    "whole_digits": (_is_bool, "True or False"),
    "augmented": (_is_bool, "True or False"),
    "count": (lambda v: _is_number(v, int) and 1 <= v <= MAX_COUNT, f"a whole number of 1 to {MAX_COUNT:,}"),
    "system_fonts": (_is_bool, "True or False"),
}
COMMON_KEYS = ("name", "type", "weight", "whole_digits", "augmented")
# Of each type the one key it can't do without, and the further ones it knows.
TYPE_KEYS: dict[str, tuple[str, ...]] = {
    "synthetic": ("count", "system_fonts"),
    "filename": ("path",),
    "label_file": ("path", "labels"),
    "folder_structure": ("path",),
}


@dataclass(frozen=True)
class DataSource:
    """One entry of ``DATA_SOURCES`` or ``TEST_SOURCES``; ``parameter`` says which, for messages.

    ``labels`` is the label file's name relative to ``path``; ``count`` and ``system_fonts`` are for synthetic
    pictures; ``whole_digits`` accepts labels without tenths for 100 classes; ``weight`` is for the loader, and
    ``augmented`` for fine-tuning.
    """

    name: str
    type: str
    path: Path | None
    weight: float = 1.0
    labels: str = LABEL_FILE
    whole_digits: bool = False
    augmented: bool = False
    count: int = 0
    system_fonts: bool = False
    parameter: str = field(default="DATA_SOURCES", repr=False, compare=False)

    @classmethod
    def from_dict(cls, d: dict[str, Any], parameter: str) -> "DataSource":
        """Checks one declaration; does not look at the disk.

        Raises:
            SourceError: a key is unknown or missing, or a value is not accepted.
        """
        name = d.get("name") if isinstance(d, dict) else None
        shown = repr(name) if _is_text(name) else f"without a name ({str(d)[:80]})"
        where = f"data source {shown} in {parameter} in parameters.py"
        if not isinstance(d, dict):
            raise SourceError(f"{where}: needs a dict such as {{'name': ..., 'type': ...}}")
        _check_keys(d, where)
        for key, value in d.items():
            accepts, accepted = VALUES[key]
            if not accepts(value):
                raise SourceError(f'{where}: "{key}" is {value!r}; accepted is {accepted}')
        # Unlike pathlib's, this leaves the "~" of an unknown user alone: it begins a folder's name.
        path = Path(os.path.expanduser(d["path"])) if "path" in d else None
        return cls(**{**d, "path": path, "weight": float(d.get("weight", 1.0)), "parameter": parameter})


@dataclass(frozen=True)
class SourceData:
    """What a source holds, all pictures in one size.

    ``images`` (N, H, W, C) uint8, RGB or grey, 0..255; ``tenths`` (N,) int16 labels 0..99; ``meters`` unique names and
    ``meter_ids`` (N,) int32 indices into them; ``files`` N posix paths relative to the source; ``skipped`` number of
    left-out entries by reason.
    """

    name: str
    images: np.ndarray
    tenths: np.ndarray
    meters: tuple[str, ...]
    meter_ids: np.ndarray
    files: tuple[str, ...]
    skipped: dict[str, int]


def parse_sources(declared: list[dict[str, Any]], parameter: str) -> tuple[DataSource, ...]:
    """Checks all declarations of ``DATA_SOURCES`` or ``TEST_SOURCES`` (``parameter`` is its name).

    Raises:
        SourceError: it is no list, one is not accepted (see DataSource.from_dict), or two share a name.
    """
    if not isinstance(declared, list | tuple):
        raise SourceError(f"{parameter} in parameters.py: needs a list of dicts, got {type(declared).__name__}")
    sources = tuple(DataSource.from_dict(d, parameter) for d in declared)
    for name, n in Counter(source.name for source in sources).items():
        if n > 1:
            raise SourceError(f"data source {name!r}: {n} entries of {parameter} have this name; rename all but one")
    return sources


def declare(folder: Path, weight: float) -> dict[str, Any]:
    """A declaration of the folder, as what it looks like: with a ``labels.txt``, one folder a class, or named pictures.

    Raises:
        SourceError: there is no such folder, or its folders' names and its pictures' names are different labels.
    """
    if folder.is_file():
        raise SourceError(f"{folder} is a file: give the folder that it lies in")
    if not folder.is_dir():
        raise SourceError(f"folder {folder} not found: give a folder with labelled pictures")
    kind = "label_file" if _has_label_file(folder) else _kind_by_names(folder)
    return {"name": folder.resolve().name or "new", "type": kind, "path": str(folder), "weight": weight}


def check_apart(folders: Sequence[Path]) -> None:
    """Sees that no picture is counted twice, in one folder and in another one that this lies in.

    Raises:
        SourceError: one lies in another.
    """
    for inner, outer in itertools.permutations(folders, 2):
        # os.path.commonpath() fails where the two are on different drives.
        if Path(os.path.realpath(outer)) in Path(os.path.realpath(inner)).parents:
            raise SourceError(f"folder {inner} lies in {outer}: its pictures would count twice; give one of the two")


def weight(text: str) -> float:
    """An argument's value that a new source may have as its weight."""
    value = float(text)
    if not 0 < value <= MAX_WEIGHT:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0, up to {MAX_WEIGHT:,}")
    return value


def with_source(
    declared: list[dict[str, Any]], folder: Path, weight: float, tested: Sequence[dict[str, Any]] = ()
) -> tuple[list[dict[str, Any]], str]:
    """A new list with the folder, and the source's name in it: one that is listed already only gets the weight.

    Any other is declared by :func:`declare`; the name is none of ``tested``, the ``TEST_SOURCES``.

    Raises:
        SourceError: one of the declared sources is not accepted, the folder is listed without its ``labels.txt``, or
            what :func:`declare` says.
    """
    # Path.resolve() fails where links form a loop.
    place, listed = os.path.realpath(folder), parse_sources(declared, "DATA_SOURCES")
    for number, known in enumerate(listed):
        if known.path and os.path.realpath(known.path) == place:
            goes_by_it = known.type == "label_file" and os.path.normpath(known.labels) == LABEL_FILE
            if _has_label_file(folder) and not goes_by_it:
                raise SourceError(
                    f"data source {known.name!r} in DATA_SOURCES in parameters.py does not go by the"
                    f' {LABEL_FILE} in its folder: set its "type" to "label_file" and its "labels" to'
                    f' "{LABEL_FILE}", or take the file away'
                )
            changed = {**declared[number], "weight": weight}
            return [*declared[:number], changed, *declared[number + 1 :]], known.name
    entry = declare(folder, weight)
    taken = {known.name for known in (*listed, *parse_sources(tested, "TEST_SOURCES"))}
    names = (entry["name"] if number == 1 else f"{entry['name']}-{number}" for number in itertools.count(1))
    name = next(name for name in names if name not in taken)
    return [*declared, {**entry, "name": name}], name


def _has_label_file(folder: Path) -> bool:
    # Path.is_file() would name a file that may not be there where it is the folder that may not be entered.
    return os.path.isfile(folder / LABEL_FILE)


def _kind_by_names(folder: Path) -> str:
    root = os.path.abspath(folder)
    files = [Path(file.name) for file in pictures.walk(root)]
    folders = [os.path.basename(pictures.without_time(root, os.path.dirname(file))) for file in files]
    numbered = labels.are_class_numbers(set(folders))
    by_folder, nameless_folders = _read_all(functools.partial(labels.parse_folder_name, numbered=numbered), folders)
    by_name, nameless = _read_all(labels.parse_file_name, [file.name for file in files])
    if not files or nameless_folders:
        return "filename"
    # A few of them may be mere numbers; and one picture without a label doesn't make the other names void. Where both
    # say the same, the folder is a class nevertheless: as a meter it would have one label.
    if 2 * nameless >= len(files) or by_folder == by_name:
        return "folder_structure"
    # Numbers of two places are rather those of meters where the pictures' names are labels.
    if numbered and not nameless:
        return "filename"
    for file, one, other in zip(files, by_folder, by_name, strict=True):
        if one and other and labels.ring_distance(one.tenths, other.tenths, labels.NB_TENTHS) >= 10:
            raise SourceError(
                f"folder {folder}: the label of {file} may be {file.parent.name} or what its name begins with; list the"
                ' folder in DATA_SOURCES in parameters.py, "type" being "folder_structure" or "filename"; inspect.py'
                " and benchmark.py don't look there: give them the folders in it one by one if the names are right"
            )
    return "folder_structure" if nameless else "filename"


def _read_all(parse: Callable[[str], labels.Label | None], names: list[str]) -> tuple[list[labels.Label | None], int]:
    """The names as labels, None where nobody can read the picture or the name is no label; how many are none."""
    found, nameless = [], 0
    for name in names:
        try:
            found.append(parse(name))
        except labels.LabelError:
            found.append(None)
            nameless += 1
    return found, nameless


def _check_keys(d: dict[str, Any], where: str) -> None:
    kind = d.get("type")
    # A list, as an unhashable type can't be looked up in the dict.
    if "type" in d and kind not in list(TYPE_KEYS):
        raise SourceError(f'{where}: unknown "type" {kind!r}; types are {", ".join(TYPE_KEYS)}')
    known = (*COMMON_KEYS, *TYPE_KEYS[kind]) if "type" in d else tuple(VALUES)
    for key in d:
        if key not in known:
            near = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"
            raise SourceError(f'{where}: unknown key "{key}" for its type; {hint}')
    for key in ("name", "type", *(TYPE_KEYS[kind][:1] if "type" in d else ())):
        if key not in d:
            raise SourceError(f'{where}: key "{key}" is missing; add it')
