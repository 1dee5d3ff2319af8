"""How sure a model is of what it reads, how far that can be believed, and which readings to refuse.

A confidence is the probability that the reading is right, from the softmax of a file's outputs: for digits that of the
class read; for tenths, where people disagree by one, that of the class read and of its two neighbours on the ring.
"""

import math
from dataclasses import dataclass

import numpy as np

from utils import labels

BINS = 15  # of confidence, as in Guo et al. 2017
GOAL = 0.995  # share of the accepted readings that must be right at the recommended confidence
ENOUGH = 200  # pictures, for a temperature all, for a threshold the accepted; with fewer one lucky picture decides
COVERAGES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # shares of pictures accepted
TEMPERATURES = (0.2, 5.0)  # where the temperature is looked for


@dataclass(frozen=True)
class Readings:
    """What a file reads of some pictures; all ``(N,)``.

    ``confidences`` 0..1; ``right``: it counts as right, with 100 classes within 0.1.
    """

    confidences: np.ndarray
    right: np.ndarray


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) float64 of logits (N, classes); rows with an infinite or no number become NaN."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def of(logits: np.ndarray) -> np.ndarray:
    """Confidence 0..1 of each reading, ``(N,)`` float64, from logits ``(N, classes)``."""
    return of_shares(softmax(logits))


def of_shares(shares: np.ndarray) -> np.ndarray:
    """Confidence 0..1 of each reading, ``(N,)``, from the probabilities ``(N, classes)`` of its classes."""
    if shares.shape[1] != labels.NB_TENTHS:
        return shares.max(axis=1)
    near = (shares.argmax(axis=1)[:, None] + np.array([-1, 0, 1])) % labels.NB_TENTHS
    return np.take_along_axis(shares, near, axis=1).sum(axis=1)


def lead(outputs: np.ndarray) -> np.ndarray:
    """By how much the largest output of each picture surpasses the next, ``(N,)``; 0 where two are equal."""
    largest = np.partition(outputs, -2, axis=1)[:, -2:]
    return largest[:, 1] - largest[:, 0]


def bins(confidences: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Readings sorted into ``BINS`` equal bins of confidence; empty bins are left out.

    Args:
        confidences: 0..1, ``(N,)``.
        right: whether each reading is right, ``(N,)`` bool.

    Returns:
        A row a bin, ``(<= BINS, 3)`` float64: mean confidence, share right, number of readings.
    """
    number = np.minimum((confidences * BINS).astype(int), BINS - 1)
    counts = np.bincount(number, minlength=BINS)
    sums = np.stack([np.bincount(number, values, minlength=BINS) for values in (confidences, right)], axis=1)
    filled = counts > 0
    return np.column_stack([sums[filled] / counts[filled, None], counts[filled]])


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error 0..1 (Guo et al. 2017, arXiv:1706.04599): mean gap of confidence and share right.

    Arguments as for :func:`bins`.
    """
    mean, share, counts = bins(confidences, right).T
    return round(float((np.abs(mean - share) * counts).sum() / counts.sum()), 6)


def accepted(confidences: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is left when readings below a confidence are refused, for each confidence that occurs, highest first.

    Arguments as for :func:`bins`.

    Returns:
        The confidences, how many readings have at least that, and which share of those is right, ``(K,)`` each.
    """
    order = np.argsort(-confidences, kind="stable")
    falling = confidences[order]
    # Readings that are equally sure are accepted together.
    counts = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) + 1
    return falling[counts - 1], counts, np.cumsum(right[order])[counts - 1] / counts


def coverage(confidences: np.ndarray, right: np.ndarray, metric: str) -> list[dict[str, float]]:
    """:func:`accepted` at the shares of pictures in ``COVERAGES``: ``confidence``, ``coverage`` and the ``metric``.

    Of equally sure readings all are accepted, so the coverage may be larger than asked for.
    """
    thresholds, counts, shares = accepted(confidences, right)
    places = np.unique(np.searchsorted(counts, np.ceil(np.array(COVERAGES) * len(confidences))))[::-1]
    return [
        {
            "confidence": round(float(thresholds[place]), 6),
            "coverage": round(float(counts[place] / len(confidences)), 6),
            metric: round(float(shares[place]), 6),
        }
        for place in places
    ]


def at(threshold: float, confidences: np.ndarray, right: np.ndarray, metric: str) -> dict[str, float | None]:
    """Share of readings with at least this confidence, and the ``metric`` on them: None if there are none."""
    kept = confidences >= threshold
    share = round(float(right[kept].mean()), 6) if kept.any() else None
    return {"coverage": round(float(kept.mean()), 6), metric: share}


def recommended(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """The smallest confidence at which ``GOAL`` of the accepted readings are right; arguments as for :func:`bins`.

    None if there is none that accepts ``ENOUGH`` readings. Measured on pictures of meters that the model has learnt, it
    promises more than a new meter keeps.
    """
    thresholds, counts, shares = accepted(confidences, right)
    good = np.flatnonzero((counts >= ENOUGH) & (shares >= GOAL))
    # Down: a device's float32 may fall a little short of the same confidence.
    return math.floor(float(thresholds[good[-1]]) * 1e6) / 1e6 if len(good) else None


def temperature(logits: np.ndarray, right: np.ndarray) -> float | None:
    """What to divide logits by so that the confidence is the share right, after Guo et al. 2017 (arXiv:1706.04599).

    It has the lowest log loss of "this reading is right" with the confidence as its probability: the nearest of some
    temperatures, then Brent's method on the logarithm around it.

    Args:
        logits: ``(N, classes)``.
        right: whether each reading is right, ``(N,)`` bool.

    Returns:
        The temperature, or None if the minimum lies outside ``TEMPERATURES``: pictures all read right, or read by
        chance, don't say what a confidence is worth; nor do fewer than ``ENOUGH``.
    """
    if len(right) < ENOUGH:
        return None

    def loss(log_temperature: float) -> float:
        sure = of(logits.astype(np.float64) * math.exp(-log_temperature)).clip(1e-9, 1 - 1e-9)
        return -float(np.where(right, np.log(sure), np.log1p(-sure)).mean())

    tried = np.linspace(*map(math.log, TEMPERATURES), 25)
    nearest = int(np.argmin([loss(one) for one in tried]))
    if nearest in (0, len(tried) - 1):
        return None
    # Only a training needs it, and predict.py shall not wait for its import.
    from scipy import optimize

    around = (tried[nearest - 1], tried[nearest + 1])
    found = optimize.minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6})
    return round(math.exp(found.x), 4)
