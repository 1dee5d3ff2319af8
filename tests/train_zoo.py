"""Trains the zoo's small networks on the answers of larger ones, without a graphics card.

``python -m tests.train_zoo answers STORE --teacher RUN [RUN ...] --pictures 3000000`` writes augmented pictures, half
of them photographs and half drawn, with their labels and the teachers' mean answers; several may run side by side
(``--part 1/2``).
``python -m tests.train_zoo student STORE ARCHITECTURE --start FILE --epochs 4`` trains on them and leaves a run folder
that ``train.py --resume`` exports and measures.

``train.py --teacher`` asks the teacher anew at every step, which costs a small network ten times its own work.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import models
from utils import console, labels, loader, runs, synthetic
from utils.settings import Settings, load

log = logging.getLogger(__name__)

SHARD = 20_000  # pictures a file
AT_ONCE = 8  # shards that are mixed with one another
BATCH = 512
TEACHER_SHARE = 0.9
BLENDED = 0.4  # share of the pictures that another one shines through
NO_LABEL = -1
LOST_SHARE = 0.5  # where the teachers misread a drawn picture, whose label is true
LOST = 3  # tenths beside the label
SYNTHETIC = {"name": "synthetic", "type": "synthetic", "count": 20_000, "system_fonts": True}


def zoo_settings(**changes) -> Settings:
    """The parameters of all networks of the zoo that photographs have taught."""
    photographs = {"name": "meter_digits", "type": "filename", "path": "datasets/meter_digits"}
    unseen = {"name": "unseen_meters", "type": "filename", "path": "datasets/unseen_meters"}
    return load(**{
        **{"data_sources": [photographs, SYNTHETIC], "test_sources": [unseen], "input_channels": 3, "nb_classes": 100},
        **{"validation_share": 0.05, "test_share": 0.05, "batch_size": BATCH},
        # The teachers' answers are smoothed already: the exact tenth loses 0.8 points of held-out pictures by more.
        **{"ring_smoothing": 0.0},
        **{"deploy_targets": ["tflite_micro", "ai_on_the_edge", "esphome"]},
        **{"esp_dl_quantize": True, "esp_dl_mode": "auto"},
        **changes,
    })  # fmt: skip


def write_answers(store: Path, teachers: list[str], pictures: int, part: int, parts: int) -> None:
    """Writes every ``parts``-th shard from ``part`` on; what is there already stays."""
    import keras
    import tensorflow as tf

    from utils import model_choice, model_files
    from utils.augmentation import Augmentation

    settings = zoo_settings(teachers=teachers)
    trained = [model_files.load(file) for file in model_choice.teachers(settings)]
    splits = loader.load(settings)
    photographs = splits.train[splits.pool.source_ids[splits.train] == 0]
    # Half the numbers' width is enough for an answer, and takes two thirds of the time where the processor has it.
    keras.config.set_dtype_policy("mixed_bfloat16")
    answering = [models.get(one.name).build(one.input_shape[1:], one.output_shape[-1]) for one in trained]
    keras.config.set_dtype_policy("float32")
    for narrow, one in zip(answering, trained, strict=True):
        narrow.set_weights(one.get_weights())
    augmentation = Augmentation(settings, name="augmentation")

    @tf.function
    def change(raw: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(tf.clip_by_value(augmentation(raw, training=True), 0, 255)), tf.uint8)

    @tf.function
    def answer(images: tf.Tensor) -> tf.Tensor:
        logits = [tf.cast(narrow(images, training=False), tf.float32) for narrow in answering]
        return tf.reduce_mean(tf.nn.softmax(logits), axis=0)

    def in_batches(function, values: np.ndarray) -> np.ndarray:
        return np.concatenate([function(values[start : start + 500]).numpy() for start in range(0, SHARD, 500)])

    for shard in range(part, pictures // SHARD, parts):
        path = store / f"{shard:05d}.npz"
        if path.is_file():
            continue
        chosen = np.random.default_rng([settings.seed, shard]).choice(photographs, SHARD // 2)
        drawn = synthetic.draw(SHARD // 2, seed=1_000_000 + shard, system_fonts=True)
        raw = np.concatenate([splits.pool.images(chosen), drawn.images])
        augmentation.start_epoch(shard)
        tenths = np.concatenate([splits.pool.tenths[chosen], drawn.tenths])
        images, tenths = blend(in_batches(change, raw), tenths, np.random.default_rng([settings.seed, 1, shard]))
        answers = in_batches(answer, images).astype(np.float16)
        arrays = {"images": images, "answers": answers, "tenths": tenths, "teachers": np.array(teachers)}
        runs.write(path, lambda partial, arrays=arrays: np.savez(partial, **arrays))
        log.info("%s written", path)


def blend(images: np.ndarray, tenths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lets another picture shine through some, at most as strong as they are; those lose their label (-1).

    The teacher's answer on what no camera sees tells more of how it reads (Beyer et al. 2022, "Knowledge distillation:
    A good teacher is patient and consistent", arXiv:2106.05237).
    """
    chosen = np.flatnonzero(rng.random(len(images)) < BLENDED)
    other = images[rng.permutation(len(images))[: len(chosen)]]
    strength = rng.uniform(0.5, 1, (len(chosen), 1, 1, 1)).astype(np.float32)
    images, tenths = images.copy(), tenths.copy()
    images[chosen] = np.round(strength * images[chosen] + (1 - strength) * other)
    tenths[chosen] = NO_LABEL
    return images, tenths


def steps_of(store: Path) -> int:
    """How many batches an epoch has."""
    return sum(len(group) * SHARD // BATCH for group in _groups(store, 0))


def batches(store: Path, spread: np.ndarray, epochs: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures (BATCH, H, W, 3) uint8 and targets (BATCH, 100) float32, each stored one once an epoch but a rest."""
    for epoch in range(epochs):
        rng = np.random.default_rng(epoch)
        for group in _groups(store, epoch):
            read = []
            for path in group:
                with np.load(path, allow_pickle=False) as arrays:
                    read.append((arrays["images"], targets(arrays["answers"], arrays["tenths"], spread)))
            images, wanted = (np.concatenate(parts) for parts in zip(*read, strict=True))
            order = rng.permutation(len(images))
            for start in range(0, len(order) - BATCH + 1, BATCH):
                chosen = order[start : start + BATCH]
                yield images[chosen], wanted[chosen]


def _groups(store: Path, epoch: int) -> list[list[Path]]:
    # A file that is being written has a hidden name, which "*" would match.
    shards = sorted(store.glob("[0-9]*.npz"))
    shuffled = [shards[number] for number in np.random.default_rng([1, epoch]).permutation(len(shards))]
    return [shuffled[start : start + AT_ONCE] for start in range(0, len(shuffled), AT_ONCE)]


def targets(answers: np.ndarray, tenths: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The teachers' answers with a part of the labels: (N, 100) float32. The second half of a shard is drawn.

    A label of -1 is none: the answers count alone.
    """
    answers = answers.astype(np.float32)
    away = labels.ring_distance(answers.argmax(axis=1), tenths, labels.NB_TENTHS)
    lost = (away >= LOST) & (np.arange(len(tenths)) >= len(tenths) // 2)
    share = np.where(tenths == NO_LABEL, 1, np.where(lost, LOST_SHARE, TEACHER_SHARE))[:, None].astype(np.float32)
    return share * answers + (1 - share) * spread[tenths]


def train(store: Path, architecture: str, start: Path | None, epochs: int, peak: float) -> None:
    """Fits one network, and writes a run that lacks its device files."""
    import keras

    from tests import flat_minima
    from utils import model_files, quantization, training

    with np.load(_groups(store, 0)[0][0], allow_pickle=False) as arrays:
        teachers = arrays["teachers"].tolist()
    of_run = {"model_architecture": architecture, "learning_rate": peak, "epochs": epochs, "teachers": teachers}
    settings = zoo_settings(**of_run, checkpoint_epochs=0)
    splits, spread = loader.load(settings), labels.targets(100, settings.label_spread)
    keras.utils.set_random_seed(settings.seed)
    model = models.get(architecture).build(settings.input_shape, settings.nb_classes)
    if start:
        widen(model_files.load(start), model)
    steps = steps_of(store)
    rate = keras.optimizers.schedules.CosineDecay(
        peak / 100, epochs * steps, alpha=0.005, warmup_target=peak, warmup_steps=epochs * steps // 30
    )
    trainer = flat_minima.Sharpened([keras.Input(settings.input_shape, dtype="uint8"), model])
    trainer.compile(
        keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
        steps_per_execution=8,
    )
    mode = quantization.resolve(settings, architecture, models.get(architecture).quantizable)
    run_dir, began = runs.create(settings, mode.label), time.monotonic()
    runs.save_settings(run_dir, settings, splits.fingerprint)
    recorder = training.Recorder(model, run_dir, settings, [])
    trainer.fit(
        batches(store, spread, epochs),
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=training.Batches(splits.pool, lambda _: splits.validation, 512),
        callbacks=[recorder, training.EpochLine(architecture)],
        verbose=0,
    )
    facts = {"epochs": epochs, "best_epoch": recorder.best_epoch, "pictures": epochs * steps * BATCH}
    finished = {"files": {runs.BEST_MODEL_FILE: {}}, "training": facts}
    runs.write_json(run_dir / runs.RESULTS_FILE, finished | {"timing": {"training_s": time.monotonic() - began}})


def widen(trained, model) -> None:
    """Gives ``model`` the weights of a narrower one of equal depth; its further filters begin at random, hardly heard.

    Net2Net (Chen et al. 2015, arXiv:1511.05641) copies filters instead. The noise parts those that are copies.
    """
    rng = np.random.default_rng(0)
    for old, new in zip(trained.weights, model.weights, strict=True):
        known, own = old.numpy(), new.numpy()
        if own.ndim > 1:
            known = known + 0.02 * known.std() * rng.standard_normal(known.shape)
            own[..., known.shape[-2] :, : known.shape[-1]] *= 0.1
        own[tuple(slice(size) for size in known.shape)] = known
        new.assign(own)


def main() -> None:
    """Does the one step or the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    answers, student = steps.add_parser("answers"), steps.add_parser("student")
    for one in (answers, student):
        one.add_argument("store", type=Path)
    answers.add_argument("--teacher", nargs="+", required=True, metavar="RUN", help="as of train.py; their mean counts")
    answers.add_argument("--pictures", type=int, default=3_000_000)
    answers.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N that run side by side")
    student.add_argument("architecture", type=models.check)
    student.add_argument("--start", type=Path, help="a .keras file of equal depth, at most as wide")
    student.add_argument("--epochs", type=int, default=4)
    student.add_argument("--rate", type=float, default=0.003)
    arguments = parser.parse_args()
    console.set_up()
    console.import_tensorflow(memory_growth=True)
    if arguments.step == "answers":
        part, parts = map(int, arguments.part.split("/"))
        arguments.store.mkdir(parents=True, exist_ok=True)
        write_answers(arguments.store, arguments.teacher, arguments.pictures, part - 1, parts)
    else:
        train(arguments.store, arguments.architecture, arguments.start, arguments.epochs, arguments.rate)


if __name__ == "__main__":
    main()
