"""Finds pictures that are copies or near twins of each other, so that a split can keep them on one side.

Near twins are pictures of one camera minutes apart: same wheel position, slightly other light and JPEG noise.
"""

import hashlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from utils.console import progress

# Pictures are compared in grey at this size (pixels): small enough to lose JPEG noise, large enough to see that a
# drum rolled on by a tenth.
ROWS, COLUMNS = 16, 10
# Shading wider than this (pixels, standard deviation) is taken out: the sun moves, and it would count as contrast.
SHADING_SIGMA = 3.0
# Limits for a pair, found on 20,897 real pictures: at these values no linked pair's labels differ by more than two
# tenths. The difference, as root mean square, in grey levels and as share of the fainter picture's contrast ...
MAX_DIFFERENCE = 7.0
MAX_RELATIVE = 0.2
# ... and the largest difference of a 3 x 3 patch as share of the contrast: 5 and 9 on an LCD differ in one segment.
MAX_PATCH = 0.3
# Neighbours asked for per picture, and components the neighbour search sees. More finds the same clusters.
NEIGHBOURS = 12
COMPONENTS = 12
# A wheel photographed thousands of times has pictures at every position, and twins of twins all around its turn.
# Clusters above this size (pictures, share of all) that spread further than a pair may differ are cut into pieces
# of this radius (grey levels). A still wheel's pictures do not spread: their cluster stays whole at any size.
LARGE_CLUSTER, LARGE_SHARE = 100, 0.005
PIECE_RADIUS = 2 * MAX_DIFFERENCE
CHUNK = 20_000  # pictures, or pairs of them, compared at a time


def marks(images: Iterable[np.ndarray]) -> np.ndarray:
    """Marks (N,) uint64 of N images (H, W, C) uint8, by which the same pixels are known again anywhere."""
    return np.frombuffer(b"".join(_digests(images, np.uint64().nbytes)), np.uint64)


def exact_groups(images: Iterable[np.ndarray]) -> np.ndarray:
    """Group numbers (N,) int32 of N images (H, W, C) uint8: equal if and only if the pixels are identical."""
    numbers: dict[bytes, int] = {}
    groups = (numbers.setdefault(digest, len(numbers)) for digest in _digests(images, 16))
    return np.fromiter(groups, np.int32)


def one_of_copies(groups: np.ndarray, tenths: np.ndarray) -> np.ndarray:
    """Indices, ascending, of one picture of all that are of one group (N,) and have the same label (N,)."""
    # As they are, numbers of 64 bits beside smaller ones would be rounded to floats.
    keys = np.stack([groups.astype(np.uint64), tenths.astype(np.uint64)])
    return np.sort(np.unique(keys, axis=1, return_index=True)[1])


def twin_clusters(images: np.ndarray) -> np.ndarray:
    """Cluster numbers (N,) int32 of images (N, H, W, C) uint8, C 1 or 3: copies and near twins share a number.

    Twins of twins join the same cluster, but for a large one that spreads over many positions of a wheel.
    """
    groups = exact_groups(images)
    _, first = np.unique(groups, return_index=True)
    if len(first) < 2:
        return groups
    # SciPy is a good part of what --help and refusals would wait for: it is imported where it is used.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    descriptors = _describe(images, first)
    a, b = _candidates(descriptors)
    twins = _are_twins(descriptors, a, b)
    graph = coo_matrix((twins[twins], (a[twins], b[twins])), shape=(len(first), len(first)))
    clusters = connected_components(graph, directed=False)[1].astype(np.int32)
    return _cut_wide(descriptors, clusters)[groups]


def _digests(images: Iterable[np.ndarray], size: int) -> Iterator[bytes]:
    return (hashlib.blake2b(np.ascontiguousarray(image), digest_size=size).digest() for image in images)


def _describe(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Descriptors (len(chosen), ROWS * COLUMNS) float32: small, grey, without shading and mean."""
    remove_shading = _shading_remover()
    descriptors = np.empty((len(chosen), ROWS * COLUMNS), np.float32)
    for start in range(0, len(chosen), CHUNK):
        part = chosen[start : start + CHUNK]
        small = np.stack([_small_grey(images[i]) for i in part]).reshape(len(part), -1)
        descriptors[start : start + len(part)] = small @ remove_shading
    return descriptors


def _small_grey(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[:, :, 0]
    return cv2.resize(grey.astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)


def _shading_remover() -> np.ndarray:
    """Matrix that takes the blurred picture and then the mean out of a flattened one: one product for all."""
    pixels = ROWS * COLUMNS
    units = np.eye(pixels, dtype=np.float32).reshape(pixels, ROWS, COLUMNS)
    blurred = [cv2.GaussianBlur(unit, (0, 0), SHADING_SIGMA, borderType=cv2.BORDER_REFLECT) for unit in units]
    sharp = (units - np.stack(blurred)).reshape(pixels, pixels)
    return sharp - sharp.mean(axis=1, keepdims=True)


def _candidates(descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (a, b), a < b, of neighbours within MAX_DIFFERENCE in the space of the main components."""
    from scipy.spatial import cKDTree

    count, pixels = descriptors.shape
    mean = descriptors.mean(axis=0)
    _, axes = np.linalg.eigh(descriptors.T @ descriptors / count - np.outer(mean, mean))
    points = np.ascontiguousarray(descriptors @ axes[:, -COMPONENTS:], np.float64)
    # Dropping components only shortens distances, so this radius loses no pair; each picture finds itself, too.
    radius = MAX_DIFFERENCE * pixels**0.5
    tree = cKDTree(points)
    starts = progress(range(0, count, CHUNK), "looking for near twins", unit="chunk")
    neighbours = {"k": NEIGHBOURS + 1, "distance_upper_bound": radius, "workers": -1}
    found = np.concatenate([tree.query(points[start : start + CHUNK], **neighbours)[1] for start in starts])
    a, column = np.nonzero(found < count)
    b = found[a, column]
    pairs = np.unique(np.minimum(a, b)[a != b] * count + np.maximum(a, b)[a != b])
    return pairs // count, pairs % count


def _are_twins(descriptors: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which of the candidate pairs are within all limits, bool."""
    contrast = descriptors.std(axis=1)
    twins = np.empty(len(a), bool)
    for start in range(0, len(a), CHUNK):
        part = slice(start, start + CHUNK)
        difference = descriptors[a[part]] - descriptors[b[part]]
        twins[part] = _within_limits(difference, np.minimum(contrast[a[part]], contrast[b[part]]))
    return twins


def _within_limits(difference: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    overall = _root_mean_square(difference)
    patches = uniform_filter(difference.reshape(-1, ROWS, COLUMNS), size=(1, 3, 3), mode="nearest")
    patch = np.abs(patches).max(axis=(1, 2))
    return (overall <= np.minimum(MAX_DIFFERENCE, MAX_RELATIVE * contrast)) & (patch <= MAX_PATCH * contrast)


def _cut_wide(descriptors: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The clusters with those that are both large and wide cut into pieces, which get new numbers."""
    limit = max(LARGE_CLUSTER, LARGE_SHARE * len(clusters))
    clusters = clusters.copy()
    for number in np.flatnonzero(np.bincount(clusters) > limit):
        members = np.flatnonzero(clusters == number)
        own = descriptors[members]
        if _root_mean_square(own.std(axis=0)) > MAX_DIFFERENCE:
            clusters[members] = clusters.max() + 1 + _pieces(own)
    return clusters


def _pieces(descriptors: np.ndarray) -> np.ndarray:
    """Piece numbers (N,): the first picture left over takes all within PIECE_RADIUS, until none is left."""
    pieces = np.zeros(len(descriptors), np.int32)
    left, piece = np.arange(len(descriptors)), 0
    while len(left):
        taken = _root_mean_square(descriptors[left] - descriptors[left[0]]) <= PIECE_RADIUS
        pieces[left[taken]] = piece
        left, piece = left[~taken], piece + 1
    return pieces


def _root_mean_square(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values).mean(axis=-1))
