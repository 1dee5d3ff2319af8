"""What each device accepts, and the gate that says whether it accepts a given TFLite file and why not.

The table holds facts about firmware, not wishes: a limit that isn't known is None.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from utils import micro, tflite_file
from utils.errors import UserError
from utils.settings import Settings, SettingsError
from utils.tflite_file import FileFacts, Node

MAX_PICTURES = 200  # what the gate runs at most; TFLite Micro reads some hundred pictures a second here
# Share of output values that TFLite Micro and the reference kernels must agree on. Right kernels round a value in a
# hundred differently (measured: 98.3 % equal at worst, on untrained weights); another rounding leaves 89 % or less.
MIN_EQUAL = 0.97
# Labels are hard so far: no model is trained on targets that neighbouring classes share.
SOFT_LABELS = False
DENSE_MULTIPLE = 16  # inputs that optimised kernels read at once


class TargetError(UserError):
    """Unknown device or unusable file name. The message names what is known."""


# Kernels of TFLite Micro that a classifier of digits may need. It has none for GELU, TOPK_V2, SELECT, WHERE, CONV_3D
# and whatever is CUSTOM.
MICRO_OPERATORS = frozenset(
    {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"),
        *("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "REDUCE_MAX", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
        *("ADD", "SUB", "MUL", "CONCATENATION", "PAD", "QUANTIZE", "DEQUANTIZE"),
        *("RESHAPE", "SHAPE", "STRIDED_SLICE", "PACK", "SQUEEZE", "EXPAND_DIMS"),
        *("RELU", "RELU6", "LEAKY_RELU", "PRELU", "ELU", "HARD_SWISH", "LOGISTIC", "TANH", "SOFTMAX"),
    }
)


@dataclass(frozen=True)
class Target:
    """One device. None, or an empty set, means that it sets no limit.

    ``io_type`` is what ``export.quantized_tflite`` is to be asked for, None for QUANTIZED_IO_TYPE; ``rgb``: a grey
    model is wrapped so that its file takes RGB. ``outputs`` says what the firmware makes of a number of outputs; of
    those, ``needs_soft_labels`` must have been trained on targets shared between neighbours, and ``needs_softmax``
    must come as probabilities instead of logits. ``float_inside``: float kernels are compiled in.
    """

    name: str
    description: str
    file_pattern: str
    companion_pattern: str | None
    input_types: frozenset[str]
    output_types: frozenset[str]
    operators: frozenset[str]
    channels: tuple[int, ...] | None = None
    height: int | None = None
    width: int | None = None
    max_file_bytes: int | None = None
    max_arena_bytes: int | None = None
    io_type: str | None = None
    rgb: bool = False
    float_inside: bool = False
    outputs: dict[int, str] = field(default_factory=dict)
    needs_soft_labels: frozenset[int] = frozenset()
    needs_softmax: frozenset[int] = frozenset()


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="tflite_micro",
            description="any firmware with TFLite Micro",
            file_pattern="{model}_quantized.tflite",
            companion_pattern=None,
            input_types=frozenset({"int8", "uint8"}),
            output_types=frozenset({"int8", "uint8"}),
            operators=MICRO_OPERATORS,
        ),
        Target(
            name="ai_on_the_edge",
            description="the AI-on-the-edge-device firmware",
            # Named like the firmware's own files, which its lists go by; s2 is the size of model, q says quantised.
            file_pattern="dig-class{classes}_{version}_s2_q.tflite",
            companion_pattern=None,
            input_types=frozenset({"float32"}),
            output_types=frozenset({"float32"}),
            operators=frozenset(
                {
                    *("CONV_2D", "MAX_POOL_2D", "FULLY_CONNECTED", "RESHAPE", "SOFTMAX"),
                    *("MUL", "ADD", "LEAKY_RELU", "QUANTIZE", "DEQUANTIZE"),
                }
            ),
            channels=(3,),
            height=32,
            width=20,
            max_file_bytes=int(1.3 * 2**20),
            max_arena_bytes=800 * 2**10,
            io_type="float32",
            rgb=True,
            float_inside=True,
            outputs={
                10: "a digit and the share of its neighbour",
                11: 'digits and "not readable"',
                100: "tenths 0.0..9.9",
            },
            # It reads the tenth off the ratio of two neighbouring outputs: meaningless for hard targets and for logits.
            needs_soft_labels=frozenset({10}),
            needs_softmax=frozenset({10}),
        ),
        Target(
            name="esphome",
            description="the meter reader component of ESPHome",
            file_pattern="{model}_esphome.tflite",
            # The component looks for the operators in a text of the same name.
            companion_pattern="{model}_esphome.txt",
            input_types=frozenset({"uint8"}),
            output_types=frozenset({"uint8"}),
            operators=MICRO_OPERATORS,
            channels=(1, 3),
            # The largest tensor_arena_size that its configuration takes.
            max_arena_bytes=1000 * 2**10,
            io_type="uint8",
        ),
    )
}


@dataclass(frozen=True)
class Verdict:
    """Whether a device accepts a file: ``reasons`` against it, ``warnings`` about what to compare on the chip.

    ``arena_bytes`` is measured on this computer, None if not; ``checked_with`` says how far the check went.
    """

    target: str
    accepted: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    arena_bytes: int | None
    checked_with: str


def get(name: str) -> Target:
    """One device of the table.

    Raises:
        TargetError: there is none of that name.
    """
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}: known are {', '.join(TARGETS)}")
    return TARGETS[name]


def check(settings: Settings) -> None:
    """Refuses before training what a device of ``DEPLOY_TARGETS`` would refuse after it.

    Raises:
        SettingsError: names the parameter, the device and what it takes.
        TargetError: unknown device.
    """
    for device in map(get, settings.deploy_targets):
        io_type = device.io_type or settings.quantized_io_type
        if io_type not in device.input_types:
            known = " or ".join(sorted(device.input_types))
            raise SettingsError(f"QUANTIZED_IO_TYPE = {io_type!r}: {device.name} in DEPLOY_TARGETS takes {known}")
        height, width = device.height or settings.input_height, device.width or settings.input_width
        if (height, width) != settings.input_shape[:2]:
            raise SettingsError(f"{device.name} in DEPLOY_TARGETS needs INPUT_HEIGHT = {height}, INPUT_WIDTH = {width}")
        if settings.nb_classes in device.needs_soft_labels and not SOFT_LABELS:
            meaning = device.outputs[settings.nb_classes]
            raise SettingsError(
                f"NB_CLASSES = {settings.nb_classes}: {device.name} in DEPLOY_TARGETS reads these outputs as {meaning},"
                " which training on hard labels does not give; set it to 100"
            )
        _fill(device.file_pattern, "model", settings.nb_classes, settings.model_version)


def file_name(target: str, model_name: str, nb_classes: int, version: str = "0001") -> str:
    """Name under which the device looks for the file; ``version`` (such as "0182") is for ai_on_the_edge alone.

    Raises:
        TargetError: unknown target, or a name that is no plain file name.
    """
    return _fill(get(target).file_pattern, model_name, nb_classes, version)


def companion_name(target: str, model_name: str, nb_classes: int, version: str = "0001") -> str | None:
    """Name of the text next to the file, None if the device wants none; see :func:`file_name`."""
    pattern = get(target).companion_pattern
    return None if pattern is None else _fill(pattern, model_name, nb_classes, version)


def _fill(pattern: str, model_name: str, nb_classes: int, version: str) -> str:
    for text in (model_name, version):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
            raise TargetError(f"{text!r} can't be part of a file name: use letters, digits, dots, - and _")
    return pattern.format(model=model_name, classes=nb_classes, version=version)


def gate(target: str, content: bytes, nb_classes: int, soft_labels: bool, images: np.ndarray | None = None) -> Verdict:
    """Checks a file against the table, then in TFLite Micro if that is installed.

    Args:
        target: a name in ``TARGETS``.
        content: the TFLite file.
        nb_classes: number of classes that the model was trained for.
        soft_labels: trained on targets that neighbouring classes share.
        images: pictures ``(N, H, W, C)`` uint8 to compare TFLite Micro with LiteRT's reference kernels on, the first
            200 are used; grey ones also serve a file that takes RGB.

    Raises:
        TargetError: unknown target.
        FileError: no TFLite file.
    """
    device = get(target)
    facts = tflite_file.read(content)
    reasons = [*_ends(device, facts), *_classes(device, facts, nb_classes, soft_labels), *_inside(device, facts)]
    if device.max_file_bytes and len(content) > device.max_file_bytes:
        reasons.append(f"the file has {len(content):,} bytes; {target} takes {device.max_file_bytes:,}")
    warnings = tuple(dict.fromkeys(_warnings(device, facts)))
    # Native code gets only what has passed: it is less careful with odd files.
    if reasons:
        return Verdict(target, False, tuple(reasons), warnings, None, "operator table")
    if not micro.available():
        return Verdict(target, True, (), warnings, None, "operator table; tflite-micro is not installed")
    arena, checked_with, reasons = _on_micro(device, content, facts, images)
    return Verdict(target, not reasons, tuple(reasons), warnings, arena, checked_with)


def _ends(device: Target, facts: FileFacts) -> Iterator[str]:
    for end, tensor, known in (
        ("input", facts.input, device.input_types),
        ("output", facts.output, device.output_types),
    ):
        if tensor.dtype not in known:
            yield f"the {end} is {tensor.dtype}; {device.name} takes {' or '.join(sorted(known))}"
    shape = facts.input.shape
    if len(shape) != 4 or shape[0] != 1:
        yield f"the input has the shape {shape}; one picture (1, height, width, channels) is needed"
        return
    _, height, width, channels = shape
    if (device.height or height, device.width or width) != (height, width):
        yield (
            f"the input is {height} high and {width} wide; {device.name} feeds pictures "
            f"{device.height} high and {device.width} wide"
        )
    if device.channels and channels not in device.channels:
        wanted = " or ".join(map(str, device.channels)) + " (RGB)" * device.rgb
        yield f"the input has {channels} channel{'s' * (channels > 1)}; {device.name} feeds {wanted}"


def _classes(device: Target, facts: FileFacts, nb_classes: int, soft_labels: bool) -> Iterator[str]:
    shape = facts.output.shape
    if shape != (1, nb_classes):
        yield f"the output has the shape {shape}; (1, {nb_classes}) is needed for {nb_classes} classes"
    if device.outputs and nb_classes not in device.outputs:
        known = ", ".join(f"{count} ({meaning})" for count, meaning in device.outputs.items())
        yield f"{device.name} can't decode {nb_classes} outputs; it knows {known}"
    if nb_classes in device.needs_soft_labels and not soft_labels:
        yield (
            f"{device.name} reads {nb_classes} outputs as {device.outputs[nb_classes]}, which a model trained on hard "
            "labels doesn't give; train on soft neighbour targets or on 100 classes"
        )
    if nb_classes in device.needs_softmax and not facts.gives_probabilities:
        yield (
            f"{device.name} takes the ratio of neighbouring outputs, so {nb_classes} of them must be probabilities; "
            "the file ends in logits, add a softmax"
        )


def _inside(device: Target, facts: FileFacts) -> Iterator[str]:
    for operator in facts.operators:
        if operator not in device.operators:
            yield f"operator {operator} is not compiled into {device.description}"
    if facts.float_tensors and not device.float_inside:
        count = len(facts.float_tensors)
        yield f"tensor {facts.float_tensors[0]} ({count} in all) is float; {device.name} needs integers throughout"


def _warnings(device: Target, facts: FileFacts) -> Iterator[str]:
    if facts.float_tensors and device.float_inside:
        yield f"{len(facts.float_tensors)} tensors are float: slower, and four times the memory of integers"
    for node in facts.nodes:
        for applies, text in _CHIP_TROUBLE.get(node.operator, ()):
            if applies(node):
                yield f"{text.format(inputs=node.filter_shape[-1])}; compare the golden outputs on the device"


def _strided(node: Node) -> bool:
    return max(node.stride_h, node.stride_w) > 1


def _padded_unevenly(node: Node) -> bool:
    # On an even size SAME pads one pixel more behind than in front; a 1x1 filter needs no padding.
    even = any(size % 2 == 0 for size in node.input_shape[1:3])
    return _strided(node) and node.padding == "SAME" and even and max(node.filter_shape[1:3]) > 1


# What kernels for chips have been seen to compute wrongly where the plain kernels of this computer don't.
_CHIP_TROUBLE = {
    "CONV_2D": [(_padded_unevenly, "a convolution with stride 2 and SAME padding on an even size is wrong on chips")],
    "DEPTHWISE_CONV_2D": [(_strided, "a depthwise convolution with stride 2 is wrong on some chips")],
    "FULLY_CONNECTED": [
        (
            lambda node: node.filter_shape[-1] % DENSE_MULTIPLE,
            f"a dense layer of {{inputs}} inputs, no multiple of {DENSE_MULTIPLE}, is wrong on some chips",
        )
    ],
}


def _on_micro(
    device: Target, content: bytes, facts: FileFacts, images: np.ndarray | None
) -> tuple[int | None, str, list[str]]:
    count = 0 if images is None else min(len(images), MAX_PICTURES)
    checked_with = f"TFLite Micro, {count} pictures compared" if count else "TFLite Micro, loaded only"
    try:
        # LiteRT first, if only on a black picture: it looks closely at a graph that TFLite Micro takes on trust.
        inputs = micro.inputs_for(facts, images[:count] if count else np.zeros(facts.input.shape, np.uint8))
        expected = micro.reference(content, inputs)
        arena = micro.arena_bytes(content)
        reasons = []
        if count:
            steps = _steps_off(facts, expected, found := micro.run(content, inputs))
            checked_with += f", {np.mean(steps < 0.5):.2%} of outputs equal"
            reasons = list(_differences(steps, expected, found))
    except micro.MicroError as error:
        return None, checked_with, [str(error)]
    if device.max_arena_bytes and arena > device.max_arena_bytes:
        reasons.append(f"the file needs {arena:,} bytes of memory; {device.name} has {device.max_arena_bytes:,}")
    return arena, checked_with, reasons


def _steps_off(facts: FileFacts, expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.abs(found.astype(np.float64) - expected.astype(np.float64)) / _output_step(facts, expected)


def _differences(steps: np.ndarray, expected: np.ndarray, found: np.ndarray) -> Iterator[str]:
    # Half a step: in files with float outputs equal steps differ by rounding.
    equal = float(np.mean(steps < 0.5))
    if equal < MIN_EQUAL:
        yield f"only {equal:.1%} of the outputs in TFLite Micro equal LiteRT's; {MIN_EQUAL:.0%} are needed"
    if steps.max() >= 1.5:
        yield f"an output in TFLite Micro is {steps.max():.0f} steps off LiteRT's; 1 is the most that rounding explains"
    moved = ~(_tied(expected) | _tied(found)) & (expected.argmax(axis=1) != found.argmax(axis=1))
    if moved.any():
        yield f"TFLite Micro reads {int(moved.sum())} of {len(found)} pictures differently from LiteRT"


def _output_step(facts: FileFacts, outputs: np.ndarray) -> float:
    """Difference between two neighbouring output values; a float file gets a thousandth of its largest one."""
    last = facts.nodes[-1]
    if facts.output.dtype != "float32":
        return 1.0
    if last.operator == "DEQUANTIZE" and last.input_scale:
        return last.input_scale
    return max(float(np.abs(outputs).max()), 1e-6) / 1000


def _tied(outputs: np.ndarray) -> np.ndarray:
    return (outputs == outputs.max(axis=1, keepdims=True)).sum(axis=1) > 1
