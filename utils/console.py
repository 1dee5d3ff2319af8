"""What the user sees while a command runs: log lines, progress bars, and silence from TensorFlow."""

import argparse
import contextlib
import errno
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every entry script that reads ``parameters.py``."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override a line of parameters.py; repeatable"
    )
    parser.add_argument("--debug", action="store_true", help="log more, TensorFlow's own log too")


def refuse_beside(parser: argparse.ArgumentParser, arguments: argparse.Namespace, option: str, *others: str) -> None:
    """Ends the command with a message if ``option`` is given, and one of ``others`` that would be ignored beside it."""
    given = [name for name in (option, *others) if getattr(arguments, name) != parser.get_default(name)]
    if option in given[:1] and len(given) > 1:
        parser.error(f"--{option} goes without --{given[1]}: leave --{given[1]} out")


def share(text: str) -> float:
    """An argument's value from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def positive(text: str) -> float:
    """An argument's value above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    """An argument's value of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("needs a number of at least 1")
    return value


def path(text: str) -> Path:
    """An argument's value that is a path; an empty one, of a variable that is not set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return Path(text)


def source(text: str) -> str:
    """An argument's value that names a folder or a kind of source; see :func:`path`."""
    path(text)
    # As text: ./synthetic is a folder, synthetic is none.
    return text


def set_up(debug: bool = False) -> None:
    """Logs to stderr, level INFO (DEBUG with ``debug``); TensorFlow's own log only with ``debug``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.ERROR)
    logging.getLogger("jax").setLevel(logging.INFO if debug else logging.WARNING)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0" if debug else "3"
    # TensorFlow leaves oneDNN's kernels out on AMD processors; with them training takes three quarters of the time.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if debug:
        for room in ("utils", "models", "tensorflow"):
            logging.getLogger(room).setLevel(logging.DEBUG)


def show(text: str) -> None:
    """Prints a result. Whoever reads may have enough ("| head"): files that are written after it come nevertheless."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Windows calls it an invalid argument that nobody reads.
        if error.errno not in (errno.EPIPE, errno.EINVAL):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interactive() -> bool:
    """True where a progress bar makes sense: stderr is a terminal."""
    return sys.stderr.isatty()


def progress(iterable: Iterable | None, description: str, total: int | None = None, unit: str = "img"):
    """A tqdm bar over ``iterable``, shown on a terminal once the work has taken two seconds."""
    from tqdm import tqdm

    return tqdm(iterable, description, total, unit=unit, delay=2, leave=False, disable=not interactive())


@contextlib.contextmanager
def native_stderr_into(kept: IO[bytes]) -> Iterator[None]:
    """Sends what native code writes to stderr into an open file: it uses the descriptor, past ``sys.stderr``."""
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(kept.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def quiet_native() -> Iterator[None]:
    """Keeps what native code writes to stderr back, and logs it if the block raises.

    TensorFlow's start-up and converter lines ignore every log level, so the file descriptor itself is turned aside.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    with tempfile.TemporaryFile() as kept:
        try:
            with native_stderr_into(kept):
                yield
        except BaseException:
            kept.seek(0)
            if said := kept.read().decode(errors="replace"):
                log.error("%s", said)
            raise


def take_gpu_memory_as_needed() -> None:
    """Lets TensorFlow and JAX leave the rest of a card to a training beside; before either uses a device.

    TensorFlow would take all of it at once, JAX three quarters. What the user has set in the environment stays.
    """
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def import_tensorflow(memory_growth: bool, threads: int = 0) -> None:
    """Imports TensorFlow quietly; settles GPU memory and threads (0 = one a core) before any device is used.

    Where Keras has another backend (``KERAS_BACKEND``) TensorFlow is left alone: it need not be installed. PyTorch gets
    its threads: those of several processes wait for each other, which takes three times as long. JAX's don't.
    """
    if memory_growth:
        take_gpu_memory_as_needed()
    with quiet_native():
        import keras

        if keras.backend.backend() == "torch" and threads:
            import torch

            torch.set_num_threads(threads)
        if keras.backend.backend() != "tensorflow":
            return
        import tensorflow as tf

        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.get_logger().setLevel("INFO" if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" else "ERROR")
