"""The run folder: its name, its exclusive creation, its settings, and files that appear whole or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from utils import settings as settings_module
from utils.errors import UserError
from utils.settings import Settings

SETTINGS_FILE = "settings.json"
RESULTS_FILE = "results.json"
TRAINING_LOG_FILE = "training_log.csv"
WORST_READINGS_FILE = "worst_readings.json"
ROBUSTNESS_FILE = "robustness.json"
MANIFEST_FILE = "manifest.json"
BEST_MODEL_FILE = "best_model.keras"
LEARNT_FILE = "learnt.npy"
CHECKPOINT_FOLDER = "checkpoints"
LOCK_FILE = ".lock"
PARTIAL_PREFIX = ".partial-"


class RunError(UserError):
    """A run folder can't be made or resumed, or a file not written. The message names it and what to do."""


def name(settings: Settings, mode: str, stamp: str) -> str:
    """``cnn32_10cls_GRAY_PTQ_20250131-180000``; ``mode`` is FLOAT, PTQ or QAT."""
    color = "GRAY" if settings.input_channels == 1 else "RGB"
    return f"{settings.model_architecture}_{settings.nb_classes}cls_{color}_{mode}_{stamp}"


def create(settings: Settings, mode: str, ending: str = "") -> Path:
    """Makes a new run folder that no other process has; a taken name gets ``-2``, ``-3`` ..., then the ``ending``.

    Raises:
        RunError: ``OUTPUT_DIR`` can't be written to.
    """
    return make(name(settings, mode, time.strftime("%Y%m%d-%H%M%S")), settings, ending)


def check_output(settings: Settings) -> None:
    """Sees that ``OUTPUT_DIR`` can be made or written to, without making it: a training should not be what finds out.

    Raises:
        RunError: it can't.
    """
    folder = Path(settings.output_dir).absolute()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RunError(f"OUTPUT_DIR {settings.output_dir}: {there} cannot be written to; name a folder of yours")


def make(stem: str, settings: Settings, ending: str = "") -> Path:
    """Makes the folder ``stem`` below ``OUTPUT_DIR`` as :func:`create` does.

    Raises:
        RunError: ``OUTPUT_DIR`` can't be written to.
    """
    try:
        Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 10_000):
            folder = Path(settings.output_dir) / f"{stem}{f'-{attempt}' if attempt > 1 else ''}{ending}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise RunError(f"OUTPUT_DIR {settings.output_dir}: cannot make a folder there ({error.strerror})") from error
    raise RunError(f"OUTPUT_DIR {settings.output_dir}: no free name like {stem}")


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Locks a run folder against other processes while the block runs or until the process ends.

    Raises:
        RunError: another process works in it.
    """
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{run_dir}: another process is working in this run folder") from None
    try:
        yield
    finally:
        # While it is held, or the next holder's would be removed. Windows removes it by itself, on release.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def check_writable(files: Iterable[Path | None]) -> None:
    """Sees before a long work that its files can be written; None is passed over.

    Raises:
        RunError: a file's folder is missing or read-only, it is a folder or a device itself, or two are the same file.
    """
    named = [file for file in files if file]
    # Path.resolve() fails where links form a loop.
    places = [Path(os.path.realpath(file)) for file in named]
    for file, place in zip(named, places, strict=True):
        if (os.path.lexists(place) and not place.is_file()) or not os.access(place.parent, os.W_OK):
            raise RunError(f"{file}: cannot be written; name a file in an existing folder of yours")
    if len(set(places)) < len(named):
        raise RunError(f"{named[0]}: is named twice, the one output would replace the other; name another file")


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Lets ``writer`` fill a temporary file, then renames it to ``path``: a reader never sees half a file.

    A link stays one: what it leads to is replaced.
    """
    path = path.resolve()
    partial = path.with_name(PARTIAL_PREFIX + path.name)
    try:
        writer(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """What the system refuses within the block is a RunError: this file cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes text through :func:`write`, in UTF-8 wherever it runs: pages say so."""
    write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON through :func:`write`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@dataclasses.dataclass(frozen=True)
class Started:
    """What ``settings.json`` holds of a run; ``tuned_by``: the search that chose the settings, if one did."""

    settings: Settings
    architecture: str
    data_fingerprint: str
    tuned_by: dict | None


def save_settings(run_dir: Path, settings: Settings, data_fingerprint: str, **more: dict | str | None) -> None:
    """Writes ``settings.json``: every parameter, and what ``--resume`` must find again.

    ``more`` may hold ``tuned_by``, or ``fine_tuned_from``, the model a fine-tuning began with.
    """
    identity = {"architecture": settings.model_architecture, "data_fingerprint": data_fingerprint}
    identity |= {key: value for key, value in more.items() if value}
    write_json(run_dir / SETTINGS_FILE, {**identity, "settings": dataclasses.asdict(settings)})


def read_settings(run_dir: Path) -> Started:
    """What an unfinished run was started with.

    Raises:
        RunError: no run folder, a finished run, one that has to start over, or a damaged ``settings.json``.
    """
    path = run_dir / SETTINGS_FILE
    if not path.is_file():
        raise RunError(f"{run_dir}: no run folder to resume ({SETTINGS_FILE} is missing)")
    check_unfinished(run_dir)
    if model := fine_tuned_from(run_dir):
        raise RunError(f"{run_dir}: {not_resumable(model)}")
    try:
        saved = json.loads(path.read_text())
        settings = settings_module.from_dict(saved["settings"])
        started = Started(settings, saved["architecture"], saved["data_fingerprint"], saved.get("tuned_by"))
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not the settings of a run of this version ({error})") from error
    # With results.json, a run that comes this far has been trained to its end.
    trains_on = not (run_dir / RESULTS_FILE).is_file()
    if trains_on and not settings.checkpoint_epochs and (run_dir / BEST_MODEL_FILE).is_file():
        raise RunError(
            f"{run_dir}: CHECKPOINT_EPOCHS = 0 left no checkpoint to go on from, and starting over would replace its"
            f" {BEST_MODEL_FILE}; train anew, or from there with START_FROM"
        )
    return started


def check_unfinished(run_dir: Path) -> None:
    """Raises RunError if the run's files are all there."""
    if (run_dir / RESULTS_FILE).is_file() and without_device_files(run_dir) is None:
        raise RunError(f"{run_dir}: this run is finished, there is nothing to resume; report.py makes its page anew")


def fine_tuned_from(run_dir: Path) -> str | None:
    """The model that a fine-tuning began with, None for every other folder."""
    try:
        return json.loads((run_dir / SETTINGS_FILE).read_text())["fine_tuned_from"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def not_resumable(model: str) -> str:
    """What to do about a fine-tuning of ``model`` that was broken off."""
    return f"a fine-tuning that was broken off can't be resumed; start it again with --model_path {model}"


def without_device_files(run_dir: Path) -> dict | None:
    """``results.json`` of a trained run that has no file for any device yet; None for every other folder."""
    try:
        results = json.loads((run_dir / RESULTS_FILE).read_text())
        return results if set(results["files"]) == {BEST_MODEL_FILE} else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def save_learnt(run_dir: Path, marks: np.ndarray, model_file: Path | None = None) -> None:
    """Writes which pictures the run's model has learnt, those that ``model_file`` had learnt before it among them.

    Args:
        run_dir: the run's folder.
        marks: of :attr:`loader.Splits.learnt`, ``(N,)`` uint64.
        model_file: what the training began with, if not with fresh weights.
    """
    marks = np.union1d(marks, learnt(model_file))
    write(run_dir / LEARNT_FILE, lambda partial: np.save(partial, marks))


def learnt(model_file: Path | None) -> np.ndarray:
    """Marks of the pictures that a run's model has learnt, ``(N,)`` uint64; none if that isn't on record, or no model.

    Raises:
        RunError: the record is damaged.
    """
    if model_file is None:
        return np.empty(0, np.uint64)
    path = model_file.with_name(LEARNT_FILE)
    try:
        marks = np.load(path, allow_pickle=False)
        if marks.dtype != np.uint64 or marks.ndim != 1:
            raise ValueError(f"{marks.ndim} dimensions of {marks.dtype}")
    except FileNotFoundError:
        return np.empty(0, np.uint64)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path}: not a record of learnt pictures ({error}); remove it to go on without") from error
    return marks


def device_files(results: dict) -> dict[str, str]:
    """The file of each device that takes one, by ``results.json``."""
    verdicts = results.get("devices", {})
    return {target: verdict["file"] for target, verdict in verdicts.items() if verdict["accepted"]}
