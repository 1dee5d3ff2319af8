"""Deals groups of pictures out to training, validation and test, and picks some of many; index arithmetic only."""

import math

import numpy as np

LOT_BITS = 26  # of a lot's 64; what two numbers need, and the highest ones lean to 0 in a group of many pictures


def assign(
    groups: np.ndarray, strata: np.ndarray, classes: np.ndarray, shares: dict[str, float], lots: np.ndarray
) -> dict[str, np.ndarray]:
    """Splits N pictures into ``"train"`` and the named shares; a group is never divided.

    Within each stratum every class gives its share as far as the groups allow; no part takes more than twice its share
    of the groups. What a group draws depends on nothing but its lots, so that it stays where it is, but for a few at
    the borders, when other pictures come and go.

    Args:
        groups: (N,) group of each picture.
        strata: (N,) what is split by itself, for example the source; a group belongs to its first picture's.
        classes: (N,) class of each picture; a group has its first picture's.
        shares: name of each part besides ``"train"`` and its share of the pictures, 0..1, in the order of filling.
        lots: (N,) uint64, a random number of each picture; a group has the lowest of its own.

    Returns:
        For each part the indices 0..N-1 of its pictures, ascending.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    size, stratum, group_class = np.bincount(group), strata[first], classes[first]
    lot = np.full(len(first), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lot, group, lots)
    part = np.zeros(len(first), int)
    for one in np.unique(stratum):
        mine = np.flatnonzero(stratum == one)
        part[mine] = _fill(size[mine], group_class[mine], list(shares.values()), lot[mine])
    return {name: np.flatnonzero(part[group] == number) for number, name in enumerate(["train", *shares])}


def without_twins(
    parts: dict[str, np.ndarray], held: np.ndarray, clusters: np.ndarray, careless: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """Takes out of training and validation what has a twin among the pictures that are measured on.

    Args:
        parts: indices of the parts ``"train"``, ``"validation"`` and ``"test"``.
        held: indices of what else is measured on: ``TEST_SOURCES``, pictures of new sources that are kept aside.
        clusters: (N,) cluster of each picture.
        careless: leave twins between the parts where they are, as a split by image does; only copies of ``held`` go.

    Returns:
        Training indices, validation indices, and how many pictures were taken out.
    """
    test = held if careless else np.concatenate([held, parts["test"]])
    validation = _not_in(parts["validation"], test, clusters)
    seen = test if careless else np.concatenate([test, validation])
    train = _not_in(parts["train"], seen, clusters)
    left_out = len(parts["train"]) + len(parts["validation"]) - len(train) - len(validation)
    return train, validation, left_out


def evenly(count: int, most: int) -> np.ndarray:
    """At most ``most`` of the indices 0 .. ``count`` - 1 at equal distance, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def rank_within(keys: np.ndarray, order_by: np.ndarray) -> np.ndarray:
    """Rank 0, 1, 2 ... of each element among those with the same key, lowest ``order_by`` first."""
    order = np.lexsort((order_by, keys))
    _, start, count = np.unique(keys[order], return_index=True, return_counts=True)
    rank = np.empty(len(keys), int)
    rank[order] = np.arange(len(keys)) - np.repeat(start, count)
    return rank


def _fill(size: np.ndarray, classes: np.ndarray, shares: list[float], lots: np.ndarray) -> np.ndarray:
    """Part of each group: 0 = train, 1, 2 ... the shares. Each class lies evenly along the order of filling."""
    within, between = ((lots >> np.uint64(shift)) % 2**LOT_BITS / 2**LOT_BITS for shift in (0, LOT_BITS))
    order = np.argsort((rank_within(classes, within) + between) / np.bincount(classes)[classes], kind="stable")
    part = np.zeros(len(size), int)
    for number, share in enumerate(shares, start=1):
        room = round(share * size.sum())
        free = [group for group in order if part[group] == 0]
        if room and len(free) > 1 and size[free].min() > room:
            # Nothing fits, as with a few whole meters: the smallest is nearest to the share.
            part[free[int(np.argmin(size[free]))]] = number
        # Where some groups are too large, the others may not make up for all of it: none would be left to learn from.
        most = math.ceil(2 * share * len(size))
        for group in free:
            if most and size[group] <= room:
                part[group] = number
                room -= size[group]
                most -= 1
    return part


def _not_in(indices: np.ndarray, others: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    return indices[~np.isin(clusters[indices], clusters[others])]
