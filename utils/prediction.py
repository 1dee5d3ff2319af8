"""Reads picture files with a model, says how sure it is, and sorts the unsure ones out."""

import itertools
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import console, markup, pictures, recognizers, runs
from utils.errors import UserError
from utils.pictures import PictureError
from utils.recognizers import Recognizer

THRESHOLD = 0.9  # confidence below which a reading is unsure, where the model's papers recommend none
CHUNK = 256  # pictures decoded and read at a time
MAX_NAME_BYTES = 200  # of a saved picture; file systems take 255


class PredictionError(UserError):
    """There is nothing to read, or no place to save to. The message names it."""


@dataclass(frozen=True)
class Reading:
    """What a model reads on one picture, or the ``error`` that kept it from it; confidence is 0..1.

    ``number`` is that of the class: the digit, or for 100 classes the tenths (34 is 3.4).
    """

    file: Path
    number: int | None = None
    reading: str | None = None
    confidence: float | None = None
    error: str | None = None


def find_pictures(path: Path, without: Path | None = None) -> list[Path]:
    """The picture itself, or all pictures below a folder but those in ``without``, a folder below it.

    Raises:
        PredictionError: nothing there, no picture in the folder, or the folder is ``without`` itself.
        OSError: a folder can't be listed.
    """
    if not path.is_dir():
        if not os.path.lexists(path):
            raise PredictionError(f"{path}: no such file or folder; give a picture or a folder with pictures")
        return [path]
    # Path.resolve() fails where links form a loop.
    real, left_out = (one and Path(os.path.realpath(one)) for one in (path, without))
    if left_out == real:
        raise PredictionError(f"{path}: --save names the folder of the pictures themselves; name another")
    found = [path / file.name for file in pictures.walk(str(path))]
    if found and left_out and real in left_out.parents:
        found = [file for file in found if left_out not in Path(os.path.realpath(file)).parents]
        if not found:
            raise PredictionError(f"{path}: all its pictures are in {without}, which --save names; name another folder")
    if not found:
        raise PredictionError(f"{path}: no picture ({' '.join(pictures.EXTENSIONS)}) found in this folder")
    return found


def read(model: Recognizer, files: Sequence[Path]) -> list[Reading]:
    """Reads pictures, decoded and resized as for training; one that can't be decoded has an error instead.

    Raises:
        UserError: the model doesn't run.
    """
    readings = []
    with console.progress(None, "reading", len(files)) as bar:
        for start in range(0, len(files), CHUNK):
            part = files[start : start + CHUNK]
            readings += _read_chunk(model, part)
            bar.update(len(part))
    return readings


def open_folder(folder: Path) -> None:
    """Makes a folder that pictures will be saved in, if it isn't there.

    Raises:
        PredictionError: it can't be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PredictionError(f"{folder}: cannot save pictures there ({error.strerror})") from error


def save_unsure(readings: Sequence[Reading], threshold: float, folder: Path) -> list[Path]:
    """Copies the pictures read with less confidence than ``threshold`` to ``folder/<reading>_<name>``.

    No file there is ever overwritten: another picture of the same name gets ``-2``, ``-3`` ... behind its name, and one
    that is there already, under a corrected label too, isn't copied again. Returns the copies.

    Raises:
        PredictionError: a picture can't be copied there.
    """
    unsure = [one for one in readings if is_unsure(one, threshold)]
    # Of each name the next number: cameras call all their pictures alike.
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
    try:
        known = {runs.sha256(file): file for file in sorted(folder.iterdir()) if file.is_file()}
        names = [f"{one.reading}_{one.file.name}" for one in unsure]
        return [_copy(one.file, folder, name, numbers[name], known) for one, name in zip(unsure, names, strict=True)]
    except OSError as error:
        raise PredictionError(f"{folder}: cannot save pictures there ({error.strerror})") from error


def is_unsure(reading: Reading, threshold: float) -> bool:
    """Whether a picture was read, but with less confidence than the threshold; with a threshold of 1 all are unsure."""
    # A sure softmax rounds to 1.
    return reading.confidence is not None and (reading.confidence < threshold or threshold == 1)


def as_json(reading: Reading) -> str:
    """One line of JSON: file, class, reading, confidence, error; null for what there isn't."""
    confidence = None if reading.confidence is None else round(reading.confidence, 6)
    values = {"file": str(reading.file), "class": reading.number, "reading": reading.reading}
    return json.dumps({**values, "confidence": confidence, "error": reading.error})


def summary(readings: Sequence[Reading], model: Recognizer, threshold: float) -> str:
    """A line a picture, and one for all; what is odd in a file's name is spelled out."""
    lines = [_line(one, threshold) for one in readings]
    unsure = sum(is_unsure(one, threshold) for one in readings)
    failed = sum(one.error is not None for one in readings)
    return "\n".join(
        [
            *lines,
            f"{markup.count(len(readings), 'picture')}, {unsure} of them unsure (confidence below {threshold:g}), "
            f"{failed} unreadable; read with {markup.visible(str(model.file))}",
        ]
    )


def _line(reading: Reading, threshold: float) -> str:
    name = markup.visible(str(reading.file))
    if reading.error is not None:
        return f"   -       -          {name}: {markup.visible(reading.error)}"
    mark = "unsure" if is_unsure(reading, threshold) else ""
    return f"{reading.reading:>4}  {reading.confidence:6.1%}  {mark:6}  {name}"


def _read_chunk(model: Recognizer, files: Sequence[Path]) -> list[Reading]:
    readings, images = {}, {}
    for file in files:
        try:
            images[file] = pictures.decode(str(file), *model.input_shape)
        except PictureError as error:
            readings[file] = Reading(file, error=": ".join(error.args))
    if images:
        numbers, confidences = recognizers.decide(model, np.stack(list(images.values())))
        for file, number, confidence in zip(images, numbers.tolist(), confidences.tolist(), strict=True):
            readings[file] = Reading(file, number, model.names[number], confidence)
    return [readings[file] for file in files]


def _copy(source: Path, folder: Path, name: str, numbers: Iterator[int], known: dict[str, Path]) -> Path:
    stem, ending = os.path.splitext(name)
    while len(os.fsencode(stem + ending)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    content = runs.sha256(source)
    while content not in known:
        number = next(numbers)
        target = folder / f"{stem}{f'-{number}' if number > 1 else ''}{ending}"
        try:
            # Takes the name, and fails if anybody has it, a link to elsewhere too.
            target.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            runs.write(target, lambda partial: shutil.copyfile(source, partial))
        except BaseException:
            # The name alone would look like a damaged picture.
            target.unlink()
            raise
        known[content] = target
    return known[content]
