import cv2
import numpy as np
import pytest

from utils import labels, twins

HEIGHT, WIDTH = 32, 20


@pytest.fixture(scope="module")
def strip() -> np.ndarray:
    """The ten digits of a drum below each other, one per picture height, the first two again at the end."""
    drum = np.full((10 * HEIGHT, WIDTH), 40, np.uint8)
    for digit in range(10):
        cv2.putText(drum, str(digit), (2, HEIGHT * digit + 25), cv2.FONT_HERSHEY_SIMPLEX, 0.75, 200, 2)
    return cv2.GaussianBlur(np.concatenate([drum, drum[: 2 * HEIGHT]]), (0, 0), 0.8)


def shot(strip: np.ndarray, tenths: float, seed: int, brightness: int = 0, channels: int = 3) -> np.ndarray:
    """A picture of the drum at a position, with camera noise."""
    noise = np.random.default_rng(seed).normal(brightness, 2, (HEIGHT, WIDTH, channels))
    at = np.float32([[1, 0, 0], [0, 1, -tenths * HEIGHT / 10]])
    picture = cv2.warpAffine(strip, at, (WIDTH, HEIGHT))[:, :, None]
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def cluster_count(images: list[np.ndarray]) -> int:
    return len(np.unique(twins.twin_clusters(np.stack(images))))


def test_exact_groups_are_equal_only_for_identical_pixels() -> None:
    images = np.zeros((5, 8, 6, 3), np.uint8)
    images[1, 7, 5, 2] = 1
    images[2, 0, 0, 0] = 1
    images[4] = images[1]
    groups = twins.exact_groups(images)
    assert groups.dtype == np.int32
    assert groups[0] == groups[3]
    assert groups[1] == groups[4]
    assert len(set(groups.tolist())) == 3


def test_exact_groups_of_a_view_and_of_nothing() -> None:
    images = np.arange(2 * 8 * 6 * 3, dtype=np.uint8).reshape(2, 8, 6, 3)
    assert twins.exact_groups(images[:, :, ::-1]).tolist() == [0, 1]
    assert twins.exact_groups(images[:0]).tolist() == []
    assert twins.twin_clusters(images[:0]).tolist() == []
    assert twins.twin_clusters(images[:1]).tolist() == [0]


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_and_brightness_make_twins_and_another_position_does_not(strip: np.ndarray, channels: int) -> None:
    shots = [(34, 1, 0), (34, 2, 0), (34, 3, 12), (34, 4, -12), (35, 5, 0), (70, 6, 0), (34, 1, 0)]
    images = np.stack([shot(strip, *each, channels=channels) for each in shots])
    clusters = twins.twin_clusters(images)
    assert clusters.dtype == np.int32
    assert clusters.shape == (7,)
    assert len(set(clusters[[0, 1, 2, 3, 6]].tolist())) == 1
    assert len(set(clusters.tolist())) == 3


def test_light_from_another_side_makes_twins(strip: np.ndarray) -> None:
    side = np.linspace(-10, 10, WIDTH)[None, :, None]
    lit = [np.clip(shot(strip, 52, seed) + light, 0, 255).astype(np.uint8) for seed, light in ((1, side), (2, -side))]
    assert cluster_count(lit) == 1


def test_jpeg_makes_twins(strip: np.ndarray) -> None:
    picture = shot(strip, 52, 1)
    packed = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    assert cluster_count([picture, cv2.imdecode(packed, cv2.IMREAD_COLOR), shot(strip, 55, 1)]) == 2


def test_two_lcd_digits_that_differ_in_one_faint_segment_are_no_twins() -> None:
    five = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
    five += np.linspace(0, 60, WIDTH).astype(np.uint8)[None, :, None]
    for box in ((4, 6, 4, 16), (4, 16, 4, 6), (15, 17, 4, 16), (16, 28, 14, 16), (26, 28, 4, 16)):
        five[box[0] : box[1], box[2] : box[3]] -= 35
    nine = five.copy()
    nine[6:15, 14:16] -= 35
    assert cluster_count([five, nine]) == 2
    assert cluster_count([five, np.clip(five + 5, 0, 255).astype(np.uint8)]) == 1


def test_a_pair_differs_by_little_of_grey_of_its_contrast_and_in_each_patch() -> None:
    checks = np.indices((twins.ROWS, twins.COLUMNS)).sum(axis=0) % 2 * 2 - 1
    spot = np.zeros_like(checks)
    spot[6:9, 4:7] = 1
    for shape, contrast, limit in ((checks, 100, 7), (checks, 20, 4), (spot, 20, 6)):
        difference = np.stack([0.98 * limit * shape.ravel(), 1.02 * limit * shape.ravel()])
        assert twins._within_limits(difference, np.full(2, contrast)).tolist() == [True, False]
    # Of two pictures the fainter one's contrast counts.
    pictures = np.stack([size * checks.ravel() for size in (20, 23.9, 24.1)]).astype(np.float32)
    assert twins._are_twins(pictures, np.array([0, 0, 1, 2]), np.array([1, 2, 0, 0])).tolist() == [True, False] * 2


def test_pictures_without_contrast_are_twins_of_no_picture_with_some() -> None:
    flat = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    checks = np.indices((HEIGHT, WIDTH)).sum(0)[:, :, None].repeat(3, 2) % 8 // 4 * 255
    assert cluster_count([flat, flat, checks.astype(np.uint8)]) == 2


@pytest.mark.parametrize("count", [200, 8000])
def test_a_rolling_drum_is_not_one_cluster(strip: np.ndarray, count: int) -> None:
    rng = np.random.default_rng(0)
    tenths = np.sort(rng.random(count) * 100)
    images = np.stack([shot(strip, position, seed, channels=1) for seed, position in enumerate(tenths)])
    clusters = twins.twin_clusters(images)
    sizes = np.bincount(clusters)
    assert sizes.max() <= max(5, 0.05 * count)
    for number in np.argsort(sizes)[-20:]:
        own = tenths[clusters == number]
        assert labels.ring_distance(own[:, None], own[None], 100.0).max() < 2


@pytest.mark.parametrize(
    ("count", "size", "cut"), [(1000, 100, False), (1000, 101, True), (40_000, 200, False), (40_000, 201, True)]
)
def test_a_wide_cluster_is_cut_if_it_is_a_large_part_of_all(count: int, size: int, cut: bool) -> None:
    descriptors = np.random.default_rng(0).uniform(-100, 100, (count, 1))
    clusters = np.maximum(np.arange(count) - size + 1, 0)
    found = twins._cut_wide(descriptors, clusters)
    np.testing.assert_array_equal(found[size:], clusters[size:])
    pieces = [np.ptp(descriptors[:size][found[:size] == number]) for number in np.unique(found[:size])]
    assert (len(pieces) > 1) == cut
    # A piece's pictures are within 14 grey levels of its first one.
    assert not cut or 14 < max(pieces) <= 28


def test_a_still_wheel_stays_one_cluster_at_any_size(strip: np.ndarray) -> None:
    still = [shot(strip, 30, seed, seed % 5) for seed in range(600)]
    clusters = twins.twin_clusters(np.stack([*still, *(shot(strip, 50 + 2 * i, i) for i in range(20))]))
    assert len(set(clusters[:600].tolist())) == 1
    assert not set(clusters[:600].tolist()) & set(clusters[600:].tolist())


def test_clusters_are_repeatable_and_do_not_change_the_pictures(strip: np.ndarray) -> None:
    images = np.stack([shot(strip, seed % 90, seed % 7) for seed in range(300)])
    before = images.copy()
    assert np.array_equal(twins.twin_clusters(images), twins.twin_clusters(images))
    assert np.array_equal(images, before)
