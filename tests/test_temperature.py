import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from utils import confidence, evaluation, export, fake_quant, labels, loader, runs, temperature


@pytest.fixture
def unsure(trained_run):
    """The trained model with logits three times as large, so three times too sure; settings and pictures."""
    outcome, settings, splits = trained_run
    model = keras.models.load_model(outcome.run_dir / runs.BEST_MODEL_FILE, compile=False, safe_mode=True)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([3 * kernel, 3 * bias])
    return model, settings, splits


def network(end) -> keras.Model:
    image = keras.Input((32, 20, 1))
    return keras.Model(image, end(layers.Rescaling(1 / 128, offset=-1)(image)), name="end")


@pytest.mark.parametrize("copies", [1, 2])
def test_few_pictures_settle_no_temperature(unsure, caplog, copies):
    model, settings, splits = unsure
    few = dataclasses.replace(splits, validation=splits.validation[: confidence.ENOUGH - 1].repeat(copies))
    weights = model.layers[-1].get_weights()
    assert temperature.fold(model, few, settings) is None
    np.testing.assert_array_equal(model.layers[-1].get_weights()[0], weights[0])
    assert f"the {confidence.ENOUGH - 1} validation pictures don't settle one" in caplog.text


def test_folding_divides_the_logits_and_reads_the_same(unsure):
    model, settings, splits = unsure
    images = splits.pool.images(splits.measured["test"])
    before = evaluation.keras_logits(model, images)
    found = temperature.fold(model, splits, settings)
    after = evaluation.keras_logits(model, images)
    assert found > 1.5
    np.testing.assert_allclose(after, before / found, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
    # Folded once, there is nothing left to do.
    assert temperature.fold(model, splits, settings) == pytest.approx(1, abs=0.001)


def test_confidence_is_made_worth_that_of_another_model(unsure):
    model, settings, splits = unsure
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.layers[-1].set_weights([weight / 2 for weight in model.layers[-1].get_weights()])
    assert temperature.fold(model, splits, settings, like=other) == pytest.approx(2, abs=0.001)
    np.testing.assert_allclose(model.layers[-1].kernel, other.layers[-1].kernel, rtol=1e-3)


def test_what_is_trained_on_has_the_size_of_logits_that_training_asks_for(unsure):
    model, settings, splits = unsure
    settings = dataclasses.replace(settings, augment=False)
    images, classes = splits.pool.images(splits.train), splits.pool.classes(splits.train)
    known, weights = evaluation.keras_logits(model, images), model.layers[-1].get_weights()
    copy = temperature.taken_out(model, splits, settings)
    found = evaluation.keras_logits(copy, images)
    scale = np.abs(found).max() / np.abs(known).max()
    np.testing.assert_allclose(found, known * scale, rtol=1e-3, atol=1e-3)
    wanted = labels.targets(10, settings.label_spread)[splits.pool.tenths[splits.train]]
    losses = [
        np.mean(keras.losses.categorical_crossentropy(wanted, found * factor, from_logits=True))
        for factor in (0.8, 1, 1.25)
    ]
    assert losses[1] == min(losses)
    assert (found.argmax(axis=1) == classes).mean() == (known.argmax(axis=1) == classes).mean()
    assert copy.name == model.name
    np.testing.assert_array_equal(model.layers[-1].get_weights()[0], weights[0])
    # Changed pictures are harder to read, and ask for smaller logits.
    harder = temperature.taken_out(model, splits, dataclasses.replace(settings, augment=True))
    assert np.abs(harder.layers[-1].kernel).max() < 0.8 * np.abs(copy.layers[-1].kernel).max()


def test_a_quantised_file_changes_in_the_scale_of_its_output_only(unsure):
    model, settings, splits = unsure
    images = splits.pool.images(splits.measured["test"][:50])
    quantized = fake_quant.quantize(model, loader.calibration_images(splits, 200, 0))
    before = evaluation.tflite_logits(export.integer_tflite(quantized, "int8"), images)
    low, high = list(fake_quant.ranges(quantized).values())[-1]
    found = temperature.fold(quantized, splits, settings)
    assert list(fake_quant.ranges(quantized).values())[-1] == pytest.approx((low / found, high / found), rel=1e-4)
    after = evaluation.tflite_logits(export.integer_tflite(quantized, "int8"), images)
    np.testing.assert_allclose(after, before / found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(10, 3)(x)),
        lambda x: layers.Dropout(0.5)(layers.Dense(10, use_bias=False)(layers.Flatten()(x))),
    ],
)
def test_layers_behind_the_last_weights_pass_it_on(unsure, end, monkeypatch):
    _, settings, splits = unsure
    monkeypatch.setattr(confidence, "temperature", lambda logits, classes: 1.7)
    model, images = network(end), splits.pool.images(splits.validation[:20])
    before = evaluation.keras_logits(model, images)
    assert temperature.fold(model, splits, settings) == 1.7
    np.testing.assert_allclose(evaluation.keras_logits(model, images), before / 1.7, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: layers.BatchNormalization()(layers.Dense(10)(layers.Flatten()(x))),
        lambda x: layers.Dense(10, activation="relu")(layers.Flatten()(x)),
        lambda x: layers.Add()([layers.Dense(10)(layers.Flatten()(x)), layers.Dense(10)(layers.Flatten()(x))]),
        lambda x: (shared := layers.Dense(10))(layers.Dense(10)(shared(layers.Dense(10)(layers.Flatten()(x))))),
    ],
)
def test_other_ends_are_left_alone(unsure, end, caplog):
    _, settings, splits = unsure
    model = network(end)
    before = model.get_weights()
    assert temperature.fold(model, splits, settings) is None
    assert "no dense or convolution layer without activation ends it" in caplog.text
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_shares_of_neighbouring_digits_stay_shares(unsure, caplog):
    model, settings, splits = unsure
    caplog.set_level("INFO")
    assert temperature.fold(model, splits, dataclasses.replace(settings, label_spread=5.0)) is None
    assert "shares of neighbouring digits" in caplog.text


def test_tenths_that_are_shared_widely_get_a_temperature_all_the_same(unsure, monkeypatch):
    _, settings, splits = unsure
    monkeypatch.setattr(confidence, "temperature", lambda logits, classes: 1.7)
    tenths = network(lambda x: layers.Dense(100)(layers.Flatten()(x)))
    settings = dataclasses.replace(settings, nb_classes=100, label_spread=5.0)
    assert temperature.fold(tenths, splits, settings) == 1.7


def test_a_resumed_run_folds_once(unsure, tmp_path):
    model, settings, splits = unsure
    path = tmp_path / runs.BEST_MODEL_FILE
    model.save(path)
    found = temperature.fold_best(model, tmp_path, splits, settings)
    content = path.read_bytes()
    again = keras.models.load_model(path, compile=False, safe_mode=True)
    np.testing.assert_array_equal(again.layers[-1].get_weights()[0], model.layers[-1].get_weights()[0])
    assert temperature.fold_best(again, tmp_path, splits, settings) == found
    assert path.read_bytes() == content
    # A best model that has been trained anew is folded anew.
    kernel, bias = again.layers[-1].get_weights()
    again.layers[-1].set_weights([2 * kernel, 2 * bias])
    again.save(path)
    assert temperature.fold_best(again, tmp_path, splits, settings) == pytest.approx(2, rel=0.01)
