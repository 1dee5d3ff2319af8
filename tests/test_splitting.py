import numpy as np
import pytest

from utils import splitting

SHARES = {"test": 0.1, "validation": 0.2}


def lots(rng, count):
    return rng.integers(0, 2**64, count, np.uint64)


def assign(groups, rng, strata=None, classes=None, shares=SHARES):
    zeros = np.zeros(len(groups), int)
    return splitting.assign(
        groups,
        zeros if strata is None else strata,
        zeros if classes is None else classes,
        shares,
        lots(rng, len(groups)),
    )


def test_shares_are_met_and_nothing_is_lost(rng):
    parts = assign(np.arange(1000), rng)
    assert {name: len(part) for name, part in parts.items()} == {"train": 700, "test": 100, "validation": 200}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1000))


def test_groups_are_not_divided(rng):
    groups = rng.integers(0, 60, 1000)
    parts = assign(groups, rng)
    members = [set(groups[part]) for part in parts.values()]
    assert not (members[0] & members[1] or members[0] & members[2] or members[1] & members[2])
    assert 80 <= len(parts["test"]) <= 100


def test_every_stratum_and_class_gives_its_share(rng):
    strata, classes = np.repeat([0, 1], [900, 100]), rng.integers(0, 10, 1000)
    test = assign(np.arange(1000), rng, strata, classes)["test"]
    assert np.bincount(strata[test]).tolist() == [90, 10]
    expected = np.bincount(classes) * 0.1
    assert np.abs(np.bincount(classes[test], minlength=10) - expected).max() <= 2.5


def test_a_rare_class_stays_in_training():
    classes = np.array([0] * 198 + [1] * 2)
    for seed in range(20):
        parts = assign(np.arange(200), np.random.default_rng(seed), classes=classes)
        assert len(parts["train"]) == 140
        assert (classes[parts["test"]] == 1).sum() <= 1


def test_groups_too_large_to_move_leave_the_others_in_training(rng):
    groups, classes = np.repeat(np.arange(605), [1000] * 5 + [2] * 400 + [1] * 200), np.repeat([0, 1], [5000, 1000])
    parts = assign(groups, rng, classes=classes)
    assert (classes[parts["train"]] == 1).sum() >= 400
    assert len(parts["test"]) >= 100
    few = np.repeat([0, 1, 2, 3, 4], [800, 50, 50, 50, 50])
    assert [len(part) for part in assign(few, rng, shares={"test": 0.1, "validation": 0.1}).values()] == [900, 50, 50]


def test_when_nothing_fits_the_smallest_group_is_taken(rng):
    groups = np.repeat([0, 1, 2, 3], [300, 260, 240, 200])
    parts = assign(groups, rng)
    assert set(groups[parts["test"]]) == {3}
    assert set(groups[parts["validation"]]) == {2}

    # Of two as well; and where something fits, nothing more is taken for the smallest's sake.
    two = assign(np.repeat([0, 1], [60, 40]), rng, shares={"test": 0.1})
    assert [len(part) for part in two.values()] == [60, 40]
    for _ in range(20):
        fits = assign(np.repeat([0, 1, 2, 3], [700, 200, 60, 40]), rng, shares={"test": 0.1})
        assert len(fits["test"]) in (40, 60)


def test_a_group_goes_by_its_lowest_lot_whatever_comes_beside_it(rng):
    groups, drawn = np.repeat(np.arange(500), 2), lots(rng, 1000)
    zeros = np.zeros(1000, int)

    def test_groups(drawn, kept=slice(None)):
        part = splitting.assign(groups[kept], zeros[kept], zeros[kept], SHARES, drawn[kept])["test"]
        return set(groups[kept][part])

    whole = test_groups(drawn)
    assert len(whole) == 50
    assert len(whole & test_groups(lots(rng, 1000))) < 20
    # A picture's own lot matters only if it is its group's lowest.
    assert test_groups(drawn.reshape(-1, 2).min(axis=1).repeat(2)) == whole
    fewer = np.flatnonzero(groups >= 50)
    assert len({group for group in whole if group >= 50} ^ test_groups(drawn, fewer)) < 15


def test_a_share_of_zero_takes_nothing(rng):
    assert len(assign(np.arange(50), rng, shares={"test": 0.0, "validation": 0.1})["test"]) == 0


def test_one_group_stays_whole_in_training(rng):
    parts = assign(np.zeros(50, int), rng)
    assert {name: len(part) for name, part in parts.items()} == {"train": 50, "test": 0, "validation": 0}


@pytest.mark.parametrize(("careless", "train", "left_out"), [(False, [0], 4), (True, [0, 1, 2], 2)])
def test_twins_of_measured_pictures_go(careless, train, left_out):
    #                    0  1  2  3  4  5  6  7
    clusters = np.array([0, 1, 2, 3, 1, 3, 2, 9])
    parts = {"train": np.array([0, 1, 2, 3]), "test": np.array([4]), "validation": np.array([6, 5])}
    kept, validation, gone = splitting.without_twins(parts, np.array([5, 7]), clusters, careless)
    assert kept.tolist() == train
    assert validation.tolist() == [6]
    assert gone == left_out


def test_rank_within():
    assert splitting.rank_within(np.array([5, 3, 5, 5]), np.array([0.3, 0.1, 0.1, 0.2])).tolist() == [2, 0, 0, 1]


def test_some_of_many_lie_evenly_with_both_ends():
    assert splitting.evenly(9, 3).tolist() == [0, 4, 8]
    assert splitting.evenly(3, 9).tolist() == [0, 1, 2]
