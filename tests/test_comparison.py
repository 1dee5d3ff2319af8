import numpy as np
import pytest
from scipy import stats

from utils import comparison, evaluation


def pairs(models: dict, different: np.ndarray, has_tenths: bool = True, **learnt: np.ndarray) -> list[comparison.Pair]:
    nothing = {name: np.zeros(len(right["digit"]), bool) for name, right in models.items()}
    return comparison.pairs(models, has_tenths, different, nothing | learnt)


def test_scores_by_hand():
    tenths = np.array([0, 34, 99, 50])
    right = comparison.judged(np.array([99, 36, 5, 60]), 100, tenths)
    assert {name: values.tolist() for name, values in right.items()} == {
        "accuracy": [False] * 4,
        "within_0.1": [True, False, False, False],
        "within_0.2": [True, True, False, False],
        "digit": [True, False, False, False],
        "whole_digit_errors": [False, False, False, True],
    }
    right = comparison.judged(np.array([0, 10, 0, 6]), 11, tenths)
    assert right["accuracy"].tolist() == right["digit"].tolist() == [True, False, True, False]
    assert right["whole_digit_errors"].tolist() == [False, False, False, True]
    assert "within_0.1" not in right


@pytest.mark.parametrize("nb_classes", [10, 100])
def test_scores_are_those_of_a_run(rng, nb_classes):
    tenths, numbers = rng.integers(0, 100, 500), rng.integers(0, nb_classes, 500)
    found = comparison.judged(numbers, nb_classes, tenths)
    for name, value in evaluation.metrics(numbers, tenths, nb_classes).items():
        assert found[name].mean() == pytest.approx(value, abs=1e-6)


def test_every_meter_counts_the_same():
    right = {"digit": np.array([True, True, True, True, False, False])}
    found = comparison.scores(right, np.array([0, 0, 0, 0, 3, 7]), "digit")
    assert found == {"digit": 0.666667, "mean_over_meters": 0.333333}


def test_mcnemar_is_the_exact_binomial_test():
    assert comparison.mcnemar(0, 0) == 1
    assert comparison.mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert comparison.mcnemar(1, 6) == pytest.approx(2 * (1 + 7) / 2**7)
    assert comparison.mcnemar(40, 40) == pytest.approx(1)


def test_holm_raises_small_probabilities_most():
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.9, 0.8]) == [1, 1]
    assert comparison.holm([]) == []


def test_pairs_name_the_better_model_and_the_common_score(rng):
    tenths = rng.integers(0, 100, 400)
    good, bad = tenths.copy(), tenths.copy()
    good[:10] = (good[:10] + 50) % 100
    bad[:40] = (bad[:40] + 50) % 100
    models = {"bad": comparison.judged(bad, 100, tenths), "good": comparison.judged(good, 100, tenths),
              "digits": comparison.judged((tenths + 5) // 10 % 10, 10, tenths)}  # fmt: skip
    found = {(pair.better, pair.worse): pair for pair in pairs(models, np.arange(400))}
    assert set(found) == {("good", "bad"), ("digits", "bad"), ("digits", "good")}
    pair = found["good", "bad"]
    assert (pair.metric, pair.only_better, pair.only_worse) == ("within_0.1", 30, 0)
    assert (pair.better_score, pair.worse_score, pair.differs) == (0.975, 0.9, True)
    assert pair.p == pytest.approx(stats.binomtest(0, 30).pvalue)
    assert pair.p_holm == pytest.approx(2 * pair.p)
    assert found["digits", "bad"].metric == "digit"
    assert all(pair.metric == "digit" for pair in pairs(models, np.arange(400), has_tenths=False))


def test_equal_models_differ_by_chance():
    right = comparison.judged(np.arange(100), 100, np.arange(100))
    (pair,) = pairs({"a": right, "b": right}, np.arange(100))
    assert (pair.p, pair.p_holm, pair.differs) == (1, 1, False)


def test_copies_are_no_further_evidence():
    tenths = np.arange(20)
    steady, lucky = tenths.copy(), tenths.copy()
    steady[0], lucky[1:4] = 50, 50
    # The one picture that only the second reads right is there eleven times.
    copied = np.concatenate([np.zeros(10, int), tenths])
    models = {"steady": steady, "lucky": lucky}
    models = {name: comparison.judged(read[copied], 100, tenths[copied]) for name, read in models.items()}
    (pair,) = pairs(models, np.unique(copied, return_index=True)[1])
    assert (pair.better, pair.only_better, pair.only_worse, pair.differs) == ("steady", 3, 1, False)
    assert pair.p == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert (pair.better_score, pair.worse_score) == (pytest.approx(19 / 30), pytest.approx(27 / 30))


def test_pictures_that_one_of_two_models_has_learnt_are_no_evidence():
    tenths = np.arange(100)
    taught, other = tenths.copy(), tenths.copy()
    other[:20], taught[40:43] = 70, 0
    models = {name: comparison.judged(read, 100, tenths) for name, read in (("taught", taught), ("other", other))}
    (pair,) = pairs(models, tenths)
    assert (pair.better, pair.only_better, pair.only_worse, pair.differs) == ("taught", 20, 3, True)
    (pair,) = pairs(models, tenths, taught=tenths < 18)
    assert (pair.better, pair.only_better, pair.only_worse, pair.differs) == ("other", 3, 2, False)
    assert (pair.better_score, pair.worse_score) == (0.8, 0.97)
