import dataclasses
import json

import numpy as np
import pytest

from utils import confidence, deployment, evaluation, loader, scoring, session


def test_each_set_has_its_own_figures(trained_run):
    outcome, _, splits = trained_run
    content = (outcome.run_dir / "cnn32_quantized.tflite").read_bytes()
    logits = evaluation.tflite_logits(content, splits.pool.images(splits.measured["test"]))
    scores = outcome.results["files"]["cnn32_quantized.tflite"]["sets"]["test"]
    assert scores == scoring.sets(
        splits, logits, logits.argmax(axis=1), outcome.results["recommended_confidence"]
    )["test"] | {"agreement": scores["agreement"]}  # fmt: skip
    right = logits.argmax(axis=1) == splits.pool.classes(splits.measured["test"])
    assert scores["accuracy"] == pytest.approx(right.mean(), abs=1e-5)
    assert scores["calibration_error"] == confidence.calibration_error(confidence.of(logits), right)
    assert scores["coverage"][0]["coverage"] == 1
    assert scores["coverage"][0]["accuracy"] == pytest.approx(scores["accuracy"])


def test_the_recommended_confidence_comes_from_validation_pictures(trained_run, monkeypatch):
    outcome, _, splits = trained_run
    content = (outcome.run_dir / outcome.results["recommended"]).read_bytes()
    logits = evaluation.tflite_logits(content, splits.pool.images(splits.validation))
    read = scoring.reading(splits, splits.validation, logits)
    threshold = confidence.recommended(read.confidences, read.right)
    assert outcome.results["recommended_confidence"] == threshold
    papers = json.loads((outcome.run_dir / "manifest.json").read_text())
    assert {entry["recommended_confidence"] for entry in papers["files"]} == {threshold}
    assert all(isinstance(value, int | float) for value in papers["files"][0]["scores"]["test"].values())
    # This network is too unsure for any, unless less is asked: what its surer half reaches.
    half = np.argsort(-read.confidences)[: len(read.right) // 2]
    monkeypatch.setattr(confidence, "ENOUGH", 20)
    monkeypatch.setattr(confidence, "GOAL", 0.99 * read.right[half].mean())
    threshold = confidence.recommended(read.confidences, read.right)
    recommended = deployment.DeviceFile(outcome.results["recommended"], content, "ptq")
    assert session._threshold(None, recommended, splits) == threshold > 0.1
    # Copies are no further pictures that agree.
    monkeypatch.setattr(confidence, "ENOUGH", len(read.right) + 1)
    copied = dataclasses.replace(splits, validation=splits.validation.repeat(2))
    assert session._threshold(None, recommended, copied) is None


def test_each_meter_counts_the_same(tiny, picture_folder):
    own = {"name": "own", "type": "filename", "path": str(picture_folder("own", {"a": 30, "b": 60, "c": 90}))}
    splits = loader.load(tiny(data_sources=[own], test_share=0.3))
    measured = splits.measured["test"]
    classes, meters = splits.pool.classes(measured), splits.pool.meter_ids[measured]
    logits = 9 * np.eye(10, dtype=np.float32)[(classes + (np.arange(len(classes)) % 3 == 0)) % 10]
    right = logits.argmax(axis=1) == classes
    scores = scoring.sets(splits, logits, classes, None)["test"]
    expected = np.mean([right[meters == meter].mean() for meter in np.unique(meters)])
    assert scores["mean_over_meters"]["accuracy"] == pytest.approx(expected, abs=1e-5)
    assert (scores["agreement"], scores["ties"]) == (pytest.approx(right.mean(), abs=1e-5), 0)
    assert scores["interval_95"] == {"accuracy": evaluation.interval(right, meters)} != {"accuracy": None}


def test_typefaces_of_drawn_digits_are_no_meters(tiny, picture_folder):
    own = {"name": "own", "type": "filename", "path": str(picture_folder("own", {"a": 60, "b": 60}))}
    drawn = {"name": "synthetic", "type": "synthetic", "count": 1000}
    splits = loader.load(tiny(data_sources=[own, drawn]))
    measured = splits.measured["test"]
    real = splits.pool.source_ids[measured] == 0
    classes = splits.pool.classes(measured)
    logits = 9 * np.eye(10, dtype=np.float32)[np.where(real, (classes + 5) % 10, classes)]
    scores = scoring.sets(splits, logits, classes, None)["test"]
    assert list(scores["per_meter"]) == ["own/a", "own/b", "synthetic"]
    assert scores["per_meter"]["synthetic"] == scores["per_source"]["synthetic"]
    assert scores["mean_over_meters"]["n"] == 3
    assert scores["mean_over_meters"]["accuracy"] == pytest.approx(1 / 3, abs=1e-5)
    assert scores["interval_95"]["accuracy"][0] == 0


def test_hundred_classes_count_a_tenth_as_right(tiny):
    own, held = ({"name": name, "type": "synthetic", "count": count} for name, count in (("s", 300), ("held", 20)))
    splits = loader.load(tiny(nb_classes=100, data_sources=[own], test_sources=[held]))
    measured = splits.measured["test"], splits.measured["held"]
    # The test set is read a tenth too high, the other one five digits.
    wrong = [(splits.pool.tenths[part] + off) % 100 for part, off in zip(measured, (1, 50), strict=True)]
    logits = 9 * np.eye(100, dtype=np.float32)[np.concatenate(wrong)]
    read = scoring.readings(splits, logits)
    assert read["test"].right.all() and not read["held"].right.any()
    sets = scoring.sets(splits, logits, logits.argmax(axis=1), 0.5)
    assert (sets["held"]["n"], sets["held"]["within_0.1"], sets["held"]["whole_digit_errors"]) == (20, 0, 1)
    scores = sets["test"]
    assert scores["at_recommended_confidence"] == {"coverage": 1.0, "within_0.1": 1.0}
    # Always right, and as sure as the tenth that is read and its two neighbours make it.
    powers = np.exp([9, 0])
    assert scores["calibration_error"] == pytest.approx(1 - (powers @ [1, 2]) / (powers @ [1, 99]), abs=1e-5)
    assert scores["whole_digit_errors"] == 0


def test_a_set_is_told_from_another_of_as_many_pictures(tiny, picture_folder):
    own = {"name": "own", "type": "filename", "path": str(picture_folder("own", {"a": 90}))}
    found = []
    for seed in (1, 2):
        splits = loader.load(tiny(data_sources=[own], seed=seed))
        count = len(splits.measured["test"])
        found.append(scoring.sets(splits, np.zeros((count, 10)), np.zeros(count), None)["test"])
    assert found[0]["n"] == found[1]["n"] == count
    assert (found[0]["ties"], found[0]["agreement"]) == (1, 1)
    assert found[0]["pictures"] != found[1]["pictures"]
