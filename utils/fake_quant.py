"""Fake quantisation: a model's clone that rounds as the 8-bit file will, for PTQ and QAT alike.

Batch normalisation is folded into the convolution or dense layer before it, and a range stands behind every tensor
that TensorFlow Lite materialises. Ranges observed on calibration pictures make post-training quantisation; trained
with fake-quantised weights for some epochs, the same model makes quantisation-aware training (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"). Weights are symmetric,
per channel for convolutions and per tensor for dense layers, with the scales that the TensorFlow Lite converter
chooses by itself: ``max|w| / 127``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from utils.errors import UserError

STEPS = 255  # between the 256 values of an 8-bit tensor
INPUT_RANGE = (-1.0, 127 / 128)  # of pixel / 128 - 1: scale 1/128, zero point 0
# How far the logits' range reaches below a faint picture's largest logit (percent of the pictures with a lower one).
# What lies lower is next to nothing after softmax, but would make the steps so wide that the two largest logits often
# fall on the same one.
LOGITS_MARGIN = 6.0
FAINT_PERCENT = 1.0
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue; OpenCV's grey has the same
RANGE_SUFFIX = "_range"
OBSERVED_AT_ONCE = 256  # pictures
RANGE_MOMENTUM = 0.99

WEIGHTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
# These hand values on unchanged, some but in training, so TensorFlow Lite gives their output the scale of their input.
TRANSPARENT = (
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.Flatten, layers.Reshape),
    *(layers.ZeroPadding2D, layers.Identity, layers.InputLayer),
    *(layers.Dropout, layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise),
)
OTHERS = (
    *(layers.Rescaling, layers.BatchNormalization, layers.ReLU, layers.LeakyReLU, layers.Activation, layers.Add),
    *(layers.Concatenate, layers.Multiply, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
)
KNOWN = (*WEIGHTED, *TRANSPARENT, *OTHERS)
# TensorFlow Lite has operators in integers for these, behind a layer; others would stay float.
SEPARATE_ACTIVATIONS = ("leaky_relu", "silu", "hard_silu", "tanh", "sigmoid", "hard_tanh", "softmax")


class QuantizationError(UserError):
    """A model has a layer that can't be quantised. The message names it."""


class ActivationRange(layers.Layer):
    """Rounds to 256 values from ``low`` to ``high``; with ``averaging`` it follows what it sees in training."""

    def __init__(self, averaging: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.averaging = averaging
        self.low = self.add_weight(shape=(), initializer="zeros", trainable=False, name="low")
        self.high = self.add_weight(shape=(), initializer="zeros", trainable=False, name="high")

    def call(self, x, training=False):
        if training and self.averaging:
            self._follow(self.low, ops.minimum(ops.min(x), 0.0))
            self._follow(self.high, ops.maximum(ops.max(x), 0.0))
        return keras.quantizers.fake_quant_with_min_max_vars(x, self.low, self.high, num_bits=8)

    def get_config(self) -> dict:
        return {**super().get_config(), "averaging": self.averaging}

    @staticmethod
    def _follow(variable, value) -> None:
        variable.assign(RANGE_MOMENTUM * variable + (1 - RANGE_MOMENTUM) * value)


class FakeQuantConv2D(layers.Conv2D):
    """Convolution with 8-bit weights, one scale an output channel."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, _rounded(kernel, (0, 1, 2)))


class FakeQuantDepthwiseConv2D(layers.DepthwiseConv2D):
    """Depthwise convolution with 8-bit weights, one scale a channel."""

    def call(self, inputs):
        x = ops.depthwise_conv(
            inputs, _rounded(self.kernel, (0, 1)), self.strides, self.padding, self.data_format, self.dilation_rate
        )
        return self.activation(x + self.bias)


class FakeQuantDense(layers.Dense):
    """Dense layer with 8-bit weights and one scale: older TFLite Micro computes per-channel ones wrongly."""

    def call(self, inputs, training=None):
        return self.activation(ops.matmul(inputs, _rounded(self.kernel, (0, 1))) + self.bias)


FAKE_QUANT = {
    layers.Conv2D: FakeQuantConv2D,
    layers.DepthwiseConv2D: FakeQuantDepthwiseConv2D,
    layers.Dense: FakeQuantDense,
}


@dataclass(frozen=True)
class _Plan:
    folded: dict[str, str]  # batch normalisation -> the layer it goes into
    ranged: tuple[str, ...]  # layers with a range behind them
    fixed: tuple[str, ...]  # those of them whose range training does not move


def quantize(model: keras.Model, calibration: np.ndarray) -> keras.Model:
    """A clone of ``model`` with fake-quantised weights and activations, ranges set from pictures; ready for QAT.

    Args:
        model: starts with ``Rescaling(1/128, offset=-1)``, ends in logits; raw pixels in.
        calibration: training pictures ``(N, H, W, C)`` uint8; the ranges are the extremes seen on them, but for the
            input's, which is fixed, and the logits', which ends ``LOGITS_MARGIN`` below a faint picture's.

    Raises:
        QuantizationError: a layer that can't be quantised.
    """
    plan = _plan(model)
    quantized = _clone(model, plan, FAKE_QUANT)
    _copy_folded(model, quantized, plan)
    for name, ends in _observe(model, plan, calibration).items():
        quantized.get_layer(name + RANGE_SUFFIX).set_weights(np.array(ends, np.float32))
    return quantized


def check(model: keras.Model, file: str) -> None:
    """Refuses what :func:`quantize` would, so before it is trained. ``file`` is where the model lies, for the message.

    Raises:
        QuantizationError: a layer that can't be quantised.
    """
    try:
        _plan(model)
    except QuantizationError as error:
        hint = "train.py and fine-tune.py with --set QUANTIZE_MODEL=False make the float files alone"
        raise QuantizationError(f"{file}: {error}; {hint}") from error


def ranges(quantized: keras.Model) -> dict[str, tuple[float, float]]:
    """Low and high end of every activation range, by name, as the file will have them."""
    found = {layer.name: layer for layer in quantized.layers if isinstance(layer, ActivationRange)}
    return {name: whole_zero_point(float(layer.low), float(layer.high)) for name, layer in found.items()}


def deployable(quantized: keras.Model) -> keras.Model:
    """What is converted: plain layers, the ranges, no rescaling; takes ``pixel / 128 - 1``.

    The weights are left to the converter, which rounds them to the same values; fake-quantised dense weights would
    make it fail.
    """
    core = _plain(quantized, dropped=(layers.Rescaling,))
    for name, ends in ranges(quantized).items():
        core.get_layer(name).set_weights(np.array(ends, np.float32))
    return core


def folded(quantized: keras.Model) -> tuple[keras.Model, float]:
    """The float network alone, batch normalisation folded: no ranges, no rescaling; takes ``pixel / 128 - 1``.

    The logits' range is moved to lie evenly around zero, which suits formats without a zero point: what all logits lose
    alike changes neither the largest nor the softmax. Where no layer with a bias ends the network it stays.

    Returns:
        The network, and the largest magnitude its logits need.
    """
    network = _plain(quantized, dropped=(layers.Rescaling, ActivationRange))
    last = _parents(quantized.get_layer(_last(quantized)))[0]
    low, high = ranges(quantized)[_last(quantized)]
    if not (isinstance(last, WEIGHTED) and _linear(last)):
        return network, max(-low, high)
    kernel, bias = last.get_weights()
    network.get_layer(last.name).set_weights([kernel, bias - (low + high) / 2])
    return network, (high - low) / 2


def joins_picture(layer: keras.layers.Layer) -> bool:
    """Whether a layer of a folded network concatenates the picture itself, maybe pooled or padded, and other values."""
    return isinstance(layer, layers.Concatenate) and len({_is_picture(parent) for parent in _parents(layer)}) > 1


def with_rgb_input(quantized: keras.Model) -> keras.Model:
    """The same network for RGB pictures: grey by the usual weights (ITU-R BT.601), which go into the first kernel.

    Returns a grey model's clone that takes ``(N, H, W, 3)``; an RGB model comes back as it is.

    Raises:
        QuantizationError: the first layer is no convolution that could take the weights.
    """
    if quantized.input_shape[-1] == 3:
        return quantized
    for layer in _first(quantized):
        if not isinstance(layer, layers.Conv2D):
            raise QuantizationError(
                f"layer {layer.name}: only a convolution right at the beginning makes a network of grey pictures take "
                "RGB ones; train with INPUT_CHANNELS = 3"
            )
    image = keras.Input((*quantized.input_shape[1:3], 3), name=quantized.layers[0].name)
    rgb = keras.models.clone_model(quantized, input_tensors=image)
    for layer in rgb.layers:
        weights = quantized.get_layer(layer.name).get_weights()
        if weights and weights[0].shape != layer.weights[0].shape:
            # Padding is zero in every channel, and the weights add up to one: not a value changes.
            weights[0] = weights[0] * np.reshape(GREY_WEIGHTS, (3, 1)).astype(np.float32)
        layer.set_weights(weights)
    return rgb


def whole_zero_point(low: float, high: float) -> tuple[float, float]:
    """Moves a range that holds 0 by less than a step so that 0 falls on one, as the 8-bit format demands."""
    low, high = min(low, 0.0), max(high, 0.0, low + 1e-6)
    scale = (high - low) / STEPS
    steps_below = round(-low / scale)
    return -steps_below * scale, (STEPS - steps_below) * scale


def _rounded(kernel, axes: tuple[int, ...]):
    limit = ops.stop_gradient(ops.maximum(ops.max(ops.abs(kernel), axis=axes, keepdims=True), 1e-6))
    scaled = ops.clip(kernel / limit * 127, -127, 127)
    # The gradient passes as if nothing had been rounded (straight-through estimator, Bengio et al. 2013).
    return (scaled + ops.stop_gradient(ops.round(scaled) - scaled)) * (limit / 127)


def _parents(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return [node.operation for node in layer._inbound_nodes[0].parent_nodes]


def _is_picture(layer: keras.layers.Layer) -> bool:
    passes = isinstance(layer, TRANSPARENT)
    return isinstance(layer, layers.InputLayer) or (passes and all(_is_picture(one) for one in _parents(layer)))


def _first(quantized: keras.Model) -> list[keras.layers.Layer]:
    """The layers that see the pictures first, but for those that treat all channels alike."""
    found, reached = [], [quantized.layers[0]]
    while reached:
        for layer in [node.operation for node in reached.pop()._outbound_nodes]:
            passes = isinstance(layer, (*TRANSPARENT, layers.Rescaling, ActivationRange))
            # The largest values of the colours need not be of one pixel; another shape is one of grey pictures.
            passes = passes and not isinstance(layer, layers.MaxPooling2D | layers.Reshape)
            (reached if passes else found).append(layer)
    return found


def _plan(model: keras.Model) -> _Plan:
    first, *others = [layer for layer in model.layers if isinstance(layer, layers.Rescaling)] or [None]
    if first is not model.layers[1] or (first.scale, first.offset) != (1 / 128, -1):
        raise QuantizationError(
            f"{model.name} does not start with Rescaling(1/128, offset=-1): build it on _blocks.image_input"
        )
    if others:
        raise QuantizationError(f"layer {others[0].name}: a further Rescaling can't be quantised; multiply the weights")
    if objections := list(_objections(model)):
        raise QuantizationError("; ".join(objections))
    consumers = {layer.name: [] for layer in model.layers}
    for layer in model.operations:
        for parent in _parents(layer):
            consumers[parent.name].append(layer)
    folded = {
        layer.name: parent.name
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization)
        for parent in _parents(layer)
        if isinstance(parent, WEIGHTED) and _linear(parent) and len(consumers[parent.name]) == 1
    }
    for layer in model.layers:
        flat = isinstance(layer, layers.BatchNormalization) and len(layer.output.shape) != 4
        if flat and layer.name not in folded:
            hint = "put the batch normalisation right behind a dense layer without activation"
            raise QuantizationError(f"layer {layer.name}: {hint}")
    for layer in model.layers:
        fused = any(_fused_into_next(parent, consumers[parent.name], folded) for parent in _parents(layer))
        if _is_relu6(layer) and not fused:
            # As an operator of its own its kernel leaves the scale of its input.
            raise QuantizationError(
                f"layer {layer.name}: TFLite Micro computes a ReLU(6) wrongly unless it alone follows a convolution, "
                "dense layer, Add or BatchNormalization without activation: move it there, or use ReLU()"
            )
    ranged = [
        layer.name
        for layer in model.layers
        if not isinstance(layer, TRANSPARENT) and not _fused_into_next(layer, consumers[layer.name], folded)
    ]
    return _Plan(folded, tuple(ranged), (model.layers[1].name, _last(model)))


def _last(model: keras.Model) -> str:
    """Name of the layer that makes the logits' values; what is behind it only hands them on."""
    layer = model.output._keras_history.operation
    while isinstance(layer, TRANSPARENT):
        (layer,) = _parents(layer)
    return layer.name


def _objections(model: keras.Model) -> Iterator[str]:
    """What can't be quantised, and what to do instead: everything at once, since asking anew takes a minute."""
    if foreign := [layer for layer in model.layers if not isinstance(layer, KNOWN)]:
        named = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in foreign)
        kinds = sorted(kind.__name__ for kind in KNOWN if kind is not layers.InputLayer)
        yield f"layer {named} can't be quantised; build it in one flat model from {', '.join(kinds)}"
    for operation in model.operations:
        if text := _objection(operation):
            yield text


def _objection(layer: keras.Operation) -> str:
    """What is wrong with a layer of a kind that is known, or with an operation that is no layer; "" if nothing."""
    if not isinstance(layer, layers.Layer):
        return f"operation {layer.name} is no layer: write it as one to quantise it, + as layers.Add() for example"
    if isinstance(layer, (*WEIGHTED, layers.Activation)) and not (_linear(layer) or _is_relu(layer)):
        activation = getattr(layer.activation, "__name__", str(layer.activation))
        # Such as Conv2D(8, 3, activation=LeakyReLU()).
        within = isinstance(layer.activation, layers.Layer)
        if activation not in SEPARATE_ACTIVATIONS and not within:
            names = ", ".join(("relu", "relu6", *SEPARATE_ACTIVATIONS))
            return f"layer {layer.name}: its activation {activation} can't be quantised; {names} can"
        if isinstance(layer, WEIGHTED) or within:
            return f"layer {layer.name}: put its activation into a layer of its own to quantise it"
    odd = isinstance(layer, layers.ReLU) and not _is_relu(layer)
    if odd and (layer.max_value is not None or layer.threshold):
        return (
            f"layer {layer.name}: a ReLU with max_value = {layer.max_value}, negative_slope = {layer.negative_slope} "
            f"and threshold = {layer.threshold} can't be quantised; ReLU(), ReLU(6) and LeakyReLU can"
        )
    if isinstance(layer, layers.Add | layers.Multiply) and len(_parents(layer)) > 2:
        return f"layer {layer.name} takes {len(_parents(layer))} tensors: let it take two at a time"
    if isinstance(layer, layers.BatchNormalization) and layer.axis not in (-1, len(layer.output.shape) - 1):
        return f"layer {layer.name} normalises over axis {layer.axis}: let it be the last one, channels"
    if len(layer._inbound_nodes) > 1:
        return f"layer {layer.name} is used more than once: a shared layer can't be quantised"
    return ""


def _linear(layer: keras.layers.Layer) -> bool:
    return layer.activation is keras.activations.linear


def _is_relu(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, layers.ReLU):
        return layer.max_value in (None, 6) and not layer.negative_slope and not layer.threshold
    return getattr(layer, "activation", None) in (keras.activations.relu, keras.activations.relu6)


def _is_relu6(layer: keras.layers.Layer) -> bool:
    """True of a layer that is nothing but that."""
    if isinstance(layer, layers.ReLU):
        return layer.max_value == 6
    return isinstance(layer, layers.Activation) and layer.activation is keras.activations.relu6


def _fused_into_next(layer: keras.layers.Layer, consumers: list, folded: dict[str, str]) -> bool:
    """True where TensorFlow Lite makes one operator of a layer and its only consumer."""
    if len(consumers) != 1:
        return False
    (consumer,) = consumers
    if folded.get(consumer.name) == layer.name or isinstance(consumer, layers.Concatenate | layers.GlobalMaxPooling2D):
        # What is joined, or whose maximum is taken, has the scale of the result, so that one's range speaks for it.
        return True
    # A batch normalisation with nothing to fold into becomes a convolution.
    linear = isinstance(layer, layers.Add | layers.BatchNormalization) or (
        isinstance(layer, WEIGHTED) and _linear(layer)
    )
    return linear and _is_relu(consumer) and not isinstance(consumer, WEIGHTED)


def _plain(quantized: keras.Model, dropped: tuple[type, ...]) -> keras.Model:
    plain = {fake: layer for layer, fake in FAKE_QUANT.items()}
    core = _clone(quantized, _Plan({}, (), ()), plain, dropped)
    for layer in core.layers:
        if layer.weights:
            layer.set_weights(quantized.get_layer(layer.name).get_weights())
    return core


def _clone(model: keras.Model, plan: _Plan, kinds: dict[type, type], dropped: tuple[type, ...] = ()) -> keras.Model:
    def make(layer):
        if layer.name in plan.folded or isinstance(layer, dropped):
            return layers.Identity(name=layer.name)
        if isinstance(layer, layers.BatchNormalization):
            # With nothing to fold into it is a 1x1 depthwise convolution; as it stands it would stay float.
            return kinds[layers.DepthwiseConv2D](1, name=layer.name)
        config = layer.get_config()
        if type(layer) in kinds:
            return kinds[type(layer)].from_config({**config, "use_bias": True})
        return type(layer).from_config(config)

    def call(layer, *inputs, mask=None, **options):
        x = layer(*inputs, **options)
        if layer.name not in plan.ranged:
            return x
        return ActivationRange(averaging=layer.name not in plan.fixed, name=layer.name + RANGE_SUFFIX)(x)

    return keras.models.clone_model(model, clone_function=make, call_function=call)


def _copy_folded(model: keras.Model, clone: keras.Model, plan: _Plan) -> None:
    norms = {target: model.get_layer(norm) for norm, target in plan.folded.items()}
    for layer in model.layers:
        if isinstance(layer, WEIGHTED):
            kernel, *bias = layer.get_weights()
            bias = bias[0] if bias else np.zeros(layer.output.shape[-1], np.float32)
            if layer.name in norms:
                kernel, bias = _fold(layer, kernel, bias, norms[layer.name])
            clone.get_layer(layer.name).set_weights([kernel, bias])
        elif isinstance(layer, layers.BatchNormalization) and layer.name not in plan.folded:
            factor, offset = _factor_and_offset(layer)
            clone.get_layer(layer.name).set_weights([factor[None, None, :, None], offset])
        elif layer.weights and layer.name not in plan.folded:
            clone.get_layer(layer.name).set_weights(layer.get_weights())


def _fold(layer, kernel: np.ndarray, bias: np.ndarray, norm: layers.BatchNormalization) -> tuple:
    factor, offset = _factor_and_offset(norm)
    per_kernel = factor.reshape(kernel.shape[-2:]) if isinstance(layer, layers.DepthwiseConv2D) else factor
    return kernel * per_kernel, bias * factor + offset


def _factor_and_offset(norm: layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = (ops.convert_to_numpy(value) for value in (norm.moving_mean, norm.moving_variance))
    gamma = ops.convert_to_numpy(norm.gamma) if norm.scale else np.ones_like(mean)
    beta = ops.convert_to_numpy(norm.beta) if norm.center else np.zeros_like(mean)
    factor = gamma / np.sqrt(variance + norm.epsilon)
    return factor, beta - mean * factor


def _observe(model: keras.Model, plan: _Plan, calibration: np.ndarray) -> dict[str, tuple[float, float]]:
    tensors = [model.get_layer(name).output for name in plan.ranged]
    observer = keras.Model(model.input, [*tensors, model.output])
    extremes, parts = [], []
    # All pictures' features at once would take gigabytes.
    for start in range(0, len(calibration), OBSERVED_AT_ONCE):
        *seen, part = observer.predict_on_batch(calibration[start : start + OBSERVED_AT_ONCE])
        extremes.append([(of.min(), of.max()) for of in seen])
        parts.append(part)
    lows, highs = np.min(extremes, axis=0)[:, 0], np.max(extremes, axis=0)[:, 1]
    found = {name: (float(low), float(high)) for name, low, high in zip(plan.ranged, lows, highs, strict=True)}
    logits = np.concatenate(parts)
    first, last = plan.fixed
    found[first] = INPUT_RANGE
    behind = model.layers[model.layers.index(model.get_layer(last)) + 1 :]
    # An average is of all values, low ones too.
    if not any(isinstance(layer, layers.AveragePooling2D) for layer in behind):
        # What never comes out, since a larger value of its digit does, needs no steps.
        low, high = float(logits.min()), float(logits.max())
        faint = float(np.percentile(logits.max(axis=1), FAINT_PERCENT))
        found[last] = (max(low, faint - LOGITS_MARGIN), high)
    return {name: whole_zero_point(*ends) for name, ends in found.items()}
