import numpy as np
import pytest

from utils import robustness, synthetic

BY_NAME = {change.name: change for change in robustness.CHANGES}
PICTURES = synthetic.draw(8, 4).images


def applied(name: str, images: np.ndarray = PICTURES) -> np.ndarray:
    return BY_NAME[name].apply(images)


@pytest.mark.parametrize("change", robustness.CHANGES, ids=lambda change: change.name)
def test_every_change_is_the_same_each_time_and_changes_something(change):
    first, before = change.apply(PICTURES), PICTURES.copy()
    assert (first.shape, first.dtype) == (PICTURES.shape, np.uint8)
    assert (first == change.apply(PICTURES)).all()
    assert (before == PICTURES).all()
    assert (first == PICTURES).all() == (change.name == "unchanged")


def test_the_list_begins_with_the_pictures_as_they_are():
    assert robustness.CHANGES[0].name == "unchanged"
    assert len(BY_NAME) == len(robustness.CHANGES) == 17


def test_shifts_are_whole_pixels_of_a_picture_20_wide():
    assert (applied("2 px to the left")[:, :, :-2] == PICTURES[:, :, 2:]).all()
    assert (applied("2 px to the right")[:, :, 2:] == PICTURES[:, :, :-2]).all()
    assert (applied("2 px to the right")[:, :, :2] == PICTURES[:, :, :1]).all()


def test_a_vertical_shift_moves_the_label_and_a_blur_no_row():
    assert robustness.tenths_after(BY_NAME["one tenth up"], np.array([0, 34, 99])).tolist() == [1, 35, 0]
    assert robustness.tenths_after(BY_NAME["one tenth down"], np.array([0, 34, 99])).tolist() == [99, 33, 98]
    assert robustness.tenths_after(BY_NAME["zoom 0.8"], np.array([34])).tolist() == [34]
    line = np.zeros((1, 100, 20, 3), np.uint8)
    line[0, 50] = 255
    rows = np.arange(100)
    for name, middle in (("one tenth up", 50 - 8.6), ("one tenth down", 50 + 8.6)):
        assert np.average(rows, weights=applied(name, line)[0, :, 5, 0]) == pytest.approx(middle, abs=0.05)
    blurred = applied("blur", line)[0, :, 5, 0]
    assert np.average((rows - 50) ** 2, weights=blurred) ** 0.5 == pytest.approx(100 / 32, abs=0.1)


def test_turning_left_lifts_the_right_side():
    point = np.zeros((1, 33, 33, 3), np.uint8)
    point[0, 16, 30] = 255
    row, column = np.unravel_index(applied("rotate 8 degrees left", point)[0, :, :, 0].argmax(), (33, 33))
    assert (row, column) == (14, 30)


def test_light_and_colour():
    flat = np.array([[[[10, 100, 200]]]], np.uint8).repeat(32, 1).repeat(20, 2)
    for name, expected in (
        ("darker by half", [5, 50, 100]),
        ("brighter by half", [15, 150, 255]),
        ("inverted", [245, 155, 55]),
        ("red and blue swapped", [200, 100, 10]),
        ("grey", [84, 84, 84]),
        ("blur", [10, 100, 200]),
    ):
        assert applied(name, flat)[0, 5, 5].tolist() == expected, name
    noise = applied("noise", np.full((20, 32, 20, 3), 128, np.uint8)).astype(float)
    assert abs(noise.mean() - 128) < 0.5
    assert abs(noise.std() - robustness.NOISE) < 0.5
    glare = applied("glare", np.zeros((1, 32, 20, 3), np.uint8))[0, :, :, 0]
    assert np.unravel_index(glare.argmax(), glare.shape) in ((10, 12), (11, 12), (11, 13), (10, 13))
    assert 190 < glare.max() <= 200


@pytest.mark.parametrize(("count", "chosen"), [(3, 3), (1000, 1000), (5000, 1000)])
def test_pictures_are_chosen_at_equal_distance(count, chosen):
    indices = robustness.choose(count)
    assert (len(indices), indices[0], indices[-1]) == (chosen, 0, count - 1)
