"""Keras model -> TFLite files, as bytes: float, and full integer by post-training quantisation."""

import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from utils.console import quiet_native
from utils.errors import UserError

# What a quantised file may hold: integer kernels that TFLite Micro has. A float kernel has no place on the chip.
QUANTIZED_OPERATORS = frozenset(
    {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN"),
        *("ADD", "MUL", "CONCATENATION", "PAD", "RESHAPE", "RELU", "RELU6", "QUANTIZE", "DEQUANTIZE"),
    }
)


class ExportError(UserError):
    """A conversion failed or gave a file that the device can't run. Nothing has been written."""


def float_tflite(model: keras.Model) -> bytes:
    """Float32 TFLite file with a fixed batch of 1; takes raw pixels 0..255, gives logits.

    Raises:
        ExportError: the converter failed.
    """
    return _convert(_converter(model, lambda image: model(image, training=False)))


def quantized_tflite(model: keras.Model, calibration: np.ndarray, io_type: str) -> bytes:
    """Full-integer TFLite file with a fixed batch of 1.

    The model's rescaling layer is taken off and the input gets its scale instead (1/128, zero point 0), so an int8
    input is ``pixel - 128``; a uint8 or float32 input takes the raw pixel 0..255. Dense layers are quantised per
    tensor: TFLite Micro before September 2024 computes per-channel ones wrongly.

    Args:
        model: starts with ``Rescaling(1/128, offset=-1)``.
        calibration: training pictures that set the activation ranges, ``(N, H, W, C)`` uint8.
        io_type: ``"int8"``, ``"uint8"`` or ``"float32"``.

    Raises:
        ExportError: the converter failed, or left a float tensor or an operator that TFLite Micro lacks.
    """
    core = _without_rescaling(model)
    raw = io_type == "float32"

    def network(image):
        # In this order the factor goes into the first weights and the sum stays exact in 8 bits.
        return core((image + (-128.0)) * (1 / 128) if raw else image, training=False)

    converter = _converter(core, network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    converter.representative_dataset = _representative_dataset(calibration, raw)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io_type)
    content = _convert(converter)
    check_quantized(content, float_ends=io_type == "float32")
    return content


def check_quantized(content: bytes, float_ends: bool = False) -> None:
    """Refuses a "quantised" file with float tensors or foreign operators; the converter itself never complains.

    Raises:
        ExportError: names the tensor or the operator.
    """
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    for code in graph.operatorCodes:
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if name not in QUANTIZED_OPERATORS:
            raise ExportError(f"operator {name} in the quantised file: TFLite Micro's integer kernels lack it")
    main = graph.subgraphs[0]
    ends = {*main.inputs, *main.outputs} if float_ends else set()
    for number, tensor in enumerate(main.tensors):
        if tensor.type == schema.TensorType.FLOAT32 and number not in ends:
            raise ExportError(f"tensor {tensor.name.decode()} stayed float in the quantised file")


def _without_rescaling(model: keras.Model) -> keras.Model:
    first = model.layers[1]
    if not isinstance(first, keras.layers.Rescaling):
        raise ExportError(f"{model.name} does not start with a Rescaling layer: build it on models/_blocks.image_input")
    return keras.Model(first.output, model.output, name=model.name)


def _converter(model: keras.Model, call: Callable) -> tf.lite.TFLiteConverter:
    signature = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="image")
    function = tf.function(call).get_concrete_function(signature)
    # A Keras 3 model given as the trackable object converts to a file without weights, silently.
    holder = tf.Module()
    holder.weights = [variable.value for variable in model.variables]
    return tf.lite.TFLiteConverter.from_concrete_functions([function], holder)


def _representative_dataset(images: np.ndarray, raw: bool) -> Callable[[], Iterator[list[np.ndarray]]]:
    images = images.copy()
    # Black and white in one corner fix the input's scale at exactly 1/128, whatever the calibration pictures hold.
    images[0, 0, :2] = [[0], [255]]

    def pictures():
        for image in images[:, None].astype(np.float32):
            yield [image if raw else image / 128 - 1]

    return pictures


def _convert(converter: tf.lite.TFLiteConverter) -> bytes:
    try:
        with quiet_native(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return converter.convert()
    except Exception as error:
        # The converter raises plain Exception subclasses of many kinds.
        raise ExportError(f"TFLite conversion failed: {error}") from error
