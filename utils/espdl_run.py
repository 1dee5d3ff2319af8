"""Runs an ESP-DL file without the device: the same integers as Espressif's kernels, without torch.

Every tensor is a whole number times a power of two. The files don't say how the chip rounds: the metadata ``target``
must.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from utils import espdl_kernels as kernels
from utils.espdl_file import EspdlError, EspdlModel, Node, Tensor, ValueInfo

ROUNDING = {
    "esp32": kernels.half_up,
    "c": kernels.half_up,
    "esp32s3": kernels.half_up,
    "esp32p4": kernels.half_even,
}
PIXEL_EXPONENT = -7  # of an input that is pixel / 128 - 1
SOFTMAX_TOLERANCE = 2e-5  # devices test probabilities with it
_BATCH = 64  # pictures: keeps a convolution's columns in the cache's reach
# What numpy raises on nodes whose parts don't fit together.
_MISFIT = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, ZeroDivisionError, MemoryError)


def logits(model: EspdlModel, images: np.ndarray) -> np.ndarray:
    """Outputs as real numbers, (N, classes) float32, for raw pixels (N, H, W, C) uint8.

    Raises:
        EspdlError: the file's input is not ``pixel / 128 - 1`` of such pictures, or see :func:`run`.
    """
    (info,) = _single(model.inputs, "inputs")
    shift = PIXEL_EXPONENT - _exponent(info)
    if info.dtype not in ("int8", "int16") or not 0 <= shift <= np.iinfo(info.dtype).bits - 8:
        raise EspdlError(f"the file's input has the exponent {_exponent(info)}, so it is not pixel / 128 - 1")
    return outputs(model, ((images.astype(np.int32) - 128) << shift).astype(info.dtype))


def outputs(model: EspdlModel, inputs: np.ndarray) -> np.ndarray:
    """As :func:`run`, but real numbers, (N, ...) float32; the inputs are (N, H, W, C) whatever the file wants."""
    if model.inputs[0].shape[1:] != inputs.shape[1:]:
        inputs = inputs.transpose(0, 3, 1, 2)
    return _real(run(model, inputs), _single(model.outputs, "outputs")[0])


def run(model: EspdlModel, inputs: np.ndarray) -> np.ndarray:
    """The file's outputs (N, classes), as the device gives them: integers, probabilities as float32.

    Args:
        model: with one input and one output.
        inputs: (N, H, W, C), or (N, C, H, W) where the file wants it, in the input's integer type: pixel - 128.

    Raises:
        EspdlError: an unknown target or operator, or nodes that don't fit together. The message names the node.
    """
    (output,) = _single(model.outputs, "outputs")
    batches = (_computed(model, batch, {})[output.name] for batch in _batches(model, inputs))
    return np.concatenate(list(batches))


def differing_vectors(model: EspdlModel) -> list[str]:
    """Names of tensors that come out other than the file's own test values say; of int16 ones, by more than 1.

    Each node works on the test values of its inputs where there are some, so a difference shows only where it arises.

    Raises:
        EspdlError: the file has no test values, or see :func:`run`.
    """
    (info,) = _single(model.inputs, "inputs")
    if info.name not in model.test_inputs or not model.test_outputs:
        raise EspdlError("the ESP-DL file holds no test values")
    (batch,) = _batches(model, model.test_inputs[info.name].values)
    computed = _computed(model, batch, model.test_outputs)
    return [name for name, wanted in model.test_outputs.items() if not _agrees(computed.get(name), wanted)]


def accumulator_peaks(model: EspdlModel, inputs: np.ndarray) -> dict[str, int]:
    """The largest absolute sum, bias included, in every Conv, Gemm and MatMul, by the node's name.

    Raises:
        EspdlError: see :func:`run`.
    """
    peaks: dict[str, int] = {}
    for batch in _batches(model, inputs):
        for step, _ in _execute(model, batch, {}):
            if step.node.operator in _SUMS:
                peak = int(np.abs(_accumulators(step)).max())
                peaks[step.node.name] = max(peak, peaks.get(step.node.name, 0))
    return peaks


@dataclass(frozen=True)
class _Step:
    """A node with the values of its inputs, None for one that is left out."""

    node: Node
    values: tuple[np.ndarray | None, ...]
    infos: tuple[ValueInfo | Tensor | None, ...]
    table: np.ndarray | None  # of what an activation gives for every input
    output: ValueInfo
    rounding: Callable[[np.ndarray], np.ndarray]

    def attribute(self, name: str, default):
        return self.node.attributes.get(name, default)


def _single(parts: tuple, kind: str) -> tuple:
    if len(parts) != 1:
        raise EspdlError(f"the ESP-DL file has {len(parts)} {kind}; one is supported")
    return parts


def _batches(model: EspdlModel, inputs: np.ndarray) -> Iterator[np.ndarray]:
    (info,) = _single(model.inputs, "inputs")
    if inputs.shape[1:] != info.shape[1:] or inputs.dtype != info.dtype:
        raise EspdlError(f"the ESP-DL file takes {info.dtype} {info.shape[1:]}, not {inputs.dtype} {inputs.shape[1:]}")
    for start in range(0, len(inputs), _BATCH):
        yield inputs[start : start + _BATCH]


def _computed(model: EspdlModel, batch: np.ndarray, known: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {step.output.name: result for step, result in _execute(model, batch, known)}


def _execute(model: EspdlModel, batch: np.ndarray, known: dict[str, Tensor]) -> Iterator[tuple[_Step, np.ndarray]]:
    """Node by node what comes out; what is ``known`` goes into the following nodes instead of that."""
    target = model.metadata.get("target")
    if target not in ROUNDING:
        targets = ", ".join(sorted(ROUNDING))
        raise EspdlError(f"the ESP-DL file's metadata names the target {target!r}; known are {targets}")
    infos = {"": None, **model.initializers, **model.values}
    values = {"": None, model.inputs[0].name: batch}
    values |= {name: tensor.values for name, tensor in model.initializers.items()}
    for node in model.nodes:
        if node.operator not in _OPERATORS or len(node.outputs) != 1:
            raise EspdlError(f"the ESP-DL file has an operator that the toolkit does not know: {node.operator}")
        names, output = node.inputs, infos[node.outputs[0]]
        parts = (tuple(values[name] for name in names), tuple(infos[name] for name in names))
        step = _Step(node, *parts, values.get(node.attributes.get("lut")), output, ROUNDING[target])
        try:
            result = _OPERATORS[node.operator](step)
        except _MISFIT as error:
            raise EspdlError(f"the {node.operator} {node.name!r} can't be computed: {error}") from error
        # The sizes' order may be wrong in the file, see ValueInfo.
        if result.size != len(batch) * int(np.prod(output.shape[1:])) or len(result) != len(batch):
            raise EspdlError(f"the {node.operator} {node.name!r} gives {result.shape[1:]}, not {output.shape[1:]}")
        given = known[output.name].values if output.name in known else result
        values[output.name] = given if given.shape == result.shape and given.dtype == result.dtype else result
        yield step, result


def _agrees(computed: np.ndarray | None, wanted: Tensor) -> bool:
    if computed is None or computed.size != wanted.values.size:
        return False
    tolerance = {"float32": SOFTMAX_TOLERANCE, "int16": 1}.get(wanted.dtype, 0)
    difference = computed.astype(np.float64).ravel() - wanted.values.astype(np.float64).ravel()
    return bool(np.all(np.abs(difference) <= tolerance))


# --- Scales -----------------------------------------------------------------------------------------------------------


def _exponent(info: ValueInfo | Tensor) -> int:
    if len(info.exponents) != 1:
        raise EspdlError(f"the tensor {info.name!r} has {len(info.exponents)} exponents; one is supported")
    return info.exponents[0]


def _real(values: np.ndarray, info: ValueInfo | Tensor) -> np.ndarray:
    """Real numbers, float32; integers times their scale."""
    if "float" in info.dtype:
        return values.astype(np.float32)
    return np.ldexp(values.astype(np.float32), _exponent(info))


def _scaled(step: _Step, index: int) -> np.ndarray:
    """An input in units of the output's scale, float64."""
    info = step.infos[index]
    power = 0 if "float" in info.dtype else _exponent(info)
    return np.ldexp(step.values[index].astype(np.float64), power - _exponent(step.output))


def _rounded(step: _Step, values: np.ndarray) -> np.ndarray:
    return kernels.saturated(step.rounding(values), step.output.dtype)


# --- Operators with weights -------------------------------------------------------------------------------------------


def _accumulators(step: _Step) -> np.ndarray:
    x, weights, bias = (*step.values, None)[:3]
    kind = kernels.accumulator_type(x, weights, bias)
    sums = _SUMS[step.node.operator](step, x.astype(kind), weights.astype(kind))
    return sums if bias is None else sums + bias.astype(kind)


def _weighted(step: _Step) -> np.ndarray:
    sums = _accumulators(step)
    source, weights = step.infos[:2]
    exponents = _exponent(source) + np.array(weights.exponents)
    if len(step.infos) > 2 and np.any(exponents != step.infos[2].exponents):
        raise EspdlError(f"the bias of the {step.node.operator} {step.node.name!r} has another scale than its sums")
    values = sums * np.ldexp(sums.dtype.type(1), exponents - _exponent(step.output))
    activation = step.attribute("activation", "Linear")
    if activation not in ("Linear", "Relu"):
        raise EspdlError(f"the toolkit does not know the activation {activation} of the {step.node.operator}")
    return _rounded(step, np.maximum(values, 0, out=values) if activation == "Relu" else values)


def _convolution(step: _Step, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    strides, dilations, pads = _window(step)
    group = step.attribute("group", 1)
    if group == 1:
        return kernels.convolution(x, weights, strides, dilations, pads)
    if weights.shape[2:] != (x.shape[3], 1) or group != x.shape[3]:
        raise EspdlError(f"the Conv {step.node.name!r} has {group} groups; one is supported, or one a channel")
    return kernels.depthwise_convolution(x, weights, strides, dilations, pads)


def _dense(step: _Step, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return x @ weights.reshape(-1, weights.shape[-1])


_SUMS = {"Conv": _convolution, "Gemm": _dense, "MatMul": _dense}


# --- Operators on windows ---------------------------------------------------------------------------------------------


def _window(step: _Step) -> tuple[tuple, tuple, tuple]:
    """Strides, dilations, pads."""
    strides, dilations = step.attribute("strides", (1, 1)), step.attribute("dilations", (1, 1))
    pads, largest = step.attribute("pads", (0, 0, 0, 0)), max(step.values[0].shape[1:])
    if step.attribute("ceil_mode", 0) or step.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ValueError("windows of a kind that the toolkit does not know")
    if min(strides + dilations) < 1 or min(pads) < 0 or max(pads + dilations) > largest:
        raise ValueError("impossible strides, dilations or pads")
    return strides, dilations, pads


def _max_pool(step: _Step) -> np.ndarray:
    _check_same_scale(step)
    return kernels.maximum(step.values[0], step.attribute("kernel_shape", ()), *_window(step))


def _average_pool(step: _Step) -> np.ndarray:
    size = step.attribute("kernel_shape", step.values[0].shape[1:3])
    strides, _, pads = _window(step)
    return _rounded(step, kernels.total(_scaled(step, 0), size, strides, pads) / np.prod(size))


def _reduce_mean(step: _Step) -> np.ndarray:
    axes, keep = tuple(_constant(step, "axes")), bool(step.attribute("keepdims", 1))
    return _rounded(step, _scaled(step, 0).mean(axis=axes, keepdims=keep))


# --- Operators element by element -------------------------------------------------------------------------------------


def _combined(combine: Callable) -> Callable[[_Step], np.ndarray]:
    return lambda step: _rounded(step, combine(_scaled(step, 0), _scaled(step, 1)))


def _multiply(step: _Step) -> np.ndarray:
    product = _scaled(step, 0) * step.values[1].astype(np.float64)
    return _rounded(step, np.ldexp(product, _exponent(step.infos[1])))


def _requantize(step: _Step) -> np.ndarray:
    return _rounded(step, _scaled(step, 0))


def _dequantize(step: _Step) -> np.ndarray:
    return _real(step.values[0], step.infos[0])


def _softmax(step: _Step) -> np.ndarray:
    x, axis = _real(step.values[0], step.infos[0]), step.attribute("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _activation(step: _Step) -> np.ndarray:
    """From the file's table where the device does so, which is with 8 bits and in the operator LUT."""
    x = step.values[0]
    if x.dtype == np.int8 or step.node.operator == "LUT":
        # The 16-bit table may hold every 32nd value, say; the device takes the nearest.
        spacing = 2 ** (8 * x.itemsize) // (len(step.table) - len(step.table) % 2)
        index = step.rounding((x.astype(np.float64) - np.iinfo(x.dtype).min) / spacing)
        return step.table[index.astype(np.intp)]
    real = np.ldexp(x.astype(np.float64), _exponent(step.infos[0]))
    return _rounded(step, np.ldexp(_FUNCTIONS[step.node.operator](step, real), -_exponent(step.output)))


def _clip(step: _Step, x: np.ndarray) -> np.ndarray:
    low, high = (float(_real(step.values[index], step.infos[index])) for index in (1, 2))
    return np.clip(x, low, high)


# What 16-bit files need besides LUT.
_FUNCTIONS = {
    "Relu": lambda step, x: np.maximum(x, 0),
    "LeakyRelu": lambda step, x: np.where(x < 0, x * step.attribute("alpha", 0.01), x),
    "Clip": _clip,
    "Sigmoid": lambda step, x: 1 / (1 + np.exp(-x)),
    "Tanh": lambda step, x: np.tanh(x),
}


# --- Operators that move values ---------------------------------------------------------------------------------------


def _check_same_scale(step: _Step) -> None:
    for info in step.infos[: len(step.infos) if step.node.operator == "Concat" else 1]:
        if info.exponents != step.output.exponents or info.dtype != step.output.dtype:
            raise ValueError("the scale of its input is not that of its output")


def _constant(step: _Step, attribute: str) -> list[int]:
    """Whole numbers that are the second input, or an attribute in older files."""
    if len(step.values) > 1:
        return step.values[1].tolist()
    return list(step.node.attributes[attribute])


def _moved(move: Callable[[_Step, np.ndarray], np.ndarray]) -> Callable[[_Step], np.ndarray]:
    def moved(step: _Step) -> np.ndarray:
        _check_same_scale(step)
        return move(step, step.values[0])

    return moved


def _reshape(step: _Step, x: np.ndarray) -> np.ndarray:
    first, *sizes = _constant(step, "shape")
    if first not in (1, 0, -1):
        raise ValueError("it mixes pictures")
    kept = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes, start=1)]
    return x.reshape(len(x), *kept)


def _transpose(step: _Step, x: np.ndarray) -> np.ndarray:
    if step.node.attributes["perm"][0] != 0:
        raise ValueError("it mixes pictures")
    return x.transpose(step.node.attributes["perm"])


def _pad(step: _Step, x: np.ndarray) -> np.ndarray:
    pads = np.reshape(_constant(step, "pads"), (2, x.ndim)).T
    fills = np.any(step.values[2]) if len(step.values) > 2 and step.values[2] is not None else False
    if step.attribute("mode", "constant") != "constant" or fills or len(step.values) > 3 or pads.min() < 0:
        raise ValueError("only padding with zeros is supported")
    if np.prod(x.shape[1:] + pads.sum(axis=1)[1:]) != np.prod(step.output.shape[1:]):
        raise ValueError("its pads don't lead to its output's shape")
    return np.pad(x, pads)


_OPERATORS: dict[str, Callable[[_Step], np.ndarray]] = {
    **dict.fromkeys(_SUMS, _weighted),
    "MaxPool": _max_pool,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _average_pool),
    "ReduceMean": _reduce_mean,
    "Add": _combined(np.add),
    "Sub": _combined(np.subtract),
    "Mul": _multiply,
    **dict.fromkeys(("RequantizeLinear", "QuantizeLinear"), _requantize),
    "DequantizeLinear": _dequantize,
    "Softmax": _softmax,
    **dict.fromkeys((*_FUNCTIONS, "PRelu", "HardSwish", "HardSigmoid", "Elu", "Swish", "Gelu", "LUT"), _activation),
    "Reshape": _moved(_reshape),
    "Flatten": _moved(lambda step, x: x.reshape(len(x), -1)),
    "Squeeze": _moved(lambda step, x: x.squeeze(tuple(_constant(step, "axes")))),
    "Unsqueeze": _moved(lambda step, x: np.expand_dims(x, tuple(_constant(step, "axes")))),
    "Transpose": _moved(_transpose),
    "Pad": _moved(_pad),
    "Concat": _moved(lambda step, x: np.concatenate(step.values, axis=step.node.attributes["axis"])),
    "Identity": _moved(lambda step, x: x),
}
