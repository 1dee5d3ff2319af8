"""The same metrics for a Keras model and for an exported file, on the same pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from utils import confidence, console, espdl_file, espdl_run, labels, micro, tflite_file

BATCH = 512  # pictures computed at once
RESAMPLES = 1000  # of the meters, for an interval


def keras_logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Logits of a Keras model, ``(N, nb_classes)`` float32, for ``(N, H, W, C)`` uint8 pictures."""
    return _in_batches(model.predict_on_batch, images, "Keras", model.output_shape[-1])


def file_logits(name: str, content: bytes, images: np.ndarray) -> np.ndarray:
    """Logits of an exported file, ``(N, nb_classes)`` float32, executed as its device does; its name says what it is.

    Raises:
        FileError, MicroError, EspdlError: no file of that kind, or it doesn't run.
    """
    if not name.endswith(".espdl"):
        return tflite_logits(content, images, name)
    model = espdl_file.read(content)
    return _in_batches(lambda part: espdl_run.logits(model, part), images, name, model.outputs[0].shape[-1])


def tflite_logits(content: bytes, images: np.ndarray, description: str = "tflite") -> np.ndarray:
    """Logits of a TFLite file, ``(N, nb_classes)`` float32, for ``(N, H, W, C)`` uint8 pictures, one at a time.

    Of a file that ends in a softmax they are the logarithms of its outputs; softmax gives those back. Quantised files
    run in TFLite Micro where it is installed, else on LiteRT's reference kernels: LiteRT's default delegate rounds
    differently from the device. Grey pictures serve a file that takes RGB, too.

    Raises:
        FileError, MicroError: no TFLite file, or it doesn't run.
    """
    facts = tflite_file.read(content)
    exact = micro.run if micro.available() else micro.reference
    run = micro.floating if facts.float_tensors else exact
    inputs = micro.inputs_for(facts, images)
    # 8 bits are exact in float32, too.
    values = _in_batches(lambda part: run(content, part), inputs, description, facts.output.shape[-1])
    step = 1e-6
    if facts.output.scale is not None:
        values, step = (values - facts.output.zero_point) * facts.output.scale, facts.output.scale
    # An 8-bit probability of 0 is one below half a step.
    return np.log(np.maximum(values, step / 2)) if facts.gives_probabilities else values


def tie_share(logits: np.ndarray) -> float:
    """Share of pictures whose two largest logits are equal, so that chance decides between two classes."""
    return round(float((confidence.lead(logits) == 0).mean()), 6)


def judge(predicted: np.ndarray, tenths: np.ndarray, nb_classes: int) -> dict[str, np.ndarray]:
    """What is true of each reading, ``(N,)`` bool by name; :func:`metrics` has the shares.

    ``accuracy``: the class itself. For 100 classes also ``within_0.1`` and ``within_0.2``: at most one or two tenths
    off on the ring (9.9 is next to 0.0); ``digit``: the same nearest digit, by the rule of ``labels.to_classes``.
    ``whole_digit_errors``, the one that is better small: a whole digit or more wrong, ten tenths on the ring.

    Args:
        predicted: class numbers, ``(N,)``.
        tenths: true labels 0..99, ``(N,)``.
        nb_classes: 10 or 100.
    """
    exact = predicted == labels.to_classes(tenths, nb_classes)
    if nb_classes != 100:
        return {"accuracy": exact, "whole_digit_errors": ~exact}
    distance = labels.ring_distance(predicted, tenths, 100)
    return {
        "accuracy": exact,
        "within_0.1": distance <= 1,
        "within_0.2": distance <= 2,
        "digit": labels.to_classes(predicted, 10) == labels.to_classes(tenths, 10),
        "whole_digit_errors": distance >= 10,
    }


def metrics(predicted: np.ndarray, tenths: np.ndarray, nb_classes: int) -> dict[str, float]:
    """Shares 0..1 of the readings of which is true what :func:`judge` says, with the same arguments."""
    return {name: round(float(np.mean(true)), 6) for name, true in judge(predicted, tenths, nb_classes).items()}


def grouped_metrics(
    predicted: np.ndarray, tenths: np.ndarray, groups: np.ndarray, names: Sequence[str], nb_classes: int
) -> dict[str, dict]:
    """:func:`metrics` of each group that occurs, with its number of pictures ``n``; ``groups`` indexes ``names``."""
    return {
        names[group]: {"n": int((mine := groups == group).sum()), **metrics(predicted[mine], tenths[mine], nb_classes)}
        for group in np.unique(groups)
    }


def mean_over(grouped: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the groups of :func:`grouped_metrics`: a meter of ten pictures counts like any other.

    ``n`` is the number of groups.
    """
    rows = list(grouped.values())
    means = {name: round(float(np.mean([row[name] for row in rows])), 6) for name in rows[0] if name != "n"}
    return {"n": len(rows), **means}


def interval(right: np.ndarray, groups: np.ndarray) -> list[float] | None:
    """Low and high end of the 95 % interval of the share of ``right``, had other meters of the kind been measured.

    Bootstrap over whole meters, since pictures of one meter are alike (Davison and Hinkley 1997, "Bootstrap Methods and
    their Application", 3.8): meters are drawn ``RESAMPLES`` times with replacement, always the same ones.

    Args:
        right: ``(N,)`` bool.
        groups: the meter of each picture, ``(N,)`` int.

    Returns:
        Shares 0..1, or None of a single meter: that says nothing about others.
    """
    _, group = np.unique(groups, return_inverse=True)
    counts, hits = np.bincount(group), np.bincount(group, right)
    if len(counts) < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
    shares = hits[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return [round(float(end), 6) for end in np.percentile(shares, (2.5, 97.5))]


def _in_batches(outputs_of: Callable, pictures: np.ndarray, description: str, nb_classes: int) -> np.ndarray:
    """Outputs ``(N, nb_classes)`` float32, shown as a bar; of no pictures, too."""
    starts = console.progress(range(0, len(pictures), BATCH), description, unit="batch")
    outputs = [outputs_of(pictures[start : start + BATCH]) for start in starts]
    return np.concatenate([np.empty((0, nb_classes), np.float32), *outputs])
