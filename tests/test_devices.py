import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow

import train
import tuner
from utils import devices, evaluation, loader, model_files, runs
from utils import settings as settings_module

SMALL = {"data_sources": [{"name": "synthetic", "type": "synthetic", "count": 240}], "augment": False}

# Two halves of the processor stand in for graphics cards; it can be divided only before TensorFlow uses it.
TWO_DEVICES = """
import json, sys
from pathlib import Path
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from models import _blocks
from utils import devices, loader, settings, training
devices.KIND = "CPU"

def fit(name, gpus, batch_size=64, until=None, start_from=""):
    more = {"epochs": 2, "batch_size": batch_size, "gpus": gpus, "start_from": start_from}
    chosen = settings.load(**json.loads(sys.argv[1]), **more)
    keras.utils.set_random_seed(chosen.seed)
    with devices.shared(chosen):
        image, x = _blocks.image_input(chosen.input_shape)
        x = keras.layers.Conv2D(8, 5, strides=2, activation="relu")(x)
        model = keras.Model(image, _blocks.logits(keras.layers.Flatten()(x), chosen.nb_classes), name="one")
    folder = Path(sys.argv[2], name)
    folder.mkdir(exist_ok=True)
    return training.fit(model, loader.load(chosen), chosen, folder, until).rows

fits = {"one": fit("one", 1), "first": fit("two", 2, until=1), "two": fit("two", 2)}
fits["rest"] = fit("rest", 2, batch_size=191, until=1)
fits["begun"] = fit("begun", 2, until=1, start_from=str(Path(sys.argv[2], "one")))
print(json.dumps(fits))
"""


@pytest.mark.slow
def test_two_devices_learn_what_one_does(tmp_path):
    command = [sys.executable, "-c", TWO_DEVICES, json.dumps(SMALL), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    fits = json.loads(done.stdout.splitlines()[-1])
    assert [len(rows) for rows in fits.values()] == [2, 1, 2, 1, 1]
    # Each half of a batch by itself, then added: the same but for rounding, and after a break, too.
    for one, other in zip(fits["one"], fits["two"], strict=True):
        assert other | {"seconds": 0} == pytest.approx(one | {"seconds": 0}, rel=1e-4)
    assert fits["two"][1]["loss"] < fits["two"][0]["loss"]
    assert fits["begun"][0]["loss"] < fits["one"][0]["loss"]
    # 192 pictures in batches of 191: the one left over is learnt from too, and no device is without a picture.
    assert all(np.isfinite(row["loss"]) for row in fits["rest"])
    splits = loader.load(settings_module.load(**SMALL))
    model = model_files.load(tmp_path / "two" / runs.BEST_MODEL_FILE)
    predicted = evaluation.keras_logits(model, splits.pool.images(splits.validation)).argmax(axis=1)
    best = min(fits["two"], key=lambda row: row["val_loss"])
    assert (predicted == splits.pool.classes(splits.validation)).mean() == pytest.approx(best["val_accuracy"])


def test_more_devices_than_there_are_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(devices, "KIND", "CPU")
    with pytest.raises(devices.DeviceError, match="GPUS = 2: TensorFlow finds 1 here; set GPUS = 1"):
        devices.check(tiny(gpus=2))
    monkeypatch.setattr(tensorflow.config, "list_physical_devices", lambda kind: ["card"] * 2)
    devices.check(tiny(gpus=2))


def test_what_only_tensorflow_does_is_refused_elsewhere(tiny, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(devices.DeviceError, match="GPUS = 2 needs TensorFlow and Keras runs on jax"):
        devices.check(tiny(gpus=2))
    settings = tiny(nb_classes=100, tuner_objective="int8_within_0.1")
    devices.check(settings)
    with pytest.raises(devices.DeviceError, match=r"TUNER_OBJECTIVE = .* needs TensorFlow"):
        devices.check(settings, searching=True)


@pytest.mark.parametrize(("door", "search"), [(tuner, []), (train, ["--use_tuner"])])
def test_a_search_that_needs_tensorflow_is_refused_before_the_pictures(door, search, no_pictures, monkeypatch, capsys):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    given = ["--set", "TUNER_OBJECTIVE='int8_within_0.1'", "--set", "NB_CLASSES=100"]
    assert door.main([*search, *given]) == 2
    assert "TUNER_OBJECTIVE = 'int8_within_0.1' needs TensorFlow and Keras runs on jax" in capsys.readouterr().err


def test_one_device_is_not_looked_for(tiny, monkeypatch):
    monkeypatch.setattr(devices, "KIND", "none such")
    devices.check(tiny())
