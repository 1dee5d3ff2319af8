"""Tiny exported files for the tests of what devices accept, and damaged copies of them."""

import functools
from collections.abc import Callable

import flatbuffers
import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from utils import export, synthetic


def pictures(count: int, channels: int = 1, size: tuple[int, int] = (32, 20)) -> np.ndarray:
    """Synthetic digits ``(count, height, width, channels)`` uint8."""
    rgb = synthetic.draw(count, 7).images[:, : size[0], : size[1]]
    return rgb if channels == 3 else rgb.mean(axis=-1, keepdims=True).astype(np.uint8)


def plain(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Two convolutions and a dense layer of 320 inputs."""
    for filters in (4, 8):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    return layers.Dense(classes)(layers.Flatten()(x))


def averaged(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """A global average, which is the operator MEAN."""
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    return layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))


def weighed(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """A convolution's channels weighed by sigmoids of their averages (squeeze and excite)."""
    x = layers.MaxPooling2D(4)(layers.Conv2D(16, 3, padding="same", activation="relu")(x))
    weights = layers.Activation("sigmoid")(layers.Dense(16)(layers.GlobalAveragePooling2D()(x)))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 16))(weights)])
    return layers.Dense(classes)(layers.Flatten()(x))


def strided(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """What chips compute wrongly: stride 2 with SAME padding, depthwise stride 2, a dense layer of 40 inputs."""
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(5, 1, activation="relu")(x)
    return layers.Dense(classes)(layers.Flatten()(x))


def probable(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """The plain network with a softmax."""
    return layers.Softmax()(plain(x, classes))


@functools.cache
def model(
    body: Callable = plain, channels: int = 1, classes: int = 10, size: tuple[int, int] = (32, 20)
) -> keras.Model:
    """An untrained network that takes raw pixels."""
    keras.utils.set_random_seed(3)
    image = keras.Input((*size, channels), name="image")
    x = layers.Rescaling(1 / 128, offset=-1, name="rescaling")(image)
    return keras.Model(image, body(x, classes), name="tiny")


@functools.cache
def quantised(io_type: str = "int8", **shape) -> bytes:
    """The integer file of :func:`model`."""
    network = model(**shape)
    height, width, channels = network.input_shape[1:]
    return export.quantized_tflite(network, pictures(100, channels, (height, width)), io_type)


@functools.cache
def floating(**shape) -> bytes:
    """The float file of :func:`model`."""
    return export.float_tflite(model(**shape))


def edited(content: bytes, change: Callable[[schema.ModelT], object]) -> bytes:
    """A copy whose unpacked flatbuffer ``change`` has altered."""
    unpacked = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    change(unpacked)
    builder = flatbuffers.Builder(len(content) + 1024)
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_size(content: bytes, operator: str, axis: int, size: int) -> bytes:
    """A copy that claims another size for the output of the first node of that kind."""

    def change(unpacked: schema.ModelT) -> None:
        graph, codes = unpacked.subgraphs[0], unpacked.operatorCodes
        wanted = getattr(schema.BuiltinOperator, operator)
        node = next(node for node in graph.operators if codes[node.opcodeIndex].builtinCode == wanted)
        tensor = graph.tensors[node.outputs[0]]
        tensor.shape = tensor.shape.copy()
        tensor.shape[axis] = size

    return edited(content, change)


def with_operator(content: bytes, old: str, new: str) -> bytes:
    """A copy in which one kind of operator has another name; runs nowhere."""
    codes = schema.BuiltinOperator

    def change(unpacked: schema.ModelT) -> None:
        for code in unpacked.operatorCodes:
            if max(code.builtinCode, code.deprecatedBuiltinCode) == getattr(codes, old):
                code.builtinCode = getattr(codes, new)
                code.deprecatedBuiltinCode = min(code.builtinCode, 127)

    return edited(content, change)


def with_other_weights(content: bytes) -> bytes:
    """A copy with one byte of the last dense layer's weights changed."""

    def change(unpacked: schema.ModelT) -> None:
        graph = unpacked.subgraphs[0]
        weights = graph.tensors[graph.operators[-1].inputs[1]]
        data = unpacked.buffers[weights.buffer].data.copy()
        data[: len(data) // 10] ^= 0x80
        unpacked.buffers[weights.buffer].data = data

    return edited(content, change)
