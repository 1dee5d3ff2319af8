import numpy as np
import pytest

from utils import confidence


@pytest.fixture
def calibrated(rng):
    """Logits of 5,000 readings of 10 classes that are right as often as they claim, and the true classes."""
    logits = rng.normal(0, 2, (5000, 10))
    shares = confidence.softmax(logits)
    return logits, (shares.cumsum(axis=1) > rng.random((5000, 1))).argmax(axis=1)


def of(shares):
    """Confidences and right or wrong of ``(confidence, right)`` pairs."""
    confidences, right = zip(*shares, strict=True)
    return np.array(confidences, float), np.array(right, bool)


def test_confidence_does_not_overflow():
    np.testing.assert_allclose(confidence.of(np.array([[1000.0, 0.0], [0.0, 0.0]], np.float32)), [1.0, 0.5])
    np.testing.assert_allclose(confidence.softmax(np.log([[1.0, 3.0]])), [[0.25, 0.75]])
    assert np.isnan(confidence.softmax(np.array([[np.inf, 0.0]]))).all()


def test_bins_hold_what_was_claimed_and_what_came_true():
    confidences, right = of([(0.5, True), (0.52, False), (1.0, True), (0.98, True), (0.01, False)])
    np.testing.assert_allclose(confidence.bins(confidences, right), [[0.01, 0, 1], [0.51, 0.5, 2], [0.99, 1, 2]])


def test_the_lead_is_over_the_next_largest():
    assert confidence.lead(np.array([[1, 9, 4], [7, 2, 7], [3, 2, 0]])).tolist() == [5, 0, 1]


def test_calibration_error_is_the_mean_gap():
    confidences, right = of([(0.9, True)] * 6 + [(0.9, False)] * 4 + [(0.5, True)] * 10)
    # Half of the readings are 0.3 too sure, half 0.5 not sure enough.
    assert confidence.calibration_error(confidences, right) == pytest.approx(0.4)


def test_equally_sure_readings_are_accepted_together():
    confidences, right = of([(0.7, True), (0.9, True), (0.7, False), (0.8, True)])
    thresholds, counts, shares = confidence.accepted(confidences, right)
    assert thresholds.tolist() == [0.9, 0.8, 0.7]
    assert counts.tolist() == [1, 2, 4]
    assert shares.tolist() == [1, 1, 0.75]


def test_coverage_falls_from_all_readings_to_the_surest():
    confidences = np.arange(1, 101) / 100
    rows = confidence.coverage(confidences, confidences > 0.5, "accuracy")
    assert [row["coverage"] for row in rows] == list(confidence.COVERAGES)
    assert rows[0] == {"confidence": 0.01, "coverage": 1.0, "accuracy": 0.5}
    assert rows[confidence.COVERAGES.index(0.8)] == {"confidence": 0.21, "coverage": 0.8, "accuracy": 0.625}
    assert rows[-1] == {"confidence": 0.91, "coverage": 0.1, "accuracy": 1.0}
    assert confidence.coverage(np.full(7, 0.5), np.ones(7, bool), "accuracy") == [
        {"confidence": 0.5, "coverage": 1.0, "accuracy": 1.0}
    ]


def test_at_a_threshold_the_rest_is_refused():
    confidences, right = of([(0.9, True), (0.8, True), (0.8, False), (0.3, False)])
    assert confidence.at(0.8, confidences, right, "accuracy") == {"coverage": 0.75, "accuracy": 0.666667}
    assert confidence.at(0.95, confidences, right, "accuracy") == {"coverage": 0.0, "accuracy": None}


def test_recommended_is_the_lowest_confidence_that_keeps_the_promise():
    sure, middle, low = [(0.9, True)] * 398, [(0.6, False)] * 2 + [(0.5, True)] * 200, [(0.4, False)] * 50
    # 598 of 600 is right down to 0.5; with the 50 below it would be too few.
    assert confidence.recommended(*of(sure + middle + low)) == 0.5
    assert confidence.recommended(*of(sure + [(0.6, False)] * 3 + low)) == 0.9
    assert confidence.recommended(*of(sure + [(0.95, False)] * 3)) is None
    # Rounded up it would refuse the very readings that it was found on.
    assert confidence.recommended(*of([(0.9999996, True)] * 200)) == 0.999999


def test_too_few_readings_recommend_nothing():
    assert confidence.recommended(*of([(0.9, True)] * 199)) is None
    assert confidence.recommended(*of([(0.9, True)] * 200)) == 0.9


@pytest.mark.parametrize("too_sure", [0.5, 1.0, 2.5])
def test_the_temperature_is_found(calibrated, too_sure):
    logits, classes = calibrated
    right = logits.argmax(axis=1) == classes
    found = confidence.temperature((logits * too_sure + 100).astype(np.float32), right)
    assert found == pytest.approx(too_sure, rel=0.05)
    # Better than its neighbours on the same pictures.
    sure = [confidence.of(logits * too_sure / one) for one in (found, 0.98 * found, 1.02 * found)]
    losses = [-np.where(right, np.log(one), np.log1p(-one)).mean() for one in sure]
    assert min(losses) == losses[0]


def test_the_temperature_makes_the_share_right_what_is_claimed(calibrated):
    logits, classes = calibrated
    right = logits.argmax(axis=1) == classes
    before = confidence.calibration_error(confidence.of(3 * logits), right)
    found = confidence.temperature(3 * logits, right)
    assert confidence.calibration_error(confidence.of(3 * logits / found), right) < 0.03 < 0.1 < before


def test_pictures_that_settle_no_temperature(calibrated, rng):
    logits, _ = calibrated
    assert confidence.temperature(logits, np.ones(5000, bool)) is None
    assert confidence.temperature(logits, rng.integers(0, 10, 5000) == logits.argmax(axis=1)) is None


def test_confidence_of_tenths_counts_the_neighbours_on_the_ring():
    shares = np.full((2, 100), 0.001)
    shares[0, [98, 99, 0]] = 0.3, 0.4, 0.203
    shares[1, [40, 42]] = 0.5, 0.403
    np.testing.assert_allclose(confidence.of_shares(shares), [0.903, 0.502])
    np.testing.assert_allclose(
        confidence.of_shares(shares[:, :10] / shares[:, :10].sum(axis=1, keepdims=True)).max(), 0.203 / 0.212
    )
