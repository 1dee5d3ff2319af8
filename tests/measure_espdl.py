"""Makes the table of ESP-DL files in docs/quantisation.md: ``python -m tests.measure_espdl RUN_DIR [RUN_DIR ...]``.

Takes the trained model of each run folder, writes it for each chip by each recipe, executes the files on the run's own
test sets, and compares them with the Keras model. The seconds are those of one file, imports not included.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from utils import chips, console, loader


def main() -> None:
    """Prints a row for each model, chip and recipe as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--modes", nargs="+", default=["ptq", "auto"], help="ESP_DL_MODE, one or several")
    arguments = parser.parse_args()
    console.set_up()
    console.import_tensorflow(memory_growth=True)
    from tests import finished_runs
    from utils import espdl, espdl_file, espdl_gate, espdl_run, evaluation, fake_quant

    print("| model | chip | recipe | KB | agrees | within 0.1: Keras | .espdl | `unseen_meters`: Keras | .espdl | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for run in arguments.runs:
        settings, model = finished_runs.settings_of(run), finished_runs.model_of(run)
        splits = loader.load(settings)
        ranges = loader.calibration_images(splits, settings.calibration_images, settings.seed)
        network = espdl.to_onnx(fake_quant.quantize(model, ranges))
        calibration = loader.calibration_images(splits, espdl.CALIBRATION_IMAGES, settings.seed)
        validation = splits.pool.images(splits.validation[:1000])
        read = evaluation.keras_logits(model, validation).argmax(axis=1)
        images = {name: splits.pool.images(indices) for name, indices in splits.measured.items()}
        keras_read = {name: evaluation.keras_logits(model, one).argmax(axis=1) for name, one in images.items()}

        def within(predicted, name, splits=splits):
            return evaluation.metrics(predicted, splits.pool.tenths[splits.measured[name]], 100)["within_0.1"]

        for chip in chips.CHIPS:
            for mode in arguments.modes:
                started = time.monotonic()
                made = espdl.export(network, chip, mode, calibration, validation, read, {})
                seconds = time.monotonic() - started
                verdict = espdl_gate.check(chip, made.release, made.debug, validation, read, 0)
                file = espdl_file.read(made.release)
                predicted = {name: espdl_run.logits(file, one).argmax(axis=1) for name, one in images.items()}
                same = np.concatenate([predicted[name] == keras_read[name] for name in images]).mean()
                cells = [f"{within(part[name], name):.4f}" for name in images for part in (keras_read, predicted)]
                row = [f"`{model.name}`", chip, made.recipe, f"{len(made.release) / 1024:.1f}", f"{same:.4f}", *cells]
                reasons = "".join(f" {reason};" for reason in verdict.reasons)
                print(f"| {' | '.join(row)} | {seconds:.0f} |{reasons}", flush=True)


if __name__ == "__main__":
    main()
