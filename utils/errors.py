"""The one kind of error that is the user's to mend, Ctrl-C, and how an entry script ends with them."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

INTERRUPTED = 130  # exit code after Ctrl-C, as shells know it
BACKENDS = ("tensorflow", "jax", "torch")  # what Keras can compute with

_interrupted = threading.Event()


class UserError(Exception):
    """Its message says what is wrong and what to do; the entry scripts print it without a traceback."""


def in_words(error: OSError, where: object) -> str:
    """What the system refuses, and of which file; ``where`` stands in for one that the error doesn't name."""
    # Libraries wrap the system's own words in many of theirs.
    return f"{error.filename or where}: {os.strerror(error.errno) if error.errno else error}"


def missing_backend(error: Exception) -> str | None:
    """What to do about a backend of Keras that isn't installed, or unknown; None if the error is another one."""
    if str(error).startswith("Unable to import backend"):
        name = str(error).split(":")[-1].strip()
        return f"{name}, which KERAS_BACKEND names, is none of Keras' backends: set it to one of {', '.join(BACKENDS)}"
    if not isinstance(error, ModuleNotFoundError) or error.name not in BACKENDS:
        return None
    others = " or ".join(name for name in BACKENDS if name != error.name)
    hint = f"install it, or set the environment variable KERAS_BACKEND to {others} if that is installed"
    return f"{error.name}, which Keras is to compute with, is not installed: {hint}"


def stop_if_interrupted() -> None:
    """Raises KeyboardInterrupt once more if Ctrl-C has done so before, within :func:`exit_code`.

    While TensorFlow builds a graph it is often lost, in a finaliser of Python's, or comes out as another error.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    # A background process of a shell has the signal ignored, and keeps it so.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    report = sys.unraisablehook

    def report_others(lost: "sys.UnraisableHookArgs") -> None:
        # One that is lost in a finaliser is raised once more: it needs no traceback.
        if lost.exc_type is not KeyboardInterrupt:
            report(lost)

    sys.unraisablehook = report_others
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except Exception:
        stop_if_interrupted()
        raise
    finally:
        _interrupted.clear()
        sys.unraisablehook = report
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_code(door: str, work: Callable[[], int], interrupted: str) -> int:
    """What an entry script ends with: the exit code of ``work``, 2 for the user's error, 130 for Ctrl-C.

    What the operating system refuses is the user's to mend as well: rights, a full disk, a name that is too long. So is
    a backend of Keras that isn't installed or not known, which shows only when Keras is imported.

    Args:
        door: name of the script, for messages.
        work: does it all.
        interrupted: what is said after Ctrl-C.
    """
    # A daemon may have closed them. What stands in stays open until the process ends.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a file name's letters is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _interruptible():
            code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read has enough ("| head"); what is still to be written at the end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{door}: {in_words(error, 'input or output')}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"{door}: {error}", file=sys.stderr)
        return 2
    except (ModuleNotFoundError, ValueError) as error:
        if (hint := missing_backend(error)) is None:
            raise
        print(f"{door}: {hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{door}: {interrupted}", file=sys.stderr)
        return INTERRUPTED


def leave(code: int) -> NoReturn:
    """Ends an entry script that trains, after Ctrl-C without Python's own tidying up.

    That may wait for ever for a thread of TensorFlow's, which was making the next batch and is given no turn any more.
    """
    if code == INTERRUPTED:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
