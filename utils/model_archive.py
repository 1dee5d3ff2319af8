"""A ``.keras`` file taken apart without Keras, strangers' too: only plain layers and their weights come out of it.

It is a zip archive with a description in JSON and the weights in HDF5. Keras's own safe mode stops Python code in it,
but not every class that reads files or turns a setting over, nor a description of weights larger than memory.
"""

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils import espdl_file, runs, tflite_file
from utils.errors import UserError

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MAX_BYTES = 1 << 29  # of a file, of its unpacked parts, and of the weights
BYTES_OF_A_WEIGHT = 4
MAX_CONFIG_BYTES = 1 << 22  # the largest architecture here needs 60 kB
MAX_LAYERS = 1000
MAX_H5_OBJECTS = 20_000
MAX_NAME = 100  # characters of a model's name
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
OTHER_MAGIC = {
    (0, espdl_file.IDENTIFIER): "an ESP-DL file",
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


class ModelFileError(UserError):
    """A model file is missing, damaged, unsafe or unfit. The message names it and what to do."""


def read(path: Path, foreign: bool = False) -> tuple[str, bytes, int]:
    """The checked description (JSON) and weights (HDF5) of a file, and the number of weights.

    How the model was compiled is left out of the description. With ``foreign`` the model may have any name.

    Raises:
        ModelFileError: damaged, too large, from Keras 2, or holding more than plain layers and their weights.
    """
    with one_sentence(f"{path}: damaged or cut off; copy it again or take another file"):
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file; name a .keras file or a run folder")
        _refuse_other_kinds(path)
        if path.stat().st_size > MAX_BYTES:
            raise ModelFileError(f"{path}: {_too_large(path.stat().st_size)}")
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist())
            _check_version(path, archive)
            config = json.loads(_entry(archive, CONFIG))
            check_config(path, config, foreign)
            weights = _entry(archive, WEIGHTS)
        stored = _check_weights(path, weights)
    return json.dumps({**config, "compile_config": None}), weights, stored


@contextlib.contextmanager
def one_sentence(text: str) -> Iterator[None]:
    """Turns whatever a parser raises on a stranger's bytes into a ModelFileError that begins with ``text``."""
    try:
        yield
    except ModelFileError:
        raise
    except Exception as error:
        # zipfile, json, h5py and Keras have no common type, and raise many that they do not document.
        raise ModelFileError(f"{text} ({_short(error)})") from error


def printable(text: str, length: int = 150) -> str:
    """A stranger's text for a message: no line breaks and no terminal commands, and not long."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= length else shown[:length] + "..."


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    kind = next((kind for (at, magic), kind in OTHER_MAGIC.items() if start[at:].startswith(magic)), None)
    zipped = start.startswith(ZIP)
    if path.suffix.lower() != ".keras":
        renamed = f"a zip archive named *{path.suffix} (a Keras model is to be renamed to *.keras)"
        kind = renamed if zipped else kind or OTHER_SUFFIXES.get(path.suffix.lower(), "no .keras file")
    if kind:
        # A whole model in HDF5 is nobody's .keras file yet.
        made = "give the .keras file it was made from"
        own = "save the whole model as .keras with Keras 3" if "HDF5" in kind else made
        raise ModelFileError(
            f"{path}: this is {kind}, but a Keras 3 model is needed; {own}, or name a run folder with "
            f"{runs.BEST_MODEL_FILE}"
        )
    if not zipped:
        # A zip archive may stand behind other bytes, but Keras writes none there.
        raise ModelFileError(f"{path}: no .keras file or a damaged one; copy it again or take another file")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    missing = {CONFIG, WEIGHTS} - set(names)
    # Assets belong to layers with vocabularies; the layers that are loaded have none.
    strange = sorted({name for name in names if name not in (CONFIG, METADATA, WEIGHTS) or names.count(name) > 1})
    if strange:
        shown = printable(", ".join(strange[:3]))
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
        shown = printable(version, 20)
        raise ModelFileError(f"{path}: saved by Keras {shown}; rebuild the model with Keras 3 and save it again")


def check_config(path: Path, config: Any, foreign: bool) -> None:
    """Refuses a description that is not of plain layers in one flat model.

    Raises:
        ModelFileError: the message names the part.
    """
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ModelFileError(f"{path}: {CONFIG} describes no model; save the model with Keras 3 anew")
    _check_part(path, config, MODELS)
    name = config["config"].get("name")
    # No file is called by the name of a model that is only measured.
    if not (isinstance(name, str) and (foreign or (NAME.fullmatch(name) and len(name) <= MAX_NAME))):
        raise ModelFileError(
            f"{path}: the model's name {printable(repr(name))} becomes part of file names: save it with one of "
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
    shown = printable(".".join(str(item) for item in (module, name) if item is not None))
    also = part.get("registered_name")
    alias = f" (registered as {printable(repr(also))})" if also not in (None, name) else ""
    raise ModelFileError(
        f"{path}: the model contains {shown}{alias}, but only plain layers are loaded, for others may run code or read "
        "files; build it of Convolution, Dense and the like, in one flat model, and save it anew, or, to read pictures "
        "alone, convert it to .tflite"
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
            f"{path}: {printable(repr(name))} among its weights points out of the file or holds no numbers; "
            "save the model anew"
        )
    return child


def _too_large(size: int) -> str:
    return f"{size:,} bytes, more than the {MAX_BYTES:,} that are loaded; take a smaller model"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__, 300)
