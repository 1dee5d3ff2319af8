"""Layers that several architectures share. ``keras`` only, so that every Keras backend can train them."""

from collections.abc import Callable

import keras
from keras import layers

KERNEL_INITIALIZER = "he_normal"
NB_POSITIONS = 100  # of a wheel, in tenths


def image_input(input_shape: tuple[int, int, int]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Input of raw pixels 0..255 and the same scaled to -1..1.

    Every architecture starts with this pair: the quantised export takes the scaling off and gives the file's input the
    scale 1/128 instead, so the device's int8 value is ``pixel - 128``.
    """
    image = keras.Input(input_shape, name="image")
    return image, layers.Rescaling(1 / 128, offset=-1, name="rescaling")(image)


def conv_bn(x: keras.KerasTensor, filters: int, kernel: int = 3) -> keras.KerasTensor:
    """Convolution (SAME, stride 1) and batch normalisation, linear."""
    x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, kernel_initializer=KERNEL_INITIALIZER)(x)
    return layers.BatchNormalization()(x)


def conv_bn_relu(x: keras.KerasTensor, filters: int, kernel: int = 3, relu6: bool = False) -> keras.KerasTensor:
    """Convolution (SAME, stride 1), batch normalisation, ReLU."""
    return layers.ReLU(6.0 if relu6 else None)(conv_bn(x, filters, kernel))


def depthwise_bn_relu(x: keras.KerasTensor) -> keras.KerasTensor:
    """Depthwise 3x3 convolution (SAME, stride 1), batch normalisation, ReLU."""
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, depthwise_initializer=KERNEL_INITIALIZER)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def stages(
    x: keras.KerasTensor, filters: tuple[tuple[int, ...], ...], block: Callable = conv_bn_relu
) -> keras.KerasTensor:
    """Blocks of the given filters, each stage ending in 2x2 max-pooling (Simonyan and Zisserman 2014)."""
    for stage in filters:
        for width in stage:
            x = block(x, width)
        x = layers.MaxPooling2D()(x)
    return x


def residual(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """Two 3x3 convolutions and a shortcut (He et al. 2016, basic block); a 1x1 convolution where the width changes."""
    shortcut = x if x.shape[-1] == filters else conv_bn(x, filters, 1)
    x = conv_bn(conv_bn_relu(x, filters), filters)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def separable(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """Depthwise 3x3, then pointwise convolution, ReLU behind both (Howard et al. 2017, MobileNet)."""
    return conv_bn_relu(depthwise_bn_relu(x), filters, 1)


def inverted_residual(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """Widened twofold by a 1x1 convolution, depthwise 3x3, narrowed without ReLU (Sandler et al. 2018, MobileNetV2).

    The shortcut joins the narrow ends; there is none where the width changes.
    """
    wide = depthwise_bn_relu(conv_bn_relu(x, 2 * x.shape[-1], 1))
    narrow = conv_bn(wide, filters, 1)
    return layers.Add()([x, narrow]) if x.shape[-1] == filters else narrow


def ghost(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """Half the channels by a 3x3 convolution, their ghosts by a depthwise one of those (Han et al. 2020, GhostNet)."""
    half = conv_bn_relu(x, filters // 2)
    return layers.Concatenate()([half, depthwise_bn_relu(half)])


def logits(x: keras.KerasTensor, nb_classes: int) -> keras.KerasTensor:
    """The last dense layer, without softmax: losses, export and devices all take logits."""
    return layers.Dense(nb_classes, name="logits")(x)


def flat_logits(x: keras.KerasTensor, nb_classes: int) -> keras.KerasTensor:
    """Logits of features, which are flattened: of the hundred tenths, or of ten digits by way of them.

    A digit is a union of ten wheel positions, which one plane can't cut out of the features. So each position has a
    plane, and a digit's logit is the largest of its ten, x.5 to x.4 (maxout, Goodfellow et al. 2013).
    """
    if len(x.shape) > 2:
        x = layers.Flatten()(x)
    if nb_classes == NB_POSITIONS:
        return logits(x, nb_classes)
    per_class = NB_POSITIONS // nb_classes
    x = layers.Dense(NB_POSITIONS, name="positions")(x)
    # With names of their own: the head of a trained network, too, is made by this.
    x = layers.Reshape((nb_classes, per_class, 1), name="by_class")(x)
    x = layers.MaxPooling2D((1, per_class), name="largest")(x)
    return layers.Reshape((nb_classes,), name="logits")(x)
