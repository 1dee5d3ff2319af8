"""What a TFLite file holds, read from its flatbuffer without running it: tensors, operators, sizes.

Files may come from strangers, so whatever is wrong with one ends in :class:`FileError`.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from utils.errors import UserError

IDENTIFIER = b"TFL3"  # bytes 4..8 of every TFLite file
# What the flatbuffer library and the checks below raise on bytes that don't mean what they should.
_DAMAGE = (struct.error, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError)


class FileError(UserError):
    """Bytes are no TFLite file that the toolkit understands. The message says why in one sentence."""


@dataclass(frozen=True)
class TensorFacts:
    """One tensor; ``scale`` and ``zero_point`` are None where it has none or one per channel."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class Node:
    """One operator of the graph; what it doesn't have is None. Shapes are those of the file (filters: OHWI, dense: OI).

    ``input_scale`` is the quantisation step of its (first) data input.
    """

    operator: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    filter_shape: tuple[int, ...] | None
    stride_h: int | None
    stride_w: int | None
    padding: str | None
    input_scale: float | None


@dataclass(frozen=True)
class First:
    """What happens to a picture first: the one operator that takes the input, and its output.

    ``constant`` is the largest absolute value of the float constant beside the picture, None if there is none.
    """

    operator: str
    output: TensorFacts
    constant: float | None


@dataclass(frozen=True)
class FileFacts:
    """A file with one input and one output.

    ``operators`` are the sorted builtin names, each once; ``nodes`` are in the order of execution; ``float_tensors``
    names the float tensors between input and output; ``macs`` counts multiply-accumulates of one run, ``parameters``
    the constants that were learnt; ``first`` is None if several operators take the input; ``last_operator`` makes the
    outputs, behind it none but those that change their form, add, average, bound or choose among them.
    """

    input: TensorFacts
    output: TensorFacts
    operators: tuple[str, ...]
    nodes: tuple[Node, ...]
    float_tensors: tuple[str, ...]
    macs: int
    parameters: int = 0
    first: First | None = None
    last_operator: str = ""

    @property
    def gives_probabilities(self) -> bool:
        """True if the outputs come from a softmax, False if they are logits."""
        return self.last_operator == "SOFTMAX"


def read(content: bytes) -> FileFacts:
    """Facts of a TFLite file.

    Raises:
        FileError: no TFLite file, a damaged one, or one with several graphs, inputs or outputs.
    """
    if content[4:8] != IDENTIFIER:
        raise FileError("this is no TFLite file: the identifier TFL3 is missing at its start")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(_Strict(content), 0))
        return _facts(model)
    except _DAMAGE as error:
        raise FileError(f"the TFLite file is damaged or cut off ({type(error).__name__} while reading it)") from error


class _Strict(bytes):
    """Bytes whose slices never come out short: the flatbuffer library would take half a text for the whole."""

    def __getitem__(self, key):
        if isinstance(key, slice) and key.stop is not None and key.stop > len(self):
            raise IndexError("slice beyond the end")
        return super().__getitem__(key)


def _names(enumeration: type, tidy: Callable[[str], str] = str) -> dict[int, str]:
    return {value: tidy(name) for name, value in vars(enumeration).items() if not name.startswith("_")}


_OPERATORS = _names(schema.BuiltinOperator)
_DTYPES = _names(schema.TensorType, str.lower)
_PADDINGS = _names(schema.Padding)
_SIZES = {"float32": 4, "float16": 2, "int32": 4, "uint8": 1, "int64": 8, "int16": 2, "int8": 1, "bool": 1}

# What outputs may still pass through: of several softmaxes the sum, mean or largest is one of probabilities, too.
_NEUTRAL_ENDS = (
    *("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE"),
    *("ADD", "MUL", "MEAN", "AVERAGE_POOL_2D", "DIV", "MAXIMUM", "MINIMUM", "RELU"),
)
# Which input holds the data; everywhere else it is the first.
_DATA_INPUT = {"TRANSPOSE_CONV": 2}
_STRIDED = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "MAX_POOL_2D", "AVERAGE_POOL_2D"}
# A filter element is used once for each pixel that a convolution writes, and that a transposed one reads.
_MACS: dict[str, Callable[[Node], int]] = {
    "CONV_2D": lambda node: math.prod(node.output_shape[1:3]) * math.prod(node.filter_shape),
    "DEPTHWISE_CONV_2D": lambda node: math.prod(node.output_shape[1:3]) * math.prod(node.filter_shape),
    "TRANSPOSE_CONV": lambda node: math.prod(node.input_shape[1:3]) * math.prod(node.filter_shape),
    "FULLY_CONNECTED": lambda node: math.prod(node.output_shape) * node.filter_shape[-1],
}


def _facts(model: schema.ModelT) -> FileFacts:
    if len(model.subgraphs) != 1:
        raise FileError(
            f"the TFLite file holds {len(model.subgraphs)} graphs; one is supported: convert it anew with one "
            "signature, and without loops and conditions"
        )
    graph = model.subgraphs[0]
    for kind, ends, mend in (
        ("inputs", graph.inputs, "take a model that needs a picture alone"),
        ("outputs", graph.outputs, "convert keras.Model(model.inputs, model.outputs[NUMBER]) with the one to be read"),
    ):
        if len(ends) != 1:
            raise FileError(f"the TFLite file has {len(ends)} {kind}; one is supported: {mend}")
    tensors = [_tensor(tensor, model.buffers) for tensor in graph.tensors]
    names = [_operator_name(code) for code in model.operatorCodes]
    nodes = tuple(_node(operator, names, tensors) for operator in graph.operators)
    if not nodes:
        raise FileError("the TFLite file holds no operators")
    if any(node.operator == "READ_VARIABLE" for node in nodes):
        raise FileError(
            "the TFLite file holds no weights: they stayed in variables when it was converted; convert the Keras model "
            "anew with TFLiteConverter.from_keras_model"
        )
    source, target = (tensors[_index(ends[0], tensors)] for ends in (graph.inputs, graph.outputs))
    floats = (tensor.name for tensor in tensors if "float" in tensor.dtype and tensor not in (source, target))
    macs = sum(_MACS[node.operator](node) for node in nodes if node.operator in _MACS)
    operators = tuple(sorted({node.operator for node in nodes}))
    learnt = _parameters(graph, names, tensors, model.buffers)
    first = _first(graph, names, tensors, model.buffers)
    last = _last(graph, names)
    return FileFacts(source, target, operators, nodes, tuple(floats), macs, learnt, first, last)


def _parameters(graph: schema.SubGraphT, names: list[str], tensors: list[TensorFacts], buffers: list) -> int:
    """Elements of the constants that are weights: shapes, axes and paddings are integers of 32 bits, as biases are."""
    learnt = set()
    for operator in graph.operators:
        weighs = names[operator.opcodeIndex] in _MACS
        for place, number in enumerate(operator.inputs):
            if number != -1 and buffers[graph.tensors[number].buffer].data is not None:
                bias = weighs and place >= 2
                if bias or tensors[number].dtype not in ("int32", "int64", "bool"):
                    learnt.add(number)
    return sum(math.prod(tensors[number].shape) for number in learnt)


def _first(graph: schema.SubGraphT, names: list[str], tensors: list[TensorFacts], buffers: list) -> First | None:
    takers = [operator for operator in graph.operators if graph.inputs[0] in operator.inputs]
    if len(takers) != 1:
        return None
    # Files with halved weights keep them in 16 bits in front of a DEQUANTIZE.
    widened = {o.outputs[0]: o.inputs[0] for o in graph.operators if names[o.opcodeIndex] == "DEQUANTIZE"}
    beside = [widened.get(number, number) for number in takers[0].inputs if number not in (-1, graph.inputs[0])]
    constants = [
        np.frombuffer(bytes(data), tensors[number].dtype)
        for number in beside
        if tensors[number].dtype in ("float32", "float16")
        and (data := buffers[graph.tensors[number].buffer].data) is not None
    ]
    largest = max((float(np.abs(values).max()) for values in constants if values.size), default=None)
    return First(names[takers[0].opcodeIndex], tensors[takers[0].outputs[0]], largest)


def _last(graph: schema.SubGraphT, names: list[str]) -> str:
    makers = {graph.inputs[0]: None}
    for operator in graph.operators:
        # What is made of constants alone is one: weights of 16 bits, for instance.
        if any(number in makers for number in operator.inputs):
            makers |= dict.fromkeys(operator.outputs, operator)
    name, number = "", graph.outputs[0]
    # Each tensor once: a damaged graph may run in a circle.
    while operator := makers.pop(number, None):
        name = names[operator.opcodeIndex]
        computed = [number for number in operator.inputs if number in makers]
        # A product of two is a gate.
        if name not in _NEUTRAL_ENDS or not computed or (name == "MUL" and len(computed) > 1):
            break
        number = computed[0]
    return name


def _operator_name(code: schema.OperatorCodeT) -> str:
    # Codes up to 127 were once stored in a byte of their own, which old and new files still fill.
    name = _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" and code.customCode else name


def _tensor(tensor: schema.TensorT, buffers: list[schema.BufferT]) -> TensorFacts:
    shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
    dtype = _DTYPES[tensor.type]
    # The shape of a single number is a list without an entry.
    if min(shape, default=1) < (0 if dtype == "int32" else 1):
        raise ValueError("size below 1")
    buffer = buffers[_index(tensor.buffer, buffers)]
    # Interpreters trust the shape and would read past a short buffer. No data: the tensor is computed.
    data = 0 if buffer.data is None else len(buffer.data)
    if data and dtype in _SIZES and data < math.prod(shape) * _SIZES[dtype]:
        raise ValueError("constant shorter than its shape")
    if buffer.offset > 1 or buffer.size > 1:
        raise ValueError("weights outside the flatbuffer")
    scales, zeros = (getattr(tensor.quantization, name, None) for name in ("scale", "zeroPoint"))
    single = scales is not None and zeros is not None and len(scales) == len(zeros) == 1
    scale, zero_point = (float(scales[0]), int(zeros[0])) if single else (None, None)
    return TensorFacts((tensor.name or b"").decode(), shape, dtype, scale, zero_point)


def _node(operator: schema.OperatorT, names: list[str], tensors: list[TensorFacts]) -> Node:
    name = names[_index(operator.opcodeIndex, names)]
    # An optional input that is left out has the number -1.
    inputs = [None if number == -1 else tensors[_index(number, tensors)] for number in operator.inputs]
    outputs = [tensors[_index(number, tensors)] for number in operator.outputs]
    data = inputs[_DATA_INPUT.get(name, 0)] if inputs else None
    options = operator.builtinOptions
    padding, strides = getattr(options, "padding", None), [getattr(options, f"stride{axis}", None) for axis in "HW"]
    if name in _STRIDED and (None in strides or min(strides) < 1):
        raise ValueError("convolution or pooling without a stride")
    return Node(
        operator=name,
        input_shape=data.shape if data else (),
        output_shape=outputs[0].shape,
        filter_shape=inputs[1].shape if name in _MACS else None,
        stride_h=strides[0],
        stride_w=strides[1],
        padding=None if padding is None else _PADDINGS[padding],
        input_scale=data.scale if data else None,
    )


def _index(number: int, within: list) -> int:
    if not 0 <= number < len(within):
        raise IndexError(f"{number} of {len(within)}")
    return int(number)
