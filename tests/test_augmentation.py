import keras
import numpy as np
import pytest
from keras import ops

from utils import settings as settings_module
from utils.augmentation import Augmentation, Changed

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


def test_a_network_that_only_predicts_changes_as_a_training_does(images):
    settings, image = settings_module.load(), keras.Input(images.shape[1:])
    network = keras.Model(image, Changed(settings)(image))
    expected = changed(Augmentation(settings), images)
    np.testing.assert_allclose(network.predict_on_batch(images), expected, atol=1e-3)
    assert np.abs(expected - images).mean() > 1


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
    noise = changed(only(noise=0.1), np.full_like(images, 128)).std(axis=(1, 2, 3))
    assert noise.min() < 3 < 20 < noise.max() < 27


def test_shifts_stay_within_the_strength():
    picture = np.zeros((64, 32, 20, 1), "uint8")
    picture[:, 14:18, 8:12] = 200
    out = changed(only(shift_x=0.1, shift_y=0.05), picture)[..., 0]
    columns = (out.sum(axis=1) * np.arange(20)).sum(axis=1) / out.sum(axis=(1, 2)) - 9.5
    rows = (out.sum(axis=2) * np.arange(32)).sum(axis=1) / out.sum(axis=(1, 2)) - 15.5
    assert 1 < np.abs(columns).max() <= 0.1 * 20 + 0.01
    assert 0.8 < np.abs(rows).max() <= 0.05 * 32 + 0.01


def test_shear_leans_a_stroke_about_the_centre():
    stroke = np.zeros((64, 32, 20, 1), "uint8")
    stroke[:, :, 8:12] = 200
    out = changed(only(shear=0.2), stroke)[..., 0]
    columns = (out * np.arange(20)).sum(axis=2) / out.sum(axis=2)
    assert 0.15 < np.abs(columns[:, 20] - columns[:, 11]).max() / 9 <= 0.2 + 1e-3
    np.testing.assert_allclose(columns[:, 15] + columns[:, 16], 19, atol=0.05)


def test_zoom_and_rotation_keep_the_centre():
    picture = np.zeros((64, 32, 20, 1), "uint8")
    picture[:, 14:18, 8:12] = 200
    out = changed(only(zoom=0.2, rotation=10.0), picture)[..., 0]
    rows = (out.sum(axis=2) * np.arange(32)).sum(axis=1) / out.sum(axis=(1, 2))
    np.testing.assert_allclose(rows, 15.5, atol=0.05)
    area = out.sum(axis=(1, 2)) / picture[0].sum()
    assert area.min() < 0.85
    assert area.max() > 1.2


def test_turns_zooms_and_exposure_reach_their_strength_and_no_further():
    picture = np.full((200, 32, 20, 1), 100, "uint8")
    picture[:, 8:24, 6:14] = 140
    zoomed = changed(only(zoom=0.2), picture)[..., 0] - 100
    width, height = 8 * 40 / zoomed[:, 16].sum(axis=1), 16 * 40 / zoomed[:, :, 10].sum(axis=1)
    assert 0.18 < np.abs(width - 1).max() <= 0.2 + 0.02
    assert 0.08 < np.abs(height / width - 1).max() <= 0.1 + 0.02
    edge = changed(only(rotation=6.0), picture)[..., 0]
    left = np.stack([(edge[:, row] - 100).cumsum(axis=1)[:, 9] / 40 for row in (11, 20)])
    assert 5.5 < np.degrees(np.arctan(np.abs(left[0] - left[1]) / 9)).max() <= 6 + 0.1
    assert 46 < np.abs(changed(only(brightness=0.2), picture) - picture).max() <= 51.01
    contrast = np.ptp(changed(only(contrast=0.4), picture), axis=(1, 2, 3)) / 40
    assert 0.36 < np.abs(contrast - 1).max() <= 0.4 + 1e-3
    colours = np.repeat(picture, 3, axis=-1)
    assert 0.18 < np.abs(changed(only(color=0.2), colours) / colours - 1).max() <= 0.2 + 1e-3
    colours[..., 1:] += np.array([5, 50], np.uint8)
    # A sixth of the exchanges leaves all as it was.
    assert 0.4 < (changed(only(swap=0.6), colours) == colours).all(axis=(1, 2, 3)).mean() < 0.6


def test_color_changes_channels_apart_and_spares_grey():
    grey = np.full((8, 32, 20, 3), 100, "uint8")
    out = changed(only(color=0.2), grey)
    assert np.ptp(out, axis=-1).max() > 10
    np.testing.assert_allclose(changed(only(color=0.2), grey[..., :1]), 100, atol=1e-3)


def test_grey_is_the_mean_and_swapped_channels_are_the_same_ones(images):
    grey = images.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    np.testing.assert_allclose(changed(only(grey=1.0), images), grey, atol=1e-3)
    swapped = changed(only(swap=1.0), images)
    np.testing.assert_allclose(np.sort(swapped, axis=-1), np.sort(images, axis=-1), atol=1e-3)
    orders = set()
    for one, before in zip(swapped, images, strict=True):
        orders.add(tuple((one[..., [channel]] == before).all(axis=(0, 1)).argmax() for channel in range(3)))
    assert len(orders) > 3
    assert 0.3 < (changed(only(swap=0.5), images) == images).all(axis=(1, 2, 3)).mean() < 0.9


def test_focus_light_and_covers_strike_their_share_of_the_pictures():
    stripes = np.full((400, 32, 20, 1), 100, "uint8")
    stripes[:, :, ::2] = 120

    def struck(low: float, high: float, **strengths) -> np.ndarray:
        out = changed(only(**strengths), stripes)
        found = np.abs(out - stripes).max(axis=(1, 2, 3)) > 0.01
        assert low < found.mean() < high
        return out[found]

    # Within the picture: at the border the mean of three is another.
    assert np.ptp(struck(0.25, 0.35, blur=1.0)[:, :, 1:-1], axis=(1, 2, 3)).max() < 20
    sharp = np.ptp(struck(0.25, 0.35, sharpen=1.0)[:, :, 1:-1], axis=(1, 2, 3))
    # At most twice the distance to the mean of three, 13.3, on both sides.
    assert 20 < sharp.min() < 69 < sharp.max() <= 20 + 4 * 40 / 3 + 0.01
    glare = struck(0.15, 0.25, glare=0.5) - stripes[0]
    assert glare.min() > -0.01
    assert 100 < glare.max() <= 127.5
    light = struck(0.99, 1.01, light=0.1) / stripes[0] - 1
    assert 0.15 < np.abs(light).max() <= 0.2 + 1e-4
    np.testing.assert_allclose(light + light[:, ::-1, ::-1], 0, atol=1e-3)
    for out in struck(0.2, 0.4, cover=0.3)[..., 0]:
        covered = np.abs(out - stripes[0, :, :, 0]) > 0.01
        assert np.ptp(out[covered]) < 0.01
        assert covered.any(axis=1).sum() <= 0.45 * 32 + 1
        assert covered.any(axis=0).sum() <= 0.45 * 20 + 1
