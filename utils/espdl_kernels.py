"""Integer arithmetic of ESP-DL's operators on numpy arrays, exact: floats only carry whole numbers.

Pictures are (N, H, W, C). Padding adds zeros, ``pads`` are those of ONNX: top, left, bottom, right.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Whole numbers below these are exact, half of one added.
_EXACT_FLOAT32 = 2**23
_EXACT_FLOAT64 = 2**52


def half_up(values: np.ndarray) -> np.ndarray:
    """Rounds halves up: -1.5 becomes -1."""
    return np.floor(values + values.dtype.type(0.5))


def half_even(values: np.ndarray) -> np.ndarray:
    """Rounds halves to the even neighbour: -1.5 becomes -2."""
    return np.rint(values)


def saturated(values: np.ndarray, dtype: str) -> np.ndarray:
    """Whole numbers as ``dtype``; what is too large becomes the largest."""
    ends = np.iinfo(dtype)
    return np.clip(values, ends.min, ends.max).astype(dtype)


def accumulator_type(inputs: np.ndarray, weights: np.ndarray, bias: np.ndarray | None) -> type[np.floating]:
    """The faster float type in which sums of products, in any order, are exact.

    Args:
        weights: the last axis counts the filters, or (H, W, N, 1) of a depthwise convolution.

    Raises:
        OverflowError: there is none.
    """
    filters = weights.shape[-2:] if weights.shape[-1] == 1 else weights.shape[-1:]
    sums = np.abs(weights.astype(np.float64)).reshape(-1, *filters).sum(axis=0)
    largest = -float(np.iinfo(inputs.dtype).min) * sums.max()
    if bias is not None:
        largest += np.abs(bias.astype(np.float64)).max()
    if largest >= _EXACT_FLOAT64:
        raise OverflowError("the accumulators are too large")
    return np.float32 if largest < _EXACT_FLOAT32 else np.float64


def convolution(x: np.ndarray, weights: np.ndarray, strides: tuple, dilations: tuple, pads: tuple) -> np.ndarray:
    """Accumulators (N, H, W, filters); ``weights`` is (H, W, C, filters), both of one float type."""
    reach = [(size - 1) * step + 1 for size, step in zip(weights.shape[:2], dilations, strict=True)]
    windows = sliding_window_view(_padded(x, pads), reach, axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, weights[..., 0].size)
    return (columns @ weights.reshape(-1, weights.shape[-1])).reshape(*windows.shape[:3], -1)


def depthwise_convolution(x, weights: np.ndarray, strides: tuple, dilations: tuple, pads: tuple) -> np.ndarray:
    """Accumulators (N, H, W, C); ``weights`` is (H, W, C, 1), both of one float type."""
    taps = _taps(_padded(x, pads), weights.shape[:2], strides, dilations)
    return sum(tap * filters for tap, filters in zip(taps, weights.reshape(-1, weights.shape[2]), strict=True))


def maximum(x: np.ndarray, size: tuple, strides: tuple, dilations: tuple, pads: tuple) -> np.ndarray:
    """Largest value of every window, padding never being the largest."""
    taps = _taps(_padded(x, pads, np.iinfo(x.dtype).min), size, strides, dilations)
    largest = next(taps).copy()
    for tap in taps:
        np.maximum(largest, tap, out=largest)
    return largest


def total(x: np.ndarray, size: tuple, strides: tuple, pads: tuple) -> np.ndarray:
    """Sum of every window, float64."""
    return sum(_taps(_padded(x.astype(np.float64), pads), size, strides, (1, 1)))


def _padded(x: np.ndarray, pads: tuple, value: int = 0) -> np.ndarray:
    top, left, bottom, right = pads
    if not any(pads):
        return x
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _taps(x: np.ndarray, size: tuple, strides: tuple, dilations: tuple) -> Iterator[np.ndarray]:
    """For every place in the window what lies there, (N, H, W, C)."""
    reach = [(count - 1) * step for count, step in zip(size, dilations, strict=True)]
    height, width = (x.shape[1] - reach[0], x.shape[2] - reach[1])
    if min(height, width, *size) < 1:
        raise ValueError("window larger than the picture, or empty")
    for row in range(0, reach[0] + 1, dilations[0]):
        for column in range(0, reach[1] + 1, dilations[1]):
            yield x[:, row : row + height : strides[0], column : column + width : strides[1]]
