"""Makes docs/quantisation.md's table of float, PTQ and QAT: ``python -m tests.measure_quantization RUN_DIR ...``.

Takes the trained model of each run folder, converts it by post-training quantisation, trains it on with fake
quantisation, converts again, and measures all three on the run's own test sets.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from utils import console, loader


def main() -> None:
    """Prints a row for each model and kind as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    console.set_up()
    console.import_tensorflow(memory_growth=True)

    from tests import finished_runs
    from utils import evaluation, export, fake_quant, gate, micro, temperature, training

    print("| model | file | exact | within 0.1 | `unseen_meters`: exact | within 0.1 | ties | equal to Micro | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for run in arguments.runs:
        settings = finished_runs.settings_of(run, ("calibration_images", "qat_epochs", "qat_learning_rate"))
        splits = loader.load(settings)
        model = finished_runs.model_of(run)

        def row(kind, logits, seconds, content=None, splits=splits, model=model):
            cells = []
            for (_, indices), values in zip(splits.measured.items(), logits, strict=True):
                scores = evaluation.metrics(values.argmax(axis=1), splits.pool.tenths[indices], 100)
                cells += [scores["accuracy"], scores["within_0.1"]]
            ties = equal = "-"
            if content:
                images = splits.pool.images(splits.validation[: gate.MAX_PICTURES])
                inputs = micro.encode(images, "int8")
                equal = f"{np.mean(micro.run(content, inputs) == micro.reference(content, inputs)):.4f}"
                ties = f"{evaluation.tie_share(np.concatenate(logits)):.4f}"
            numbers = " | ".join(f"{cell:.4f}" for cell in cells)
            print(f"| `{model.name}` | {kind} | {numbers} | {ties} | {equal} | {seconds:.0f} |", flush=True)

        images = [splits.pool.images(indices) for indices in splits.measured.values()]
        row("float", [evaluation.keras_logits(model, one) for one in images], 0)
        calibration = loader.calibration_images(splits, settings.calibration_images, settings.seed)
        started, margin = time.monotonic(), fake_quant.LOGITS_MARGIN
        fake_quant.LOGITS_MARGIN = float("inf")
        content = export.quantized_tflite(model, calibration, "int8")
        logits = [evaluation.tflite_logits(content, one) for one in images]
        row("PTQ, logits' full range", logits, time.monotonic() - started, content)
        started, fake_quant.LOGITS_MARGIN = time.monotonic(), margin
        quantized = fake_quant.quantize(model, calibration)
        for kind in ("PTQ", "QAT"):
            if kind == "QAT":
                started = time.monotonic()
                quantized = fake_quant.quantize(temperature.taken_out(model, splits, settings), calibration)
                training.fit_quantized(quantized, splits, settings)
            content = export.integer_tflite(quantized, "int8")
            row(kind, [evaluation.tflite_logits(content, one) for one in images], time.monotonic() - started, content)


if __name__ == "__main__":
    main()
