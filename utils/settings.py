"""The schema of ``parameters.py``: one frozen value that every function receives as an argument."""

import ast
import dataclasses
import difflib
import importlib
import math
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from utils.errors import UserError


class SettingsError(UserError):
    """A parameter is unknown or has a value outside its range. The message names it and what is accepted."""


CHOICES: dict[str, tuple] = {
    "nb_classes": (10, 100),
    "input_channels": (1, 3),
    "split_by": ("cluster", "meter", "image"),
    "optimizer": ("adam", "adamw", "nadam", "rmsprop", "sgd"),
    "loss": ("categorical_crossentropy", "categorical_focal_crossentropy"),
    "learning_rate_schedule": ("cosine", "plateau", "constant"),
    "monitor": ("val_loss", "val_accuracy"),
    "tuner_strategy": ("grid", "halving"),
    "tuner_objective": ("val_accuracy", "int8_within_0.1"),
    "quantized_io_type": ("int8", "uint8", "float32"),
    "esp_dl_mode": ("ptq", "tqt", "mixed", "auto"),
}

RANGES: dict[str, tuple[float, float]] = {
    "input_width": (8, 512),
    "input_height": (8, 512),
    "validation_share": (0.01, 0.5),
    "test_share": (0, 0.5),
    "seed": (0, 2**31 - 1),
    "batch_size": (1, 65_536),
    "epochs": (1, 100_000),
    "learning_rate": (1e-8, 10),
    "weight_decay": (0, 1),
    "label_spread": (0, 5),
    "ring_smoothing": (0, 0.33),
    "teacher_share": (0, 1),
    "label_smoothing": (0, 0.5),
    "dropout": (0, 0.9),
    "warmup_epochs": (0, 1000),
    "plateau_patience": (1, 100_000),
    "plateau_factor": (0.01, 0.99),
    "early_stopping_patience": (0, 100_000),
    "checkpoint_epochs": (0, 100_000),
    "augment_rotation": (0, 180),
    "augment_zoom": (0, 0.9),
    "augment_shear": (0, 1),
    "augment_shift_x": (0, 1),
    "augment_shift_y": (0, 1),
    "augment_brightness": (0, 1),
    "augment_contrast": (0, 1),
    "augment_color": (0, 1),
    "augment_grey": (0, 1),
    "augment_swap": (0, 1),
    "augment_light": (0, 1),
    "augment_glare": (0, 1),
    "augment_blur": (0, 1),
    "augment_sharpen": (0, 1),
    "augment_cover": (0, 1),
    "augment_noise": (0, 1),
    "augment_invert": (0, 1),
    "qat_epochs": (1, 1000),
    "qat_learning_rate": (1e-6, 10),
    "retrain_max_drop": (0, 100),
    "tuner_max_trials": (1, 100_000),
    "tuner_epochs": (1, 100_000),
    "tuner_patience": (0, 100_000),
    "tuner_max_kb": (0, 10_000_000),
    "tuner_max_macs": (0, 10**15),
    "calibration_images": (100, 10_000),
    "esp_dl_min_agreement": (0, 1),
    "gpus": (1, 16),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All parameters, in lower case: field ``batch_size`` is ``BATCH_SIZE``. Change by ``dataclasses.replace``.

    Raises:
        SettingsError: a value has the wrong type or lies outside its range.
    """

    model_architecture: str
    nb_classes: int
    input_width: int
    input_height: int
    input_channels: int
    data_sources: list
    test_sources: list
    validation_share: float
    test_share: float
    split_by: str
    balance_sources: bool
    seed: int
    batch_size: int
    epochs: int
    learning_rate: float
    optimizer: str
    weight_decay: float
    loss: str
    label_spread: float
    ring_smoothing: float
    label_smoothing: float
    teachers: list
    teacher_share: float
    start_from: str
    dropout: float
    learning_rate_schedule: str
    warmup_epochs: int
    plateau_patience: int
    plateau_factor: float
    early_stopping_patience: int
    monitor: str
    checkpoint_epochs: int
    augment: bool
    augment_rotation: float
    augment_zoom: float
    augment_shear: float
    augment_shift_x: float
    augment_shift_y: float
    augment_brightness: float
    augment_contrast: float
    augment_color: float
    augment_grey: float
    augment_swap: float
    augment_light: float
    augment_glare: float
    augment_blur: float
    augment_sharpen: float
    augment_cover: float
    augment_noise: float
    augment_invert: float
    retrain_max_drop: float
    tuner_optimizers: list
    tuner_learning_rates: list
    tuner_batch_sizes: list
    tuner_axes: dict
    tuner_max_trials: int
    tuner_epochs: int
    tuner_patience: int
    tuner_strategy: str
    tuner_objective: str
    tuner_max_kb: int
    tuner_max_macs: int
    output_dir: str
    quantize_model: bool
    use_qat: bool
    esp_dl_quantize: bool
    esp_dl_targets: list
    esp_dl_mode: str
    esp_dl_min_agreement: float
    qat_epochs: int
    qat_learning_rate: float
    quantized_io_type: str
    calibration_images: int
    deploy_targets: list
    model_version: str
    gpu_memory_growth: bool
    gpus: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field.name, getattr(self, field.name)))
        for number, teacher in enumerate(self.teachers):
            if not (isinstance(teacher, str) and teacher):
                raise SettingsError(f"TEACHERS[{number}] = {teacher!r}: needs the path of a run folder or .keras file")
        if not self.data_sources:
            raise SettingsError("DATA_SOURCES is empty: give at least one source")
        if self.test_share == 0 and not self.test_sources:
            raise SettingsError("TEST_SHARE = 0 without TEST_SOURCES leaves nothing to measure on: set one of them")
        if self.validation_share + self.test_share > 0.8:
            raise SettingsError("VALIDATION_SHARE + TEST_SHARE must leave at least 0.2 for training")
        if self.batch_size < (least := self.gpus**2):
            raise SettingsError(f"BATCH_SIZE = {self.batch_size}: needs at least {least} with GPUS = {self.gpus}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.input_height, self.input_width, self.input_channels


def load(**overrides: Any) -> Settings:
    """Reads ``parameters.py`` and replaces single values, given by field name.

    Raises:
        SettingsError: unknown, missing or bad parameter, or parameters.py is no Python.
    """
    try:
        module = importlib.import_module("parameters")
    except Exception as error:
        raise SettingsError(_slip(error)) from error
    values = {name.lower(): value for name, value in vars(module).items() if name.isupper()}
    for name in vars(module):
        # Passed over, the line would have no effect, and nobody would be told.
        if not name.isupper() and name.lower() in Settings.__dataclass_fields__:
            raise SettingsError(f"parameters.py: write {name.upper()} for {name}, names are in capitals")
    return from_dict({**values, **overrides})


def from_dict(values: dict[str, Any]) -> Settings:
    """Builds settings from a complete mapping of field names (``settings.json``, ``parameters.py``).

    Raises:
        SettingsError: unknown, missing or bad parameter.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in values:
        if name not in known:
            raise SettingsError(_unknown(name, known))
    missing = [name.upper() for name in known if name not in values]
    if missing:
        raise SettingsError(f"missing in parameters.py: {', '.join(missing)}")
    return Settings(**values)


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turns ``["EPOCHS=5", "OUTPUT_DIR=/tmp/x"]`` into overrides for :func:`load`.

    Values are Python literals; for a text parameter a bare word or a path will do.

    Raises:
        SettingsError: no ``=``, an unknown name, or a value that is no literal of the parameter's type.
    """
    types = {field.name: field.type for field in dataclasses.fields(Settings)}
    overrides = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        field = name.strip().lower()
        if not equals:
            raise SettingsError(f"--set {assignment}: write NAME=VALUE, for example --set EPOCHS=5")
        if field not in types:
            raise SettingsError(f"--set {assignment}: {_unknown(field, list(types))}")
        overrides[field] = checked(field, _literal(field, types[field], text.strip()))
    return overrides


def checked(field: str, value: Any) -> Any:
    """One parameter's value as the settings hold it, given by field name.

    Raises:
        SettingsError: it has the wrong type or lies outside its range.
    """
    name, kind = field.upper(), Settings.__dataclass_fields__[field].type
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < sys.float_info.max else math.inf
    if kind is list and isinstance(value, tuple):
        value = list(value)
    if type(value) is not kind:
        raise SettingsError(f"{name} = {value!r}: needs a value of type {kind.__name__}, got {type(value).__name__}")
    if field in CHOICES and value not in CHOICES[field]:
        raise SettingsError(f"{name} = {value!r}: accepted are {', '.join(map(repr, CHOICES[field]))}")
    if field in RANGES:
        low, high = RANGES[field]
        # In this order, as a whole number may be too large for isfinite.
        if not (low <= value <= high and math.isfinite(value)):
            raise SettingsError(f"{name} = {value!r}: accepted are {low:g}..{high:g}")
    if field in ("output_dir", "start_from"):
        value = os.path.expanduser(value)
    if field == "teachers":
        value = [os.path.expanduser(one) if isinstance(one, str) else one for one in value]
    if field in ("data_sources", "test_sources"):
        value = [_with_text_path(one) for one in value]
    if field == "output_dir" and (not value or "\0" in value or os.path.isfile(value)):
        raise SettingsError(f"{name} = {value!r}: needs the path of a folder")
    return value


def _slip(error: Exception) -> str:
    """What is wrong in ``parameters.py``, which people edit, and in which line."""
    if isinstance(error, ModuleNotFoundError) and error.name == "parameters":
        return "parameters.py is missing beside the scripts: get it back from the project"
    if isinstance(error, SyntaxError) and error.lineno is None:
        return f"parameters.py: {error.msg}: save it as text in UTF-8"
    if isinstance(error, SyntaxError):
        # A path of Windows as it is copied there: Python takes \U, \x and \N for the beginning of a letter's number.
        hint = "; write / for \\ in a path" if "unicodeescape" in error.msg else ""
        return f"parameters.py line {error.lineno}: {error.msg}{hint}: {(error.text or '').strip()}"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).stem == "parameters"]
    where = f" line {lines[-1].lineno}: {lines[-1].line}" if lines else ""
    return f"parameters.py{where}: {type(error).__name__}: {error}"


def _with_text_path(source: Any) -> Any:
    # What is no dictionary is refused where sources are parsed.
    if isinstance(source, dict) and isinstance(source.get("path"), Path):
        return {**source, "path": str(source["path"])}
    return source


def _literal(field: str, kind: type, text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if kind is str:
            return text
        raise SettingsError(f"{field.upper()}: {text!r} is no Python literal of type {kind.__name__}") from None
    return text if kind is str and not isinstance(value, str) else value


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0].upper()}?" if near else "; see parameters.py for the names"
    return f"unknown parameter {name.upper()}{hint}"
