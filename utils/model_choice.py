"""Which trained model is meant by an option or a setting, and what it asks of the settings.

Keras, which takes seconds, is imported only to load a model that ``TEACHERS`` or ``START_FROM`` names.
"""

import json
import logging
from pathlib import Path
from typing import Any

import models
from utils import console, model_archive, model_files, runs, search_space
from utils import settings as settings_module
from utils.model_archive import ModelFileError, one_sentence, printable
from utils.settings import Settings

log = logging.getLogger(__name__)

# Of a run's settings what its model can't tell: what its outputs mean, and which pictures it did not learn from.
OF_SPLIT = ("seed", "split_by", "test_share", "validation_share")
OF_RUN = ("label_spread", *OF_SPLIT)


def find(path: Path | None, output_dir: Path) -> Path:
    """The ``.keras`` file meant: the file itself, a run folder's best model, or for None the newest finished run's.

    Raises:
        ModelFileError: nothing there, a folder without a model, or no finished run.
    """
    if path is None:
        return _newest(output_dir)
    with one_sentence(f"{path}: cannot be read"):
        if path.is_dir():
            path = _model_of(path)
        elif not path.is_file():
            raise ModelFileError(f"{path}: no such file or folder; name a .keras file or a run folder")
    return path


def declared(path: Path) -> dict[str, int]:
    """The settings that a model's own description asks for: ``input_*`` and ``nb_classes``, as far as it tells them.

    Raises:
        ModelFileError: what :func:`model_archive.read` finds; pictures of a size that isn't supported.
    """
    config = model_archive.read(path)[0]
    with one_sentence(f"{path}: its description of the layers is damaged; take another file"):
        found = _asked_for(json.loads(config)["config"].get("layers", []))
    for name, value in found.items():
        low, high = settings_module.RANGES.get(name, (0, 0))
        # Not "in" alone: True and 1.0 would be one, too.
        if type(value) is not int or not (low <= value <= high or value in settings_module.CHOICES.get(name, ())):
            raise ModelFileError(
                f"{path}: a model with {name.upper()} = {printable(repr(value))} is not supported: sides of 8 to 512"
                " pixels and 1 or 3 channels are"
            )
    return found


def trained_with(path: Path) -> dict[str, int | float | str]:
    """What :func:`declared` finds, and :data:`OF_RUN` of the run that the model is of, if it is of one.

    Raises:
        ModelFileError: what :func:`declared` says.
    """
    found = declared(path)
    try:
        saved = json.loads((path.parent / runs.SETTINGS_FILE).read_text())["settings"]
        return {**found, **{name: settings_module.checked(name, saved[name]) for name in OF_RUN}}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, settings_module.SettingsError):
        return found


def learnt_folders(path: Path) -> set[Path]:
    """Folders of which the model, or one that it began with, may have learnt pictures that are on no record.

    Empty if it belongs to no run; of runs with a record (:func:`runs.learnt`) the loader knows each picture.
    """
    try:
        # START_FROM may be a folder.
        path = path / runs.BEST_MODEL_FILE if path.is_dir() else path
        saved = json.loads((path.parent / runs.SETTINGS_FILE).read_text())
        began = saved.get("fine_tuned_from") or saved["settings"].get("start_from")
        recorded = path.with_name(runs.LEARNT_FILE).exists()
        found = [one for one in saved["settings"]["data_sources"] if "path" in one and one.get("weight", 1)]
        folders = set() if recorded else {Path(one["path"]).expanduser().resolve() for one in found}
        return folders | (learnt_folders(Path(began)) if began else set())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return set()


def to_go_on(path: Path | None, given: dict[str, Any]) -> tuple[Path, Settings]:
    """The file that :func:`find` finds, and the settings to teach that model further.

    They are what is ``given``, refused where it doesn't fit, else :func:`trained_with`, else ``parameters.py``.

    Raises:
        ModelFileError: what :func:`find` and :func:`declared` say.
        SettingsError: they don't fit together; the message names what is the run's, which nobody may have in mind.
    """
    path = find(path, Path(settings_module.load(**given).output_dir))
    found = trained_with(path)
    try:
        return path, settings_module.load(**{**found, **given})
    except settings_module.SettingsError as error:
        own = ", ".join(f"{name.upper()} = {found[name]!r}" for name in OF_RUN if name in found and name not in given)
        raise settings_module.SettingsError(f"{error}; of the model's run are {own}" if own else str(error)) from error


def teachers(settings: Settings) -> list[Path]:
    """The files that ``TEACHERS`` names. One whose description shows already that it does not fit is refused.

    Raises:
        ModelFileError: what :func:`find`, :func:`declared` and :func:`model_files.check_teacher` say.
    """
    files = [find(Path(teacher), Path(settings.output_dir)) for teacher in settings.teachers]
    for file in files:
        asked = declared(file)
        shape = tuple(asked.get(f"input_{side}", 0) for side in ("height", "width", "channels"))
        if all(shape) and "nb_classes" in asked:
            model_files.check_teacher(model_files.Identity(str(file), shape, asked["nb_classes"]), settings)
    return files


def check_named(settings: Settings, *architectures: str, searching: bool = False) -> None:
    """Sees that the models which ``TEACHERS`` and ``START_FROM`` name are there and fit, before the long part begins.

    Warns of a ``START_FROM`` that has learnt, or may have, from what the split holds out.

    Args:
        settings: name them.
        architectures: what is to be trained.
        searching: whether hyper-parameters are searched; then one of the architectures has to fit the limits of that.

    Raises:
        ModelFileError: what :func:`teachers`, :func:`start`, :func:`model_files.load` and
            :func:`model_files.copy_weights` say.
        SearchError: what :func:`search_space.misfits` says.
    """
    if searching:
        search_space.misfits(settings, search_space.axes(settings).get(search_space.MODEL_AXIS, architectures))
    for teacher in teachers(settings):
        _loaded(teacher, settings)
    if file := start(settings, *architectures):
        found = _loaded(file, settings)
        for name in architectures:
            model_files.copy_weights(found, models.get(name).build(settings.input_shape, settings.nb_classes))
        warn_if_unrecorded(file)
        _warn_of_other_split(file, settings)


def warn_if_unrecorded(file: Path) -> None:
    """Says so where nothing tells what a model has learnt, as of a file that was copied out of its run's folder."""
    if not any(file.with_name(name).exists() for name in (runs.LEARNT_FILE, runs.SETTINGS_FILE)):
        told = "%s is in no run's folder: what it has learnt is not on record, and pictures of that flatter the model"
        log.warning(told + " where they are measured on; name its run's folder, if there is one", file)


def _warn_of_other_split(start: Path, settings: Settings) -> None:
    of_run, sides = trained_with(start), {"input_height", "input_width"}
    differing = [
        name for name in (*OF_SPLIT, *sorted(sides)) if of_run.get(name, one := getattr(settings, name)) != one
    ]
    # The loader knows pictures by their pixels, and split by image it measures on them all the same.
    known = start.with_name(runs.LEARNT_FILE).exists() and settings.split_by != "image" and not sides & {*differing}
    then = "what it has learnt is not measured on" if known else "it may have learnt pictures that are measured on here"
    for name in differing:
        told = "START_FROM was trained with %s = %r, not %r: %s"
        log.warning(told, name.upper(), of_run[name], getattr(settings, name), then)


def _loaded(file: Path, settings: Settings) -> Any:
    # How it ends, and what its weights are, only Keras can tell.
    console.import_tensorflow(settings.gpu_memory_growth)
    return model_files.load(file)


def start(settings: Settings, *architectures: str) -> Path | None:
    """The file that ``START_FROM`` names, if it does, for these architectures to begin with.

    Raises:
        ModelFileError: what :func:`find` and :func:`declared` say; a model of another architecture or for other
            colours.
    """
    if not settings.start_from:
        return None
    file = find(Path(settings.start_from), Path(settings.output_dir))
    name = json.loads(model_archive.read(file)[0])["config"]["name"]
    for architecture in architectures:
        if architecture != name:
            raise ModelFileError(
                f"START_FROM = {settings.start_from!r} is a {name}, to be trained is {architecture}: "
                "name a model of the same architecture"
            )
    # Another size fits where a network pools over all of the picture; other colours never do.
    channels = declared(file).get("input_channels", settings.input_channels)
    if channels != settings.input_channels:
        raise ModelFileError(
            f"START_FROM = {settings.start_from!r} reads pictures of {channels} channels but INPUT_CHANNELS = "
            f"{settings.input_channels}: use --set INPUT_CHANNELS={channels}, or another model"
        )
    return file


def _asked_for(layers: list[dict]) -> dict[str, int]:
    shapes = [layer["config"].get("batch_shape") for layer in layers if layer["class_name"] == "InputLayer"]
    # A dense layer, a convolution or a reshape to a row says how many values come out.
    configs = [layer["config"] for layer in layers]
    rows = [config.get("target_shape", [config.get("units", config.get("filters"))]) for config in configs]
    units = [row[0] for row in rows if isinstance(row, list) and len(row) == 1 and row[0] is not None]
    found = {"nb_classes": units[-1]} if units and units[-1] in settings_module.CHOICES["nb_classes"] else {}
    if len(shapes) == 1 and isinstance(shapes[0], list) and len(shapes[0]) == 4 and all(shapes[0][1:]):
        found |= dict(zip(("input_height", "input_width", "input_channels"), shapes[0][1:], strict=True))
    return found


def _newest(output_dir: Path) -> Path:
    """The newest finished run's model: by the time ``results.json`` was written, then by name (it holds the start)."""
    with one_sentence(f"OUTPUT_DIR {output_dir}: cannot be read"):
        # A run writes results.json last, so its time is the end of the run; a copied folder may be older than it.
        found = list(output_dir.glob(f"*/{runs.RESULTS_FILE}"))
        results = [(path.stat().st_mtime_ns, path.parent.name, path) for path in found]
    for _, _, path in sorted(results, reverse=True):
        model = path.with_name(runs.BEST_MODEL_FILE)
        try:
            _finished(path)
            model_archive.read(model)
        except ModelFileError as error:
            log.warning("no model named: passed over %s (%s)", path.parent, error)
            continue
        # Not its file: what only reads goes by the one that the run recommends.
        log.info("no model named: taking %s", path.parent)
        return model
    raise ModelFileError(f"{output_dir}: no finished run there; train a model first or name a model")


def _finished(results: Path) -> None:
    with one_sentence(f"{results}: damaged"):
        found = json.loads(results.read_text())
        if not isinstance(found, dict):
            raise ModelFileError(f"{results}: damaged")
        judgement = found.get("judgement")
        if isinstance(judgement, dict) and judgement.get("accepted") is False:
            raise ModelFileError(f"{results}: its retraining was REJECTED; name it to use it all the same")


def _model_of(folder: Path) -> Path:
    if (folder / runs.BEST_MODEL_FILE).is_file():
        return folder / runs.BEST_MODEL_FILE
    hint = "name a .keras file or the folder of a finished run"
    if (folder / "saved_model.pb").is_file():
        hint = "this is a SavedModel: save the model as .keras, or, to read pictures alone, convert it to .tflite"
    if (folder / runs.SETTINGS_FILE).is_file():
        began = runs.fine_tuned_from(folder)
        hint = f"this run is not finished: train.py --resume {folder} goes on with it"
        hint = runs.not_resumable(began) if began else hint
    raise ModelFileError(f"{folder}: no {runs.BEST_MODEL_FILE} in this folder; {hint}")
