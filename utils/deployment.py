"""From a trained model to the files that devices take: conversion, the gates, and the papers that go with them."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import keras
import numpy as np

from utils import (
    espdl_deployment,
    evaluation,
    fake_quant,
    gate,
    golden,
    loader,
    manifest,
    runs,
    targets,
    temperature,
    training,
)
from utils.espdl import Espdl
from utils.gate import Verdict
from utils.loader import Splits
from utils.quantization import QuantizationMode
from utils.settings import Settings

log = logging.getLogger(__name__)

GOLDEN_FOLDER = "golden"
WILL_REFUSE = "%s will refuse %s once it is trained: %s"
ENOUGH_TO_CALIBRATE = 100  # pictures; with ten a trial lost half a point, with one two and a half


@dataclasses.dataclass(frozen=True)
class DeviceFile:
    """One TFLite or ESP-DL file; ``kind`` is float, ptq or qat, of an ESP-DL file that of the weights it is made from.

    ``verdict`` is its device's, None if no device asked for it; ``companion`` names the text that goes with it, if any;
    ``espdl`` is what belongs to an ESP-DL file.
    """

    name: str
    content: bytes
    kind: str
    verdict: Verdict | None = None
    companion: str | None = None
    espdl: Espdl | None = None


def make(model: keras.Model, splits: Splits, settings: Settings, mode: QuantizationMode) -> list[DeviceFile]:
    """Converts a trained model for every device and asks each whether it takes the file; writes nothing.

    With ``USE_QAT`` the model is trained on with fake quantisation, and devices get what reads more validation
    pictures right, before that or after it, the state before if they are equal; a file of the other stands beside.

    Raises:
        QuantizationError, ExportError: a conversion failed.
    """
    # Here and not above: it needs TensorFlow, which a machine that only trains may lack.
    from utils import export

    files = [DeviceFile(f"{model.name}_float.tflite", export.float_tflite(model), "float")]
    if not mode.int8:
        return files
    calibration = loader.calibration_images(splits, settings.calibration_images, settings.seed)
    if len(calibration) < ENOUGH_TO_CALIBRATE:
        log.warning("only %d training pictures to calibrate on: the quantised file may lose accuracy", len(calibration))
    quantized = fake_quant.quantize(model, calibration)
    # Few outputs differ by a share that is chance: training pictures fill up what validation lacks.
    validation = splits.pool.images(loader.spread(splits.validation, gate.MAX_PICTURES))
    samples = np.concatenate([validation, calibration])
    # The plain quantised file comes out in any case: as tflite_micro's, or without a gate.
    plain = "tflite_micro" if "tflite_micro" in settings.deploy_targets else None
    first, to_compare = _for_device(quantized, plain, "ptq", samples, settings), []
    if mode.qat:
        log.info("training %s on with fake quantisation", model.name)
        trained = fake_quant.quantize(temperature.taken_out(model, splits, settings), calibration)
        training.fit_quantized(trained, splits, settings)
        # Not asked anew of the validation pictures: those of a fine-tuned model may be drawn ones alone.
        temperature.fold(trained, splits, settings, like=model)
        before, after = first, _for_device(trained, plain, "qat", samples, settings)
        first, lesser = _ranked(before, after, splits)
        if first is after:
            quantized = trained
        to_compare = _to_compare(lesser, f"{model.name}_{lesser.kind}.tflite")
    others = [target for target in dict.fromkeys(settings.deploy_targets) if target != plain]
    for file in [first, *(_for_device(quantized, target, first.kind, samples, settings) for target in others)]:
        files.append(file)
        if file.verdict:
            _log(file.verdict, file.name)
    files += to_compare
    if mode.espdl:
        for name, made, verdict in espdl_deployment.make(model, quantized, splits, settings):
            _log(verdict, name)
            files.append(DeviceFile(name, made.release if made else b"", first.kind, verdict, espdl=made))
    return files


def _ranked(before: DeviceFile, after: DeviceFile, splits: Splits) -> tuple[DeviceFile, DeviceFile]:
    """The file of quantisation-aware training and the one before it, the better one that its device takes first."""
    images, classes = splits.pool.images(splits.validation), splits.pool.classes(splits.validation)
    right = [
        int((evaluation.file_logits(file.name, file.content, images).argmax(axis=1) == classes).sum())
        for file in (before, after)
    ]
    # What its device refuses is no use there, however well it reads.
    taken = [not file.verdict or file.verdict.accepted for file in (before, after)]
    if (taken[1], right[1]) > (taken[0], right[0]):
        return after, before
    text = "after quantisation-aware training %d of %d validation pictures are read right, before it %d: that stays"
    log.warning(text, right[1], len(classes), right[0])
    return before, after


def _to_compare(file: DeviceFile, name: str) -> list[DeviceFile]:
    """The file under a name that no device takes it by; none if its device refuses it, which fails no run."""
    if file.verdict and not file.verdict.accepted:
        log.info("%s is not written: %s", name, "; ".join(file.verdict.reasons))
        return []
    return [dataclasses.replace(file, name=name, verdict=None, companion=None)]


def foresee(model: keras.Model, settings: Settings) -> None:
    """Converts an architecture on noise, before it is trained: training takes long, and would be lost if that failed.

    Logs what devices that know few operators, and with ``ESP_DL_QUANTIZE`` a chip, have against it.

    Raises:
        QuantizationError: it can't be quantised. The message says why and what to do.
    """
    from utils import export

    narrow = [name for name in settings.deploy_targets if targets.get(name).operators != targets.MICRO_OPERATORS]
    noise = np.random.default_rng(settings.seed).integers(0, 256, (16, *settings.input_shape)).astype(np.uint8)
    quantized = fake_quant.quantize(model, noise)
    try:
        _for_device(quantized, None, "ptq", None, settings)
    except export.ExportError as error:
        raise fake_quant.QuantizationError(
            f"{model.name} can't be quantised ({error}): build it from other layers, or set QUANTIZE_MODEL = False"
        ) from error
    for target in narrow:
        for reason in _for_device(quantized, target, "ptq", None, settings).verdict.reasons:
            log.warning(WILL_REFUSE, target, model.name, reason)
    for reason in espdl_deployment.foresee(quantized, noise, settings) if settings.esp_dl_quantize else ():
        log.warning(WILL_REFUSE, settings.esp_dl_targets[0], model.name, reason)


def _for_device(
    quantized: keras.Model, target: str | None, kind: str, samples: np.ndarray | None, settings: Settings
) -> DeviceFile:
    from utils import export

    device = targets.get(target or "tflite_micro")
    name = targets.file_name(device.name, quantized.name, settings.nb_classes, settings.model_version)
    try:
        source = fake_quant.with_rgb_input(quantized) if device.rgb else quantized
    except fake_quant.QuantizationError as error:
        return DeviceFile(name, b"", kind, Verdict(target, False, (str(error),), (), None, "not converted"))
    io_type = device.io_type or settings.quantized_io_type
    content = export.integer_tflite(source, io_type, settings.nb_classes in device.needs_softmax)
    if target is None:
        return DeviceFile(name, content, kind)
    verdict = gate.check(target, content, settings.nb_classes, targets.soft_labels(settings), samples)
    companion = name.removesuffix(".tflite") + ".txt" if device.has_companion else None
    return DeviceFile(name, content, kind, verdict, companion)


def _log(verdict: Verdict, name: str) -> None:
    for text in verdict.reasons:
        log.error("%s refuses %s: %s", verdict.target, name, text)
    for text in verdict.warnings:
        log.warning("%s, %s: %s", verdict.target, name, text)


def accepted(files: list[DeviceFile]) -> list[DeviceFile]:
    """Files that no device has refused: these alone are written."""
    return [file for file in files if file.verdict is None or file.verdict.accepted]


def facts(files: list[DeviceFile]) -> dict[str, dict]:
    """The verdict of each device, for ``results.json``; for ESP-DL also what was tried."""
    found = {}
    for file in files:
        if file.verdict:
            entry = found[file.verdict.target] = {"file": file.name, **dataclasses.asdict(file.verdict)}
            entry |= {kind: list(entry[kind]) for kind in ("reasons", "warnings")}
            if file.espdl:
                entry |= {"recipe": file.espdl.recipe, "tried": file.espdl.tried}
    return found


def write_papers(
    run_dir: Path,
    files: list[DeviceFile],
    splits: Splits,
    settings: Settings,
    scores: dict,
    threshold: float | None,
) -> None:
    """Writes ``manifest.json`` and what goes with each file: companions, ``golden/`` pictures, ESP-IDF projects.

    All files get the recommended confidence ``threshold``, 0..1 or None; ``scores`` say what each reads with it.
    """
    settings_hash = hashlib.sha256(json.dumps(dataclasses.asdict(settings), indent=2).encode()).hexdigest()
    entries = []
    for file in files:
        # Not the run's: with USE_QAT, the file that devices get may be the one from before that training.
        origin = manifest.Training(splits.fingerprint, settings_hash, file.kind.upper())
        entry_scores = {name: _plain(entry) for name, entry in scores[file.name]["sets"].items()}
        described = file.name, file.content, settings.nb_classes
        entries.append(manifest.file_entry(*described, file.verdict, entry_scores, origin, threshold))
        if file.espdl:
            espdl_deployment.write(run_dir, file.verdict.target, file.name, file.espdl, splits, threshold)
        elif file.kind != "float":
            _write_golden(run_dir, file, splits)
        if file.companion:
            text = manifest.companion_text(*described, file.verdict.arena_bytes, threshold)
            runs.write_text(run_dir / file.companion, text)
    runs.write_json(run_dir / runs.MANIFEST_FILE, manifest.build(entries))


def _plain(scores: dict) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, int | float)}


def _write_golden(run_dir: Path, file: DeviceFile, splits: Splits) -> None:
    measured = np.concatenate(list(splits.measured.values()))
    chosen = loader.spread(measured, golden.PICTURES)
    vectors = golden.make(file.content, splits.pool.images(chosen))
    folder, stem = run_dir / GOLDEN_FOLDER, Path(file.name).stem
    folder.mkdir(exist_ok=True)
    # Put together, not with_suffix: the name of a model may hold dots.
    runs.write(folder / f"{stem}.npz", lambda partial: golden.write_npz(partial, vectors))
    runs.write_text(folder / f"{stem}.h", golden.header(file.name, vectors))
