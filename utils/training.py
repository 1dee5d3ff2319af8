"""Optimizer, loss, callbacks, fit."""

import csv
import dataclasses
import itertools
import logging
import math
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from tqdm.keras import TqdmCallback

from utils import devices, labels, model_choice, model_files, runs, temperature
from utils.augmentation import Augmentation, random_state
from utils.console import interactive
from utils.errors import UserError, stop_if_interrupted
from utils.loader import Pool, Splits
from utils.settings import Settings
from utils.teaching import Teaching

log = logging.getLogger(__name__)

LOSSES = {
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "categorical_focal_crossentropy": keras.losses.CategoricalFocalCrossentropy,
}
# XLA slows TensorFlow's small convolutions on a CPU down two to six times; JAX is slow without it.
XLA = keras.backend.backend() == "jax"
# With one, Keras leaves the queue to tf.data, whose tuning thread sleeps for longer and longer (10 ms, 20 ms .. 60 s);
# the end of an epoch waits for it to wake up, so that short epochs took up to twice their time.
WORKERS = 2
FROM_THE_START = "remove {}, and --resume trains from the start"


class TrainingError(UserError):
    """Training can't go on. The message says which parameter to change."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What a fit leaves: one row an epoch, with those before an interruption.

    A row has ``epoch``, ``loss``, ``accuracy``, ``val_*``, ``learning_rate`` and ``seconds``.
    """

    rows: list[dict[str, float]]
    best_epoch: int

    @property
    def seconds(self) -> float:
        """What all epochs took together."""
        return sum(row["seconds"] for row in self.rows)


class Batches(keras.utils.PyDataset):
    """Batches of raw pictures ``(N, H, W, C)`` uint8 and targets ``(N, nb_classes)`` float32, see ``labels.targets``.

    ``pictures`` gives the indices of those that an epoch, counted from 0, has, as many in each. With a seed, every
    epoch has an order of its own that depends on seed and epoch alone. A rest of fewer than ``smallest`` pictures joins
    the batch before it.
    """

    def __init__(
        self,
        pool: Pool,
        pictures: Callable[[int], np.ndarray],
        batch_size: int,
        spread: float = 0.0,
        seed: int | None = None,
        epoch: int = 0,
        smallest: int = 1,
    ):
        super().__init__(workers=WORKERS)
        self.pool, self.pictures, self.batch_size = pool, pictures, batch_size
        self.seed, self.epoch, self.smallest = seed, epoch, smallest
        self.targets = labels.targets(pool.nb_classes, spread)
        self._shuffle()

    def __len__(self) -> int:
        return max(1, math.ceil((len(self.order) - self.smallest + 1) / self.batch_size))

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        last = number == len(self) - 1
        chosen = self.order[number * self.batch_size : None if last else (number + 1) * self.batch_size]
        return self.pool.images(chosen), self.targets[self.pool.tenths[chosen]]

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self._shuffle()

    def _shuffle(self) -> None:
        self.order = self.pictures(self.epoch)
        if self.seed is not None:
            self.order = np.random.default_rng([self.seed, self.epoch]).permutation(self.order)


class Recorder(keras.callbacks.Callback):
    """Writes ``training_log.csv``, ``best_model.keras`` and checkpoints; stops when nothing improves any more.

    All it knows follows from the rows, so a resumed run goes on exactly where the broken one was.
    """

    def __init__(self, network: keras.Model, run_dir: Path, settings: Settings, rows: list, until: int | None = None):
        super().__init__()
        self.network, self.run_dir, self.settings, self.rows = network, run_dir, settings, rows
        self.last = min(until or settings.epochs, settings.epochs)
        self.epoch_began = time.monotonic()

    @property
    def best_epoch(self) -> int:
        """Number of the best epoch, counted from 1; the earlier one of two equals."""
        sign = 1 if self.settings.monitor == "val_loss" else -1
        # No number is smaller than NaN, nor larger: one in the first epoch would be the best for ever.
        values = [(math.isnan(value := row[self.settings.monitor]), sign * value) for row in self.rows]
        return values.index(min(values)) + 1

    @property
    def finished(self) -> bool:
        """True when all epochs asked for are done or early stopping has struck."""
        patience = self.settings.early_stopping_patience
        stuck = bool(patience and self.rows and len(self.rows) - self.best_epoch >= patience)
        return stuck or len(self.rows) >= self.last

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch_began = time.monotonic()
        if self.settings.learning_rate_schedule == "plateau":
            self.model.optimizer.learning_rate = _plateau_rate(self.settings, self.rows)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        row = {name: float(value) for name, value in (logs or {}).items()}
        if not math.isfinite(row["loss"]):
            raise TrainingError(f"the loss is {row['loss']} in epoch {epoch + 1}: set a lower LEARNING_RATE")
        row |= {"learning_rate": float(self.model.optimizer.learning_rate)}
        self.rows.append({"epoch": epoch + 1, **row, "seconds": round(time.monotonic() - self.epoch_began, 2)})
        runs.write(self.run_dir / runs.TRAINING_LOG_FILE, self._write_log)
        if self.best_epoch == len(self.rows):
            runs.write(self.run_dir / runs.BEST_MODEL_FILE, self.network.save)
        if self.settings.checkpoint_epochs and (epoch + 1) % self.settings.checkpoint_epochs == 0:
            _write_checkpoint(self.model, self.run_dir, epoch + 1)
        self.model.stop_training = self.model.stop_training or self.finished

    def _write_log(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)


class EpochLine(keras.callbacks.Callback):
    """A log line an epoch, where there is no terminal for a bar; ``description`` says of what."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self.description = description

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        values = {**(logs or {}), "learning_rate": self.model.optimizer.learning_rate}
        text = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        log.info("%s: epoch %d of %d: %s", self.description, epoch + 1, self.params["epochs"], text)


def attended(description: str) -> list[keras.callbacks.Callback]:
    """What each fit is given: a bar on a terminal, else a log line an epoch; and its end where Ctrl-C was lost."""
    shown = TqdmCallback(verbose=0, desc=description) if interactive() else EpochLine(description)
    # At a batch's begin: a hook at its end would make Keras fetch the loss of each.
    return [shown, keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: stop_if_interrupted())]


def fit(model: keras.Model, splits: Splits, settings: Settings, run_dir: Path, until: int | None = None) -> Training:
    """Trains ``model`` in place and leaves the best epoch in ``run_dir/best_model.keras``.

    Goes on from the checkpoint in ``run_dir``, if there is one. The network that is saved takes raw pixels and knows
    nothing of augmentation and dropout: they sit in a wrapper around it. ``until`` ends after so many of the
    ``EPOCHS``, with the learning rate of a fit that goes on. With several ``GPUS`` the model must be built within
    :func:`utils.devices.shared`.

    Raises:
        TrainingError: the loss is not a number any more, the model has no place for ``DROPOUT``, or the checkpoint or
            the rows or the best model beside it are damaged.
    """
    keras.utils.set_random_seed(settings.seed)
    checkpoint = max((run_dir / runs.CHECKPOINT_FOLDER).glob("epoch_*.npz"), default=None)
    # A checkpoint has all weights: what the run began with may be gone meanwhile.
    if checkpoint is None and (start := model_choice.start(settings, model.name)):
        model_files.copy_weights(model_files.load(start), model)
        # Kept, its temperature would make val_loss lowest in the first epoch, whatever is learnt later.
        model.set_weights(temperature.taken_out(model, splits, settings).get_weights())
    with devices.shared(settings):
        rows = _rows(checkpoint, run_dir) if checkpoint else []
        recorder = Recorder(model, run_dir, settings, rows, until)
        if recorder.finished:
            # Teachers are not asked any more and may be gone.
            return Training(rows, recorder.best_epoch)
        trainer = _trainer(model, splits, settings)
        if checkpoint:
            _read_checkpoint(trainer, checkpoint)
    _fit(trainer, splits, settings, model.name, recorder, initial_epoch=len(rows))
    return Training(recorder.rows, recorder.best_epoch)


def fit_quantized(quantized: keras.Model, splits: Splits, settings: Settings) -> None:
    """Quantisation-aware training: trains a fake-quantised model in place for ``QAT_EPOCHS``, keeps the best epoch."""
    settings = dataclasses.replace(
        settings,
        epochs=settings.qat_epochs,
        learning_rate=settings.learning_rate * settings.qat_learning_rate,
        learning_rate_schedule="cosine",
        # The ranges are those of all features, and the model was not built for several devices.
        dropout=0.0,
        gpus=1,
    )
    keras.utils.set_random_seed(settings.seed)
    trainer = _trainer(quantized, splits, settings)
    best = keras.callbacks.EarlyStopping("val_loss", patience=settings.epochs, restore_best_weights=True)
    _fit(trainer, splits, settings, f"{quantized.name} QAT", best)


def _fit(
    trainer: keras.Model,
    splits: Splits,
    settings: Settings,
    description: str,
    keeper: keras.callbacks.Callback,
    initial_epoch: int = 0,
) -> None:
    """Runs the epochs with ``keeper`` deciding what is kept and when to stop."""
    seeds = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: _start_epoch(trainer, settings, epoch))
    # TensorFlow deals a batch out in equal parts, rounded up: with fewer pictures the last card may be left without.
    smallest = settings.gpus**2
    trainer.fit(
        Batches(
            *(splits.pool, splits.epoch, settings.batch_size, settings.label_spread),
            *(settings.seed, initial_epoch, smallest),
        ),
        validation_data=Batches(splits.pool, lambda _: splits.validation, 512, smallest=smallest),
        initial_epoch=initial_epoch,
        epochs=settings.epochs,
        callbacks=[seeds, keeper, *attended(description)],
        # Batches shuffles by itself; Keras would shuffle the batches again, from a seed that a resumed run lacks.
        shuffle=False,
        verbose=0,
    )


def _trainer(model: keras.Model, splits: Splits, settings: Settings) -> keras.Model:
    image = keras.Input(model.input_shape[1:], dtype="uint8", name="image")
    changed = Augmentation(settings, name="augmentation")(image)
    logits = _logits(model, changed, settings)
    if settings.teachers:
        teachers = [model_files.load(file) for file in model_choice.teachers(settings)]
        for teacher in teachers:
            model_files.check_teacher(model_files.identity(teacher), settings)
        teaching = Teaching(teachers, settings.teacher_share, settings.nb_classes, settings.label_spread)
        logits = teaching([changed, logits])
    trainer = keras.Model(image, logits)
    _compile(trainer, settings, math.ceil(len(splits.train) / settings.batch_size))
    return trainer


def _logits(model: keras.Model, pixels: keras.KerasTensor, settings: Settings) -> keras.KerasTensor:
    """What the model makes of pixels, with ``DROPOUT`` before its last weights; the model itself stays without."""
    if not settings.dropout:
        return model(pixels)
    last = model_files.last_weighted(model)
    if not isinstance(last, keras.layers.Dense):
        raise TrainingError(f"{model.name} does not end in a dense layer, DROPOUT has no place there: set DROPOUT = 0")
    features = keras.Model(model.inputs, last.input, name="features")(pixels)
    try:
        head = keras.Model(last.input, model.output, name="head")
    except ValueError as error:
        raise TrainingError(
            f"{model.name} has other ways to its outputs than through its last dense layer, as where two are summed: "
            "DROPOUT has no place there, set DROPOUT = 0"
        ) from error
    return head(keras.layers.Dropout(settings.dropout, seed=settings.seed)(features))


def _start_epoch(trainer: keras.Model, settings: Settings, epoch: int) -> None:
    """Makes the random sequences functions of seed and epoch, so that a resumed run draws what it would have."""
    trainer.get_layer("augmentation").start_epoch(epoch)
    # With nested ones: an architecture may have its own Dropout.
    for number, layer in enumerate(trainer._flatten_layers(), start=1):
        if isinstance(layer, keras.layers.Dropout):
            layer.seed_generator.state.assign(random_state(settings.seed, epoch, number))


def _compile(trainer: keras.Model, settings: Settings, steps_per_epoch: int) -> None:
    optimizer_class = type(keras.optimizers.get(settings.optimizer))
    # Plain SGD has learnt next to nothing when the epochs are over.
    momentum = {"momentum": 0.9, "nesterov": True} if settings.optimizer == "sgd" else {}
    rate = _learning_rate(settings, steps_per_epoch)
    trainer.compile(
        optimizer=optimizer_class(learning_rate=rate, weight_decay=settings.weight_decay, **momentum),
        loss=LOSSES[settings.loss](from_logits=True, label_smoothing=settings.label_smoothing),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        jit_compile=XLA,
        steps_per_execution=min(8, steps_per_epoch) if _takes_several_steps(settings) else 1,
    )
    # What is made within the first step makes TensorFlow trace that twice: its moments here, a metric by name above.
    trainer.optimizer.build(trainer.trainable_variables)


def _takes_several_steps(settings: Settings) -> bool:
    # Keras has one step at a time for PyTorch; in TensorFlow 2.21 several do not go together with several devices.
    return keras.backend.backend() != "torch" and settings.gpus == 1


def _learning_rate(settings: Settings, steps_per_epoch: int):
    if settings.learning_rate_schedule != "cosine":
        return settings.learning_rate
    warmup = min(settings.warmup_epochs, settings.epochs // 2) * steps_per_epoch
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=settings.learning_rate / 100 if warmup else settings.learning_rate,
        decay_steps=max(settings.epochs * steps_per_epoch - warmup, 1),
        alpha=0.01,
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def _plateau_rate(settings: Settings, rows: list[dict[str, float]]) -> float:
    """The rate after these epochs, as of ``keras.callbacks.ReduceLROnPlateau``, which forgets all when resumed."""
    rate, best, waited = settings.learning_rate, math.inf, 0
    for row in rows:
        better = row["val_loss"] < best - 1e-4
        best, waited = (row["val_loss"], 0) if better else (best, waited + 1)
        if waited == settings.plateau_patience:
            rate, waited = max(rate * settings.plateau_factor, settings.learning_rate / 1000), 0
    return rate


def _write_checkpoint(trainer: keras.Model, run_dir: Path, epoch: int) -> None:
    folder = run_dir / runs.CHECKPOINT_FOLDER
    folder.mkdir(exist_ok=True)
    older = list(folder.glob("epoch_*.npz"))
    # Not Keras' HDF5 file, whose library takes a full disk for an error of its own and then crashes the process.
    arrays = [keras.ops.convert_to_numpy(variable) for variable in _state(trainer)]
    runs.write(folder / f"epoch_{epoch:06d}.npz", lambda partial: np.savez(partial, *arrays))
    for path in older:
        path.unlink()


def _read_checkpoint(trainer: keras.Model, checkpoint: Path) -> None:
    try:
        with np.load(checkpoint, allow_pickle=False) as kept:
            for variable, name in zip(_state(trainer), kept.files, strict=True):
                variable.assign(kept[name])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{checkpoint}: damaged ({error}); {FROM_THE_START.format('it')}") from error


def _state(trainer: keras.Model) -> list[keras.Variable]:
    # Seeds are set for each epoch, see _start_epoch.
    return [*trainer.weights, *trainer.optimizer.variables]


def _rows(checkpoint: Path, run_dir: Path) -> list[dict[str, float]]:
    """The rows of the epochs that the checkpoint has behind it."""
    epochs = int(checkpoint.name.split("_")[1].split(".")[0])
    history = run_dir / runs.TRAINING_LOG_FILE
    try:
        with history.open(newline="") as file:
            kept = list(itertools.islice(csv.DictReader(file), epochs))
        rows = [{name: float(value) for name, value in row.items()} for row in kept]
    except (OSError, TypeError, ValueError):
        rows = []
    if len(rows) < epochs:
        raise TrainingError(f"{history}: damaged or cut off; {FROM_THE_START.format(checkpoint)}")
    # The best epoch may be behind it, and what is measured in the end is this file.
    if not zipfile.is_zipfile(best := run_dir / runs.BEST_MODEL_FILE):
        raise TrainingError(f"{best}: missing or cut off; {FROM_THE_START.format(checkpoint)}")
    log.info("resuming %s after epoch %d", run_dir, epochs)
    return [{**row, "epoch": int(row["epoch"])} for row in rows]
