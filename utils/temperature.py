"""Puts a temperature into a trained model's last layer: its confidence becomes the share of readings that are right.

Which class is read doesn't change, and no device computes anything more.
"""

import json
import logging
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from utils import confidence, evaluation, fake_quant, labels, runs, smoothing, targets
from utils.augmentation import Augmentation
from utils.loader import Splits
from utils.settings import Settings

log = logging.getLogger(__name__)

FOLDED_FILE = "temperature.json"
SAMPLES = 2000  # changed pictures, with which the size of the logits in training is found
SCALES = np.geomspace(1 / 16, 16, 81).astype(np.float32)
# What multiplies all its inputs by a number gives these outputs multiplied by it.
PASSING = (
    *(layers.Flatten, layers.Reshape, layers.Dropout, layers.Identity),
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
    fake_quant.ActivationRange,
)


def fold(model: keras.Model, splits: Splits, settings: Settings, like: keras.Model | None = None) -> float | None:
    """Divides a model's logits by the temperature that the validation pictures ask for, in place.

    The last layer's weights are divided, of a fake-quantised model its output range, too: its file then changes in
    nothing but the scale of the output.

    Args:
        model: raw pixels in, logits out.
        splits: the pictures.
        settings: say what the outputs mean: 10 shares of neighbouring digits, from which a device reads the tenth, must
            stay what they are.
        like: another model; confidence is then made worth what its confidence is worth on these pictures.

    Returns:
        The temperature; None, with the reason in the log, where the model stays as it is.
    """
    scaled = _scaled(model)
    if settings.nb_classes == 10 and targets.soft_labels(settings):
        log.info("%s: no temperature, since its outputs are shares of neighbouring digits", model.name)
        return None
    if not scaled:
        log.warning("%s: no temperature, since no dense or convolution layer without activation ends it", model.name)
        return None
    asked = [_asked(one, splits, settings) for one in (model, like) if one is not None]
    if None in asked:
        count = len(splits.different_validation)
        log.warning("%s: no temperature, since the %d validation pictures don't settle one", model.name, count)
        return None
    found = round(asked[0] / asked[1], 4) if like is not None else asked[0]
    for layer in scaled:
        layer.set_weights([weight / found for weight in layer.get_weights()])
    log.info("%s: confidence calibrated with temperature %.4f", model.name, found)
    return found


def _asked(model: keras.Model, splits: Splits, settings: Settings) -> float | None:
    pictures = splits.different_validation
    logits = evaluation.keras_logits(model, splits.pool.images(pictures))
    right = labels.alike(logits.argmax(axis=1), splits.pool.classes(pictures), settings.nb_classes)
    return confidence.temperature(logits, right)


def taken_out(model: keras.Model, splits: Splits, settings: Settings) -> keras.Model:
    """A copy to be trained on: its logits are as large as the changed pictures of training ask for.

    :func:`fold` makes them suit pictures as they are. Trained on like that, in quantisation-aware training, ``cnn32``
    lost 5 points of the exact tenth; and a ``START_FROM`` kept its first epoch, since ``val_loss`` only rose after it.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    if not (scaled := _scaled(copy)):
        return copy
    pictures = np.random.default_rng(settings.seed).choice(splits.train, SAMPLES)
    changed = ops.convert_to_numpy(Augmentation(settings)(splits.pool.images(pictures), training=True))
    logits = evaluation.keras_logits(copy, changed)
    wanted = labels.targets(settings.nb_classes, settings.label_spread)[splits.pool.tenths[pictures]]
    losses = [keras.losses.categorical_crossentropy(wanted, logits * scale, from_logits=True) for scale in SCALES]
    best = SCALES[int(np.argmin([float(ops.mean(loss)) for loss in losses]))]
    for layer in scaled:
        layer.set_weights([weight * best for weight in layer.get_weights()])
    return copy


def fold_best(model: keras.Model, run_dir: Path, splits: Splits, settings: Settings) -> float | None:
    """What becomes of a run's best model, just loaded, and of its file: once, however often the run is resumed.

    It is smoothed along the ring (:mod:`utils.smoothing`), then :func:`fold` is applied.

    Returns:
        The temperature, None where there is none.
    """
    path, note = run_dir / runs.BEST_MODEL_FILE, run_dir / runs.CHECKPOINT_FOLDER / FOLDED_FILE
    if note.is_file():
        earlier = json.loads(note.read_text())
        if earlier["sha256"] == runs.sha256(path):
            return earlier["temperature"]
    smoothed = smoothing.fold(model, settings)
    found = fold(model, splits, settings)
    if smoothed or found is not None:
        note.parent.mkdir(exist_ok=True)

        def save(partial: Path) -> None:
            # The note names the file that is about to appear: whenever the run breaks off, it tells which one is there.
            model.save(partial)
            runs.write_json(note, {"temperature": found, "sha256": runs.sha256(partial)})

        runs.write(path, save)
    return found


def _scaled(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers from the end back to the one that makes the logits; none if the logits can't be scaled."""
    found = []
    tensor = model.output
    while isinstance(layer := tensor._keras_history.operation, PASSING):
        found.append(layer)
        tensor = layer._inbound_nodes[tensor._keras_history.node_index].input_tensors[0]
    makes_logits = isinstance(layer, layers.Dense | layers.Conv2D) and layer.activation is keras.activations.linear
    # A layer that is used twice would change elsewhere, too.
    return [*found, layer] if makes_logits and len(layer._inbound_nodes) == 1 else []
