"""Of each meter the errors of which the model was surest, kept in the run folder with their pixels."""

from pathlib import Path

import numpy as np

from utils import confidence, labels, markup, report, runs
from utils.loader import Splits

MOST_METERS = 15
MOST_PICTURES = 8  # of a meter
FEW = 10  # a meter of fewer measured pictures comes after the others: one of one wrong says little


def save(run_dir: Path, file: str, splits: Splits, indices: np.ndarray, logits: np.ndarray) -> None:
    """Writes what :func:`find` finds as ``worst_readings.json``; ``file`` is the model file that was measured."""
    runs.write_json(run_dir / runs.WORST_READINGS_FILE, {"file": file, "meters": find(splits, indices, logits)})


def find(splits: Splits, indices: np.ndarray, logits: np.ndarray) -> list[dict]:
    """The meters of which the largest share is read wrongly, each with its surest errors; drawn typefaces come last.

    Of near twins only the surest error is taken: eight pictures of one fault would hide the others.

    Args:
        splits: where the pictures are from.
        indices: of the measured pictures in the pool, ``(N,)``.
        logits: for them, ``(N, nb_classes)``.

    Returns:
        For each meter ``meter``, ``n`` (pictures measured), ``wrong`` (how many of them) and ``pictures``: ``file``,
        ``true``, ``read`` (class names), ``confidence`` 0..1, ``png`` (base64).
    """
    pool = splits.pool
    wrong = report.surest_errors(pool.classes(indices), logits, pool.nb_classes)
    meters = pool.meter_ids[indices]
    measured, errors = (np.bincount(of, minlength=len(pool.meter_names)) for of in (meters, meters[wrong]))
    drawn = np.zeros(len(measured), bool)
    drawn[meters[np.isin(pool.source_ids[indices], splits.drawn)]] = True
    order = np.lexsort((-errors / np.maximum(measured, 1), measured < FEW, drawn))
    worst = [meter for meter in order if errors[meter]][:MOST_METERS]
    return [
        {
            "meter": pool.meter_names[meter],
            "n": int(measured[meter]),
            "wrong": int(errors[meter]),
            "pictures": _pictures(splits, indices, logits, wrong[meters[wrong] == meter]),
        }
        for meter in worst
    ]


def _pictures(splits: Splits, indices: np.ndarray, logits: np.ndarray, wrong: np.ndarray) -> list[dict]:
    pool = splits.pool
    _, first = np.unique(splits.clusters[indices[wrong]], return_index=True)
    chosen = wrong[np.sort(first)][:MOST_PICTURES]
    names = labels.class_names(pool.nb_classes)
    answers = zip(logits[chosen].argmax(axis=1), confidence.of(logits[chosen]), strict=True)
    shown = zip(indices[chosen], pool.classes(indices[chosen]), pool.images(indices[chosen]), answers, strict=True)
    return [
        {
            "file": pool.files[index],
            "true": names[true],
            "read": names[read],
            "confidence": round(float(confidence), 4),
            "png": markup.png(image),
        }
        for index, true, image, (read, confidence) in shown
    ]
