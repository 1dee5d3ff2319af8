"""Pools of processes that end with the one that started them."""

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor


def pool(workers: int) -> ProcessPoolExecutor:
    """Up to ``workers`` fresh processes; functions, arguments and results must be importable or picklable.

    Spawned, because a fork of a process with TensorFlow's threads may hang.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)


def end_all(seconds: float) -> None:
    """Ends this process's children; they have that long to end in order.

    A terminal's Ctrl-C reaches them, too, and they do; a signal to this process alone does not reach them.
    """
    until = time.monotonic() + seconds
    for process in multiprocessing.active_children():
        process.join(max(0, until - time.monotonic()))
        process.terminate()


def _end_with_parent() -> None:
    # A worker holds both ends of the pipe it waits at: without this it would wait on after its parent was killed.
    threading.Thread(target=_watch, args=(multiprocessing.parent_process().sentinel,), daemon=True).start()


def _watch(parent: int) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)
