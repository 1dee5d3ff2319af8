"""Model files as strangers make them, with weights that make every reading exact.

A picture that shows tenth ``t`` is black but for its pixel number ``t``, so a dense layer is a table of outputs.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from utils import export

SIZE = (32, 20, 3)
TENTHS = np.arange(100)


def pictures(size: tuple[int, int, int] = SIZE) -> np.ndarray:
    """A picture of every tenth in order, ``(100, *size)`` uint8; every channel is the same."""
    height, width, channels = size
    images = np.zeros((100, height * width, channels), np.uint8)
    images[TENTHS, TENTHS] = 255
    return images.reshape(100, *size)


def outputs(count: int) -> np.ndarray:
    """What a right model gives for every tenth, ``(100, count)``; of 11 outputs tenths from 9.0 on are not readable."""
    if count == 2:
        angle = TENTHS / 100 * 2 * np.pi
        return np.stack([np.sin(angle), np.cos(angle)], axis=1)
    number = {100: TENTHS, 10: (TENTHS + 5) // 10 % 10, 11: np.where(TENTHS >= 90, 10, (TENTHS + 5) // 10)}[count]
    return 8.0 * np.eye(count)[number]


def table(count: int, size: tuple[int, int, int] = SIZE, gain: float = 1.0) -> np.ndarray:
    """Weights (pixels, count) that answer with :func:`outputs` where a bright pixel is worth ``1 / gain``."""
    weights = np.zeros((size[0] * size[1], size[2], count))
    weights[:100] = outputs(count)[:, None] * gain / size[2]
    return weights.reshape(-1, count)


def network(count: int, size: tuple[int, int, int] = SIZE, start: Callable | None = None, gain: float = 1 / 255,
            bias: float = 0.0, end: str | None = None) -> keras.Model:  # fmt: skip
    """A flat network of a first layer, if any, the table and an activation, if any."""
    image = keras.Input(size)
    x = start(image) if start else image
    dense = layers.Dense(count, activation=end)
    model = keras.Model(image, dense(layers.Flatten()(x)), name="stranger")
    weights = table(count, size, gain)
    dense.set_weights([weights, bias * weights.sum(axis=0)])
    return model


def picky(low: float) -> keras.Model:
    """A network for 10 classes that reads rightly only if dark is ``low`` and bright is 1, and doesn't say so."""
    image = keras.Input(SIZE)
    flat = layers.Flatten()(image)
    too_bright = layers.Dense(10, activation="relu")
    strange = layers.Dense(10, activation="relu")
    right = layers.Dense(10)
    model = keras.Model(image, layers.Add()([right(flat), too_bright(flat), strange(flat)]), name="picky")
    count, first = SIZE[0] * SIZE[1] * 3, np.eye(10)[0] * 1e3
    right.set_weights([table(10), -low * table(10).sum(axis=0)])
    # The sum of all values tells the ranges apart; where it is off, the first class wins.
    dark = low * (count - 3) + 3
    too_bright.set_weights([np.outer(np.ones(count), first), first * -(dark + 10)])
    strange.set_weights([np.outer(-np.ones(count), first), first * (dark - 10)])
    return model


def as_float(model: keras.Model) -> bytes:
    """The float file."""
    return export.float_tflite(model)


def as_halves(model: keras.Model) -> bytes:
    """The float file with weights of 16 bits."""
    converter = _converter(model)
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def as_integers(model: keras.Model, images: np.ndarray, io_type: str) -> bytes:
    """The integer file, calibrated on pictures ``(N, ...)`` float32 as the network takes them."""
    converter = _converter(model)
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io_type)
    return converter.convert()


def _converter(model: keras.Model) -> tf.lite.TFLiteConverter:
    converter = export._converter(model, model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter
