"""The papers that go with exported files: ``manifest.json`` and a text for ESPHome.

A program that loads a file finds in the manifest what it would otherwise have to guess: what to do with a pixel, what
an output means, how much memory to set aside. :data:`SCHEMA` is the format, :func:`check` holds a manifest against it.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils import espdl_file, micro, tflite_file
from utils.chips import CHIPS
from utils.errors import UserError
from utils.espdl_file import EspdlModel
from utils.gate import Verdict
from utils.targets import TARGETS
from utils.tflite_file import FileFacts, Node, TensorFacts

FORMAT = 1
ARENA_NOTE = (
    "measured in TFLite Micro on a computer with 64-bit pointers, where it is larger than on the chip; recommended: "
    "with the scratch memory that kernels made for the chip (esp-nn) ask for at most, rounded up to 1 KiB"
)
ENCODINGS = {"int8": "int8 = pixel - 128", "uint8": "uint8 = pixel 0..255", "float32": "float32 = pixel 0..255"}
CLASS_NAMES = {10: "class = digit", 100: "class / 10 = digit.tenth"}
DECODINGS = {
    "logits": "class = index of the largest output; probabilities = softmax of the dequantised outputs",
    "probabilities": "class = index of the largest output; probabilities = the dequantised outputs",
}
CONFIDENCES = {
    10: "confidence = probability of the class",
    100: "confidence = probabilities of the class and of its two neighbours (0 is next to 99) added up",
}

# One key a line: a type, a set of the values allowed, a text the value must match (regular expression), a tuple of
# alternatives, a list (every item like its one element) or a dict (exactly these keys). ANY is any mapping of texts.
ANY = object()
FILE_SCHEMA = {
    "name": r"[A-Za-z0-9][A-Za-z0-9._-]*",
    "sha256": r"[0-9a-f]{64}",
    "bytes": int,
    "targets": [frozenset({*TARGETS, *CHIPS})],
    "input": {
        "height": int,
        "width": int,
        "channels": frozenset({1, 3}),
        "channel_order": frozenset({"GRAY", "RGB"}),
        "dtype": frozenset(ENCODINGS),
        "scale": (float, None),
        "zero_point": (int, None),
        "encoding": str,
    },
    "output": {
        "dtype": frozenset({*ENCODINGS, "int16"}),
        "scale": (float, None),
        "zero_point": (int, None),
        "count": int,
        "meaning": frozenset(DECODINGS),
    },
    "classes": {"count": int, "names": str, "decoding": str},
    "recommended_confidence": (float, None),
    "arena": {"measured_bytes": (int, None), "recommended_bytes": (int, None), "note": str},
    "operators": [str],
    "scores": ANY,
    "training": {
        "data_fingerprint": str,
        "settings_sha256": r"[0-9a-f]{64}",
        "mode": frozenset({"FLOAT", "PTQ", "QAT"}),
    },
}
SCHEMA = {"format": frozenset({FORMAT}), "files": [FILE_SCHEMA]}


class ManifestError(UserError):
    """A manifest doesn't follow the format. The message names the key."""


@dataclass(frozen=True)
class Training:
    """Where a model comes from; ``mode`` is FLOAT, PTQ or QAT."""

    data_fingerprint: str
    settings_sha256: str
    mode: str


def file_entry(
    name: str,
    content: bytes,
    nb_classes: int,
    verdict: Verdict | None,
    scores: Mapping[str, Any],
    training: Training,
    recommended_confidence: float | None = None,
) -> dict[str, Any]:
    """What the manifest says about one file.

    Args:
        name: its name in the run folder.
        content: the TFLite or, if ``name`` ends in ``.espdl``, ESP-DL file.
        nb_classes: 10 or 100.
        verdict: that of the device it is made for, by which it is accepted; None for a file of no device.
        scores: figures measured on this file, as JSON values.
        training: where the model comes from.
        recommended_confidence: 0..1, below it a reading is better thrown away.

    Raises:
        FileError, EspdlError: ``content`` is none of these.
    """
    facts = _espdl_facts(espdl_file.read(content)) if name.endswith(".espdl") else tflite_file.read(content)
    _, height, width, channels = facts.input.shape
    meaning = "probabilities" if facts.gives_probabilities else "logits"
    measured = verdict and verdict.arena_bytes
    return {
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "targets": [verdict.target] if verdict else [],
        "input": {
            "height": height,
            "width": width,
            "channels": channels,
            "channel_order": "GRAY" if channels == 1 else "RGB",
            **_number_format(facts.input),
            "encoding": ENCODINGS[facts.input.dtype],
        },
        "output": {**_number_format(facts.output), "count": facts.output.shape[-1], "meaning": meaning},
        "classes": {
            "count": nb_classes,
            "names": CLASS_NAMES[nb_classes],
            "decoding": f"{DECODINGS[meaning]}; {CONFIDENCES[nb_classes]}",
        },
        "recommended_confidence": recommended_confidence,
        "arena": {
            "measured_bytes": measured,
            "recommended_bytes": recommended_arena(measured, facts),
            "note": ARENA_NOTE,
        },
        "operators": list(facts.operators),
        "scores": dict(scores),
        "training": dict(vars(training)),
    }


def build(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``manifest.json`` from what :func:`file_entry` gave for each file.

    Raises:
        ManifestError: an entry doesn't follow the format.
    """
    manifest = {"format": FORMAT, "files": list(entries)}
    check(manifest)
    return manifest


def check(manifest: Any) -> None:
    """Holds a manifest against :data:`SCHEMA`.

    Raises:
        ManifestError: names the first key that is missing, unknown or has an impossible value.
    """
    _check(manifest, SCHEMA, "manifest")
    names = Counter(entry["name"] for entry in manifest["files"])
    for number, entry in enumerate(manifest["files"]):
        for key, wrong in _contradictions(entry, names):
            raise ManifestError(f"manifest.files[{number}].{key}: {wrong}")


def recommended_arena(measured: int | None, facts: FileFacts) -> int | None:
    """Bytes to set aside on the device for a measured arena, with the scratch memory of the hungriest operator."""
    scratch = max((_scratch(node) for node in facts.nodes), default=0)
    return None if measured is None else math.ceil((measured + scratch) / 1024) * 1024


def _scratch(node: Node) -> int:
    """What no version of esp-nn's kernels for the ESP32-S3 (``esp_nn_get_conv_scratch_size_esp32s3``) exceeds.

    The first ones widened input and filter to 16 bits, later ones keep up to two padded inputs and an aligned filter.
    """
    if node.operator not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return 0
    _, height, width, channels = node.input_shape
    filters, filter_height, filter_width, depth = node.filter_shape
    padded = (height + filter_height - 1) * (width + filter_width - 1) * channels
    kernel = filters * filter_height * filter_width * math.ceil(depth / 16) * 16
    return 2 * (padded + kernel) + 16 * channels + 4 * node.output_shape[-1] + 32


def companion_text(
    name: str, content: bytes, nb_classes: int, arena: int | None = None, recommended_confidence: float | None = None
) -> str:
    """The text next to the file ``name`` from which ESPHome's component takes the operators; ``arena`` as measured.

    ``recommended_confidence``, 0..1, is for the person who sets the component's threshold.

    Raises:
        FileError: no TFLite file.
    """
    facts = tflite_file.read(content)
    source, target = facts.input, facts.output
    recommended = recommended_arena(arena, facts)
    counts = sorted(Counter(node.operator for node in facts.nodes).items())
    colour = "grey" if source.shape[-1] == 1 else "RGB"
    lines = [
        f"Model: {name}",
        f"Size: {len(content)} bytes",
        "",
        f"Input shape: {list(source.shape)} (batch, height, width, channels: {colour})",
        f"Input type: {source.dtype} ({ENCODINGS[source.dtype]})",
        f"Output shape: {list(target.shape)}",
        f"Output type: {target.dtype} (scale {target.scale}, zero point {target.zero_point})",
        f"Classes: {nb_classes} ({CLASS_NAMES[nb_classes]})",
        f"Recommended tensor arena: {recommended // 1024} KB"
        if recommended
        else f"Recommended tensor arena: not measured, {micro.MISSING}",
        f"Recommended confidence: {'none' if recommended_confidence is None else f'{recommended_confidence:g}'}",
        f"  {CONFIDENCES[nb_classes]}",
        "",
        # The component's parser wants this heading, two spaces, and an empty line after the list.
        f"Unique operator types: {len(counts)}",
        *(f"  {operator}: {count}" for operator, count in counts),
        "",
        f"Multiply-accumulates: {facts.macs}",
    ]
    return "\n".join(lines) + "\n"


def _espdl_facts(model: EspdlModel) -> FileFacts:
    """An ESP-DL file in the terms of a TFLite file: a scale is a power of two there, and no zero point is needed."""
    ends = [
        TensorFacts(end.name, end.shape, end.dtype, 2.0 ** end.exponents[0], 0)
        for end in (*model.inputs, *model.outputs)
    ]
    operators = sorted({node.operator for node in model.nodes})
    return FileFacts(*ends, tuple(operators), (), (), 0)


def _number_format(tensor: TensorFacts) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "scale": tensor.scale, "zero_point": tensor.zero_point}


def _check(value: Any, wanted: Any, path: str) -> None:
    if isinstance(wanted, tuple):
        wanted = next((option for option in wanted if (option is None) == (value is None)), wanted[0])
    if wanted is None:
        return
    if isinstance(wanted, dict):
        _check_keys(value, wanted, path)
    elif isinstance(wanted, list):
        _need(isinstance(value, list), path, "needs a list")
        for number, item in enumerate(value):
            _check(item, wanted[0], f"{path}[{number}]")
    else:
        _check_single(value, wanted, path)


def _check_keys(value: Any, wanted: dict, path: str) -> None:
    _need(isinstance(value, dict), path, "needs an object")
    for key in wanted:
        _need(key in value, f"{path}.{key}", "is missing")
    for key in value:
        _need(key in wanted, f"{path}.{key}", "is unknown")
        _check(value[key], wanted[key], f"{path}.{key}")


def _check_single(value: Any, wanted: Any, path: str) -> None:
    if wanted is ANY:
        _need(isinstance(value, dict) and all(isinstance(key, str) for key in value), path, "needs an object")
    elif isinstance(wanted, frozenset):
        # True == 1 in Python; JSON keeps them apart.
        known = not isinstance(value, bool | list | dict) and value in wanted
        _need(known, path, f"{value!r} is none of {', '.join(map(repr, sorted(wanted)))}")
    elif isinstance(wanted, str):
        _need(isinstance(value, str) and re.fullmatch(wanted, value), path, f"{value!r} has not the form {wanted}")
    elif wanted is float:
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _need(right, path, f"{value!r} is no number")
    else:
        _need(type(value) is wanted, path, f"{value!r} is not of type {wanted.__name__}")


def _need(condition: Any, path: str, text: str) -> None:
    if not condition:
        raise ManifestError(f"{path}: {text}")


def _contradictions(entry: dict[str, Any], names: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    source, arena, confidence = entry["input"], entry["arena"], entry["recommended_confidence"]
    if names[entry["name"]] > 1:
        yield "name", f"{entry['name']} occurs twice"
    for key, number in (
        ("bytes", entry["bytes"]),
        ("input.height", source["height"]),
        ("input.width", source["width"]),
    ):
        if number < 1:
            yield key, f"{number} is less than 1"
    if source["channel_order"] != ("GRAY" if source["channels"] == 1 else "RGB"):
        yield "input.channel_order", f"{source['channel_order']} doesn't go with {source['channels']} channels"
    if entry["classes"]["count"] != entry["output"]["count"]:
        yield "classes.count", f"{entry['classes']['count']} classes but {entry['output']['count']} outputs"
    if confidence is not None and not 0 <= confidence <= 1:
        yield "recommended_confidence", f"{confidence} lies outside 0..1"
    if (arena["measured_bytes"] or 0) > (arena["recommended_bytes"] or 0):
        yield "arena.recommended_bytes", "is less than measured_bytes"
