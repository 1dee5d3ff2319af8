"""Teaches a trained model a new meter from a few pictures without unlearning the others.

A tenth of every batch is new pictures, the rest is replayed from the old data. Replayed pictures have what the old
model says as their target (Li and Hoiem 2016, "Learning without Forgetting"). New ones are rolled by up to two tenths
with their label; classes far from every new label are left out of their softmax, unless the old model reads one there,
or digits that the new pictures lack would be unlearnt.
"""

import dataclasses
import logging
import math
import time

import keras
import numpy as np
from keras import layers, ops

from models import _blocks
from utils import labels, model_files, temperature, training
from utils.augmentation import Changed, shifted_up
from utils.errors import UserError
from utils.loader import Splits
from utils.plans import Plan
from utils.settings import Settings

log = logging.getLogger(__name__)

BATCH_SIZE = 64  # pictures
NEW_SHARE = 0.1  # of a batch at most, where there is anything old: with more the meter gained little, the rest lost
STEPS_PER_EPOCH = 50
BANK = 4096  # replayed pictures, changed at random once
ROLL = 2.0  # tenths that a new picture is rolled at most
ROLL_PROBABILITY = 0.5
WHEEL_PITCH = 0.086  # share of the picture's height that a wheel moves in a tenth
REACH = 3  # tenths around the new labels that stay in their softmax: one more than a rolled picture's label can get
CLOSED = -1e4  # added to the logits of the others
# Changes of new pictures are mild: stronger ones gained nothing, and inverted pictures are not what the meter shows.
MILD = {
    **{"augment_rotation": 2.0, "augment_zoom": 0.05, "augment_shift_x": 0.05, "augment_shift_y": 0.01},
    **{"augment_brightness": 0.1, "augment_contrast": 0.2, "augment_color": 0.1, "augment_noise": 0.02},
    **{"augment_shear": 0.02, "augment_light": 0.1, "augment_glare": 0.2, "augment_blur": 0.5},
    **dict.fromkeys(("augment_grey", "augment_swap", "augment_sharpen", "augment_cover", "augment_invert"), 0.0),
}


class FineTuningError(UserError):
    """What is asked for can't be learnt. The message says what to change."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """Indices into the pool of what is learnt, and the share of each batch that is new.

    ``changed_already``: those of ``changed`` are of augmented sources and come as they are.
    """

    new: np.ndarray
    plain: np.ndarray
    changed: np.ndarray
    new_share: float
    changed_already: bool = False


def mix(splits: Splits, plan: Plan, augmented: tuple[str, ...], seed: int) -> Mix:
    """Draws what is learnt from the training part; logs it in pictures.

    Args:
        splits: as :func:`loader.load` made them with ``plan.new``.
        plan: says how much of what.
        augmented: names of sources whose pictures are much changed already; without any the old ones are changed.
        seed: of the draw.

    Raises:
        FineTuningError: nothing to learn from, or nothing new where something new is to be learnt.
    """
    # Replayed, new pictures would be taught with what the old model misreads.
    augmented = tuple(name for name in augmented if name not in plan.new)
    train = np.unique(splits.train)
    names = np.array(splits.pool.source_names)[splits.pool.source_ids[train]]
    is_new, is_augmented = np.isin(names, plan.new), np.isin(names, augmented)
    originals = train[~is_new & ~is_augmented]
    # A source of weight 0 has none.
    changed_already = bool(is_augmented.any())
    new, changeable = train[is_new], train[is_augmented] if changed_already else originals
    if plan.new and not len(new):
        raise FineTuningError(
            f"none of the pictures of {', '.join(plan.new)} is left to learn from: they are twins of pictures that are "
            "measured on (TEST_SOURCES, the test part of DATA_SOURCES), or the source's weight leaves them out; give "
            "other pictures, or take those out of what is measured"
        )
    rng = np.random.default_rng(seed)
    plain, changed = _share(originals, plan.data_ratio, rng), _share(changeable, plan.augmented_ratio, rng)
    old = len(plain) + len(changed)
    if not len(new) + old:
        raise FineTuningError("no picture left to learn from: raise --data_ratio or --augmented_ratio, or give --data")
    # A thousand near twins are not a thousand pictures.
    counted = plan.weight * len(np.unique(splits.clusters[new]))
    share = min(NEW_SHARE, counted / (counted + BANK)) if old else 1.0
    log.info(
        "learning from %d new pictures (%.0f %% of each batch), %d old ones and %d old ones %s",
        *(len(new), 100 * share, len(plain), len(changed)),
        "of augmented sources" if changed_already else "much changed",
    )
    return Mix(new, plain, changed, share, changed_already)


def facts(chosen: Mix) -> dict[str, float]:
    """The mix in numbers, for ``results.json``."""
    counts = {"new": chosen.new, "old_plain": chosen.plain, "old_changed": chosen.changed}
    pictures = {f"{name}_pictures": len(indices) for name, indices in counts.items()}
    return {**pictures, "new_share_of_a_batch": round(chosen.new_share, 4)}


def freeze(model: keras.Model, strategy: str) -> int:
    """Marks what ``strategy`` leaves as it is; returns how many parameters train.

    Raises:
        FineTuningError: it leaves everything as it is.
    """
    weighted = [layer for layer in model.layers if layer.weights]
    # A batch normalisation behind the last dense layer has but a factor and an offset for each class.
    dense = [layer for layer in weighted if not isinstance(layer, layers.BatchNormalization)]
    head = {"full": weighted, "last_layer": dense[-1:], "feature_extractor": _head(model)}[strategy]
    if not head:
        raise FineTuningError(
            f"{model.name} has no dense layer, so --strategy {strategy} would train nothing: use last_layer, the last "
            "convolution, or full"
        )
    for layer in weighted:
        layer.trainable = layer in head
    free, total = (sum(math.prod(weight.shape) for weight in part) for part in (model.trainable_weights, model.weights))
    log.info("strategy %s: %d of %d parameters train", strategy, free, total)
    return free


def knows_tenths(model: keras.Model) -> bool:
    """Whether the last layer has a plane for each tenth, of tenths or of digits that are read by way of them."""
    last = model_files.last_weighted(model)
    return isinstance(last, layers.Dense) and last.units == labels.NB_TENTHS


def with_new_head(model: keras.Model, nb_classes: int, seed: int) -> keras.Model:
    """The same network for another number of classes.

    Where it :func:`knows_tenths`, its own planes read the others: a fresh head on the features of tenths named 0.662 of
    a meter's digits right after fifty pictures, of which the tenths had named 0.986. Else the last layer is fresh.

    Raises:
        FineTuningError: no dense layer is the last that has weights.
    """
    last = model_files.last_weighted(model)
    (features,) = last._inbound_nodes[0].input_tensors
    if not isinstance(last, layers.Dense):
        raise FineTuningError(f"{model.name} ends in {type(last).__name__}, not in a dense layer: it takes no new head")
    keras.utils.set_random_seed(seed)
    if len(features.shape) > 2:
        # What made a row of the old head's outputs stood behind it.
        features = layers.Flatten()(features)
    if not knows_tenths(model):
        return keras.Model(model.input, _blocks.logits(features, nb_classes), name=model.name)
    grown = keras.Model(model.input, _blocks.flat_logits(features, nb_classes), name=model.name)
    model_files.copy_weights(model, grown)
    return grown


def fit(
    model: keras.Model, teacher: keras.Model | None, splits: Splits, chosen: Mix, plan: Plan, settings: Settings
) -> float:
    """Trains ``model`` in place; frozen weights stay as they are, bit for bit. Returns the seconds it took.

    Args:
        model: its layers frozen as the strategy says.
        teacher: the old model, whose answers are the targets of replayed pictures; None: their labels are.
        splits: the pictures.
        chosen: of :func:`mix`.
        plan: learning rate and length.
        settings: seed and number of classes.

    Raises:
        FineTuningError: the learning rate was so high that the weights are no numbers any more.
    """
    started = time.monotonic()
    keras.utils.set_random_seed(settings.seed)
    if teacher is None:
        # Labels ask for logits of another size than those its temperature has left.
        model.set_weights(temperature.taken_out(model, splits, settings).get_weights())
    rows = _Rows(splits, chosen, teacher, settings)
    _trainer(model, plan).fit(
        rows,
        epochs=plan.epochs,
        # Each batch is made for its place: shuffling would only change which.
        shuffle=False,
        verbose=0,
        callbacks=training.attended(f"{model.name} fine-tuning"),
    )
    if not all(np.isfinite(weight.numpy()).all() for weight in model.weights):
        raise FineTuningError("the weights are no numbers any more: set a lower learning rate")
    return time.monotonic() - started


class _Rows(keras.utils.PyDataset):
    """Batches ``((pictures (N, H, W, C) float32, closed classes (N, classes)), targets (N, classes))``."""

    def __init__(self, splits: Splits, chosen: Mix, teacher: keras.Model | None, settings: Settings):
        super().__init__()
        self.rng = np.random.default_rng(settings.seed)
        self.per_batch = math.ceil(BATCH_SIZE * chosen.new_share)
        self.new = _New(splits, chosen.new, teacher, settings, self.rng) if self.per_batch else None
        self.old = _bank(splits, chosen, teacher, settings, self.rng) if self.per_batch < BATCH_SIZE else None

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __getitem__(self, number: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        parts = []
        if self.new:
            parts.append(self.new.draw(self.per_batch))
        if self.old:
            chosen = self.rng.integers(0, len(self.old[0]), BATCH_SIZE - self.per_batch)
            parts.append((self.old[0][chosen], np.zeros_like(self.old[1][chosen]), self.old[1][chosen]))
        pictures, closed, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
        return (pictures, closed), targets


class _New:
    """Draws new pictures evenly over groups of twins, rolled and mildly changed."""

    def __init__(
        self,
        splits: Splits,
        indices: np.ndarray,
        teacher: keras.Model | None,
        settings: Settings,
        rng: np.random.Generator,
    ):
        self.images, self.tenths, self.rng = splits.pool.images(indices), splits.pool.tenths[indices], rng
        _, group, size = np.unique(splits.clusters[indices], return_inverse=True, return_counts=True)
        self.probabilities = 1 / size[group] / len(size)
        self.nb_classes = settings.nb_classes
        self.change = _changer(dataclasses.replace(settings, **MILD))
        # A display that only ever shows whole digits does not roll.
        self.rolls = settings.nb_classes == 100 and bool((self.tenths % 10).any())
        # A tenth is where the picture was rolled to; of whole digits the model says what it was trained to say.
        self.targets = labels.targets(settings.nb_classes, 0 if settings.nb_classes == 100 else settings.label_spread)
        self.closed = self._closed(teacher)

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self.rng.choice(len(self.images), count, p=self.probabilities)
        images, tenths = self.images[chosen], np.zeros(count, np.float32)
        if self.rolls:
            rolled = self.rng.random(count) < ROLL_PROBABILITY
            tenths = (self.rng.uniform(-ROLL, ROLL, count) * rolled).astype(np.float32)
        images = self.change.predict_on_batch([images, tenths * WHEEL_PITCH * images.shape[1]])
        return images, np.repeat(self.closed, count, axis=0), self._targets(self.tenths[chosen] + tenths)

    def _targets(self, position: np.ndarray) -> np.ndarray:
        if not self.rolls:
            return self.targets[position.astype(int)]
        below = np.floor(position).astype(int)
        share = (position - below)[:, None]
        return (1 - share) * self.targets[below % 100] + share * self.targets[(below + 1) % 100]

    def _closed(self, teacher: keras.Model | None) -> np.ndarray:
        if teacher is None:
            return np.zeros((1, self.nb_classes), np.float32)
        is_open = (self.targets[self.tenths] > 0).any(axis=0)
        is_open[teacher.predict(self.images, batch_size=256, verbose=0).argmax(axis=1)] = True
        if self.nb_classes == 100:
            is_open = np.any([np.roll(is_open, tenths) for tenths in range(-REACH, REACH + 1)], axis=0)
        return np.where(is_open, 0, CLOSED).astype(np.float32)[None]


def _bank(
    splits: Splits, chosen: Mix, teacher: keras.Model | None, settings: Settings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replayed pictures, changed as in training where the mix says so, with their targets."""
    change = _changer(dataclasses.replace(settings, augment=True))
    old = np.concatenate([chosen.plain, chosen.changed])
    unchanged = len(old) if chosen.changed_already else len(chosen.plain)
    drawn = rng.choice(len(old), BANK)
    images, indices = [], old[drawn]
    for start in range(0, BANK, 256):
        part = splits.pool.images(indices[start : start + 256])
        changed = change.predict_on_batch([part, np.zeros(len(part), np.float32)])
        plain = (drawn[start : start + 256] < unchanged)[:, None, None, None]
        images.append(np.where(plain, part, changed).astype(np.float32))
    images = np.concatenate(images)
    if teacher is None:
        return images, labels.targets(settings.nb_classes, settings.label_spread)[splits.pool.tenths[indices]]
    logits = teacher.predict(images, batch_size=256, verbose=0)
    return images, ops.convert_to_numpy(ops.softmax(logits))


def _changer(settings: Settings) -> keras.Model:
    """Takes pictures and the rows that each is moved up by. Compiled, it takes a tenth of the time."""
    image, rows = keras.Input(settings.input_shape), keras.Input(())
    return keras.Model([image, rows], Changed(settings)(shifted_up(image, rows)))


def _trainer(model: keras.Model, plan: Plan) -> keras.Model:
    image = keras.Input(model.input_shape[1:], name="image")
    closed = keras.Input(model.output_shape[1:], name="closed")
    trainer = keras.Model([image, closed], model(image) + closed)
    steps = plan.epochs * STEPS_PER_EPOCH
    warmup = max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        plan.learning_rate / 100, steps - warmup, alpha=0.01, warmup_target=plan.learning_rate, warmup_steps=warmup
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(schedule), loss, jit_compile=training.XLA)
    # As in training: made within the first step, its moments would make TensorFlow trace that twice.
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


def _share(indices: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(indices)[: round(ratio * len(indices))]


def _head(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers above the convolutional part: those that see one value a channel and no place any more."""
    return [
        layer
        for layer in model.layers
        if layer.weights and (len(layer.input.shape) == 2 or tuple(layer.input.shape[1:-1]) == (1, 1))
    ]
