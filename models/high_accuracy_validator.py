"""A residual network for the PC: it teaches the small ones, checks labels and shows what the pictures allow."""

import keras
from keras import layers

from models import _blocks

QUANTIZABLE = False
PURPOSE = "for the PC: teaches the small ones, checks labels; never quantised"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """A 3x3 stem, then residual blocks of 40, 80, 80, 128 and 128 filters, pooled in between, dense 128, dropout.

    Most of its work is done after the second pooling, so that it can be trained without a graphics card.
    """
    image, x = _blocks.image_input(input_shape)
    x = _blocks.conv_bn_relu(x, 32)
    for filters, blocks in ((40, 1), (80, 2), (128, 2)):
        x = layers.MaxPooling2D()(x)
        for _ in range(blocks):
            x = _blocks.residual(x, filters)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu", kernel_initializer=_blocks.KERNEL_INITIALIZER)(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(image, _blocks.logits(x, nb_classes), name="high_accuracy_validator")
