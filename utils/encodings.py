"""What a model file takes and gives: which range of numbers stands for a pixel, and what its outputs mean.

Files made elsewhere say little of that. What they do say is read off the input's scale, the first operator and the
number of outputs; what they don't say is left open (None) and has to be tried or assumed.
"""

from typing import NamedTuple

import numpy as np

from utils import labels, micro
from utils.errors import UserError
from utils.tflite_file import FileFacts, First, TensorFacts

NOT_READABLE = "N"
RANGE_TOLERANCE = 0.1  # share of the input type's values by which the ends of a range may be off
# Above it a factor can't bring pixels 0..255 near 1, and below it a shift is none of raw pixels.
LARGEST_FACTOR = 0.1
SMALLEST_SHIFT = 2.0
OUTPUTS = {2: "sine and cosine", 10: "digits", 11: "digits and N", labels.NB_TENTHS: "tenths"}


class EncodingError(UserError):
    """A file takes no pixels or gives no digits that are understood."""


class PixelRange(NamedTuple):
    """What a network was fed with: ``factor * pixel + offset`` of a pixel 0..255."""

    name: str
    factor: float
    offset: float


RAW = PixelRange("0..255", 1.0, 0.0)
PIXEL_RANGES = (
    RAW,
    PixelRange("0..1", 1 / 255, 0.0),
    PixelRange("-1..1", 1 / 128, -1.0),
    PixelRange("-1..1", 1 / 127.5, -1.0),
)
TRIED = (RAW, PIXEL_RANGES[1], PIXEL_RANGES[3])  # the two kinds of -1..1 differ by less than half a pixel


def pixel_range(facts: FileFacts) -> PixelRange | None:
    """The range that a TFLite file takes, None if it doesn't say.

    Integers say it by their scale and zero point. A float input says it where it is quantised at once, or where the
    first operator scales or shifts what can only be raw pixels (a rescaling or a batch normalisation).

    Raises:
        EncodingError: an unknown type, or a scale that fits none of the ranges.
    """
    if facts.input.dtype != "float32":
        return _fitting(facts.input)
    return None if facts.first is None else _of_first(facts.first)


def encode(tensor: TensorFacts, images: np.ndarray, pixels: PixelRange | None = None) -> np.ndarray:
    """Pixels (N, H, W, C) uint8 as an input takes them: in the range ``pixels``, by default the one its scale fits.

    A float input gets the pixel itself by default.

    Raises:
        EncodingError: an unknown type, or a scale that fits none of the ranges.
    """
    if tensor.dtype == "float32":
        return _table(pixels or RAW).astype(np.float32)[images]
    pixels = pixels or _fitting(tensor)
    if tensor.scale is None:
        return micro.encode(images, tensor.dtype)
    ends = np.iinfo(tensor.dtype)
    return _quantised(tensor, pixels).clip(ends.min, ends.max).astype(tensor.dtype)[images]


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


def probabilities(outputs: np.ndarray, last: str) -> np.ndarray:
    """Real outputs (N, outputs) as shares of the classes (N, classes) float64, rows summing to 1.

    Args:
        outputs: sine and cosine, logits or probabilities.
        last: ``softmax`` or ``sigmoid`` if that made them, anything else for logits.
    """
    outputs = outputs.astype(np.float64)
    if outputs.shape[1] == 2:
        return _around(outputs)
    if last == "softmax":
        return outputs
    # Infinite ones become NaN, which the caller refuses.
    with np.errstate(invalid="ignore"):
        powers = outputs if last == "sigmoid" else np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def _around(outputs: np.ndarray) -> np.ndarray:
    """The nearest tenth gets the length of the vector (sine, cosine), at most 1, the others share what is left."""
    turn = np.arctan2(outputs[:, 0], outputs[:, 1]) / (2 * np.pi)
    length = np.hypot(outputs[:, 0], outputs[:, 1]).clip(0.02, 1)[:, None]
    shares = np.repeat((1 - length) / (labels.NB_TENTHS - 1), labels.NB_TENTHS, axis=1)
    # What is no number stays so in the lengths, for the caller to refuse.
    tenths = np.rint(np.nan_to_num(turn) * labels.NB_TENTHS).astype(int) % labels.NB_TENTHS
    np.put_along_axis(shares, tenths[:, None], length, axis=1)
    return shares


def _fitting(tensor: TensorFacts) -> PixelRange:
    if tensor.scale is None and tensor.dtype in ("int8", "uint8"):
        return RAW
    if tensor.dtype not in ("int8", "uint8", "int16") or tensor.scale is None or not tensor.scale > 0:
        raise EncodingError(f"the model's input is {tensor.dtype}; float32, int8, uint8 and int16 are understood")
    ends = np.iinfo(tensor.dtype)
    tables = [_quantised(tensor, pixels) for pixels in PIXEL_RANGES]
    misses = [abs(table[0] - ends.min) + abs(table[-1] - ends.max) for table in tables]
    best = int(np.argmin(misses))
    if misses[best] > RANGE_TOLERANCE * (ends.max - ends.min):
        raise EncodingError(f"the input's scale {tensor.scale:g} and zero point {tensor.zero_point} fit no pixels")
    return PIXEL_RANGES[best]


def _of_first(first: First) -> PixelRange | None:
    if first.operator == "QUANTIZE":
        try:
            return _fitting(first.output)
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


def _quantised(tensor: TensorFacts, pixels: PixelRange) -> np.ndarray:
    return np.round(_table(pixels) / tensor.scale) + tensor.zero_point
