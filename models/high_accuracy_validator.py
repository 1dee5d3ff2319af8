"""A large residual network for the PC: it checks labels and shows what the pictures allow; no device runs it."""

import keras
from keras import layers

from models import _blocks

QUANTIZABLE = False


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """A 3x3 stem, then two residual blocks each of 64, 128 and 256 filters, global average, dropout."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.conv_bn_relu(x, 32)
    for filters in (64, 128, 256):
        x = layers.MaxPooling2D()(x)
        x = _blocks.residual(x, filters)
        x = _blocks.residual(x, filters)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(image, _blocks.logits(x, nb_classes), name="high_accuracy_validator")
