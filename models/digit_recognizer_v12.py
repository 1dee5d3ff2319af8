"""Residual blocks: shortcuts let a deeper small network train well."""

import keras
from keras import layers

from models import _blocks

PURPOSE = "reading before size; residual blocks"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """A 3x3 stem, then one residual block each of 32, 48 and 96 filters, pooled in between, global average."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.conv_bn_relu(x, 32)
    for filters in (32, 48, 96):
        x = layers.MaxPooling2D()(x)
        x = _blocks.residual(x, filters)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, _blocks.logits(x, nb_classes), name="digit_recognizer_v12")
