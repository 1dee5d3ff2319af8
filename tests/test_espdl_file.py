"""What is read from ESP-DL files, and that damaged ones end in one sentence."""

import random
import struct
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from keras import layers

from tests import espdl_samples as samples
from utils import complexity, espdl_file
from utils.espdl_file import EspdlError

# Looked for, not imported: that would print a banner and change sys.path.
pytestmark = pytest.mark.skipif(find_spec("esp_ppq") is None, reason="esp-ppq is not installed")


def network() -> keras.Model:
    """Filters of numbers that don't fill a block, depthwise ones too; no biases."""
    image = keras.Input((32, 20, 3))
    x = layers.Conv2D(20, 3, padding="same", activation="relu", use_bias=False, name="plain")(image)
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False, name="deep")(x)
    x = layers.Flatten()(layers.MaxPooling2D(4)(x))
    return keras.Model(image, layers.Dense(10, use_bias=False, name="logits")(x))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The network, and its file for every target."""
    keras.utils.set_random_seed(0)
    keras_model, folder = network(), tmp_path_factory.mktemp("files")
    return keras_model, {target: samples.quantized(keras_model, target, folder) for target in samples.TARGETS}


@pytest.fixture(scope="module")
def content(made) -> bytes:
    return made[1]["esp32s3"].content


@pytest.mark.parametrize("target", samples.TARGETS)
def test_graph_is_read(made, target):
    model = made[1][target].model
    assert [node.operator for node in model.nodes] == ["Conv", "Conv", "MaxPool", "Reshape", "MatMul"]
    assert (model.inputs[0].shape, model.inputs[0].dtype, model.inputs[0].exponents) == ((1, 32, 20, 3), "int8", (-7,))
    assert (model.outputs[0].shape, model.outputs[0].dtype) == ((1, 10), "int8")
    assert model.metadata == {"target": target}
    assert model.nodes[0].attributes["activation"] == "Relu"
    assert model.nodes[1].attributes["strides"] == (2, 2)
    assert model.nodes[1].attributes["group"] == 20
    assert model.values[model.nodes[1].outputs[0]].shape == (1, 15, 9, 20)
    assert espdl_file.misplaced_constants(model) == []
    assert espdl_file.parameters(model) == made[0].count_params()
    assert espdl_file.multiply_accumulates(model) == complexity.multiply_accumulates(made[0])


@pytest.mark.parametrize(
    ("target", "layouts"),
    [
        ("esp32", ["NHWC", "HWCN", "NHWC"]),
        ("esp32s3", ["(N/16)HWC16_UNALIGNED"] * 3),
        ("esp32p4", ["(N/16)HWC16_UNALIGNED"] * 3),
    ],
)
def test_weights_come_in_plain_order(made, target, layouts):
    keras_model, files = made
    model = files[target].model
    weighted = [node for node in model.nodes if node.operator in ("Conv", "MatMul")]
    tensors = [model.initializers[node.inputs[1]] for node in weighted]
    assert [tensor.layout for tensor in tensors] == layouts
    for tensor, name in zip(tensors, ("plain", "deep", "logits"), strict=True):
        wanted = keras_model.get_layer(name).get_weights()[0]
        steps = 2.0 ** np.array(tensor.exponents)
        steps = steps[:, None] if name == "deep" and len(steps) > 1 else steps
        assert tensor.values.shape == tensor.shape == wanted.shape
        # A weight at the range's very end may be one more step away, as +128 does not exist.
        assert np.all(np.abs(tensor.values * steps - wanted) <= 1.01 * steps)


def test_test_values_are_read(made):
    model = made[1]["esp32p4"].model
    (pixels,) = model.test_inputs.values()
    assert np.array_equal(pixels.values[0], (samples.PICTURES[0].astype(int) - 128))
    assert list(model.test_outputs) == [model.outputs[0].name]


def test_other_files_are_refused():
    with pytest.raises(EspdlError, match="identifier EDL2"):
        espdl_file.read(b"")
    with pytest.raises(EspdlError, match="identifier EDL2"):
        espdl_file.read(b"\x1c\0\0\0TFL3" + bytes(40))


def test_encrypted_file_is_refused(content):
    with pytest.raises(EspdlError, match="encrypted"):
        espdl_file.read(content[:4] + struct.pack("<I", 1) + content[8:])


def test_cut_off_file_is_refused(content):
    with pytest.raises(EspdlError, match="cut off"):
        espdl_file.read(content[:-1])


def test_length_that_cuts_the_graph_is_refused(content):
    with pytest.raises(EspdlError, match="damaged"):
        espdl_file.read(content[:8] + struct.pack("<I", 64) + content[12:])


def test_input_that_nothing_computes_is_refused(made, content):
    first = made[1]["esp32s3"].model.nodes[0].outputs[0]
    damaged = content.replace(first.encode(), b"x" * len(first), 1)
    with pytest.raises(EspdlError, match=r"nothing before it computes|type"):
        espdl_file.read(damaged)


def test_constant_shorter_than_its_shape_is_refused(content):
    # The shape of the first convolution's weights.
    damaged = content.replace(struct.pack("<4q", 3, 3, 3, 20), struct.pack("<4q", 3, 3, 3, 200))
    assert damaged != content
    with pytest.raises(EspdlError, match="not as many values"):
        espdl_file.read(damaged)


def test_absurd_shape_is_refused(content):
    damaged = content.replace(struct.pack("<4q", 3, 3, 3, 20), struct.pack("<4q", 2**40, 2**40, 3, 20))
    with pytest.raises(EspdlError, match="impossible shape"):
        espdl_file.read(damaged)


def test_damage_never_ends_in_another_error(content):
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(damaged))]
        try:
            espdl_file.read(bytes(damaged))
        except EspdlError:
            refused += 1
    assert refused > 100
