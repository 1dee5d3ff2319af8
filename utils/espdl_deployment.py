"""From a trained model to its ESP-DL files: one for each chip, past the gate, with a project that runs it there."""

import logging
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from utils import chips, espdl, espdl_gate, espdl_project, evaluation, loader, manifest, runs
from utils.espdl import Espdl
from utils.espdl_file import EspdlError
from utils.gate import Verdict
from utils.loader import Splits
from utils.settings import Settings

log = logging.getLogger(__name__)

AGREEMENT_IMAGES = 1000  # validation pictures on which a file must read what the Keras model reads


def make(
    model: keras.Model, quantized: keras.Model, splits: Splits, settings: Settings
) -> Iterator[tuple[str, Espdl | None, Verdict]]:
    """File name, file and verdict for each of ``ESP_DL_TARGETS``; writes nothing.

    A conversion that fails is a refusal of the chip, so that the files of other devices come out.

    Args:
        model: what was trained; the files must read what it reads.
        quantized: what :func:`fake_quant.quantize` made of it, perhaps trained on; its weights are taken.
        splits: calibration pictures are drawn from the training part, the agreement is measured on the validation part.
        settings: says which chips, and how.
    """
    network = None
    calibration = loader.calibration_images(splits, espdl.CALIBRATION_IMAGES, settings.seed)
    images = splits.pool.images(loader.spread(splits.validation, AGREEMENT_IMAGES))
    reference = evaluation.keras_logits(model, images).argmax(axis=1)
    metadata = {"input": manifest.ENCODINGS["int8"], "classes": manifest.CLASS_NAMES[settings.nb_classes]}
    for chip in dict.fromkeys(settings.esp_dl_targets):
        log.info("writing the ESP-DL file for %s", chip)
        name = chips.file_name(model.name, chip)
        try:
            network = network or espdl.to_onnx(quantized)
            made = espdl.export(network, chip, settings.esp_dl_mode, calibration, images, reference, metadata)
        except (espdl.EspdlExportError, EspdlError) as error:
            yield name, None, Verdict(chip, False, (str(error),), (), None, "not converted")
            continue
        minimum = settings.esp_dl_min_agreement
        yield name, made, espdl_gate.check(chip, made.release, made.debug, images, reference, minimum)


def foresee(quantized: keras.Model, noise: np.ndarray, settings: Settings) -> tuple[str, ...]:
    """Why a chip would refuse a network even if it is trained well; nothing if there is no reason.

    The first of ``ESP_DL_TARGETS`` speaks for all: they differ in what training decides.

    Args:
        quantized: what :func:`fake_quant.quantize` made of the untrained network.
        noise: pictures ``(N, H, W, C)`` uint8 of anything.
        settings: says which chip.
    """
    chip, reference = settings.esp_dl_targets[0], np.zeros(len(noise), int)
    try:
        made = espdl.export(espdl.to_onnx(quantized), chip, "trial", noise, noise, reference, {})
    except (espdl.EspdlExportError, EspdlError) as error:
        return (str(error),)
    return espdl_gate.check(chip, made.release, made.debug, noise, reference, min_agreement=0).reasons


def write(run_dir: Path, chip: str, name: str, made: Espdl, splits: Splits, threshold: float | None) -> None:
    """Writes what goes with the file ``name``: the one with test values, all scales, the project ``espdl_<chip>/``.

    The project calls a reading with less than the confidence ``threshold`` unsure.
    """
    stem = Path(name).stem
    debug_name = name.replace(".espdl", "_debug.espdl")
    runs.write(run_dir / debug_name, lambda partial: partial.write_bytes(made.debug))
    runs.write_text(run_dir / f"{stem}.json", made.scales)
    folder = run_dir / espdl_project.folder(chip)
    shown = np.concatenate(list(splits.measured.values()))[:1]
    (picture,), (true_class,) = splits.pool.images(shown), splits.pool.classes(shown)
    texts = espdl_project.files(chip, name, debug_name, picture, int(true_class), splits.pool.nb_classes, threshold)
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        runs.write_text(folder / path, text)
    models = folder / espdl_project.MODEL_FOLDER
    runs.write(models / name, lambda partial: partial.write_bytes(made.release))
    runs.write(models / debug_name, lambda partial: partial.write_bytes(made.debug))
