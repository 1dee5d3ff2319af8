"""The gate: whether a device accepts a given TFLite file, and why not."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils import confidence, micro, targets, tflite_file
from utils.targets import Target
from utils.tflite_file import FileFacts, Node

MAX_PICTURES = 200  # what the gate runs at most; TFLite Micro reads some hundred pictures a second here
# Share of output values that TFLite Micro and the reference kernels must agree on. Right kernels round a value in a
# hundred differently (measured: 98.3 % equal at worst, on untrained weights); another rounding leaves 89 % or less.
MIN_EQUAL = 0.97
# Steps of 1/256 that an 8-bit softmax may be off: TFLite Micro looks exponentials up in other tables (measured: 4).
SOFTMAX_STEPS = 5
# Share and steps of networks with sigmoids: weighing channels (squeeze and excite) these make up to four steps of one
# of their input, which dense layers round differently, and move whole channels. Measured on eleven trained ones with
# two or three of these: of 200 pictures' outputs 96.2 % equal at worst, four steps off at most.
SIGMOID_EQUAL, SIGMOID_STEPS = 0.92, 8
# What an architecture may have in place of layers whose operators a device lacks.
INSTEAD = {
    **dict.fromkeys(("MEAN", "REDUCE_MAX"), "MaxPooling2D(x.shape[1:3]) and Flatten"),
    **dict.fromkeys(("HARD_SWISH", "LOGISTIC", "TANH"), "ReLU or LeakyReLU"),
    **{"AVERAGE_POOL_2D": "MaxPooling2D", "CONCATENATION": "Add"},
    # Also of a batch normalisation that has nothing to be folded into.
    "DEPTHWISE_CONV_2D": "Conv2D, and BatchNormalization only right behind one without activation",
    # Of a ReLU that nothing before it can take in; of ZeroPadding2D.
    **{"RELU": "LeakyReLU", "PAD": 'padding="same"'},
}
DENSE_MULTIPLE = 16  # inputs that optimised kernels read at once


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


def check(target: str, content: bytes, nb_classes: int, soft_labels: bool, images: np.ndarray | None = None) -> Verdict:
    """Checks a file against the table, then in TFLite Micro if that is installed.

    Args:
        target: a name in ``targets.TARGETS``.
        content: the TFLite file.
        nb_classes: number of classes that the model was trained for.
        soft_labels: trained on targets that neighbouring classes share.
        images: pictures ``(N, H, W, C)`` uint8 to compare TFLite Micro with LiteRT's reference kernels on, the first
            200 are used; grey ones also serve a file that takes RGB.

    Raises:
        TargetError: unknown target.
        FileError: no TFLite file.
    """
    device = targets.get(target)
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
            f"labels doesn't give; train with LABEL_SPREAD = {targets.SOFT_SPREAD:g} or on 100 classes"
        )
    if nb_classes in device.needs_softmax and not facts.gives_probabilities:
        yield (
            f"{device.name} takes the ratio of neighbouring outputs, so {nb_classes} of them must be probabilities; "
            "the file ends in logits, add a softmax"
        )


def _inside(device: Target, facts: FileFacts) -> Iterator[str]:
    for operator in facts.operators:
        if operator not in device.operators:
            mend = f": take {INSTEAD[operator]}" if operator in INSTEAD else ""
            yield f"operator {operator} is not compiled into {device.description}{mend}"
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


def _grouped(node: Node) -> bool:
    return node.filter_shape[-1] != node.input_shape[-1]


def _strided(node: Node) -> bool:
    return max(node.stride_h, node.stride_w) > 1


def _padded_unevenly(node: Node) -> bool:
    # On an even size SAME pads one pixel more behind than in front; a 1x1 filter needs no padding.
    even = any(size % 2 == 0 for size in node.input_shape[1:3])
    return _strided(node) and node.padding == "SAME" and even and max(node.filter_shape[1:3]) > 1


# What kernels for chips have been seen to compute wrongly where the plain kernels of this computer don't.
_CHIP_TROUBLE = {
    "CONV_2D": [
        (_padded_unevenly, "a convolution with stride 2 and SAME padding on an even size is wrong on chips"),
        # esp-tflite-micro's kernels/esp_nn/conv.cc (2025) takes the input's channels for those of a group.
        (_grouped, "a convolution in groups is wrong on chips"),
    ],
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
            step = _output_step(facts, expected)
            expected, found = (values.astype(np.float64) / step for values in (expected, micro.run(content, inputs)))
            # Half a step: in files with float outputs equal steps differ by rounding.
            equal = float(np.mean(np.abs(found - expected) < 0.5))
            checked_with += f", {equal:.2%} of outputs equal"
            reasons = list(_differences(expected, found, equal, *_explained(facts)))
    except micro.MicroError as error:
        return None, checked_with, [str(error)]
    if device.max_arena_bytes and arena > device.max_arena_bytes:
        reasons.append(f"the file needs {arena:,} bytes of memory; {device.name} has {device.max_arena_bytes:,}")
    return arena, checked_with, reasons


def _explained(facts: FileFacts) -> tuple[float, int]:
    """What rounding alone explains: the share of outputs that are equal, and by how many steps one may be off."""
    if "LOGISTIC" in facts.operators:
        return SIGMOID_EQUAL, SIGMOID_STEPS
    return MIN_EQUAL, SOFTMAX_STEPS if facts.gives_probabilities else 1


def _differences(expected: np.ndarray, found: np.ndarray, equal: float, needed: float, allowed: int) -> Iterator[str]:
    """What is wrong with outputs, given in steps, of which one may be ``allowed`` steps off; ``equal``: their share."""
    if equal < needed:
        yield f"only {equal:.1%} of the outputs in TFLite Micro equal LiteRT's; {needed:.0%} are needed"
    off = np.abs(found - expected).max()
    if off >= allowed + 0.5:
        most = f"{allowed} is the most that rounding explains"
        yield f"an output in TFLite Micro is {off:.0f} steps off LiteRT's; {most}"
    clear = np.minimum(confidence.lead(expected), confidence.lead(found)) > 2 * (allowed - 1)
    moved = clear & (expected.argmax(axis=1) != found.argmax(axis=1))
    if moved.any():
        yield f"TFLite Micro reads {int(moved.sum())} of {len(found)} pictures differently from LiteRT"


def _output_step(facts: FileFacts, outputs: np.ndarray) -> float:
    """Difference between two neighbouring output values; a float file gets a thousandth of its largest one."""
    if facts.output.dtype != "float32":
        return 1.0
    # Only a DEQUANTIZE makes floats of what has a scale.
    return facts.nodes[-1].input_scale or max(float(np.abs(outputs).max()), 1e-6) / 1000
