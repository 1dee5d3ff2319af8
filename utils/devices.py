"""What Keras computes with: TensorFlow or not, and the graphics cards of this machine."""

import contextlib
import functools

from utils import console
from utils.errors import UserError
from utils.settings import Settings

KIND = "GPU"


class DeviceError(UserError):
    """What is asked for can't be computed here. The message says what there is."""


def require_tensorflow(what: str) -> None:
    """Refuses what only TensorFlow can do where Keras has another backend; imports Keras.

    Raises:
        DeviceError: Keras runs on something else, or TensorFlow isn't installed.
    """
    try:
        with console.quiet_native():
            import keras
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        # Said here, as the usual advice is to let Keras run on something else.
        raise DeviceError(f"{what} needs TensorFlow, which is not installed: install it") from error
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise DeviceError(f"{what} needs TensorFlow and Keras runs on {backend}: install it and unset KERAS_BACKEND")


def check(settings: Settings, searching: bool = False) -> None:
    """Refuses what this machine or its Keras can't do, before anything long: ``GPUS``, a score that a search goes by.

    TensorFlow is imported only to count the former.

    Args:
        settings: what is asked for.
        searching: hyper-parameters are searched, so that ``TUNER_OBJECTIVE`` counts.

    Raises:
        DeviceError: there are fewer, or Keras has another backend than TensorFlow.
    """
    if searching and settings.tuner_objective != "val_accuracy":
        require_tensorflow(f"TUNER_OBJECTIVE = {settings.tuner_objective!r}")
    if settings.gpus == 1:
        return
    require_tensorflow(f"GPUS = {settings.gpus}")
    with console.quiet_native():
        import tensorflow as tf

        # Only counted: the first use of a device settles its memory and threads.
        found = len(tf.config.list_physical_devices(KIND))
    if found < settings.gpus:
        raise DeviceError(f"GPUS = {settings.gpus}: TensorFlow finds {found} here; set GPUS = {max(found, 1)}")


def shared(settings: Settings) -> contextlib.AbstractContextManager:
    """What is built and trained inside has a copy on each of ``GPUS`` cards, and each batch is divided among them.

    The copies' gradients are summed after every step (``tf.distribute.MirroredStrategy``), so the loss is that of one
    card with the whole batch. Batch statistics are each card's own, their running means are averaged.
    """
    if settings.gpus == 1:
        return contextlib.nullcontext()
    return _strategy(settings.gpus).scope()


# A model must be trained under the very strategy that it was built under.
@functools.cache
def _strategy(gpus: int):
    import tensorflow as tf

    return tf.distribute.MirroredStrategy([f"{KIND}:{number}" for number in range(gpus)])
