"""Functions that take their process along or keep it, in a module that another process imports quickly."""

import os
import time


def crash(*_: object) -> None:
    """As native code does on a damaged file."""
    os.abort()


def hang(*_: object) -> None:
    """As a training does that has hours to go."""
    time.sleep(60)


def without_backend(*_: object) -> None:
    """As Keras does where what it computes with is missing."""
    raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
