"""What the tuner tries: axes from the settings, their combinations once each, in an order that spreads early.

Nothing here but :func:`misfits` needs TensorFlow, so a bad search space is refused at once.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import models
from utils import console
from utils.errors import UserError
from utils.settings import Settings, SettingsError

AXIS_PARAMETERS = {
    "optimizer": "tuner_optimizers",
    "learning_rate": "tuner_learning_rates",
    "batch_size": "tuner_batch_sizes",
}
MODEL_AXIS = "model_architecture"
FURTHER_AXES = (
    *("weight_decay", "loss", "label_smoothing", "dropout", "learning_rate_schedule", "warmup_epochs"),
    *("plateau_patience", "plateau_factor", "label_spread", "teacher_share", MODEL_AXIS),
    *(field.name for field in dataclasses.fields(Settings) if field.name.startswith("augment")),
)
MAX_COMBINATIONS = 20_000
# What neither a score nor the meaning of a trial depends on: a search goes on when only these differ.
IRRELEVANT = {
    *("output_dir", "gpu_memory_growth", "gpus", "tuner_max_trials"),
    *("epochs", "early_stopping_patience", "checkpoint_epochs", "monitor", "retrain_max_drop"),
    *("use_qat", "quantize_model", "qat_epochs", "qat_learning_rate", "deploy_targets", "model_version"),
    *("esp_dl_quantize", "esp_dl_targets", "esp_dl_mode", "esp_dl_min_agreement"),
}
ENVIRONMENT = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")

Combination = dict[str, Any]


class SearchError(UserError):
    """The search can't be made, or found nothing. The message says what to change."""


def role() -> str:
    """``"alone"``, ``"chief"`` or ``"worker"``: this process's part, by KerasTuner's environment variables.

    Raises:
        SearchError: only some of them are set.
    """
    missing = [name for name in ENVIRONMENT if not os.environ.get(name)]
    # The name of a tuner alone means nothing.
    if set(ENVIRONMENT[1:]) <= set(missing):
        return "alone"
    if missing:
        raise SearchError(
            f"{', '.join(missing)} not set: a search over several machines needs {', '.join(ENVIRONMENT)}"
        )
    return "chief" if "chief" in os.environ[ENVIRONMENT[0]] else "worker"


def axes(settings: Settings) -> dict[str, list]:
    """Field name -> its different values, each as :class:`Settings` takes it.

    Raises:
        SearchError: an empty axis, an unknown one, or a value that the parameter does not accept.
        UnknownArchitectureError: a model that does not exist.
    """
    found = {field: (name.upper(), getattr(settings, name)) for field, name in AXIS_PARAMETERS.items()}
    for name, values in sorted(settings.tuner_axes.items(), key=lambda item: str(item[0])):
        field = str(name).lower()
        label = f"TUNER_AXES {name}"
        if field in AXIS_PARAMETERS:
            raise SearchError(f"{label}: this axis is {AXIS_PARAMETERS[field].upper()}, give its values there")
        if field not in FURTHER_AXES:
            raise SearchError(f"{label}: no axis, known are {', '.join(name.upper() for name in FURTHER_AXES)}")
        if field in found:
            raise SearchError(f"{label} is given twice: leave one out")
        found[field] = (label, values)
    return {field: _values(settings, field, *given) for field, given in found.items()}


def check(settings: Settings, model_is_given: bool = False) -> None:
    """Refuses what can be refused before anything long.

    Args:
        settings: the search is made with.
        model_is_given: the command line names the model.

    Raises:
        SearchError: see :func:`axes`; too many combinations; an objective that does not exist for 10 classes.
        UnknownArchitectureError: a model that does not exist.
    """
    found = axes(settings)
    models.check(settings.model_architecture)
    if model_is_given and MODEL_AXIS in found:
        raise SearchError("the model is given and an axis of TUNER_AXES at once: leave one of them out")
    if settings.tuner_objective == "int8_within_0.1" and settings.nb_classes == 10:
        raise SearchError("TUNER_OBJECTIVE 'int8_within_0.1' needs tenths: set NB_CLASSES = 100, or 'val_accuracy'")
    if (count := math.prod(map(len, found.values()))) > MAX_COMBINATIONS:
        raise SearchError(f"{count:,} combinations are more than {MAX_COMBINATIONS:,}: shorten an axis of the search")
    role()


def order(axes: dict[str, list], count: int, seed: int) -> list[Combination]:
    """The first ``count`` combinations, none twice, spread over the axes as evenly as each new one can be.

    Each next combination has the values least often seen so far, then the least seen pairs of values, then chance by
    ``seed`` decides. A longer list starts with the shorter one.
    """
    names, sizes = list(axes), [len(values) for values in axes.values()]
    codes = np.array(list(itertools.product(*map(range, sizes))), dtype=np.int64)
    codes = np.random.default_rng(seed).permutation(codes)
    starts = np.cumsum([0, *sizes])[:-1]
    columns = codes + starts
    pairs = list(itertools.combinations(range(len(names)), 2))
    total = sum(sizes)
    pair_codes = np.stack([columns[:, a] * total + columns[:, b] for a, b in pairs], axis=1)
    seen, seen_pairs = np.zeros(total), np.zeros(total * total)
    left, chosen = np.ones(len(codes), bool), []
    for _ in range(min(count, len(codes))):
        # A used value outweighs any pair: no more pairs than the square of the axes, each seen at most count times.
        cost = seen[columns].sum(axis=1) * (count * len(pairs) + 1) + seen_pairs[pair_codes].sum(axis=1)
        best = int(np.argmin(np.where(left, cost, np.inf)))
        left[best] = False
        seen[columns[best]] += 1
        seen_pairs[pair_codes[best]] += 1
        chosen.append({name: axes[name][code] for name, code in zip(names, codes[best], strict=True)})
    return chosen


def signature(
    settings: Settings, axes: dict[str, list], data_fingerprint: str, files: Mapping[str, bytes]
) -> dict[str, Any]:
    """What makes two searches the same: the axes, the data, and every parameter a score depends on; plain JSON.

    ``files`` are by name the contents that scores depend on, too: an architecture's code, a teacher.
    """
    varied = set(axes) | {"tuner_axes", *AXIS_PARAMETERS.values()}
    if settings.tuner_objective == "val_accuracy":
        # Measured in training; a quantised file is smoothed before it is measured.
        varied.add("ring_smoothing")
    fixed = {
        name.upper(): value
        for name, value in dataclasses.asdict(settings).items()
        if name not in varied and name not in IRRELEVANT
    }
    contents = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return json.loads(json.dumps({"axes": named(axes), "settings": fixed, "data": data_fingerprint, "files": contents}))


def architectures(settings: Settings, axes: dict[str, list]) -> list[str]:
    """Names of those that a search tries."""
    return axes.get(MODEL_AXIS, [settings.model_architecture])


def misfits(settings: Settings, architectures: Iterable[str]) -> dict[str, str]:
    """Why architectures don't fit the limits or the objective of a search, by name; those that fit are not in it.

    Raises:
        SearchError: none of them fits.
    """
    if not (settings.tuner_max_kb or settings.tuner_max_macs or settings.tuner_objective != "val_accuracy"):
        return {}
    console.import_tensorflow(settings.gpu_memory_growth)
    reasons = {name: _misfit(name, settings) for name in architectures}
    if all(reasons.values()):
        raise SearchError(f"nothing to search: {'; '.join(f'{name} {reason}' for name, reason in reasons.items())}")
    return {name: reason for name, reason in reasons.items() if reason}


def digest(signature: dict) -> str:
    """A short name of a signature."""
    return hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()[:16]


def changes(old: dict, new: dict) -> list[str]:
    """In words, what differs between two signatures."""
    found = []
    for part in ("axes", "settings"):
        before, after = old.get(part, {}), new[part]
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                found.append(f"{name} was {_shown(before, name)}, is {_shown(after, name)}")
    before = old.get("files", {})
    found += [f"{name} has changed" for name, content in new["files"].items() if before.get(name) != content]
    return found + ["the pictures or labels"] * (old.get("data") != new["data"])


def named(values: dict[str, Any]) -> dict[str, Any]:
    """Field names as the parameters' names."""
    return {name.upper(): value for name, value in values.items()}


def _misfit(name: str, settings: Settings) -> str:
    from utils import complexity

    architecture = models.get(name)
    if settings.tuner_objective != "val_accuracy" and not architecture.quantizable:
        return f"is never quantised, TUNER_OBJECTIVE {settings.tuner_objective!r} does not suit it"
    if not (settings.tuner_max_kb or settings.tuner_max_macs):
        return ""
    try:
        model = architecture.build(settings.input_shape, settings.nb_classes)
    except models.BuildError as error:
        return str(error).removeprefix(f"{name} ")
    work = complexity.multiply_accumulates(model)
    if settings.tuner_max_macs and work > settings.tuner_max_macs:
        return f"has {work:,} multiply-accumulates, more than TUNER_MAX_MACS = {settings.tuner_max_macs:,}"
    size = complexity.file_bytes(model, architecture.quantizable) / 1024
    if settings.tuner_max_kb and size > settings.tuner_max_kb:
        return f"makes a file of about {size:.1f} KiB, more than TUNER_MAX_KB = {settings.tuner_max_kb}"
    return ""


def _shown(values: dict, name: str) -> str:
    return repr(values[name]) if name in values else "not there"


def _values(settings: Settings, field: str, label: str, values: Iterable) -> list:
    if not isinstance(values, list | tuple):
        raise SearchError(f"{label} = {values!r}: needs a list of values")
    if not values:
        raise SearchError(f"{label} is empty: give at least one value")
    taken = []
    for value in values:
        try:
            value = getattr(dataclasses.replace(settings, **{field: value}), field)
        except SettingsError as error:
            raise SearchError(f"{label}: {error}") from None
        if field == MODEL_AXIS:
            models.check(value)
        taken.append(value)
    return list(dict.fromkeys(taken))
