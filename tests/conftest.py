"""What several test modules need: tiny settings, tiny pictures, one trained run, the real pictures if there."""

import gc
import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock

from tests.browser import BROWSER, Browser
from utils import settings as settings_module
from utils import synthetic

# As the doors do (console.set_up), before anything imports TensorFlow: without oneDNN, which it leaves out on AMD
# processors, the same training rounds otherwise, and networks trained for seconds come out undecided.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

TINY_SOURCE = {"name": "synthetic", "type": "synthetic", "count": 240}


@contextmanager
def earlier_objects_hidden():
    """What earlier tests of the process left is hidden from the garbage collector, whose passes then cost less."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class CtrlC:
    """Presses Ctrl-C as it comes out of TensorFlow while that builds a graph."""

    def lost(self, *_: object) -> None:
        """In a finaliser, out of which no exception comes."""

        class Finaliser:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)

        Finaliser()

    def as_another_error(self, *_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError("failed to convert elements") from None


@pytest.fixture
def ctrl_c(recwarn):
    """A :class:`CtrlC`; what it loses is warned of, as is expected."""
    # A background process of a shell has the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield CtrlC()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.fixture
def tiny(tmp_path):
    """Makes settings for a run of seconds; keyword arguments override."""

    def make(**overrides):
        small = {"data_sources": [TINY_SOURCE], "epochs": 1, "qat_epochs": 1, "batch_size": 32}
        small |= {"calibration_images": 100, "output_dir": str(tmp_path / "exported")}
        return settings_module.load(**{**small, **overrides})

    return make


@pytest.fixture
def steps_traced(monkeypatch):
    """Grows by one whenever a training step is traced."""
    import keras

    traced, train_step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda self, data: traced.append(self) or train_step(self, data))
    return traced


@pytest.fixture
def picture_folder(tmp_path):
    """Writes synthetic digits as ``<folder>/<meter>/<label>_<n>.png``; returns the folder."""

    def make(name: str, meters: dict[str, int], seed: int = 5) -> Path:
        digits = synthetic.draw(sum(meters.values()), seed)
        numbers = iter(range(len(digits.images)))
        for meter, count in meters.items():
            (tmp_path / name / meter).mkdir(parents=True)
            for _ in range(count):
                write_digit(tmp_path / name / meter, digits, next(numbers))
        return tmp_path / name

    return make


def write_digit(folder: Path, digits: synthetic.SyntheticDigits, number: int) -> Path:
    """Writes one digit as PNG with its label in the name."""
    path = folder / f"{digits.tenths[number] / 10:.1f}_{number}.png"
    cv2.imwrite(str(path), cv2.cvtColor(digits.images[number], cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def user_cache(tmp_path_factory, monkeypatch) -> Path:
    """The user's cache folder, so that no test writes into the real one."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "digit_recognizer"


@pytest.fixture
def folder(tmp_path, user_cache) -> Path:
    """An empty folder of the source "kitchen"; see tests/kitchen.py."""
    (tmp_path / "kitchen").mkdir()
    return tmp_path / "kitchen"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``meter_digits`` and ``unseen_meters``; tests that need it are skipped elsewhere."""
    folder = os.environ.get("METER_DATASETS")
    if not folder or not (Path(folder) / "meter_digits").is_dir():
        pytest.skip("METER_DATASETS names no folder with real pictures")
    return Path(folder)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """One finished run on 2,000 synthetic digits, ``(outcome, settings, splits)``; read it, don't change it."""
    from utils import loader, session

    # Test processes side by side have folders below a common one: the first of them trains, the others read.
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    output = folder / "trained"
    source = {"name": "synthetic", "type": "synthetic", "count": 2000}
    small = {"data_sources": [source], "epochs": 150, "batch_size": 64, "augment": False}
    settings = settings_module.load(**small, output_dir=str(output))
    splits = loader.load(settings)
    with FileLock(folder / "trained.lock"):
        if finished := list(output.glob("*/results.json")):
            outcome = session.Outcome("cnn32", finished[0].parent, json.loads(finished[0].read_text()))
        else:
            (outcome,) = session.train(["cnn32"], settings, session.Options(), splits)
    assert outcome.error == ""
    return outcome, settings, splits


@pytest.fixture
def undrawn():
    """Runs leave out their charts and their page, which take a third of a small run; ``trained_run`` has them."""
    from utils import session

    # A patch of its own, as a test may undo what it has patched.
    with pytest.MonkeyPatch.context() as patch:
        for name in ("training_history", "confusion_matrix", "worst_predictions", "reliability"):
            patch.setattr(session.report, name, lambda *_: None)
        patch.setattr(session.report_page, "write", lambda run_dir: None)
        yield


@pytest.fixture
def already_trained(trained_run, undrawn):
    """A run of cnn32 takes over what ``trained_run`` has learnt: for what comes after the training."""
    from utils import runs, session

    def fit(model, splits, settings, run_dir):
        shutil.copy(trained_run[0].run_dir / runs.BEST_MODEL_FILE, run_dir)
        row = {"epoch": 1, "val_loss": 0.0, "val_accuracy": 1.0, "seconds": 0.0}
        return session.training.Training([row], best_epoch=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.training, "fit", fit)
        yield


@pytest.fixture
def door_within(monkeypatch):
    """A door is called in this process, whose log must not go on into what it had for stderr."""
    from utils import console

    monkeypatch.setattr(console, "set_up", lambda debug=False: None)


@pytest.fixture
def no_pictures(monkeypatch, door_within):
    """A door called in this process must refuse what it is given before it reads a picture."""
    from utils import loader

    monkeypatch.setattr(loader, "load", lambda *_, **__: pytest.fail("pictures were read"))


@pytest.fixture
def browser(tmp_path):
    """A browser without a window; tests that need it are skipped where there is none."""
    if BROWSER is None:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path)
    yield browser
    browser.close()


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded random generator."""
    return np.random.default_rng(0)
