"""How large a network is: parameters and multiply-accumulates."""

import math

import keras
from keras import layers


def parameters(model: keras.Model) -> int:
    """Number of weights, batch statistics included."""
    return int(model.count_params())


def multiply_accumulates(model: keras.Model) -> int:
    """Multiply-accumulates of convolutions and dense layers for one picture; the rest is small beside them."""
    return sum(_layer(layer) for layer in model.layers)


def _layer(layer: keras.layers.Layer) -> int:
    if isinstance(layer, layers.Dense):
        return layer.kernel.shape[0] * layer.kernel.shape[1]
    if isinstance(layer, layers.DepthwiseConv2D | layers.Conv2D):
        height, width = layer.output.shape[1:3]
        # A depthwise kernel (h, w, C, M) gives C*M channels, a plain one (h, w, C, F) has its groups taken out of C.
        return height * width * math.prod(layer.kernel.shape)
    return 0
