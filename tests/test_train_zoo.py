"""What the zoo's networks are taught, and what they begin with."""

import keras
import numpy as np
import pytest

from models import _blocks
from tests import flat_minima, train_zoo
from utils import evaluation, labels


def plain(stages: tuple[tuple[int, ...], ...]) -> keras.Model:
    image, x = _blocks.image_input((32, 20, 3))
    return keras.Model(image, _blocks.flat_logits(_blocks.stages(x, stages), 100))


def test_the_label_counts_more_where_the_teacher_misreads_a_drawn_picture():
    spread = labels.targets(100, 1.0)
    answers = np.zeros((4, 100), np.float16)
    answers[[0, 1, 2, 3], [12, 40, 99, 40]] = 1
    found = train_zoo.targets(answers, np.array([12, 12, 1, 12]), spread)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    # The first two are photographs, whose labels people gave; 9.9 is near 0.1 on the ring.
    np.testing.assert_allclose(found[[0, 1, 2, 3], [12, 40, 99, 40]], [0.9 + 0.1 * spread[12, 12], 0.9, 0.9, 0.5])
    np.testing.assert_allclose(found[3, 12], 0.5 * spread[12, 12])


def test_blended_pictures_have_no_label_but_the_teachers_answer(rng):
    images = np.repeat(np.array([0, 200], np.uint8), 5000)[:, None, None, None] + np.zeros((10_000, 2, 2, 3), np.uint8)
    tenths = np.repeat(np.array([12, 40]), 5000)
    blended, left = train_zoo.blend(images, tenths, rng)
    without = left == train_zoo.NO_LABEL
    assert without.mean() == pytest.approx(train_zoo.BLENDED, abs=0.02)
    np.testing.assert_array_equal(blended[~without], images[~without])
    np.testing.assert_array_equal(left[~without], tenths[~without])
    seen = blended[:, 0, 0, 0][without]
    # Half of the others are alike, and none outshines the picture itself.
    assert (seen[tenths[without] == 12] <= 100).all() and (seen[tenths[without] == 40] >= 100).all()
    assert 0.4 < np.isin(seen, [0, 200]).mean() < 0.6
    answers = np.full((2, 100), 0.01, np.float16)
    found = train_zoo.targets(answers, np.array([train_zoo.NO_LABEL, 12]), labels.targets(100, 1.0))
    np.testing.assert_allclose(found[0], 0.01, rtol=1e-3)
    assert found[1, 12] > 0.05


def test_a_widened_network_answers_much_as_the_narrow_one(rng):
    keras.utils.set_random_seed(1)
    narrow, wide = plain(((6, 8), (10,), (12,), (16,))), plain(((8, 8), (16,), (20,), (16,)))
    for layer in narrow.layers:
        layer.set_weights([rng.uniform(0.1, 0.3, w.shape) if w.ndim == 1 else w for w in layer.get_weights()])
    train_zoo.widen(narrow, wide)
    images = rng.integers(0, 256, (50, 32, 20, 3), "uint8")
    old, new = (evaluation.keras_logits(model, images) for model in (narrow, wide))
    assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.9
    kernel = wide.layers[2].kernel.numpy()
    assert not np.allclose(kernel[..., 6:], 0) and len(np.unique(kernel[0, 0, 0].round(6))) == 8


def test_batches_hold_every_stored_picture_once_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(train_zoo, "BATCH", 5)
    monkeypatch.setattr(train_zoo, "AT_ONCE", 2)
    monkeypatch.setattr(train_zoo, "SHARD", 10)
    for shard in range(3):
        images = np.full((10, 2, 2, 3), 10 * shard, np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None, None]
        answers = np.full((10, 100), 0.01, np.float16)
        np.savez(tmp_path / f"{shard:05d}.npz", images=images, answers=answers, tenths=np.arange(10))
    seen = list(train_zoo.batches(tmp_path, labels.targets(100, 1.0), epochs=2))
    assert len(seen) == 2 * train_zoo.steps_of(tmp_path)
    numbers = np.concatenate([images[:, 0, 0, 0] for images, _ in seen])
    assert np.bincount(numbers, minlength=30).tolist() == [2] * 30
    assert not np.array_equal(numbers[:30], numbers[30:])


def test_a_sharpened_step_follows_the_gradient_of_the_worst_weights_nearby():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    network.set_weights([np.array([[1.0, -2.0], [0.0, 0.5]])])
    trainer = flat_minima.Sharpened([keras.Input((2,)), network])
    trainer.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    images, wanted = np.array([[1.0, 2.0]], np.float32), np.array([[3.0, 1.0]], np.float32)
    trainer.fit(images, wanted, verbose=0)

    def gradient(weights: np.ndarray) -> np.ndarray:
        return images.T @ (images @ weights - wanted)

    weights = np.array([[1.0, -2.0], [0.0, 0.5]])
    sizes = np.abs(weights) + flat_minima.LEAST
    steepest = sizes * gradient(weights)
    move = flat_minima.RADIUS * sizes * steepest / np.linalg.norm(steepest)
    np.testing.assert_allclose(network.get_weights()[0], weights - 0.1 * gradient(weights + move), rtol=1e-5)
