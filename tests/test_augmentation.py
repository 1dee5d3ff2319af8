import numpy as np
import pytest
from keras import ops

from utils import settings as settings_module
from utils.augmentation import Augmentation

NAMES = [name.removeprefix("augment_") for name in settings_module.RANGES if name.startswith("augment_")]


def only(**strengths) -> Augmentation:
    return Augmentation(settings_module.load(**{f"augment_{name}": strengths.get(name, 0.0) for name in NAMES}))


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (16, 32, 20, 3)).astype("uint8")


def changed(layer: Augmentation, images: np.ndarray) -> np.ndarray:
    return ops.convert_to_numpy(layer(images, training=True))


def test_does_nothing_outside_training(images):
    layer = Augmentation(settings_module.load())
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(images, training=False)), images)


def test_does_nothing_when_switched_off(images):
    np.testing.assert_array_equal(changed(Augmentation(settings_module.load(augment=False)), images), images)


def test_all_strengths_zero_change_nothing(images):
    np.testing.assert_allclose(changed(only(), images), images, atol=1e-3)


def test_same_epoch_same_changes_other_epoch_other_changes(images):
    layer = Augmentation(settings_module.load())
    results = []
    for epoch in (3, 3, 4):
        layer.start_epoch(epoch)
        results.append(changed(layer, images))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).mean() > 1


def test_every_picture_gets_its_own_change(images):
    same = np.repeat(images[:1], 8, axis=0)
    out = changed(only(brightness=0.2), same)
    assert len({float(picture.mean()) for picture in out}) == 8


def test_inversion_exchanges_dark_and_light(images):
    np.testing.assert_allclose(changed(only(invert=1.0), images), 255.0 - images, atol=1e-3)


def test_values_stay_pixels(images):
    out = changed(only(brightness=1.0, contrast=1.0, noise=1.0), images)
    assert out.min() == 0
    assert out.max() == 255


def test_shifts_stay_within_the_strength():
    picture = np.zeros((64, 32, 20, 1), "uint8")
    picture[:, 14:18, 8:12] = 200
    out = changed(only(shift_x=0.1, shift_y=0.05), picture)[..., 0]
    columns = (out.sum(axis=1) * np.arange(20)).sum(axis=1) / out.sum(axis=(1, 2)) - 9.5
    rows = (out.sum(axis=2) * np.arange(32)).sum(axis=1) / out.sum(axis=(1, 2)) - 15.5
    assert 1 < np.abs(columns).max() <= 0.1 * 20 + 0.01
    assert 0.8 < np.abs(rows).max() <= 0.05 * 32 + 0.01


def test_zoom_and_rotation_keep_the_centre():
    picture = np.zeros((64, 32, 20, 1), "uint8")
    picture[:, 14:18, 8:12] = 200
    out = changed(only(zoom=0.2, rotation=10.0), picture)[..., 0]
    rows = (out.sum(axis=2) * np.arange(32)).sum(axis=1) / out.sum(axis=(1, 2))
    np.testing.assert_allclose(rows, 15.5, atol=0.05)
    area = out.sum(axis=(1, 2)) / picture[0].sum()
    assert area.min() < 0.85
    assert area.max() > 1.2


def test_color_changes_channels_apart_and_spares_grey():
    grey = np.full((8, 32, 20, 3), 100, "uint8")
    out = changed(only(color=0.2), grey)
    assert np.ptp(out, axis=-1).max() > 10
    np.testing.assert_allclose(changed(only(color=0.2), grey[..., :1]), 100, atol=1e-3)
