"""Calls functions in a process of their own, so that native code which crashes or hangs takes nothing along."""

import contextlib
import logging
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from typing import Any

from utils.errors import UserError, missing_backend

log = logging.getLogger(__name__)

SECONDS = 1800  # that one call may take
_GONE = "the process that read it {} ({}): the file is damaged, or it needs more memory than there is"


class IsolationError(UserError):
    """The other process ended, took too long or met an error that nobody foresaw. The message says which."""


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
        """What the function returns there.

        Raises:
            UserError: the function raised it.
            IsolationError: it raised something else, which is logged; the process ended; or the call took too long.
        """
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(self._seconds):
                self._process.kill()
                raise IsolationError(_GONE.format("was stopped", f"no answer for {self._seconds:g} s"))
            result, error = self._pipe.recv()
        except (EOFError, OSError) as broken:
            self._process.join()
            raise IsolationError(_GONE.format("ended", _reason(self._process.exitcode))) from broken
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
            except UserError as error:
                answer = None, error
            except Exception as error:
                if hint := missing_backend(error):
                    answer = None, UserError(hint)
                else:
                    # Not every exception can be sent, and a stranger's file may raise anything.
                    log.error("%s", traceback.format_exc())
                    answer = None, IsolationError(f"{type(error).__name__}: {error}")
            pipe.send(answer)


def _reason(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
