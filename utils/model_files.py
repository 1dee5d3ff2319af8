"""Trained models from disk, strangers' too: which file is meant, whether it is safe, and whether it fits.

A ``.keras`` file is a zip archive with a description in JSON and the weights in HDF5. Keras's own safe mode stops
Python code in it, but not every class that reads files or turns a setting over, nor a description of weights larger
than memory. So :func:`check` takes the file apart without Keras and accepts only plain layers; :func:`load` then
hands Keras a clean copy of the parts that were checked, not the file itself.
"""

import contextlib
import io
import json
import logging
import math
import re
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import models
from utils import console, encodings, runs, tflite_file
from utils import settings as settings_module
from utils.errors import UserError
from utils.settings import Settings

# Importing Keras takes seconds, and the doors answer a wrong path at once: only `load` imports it.

log = logging.getLogger(__name__)

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MAX_BYTES = 1 << 29  # of a file, of its unpacked parts, and of the weights
BYTES_OF_A_WEIGHT = 4
MAX_CONFIG_BYTES = 1 << 22  # the largest architecture here needs 60 kB
MAX_LAYERS = 1000
MAX_H5_OBJECTS = 20_000
MAX_TENSOR_ELEMENTS = 1 << 26  # of one picture's values between two layers
MAX_NAME = 100
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

HDF5 = b"\x89HDF\r\n\x1a\n"
OTHER_MAGIC = {
    (0, b"EDL2"): "an ESP-DL file",
    (0, HDF5): "an HDF5 file of Keras 2 or weights alone",
    (4, tflite_file.IDENTIFIER): "a TFLite file",
}
OTHER_SUFFIXES = {
    ".tflite": "a TFLite file",
    ".espdl": "an ESP-DL file",
    ".h5": "an HDF5 file of Keras 2 or weights alone",
    ".hdf5": "an HDF5 file of Keras 2 or weights alone",
    ".onnx": "an ONNX file",
    ".zip": "a zip archive",
    ".json": "a JSON file",
}

MODELS = {
    *(("keras.src.models.functional", "Functional"), ("keras", "Functional"), ("keras.models", "Functional")),
    *(("keras", "Sequential"), ("keras.models", "Sequential"), ("keras.src.models.sequential", "Sequential")),
}
LAYERS = (
    *("InputLayer", "Rescaling", "Dense", "Activation", "Identity", "Flatten", "Reshape", "Permute"),
    *("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "ZeroPadding2D", "Cropping2D", "UpSampling2D"),
    *("MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D", "GlobalAveragePooling2D"),
    *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"),
    *("ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "ActivityRegularization"),
    *("BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization"),
    *("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
)
INITIALIZERS = (
    *("Zeros", "Ones", "Constant", "Identity", "Orthogonal", "VarianceScaling", "RandomNormal", "RandomUniform"),
    *("TruncatedNormal", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform"),
)
PARTS = {
    *(("keras.layers", name) for name in LAYERS),
    *(("keras.initializers", name) for name in INITIALIZERS),
    *(("keras.regularizers", name) for name in ("L1", "L2", "L1L2", "OrthogonalRegularizer")),
    *(("keras.constraints", name) for name in ("MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm")),
    *(("keras", "DTypePolicy"), ("keras.dtype_policies", "DTypePolicy"), (None, "__keras_tensor__")),
}
# Of a run's settings what its model can't tell: what its outputs mean, and which pictures it did not learn from.
OF_SPLIT = ("seed", "split_by", "test_share", "validation_share")
OF_RUN = ("label_spread", *OF_SPLIT)
# How probabilities become shares of the classes: as a softmax's do, or divided by their sum.
SHARES = {
    "softmax": "softmax",
    "sparsemax": "softmax",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "sigmoid",
    "sparse_sigmoid": "sigmoid",
}
# A log_softmax is logits, too, but nothing to train on.
PROBABILITIES = (*SHARES, "log_softmax", "log_sigmoid")
# What the last values may still pass through: it does not tell logits from probabilities. An average is of one kind.
NEUTRAL_ENDS = (
    *("Flatten", "Reshape", "Permute", "Dropout", "Identity", "Activation", "ActivityRegularization"),
    "Average",
)


class ModelFileError(UserError):
    """A model file is missing, damaged, unsafe or unfit. The message names it and what to do."""


@dataclass(frozen=True)
class Identity:
    """What a model is: its name, fit for file names; the picture it reads (height, width, channels); its classes."""

    name: str
    input_shape: tuple[int, int, int]
    nb_classes: int


def find(path: Path | None, output_dir: Path) -> Path:
    """The ``.keras`` file meant: the file itself, a run folder's best model, or for None the newest finished run's.

    Raises:
        ModelFileError: nothing there, a folder without a model, another kind of file, or no finished run.
    """
    if path is None:
        return _newest(Path(output_dir))
    path = Path(path)
    with _one_sentence(f"{path}: cannot be read"):
        if path.is_dir():
            path = _model_of(path)
        elif not path.is_file():
            raise ModelFileError(f"{path}: no such file or folder; --model_path takes a .keras file or a run folder")
        _refuse_other_kinds(path)
    return path


def check(path: Path) -> None:
    """Says without Keras what is wrong with a file: its archive, its parts, and what it could do when loaded.

    Raises:
        ModelFileError: damaged, too large, from Keras 2, or holding more than plain layers and their weights.
    """
    _read(Path(path))


def declared(path: Path) -> dict[str, int]:
    """The settings that a model's own description asks for: ``input_*`` and ``nb_classes``, as far as it tells them.

    Raises:
        ModelFileError: what :func:`check` finds; pictures of a size that isn't supported.
    """
    config = _read(Path(path))[0]
    with _one_sentence(f"{path}: its description of the layers is damaged; take another file"):
        found = _asked_for(json.loads(config)["config"].get("layers", []))
    for name, value in found.items():
        low, high = settings_module.RANGES.get(name, (0, 0))
        # Not "in" alone: True and 1.0 would be one, too.
        if type(value) is not int or not (low <= value <= high or value in settings_module.CHOICES.get(name, ())):
            raise ModelFileError(
                f"{path}: a model with {name.upper()} = {_printable(repr(value))} is not supported: sides of 8 to 512"
                " pixels and 1 or 3 channels are"
            )
    return found


def trained_with(path: Path) -> dict[str, int | float | str]:
    """What :func:`declared` finds, and :data:`OF_RUN` of the run that the model is of, if it is of one.

    Raises:
        ModelFileError: what :func:`declared` says.
    """
    found = declared(path)
    try:
        saved = json.loads((Path(path).parent / runs.SETTINGS_FILE).read_text())["settings"]
        return {**found, **{name: settings_module.checked(name, saved[name]) for name in OF_RUN}}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, settings_module.SettingsError):
        return found


def to_go_on(path: Path | None, given: dict[str, Any]) -> tuple[Path, Settings]:
    """The file that :func:`find` finds, and the settings to teach that model further.

    They are what is ``given``, refused where it doesn't fit, else :func:`trained_with`, else ``parameters.py``.

    Raises:
        ModelFileError: what :func:`find` and :func:`declared` say.
        SettingsError: they don't fit together; the message names what is the run's, which nobody may have in mind.
    """
    path = find(path, Path(settings_module.load(**given).output_dir))
    found = trained_with(path)
    try:
        return path, settings_module.load(**{**found, **given})
    except settings_module.SettingsError as error:
        own = ", ".join(f"{name.upper()} = {found[name]!r}" for name in OF_RUN if name in found and name not in given)
        raise settings_module.SettingsError(f"{error}; of the model's run are {own}" if own else str(error)) from error


def _asked_for(layers: list[dict]) -> dict[str, int]:
    shapes = [layer["config"].get("batch_shape") for layer in layers if layer["class_name"] == "InputLayer"]
    # A dense layer, a convolution or a reshape to a row says how many values come out.
    configs = [layer["config"] for layer in layers]
    rows = [config.get("target_shape", [config.get("units", config.get("filters"))]) for config in configs]
    units = [row[0] for row in rows if isinstance(row, list) and len(row) == 1 and row[0] is not None]
    found = {"nb_classes": units[-1]} if units and units[-1] in settings_module.CHOICES["nb_classes"] else {}
    if len(shapes) == 1 and isinstance(shapes[0], list) and len(shapes[0]) == 4 and all(shapes[0][1:]):
        found |= dict(zip(("input_height", "input_width", "input_channels"), shapes[0][1:], strict=True))
    return found


def load(path: Path, foreign: bool = False) -> Any:
    """Loads a model (``keras.Model``): one picture of raw pixels in, logits out. It is not compiled.

    With ``foreign`` it may take pixels in another range, give probabilities, and have 2 or 11 outputs, too: fit to be
    measured, not to be trained on.

    Raises:
        ModelFileError: what :func:`check` finds; or Keras can't load it, its weights are missing, not finite or too
            many, or it is no model of this toolkit's kind.
    """
    path = Path(path)
    config, weights, stored = _read(path, foreign)
    with console.quiet_native():
        import keras

    with _one_sentence(f"{path}: Keras cannot load this model; take another file or train it anew"):
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


def teachers(settings: Settings) -> list[Path]:
    """The files that ``TEACHERS`` names. One whose description shows already that it does not fit is refused.

    Raises:
        ModelFileError: what :func:`find`, :func:`declared` and :func:`check_teacher` say.
    """
    files = [find(Path(teacher), Path(settings.output_dir)) for teacher in settings.teachers]
    for file in files:
        asked = declared(file)
        shape = tuple(asked.get(f"input_{side}", 0) for side in ("height", "width", "channels"))
        if all(shape) and "nb_classes" in asked:
            check_teacher(Identity(str(file), shape, asked["nb_classes"]), settings)
    return files


def check_named(settings: Settings, *architectures: str) -> None:
    """Sees that the models which ``TEACHERS`` and ``START_FROM`` name are there and fit, before the long part begins.

    Warns of a ``START_FROM`` that may have learnt from what will be measured on.

    Raises:
        ModelFileError: what :func:`teachers` and :func:`start` say.
    """
    teachers(settings)
    file = start(settings, *architectures)
    of_run = trained_with(file) if file else {}
    # Pixels draw the lots, and each class is divided by itself.
    for name in (*OF_SPLIT, "input_height", "input_width", "nb_classes"):
        if of_run.get(name, given := getattr(settings, name)) != given:
            log.warning(
                "START_FROM was trained with %s = %r, not %r: it may have learnt pictures that are measured on here",
                *(name.upper(), of_run[name], given),
            )


def start(settings: Settings, *architectures: str) -> Path | None:
    """The file that ``START_FROM`` names, if it does, for these architectures to begin with.

    Raises:
        ModelFileError: what :func:`find` and :func:`check` say; a model of another architecture or for other colours.
    """
    if not settings.start_from:
        return None
    file = find(Path(settings.start_from), Path(settings.output_dir))
    name = json.loads(_read(file)[0])["config"]["name"]
    for architecture in architectures:
        if architecture != name:
            raise ModelFileError(
                f"START_FROM = {settings.start_from!r} is a {name}, to be trained is {architecture}: "
                "name a model of the same architecture"
            )
    # Another size fits where a network pools over all of the picture; other colours never do.
    channels = declared(file).get("input_channels", settings.input_channels)
    if channels != settings.input_channels:
        raise ModelFileError(
            f"START_FROM = {settings.start_from!r} reads pictures of {channels} channels but INPUT_CHANNELS = "
            f"{settings.input_channels}: use --set INPUT_CHANNELS={channels}, or another model"
        )
    return file


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
        raise ModelFileError(
            f"the model {found.name} reads {found.nb_classes} classes but NB_CLASSES = {settings.nb_classes}: "
            f"use --set NB_CLASSES={found.nb_classes}, or a new head by fine-tune.py --strategy feature_extractor"
        )


@contextlib.contextmanager
def _one_sentence(text: str) -> Iterator[None]:
    """Turns whatever a parser raises on a stranger's bytes into a ModelFileError that begins with ``text``."""
    try:
        yield
    except ModelFileError:
        raise
    except Exception as error:
        # zipfile, json, h5py and Keras have no common type, and raise many that they do not document.
        raise ModelFileError(f"{text} ({_short(error)})") from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return _printable(f"{type(error).__name__}: {text}" if text else type(error).__name__, 300)


def _printable(text: str, length: int = 150) -> str:
    """A stranger's text for a message: no line breaks and no terminal commands, and not long."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= length else shown[:length] + "..."


def _newest(output_dir: Path) -> Path:
    """The newest finished run's model: by the time ``results.json`` was written, then by name (it holds the start)."""
    with _one_sentence(f"OUTPUT_DIR {output_dir}: cannot be read"):
        # A run writes results.json last, so its time is the end of the run; a copied folder may be older than it.
        found = list(output_dir.glob(f"*/{runs.RESULTS_FILE}"))
        results = [(path.stat().st_mtime_ns, path.parent.name, path) for path in found]
    for _, _, path in sorted(results, reverse=True):
        model = path.with_name(runs.BEST_MODEL_FILE)
        try:
            _finished(path)
            check(model)
        except ModelFileError as error:
            log.warning("no model named: passed over %s (%s)", path.parent, error)
            continue
        log.info("no model named: taking %s", model)
        return model
    raise ModelFileError(f"{output_dir}: no finished run there; train a model first or name a model")


def _finished(results: Path) -> None:
    with _one_sentence(f"{results}: damaged"):
        found = json.loads(results.read_text())
        if not isinstance(found, dict):
            raise ModelFileError(f"{results}: damaged")
        judgement = found.get("judgement")
        if isinstance(judgement, dict) and judgement.get("accepted") is False:
            raise ModelFileError(f"{results}: its retraining was REJECTED; name it to use it all the same")


def _model_of(folder: Path) -> Path:
    if (folder / runs.BEST_MODEL_FILE).is_file():
        return folder / runs.BEST_MODEL_FILE
    hint = "name a .keras file or the folder of a finished run"
    if (folder / runs.SETTINGS_FILE).is_file():
        began = runs.fine_tuned_from(folder)
        hint = f"this run is not finished: train.py --resume {folder} goes on with it"
        hint = runs.not_resumable(began) if began else hint
    raise ModelFileError(f"{folder}: no {runs.BEST_MODEL_FILE} in this folder; {hint}")


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    kind = next((kind for (at, magic), kind in OTHER_MAGIC.items() if start[at:].startswith(magic)), None)
    zipped = start.startswith(b"PK\x03\x04")
    if path.suffix.lower() != ".keras":
        renamed = f"a zip archive named *{path.suffix} (a Keras model is to be renamed to *.keras)"
        kind = renamed if zipped else kind or OTHER_SUFFIXES.get(path.suffix.lower(), "no .keras file")
    if kind:
        raise ModelFileError(
            f"{path}: this is {kind}, but a Keras 3 model is needed; "
            f"give the .keras file it was made from, or a run folder with {runs.BEST_MODEL_FILE}"
        )
    if not zipped:
        # A zip archive may stand behind other bytes, but Keras writes none there.
        raise ModelFileError(f"{path}: no .keras file or a damaged one; copy it again or take another file")


def _read(path: Path, foreign: bool = False) -> tuple[str, bytes, int]:
    """The checked description and weights of a file, and the number of weights.

    How the model was compiled is left out of the description.
    """
    with _one_sentence(f"{path}: damaged or cut off; copy it again or take another file"):
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file; --model_path takes a .keras file or a run folder")
        _refuse_other_kinds(path)
        if path.stat().st_size > MAX_BYTES:
            raise ModelFileError(f"{path}: {_too_large(path.stat().st_size)}")
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist())
            _check_version(path, archive)
            config = json.loads(_entry(archive, CONFIG))
            _check_config(path, config, foreign)
            weights = _entry(archive, WEIGHTS)
        stored = _check_weights(path, weights)
    return json.dumps({**config, "compile_config": None}), weights, stored


def _too_large(size: int) -> str:
    return f"{size:,} bytes, more than the {MAX_BYTES:,} that are loaded; take a smaller model"


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    missing = {CONFIG, WEIGHTS} - set(names)
    # Assets belong to layers with vocabularies; the layers that are loaded have none.
    strange = sorted({name for name in names if name not in (CONFIG, METADATA, WEIGHTS) or names.count(name) > 1})
    if strange:
        shown = _printable(", ".join(strange[:3]))
        raise ModelFileError(f"{path}: the archive holds {shown}, which a model of plain layers has not or only once")
    if missing:
        raise ModelFileError(f"{path}: {', '.join(sorted(missing))} is missing in it; save the model with Keras 3 anew")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_BYTES:
        raise ModelFileError(f"{path}: unpacked it has {_too_large(unpacked)}")
    for entry in entries:
        # Python unpacks bzip2 and LZMA without a bound; Keras stores, and other tools deflate.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise ModelFileError(f"{path}: {entry.filename} is encrypted or packed strangely; save the model anew")
        if entry.filename != WEIGHTS and entry.file_size > MAX_CONFIG_BYTES:
            raise ModelFileError(f"{path}: {entry.filename} has {entry.file_size:,} bytes; no such model is that large")


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    # With a length, zipfile unpacks no more than it, whatever the archive says; and it compares the checksum.
    with archive.open(name) as entry:
        return entry.read(archive.getinfo(name).file_size + 1)


def _check_version(path: Path, archive: zipfile.ZipFile) -> None:
    if METADATA not in archive.namelist():
        return
    metadata = json.loads(_entry(archive, METADATA))
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    if isinstance(version, str) and version.startswith(("0.", "1.", "2.")):
        shown = _printable(version, 20)
        raise ModelFileError(f"{path}: saved by Keras {shown}; rebuild the model with Keras 3 and save it again")


def _check_config(path: Path, config: Any, foreign: bool) -> None:
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ModelFileError(f"{path}: {CONFIG} describes no model; save the model with Keras 3 anew")
    _check_part(path, config, MODELS)
    name = config["config"].get("name")
    # No file is called by the name of a model that is only measured.
    if not (isinstance(name, str) and (foreign or (NAME.fullmatch(name) and len(name) <= MAX_NAME))):
        raise ModelFileError(
            f"{path}: the model's name {_printable(repr(name))} becomes part of file names: save it with one of "
            f"letters, digits, '.', '_' and '-' that begins with a letter or digit and has at most {MAX_NAME}"
        )
    layers = config["config"].get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise ModelFileError(f"{path}: {CONFIG} lists no layers or more than {MAX_LAYERS}; save the model anew")
    # Loading without compiling ignores compile_config here, and only here.
    inner = [value for key, value in config.items() if key != "compile_config"]
    while inner:
        value = inner.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                _check_part(path, value, PARTS)
            inner += value.values()
        elif isinstance(value, list):
            inner += value


def _check_part(path: Path, part: dict, accepted: set) -> None:
    module, name = part.get("module"), part.get("class_name")
    known = isinstance(module, str | None) and isinstance(name, str) and (module, name) in accepted
    # Keras looks a registered name up before the module, so it must not say anything else.
    if known and part.get("registered_name") in (None, name):
        return
    if name == "function":
        name = part.get("config")
    shown = _printable(".".join(str(item) for item in (module, name) if item is not None))
    also = part.get("registered_name")
    alias = f" (registered as {_printable(repr(also))})" if also not in (None, name) else ""
    raise ModelFileError(
        f"{path}: the model contains {shown}{alias}, but only plain layers are loaded, for others may run code or read "
        "files; build it of Convolution, Dense and the like, in one flat model, and save it anew"
    )


def _check_weights(path: Path, weights: bytes) -> int:
    import h5py

    with h5py.File(io.BytesIO(weights), "r") as file:
        groups, seen, count = [file], 0, 0
        while groups:
            group = groups.pop()
            for name in group:
                seen += 1
                if seen > MAX_H5_OBJECTS:
                    raise ModelFileError(f"{path}: its weights file is a maze; save the model anew")
                child = _hard(path, group, name, h5py)
                if isinstance(child, h5py.Group):
                    groups.append(child)
                else:
                    count += child.size
    if BYTES_OF_A_WEIGHT * count > MAX_BYTES:
        raise ModelFileError(f"{path}: its weights have {_too_large(BYTES_OF_A_WEIGHT * count)}")
    return count


def _hard(path: Path, group: Any, name: str, h5py: Any) -> Any:
    """A group or an array of numbers that stands in the file itself."""
    child = None
    if group.get(name, getlink=True, getclass=True) is h5py.HardLink:
        # Only now: to open a link is to follow it into another file.
        child = group[name]
    plain = isinstance(child, h5py.Dataset) and not child.external and not child.is_virtual
    plain = plain and child.dtype.kind in "fiub"
    if not plain and not isinstance(child, h5py.Group):
        raise ModelFileError(
            f"{path}: {_printable(repr(name))} among its weights points out of the file or holds no numbers; "
            "save the model anew"
        )
    return child


def _skeleton(keras: Any, config: str) -> Any:
    """The model without a single value, since a short description can ask for more weights than there is memory."""
    with keras.StatelessScope(initialize_variables=False):
        return keras.saving.deserialize_keras_object(json.loads(config))


def _check_sizes(path: Path, skeleton: Any, stored: int) -> None:
    # Keras would first make the weights, then miss them in the file.
    count = sum(math.prod(weight.shape) for weight in skeleton.weights)
    if count > stored:
        raise ModelFileError(
            f"{path}: the model has {count:,} weights but the file holds {stored:,}; take another file"
        )
    for layer in skeleton.layers:
        elements = max(math.prod(side or 1 for side in tensor.shape) for tensor in _outputs(layer))
        if elements > MAX_TENSOR_ELEMENTS:
            name = _printable(layer.name)
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
            f"{low} to {high} is needed, in batches of any size; take another model"
        )
    if len(outputs) != 1 or len(result) != 2 or result[0] is not None or result[1] not in classes:
        raise ModelFileError(
            f"{path}: the model gives {_shapes(outputs)}, but one vector (batch, {' or '.join(map(str, classes))}) is "
            "needed; take another model"
        )
    kinds = {str(t.dtype) for t in (*model.inputs, *model.outputs, *model.weights)}
    kinds |= {layer.compute_dtype for layer in model.layers}
    if kinds != {"float32"}:
        shown = ", ".join(sorted(kinds - {"float32"}))
        raise ModelFileError(f"{path}: the model calculates in {shown}, but float32 is needed; save it in float32")


def _shapes(shapes: list[tuple]) -> str:
    sides = [("batch" if shape[:1] == (None,) else f"batch of {shape[0]}", *shape[1:]) for shape in shapes]
    texts = [", ".join("any" if side is None else str(side) for side in one) for one in sides]
    return _printable(" and ".join(f"({text})" for text in texts))


def _first_layers(model: Any) -> dict[str, Any]:
    image = model.inputs[0]
    return {
        layer.name: layer
        for layer in model.layers
        for node in layer._inbound_nodes
        if any(tensor is image for tensor in node.input_tensors)
    }


def check_built(model: Any, file: str) -> None:
    """Refuses an architecture whose trained model :func:`load` would not take, so before it is trained.

    ``file`` is where the architecture lies, for the message.

    Raises:
        ModelFileError: it takes more than one picture or gives more than one vector, begins without
            ``Rescaling(1/128, offset=-1)``, or ends in probabilities.
    """
    _check_kind(Path(file), model, settings_module.CHOICES["nb_classes"])
    _check_start(Path(file), model)
    _check_end(Path(file), model)


def _check_start(path: Path, model: Any) -> None:
    readers = _first_layers(model)
    first = next(iter(readers.values())) if len(readers) == 1 else None
    if type(first).__name__ != "Rescaling":
        begins = " and ".join(f"{type(layer).__name__} {_printable(layer.name, 40)}" for layer in readers.values())
    elif (first.scale, first.offset) == (1 / 128, -1):
        return
    else:
        begins = f"Rescaling(scale={_printable(str(first.scale), 30)}, offset={_printable(str(first.offset), 30)})"
    raise ModelFileError(
        f"{path}: the model begins with {begins or 'nothing'} instead of Rescaling(1/128, offset=-1), which the files "
        "for devices have as their input's scale; put that layer first and train the model with it"
    )


def _check_end(path: Path, model: Any) -> None:
    layer, activation = _end(model)
    if activation in PROBABILITIES:
        last = f"{type(layer).__name__} {_printable(layer.name, 40)}"
        raise ModelFileError(
            f"{path}: the model ends in probabilities ({last}), but logits are needed; save it without softmax or "
            "sigmoid at its end"
        )


def _end(model: Any) -> tuple[Any, str]:
    """The layer that makes the last values, behind it nothing but form or an average, and its activation."""
    tensor = model.outputs[0]
    while True:
        layer, node_index, _ = tensor._keras_history
        kind, activation = type(layer).__name__, getattr(getattr(layer, "activation", None), "__name__", "linear")
        if kind == "Softmax":
            return layer, "softmax"
        if kind not in NEUTRAL_ENDS or activation != "linear":
            return layer, activation
        tensor = layer._inbound_nodes[node_index].input_tensors[0]


def _check_values(path: Path, model: Any, keras: Any) -> None:
    bad = [weight.path for weight in model.weights if not np.isfinite(keras.ops.convert_to_numpy(weight)).all()]
    if bad:
        raise ModelFileError(
            f"{path}: {len(bad)} of the model's weights are not finite ({_printable(bad[0], 60)}); "
            "take another file or train it anew"
        )
    # Finite weights still make no finite logits where a variance is negative.
    logits = model(np.zeros((1, *model.input_shape[1:]), np.float32), training=False)
    if not np.isfinite(keras.ops.convert_to_numpy(logits)).all():
        raise ModelFileError(f"{path}: the model gives no finite logits for a black picture; train it anew")
