"""Measures model files of any origin on the same pictures."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils import benchmark_pictures, comparison, labels, measuring, metering, prediction, robustness, runs
from utils.benchmark_pictures import SEED, Pictures
from utils.console import progress
from utils.encodings import PixelRange
from utils.errors import UserError
from utils.isolation import Isolated
from utils.measuring import Described

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What is measured besides: robustness, and whole readings of so many ``digits`` (0: none).

    ``threshold`` is the confidence below which a reading is refused, None for the one that a model's papers recommend.
    """

    robustness: bool = False
    digits: int = 0
    threshold: float | None = None


def run(paths: Sequence[Path], pictures: Pictures, options: Options) -> dict[str, Any]:
    """Measures every model, each in a process of its own; one that can't be read has an ``error`` instead of scores.

    Returns what ``--json`` writes: ``pictures`` says on what, ``models`` has one entry a model in the given order,
    ``pairs`` compares them.
    """
    simulation = _simulation(pictures, options.digits) if options.digits else None
    entries, right, learnt = [], {}, {}
    for name, path in progress(list(zip(_names(paths), paths, strict=True)), "models", unit="model"):
        log.info("measuring %s", name)
        entry, judged, known = _measure(path, pictures, options, simulation)
        entries.append({"name": name, "path": str(path), **entry})
        if judged:
            right[name], learnt[name] = judged, known
    compared = comparison.pairs(right, pictures.has_tenths, pictures.different, learnt)
    return {
        "pictures": {
            "sources": [str(source.path or source.name) for source in pictures.declared],
            "n": len(pictures.tenths),
            "meters": len(np.unique(pictures.counted)),
            "has_tenths": pictures.has_tenths,
        },
        "metric": comparison.common_metric(right.values(), pictures.has_tenths),
        "models": entries,
        "pairs": [{**asdict(pair), "differs": pair.differs} for pair in compared],
    }


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
    drums: Pictures


@dataclass(frozen=True)
class _Reader:
    """A model in its process, with the range of pixels that it takes."""

    process: Isolated
    model: Described
    pixels: PixelRange

    def read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class numbers and confidences of pictures (N, H, W, 3) uint8 RGB of the model's size."""
        return self.process.call(measuring.read, self.model.file, self.pixels, images)


def _simulation(pictures: Pictures, digits: int) -> _Simulation:
    drums = benchmark_pictures.load([benchmark_pictures.SYNTHETIC])
    # What is drawn is of no meter: its many typefaces would stand in for the real ones.
    plan = metering.plan(pictures.tenths, pictures.counted, np.where(drums.rolling, drums.tenths, -1), digits, SEED)
    log.info("%d of %d readings are shown on drawn drums", plan.drawn.sum(), len(plan.drawn))
    return _Simulation(plan, drums)


def _measure(
    path: Path, pictures: Pictures, options: Options, simulation: _Simulation | None
) -> tuple[dict[str, Any], dict[str, np.ndarray] | None, np.ndarray | None]:
    """What is known of one model, what :func:`comparison.judged` makes of its readings, and which it has learnt."""
    try:
        with Isolated() as process:
            reader = _reader(process, path, pictures)
            images = pictures.rgb(*reader.model.input_shape[:2])
            numbers, confidences = reader.read(images)
            judged = comparison.judged(numbers, len(reader.model.names), pictures.tenths)
            entry = _facts(reader) | _scores(judged, numbers, len(reader.model.names), pictures)
            learnt = measuring.learnt(reader.model, images)
            recorded = reader.model.file.with_name(runs.LEARNT_FILE).exists()
            entry["learnt_pictures"] = int(learnt.sum()) if recorded else None
            if options.robustness:
                entry["robustness"] = _card(reader, images, pictures)
            if simulation:
                entry["readings"] = _readings(reader, simulation, numbers, confidences, options.threshold)
            # Last, as these kernels are others than those that have read the pictures so far.
            entry["ms"] = _milliseconds(reader, images)
    except UserError as error:
        log.warning("%s", error)
        return {"error": str(error)}, None, None
    return entry | _arena(reader.model.file), judged, learnt


def _reader(process: Isolated, path: Path, pictures: Pictures) -> _Reader:
    model: Described = process.call(measuring.describe, path)
    pixels = model.facts.pixels
    if not model.facts.known:
        images = pictures.rgb(*model.input_shape[:2])
        pixels = process.call(measuring.best_range, model.file, images, pictures.tenths)
    return _Reader(process, model, pixels)


def _milliseconds(reader: _Reader, images: np.ndarray) -> float | None:
    try:
        found = reader.process.call(measuring.milliseconds, reader.model.file, reader.pixels, images[:1])
    except UserError as error:
        log.warning("%s: the time for a picture could not be measured (%s)", reader.model.file, error)
        return None
    return round(found, 4)


def _facts(reader: _Reader) -> dict[str, Any]:
    model = reader.model
    return {
        "file": str(model.file),
        "bytes": model.bytes,
        "parameters": model.facts.parameters,
        "multiply_accumulates": model.facts.macs,
        "input_shape": list(model.input_shape),
        "input_dtype": model.facts.dtype,
        "pixels": reader.pixels.name,
        "pixels_found": "in the file" if model.facts.known else "by trial",
        "outputs": model.facts.outputs,
    }


def _scores(judged: dict, numbers: np.ndarray, nb_classes: int, pictures: Pictures) -> dict[str, Any]:
    found = comparison.scores(judged, pictures.counted, comparison.common_metric([judged], pictures.has_tenths))
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


def _card(reader: _Reader, images: np.ndarray, pictures: Pictures) -> dict[str, Any]:
    """Scores under every change, in the form of ``robustness.json``."""
    chosen = robustness.choose(len(images))
    judged = {}
    for change in robustness.CHANGES:
        numbers, _ = reader.read(np.ascontiguousarray(change.apply(images[chosen])))
        tenths = robustness.tenths_after(change, pictures.tenths[chosen])
        judged[change.name] = comparison.judged(numbers, len(reader.model.names), tenths)
    metric = comparison.common_metric(judged.values(), pictures.has_tenths)
    changes = [{"name": name, "score": round(float(right[metric].mean()), 6)} for name, right in judged.items()]
    return {"pictures": len(chosen), "metric": metric, "changes": changes}


def _readings(
    reader: _Reader, simulation: _Simulation, numbers: np.ndarray, confidences: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    plan, model = simulation.plan, reader.model
    if plan.drawn.any():
        more, sure = reader.read(simulation.drums.rgb(*model.input_shape[:2]))
        numbers, confidences = np.concatenate([numbers, more]), np.concatenate([confidences, sure])
    known = [value for value in (threshold, model.threshold, prediction.THRESHOLD) if value is not None]
    whole = np.where(numbers < 10, 10 * numbers, metering.NO_READING)
    tenths = numbers if len(model.names) == labels.NB_TENTHS else whole
    outcome = metering.judge(plan, tenths, confidences, known[0])
    origin = "given" if threshold is not None else "recommended" if model.threshold is not None else "default"
    facts = {"digits": plan.pictures.shape[1], "readings": len(plan.truth), "drawn": int(plan.drawn.sum())}
    return {**facts, **asdict(outcome), "threshold_from": origin}
