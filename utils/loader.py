"""Reads every source, splits without leaks, then weights the training part."""

import hashlib
import itertools
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import labels, markup, readers, runs, sources, splitting, twins
from utils.errors import UserError
from utils.settings import Settings
from utils.sources import DataSource, SourceData

log = logging.getLogger(__name__)

ASIDE_SUFFIX = " (kept aside)"
TEST_SEED = 2**31  # added to SEED where drawn digits are only measured on: SEED has none as large
ASIDE_SHARE = 0.3  # of the pictures of a new meter, where there are enough to keep some aside
MIN_ASIDE_CLUSTERS = 10  # of fewer groups of twins none are kept aside: the share of them would measure nothing

Turns = tuple[tuple[np.ndarray, int], ...]


class DataError(UserError):
    """The pictures as a whole can't be trained on. The message says what to change."""


@dataclass(frozen=True)
class Pool:
    """All pictures of all sources under one numbering; pixels stay in their sources' arrays.

    ``tenths`` (N,) int16 labels 0..99; ``source_ids`` (N,) index into ``source_names``; ``meter_ids`` (N,) index into
    ``meter_names`` (``source/meter``); ``files`` (N) path of each picture below its source.
    """

    arrays: tuple[np.ndarray, ...]
    tenths: np.ndarray
    source_ids: np.ndarray
    source_names: tuple[str, ...]
    meter_ids: np.ndarray
    meter_names: tuple[str, ...]
    files: tuple[str, ...]
    nb_classes: int

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Pixels of the given pictures, ``(len(indices), H, W, C)`` uint8."""
        out = np.empty((len(indices), *self.arrays[0].shape[1:]), np.uint8)
        start = 0
        for array in self.arrays:
            mine = (indices >= start) & (indices < start + len(array))
            out[mine] = array[indices[mine] - start]
            start += len(array)
        return out

    def classes(self, indices: np.ndarray) -> np.ndarray:
        """Class numbers of the given pictures, ``(len(indices),)``."""
        return labels.to_classes(self.tenths[indices], self.nb_classes)


@dataclass(frozen=True)
class Splits:
    """Which picture of the pool serves what.

    ``turns`` are the training pictures of a source, or of one of its meters, in random order, and how many of them an
    epoch has; ``validation`` are indices into the pool; ``measured`` maps each test set (``"test"``, what is kept aside
    of new sources, the ``TEST_SOURCES``) by name to indices. ``facts`` describes the data for ``results.json``;
    ``fingerprint`` changes whenever a picture, a label or the split does; ``clusters`` (N,) has one number for all
    twins of a picture; ``marks`` (N,) uint64 tell pictures by their pixels, wherever they lie; ``drawn`` are the
    numbers of the sources that the project draws.
    """

    pool: Pool
    turns: Turns
    validation: np.ndarray
    measured: dict[str, np.ndarray]
    facts: dict
    fingerprint: str
    clusters: np.ndarray
    marks: np.ndarray
    drawn: tuple[int, ...] = ()

    def epoch(self, number: int) -> np.ndarray:
        """Indices of what an epoch, counted from 0, learns, weighted: some stand there several times, some not at all.

        Those that stand there less often than others of their meter have their turn in the next epochs.
        """
        return _epoch(self.turns, number)

    @property
    def train(self) -> np.ndarray:
        """What the first epoch learns."""
        return self.epoch(0)

    @property
    def learnt(self) -> np.ndarray:
        """Marks of what a model learns of this; pictures that choose its best epoch count, too.

        Of old pictures a fine-tuning replays but some, and counts all: the model it begins with has learnt them.
        """
        taught = [members for members, count in self.turns if count]
        return np.unique(self.marks[np.concatenate([*taught, self.validation])])

    @property
    def different_validation(self) -> np.ndarray:
        """Validation pictures, one of those that are copies with the same label: together they prove no more."""
        part = self.validation
        return part[twins.one_of_copies(self.marks[part], self.pool.tenths[part])]

    def source(self, name: str) -> int:
        """Number of a source in ``pool.source_ids``."""
        return self.pool.source_names.index(name)


def aside_of(source: str) -> str:
    """Name of the test set that is kept aside of a source's pictures."""
    return source + ASIDE_SUFFIX


def load(settings: Settings, new: Collection[str] = (), aside_from: int = 0, model_file: Path | None = None) -> Splits:
    """Reads ``DATA_SOURCES`` and ``TEST_SOURCES``, splits the former, weights its training part.

    Args:
        settings: says what to read, and how to split it.
        new: names of sources that a trained model is to learn: all their pictures go to the training part, unless
            there are at least ``aside_from`` in ten groups of twins; then 30 % of them are kept aside, twins together,
            and measured on under the name that :func:`aside_of` gives.
        aside_from: see there; 0 where a model is trained anew.
        model_file: the trained model to begin with: of ``DATA_SOURCES``, neither pictures that it has learnt by its
            run's record (:func:`runs.learnt`) nor their twins are measured on; split by image, old ones are measured on
            with twins, and all of them where a model is trained anew.

    Raises:
        RunError: that record is damaged.
        SourceError: a source is missing, empty or damaged.
        DataError: the split leaves a part empty, or fewer than two classes to train.
    """
    learnt = runs.learnt(model_file)
    used, tested = _parse(settings)
    drawn = [i for i, source in enumerate((*used, *tested)) if source.type == "synthetic"]
    read = _read(used, tested, drawn, settings)
    pool = pool_of(read, settings.nb_classes)
    own = np.flatnonzero(pool.source_ids < len(used))
    held = np.flatnonzero(pool.source_ids >= len(used))
    exact = twins.exact_groups(itertools.chain(*pool.arrays))
    # Those of a new meter stay together however the old ones are dealt out: else a retraining would be judged by twins.
    clusters = exact if settings.split_by == "image" and not new else _clusters(pool, exact, drawn)
    is_new = np.isin(pool.source_ids[own], [i for i, source in enumerate(used) if source.name in new])
    if is_new.all():
        raise DataError(
            "DATA_SOURCES has no pictures but the new ones: list there what the model was trained on, or synthetic ones"
        )
    lots = _lots(pool, exact, settings.seed)
    parts = _split(pool, own[~is_new], clusters, drawn, settings, lots)
    parts = _without_spare(parts, pool, used, lots)
    aside, taught = _keep_aside(pool, own[is_new], clusters, aside_from, lots)
    parts["train"] = np.concatenate([parts["train"], taught])
    marks = twins.marks(itertools.chain(*pool.arrays))
    careless = settings.split_by == "image"
    # Dealt out one by one, twins of what is measured on were learnt from the first time, too.
    known = _known(marks, learnt, clusters, parts["test"] if careless else [])
    # Trained anew on copies of what is measured on, a run's own record would change the split when it is resumed.
    if aside_from or not careless:
        parts, aside = _without_known(parts, aside, known, clusters)
    kept = np.concatenate([held, *aside.values()])
    train, validation, left_out = splitting.without_twins(parts, kept, clusters, careless)
    measured = {"test": parts["test"]} if len(parts["test"]) else {}
    measured |= aside
    measured |= {name: held[pool.source_ids[held] == i] for i, name in enumerate(pool.source_names) if i >= len(used)}
    _check_parts(pool, train, validation, measured, settings, own[~is_new], clusters, held)
    turns = _turns(pool, train, used, settings, new)
    weighted = _epoch(turns, 0)
    facts = {
        "split_by": settings.split_by,
        "sources": _source_facts(pool, read, (train, weighted, validation, measured)),
        "training_pictures": len(weighted),
        "validation_pictures": len(validation),
        "left_out_as_twins_of_measured_pictures": left_out,
        "learnt_before_of_test_sources": int(known[held].sum()),
        "exact_duplicates": int(len(exact) - len(np.unique(exact))),
        "identical_pictures_with_two_labels": _conflicts(pool, exact),
        "classes_without_training_picture": _missing_classes(pool, train),
    }
    _log_facts(facts, in_epochs=not aside_from)
    fingerprint = _fingerprint(pool, weighted, validation, measured)
    return Splits(pool, turns, validation, measured, facts, fingerprint, clusters, marks, tuple(drawn))


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the indices, evenly from first to last: those of a split stand in the order of folders."""
    return indices[splitting.evenly(len(indices), count)]


def calibration_images(splits: Splits, count: int, seed: int) -> np.ndarray:
    """Training pictures drawn evenly over classes and, within a class, over meters: ``(<= count, H, W, C)`` uint8."""
    rng = np.random.default_rng(seed)
    indices = np.unique(splits.train)
    classes = splits.pool.classes(indices)
    cell = classes.astype(np.int64) * len(splits.pool.meter_names) + splits.pool.meter_ids[indices]
    turn_of_meter = splitting.rank_within(cell, rng.random(len(indices)))
    turn_of_class = splitting.rank_within(classes, turn_of_meter + rng.random(len(indices)))
    chosen = np.argsort(turn_of_class + rng.random(len(indices)), kind="stable")[:count]
    return splits.pool.images(indices[chosen])


def _parse(settings: Settings) -> tuple[list[DataSource], list[DataSource]]:
    declared = {"DATA_SOURCES": settings.data_sources, "TEST_SOURCES": settings.test_sources}
    used, tested = (
        [source for source in sources.parse_sources(entries, name) if source.weight > 0]
        for name, entries in declared.items()
    )
    if not used:
        raise DataError("every source in DATA_SOURCES has weight 0: nothing is left to train on")
    if not (tested or settings.test_share):
        raise DataError("TEST_SHARE = 0 and every source in TEST_SOURCES has weight 0: nothing is left to measure on")
    # Path.resolve() fails where links form a loop.
    trained_on = {os.path.realpath(source.path): source.name for source in used if source.path}
    for source in tested:
        if source.path and (other := trained_on.get(os.path.realpath(source.path))):
            raise DataError(
                f"TEST_SOURCES {source.name!r} is the folder of DATA_SOURCES {other!r}: remove it from one of them"
            )
        if source.name == "test" or source.name in {other.name for other in used}:
            raise DataError(f"TEST_SOURCES {source.name!r}: the name is taken, choose another")
    return used, tested


def _read(used: list[DataSource], tested: list[DataSource], drawn: list[int], settings: Settings) -> list[SourceData]:
    declared, found = (*used, *tested), {}
    # Two sources of drawn digits would be alike with one seed; and what is only measured on may not be drawn as what a
    # model was trained on once, with other DATA_SOURCES.
    seeds = {n: settings.seed + rank + TEST_SEED * (n >= len(used)) for rank, n in enumerate(drawn)}
    # Folders first: what is wrong with one is said before digits are drawn, which may take a minute.
    for i in sorted(range(len(declared)), key=drawn.__contains__):
        seed = seeds.get(i, settings.seed)
        found[i] = readers.read(declared[i], *settings.input_shape, settings.nb_classes, seed)
    return [found[i] for i in range(len(declared))]


def pool_of(read: Sequence[SourceData], nb_classes: int) -> Pool:
    """The pictures of several sources, one after the other."""
    names = [f"{data.name}/{meter}" if meter != data.name else meter for data in read for meter in data.meters]
    starts = np.cumsum([0, *(len(data.meters) for data in read)])
    return Pool(
        arrays=tuple(data.images for data in read),
        tenths=np.concatenate([data.tenths for data in read]),
        source_ids=np.repeat(np.arange(len(read)), [len(data.images) for data in read]),
        source_names=tuple(data.name for data in read),
        meter_ids=np.concatenate([data.meter_ids + start for data, start in zip(read, starts, strict=False)]),
        meter_names=tuple(names),
        files=tuple(file for data in read for file in data.files),
        nb_classes=nb_classes,
    )


def _clusters(pool: Pool, exact: np.ndarray, drawn: Collection[int]) -> np.ndarray:
    """Twins by number; pictures of ``drawn`` sources have none but copies, and looking for more would take longest."""
    arrays = [array for number, array in enumerate(pool.arrays) if number not in drawn] or [pool.arrays[0][:0]]
    found = twins.twin_clusters(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    cluster_of_group = np.arange(len(exact)) + found.max(initial=-1) + 1
    cluster_of_group[exact[~np.isin(pool.source_ids, drawn)]] = found
    return cluster_of_group[exact]


def _lots(pool: Pool, exact: np.ndarray, seed: int) -> np.ndarray:
    """What decides on which side of the split each picture falls: ``(N,)`` uint64, random, of its pixels and the seed.

    Not of its place in the list: a picture that was measured on once is not to be learnt from because the list of
    sources has changed. Copies have a lot each.
    """
    copies = splitting.rank_within(exact, np.arange(len(exact)))
    pictures = zip(itertools.chain(*pool.arrays), copies, strict=True)
    digests = (
        hashlib.blake2b(np.ascontiguousarray(image), digest_size=8, key=f"{seed} {copy}".encode()).digest()
        for image, copy in pictures
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def _split(
    pool: Pool, own: np.ndarray, clusters: np.ndarray, drawn: Collection[int], settings: Settings, lots: np.ndarray
) -> dict[str, np.ndarray]:
    by = {"cluster": clusters, "meter": pool.meter_ids, "image": np.arange(len(pool.tenths))}[settings.split_by]
    strata = pool.source_ids[own]
    if settings.split_by == "meter":
        # Whole meters can't be halved, so all sources are split at once, but for drawn ones: of many typefaces and few
        # meters, mostly typefaces alone would be measured.
        strata = np.where(np.isin(strata, drawn), strata, -1)
    shares = {"test": settings.test_share, "validation": settings.validation_share}
    # By tenths for ten classes, too: digits begun with a network of tenths (START_FROM) hold out the same.
    parts = splitting.assign(by[own], strata, pool.tenths[own], shares, lots[own])
    return {name: own[members] for name, members in parts.items()}


def _without_spare(
    parts: dict[str, np.ndarray], pool: Pool, used: list[DataSource], lots: np.ndarray
) -> dict[str, np.ndarray]:
    """Of drawn digits that are more than an epoch learns, no more are measured on than of as many as it does."""
    weight = np.array([source.weight if source.type == "synthetic" else 1.0 for source in used])
    # By each one's own lot: with a lower weight some more are left out, but none changes sides.
    held = {name: part[lots[part] < weight[pool.source_ids[part]] * 2.0**64] for name, part in parts.items()}
    return {**held, "train": parts["train"]}


def _keep_aside(
    pool: Pool, new: np.ndarray, clusters: np.ndarray, aside_from: int, lots: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of each new source what is only measured on, and what is learnt of all of them."""
    aside, learnt = {}, []
    for number in np.unique(pool.source_ids[new]):
        mine = new[pool.source_ids[new] == number]
        if len(mine) < aside_from or len(np.unique(clusters[mine])) < MIN_ASIDE_CLUSTERS:
            learnt.append(mine)
            continue
        # Not by class: labels are corrected between two retrainings, and who changed sides would have been learnt from.
        alike = np.zeros(len(mine), int)
        parts = splitting.assign(clusters[mine], alike, alike, {"aside": ASIDE_SHARE}, lots[mine])
        learnt.append(mine[parts["train"]])
        aside[aside_of(pool.source_names[number])] = mine[parts["aside"]]
    return aside, np.concatenate([np.empty(0, int), *learnt])


def _known(marks: np.ndarray, learnt: np.ndarray, clusters: np.ndarray, alone: Sequence[int]) -> np.ndarray:
    """Which pictures a model has learnt, themselves or a twin, ``(N,)`` bool; those of ``alone`` only themselves."""
    itself = np.isin(marks, learnt)
    known = np.isin(clusters, clusters[itself])
    known[alone] = itself[alone]
    return known


def _without_known(
    parts: dict[str, np.ndarray], aside: dict[str, np.ndarray], known: np.ndarray, clusters: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the model has learnt before goes back to the training part, and of a new source all if little is left."""
    measured = {"test": parts["test"], **aside}
    left = {name: members[~known[members]] for name, members in measured.items()}
    if len(parts["test"]) and not len(left["test"]):
        raise DataError(
            "no picture left for test: the model has learnt all that TEST_SHARE holds out of DATA_SOURCES, or their "
            "twins; list further pictures there, or set TEST_SHARE = 0 and list others in TEST_SOURCES"
        )
    for name, members in aside.items():
        groups = len(np.unique(clusters[left[name]]))
        if len(left[name]) < len(members) and groups < ASIDE_SHARE * MIN_ASIDE_CLUSTERS:
            left[name] = left[name][:0]
    back = [np.setdiff1d(members, left[name]) for name, members in measured.items()]
    if moved := sum(map(len, back)):
        log.info("%d pictures are not measured on: the model has learnt them or their twins", moved)
    parts = {**parts, "test": left.pop("test"), "train": np.concatenate([parts["train"], *back])}
    return parts, {name: members for name, members in left.items() if len(members)}


def _check_parts(
    pool: Pool,
    train: np.ndarray,
    validation: np.ndarray,
    measured: dict[str, np.ndarray],
    settings: Settings,
    dealt: np.ndarray,
    clusters: np.ndarray,
    held: np.ndarray,
) -> None:
    empty = [name for name, part in (("training", train), ("validation", validation)) if not len(part)]
    if settings.test_share and "test" not in measured:
        empty.append("test")
    if empty:
        there = f"{markup.count(len(dealt), 'picture')}, {markup.count(len(np.unique(pool.meter_ids[dealt])), 'meter')}"
        if settings.split_by == "cluster":
            different = markup.count(len(np.unique(clusters[dealt])), "different picture")
            there += f", {different}, as copies and near twins count as one"
        mend = "add pictures or change SPLIT_BY, VALIDATION_SHARE or TEST_SHARE"
        if tested := int(np.isin(clusters[dealt], clusters[held]).sum()):
            # The same pictures under other names, or saved anew.
            there += f"; {tested} of them have twins in TEST_SOURCES and are left out"
            mend = f"take out of TEST_SOURCES what DATA_SOURCES has, too, {mend}"
        left = f"no picture left for {' and '.join(empty)} (SPLIT_BY = {settings.split_by!r}, {there})"
        raise DataError(f"{left}: {mend}")
    if len(np.unique(pool.classes(train))) < 2:
        raise DataError("all training pictures have the same label: a network needs at least two classes")


def _turns(pool: Pool, train: np.ndarray, used: list[DataSource], settings: Settings, new: Collection[str]) -> Turns:
    # After the split, so that no repeat leaks into validation or test.
    rng = np.random.default_rng(settings.seed + 1)
    turns = []
    is_new = np.isin(pool.source_ids[train], [number for number, source in enumerate(used) if source.name in new])
    old = np.array([source.weight for source in used])[pool.source_ids[train[~is_new]]].sum()
    # What fine_tuning.mix makes of new sources' weight, quantisation-aware training has to stand: half an epoch.
    most = max(1.0, old / max(is_new.sum(), 1))
    for number, source in enumerate(used):
        mine = rng.permutation(train[pool.source_ids[train] == number])
        # The generator's typefaces are balanced as they are; and of what is new a lesson has no next epoch.
        balance = settings.balance_sources and source.type != "synthetic" and source.name not in new
        meters = _meter_weights(pool, mine) if balance else [(1.0, mine)]
        times = min(source.weight, most) if source.name in new else source.weight
        # Rounded for each meter by itself, many small ones would all be left out, or all be taken whole.
        due = np.cumsum([times * weight * len(members) for weight, members in meters])
        counts = np.diff(due.round().astype(int), prepend=0)
        turns += [(members, int(count)) for (_, members), count in zip(meters, counts, strict=True)]
    if not any(count for _, count in turns):
        raise DataError("the weights in DATA_SOURCES leave no training picture: raise a weight")
    return tuple(turns)


def _epoch(turns: Turns, number: int) -> np.ndarray:
    chosen = [members.take(number * count + np.arange(count), mode="wrap") for members, count in turns]
    return np.sort(np.concatenate(chosen))


def _meter_weights(pool: Pool, indices: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """How often a picture of each meter counts, ~ 1 / sqrt(its pictures) and 1 on average, and which these are."""
    by_meter = indices[np.argsort(pool.meter_ids[indices], kind="stable")]
    _, starts, counts = np.unique(pool.meter_ids[by_meter], return_index=True, return_counts=True)
    weights = counts**-0.5
    weights *= counts.sum() / max((weights * counts).sum(), 1e-9)
    return list(zip(weights.tolist(), np.split(by_meter, starts)[1:], strict=True))


def _source_facts(pool: Pool, read: list[SourceData], parts: tuple) -> list[dict]:
    train, weighted, validation, measured = parts
    facts = []
    for number, data in enumerate(read):
        count = {
            "training": train,
            "training_weighted": weighted,
            "validation": validation,
            "measured": np.concatenate(list(measured.values())),
        }
        count = {name: int((pool.source_ids[part] == number).sum()) for name, part in count.items()}
        facts.append({"name": data.name, "pictures": len(data.images), **count, "skipped": data.skipped})
    return facts


def _conflicts(pool: Pool, exact: np.ndarray) -> dict:
    """Identical pictures with different labels: how many groups, and the first few by name."""
    order = np.argsort(exact, kind="stable")
    same = (exact[order][1:] == exact[order][:-1]) & (pool.tenths[order][1:] != pool.tenths[order][:-1])
    pairs = np.flatnonzero(same)
    examples = [[_describe(pool, order[i]), _describe(pool, order[i + 1])] for i in pairs[:5]]
    return {"groups": len(np.unique(exact[order[pairs]])), "examples": examples}


def _describe(pool: Pool, index: int) -> str:
    source = pool.source_names[pool.source_ids[index]]
    return f"{source}: {pool.files[index]} ({pool.tenths[index] / 10:.1f})"


def _missing_classes(pool: Pool, train: np.ndarray) -> list[str]:
    present = set(pool.classes(train).tolist())
    return [name for number, name in enumerate(labels.class_names(pool.nb_classes)) if number not in present]


def _log_facts(facts: dict, in_epochs: bool) -> None:
    for source in facts["sources"]:
        weighted = source["training_weighted"]
        share = f" ({weighted} after weighting, {100 * weighted / facts['training_pictures']:.0f} % of the epoch)"
        skipped = ", ".join(f"{count} {reason}" for reason, count in source["skipped"].items()) or "none"
        log.info(
            "source %s: %d pictures, %d to train%s, %d to validate, %d to measure; skipped: %s",
            # What is new to a trained model has a share of each batch instead, see fine_tuning.mix.
            *(source["name"], source["pictures"], source["training"], share if in_epochs else ""),
            *(source["validation"], source["measured"], skipped),
        )
        if source["pictures"] > source["measured"] and not weighted:
            told = "source %s: no picture is learnt, they have twins among those that are measured on, or no weight"
            log.warning(told, source["name"])
    if left_out := facts["left_out_as_twins_of_measured_pictures"]:
        log.info("%d pictures left out of training: twins of pictures that are measured on", left_out)
    if flattering := facts["learnt_before_of_test_sources"]:
        log.warning("%d pictures of TEST_SOURCES flatter the model: it has learnt them or their twins", flattering)
    if (conflicts := facts["identical_pictures_with_two_labels"])["groups"]:
        first = " and ".join(conflicts["examples"][0])
        groups = markup.count(conflicts["groups"], "group")
        log.warning("identical pictures with two labels: %s, for example %s", groups, first)
    if missing := facts["classes_without_training_picture"]:
        then = "these can't be learnt" if in_epochs else "nothing new is learnt of these"
        log.warning("no training picture of %s: %s", ", ".join(missing), then)


def _fingerprint(pool: Pool, train: np.ndarray, validation: np.ndarray, measured: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in (*pool.arrays, pool.tenths, train, validation, *measured.values()):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
