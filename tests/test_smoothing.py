"""Smoothing along the ring: what it makes of logits, that it lies in the weights, and which models it leaves alone."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from utils import runs, smoothing, temperature


@pytest.fixture(scope="module")
def tenths():
    """A network of 100 classes."""
    image = keras.Input((32, 20, 1))
    return keras.Model(image, layers.Dense(100)(layers.Flatten()(image)), name="tenths")


def test_each_neighbour_on_the_ring_counts_for_its_share():
    logits = np.zeros((1, 100), np.float32)
    logits[0, 0] = 4
    smoothed = (logits @ smoothing.matrix(0.25))[0]
    assert {int(i): smoothed[i] for i in np.flatnonzero(smoothed)} == {99: 1.0, 0: 2.0, 1: 1.0}
    np.testing.assert_array_equal(smoothing.matrix(0), np.eye(100))


def test_a_lone_peak_loses_to_a_broad_one():
    logits = np.zeros((1, 100), np.float32)
    logits[0, 30] = 3
    logits[0, 33:36] = 2.5
    assert (logits @ smoothing.matrix(0.25)).argmax() == 34


def test_the_models_own_logits_are_smoothed(tenths, tiny, rng):
    images = rng.integers(0, 256, (20, 32, 20, 1)).astype("float32")
    before = tenths.predict(images, verbose=0)
    assert smoothing.fold(tenths, tiny(nb_classes=100, ring_smoothing=0.2))
    after = tenths.predict(images, verbose=0)
    expected = 0.6 * before + 0.2 * (np.roll(before, 1, axis=1) + np.roll(before, -1, axis=1))
    np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-2)


def test_digits_and_other_ends_are_left_alone(tenths, tiny, caplog):
    softmax = keras.Model(tenths.input, layers.Softmax()(tenths.output), name="softmax")
    weights = tenths.get_weights()
    assert not smoothing.fold(tenths, tiny(nb_classes=10))
    assert not smoothing.fold(tenths, tiny(nb_classes=100, ring_smoothing=0.0))
    assert not caplog.text
    assert not smoothing.fold(softmax, tiny(nb_classes=100))
    assert "softmax: no smoothing along the ring" in caplog.text
    for weight, old in zip(tenths.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_a_resumed_run_is_smoothed_once(trained_run, tenths, tmp_path, monkeypatch):
    _, settings, splits = trained_run
    asked = []
    monkeypatch.setattr(temperature, "fold", lambda model, *rest: asked.append(model.layers[-1].get_weights()[0]))
    settings = dataclasses.replace(settings, nb_classes=100)
    path, before = tmp_path / runs.BEST_MODEL_FILE, tenths.layers[-1].get_weights()[0]
    temperature.fold_best(tenths, tmp_path, splits, settings)
    smoothed = keras.models.load_model(path, compile=False, safe_mode=True)
    np.testing.assert_allclose(smoothed.layers[-1].get_weights()[0], before @ smoothing.matrix(0.25), rtol=1e-5)
    # The temperature is that of the smoothed logits.
    np.testing.assert_array_equal(asked[0], smoothed.layers[-1].get_weights()[0])
    temperature.fold_best(smoothed, tmp_path, splits, settings)
    again = keras.models.load_model(path, compile=False, safe_mode=True)
    np.testing.assert_array_equal(again.layers[-1].get_weights()[0], smoothed.layers[-1].get_weights()[0])
