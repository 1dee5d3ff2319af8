"""Inverted residuals: narrow between the blocks, wide only inside them where the depthwise filters work."""

import keras
from keras import layers

from models import _blocks

PURPOSE = "deep and narrow; inverted residuals with shortcuts"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """A 3x3 stem of 12, then inverted residuals 24-24 | 32-32-32 | 32-32 widened twofold; four poolings."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.conv_bn_relu(x, 12)
    for stage in ((24, 24), (32, 32, 32), (32, 32)):
        x = layers.MaxPooling2D()(x)
        for filters in stage:
            x = _blocks.inverted_residual(x, filters, expansion=2)
    x = layers.MaxPooling2D()(x)
    return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="digit_recognizer_v16")
