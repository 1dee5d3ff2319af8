"""The shapes of digits: drum numerals, OpenCV's Hershey strokes, seven-segment displays and font files.

Every typeface becomes ten signed distance fields, so that strokes can be thickened and sampled at any size.
"""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

CELL = 64  # side of one glyph's square in the atlas, pixels
CELL_DIGIT = 40  # height of the digits within it; the margin keeps the distance field's outside
_CANVAS = 256  # side of the square a glyph is drawn on before it is measured, pixels
_MAX_SYSTEM_FONTS = 600
_MAX_FACES = 32_766 // CELL  # rows that cv2.remap takes
_FAMILY_WEIGHTS = {"drum": 0.48, "hershey": 0.12, "font": 0.40}
_SEGMENTS = {0: "abcdef", 1: "bc", 2: "abdeg", 3: "abcdg", 4: "bcfg", 5: "acdfg", 6: "acdefg", 7: "abc", 8: "abcdefg",
             9: "abcdfg"}  # fmt: skip
# Pen strokes as "x,y x,y ...", y upwards, height 21; strokes of one digit are separated by "|".
_HERSHEY_SIMPLEX = (
    "9,21 6,20 4,17 3,12 3,9 4,4 6,1 9,0 11,0 14,1 16,4 17,9 17,12 16,17 14,20 11,21 9,21",
    "6,17 8,18 11,21 11,0",
    "4,16 4,17 5,19 6,20 8,21 12,21 14,20 15,19 16,17 16,15 15,13 13,10 3,0 17,0",
    "5,21 16,21 10,13 13,13 15,12 16,11 17,8 17,6 16,3 14,1 11,0 8,0 5,1 4,2 3,4",
    "13,0 13,21 3,7 18,7",
    "15,21 5,21 4,12 5,13 8,14 11,14 14,13 16,11 17,8 17,6 16,3 14,1 11,0 8,0 5,1 4,2 3,4",
    "16,18 15,20 12,21 10,21 7,20 5,17 4,12 4,7 5,3 7,1 10,0 11,0 14,1 16,3 17,6 17,7 16,10 14,12 11,13 10,13 7,12 "
    "5,10 4,7",
    "3,21 17,21 7,0",
    "8,21 5,20 4,18 4,16 5,14 7,13 11,12 14,11 16,9 17,7 17,4 16,2 15,1 12,0 8,0 5,1 4,2 3,4 3,7 4,9 6,11 9,12 13,13 "
    "15,14 16,16 16,18 15,20 12,21 8,21",
    "16,14 15,11 13,9 10,8 9,8 6,9 4,11 3,14 3,15 4,18 6,20 9,21 10,21 13,20 15,18 16,14 16,9 15,4 13,1 10,0 8,0 5,1 "
    "4,3",
)
# The narrow, rounded-rectangle numerals that most counter wheels carry.
_DRUM_SQUARE = (
    "4,0 8,0 11,1 12,4 12,17 11,20 8,21 4,21 1,20 0,17 0,4 1,1 4,0",
    "3,17 7,21 7,0",
    "0,17 1,20 4,21 8,21 11,20 12,17 12,14 10,11 2,5 0,2 0,0 12,0",
    "0,21 12,21 6,13 9,13 11,12 12,9 12,4 11,1 8,0 4,0 1,1 0,4",
    "6,21 0,6 12,6|9,12 9,0",
    "12,21 1,21 1,12 4,13 8,13 11,12 12,9 12,4 11,1 8,0 4,0 1,1 0,4",
    "12,18 11,20 8,21 4,21 1,20 0,17 0,4 1,1 4,0 8,0 11,1 12,4 12,8 11,11 8,12 4,12 1,11 0,9",
    "1,17 1,21 12,21 5,0",
    "4,11 1,13 1,18 4,21 8,21 11,18 11,13 8,11 4,11 1,10 0,7 0,4 1,1 4,0 8,0 11,1 12,4 12,7 11,10 8,11",
    "0,3 1,1 4,0 8,0 11,1 12,4 12,17 11,20 8,21 4,21 1,20 0,17 0,13 1,10 4,9 8,9 11,10 12,12",
)
_DRUM_DIN = (
    _DRUM_SQUARE[0],
    "2,16 7,21 7,0|3,0 11,0",
    "0,16 1,19 3,21 8,21 11,19 12,16 11,13 0,0 12,0",
    "0,18 2,20 4,21 8,21 11,19 12,16 11,13 8,11 5,11|8,11 11,9 12,6 12,4 11,1 8,0 4,0 1,1 0,4",
    "9,0 9,21 0,6 12,6",
    _DRUM_SQUARE[5],
    "8,21 1,9 0,6 1,2 4,0 8,0 11,2 12,6 11,10 8,12 4,12 1,9",
    "0,21 12,21 4,0",
    _DRUM_SQUARE[8],
    "4,0 11,12 12,15 11,19 8,21 4,21 1,19 0,15 1,11 4,9 8,9 11,12",
)
_DRUM_BOX = (
    _DRUM_SQUARE[0],
    "5,19 7,21 7,0",
    "0,18 1,20 4,21 8,21 11,20 12,17 12,13 10,11 2,10 0,8 0,0 12,0",
    "0,18 1,20 4,21 8,21 11,20 12,17 12,13 10,11 4,11|10,11 12,9 12,4 11,1 8,0 4,0 1,1 0,3",
    "2,21 0,7 12,7|9,13 9,0",
    "12,21 0,21 0,12 9,12 12,9 12,3 9,0 2,0 0,2",
    _DRUM_SQUARE[6],
    "0,17 0,21 12,21 12,17 8,8 7,0",
    "2,11 0,13 0,18 3,21 9,21 12,18 12,13 10,11 2,11 0,9 0,3 3,0 9,0 12,3 12,9 10,11",
    _DRUM_SQUARE[9],
)
# As on electricity meters: corners hardly rounded, a seven with an upright foot, six and eight broader below.
_DRUM_ANGULAR = (
    "2,0 10,0 12,2 12,19 10,21 2,21 0,19 0,2 2,0",
    "4,17 7,21 7,0",
    "1,17 1,20 2,21 10,21 11,20 11,13 1,6 0,0 12,0",
    "1,21 11,21 11,12 4,12|11,12 12,10 12,1 11,0 0,0",
    "4,21 0,8 12,8|8,14 8,0",
    "11,21 1,21 1,13 10,13 12,11 12,2 10,0 0,0",
    "10,21 3,21 2,12 0,11 0,1 1,0 11,0 12,1 12,11 10,12 2,12",
    "0,17 0,21 12,21 12,16 8,9 8,0",
    "2,12 2,20 3,21 9,21 10,20 10,12 12,10 12,1 11,0 1,0 0,1 0,10 2,12 10,12",
    "2,0 9,0 11,9 12,12 12,20 11,21 1,21 0,20 0,11 1,10 11,10",
)
# A one without a flag, an open four, and legs that are straight.
_DRUM_STRAIGHT = (
    _DRUM_SQUARE[0],
    "6,21 6,0",
    "0,16 1,19 3,21 9,21 11,19 12,16 11,13 1,2 0,0 12,0",
    "0,21 12,21 5,12 8,12 11,10 12,7 12,4 11,2 9,0 3,0 0,3",
    "3,21 0,8 12,8|9,14 9,0",
    _DRUM_SQUARE[5],
    "9,21 2,11 0,7 0,4 1,2 3,0 9,0 11,2 12,4 12,7 11,10 9,12 4,12 2,11",
    "0,21 12,21 5,8 4,0",
    _DRUM_SQUARE[8],
    "3,0 10,10 12,14 12,17 11,19 9,21 3,21 1,19 0,17 0,14 1,11 3,9 8,9 10,10",
)
# Two whose sevens have a leg that is nearly upright: rolled up, little but what follows tells them from a one.
_DRUM_STEEP = (
    _DRUM_ANGULAR[0],
    "4,18 7,21 7,0",
    _DRUM_BOX[2],
    _DRUM_BOX[3],
    _DRUM_ANGULAR[4],
    _DRUM_BOX[5],
    "12,18 11,21 2,21 0,19 0,2 2,0 10,0 12,2 12,10 10,12 0,12",
    "0,18 0,21 12,21 9,0",
    _DRUM_ANGULAR[8],
    "0,3 1,0 10,0 12,2 12,19 10,21 2,21 0,19 0,11 2,9 12,9",
)
_DRUM_PLAIN = (
    _DRUM_SQUARE[0],
    "6,21 6,0",
    "0,18 2,21 9,21 11,20 12,17 12,14 0,1 0,0 12,0",
    _DRUM_BOX[3],
    _DRUM_DIN[4],
    _DRUM_ANGULAR[5],
    _DRUM_ANGULAR[6],
    "0,21 12,21 9,12 8,0",
    _DRUM_BOX[8],
    _DRUM_ANGULAR[9],
)
# Six, nine and four with a straight stroke: rolled up, they begin and end alike. A three that begins as a seven does.
_DRUM_OBLIQUE = (
    "4,0 8,0 11,2 12,6 12,15 11,19 8,21 4,21 1,19 0,15 0,6 1,2 4,0",
    "3,17 7,21 7,0",
    "1,17 2,20 4,21 8,21 10,20 11,17 11,14 1,1 1,0 12,0",
    "1,21 11,21 6,13 9,13 11,11 12,8 12,5 11,2 8,0 4,0 1,2 0,4",
    "8,21 0,6 12,6|9,12 9,0",
    "11,21 2,21 1,12 4,13 8,13 11,11 12,8 12,5 11,2 8,0 4,0 1,2 0,4",
    "9,21 2,11 0,7 0,4 1,2 4,0 8,0 11,2 12,4 12,7 11,10 8,12 4,12 2,11",
    "0,21 12,21 7,9 6,0",
    _DRUM_SQUARE[8],
    "3,0 10,10 12,14 12,17 11,19 8,21 4,21 1,19 0,17 0,14 1,11 4,9 8,9 10,10",
)
_STROKES = {
    "drum_square": _DRUM_SQUARE,
    "drum_din": _DRUM_DIN,
    "drum_box": _DRUM_BOX,
    "drum_angular": _DRUM_ANGULAR,
    "drum_straight": _DRUM_STRAIGHT,
    "drum_steep": _DRUM_STEEP,
    "drum_plain": _DRUM_PLAIN,
    "drum_oblique": _DRUM_OBLIQUE,
    "hershey_simplex": _HERSHEY_SIMPLEX,
}


def font_files(system_fonts: bool) -> tuple[str, ...]:
    """The candidate font files, one for each name: a font that is shipped wins over an installed one."""
    import matplotlib
    from matplotlib import font_manager

    shipped = sorted(map(str, (Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf")))
    installed = sorted(font_manager.findSystemFonts()) if system_fonts else []
    installed = installed[:: -(-len(installed) // _MAX_SYSTEM_FONTS) or 1]
    return tuple({Path(path).stem: path for path in reversed(shipped + installed)}.values())[::-1]


@lru_cache(maxsize=4)
def load(font_files: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names, and their distance fields stacked: (typefaces * CELL, 10 * CELL) float32. Unusable files are skipped."""
    faces: dict[str, list[np.ndarray]] = {}
    for weight, pen in {"light": 14, "medium": 22, "bold": 32}.items():
        faces |= {f"{name}_{weight}": _stroke_glyphs(strokes, pen) for name, strokes in _STROKES.items()}
    faces["hershey_simplex_oblique"] = _stroke_glyphs(_HERSHEY_SIMPLEX, 20, slant=0.2)
    for slope, slant in {"": 0.0, "_italic": 0.16}.items():
        faces[f"lcd_seven_segment{slope}"] = _segment_glyphs(slant, half=10, gap=2)
        faces[f"lcd_seven_segment_hooked{slope}"] = _segment_glyphs(slant, half=9, gap=2, hooked=True)
        faces[f"lcd_seven_segment_thin{slope}"] = _segment_glyphs(slant, half=6, gap=3)
        faces[f"lcd_seven_segment_broad{slope}"] = _segment_glyphs(slant, half=14, gap=2)
        faces[f"lcd_seven_segment_tailless{slope}"] = _segment_glyphs(slant, half=11, gap=4, tails=False)
    for path in font_files:
        if len(faces) == _MAX_FACES:
            break
        try:
            glyphs = _font_glyphs(path)
        except (OSError, ValueError):  # what Pillow raises for files that are broken or bitmap only
            continue
        name = Path(path).stem
        # A segment font's digits are in pieces. One of DSEG7's faces is that of a mascot, smiling.
        if name.startswith("DSEG7") and "SEGGCHAN" not in name:
            faces[f"lcd_{name}"] = glyphs
        elif _looks_like_digits(glyphs):
            faces[name] = glyphs
    return tuple(faces), np.vstack([_distance_fields(glyphs) for glyphs in faces.values()])


def choose(rng: np.random.Generator, names: tuple[str, ...], lcd: np.ndarray) -> np.ndarray:
    """A typeface for each picture, (N,) int: families by weight, alike within a family."""
    family = np.array([name.split("_")[0] for name in names])
    family[~np.isin(family, ("drum", "hershey", "lcd"))] = "font"
    weights = sum(w * (family == kind) / max(1, (family == kind).sum()) for kind, w in _FAMILY_WEIGHTS.items())
    drums = rng.choice(len(names), lcd.size, p=weights / weights.sum())
    return np.where(lcd, rng.choice(np.flatnonzero(family == "lcd"), lcd.size), drums)


def _stroke_glyphs(strokes: tuple[str, ...], thickness: int, slant: float = 0.0) -> list[np.ndarray]:
    """The ten digits drawn with a round pen. ``thickness`` in canvas pixels of a 168 pixel high digit."""

    def points(stroke: str) -> np.ndarray:
        return np.array([pair.split(",") for pair in stroke.split()], float) - (0, 10.5)

    zero = points(strokes[0])[:, 0]
    middle = (zero.min() + zero.max()) / 2
    glyphs = []
    for digit in strokes:
        canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
        for x, y in (points(stroke).T for stroke in digit.split("|")):
            line = np.stack([x - middle + slant * y, -y], axis=1) * 8 + _CANVAS / 2
            cv2.polylines(canvas, [np.round(line).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
        glyphs.append(canvas)
    return glyphs


def _segment_glyphs(slant: float, half: float, gap: float, hooked: bool = False,
                    tails: bool = True) -> list[np.ndarray]:  # fmt: skip
    """Seven-segment digits, 100 x 170 canvas pixels: half the thickness and the clearance of a segment.

    ``hooked`` gives the 7 its upper left segment too; without ``tails`` 6 and 9 lack their outermost bars.
    """
    left, right, top, middle, bottom = -50 + half, 50 - half, -85 + half, 0.0, 85 - half
    ends = {"a": (left, top, right, top), "b": (right, top, right, middle), "c": (right, middle, right, bottom),
            "d": (left, bottom, right, bottom), "e": (left, middle, left, bottom), "f": (left, top, left, middle),
            "g": (left, middle, right, middle)}  # fmt: skip
    glyphs = []
    for digit in range(10):
        canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
        lit = _SEGMENTS[digit] + ("f" if hooked and digit == 7 else "")
        for name in lit if tails else lit.replace({6: "a", 9: "d"}.get(digit, " "), ""):
            start, end = np.array(ends[name]).reshape(2, 2)
            along = (end - start) / np.linalg.norm(end - start)
            across = half * along[::-1]
            start, end = start + gap * along, end - gap * along
            corners = np.array([start, start + half * along + across, end - half * along + across,
                                end, end - half * along - across, start + half * along - across])  # fmt: skip
            corners[:, 0] -= slant * corners[:, 1]
            cv2.fillConvexPoly(canvas, np.round(corners + _CANVAS / 2).astype(np.int32), 255, cv2.LINE_AA)
        glyphs.append(canvas)
    return glyphs


def _font_glyphs(path: str) -> list[np.ndarray]:
    """The ten digits of a font file. Raises OSError when the file is no usable font."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(path, 160)
    glyphs = []
    for digit in "0123456789":
        canvas = Image.new("L", (_CANVAS, _CANVAS))
        ImageDraw.Draw(canvas).text((_CANVAS // 2, 190), digit, fill=255, font=font, anchor="ms")
        glyphs.append(np.asarray(canvas))
    return glyphs


def _looks_like_digits(glyphs: list[np.ndarray]) -> bool:
    """Whether each glyph has its digit's one outline and number of holes, at a common height.

    Symbol fonts, text figures of unequal height, outlined and stencil faces fail, whatever their name says.
    """
    heights = []
    for digit, glyph in enumerate(glyphs):
        ink = (glyph > 127).astype(np.uint8)
        rows = np.flatnonzero(ink.any(axis=1))
        outlines, tree = cv2.findContours(ink, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        if not outlines or rows[0] == 0 or rows[-1] == _CANVAS - 1:
            return False
        holes = int((tree[0, :, 3] >= 0).sum())
        pieces = len(outlines) - holes
        wanted = {0: (1, 2), 4: (0, 1), 6: (1,), 8: (2,), 9: (1,)}.get(digit, (0,))
        if holes not in wanted or pieces > (2 if digit == 0 else 1):
            return False
        heights.append(len(rows))
    return min(heights) > 0.9 * max(heights)


def _distance_fields(glyphs: list[np.ndarray]) -> np.ndarray:
    """Signed distance to the outline, positive within the ink, in digit heights: (CELL, 10 * CELL) float32."""
    rows = np.flatnonzero(np.max(glyphs, axis=0).max(axis=1) > 127)
    height = rows[-1] + 1 - rows[0]
    scale = CELL_DIGIT / height
    centre = (rows[0] + rows[-1] + 1) / 2
    to_cell = np.array([[scale, 0, (CELL - _CANVAS * scale) / 2], [0, scale, CELL / 2 - centre * scale]])
    to_cell[:, 2] += (scale - 1) / 2  # pixel centres, not corners, are what warpAffine maps
    fields = []
    for glyph in glyphs:
        ink = (glyph > 127).astype(np.uint8)
        field = cv2.distanceTransform(ink, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - ink, cv2.DIST_L2, 5)
        fields.append(cv2.warpAffine(field / height, to_cell, (CELL, CELL), borderValue=-0.5))
    return np.hstack(fields).astype(np.float32)
