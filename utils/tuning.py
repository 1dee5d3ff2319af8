"""Hyper-parameter search: one list, one way to make a trial, and two drivers (KerasTuner, or a plain loop)."""

import dataclasses
import gc
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import keras
from tqdm.contrib.logging import logging_redirect_tqdm

import models
from utils import (
    console,
    devices,
    evaluation,
    loader,
    markup,
    model_choice,
    report,
    runs,
    search_space,
    session,
    smoothing,
    targets,
    training,
    trials,
)
from utils.errors import UserError, in_words, stop_if_interrupted
from utils.loader import Splits
from utils.search_space import Combination, SearchError
from utils.settings import Settings
from utils.trials import Outcome, Search

log = logging.getLogger(__name__)

PLOT_FILE = "tuning.png"
SCRATCH = "scratch"  # folder of what only unfinished trials need


def search(settings: Settings, splits: Splits) -> Search | None:
    """Makes the trials that are missing; one process alone, or as chief or worker of several machines.

    Args:
        settings: the search space, and everything that is not varied.
        splits: the pictures, the same for all trials.

    Returns:
        The search, finished or stopped; None for a worker, whose results the chief has.

    Raises:
        SearchError: nothing fits the limits, the objective does not suit the model, or the system refuses a file.
        UserError: an architecture could win and then not be trained, as :func:`session.check` says.
        ModelFileError: a teacher, or what ``START_FROM`` names, is gone or doesn't fit.
        RunError: ``OUTPUT_DIR`` can't be written to, or another process makes the same search.
    """
    role = search_space.role()
    axes = search_space.axes(settings)
    fitting = _fitting(settings, axes)
    _check_training(settings, fitting)
    signature = search_space.signature(settings, axes, splits.fingerprint, _read_along(settings, axes))
    combinations = search_space.order(fitting, settings.tuner_max_trials, settings.seed)
    _say_plan(len(combinations), math.prod(map(len, fitting.values())), settings)
    with ExitStack() as stack:
        if role == "worker":
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuner_")))
            _drive(Search(None, signature, combinations), settings, splits, scratch, role)
            return None
        found = trials.open_folder(settings, signature, combinations)
        scratch = found.folder / SCRATCH
        stack.enter_context(runs.hold(found.folder))
        trials.take_up(found)
        log.info("searching in %s", found.folder)
        try:
            _drive(found, settings, splits, scratch, role)
        except KeyboardInterrupt:
            found.interrupt()
            raise
        except OSError as error:
            with suppress(OSError):
                found.interrupt()
            said = f"{in_words(error, found.folder)}; mend that, then the same command goes on with the search"
            raise SearchError(said) from error
        shutil.rmtree(scratch, ignore_errors=True)
        found.write()
        report.tuning(found.folder / PLOT_FILE, [dataclasses.asdict(row) for row in found.ended()], found.objective)
    return found


def _read_along(settings: Settings, axes: dict[str, list]) -> dict[str, bytes]:
    names = search_space.architectures(settings, axes)
    start = model_choice.start(settings, *names)
    trained = [*model_choice.teachers(settings), *([start] if start else [])]
    return {**models.code(names), **{str(file): file.read_bytes() for file in trained}}


def run_trial(combination: Combination, settings: Settings, splits: Splits, folder: Path, until: int) -> Outcome:
    """Trains one combination and scores it; whatever goes wrong with it becomes the outcome's ``error``.

    Args:
        combination: field names and values.
        settings: everything else.
        splits: the pictures.
        folder: receives what the training writes; what is left there of ``until`` fewer epochs is gone on from.
        until: epochs, at most ``TUNER_EPOCHS``, which the learning rate is planned for.

    Raises:
        OSError: the system refused a file, on a full disk for instance.
    """
    started = time.monotonic()
    try:
        # A checkpoint only where "halving" may go on from it, so that a trial broken off starts over.
        checkpoint = until if settings.tuner_strategy == "halving" and until < settings.tuner_epochs else 0
        trial = dataclasses.replace(
            settings,
            **combination,
            epochs=settings.tuner_epochs,
            early_stopping_patience=settings.tuner_patience,
            monitor="val_accuracy",
            checkpoint_epochs=checkpoint,
        )
        folder.mkdir(parents=True, exist_ok=True)
        # What the trial before left was collected at its end: once is enough, a pass takes 0.2 s and more.
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(trial.seed)
        with devices.shared(trial):
            model = models.get(trial.model_architecture).build(trial.input_shape, trial.nb_classes)
        fitted = training.fit(model, splits, trial, folder, until)
        score = SCORES[settings.tuner_objective](fitted, splits, trial, folder)
        return Outcome(score, len(fitted.rows), time.monotonic() - started)
    except OSError:
        # A full disk, above all, says nothing against the combination, which would stay FAILED for good.
        raise
    except Exception as error:
        stop_if_interrupted()
        # A trial that fails, for want of memory or else, must not take the search with it; its row says why.
        log.debug("the trial failed", exc_info=True)
        said = " ".join(str(error).split())[:300]
        return Outcome(None, 0, time.monotonic() - started, f"{type(error).__name__}: {said}")
    finally:
        gc.collect()


def train(names: list[str], settings: Settings, options: session.Options, splits: Splits) -> list[session.Outcome]:
    """Searches for each architecture, then trains it with what won; a search without a result is a failed outcome.

    Raises:
        SearchError: this process is one of several machines.
    """
    if search_space.role() != "alone":
        raise SearchError(
            f"--use_tuner is for one machine: unset {', '.join(search_space.ENVIRONMENT)}, or use tuner.py"
        )
    return [_searched_and_trained(name, settings, options, splits) for name in names]


def best_of(found: Search) -> trials.Trial:
    """The winner of a search.

    Raises:
        SearchError: it was stopped, or no trial was completed.
    """
    best = found.best()
    if found.stopped or best is None:
        reason = found.stopped or "no trial was completed"
        raise SearchError(f"the search ended without a result: {reason}; see {found.folder / trials.CSV_FILE}")
    return best


def summary(found: Search) -> str:
    """The end of a search as text: the best trials, how many failed, and where it all is."""
    rows = [["trial", *search_space.named(found.combinations[0]), found.objective, "epochs", "s"]]
    completed = sorted((row for row in found.ended() if row.score is not None), key=lambda row: -row.score)
    for row in completed[:10]:
        values = [str(value) for value in row.values.values()]
        rows.append([str(row.number), *values, f"{row.score:.4f}", str(row.epochs), f"{row.seconds:.1f}"])
    failed = len(found.ended()) - len(completed)
    notes = [f"{markup.count(len(completed), 'trial')} completed, {failed} failed, in {found.folder}"]
    notes += [f"the search was stopped: {found.stopped}"] * bool(found.stopped)
    return "\n".join([report.table(rows), "", *notes])


def _searched_and_trained(name: str, settings: Settings, options: session.Options, splits: Splits) -> session.Outcome:
    try:
        settings = dataclasses.replace(settings, model_architecture=name)
        found = search(settings, splits)
        best = best_of(found)
    except UserError as error:
        log.error("%s: %s", name, error)
        return session.Outcome(name, None, None, str(error))
    except OSError as error:
        # A full disk, above all; what was trained before must still be told.
        return session.stopped_by_system(name, None, error, settings, "the same command goes on with the search")
    chosen = dataclasses.replace(settings, **best.values)
    told = {"folder": str(found.folder), "trial": best.number, "objective": found.objective, "score": best.score}
    told["hyperparameters"] = search_space.named(best.values)
    log.info("training with trial %d: %s", best.number, trials.shown(best.values))
    options = dataclasses.replace(options, tuned_by=told)
    (outcome,) = session.train([chosen.model_architecture], chosen, options, splits)
    return outcome


def _check_training(settings: Settings, axes: dict[str, list]) -> None:
    """Refuses what could win the search and then not be trained."""
    for spread in axes.get("label_spread", ()):
        targets.check(dataclasses.replace(settings, label_spread=spread))
    session.check(search_space.architectures(settings, axes), settings)


def _drive(found: Search, settings: Settings, splits: Splits, scratch: Path, role: str) -> None:
    with _bar(found) as bar:

        def run(number: int, until: int) -> Outcome:
            folder = scratch / f"{number:05d}"
            if role == "worker":
                log.info("trial %d: %s", number, trials.shown(found.combinations[number - 1]))
            outcome = run_trial(found.combinations[number - 1], settings, splits, folder, until)
            if settings.tuner_strategy == "grid":
                shutil.rmtree(folder, ignore_errors=True)
            if role == "worker":
                bar.update()
            return outcome

        try:
            from utils import oracle
        except ImportError as error:
            if role != "alone":
                raise SearchError(f"a search over several machines needs keras-tuner: {error}") from error
            log.warning(
                "KerasTuner can't run (%s): the same list is tried in a plain loop, every trial to its end", error
            )
            _loop(found, settings.tuner_epochs, run)
        else:
            oracle.drive(found, run, settings, role)


@contextmanager
def _bar(found: Search) -> Iterator:
    """A bar over the trials with the best so far and the time left; log lines stand above it."""
    with console.progress(None, "trials", len(found.combinations), unit="trial") as bar:

        def show() -> None:
            bar.set_postfix_str(found.progress(), refresh=False)
            bar.n = len(found.ended())
            bar.refresh()

        found.after_each = show
        with logging_redirect_tqdm() if console.interactive() else nullcontext():
            yield bar


def _loop(found: Search, epochs: int, run) -> None:
    for number in range(1, len(found.combinations) + 1):
        if not found.known(number, epochs):
            found.begin(number)
            found.end(number, epochs, run(number, epochs))
        if found.stopped:
            return


def _accuracy(fitted: training.Training, splits: Splits, settings: Settings, folder: Path) -> float:
    return fitted.rows[fitted.best_epoch - 1]["val_accuracy"]


def _within_tenth(fitted: training.Training, splits: Splits, settings: Settings, folder: Path) -> float:
    from utils import export

    model = keras.models.load_model(folder / runs.BEST_MODEL_FILE, compile=False, safe_mode=True)
    smoothing.fold(model, settings)
    calibration = loader.calibration_images(splits, settings.calibration_images, settings.seed)
    content = export.quantized_tflite(model, calibration, settings.quantized_io_type)
    predicted = evaluation.tflite_logits(content, splits.pool.images(splits.validation)).argmax(axis=1)
    return evaluation.metrics(predicted, splits.pool.tenths[splits.validation], settings.nb_classes)["within_0.1"]


SCORES = {"val_accuracy": _accuracy, "int8_within_0.1": _within_tenth}


def _fitting(settings: Settings, axes: dict[str, list]) -> dict[str, list]:
    """The axes without the models that don't fit the limits or the objective."""
    names = search_space.architectures(settings, axes)
    reasons = search_space.misfits(settings, names)
    for name, reason in reasons.items():
        log.info("%s is left out: %s", name, reason)
    fitting = [name for name in names if name not in reasons]
    return {**axes, search_space.MODEL_AXIS: fitting} if search_space.MODEL_AXIS in axes else axes


def _say_plan(count: int, possible: int, settings: Settings) -> None:
    if settings.tuner_max_trials > possible:
        log.info(
            "TUNER_MAX_TRIALS = %d, there are only %d combinations: all are tried", settings.tuner_max_trials, possible
        )
    else:
        log.info("%d of %d combinations are tried", count, possible)
