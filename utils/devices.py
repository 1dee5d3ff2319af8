"""The graphics cards of this machine, and training on several of them."""

import contextlib
import functools

from utils import console
from utils.errors import UserError
from utils.settings import Settings

KIND = "GPU"


class DeviceError(UserError):
    """More graphics cards are asked for than there are. The message says how many there are."""


def check(settings: Settings) -> None:
    """Refuses more ``GPUS`` than this machine has, before anything long; TensorFlow is imported only to count them.

    Raises:
        DeviceError: there are fewer.
    """
    if settings.gpus == 1:
        return
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
