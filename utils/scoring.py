"""The scores of one file on every test set, as they stand in ``results.json``."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils import confidence, evaluation, labels
from utils.confidence import Readings
from utils.loader import Splits


def reading(splits: Splits, indices: np.ndarray, logits: np.ndarray) -> Readings:
    """Judges the logits ``(N, nb_classes)`` of the pictures ``indices``."""
    right = labels.alike(logits.argmax(axis=1), splits.pool.classes(indices), splits.pool.nb_classes)
    return Readings(confidence.of(logits), right)


def readings(splits: Splits, logits: np.ndarray) -> dict[str, Readings]:
    """:func:`reading` of each test set; ``logits`` are those of all of them, one after the other."""
    return {name: reading(splits, indices, part) for name, indices, part in _parts(splits, logits)}


def sets(splits: Splits, logits: np.ndarray, reference: np.ndarray, threshold: float | None) -> dict[str, dict]:
    """Scores on each test set by its name; README.md says what they mean.

    Args:
        splits: the pictures; ``logits`` and ``reference`` are those of all test sets, one after the other.
        logits: ``(N, nb_classes)``.
        reference: class numbers that the Keras model reads, ``(N,)``.
        threshold: the recommended confidence, 0..1, or None.
    """
    agreeing = {name: part for name, _, part in _parts(splits, logits.argmax(axis=1) == reference)}
    return {
        name: _scores(splits, indices, part, agreeing[name], threshold)
        for name, indices, part in _parts(splits, logits)
    }


def sets_of(model: Any, splits: Splits) -> dict[str, dict]:
    """:func:`sets` of a Keras model."""
    images = splits.pool.images(np.concatenate(list(splits.measured.values())))
    logits = evaluation.keras_logits(model, images)
    return sets(splits, logits, logits.argmax(axis=1), None)


def _parts(splits: Splits, values: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    ends = np.cumsum([len(part) for part in splits.measured.values()])[:-1]
    return list(zip(splits.measured, splits.measured.values(), np.split(values, ends), strict=True))


def _scores(
    splits: Splits, indices: np.ndarray, logits: np.ndarray, agreeing: np.ndarray, threshold: float | None
) -> dict:
    pool, metric = splits.pool, labels.main_metric(splits.pool.nb_classes)
    tenths, predicted, read = pool.tenths[indices], logits.argmax(axis=1), reading(splits, indices, logits)

    def grouped(groups: np.ndarray, names: Sequence) -> dict:
        return evaluation.grouped_metrics(predicted, tenths, groups, names, pool.nb_classes)

    sources = pool.source_ids[indices]
    # Typefaces are no meters: a source of drawn digits counts as one, or real meters would vanish among them.
    of_source = len(pool.meter_names) + sources
    meters = np.where(np.isin(sources, splits.drawn), of_source, pool.meter_ids[indices])
    per_meter = grouped(meters, (*pool.meter_names, *pool.source_names))
    sure = (read.confidences, read.right, metric)
    files = sorted(f"{pool.meter_names[pool.meter_ids[index]]}/{pool.files[index]}" for index in indices)
    return {
        "n": len(indices),
        # Tells whether another run was measured on the same ones.
        "pictures": hashlib.sha256("\n".join(files).encode(errors="surrogateescape")).hexdigest()[:16],
        **evaluation.metrics(predicted, tenths, pool.nb_classes),
        "mean_over_meters": evaluation.mean_over(per_meter),
        "interval_95": {metric: evaluation.interval(read.right, meters)},
        "calibration_error": confidence.calibration_error(read.confidences, read.right),
        "coverage": confidence.coverage(*sure),
        "at_recommended_confidence": None if threshold is None else confidence.at(threshold, *sure),
        "ties": evaluation.tie_share(logits),
        "agreement": round(float(agreeing.mean()), 6),
        "per_source": grouped(sources, pool.source_names),
        "per_meter": per_meter,
    }
