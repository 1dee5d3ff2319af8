"""Pictures changed in one way at a time, always in the same ways, so that figures compare over the years.

Strengths are shares of the picture's size, so that they mean the same for every model: "2 px" are those of a picture
of 32 x 20. Geometry, blur and colour are OpenCV's; the border is repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from utils import splitting

NOISE_SEED = 20_250_101
NOISE = 20.0  # standard deviation, of 255
# From one digit of a drum to the next, in picture heights: the mean of what is drawn in ``synthetic``.
PITCH = 0.86
SIGMA = 1 / 32  # of the blur, in picture heights
GLARE = (0.65, 0.35, 0.25, 200.0)  # across, down, radius (in heights), brightness added in its middle


@dataclass(frozen=True)
class Change:
    """One change: ``apply`` turns (N, H, W, 3) uint8 RGB into the same; ``tenths`` is how far it rolls the digits."""

    name: str
    apply: Callable[[np.ndarray], np.ndarray]
    tenths: int = 0


def _moved(
    right: float = 0, down: float = 0, zoom: float = 1, degrees: float = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """Shifts in shares of the width and the height; turns counter-clockwise about the middle."""

    def apply(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, zoom)
        matrix[:, 2] += right * width, down * height
        size, flags = (width, height), cv2.INTER_LINEAR
        return _each(images, lambda one: cv2.warpAffine(one, matrix, size, None, flags, cv2.BORDER_REPLICATE))

    return apply


def _each(images: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    changed = np.empty_like(images)
    for number, image in enumerate(images):
        changed[number] = change(image)
    return changed


def _scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda images: cv2.convertScaleAbs(images.reshape(len(images), -1), None, factor).reshape(images.shape)


def _grey(images: np.ndarray) -> np.ndarray:
    return _each(images, lambda one: cv2.cvtColor(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def _noisy(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(NOISE_SEED).normal(0, NOISE, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def _blurred(images: np.ndarray) -> np.ndarray:
    sigma = SIGMA * images.shape[1]
    return _each(images, lambda one: cv2.GaussianBlur(one, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))


def _glaring(images: np.ndarray) -> np.ndarray:
    height, width = images.shape[1:3]
    across, down, radius, brightness = GLARE
    x, y = (np.arange(width) + 0.5 - across * width) / height, (np.arange(height) + 0.5) / height - down
    spot = brightness * np.exp(-(x[None, :] ** 2 + y[:, None] ** 2) / radius**2)
    return (images + spot[:, :, None]).round().clip(0, 255).astype(np.uint8)


CHANGES = (
    Change("unchanged", lambda images: images),
    Change("2 px to the left", _moved(right=-0.1)),
    Change("2 px to the right", _moved(right=0.1)),
    Change("one tenth up", _moved(down=-PITCH / 10), tenths=1),
    Change("one tenth down", _moved(down=PITCH / 10), tenths=-1),
    Change("zoom 0.8", _moved(zoom=0.8)),
    Change("zoom 1.2", _moved(zoom=1.2)),
    Change("rotate 8 degrees left", _moved(degrees=8)),
    Change("rotate 8 degrees right", _moved(degrees=-8)),
    Change("darker by half", _scaled(0.5)),
    Change("brighter by half", _scaled(1.5)),
    Change("inverted", lambda images: 255 - images),
    Change("grey", _grey),
    Change("red and blue swapped", lambda images: images[..., ::-1]),
    Change("noise", _noisy),
    Change("blur", _blurred),
    Change("glare", _glaring),
)
PICTURES = 1000  # measured on at most; 17 changes make 17,000 pictures a model


def choose(count: int) -> np.ndarray:
    """Indices of the pictures that are changed: all, or :data:`PICTURES` of them at equal distance."""
    return splitting.evenly(count, PICTURES)


def tenths_after(change: Change, tenths: np.ndarray) -> np.ndarray:
    """True labels (N,) 0..99 of the changed pictures."""
    return (tenths + change.tenths) % 100
