"""How large a network is: parameters, multiply-accumulates, bytes of its file."""

import math
from typing import Any

import keras
from keras import layers

WEIGHTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
OPERATORS = (
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
    *(layers.Flatten, layers.Add, layers.Multiply, layers.Concatenate),
)
# Bytes in a quantised TFLite file beside the weights of one byte each, fitted to the converted files of this project's
# architectures: errors below 3 %, as float files below 1 %.
OF_A_FILE = 2000
OF_A_WEIGHTED_LAYER = 310  # the operator, its three tensors and their names
OF_ANOTHER_OPERATOR = 90
OF_A_FILTER = 15  # its bias, and the scales of both bias and weights
OF_A_DENSE_OUTPUT = 4  # its bias: a dense layer has one scale


def parameters(model: keras.Model) -> int:
    """Number of weights, batch statistics included."""
    return int(model.count_params())


def multiply_accumulates(model: keras.Model) -> int:
    """Multiply-accumulates of convolutions and dense layers for one picture; the rest is small beside them."""
    # Not layer by layer: a shared one computes as often as it is used.
    return sum(_call(node) for nodes in model._nodes_by_depth.values() for node in nodes)


def file_bytes(model: keras.Model, quantized: bool = True) -> int:
    """About how large the model's TFLite file will be once it is trained, batch normalisation folded.

    Converting an untrained model instead would flatter: its biases are all zero, and the file holds equal ones once.
    """
    weighted = [layer for layer in model.layers if isinstance(layer, WEIGHTED)]
    kernels = sum(math.prod(layer.kernel.shape) for layer in weighted)
    filters = sum(layer.output.shape[-1] for layer in weighted if not isinstance(layer, layers.Dense))
    dense = sum(layer.output.shape[-1] for layer in weighted if isinstance(layer, layers.Dense))
    others = sum(isinstance(layer, OPERATORS) for layer in model.layers)
    graph = OF_A_FILE + OF_A_WEIGHTED_LAYER * len(weighted) + OF_ANOTHER_OPERATOR * others
    if not quantized:
        return graph + 4 * (kernels + filters + dense)
    return graph + kernels + OF_A_FILTER * filters + OF_A_DENSE_OUTPUT * dense


def _call(node: Any) -> int:
    """What one use of a layer takes."""
    layer, source, target = node.operation, node.input_tensors, node.output_tensors[0]
    if isinstance(layer, WEIGHTED):
        # A depthwise kernel (h, w, C, M) gives C*M channels, a plain one (h, w, C, F) has its groups taken out of C.
        return _places(target) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.SeparableConv2D):
        return _places(target) * sum(math.prod(one.shape) for one in (layer.depthwise_kernel, layer.pointwise_kernel))
    if isinstance(layer, layers.Conv2DTranspose):
        return _places(source[0]) * math.prod(layer.kernel.shape)
    return 0


def _places(tensor: keras.KerasTensor) -> int:
    return math.prod(tensor.shape[1:-1])
