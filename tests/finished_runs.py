"""Settings and model of a finished run, for the scripts that measure one."""

import json
from pathlib import Path

import keras

from utils import runs
from utils import settings as settings_module
from utils.settings import Settings


def settings_of(run: Path, without: tuple[str, ...] = ()) -> Settings:
    """The run's settings; what it doesn't have yet, and ``without``, comes from parameters.py."""
    saved = json.loads((run / runs.SETTINGS_FILE).read_text())["settings"]
    known = Settings.__dataclass_fields__.keys() - set(without)
    return settings_module.load(**{name: value for name, value in saved.items() if name in known})


def model_of(run: Path) -> keras.Model:
    """The run's best model."""
    return keras.models.load_model(run / runs.BEST_MODEL_FILE, compile=False, safe_mode=True)
