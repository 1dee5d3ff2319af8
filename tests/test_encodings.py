"""Files as strangers make them: what they take and what their outputs mean is found in them."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from tests import foreign_files as foreign
from utils import confidence, encodings, labels, measuring, micro, recognizers, tflite_file
from utils.encodings import RAW, EncodingError
from utils.recognizers import RecognizerError

NOWHERE = Path("/nowhere")
DIGITS = labels.to_classes(foreign.TENTHS, 10)
UNIT, SIGNED = foreign.pictures() / np.float32(255), foreign.pictures() / np.float32(127.5) - 1


def stored(folder: Path, content: bytes) -> Path:
    (folder / "a.tflite").write_bytes(content)
    return folder / "a.tflite"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, foreign.TENTHS), (100, foreign.TENTHS), (10, DIGITS), (11, np.where(foreign.TENTHS >= 90, 10, DIGITS))],
)
def test_every_kind_of_outputs_is_read(tmp_path, count, expected):
    model = recognizers.load(stored(tmp_path, foreign.as_float(foreign.network(count))), NOWHERE)
    numbers, confidences = recognizers.decide(model, foreign.pictures())
    assert (numbers == expected % len(model.names)).all()
    assert (len(model.names), model.names[-1]) == {10: (10, "9"), 11: (11, "N")}.get(count, (100, "9.9"))
    near = 2 if count == 100 else 0
    np.testing.assert_allclose(confidences, 1 if count == 2 else (np.e**8 + near) / (np.e**8 + count - 1), atol=1e-5)
    assert model.facts.parameters == 1920 * count + count or model.facts.parameters == 1920 * count
    assert model.facts.macs == 1920 * count


def test_a_short_vector_of_sine_and_cosine_is_unsure():
    shares = encodings.probabilities(np.array([[0.0, -0.3], [0.8, 0.0], [0.0, 0.0]]), "logits")
    assert shares.argmax(axis=1).tolist() == [50, 25, 0]
    np.testing.assert_allclose(shares.max(axis=1), [0.3, 0.8, 0.02])
    np.testing.assert_allclose(confidence.of_shares(shares), [0.3, 0.8, 0.02])
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_outputs_that_are_no_numbers_stay_so():
    shares = encodings.probabilities(np.array([[np.nan, 1.0]]), "logits")
    assert np.isnan(shares).any()


def test_sigmoids_are_shares_of_their_sum():
    np.testing.assert_allclose(encodings.probabilities(np.array([[0.9, 0.3]] * 2).repeat(5, axis=1), "sigmoid")[0, 0],
                               0.9 / 6)  # fmt: skip


def test_sigmoids_that_an_integer_rounds_to_nothing_say_nothing():
    np.testing.assert_allclose(encodings.probabilities(np.zeros((1, 10)), "sigmoid"), 0.1)
    assert np.isnan(encodings.probabilities(np.full((1, 10), np.nan), "sigmoid")).all()


@pytest.mark.parametrize(("end", "kind"), [(None, "logits"), ("softmax", "softmax"), ("sigmoid", "sigmoid")])
def test_logits_and_probabilities(tmp_path, end, kind):
    model = recognizers.load(stored(tmp_path, foreign.as_float(foreign.network(10, end=end))), NOWHERE)
    numbers, confidences = recognizers.decide(model, foreign.pictures())
    assert model.facts.outputs == f"10 digits, {kind}"
    assert (numbers == DIGITS).all()
    sigmoid = 1 / (1 + np.exp(-8))
    expected = sigmoid / (sigmoid + 9 / 2) if end == "sigmoid" else np.e**8 / (np.e**8 + 9)
    np.testing.assert_allclose(confidences, expected, atol=1e-4)


SEVERAL = {
    "mean of two": lambda head: layers.Average()([head, head]),
    "mean of three": lambda head: layers.Average()([head, head, head]),
    "sum": lambda head: layers.Add()([head, head, head]),
    "mean over places": lambda head: layers.GlobalAveragePooling2D()(layers.Reshape((1, 1, 10))(head)),
    "largest of two": lambda head: layers.Maximum()([head, head]),
}
# Bare operations are no layers, so that no such .keras file is loaded.
OPERATIONS = {
    "form": lambda head: keras.ops.squeeze(keras.ops.expand_dims(head, 1), 1),
    "row without a batch": lambda head: keras.ops.reshape(head, (10,)),
    "percent": lambda head: head * 100,
    "bounded": lambda head: keras.ops.clip(head, 1e-7, 0.999),
    "bounded by 0 and 1": lambda head: keras.ops.clip(head, 0, 1),
    "chosen": lambda head: keras.ops.expand_dims(head, 1)[:, 0],
    "shares again": lambda head: head / keras.ops.sum(head, axis=1, keepdims=True),
}


@pytest.mark.parametrize("end", [*SEVERAL, *OPERATIONS])
def test_sums_and_means_of_probabilities_are_some(tmp_path, end):
    network = foreign.network(10, end="softmax")
    several = keras.Model(network.input, {**SEVERAL, **OPERATIONS}[end](network.output), name="several")
    several.save(tmp_path / "a.keras")
    files = [tmp_path / "a.keras"] * (end in SEVERAL)
    for file in (*files, stored(tmp_path, foreign.as_float(several))):
        model = recognizers.load(file, NOWHERE)
        assert model.facts.outputs == "10 digits, softmax"
        numbers, confidences = recognizers.decide(model, foreign.pictures())
        assert (numbers == DIGITS).all()
        np.testing.assert_allclose(confidences, np.e**8 / (np.e**8 + 9), atol=1e-4)


def test_a_file_without_weights_says_how_to_convert(tmp_path):
    network = foreign.network(10)
    function = tf.function(network).get_concrete_function(tf.TensorSpec((1, *foreign.SIZE)))
    content = tf.lite.TFLiteConverter.from_concrete_functions([function], network).convert()
    with pytest.raises(RecognizerError, match=r"a\.tflite: the TFLite file holds no weights: .*from_keras_model"):
        recognizers.load(stored(tmp_path, content), NOWHERE)


def test_probabilities_in_integers_add_up_to_one(tmp_path):
    network = foreign.network(100, gain=0.25 / 255, end="softmax")
    file = stored(tmp_path, foreign.as_integers(network, np.float32(foreign.pictures()), "int8"))
    np.testing.assert_allclose(recognizers.load(file, NOWHERE).probabilities(foreign.pictures()).sum(axis=1), 1)


def test_a_product_of_two_networks_is_none_of_probabilities(tmp_path):
    network = foreign.network(10)
    gated = layers.Multiply()([layers.Softmax()(network.output), network.output])
    file = stored(tmp_path, foreign.as_float(keras.Model(network.input, gated, name="gated")))
    assert recognizers.load(file, NOWHERE).facts.outputs == "10 digits, logits"


@pytest.mark.parametrize(
    ("start", "gain"),
    [
        (layers.Rescaling(1 / 255), 1.0),
        (layers.Rescaling(1 / 127.5, offset=-1), 0.5),
        (layers.BatchNormalization(moving_variance_initializer="ones"), None),
    ],
)
def test_a_first_layer_that_scales_raw_pixels_is_seen(tmp_path, start, gain):
    if gain is None:
        start.build((None, *foreign.SIZE))
        start.set_weights([np.ones(3), np.zeros(3), np.full(3, 60.0), np.full(3, 6400.0)])
    model = foreign.network(10, start=start, gain=gain or 80 / 255)
    for file in (stored(tmp_path, foreign.as_float(model)), tmp_path / "a.keras"):
        model.save(tmp_path / "a.keras")
        facts = recognizers.load(file, NOWHERE).facts
        assert (facts.pixels, facts.known) == (RAW, True)
        assert (measuring.read(file, RAW, foreign.pictures())[0] == DIGITS).all()


@pytest.mark.parametrize("start", [layers.Rescaling(2.0, offset=-1), layers.BatchNormalization()])
def test_a_first_layer_for_pixels_that_were_scaled_before_says_nothing(tmp_path, start):
    start.build((None, *foreign.SIZE))
    if start.weights:
        # Of pictures 0..1: their mean and variance.
        start.set_weights([np.ones(3), np.zeros(3), np.full(3, 0.5), np.full(3, 0.25)])
    model = foreign.network(10, start=start, gain=0.5, bias=1.0)
    model.save(tmp_path / "a.keras")
    for file in (stored(tmp_path, foreign.as_float(model)), tmp_path / "a.keras"):
        assert not recognizers.load(file, NOWHERE).facts.known
        assert (measuring.read(file, encodings.UNIT, foreign.pictures())[0] == DIGITS).all()


def test_a_constant_may_be_an_empty_list(tmp_path):
    def by_the_brightest(image):
        return image / keras.ops.reshape(keras.ops.max(image, keepdims=True), ())

    content = foreign.as_float(foreign.network(10, start=by_the_brightest, gain=1.0))
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0)).subgraphs[0]
    # The shape of a single number.
    assert [0] in [list(tensor.shape) for tensor in graph.tensors]
    assert (measuring.read(stored(tmp_path, content), RAW, foreign.pictures())[0] == DIGITS).all()


def test_weights_of_sixteen_bits(tmp_path):
    file = stored(tmp_path, foreign.as_halves(foreign.network(100, start=layers.Rescaling(1 / 255), gain=1.0)))
    facts = recognizers.load(file, NOWHERE).facts
    assert (facts.pixels, facts.known) == (RAW, True)
    assert facts.parameters == pytest.approx(192_000, rel=0.001)
    assert (measuring.read(file, RAW, foreign.pictures())[0] == foreign.TENTHS).all()
    if micro.available():
        with pytest.raises(micro.MicroError, match=r"^TFLite Micro widens no weights of float16; convert"):
            measuring.arena_bytes(file)


@pytest.mark.skipif(not micro.available(), reason="tflite-micro is not installed")
def test_weights_of_integers_under_floats(tmp_path):
    file = stored(tmp_path, foreign._converter(foreign.network(100)).convert())
    assert (measuring.read(file, RAW, foreign.pictures())[0] == foreign.TENTHS).all()
    with pytest.raises(
        micro.MicroError, match=r"^TFLite Micro runs no floats on weights of integers \(dynamic range\)"
    ):
        measuring.arena_bytes(file)


@pytest.mark.skipif(not micro.available(), reason="tflite-micro is not installed")
def test_what_is_part_of_tflite_micro_says_tflite_micro_itself(tmp_path):
    image = keras.Input(foreign.SIZE)
    turned = layers.Flatten()(layers.Permute((3, 1, 2))(image))
    one, two, three = (layers.Dense(10)(turned) for _ in range(3))
    end = keras.ops.maximum(keras.ops.minimum(one, two), keras.ops.divide(two, 1 + three * three))
    content = foreign.as_float(keras.Model(image, end))
    assert {"TRANSPOSE", "MINIMUM", "MAXIMUM", "DIV"} <= {*tflite_file.read(content).operators}
    inputs = foreign.pictures()[:5].astype(np.float32)
    np.testing.assert_allclose(micro.run(content, inputs), micro.reference(content, inputs), rtol=1e-4)
    assert measuring.arena_bytes(stored(tmp_path, content)) > 1920 * 4


@pytest.mark.parametrize(
    ("images", "gain", "name"),
    [(foreign.pictures().astype(np.float32), 1 / 255, "0..255"), (UNIT, 1.0, "0..1"), (SIGNED, 0.5, "-1..1")],
)
@pytest.mark.parametrize("io_type", ["uint8", "int8", "float32"])
def test_integer_files_say_which_range_they_take(tmp_path, images, gain, name, io_type):
    model = foreign.network(10, gain=gain, bias=1.0 if name == "-1..1" else 0.0)
    file = stored(tmp_path, foreign.as_integers(model, images, io_type))
    facts = recognizers.load(file, NOWHERE).facts
    assert (facts.pixels.name, facts.known, facts.dtype) == (name, True, io_type)
    assert (measuring.read(file, facts.pixels, foreign.pictures())[0] == DIGITS).all()


@pytest.mark.parametrize(("low", "name"), [(0.0, "0..1"), (-1.0, "-1..1")])
def test_a_range_that_no_file_tells_is_found_by_trial(tmp_path, low, name):
    file = stored(tmp_path, foreign.as_float(foreign.picky(low)))
    facts = recognizers.load(file, NOWHERE).facts
    assert (facts.pixels, facts.known) == (RAW, False)
    pixels = measuring.best_range(file, foreign.pictures(), foreign.TENTHS)
    assert pixels.name == name
    assert (measuring.read(file, pixels, foreign.pictures())[0] == DIGITS).all()
    assert (measuring.read(file, RAW, foreign.pictures())[0] == 0).all()


@pytest.mark.parametrize("io_type", ["int8", "float32"])
def test_integers_made_of_floats_limit_what_is_assumed(tmp_path, io_type):
    file = stored(tmp_path, foreign.as_integers(foreign.network(10, gain=1.0), UNIT * np.float32(0.4), io_type))
    facts = recognizers.load(file, NOWHERE).facts
    assert (facts.pixels.name, facts.known) == ("0..1", False)


def test_raw_pixels_win_where_every_range_does(tmp_path):
    file = stored(tmp_path, foreign.as_float(foreign.network(10)))
    assert measuring.best_range(file, foreign.pictures(), foreign.TENTHS) is RAW


@pytest.mark.parametrize("size", [(28, 28, 1), (48, 32, 3), (48, 32, 1)])
def test_other_sizes_and_grey(tmp_path, size):
    file = stored(tmp_path, foreign.as_float(foreign.network(100, size)))
    assert recognizers.load(file, NOWHERE).input_shape == size
    assert (measuring.read(file, RAW, foreign.pictures((*size[:2], 3)))[0] == foreign.TENTHS).all()


def test_keras_models_of_strangers(tmp_path):
    foreign.network(11, end="softmax").save(tmp_path / "a.keras")
    model = recognizers.load(tmp_path / "a.keras", NOWHERE)
    assert (model.facts.known, model.facts.outputs) == (False, "11 digits and N, softmax")
    assert (model.facts.parameters, model.facts.macs) == (1920 * 11 + 11, 1920 * 11)
    numbers, _ = recognizers.decide(model, foreign.pictures())
    assert (numbers[90:] == 10).all()
    assert (numbers[:90] == DIGITS[:90]).all()


def test_hdf5_files_are_refused_with_the_reason(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(RecognizerError, match="may hold code that runs when it is loaded"):
        recognizers.load(tmp_path / "a.h5", NOWHERE)


def test_other_numbers_of_outputs_are_refused():
    with pytest.raises(EncodingError, match="20 outputs; 2"):
        encodings.names(20)


@pytest.mark.parametrize("end", ["softmax", "sigmoid"])
def test_two_probabilities_are_no_sine_and_cosine(tmp_path, end):
    model = foreign.network(2, end=end)
    model.save(tmp_path / "a.keras")
    for file in (stored(tmp_path, foreign.as_float(model)), tmp_path / "a.keras"):
        with pytest.raises(RecognizerError, match=f"{file}: 2 outputs behind a {end} are no sine and cosine"):
            recognizers.load(file, NOWHERE)


def test_the_first_operator_alone_decides():
    facts = tflite_file.read(foreign.as_float(foreign.network(10)))
    assert facts.first.constant is None
    assert encodings.pixel_range(facts) is None


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        ((3, 32, 20), layers.Permute((2, 3, 1)), layers.Permute((3, 1, 2))),
        ((32, 20), layers.Reshape((32, 20, 1)), layers.Reshape((32, 20))),
        ((None, None, 3), layers.Reshape((32, 20, 3)), layers.Identity()),
    ],
)
def test_a_picture_of_other_axes_is_read_once_the_model_is_made_as_the_refusal_says(tmp_path, shape, inside, outside):
    size = (32, 20, 1 if len(shape) == 2 else 3)
    taken, picture = keras.Input(shape), keras.Input(size)
    model = keras.Model(taken, foreign.network(10, size)(inside(taken)), name="stranger")
    with pytest.raises(RecognizerError, match=f"is needed; {re.escape(encodings.ONE_PICTURE)}$"):
        recognizers.load(stored(tmp_path, foreign.as_float(model)), NOWHERE)
    file = stored(tmp_path, foreign.as_float(keras.Model(picture, model(outside(picture)))))
    numbers, _ = recognizers.decide(recognizers.load(file, NOWHERE), foreign.pictures(size))
    assert (numbers == DIGITS).all()


def test_one_of_several_outputs_is_read_once_it_is_taken_as_the_refusal_says(tmp_path):
    model = foreign.network(10)
    model = keras.Model(model.inputs, [layers.Dense(3)(model.output), model.output], name="stranger")
    model.save(tmp_path / "a.keras")
    for file in (stored(tmp_path, foreign.as_float(model)), tmp_path / "a.keras"):
        with pytest.raises(RecognizerError, match=r"keras\.Model\(model\.inputs, model\.outputs\[NUMBER\]\)"):
            recognizers.load(file, NOWHERE)
    one = keras.Model(model.inputs, model.outputs[1])
    one.save(tmp_path / "a.keras")
    for file in (stored(tmp_path, foreign.as_float(one)), tmp_path / "a.keras"):
        assert (recognizers.decide(recognizers.load(file, NOWHERE), foreign.pictures())[0] == DIGITS).all()
