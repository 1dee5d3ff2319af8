import cv2
import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import models
from utils import evaluation, export, fake_quant, gate, pictures, tflite_file


def plain(x):
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(16, 3, activation="relu")(layers.MaxPooling2D()(x))
    return layers.Dense(24, activation="relu")(layers.Flatten()(x))


def depthwise(x):
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Conv2D(16, 1)(layers.AveragePooling2D(2)(x))
    return layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(layers.BatchNormalization(scale=False)(x)))


def residual(x):
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    y = layers.BatchNormalization(center=False)(layers.Conv2D(8, 3, padding="same")(x))
    return layers.GlobalAveragePooling2D()(layers.Add()([x, y]))


def ghost(x):
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
    cheap = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    x = layers.MaxPooling2D()(layers.Concatenate()([x, cheap]))
    return layers.Flatten()(layers.Conv2D(8, 3)(x))


def concat(x):
    a = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    b = layers.LeakyReLU(0.1)(layers.Conv2D(6, 1)(x))
    x = layers.Concatenate()([a, b, layers.ZeroPadding2D(1)(layers.MaxPooling2D(3, strides=1)(a))])
    # A batch normalisation behind a ReLU has nothing to fold into.
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, activation="relu")(x))
    x = layers.GaussianNoise(0.1)(layers.SpatialDropout2D(0.1)(layers.Dropout(0.2)(x)))
    return layers.GaussianDropout(0.1)(layers.AlphaDropout(0.1)(layers.GlobalAveragePooling2D()(x)))


def peaks(x):
    x = layers.Conv2D(8, 3, activation="relu")(x)
    return layers.GlobalMaxPooling2D()(layers.Conv2D(24, 3)(x))


GRAPHS = {graph.__name__: graph for graph in (plain, depthwise, residual, ghost, concat, peaks)}


def build(graph, nb_classes: int = 10) -> keras.Model:
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 20, 1), name="image")
    x = layers.Rescaling(1 / 128, offset=-1)(image)
    model = keras.Model(image, layers.Dense(nb_classes)(graph(x)), name=graph.__name__)
    rng = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            spread = [rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()]
            layer.set_weights(spread)
    return model


def logits_range(quantized) -> tuple[float, float]:
    return list(fake_quant.ranges(quantized).values())[-1]


@pytest.fixture(scope="module")
def images():
    """Digits 0, 1 .. 9, 0 ..; not the generator's, lest what it draws better should move bounds of rounding."""
    rng = np.random.default_rng(4)
    drawn = np.full((500, 32, 20), rng.integers(20, 120, (500, 1, 1), np.uint8))
    for number, picture in enumerate(drawn):
        foot = (int(rng.integers(0, 5)), int(rng.integers(22, 29)))
        style = (cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.6, 0.9), rng.uniform(140, 250), int(rng.integers(1, 4)))
        cv2.putText(picture, str(number % 10), foot, *style)
    return np.clip(drawn + rng.normal(0, 12, drawn.shape), 0, 255).astype(np.uint8)[..., None]


@pytest.fixture(scope="module", params=[*GRAPHS, *(n for n in models.available() if models.get(n).quantizable)])
def case(request, images):
    """A model after some training, its fake-quantised clone, and the file made of it."""
    graph = request.param
    keras.utils.set_random_seed(3)
    model = build(GRAPHS[graph]) if graph in GRAPHS else models.get(graph).build((32, 20, 1), 10)
    keras.utils.set_random_seed(3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(images, np.arange(500) % 10, batch_size=50, epochs=8, verbose=0)
    quantized = fake_quant.quantize(model, images[:300])
    return model, quantized, export.integer_tflite(quantized, "int8")


def test_the_clone_computes_what_the_model_does(case, images):
    model, quantized, _ = case
    expected, logits = (evaluation.keras_logits(one, images) for one in (model, quantized))
    # Lower logits than the last range has are cut off by design, the more the surer a network is.
    expected = np.clip(expected, *logits_range(quantized))
    assert np.corrcoef(expected.ravel(), logits.ravel())[0, 1] > 0.999
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in quantized.layers)


def test_the_file_computes_what_the_clone_does(case, images):
    _, quantized, content = case
    expected, logits = evaluation.keras_logits(quantized, images), evaluation.tflite_logits(content, images)
    low, high = logits_range(quantized)
    step = (high - low) / fake_quant.STEPS
    # Each layer's integers round a little differently from the clone's floats, and deep networks add that up.
    deep = sum(isinstance(layer, layers.Conv2D | layers.Dense) for layer in quantized.layers) > 6
    most = 4 if deep else 2
    assert (np.abs(expected - logits) > (most + 0.01) * step).mean() < 0.01
    assert np.std(expected - logits) < 1.6 * step
    # After so little training many pictures are undecided; a step's difference may tip those.
    decided = np.ptp(np.sort(expected, axis=1)[:, -2:], axis=1) > (most - 0.5) * step
    agree = expected.argmax(axis=1) == logits.argmax(axis=1)
    # On some processors none is decided, all being read alike.
    assert (~agree & decided).sum() <= 0.01 * decided.sum()
    assert agree.mean() >= (0.93 if deep else 0.95)


def test_the_file_has_exactly_the_ranges_of_the_clone(case):
    _, quantized, content = case
    details = Interpreter(model_content=content).get_tensor_details()
    in_file = [detail["quantization"][0] for detail in details if detail["dtype"] == np.int8]
    for name, (low, high) in fake_quant.ranges(quantized).items():
        scale = (high - low) / fake_quant.STEPS
        assert min(abs(found / scale - 1) for found in in_file if found) < 1e-5, name
    assert {np.dtype(detail["dtype"]) for detail in details} <= {np.dtype(np.int8), np.dtype(np.int32)}


def test_input_range_is_fixed_and_logits_end_below_a_faint_winner(case, images):
    model, quantized, _ = case
    found = fake_quant.ranges(quantized)
    assert next(iter(found.values())) == fake_quant.INPUT_RANGE
    low, high = list(found.values())[-1]
    logits = evaluation.keras_logits(model, images[:300])
    expected = min(0, max(logits.min(), np.percentile(logits.max(axis=1), 1) - fake_quant.LOGITS_MARGIN))
    step = (high - low) / fake_quant.STEPS
    assert low == pytest.approx(expected, abs=step)
    assert high == pytest.approx(logits.max(), abs=step)


def uneven(x):
    # Something else reads what the first normalisation is of, so it can't go into that convolution.
    x = layers.Conv2D(8, 3, padding="same")(x)
    x = layers.Add()([x, layers.BatchNormalization(epsilon=0.5)(x)])
    x = layers.ReLU()(layers.BatchNormalization(epsilon=0.3)(layers.Conv2D(8, 3)(x)))
    return layers.GlobalAveragePooling2D()(x)


@pytest.mark.parametrize("graph", [plain, depthwise, uneven])
def test_the_network_without_ranges_gives_the_same_logits_moved_to_lie_around_zero(graph, images, rng):
    model = build(graph)
    for layer in model.layers:
        if getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 1, layer.bias.shape))
    quantized = fake_quant.quantize(model, images[:50])
    network, largest = fake_quant.folded(quantized)
    low, high = logits_range(quantized)
    expected = evaluation.keras_logits(model, images[:20]) - (low + high) / 2
    found = network.predict(images[:20].astype(np.float32) / 128 - 1, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))
    assert largest == pytest.approx((high - low) / 2)


def test_ranges_are_those_of_all_pictures(images, monkeypatch):
    model = models.get("cnn32").build((32, 20, 1), 10)
    at_once = fake_quant.ranges(fake_quant.quantize(model, images))
    monkeypatch.setattr(fake_quant, "OBSERVED_AT_ONCE", 7)
    by_parts = fake_quant.ranges(fake_quant.quantize(model, images))
    assert by_parts.keys() == at_once.keys()
    for name, ends in by_parts.items():
        assert ends == pytest.approx(at_once[name], rel=1e-4), name


def test_logits_that_are_averages_cut_nothing_off_what_they_are_of(images):
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 20, 1))
    maps = layers.Conv2D(10, 3, padding="same")(layers.Rescaling(1 / 128, offset=-1)(image))
    model = keras.Model(image, layers.Flatten()(layers.AveragePooling2D((32, 20))(maps)))
    seen = keras.Model(image, maps).predict(images, verbose=0)
    low, high = logits_range(fake_quant.quantize(model, images))
    assert (low, high) == pytest.approx((seen.min(), seen.max()), rel=0.01)


def test_zero_falls_on_a_step():
    low, high = fake_quant.whole_zero_point(-0.37, 2.11)
    scale = (high - low) / 255
    assert -low / scale == pytest.approx(round(-low / scale), abs=1e-9)
    assert scale == pytest.approx(2.48 / 255)
    assert fake_quant.whole_zero_point(1.0, 3.0) == pytest.approx((0.0, 3.0))
    assert fake_quant.whole_zero_point(0.0, 0.0)[1] > 0


def test_weights_are_rounded_as_the_converter_does(rng):
    kernel = rng.normal(0, 1, (3, 3, 4, 8)).astype(np.float32)
    rounded = keras.ops.convert_to_numpy(fake_quant._rounded(kernel, (0, 1, 2)))
    scale = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    np.testing.assert_allclose(rounded, np.round(kernel / scale) * scale, atol=1e-6)


def test_gradient_passes_the_rounding(rng):
    import tensorflow as tf

    kernel = tf.Variable(rng.normal(0, 1, (3, 4)).astype(np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fake_quant._rounded(kernel, (0, 1)) * 3.0)
    np.testing.assert_allclose(tape.gradient(loss, kernel), np.full((3, 4), 3.0), atol=1e-5)


def test_ranges_follow_in_training_unless_fixed():
    follows, fixed = fake_quant.ActivationRange(), fake_quant.ActivationRange(averaging=False)
    values = keras.ops.convert_to_tensor([[-2.0, 6.0]])
    for layer in (follows, fixed):
        layer.set_weights(np.array([-1.0, 4.0], np.float32))
        layer(values, training=False)
        assert layer.get_weights() == [-1.0, 4.0]
        layer(values, training=True)
    assert follows.get_weights() == pytest.approx([-1.01, 4.02])
    assert fixed.get_weights() == [-1.0, 4.0]
    # Zero stays in it.
    for values, ends in (([2.0, 4.0], [-0.99, 4.0]), ([-3.0, -1.0], [-1.02, 3.96])):
        follows.set_weights(np.array([-1.0, 4.0], np.float32))
        follows(keras.ops.convert_to_tensor([values]), training=True)
        assert follows.get_weights() == pytest.approx(ends)


def test_rgb_input_reads_grey_pictures_alike(images):
    quantized = fake_quant.quantize(build(plain), images[:300])
    rgb = fake_quant.with_rgb_input(quantized)
    expected = evaluation.keras_logits(quantized, images)
    logits = evaluation.keras_logits(rgb, np.repeat(images, 3, axis=-1))
    assert rgb.input_shape == (None, 32, 20, 3)
    assert np.corrcoef(expected.ravel(), logits.ravel())[0, 1] > 0.998
    assert fake_quant.with_rgb_input(rgb) is rgb
    colours = (images * (1, 0.4, 0.1)).astype(np.uint8)
    pair = (evaluation.keras_logits(quantized, pictures.grey(colours)), evaluation.keras_logits(rgb, colours))
    assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.9995
    content = export.integer_tflite(rgb, "float32")
    from_file = evaluation.tflite_logits(content, np.repeat(images, 3, axis=-1))
    assert (from_file.argmax(axis=1) == logits.argmax(axis=1)).mean() > 0.97


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.SeparableConv2D(4, 3, name="odd"), r"layer odd \(SeparableConv2D\) can't be quantised"),
        (lambda: layers.Conv2D(4, 3, activation="tanh", name="odd"), "layer odd: put its activation into a layer"),
        (lambda: layers.Conv2D(4, 3, activation=layers.LeakyReLU(), name="odd"), "layer odd: put its activation into"),
        (lambda: layers.Dense(4, activation="elu", name="odd"), "its activation elu can't be quantised; relu, .* can"),
        (lambda: layers.Activation("hard_sigmoid", name="odd"), "activation hard_sigmoid can't .* sigmoid, .* can"),
        (lambda: layers.ReLU(1, name="odd"), r"layer odd: a ReLU with max_value = 1, .* ReLU\(6\) and LeakyReLU can"),
        (lambda: layers.ReLU(6, 0.1, name="odd"), "layer odd: a ReLU with max_value = 6, negative_slope = 0.1 and"),
        (lambda: layers.ReLU(threshold=0.5, name="odd"), "layer odd: .* and threshold = 0.5 can't be quantised"),
        (lambda: layers.Rescaling(0.2, name="odd"), "layer odd: a further Rescaling can't be quantised"),
        (lambda: layers.ReLU(6, name="odd"), r"layer odd: TFLite Micro computes a ReLU\(6\) wrongly unless it alone"),
        (lambda: lambda x: layers.ELU(name="b")(layers.PReLU(name="a")(x)), r"layer a \(PReLU\), b \(ELU\) .* MaxPool"),
        (lambda: lambda x: layers.Activation("gelu", name="c")(x + x), "operation add.*; layer c: its activation gelu"),
        (lambda: lambda x: x + x, r"operation add\w* is no layer: write it as one to quantise it"),
    ],
)
def test_what_cannot_be_quantised_is_named(layer, message, images):
    with pytest.raises(fake_quant.QuantizationError, match=message):
        fake_quant.quantize(build(lambda x: layers.Flatten()(layer()(x))), images)


def test_a_relu6_goes_into_a_batch_normalisation_that_can_not_fold(images):
    def normed(x):
        x = layers.BatchNormalization()(layers.MaxPooling2D()(layers.Conv2D(4, 3)(x)))
        return layers.Flatten()(layers.ReLU(6)(x))

    content = export.integer_tflite(fake_quant.quantize(build(normed), images[:50]), "int8")
    # As an operator of its own TFLite Micro would compute it wrongly.
    assert "RELU6" not in tflite_file.read(content).operators
    assert gate.check("tflite_micro", content, 10, False, images[:50]).reasons == ()


@pytest.mark.parametrize("activation", fake_quant.SEPARATE_ACTIVATIONS)
def test_an_activation_behind_its_layer_becomes_integers(activation, images):
    def behind(x):
        return layers.Flatten()(layers.Activation(activation)(layers.Conv2D(4, 3)(x)))

    content = export.integer_tflite(fake_quant.quantize(build(behind), images[:20]), "int8")
    assert tflite_file.read(content).float_tensors == ()


@pytest.mark.parametrize("dense", [{"activation": "relu"}, {"activation": "linear"}])
def test_batch_normalisation_of_a_row_goes_into_a_linear_dense_layer(dense, images):
    def normed(x):
        return layers.BatchNormalization(name="norm")(layers.Dense(8, **dense)(layers.Flatten()(x)))

    model = build(normed)
    if dense["activation"] == "linear":
        expected = evaluation.keras_logits(model, images).argmax(axis=1)
        found = evaluation.keras_logits(fake_quant.quantize(model, images), images).argmax(axis=1)
        assert (found == expected).mean() > 0.9
    else:
        with pytest.raises(fake_quant.QuantizationError, match="layer norm: put the batch normalisation right behind"):
            fake_quant.quantize(model, images)


def test_normalising_over_another_axis_and_joining_three_are_refused():
    image = keras.Input((32, 20, 1))
    x = layers.Conv2D(20, 3, padding="same")(layers.Rescaling(1 / 128, offset=-1)(image))
    for end, message in (
        (layers.BatchNormalization(axis=2)(x), "normalises over axis 2"),
        (layers.Add()([x, x, x]), "takes 3 tensors: let it take two at a time"),
        (layers.Multiply()([x, x, x]), "takes 3 tensors: let it take two at a time"),
    ):
        model = keras.Model(image, layers.Dense(10)(layers.Flatten()(end)))
        with pytest.raises(fake_quant.QuantizationError, match=message):
            fake_quant.quantize(model, np.zeros((2, 32, 20, 1), np.uint8))


def test_another_range_of_pixels_is_refused(images):
    image = keras.Input((32, 20, 1))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    with pytest.raises(fake_quant.QuantizationError, match=r"does not start with Rescaling\(1/128, offset=-1\)"):
        fake_quant.quantize(keras.Model(image, layers.Dense(10)(x), name="other"), images)


@pytest.mark.parametrize(
    "first", [layers.BatchNormalization, layers.MaxPooling2D, lambda name: layers.Reshape((17, 44, 1), name=name)]
)
def test_grey_networks_that_begin_without_a_convolution_take_no_colours(images, first):
    def begins(x):
        return layers.Flatten()(layers.Conv2D(4, 3)(first(name="first")(layers.ZeroPadding2D()(x))))

    with pytest.raises(fake_quant.QuantizationError, match="layer first: only a convolution right at the beginning"):
        fake_quant.with_rgb_input(fake_quant.quantize(build(begins), images))
