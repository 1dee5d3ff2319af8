"""The one sequence every model goes through: folder, fit, export, score, report."""

import concurrent.futures
import dataclasses
import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

import models
from utils import (
    complexity,
    confidence,
    console,
    deployment,
    devices,
    evaluation,
    fake_quant,
    fine_tuning,
    labels,
    loader,
    model_choice,
    model_files,
    processes,
    quantization,
    recognizers,
    report,
    report_page,
    runs,
    scoring,
    targets,
    temperature,
    training,
    worst_readings,
)
from utils.errors import UserError, in_words, stop_if_interrupted
from utils.loader import Splits
from utils.plans import Plan
from utils.quantization import QuantizationMode
from utils.settings import Settings
from utils.sources import SourceError

log = logging.getLogger(__name__)

SECONDS_TO_END = 10  # that trainings side by side have after Ctrl-C
MOST_LOST = 0.005  # share of a set that a lesson may cost before it is told, but one picture at any rate
LOW_AGREEMENT = 0.9  # of a file with the Keras model; rounding to 8 bits costs a trained network some hundredths


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one run ended: ``results`` is what ``results.json`` holds, or None and ``error`` says why."""

    architecture: str
    run_dir: Path | None
    results: dict | None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """What there is to say about a run besides the settings; ``tuned_by``: the search that chose them, as it is to
    stand in ``results.json``.
    """

    keep_checkpoints: bool = False
    debug: bool = False
    tuned_by: dict | None = None


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A trained model that is to learn more: ``model`` has the head and the frozen layers that the plan asks for.

    ``old`` is the trained one, giving the same outputs, None if the head is fresh; ``confidence`` is that recommended
    for these outputs, None if there is none.
    """

    file: Path
    old: keras.Model | None
    model: keras.Model
    plan: Plan
    mode: QuantizationMode
    confidence: float | None
    free: int  # parameters that train


def train(names: list[str], settings: Settings, options: Options, splits: Splits) -> list[Outcome]:
    """Trains architectures one after the other on the same data; one that fails does not stop the others."""
    return [_attempt(name, settings, options, splits) for name in names]


def check(names: list[str], settings: Settings) -> None:
    """Refuses architectures, before a search for instance, that :func:`train` would not begin to train.

    Raises:
        UserError: one is no model of this toolkit's kind, or can't become what the settings ask for.
    """
    for name in names:
        architecture = models.get(name)
        model = architecture.build(settings.input_shape, settings.nb_classes)
        _check(model, name, settings, quantization.resolve(settings, name, architecture.quantizable))


def train_side_by_side(names: list[str], settings: Settings, options: Options, jobs: int) -> list[Outcome]:
    """Like :func:`train`, ``jobs`` at a time, each in a process of its own that reads the (cached) data itself."""
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def one(name: str) -> Outcome:
        # A pool of its own for each, since a process that dies breaks its whole pool.
        with processes.pool(1) as process:
            try:
                # By itself, and first: where the next call is unpacked TensorFlow would be imported with all it says.
                process.submit(console.import_tensorflow, settings.gpu_memory_growth, threads).result()
                return process.submit(_in_process, name, settings, options).result()
            except concurrent.futures.process.BrokenProcessPool:
                # Only its process knew the folder.
                then = "go on with train.py --resume and its run folder, if the log above names one"
                return Outcome(name, None, None, f"its process ended without a word (out of memory?); {then}")

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(one, names))
        except KeyboardInterrupt:
            processes.end_all(SECONDS_TO_END)
            raise


def resume(run_dir: Path, options: Options) -> Outcome:
    """Finishes a run that was broken off, from its last checkpoint, with the settings it was started with.

    One that was trained by another Keras backend than TensorFlow gets its files for devices.

    Raises:
        RunError: no unfinished run there, or another process is at it.
        DataError: the pictures are not those the run was started with.
    """
    started = runs.read_settings(run_dir)
    settings = started.settings
    devices.check(settings)
    try:
        # What the run began with may be gone; its own record has what that had learnt.
        splits = loader.load(settings, model_file=run_dir / runs.BEST_MODEL_FILE)
    except SourceError as error:
        where = "this run's own settings name it; relative paths are taken from the folder it was started in"
        raise loader.DataError(f"{error} ({where}: start --resume there)") from error
    if splits.fingerprint != started.data_fingerprint:
        raise loader.DataError(f"{run_dir}: the pictures or labels have changed since this run was started; start anew")
    options = dataclasses.replace(options, tuned_by=started.tuned_by)
    return _attempt(started.architecture, settings, options, splits, run_dir)


def prepare(model_file: Path, plan: Plan, settings: Settings) -> Lesson:
    """Makes what :func:`fine_tune` trains of a ``.keras`` file, which stays as it is.

    Pictures, which may take a minute to read, are not needed for it: what can't be taught is refused before.

    Raises:
        ModelFileError, FineTuningError, QuantizationError: the model, or what is asked of it, doesn't fit.
    """
    old = model_files.load(model_file)
    new_head = plan.strategy == "feature_extractor" and old.output_shape[-1] != settings.nb_classes
    model_files.check_fits(old, settings, new_head)
    recommended = None if new_head else recognizers.recommended_confidence(model_file)
    fresh = new_head and not fine_tuning.knows_tenths(old)
    if new_head:
        old = fine_tuning.with_new_head(old, settings.nb_classes, settings.seed)
    model = models.as_graph(old, old.name)
    free = fine_tuning.freeze(model, plan.strategy)
    mode = quantization.resolve(settings, model.name, _quantizable(model.name))
    _check_quantizable(model, str(model_file), settings, mode)
    return Lesson(model_file, None if fresh else old, model, plan, mode, recommended, free)


def fine_tune(
    lesson: Lesson, settings: Settings, splits: Splits, judged: Callable[[Path, dict], dict] | None = None
) -> Outcome:
    """Teaches a trained model what the plan's new sources show, exports it, measures both before and after.

    Args:
        lesson: of :func:`prepare`; its model is trained in place.
        settings: those it was prepared with.
        splits: as :func:`loader.load` made them with the plan's new sources.
        judged: makes the "judgement" of the run's folder and results, before anybody can take it for finished.

    Raises:
        FineTuningError: there is nothing to learn from, or the weights are no numbers any more.
        RunError: the run folder can't be made or written to.
    """
    started = time.monotonic()
    model_file, old, model, plan, mode = lesson.file, lesson.old, lesson.model, lesson.plan, lesson.mode
    settings = dataclasses.replace(settings, model_architecture=model.name)
    augmented = tuple(source["name"] for source in settings.data_sources if source.get("augmented"))
    chosen = fine_tuning.mix(splits, plan, augmented, settings.seed)
    _warn_of_learnt(model_file, plan, settings, splits)
    _warn_of_twins(plan, splits)
    run_dir = runs.create(settings, mode.label, "_finetuned")
    # A full disk's own error names no file.
    with runs.written(run_dir), runs.hold(run_dir):
        runs.save_settings(run_dir, settings, splits.fingerprint, fine_tuned_from=str(model_file))
        log.info("fine-tuning %s in %s", model_file, run_dir)
        before = scoring.sets_of(old, splits) if old else {}
        teacher = old if plan.new else None
        seconds = fine_tuning.fit(model, teacher, splits, chosen, plan, settings)
        model.trainable = True
        settled = _settled_confidence(lesson, splits)
        scale = temperature.fold(model, splits, settings, like=None if settled is None else old)
        runs.write(run_dir / runs.BEST_MODEL_FILE, model.save)
        runs.save_learnt(run_dir, splits.learnt, model_file)
        model = model_files.load(run_dir / runs.BEST_MODEL_FILE)
        fitted = {**dataclasses.asdict(plan), "trained_parameters": lesson.free, **fine_tuning.facts(chosen)}
        results = _results(model, splits, settings, mode, run_dir, fitted, settled)
        results["temperature"] = scale
        results["before"] = {"file": str(model_file), "sets": before}
        results["timing"] = _timing(seconds, started)
        if judged:
            results["judgement"] = judged(run_dir, results)
        else:
            _warn_of_losses(results)
        runs.write_json(run_dir / runs.RESULTS_FILE, results)
        report_page.write(run_dir)
    return Outcome(model.name, run_dir, results)


def _settled_confidence(lesson: Lesson, splits: Splits) -> float | None:
    """The confidence recommended for the old model, where next to only drawn digits could say another.

    Those are harder than photographs: theirs refused half of the right readings of a meter that had just been learnt.
    """
    pictures = splits.different_validation
    photographs = int((~np.isin(splits.pool.source_ids[pictures], splits.drawn)).sum())
    settled = lesson.confidence if photographs < confidence.ENOUGH else None
    if settled is not None:
        log.info(
            "only %d validation pictures are photographs, it takes %d: the recommended confidence stays %g",
            *(photographs, confidence.ENOUGH, settled),
        )
    return settled


def _warn_of_learnt(model_file: Path, plan: Plan, settings: Settings, splits: Splits) -> None:
    """Says of which new pictures some that are kept aside were learnt by the model itself, or that nothing tells."""
    model_choice.warn_if_unrecorded(model_file)
    learnt = model_choice.learnt_folders(model_file)
    for source in settings.data_sources:
        kept_aside = loader.aside_of(source["name"])
        if source["name"] in plan.new and kept_aside in splits.measured:
            folder = Path(source["path"]).expanduser().resolve()
            if any(one.is_relative_to(folder) or folder.is_relative_to(one) for one in learnt):
                log.warning(
                    '%s: %s was trained on pictures of this folder and may have learnt what is kept aside, so "%s"'
                    " looks better than it is; measure on further pictures: benchmark.py RUN OLD_MODEL --data FOLDER",
                    *(source["path"], model_file, kept_aside),
                )


def _warn_of_twins(plan: Plan, splits: Splits) -> None:
    """Says of which new sources the most are near twins: their number promises more than they teach, or measure."""
    for name in plan.new:
        clusters = splits.clusters[splits.pool.source_ids == splits.source(name)]
        if (different := len(np.unique(clusters))) < len(clusters) / 2:
            log.warning(
                "the %d pictures of %s are only %d different ones, the rest are near twins: they teach no more than"
                " these, and those kept aside measure no more",
                *(len(clusters), name, different),
            )


def _warn_of_losses(results: dict) -> None:
    """Says which sets the recommended file reads worse than the old model did, by more than rounding and chance."""
    score, file = labels.main_metric(results["nb_classes"]), results["recommended"]
    for name, was in results["before"]["sets"].items():
        now = results["files"][file]["sets"][name][score]
        if round(was["n"] * (was[score] - now)) > max(1, was["n"] * MOST_LOST):
            log.warning(
                "%s reads %s worse: %s %.4f, before %.4f; look for wrong labels (datasets/inspect.py with --model), or"
                " set a lower --learning_rate_multiplier",
                *(file, name, score.replace("_", " "), now, was[score]),
            )


def stopped_by_system(name: str, run_dir: Path | None, error: OSError, settings: Settings, then: str) -> Outcome:
    """The outcome of an architecture that a full disk, above all, put an end to; ``then``: what to do afterwards."""
    text = f"{in_words(error, settings.output_dir)}; mend that, then {then}"
    log.error("%s: %s", name, text)
    return Outcome(name, run_dir, None, text)


def summary(outcomes: list[Outcome]) -> str:
    """The final table of all runs, failed ones with the reason."""
    rows = [report.HEADING]
    notes = []
    for outcome in outcomes:
        if outcome.results is None:
            rows.append([outcome.architecture, "FAILED", *["-"] * (len(report.HEADING) - 2)])
            notes.append(f"{outcome.architecture} FAILED: {outcome.error}")
        else:
            rows += report.result_rows(outcome.results)
            size = f"{outcome.results['parameters']:,} parameters"
            work = f"{outcome.results['multiply_accumulates']:,} multiply-accumulates"
            notes.append(f"{outcome.architecture}: {size}, {work}, in {outcome.run_dir}")
            notes.append(f"{outcome.architecture}: {_recommendation(outcome.results)}")
            notes += [f"{outcome.architecture}: {text}" for text in [*_to_flash(outcome.results), *refusals(outcome)]]
    return "\n".join([report.table(rows), "", *notes])


def refusals(outcome: Outcome) -> list[str]:
    """Why devices refuse files of a run, a line each."""
    devices = (outcome.results or {}).get("devices", {})
    return [
        f"{target} refuses {verdict['file']}: {reason}"
        for target, verdict in devices.items()
        for reason in verdict["reasons"]
    ]


def _recommendation(results: dict) -> str:
    threshold = results["recommended_confidence"]
    # Too few validation pictures are no fault of the readings.
    enough = f"{confidence.ENOUGH} validation pictures, {confidence.GOAL:.1%} right"
    unsure = f"no confidence is recommended: it takes {enough}"
    if threshold is not None:
        unsure = f"its readings are unsure below a confidence of {threshold:g}"
    return f"recommended is {results['recommended']}; {unsure}"


def _to_flash(results: dict) -> list[str]:
    return [f"the file for {target} is {file}" for target, file in runs.device_files(results).items()]


def _in_process(name: str, settings: Settings, options: Options) -> Outcome:
    console.set_up(options.debug)
    splits = loader.load(settings, model_file=model_choice.start(settings))
    return _attempt(name, settings, options, splits)


def _attempt(name: str, settings: Settings, options: Options, splits: Splits, run_dir: Path | None = None) -> Outcome:
    try:
        return _run(models.get(name), settings, options, splits, run_dir)
    except OSError as error:
        return stopped_by_system(name, run_dir, error, settings, "go on with train.py --resume and the run's folder")
    except Exception as error:
        stop_if_interrupted()
        if isinstance(error, UserError):
            log.error("%s: %s", name, error)
            return Outcome(name, run_dir, None, str(error))
        # One model of a list must not take the others with it; the traceback tells what happened.
        log.error("%s failed:\n%s", name, traceback.format_exc())
        return Outcome(name, run_dir, None, f"{type(error).__name__}: {error}")


def _run(
    architecture: models.Architecture, settings: Settings, options: Options, splits: Splits, run_dir: Path | None
) -> Outcome:
    targets.check(settings)
    # --train names another one than parameters.py: folder, papers and page tell what was trained.
    settings = dataclasses.replace(settings, model_architecture=architecture.name)
    mode = quantization.resolve(settings, architecture.name, architecture.quantizable)
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    with devices.shared(settings):
        model = architecture.build(settings.input_shape, settings.nb_classes)
    if run_dir is None:
        _check(model, architecture.name, settings, mode)
        run_dir = runs.create(settings, mode.label)
        runs.save_settings(run_dir, settings, splits.fingerprint, tuned_by=options.tuned_by)
        # What the run begins with may be gone when it is resumed.
        runs.save_learnt(run_dir, splits.learnt, model_choice.start(settings, architecture.name))
    with runs.hold(run_dir):
        # Another process may have finished it while this one read pictures.
        runs.check_unfinished(run_dir)
        results = runs.without_device_files(run_dir) or _fit(model, splits, settings, options, run_dir)
        # As if all epochs had been made at once: those before an interruption belong to the run, too.
        started = time.monotonic() - results["timing"]["training_s"]
        # What is measured is what is on the disk.
        model = keras.models.load_model(run_dir / runs.BEST_MODEL_FILE, compile=False, safe_mode=True)
        if "temperature" not in results:
            results["temperature"] = temperature.fold_best(model, run_dir, splits, settings)
        results |= _results(model, splits, settings, mode, run_dir, results["training"])
        results["timing"] = _timing(results["timing"]["training_s"], started)
        runs.write_json(run_dir / runs.RESULTS_FILE, results)
        # The page is last: its room may be what the checkpoints took, and report.py can make it, too.
        if not options.keep_checkpoints:
            shutil.rmtree(run_dir / runs.CHECKPOINT_FOLDER, ignore_errors=True)
        report_page.write(run_dir)
    return Outcome(architecture.name, run_dir, results)


def _check(model: keras.Model, name: str, settings: Settings, mode: QuantizationMode) -> None:
    file = f"models/{name}.py"
    model_files.check_built(model, file, settings)
    _check_quantizable(model, file, settings, mode)
    model_files.warn_of_foreign_layers(model, file)


def _check_quantizable(model: keras.Model, file: str, settings: Settings, mode: QuantizationMode) -> None:
    if mode.int8:
        fake_quant.check(model, file)
        if keras.backend.backend() == "tensorflow":
            deployment.foresee(model, settings)


def _fit(model: keras.Model, splits: Splits, settings: Settings, options: Options, run_dir: Path) -> dict:
    """Trains; returns what ``results.json`` is to hold of it."""
    log.info("training %s in %s", model.name, run_dir)
    fitted = training.fit(model, splits, settings, run_dir)
    report.training_history(run_dir / "training_history.png", fitted.rows, fitted.best_epoch)
    results = {"training": _training_facts(fitted), "timing": {"training_s": fitted.seconds}}
    return results | ({"tuned_by": options.tuned_by} if options.tuned_by else {})


def _results(
    model: keras.Model,
    splits: Splits,
    settings: Settings,
    mode: QuantizationMode,
    run_dir: Path,
    fitted: dict,
    settled: float | None = None,
) -> dict:
    """Exports and measures a trained model; returns what ``results.json`` is to hold of it.

    ``settled`` is the recommended confidence where it need not be found.
    """
    return {
        "architecture": model.name,
        "nb_classes": settings.nb_classes,
        "input_shape": list(settings.input_shape),
        "mode": mode.label,
        "notes": [mode.note] if mode.note else [],
        "parameters": complexity.parameters(model),
        "multiply_accumulates": complexity.multiply_accumulates(model),
        "training": fitted,
        "data": splits.facts,
        **_deliver(model, splits, settings, mode, run_dir, settled),
    }


def _timing(training_seconds: float, started: float) -> dict[str, float]:
    return {"training_s": round(training_seconds, 1), "run_s": round(time.monotonic() - started, 1)}


def _deliver(
    model: keras.Model,
    splits: Splits,
    settings: Settings,
    mode: QuantizationMode,
    run_dir: Path,
    settled: float | None,
) -> dict:
    """Converts, gates, writes and measures the files; returns their part of the results."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        log.warning(
            "no files for devices: TensorFlow makes them and Keras runs on %s; with TensorFlow,"
            " train.py --resume %s makes them of this run",
            backend,
            run_dir,
        )
    made = deployment.make(model, splits, settings, mode) if backend == "tensorflow" else []
    files = deployment.accepted(made)
    for file in files:
        runs.write(run_dir / file.name, lambda partial, file=file: partial.write_bytes(file.content))
    chosen = _recommended(files)
    recommended = chosen.name if chosen else runs.BEST_MODEL_FILE
    threshold = _threshold(model, chosen, splits) if settled is None else settled
    scores = _score(model, files, splits, run_dir, recommended, threshold)
    if files:
        deployment.write_papers(run_dir, files, splits, settings, scores, threshold)
    return {
        "files": scores,
        "recommended": recommended,
        "recommended_confidence": threshold,
        "devices": deployment.facts(made),
    }


def _training_facts(fitted: training.Training) -> dict:
    # What was measured on training pictures stays out: results.json holds no flattering number.
    best = fitted.rows[fitted.best_epoch - 1]
    validation = {name: value for name, value in best.items() if name.startswith("val_")}
    return {"epochs": len(fitted.rows), "best_epoch": fitted.best_epoch, **validation}


def _score(
    model: keras.Model,
    files: list[deployment.DeviceFile],
    splits: Splits,
    run_dir: Path,
    recommended: str,
    threshold: float | None,
) -> dict[str, dict]:
    """Measures every file on every test set and draws the plots of the recommended one."""
    pool = splits.pool
    indices = np.concatenate(list(splits.measured.values()))
    images, classes = pool.images(indices), pool.classes(indices)
    logits = {runs.BEST_MODEL_FILE: evaluation.keras_logits(model, images)}
    for file in files:
        logits[file.name] = evaluation.file_logits(file.name, file.content, images)
    reference = logits[runs.BEST_MODEL_FILE].argmax(axis=1)
    entries = {
        file: {"bytes": (run_dir / file).stat().st_size, "sets": scoring.sets(splits, values, reference, threshold)}
        for file, values in logits.items()
    }
    for file, values in logits.items():
        alike = float((values.argmax(axis=1) == reference).mean())
        if alike < LOW_AGREEMENT:
            log.warning("%s reads only %.1f %% of the measured pictures like the Keras model", file, 100 * alike)
    values, title = logits[recommended], f"{recommended} on {', '.join(splits.measured)}"
    report.confusion_matrix(run_dir / report.CONFUSION_FILE, classes, values.argmax(axis=1), pool.nb_classes, title)
    worst_readings.save(run_dir, recommended, splits, indices, values)
    report.worst_predictions(run_dir / "worst_predictions.png", images, classes, values, pool.nb_classes, title)
    readings = scoring.readings(splits, values)
    report.reliability(run_dir / "reliability.png", readings, threshold, pool.nb_classes, recommended)
    return entries


def _quantizable(name: str) -> bool:
    # A model may be older than the architectures here.
    return models.get(name).quantizable if name in models.available() else True


def _recommended(files: list[deployment.DeviceFile]) -> deployment.DeviceFile | None:
    """The quantised TFLite file of a device, where none has one the plain one; else the float one, else None."""
    quantised = [file for file in files if file.kind != "float" and not file.espdl]
    return min(quantised or files[:1], key=lambda file: file.verdict is None, default=None)


def _threshold(model: keras.Model, chosen: deployment.DeviceFile | None, splits: Splits) -> float | None:
    """The confidence below which the chosen file's readings, without one the model's, are better refused.

    See :func:`confidence.recommended`.
    """
    pictures = splits.different_validation
    images = splits.pool.images(pictures)
    if chosen:
        name, logits = chosen.name, evaluation.file_logits(chosen.name, chosen.content, images)
    else:
        name, logits = runs.BEST_MODEL_FILE, evaluation.keras_logits(model, images)
    reading = scoring.reading(splits, pictures, logits)
    threshold = confidence.recommended(reading.confidences, reading.right)
    if threshold is None:
        log.warning(
            "%s: no confidence recommended, since at none %.1f %% of %d or more accepted validation pictures are right",
            *(name, 100 * confidence.GOAL, confidence.ENOUGH),
        )
    return threshold
