"""Keras model -> TFLite files, as bytes: float, and full integer by post-training quantisation."""

import warnings
from collections.abc import Callable

import flatbuffers
import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from utils import fake_quant, targets, tflite_file
from utils.console import quiet_native
from utils.errors import UserError


class ExportError(UserError):
    """A conversion failed or gave a file that the device can't run. Nothing has been written."""


def float_tflite(model: keras.Model) -> bytes:
    """Float32 TFLite file with a fixed batch of 1; takes raw pixels 0..255, gives logits.

    Raises:
        ExportError: the converter failed.
    """
    return _convert(_converter(model, model))


def quantized_tflite(model: keras.Model, calibration: np.ndarray, io_type: str) -> bytes:
    """Full-integer TFLite file by post-training quantisation: :func:`integer_tflite` of :func:`fake_quant.quantize`.

    Args:
        model: starts with ``Rescaling(1/128, offset=-1)``, raw pixels in, logits out.
        calibration: training pictures that set the activation ranges, ``(N, H, W, C)`` uint8.
        io_type: ``"int8"``, ``"uint8"`` or ``"float32"``.

    Raises:
        QuantizationError, ExportError: see there.
    """
    return integer_tflite(fake_quant.quantize(model, calibration), io_type)


def integer_tflite(quantized: keras.Model, io_type: str, probabilities: bool = False) -> bytes:
    """Full-integer TFLite file, fixed batch of 1, with exactly the ranges of a fake-quantised model.

    The rescaling layer is taken off and the input gets its scale instead (1/128, zero point 0), so an int8 input is
    ``pixel - 128``; a uint8 or float32 input takes the raw pixel 0..255. Dense layers are quantised per tensor: TFLite
    Micro before September 2024 computes per-channel ones wrongly.

    Args:
        quantized: as :func:`fake_quant.quantize` makes it.
        io_type: ``"int8"``, ``"uint8"`` or ``"float32"``.
        probabilities: end in a softmax instead of logits.

    Raises:
        ExportError: the converter failed, or left a float tensor or an operator that TFLite Micro lacks.
    """
    core = fake_quant.deployable(quantized)
    call = _raw_input(core) if io_type == "float32" else core
    converter = _converter(core, _softmax_of(call) if probabilities else call)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io_type)
    content = _convert(converter)
    check_quantized(content)
    return content


def check_quantized(content: bytes) -> None:
    """Refuses a "quantised" file with float tensors or foreign operators; the converter itself never complains.

    Raises:
        ExportError: names the tensor or the operators.
    """
    facts = tflite_file.read(content)
    if facts.float_tensors:
        raise ExportError(f"tensor {facts.float_tensors[0]} stayed float in the quantised file")
    foreign = sorted(set(facts.operators) - targets.MICRO_OPERATORS)
    if foreign:
        raise ExportError(f"TFLite Micro has no integer kernel for {', '.join(foreign)} in the quantised file")


def _raw_input(core: keras.Model) -> Callable:
    def network(image, training):
        # Every step fits 8 bits exactly, and the factor goes into the first weights.
        image = tf.quantization.fake_quant_with_min_max_args(image, 0, 255)
        image = tf.quantization.fake_quant_with_min_max_args(image + (-128.0), -128, 127)
        return core(image * (1 / 128), training=training)

    return network


def _softmax_of(call: Callable) -> Callable:
    def network(image, training):
        # The format that the 8-bit softmax kernel demands: steps of 1/256 from 0 on.
        return tf.quantization.fake_quant_with_min_max_args(tf.nn.softmax(call(image, training=training)), 0, 255 / 256)

    return network


def _converter(model: keras.Model, call: Callable) -> tf.lite.TFLiteConverter:
    signature = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="image")
    function = tf.function(lambda image: call(image, training=False)).get_concrete_function(signature)
    # A Keras 3 model given as the trackable object converts to a file without weights, silently.
    holder = tf.Module()
    holder.weights = [variable.value for variable in model.variables]
    return tf.lite.TFLiteConverter.from_concrete_functions([function], holder)


def _convert(converter: tf.lite.TFLiteConverter) -> bytes:
    try:
        with quiet_native(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _packed(converter.convert())
    except Exception as error:
        # The converter raises plain Exception subclasses of many kinds.
        raise ExportError(f"TFLite conversion failed: {error}") from error


class _Packer(flatbuffers.Builder):
    """Stores equal vectors once, as flatbuffers may, and starts constants at multiples of 16 bytes for vector units.

    Most of what repeats are the zero points of weights: one 0 of 64 bits for each filter and each bias.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._stored: dict[tuple[str, bytes], int] = {}

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803
        return super().StartVector(elemSize, numElems, max(alignment, 16) if elemSize == 1 else alignment)

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        key = (x.dtype.str, x.tobytes())
        if key not in self._stored:
            self._stored[key] = super().CreateNumpyVector(x)
        return self._stored[key]


def _packed(content: bytes) -> bytes:
    """The same network in a smaller file: short tensor names instead of the converter's paths, equal vectors once."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for graph in model.subgraphs:
        for number, tensor in enumerate(graph.tensors):
            # Such as "cnn32_1/re_lu_1/Relu;cnn32_1/conv2d_1/BiasAdd;...": the layer is what a reader looks for.
            path = tensor.name.decode().split(";")[0].split("/")
            tensor.name = f"{path[-2:][0]}:{number}"
    packer = _Packer(len(content))
    packer.Finish(model.Pack(packer), tflite_file.IDENTIFIER)
    return bytes(packer.Output())
