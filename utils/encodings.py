"""What a model file takes and gives: which range of numbers stands for a pixel, and what its outputs mean.

Files made elsewhere say little of that. What they do say is read off the input's scale, the first operator and the
number of outputs; what they don't say is left open (None) and has to be tried or assumed.
"""

from typing import NamedTuple

import numpy as np

from utils import confidence, labels, micro
from utils.errors import UserError
from utils.tflite_file import FileFacts, First, TensorFacts

NOT_READABLE = "N"
INTEGERS = ("int8", "uint8", "int16")
RANGE_TOLERANCE = 0.1  # share of a range by which the input's values may reach beyond it
LEAST_FILLED = 0.5  # share of a range that they cover; a file calibrated on dim pictures doesn't cover it all
LEAST_LIT = 0.1  # below that share of a range the pictures it was calibrated on were none, or black
# Above it a factor can't bring pixels 0..255 near 1, and below it a shift is none of raw pixels.
LARGEST_FACTOR = 0.1
SMALLEST_SHIFT = 2.0
# How a model is made one of a picture that takes batches of a size, any size, or another order of the axes.
ONE_PICTURE = (
    "convert keras.Model(picture, model(picture)) to .tflite, where picture = keras.Input((height, width, channels)); "
    "with channels first it is model(keras.layers.Permute((3, 1, 2))(picture)), without any "
    "model(keras.layers.Reshape((height, width))(picture))"
)
OUTPUTS = {2: "sine and cosine", 10: "digits", 11: "digits and N", labels.NB_TENTHS: "tenths"}


class EncodingError(UserError):
    """A file takes no pixels or gives no digits that are understood."""


class PixelRange(NamedTuple):
    """What a network was fed with: ``factor * pixel + offset`` of a pixel 0..255."""

    name: str
    factor: float
    offset: float


RAW = PixelRange("0..255", 1.0, 0.0)
UNIT = PixelRange("0..1", 1 / 255, 0.0)
OWN = PixelRange("-1..1", 1 / 128, -1.0)  # of this toolkit's networks
SIGNED = PixelRange("-1..1", 1 / 127.5, -1.0)
PIXEL_RANGES = (RAW, UNIT, OWN, SIGNED)
TRIED = (RAW, UNIT, SIGNED)  # the two kinds of -1..1 differ by less than half a pixel


def pixel_range(facts: FileFacts) -> PixelRange | None:
    """The range that a TFLite file takes, None if it doesn't say.

    Integers of 8 bits say it by their scale and zero point, those of 16 bits tell raw pixels from all others. A float
    input says it where it is quantised at once, or where the first operator scales or shifts what can only be raw
    pixels (a rescaling or a batch normalisation).

    Raises:
        EncodingError: an unknown type, or a scale that fits none of the ranges.
    """
    if facts.input.dtype != "float32":
        return fitting(facts.input)
    return None if facts.first is None else _of_first(facts.first)


def fitting(tensor: TensorFacts) -> PixelRange | None:
    """The range that an integer input's values cover, None where it may be one or the other.

    Raises:
        EncodingError: an unknown type, or a scale that fits none of the ranges.
    """
    if tensor.scale is None and tensor.dtype in ("int8", "uint8"):
        return RAW
    if tensor.dtype not in INTEGERS or tensor.scale is None or not tensor.scale > 0:
        raise EncodingError(f"the model's input is {tensor.dtype}; float32, int8, uint8 and int16 are understood")
    held = _holding(tensor)
    if not held:
        raise EncodingError(f"the input's scale {tensor.scale:g} and zero point {tensor.zero_point} fit no pixels")
    filled = {pixels: away for pixels, (away, share) in held.items() if share >= LEAST_FILLED}
    nearest = [pixels for pixels, away in filled.items() if away == min(filled.values())]
    return nearest[0] if len({pixels.name for pixels in nearest}) == 1 else None


def likeliest(tensor: TensorFacts, first: First | None = None) -> PixelRange:
    """What to assume of an input that doesn't say its range.

    The nearest range that its numbers, or those that the ``first`` operator makes of them, can stand for; raw pixels
    where floats tell nothing.
    """
    if first is not None and first.operator == "QUANTIZE":
        tensor = first.output
    if tensor.dtype not in INTEGERS or tensor.scale is None:
        return RAW
    held = _holding(tensor)
    return min(held, key=lambda pixels: held[pixels][0], default=RAW)


def encode(tensor: TensorFacts, images: np.ndarray, pixels: PixelRange) -> np.ndarray:
    """Pixels (N, H, W, C) uint8 as an input takes them, if the network was fed with the range ``pixels``."""
    if tensor.dtype == "float32":
        return _table(pixels).astype(np.float32)[images]
    if tensor.scale is None:
        return micro.encode(images, tensor.dtype)
    ends, steps = np.iinfo(tensor.dtype), np.round(_table(pixels) / tensor.scale) + tensor.zero_point
    return steps.clip(ends.min, ends.max).astype(tensor.dtype)[images]


def names(nb_outputs: int) -> tuple[str, ...]:
    """The readings of the classes in order; sine and cosine give tenths.

    Raises:
        EncodingError: that number of outputs is not understood.
    """
    if nb_outputs not in OUTPUTS:
        raise EncodingError(
            f"the model has {nb_outputs} outputs; 2 (sine and cosine), 10 (digits), 11 (digits and not readable) and "
            "100 (tenths) are understood"
        )
    if nb_outputs == 11:
        return (*labels.class_names(10), NOT_READABLE)
    return tuple(labels.class_names(labels.NB_TENTHS if nb_outputs == 2 else nb_outputs))


def nearest_digits(numbers: np.ndarray, nb_classes: int) -> np.ndarray:
    """Digits 0..9 of class numbers; of 11 classes the last, not readable, stays 10."""
    return labels.to_classes(numbers, 10) if nb_classes == labels.NB_TENTHS else numbers


def probabilities(outputs: np.ndarray, last: str) -> np.ndarray:
    """Real outputs (N, outputs) as shares of the classes (N, classes) float64, rows summing to 1.

    Args:
        outputs: sine and cosine, logits or probabilities.
        last: ``softmax`` or ``sigmoid`` if that made them, of several heads a sum too; anything else for logits.
    """
    outputs = outputs.astype(np.float64)
    if outputs.shape[1] == 2:
        return _around(outputs)
    if last not in ("softmax", "sigmoid"):
        return confidence.softmax(outputs)
    # What is no number stays so, for the caller to refuse.
    total = outputs.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        # Integers are all 0 where every sigmoid is below half a step.
        return np.where(total == 0, 1 / outputs.shape[1], outputs / total)


def _around(outputs: np.ndarray) -> np.ndarray:
    """The nearest tenth gets the length of the vector (sine, cosine), at most 1, all but its neighbours what is left.

    So that is its confidence, which counts the neighbours in.
    """
    turn = np.arctan2(outputs[:, 0], outputs[:, 1]) / (2 * np.pi)
    length = np.hypot(outputs[:, 0], outputs[:, 1]).clip(0.02, 1)[:, None]
    shares = np.repeat((1 - length) / (labels.NB_TENTHS - 3), labels.NB_TENTHS, axis=1)
    # What is no number stays so in the lengths, for the caller to refuse.
    tenths = np.rint(np.nan_to_num(turn) * labels.NB_TENTHS).astype(int) % labels.NB_TENTHS
    for tenth, share in ((tenths - 1, 0.0), (tenths, length), (tenths + 1, 0.0)):
        np.put_along_axis(shares, tenth[:, None] % labels.NB_TENTHS, share, axis=1)
    return shares


def _holding(tensor: TensorFacts) -> dict[PixelRange, tuple[float, float]]:
    """The ranges that hold the numbers of an integer input: how far the ends are away, and which share is filled."""
    ends = np.iinfo(tensor.dtype)
    low, high = ((end - tensor.zero_point) * tensor.scale for end in (ends.min, ends.max))
    held = {}
    for pixels in PIXEL_RANGES:
        first, last = _table(pixels)[[0, -1]]
        if tensor.dtype == "int16":
            # Always as far below zero as above it, so that the lower end says nothing.
            first, last, low = 0.0, 1.0 if last <= 1 else last, 0.0
        share = (high - low) / (last - first)
        if max(first - low, high - last) <= RANGE_TOLERANCE * (last - first) and share >= LEAST_LIT:
            held[pixels] = abs(first - low) + abs(last - high), share
    return held


def _of_first(first: First) -> PixelRange | None:
    if first.operator == "QUANTIZE":
        try:
            return fitting(first.output)
        except EncodingError:
            return None
    if first.constant is None:
        return None
    raw = {
        "MUL": first.constant <= LARGEST_FACTOR,
        "DIV": first.constant >= 1 / LARGEST_FACTOR,
        "ADD": first.constant >= SMALLEST_SHIFT,
        "SUB": first.constant >= SMALLEST_SHIFT,
    }
    return RAW if raw.get(first.operator) else None


def _table(pixels: PixelRange) -> np.ndarray:
    return pixels.factor * np.arange(256) + pixels.offset
