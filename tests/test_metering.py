import numpy as np
import pytest

from utils import metering

ALL = np.repeat(np.arange(100), 3)  # three pictures of every tenth


@pytest.mark.parametrize(
    ("wheels", "reading"),
    [
        ([29, 99], 299),  # the 2 is about to become a 3
        ([29, 1], 301),  # and has become one, though its wheel lags behind
        ([31, 98], 298),  # a wheel that runs ahead
        ([31, 2], 302),
        ([20, 91], 291),
        ([0, 99], 999),  # 9 on its way to 0
        ([99, 99], 999),
        ([99, 0], 0),
        ([29, 99, 99], 2999),  # both turn at once
        ([30, 0, 0], 3000),
        ([20, 90, 45], 2945),  # a 9 that stands still turns nobody
        ([24, 50], 250),  # nearly half a digit off its place
        ([16, 50], 250),
    ],
)
def test_the_rule_by_hand(wheels, reading):
    assert metering.resolve(np.array([wheels])).tolist() == [reading]


@pytest.mark.parametrize(
    ("counter", "shown"),
    [
        (12345, [10, 20, 30, 45]),
        (12399, [10, 20, 39, 99]),
        (12995, [10, 25, 95, 95]),
        (19998, [18, 98, 98, 98]),
        (99999, [99, 99, 99, 99]),
        (0, [0, 0, 0, 0]),
    ],
)
def test_what_wheels_show(counter, shown):
    assert metering.wheels(np.array([counter]), 4).tolist() == [shown]


def test_every_counter_is_read_back_with_wheels_off_their_place():
    counts = np.random.default_rng(0).integers(0, 10**6, 20_000)
    shown = metering.wheels(counts, 5)
    for off in (-4, 0, 4):
        moved = shown.copy()
        moved[:, :-1] = (moved[:, :-1] + off) % 100
        assert (metering.resolve(moved) == counts).all()


def simulated(digits: int = 4, **changed) -> metering.Plan:
    given = {"tenths": ALL, "meters": np.zeros(len(ALL), int), "drum_tenths": np.arange(100)} | changed
    return metering.plan(**given, digits=digits, seed=1)


def test_a_perfect_model_makes_no_false_reading():
    plan = simulated()
    shown = np.concatenate([ALL, np.arange(100)])
    assert plan.pictures.shape == (metering.READINGS, 4)
    assert not plan.drawn.any()
    assert (plan.pictures < len(ALL)).all()
    assert metering.judge(plan, shown, np.ones(len(shown)), 0.9) == metering.Outcome(0.9, 0, 0, 0)
    # A tenth off is no false reading, whole digits have not the tenths to see which wheel has turned.
    assert metering.judge(plan, (shown + 1) % 100, np.ones(len(shown)), 0.9).false == 0
    whole = metering.judge(plan, (shown + 5) // 10 % 10 * 10, np.ones(len(shown)), 0.9)
    assert 10 < whole.false < 200


def test_the_counter_runs_on_and_meets_every_digit_of_every_wheel():
    plan = simulated()
    digits = np.array([plan.truth // 10**place % 10 for place in range(1, 5)])
    assert (digits.min(), digits.max()) == (0, 9)
    steps = np.diff(plan.truth.reshape(metering.COURSES, -1), axis=1) % 10**5
    assert 36 < steps.mean() < 38.5


def test_wheels_but_the_lowest_stand_up_to_a_tenth_beside_their_place():
    plan = simulated()
    beside = (ALL[plan.pictures] - metering.wheels(plan.truth, 4) + 50) % 100 - 50
    assert [set(column) for column in beside.T.tolist()] == [{-1, 0, 1}] * 3 + [{0}]


def test_errors_and_doubts_are_counted():
    plan = simulated()
    read, sure = np.concatenate([ALL, np.arange(100)]), np.ones(len(ALL) + 100)
    wrong = 150  # a picture of 5.0
    shows = (plan.pictures == wrong).any(axis=1)
    assert shows.sum() > 50
    read[wrong] = 10
    unsure = sure.copy()
    unsure[wrong] = 0.5
    assert metering.judge(plan, read, sure, 0.9) == metering.Outcome(0.9, shows.sum(), 0, shows.sum())
    assert metering.judge(plan, read, unsure, 0.9) == metering.Outcome(0.9, 0, shows.sum(), shows.sum())
    # As sure as the threshold is sure enough.
    assert metering.judge(plan, read, unsure, 0.5).false == shows.sum()
    read[wrong] = metering.NO_READING
    assert metering.judge(plan, read, sure, 0.9) == metering.Outcome(0.9, 0, shows.sum(), 0)


def test_the_end_of_the_counter_is_next_to_its_start():
    plan = metering.Plan(np.array([[0, 1]]), np.array([0]), np.zeros(1, bool))
    assert metering.judge(plan, np.array([99, 99]), np.ones(2), 0.5).false == 0
    # Nine tenths of the lowest wheel are no false reading, a whole digit is.
    assert [metering.judge(plan, np.array([0, lowest]), np.ones(2), 0.5).false for lowest in (9, 10)] == [0, 1]


def test_one_reading_shows_one_meter_and_drums_where_none_has_all_labels():
    meters = np.array([0, 1, 2] * 100)
    plan = simulated(meters=meters)
    shown = meters[plan.pictures]
    assert (shown == shown[:, :1]).all()
    assert set(np.unique(shown)) == {0, 1, 2}
    few = simulated(tenths=np.arange(50), meters=np.zeros(50, int))
    assert few.drawn.any()
    assert not few.drawn.all()
    assert (few.pictures[few.drawn] >= 50).all()
    assert (few.pictures[~few.drawn] < 50).all()


def test_pictures_of_no_meter_are_not_shown():
    plan = simulated(tenths=np.tile(ALL, 2), meters=np.repeat([-1, 4], len(ALL)))
    assert not plan.drawn.any()
    assert (plan.pictures >= len(ALL)).all()
    alone = simulated(meters=np.full(len(ALL), -1))
    assert alone.drawn.all()
    assert (alone.pictures >= len(ALL)).all()


def test_what_is_no_drum_is_not_shown_as_one():
    drums = np.concatenate([np.arange(100), np.full(500, -1)])
    plan = simulated(tenths=np.arange(50), meters=np.zeros(50, int), drum_tenths=drums)
    assert plan.drawn.any()
    assert plan.pictures.max() < 150


def test_a_picture_a_tenth_off_shows_another_truth():
    even = np.arange(0, 100, 2)
    plan = simulated(tenths=even, meters=np.zeros(50, int))
    assert not plan.drawn.any()
    assert (plan.truth % 100 == even[plan.pictures[:, -1]]).all()
    shown = np.concatenate([even, np.arange(100)])
    assert metering.judge(plan, shown, np.ones(150), 0.9).false == 0
