"""What is asked of one model file, each question a function that another process can answer (see ``isolation``)."""

import functools
import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import encodings, labels, micro, pictures, recognizers, runs, splitting, tflite_file, twins
from utils.encodings import PixelRange
from utils.recognizers import Facts, Recognizer

CHUNK = 512  # pictures read at a time
TRIAL_PICTURES = 300  # that decide in which range a model takes its pixels
TIMED_PICTURES = 100
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


class Described(NamedTuple):
    """A model file: ``names`` of its classes, ``threshold`` its papers recommend, if any, and what it is."""

    file: Path
    input_shape: tuple[int, int, int]
    names: tuple[str, ...]
    threshold: float | None
    facts: Facts
    bytes: int


def describe(path: Path) -> Described:
    """Opens a model file, or of a run folder the recommended one, and lets it read a black picture.

    Raises:
        UserError: it can't be read, and why.
    """
    # TensorFlow asks for them when it is imported, which is here at the earliest.
    os.environ.update(ONE_THREAD)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    model = recognizers.load(path, Path())
    recognizers.decide(model, np.zeros((1, *model.input_shape), np.uint8))
    return Described(
        model.file, model.input_shape, model.names, model.threshold, model.facts, model.file.stat().st_size
    )


def best_range(file: Path, images: np.ndarray, tenths: np.ndarray) -> PixelRange:
    """The range of pixels with which a file reads most digits right; of equals the first in ``encodings.TRIED``.

    Args:
        file: the model.
        images: pictures ``(N, H, W, 3)`` uint8 RGB; some 300 of them are read.
        tenths: their labels 0..99, ``(N,)``.
    """
    chosen = splitting.evenly(len(images), TRIAL_PICTURES)
    right = []
    for pixels in encodings.TRIED:
        digits = encodings.nearest_digits(read(file, pixels, images[chosen])[0], len(_open(file, pixels).names))
        right.append(int((digits == labels.to_classes(tenths[chosen], 10)).sum()))
    return encodings.TRIED[int(np.argmax(right))]


def read(file: Path, pixels: PixelRange, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers (N,) and confidences (N,) for pictures (N, H, W, 3) uint8 RGB of the file's size.

    Raises:
        UserError: the file can't be read, or doesn't run.
    """
    model = _open(file, pixels)
    parts = [recognizers.decide(model, _seen(model, images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def learnt(model: Described | Recognizer, images: np.ndarray) -> np.ndarray:
    """Which pictures its run has on record as learnt, (N,) bool; they are of the model's size, RGB or as it takes them.

    Raises:
        RunError: the record is damaged.
    """
    return np.isin(twins.marks(_seen(model, images)), runs.learnt(model.file))


def milliseconds(file: Path, pixels: PixelRange, images: np.ndarray) -> float:
    """Median time for one of the pictures (N, H, W, 3) uint8 RGB, one thread, the fastest kernels of this computer."""
    model = _open(file, pixels)
    image, times = _seen(model, images[:1]), []
    run = model.prepare(image) if model.prepare else functools.partial(model.probabilities, image)
    for _ in range(TIMED_PICTURES):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1000


def arena_bytes(file: Path) -> int | None:
    """Memory that TFLite Micro needs for the file on this computer; None for other files, or where it is missing.

    Only for files that LiteRT has run: TFLite Micro takes a damaged graph on trust.

    Raises:
        MicroError: TFLite Micro can't run the file. The message says why.
    """
    content = file.read_bytes()
    if content[4:8] != tflite_file.IDENTIFIER or not micro.available():
        return None
    return micro.arena_bytes(content)


@functools.lru_cache(maxsize=1)
def _open(file: Path, pixels: PixelRange) -> Recognizer:
    return recognizers.load(file, Path(), pixels)


def _seen(model: Described | Recognizer, images: np.ndarray) -> np.ndarray:
    return images if images.shape[3] == model.input_shape[2] else pictures.grey(images)
