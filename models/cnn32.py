"""The public baseline of this field: three convolutions with max-pooling and one wide dense layer."""

import keras
from keras import layers

from models import _blocks

PURPOSE = "the public baseline, to compare with"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """3x3 convolutions 32-64-64, each with 2x2 max-pooling, dense 256."""
    image, x = _blocks.image_input(input_shape)
    for filters in (32, 64, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu", kernel_initializer="he_normal")(x)
    return keras.Model(image, _blocks.logits(x, nb_classes), name="cnn32")
