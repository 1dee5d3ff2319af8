"""Calls functions in a process of their own, so that native code which crashes or hangs takes nothing along."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

from utils.errors import UserError

SECONDS = 900  # that one call may take
_MISSING = "the process that read it {} ({}): the file is damaged, or it needs more memory than there is"


class IsolationError(UserError):
    """The other process ended or took too long. The message says which."""


class Isolated:
    """A fresh process, to be used as a context manager; ``call`` may be repeated in it.

    Functions, arguments and results must be importable or picklable. After an :class:`IsolationError` the process is
    gone, and every further call raises it again.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        # Spawned: a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self._seconds = seconds
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        # Only the child holds this end now, so that its death is noticed here.
        other.close()

    def call(self, function: Callable, *arguments: Any) -> Any:
        """What the function returns or raises there.

        Raises:
            IsolationError: the process ended, or the call took too long.
        """
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(self._seconds):
                self._process.kill()
                raise IsolationError(_MISSING.format("was stopped", f"no answer for {self._seconds:g} s"))
            result, error = self._pipe.recv()
        except (EOFError, OSError) as broken:
            self._process.join()
            raise IsolationError(_MISSING.format("ended", _reason(self._process.exitcode))) from broken
        if error is not None:
            raise error
        return result

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *_: Any) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Any) -> None:
    # Ctrl-C reaches the whole group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                answer = function(*arguments), None
            # Whatever it is belongs to the caller.
            except Exception as error:
                answer = None, error
            pipe.send(answer)


def _reason(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
