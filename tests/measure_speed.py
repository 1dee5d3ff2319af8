"""Measures what the README says about speed and memory: ``python -m tests.measure_speed [--pictures FOLDER]``.

Times on a shared machine drift, so what is compared is measured in turns within one run and quoted as a ratio.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from utils import console, loader, readers, sources, synthetic
from utils import settings as settings_module

ROOT = Path(__file__).parent.parent
ROUNDS = 5


def seconds(action) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def epoch_against_bare_steps() -> str:
    """An epoch with loading and augmentation against as many training steps on one ready batch."""
    console.import_tensorflow(memory_growth=True)
    import keras

    import models
    from utils import training
    from utils.augmentation import Augmentation

    class Ready(keras.utils.PyDataset):
        def __init__(self, batches):
            super().__init__()
            self.length, self.batch = len(batches), batches[0]

        def __len__(self):
            return self.length

        def __getitem__(self, number):
            return self.batch

    def compiled(settings, head):
        model = models.get("cnn32").build(settings.input_shape, settings.nb_classes)
        image = keras.Input(model.input_shape[1:], dtype="uint8")
        trainer = keras.Model(image, model(head(image)))
        training._compile(trainer, settings, 100)
        return trainer

    settings = settings_module.load(data_sources=[{"name": "s", "type": "synthetic", "count": 12_800}])
    splits = loader.load(settings)
    full = training.Batches(splits.pool, splits.epoch, settings.batch_size, seed=1)
    full_trainer = compiled(settings, Augmentation(settings))
    bare_trainer = compiled(settings, lambda image: keras.ops.cast(image, "float32"))
    ready = Ready(full)
    with_data, bare = [], []
    for _ in range(2 * ROUNDS):
        with_data.append(seconds(lambda: full_trainer.fit(full, verbose=0, shuffle=False)))
        bare.append(seconds(lambda: bare_trainer.fit(ready, verbose=0, shuffle=False)))
    # The best of each, since a neighbour on the machine doubles a round's time now and then.
    ratio = min(with_data) / min(bare)
    return f"epoch with data and augmentation / bare steps: {ratio:.2f}, best of {2 * ROUNDS} rounds each (limit 1.25)"


def synthetic_pictures() -> str:
    """Pictures a second of the generator."""
    rates = [20_000 / seconds(lambda: synthetic.draw(20_000, 1)) for _ in range(ROUNDS)]
    return f"synthetic pictures a second: median {np.median(rates):,.0f} (at least 5,000)"


def loading(folder: Path) -> str:
    """First and second read of a folder, from an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "pictures"
        shutil.copytree(folder, copy)
        source = sources.DataSource("pictures", "filename", copy)
        first, second = (seconds(lambda: readers.read(source, 32, 20, 1, 100, seed=0)) for _ in range(2))
    return f"{folder.name}: first read {first:.2f} s, second {second:.2f} s (limit 1 s)"


def memory_of_200_000(folder: Path) -> str:
    """Peak memory of reading and splitting 200,000 pictures, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        copies = Path(scratch) / "pictures"
        files = sorted(folder.rglob("*.jpg"))
        for number in range(200_000):
            meter = copies / str(number // len(files))
            meter.mkdir(parents=True, exist_ok=True)
            file = files[number % len(files)]
            shutil.copy(file, meter / f"{file.stem}_{number}.jpg")
        code = (
            "import resource; from utils import loader, settings;"
            f"source = dict(name='p', type='filename', path={str(copies)!r});"
            "loader.load(settings.load(data_sources=[source], nb_classes=100, input_channels=3));"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
        )
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    spent = time.perf_counter() - started
    return f"200,000 RGB pictures read and split: peak {float(done.stdout):.2f} GiB (limit 2), {spent:.0f} s"


def help_text() -> str:
    """Time until ``--help`` has answered."""
    times = [seconds(lambda: subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True))
             for _ in range(ROUNDS)]  # fmt: skip
    return f"train.py --help: median {np.median(times):.2f} s (limit 0.5)"


def main() -> None:
    """Runs all measurements; those of loading need a folder of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, help="a folder with label_x.jpg files, for the loading measurements")
    pictures = parser.parse_args().pictures
    console.set_up()
    for measure in (help_text, synthetic_pictures, epoch_against_bare_steps):
        print(measure(), flush=True)
    for measure in (loading, memory_of_200_000) if pictures else ():
        print(measure(pictures), flush=True)
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
