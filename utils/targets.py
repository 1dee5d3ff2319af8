"""What each device accepts.

The table holds facts about firmware, not wishes: a limit that isn't known is None.
"""

import re
from dataclasses import dataclass, field

from utils.errors import UserError
from utils.settings import Settings, SettingsError

# LABEL_SPREAD from which on a digit gives its neighbour a share at every position of the drum.
SOFT_SPREAD = 5.0


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

    ``io_type`` is what ``export.integer_tflite`` is to be asked for, None for QUANTIZED_IO_TYPE; ``rgb``: a grey
    model is wrapped so that its file takes RGB. ``outputs`` says what the firmware makes of a number of outputs; of
    those, ``needs_soft_labels`` must have been trained on targets shared between neighbours, and ``needs_softmax``
    must come as probabilities instead of logits. ``float_inside``: float kernels are compiled in; ``has_companion``: it
    looks for the operators in a text of the file's name.
    """

    name: str
    description: str
    file_pattern: str
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
    has_companion: bool = False


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="tflite_micro",
            description="any firmware with TFLite Micro",
            file_pattern="{model}_quantized.tflite",
            input_types=frozenset({"int8", "uint8"}),
            output_types=frozenset({"int8", "uint8"}),
            operators=MICRO_OPERATORS,
        ),
        Target(
            name="ai_on_the_edge",
            description="the AI-on-the-edge-device firmware",
            # Named like the firmware's own files, which its lists go by; s2 is the size of model, q says quantised.
            file_pattern="dig-class{classes}_{version}_s2_q.tflite",
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
            has_companion=True,
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


def get(name: str) -> Target:
    """One device of the table.

    Raises:
        TargetError: there is none of that name.
    """
    # A list, as an unhashable name can't be looked up in the dict.
    if name not in list(TARGETS):
        raise TargetError(f"unknown target {name!r}: known are {', '.join(TARGETS)}")
    return TARGETS[name]


def check(settings: Settings) -> None:
    """Refuses before training what a device of ``DEPLOY_TARGETS`` would refuse after it.

    Raises:
        SettingsError: names the parameter, the device and what it takes.
        TargetError: unknown device.
    """
    for device in map(get, settings.deploy_targets if settings.quantize_model else ()):
        io_type = device.io_type or settings.quantized_io_type
        if io_type not in device.input_types:
            known = " or ".join(sorted(device.input_types))
            raise SettingsError(f"QUANTIZED_IO_TYPE = {io_type!r}: {device.name} in DEPLOY_TARGETS takes {known}")
        height, width = device.height or settings.input_height, device.width or settings.input_width
        if (height, width) != settings.input_shape[:2]:
            raise SettingsError(f"{device.name} in DEPLOY_TARGETS needs INPUT_HEIGHT = {height}, INPUT_WIDTH = {width}")
        if settings.nb_classes in device.needs_soft_labels and not soft_labels(settings):
            meaning = device.outputs[settings.nb_classes]
            raise SettingsError(
                f"NB_CLASSES = {settings.nb_classes}: {device.name} in DEPLOY_TARGETS reads these outputs as {meaning},"
                f" which training gives from LABEL_SPREAD = {SOFT_SPREAD:g} on; set that, or NB_CLASSES = 100"
            )
        _fill(device.file_pattern, "model", settings.nb_classes, settings.model_version)


def soft_labels(settings: Settings) -> bool:
    """Whether training shares every target between the two digits that the drum shows."""
    return settings.label_spread >= SOFT_SPREAD


def file_name(target: str, model_name: str, nb_classes: int, version: str) -> str:
    """Name under which the device looks for the file; ``version`` (such as "0182") is for ai_on_the_edge alone.

    Raises:
        TargetError: unknown target, or a name that is no plain file name.
    """
    return _fill(get(target).file_pattern, model_name, nb_classes, version)


def _fill(pattern: str, model_name: str, nb_classes: int, version: str) -> str:
    for text in (model_name, version):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
            raise TargetError(f"{text!r} can't be part of a file name: use letters, digits, dots, - and _")
    return pattern.format(model=model_name, classes=nb_classes, version=version)
