"""What ``RING_SMOOTHING`` does to readings: ``python -m tests.measure_smoothing RUN_DIR [RUN_DIR ...]``.

Smooths the Keras model of finished runs of 100 classes, trained with ``RING_SMOOTHING = 0``, by several shares, and
measures each on the run's own test sets. To choose the default, whole meters of ``meter_digits`` were ``TEST_SOURCES``.
"""

import argparse
from pathlib import Path

from utils import console, loader

SHARES = (0.0, 0.1, 0.2, 0.25, 0.33)


def main() -> None:
    """Prints a row for each model, test set and share as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    console.set_up()
    console.import_tensorflow(memory_growth=True)

    from tests import finished_runs
    from utils import confidence, evaluation, smoothing

    print("| model | measured on | share | exact | within 0.1 | off by a digit | accepted at 99.5 % right |")
    print("|---|---|---|---|---|---|---|")
    for run in arguments.runs:
        settings = finished_runs.settings_of(run)
        if settings.nb_classes != 100 or settings.ring_smoothing:
            parser.error(f"{run}: not trained with NB_CLASSES = 100 and RING_SMOOTHING = 0")
        splits, model = loader.load(settings), finished_runs.model_of(run)
        for name, indices in splits.measured.items():
            plain = evaluation.keras_logits(model, splits.pool.images(indices))
            for share in SHARES:
                logits = plain @ smoothing.matrix(share)
                judged = evaluation.judge(logits.argmax(axis=1), splits.pool.tenths[indices], 100)
                right = judged["within_0.1"]
                sure = confidence.of(logits / (confidence.temperature(logits, right) or 1))
                threshold = confidence.recommended(sure, right)
                accepted = "-" if threshold is None else f"{(sure >= threshold).mean():.4f}"
                cells = " | ".join(
                    f"{judged[one].mean():.4f}" for one in ("accuracy", "within_0.1", "whole_digit_errors")
                )
                print(f"| `{model.name}` | {name} | {share} | {cells} | {accepted} |", flush=True)


if __name__ == "__main__":
    main()
