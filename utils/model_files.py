"""Trained models from disk, strangers' too, made into Keras models, and whether they fit what is to be done.

:func:`load` hands Keras a clean copy of the parts that :mod:`utils.model_archive` has checked, not the file itself.
"""

import json
import logging
import math
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import models
from utils import console, encodings
from utils import settings as settings_module
from utils.model_archive import CONFIG, METADATA, WEIGHTS, ModelFileError, check_config, one_sentence, printable, read
from utils.settings import Settings

# Importing Keras takes seconds, and the doors answer a wrong path at once: only `load` imports it.

log = logging.getLogger(__name__)

MAX_TENSOR_ELEMENTS = 1 << 26  # of one picture's values between two layers
LAYER_NAME = r"[A-Za-z0-9_.\\/>-]*"  # what TensorFlow takes as the name of a scope
# Which kind of probabilities an activation gives.
SHARES = {
    "softmax": "softmax",
    "sparsemax": "softmax",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "sigmoid",
    "sparse_sigmoid": "sigmoid",
}
# A log_softmax is logits, too, but nothing to train on.
PROBABILITIES = (*SHARES, "log_softmax", "log_sigmoid")
# What the last values may still pass through, for it does not tell logits from probabilities: sums, averages and
# largest ones, too, are of one kind.
NEUTRAL_ENDS = (
    *("Flatten", "Reshape", "Permute", "Dropout", "Identity", "Activation", "ActivityRegularization"),
    *("Add", "Average", "Maximum", "Minimum", "AveragePooling2D", "GlobalAveragePooling2D"),
)


@dataclass(frozen=True)
class Identity:
    """What a model is: its name, fit for file names; the picture it reads (height, width, channels); its classes."""

    name: str
    input_shape: tuple[int, int, int]
    nb_classes: int


def load(path: Path, foreign: bool = False) -> Any:
    """Loads a model (``keras.Model``): one picture of raw pixels in, logits out. It is not compiled.

    With ``foreign`` it may take pixels in another range, give probabilities, and have 2 or 11 outputs, too: fit to be
    measured, not to be trained on.

    Raises:
        ModelFileError: what :func:`model_archive.read` finds; or Keras can't load it, its weights are missing, not
            finite or too many, or it is no model of this toolkit's kind.
    """
    config, weights, stored = read(path, foreign)
    with console.quiet_native():
        import keras

    with one_sentence(f"{path}: Keras cannot load this model; take another file or train it anew"):
        config = _of_any_batch(config)
        _check_sizes(path, _skeleton(keras, config), stored)
        model = _rebuild(keras, config, weights)
        _check_kind(path, model, tuple(encodings.OUTPUTS) if foreign else settings_module.CHOICES["nb_classes"])
        # TensorFlow runs no model with a space in its name.
        model = models.as_graph(model, "measured" if foreign else model.name)
        if not foreign:
            _check_start(path, model)
            _check_end(path, model)
        _check_values(path, model, keras)
    return model


def check_built(model: Any, file: str, settings: Settings) -> None:
    """Refuses an architecture whose trained model would not be what the settings ask for, or could not be loaded.

    ``file`` is where the architecture lies, for the message.

    Raises:
        ModelFileError: it takes more than one picture or gives more than one vector, or others than the settings';
            begins without ``Rescaling(1/128, offset=-1)``, ends in probabilities, or has layers that Keras can't load
            or that have names TensorFlow doesn't take.
    """
    _check_kind(Path(file), model, settings_module.CHOICES["nb_classes"])
    found, asked = identity(model), Identity(model.name, settings.input_shape, settings.nb_classes)
    if found != asked:
        pair = ["{} x {} x {} to {} classes".format(*one.input_shape, one.nb_classes) for one in (found, asked)]
        raise ModelFileError(
            f"{file}: its model is of {pair[0]}, not {pair[1]}: go by build's input_shape and nb_classes"
        )
    _check_start(Path(file), model)
    _check_end(Path(file), model)
    for layer in model.layers:
        if not re.fullmatch(LAYER_NAME, layer.name):
            raise ModelFileError(
                f"{file}: TensorFlow takes no layer named {layer.name!r}: use letters of English, digits, dots, - and _"
            )
    with one_sentence(f"{file}: {models.NOT_LOADABLE}"):
        models.as_graph(model, model.name)


def warn_of_foreign_layers(model: Any, file: str) -> None:
    """Says of an architecture that is not to be quantised if :func:`load` will refuse it; ``file`` is where it lies."""
    try:
        check_config(Path(file), json.loads(model.to_json()), foreign=False)
    except ModelFileError as error:
        log.warning("once trained, its best_model.keras can be neither read nor taught further nor teach: %s", error)


def identity(model: Any) -> Identity:
    """Name, input shape and number of classes of a model from :func:`load`."""
    return Identity(model.name, tuple(model.input_shape[1:]), model.output_shape[-1])


def takes_raw_pixels(model: Any) -> bool:
    """True if the model's first layer shows it: a rescaling, or batch statistics of pixels 0..255."""
    first = next(iter(_first_layers(model).values()))
    if type(first).__name__ == "Rescaling":
        return float(np.abs(np.array(first.scale, float)).max()) <= encodings.LARGEST_FACTOR
    return (
        type(first).__name__ == "BatchNormalization"
        and float(abs(first.moving_mean.numpy()).max()) >= encodings.SMALLEST_SHIFT
    )


def output_kind(model: Any) -> str:
    """``softmax`` or ``sigmoid`` if that, or one of its kind, makes the outputs, else ``logits``."""
    _, activation = _end(model)
    return SHARES.get(activation, "logits")


def check_fits(model: Any, settings: Settings, new_head: bool) -> None:
    """Sees that a model reads pictures of the settings' shape and, unless it gets a new head, their classes.

    Raises:
        ModelFileError: they differ; the message names both values and which side to change.
    """
    found = identity(model)
    names = ("INPUT_HEIGHT", "INPUT_WIDTH", "INPUT_CHANNELS")
    clashes = [item for item in zip(names, found.input_shape, settings.input_shape, strict=True) if item[1] != item[2]]
    if clashes:
        wanted = " x ".join(map(str, found.input_shape))
        given = ", ".join(f"{name} = {value}" for name, _, value in clashes)
        change = " ".join(f"{name}={value}" for name, value, _ in clashes)
        raise ModelFileError(
            f"the model {found.name} reads pictures of {wanted} (height, width, channels) but {given}: "
            f"use --set {change}, or take another model"
        )
    if not new_head and found.nb_classes != settings.nb_classes:
        # Behind a convolution the features still have places, so nothing says what a new head is to read.
        takes_one = type(last_weighted(model)).__name__ == "Dense"
        other = "a new head by fine-tune.py --strategy feature_extractor" if takes_one else "take another model"
        raise ModelFileError(
            f"the model {found.name} reads {found.nb_classes} classes but NB_CLASSES = {settings.nb_classes}: "
            f"use --set NB_CLASSES={found.nb_classes}, or {other}"
        )


def check_teacher(found: Identity, settings: Settings) -> None:
    """Sees that a teacher can answer on the student's pictures, for the student's classes.

    Raises:
        ModelFileError: other size, colour for which the student has none, or tenths that the teacher doesn't know.
    """
    height, width, channels = settings.input_shape
    if found.input_shape[:2] != (height, width) or found.input_shape[2] < channels:
        raise ModelFileError(
            f"the teacher {found.name} reads pictures of {' x '.join(map(str, found.input_shape))} (height, width, "
            f"channels), the student {height} x {width} x {channels}: train a teacher with the student's INPUT_HEIGHT, "
            "INPUT_WIDTH and INPUT_CHANNELS"
        )
    if found.nb_classes < settings.nb_classes:
        raise ModelFileError(f"the teacher {found.name} reads {found.nb_classes} classes, too few for NB_CLASSES = 100")


def last_weighted(model: Any) -> Any:
    """The last layer that has weights: a network's head."""
    return [layer for layer in model.layers if layer.weights][-1]


def copy_weights(source: Any, model: Any) -> None:
    """Gives a model the weights of another of its architecture; a last layer of another size keeps its own.

    Raises:
        ModelFileError: other layers than the model's.
    """
    pairs = [[layer for layer in one.layers if layer.weights] for one in (source, model)]
    shapes = [[[weight.shape for weight in layer.weights] for layer in layers] for layers in pairs]
    if shapes[0][:-1] != shapes[1][:-1]:
        raise ModelFileError(
            f"START_FROM names a {source.name} whose layers are not those of the {model.name} to be trained: "
            "name a model of the same INPUT_HEIGHT, INPUT_WIDTH and INPUT_CHANNELS"
        )
    same = len(pairs[1]) - (shapes[0][-1] != shapes[1][-1])
    for layer, trained in zip(pairs[1][:same], pairs[0][:same], strict=True):
        layer.set_weights(trained.get_weights())
    if same == len(pairs[1]):
        # Digits are read by way of tenths, but those of 0 begin with 9.5.
        turn = {(100, 10): 5, (10, 100): -5}.get((source.output_shape[-1], model.output_shape[-1]), 0)
        layer.set_weights([np.roll(weight, turn, axis=-1) for weight in layer.get_weights()])


def _of_any_batch(config: str) -> str:
    """The description with inputs for any number of pictures: ``fit`` builds a ``Sequential`` for its batches alone."""
    described = json.loads(config)
    for layer in described["config"]["layers"]:
        if layer["class_name"] == "InputLayer":
            layer["config"]["batch_shape"][0] = None
    return json.dumps(described)


def _skeleton(keras: Any, config: str) -> Any:
    """The model without a single value, since a short description can ask for more weights than there is memory."""
    with keras.StatelessScope(initialize_variables=False):
        return keras.saving.deserialize_keras_object(json.loads(config))


def _check_sizes(path: Path, skeleton: Any, stored: int) -> None:
    if not skeleton.built:
        raise ModelFileError(
            f"{path}: the model has no weights, for it was saved before it saw a picture: put keras.Input((height, "
            "width, channels)) first, train it and save it again"
        )
    # Keras would first make the weights, then miss them in the file.
    count = sum(math.prod(weight.shape) for weight in skeleton.weights)
    if count > stored:
        raise ModelFileError(
            f"{path}: the model has {count:,} weights but the file holds {stored:,}; take another file"
        )
    for layer in skeleton.layers:
        elements = max(math.prod(side or 1 for side in tensor.shape) for tensor in _outputs(layer))
        if elements > MAX_TENSOR_ELEMENTS:
            name = printable(layer.name)
            raise ModelFileError(f"{path}: layer {name} makes {elements:,} values of a picture; take a smaller model")


def _outputs(layer: Any) -> list:
    return [tensor for node in layer._inbound_nodes for tensor in node.output_tensors]


def _rebuild(keras: Any, config: str, weights: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.keras"
        with zipfile.ZipFile(copy, "w") as archive:
            archive.writestr(CONFIG, config)
            archive.writestr(METADATA, "{}")
            archive.writestr(WEIGHTS, weights)
        return keras.models.load_model(copy, compile=False, safe_mode=True)


def _check_kind(path: Path, model: Any, classes: tuple[int, ...]) -> None:
    low, high = settings_module.RANGES["input_height"]
    channels = settings_module.CHOICES["input_channels"]
    inputs, outputs = ([tuple(tensor.shape) for tensor in ends] for ends in (model.inputs, model.outputs))
    picture, result = inputs[0], outputs[0]
    sides = len(picture) == 4 and all(side is not None and low <= side <= high for side in picture[1:3])
    if len(inputs) != 1 or not sides or picture[0] is not None or picture[3] not in channels:
        raise ModelFileError(
            f"{path}: the model takes {_shapes(inputs)}, but one picture (batch, height, width, 1 or 3) with sides of "
            f"{low} to {high} is needed, in batches of any size; take another model, or, to read pictures alone, "
            f"{encodings.ONE_PICTURE}"
        )
    if len(outputs) != 1 or len(result) != 2 or result[0] is not None or result[1] not in classes:
        raise ModelFileError(
            f"{path}: the model gives {_shapes(outputs)}, but one vector (batch, {' or '.join(map(str, classes))}) is "
            "needed; take another model, or, if one of several outputs is such a vector, save "
            "keras.Model(model.inputs, model.outputs[NUMBER])"
        )
    kinds = {str(t.dtype) for t in (*model.inputs, *model.outputs, *model.weights)}
    kinds |= {layer.compute_dtype for layer in model.layers}
    if kinds != {"float32"}:
        shown = ", ".join(sorted(kinds - {"float32"}))
        raise ModelFileError(
            f"{path}: the model calculates in {shown}, but float32 is needed; build it anew with the dtype policy "
            "float32, give it the same weights (set_weights) and save it"
        )


def _shapes(shapes: list[tuple]) -> str:
    sides = [("batch" if shape[:1] == (None,) else f"batch of {shape[0]}", *shape[1:]) for shape in shapes]
    texts = [", ".join("any" if side is None else str(side) for side in one) for one in sides]
    return printable(" and ".join(f"({text})" for text in texts))


def _first_layers(model: Any) -> dict[str, Any]:
    image = model.inputs[0]
    return {
        layer.name: layer
        for layer in model.layers
        for node in layer._inbound_nodes
        if any(tensor is image for tensor in node.input_tensors)
    }


def _check_start(path: Path, model: Any) -> None:
    readers = _first_layers(model)
    first = next(iter(readers.values())) if len(readers) == 1 else None
    if type(first).__name__ != "Rescaling":
        begins = " and ".join(f"{type(layer).__name__} {printable(layer.name, 40)}" for layer in readers.values())
    elif (first.scale, first.offset) == (1 / 128, -1):
        return
    else:
        begins = f"Rescaling(scale={printable(str(first.scale), 30)}, offset={printable(str(first.offset), 30)})"
    raise ModelFileError(
        f"{path}: the model begins with {begins or 'nothing'} instead of Rescaling(1/128, offset=-1), which the files "
        "for devices have as their input's scale; put that layer first and train the model with it"
    )


def _check_end(path: Path, model: Any) -> None:
    layer, activation = _end(model)
    if activation in PROBABILITIES:
        last = f"{type(layer).__name__} {printable(layer.name, 40)}"
        raise ModelFileError(
            f"{path}: the model ends in probabilities ({last}), but logits are needed; save it without softmax or "
            "sigmoid at its end"
        )


def _end(model: Any) -> tuple[Any, str]:
    """The layer that makes the last values, behind it nothing but NEUTRAL_ENDS, and its activation."""
    tensor = model.outputs[0]
    while True:
        layer, node_index, _ = tensor._keras_history
        kind, activation = type(layer).__name__, getattr(layer, "activation", None)
        # A layer may be another one's activation.
        if "Softmax" in (kind, type(activation).__name__):
            return layer, "softmax"
        activation = getattr(activation, "__name__", "linear")
        if kind not in NEUTRAL_ENDS or activation != "linear":
            return layer, activation
        tensor = layer._inbound_nodes[node_index].input_tensors[0]


def _check_values(path: Path, model: Any, keras: Any) -> None:
    bad = [weight.path for weight in model.weights if not np.isfinite(keras.ops.convert_to_numpy(weight)).all()]
    if bad:
        raise ModelFileError(
            f"{path}: {len(bad)} of the model's weights are not finite ({printable(bad[0], 60)}); "
            "take another file or train it anew"
        )
    # Finite weights still make no finite logits where a variance is negative, or where their sums are too large: the
    # first sums of a black picture are mostly those of a white one with the other sign, which ReLU takes for 0.
    for pixel, colour in ((0, "black"), (255, "white")):
        logits = model(np.full((1, *model.input_shape[1:]), pixel, np.float32), training=False)
        if not np.isfinite(keras.ops.convert_to_numpy(logits)).all():
            raise ModelFileError(f"{path}: the model gives no finite logits for a {colour} picture; train it anew")
