import keras
import numpy as np
import pytest

from tests import device_files
from utils import confidence, evaluation, export, fake_quant, micro


def test_metrics_count_on_the_ring():
    tenths = np.array([0, 99, 34, 34, 34, 5])
    predicted = np.array([99, 0, 35, 36, 37, 4])
    scores = evaluation.metrics(predicted, tenths, 100)
    assert scores["accuracy"] == 0
    assert scores["within_0.1"] == pytest.approx(4 / 6, abs=1e-6)
    assert scores["within_0.2"] == pytest.approx(5 / 6, abs=1e-6)
    # 9.9 and 0.0 are digit 0; 3.4 is 3 but 3.5 and up are 4; 0.5 is 1 but 0.4 is 0.
    assert scores["digit"] == pytest.approx(2 / 6, abs=1e-6)
    assert scores["whole_digit_errors"] == 0


def test_a_whole_digit_is_ten_tenths_on_the_ring():
    tenths = np.array([0, 5, 5, 50, 99])
    predicted = np.array([90, 96, 95, 41, 20])
    assert evaluation.judge(predicted, tenths, 100)["whole_digit_errors"].tolist() == [True, False, True, False, True]


def test_ten_classes_are_measured_against_the_nearest_digit():
    scores = evaluation.metrics(np.array([4, 0, 3]), np.array([35, 95, 35]), 10)
    assert scores == {
        "accuracy": pytest.approx(2 / 3, abs=1e-6),
        "whole_digit_errors": pytest.approx(1 / 3, abs=1e-6),
    }


def test_groups_are_measured_apart_and_absent_ones_left_out():
    scores = evaluation.grouped_metrics(
        np.array([1, 2, 3]), np.array([10, 20, 40]), np.array([0, 0, 2]), ["a", "b", "c"], 10
    )
    assert scores == {
        "a": {"n": 2, "accuracy": 1.0, "whole_digit_errors": 0.0},
        "c": {"n": 1, "accuracy": 0.0, "whole_digit_errors": 1.0},
    }
    # Of the pictures two thirds are right, but a meter counts as a meter.
    assert evaluation.mean_over(scores) == {"n": 2, "accuracy": 0.5, "whole_digit_errors": 0.5}


def test_ties_are_counted():
    assert evaluation.tie_share(np.array([[3, 1, 3], [2, 1, 0], [0, 0, 1], [9, 8, 7]])) == 0.25


def test_the_interval_is_as_wide_as_meters_differ(rng):
    meters = np.repeat(np.arange(20), 100)
    alike = rng.random(2000) < 0.9
    low, high = evaluation.interval(alike, meters)
    # As for independent pictures: 1.96 * sqrt(0.9 * 0.1 / 2000) on each side.
    assert (high - low) / 2 == pytest.approx(0.0131, rel=0.4)
    assert low < alike.mean() < high
    # Two of 20 meters are always read wrongly: 1.96 * sqrt(0.9 * 0.1 / 20) on each side.
    low, high = evaluation.interval(meters >= 2, meters)
    assert (high - low) / 2 == pytest.approx(0.13, rel=0.25)
    assert evaluation.interval(meters >= 2, meters) == [low, high]


def test_meters_weigh_by_their_pictures_in_the_interval():
    right, meters = np.array([True] * 90 + [False] * 10), np.array([3] * 90 + [7] * 10)
    # Of two meters only 0, 1 and 2 times the large one can be drawn: 0, 0.9 or 1.
    assert evaluation.interval(right, meters) == [0.0, 1.0]


def test_one_meter_says_nothing_about_others():
    assert evaluation.interval(np.array([True, False]), np.array([4, 4])) is None


def test_order_is_kept_over_several_workers(trained_run, rng, monkeypatch):
    outcome, _, splits = trained_run
    content = (outcome.run_dir / "cnn32_float.tflite").read_bytes()
    images = splits.pool.images(rng.permutation(len(splits.pool.tenths))[:450])
    monkeypatch.setattr(micro.os, "cpu_count", lambda: 4)
    spread = evaluation.tflite_logits(content, images)
    monkeypatch.setattr(micro.os, "cpu_count", lambda: 1)
    np.testing.assert_array_equal(spread, evaluation.tflite_logits(content, images))


@pytest.mark.parametrize("io_type", ["uint8", "float32"])
def test_every_io_type_reads_as_int8_does(trained_run, io_type):
    outcome, _, splits = trained_run
    model = keras.models.load_model(outcome.run_dir / "best_model.keras", safe_mode=True)
    images = splits.pool.images(splits.measured["test"])
    calibration = splits.pool.images(splits.train[:200])
    expected = evaluation.tflite_logits(export.quantized_tflite(model, calibration, "int8"), images)
    logits = evaluation.tflite_logits(export.quantized_tflite(model, calibration, io_type), images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_file_that_ends_in_a_softmax_gives_logarithms():
    images = device_files.pictures(20)
    model = keras.models.clone_model(device_files.model())
    model.set_weights([8 * weight for weight in device_files.model().get_weights()])
    shares = confidence.softmax(evaluation.keras_logits(model, images))
    ending = keras.Model(model.input, keras.layers.Softmax()(model.output))
    logits = evaluation.tflite_logits(export.float_tflite(ending), images)
    np.testing.assert_allclose(logits, np.log(np.maximum(shares, 5e-7)), atol=1e-2)
    assert shares.min() < 1e-7
    quantized = fake_quant.quantize(model, images)
    logits = evaluation.tflite_logits(export.integer_tflite(quantized, "int8", probabilities=True), images)
    # 256 steps from 0 to 1; what is 0 lies below half of one.
    assert logits.min() == pytest.approx(np.log(1 / 512))


def test_an_empty_set_of_pictures_gives_no_logits(trained_run):
    outcome, _, _ = trained_run
    content = (outcome.run_dir / "cnn32_float.tflite").read_bytes()
    assert evaluation.tflite_logits(content, np.empty((0, 32, 20, 1), np.uint8)).shape == (0, 10)
