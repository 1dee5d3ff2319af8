"""Any model file as one thing that reads pictures: .keras, .tflite, .espdl or a run folder, strangers' too.

TFLite and ESP-DL files need neither TensorFlow nor Keras, so one picture is answered at once.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import (
    confidence,
    console,
    encodings,
    espdl_file,
    espdl_run,
    micro,
    model_archive,
    model_choice,
    model_files,
    runs,
    tflite_file,
)
from utils import settings as settings_module
from utils.encodings import OWN, RAW, PixelRange
from utils.errors import UserError
from utils.tflite_file import TensorFacts


class RecognizerError(UserError):
    """A file is no model that reads digits. The message names it."""


class Facts(NamedTuple):
    """What a model file is: ``outputs`` as text, ``dtype`` of the input, ``pixels`` as it takes them.

    ``known`` is False where the file doesn't say which range it takes, so that ``pixels`` is an assumption.
    ``parameters`` and multiply-accumulates (``macs``) are None where they can't be counted.
    """

    outputs: str
    dtype: str
    pixels: PixelRange
    known: bool
    parameters: int | None
    macs: int | None


@dataclass(frozen=True)
class Recognizer:
    """A model ready to read: ``probabilities`` turns (N, *input_shape) uint8 into (N, classes), rows summing to 1.

    ``names`` are the readings of the classes in order; ``threshold`` is the confidence its papers recommend, if any.
    ``prepare`` makes of one picture (1, *input_shape) uint8 a function that reads it as fast as this computer can;
    None where nothing is faster than ``probabilities``.
    """

    file: Path
    input_shape: tuple[int, int, int]
    names: tuple[str, ...]
    probabilities: Callable[[np.ndarray], np.ndarray]
    threshold: float | None
    facts: Facts
    prepare: Callable[[np.ndarray], Callable[[], Any]] | None = None


def load(path: Path | None, output_dir: Path, pixels: PixelRange | None = None) -> Recognizer:
    """The model of a file or a run folder, for None of the newest finished run.

    Of a run folder it is the file that ``results.json`` recommends, else the best Keras model. An input that doesn't
    say which range it takes gets ``pixels``, by default the likeliest (see ``encodings``).

    Raises:
        UserError: nothing there, no model, an unsafe one, or one that reads no digits.
    """
    file = _find(path, output_dir)
    try:
        return _opener(file)(file, pixels)
    except OSError as error:
        raise RecognizerError(f"{file}: cannot be read ({error.strerror})") from error
    except UserError as error:
        named = str(error).startswith(str(file))
        raise RecognizerError(str(error) if named else f"{file}: {error}") from error


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
    return probabilities.argmax(axis=1), confidence.of_shares(probabilities)


def _find(path: Path | None, output_dir: Path) -> Path:
    folder = model_choice.find(None, output_dir).parent if path is None else path
    if not os.path.lexists(folder):
        raise RecognizerError(f"{folder}: no such file or folder; name a model file or a run folder")
    if not folder.is_dir():
        return folder
    name = _json(folder / runs.RESULTS_FILE).get("recommended")
    # The text is a stranger's: nothing but the name of a file in this folder.
    if isinstance(name, str) and Path(name).name == name and "\0" not in name and (folder / name).is_file():
        return folder / name
    return model_choice.find(folder, output_dir)


def _json(path: Path) -> dict[str, Any]:
    """A run's paper; without it, or with a damaged one, the models can be used all the same."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def recommended_confidence(file: Path) -> float | None:
    """What the papers beside a model's file say, 0..1; None without any."""
    entries = _json(file.with_name(runs.MANIFEST_FILE)).get("files")
    papers = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    own = [entry for entry in papers if entry.get("name") == file.name]
    for paper in (*own, _json(file.with_name(runs.RESULTS_FILE))):
        value = paper.get("recommended_confidence")
        if isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
    return None


def _picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    low, high = settings_module.RANGES["input_height"]
    if len(shape) != 4 or shape[0] != 1 or shape[3] not in (1, 3) or not all(low <= s <= high for s in shape[1:3]):
        raise RecognizerError(
            f"the model takes {shape}, but one picture (1, height, width, 1 or 3) with sides of {low} to {high} is "
            f"needed; {encodings.ONE_PICTURE}"
        )
    return shape[1:]


def _output_count(shape: tuple[int, ...]) -> int:
    if not shape or math.prod(shape[:-1]) != 1:
        raise RecognizerError(f"the model gives {shape}, but one vector (1, classes) is needed")
    return shape[-1]


def _opener(file: Path) -> Callable[[Path, PixelRange | None], Recognizer]:
    # Opening a pipe would wait for a writer.
    if not file.is_file() or file.stat().st_size > model_archive.MAX_BYTES:
        raise RecognizerError(f"{file}: no regular file, or one larger than {model_archive.MAX_BYTES:,} bytes")
    with file.open("rb") as stream:
        start = stream.read(8)
    for magic, found, opener in (
        (tflite_file.IDENTIFIER, start[4:], _tflite),
        (espdl_file.IDENTIFIER, start[:4], _espdl),
        (model_archive.ZIP, start[:4], _keras),
    ):
        if found == magic:
            return opener
    if start == model_archive.HDF5:
        raise RecognizerError(
            f"{file}: an HDF5 file of Keras 2 may hold code that runs when it is loaded, so none is opened; save the "
            "model as .keras with Keras 3, or as .tflite"
        )
    raise RecognizerError(
        f"{file}: this is no model; a .keras, .tflite or .espdl file or a run folder is needed; convert what "
        "other formats hold (.onnx, .pb, .pt) to .tflite"
    )


def _keras(file: Path, assumed: PixelRange | None) -> Recognizer:
    console.take_gpu_memory_as_needed()
    model = model_files.load(file, foreign=True)
    # Imports Keras, which a file that is refused should not wait for.
    from utils import complexity

    identity = model_files.identity(model)
    known = model_files.takes_raw_pixels(model)
    pixels = RAW if known or assumed is None else assumed
    last = model_files.output_kind(model)

    def probabilities(images: np.ndarray) -> np.ndarray:
        inputs = images if pixels == RAW else images * np.float32(pixels.factor) + np.float32(pixels.offset)
        return encodings.probabilities(model.predict_on_batch(inputs), last)

    sizes = complexity.parameters(model), complexity.multiply_accumulates(model)
    facts = Facts(_outputs(identity.nb_classes, last), "float32", pixels, known, *sizes)
    names = encodings.names(identity.nb_classes)
    return Recognizer(file, identity.input_shape, names, probabilities, recommended_confidence(file), facts)


def _tflite(file: Path, assumed: PixelRange | None) -> Recognizer:
    content = file.read_bytes()
    facts = tflite_file.read(content)
    shape, nb_outputs = _picture_shape(facts.input.shape), _output_count(facts.output.shape)
    if max(math.prod(node.output_shape) for node in facts.nodes) > model_files.MAX_TENSOR_ELEMENTS:
        raise RecognizerError(f"one step makes more than {model_files.MAX_TENSOR_ELEMENTS:,} values of a picture")
    if foreign := [operator for operator in facts.operators if operator.startswith("CUSTOM")]:
        raise RecognizerError(
            f"operator {foreign[0]} is not part of LiteRT; build the model without it and convert it anew for "
            "tf.lite.OpsSet.TFLITE_BUILTINS alone"
        )
    known = encodings.pixel_range(facts)
    pixels = known or assumed or encodings.likeliest(facts.input, facts.first)
    last = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}.get(facts.last_operator, "logits")

    def probabilities(images: np.ndarray) -> np.ndarray:
        # Not TFLite Micro: it takes a stranger's graph on trust.
        outputs = micro.reference(content, encodings.encode(facts.input, images, pixels)).astype(np.float64)
        if facts.output.scale is not None:
            outputs = (outputs - facts.output.zero_point) * facts.output.scale
        return encodings.probabilities(outputs.reshape(len(images), nb_outputs), last)

    def prepare(image: np.ndarray) -> Callable[[], Any]:
        run, encoded = micro.fast(content), encodings.encode(facts.input, image, pixels)
        return lambda: run(encoded)

    # A file that doesn't run is refused before any picture is read.
    micro.reference(content, encodings.encode(facts.input, np.zeros(facts.input.shape, np.uint8), pixels))
    about = Facts(
        _outputs(nb_outputs, last), facts.input.dtype, pixels, known is not None, facts.parameters, facts.macs
    )
    names = encodings.names(nb_outputs)
    return Recognizer(file, shape, names, probabilities, recommended_confidence(file), about, prepare)


def _espdl(file: Path, assumed: PixelRange | None) -> Recognizer:
    model = espdl_file.read(file.read_bytes())
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise RecognizerError("the ESP-DL file has several inputs or outputs; one is supported")
    shape = model.inputs[0].shape
    if len(shape) == 4 and shape[3] not in (1, 3):
        shape = (shape[0], *shape[2:], shape[1])
    last = "softmax" if model.nodes[-1].operator == "Softmax" else "logits"
    dtype, exponents = model.inputs[0].dtype, model.inputs[0].exponents
    if dtype not in encodings.INTEGERS or len(exponents) != 1:
        raise RecognizerError(f"the ESP-DL file's input is {dtype} of {len(exponents)} scales; integers of one will do")
    source = TensorFacts("input", shape, dtype, 2.0 ** exponents[0], 0)
    # Whatever the range, its scale is a power of two and its zero point 0: only the toolkit's own files say more.
    known = OWN if "pixel - 128" in model.metadata.get("input", "") else None
    pixels = known or assumed or (OWN if exponents[0] < 0 else RAW)
    nb_outputs = _output_count(model.outputs[0].shape)

    def probabilities(images: np.ndarray) -> np.ndarray:
        outputs = espdl_run.outputs(model, encodings.encode(source, images, pixels))
        return encodings.probabilities(outputs.reshape(len(images), nb_outputs), last)

    sizes = espdl_file.parameters(model), espdl_file.multiply_accumulates(model)
    facts = Facts(_outputs(nb_outputs, last), dtype, pixels, known is not None, *sizes)
    names = encodings.names(nb_outputs)
    return Recognizer(file, _picture_shape(shape), names, probabilities, recommended_confidence(file), facts)


def _outputs(nb_outputs: int, last: str) -> str:
    meaning = encodings.OUTPUTS.get(nb_outputs, "outputs")
    if nb_outputs == 2 and last != "logits":
        raise RecognizerError(f"2 outputs behind a {last} are no sine and cosine, and no digits")
    return meaning if nb_outputs == 2 else f"{nb_outputs} {meaning}, {last}"
