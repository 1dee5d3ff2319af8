"""Makes the README's table of splits: ``python -m tests.measure_splits FOLDER``.

FOLDER holds ``meter_digits/`` and ``unseen_meters/``. Trains cnn32 with 100 classes and default settings once for each
``SPLIT_BY`` on the former; the latter is only measured on.
"""

import argparse
import dataclasses
from pathlib import Path

from utils import console, loader
from utils import settings as settings_module

FILES = {"best_model.keras": "Keras", "cnn32_float.tflite": "float", "cnn32_quantized.tflite": "int8"}
SPLITS = {"image": "random pictures", "cluster": "twins together (default)", "meter": "whole meters"}


def main() -> None:
    """Trains three times and prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", default="exported_models", help="folder for the three run folders")
    arguments = parser.parse_args()
    own, held = (
        {"name": name, "type": "filename", "path": str(arguments.folder / name)}
        for name in ("meter_digits", "unseen_meters")
    )
    settings = settings_module.load(
        nb_classes=100, data_sources=[own], test_sources=[held], output_dir=arguments.output
    )
    console.set_up()
    console.import_tensorflow(settings.gpu_memory_growth)
    from utils import session

    rows = {}
    for split_by in SPLITS:
        chosen = dataclasses.replace(settings, split_by=split_by)
        (outcome,) = session.train(["cnn32"], chosen, session.Options(), loader.load(chosen))
        rows[split_by] = outcome.results["files"]
    print("| split of `meter_digits` | file | held out: exact | within 0.1 | `unseen_meters`: exact | within 0.1 |")
    print("|---|---|---|---|---|---|")
    for split_by, files in rows.items():
        for file, title in FILES.items():
            sets = files[file]["sets"]
            cells = [sets[name][score] for name in ("test", "unseen_meters") for score in ("accuracy", "within_0.1")]
            print(f"| {SPLITS[split_by]} | {title} |", " | ".join(f"{cell:.3f}" for cell in cells), "|")


if __name__ == "__main__":
    main()
