"""Measures model files of any origin on the same pictures, and makes tables of what was found."""

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils import comparison, labels, measuring, metering, prediction, readers, robustness, sources
from utils.console import progress
from utils.errors import UserError
from utils.isolation import Isolated
from utils.measuring import Described
from utils.sources import DataSource

log = logging.getLogger(__name__)

SYNTHETIC = "synthetic"  # as a source: drawn digits
SYNTHETIC_COUNT = 2000
SEED = 90_001  # another one than SEED of parameters.py, or a model would be measured on what it was trained on
DRAWN_SHAPE = (32, 20)  # at which digits are drawn; other sizes are made of that


@dataclass(frozen=True)
class Pictures:
    """The pictures that all models read: ``tenths`` (N,) labels 0..99, ``meters`` (N,) indices into ``meter_names``."""

    declared: tuple[DataSource, ...]
    tenths: np.ndarray
    meters: np.ndarray
    meter_names: tuple[str, ...]

    @property
    def has_tenths(self) -> bool:
        """False if the labels are whole digits."""
        return bool((self.tenths % 10).any())

    def rgb(self, height: int, width: int) -> np.ndarray:
        """The pictures in a size, ``(N, height, width, 3)`` uint8."""
        return np.concatenate([part.images for part in _read(self.declared, height, width)])


@dataclass(frozen=True)
class Options:
    """What is measured besides: robustness, and whole readings of so many ``digits`` (0: none).

    ``threshold`` is the confidence below which a reading is refused, None for the one that a model's papers recommend.
    """

    robustness: bool = False
    digits: int = 0
    threshold: float | None = None


def load(declared: Sequence[str]) -> Pictures:
    """Reads the sources: folders with labelled pictures, each taken for what it looks like, or ``synthetic``.

    Raises:
        SourceError: a folder is missing, empty or damaged.
    """
    entries: list[dict[str, Any]] = []
    for text in declared:
        drawn = text == SYNTHETIC and not Path(text).exists()
        if drawn and not any(entry["type"] == SYNTHETIC for entry in entries):
            entries.append({"name": SYNTHETIC, "type": SYNTHETIC, "count": SYNTHETIC_COUNT})
        elif not drawn:
            entries, _ = sources.with_source(entries, sources.declare(Path(text), 1.0))
    parsed = tuple(DataSource.from_dict(entry, "--data") for entry in entries)
    read = _read(parsed, *DRAWN_SHAPE)
    names = [f"{part.name}/{meter}" for part in read for meter in part.meters]
    starts = np.cumsum([0, *(len(part.meters) for part in read)])
    meters = np.concatenate([part.meter_ids + start for part, start in zip(read, starts, strict=False)])
    found = Pictures(parsed, np.concatenate([part.tenths for part in read]), meters, tuple(names))
    if not found.has_tenths:
        log.warning("no label has a tenth: models are compared by digit, and 3 counts as 3.0 otherwise")
    return found


@functools.lru_cache(maxsize=2)
def _read(declared: tuple[DataSource, ...], height: int, width: int) -> tuple[sources.SourceData, ...]:
    return tuple(_read_one(source, height, width) for source in declared)


def _read_one(source: DataSource, height: int, width: int) -> sources.SourceData:
    if source.type != SYNTHETIC:
        # 10 classes, as that accepts labels without tenths.
        return readers.read(source, height, width, 3, nb_classes=10, seed=SEED)
    drawn = readers.read(source, *DRAWN_SHAPE, 3, nb_classes=10, seed=SEED)
    return sources.SourceData(**{**vars(drawn), "images": _resized(drawn.images, height, width)})


def _resized(images: np.ndarray, height: int, width: int) -> np.ndarray:
    if images.shape[1:3] == (height, width):
        return images
    return np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images])


def run(paths: Sequence[Path], pictures: Pictures, options: Options) -> dict[str, Any]:
    """Measures every model, each in a process of its own; one that can't be read has an ``error`` instead of scores.

    Returns what ``--json`` writes: ``pictures`` says on what, ``models`` has one entry a model in the given order,
    ``pairs`` compares them.
    """
    simulation = _simulation(pictures, options.digits) if options.digits else None
    entries, right = [], {}
    for name, path in progress(list(zip(_names(paths), paths, strict=True)), "models", unit="model"):
        log.info("measuring %s", name)
        entry, judged = _measure(path, pictures, options, simulation)
        entries.append({"name": name, "path": str(path), **entry})
        if judged:
            right[name] = judged
    compared = comparison.pairs(right, pictures.has_tenths)
    return {
        "pictures": {
            "sources": [str(source.path or source.name) for source in pictures.declared],
            "n": len(pictures.tenths),
            "meters": len(pictures.meter_names),
            "has_tenths": pictures.has_tenths,
        },
        "metric": common_metric(entries, pictures.has_tenths),
        "models": entries,
        "pairs": [{**asdict(pair), "differs": pair.differs} for pair in compared],
    }


def common_metric(entries: Sequence[dict[str, Any]], has_tenths: bool) -> str:
    """What all models can be compared by: ``within_0.1`` if every one reads tenths and the labels have them."""
    scored = [entry["scores"] for entry in entries if "scores" in entry]
    return "within_0.1" if has_tenths and all("within_0.1" in scores for scores in scored) else "digit"


def _names(paths: Sequence[Path]) -> list[str]:
    """The files' names, with as much of the path as tells them apart."""
    parts = [path.absolute().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} #{number}" for number, name in enumerate(names, 1)]


@dataclass(frozen=True)
class _Simulation:
    plan: metering.Plan
    drums: tuple[DataSource, ...]
    needed: bool  # whether any reading shows a drawn drum


def _simulation(pictures: Pictures, digits: int) -> _Simulation:
    drums = (DataSource(SYNTHETIC, SYNTHETIC, None, count=SYNTHETIC_COUNT),)
    (drawn,) = _read(drums, *DRAWN_SHAPE)
    plan = metering.plan(pictures.tenths, pictures.meters, drawn.tenths, digits, SEED)
    log.info("%d of %d readings are shown on drawn drums", plan.drawn.sum(), len(plan.drawn))
    return _Simulation(plan, drums, bool(plan.drawn.any()))


def _measure(
    path: Path, pictures: Pictures, options: Options, simulation: _Simulation | None
) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """What is known of one model, and what :func:`comparison.judged` makes of its readings."""
    try:
        with Isolated() as process:
            model: Described = process.call(measuring.describe, path)
            images = pictures.rgb(*model.input_shape[:2])
            pixels = model.facts.pixels
            if not model.facts.known:
                pixels = process.call(measuring.best_range, model.file, images, pictures.tenths)
            numbers, confidences = process.call(measuring.read, model.file, pixels, images)
            judged = comparison.judged(numbers, len(model.names), pictures.tenths)
            entry = _facts(model, pixels.name) | _scores(judged, numbers, len(model.names), pictures)
            entry["ms"] = round(process.call(measuring.milliseconds, model.file, pixels, images), 4)
            if options.robustness:
                entry["robustness"] = _card(process, model, pixels, images, pictures)
            if simulation:
                shown = numbers, confidences
                if simulation.needed:
                    (drums,) = _read(simulation.drums, *model.input_shape[:2])
                    more = process.call(measuring.read, model.file, pixels, drums.images)
                    shown = tuple(map(np.concatenate, zip(shown, more, strict=True)))
                entry["readings"] = _readings(simulation.plan, model, *shown, options.threshold)
    except UserError as error:
        log.warning("%s", error)
        return {"error": str(error)}, None
    return entry | _arena(model.file), judged


def _facts(model: Described, pixels: str) -> dict[str, Any]:
    return {
        "file": str(model.file),
        "bytes": model.bytes,
        "parameters": model.facts.parameters,
        "multiply_accumulates": model.facts.macs,
        "input_shape": list(model.input_shape),
        "input_dtype": model.facts.dtype,
        "pixels": pixels,
        "pixels_found": "in the file" if model.facts.known else "by trial",
        "outputs": model.facts.outputs,
    }


def _scores(judged: dict, numbers: np.ndarray, nb_classes: int, pictures: Pictures) -> dict[str, Any]:
    main = "within_0.1" if pictures.has_tenths and "within_0.1" in judged else "digit"
    found = comparison.scores(judged, pictures.meters, main)
    if nb_classes == 11:
        found["not_readable"] = round(float((numbers == 10).mean()), 6)
    return {"scores": found}


def _arena(file: Path) -> dict[str, Any]:
    """In a process of its own once more: TFLite Micro may end on a file that LiteRT takes."""
    try:
        with Isolated() as process:
            return {"arena_bytes": process.call(measuring.arena_bytes, file)}
    except UserError as error:
        return {"arena_bytes": None, "arena_note": str(error)}


def _card(process: Isolated, model: Described, pixels: Any, images: np.ndarray, pictures: Pictures) -> dict[str, Any]:
    """Scores under every change, in the form of ``robustness.json``."""
    chosen = robustness.choose(len(images))
    metric, changes = "accuracy", []
    for change in robustness.CHANGES:
        changed = np.ascontiguousarray(change.apply(images[chosen]))
        numbers, _ = process.call(measuring.read, model.file, pixels, changed)
        judged = comparison.judged(numbers, len(model.names), robustness.tenths_after(change, pictures.tenths[chosen]))
        metric = "within_0.1" if pictures.has_tenths and "within_0.1" in judged else "accuracy"
        changes.append({"name": change.name, "score": round(float(judged[metric].mean()), 6)})
    return {"pictures": len(chosen), "metric": metric, "changes": changes}


def _readings(
    plan: metering.Plan, model: Described, numbers: np.ndarray, confidences: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    known = [value for value in (threshold, model.threshold, prediction.THRESHOLD) if value is not None]
    tenths = numbers if len(model.names) == labels.NB_TENTHS else np.where(numbers < 10, 10 * numbers, -1)
    outcome = metering.judge(plan, tenths, confidences, known[0])
    origin = "given" if threshold is not None else "recommended" if model.threshold is not None else "default"
    facts = {"digits": plan.pictures.shape[1], "readings": len(plan.truth), "drawn": int(plan.drawn.sum())}
    return {**facts, **asdict(outcome), "threshold_from": origin}
