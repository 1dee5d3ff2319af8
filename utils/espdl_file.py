"""What an ESP-DL file holds, read from its flatbuffer without running it: graph, constants, test values, metadata.

The field numbers are those of esp-dl's schema ``espdl.fbs``. Files may come from strangers, so whatever is wrong with
one ends in :class:`EspdlError`.
"""

import math
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

_HEADER = struct.Struct("<4sII4x")  # identifier, 1 if encrypted, bytes of the flatbuffer behind it
IDENTIFIER = b"EDL2"
_BLOCK = 16  # constants lie in blocks of so many bytes, the last one filled up
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
_DTYPES |= {10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}
_TYPED_FIELDS = {"float32": 2, "int32": 3, "int64": 5, "float64": 11, "uint64": 12}  # besides the raw blocks, field 8
_LAYOUT_PREFIX = "layout ==> "
# Layouts of weights, and how many filters lie side by side in them; any other layout is the plain order.
_FILTERS_PER_BLOCK = {
    "NHWC": 1,
    "(N/8)HWC8": 8,
    "(N/8)HWC8_UNALIGNED": 8,
    "(N/16)HWC16": 16,
    "(N/16)HWC16_UNALIGNED": 16,
}
# No microcontroller holds a larger tensor, and 2 to a larger power means nothing.
_MOST_VALUES = 2**24
_MOST_AXES = 8
_LARGEST_EXPONENT = 128

WEIGHTED = ("Conv", "Gemm", "MatMul")  # a dense layer without a bias is a MatMul
# What is computed channel by channel: here a constant of the wrong layout would go unnoticed.
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "PRelu")
_CHANNELS_LAST = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


class EspdlError(UserError):
    """Bytes are no ESP-DL file that the toolkit understands or can run. The message says why in one sentence."""


@dataclass(frozen=True)
class ValueInfo:
    """A tensor that is computed: its value is the stored number times 2 to the power of its exponent.

    The shape of a tensor behind a Transpose may be in the wrong order: esp-ppq writes it so, and devices don't read it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    exponents: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A constant or a test value, as :class:`ValueInfo`; several exponents are one a filter.

    ``values`` has the shape ``shape`` in plain order, whatever the order in the file, which ``layout`` names: a
    convolution's weights are (H, W, C, N), a depthwise one's (H, W, N, 1), a dense layer's (C, N) or (1, 1, C, N).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    exponents: tuple[int, ...]
    layout: str
    values: np.ndarray


@dataclass(frozen=True)
class Node:
    """One operator. An optional input that is left out has the name ``""``."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int | float | str | tuple]


@dataclass(frozen=True)
class EspdlModel:
    """One graph; ``nodes`` are in an order in which they can be executed.

    ``values`` holds every tensor that is computed, inputs and outputs among them; ``initializers`` every constant.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    values: dict[str, ValueInfo]
    initializers: dict[str, Tensor]
    test_inputs: dict[str, Tensor]
    test_outputs: dict[str, Tensor]
    metadata: dict[str, str]


def read(content: bytes) -> EspdlModel:
    """The model of an ESP-DL file.

    Raises:
        EspdlError: no ESP-DL file, an encrypted or damaged one, or one whose parts don't fit together.
    """
    if len(content) < _HEADER.size or content[:4] != IDENTIFIER:
        raise EspdlError("this is no ESP-DL file: the identifier EDL2 is missing at its start")
    _, encrypted, length = _HEADER.unpack_from(content)
    if encrypted:
        raise EspdlError("the ESP-DL file is encrypted")
    if length > len(content) - _HEADER.size:
        raise EspdlError(f"the ESP-DL file is cut off: {length} bytes announced, {len(content) - _HEADER.size} there")
    buffer = _Buffer(content[_HEADER.size : _HEADER.size + length])
    return _model(_Table(buffer, buffer.pointer(0)))


def misplaced_constants(model: EspdlModel) -> list[str]:
    """Names of constants with one value a channel that stand, channels first, beside a channels-last tensor.

    esp-ppq leaves the constants of stand-alone Mul, Add and PRelu so; devices abort or compute nonsense.
    """
    channels_last, found = set(), []
    for node in model.nodes:
        inherits = node.operator != "Transpose" and not channels_last.isdisjoint(node.inputs)
        if node.operator in _CHANNELS_LAST or (inherits and len(model.values[node.outputs[0]].shape) == 4):
            channels_last.update(node.outputs)
        if node.operator in _ELEMENTWISE and inherits:
            found += [name for name in _constants(model, node) if model.initializers[name].values.size > 1]
    return found


def parameters(model: EspdlModel) -> int:
    """Number of weights of convolutions and dense layers, biases included."""
    return sum(model.initializers[name].values.size for node in _weighted(model) for name in _constants(model, node))


def multiply_accumulates(model: EspdlModel) -> int:
    """Multiply-accumulates of convolutions and dense layers for one picture."""
    total = 0
    for node in _weighted(model):
        weights = model.initializers[_constants(model, node)[0]].values.size
        shape = model.values[node.outputs[0]].shape
        total += weights * (math.prod(shape[1:3]) if node.operator == "Conv" else 1)
    return total


def _weighted(model: EspdlModel) -> list[Node]:
    return [node for node in model.nodes if node.operator in WEIGHTED and _constants(model, node)]


def _constants(model: EspdlModel, node: Node) -> list[str]:
    return [name for name in node.inputs if name in model.initializers]


class _Buffer:
    """A flatbuffer's bytes, little-endian. All that is read from it together is bounded by a multiple of its size.

    Without that bound a small file could name one large part thousands of times.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._left = 4 * len(content)

    def number(self, form: str, position: int) -> int | float:
        self._check(position, struct.calcsize(form))
        return struct.unpack_from(form, self._content, position)[0]

    def pointer(self, position: int) -> int:
        return position + self.number("<I", position)

    def vector(self, position: int, size: int) -> memoryview:
        """The bytes of a vector with elements of ``size`` bytes, whose number it begins with."""
        position, size = position + 4, self.number("<I", position) * size
        self._check(position, size)
        self._left -= size
        if self._left < 0:
            raise EspdlError("the ESP-DL file is damaged: its parts overlap")
        return memoryview(self._content)[position : position + size]

    def _check(self, position: int, size: int) -> None:
        if not 0 <= position <= len(self._content) - size:
            raise EspdlError("the ESP-DL file is damaged: an offset or a length leads out of it")


class _Table:
    """A flatbuffer table; fields are numbered as in the schema, and one that is left out is empty or 0."""

    def __init__(self, buffer: _Buffer, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._vtable = position - buffer.number("<i", position)
        self._vtable_size = buffer.number("<H", self._vtable)

    def _field(self, number: int) -> int | None:
        entry = 4 + 2 * number
        offset = self._buffer.number("<H", self._vtable + entry) if entry + 2 <= self._vtable_size else 0
        return self._position + offset if offset else None

    def number(self, field: int, form: str) -> int | float:
        position = self._field(field)
        return 0 if position is None else self._buffer.number(form, position)

    def table(self, field: int) -> "_Table":
        position = self._field(field)
        if position is None:
            raise EspdlError("the ESP-DL file is damaged: a part is missing")
        return _Table(self._buffer, self._buffer.pointer(position))

    def vector(self, field: int, size: int) -> memoryview:
        """The bytes of a vector with elements of ``size`` bytes."""
        position = self._field(field)
        return memoryview(b"") if position is None else self._buffer.vector(self._buffer.pointer(position), size)

    def array(self, field: int, dtype: str) -> np.ndarray:
        kind = np.dtype(dtype)
        return np.frombuffer(self.vector(field, kind.itemsize), kind.newbyteorder("<"))

    def text(self, field: int) -> str:
        return _text(self.vector(field, 1))

    def tables(self, field: int) -> list["_Table"]:
        return [_Table(self._buffer, position) for position in self._pointers(field)]

    def texts(self, field: int) -> list[str]:
        return [_text(self._buffer.vector(position, 1)) for position in self._pointers(field)]

    def _pointers(self, field: int) -> list[int]:
        offsets = self.array(field, "uint32").tolist()
        if not offsets:
            return []
        first = self._buffer.pointer(self._field(field)) + 4
        return [first + 4 * index + offset for index, offset in enumerate(offsets)]


def _text(content: memoryview) -> str:
    return bytes(content).decode(errors="replace")


def _model(table: _Table) -> EspdlModel:
    graph = table.table(7)
    nodes = tuple(_node(node) for node in graph.tables(0))
    depthwise = {n.inputs[1] for n in nodes if n.operator == "Conv" and n.attributes.get("group", 1) != 1}
    inputs, outputs = (tuple(_value_info(info) for info in graph.tables(field)) for field in (4, 5))
    values = _by_name(_value_info(info) for info in graph.tables(6))
    model = EspdlModel(
        nodes=nodes,
        inputs=inputs,
        outputs=outputs,
        values={**values, **{info.name: info for info in inputs + outputs}},
        initializers=_by_name(_tensor(tensor, depthwise) for tensor in graph.tables(2)),
        test_inputs=_by_name(_tensor(tensor) for tensor in graph.tables(8)),
        test_outputs=_by_name(_tensor(tensor) for tensor in graph.tables(9)),
        metadata={entry.text(0): entry.text(1) for entry in table.tables(8)},
    )
    _check_graph(model)
    return model


def _by_name(parts) -> dict:
    named = {}
    for part in parts:
        if named.setdefault(part.name, part) is not part:
            raise EspdlError(f"the ESP-DL file has two tensors named {part.name!r}")
    return named


def _check_graph(model: EspdlModel) -> None:
    """Every node's inputs must be there before it, and everything that is computed must have a type."""
    if not (model.nodes and model.inputs and model.outputs):
        raise EspdlError("the ESP-DL file holds no graph with inputs, operators and outputs")
    known = {"", *model.initializers, *(info.name for info in model.inputs)}
    for node in model.nodes:
        for name in node.inputs:
            if name not in known:
                raise EspdlError(f"the {node.operator} {node.name!r} needs {name!r}, which nothing before it computes")
        if not node.outputs or "" in node.outputs or known.intersection(node.outputs):
            raise EspdlError(f"the {node.operator} {node.name!r} computes nothing, or what is there already")
        if not model.values.keys() >= set(node.outputs):
            raise EspdlError(f"the ESP-DL file does not say of what type the {node.operator} {node.name!r} gives")
        known.update(node.outputs)
    computed = {name for node in model.nodes for name in node.outputs}
    for info in model.outputs:
        if info.name not in computed:
            raise EspdlError(f"nothing computes the output {info.name!r}")


def _node(table: _Table) -> Node:
    inputs, outputs, operator = tuple(table.texts(0)), tuple(table.texts(1)), table.text(3)
    if operator == "Conv" and len(inputs) < 2:
        raise EspdlError(f"the Conv {table.text(2)!r} has no weights")
    attributes = dict(_attribute(attribute) for attribute in table.tables(5))
    return Node(operator, table.text(2), inputs, outputs, attributes)


_ATTRIBUTES: dict[int, Callable[[_Table], int | float | str | tuple]] = {
    1: lambda table: table.number(4, "<f"),
    2: lambda table: table.number(5, "<q"),
    3: lambda table: table.text(6),
    6: lambda table: tuple(table.array(10, "float32").tolist()),
    7: lambda table: tuple(table.array(11, "int64").tolist()),
    8: lambda table: tuple(table.texts(12)),
}


def _attribute(table: _Table) -> tuple[str, int | float | str | tuple]:
    name, kind = table.text(0), table.number(3, "<i")
    if kind not in _ATTRIBUTES:
        raise EspdlError(f"the attribute {name!r} is of a kind that the toolkit does not know ({kind})")
    return name, _ATTRIBUTES[kind](table)


def _value_info(table: _Table) -> ValueInfo:
    name = table.text(0)
    kind = table.table(1).table(1)
    dimensions = [dimension.table(0) for dimension in kind.table(1).tables(0)]
    if any(dimension.number(0, "<b") != 1 for dimension in dimensions):
        raise EspdlError(f"the tensor {name!r} has no fixed shape")
    shape = _shape(name, [dimension.number(1, "<q") for dimension in dimensions])
    return ValueInfo(name, _dtype(name, kind.number(0, "<i")), shape, _exponents(name, table.array(3, "int64")))


def _tensor(table: _Table, depthwise: Collection[str] = ()) -> Tensor:
    name = table.text(6)
    dtype, layout = _dtype(name, table.number(1, "<i")), table.text(7).removeprefix(_LAYOUT_PREFIX)
    shape = _shape(name, table.array(0, "int64").tolist())
    count, raw = math.prod(shape), table.vector(8, _BLOCK)
    if raw:
        stored = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
        spare = len(raw) - count * np.dtype(dtype).itemsize
    else:
        stored = table.array(_TYPED_FIELDS.get(dtype, 3), dtype if dtype in _TYPED_FIELDS else "int32")
        spare = len(stored) - count
    if not 0 <= spare < (_BLOCK if raw else 1):
        raise EspdlError(f"the constant {name!r} has not as many values as its shape {shape} says")
    values = _plain_order(stored[:count], shape, layout, name in depthwise)
    return Tensor(name, dtype, shape, _exponents(name, table.array(13, "int64")), layout, values)


def _plain_order(stored: np.ndarray, shape: tuple[int, ...], layout: str, depthwise: bool) -> np.ndarray:
    """(H, W, C, N), or (H, W, N, 1) of a depthwise convolution, from the order that the chip's vector unit wants."""
    if layout not in _FILTERS_PER_BLOCK:
        return stored.reshape(shape)
    block = _FILTERS_PER_BLOCK[layout]
    if len(shape) < 2:
        raise EspdlError(f"a constant of the shape {shape} can't have the layout {layout}")
    if 0 in shape:
        return stored.reshape(shape)
    filters, channels = shape[-2:] if depthwise else shape[:-3:-1]
    places = math.prod(shape[:-2])
    whole = filters // block * block
    packed, rest = np.split(stored, [whole * places * channels])
    packed = packed.reshape(-1, places, channels, block).transpose(1, 2, 0, 3).reshape(places, channels, whole)
    if depthwise:
        rest = rest.reshape(channels, places, -1).transpose(1, 0, 2)
    else:
        rest = rest.reshape(-1, places, channels).transpose(1, 2, 0)
    return np.concatenate([packed, rest], axis=2).reshape(shape)


def _dtype(name: str, code: int) -> str:
    if code not in _DTYPES:
        raise EspdlError(f"the tensor {name!r} is of a type that the toolkit does not know ({code})")
    return _DTYPES[code]


def _shape(name: str, sizes: list[int]) -> tuple[int, ...]:
    if len(sizes) > _MOST_AXES or min(sizes, default=0) < 0 or math.prod(sizes) > _MOST_VALUES:
        raise EspdlError(f"the tensor {name!r} has an impossible shape, {tuple(sizes)}")
    return tuple(sizes)


def _exponents(name: str, exponents: np.ndarray) -> tuple[int, ...]:
    if np.any(np.abs(exponents.astype(np.float64)) > _LARGEST_EXPONENT):
        raise EspdlError(f"the tensor {name!r} has an impossible exponent")
    return tuple(exponents.tolist())
