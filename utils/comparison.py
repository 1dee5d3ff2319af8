"""Scores of models that read different classes, on the same pictures, and whether two of them differ by more than
chance."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from utils import encodings, evaluation, labels

SIGNIFICANT = 0.05  # probability of chance below which two models differ


@dataclass(frozen=True)
class Pair:
    """Two models on the same pictures, the one that reads more different ones right as ``better``.

    ``only_better`` and ``only_worse`` count the different pictures, learnt by neither, that one reads right and the
    other doesn't; ``p`` is McNemar's probability of so uneven a count by chance, ``p_holm`` the same with all pairs
    accounted for. The scores are those of all pictures.
    """

    better: str
    worse: str
    metric: str
    better_score: float
    worse_score: float
    only_better: int
    only_worse: int
    p: float
    p_holm: float

    @property
    def differs(self) -> bool:
        """True if chance alone would hardly do that."""
        return self.p_holm < SIGNIFICANT


def judged(numbers: np.ndarray, nb_classes: int, tenths: np.ndarray) -> dict[str, np.ndarray]:
    """What is true of each reading, ``(N,)`` bool by name, as in :func:`evaluation.judge`.

    ``digit``, the nearest digit, is there for every model. "Not readable" is never right, and no error.

    Args:
        numbers: class numbers read, ``(N,)``.
        nb_classes: 10, 11 (the last is not readable) or 100.
        tenths: true labels 0..99, ``(N,)``.
    """
    digit = encodings.nearest_digits(numbers, nb_classes) == labels.to_classes(tenths, 10)
    if nb_classes == 11:
        return {"accuracy": digit, "digit": digit, "whole_digit_errors": ~digit & (numbers < 10)}
    return {**evaluation.judge(numbers, tenths, nb_classes), "digit": digit}


def scores(right: Mapping[str, np.ndarray], meters: np.ndarray, main: str) -> dict[str, float]:
    """The shares 0..1 of :func:`judged`, and ``mean_over_meters``: the mean of each meter's share of the main score.

    ``meters`` (N,) has one number for all pictures of a meter.
    """
    shares = {name: round(float(values.mean()), 6) for name, values in right.items()}
    of_meters = [right[main][meters == meter].mean() for meter in np.unique(meters)]
    return {**shares, "mean_over_meters": round(float(np.mean(of_meters)), 6)}


def common_metric(scores: Iterable[Collection[str]], has_tenths: bool) -> str:
    """What models can be compared by: ``within_0.1`` if all have it and the labels have tenths, else ``digit``."""
    return "within_0.1" if has_tenths and all("within_0.1" in names for names in scores) else "digit"


def pairs(
    models: Mapping[str, Mapping[str, np.ndarray]],
    has_tenths: bool,
    different: np.ndarray,
    learnt: Mapping[str, np.ndarray],
) -> list[Pair]:
    """Every pair of models, compared by what :func:`common_metric` says of the two.

    The exact test of Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947; the probabilities are corrected for their number by S. Holm, "A simple sequentially rejective
    multiple test procedure", 1979. Pictures count as independent, which those of one meter are not quite;
    copies, which are not at all, count once.

    Args:
        models: of each name what :func:`judged` gave on the same pictures.
        has_tenths: whether the labels do.
        different: indices of one picture of all that are copies of each other.
        learnt: of each name which pictures the model was taught, ``(N,)`` bool: of others they say nothing.
    """
    found = []
    for first, second in itertools.combinations(models, 2):
        metric = common_metric((models[first], models[second]), has_tenths)
        told = different[~(learnt[first] | learnt[second])[different]]
        better, worse = sorted((first, second), key=lambda name: -models[name][metric][told].sum())
        a, b = models[better][metric], models[worse][metric]
        only = int((a & ~b)[told].sum()), int((b & ~a)[told].sum())
        found.append((better, worse, metric, float(a.mean()), float(b.mean()), *only, mcnemar(*only)))
    corrected = holm([one[-1] for one in found])
    return [Pair(*one, p) for one, p in zip(found, corrected, strict=True)]


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability 0..1 that two equally good models split their differences at least so unevenly."""
    # Half a second that a wrong argument shall not wait for.
    from scipy import stats

    total = only_first + only_second
    return float(stats.binomtest(only_first, total).pvalue) if total else 1.0


def holm(probabilities: list[float]) -> list[float]:
    """Probabilities of several tests, each raised so that even one false alarm among all is as unlikely as it says."""
    corrected, largest = [0.0] * len(probabilities), 0.0
    for rank, number in enumerate(np.argsort(probabilities, kind="stable")):
        largest = max(largest, min(1.0, (len(probabilities) - rank) * probabilities[number]))
        corrected[number] = largest
    return corrected
