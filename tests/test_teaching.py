import keras
import numpy as np
import pytest

import models
import train
from utils import labels, loader, model_archive, model_choice, model_files, runs, training
from utils.teaching import Teaching


def constant(logits: np.ndarray, channels: int = 3) -> keras.Model:
    """A teacher that gives the same logits for every picture."""
    image = keras.Input((32, 20, channels))
    last = keras.layers.Dense(len(logits), kernel_initializer="zeros")
    model = keras.Model(image, last(keras.layers.Flatten()(image)))
    last.bias.assign(logits)
    return model


def added_loss(teachers: list, student: np.ndarray, share: float, spread: float = 0.0, channels: int = 3) -> float:
    layer = Teaching(teachers, share, len(student), spread)
    logits = np.repeat(student[None], 4, axis=0)
    np.testing.assert_array_equal(layer([np.zeros((4, 32, 20, channels), "float32"), logits], training=True), logits)
    (loss,) = layer.losses
    return float(loss)


def cross_entropy(target: np.ndarray, logits: np.ndarray) -> float:
    return float(-(target * (logits - np.log(np.exp(logits).sum()))).sum())


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def test_adds_the_share_of_the_cross_entropy_with_the_mean_answer(rng):
    first, second, student = rng.normal(0, 2, (3, 10)).astype("float32")
    target = (softmax(first) + softmax(second)) / 2
    expected = 0.7 * cross_entropy(target, student)
    assert added_loss([constant(first), constant(second)], student, 0.7) == pytest.approx(expected, rel=1e-4)


def test_a_teacher_of_tenths_teaches_digits(rng):
    student = rng.normal(0, 2, 10).astype("float32")
    certain = np.zeros(100, "float32")
    certain[34] = 100
    for spread in (0.0, 5.0):
        expected = cross_entropy(labels.targets(10, spread)[34], student)
        assert added_loss([constant(certain)], student, 1.0, spread) == pytest.approx(expected, rel=1e-4)


def test_a_grey_student_learns_from_a_teacher_that_takes_rgb(rng):
    logits = rng.normal(0, 2, 10).astype("float32")
    assert added_loss([constant(logits)], logits, 1.0, channels=1) == pytest.approx(
        cross_entropy(softmax(logits), logits)
    )


def test_the_labels_get_the_rest(rng):
    student = keras.Model(image := keras.Input((4,)), keras.layers.Dense(10)(image))
    features, target = rng.normal(size=(8, 4)).astype("float32"), np.eye(10, dtype="float32")[:8]
    pictures = np.zeros((8, 32, 20, 3), "float32")
    teacher = constant(rng.normal(0, 2, 10).astype("float32"))

    def trained(share: float) -> tuple[list[np.ndarray], float]:
        copy = keras.models.clone_model(student)
        copy.set_weights(student.get_weights())
        image = keras.Input((32, 20, 3))
        trainer = keras.Model([image, copy.input], Teaching([teacher], share, 10, 0.0)([image, copy.output]))
        trainer.compile(keras.optimizers.SGD(1.0), keras.losses.CategoricalCrossentropy(from_logits=True))
        loss = trainer.evaluate([pictures, features], target, verbose=0)
        trainer.train_on_batch([pictures, features], target)
        return [new - old for new, old in zip(copy.get_weights(), student.get_weights(), strict=True)], loss

    (by_labels, loss), (by_teacher, whole) = trained(0.0), trained(1.0)
    mixed, part = trained(0.9)
    assert loss == whole == part > 0
    for one, other, both in zip(by_labels, by_teacher, mixed, strict=True):
        np.testing.assert_allclose(both, 0.1 * one + 0.9 * other, atol=1e-6)


def test_adds_nothing_outside_training():
    layer = Teaching([constant(np.zeros(10))], 0.5, 10, 0.0)
    layer([np.zeros((2, 32, 20, 3), "float32"), np.zeros((2, 10), "float32")], training=False)
    assert not layer.losses


def test_a_student_learns_what_the_teacher_says_rather_than_the_labels(trained_run, tiny, tmp_path):
    outcome, _, _ = trained_run
    run_dir = str(outcome.run_dir)
    settings = tiny(epochs=8, learning_rate=0.003, augment=False, teachers=[run_dir], teacher_share=1.0,
                    data_sources=[{"name": "s", "type": "synthetic", "count": 5000}])  # fmt: skip
    splits = loader.load(settings)
    # Were the labels looked at, the student could not agree with the teacher.
    splits.pool.tenths[splits.train] = 0
    teacher = model_files.load(model_choice.find(outcome.run_dir, outcome.run_dir))
    student = keras.models.clone_model(teacher)
    training.fit(student, splits, settings, tmp_path)
    images = splits.pool.images(splits.validation)
    readings = [model.predict(images, verbose=0).argmax(axis=1) for model in (teacher, student)]
    assert (readings[0] == readings[1]).mean() > 0.5
    (checkpoint,) = (tmp_path / runs.CHECKPOINT_FOLDER).iterdir()
    # Weights, two moments of the optimizer, and not the teacher's weights once more.
    assert checkpoint.stat().st_size < 3.5 * 4 * student.count_params()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"input_channels": 3}, "32 x 20 x 1 .*student 32 x 20 x 3"),
        ({"input_height": 48}, "32 x 20 x 1 .*student 48 x 20 x 1"),
        ({"nb_classes": 100}, "10 classes, too few"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(trained_run, tiny, overrides, message):
    outcome, _, _ = trained_run
    teacher = model_files.load(model_choice.find(outcome.run_dir, outcome.run_dir))
    with pytest.raises(model_archive.ModelFileError, match=message):
        model_files.check_teacher(model_files.identity(teacher), tiny(**overrides))
    # Its description tells as much before a picture is read.
    with pytest.raises(model_archive.ModelFileError, match=message):
        model_choice.teachers(tiny(teachers=[str(outcome.run_dir)], **overrides))


def test_a_missing_teacher_is_named(tiny, tmp_path):
    with pytest.raises(model_archive.ModelFileError, match="nowhere: no such file"):
        model_choice.teachers(tiny(teachers=[str(tmp_path / "nowhere")]))


@pytest.mark.parametrize(("parameter", "architecture"), [("teachers", "digit_recognizer_v4"), ("start_from", "cnn32")])
def test_a_model_that_ends_in_probabilities_is_refused_before_the_pictures(
    parameter, architecture, tmp_path, no_pictures, capsys
):
    model = models.get(architecture).build((32, 20, 1), 10)
    softmax = keras.layers.Softmax(name="last")(model.output)
    file, output = tmp_path / "other.keras", tmp_path / "out"
    keras.Model(model.input, softmax, name=architecture).save(file)
    given = {"OUTPUT_DIR": str(output), parameter.upper(): [str(file)] if parameter == "teachers" else str(file)}
    options = [part for name, value in given.items() for part in ("--set", f"{name}={value!r}")]
    assert train.main(["--train", "cnn32", *options]) == 2
    assert f"{file}: the model ends in probabilities (Softmax last)" in capsys.readouterr().err
    assert not output.exists()
