"""Any model file as one thing that reads pictures: .keras, .tflite, .espdl or a run folder, strangers' too.

TFLite and ESP-DL files need neither TensorFlow nor Keras, so one picture is answered at once.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils import confidence, console, espdl_file, espdl_run, labels, micro, model_files, runs, tflite_file
from utils import settings as settings_module
from utils.errors import UserError

NOT_READABLE = "N"
# What a network may have been fed with, as (factor, offset) of a pixel 0..255.
PIXEL_RANGES = ((1.0, 0.0), (1 / 255, 0.0), (1 / 128, -1.0), (1 / 127.5, -1.0))
RANGE_TOLERANCE = 0.1  # share of the input type's values by which the ends of a range may be off


class RecognizerError(UserError):
    """A file is no model that reads digits. The message names it."""


@dataclass(frozen=True)
class Recognizer:
    """A model ready to read: ``probabilities`` turns (N, *input_shape) uint8 into (N, classes), rows summing to 1.

    ``names`` are the readings of the classes in order; ``threshold`` is the confidence its papers recommend, if any.
    """

    file: Path
    input_shape: tuple[int, int, int]
    names: tuple[str, ...]
    probabilities: Callable[[np.ndarray], np.ndarray]
    threshold: float | None


_Opened = tuple[tuple[int, int, int], int, Callable[[np.ndarray], np.ndarray]]  # input shape, classes, probabilities


def load(path: Path | None, output_dir: Path) -> Recognizer:
    """The model of a file or a run folder, for None of the newest finished run.

    Of a run folder it is the file that ``results.json`` recommends, else the best Keras model.

    Raises:
        UserError: nothing there, no model, an unsafe one, or one that reads no digits.
    """
    file = _find(path, output_dir)
    try:
        shape, nb_classes, probabilities = _kind(file)(file)
    except OSError as error:
        raise RecognizerError(f"{file}: cannot be read ({error.strerror})") from error
    except UserError as error:
        named = str(error).startswith(str(file))
        raise RecognizerError(str(error) if named else f"{file}: {error}") from error
    return Recognizer(file, shape, _names(file, nb_classes), probabilities, _recommended_confidence(file))


def decide(model: Recognizer, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers (N,) and confidences (N,) 0..1 for pictures (N, *input_shape) uint8.

    Raises:
        UserError: the model doesn't run.
    """
    try:
        probabilities = model.probabilities(images)
    except UserError as error:
        raise RecognizerError(f"{model.file}: {error}") from error
    if not np.isfinite(probabilities).all():
        raise RecognizerError(f"{model.file}: its outputs are not finite; take another file")
    return probabilities.argmax(axis=1), probabilities.max(axis=1)


def encode(tensor: tflite_file.TensorFacts, images: np.ndarray) -> np.ndarray:
    """Pixels (N, H, W, C) uint8 as an input takes them: the range of :data:`PIXEL_RANGES` that its scale fits best.

    A float input says nothing of its range and gets the pixel itself.

    Raises:
        RecognizerError: an unknown type, or a scale that fits none of the ranges.
    """
    if tensor.dtype == "float32" or (tensor.scale is None and tensor.dtype in ("int8", "uint8")):
        return micro.encode(images, tensor.dtype)
    if tensor.dtype not in ("int8", "uint8", "int16") or tensor.scale is None or not tensor.scale > 0:
        raise RecognizerError(f"the model's input is {tensor.dtype}; float32, int8, uint8 and int16 are understood")
    ends = np.iinfo(tensor.dtype)
    reals = [factor * np.arange(256) + offset for factor, offset in PIXEL_RANGES]
    tables = [np.round(real / tensor.scale) + tensor.zero_point for real in reals]
    misses = [abs(table[0] - ends.min) + abs(table[-1] - ends.max) for table in tables]
    best = int(np.argmin(misses))
    if misses[best] > RANGE_TOLERANCE * (ends.max - ends.min):
        raise RecognizerError(f"the input's scale {tensor.scale:g} and zero point {tensor.zero_point} fit no pixels")
    return tables[best].clip(ends.min, ends.max).astype(tensor.dtype)[images]


def _find(path: Path | None, output_dir: Path) -> Path:
    folder = model_files.find(None, output_dir).parent if path is None else path
    if not os.path.lexists(folder):
        raise RecognizerError(f"{folder}: no such file or folder; --model takes a model file or a run folder")
    if not folder.is_dir():
        return folder
    name = _json(folder / runs.RESULTS_FILE).get("recommended")
    # The text is a stranger's: nothing but the name of a file in this folder.
    if isinstance(name, str) and Path(name).name == name and "\0" not in name and (folder / name).is_file():
        return folder / name
    return model_files.find(folder, output_dir)


def _json(path: Path) -> dict[str, Any]:
    """A run's paper; without it, or with a damaged one, the models can be used all the same."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _recommended_confidence(file: Path) -> float | None:
    entries = _json(file.with_name(runs.MANIFEST_FILE)).get("files")
    papers = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    own = [entry for entry in papers if entry.get("name") == file.name]
    for paper in (*own, _json(file.with_name(runs.RESULTS_FILE))):
        value = paper.get("recommended_confidence")
        if isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
    return None


def _names(file: Path, nb_classes: int) -> tuple[str, ...]:
    if nb_classes == 11:
        return (*labels.class_names(10), NOT_READABLE)
    if nb_classes not in (10, labels.NB_TENTHS):
        raise RecognizerError(
            f"{file}: the model has {nb_classes} outputs; 10 (digits), 11 (digits and not readable) and 100 (tenths) "
            "are understood"
        )
    return tuple(labels.class_names(nb_classes))


def _picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    low, high = settings_module.RANGES["input_height"]
    if len(shape) != 4 or shape[0] != 1 or shape[3] not in (1, 3) or not all(low <= s <= high for s in shape[1:3]):
        raise RecognizerError(
            f"the model takes {shape}, but one picture (1, height, width, 1 or 3) with sides of {low} to {high} is "
            "needed"
        )
    return shape[1:]


def _output_count(shape: tuple[int, ...]) -> int:
    if len(shape) != 2 or shape[0] != 1:
        raise RecognizerError(f"the model gives {shape}, but one vector (1, classes) is needed")
    return shape[1]


def _kind(file: Path) -> Callable[[Path], _Opened]:
    # Opening a pipe would wait for a writer.
    if not file.is_file() or file.stat().st_size > model_files.MAX_BYTES:
        raise RecognizerError(f"{file}: no regular file, or one larger than {model_files.MAX_BYTES:,} bytes")
    with file.open("rb") as stream:
        start = stream.read(8)
    for magic, found, opener in (
        (tflite_file.IDENTIFIER, start[4:], _tflite),
        (espdl_file.IDENTIFIER, start[:4], _espdl),
        (b"PK\x03\x04", start[:4], _keras),
    ):
        if found == magic:
            return opener
    raise RecognizerError(f"{file}: this is no model; a .keras, .tflite or .espdl file or a run folder is needed")


def _keras(file: Path) -> _Opened:
    model_files.check(file)
    # A training beside this needs the GPU's memory, too.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with console.quiet_native():
        import keras  # noqa: F401
    model = model_files.load(file)
    identity = model_files.identity(model)
    return identity.input_shape, identity.nb_classes, lambda images: confidence.softmax(model.predict_on_batch(images))


def _tflite(file: Path) -> _Opened:
    content = file.read_bytes()
    facts = tflite_file.read(content)
    shape, nb_classes = _picture_shape(facts.input.shape), _output_count(facts.output.shape)

    def probabilities(images: np.ndarray) -> np.ndarray:
        # Not TFLite Micro: it takes a stranger's graph on trust.
        raw = micro.reference(content, encode(facts.input, images))
        outputs = raw.astype(np.float64)
        if facts.output.scale is not None:
            outputs = (outputs - facts.output.zero_point) * facts.output.scale
        return outputs if facts.gives_probabilities else confidence.softmax(outputs)

    # A file that doesn't run is refused before any picture is read.
    micro.reference(content, encode(facts.input, np.zeros(facts.input.shape, np.uint8)))
    return shape, nb_classes, probabilities


def _espdl(file: Path) -> _Opened:
    model = espdl_file.read(file.read_bytes())
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise RecognizerError("the ESP-DL file has several inputs or outputs; one is supported")
    shape = model.inputs[0].shape
    if len(shape) == 4 and shape[3] not in (1, 3):
        shape = (shape[0], *shape[2:], shape[1])
    softmax = model.nodes[-1].operator == "Softmax"

    def probabilities(images: np.ndarray) -> np.ndarray:
        outputs = espdl_run.logits(model, images)
        return outputs if softmax else confidence.softmax(outputs)

    return _picture_shape(shape), _output_count(model.outputs[0].shape), probabilities
