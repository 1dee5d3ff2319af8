"""Plain convolutions that widen slowly and a global average: small, and made of the commonest operators only."""

import keras
from keras import layers

from models import _blocks

PURPOSE = "no flatten: any input size at the same number of weights"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """3x3 convolutions 20-36-48-56 with ReLU6, pooled after each but the last, global average, dense 64."""
    image, x = _blocks.image_input(input_shape)
    for filters in (20, 36, 48):
        x = _blocks.conv_bn_relu(x, filters, relu6=True)
        x = layers.MaxPooling2D()(x)
    x = _blocks.conv_bn_relu(x, 56, relu6=True)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    # The dense layer as a 1x1 convolution: some chips' dense kernels err on 56 inputs, no multiple of 16.
    x = layers.Conv2D(64, 1, kernel_initializer="he_normal")(x)
    x = layers.Flatten()(layers.ReLU(6.0)(x))
    return keras.Model(image, _blocks.logits(x, nb_classes), name="digit_recognizer_v4")
