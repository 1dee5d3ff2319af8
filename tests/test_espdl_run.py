"""The interpreter against esp-ppq's own simulation, value for value."""

import dataclasses
from functools import cache
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from keras import layers

from tests import espdl_samples as samples
from utils import espdl_file, espdl_gate, espdl_run
from utils.espdl_file import EspdlError

IMAGES = samples.PICTURES[-800:]


# Looked for, not imported: that would print a banner and change sys.path.
pytestmark = pytest.mark.skipif(find_spec("esp_ppq") is None, reason="esp-ppq is not installed")


@cache
def branches() -> keras.Model:
    """What our architectures don't have: padding, stride 2, dilation, depthwise, gates, joined branches."""
    image = keras.Input((32, 20, 3))
    x = layers.ZeroPadding2D(((0, 1), (2, 0)))(image)
    x = layers.LeakyReLU(0.125)(layers.Conv2D(20, 3, strides=2, padding="same")(x))
    x = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same")(x))
    y = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x)
    y = layers.Conv2D(12, 1, activation="tanh")(y)
    z = layers.Conv2D(7, 3, dilation_rate=2, padding="same")(layers.AveragePooling2D(2)(x))
    joined = layers.Concatenate()([y, layers.ZeroPadding2D(((0, 1), (0, 1)))(z)])
    gate = layers.Conv2D(5, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(joined))
    gate = layers.Conv2D(19, 1, activation="sigmoid")(gate)
    x = layers.MaxPooling2D(2, padding="same")(layers.Multiply()([joined, gate]))
    return samples.with_biases(keras.Model(image, layers.Dense(10)(layers.Flatten()(x))))


def grey() -> keras.Model:
    """Activations from tables, sums and differences, one channel in, probabilities out."""
    image = keras.Input((32, 20, 1))
    x = layers.Conv2D(16, 3, padding="same", activation="silu")(image)
    x = layers.AveragePooling2D(2)(x)
    x = layers.Add()([x, layers.Conv2D(16, 3, padding="same", activation="elu")(x)])
    x = layers.Conv2D(33, 3, padding="same", activation="hard_silu")(x)
    x = layers.Subtract()([x, layers.Conv2D(33, 1)(x)])
    x = layers.Dense(18, activation="relu")(layers.Reshape((-1,))(layers.MaxPooling2D(3, 2, padding="same")(x)))
    return samples.with_biases(keras.Model(image, layers.Softmax()(layers.Dense(10)(x))))


@cache
def small() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 20, 3))
    x = layers.MaxPooling2D(4)(layers.Conv2D(9, 3, padding="same", activation="relu")(image))
    x = layers.Conv2D(18, 3, strides=2, padding="same")(x)
    return samples.with_biases(keras.Model(image, layers.Dense(10)(layers.Flatten()(x))))


@pytest.fixture(scope="module")
def small_sample(tmp_path_factory):
    return samples.quantized(small(), "esp32s3", tmp_path_factory.mktemp("small"), vectors=True)


def bytes_of(model: espdl_file.EspdlModel, images: np.ndarray) -> np.ndarray:
    shift = -7 - model.inputs[0].exponents[0]
    return ((images.astype(np.int32) - 128) << shift).astype(model.inputs[0].dtype)


def trace(model: espdl_file.EspdlModel, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors by name."""
    batches = [espdl_run._computed(model, batch, {}) for batch in espdl_run._batches(model, inputs)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def visible_tensors(sample: samples.Sample) -> list[str]:
    """Tensors that esp-ppq rounds, too: where an activation follows, it rounds only behind that."""
    hidden = {name for node in sample.model.nodes if node.operator in ("Relu", "Clip", "LUT") for name in node.inputs}
    computed = [name for node in sample.model.nodes for name in node.outputs]
    return [name for name in computed if name in sample.graph.variables and name not in hidden]


def largest_differences(sample: samples.Sample, images: np.ndarray) -> dict[str, float]:
    """In steps of each tensor; esp-ppq's order of axes is another."""
    wanted = samples.simulated(sample, images, visible_tensors(sample))
    computed = trace(sample.model, bytes_of(sample.model, images))
    found = {}
    for name, values in wanted.items():
        steps = values / 2.0 ** sample.model.values[name].exponents[0]
        if steps.shape != computed[name].shape or not np.array_equal(steps, computed[name]):
            steps = np.moveaxis(steps, 1, -1)
        found[name] = float(np.abs(steps - computed[name]).max())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", samples.TARGETS)
@pytest.mark.parametrize(
    ("name", "count", "batch"), [("cnn32", 100, 1), ("digit_recognizer_v4", 100, 1), ("digit_recognizer_v12", 800, 50)]
)
def test_logits_and_tensors_of_our_architectures_equal_esp_ppqs(name, count, batch, target, tmp_path):
    sample = samples.quantized(samples.registered(name), target, tmp_path)
    images, output = IMAGES[:count], sample.model.outputs[0].name
    computed = espdl_run.logits(sample.model, images)
    assert computed.shape == (count, 100)
    assert len(np.unique(computed)) > 50
    assert np.array_equal(computed, samples.simulated(sample, images, [output], batch)[output])
    assert set(largest_differences(sample, images[:4]).values()) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("target", samples.TARGETS)
def test_other_operators_equal_esp_ppqs(target, tmp_path):
    sample = samples.quantized(branches(), target, tmp_path)
    operators = {node.operator for node in sample.model.nodes}
    assert operators > {"LeakyRelu", "Sigmoid", "Tanh", "Clip", "Mul", "Concat", "AveragePool", "Pad", "Transpose"}
    output = sample.model.outputs[0].name
    wanted = samples.simulated(sample, IMAGES[:64], [output])[output]
    assert np.array_equal(espdl_run.logits(sample.model, IMAGES[:64]), wanted)
    assert espdl_run.differing_vectors(sample.model) == []


def test_probabilities_and_table_activations_equal_esp_ppqs(tmp_path):
    sample = samples.quantized(grey(), "esp32p4", tmp_path)
    operators = {node.operator for node in sample.model.nodes}
    assert operators > {"Swish", "Elu", "Add", "Sub", "Softmax", "RequantizeLinear", "AveragePool"}
    assert list(espdl_gate._inside(sample.model, "esp32p4")) == []
    images, output = IMAGES[:40, ..., :1], sample.model.outputs[0].name
    wanted = samples.simulated(sample, images, [output])[output]
    np.testing.assert_allclose(espdl_run.logits(sample.model, images), wanted, atol=2e-7)


@pytest.mark.parametrize(
    ("target", "quant_type", "wide"),
    [("esp32s3", "w8a8", ("Conv",)), ("esp32p4", "w16a16", ()), ("esp32", "w16a16", ())],
)
def test_16_bits_equal_esp_ppqs_in_double_precision(target, quant_type, wide, tmp_path):
    sample = samples.quantized(small(), target, tmp_path, quant_type, wide, exact=True)
    assert "int16" in {info.dtype for info in sample.model.values.values()}
    computed = espdl_run.run(sample.model, bytes_of(sample.model, IMAGES[:64]))
    output = sample.model.outputs[0]
    wanted = samples.simulated(sample, IMAGES[:64], [output.name])[output.name] / 2.0 ** output.exponents[0]
    assert np.abs(wanted - computed).max() <= 1
    assert (wanted == computed).mean() > 0.999


def test_outputs_are_the_devices_integers(small_sample):
    model = small_sample.model
    outputs = espdl_run.run(model, bytes_of(model, IMAGES[:5]))
    assert outputs.dtype == np.int8
    assert np.array_equal(outputs * 2.0 ** model.outputs[0].exponents[0], espdl_run.logits(model, IMAGES[:5]))


def test_the_files_own_vectors_come_out(small_sample):
    assert len(small_sample.model.test_outputs) == len(small_sample.model.nodes)
    assert espdl_run.differing_vectors(small_sample.model) == []


def test_one_flipped_weight_shows_in_the_vectors(small_sample):
    weights = next(tensor for tensor in small_sample.model.initializers.values() if tensor.shape == (3, 3, 3, 9))
    at = small_sample.content.index(weights.values[..., 8:].ravel().tobytes())
    damaged = bytearray(small_sample.content)
    damaged[at] ^= 0x40
    differing = espdl_run.differing_vectors(espdl_file.read(bytes(damaged)))
    assert differing == [small_sample.model.nodes[0].outputs[0]]


@pytest.mark.slow
def test_16_bit_vectors_come_out_but_for_the_last_bit(tmp_path):
    # esp-ppq computes them in single precision.
    sample = samples.quantized(small(), "esp32s3", tmp_path, wide=("Conv",), vectors=True)
    assert "int16" in {tensor.dtype for tensor in sample.model.test_outputs.values()}
    assert espdl_run.differing_vectors(sample.model) == []


def test_peaks_are_the_largest_sums(small_sample):
    model = small_sample.model
    inputs = bytes_of(model, IMAGES[:3])
    dense = model.nodes[-1]
    weights, bias = (model.initializers[name].values.astype(np.int64) for name in dense.inputs[1:])
    flat = trace(model, inputs)[dense.inputs[0]].astype(np.int64)
    wanted = np.abs(flat @ weights.reshape(-1, 10) + bias).max()
    peaks = espdl_run.accumulator_peaks(model, inputs)
    assert peaks[dense.name] == wanted
    assert len(peaks) == 3


@pytest.mark.parametrize("target", ["esp8266", None])
def test_rounding_must_be_known(small_sample, target):
    other = dataclasses.replace(small_sample.model, metadata={"target": target})
    with pytest.raises(EspdlError, match="target"):
        espdl_run.logits(other, IMAGES[:1])


def test_targets_round_halves_differently(small_sample):
    model = small_sample.model
    other = dataclasses.replace(model, metadata={"target": "esp32p4"})
    inputs, name = bytes_of(model, IMAGES[:20]), model.nodes[0].outputs[0]
    up, even = (trace(each, inputs)[name].astype(int) for each in (model, other))
    assert set(np.unique(up - even)) == {0, 1}


def test_unknown_operator_is_named(small_sample):
    node = dataclasses.replace(small_sample.model.nodes[0], operator="Einsum")
    other = dataclasses.replace(small_sample.model, nodes=(node, *small_sample.model.nodes[1:]))
    with pytest.raises(EspdlError, match="Einsum"):
        espdl_run.logits(other, IMAGES[:1])


def test_input_of_another_scale_is_refused(small_sample):
    info = dataclasses.replace(small_sample.model.inputs[0], exponents=(-6,))
    other = dataclasses.replace(small_sample.model, inputs=(info,))
    with pytest.raises(EspdlError, match="exponent -6"):
        espdl_run.logits(other, IMAGES[:1])


def test_pictures_of_another_size_are_refused(small_sample):
    with pytest.raises(EspdlError, match="takes int8"):
        espdl_run.run(small_sample.model, np.zeros((2, 32, 21, 3), np.int8))


def test_file_without_vectors_cannot_be_checked(small_sample):
    with pytest.raises(EspdlError, match="no test values"):
        espdl_run.differing_vectors(dataclasses.replace(small_sample.model, test_outputs={}))


def test_constants_of_the_wrong_layout_are_found(tmp_path):
    image = keras.Input((32, 20, 3))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", activation="relu")(image))
    network = keras.Model(image, layers.Dense(10)(layers.Flatten()(layers.MaxPooling2D(4)(x))))
    rng = np.random.default_rng(0)
    network.layers[2].set_weights([rng.uniform(0.5, 1.5, 16) for _ in range(4)])
    model = samples.quantized(network, "esp32s3", tmp_path).model
    shapes = [model.initializers[name].shape for name in espdl_file.misplaced_constants(model)]
    assert shapes == [(1, 16, 1, 1), (1, 16, 1, 1)]
    reasons = espdl_gate._inside(model, "esp32s3")
    assert ["channels first beside" in reason for reason in reasons] == [True, True]
    with pytest.raises(EspdlError, match="the Mul"):
        espdl_run.logits(model, IMAGES[:1])
