"""What light and a small camera do to a scene, on batches of pictures with random strengths."""

import cv2
import numpy as np


def per_picture(values: np.ndarray) -> np.ndarray:
    """One number a picture, ``(N,)``, as ``(N, 1, 1)`` float32."""
    return np.asarray(values, np.float32)[:, None, None]


def some(rng: np.random.Generator, n: int, share: float, low: float, high: float) -> np.ndarray:
    """A value low..high for that share of the pictures and 0 for the others, shaped (n, 1, 1) float32."""
    return per_picture(np.where(rng.random(n) < share, rng.uniform(low, high, n), 0))


def smooth_field(rng: np.random.Generator, n: int, height: int, width: int, knots: int = 3) -> np.ndarray:
    """Random slow variation over each picture: (n, height, width) float32, about -1..1."""

    def weights(size: int) -> np.ndarray:
        place = np.linspace(0, knots - 1, size, dtype=np.float32)[:, None]
        return np.maximum(0, 1 - np.abs(place - np.arange(knots, dtype=np.float32)))

    values = rng.uniform(-1, 1, (n, knots, knots)).astype(np.float32)
    return weights(height) @ values @ weights(width).T


def light(rng: np.random.Generator, images: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """The (N, 3, H, W) ``images`` under uneven light, with glare and with bright specks."""
    n, _, height, width = images.shape
    falloff = np.exp(np.log(cosine) * per_picture(rng.uniform(0, 4, n)))
    gradient = 1 + some(rng, n, 0.75, 0.05, 0.6) * smooth_field(rng, n, height, width, knots=2)
    images = images * (falloff * gradient)[:, None]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[None, :, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, None, :] * (width / height)
    glare, speck = (0.15, 0.03, 0.3, 0.2, 0.7), (0.15, 0.01, 0.03, 0.3, 1)
    for share, least, most, low, high in (glare, speck, speck):
        size = per_picture(rng.uniform(least, most, n))
        from_x, from_y = (per_picture(rng.uniform(-0.5, 0.5, n) * extent) for extent in (width / height, 1))
        flatness = per_picture(np.exp(rng.uniform(-1, 3, n)))
        spot = np.exp(-((x - from_x) ** 2 + (y - from_y) ** 2 * flatness) / (2 * size * size))
        images += (some(rng, n, share, low, high) * spot)[:, None]
    return images


def photograph(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """The (N, 3, H, W) float scene as a small camera stores it: (N, H, W, 3) uint8."""
    n, _, height, _ = images.shape
    pixel = height / 32
    cast = 1 + rng.normal(0, 0.04, (n, 3)) + rng.normal(0, 0.12, (n, 3)) * (rng.random((n, 1)) < 0.25)
    exposure = rng.uniform(0.8, 1.35, (n, 1))
    images = images * (cast * exposure).astype(np.float32)[:, :, None, None]
    focus = rng.uniform(0.2, 0.9, n) + 0.5 * (rng.random(n) < 0.12)
    for axis in (2, 3):
        motion = rng.uniform(0, 0.5, n) * (rng.random(n) < 0.2)
        images = _convolve(images, np.minimum(focus + motion, 1.5) * pixel, axis)
    halo = np.where(rng.random(n) < 0.65, rng.uniform(0.2, 1.5, n), 0).astype(np.float32)[:, None, None, None]
    wide = np.full(n, 1.2 * pixel)
    images += halo * (images - _convolve(_convolve(images, wide, 2), wide, 3))
    for channels, most in ((1, 0.022), (3, 0.012)):
        grain = rng.standard_normal((n, channels, *images.shape[2:]), np.float32)
        images += grain * per_picture(rng.uniform(0, most, n))[:, None]
    pixels = np.clip(images * 255 + 0.5, 0, 255).astype(np.uint8)
    return _compress(rng, np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))


def _convolve(images: np.ndarray, spread: np.ndarray, axis: int) -> np.ndarray:
    """Gaussian blur of (N, 3, H, W) pictures along one axis, each with its own ``spread`` (N,) in pixels."""
    reach = max(3, int(np.ceil(2 * spread.max())))
    taps = np.exp(-0.5 * (np.arange(reach + 1)[None, :] / np.maximum(spread, 0.05)[:, None]) ** 2)
    taps = (taps / (2 * taps.sum(axis=1, keepdims=True) - 1)).astype(np.float32)[:, :, None, None, None]
    padding = [(0, 0)] * 4
    padding[axis] = (reach, reach)
    padded = np.pad(images, padding, mode="edge")
    size = images.shape[axis]

    def moved(by: int) -> np.ndarray:
        part = slice(reach + by, reach + by + size)
        return padded[:, :, part] if axis == 2 else padded[..., part]

    result = images * taps[:, 0]
    for by in range(1, reach + 1):
        result += taps[:, by] * (moved(by) + moved(-by))
    return result


def _compress(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """JPEG, (N, H, W, 3) uint8 in and out: in a few groups of equal quality, each one tall picture."""
    n, height, width, _ = images.shape
    pad_y, pad_x = -height % 16 + 16, -width % 16 + 16
    result = images.copy()
    for group in np.array_split(rng.permutation(n)[: int(0.8 * n)], 4):
        top, left = rng.integers(0, pad_y), rng.integers(0, pad_x)
        around = ((0, 0), (top, pad_y - top), (left, pad_x - left), (0, 0))
        sheet = np.pad(images[group], around, mode="edge").reshape(-1, width + pad_x, 3)
        if not sheet.size:
            continue
        code = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])[1]
        decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1].reshape(len(group), height + pad_y, width + pad_x, 3)
        result[group] = decoded[:, top : top + height, left : left + width]
    return result
