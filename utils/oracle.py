"""KerasTuner's part of a search: two oracles that hand out a given list, and the tuner that asks them.

KerasTuner's own files are not written: ``search.json`` (see ``utils.trials``) survives a kill at any moment, and a
search that goes on gets from there what is known already. With several machines, workers show that they live by asking
for their trial now and then; what a silent one had is handed to another.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import keras_tuner
from keras_tuner import oracles
from keras_tuner.engine.trial import Trial as KerasTunerTrial

from utils.search_space import ENVIRONMENT, SearchError
from utils.settings import Settings
from utils.trials import COMPLETED, FAILED, Outcome, Search, Trial

log = logging.getLogger(__name__)

NUMBER, UNTIL = "trial", "tuner/epochs"  # what a trial carries besides its axes
SPACE = "space"  # what the chief searches
OUTCOME = ("score", "epochs", "seconds", "error")  # KerasTuner's messages between machines have no place for these
HEARTBEAT = 5.0  # seconds between a worker's signs of life
LOST_AFTER = 60.0  # seconds without one after which its trial is given to another
WAITING = 60.0  # seconds between two lines of a chief that has no worker
IDLE = 1.0  # seconds before a worker asks again
RunTrial = Callable[[int, int], Outcome]  # number of the trial, epochs


class ForeignSpaceError(Exception):
    """The chief searches something else than this worker."""


class _Recorded:
    """What both oracles share: the search's record, its end after failures, and workers that are lost."""

    def __init__(self, search: Search, settings: Settings, **options):
        self.search, self.epochs = search, settings.tuner_epochs
        self.given = 0
        self.seen: dict[str, float] = {}
        self.over: set[str] = set()
        # Failures in a row are counted by the search, which ends without an exception.
        options |= {"seed": 1, "max_consecutive_failed_trials": 10**9}
        super().__init__(objective=keras_tuner.Objective("score", "max"), **options)
        self.verbose = 0
        # What a worker is told before it asks for a trial.
        self.hyperparameters.Fixed(SPACE, search.digest)

    def next_values(self) -> dict | None:
        """The next of the list as KerasTuner's values, None after the last."""
        if self.given == len(self.search.combinations):
            return None
        self.given += 1
        return {**self.search.combinations[self.given - 1], NUMBER: self.given}

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> KerasTunerTrial:
        self.seen[tuner_id] = time.monotonic()
        while True:
            trial = super().create_trial(tuner_id)
            if trial.status != "RUNNING":
                return trial
            number, until = _asked(trial)
            known = self.search.known(number, until)
            if not known:
                self.search.begin(number)
                return trial
            self._end_known(trial, known)

    @keras_tuner.synchronized
    def get_trial(self, trial_id: str) -> KerasTunerTrial:
        for tuner_id, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:
                self.seen[tuner_id] = time.monotonic()
        # What raises here would leave KerasTuner's lock closed: a worker may ask a chief that was started anew.
        return self.trials.get(trial_id) or KerasTunerTrial(self.get_space(), trial_id)

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict, step: int = 0) -> KerasTunerTrial:
        if trial_id not in self.trials:
            return KerasTunerTrial(self.get_space(), trial_id)
        return super().update_trial(trial_id, metrics, step)

    def score_trial(self, trial: KerasTunerTrial) -> None:
        # Not from the metrics: those say nothing of which combination they belong to.
        trial.score = float(trial.hyperparameters.values["score"])

    @keras_tuner.synchronized
    def end_trial(self, trial: KerasTunerTrial) -> None:
        mine = self.trials.get(trial.trial_id)
        if mine is None or trial.trial_id in self.over or _asked(mine) != _asked(trial):
            # Of a chief that was started anew, or of a worker given up whose trial another has done.
            return
        self.over.add(trial.trial_id)
        super().end_trial(trial)
        values = mine.hyperparameters.values
        told = {name: values.pop(name) for name in OUTCOME if name in values}
        if mine.status != COMPLETED:
            told |= {"score": None, "error": told.get("error") or "its score is no number"}
        self.search.end(*_asked(mine), Outcome(**told))
        if self.search.stopped:
            self._retry_queue.clear()

    @keras_tuner.synchronized
    def drop_lost(self) -> None:
        """Takes the trials of silent workers back, to be handed out again."""
        lost = {tuner_id for tuner_id, seen in self.seen.items() if time.monotonic() - seen > LOST_AFTER}
        for tuner_id in lost & self.tuner_ids:
            self.tuner_ids.discard(tuner_id)
            if trial := self.ongoing_trials.pop(tuner_id, None):
                log.warning("nothing heard of worker %s: its trial %d starts over", tuner_id, _asked(trial)[0])
                self._retry_queue.append(trial.trial_id)

    def say_waiting(self) -> None:
        """Logs that no worker is there, and how one is started."""
        if not self.tuner_ids:
            log.info("no worker is there; start one: %s=NAME %s python tuner.py ...", ENVIRONMENT[0], _address())

    def save(self) -> None:
        """Nothing: see the module."""

    reload = save

    def _save_trial(self, trial: KerasTunerTrial) -> None:
        """Nothing: see the module."""

    def _end_known(self, trial: KerasTunerTrial, known: Trial) -> None:
        self.over.add(trial.trial_id)
        trial.status = known.status
        if known.status == COMPLETED:
            trial.hyperparameters.values["score"] = known.score
        super().end_trial(trial)


class ListOracle(_Recorded, keras_tuner.Oracle):
    """Hands out the list from first to last."""

    def populate_space(self, trial_id: str) -> dict:
        if self.search.stopped:
            return {"status": "STOPPED"}
        if values := self.next_values():
            return {"status": "RUNNING", "values": {**values, UNTIL: self.epochs}}
        # Another's trial may yet come back.
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}


class HalvingOracle(_Recorded, oracles.HyperbandOracle):
    """KerasTuner's Hyperband with one bracket that holds the whole list: after each round the best third goes on."""

    def __init__(self, search: Search, settings: Settings):
        super().__init__(search, settings, max_epochs=settings.tuner_epochs)

    def populate_space(self, trial_id: str) -> dict:
        if self.search.stopped:
            return {"status": "STOPPED"}
        return super().populate_space(trial_id)

    def _random_values(self) -> dict | None:
        return self.next_values()

    def _get_size(self, bracket_num: int, round_num: int) -> int:
        return math.ceil(len(self.search.combinations) / self.factor**round_num)


class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs what the oracle hands out through ``run``; ``folder`` must exist."""

    def __init__(self, oracle: _Recorded, run: RunTrial, digest: str, folder: Path):
        self.run, self.digest, self.idle = run, digest, False
        super().__init__(oracle, directory=str(folder.parent), project_name=folder.name)

    def pre_create_trial(self) -> None:
        if self.idle:
            time.sleep(IDLE)
        self.idle = True
        # First, or the chief would hand out a trial that nobody makes.
        if self.oracle.get_space().values.get(SPACE) != self.digest:
            raise ForeignSpaceError

    def on_trial_begin(self, trial: KerasTunerTrial) -> None:
        self.idle = False

    def _try_run_and_update_trial(self, trial: KerasTunerTrial) -> None:
        # Instead of KerasTuner's own, which prints a traceback for each failure: ``run`` doesn't raise.
        values = trial.hyperparameters.values
        alone = isinstance(self.oracle, keras_tuner.Oracle)
        sign_of_life = functools.partial(self.oracle.get_trial, trial.trial_id)
        with contextlib.nullcontext() if alone else _repeated(sign_of_life, HEARTBEAT):
            outcome = self.run(*_asked(trial))
        values |= {name: value for name, value in dataclasses.asdict(outcome).items() if value is not None}
        trial.status = FAILED if outcome.score is None else COMPLETED
        if outcome.score is not None:
            self.oracle.update_trial(trial.trial_id, {"score": outcome.score})

    def save(self) -> None:
        """Nothing: see the module."""

    reload = save


def drive(search: Search, run: RunTrial, settings: Settings, role: str) -> None:
    """Runs the whole list through KerasTuner.

    Args:
        search: what to do, and where it is noted.
        run: makes one trial.
        settings: strategy and epochs.
        role: of :func:`search_space.role`; a chief serves its workers and runs no trial itself.

    Raises:
        SearchError: a worker whose chief searches something else, or is gone.
    """
    oracle = {"grid": ListOracle, "halving": HalvingOracle}[settings.tuner_strategy](search, settings)
    with contextlib.ExitStack() as stack:
        folder = search.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tuner = Tuner(oracle, run, search.digest, folder)
        if role == "chief":
            oracle.say_waiting()
            stack.enter_context(_repeated(oracle.drop_lost, LOST_AFTER / 10))
            stack.enter_context(_repeated(oracle.say_waiting, WAITING))
        elif role == "worker":
            log.info("asking the chief for trials (%s); it is waited for, an hour at most", _address())
        try:
            tuner.search()
        except ForeignSpaceError:
            raise SearchError(
                "the chief searches something else: start it and its workers with the same parameters.py and pictures"
            ) from None
        except RuntimeError as error:
            if role != "chief":
                raise
            # KerasTuner's chief does nothing here but listen.
            said = "the chief can't listen there: the address must be this machine's, the port one that nobody uses"
            raise SearchError(f"{_address()}: {said}") from error
        except grpc.RpcError as error:
            raise SearchError(
                f"the chief no longer answers ({error.code().name}): start it, then this worker"
            ) from error


def _address() -> str:
    """The chief's, as it stands in the commands."""
    return " ".join(f"{name}={os.environ.get(name, '')}" for name in ENVIRONMENT[1:])


def _asked(trial: KerasTunerTrial) -> tuple[int, int]:
    values = trial.hyperparameters.values
    return int(values[NUMBER]), int(values[UNTIL])


@contextlib.contextmanager
def _repeated(action: Callable[[], object], seconds: float) -> Iterator[None]:
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            # A chief that is gone is found out by the next thing said to it.
            with contextlib.suppress(Exception):
                action()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
