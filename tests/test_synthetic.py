"""The synthetic pictures: their labels are true, their variety is there, and a seed gives the same pictures again."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from utils import frontier, labels, micro, synthetic, tflite_file, typefaces


@pytest.fixture(scope="module")
def digits() -> synthetic.SyntheticDigits:
    return synthetic.draw(5000, seed=7)


def clean_wheels(positions: list[float], typeface: int) -> synthetic._Wheels:
    """Flat drums, straight and centred, pitch exactly one picture height."""
    n = len(positions)
    values = {field.name: np.zeros(n, np.float32) for field in dataclasses.fields(synthetic._Wheels)}
    values.update(
        position=np.array(positions, np.float32),
        neighbours=np.zeros((n, 2), np.float32),
        pitch=np.ones(n, np.float32),
        digit_height=np.full(n, 0.6, np.float32),
        digit_width=np.full(n, 0.6, np.float32),
        spacing=np.full(n, 9, np.float32),
        rolls=np.ones(n, bool),
        typeface=np.full(n, typeface),
        waves=np.zeros((n, 2, 3), np.float32),
    )
    return synthetic._Wheels(**values)


def digit_mask(wheels: synthetic._Wheels, atlas: np.ndarray, height: int, width: int) -> np.ndarray:
    """The wheels' print without light, frame or camera: (N, H, W) float32, 1 = ink."""
    x, strip, _ = synthetic._strip_coordinates(wheels, *synthetic._window_coordinates(wheels, height, width))
    return synthetic._ink(wheels, atlas, x, strip, np.rint(strip))


def clean_masks(positions: list[float], typeface: str = "DejaVuSans-Bold", height: int = 100) -> np.ndarray:
    names, atlas = typefaces.load(typefaces.font_files(False))
    return digit_mask(clean_wheels(positions, names.index(typeface)), atlas, height, 60)


def test_one_seed_gives_the_same_pictures_and_another_seed_others(digits):
    again, other = synthetic.draw(5000, seed=7), synthetic.draw(5000, seed=8)
    for field in ("images", "tenths", "typeface_ids"):
        assert np.array_equal(getattr(digits, field), getattr(again, field))
        assert not np.array_equal(getattr(digits, field), getattr(other, field))


def test_the_number_of_cores_does_not_change_the_pictures(digits, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert np.array_equal(synthetic.draw(5000, seed=7).images, digits.images)


def test_every_label_occurs_and_displays_show_whole_digits_only(digits):
    assert np.bincount(digits.tenths, minlength=100).min() >= 30
    assert digits.tenths.min() == 0 and digits.tenths.max() == 99
    lcd = np.array([name.startswith("lcd") for name in digits.typefaces])[digits.typeface_ids]
    assert 0.14 < lcd.mean() < 0.18
    assert set(digits.tenths[lcd]) == set(range(0, 100, 10))
    assert 0.88 < (digits.tenths[~lcd] % 10 > 0).mean() < 0.92


def test_who_learnt_from_such_pictures_alone_reads_these_in_every_typeface(digits):
    """What is seen behind the camera is what the label says: no picture of another, no shift, no wrong glyph."""
    (file,) = (frontier.ZOO / "v15_synthetic").glob("*_quantized.tflite")
    content = file.read_bytes()
    run, inputs = micro.fast(content), micro.inputs_for(tflite_file.read(content), digits.images)
    read = np.array([run(picture[None]).argmax() for picture in inputs])
    away = (read - digits.tenths + 50) % 100 - 50
    right = np.abs(away) <= 1
    assert right.mean() > 0.96
    assert abs(away[right].mean()) < 0.1
    shape = digits.typeface_ids * 10 + labels.to_classes(digits.tenths, 10)
    surplus = np.bincount(shape, np.where(right, 1, -1))
    assert surplus.min() > -3, (digits.typefaces[surplus.argmin() // 10], surplus.argmin() % 10)


@pytest.mark.parametrize(("height", "width"), [(32, 20), (48, 32), (33, 47), (8, 8)])
def test_pictures_have_the_asked_size_and_content(height, width):
    digits = synthetic.draw(50, seed=1, height=height, width=width)
    assert digits.images.shape == (50, height, width, 3)
    assert (digits.images.dtype, digits.tenths.dtype, digits.typeface_ids.dtype) == (np.uint8, np.int16, np.int16)
    assert (digits.images.std(axis=(1, 2, 3)) > 1).all()


def test_no_pictures_are_drawn_for_a_count_of_zero_and_bad_arguments_are_refused():
    empty = synthetic.draw(0, seed=1)
    assert empty.images.shape == (0, 32, 20, 3) and empty.tenths.size == 0 and empty.typeface_ids.size == 0
    with pytest.raises(ValueError, match="count"):
        synthetic.draw(-1, seed=1)
    with pytest.raises(ValueError, match="8 pixels"):
        synthetic.draw(1, seed=1, height=4)


def test_three_tenths_are_the_whole_digit_moved_up_by_three_tenths_of_the_pitch():
    whole, rolled = clean_masks([4.0, 4.3])
    assert np.abs(rolled[:70] - whole[30:]).max() < 0.02
    assert rolled[70:].max() > 0.9  # the 5 comes in from below
    assert whole[:15].max() == 0 and whole[85:].max() == 0


def test_the_next_digit_follows_and_nine_is_followed_by_zero():
    digit = clean_masks([float(d) for d in range(10)])
    halfway = clean_masks([d + 0.5 for d in range(10)])
    for d in range(10):
        assert np.abs(halfway[d, :50] - digit[d, 50:]).max() < 0.02
        assert np.abs(halfway[d, 50:] - digit[(d + 1) % 10, :50]).max() < 0.02


def test_the_wheels_beside_show_positions_of_their_own():
    names, atlas = typefaces.load(typefaces.font_files(False))
    wheels = clean_wheels([3.3], names.index("DejaVuSans-Bold"))
    near = {"spacing": np.full(1, 0.5, np.float32), "neighbours": np.array([[5, 8.6]], np.float32)}
    (row,) = digit_mask(dataclasses.replace(wheels, **near), atlas, 100, 150)
    alone = digit_mask(clean_wheels([5, 3.3, 8.6], names.index("DejaVuSans-Bold")), atlas, 100, 50)
    assert np.abs(row - np.hstack(alone)).max() < 0.02


def test_whole_digits_stand_in_the_middle_whatever_the_typeface():
    names, _ = typefaces.load(typefaces.font_files(False))
    rows = np.arange(100)
    for name in names:
        inked = rows[clean_masks([0.0], name)[0].max(axis=1) > 0.5]
        assert abs((inked[0] + inked[-1]) / 2 - 49.5) < 2, name
        assert 55 < len(inked) < 64, name


@pytest.mark.parametrize("change", [{"waist": 0.16}, {"taper": 0.15}, {"belly": -0.2}, {"waves": (0.1, 3, 1)}])
def test_a_print_of_its_own_keeps_a_digits_height_and_place(change):
    """Whatever a meter's own print looks like, the label stays true."""
    names, atlas = typefaces.load(typefaces.font_files(False))
    plain = clean_wheels([float(digit) for digit in range(10)], names.index("DejaVuSans-Bold"))
    own = dataclasses.replace(
        plain, **{name: np.full_like(getattr(plain, name), value) for name, value in change.items()}
    )
    masks = [digit_mask(wheels, atlas, 100, 60) for wheels in (plain, own)]
    assert (np.abs(masks[1] - masks[0]).mean(axis=(1, 2)) > 0.005).sum() >= 8
    ends = [[np.flatnonzero(mask.max(axis=1) > 0.5)[[0, -1]] for mask in found] for found in masks]
    np.testing.assert_allclose(ends[1], ends[0], atol=1)


def test_a_waist_moves_the_middle_of_a_three_down():
    names, atlas = typefaces.load(typefaces.font_files(False))
    plain = clean_wheels([3.0], names.index("DejaVuSans-Bold"))
    lower = dataclasses.replace(plain, waist=np.full(1, 0.16, np.float32))
    # The bar in the middle of the 3 is the lowest row that is inked left of it.
    rows = [np.flatnonzero(digit_mask(w, atlas, 100, 60)[0, 35:65, 27] > 0.5) for w in (plain, lower)]
    assert 2 < rows[1].mean() - rows[0].mean() < 7  # 0.16 of half of 60 rows


@pytest.mark.parametrize(
    ("typeface", "low", "high"), [("drum_square", 13, 20), ("drum_steep", 4, 9), ("drum_plain", 6, 10)]
)
def test_a_sevens_leg_is_slanted_or_nearly_upright(typeface, low, high):
    """Shown 0.3 of a pitch later, an upright leg is what a one would leave to be seen."""
    (mask,) = clean_masks([7.0], f"{typeface}_light")
    right = [np.flatnonzero(mask[row] > 0.5)[-1] for row in (30, 75)]  # of a digit from row 20 to row 80
    assert low < right[0] - right[1] < high


def test_some_windows_cut_drums_above_and_below_but_no_displays():
    wheels = clean_wheels([3.0] * 4000, 0)
    shares = []
    for rolls in (True, False):
        seen = dataclasses.replace(wheels, rolls=np.full(4000, rolls))
        images = np.ones((4000, 3, 32, 20), np.float32)
        window = synthetic._window_coordinates(seen, 32, 20)
        synthetic._paint_surroundings(np.random.default_rng(4), images, seen, *window, np.ones((4000, 3), np.float32))
        above, below = (np.abs(images[:, :, row, 10] - 1).max(axis=1) > 0.05 for row in (0, -1))
        shares.append((above & below).mean())
    assert 0.04 < shares[0] - shares[1] < 0.12


def test_random_wheels_keep_to_their_label():
    rng = np.random.default_rng(0)
    tenths = np.arange(1000) % 100
    lcd = tenths % 20 == 0
    wheels = synthetic._place_wheels(rng, tenths, lcd, np.zeros(1000, int), 0.625)
    _, strip, _ = synthetic._strip_coordinates(wheels, *synthetic._window_coordinates(wheels, 33, 21))
    error = np.abs(strip[:, 16, 10] - tenths / 10)
    assert error.max() < 0.1 and (error < 0.05).mean() > 0.85
    # A display's digit doesn't roll, and has nothing above and below it.
    assert np.array_equal(wheels.rolls, ~lcd)
    assert wheels.pitch[lcd].min() > 2 and wheels.pitch[~lcd].max() < 1.2


def test_all_families_of_typefaces_are_drawn(digits):
    drawn = {digits.typefaces[i] for i in np.unique(digits.typeface_ids)}
    assert drawn == set(digits.typefaces)
    for family in ("drum_", "hershey_", "lcd_", "DejaVuSans", "DejaVuSerif", "STIX", "cm"):
        assert any(name.startswith(family) for name in drawn), family
    assert not any("Siz" in name or name.startswith(("LastResort", "cmsy", "cmex", "cmmi")) for name in drawn)


def test_digits_are_drawn_light_on_dark_and_dark_on_light(digits):
    rolling = digits.images[digits.tenths % 10 == 0].astype(float).mean(axis=3)
    ink_is_lighter = np.quantile(rolling, 0.9, axis=(1, 2)) - np.median(rolling, axis=(1, 2)) > np.median(
        rolling, axis=(1, 2)
    ) - np.quantile(rolling, 0.1, axis=(1, 2))
    assert 0.3 < ink_is_lighter.mean() < 0.85


def test_colour_is_drawn_and_brightness_varies(digits):
    red, green, blue = digits.images.astype(float).mean(axis=(1, 2)).T
    assert (red > 1.5 * np.maximum(green, blue)).mean() > 0.05
    brightness = digits.images.mean(axis=(1, 2, 3))
    assert np.quantile(brightness, 0.1) < 70 and np.quantile(brightness, 0.9) > 130


def test_broken_and_symbol_fonts_of_the_system_are_skipped(monkeypatch, tmp_path):
    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = (shipped / "DejaVuSans.ttf").read_bytes()
    symbols = (shipped / "cmsy10.ttf").read_bytes()
    copies = {"Broken": b"no font at all", "Cut": font[:5000], "Symbols": symbols, "Good": font, "DSEG7Good": font}
    copies["DSEG7SEGGCHAN-Regular"] = symbols  # no digits, though a segment font by name
    for name, content in copies.items():
        (tmp_path / f"{name}.ttf").write_bytes(content)
    found = [str(tmp_path / f"{name}.ttf") for name in copies] + [str(tmp_path / "Gone.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args, **kwargs: found)
    with_system, without = synthetic.draw(20, seed=1, system_fonts=True), synthetic.draw(20, seed=1)
    assert set(with_system.typefaces) - set(without.typefaces) == {"Good", "lcd_DSEG7Good"}
    assert with_system.typeface_ids.max() < len(with_system.typefaces)


def test_more_fonts_than_opencv_can_map_are_left_out(monkeypatch):
    monkeypatch.setattr(typefaces, "_MAX_FACES", 45)
    names, atlas = typefaces.load.__wrapped__(typefaces.font_files(False))
    assert len(names) == 45
    assert atlas.shape == (45 * typefaces.CELL, 10 * typefaces.CELL)
    monkeypatch.undo()
    assert typefaces._MAX_FACES * typefaces.CELL < 2**15 - 1


def test_the_sample_sheet_holds_enlarged_pictures():
    sheet = synthetic.sample_sheet(seed=2, rows=2, columns=3)
    assert sheet.shape == (224, 198, 3) and sheet.dtype == np.uint8
    assert np.array_equal(sheet, synthetic.sample_sheet(seed=2, rows=2, columns=3))
    assert sheet[2:98, 3:63].std() > 1 and (sheet[98:112] < 128).any()  # picture, then its label


def test_importing_the_module_loads_no_plotting_library():
    code = "import sys, utils.synthetic; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
