"""Teaches a model its failed readings, judges whether it got better, and shows every one of them on a page."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from utils import confidence, evaluation, labels, loader, markup, review, runs, session
from utils.loader import Splits
from utils.review import Reviewed
from utils.session import Lesson, Outcome
from utils.settings import Settings

log = logging.getLogger(__name__)

REVIEW_FILE = "review.html"
MOST_METERS = 5  # whose changes are told
ROUNDING = 0.3  # points that a quantised file may lose beside its Keras model
SHOWN = 0.005  # points below the last place that is shown: 2 of 981 pictures are 0.20 points, as many as 0.2
FEW = ", or one picture: more in DATA_SOURCES or TEST_SOURCES make the verdict surer"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Whether the retrained model may take the old one's place; ``reasons`` against it.

    ``bad_before`` and ``bad_after`` are the shares of the bad pictures read right, 0..1, by the old Keras model and by
    the recommended file, measured on those kept aside, or where ``kept_aside`` is 0 on all of them, which flatters.
    """

    accepted: bool
    reasons: tuple[str, ...]
    bad_before: float
    bad_after: float
    kept_aside: int


def retrain(lesson: Lesson, settings: Settings, splits: Splits) -> tuple[Outcome, Judgement]:
    """Fine-tunes a model on its plan's one new source; leaves the judgement in ``results.json``, ``review.html``.

    Raises:
        FineTuningError, RunError: what :func:`session.fine_tune` says.
    """
    (name,) = lesson.plan.new
    bad = np.flatnonzero(splits.pool.source_ids == splits.source(name))
    _warn(splits, bad)
    aside = splits.measured.get(loader.aside_of(name), np.empty(0, int))

    def judged(run_dir: Path, results: dict) -> dict:
        images = splits.pool.images(bad)
        # What will be flashed has the word.
        file = run_dir / results["recommended"]
        before = evaluation.keras_logits(lesson.old, images)
        after = evaluation.file_logits(file.name, file.read_bytes(), images)
        chosen = np.isin(bad, aside) if len(aside) else np.ones(len(bad), bool)
        right = [_right(logits[chosen], splits, bad[chosen]) for logits in (before, after)]
        folder = next(source["path"] for source in settings.data_sources if source["name"] == name)
        entries = _reviewed(splits, bad, before, after, aside)
        page = review.page(f"Failed readings, {run_dir.name}", entries, settings.nb_classes, str(folder))
        runs.write_text(run_dir / REVIEW_FILE, page)
        return dataclasses.asdict(judge(results, *right, len(aside), settings.retrain_max_drop))

    outcome = session.fine_tune(lesson, settings, splits, judged)
    return outcome, Judgement(**outcome.results["judgement"])


def judge(results: dict, bad_before: float, bad_after: float, kept_aside: int, max_drop: float) -> Judgement:
    """Compares before and after: the bad pictures must be read better, no old test set worse by more than ``max_drop``.

    Of a few pictures one is more than these points, and lost by chance as easily as won: one may be lost, unless
    ``max_drop`` is 0. Of the old sets both Keras models are compared, which chance of rounding leaves alone; the
    recommended file may lose :data:`ROUNDING` on top.

    Args:
        results: of :func:`session.fine_tune`.
        bad_before: share of the bad pictures that the old model reads right, 0..1.
        bad_after: the same of the new model's recommended file.
        kept_aside: how many bad pictures that was measured on, 0: it was all of them.
        max_drop: in points, hundredths of a share.
    """
    score, text = _score(results["nb_classes"])
    reasons = []
    if bad_after <= bad_before:
        which = " kept aside" if kept_aside else ""
        reasons.append(f"of the bad pictures{which} {bad_after:.1%} are read {text}, before {bad_before:.1%}")
    model, file = (results["files"][file]["sets"] for file in (runs.BEST_MODEL_FILE, results["recommended"]))
    for name, was in results["before"]["sets"].items():
        if name.endswith(loader.ASIDE_SUFFIX):
            continue
        n, one = was["n"], int(max_drop > 0)
        lost, on_device = (round(n * (was[score] - after[name][score])) for after in (model, file))
        points = n * (max_drop + one * SHOWN) / 100
        allows, few = f"RETRAIN_MAX_DROP allows {max_drop}", FEW if points < one else ""
        if lost > max(points, one):
            reasons.append(f"{name} is read worse by {_points(lost, n)}, {allows}{few}")
        elif on_device > max(points + n * ROUNDING / 100, one):
            reasons.append(
                f"{name} is read worse by {_points(on_device, n)} by {results['recommended']}, {allows} and rounding"
                f" {ROUNDING}{few}"
            )
    return Judgement(not reasons, tuple(reasons), bad_before, bad_after, kept_aside)


def summary(outcome: Outcome, judgement: Judgement) -> str:
    """What is printed below the table: meters that changed most, the verdict and where the page is."""
    _, text = _score(outcome.results["nb_classes"])
    count, before, after = judgement.kept_aside, judgement.bad_before, judgement.bad_after
    learnt = outcome.results["training"]["new_pictures"]
    few = "too few that are new to the model to keep some aside"
    all_of_them = f"the bad pictures, {learnt} of them learnt from ({few})"
    where = f"{count} bad pictures kept aside" if count else all_of_them
    file = outcome.results["recommended"]
    lines = [f"{where}: {before:.1%} read {text} before, {after:.1%} now by {file}"]
    lines += _meter_changes(outcome.results)
    lines.append(f"review the labels: {outcome.run_dir / REVIEW_FILE}")
    lines.append("ACCEPTED" if judgement.accepted else f"REJECTED: {'; '.join(judgement.reasons)}")
    return "\n".join(lines)


def _score(nb_classes: int) -> tuple[str, str]:
    return labels.main_metric(nb_classes), "within 0.1" if nb_classes == 100 else "right"


def _points(lost: int, n: int) -> str:
    return f"{100 * lost / n:.2f} points ({lost} of {markup.count(n, 'picture')})"


def _right(logits: np.ndarray, splits: Splits, indices: np.ndarray) -> float:
    right = labels.alike(logits.argmax(axis=1), splits.pool.classes(indices), splits.pool.nb_classes)
    return round(float(right.mean()), 6)


def _warn(splits: Splits, bad: np.ndarray) -> None:
    digits = np.unique(labels.to_classes(splits.pool.tenths[bad], 10))
    if len(digits) == 1:
        log.warning("all %d bad pictures show a %d: other digits of this meter stay unknown", len(bad), digits[0])


def _meter_changes(results: dict) -> list[str]:
    score, text = _score(results["nb_classes"])
    after = results["files"][runs.BEST_MODEL_FILE]["sets"]
    changes = [
        (after[name]["per_meter"][meter][score] - was[score], meter, was["n"], was[score])
        for name, scores in results["before"]["sets"].items()
        for meter, was in scores["per_meter"].items()
    ]
    # One picture of three is a large share, but only one reading.
    largest = sorted(changes, key=lambda change: -abs(change[0]) * change[2])[:MOST_METERS]
    return [
        f"{markup.visible(meter)} ({markup.count(n, 'picture')}): {was:.1%} read {text} before, {was + change:.1%} now"
        # The line above tells the recommended file's share, maybe of the same pictures.
        f" by {runs.BEST_MODEL_FILE}"
        for change, meter, n, was in largest
        if change
    ]


def _reviewed(splits: Splits, bad: np.ndarray, old: np.ndarray, new: np.ndarray, aside: np.ndarray) -> list[Reviewed]:
    nb_classes = splits.pool.nb_classes
    answers = [_answers(logits, labels.class_names(nb_classes)) for logits in (old, new)]
    learnt = np.where(np.isin(bad, splits.train), review.LEARNT, review.LEFT_OUT)
    parts = np.where(np.isin(bad, aside), review.ASIDE, learnt).tolist()
    rows = zip(bad, splits.pool.images(bad), splits.pool.tenths[bad], *answers, parts, strict=True)
    return [
        Reviewed(splits.pool.files[index], image, labels.text(tenths, nb_classes), was, now, part)
        for index, image, tenths, was, now, part in rows
    ]


def _answers(logits: np.ndarray, names: list[str]) -> list[tuple[str, float]]:
    read, sure = logits.argmax(axis=1), confidence.of(logits)
    return [(names[number], float(share)) for number, share in zip(read, sure, strict=True)]
