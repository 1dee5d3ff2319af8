import csv
import dataclasses
import errno
import math
import re

import keras
import numpy as np
import pytest

import models
from utils import labels, loader, model_archive, model_choice, model_files, runs, synthetic, training
from utils.augmentation import Augmentation

CNN32 = models.get("cnn32").build


def small(input_shape, nb_classes):
    """With all kinds of weights a network has; TensorFlow takes longer to build larger ones' steps than to train."""
    image = keras.Input(input_shape)
    x = keras.layers.Conv2D(8, 3, strides=2)(keras.layers.Rescaling(1 / 128, offset=-1)(image))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(image, keras.layers.Dense(nb_classes)(keras.layers.Flatten()(x)), name="small")


@pytest.fixture
def fit(tiny, tmp_path):
    """Trains a network on tiny data in ``<tmp_path>/<name>``; returns what ``training.fit`` does, and the folder."""

    def run(name="run", prepare=None, until=None, build=small, **overrides):
        settings = tiny(**overrides)
        splits = loader.load(settings)
        keras.utils.set_random_seed(settings.seed)
        model = build(settings.input_shape, settings.nb_classes)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if prepare:
            prepare(folder)
        return training.fit(model, splits, settings, folder, until), folder, splits

    return run


def rows_of(folder):
    with (folder / runs.TRAINING_LOG_FILE).open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_learns(fit):
    source = {"name": "s", "type": "synthetic", "count": 5000}
    fitted, _, _ = fit(build=CNN32, epochs=8, data_sources=[source], augment=False)
    assert fitted.rows[-1]["loss"] < 0.6 * fitted.rows[0]["loss"]
    # Guessing gives 0.1; synthetic digits are hard, and 4,000 of them are few.
    assert max(row["val_accuracy"] for row in fitted.rows) > 0.42


@pytest.mark.slow
def test_the_largest_network_outlives_the_first_steps_at_the_default_rate(fit):
    source = {"name": "s", "type": "synthetic", "count": 2500}
    largest = models.get("high_accuracy_validator").build
    _, folder, splits = fit(build=largest, data_sources=[source], batch_size=64)
    model = keras.models.load_model(folder / runs.BEST_MODEL_FILE, safe_mode=True)
    features = keras.Model(model.input, model.layers[-1].input)
    # As in training: the moving averages are far behind after so few steps.
    alive = (keras.ops.convert_to_numpy(features(splits.pool.images(splits.validation), training=True)) > 0).any(axis=0)
    # Without normalisation in front of them 3 % of these 256 ReLUs still answer, and the rest never learn again.
    assert alive.mean() > 0.9


def test_best_model_file_is_the_best_epoch(fit):
    fitted, folder, splits = fit(epochs=4, learning_rate=0.003, augment=False)
    losses = [row["val_loss"] for row in fitted.rows]
    assert fitted.best_epoch == int(np.argmin(losses)) + 1
    model = keras.models.load_model(folder / runs.BEST_MODEL_FILE, safe_mode=True)
    logits = model.predict(splits.pool.images(splits.validation), verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(splits.pool.classes(splits.validation), logits)
    assert float(loss) == pytest.approx(min(losses), abs=1e-4)


def test_log_has_a_row_an_epoch(fit, steps_traced):
    fitted, folder, _ = fit(epochs=2, augment=False)
    assert len(steps_traced) == 1, "the first step takes twice as long: something was made within it"
    assert rows_of(folder) == [pytest.approx(row) for row in fitted.rows]
    scores = ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert list(rows_of(folder)[0]) == ["epoch", *scores, "learning_rate", "seconds"]


def assert_same(rows, others):
    for row, other in zip(rows, others, strict=True):
        assert row | {"seconds": 0} == pytest.approx(other | {"seconds": 0}, rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_fit_in_two_parts_is_a_whole_one(fit, schedule):
    settings = {"epochs": 4, "learning_rate_schedule": schedule, "plateau_patience": 1, "learning_rate": 0.1}
    whole, _, _ = fit("whole", **settings)
    first, _, _ = fit("parts", **settings, until=2, checkpoint_epochs=2)
    second, _, _ = fit("parts", **settings)
    assert [len(fitted.rows) for fitted in (first, second)] == [2, 4]
    assert_same(second.rows, whole.rows)
    assert second.rows[:2] == first.rows
    assert second.seconds > first.seconds > 0


def test_plateau_is_that_of_keras(tiny):
    losses = [3, 2, 2.5, 2.2, 1.99995, 1.5, 1.6, 1.6, 1.6, 1.6, 1.4, *[1.4] * 30]
    settings = tiny(learning_rate_schedule="plateau", plateau_patience=2, plateau_factor=0.3, learning_rate=0.01)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01))
    keras_one = keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=2, min_lr=0.01 / 1000)
    keras_one.set_model(model)
    keras_one.on_train_begin()
    rows = []
    for epoch, loss in enumerate(losses):
        rows.append({"val_loss": loss})
        keras_one.on_epoch_end(epoch, {"val_loss": loss})
        assert training._plateau_rate(settings, rows) == pytest.approx(float(model.optimizer.learning_rate))
    assert training._plateau_rate(settings, rows) == pytest.approx(1e-5)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_unbroken_one_does(fit, monkeypatch):
    class KilledError(Exception):
        pass

    whole, _, _ = fit("whole", epochs=4)
    write = training._write_checkpoint

    def kill_after_two(trainer, run_dir, epoch):
        write(trainer, run_dir, epoch)
        if epoch == 2:
            raise KilledError

    monkeypatch.setattr(training, "_write_checkpoint", kill_after_two)
    with pytest.raises(KilledError):
        fit("broken", epochs=4)
    monkeypatch.undo()
    resumed, folder, _ = fit("broken", epochs=4)
    assert [row["epoch"] for row in resumed.rows] == [1, 2, 3, 4]
    assert_same(resumed.rows, whole.rows)
    assert len(list((folder / runs.CHECKPOINT_FOLDER).iterdir())) == 1


def test_early_stopping_ends_training(fit):
    fitted, _, _ = fit(build=CNN32, epochs=50, early_stopping_patience=2, learning_rate=1e-8,
                       learning_rate_schedule="constant", monitor="val_accuracy")  # fmt: skip
    assert len(fitted.rows) == 3
    assert fitted.best_epoch == 1


def test_a_loss_that_explodes_names_the_learning_rate(tiny, tmp_path):
    recorder = training.Recorder(None, tmp_path, tiny(), [])
    with pytest.raises(training.TrainingError, match="the loss is nan in epoch 3: set a lower LEARNING_RATE"):
        recorder.on_epoch_end(2, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_whose_val_loss_is_no_number_is_not_the_best(tiny, tmp_path):
    for losses, best in ([[math.nan, 2.0, 1.0, 1.0], 3], [[3.0, math.nan], 1], [[math.nan], 1]):
        rows = [{"val_loss": loss} for loss in losses]
        assert training.Recorder(None, tmp_path, tiny(), rows).best_epoch == best
    rows = [{"val_accuracy": accuracy} for accuracy in (0.5, 0.75, 0.75)]
    assert training.Recorder(None, tmp_path, tiny(monitor="val_accuracy"), rows).best_epoch == 2


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "rmsprop", "sgd"])
def test_every_optimizer_trains(fit, optimizer):
    options = {"optimizer": optimizer, "learning_rate": 1e-4, "augment": False}
    fitted, _, _ = fit(**options)
    without_decay, _, _ = fit("without", **options, weight_decay=0)
    assert without_decay.rows[0]["val_loss"] == pytest.approx(fitted.rows[0]["val_loss"], rel=0.01)
    assert np.isfinite(fitted.rows[0]["val_loss"])


def test_sgd_gathers_speed(tiny):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    settings = tiny(optimizer="sgd", learning_rate=0.1, learning_rate_schedule="constant", weight_decay=0)
    training._compile(model, settings, steps_per_epoch=1)
    for _ in range(2):
        model.optimizer.apply([np.ones((1, 1), np.float32)], model.trainable_variables)
    # 0.19 and 0.271, by Nesterov's momentum of 0.9; plain steps would be 0.1 each.
    assert float(model.get_weights()[0][0, 0]) == pytest.approx(-0.461)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "rmsprop", "sgd"])
def test_weights_decay_by_their_share_of_the_learning_rate(optimizer, tiny):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    settings = tiny(optimizer=optimizer, learning_rate=0.1, learning_rate_schedule="constant", weight_decay=0.05)
    training._compile(model, settings, steps_per_epoch=1)
    model.optimizer.apply([np.zeros((1, 1), np.float32)], model.trainable_variables)
    assert float(model.get_weights()[0][0, 0]) == pytest.approx(1 - 0.1 * 0.05)


def test_focal_loss_and_label_smoothing_are_applied(fit):
    plain, smooth, focal = (
        fit(name, augment=False, **overrides)[0].rows[0]["loss"]
        for name, overrides in (
            ("plain", {}),
            ("smooth", {"label_smoothing": 0.2}),
            ("focal", {"loss": "categorical_focal_crossentropy"}),
        )
    )
    assert len({plain, smooth, focal}) == 3
    assert focal < plain


def test_schedules(tiny):
    settings = tiny(epochs=10, warmup_epochs=2, learning_rate=0.1)
    cosine = training._learning_rate(settings, steps_per_epoch=5)
    assert float(cosine(0)) == pytest.approx(0.001)
    assert float(cosine(10)) == pytest.approx(0.1)
    assert float(cosine(30)) == pytest.approx(0.1 * (0.99 * 0.5 + 0.01))
    assert float(cosine(50)) == pytest.approx(0.001)
    # Half of the epochs is the longest warm-up.
    short = training._learning_rate(dataclasses.replace(settings, warmup_epochs=9), steps_per_epoch=5)
    assert [float(short(step)) for step in (25, 50)] == pytest.approx([0.1, 0.001])
    assert training._learning_rate(dataclasses.replace(settings, learning_rate_schedule="constant"), 5) == 0.1


def test_plateau_divides_the_learning_rate(fit, trained_run):
    # From fresh weights the batch statistics, which learn at a pace of their own, would lower the loss.
    start = str(trained_run[0].run_dir)
    fitted, _, _ = fit(build=CNN32, epochs=6, learning_rate_schedule="plateau", plateau_patience=1,
                       plateau_factor=0.1, learning_rate=1e-8, early_stopping_patience=0, start_from=start)  # fmt: skip
    rates = [row["learning_rate"] for row in fitted.rows]
    assert rates[0] == pytest.approx(1e-8)
    assert 0 < min(rates) < 1.1e-9


def test_a_rest_too_small_joins_the_batch_before_it(tiny):
    splits = loader.load(tiny())
    for smallest, sizes in ((1, [95, 95, 2]), (2, [95, 95, 2]), (3, [95, 97])):
        batches = training.Batches(splits.pool, splits.epoch, 95, seed=1, smallest=smallest)
        parts = [batches[number] for number in range(len(batches))]
        assert [len(images) for images, _ in parts] == sizes
        classes = np.concatenate([targets for _, targets in parts]).argmax(axis=1)
        np.testing.assert_array_equal(classes, splits.pool.classes(batches.order))


def test_dropout_thins_what_reaches_the_last_layer_in_training_alone(tiny):
    settings = tiny(dropout=0.75, augment=False)
    splits = loader.load(settings)
    model = models.get("cnn32").build(settings.input_shape, settings.nb_classes)
    layers, last = list(model.layers), model.layers[-1]
    trainer = training._trainer(model, splits, settings)
    images = splits.pool.images(splits.train[:1])
    np.testing.assert_allclose(trainer(images, training=False), model(images), rtol=1e-5)
    drawn = trainer(np.repeat(images, 400, axis=0), training=True).numpy()
    # A feature stays with probability 1/4, four times as large: same mean, and 3 times its square as variance.
    contributions = keras.Model(model.inputs, last.input)(images).numpy()[0, :, None] * last.kernel.numpy()
    np.testing.assert_allclose(drawn.var(axis=0), 3 * (contributions**2).sum(axis=0), rtol=0.35)
    error = np.sqrt(drawn.var(axis=0) / len(drawn))
    assert (abs(drawn.mean(axis=0) - model(images).numpy()[0]) < 5 * error).all()
    # The network that is saved shares the weights and has no such layer.
    assert model.layers == layers
    assert {id(weight) for weight in trainer.trainable_weights} == {id(weight) for weight in model.trainable_weights}


def test_a_checkpoint_without_room_is_an_error_of_the_system(tmp_path):
    resource = pytest.importorskip("resource")
    # A library with words of its own for it would end in a traceback, and ours in what to do.
    network = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
    network.compile("adam")
    network.optimizer.build(network.trainable_variables)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            training._write_checkpoint(network, tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_dropout_resumes_where_it_was(fit):
    whole, folder, _ = fit("whole", epochs=2, augment=False, dropout=0.5)
    fit("parts", epochs=2, augment=False, dropout=0.5, until=1)
    parts, _, _ = fit("parts", epochs=2, augment=False, dropout=0.5)
    assert_same(parts.rows, whole.rows)
    saved = keras.models.load_model(folder / runs.BEST_MODEL_FILE, safe_mode=True)
    assert not [layer for layer in saved.layers if isinstance(layer, keras.layers.Dropout)]


def test_an_architectures_own_dropout_resumes_where_it_was(fit):
    def with_dropout(input_shape, nb_classes):
        image = keras.Input(input_shape)
        x = keras.layers.Dropout(0.5, seed=3)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 128, -1)(image)))
        return keras.Model(image, keras.layers.Dense(nb_classes)(x), name="own")

    options = {"build": with_dropout, "epochs": 3, "augment": False}
    whole, _, _ = fit("whole", **options)
    fit("parts", **options, until=2)
    parts, _, _ = fit("parts", **options)
    assert_same(parts.rows, whole.rows)


def test_no_epoch_draws_what_another_one_drew(tiny):
    layer, images = Augmentation(tiny(), name="augmentation"), np.full((4, 32, 20, 1), 100, np.uint8)
    drawn = []
    for epoch in range(30):
        layer.start_epoch(epoch)
        drawn += [layer(images, training=True).numpy().tobytes() for _ in range(3)]
    assert len(set(drawn)) == 90


def test_dropout_wants_a_dense_layer_at_the_end(tiny):
    image = keras.Input((32, 20, 1))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(10, 3)(image)), name="odd")
    with pytest.raises(training.TrainingError, match=r"odd does not end in a dense layer.*set DROPOUT = 0"):
        training._trainer(model, loader.load(tiny()), tiny(dropout=0.1))
    flat = keras.layers.Flatten()(image)
    heads = keras.layers.Add()([keras.layers.Dense(10)(flat), keras.layers.Dense(10)(keras.layers.ReLU()(flat))])
    with pytest.raises(training.TrainingError, match=r"two has other ways to its outputs.*set DROPOUT = 0"):
        training._logits(keras.Model(image, heads, name="two"), image, tiny(dropout=0.1))


def test_batches_hold_every_picture_once_an_epoch_in_new_order(tiny):
    splits = loader.load(tiny())
    batches = training.Batches(splits.pool, splits.epoch, 32, seed=1)
    first = np.concatenate([batches.order])
    assert sorted(first) == sorted(splits.train)
    images, targets = batches[len(batches) - 1]
    assert len(images) == len(targets) == 192 % 32 or 32
    np.testing.assert_array_equal(targets.argmax(axis=1), splits.pool.classes(batches.order[-len(images) :]))
    batches.on_epoch_end()
    assert (batches.order != first).any()
    again = training.Batches(splits.pool, splits.epoch, 32, seed=1, epoch=1)
    np.testing.assert_array_equal(again.order, batches.order)


def test_batches_take_the_pictures_whose_turn_it_is(tiny):
    """What a weight leaves out of one epoch is learnt in the next ones; a resumed run goes on where it stood."""
    splits = loader.load(tiny(data_sources=[{"name": "s", "type": "synthetic", "count": 400, "weight": 0.25}]))
    batches = training.Batches(splits.pool, splits.epoch, 32, seed=1)
    epochs = []
    for _ in range(5):
        epochs.append(batches.order)
        batches.on_epoch_end()
    assert {len(epoch) for epoch in epochs} == {80}
    assert len(np.unique(np.concatenate(epochs[:4]))) > 300
    again = training.Batches(splits.pool, splits.epoch, 32, seed=1, epoch=4)
    np.testing.assert_array_equal(again.order, epochs[4])


@pytest.mark.parametrize("nb_classes", [10, 100])
def test_start_from_takes_all_weights_that_fit(trained_run, nb_classes):
    """A last layer for other classes is fresh, all before it is the trained model's."""
    outcome, _, _ = trained_run
    source = model_files.load(model_choice.find(outcome.run_dir, outcome.run_dir))
    model = models.get(source.name).build(source.input_shape[1:], nb_classes)
    fresh = [weight.numpy() for weight in model.layers[-1].weights]
    model_files.copy_weights(source, model)
    for trained, layer in zip(source.layers[:-1], model.layers[:-1], strict=True):
        for expected, weight in zip(trained.weights, layer.weights, strict=True):
            np.testing.assert_array_equal(weight, expected)
    expected = source.layers[-1].weights if nb_classes == 10 else fresh
    np.testing.assert_array_equal(model.layers[-1].weights[0], expected[0])


def test_start_from_shortens_training(fit, trained_run):
    outcome, _, _ = trained_run
    starts = {"fresh": "", "trained": str(outcome.run_dir)}
    options = {"build": CNN32, "epochs": 1, "augment": False}
    first = [fit(name, **options, start_from=start)[0].rows[0]["loss"] for name, start in starts.items()]
    assert first[1] < 0.9 * first[0]


def test_start_from_begins_with_logits_of_the_size_that_training_asks_for(fit, trained_run, tmp_path):
    start = trained_run[0].run_dir / runs.BEST_MODEL_FILE
    sure = model_files.load(start)
    sure.layers[-1].set_weights([4 * weight for weight in sure.layers[-1].get_weights()])
    sure.save(tmp_path / "sure.keras")
    options = {"build": CNN32, "epochs": 1, "learning_rate": 1e-8, "augment": False}
    rows = [fit(file.stem, **options, start_from=str(file))[0].rows[0] for file in (start, tmp_path / "sure.keras")]
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-3)
    assert rows[1]["val_loss"] == pytest.approx(rows[0]["val_loss"], rel=1e-3)
    assert rows[1]["val_accuracy"] == rows[0]["val_accuracy"]


def test_what_a_run_began_with_may_go_once_there_is_a_checkpoint(fit, trained_run, tmp_path):
    start = tmp_path / "start.keras"
    start.write_bytes((trained_run[0].run_dir / runs.BEST_MODEL_FILE).read_bytes())
    options = {"build": CNN32, "epochs": 2, "augment": False, "start_from": str(start)}
    fit("whole", **options, until=1)
    start.unlink()
    assert len(fit("whole", **options)[0].rows) == 2


def test_a_damaged_checkpoint_log_or_model_is_named_with_the_way_out(fit):
    options = {"epochs": 2, "augment": False}
    _, folder, _ = fit(**options, until=1)
    (checkpoint,) = (folder / runs.CHECKPOINT_FOLDER).iterdir()
    history = folder / runs.TRAINING_LOG_FILE
    weights, rows = checkpoint.read_bytes(), history.read_bytes()
    for kept in (weights[:0], weights[:3000], weights[:-200]):
        checkpoint.write_bytes(kept)
        said = rf"{re.escape(str(checkpoint))}: damaged \(.+\); remove it, and --resume trains from the start"
        with pytest.raises(training.TrainingError, match=said):
            fit(**options)
    checkpoint.write_bytes(weights)
    for kept in (rows[:0], rows[:-30], rows.splitlines(keepends=True)[0]):
        history.write_bytes(kept)
        with pytest.raises(training.TrainingError) as raised:
            fit(**options)
        way_out = f"remove {checkpoint}, and --resume trains from the start"
        assert str(raised.value) == f"{history}: damaged or cut off; {way_out}"
    history.write_bytes(rows)
    best = folder / runs.BEST_MODEL_FILE
    best.write_bytes(best.read_bytes()[:-200])
    for until in (1, None):
        with pytest.raises(training.TrainingError) as raised:
            fit(**options, until=until)
        assert str(raised.value) == f"{best}: missing or cut off; {way_out}"
        best.unlink(missing_ok=True)
    checkpoint.unlink()
    fit(**options)
    assert [row["epoch"] for row in rows_of(folder)] == [1, 2]


def test_start_from_another_architecture_is_refused_before_it_is_loaded(trained_run, tiny):
    outcome, _, _ = trained_run
    settings = tiny(start_from=str(outcome.run_dir))
    assert model_choice.start(settings, "cnn32") == outcome.run_dir / "best_model.keras"
    with pytest.raises(model_archive.ModelFileError, match=r"START_FROM = .* is a cnn32, to be trained is digit_reco"):
        model_choice.start(settings, "cnn32", "digit_recognizer_v6")
    with pytest.raises(
        model_archive.ModelFileError, match="of 1 channels but INPUT_CHANNELS = 3: use --set INPUT_CHANN"
    ):
        model_choice.start(dataclasses.replace(settings, input_channels=3), "cnn32")


def test_start_from_a_run_of_another_split_says_that_its_pictures_may_be_measured_on(trained_run, tiny, caplog):
    outcome, settings, _ = trained_run
    start = {"start_from": str(outcome.run_dir), "seed": settings.seed}
    model_choice.check_named(tiny(**start), "cnn32")
    model_choice.check_named(tiny(**start, nb_classes=100), "cnn32")
    assert not caplog.records
    model_choice.check_named(tiny(**{**start, "seed": settings.seed + 1}), "cnn32")
    model_choice.check_named(tiny(**{**start, "seed": settings.seed + 1, "split_by": "image"}), "cnn32")
    told = f"START_FROM was trained with SEED = {settings.seed}, not {settings.seed + 1}: "
    may = "it may have learnt pictures that are measured on here"
    first, second, _ = [record.getMessage() for record in caplog.records]
    assert (first, second) == (told + "what it has learnt is not measured on", told + may)


def test_start_from_a_file_that_was_copied_out_of_its_run_says_that_nothing_tells_what_it_has_learnt(
    tiny, tmp_path, caplog
):
    copied = tmp_path / "mine.keras"
    models.get("digit_recognizer_v4").build((32, 20, 1), 10).save(copied)
    model_choice.check_named(tiny(start_from=str(copied)), "digit_recognizer_v4")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{copied} is in no run's folder: what it has learnt is not on record")


def test_start_from_pictures_of_another_size_says_that_they_may_be_measured_on(tiny, tmp_path, caplog):
    models.get("digit_recognizer_v4").build((48, 20, 1), 10).save(tmp_path / runs.BEST_MODEL_FILE)
    runs.save_settings(tmp_path, tiny(input_height=48), "")
    model_choice.check_named(tiny(start_from=str(tmp_path)), "digit_recognizer_v4")
    (record,) = caplog.records
    assert record.getMessage().startswith("START_FROM was trained with INPUT_HEIGHT = 48, not 32: it may have learnt")


def test_start_from_pictures_of_another_size_is_refused(trained_run, tiny):
    outcome, _, _ = trained_run
    source = model_files.load(model_choice.find(outcome.run_dir, outcome.run_dir))
    other = models.get(source.name).build((*source.input_shape[1:3], 3), 10)
    with pytest.raises(model_archive.ModelFileError, match=r"START_FROM names a cnn32 .*INPUT_CHANNELS"):
        model_files.copy_weights(source, other)
    with pytest.raises(model_archive.ModelFileError, match=r"START_FROM names a cnn32 .*INPUT_HEIGHT"):
        model_choice.check_named(tiny(start_from=str(outcome.run_dir), input_height=48), "cnn32")


def test_digits_that_start_from_tenths_read_the_tenths_nearest_digit(rng):
    # Some fresh networks read the same two digits everywhere.
    keras.utils.set_random_seed(1)
    build = models.get("digit_recognizer_v7").build
    tenths, digits, back = (build((32, 20, 1), classes) for classes in (100, 10, 100))
    tenths.layers[-1].set_weights([tenths.layers[-1].get_weights()[0], rng.normal(0, 0.02, 100)])
    model_files.copy_weights(tenths, digits)
    model_files.copy_weights(digits, back)
    images = synthetic.draw(200, seed=1).images[..., :1]
    read, nearest, again = (one.predict(images, verbose=0) for one in (tenths, digits, back))
    np.testing.assert_array_equal(nearest.argmax(axis=1), labels.to_classes(read.argmax(axis=1), 10))
    assert len(np.unique(nearest.argmax(axis=1))) > 2
    np.testing.assert_allclose(again, read, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes"), [("cnn32", 10), ("digit_recognizer_v7", 10), ("digit_recognizer_v7", 100)]
)
def test_dropout_sits_before_the_last_weights(name, classes, tiny, rng):
    model, image = models.get(name).build((32, 20, 1), classes), keras.Input((32, 20, 1))
    wrapped = keras.Model(image, training._logits(model, image, tiny(dropout=0.5, nb_classes=classes)))
    images = rng.integers(0, 256, (8, 32, 20, 1)).astype("float32")
    plain = model.predict(images, verbose=0)
    np.testing.assert_allclose(wrapped.predict(images, verbose=0), plain, rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(wrapped(images, training=True)) - np.asarray(model(images, training=True))).max() > 0.01


def test_a_missing_start_is_named(tiny, tmp_path):
    with pytest.raises(model_archive.ModelFileError, match="nowhere: no such file"):
        model_choice.start(tiny(start_from=str(tmp_path / "nowhere")))
