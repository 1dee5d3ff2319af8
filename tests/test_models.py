import dataclasses
import sys
import types

import keras
import numpy as np
import pytest

import models
from utils import catalog, complexity, evaluation, export, fake_quant, gate, loader, session
from utils.synthetic import draw


@pytest.fixture(params=models.available())
def architecture(request):
    return models.get(request.param)


def test_listing_is_in_natural_order():
    names = models.available()
    assert names.index("digit_recognizer_v4") < names.index("digit_recognizer_v12")
    assert {"cnn32", "high_accuracy_validator"} <= set(names)
    assert not any(name.startswith("_") for name in names)


def test_a_mistyped_name_lists_the_known_ones():
    with pytest.raises(models.UnknownArchitectureError, match=r"did you mean cnn32.*digit_recognizer_v4"):
        models.get("cnn23")


def test_a_path_is_no_architecture():
    with pytest.raises(models.UnknownArchitectureError):
        models.get("../train")


def test_a_file_is_a_registration(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "my_own.py").write_text("")
    monkeypatch.setattr(models, "__file__", str(tmp_path / "__init__.py"))
    assert models.available() == ["my_own"]


@pytest.mark.parametrize(("shape", "nb_classes"), [((32, 20, 1), 10), ((32, 20, 3), 100), ((48, 32, 3), 10)])
def test_builds_every_shape_and_ends_in_logits(architecture, shape, nb_classes):
    model = architecture.build(shape, nb_classes)
    assert model.name == architecture.name
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, nb_classes)
    assert isinstance(model.layers[1], keras.layers.Rescaling)
    last = [layer for layer in model.layers if layer.weights][-1]
    assert last.activation is keras.activations.linear
    assert not any(hasattr(layer, "activation") for layer in model.layers[model.layers.index(last) + 1 :])


def test_is_a_plain_keras_file(architecture, tmp_path, rng):
    model = architecture.build((32, 20, 1), 10)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    images = rng.integers(0, 256, (3, 32, 20, 1)).astype("uint8")
    np.testing.assert_array_equal(evaluation.keras_logits(loaded, images), evaluation.keras_logits(model, images))
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in loaded.layers)


def as_if_trained(architecture: models.Architecture) -> keras.Model:
    """A grey model of 10 classes whose biases and batch statistics are no zeros and ones any more."""
    keras.utils.set_random_seed(1)
    model = architecture.build((32, 20, 1), 10)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.1, 0.3, w.shape) if w.ndim == 1 else w for w in layer.get_weights()])
    return model


def test_exports_to_a_file_of_the_size_foretold(architecture):
    if not architecture.quantizable:
        pytest.skip("never quantised")
    model = as_if_trained(architecture)
    images = draw(200, seed=1).images.mean(axis=-1, keepdims=True).astype(np.uint8)
    expected = evaluation.keras_logits(model, images)
    content = export.float_tflite(model)
    np.testing.assert_allclose(evaluation.tflite_logits(content, images), expected, atol=1e-3)
    assert complexity.file_bytes(model, quantized=False) == pytest.approx(len(content), rel=0.01)
    content = export.quantized_tflite(model, images, "int8")
    assert complexity.file_bytes(model) == pytest.approx(len(content), rel=0.03)
    # Free of kernels that chips get wrong.
    assert gate.check("tflite_micro", content, 10, False).warnings == ()
    as_int8 = evaluation.tflite_logits(content, images)
    # An untrained network's logits are small and close together; a broken scale or zero point shows all the same.
    assert np.corrcoef(as_int8.ravel(), expected.ravel())[0, 1] > 0.98


def test_sizes_are_counted_by_hand():
    model = models.get("cnn32").build((32, 20, 1), 100)
    weights = (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 64 + 64) + (512 * 256 + 256) + (256 * 100 + 100)
    assert complexity.parameters(model) == weights == 212_772
    work = 640 * 9 * 32 + 160 * 9 * 32 * 64 + 40 * 9 * 64 * 64 + 512 * 256 + 256 * 100
    assert complexity.multiply_accumulates(model) == work


def test_depthwise_work_is_counted_once_a_channel():
    image = keras.Input((8, 8, 16))
    model = keras.Model(image, keras.layers.DepthwiseConv2D(3, padding="same")(image))
    assert complexity.multiply_accumulates(model) == 64 * 9 * 16


@pytest.mark.parametrize(
    ("layer", "work"),
    [
        (lambda: keras.layers.SeparableConv2D(24, 3, padding="same"), 64 * (9 * 16 + 16 * 24)),
        (lambda: keras.layers.Conv2DTranspose(24, 3, strides=2), 64 * 9 * 16 * 24),
        (lambda: keras.layers.Dense(24), 64 * 16 * 24),
        (lambda: keras.layers.Conv2D(24, 3, strides=2, groups=2, padding="same"), 16 * 9 * 8 * 24),
    ],
)
def test_work_of_other_layers(layer, work):
    image = keras.Input((8, 8, 16))
    assert complexity.multiply_accumulates(keras.Model(image, layer()(image))) == work


def test_a_shared_layer_works_as_often_as_it_is_used():
    image, shared = keras.Input((8, 8, 16)), keras.layers.Conv2D(16, 3, padding="same")
    once = shared(image)
    shared(keras.Input((8, 8, 16)))  # not in the model
    pooled = keras.layers.MaxPooling2D()(shared(once))
    model = keras.Model(image, keras.layers.Flatten()(shared(pooled)))
    assert complexity.multiply_accumulates(model) == (64 + 64 + 16) * 9 * 16 * 16


def own(monkeypatch, build) -> models.Architecture:
    """An architecture as a user adds one."""
    monkeypatch.setattr(models, "check", lambda name: name)
    monkeypatch.setitem(sys.modules, "models.my_own", types.SimpleNamespace(build=build))
    return models.get("my_own")


def a_row(shape, nb_classes):
    steps = [keras.layers.Rescaling(1 / 128, offset=-1), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    return keras.Sequential([keras.Input(shape), *steps, keras.layers.Dense(nb_classes)])


def test_a_sequential_of_ones_own_becomes_a_graph_of_the_files_name(monkeypatch, rng):
    built = []
    monkeypatch.setattr(
        models, "as_graph", lambda model, name, real=models.as_graph: built.append(model) or real(model, name)
    )
    model = own(monkeypatch, a_row).build((32, 20, 1), 10)
    assert (model.name, type(model).__name__) == ("my_own", "Functional")
    pictures = rng.integers(0, 256, (3, 32, 20, 1)).astype(np.float32)
    np.testing.assert_allclose(model(pictures), built[0](pictures), rtol=1e-5)
    # A layer that seems to be used twice can't be quantised.
    fake_quant.check(model, "my_own.py")


def test_what_could_not_be_exported_is_refused_before_it_is_trained(monkeypatch, tiny):
    def soft(shape, nb_classes):
        row = a_row(shape, nb_classes)
        return keras.Model(row.inputs, keras.layers.Softmax()(row.outputs[0]))

    def two(shape, nb_classes):
        row = a_row(shape, nb_classes)
        return keras.Model(row.inputs, [row.outputs[0], row.outputs[0]])

    def odd(shape, nb_classes):
        image = keras.Input(shape)
        x = keras.layers.SeparableConv2D(4, 3)(keras.layers.Rescaling(1 / 128, offset=-1)(image))
        return keras.Model(image, keras.layers.Dense(nb_classes)(keras.layers.Flatten()(x)))

    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    def stranger(shape, nb_classes):
        row = a_row(shape, nb_classes)
        return keras.Model(row.inputs, Doubled()(row.outputs[0]), name="my_own")

    def nameless(shape, nb_classes):
        row = a_row(shape, nb_classes)
        return keras.Model(row.inputs, keras.layers.Lambda(lambda x: 2 * x)(row.outputs[0]))

    def named(shape, nb_classes):
        row = a_row(shape, nb_classes)
        return keras.Model(row.inputs, keras.layers.Identity(name="größe 1")(row.outputs[0]))

    settings = tiny()
    splits = loader.load(settings)
    monkeypatch.setattr(session, "_fit", lambda *args: pytest.fail("trained"))
    for build, message in (
        (soft, "ends in probabilities"),
        (two, "one vector"),
        (lambda shape, nb_classes: a_row(shape, 100), "of 32 x 20 x 1 to 100 classes, not 32 x 20 x 1 to 10 classes"),
        (lambda shape, nb_classes: a_row((32, 32, 1), nb_classes), "of 32 x 32 x 1 to 10 classes, not 32 x 20 x 1 to"),
        (stranger, "Keras can't load this model once it is saved"),
        (lambda *asked: keras.Sequential(stranger(*asked).layers), "Keras can't load this model once it is saved"),
        (nameless, "Keras can't load this model once it is saved"),
        (lambda shape, nb_classes: None, "build returns a NoneType, it has to return keras.Model(image, logits)"),
        (lambda shape, nb_classes: keras.Sequential([keras.layers.Dense(10)]), "build returns a Sequential, it has"),
        (named, "TensorFlow takes no layer named 'größe 1': use letters of English"),
        (odd, "can't be quantised"),
    ):
        own(monkeypatch, build)
        chosen = dataclasses.replace(settings, quantize_model=build is odd)
        (outcome,) = session.train(["my_own"], chosen, session.Options(), splits)
        assert outcome.error.startswith("models/my_own.py: ")
        assert message in outcome.error


def test_what_no_script_could_open_again_is_said_before_it_is_trained(monkeypatch, tiny, caplog):
    def added(shape, nb_classes):
        row = a_row(shape, nb_classes)
        return keras.Model(row.inputs, row.outputs[0] + 1.0)

    for build, said in ((added, True), (a_row, False)):
        own(monkeypatch, build)
        caplog.clear()
        session.check(["my_own"], tiny(quantize_model=False))
        assert ("models/my_own.py: the model contains keras.src.ops.numpy.Add, but" in caplog.text) is said


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(: pass", r"can't be imported \(SyntaxError: invalid syntax \(unfinished.py, line 1\)\)"),
        ("import nothing_of_that_name", "can't be imported .*No module named 'nothing_of_that_name'"),
        ("PURPOSE = 'none'", r"has no function build\(input_shape, nb_classes\)"),
    ],
)
def test_a_file_that_is_no_architecture_is_named(monkeypatch, tmp_path, tiny, code, message):
    (tmp_path / "unfinished.py").write_text(code)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(models, "available", lambda: ["unfinished"])
    with pytest.raises(models.BuildError, match=f"models/unfinished.py {message}"):
        models.get("unfinished")
    (outcome,) = session.train(["unfinished"], tiny(), session.Options(), loader.load(tiny()))
    assert outcome.error.startswith("models/unfinished.py ")


def test_the_table_of_architectures_has_each_with_its_numbers_and_purpose(tiny, monkeypatch):
    # With JAX each draw is compiled first.
    drawn = []
    draw = keras.initializers.VarianceScaling.__call__
    monkeypatch.setattr(
        keras.initializers.VarianceScaling, "__call__", lambda *a, **k: drawn.append(a) or draw(*a, **k)
    )
    text = catalog.table(tiny(nb_classes=100, input_channels=3))
    rows = {line.split()[0]: line for line in text.splitlines()[2:] if line}
    assert {*models.available(), "100"} == rows.keys()
    assert all(models.get(name).purpose in rows[name] for name in models.available())
    # cnn32 in RGB has 213,348 weights; 220,416 bytes is its file with batch statistics and biases that aren't zero.
    assert rows["cnn32"].split()[-3:] == ["213,348", "5,133,312", "215"]
    assert rows["high_accuracy_validator"].endswith(" -")
    assert text.endswith("100 classes, input 20 x 32, RGB")
    assert not drawn


def test_the_validator_is_never_quantised_and_large():
    architecture = models.get("high_accuracy_validator")
    assert architecture.quantizable is False
    assert complexity.parameters(architecture.build((32, 20, 1), 100)) > 2_900_000


def test_pictures_that_are_too_small_are_refused_in_one_sentence(tiny):
    with pytest.raises(models.BuildError) as error:
        models.get("digit_recognizer_v6").build((8, 8, 1), 10)
    text = str(error.value)
    assert text.startswith("digit_recognizer_v6 can't be built for INPUT_HEIGHT x INPUT_WIDTH = 8 x 8 (Computed output")
    assert text.isprintable()
    rows = list(filter(None, catalog.table(tiny(input_height=8, input_width=8)).splitlines()))
    assert {row.split()[0]: row.split()[-1] for row in rows}["digit_recognizer_v6"] == "-"
    assert "74,954" in next(row for row in rows if row.startswith("cnn32"))
