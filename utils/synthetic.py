"""Seeded pictures of meter digits: rolling drums behind a window, and seven-segment displays.

A drum is computed, not pasted: every pixel is traced back through the camera's tilt and the drum's curvature to a
place on the printed strip, where one signed distance field a glyph tells how much ink it sees.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from utils import camera, console, typefaces
from utils.camera import per_picture, smooth_field, some

_CHUNK_ROWS = 24_576  # picture rows drawn at a time: bounds the memory, and cv2.remap takes fewer than 32768
_LCD_SHARE = 0.16  # of the pictures that show a display


@dataclass(frozen=True)
class SyntheticDigits:
    """Pictures with their labels.

    ``images`` is (N, H, W, 3) uint8 RGB; ``tenths`` is (N,) int16, 0..99 = 10 * digit + tenth, the digit having rolled
    up by that many tenths of a digit pitch; ``typeface_ids`` is (N,) int16, an index into ``typefaces``.
    """

    images: np.ndarray
    tenths: np.ndarray
    typefaces: tuple[str, ...]
    typeface_ids: np.ndarray


@dataclass(frozen=True)
class _Wheels:
    """Where the drums of N pictures stand. (N,) float32 each; lengths in picture heights, angles in radians."""

    position: np.ndarray  # digit in the window's middle, with its fraction: 3.4 = the 3 has rolled up by 0.4 of a pitch
    neighbours: np.ndarray  # (N, 2) positions of the wheels to the left and to the right
    pitch: np.ndarray  # from digit to digit, along the drum
    digit_height: np.ndarray
    digit_width: np.ndarray  # of a glyph as wide as it is high
    spacing: np.ndarray  # from wheel to wheel
    curvature: np.ndarray  # one over the drum's radius
    rolls: np.ndarray  # bool; a display's digit has nothing above and below it
    shift_x: np.ndarray
    shift_y: np.ndarray
    angle: np.ndarray
    shear: np.ndarray
    typeface: np.ndarray  # int, row of the atlas
    boldness: np.ndarray  # added on each side of a stroke, in digit heights
    waist: np.ndarray  # how much lower a digit's middle is printed than in its typeface, in half digit heights
    taper: np.ndarray  # how much narrower a digit's foot is than in its typeface, and its top wider
    belly: np.ndarray  # how much narrower a digit's middle is than in its typeface, and top and foot wider
    slant: np.ndarray  # how far a digit leans to the right, beyond its typeface: tangent
    waves: np.ndarray  # (N, 2, 3) of strokes that waver across and down: half digit heights, radians within one, phase


# --- Geometry --------------------------------------------------------------------------------------------------------


def _place_wheels(rng: np.random.Generator, tenths: np.ndarray, lcd: np.ndarray, typeface: np.ndarray,
                  aspect: float) -> _Wheels:  # fmt: skip
    """Random wheels that show the labels. ``aspect`` is the picture's width over its height."""
    n = tenths.size

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, n).astype(np.float32)

    def normal(spread: float, limit: float) -> np.ndarray:
        return np.clip(rng.normal(0, spread, n), -limit, limit).astype(np.float32)

    pitch = np.clip(0.86 + normal(0.12, 0.28), 0.62, 1.15)
    digit = np.clip(pitch * uniform(0.6, 0.92), 0.42, 0.86)
    digit = np.where(lcd, uniform(0.5, 0.9), digit)
    digit_width = np.minimum(digit * np.where(lcd, uniform(0.7, 1.3), uniform(0.8, 1.5)) / 0.625, 1.3) * aspect
    neighbours = rng.uniform(0, 10, (n, 2)).astype(np.float32)
    whole = (rng.random((n, 2)) < 0.7) | lcd[:, None]
    waves = rng.uniform((0, 1, 0), (0.1, 3.2, 2 * np.pi), (n, 2, 3)).astype(np.float32)
    return _Wheels(
        position=(tenths / 10 + np.where(lcd, 0, uniform(-0.045, 0.045))).astype(np.float32),
        neighbours=np.where(whole, np.floor(neighbours), neighbours),
        pitch=np.where(lcd, 4, pitch),
        digit_height=digit,
        digit_width=digit_width,
        # Of a display's neighbours, unlike a wheel's, there is mostly something to be seen.
        spacing=np.where(
            lcd, digit_width * uniform(0.7, 1), np.maximum(aspect * uniform(0.85, 1.7), 0.8 * digit_width)
        ),
        curvature=np.where(lcd, 0, uniform(0, 0.7) / pitch),
        rolls=~lcd,
        shift_x=normal(0.07, 0.17) * aspect,
        shift_y=np.where(lcd, normal(0.05, 0.12), normal(0.012, 0.03)),
        angle=normal(0.025, 0.07),
        shear=np.where(lcd, uniform(-0.03, 0.2), normal(0.03, 0.1)),
        typeface=typeface,
        boldness=np.where(lcd, uniform(-0.015, 0.01), uniform(-0.02, 0.04)),
        # There are more typefaces on meters than anybody could collect.
        waist=np.where(lcd, 0, uniform(-0.16, 0.16)),
        taper=np.where(lcd, 0, uniform(-0.15, 0.15)),
        belly=np.where(lcd, 0, uniform(-0.2, 0.2)),
        slant=np.where(~lcd & (rng.random(n) < 0.15), uniform(-0.05, 0.35), 0),
        waves=np.where(lcd[:, None, None], 0, waves),
    )


def _window_coordinates(wheels: _Wheels, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's place relative to the digit's centre, x to the right and y down: two (N, H, W) float32."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height - 0.5)[None, :, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height)[None, None, :]
    cos, sin = per_picture(np.cos(wheels.angle)), per_picture(np.sin(wheels.angle))
    return (x * cos + y * (per_picture(wheels.shear) - sin) - per_picture(wheels.shift_x),
            x * sin + y * cos - per_picture(wheels.shift_y))  # fmt: skip


def _strip_coordinates(wheels: _Wheels, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """What each pixel sees of the nearest wheel: x on it, position on its strip in digits, cosine of the view."""
    wheel = np.clip(np.rint(x / per_picture(wheels.spacing)), -1, 1)
    sine = np.clip(y * per_picture(wheels.curvature), -0.95, 0.95)
    along = np.where(per_picture(wheels.curvature) > 1e-3,
                     np.arcsin(sine) / np.maximum(per_picture(wheels.curvature), 1e-3), y)  # fmt: skip
    start = np.where(wheel == 0, per_picture(wheels.position),
                     np.where(wheel < 0, *(per_picture(p) for p in wheels.neighbours.T)))  # fmt: skip
    return (x - wheel * per_picture(wheels.spacing), start + along / per_picture(wheels.pitch),
            np.sqrt(1 - sine * sine))  # fmt: skip


def _ink(wheels: _Wheels, atlas: np.ndarray, x: np.ndarray, strip: np.ndarray, digit: np.ndarray) -> np.ndarray:
    """How much of each pixel is covered by ``digit`` at (x, strip): (N, H, W) float32, 0..1."""
    n, height, width = x.shape
    digit = np.mod(digit, 10)
    limit = typefaces.CELL / 2 - 1
    size = per_picture(wheels.digit_height)
    down = (strip - np.rint(strip)) * per_picture(wheels.pitch) / size * typefaces.CELL_DIGIT
    across = x / per_picture(wheels.digit_width) * typefaces.CELL_DIGIT
    half = typefaces.CELL_DIGIT / 2
    height_in_digit = np.clip(down / half, -1, 1)
    bulge = 1 - height_in_digit * height_in_digit
    across += per_picture(wheels.slant) * down
    across *= 1 + per_picture(wheels.taper) * height_in_digit + per_picture(wheels.belly) * (bulge - 0.5)
    down -= per_picture(wheels.waist) * half * bulge
    sway, lift = (
        per_picture(most) * half * np.sin(per_picture(turn) * place / half + per_picture(phase) + 2.4 * digit)
        for (most, turn, phase), place in zip(wheels.waves.transpose(1, 2, 0), (down, across), strict=True)
    )
    across, down = across + sway, down + lift * bulge  # top and foot keep their heights, and with them the label
    column = np.clip(across, -limit, limit) + (digit * typefaces.CELL + typefaces.CELL / 2 - 0.5)
    row = np.clip(down, -limit, limit) + (per_picture(wheels.typeface) * typefaces.CELL + typefaces.CELL / 2 - 0.5)
    maps = (np.ascontiguousarray(m.reshape(n * height, width), np.float32) for m in (column, row))
    field = cv2.remap(atlas, *maps, cv2.INTER_LINEAR).reshape(x.shape)
    return np.clip(0.5 + (field + per_picture(wheels.boldness)) * size * height, 0, 1)


# --- Paint -----------------------------------------------------------------------------------------------------------


def _grey(rng: np.random.Generator, n: int, low: float, high: float, tint: float = 0.05) -> np.ndarray:
    return rng.uniform(low, high, (n, 1)) * (1 + rng.normal(0, tint, (n, 3)))


def _red(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform((0.5, 0.05, 0.05), (0.95, 0.35, 0.35), (n, 3))


def _colours(rng: np.random.Generator, lcd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour of the ground and of the ink of each picture: two (N, 3) float32, 0..1."""
    n = lcd.size
    grey, red = partial(_grey, rng, n), partial(_red, rng, n)
    dark = grey(0.08, 0.5)
    lit = dark + rng.uniform(0.14, 0.6, (n, 1)) + rng.normal(0, 0.02, (n, 3))
    any_ground = rng.uniform(0.1, 0.9, (n, 3))
    opposite = any_ground + np.where(any_ground.mean(axis=1, keepdims=True) < 0.5, 1, -1) * grey(0.35, 0.6)
    display = grey(0.4, 0.85, 0.07)
    glowing = 0.4 + rng.uniform(0, 0.6, (n, 3))
    pairs = [
        (dark, lit),
        (grey(0.5, 1.0), grey(0.02, 0.35)),
        (red(), grey(0.6, 1.0)),
        (grey(0.5, 1.0), red()),
        (any_ground, opposite),
        (display, display * rng.uniform(0.25, 0.7, (n, 1))),
        (grey(0, 0.2), glowing),
    ]
    of_drum = rng.choice(5, n, p=(0.57, 0.22, 0.07, 0.1, 0.04))
    scheme = np.where(lcd, np.where(rng.random(n) < 0.92, 5, 6), of_drum)
    ground, ink = (np.choose(scheme[:, None], [pair[i] for pair in pairs]) for i in (0, 1))
    return np.clip(ground, 0, 1).astype(np.float32), np.clip(ink, 0, 1).astype(np.float32)


def _blend(images: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    """Paint (N, 3) ``colour`` over (N, 3, H, W) ``images`` in place where (N, H, W) ``cover`` is above 0."""
    images += cover[:, None] * (colour[:, :, None, None] - images)


def _tick_cover(rng: np.random.Generator, wheels: _Wheels, x: np.ndarray, strip: np.ndarray, height: int) -> np.ndarray:
    """The scale or the marks beside the digits of a meter's last wheel: fine ticks or broad blocks."""
    n, half_width = x.shape[0], x.shape[2] / height / 2
    strength = some(rng, n, 0.3, 0.4, 1) * per_picture(wheels.rolls)
    per_digit = rng.choice([2, 4, 5, 10], n, p=(0.1, 0.1, 0.2, 0.6))
    half_tick = per_picture(rng.uniform(0.06, 0.3, n) / per_digit)
    marks = strip * per_picture(per_digit) + per_picture(rng.choice([0, 0.5], n))
    away = (np.abs(marks - np.rint(marks)) / per_picture(per_digit) - half_tick) * per_picture(wheels.pitch)
    side = per_picture(rng.choice([1, -1, 0], n, p=(0.6, 0.25, 0.15)))
    outward = np.where(side == 0, np.abs(x), x * side)
    inner = per_picture(rng.uniform(0.6, 0.85, n) * half_width)
    outer = inner + per_picture(rng.uniform(0.06, 0.3, n) * half_width)
    inside = np.clip((outward - inner) * height, 0, 1) * np.clip((outer - outward) * height, 0, 1)
    return strength * inside * np.clip(0.5 - away * height, 0, 1)


def _display_cover(rng: np.random.Generator, wheels: _Wheels, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A display's decimal point or comma beside the digit's foot, and the lines of a box around it or its row."""
    n, height, _ = x.shape
    display = ~wheels.rolls[:, None, None]
    line = some(rng, n, 0.4, 0.008, 0.03) * display
    box = line * per_picture(rng.random(n) < 0.5)
    lines = np.zeros_like(x)
    beside = wheels.digit_width / 2 * rng.uniform(0.6, 1.1, n)
    for place, edge, thickness in ((y, wheels.digit_height / 2, line), (x, beside, box)):
        away = np.abs(np.abs(place) - per_picture(edge + rng.uniform(0.03, 0.2, n)))
        lines = np.maximum(lines, np.clip((thickness - away) * height + 0.5, 0, 1) * (thickness > 0))
    size = some(rng, n, 0.4, 0.02, 0.05) * display
    beside = per_picture(np.where(rng.random(n) < 0.6, -1, 1) * wheels.spacing / 2)
    below = per_picture(wheels.digit_height / 2) - size
    tail = per_picture(np.where(rng.random(n) < 0.4, rng.uniform(1.5, 3, n), 1))
    down = np.where(y > below, (y - below) / tail, y - below)
    point = np.clip((size - np.hypot(x - beside, down)) * height + 0.5, 0, 1) * (size > 0)
    return np.maximum(lines, point)


def _ghost_cover(rng: np.random.Generator, wheels: _Wheels, atlas: np.ndarray, x: np.ndarray,
                 strip: np.ndarray) -> np.ndarray:  # fmt: skip
    """What a display shows besides the lit segments: the unlit ones, and the shadow on the reflector behind."""
    n = x.shape[0]
    display = per_picture(~wheels.rolls)
    unlit = some(rng, n, 0.3, 0.03, 0.25) * display * _ink(wheels, atlas, x, strip, np.full_like(x, 8))
    shift_x, shift_y = (per_picture(rng.uniform(-0.06, 0.08, n)) for _ in range(2))
    behind = strip - shift_y / per_picture(wheels.pitch)
    shadow = some(rng, n, 0.4, 0.05, 0.4) * display * _ink(wheels, atlas, x - shift_x, behind, np.rint(strip))
    return np.maximum(unlit, shadow)


def _pointer_cover(rng: np.random.Generator, wheels: _Wheels, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A mark, bar or thread that reaches from the window's side over the wheel's print."""
    n, height, width = x.shape
    half_height = some(rng, n, 0.14, 0.01, 0.035) * per_picture(wheels.rolls)
    reach = per_picture(rng.uniform(0.15, 1.2, n) * width / height)
    inward = x * per_picture(rng.choice([1, -1], n)) + width / height / 2
    away = np.abs(y - per_picture(rng.uniform(-0.35, 0.35, n)))
    bar = np.clip((half_height - away) * height + 0.5, 0, 1) * np.clip((reach - inward) * height, 0, 1)
    return bar * (half_height > 0)


def _spot_cover(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A drop, a sticker or the lens of a lamp mirrored in the glass: hides a part of the print."""
    n, height, _ = x.shape
    radius = some(rng, n, 0.05, 0.06, 0.17)
    from_x, from_y = (per_picture(rng.normal(0, 0.12, n)) for _ in range(2))
    away = np.hypot(x - from_x, y - from_y)
    soft = per_picture(rng.uniform(1, 6, n))
    return per_picture(rng.uniform(0.5, 1, n)) * np.clip((radius - away) * height / soft + 0.5, 0, 1) * (radius > 0)


def _paint_surroundings(rng: np.random.Generator, images: np.ndarray, wheels: _Wheels, window_x: np.ndarray,
                        window_y: np.ndarray, ground: np.ndarray) -> None:  # fmt: skip
    """The wheels' seams, the window's edges and what covers the print, over ``images`` in place."""
    n, _, height, width = images.shape
    spacing = per_picture(wheels.spacing)
    seam = np.abs(np.abs(window_x) - spacing / 2)
    thickness = some(rng, n, 0.55, 0.003, 0.05)
    cover = np.clip(1 - (seam - thickness) * height, 0, 1) * (thickness > 0) * per_picture(wheels.rolls)
    dim = rng.uniform(0, 0.6, (n, 1)).astype(np.float32)
    _blend(images, cover * per_picture(rng.uniform(0.3, 1, n)), ground * dim)
    tints = np.stack([_grey(rng, n, 0, 0.35, 0.1), _grey(rng, n, 0.6, 1, 0.08), _red(rng, n), ground])
    tint = tints[rng.choice(4, n, p=(0.45, 0.2, 0.25, 0.1)), np.arange(n)].astype(np.float32)
    across, down = (width / height / 2, 0.18, 0.3), (0.5, 0.2, 0.2)
    # A window lower than its digit cuts it above and below alike.
    low = some(rng, n, 0.12, 0.03, 0.18) * per_picture(wheels.rolls)
    none = np.zeros_like(low)
    sides = ((window_x, across, none), (-window_x, across, none), (window_y, down, low), (-window_y, down, low))
    for place, (half, share, most), least in sides:
        depth = np.maximum(some(rng, n, share, 0.01, most) * (2 * half), least)
        edge = (place - half + depth) * height
        reach = per_picture(rng.uniform(0.1, 0.5, n) * 2 * half * height)
        images *= (1 - some(rng, n, 0.25, 0.2, 0.75) * np.clip(1 + edge / reach, 0, 1))[:, None]
        _blend(images, np.clip(edge, 0, 1) * (depth > 0), tint)
    bar = _grey(rng, n, 0, 1, 0.15).astype(np.float32)
    _blend(images, _pointer_cover(rng, wheels, window_x, window_y), bar)
    spot = _grey(rng, n, 0.1, 0.9, 0.15).astype(np.float32)
    _blend(images, _spot_cover(rng, window_x, window_y), spot)


# --- Public ----------------------------------------------------------------------------------------------------------


def _draw_chunk(rng: np.random.Generator, n: int, height: int, width: int, names: tuple[str, ...],
                atlas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """``n`` pictures, their tenths and their typefaces."""
    tenths = rng.permutation((np.arange(n) + rng.integers(0, 100)) % 100)
    lcd = rng.random(n) < _LCD_SHARE
    tenths = np.where(lcd, tenths - tenths % 10, tenths)
    wheels = _place_wheels(rng, tenths, lcd, typefaces.choose(rng, names, lcd), width / height)
    window = _window_coordinates(wheels, height, width)
    x, strip, cosine = _strip_coordinates(wheels, *window)
    ground, colour = _colours(rng, lcd)
    cover = np.maximum(_ink(wheels, atlas, x, strip, np.rint(strip)), _display_cover(rng, wheels, *window))
    cover = np.maximum(cover, _ghost_cover(rng, wheels, atlas, x, strip))
    cover *= 1 - some(rng, n, 0.4, 0.1, 0.4) * (smooth_field(rng, n, height, width) > 0)
    images = np.repeat(ground[:, :, None], height * width, axis=2).reshape(n, 3, height, width)
    images *= (1 + some(rng, n, 0.6, 0.03, 0.15) * smooth_field(rng, n, height, width, knots=6))[:, None]
    _blend(images, np.maximum(cover, _tick_cover(rng, wheels, x, strip, height)), colour)
    _paint_surroundings(rng, images, wheels, *window, ground)
    return camera.photograph(rng, camera.light(rng, images, cosine)), tenths, wheels.typeface


def draw(count: int, seed: int, height: int = 32, width: int = 20, system_fonts: bool = False) -> SyntheticDigits:
    """Draw labelled pictures of meter digits.

    The labels are spread evenly over the 100 tenths, except for the seven-segment displays (about one picture in
    six), which show whole digits only. Equal arguments give equal pictures whatever the number of processor cores.
    With ``system_fonts`` the machine's own fonts join in; the pictures then depend on what is installed.

    Raises ValueError when ``count`` or ``seed`` is negative, or ``height`` or ``width`` is below 8 pixels.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if min(height, width) < 8:
        raise ValueError(f"height and width must be at least 8 pixels, got {height} and {width}")
    names, atlas = typefaces.load(typefaces.font_files(system_fonts))
    size = max(1, min(1000, _CHUNK_ROWS // height))
    starts = range(0, count, size)
    images = np.empty((count, height, width, 3), np.uint8)
    tenths, typeface_ids = np.empty(count, np.int16), np.empty(count, np.int16)

    def fill(start: int, source: np.random.SeedSequence) -> None:
        end = min(start + size, count)
        images[start:end], tenths[start:end], typeface_ids[start:end] = _draw_chunk(
            np.random.default_rng(source), end - start, height, width, names, atlas)  # fmt: skip

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        drawn = pool.map(fill, starts, np.random.SeedSequence(seed).spawn(len(starts)))
        list(console.progress(drawn, "drawing digits", len(starts), "chunk"))
    return SyntheticDigits(images, tenths, names, typeface_ids)


def sample_sheet(seed: int, rows: int, columns: int) -> np.ndarray:
    """A contact sheet of drawn pictures with their labels below them: (rows * 112, columns * 66, 3) uint8 RGB."""
    digits = draw(rows * columns, seed)
    sheet = np.full((rows * 112, columns * 66, 3), 255, np.uint8)
    for index, (image, label) in enumerate(zip(digits.images, digits.tenths, strict=True)):
        top, left = index // columns * 112, index % columns * 66
        sheet[top + 2 : top + 98, left + 3 : left + 63] = cv2.resize(image, (60, 96), interpolation=cv2.INTER_CUBIC)
        cv2.putText(sheet, f"{label / 10:.1f}", (left + 21, top + 109), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1,
                    cv2.LINE_AA)  # fmt: skip
    return sheet
