"""The folder of a search: which trials were made, how each ended, and the files made from that.

``search.json`` is the one truth: it is replaced whole after each step, so a kill at any moment leaves a readable one.
"""

import csv
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils import runs, search_space
from utils.search_space import Combination
from utils.settings import Settings

log = logging.getLogger(__name__)

SEARCH_FILE = "search.json"
CSV_FILE = "trials.csv"
BEST_JSON = "best_hyperparameters.json"
BEST_PY = "best_hyperparameters.py"
FAILURES_IN_A_ROW = 3
# A trial that takes its whole process with it must not be begun for ever.
BEGINNINGS = 3
RUNNING, COMPLETED, FAILED = "RUNNING", "COMPLETED", "FAILED"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``score`` 0..1, or None and ``error`` says why."""

    score: float | None
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclasses.dataclass
class Trial:
    """One row: ``number`` is its place in the list, from 1; ``until`` the epochs asked of it at most; ``begun`` how
    often it was started without coming to an end.
    """

    number: int
    values: Combination
    status: str = RUNNING
    score: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""
    until: int = 0
    begun: int = 0


class Search:
    """A list of combinations and how far it is done; ``folder`` None keeps nothing (a worker of several machines)."""

    def __init__(self, folder: Path | None, signature: dict, combinations: list[Combination]):
        self.folder, self.signature, self.combinations = folder, signature, combinations
        self.rows: dict[int, Trial] = {}
        self.stopped = ""
        self.after_each: Callable[[], None] = lambda: None
        self._failed_in_a_row = 0
        self._began, self._ended = time.monotonic(), 0

    @property
    def digest(self) -> str:
        """Short name of what is searched."""
        return search_space.digest(self.signature)

    @property
    def objective(self) -> str:
        """What the score is."""
        return self.signature["settings"]["TUNER_OBJECTIVE"]

    def ended(self) -> list[Trial]:
        """All trials that came to an end, by number, of the list only."""
        rows = sorted(self.rows.values(), key=lambda row: row.number)
        return [row for row in rows if row.status != RUNNING and row.number <= len(self.combinations)]

    def known(self, number: int, until: int) -> Trial | None:
        """The trial, if it ended and nothing more is asked of it; one whose process ended too often ends here."""
        row = self.rows.get(number)
        if row and row.status == RUNNING and row.begun >= BEGINNINGS:
            error = f"its process ended {BEGINNINGS} times without a word (out of memory?)"
            self.end(number, until, Outcome(None, error=error))
        return row if row and row.status != RUNNING and (row.status == FAILED or row.until >= until) else None

    def best(self) -> Trial | None:
        """The completed trial with the highest score, the earlier one of two equals."""
        return max((row for row in self.ended() if row.status == COMPLETED), key=lambda row: row.score, default=None)

    def begin(self, number: int) -> None:
        """Notes that a trial starts, or starts over."""
        row = self.rows.setdefault(number, Trial(number, self.combinations[number - 1]))
        row.status, row.begun = RUNNING, row.begun + 1
        self.write()
        log.info("trial %d of %d: %s", number, len(self.combinations), shown(row.values))

    def interrupt(self) -> None:
        """Takes the beginning of what runs back: that it ended was the user's wish, and says nothing against it."""
        for row in self.rows.values():
            if row.status == RUNNING:
                row.begun = max(0, row.begun - 1)
        self.write()

    def end(self, number: int, until: int, outcome: Outcome) -> None:
        """Notes how a trial ended; three failures in a row set ``stopped`` to the reason."""
        row = self.rows[number]
        row.status = FAILED if outcome.score is None else COMPLETED
        row.score = None if outcome.score is None else round(outcome.score, 6)
        row.error, row.epochs, row.until, row.begun = outcome.error, outcome.epochs, until, 0
        row.seconds = round(row.seconds + outcome.seconds, 1)
        self._ended += 1
        self._failed_in_a_row = self._failed_in_a_row + 1 if row.status == FAILED else 0
        if self._failed_in_a_row == FAILURES_IN_A_ROW:
            self.stopped = f"{FAILURES_IN_A_ROW} trials in a row failed, the last with: {row.error}"
        self.write()
        self._say(row)
        self.after_each()

    def time_left(self) -> float:
        """Seconds that the rest of the list takes at the pace so far."""
        left = len(self.combinations) - len(self.ended())
        return left * (time.monotonic() - self._began) / max(self._ended, 1)

    def progress(self) -> str:
        """The best so far and the time left, in words."""
        best = self.best()
        so_far = f"best {best.score:.4f} (trial {best.number})" if best else "none completed yet"
        return f"{so_far}, {duration(self.time_left())} left"

    def _say(self, row: Trial) -> None:
        told = f"FAILED: {row.error}" if row.status == FAILED else f"{self.objective} {row.score:.4f}"
        done = f"{len(self.ended())} of {len(self.combinations)} done"
        log.info("trial %d %s in %.0f s; %s, %s", row.number, told, row.seconds, done, self.progress())

    def write(self) -> None:
        """Writes all files anew."""
        if self.folder is None:
            return
        rows = [dataclasses.asdict(row) for _, row in sorted(self.rows.items())]
        runs.write_json(self.folder / SEARCH_FILE, {"signature": self.signature, "trials": rows})
        runs.write(self.folder / CSV_FILE, self._write_csv)
        if best := self.best():
            write_best(self.folder, best, self.objective)

    def _write_csv(self, path: Path) -> None:
        axes = search_space.named(self.combinations[0])
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", "status", *axes, self.objective, "epochs", "seconds", "error"])
            for _, row in sorted(self.rows.items()):
                score = "" if row.score is None else row.score
                measured = [score, row.epochs, row.seconds, row.error]
                writer.writerow([row.number, row.status, *row.values.values(), *measured])


def open_folder(settings: Settings, signature: dict, combinations: list[Combination]) -> Search:
    """The search in the newest folder with the same signature, else in a new folder; :func:`take_up` reads its trials.

    What changed since the newest folder of the model is logged.

    Raises:
        RunError: ``OUTPUT_DIR`` can't be written to.
    """
    stem = f"tuner_{settings.model_architecture}_"
    found = sorted(Path(settings.output_dir).glob(f"{stem}[0-9]*/{SEARCH_FILE}"), reverse=True)
    known = [(path.parent, content[0]) for path in found if (content := _read(path))]
    for folder, other in known:
        if other == signature:
            return Search(folder, signature, combinations)
    if known:
        folder, other = known[0]
        changed = "; ".join(search_space.changes(other, signature))
        log.info("not going on with %s: %s; beginning a new folder", folder, changed)
    search = Search(runs.make(stem + time.strftime("%Y%m%d-%H%M%S"), settings), signature, combinations)
    search.write()
    return search


def take_up(search: Search) -> None:
    """Reads the trials of an earlier start: those that ended stay, one that did not will start over."""
    content = _read(search.folder / SEARCH_FILE)
    for row in content[1] if content else []:
        if row.number <= len(search.combinations) and row.values != search.combinations[row.number - 1]:
            # The list is made differently than it was: better to try again than to mix two lists.
            continue
        if row.status == RUNNING and row.score is not None:
            # It was going on for more epochs; what it had reached stands.
            row.status = COMPLETED
        search.rows[row.number] = row
    if search.rows:
        failed = sum(row.status == FAILED for row in search.ended())
        kept = f", {failed} of them FAILED, which are not tried again" if failed else ""
        log.info("going on with %s: %d trials done%s", search.folder, len(search.ended()), kept)


def write_best(folder: Path, best: Trial, objective: str) -> None:
    """Writes the winner as JSON and as lines for ``parameters.py``."""
    values = search_space.named(best.values)
    facts = {"trial": best.number, "objective": objective, "score": best.score, "epochs": best.epochs}
    runs.write_json(folder / BEST_JSON, {**facts, "hyperparameters": values})
    heading = f"# {objective} {best.score:.4f} in trial {best.number} of {folder.name}: lines for parameters.py"
    lines = [
        f"{name} = {value!r}  # {objective} {best.score:.4f}, trial {best.number}" for name, value in values.items()
    ]
    runs.write_text(folder / BEST_PY, "\n".join([heading, *lines]) + "\n")


def shown(values: dict[str, Any]) -> str:
    """A combination in words."""
    return ", ".join(f"{name} = {value}" for name, value in search_space.named(values).items())


def duration(seconds: float) -> str:
    """Rounded, in the unit that suits."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _read(path: Path) -> tuple[dict, list[Trial]] | None:
    try:
        content = json.loads(path.read_text())
        return content["signature"], [Trial(**row) for row in content["trials"]]
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s is not readable: a new search begins", path)
        return None
