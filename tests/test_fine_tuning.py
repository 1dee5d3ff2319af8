import dataclasses
import json
import shutil
import types

import keras
import numpy as np
import pytest

import models
from utils import confidence, evaluation, fine_tuning, loader, runs, session
from utils.fake_quant import QuantizationError
from utils.fine_tuning import FineTuningError
from utils.plans import Plan


@pytest.fixture(scope="module")
def meter(tmp_path_factory, picture_folders):
    """A folder of 48 pictures of a meter that shows only 2 and 7, on its head."""
    return picture_folders(tmp_path_factory.mktemp("meter"))


@pytest.fixture(scope="module")
def picture_folders():
    import cv2

    from utils import synthetic

    def make(folder):
        digits = synthetic.draw(2000, 11)
        chosen = np.flatnonzero(np.isin(digits.tenths, (20, 70)))[:48]
        for number in chosen:
            name = f"{digits.tenths[number] / 10:.1f}_{number}.png"
            cv2.imwrite(str(folder / name), digits.images[number][::-1, :, ::-1])
        return folder

    return make


@pytest.fixture(scope="module")
def known(trained_run, meter):
    """The trained model's file, settings with the meter as a source, and what is loaded then."""
    outcome, settings, _ = trained_run
    source = {"name": "meter", "type": "filename", "path": str(meter)}
    settings = dataclasses.replace(settings, data_sources=[*settings.data_sources, source])
    return outcome.run_dir / "best_model.keras", settings, loader.load(settings, ["meter"], aside_from=1000)


@pytest.fixture
def few_replayed(monkeypatch):
    monkeypatch.setattr(fine_tuning, "BANK", 300)


def load(path):
    return keras.models.load_model(path, compile=False, safe_mode=True)


def weights_of(model, trainable):
    frozen = {id(weight) for weight in model.trainable_weights}
    return [weight.numpy() for weight in model.weights if (id(weight) in frozen) == trainable]


def test_the_mix_is_shares_of_each_set(known, caplog):
    _, _, splits = known
    caplog.set_level("INFO")
    chosen = fine_tuning.mix(splits, Plan(new=("meter",), data_ratio=0.25, augmented_ratio=0.5, weight=5.0), (), 1)
    old = len(np.unique(splits.train)) - 48
    assert (len(chosen.new), len(chosen.plain), len(chosen.changed)) == (48, round(old / 4), round(old / 2))
    assert splits.pool.source_names[splits.pool.source_ids[chosen.new[0]]] == "meter"
    # Drawn from all of them, not from what comes first.
    for part in (chosen.plain, chosen.changed):
        assert np.median(np.searchsorted(np.unique(splits.train), part)) == pytest.approx(old / 2, rel=0.2)
    groups = len(np.unique(splits.clusters[chosen.new]))
    assert chosen.new_share == pytest.approx(5 * groups / (5 * groups + fine_tuning.BANK))
    assert "learning from 48 new pictures" in caplog.text


def test_new_pictures_take_a_tenth_of_a_batch_at_most(known):
    _, _, splits = known
    new = fine_tuning.mix(splits, Plan(new=("meter",)), (), 1).new
    # Near twins count as one, and one is too little for a tenth of a batch.
    for groups, share in ((1, 300 / (300 + 4096)), (2, 0.1), (48, 0.1)):
        clusters = splits.clusters.copy()
        clusters[new] = clusters.max() + 1 + np.arange(48) % groups
        one = dataclasses.replace(splits, clusters=clusters)
        assert fine_tuning.mix(one, Plan(new=("meter",)), (), 1).new_share == pytest.approx(share)
    assert fine_tuning.mix(splits, Plan(), (), 1).new_share == 0
    alone = Plan(new=("meter",), data_ratio=0, augmented_ratio=0)
    assert fine_tuning.mix(splits, alone, (), 1).new_share == 1


def test_sources_marked_augmented_take_the_place_of_changed_pictures(known, monkeypatch):
    _, settings, splits = known
    monkeypatch.setattr(fine_tuning, "BANK", 100)
    chosen = fine_tuning.mix(splits, Plan(data_ratio=0, augmented_ratio=0.5), ("meter",), 1)
    assert set(splits.pool.source_ids[chosen.changed]) == {splits.source("meter")}
    assert (len(chosen.plain), len(chosen.changed)) == (0, 24)
    # Not changed a second time.
    as_they_are = {image.tobytes() for image in splits.pool.images(chosen.changed).astype(np.float32)}
    replayed, _ = fine_tuning._bank(splits, chosen, None, settings, np.random.default_rng(0))
    assert {image.tobytes() for image in replayed} <= as_they_are


def test_a_source_marked_augmented_that_is_left_out_takes_nobodys_place(known):
    _, _, splits = known
    plan = Plan(new=("meter",), data_ratio=0, augmented_ratio=0.5)
    chosen, usual = (fine_tuning.mix(splits, plan, augmented, 1) for augmented in (("of weight 0",), ()))
    assert len(usual.changed) > 100
    np.testing.assert_array_equal(chosen.changed, usual.changed)


def test_new_pictures_of_a_source_marked_augmented_are_not_replayed(known):
    _, _, splits = known
    chosen = fine_tuning.mix(splits, Plan(new=("meter",)), ("meter",), 1)
    assert len(chosen.new) == 48
    assert splits.source("meter") not in splits.pool.source_ids[chosen.changed]


def test_nothing_to_learn_from_is_an_error(known):
    _, _, splits = known
    with pytest.raises(FineTuningError, match="raise --data_ratio or --augmented_ratio, or give --data"):
        fine_tuning.mix(splits, Plan(data_ratio=0, augmented_ratio=0), (), 1)


def test_nothing_new_to_learn_from_is_an_error(known):
    _, _, splits = known
    own = splits.pool.source_ids != splits.source("meter")
    without = dataclasses.replace(splits, turns=tuple(turn for turn in splits.turns if own[turn[0]].all()))
    with pytest.raises(FineTuningError, match="none of the pictures of meter is left to learn from: they are twins"):
        fine_tuning.mix(without, Plan(new=("meter",)), (), 1)


@pytest.mark.parametrize(
    ("architecture", "strategy", "free"),
    [
        ("cnn32", "full", 189_642),
        ("cnn32", "last_layer", 257 * 10),
        ("cnn32", "feature_extractor", 513 * 256 + 257 * 10),
        # Its dense layer is written as a 1x1 convolution.
        ("digit_recognizer_v4", "feature_extractor", 57 * 64 + 65 * 10),
        ("digit_recognizer_v12", "last_layer", 97 * 10),
    ],
)
def test_strategies_free_what_they_say(architecture, strategy, free):
    model = models.get(architecture).build((32, 20, 1), 10)
    assert fine_tuning.freeze(model, strategy) == free


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["last_layer", "feature_extractor"])
def test_frozen_weights_stay_bit_for_bit(known, few_replayed, strategy):
    path, settings, splits = known
    model, teacher = load(path), load(path)
    fine_tuning.freeze(model, strategy)
    before = [weights_of(model, trainable) for trainable in (False, True)]
    plan = Plan(strategy, new=("meter",), epochs=1)
    fine_tuning.fit(model, teacher, splits, fine_tuning.mix(splits, plan, (), 1), plan, settings)
    after = [weights_of(model, trainable) for trainable in (False, True)]
    assert all(np.array_equal(old, new) for old, new in zip(before[0], after[0], strict=True))
    assert all(not np.array_equal(old, new) for old, new in zip(before[1], after[1], strict=True))


@pytest.mark.slow
def test_a_learning_rate_that_explodes_is_an_error(known, few_replayed):
    path, settings, splits = known
    plan = Plan(new=("meter",), epochs=1, learning_rate=1e30)
    with pytest.raises(FineTuningError, match="set a lower learning rate"):
        fine_tuning.fit(load(path), None, splits, fine_tuning.mix(splits, plan, (), 1), plan, settings)


@pytest.mark.slow
def test_labels_are_learnt_with_logits_of_the_size_that_they_ask_for(known, few_replayed):
    path, settings, splits = known
    model, sure = load(path), load(path)
    sure.layers[-1].set_weights([4 * weight for weight in sure.layers[-1].get_weights()])
    plan = Plan(epochs=1, learning_rate=1e-9)
    for one in (model, sure):
        fine_tuning.fit(one, None, splits, fine_tuning.mix(splits, plan, (), 1), plan, settings)
    images = splits.pool.images(splits.validation)
    after = [evaluation.keras_logits(one, images) for one in (model, sure)]
    np.testing.assert_allclose(after[1], after[0], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_learns_the_meter_and_keeps_the_rest(known, steps_traced):
    path, settings, splits = known
    model, teacher = load(path), load(path)
    plan = Plan(new=("meter",), epochs=4)
    fine_tuning.freeze(model, plan.strategy)
    chosen = fine_tuning.mix(splits, plan, (), 1)
    fine_tuning.fit(model, teacher, splits, chosen, plan, settings)
    assert len(steps_traced) == 1

    def right(network, indices):
        read = evaluation.keras_logits(network, splits.pool.images(indices)).argmax(axis=1)
        return (read == splits.pool.classes(indices)).mean()

    new, old = chosen.new, np.concatenate([splits.validation, splits.measured["test"]])
    assert right(teacher, new) < 0.6
    assert right(model, new) > 0.95
    assert right(model, old) > right(teacher, old) - 0.1


def test_what_cannot_be_quantised_is_refused_before_it_is_taught(known, tmp_path):
    path, settings, _ = known
    model = load(path)
    next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)).activation = keras.activations.tanh
    foreign = tmp_path / "foreign.keras"
    model.save(foreign)
    with pytest.raises(QuantizationError, match=f"^{foreign}: layer .*activation.*--set QUANTIZE_MODEL=False"):
        session.prepare(foreign, Plan(new=("meter",)), settings)


@pytest.mark.slow
def test_a_run_is_judged_before_it_counts_as_finished(undrawn, known, tmp_path, monkeypatch):
    judgement = {"accepted": False, "reasons": ["no better"]}

    def judged(run_dir, results):
        assert results["files"].keys() >= {"best_model.keras"}
        assert not (run_dir / runs.RESULTS_FILE).exists()
        return judgement

    path, settings, splits = known
    monkeypatch.setattr(fine_tuning, "fit", lambda *_: 0.0)
    settings = dataclasses.replace(settings, output_dir=str(tmp_path), model_architecture="digit_recognizer_v6")
    outcome = session.fine_tune(session.prepare(path, Plan(new=("meter",)), settings), settings, splits, judged)
    assert json.loads((outcome.run_dir / runs.RESULTS_FILE).read_text())["judgement"] == judgement
    saved = json.loads((outcome.run_dir / runs.SETTINGS_FILE).read_text())
    assert saved["architecture"] == saved["settings"]["model_architecture"] == "cnn32"


@pytest.mark.slow
def test_drawn_digits_settle_no_other_confidence(undrawn, known, tmp_path, monkeypatch):
    taught_by = []

    def make_surer(model, teacher, *_):
        taught_by.append(teacher)
        model.layers[-1].set_weights([2 * weight for weight in model.layers[-1].get_weights()])
        return 0.0

    path, settings, splits = known
    monkeypatch.setattr(fine_tuning, "fit", make_surer)
    settings = dataclasses.replace(settings, output_dir=str(tmp_path / "runs"))
    old = tmp_path / "best_model.keras"
    shutil.copy(path, old)
    (tmp_path / "results.json").write_text(json.dumps({"recommended_confidence": 0.4321}))
    lesson = session.prepare(old, Plan(new=("meter",)), settings)
    results = session.fine_tune(lesson, settings, splits).results
    assert results["recommended_confidence"] == 0.4321
    # What the old model is sure of, the new one is.
    assert results["temperature"] == pytest.approx(2, abs=0.01)
    assert taught_by[0] is lesson.old
    # With enough photographs among the validation pictures they are asked, a few don't outweigh the drawn ones.
    monkeypatch.setattr(confidence, "ENOUGH", 20)
    photographs = np.flatnonzero(~np.isin(splits.pool.source_ids, splits.drawn))
    for count, stays in ((19, True), (20, False)):
        mixed = dataclasses.replace(splits, validation=np.append(splits.validation, photographs[:count].repeat(3)))
        results = session.fine_tune(lesson, settings, mixed).results
        assert (results["recommended_confidence"] == 0.4321) is stays


@pytest.mark.slow
def test_near_twins_and_what_is_read_worse_are_told(undrawn, known, tmp_path, monkeypatch, caplog):
    def forget(model, *_):
        model.layers[-1].set_weights([0 * weight for weight in model.layers[-1].get_weights()])
        return 0.0

    path, settings, splits = known
    monkeypatch.setattr(fine_tuning, "fit", forget)
    settings = dataclasses.replace(settings, output_dir=str(tmp_path), quantize_model=False)
    alike = dataclasses.replace(splits, clusters=np.zeros_like(splits.clusters))
    session.fine_tune(session.prepare(path, Plan(new=("meter",)), settings), settings, alike)
    assert "pictures of meter are only 1 different ones" in caplog.text
    assert "cnn32_float.tflite reads test worse: accuracy 0." in caplog.text


def test_a_full_disk_is_told_with_the_run_folder(known, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path, settings, splits = known
    monkeypatch.setattr(fine_tuning, "fit", full)
    settings = dataclasses.replace(settings, output_dir=str(tmp_path))
    with pytest.raises(runs.RunError, match=r"_finetuned: cannot be written \(No space left on device\)$"):
        session.fine_tune(session.prepare(path, Plan(new=("meter",)), settings), settings, splits)


def test_the_last_layer_is_the_dense_one_before_a_batch_normalisation():
    image = keras.Input((32, 20, 1))
    x = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(image))
    model = keras.Model(image, keras.layers.BatchNormalization()(keras.layers.Dense(10)(x)))
    assert fine_tuning.freeze(model, "last_layer") == 9 * 10


def test_a_strategy_that_would_train_nothing_is_refused():
    image = keras.Input((32, 20, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(10, 3)(image))
    model = keras.Model(image, x, name="ends")
    match = r"^ends has no dense layer, so --strategy feature_extractor would train nothing: use last_layer, "
    with pytest.raises(FineTuningError, match=match):
        fine_tuning.freeze(model, "feature_extractor")
    assert fine_tuning.freeze(model, "last_layer") == 100


def test_a_new_head_keeps_the_features():
    model = models.get("cnn32").build((32, 20, 1), 10)
    grown = fine_tuning.with_new_head(model, 100, 1)
    assert (grown.name, grown.output_shape) == ("cnn32", (None, 100))
    assert np.array_equal(grown.layers[-2].kernel, model.layers[-2].kernel)


@pytest.mark.parametrize("architecture", ["cnn32", "digit_recognizer_v6"])
def test_a_new_head_of_tenths_reads_digits_by_them_and_back(rng, architecture):
    tenths = models.get(architecture).build((32, 20, 1), 100)
    digits = fine_tuning.with_new_head(tenths, 10, 1)
    pictures = rng.integers(0, 256, (50, 32, 20, 1)).astype(np.float32)
    expected = np.roll(tenths(pictures), 5, axis=1).reshape(50, 10, 10).max(axis=2)
    np.testing.assert_allclose(digits(pictures), expected, rtol=1e-4, atol=1e-5)
    again = fine_tuning.with_new_head(digits, 100, 1)
    np.testing.assert_allclose(again(pictures), tenths(pictures), rtol=1e-4, atol=1e-5)


def test_a_new_head_gives_a_row_where_the_old_one_kept_the_places():
    image = keras.Input((32, 20, 1))
    features = keras.layers.GlobalAveragePooling2D(keepdims=True)(image)
    model = keras.Model(image, keras.layers.Flatten()(keras.layers.Dense(10)(features)))
    assert fine_tuning.with_new_head(model, 100, 1).output_shape == (None, 100)


def test_rolled_labels_are_split_between_neighbours_on_the_ring(known):
    _, settings, splits = known
    settings = dataclasses.replace(settings, nb_classes=100)
    tenths = np.full(len(splits.pool.tenths), 99, np.int16)
    splits = dataclasses.replace(splits, pool=dataclasses.replace(splits.pool, tenths=tenths, nb_classes=100))
    # It reads one of the five as 5.0: that class must be unlearnt there.
    answers = np.eye(100, dtype=np.float32)[[99, 99, 50, 0, 98]]
    teacher = types.SimpleNamespace(predict=lambda images, **options: answers)
    new = fine_tuning._New(splits, np.arange(5), teacher, settings, np.random.default_rng(0))
    (target,) = new._targets(np.array([99.75]))
    assert {number: target[number] for number in np.flatnonzero(target)} == {99: 0.25, 0: 0.75}
    assert np.flatnonzero(new.closed[0] == 0).tolist() == [0, 1, 2, 3, *range(47, 54), 95, 96, 97, 98, 99]


def test_digits_that_share_their_targets_keep_doing_so(known):
    _, settings, splits = known
    settings = dataclasses.replace(settings, nb_classes=10, label_spread=5.0)
    tenths = np.full(len(splits.pool.tenths), 34, np.int16)
    splits = dataclasses.replace(splits, pool=dataclasses.replace(splits.pool, tenths=tenths, nb_classes=10))
    teacher = types.SimpleNamespace(predict=lambda images, **options: np.eye(10, dtype=np.float32)[[3, 3, 7]])
    new = fine_tuning._New(splits, np.arange(3), teacher, settings, np.random.default_rng(0))
    _, closed, targets = new.draw(2)
    assert targets == pytest.approx(np.array([[0, 0, 0, 0.6, 0.4, 0, 0, 0, 0, 0]] * 2))
    assert np.flatnonzero(closed[0] == 0).tolist() == [3, 4, 7]
    chosen = fine_tuning.Mix(np.arange(0), np.arange(3), np.arange(0), 0.0)
    _, replayed = fine_tuning._bank(splits, chosen, None, settings, np.random.default_rng(0))
    assert replayed[7] == pytest.approx(targets[0])


def test_new_pictures_stay_as_they_are_without_augmentation(known):
    _, settings, splits = known
    indices = splits.train[:20]
    settings = dataclasses.replace(settings, augment=False)
    plain = fine_tuning._New(splits, indices, None, settings, np.random.default_rng(0))
    plain.rolls = False
    originals = {image.tobytes() for image in splits.pool.images(indices).astype(np.float32)}
    assert all(image.tobytes() in originals for image in plain.draw(30)[0])


def test_new_pictures_are_changed_mildly_and_replayed_ones_as_in_training_whatever_augment_is(known, few_replayed):
    _, settings, splits = known
    # All that could strike does: a picture with dark and light exchanged is another picture.
    strong = {"augment_invert": 1.0, "augment_cover": 1.0, "augment_sharpen": 1.0}
    settings = dataclasses.replace(settings, augment=True, **strong)
    pool = splits.pool.images(np.arange(splits.pool.tenths.size))
    dark = np.flatnonzero(pool.mean(axis=(1, 2, 3)) < 90)[:20]
    new = fine_tuning._New(splits, dark, None, settings, np.random.default_rng(0))
    assert (new.draw(100)[0].mean(axis=(1, 2, 3)) < 127).all()
    nothing = np.arange(0)
    for augment in (True, False):
        settings = dataclasses.replace(settings, augment=augment)
        chosen = fine_tuning.Mix(nothing, nothing, dark, 0.0)
        replayed, _ = fine_tuning._bank(splits, chosen, None, settings, np.random.default_rng(0))
        assert (replayed.mean(axis=(1, 2, 3)) > 127).mean() > 0.8


def test_a_display_of_whole_digits_does_not_roll(known):
    _, settings, splits = known
    new = fine_tuning._New(
        splits, np.flatnonzero(splits.pool.tenths % 10 == 0)[:9], None, settings, np.random.default_rng(0)
    )
    assert not new.rolls
    images, closed, targets = new.draw(20)
    assert images.shape == (20, 32, 20, 1)
    assert set(targets.argmax(axis=1)) <= set(np.flatnonzero(closed[0] == 0))


def test_near_twins_share_one_weight(known):
    _, settings, splits = known
    chosen = np.arange(100)
    clusters = splits.clusters.copy()
    clusters[chosen] = [0] * 90 + list(range(1, 11))
    twins = dataclasses.replace(splits, clusters=clusters)
    new = fine_tuning._New(twins, chosen, None, settings, np.random.default_rng(0))
    assert new.probabilities[:90].sum() == pytest.approx(1 / 11)
    assert new.probabilities[95] == pytest.approx(1 / 11)


def test_a_picture_rolls_with_its_label(known):
    _, settings, splits = known
    settings = dataclasses.replace(settings, nb_classes=100, augment=False)
    new = fine_tuning._New(splits, np.arange(9), None, settings, np.random.default_rng(0))
    # Each row is 4 brighter than the one above it.
    new.images = np.repeat(np.arange(0, 128, 4, dtype=np.uint8), 20).reshape(1, 32, 20, 1).repeat(9, axis=0)
    new.tenths[:], new.rolls = 34, True
    images, _, targets = new.draw(400)
    rolled = targets @ np.arange(100) - 34
    rows = (images[:, 16].mean(axis=(1, 2)) - 64) / 4
    # A digit is 0.86 of a picture from the next one on an average wheel.
    np.testing.assert_allclose(rows, rolled * 0.086 * 32, atol=0.01)
    assert 0.4 < (rolled == 0).mean() < 0.6
    assert (rolled.min(), rolled.max()) == pytest.approx((-2, 2), abs=0.1)


def test_a_batch_is_new_pictures_then_replayed_ones_with_what_the_old_model_says(known, few_replayed):
    path, settings, splits = known
    chosen = fine_tuning.mix(splits, Plan(new=("meter",)), (), 1)
    chosen = dataclasses.replace(chosen, plain=chosen.plain[:30], changed=chosen.changed[30:60], new_share=0.3)
    rows = fine_tuning._Rows(splits, chosen, load(path), settings)
    rows.new.closed[0, 5] = fine_tuning.CLOSED
    (pictures, closed), targets = rows[0]
    assert (len(rows), len(pictures), len(closed)) == (50, 64, 64)
    # 0.3 of 64, rounded up.
    assert (closed[:, 5] < 0).tolist() == [True] * 20 + [False] * 44
    assert set(targets[:20].argmax(axis=1)) == {2, 7}
    answers = evaluation.keras_logits(load(path), pictures[20:].astype(np.uint8))
    as_they_are = [(image == splits.pool.images(chosen.plain)).all(axis=(1, 2, 3)).any() for image in pictures[20:]]
    assert 0.3 < np.mean(as_they_are) < 0.7
    shares = np.exp(answers) / np.exp(answers).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(targets[20:][as_they_are], shares[as_they_are], atol=1e-4)
