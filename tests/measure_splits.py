"""Makes the README's table of splits and sources: ``python -m tests.measure_splits FOLDER``.

FOLDER holds ``meter_digits/`` and ``unseen_meters/``. Trains cnn32 with 100 classes and default settings once for each
row; ``unseen_meters`` is only measured on.
"""

import argparse
import dataclasses
from pathlib import Path

from utils import console, loader
from utils import settings as settings_module

FILES = {"best_model.keras": "Keras", "cnn32_float.tflite": "float", "cnn32_quantized.tflite": "int8"}


def main() -> None:
    """Trains once a row and prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", default="exported_models", help="folder for the run folders")
    arguments = parser.parse_args()
    own, held = (
        {"name": name, "type": "filename", "path": str(arguments.folder / name)}
        for name in ("meter_digits", "unseen_meters")
    )
    settings = settings_module.load(nb_classes=100, test_sources=[held], output_dir=arguments.output)
    synthetic = settings.data_sources
    cases = {
        "`meter_digits`, random pictures held out": ([own], "image"),
        "`meter_digits`, twins held out together (default)": ([own], "cluster"),
        "`meter_digits`, whole meters held out": ([own], "meter"),
        "synthetic digits (default), not one real": (synthetic, "cluster"),
        "`meter_digits` and synthetic digits": ([own, *synthetic], "cluster"),
    }
    console.set_up()
    console.import_tensorflow(settings.gpu_memory_growth)
    from utils import session

    print("| trained on | file | held out: exact | within 0.1 | `unseen_meters`: exact | within 0.1 |")
    print("|---|---|---|---|---|---|")
    for title, (data_sources, split_by) in cases.items():
        chosen = dataclasses.replace(settings, data_sources=data_sources, split_by=split_by)
        (outcome,) = session.train(["cnn32"], chosen, session.Options(), loader.load(chosen))
        for file, short in FILES.items():
            sets = outcome.results["files"][file]["sets"]
            cells = [sets[name][score] for name in ("test", "unseen_meters") for score in ("accuracy", "within_0.1")]
            print(f"| {title} | {short} |", " | ".join(f"{cell:.3f}" for cell in cells), "|", flush=True)


if __name__ == "__main__":
    main()
