"""Smooths a trained model's logits of tenths along the ring, within its last layer: no device computes anything more.

Neighbouring tenths have planes of their own, each learnt from few pictures, so that on a meter never seen one a tenth
or two beside the true one often wins by chance. The mean of a tenth's logit and its neighbours' is steadier.
"""

import logging

import keras
import numpy as np

from utils import labels
from utils.settings import Settings

log = logging.getLogger(__name__)


def matrix(share: float) -> np.ndarray:
    """What logits (N, 100) are multiplied by: each neighbour on the ring counts for ``share``. (100, 100) float32."""
    one = np.eye(labels.NB_TENTHS, dtype=np.float32)
    return (1 - 2 * share) * one + share * (np.roll(one, 1, axis=1) + np.roll(one, -1, axis=1))


def fold(model: keras.Model, settings: Settings) -> bool:
    """Smooths the logits of a model of 100 classes by ``RING_SMOOTHING``, in place.

    Returns:
        Whether it did; of a model that has no place for it the log says so.
    """
    last = model.layers[-1]
    if not settings.ring_smoothing or settings.nb_classes != labels.NB_TENTHS:
        return False
    if not isinstance(last, keras.layers.Dense) or last.activation is not keras.activations.linear:
        log.warning("%s: no smoothing along the ring, since no dense layer without activation ends it", model.name)
        return False
    last.set_weights([weight @ matrix(settings.ring_smoothing) for weight in last.get_weights()])
    return True
