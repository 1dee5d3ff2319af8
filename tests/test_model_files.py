"""Models that Keras loads or refuses, and whether they fit."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.keras_files import BIAS, KERNEL, archive, description, layer, network, refused, weights
from utils import model_choice, model_files, recognizers
from utils.model_archive import ModelFileError


@pytest.fixture(autouse=True)
def nothing_left_in_keras():
    """Weights too large to make stay on a list of Keras', and whatever is built next would fail on them."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session(free_memory=False)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "stranger.keras"


def test_any_name_will_do_to_be_measured(file):
    config = description()
    config["config"]["name"] = "My Net"
    model = recognizers.load(archive(file, config=config), file.parent)
    assert recognizers.decide(model, np.zeros((1, 32, 20, 1), np.uint8))[0].tolist() == [9]


def test_the_small_model_loads_with_its_weights(file):
    model = model_files.load(archive(file))
    assert model_files.identity(model) == model_files.Identity("small", (32, 20, 1), 10)
    assert not model.compiled
    black = np.zeros((1, 32, 20, 1), np.float32)
    np.testing.assert_allclose(model(black)[0], np.arange(10) - 320)


@pytest.mark.parametrize("name", ["cnn32", "digit_recognizer_v4", "digit_recognizer_v12", "high_accuracy_validator"])
def test_every_architecture_loads_as_it_was_saved(file, name):
    import keras

    import models

    made = models.get(name).build((32, 20, 3), 100)
    made = keras.Model(made.inputs, made.outputs, name="stranger-2.1")
    made.compile("adam", "categorical_crossentropy")
    made.save(file)
    loaded = model_files.load(file)
    assert model_files.identity(loaded) == model_files.Identity("stranger-2.1", (32, 20, 3), 100)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in made.layers]
    for one, other in zip(loaded.weights, made.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_how_a_stranger_compiled_is_never_read(file):
    loss = {"module": "os", "class_name": "function", "config": "system", "registered_name": None}
    assert not model_files.load(archive(file, config=description() | {"compile_config": {"loss": loss}})).compiled


def test_a_sequential_comes_as_a_graph(file):
    import keras
    from keras import layers

    steps = [keras.Input((32, 20, 1)), layers.Rescaling(1 / 128, offset=-1), layers.Flatten(), layers.Dense(10)]
    keras.Sequential(steps, name="row").save(file)
    model = model_files.load(file)
    assert not isinstance(model, keras.Sequential)
    assert isinstance(model.layers[1], layers.Rescaling)
    assert {len(layer._inbound_nodes) for layer in model.layers[1:]} == {1}
    model.save(file)
    assert model_files.identity(model_files.load(file)).name == "row"


def test_a_sequential_that_saw_no_picture(file):
    import keras
    from keras import layers

    keras.Sequential([layers.Rescaling(1 / 128, offset=-1), layers.Flatten(), layers.Dense(10)]).save(file)
    refused(file, "saved before it saw a picture: put keras.Input.* first, train it and save it", model_files.load)


def test_more_weights_than_memory_are_never_made(file):
    config = description()
    config["config"]["layers"][-1]["config"]["units"] = 10**9
    refused(archive(file, config=config), "has 641,000,000,000 weights but the file holds 6,410;", model_files.load)


def test_a_layer_that_blows_pictures_up(file):
    config = description()
    config["config"]["layers"][2] = layer("UpSampling2D", "flatten", "rescaling", size=[3000, 3000])
    refused(archive(file, config=config), "layer flatten makes 5,760,000,000 values", model_files.load)


@pytest.mark.parametrize(
    ("shape", "classes", "match"),
    [
        ((32, 20, 2), 10, r"takes \(batch, 32, 20, 2\), but one picture"),
        ((32, 20, 4), 10, r"takes \(batch, 32, 20, 4\), but one picture"),
        ((640,), 10, r"takes \(batch, 640\), but one picture"),
        ((4, 20, 1), 10, r"takes \(batch, 4, 20, 1\).* with sides of 8 to 512"),
        ((32, 20, 1), 11, r"gives \(batch, 11\), but one vector \(batch, 10 or 100\)"),
    ],
)
def test_other_tasks(file, shape, classes, match):
    refused(network(file, shape=shape, classes=classes), match, model_files.load)


def test_two_inputs_two_outputs_and_a_picture_out(file):
    import keras
    from keras import layers

    images = [keras.Input((32, 20, 1), name=name) for name in ("a", "b")]
    x = layers.Flatten()(layers.Rescaling(1 / 128, offset=-1)(layers.Add()(images)))
    keras.Model(images, layers.Dense(10)(x), name="two").save(file)
    refused(file, r"takes \(batch, 32, 20, 1\) and \(batch, 32, 20, 1\), but one", model_files.load)
    image = keras.Input((32, 20, 1))
    x = layers.Rescaling(1 / 128, offset=-1)(image)
    ends = [layers.Dense(10)(layers.Flatten()(x)) for _ in range(2)]
    keras.Model(image, ends, name="two").save(file)
    refused(file, r"gives \(batch, 10\) and \(batch, 10\), but one", model_files.load)
    keras.Model(image, layers.Conv2D(10, 3)(x), name="map").save(file)
    refused(file, r"gives \(batch, 30, 18, 10\), but one", model_files.load)


def test_pictures_of_any_size(file):
    import keras
    from keras import layers

    image = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 128, offset=-1)(image))
    keras.Model(image, layers.Dense(10)(x), name="sized").save(file)
    refused(file, r"takes \(batch, any, any, 1\), but one picture", model_files.load)


@pytest.mark.parametrize("by_hand", [True, False])
def test_batches_of_one_size_are_of_any(file, by_hand):
    import keras
    from keras import layers

    parts = [layers.Rescaling(1 / 128, offset=-1), layers.Flatten(), layers.Dense(10)]
    model = keras.Sequential([keras.Input(batch_shape=(16, 32, 20, 1)), *parts] if by_hand else parts, name="batches")
    model.compile("sgd", "mse")
    # Without an input layer it is built for batches as they come.
    model.fit(np.ones((16, 32, 20, 1)), np.ones((16, 10)), batch_size=16, verbose=0)
    model.save(file)
    pictures = np.random.default_rng(0).integers(0, 256, (16, 32, 20, 1)).astype(np.float32)
    loaded = model_files.load(file)
    assert loaded.input_shape == (None, 32, 20, 1)
    np.testing.assert_allclose(loaded(pictures[:3]), model.predict(pictures, verbose=0)[:3], rtol=1e-4, atol=1e-5)


def test_wrong_starts(file):
    from keras import layers

    def refuse(start, match):
        refused(
            network(file, start=start),
            f"begins with {match} instead of Rescaling.*, which the files for devices",
            model_files.load,
        )

    refuse(layers.Rescaling(1 / 255), r"Rescaling\(scale=0.00392\d+, offset=0.0\)")
    refuse(layers.Rescaling(1 / 127.5, offset=-1), r"Rescaling\(scale=0.00784\d+, offset=-1\)")
    refuse(layers.Rescaling(1 / 128), r"Rescaling\(scale=0.0078125, offset=0.0\)")
    refuse(layers.Conv2D(1, 3, name="c"), "Conv2D c")


def test_pictures_that_also_go_round_the_rescaling(file):
    import keras
    from keras import layers

    image = keras.Input((32, 20, 1))
    both = layers.Add(name="sum")([image, layers.Rescaling(1 / 128, offset=-1, name="scaled")(image)])
    keras.Model(image, layers.Dense(10)(layers.Flatten()(both)), name="round").save(file)
    refused(file, "begins with Rescaling scaled and Add sum instead of", model_files.load)


def test_probabilities_at_the_end(file):
    from keras import layers

    ends = [layers.Softmax(), layers.Activation("sigmoid"), layers.Dense(10, activation="softmax")]
    ends += [layers.Activation("log_softmax"), layers.Dense(10, activation=layers.Softmax())]
    ends.append(lambda x: layers.Reshape((10,))(layers.Softmax()(x)))
    for several in (layers.Average(), layers.Add()):
        ends.append(lambda x, both=several: both([layers.Softmax()(x), layers.Softmax()(layers.Dense(10)(x))]))
    for end in ends:
        refused(
            network(file, end), "ends in probabilities .*, but logits are needed; save it without", model_files.load
        )
    assert model_files.load(network(file, layers.Activation("linear"))).name == "small"


def test_weights_that_are_no_use(file):
    def at(place, value):
        def change(h5):
            h5[place][3] = value

        return weights(change)

    for value in (np.nan, np.inf):
        spoilt = archive(file, weights=at(BIAS, value))
        refused(spoilt, r"1 of the model's weights are not finite \(logits/bias\)", model_files.load)
    config = description()
    config["config"]["layers"][-1]["config"]["activation"] = "exponential"
    spoilt = archive(file, config=config, weights=at(BIAS, 1e30))
    refused(spoilt, "no finite logits for a black picture", model_files.load)
    # A black picture's sums are negative, which ReLU takes for 0.
    config["config"]["layers"][-1]["config"]["activation"] = "relu"
    spoilt = archive(file, config=config, weights=weights(lambda h5: h5[KERNEL].write_direct(np.full((640, 10), 1e38))))
    refused(spoilt, "no finite logits for a white picture", model_files.load)


@pytest.mark.parametrize(("gone", "left"), [("layers", "0"), (BIAS, "6,400")])
def test_missing_weights(file, gone, left):
    spoilt = archive(file, weights=weights(lambda h5: h5.pop(gone)))
    refused(spoilt, f"has 6,410 weights but the file holds {left};", model_files.load)


def test_weights_of_another_shape_or_place(file):
    def wider(h5):
        del h5[KERNEL]
        h5[KERNEL] = np.zeros((640, 11), np.float32)

    def elsewhere(h5):
        h5.move("layers/dense", "layers/dense_1")

    for change in (wider, elsewhere):
        spoilt = archive(file, weights=weights(change))
        refused(spoilt, "Keras cannot load this model.*logits", model_files.load)


@pytest.mark.parametrize(("number", "dtype"), [(-1, "float16"), (1, "mixed_float16")])
def test_other_number_formats(file, number, dtype):
    config = description()
    config["config"]["layers"][number]["config"]["dtype"] = dtype
    refused(archive(file, config=config), "calculates in float16, .* same weights", model_files.load)


def test_random_descriptions_raise_nothing_else(file, rng):
    values = [None, -1, 0, 3, 1e9, "", "same", [], [None], {}, {"name": "x"}, True, "float32", 10**30]
    for _ in range(150):
        config = description()
        target = config["config"]["layers"][rng.integers(4)]
        if rng.random() < 0.7:
            target = target["config"]
        options = [*target, "data_format", "trainable", "kernel_initializer", "lora_rank", "quantization_config"]
        target[options[rng.integers(len(options))]] = values[rng.integers(len(values))]
        archive(file, config=config)
        try:
            model_files.load(file)
        except ModelFileError as error:
            assert str(error).startswith(f"{file}: ")
            assert str(error).isprintable()


def test_models_that_fit_and_those_that_do_not(file, tiny):
    model = model_files.load(archive(file))
    fitting = {"nb_classes": 10, "input_height": 32, "input_width": 20, "input_channels": 1}
    model_files.check_fits(model, tiny(**fitting), new_head=False)
    hundred = tiny(**{**fitting, "nb_classes": 100})
    model_files.check_fits(model, hundred, new_head=True)
    match = "^the model small reads 10 classes but NB_CLASSES = 100: use --set NB_CLASSES=10, or a new head by fine-"
    with pytest.raises(ModelFileError, match=match):
        model_files.check_fits(model, hundred, new_head=False)
    match = r"pictures of 32 x 20 x 1 \(height, width, channels\) but INPUT_WIDTH = 24, INPUT_CHANNELS = 3: "
    for new_head in (False, True):
        with pytest.raises(ModelFileError, match=match + "use --set INPUT_WIDTH=20 INPUT_CHANNELS=1,"):
            model_files.check_fits(model, tiny(**{**fitting, "input_width": 24, "input_channels": 3}), new_head)


def test_no_new_head_is_offered_where_none_can_be_put(tiny):
    import keras
    from keras import layers

    image = keras.Input((32, 20, 1))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(10, 3)(image)), name="ends")
    with pytest.raises(ModelFileError, match=r"NB_CLASSES = 100: use --set NB_CLASSES=10, or take another model$"):
        model_files.check_fits(model, tiny(nb_classes=100, input_height=32, input_width=20, input_channels=1), False)


@pytest.mark.slow
def test_a_trained_run_loads(trained_run):
    outcome, settings, _ = trained_run
    model = model_files.load(model_choice.find(None, Path(settings.output_dir)))
    assert model_files.identity(model).name == outcome.architecture
    model_files.check_fits(model, settings, new_head=False)
