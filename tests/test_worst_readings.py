import dataclasses
import json

import numpy as np
import pytest

from utils import markup, worst_readings
from utils.loader import Pool, Splits


def make(tenths: list[int], meters: list[int], clusters: list[int] | None = None) -> Splits:
    """Pictures of one source, the first of them black, then brighter and brighter."""
    count = len(tenths)
    images = np.repeat(np.arange(count, dtype=np.uint8), 32 * 20 * 3).reshape(count, 32, 20, 3)
    names = tuple(f"kitchen/{number}" for number in range(max(meters) + 1))
    pool = Pool(
        arrays=(images,),
        tenths=np.array(tenths, np.int16),
        source_ids=np.zeros(count, int),
        source_names=("kitchen",),
        meter_ids=np.array(meters),
        meter_names=names,
        files=tuple(f"{number}.png" for number in range(count)),
        nb_classes=100,
    )
    return Splits(
        pool, np.empty(0, int), np.empty(0, int), {}, {}, "", np.array(clusters or range(count)), np.arange(count)
    )


def logits(read: list[int], sureness: list[float]) -> np.ndarray:
    values = np.zeros((len(read), 100), np.float32)
    values[np.arange(len(read)), read] = sureness
    return values


def test_surest_errors_first_and_a_tenth_is_none(tmp_path):
    splits = make([10, 20, 30, 40], [0, 0, 0, 0])
    indices = np.array([1, 2, 3])
    worst_readings.save(tmp_path, "m.tflite", splits, indices, logits([50, 31, 80], [3, 9, 6]))
    saved = json.loads((tmp_path / "worst_readings.json").read_text())
    assert saved["file"] == "m.tflite"
    (meter,) = saved["meters"]
    assert (meter["meter"], meter["n"], meter["wrong"]) == ("kitchen/0", 3, 2)
    shown = [(one["file"], one["true"], one["read"], one["png"]) for one in meter["pictures"]]
    assert shown == [
        ("3.png", "4.0", "8.0", markup.png(splits.pool.arrays[0][3])),
        ("1.png", "2.0", "5.0", markup.png(splits.pool.arrays[0][1])),
    ]
    confidence = (np.exp(6) + 2) / (np.exp(6) + 99)
    assert meter["pictures"][0]["confidence"] == pytest.approx(confidence, abs=1e-4)


def test_one_of_near_twins_is_shown_but_all_count():
    splits = make([10] * 4, [0] * 4, clusters=[7, 7, 8, 7])
    (meter,) = worst_readings.find(splits, np.arange(4), logits([50, 51, 52, 53], [1, 4, 2, 3]))
    assert [one["file"] for one in meter["pictures"]] == ["1.png", "2.png"]
    assert meter["wrong"] == 4


def test_worst_meters_first_those_of_few_pictures_last_and_not_too_many(monkeypatch):
    monkeypatch.setattr(worst_readings, "MOST_METERS", 3)
    monkeypatch.setattr(worst_readings, "MOST_PICTURES", 2)
    # Of meter 0 six of 30 are wrong, of 1 five of ten; 2 has one that is wrong, 3 one that is right, 4 ten of those.
    meters = [0] * 30 + [1] * 10 + [2, 3] + [4] * 10
    wrong = [0] * 24 + [1] * 6 + [1] * 5 + [0] * 5 + [1, 0] + [0] * 10
    read = [50 if one else 10 for one in wrong]
    found = worst_readings.find(make([10] * 52, meters), np.arange(52), logits(read, [5] * 52))
    assert [(one["meter"], one["wrong"]) for one in found] == [("kitchen/1", 5), ("kitchen/0", 6), ("kitchen/2", 1)]
    assert [len(one["pictures"]) for one in found] == [2, 2, 1]


def test_typefaces_of_drawn_digits_come_behind_meters():
    # Two typefaces of ten pictures, all wrong, and a meter of three, one of them wrong.
    splits = make([10] * 23, [0] * 10 + [1] * 3 + [2] * 10)
    drawn = (np.arange(23) < 10) | (np.arange(23) > 12)
    pool = dataclasses.replace(splits.pool, source_ids=drawn.astype(int), source_names=("kitchen", "drawn"))
    splits = dataclasses.replace(splits, pool=pool, drawn=(1,))
    read = [50 if wrong else 10 for wrong in drawn | (np.arange(23) == 11)]
    found = worst_readings.find(splits, np.arange(23), logits(read, [5] * 23))
    assert [one["meter"] for one in found] == ["kitchen/1", "kitchen/0", "kitchen/2"]
