import dataclasses
import logging
import shutil

import cv2
import numpy as np
import pytest

from tests.conftest import write_digit
from utils import labels, loader, runs, synthetic
from utils.loader import DataError
from utils.sources import SourceError


def source(folder, name="own", **more):
    return {"name": name, "type": "filename", "path": str(folder), **more}


def clusters_of(splits, indices):
    from utils import twins

    return set(twins.twin_clusters(np.concatenate(splits.pool.arrays))[indices].tolist())


def taught(folder, marks):
    """The model of a run that has learnt these pictures by its record."""
    runs.save_learnt(folder, marks)
    return folder / runs.BEST_MODEL_FILE


def parts(splits):
    return {"train": np.unique(splits.train), "validation": splits.validation, **splits.measured}


def test_parts_are_disjoint_and_cover_all_pictures(tiny):
    splits = loader.load(tiny())
    everything = np.concatenate(list(parts(splits).values()))
    assert sorted(everything.tolist()) == list(range(240))
    assert len(splits.measured["test"]) == len(splits.validation) == 24


def test_same_seed_same_split_other_seed_other_split(tiny):
    first, again, other = (loader.load(tiny(seed=seed)) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    np.testing.assert_array_equal(first.train, again.train)


def test_folders_are_read_before_digits_are_drawn(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "draw", lambda *_: pytest.fail("60,000 take a minute"))
    drawn = {"name": "drawn", "type": "synthetic", "count": 60_000}
    with pytest.raises(SourceError, match=r"'own': folder .*missing not found"):
        loader.load(tiny(data_sources=[drawn], test_sources=[source(tmp_path / "missing")]))


def test_a_corrected_label_makes_other_data_of_the_same_split(tiny, picture_folder):
    folder = picture_folder("own", {"a": 40})
    given = {path.name: path.name[:3] for path in sorted((folder / "a").iterdir())}

    def read():
        (folder / "labels.txt").write_text("".join(f"a/{name}\t{label}\n" for name, label in given.items()))
        return loader.load(tiny(data_sources=[source(folder, type="label_file")]))

    before = read()
    # Alone with its label before and after, so that the split has no reason to change.
    free = (label for label in labels.class_names(100) if label not in given.values())
    given[next(name for name, label in given.items() if list(given.values()).count(label) == 1)] = next(free)
    after = read()
    np.testing.assert_array_equal(before.train, after.train)
    assert before.fingerprint != after.fingerprint


def test_what_was_measured_on_is_not_learnt_from_when_the_list_changes(tiny, picture_folder):
    def measured_and_learnt(*listed, **more):
        splits = loader.load(tiny(data_sources=list(listed), balance_sources=False, nb_classes=100, **more))
        named = [
            (splits.pool.source_names[s], f) for s, f in zip(splits.pool.source_ids, splits.pool.files, strict=True)
        ]
        return {named[i] for i in splits.measured["test"]}, {named[i] for i in splits.train}

    folder = picture_folder("own", {"a": 300, "b": 200})
    own, drawn = source(folder), {"name": "synthetic", "type": "synthetic", "count": 500}
    measured, learnt = measured_and_learnt(own, drawn)
    assert measured_and_learnt(drawn, own) == (measured, learnt)
    alone, _ = measured_and_learnt(drawn)
    assert alone == {entry for entry in measured if entry[0] == "synthetic"}
    digits = synthetic.draw(3, seed=9)
    for number in range(3):
        write_digit(folder / "a", digits, number)
    after, _ = measured_and_learnt(own, drawn)
    assert len(after & learnt) <= 2 and len(after & measured) > 90
    other, _ = measured_and_learnt(own, drawn, seed=7)
    assert len(other & measured) < 30


def test_every_class_gives_its_share(tiny):
    splits = loader.load(tiny(data_sources=[{"name": "s", "type": "synthetic", "count": 2000}], nb_classes=100))
    counts = np.bincount(splits.pool.tenths[splits.measured["test"]], minlength=100)
    expected = np.bincount(splits.pool.tenths, minlength=100) * 0.1
    assert np.abs(counts - expected).max() <= 2


@pytest.mark.parametrize("split_by", ["cluster", "meter", "image"])
def test_digits_hold_out_what_tenths_hold_out(tiny, picture_folder, split_by):
    own = source(picture_folder("own", {f"m{number}": 40 for number in range(10)}))
    digits, tenths = (
        loader.load(tiny(data_sources=[own], balance_sources=False, split_by=split_by, nb_classes=nb_classes))
        for nb_classes in (10, 100)
    )
    for name, part in parts(tenths).items():
        np.testing.assert_array_equal(parts(digits)[name], part)


def test_twins_stay_together_unless_split_by_image(tiny, picture_folder):
    folder = picture_folder("own", {"a": 60})
    for path in sorted((folder / "a").iterdir()):
        for copy in range(3):
            shutil.copy(path, path.with_name(f"{path.stem}_{copy}.png"))
    splits = loader.load(tiny(data_sources=[source(folder)]))
    seen = clusters_of(splits, splits.train)
    assert not seen & clusters_of(splits, splits.validation)
    assert not seen & clusters_of(splits, splits.measured["test"])
    assert splits.facts["exact_duplicates"] == 180
    careless = loader.load(tiny(data_sources=[source(folder)], split_by="image"))
    assert clusters_of(careless, careless.train) & clusters_of(careless, careless.measured["test"])


def test_drawn_pictures_are_nobodys_near_twins_but_copies_are_found(tiny, picture_folder):
    drawn = {"name": "drawn", "type": "synthetic", "count": 40}
    own = source(picture_folder("own", {"a": 40}, seed=tiny().seed + 1))  # the very pictures that "drawn" has
    splits = loader.load(tiny(data_sources=[{**drawn, "name": "more", "count": 90}, own, drawn]))
    groups = [set(splits.clusters[splits.pool.source_ids == number].tolist()) for number in range(3)]
    assert groups[1] == groups[2] and len(groups[0]) == 90 and not groups[0] & groups[1]


def test_real_twins_do_not_depend_on_the_drawn_pictures_beside_them(tiny, picture_folder):
    own = source(picture_folder("own", {"a": 200}))
    alone = loader.load(tiny(data_sources=[own]))
    beside = loader.load(tiny(data_sources=[own, {"name": "drawn", "type": "synthetic", "count": 300}]))
    assert np.array_equal(alone.clusters, beside.clusters[:200])
    for name in ("train", "validation"):
        part = getattr(beside, name)
        assert np.array_equal(part[part < 200], getattr(alone, name))


def test_drawn_digits_that_are_measured_on_are_none_that_another_list_trains_on(tiny, picture_folder):
    drawn = {"name": "drawn", "type": "synthetic", "count": 200}
    once = loader.load(tiny(data_sources=[drawn]))
    later = loader.load(tiny(data_sources=[source(picture_folder("own", {"a": 40}))], test_sources=[drawn]))
    learnt = {image.tobytes() for image in once.pool.images(once.train)}
    assert not learnt & {image.tobytes() for image in later.pool.images(later.measured["drawn"])}


def test_of_drawn_digits_no_more_are_measured_on_than_of_an_epochs(tiny, picture_folder):
    """Of 100,000 with weight 0.2, 20,000 an epoch, 10,000 were: a run took a quarter longer."""
    own = source(picture_folder("own", {"a": 40}), weight=0.25)

    def held(weight):
        splits = loader.load(
            tiny(data_sources=[own, {"name": "s", "type": "synthetic", "count": 2000, "weight": weight}])
        )
        counts = {name: np.bincount(splits.pool.source_ids[part]).tolist() for name, part in parts(splits).items()}
        return {name: set(part.tolist()) for name, part in parts(splits).items()}, counts, splits

    whole, counts, _ = held(1.0)
    assert counts["validation"] == counts["test"] == [4, 200]
    few, counts, splits = held(0.2)
    assert [counts[name][0] for name in ("validation", "test")] == [4, 4]
    for name in ("validation", "test"):
        assert few[name] < whole[name] and counts[name][1] == pytest.approx(40, abs=15)
    assert len(np.unique(np.concatenate([splits.epoch(n) for n in range(5)]))) == 1600 + 32
    assert held(3.0)[0]["test"] == whole["test"]


def test_two_sources_of_drawn_digits_differ(tiny):
    one, other = ({"name": name, "type": "synthetic", "count": 300} for name in "ab")
    splits = loader.load(tiny(data_sources=[one], test_sources=[other]))
    pictures = [splits.pool.images(np.flatnonzero(splits.pool.source_ids == number)) for number in (0, 1)]
    assert len(np.unique(np.concatenate(pictures), axis=0)) > 595
    alone = loader.load(tiny(data_sources=[one]))
    np.testing.assert_array_equal(alone.pool.arrays[0], pictures[0])


def test_indices_are_spread_from_first_to_last():
    indices = np.arange(100, 200)
    assert loader.spread(indices, 4).tolist() == [100, 133, 166, 199]
    assert loader.spread(indices, 1000).tolist() == indices.tolist()
    assert len(loader.spread(indices[:0], 5)) == 0


def test_a_folder_without_meters_is_one(tiny, picture_folder):
    pool = loader.load(tiny(data_sources=[source(picture_folder("own", {"a": 40}) / "a")])).pool
    assert pool.meter_names == ("own",)


def test_whole_meters_go_to_one_side(tiny, picture_folder):
    folder = picture_folder("own", {f"m{i}": 20 for i in range(10)})
    splits = loader.load(tiny(data_sources=[source(folder)], split_by="meter"))
    meters = {name: set(splits.pool.meter_ids[part].tolist()) for name, part in parts(splits).items()}
    assert len(meters["test"]) == len(meters["validation"]) == 1
    assert len(meters["train"]) == 8
    assert len(set.union(*meters.values())) == 10


def test_meters_of_several_sources_are_split_as_one(tiny, picture_folder):
    names = [f"s{i}" for i in range(6)]
    folders = [picture_folder(name, {"m": 20}, seed) for seed, name in enumerate(names)]
    own = [source(folder, name) for folder, name in zip(folders, names, strict=True)]
    splits = loader.load(tiny(data_sources=own, split_by="meter", test_share=0.2, validation_share=0.2))
    assert len(splits.measured["test"]) == len(splits.validation) == 20


def test_copies_in_another_meter_do_not_leak(tiny, picture_folder):
    folder = picture_folder("own", {f"m{i}": 20 for i in range(9)})
    (folder / "mixed").mkdir()
    for meter in range(9):
        for path in sorted((folder / f"m{meter}").iterdir())[:4]:
            shutil.copy(path, folder / "mixed" / path.name)
    splits = loader.load(tiny(data_sources=[source(folder)], split_by="meter", test_share=0.3))
    assert not clusters_of(splits, splits.train) & clusters_of(splits, splits.measured["test"])
    assert splits.facts["left_out_as_twins_of_measured_pictures"] > 0


@pytest.mark.parametrize("split_by", ["cluster", "meter", "image"])
def test_pictures_of_test_sources_are_never_trained_on(tiny, picture_folder, split_by):
    folder = picture_folder("own", {f"m{i}": 20 for i in range(8)})
    held = folder.parent / "held" / "meter"
    held.mkdir(parents=True)
    for path in sorted(folder.rglob("*.png"))[::4]:
        shutil.copy(path, held / path.name)
    settings = tiny(data_sources=[source(folder)], test_sources=[source(held.parent, "held")], split_by=split_by)
    splits = loader.load(settings)
    assert len(splits.measured["held"]) == 40
    pixels = {image.tobytes() for image in splits.pool.images(splits.measured["held"])}
    for part in (splits.train, splits.validation):
        assert not pixels & {image.tobytes() for image in splits.pool.images(part)}
    assert splits.pool.meter_names[splits.pool.meter_ids[splits.measured["held"][0]]] == "held/meter"


def test_a_source_of_which_nothing_is_learnt_is_told(tiny, picture_folder, tmp_path, caplog):
    kitchen = picture_folder("kitchen", {"m": 100})
    shutil.copytree(kitchen, tmp_path / "copy")
    drawn = {"name": "s", "type": "synthetic", "count": 200}
    with caplog.at_level("WARNING"):
        loader.load(tiny(data_sources=[drawn, source(kitchen, "k")], test_sources=[source(tmp_path / "copy", "held")]))
    told = [record.getMessage() for record in caplog.records if "no picture is learnt" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("source k: ")


def test_weights_apply_to_the_training_part_only(tiny, picture_folder):
    folders = {name: picture_folder(name, {"m": 100}, seed) for seed, name in enumerate("abcd")}
    weights = {"a": 0.5, "b": 1, "c": 2.25, "d": 0}
    own = [source(folder, name, weight=weights[name]) for name, folder in folders.items()]
    splits = loader.load(tiny(data_sources=own))
    by_name = {facts["name"]: facts for facts in splits.facts["sources"]}
    assert set(by_name) == {"a", "b", "c"}
    for name, facts in by_name.items():
        assert (facts["training"], facts["validation"], facts["measured"]) == (80, 10, 10)
        assert facts["training_weighted"] == 80 * weights[name]
    repeats = np.bincount(splits.train)
    assert set(repeats[splits.train[splits.pool.source_ids[splits.train] == 2]]) == {2, 3}
    assert set(repeats[splits.train[splits.pool.source_ids[splits.train] == 0]]) == {1}


@pytest.mark.parametrize(("weight", "most"), [(0.25, 1), (2.25, 3)])
def test_pictures_take_turns_where_an_epoch_has_not_room_for_all(tiny, picture_folder, weight, most):
    splits = loader.load(tiny(data_sources=[source(picture_folder("own", {"m": 100}), weight=weight)]))
    epochs = [splits.epoch(number) for number in range(4)]
    np.testing.assert_array_equal(splits.train, epochs[0])
    assert {len(epoch) for epoch in epochs} == {80 * weight}
    assert max(np.bincount(epoch).max() for epoch in epochs) == most
    learnt, times = np.unique(np.concatenate(epochs), return_counts=True)
    assert len(learnt) == 80 and set(times) == {4 * weight}
    # All of these, and those that choose the best epoch, count as learnt when the model is taught further.
    assert set(splits.learnt) == set(splits.marks[np.concatenate([learnt, splits.validation])])


@pytest.mark.parametrize("weight", [0.3, 1.5])
def test_weights_hold_for_meters_of_few_pictures(tiny, picture_folder, weight):
    folder = picture_folder("own", {f"day{number}": 1 for number in range(150)})
    splits = loader.load(tiny(data_sources=[source(folder, weight=weight)]))
    assert len(splits.train) == round(weight * splits.facts["sources"][0]["training"])


@pytest.mark.parametrize(("balance", "expected"), [(True, [25, 75]), (False, [10, 90])])
def test_meters_count_by_the_square_root_of_their_pictures(tiny, picture_folder, balance, expected):
    folder = picture_folder("own", {"large": 900, "small": 100})
    splits = loader.load(tiny(data_sources=[source(folder)], balance_sources=balance))
    counts = np.bincount(splits.pool.meter_ids[splits.train])
    by_name = dict(zip(splits.pool.meter_names, counts, strict=True))
    share = [100 * by_name[f"own/{meter}"] / counts.sum() for meter in ("small", "large")]
    np.testing.assert_allclose(share, expected, atol=0.7)
    assert counts.sum() == pytest.approx(800, abs=2)


def test_identical_pictures_with_two_labels_are_reported(tiny, picture_folder, caplog):
    folder = picture_folder("own", {"a": 50})
    path = sorted((folder / "a").iterdir())[0]
    for label in ("2.2", "7.7"):
        shutil.copy(path, folder / "a" / f"{label}_again.png")
    with caplog.at_level(logging.WARNING):
        conflicts = loader.load(tiny(data_sources=[source(folder)])).facts["identical_pictures_with_two_labels"]
    assert conflicts["groups"] == 1
    assert conflicts["examples"][0] == [f"own: a/{path.name} ({path.name[:3]})", "own: a/2.2_again.png (2.2)"]
    assert f"identical pictures with two labels: 1 group, for example own: a/{path.name}" in caplog.text


def test_of_validation_pictures_that_are_copies_with_one_label_one_counts(tiny):
    splits = loader.load(tiny())
    assert splits.different_validation.tolist() == splits.validation.tolist()
    marks = splits.marks.copy()
    first, second, third = splits.validation[:3]
    marks[[second, third]] = marks[first]
    splits.pool.tenths[[first, second, third]] = 10, 10, 11
    copied = dataclasses.replace(splits, marks=marks)
    assert copied.different_validation.tolist() == [index for index in splits.validation if index != second]


def test_classes_without_a_picture_are_named(tiny, tmp_path, caplog):
    digits = synthetic.draw(400, 3)
    (tmp_path / "own").mkdir()
    for number in np.flatnonzero(digits.tenths // 10 != 4):
        write_digit(tmp_path / "own", digits, number)
    with caplog.at_level(logging.WARNING):
        splits = loader.load(tiny(data_sources=[source(tmp_path / "own")], nb_classes=100))
        loader.load(tiny(data_sources=[source(tmp_path / "own")], nb_classes=100), aside_from=100)
    assert {"4.0", "4.5", "4.9"} <= set(splits.facts["classes_without_training_picture"])
    # A model that is taught further may know them.
    said = [text.rpartition(": ")[2] for text in caplog.messages if "no training picture of" in text]
    assert said == ["these can't be learnt", "nothing new is learnt of these"]


def test_one_class_only_is_refused(tiny, tmp_path):
    digits = synthetic.draw(600, 3)
    (tmp_path / "own").mkdir()
    for number in np.flatnonzero((digits.tenths + 5) // 10 % 10 == 4):
        write_digit(tmp_path / "own", digits, number)
    with pytest.raises(DataError, match="at least two classes"):
        loader.load(tiny(data_sources=[source(tmp_path / "own")]))


def test_too_few_pictures_for_three_parts_are_refused(tiny, picture_folder):
    with pytest.raises(DataError, match=r"no picture left for .*'cluster', 2 pictures, 1 meter, 2 different pictures,"):
        loader.load(tiny(data_sources=[source(picture_folder("own", {"a": 2}))]))


def test_copies_are_said_to_be_one_picture_where_too_few_are_left(tiny, picture_folder):
    folder = picture_folder("own", {"a": 1})
    (one,) = (folder / "a").iterdir()
    for number in range(49):
        shutil.copy(one, folder / "a" / f"{number % 10}.0_{number}{one.suffix}")
    # What is only measured on is not what there are too few of.
    tested = [source(picture_folder("tested", {"b": 20, "c": 20}), "tested")]
    with pytest.raises(DataError) as error:
        loader.load(tiny(data_sources=[source(folder)], test_sources=tested))
    assert str(error.value).startswith(
        "no picture left for validation and test (SPLIT_BY = 'cluster', 50 pictures, 1 meter, 1 different picture, "
        "as copies and near twins count as one): add pictures"
    )


@pytest.mark.parametrize("quality", [100, 80])
def test_the_same_pictures_as_test_source_are_said_to_be_why_none_is_left(tiny, picture_folder, quality):
    folder = picture_folder("own", {"a": 60})
    saved_anew = folder.parent / "anew"
    saved_anew.mkdir()
    for number, path in enumerate(sorted((folder / "a").iterdir())):
        anew = saved_anew / f"{path.name[:3]}_other{number}.jpg"
        cv2.imwrite(str(anew), cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, quality])
    with pytest.raises(DataError) as error:
        loader.load(tiny(data_sources=[source(folder)], test_sources=[source(saved_anew, "anew")]))
    assert "no picture left for training and validation (SPLIT_BY = 'cluster', 60 pictures" in str(error.value)
    left_out = "; 60 of them have twins in TEST_SOURCES and are left out): take out of TEST_SOURCES"
    assert left_out in str(error.value)


@pytest.mark.parametrize("seed", range(3))
def test_typefaces_are_not_held_out_in_place_of_meters(tiny, picture_folder, seed):
    own = source(picture_folder("own", {f"m{number}": 40 for number in range(5)}), "own")
    drawn = {"name": "drawn", "type": "synthetic", "count": 600}
    splits = loader.load(tiny(data_sources=[own, drawn], split_by="meter", seed=seed))
    for part in (splits.measured["test"], splits.validation):
        assert set(splits.pool.source_ids[part]) == {0, 1}


def test_one_meter_cannot_be_split_by_meter(tiny, picture_folder):
    with pytest.raises(DataError, match=r"no picture left for validation and test.*40 pictures, 1 meter\):.* SPLIT_BY"):
        loader.load(tiny(data_sources=[source(picture_folder("own", {"a": 40}))], split_by="meter"))


def test_few_pictures_are_enough_for_three_parts(tiny, picture_folder):
    splits = loader.load(tiny(data_sources=[source(picture_folder("own", {"a": 12}))]))
    assert min(len(part) for part in parts(splits).values()) == 1


def test_a_test_source_of_weight_0_is_left_out(tiny, picture_folder):
    own, off = source(picture_folder("own", {"a": 40})), source("nowhere", "off", weight=0)
    held = source(picture_folder("held", {"b": 7}), "held", weight=0.1)
    splits = loader.load(tiny(data_sources=[own], test_sources=[off, held]))
    assert set(splits.measured) == {"test", "held"}
    assert len(splits.measured["held"]) == 7
    with pytest.raises(DataError, match="every source in TEST_SOURCES has weight 0: nothing is left to measure on"):
        loader.load(tiny(data_sources=[own], test_sources=[off], test_share=0))


def test_weights_of_nothing_and_shared_folders_are_refused(tiny, picture_folder):
    folder = picture_folder("own", {"a": 12})
    with pytest.raises(DataError, match="weight 0"):
        loader.load(tiny(data_sources=[source(folder, weight=0)]))
    with pytest.raises(DataError, match="leave no training picture: raise a weight"):
        loader.load(tiny(data_sources=[source(folder, weight=0.01)]))
    with pytest.raises(DataError, match="TEST_SOURCES 'held' is the folder of DATA_SOURCES 'own'"):
        loader.load(tiny(data_sources=[source(folder)], test_sources=[source(f"{folder}/../own", "held")]))
    (folder.parent / "loop").symlink_to("loop")
    with pytest.raises(SourceError, match=r"'held': folder .*loop not found"):
        loader.load(tiny(data_sources=[source(folder)], test_sources=[source(folder.parent / "loop", "held")]))
    for name in ("test", "synthetic"):
        with pytest.raises(DataError, match=f"TEST_SOURCES '{name}': the name is taken"):
            loader.load(tiny(test_sources=[source(folder, name)]))


def test_without_a_test_share_only_test_sources_are_measured(tiny, picture_folder):
    held = source(picture_folder("held", {"a": 30}, seed=9), "held")
    splits = loader.load(tiny(test_share=0.0, test_sources=[held]))
    assert list(splits.measured) == ["held"]


def test_images_come_in_the_order_asked_for_across_sources(tiny, picture_folder):
    own = [source(picture_folder(name, {"m": 10}, seed), name) for seed, name in enumerate("ab")]
    pool = loader.load(tiny(data_sources=own)).pool
    images = pool.images(np.array([15, 3, 15, 19, 0]))
    np.testing.assert_array_equal(images[0], pool.arrays[1][5])
    np.testing.assert_array_equal(images[1], pool.arrays[0][3])
    np.testing.assert_array_equal(images[2], images[0])


def test_calibration_is_even_over_classes_and_meters(tiny, picture_folder):
    folder = picture_folder("own", {"large": 900, "small": 60})
    splits = loader.load(tiny(data_sources=[source(folder)]))
    chosen = {image.tobytes() for image in loader.calibration_images(splits, 100, seed=0)}
    assert len(chosen) == 100
    indices = np.array([i for i in np.unique(splits.train) if splits.pool.images(np.array([i]))[0].tobytes() in chosen])
    assert np.bincount(splits.pool.classes(indices), minlength=10).tolist() == [10] * 10
    small = splits.pool.meter_names.index("own/small")
    # An even draw over pictures would give the small meter 6 of 100.
    assert (splits.pool.meter_ids[indices] == small).sum() >= 30


def test_real_pictures_split_without_leak(tiny, real_data):
    own, held = (source(real_data / name, name) for name in ("meter_digits", "unseen_meters"))
    splits = loader.load(tiny(data_sources=[own], test_sources=[held], nb_classes=100))
    assert len(splits.measured["unseen_meters"]) == 3903
    assert len(splits.measured["test"]) == 2090
    assert len(splits.pool.meter_names) == 21 + 15
    assert splits.facts["identical_pictures_with_two_labels"]["groups"] > 50
    seen = clusters_of(splits, splits.train)
    for part in (splits.validation, *splits.measured.values()):
        assert not seen & clusters_of(splits, part)


def test_new_pictures_alone_are_refused(tiny, picture_folder):
    new = source(picture_folder("new", {"a": 60}), "new")
    with pytest.raises(loader.DataError, match="no pictures but the new ones: list there what the model was trained"):
        loader.load(tiny(data_sources=[new]), ["new"])


@pytest.mark.parametrize(("aside_from", "aside"), [(61, 0), (60, 18)])
def test_new_pictures_are_learnt_but_for_what_is_kept_aside(tiny, picture_folder, aside_from, aside):
    new = source(picture_folder("new", {"a": 60}), "new", weight=2.0)
    splits = loader.load(tiny(data_sources=[*tiny().data_sources, new]), ["new"], aside_from)
    of_new = {name: indices[indices >= 240] for name, indices in parts(splits).items()}
    kept = of_new.pop("new (kept aside)", [])
    assert len(kept) == aside
    assert len(of_new["train"]) == 60 - aside
    assert len(of_new["validation"]) == len(of_new["test"]) == 0
    # The others are split as ever, and weights apply.
    assert len(splits.validation) == len(splits.measured["test"]) == 24
    assert (splits.train >= 240).sum() == 2 * (60 - aside)


@pytest.mark.parametrize(("weight", "old"), [(1.0, 192), (0.5, 96)])
def test_new_pictures_are_half_an_epoch_of_quantisation_aware_training_at_most(tiny, picture_folder, weight, old):
    """Half of the old ones as they are weighted: beside drawn digits of weight 0.4, 72 % had been new."""
    (drawn,) = tiny().data_sources
    new = [source(picture_folder(name, {"a": 40}), name, weight=300.0) for name in ("new", "further")]
    splits = loader.load(tiny(data_sources=[{**drawn, "weight": weight}, *new]), ["new", "further"])
    assert np.bincount(splits.pool.source_ids[splits.train]).tolist() == [old, old / 2, old / 2]


def test_new_pictures_of_a_large_meter_are_all_learnt(tiny, picture_folder):
    """Balanced as old ones are, 14 of 92 bad pictures were never learnt with ``--weight 1``: there is no next epoch."""
    new = source(picture_folder("new", {"a": 80, "b": 8}), "new", weight=1.0)
    splits = loader.load(tiny(data_sources=[*tiny().data_sources, new]), ["new"], aside_from=100)
    assert (np.unique(splits.train) >= 240).sum() == 88


def test_what_is_new_to_a_trained_model_has_no_share_of_an_epoch(tiny, picture_folder, caplog):
    caplog.set_level("INFO")
    settings = tiny(data_sources=[*tiny().data_sources, source(picture_folder("new", {"a": 60}), "new", weight=300.0)])
    loader.load(settings, ["new"], aside_from=100)
    assert "source new: 60 pictures, 60 to train, 0 to validate, 0 to measure; skipped: none" in caplog.messages
    caplog.clear()
    loader.load(settings)
    (told,) = (text for text in caplog.messages if text.startswith("source new:"))
    assert "48 to train (14400 after weighting, 99 % of the epoch), 6 to validate, 6 to measure" in told


def test_corrected_labels_leave_aside_what_was_kept_aside(tiny, picture_folder):
    folder = picture_folder("new", {"a": 40})

    def kept(**declared):
        splits = loader.load(tiny(data_sources=[*tiny().data_sources, source(folder, "new", **declared)]), ["new"], 20)
        return {splits.pool.files[index] for index in splits.measured["new (kept aside)"]}

    before = kept()
    names = sorted(path.name for path in (folder / "a").iterdir())
    corrected = [f"a/{name}\t{'7.5' if number % 5 == 0 else name[:3]}\n" for number, name in enumerate(names)]
    (folder / "labels.txt").write_text("".join(corrected))
    assert len(before) == 12
    assert kept(type="label_file") == before


@pytest.mark.parametrize("split_by", ["cluster", "image"])
def test_twins_of_what_is_kept_aside_are_not_learnt(tiny, picture_folder, split_by):
    folder = picture_folder("new", {"a": 40})
    for path in sorted((folder / "a").iterdir()):
        for copy in range(3):
            # Hardly brighter: no copies, but near twins.
            brighter = cv2.add(cv2.imread(str(path)), np.full((32, 20, 3), copy + 1, np.uint8))
            cv2.imwrite(str(path.with_name(f"{path.stem}_{copy}.png")), brighter)
    # Nor where they lie among the old pictures, too.
    own = [*tiny().data_sources, source(folder, "old"), source(folder, "new")]
    splits = loader.load(tiny(data_sources=own, split_by=split_by), ["new"], 100)
    kept = splits.measured["new (kept aside)"]
    assert len(kept) == 48
    assert not clusters_of(splits, kept) & clusters_of(splits, splits.train)


@pytest.mark.parametrize(("groups", "aside"), [(9, 0), (10, 30)])
def test_a_handful_of_twins_is_not_kept_aside(tiny, picture_folder, groups, aside):
    folder = picture_folder("new", {"a": groups})
    for path in sorted((folder / "a").iterdir()):
        for copy in range(9):
            shutil.copy(path, path.with_name(f"{path.stem}_{copy}.png"))
    splits = loader.load(tiny(data_sources=[*tiny().data_sources, source(folder, "new")]), ["new"], 20)
    assert len(splits.measured.get("new (kept aside)", [])) == aside
    assert (np.unique(splits.train) >= 240).sum() == 10 * groups - aside


def added(folder, count):
    """Writes further digits into the folder of meter a."""
    digits = synthetic.draw(count, 77)
    return {write_digit(folder / "a", digits, number).name for number in range(count)}


def test_what_a_model_has_learnt_of_a_meter_is_not_kept_aside_when_more_pictures_come(tiny, picture_folder, tmp_path):
    own = [*tiny().data_sources, source(picture_folder("new", {"a": 50}), "new")]
    before = loader.load(tiny(data_sources=own), ["new"], 100)
    assert len(before.measured) == 1
    # Wherever they lie, and under whatever name.
    shutil.copytree(tmp_path / "new", tmp_path / "moved")
    further = added(tmp_path / "moved", 70)
    own[-1] = source(tmp_path / "moved", "new")
    kept = []
    for model_file in (None, taught(tmp_path, before.learnt)):
        splits = loader.load(tiny(data_sources=own), ["new"], 100, model_file)
        aside = splits.measured["new (kept aside)"]
        assert np.isin(np.setdiff1d(np.arange(240, 360), aside), splits.train).all()
        kept.append({splits.pool.files[index].split("/")[-1] for index in aside})
    assert len(kept[0]) == 36
    assert kept[1] == kept[0] & further < kept[0]


def test_what_a_model_has_learnt_is_not_tested_when_its_source_shrinks(tiny, picture_folder, tmp_path, caplog):
    caplog.set_level("INFO")
    own = [source(picture_folder("own", {"a": 120, "b": 120}))]
    before = loader.load(tiny(data_sources=own, test_share=0.4))
    shutil.rmtree(tmp_path / "own" / "b")
    after = loader.load(tiny(data_sources=own, test_share=0.4))
    flattering = np.isin(after.marks[after.measured["test"]], before.learnt)
    assert 0 < flattering.sum() < 0.2 * len(flattering)
    mended = loader.load(tiny(data_sources=own, test_share=0.4), model_file=taught(tmp_path, before.learnt))
    np.testing.assert_array_equal(mended.measured["test"], after.measured["test"][~flattering])
    assert np.isin(after.measured["test"][flattering], mended.train).all()
    assert f"{flattering.sum()} pictures are not measured on: the model has learnt them or their twins" in caplog.text


def test_split_by_image_what_was_measured_on_is_measured_on_again(tiny, picture_folder, tmp_path):
    folder = picture_folder("own", {"a": 60})
    for path in sorted((folder / "a").iterdir()):
        # Near, but no copy.
        cv2.imwrite(str(path.with_name(f"{path.stem}_twin.png")), cv2.imread(str(path)) // 2 * 2)
    own = [source(folder)]
    before = loader.load(tiny(data_sources=own, split_by="image"))
    new = source(picture_folder("new", {"b": 20}, seed=3), "new")
    for model_file in (None, taught(tmp_path, before.learnt)):
        after = loader.load(tiny(data_sources=[*own, new], split_by="image"), ["new"], 20, model_file)
        np.testing.assert_array_equal(after.measured["test"], before.measured["test"])
    assert clusters_of(after, after.train) & clusters_of(after, after.measured["test"])


def test_a_test_part_that_the_model_has_learnt_is_refused_with_what_to_do(tiny, picture_folder, tmp_path):
    own = source(picture_folder("own", {"a": 60}))
    before = loader.load(tiny(data_sources=[own]))
    model_file = taught(tmp_path, np.union1d(before.learnt, before.marks[before.measured["test"]]))
    with pytest.raises(DataError, match=r"has learnt all that TEST_SHARE holds out .* or set TEST_SHARE = 0 and list"):
        loader.load(tiny(data_sources=[own]), model_file=model_file)
    tested = [source(picture_folder("tested", {"b": 20}, seed=3), "tested")]
    splits = loader.load(tiny(data_sources=[own], test_share=0, test_sources=tested), model_file=model_file)
    assert list(splits.measured) == ["tested"]


def test_what_is_kept_aside_is_learnt_if_the_model_knows_nearly_all(tiny, picture_folder, tmp_path):
    own = [*tiny().data_sources, source(picture_folder("new", {"a": 60}), "new")]
    splits = loader.load(tiny(data_sources=own), ["new"], 60)
    aside = splits.measured["new (kept aside)"]
    for unknown, left in ((3, 3), (2, 0)):
        model_file = taught(tmp_path, splits.marks[aside[unknown:]])
        again = loader.load(tiny(data_sources=own), ["new"], 60, model_file)
        assert len(again.measured.get("new (kept aside)", [])) == left


def test_test_sources_that_a_model_has_learnt_are_told(tiny, picture_folder, tmp_path, caplog):
    folder = picture_folder("own", {"a": 60})
    before = loader.load(tiny(data_sources=[source(folder)]))
    again = tiny(test_sources=[source(folder)])
    loader.load(again)
    assert "flatter" not in caplog.text
    splits = loader.load(again, model_file=taught(tmp_path, before.learnt))
    assert len(splits.measured["own"]) == 60
    assert "54 pictures of TEST_SOURCES flatter the model: it has learnt them or their twins" in caplog.text
    assert splits.facts["learnt_before_of_test_sources"] == 54
