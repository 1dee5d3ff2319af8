"""``.keras`` files written by hand, so that they can be spoilt, and small networks saved by Keras."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from utils import model_archive
from utils.model_archive import ModelFileError

KERNEL, BIAS = "layers/dense/vars/0", "layers/dense/vars/1"


def layer(kind: str, name: str, parent: str = "", **config) -> dict:
    """One layer as Keras 3 writes it."""
    shape = [None, 640] if parent == "flatten" else [None, 32, 20, 1]
    tensor = {"shape": shape, "dtype": "float32", "keras_history": [parent, 0, 0]}
    nodes = [{"args": [{"class_name": "__keras_tensor__", "config": tensor}], "kwargs": {}}] if parent else []
    place = {"module": "keras.layers", "class_name": kind, "registered_name": None}
    return {**place, "config": {"name": name, **config}, "name": name, "inbound_nodes": nodes}


def description() -> dict:
    """The smallest model that `load` takes: rescaling, flatten, dense."""
    layers = [
        layer("InputLayer", "image", batch_shape=[None, 32, 20, 1], dtype="float32"),
        layer("Rescaling", "rescaling", "image", scale=1 / 128, offset=-1),
        layer("Flatten", "flatten", "rescaling"),
        layer("Dense", "logits", "flatten", units=10, activation="linear"),
    ]
    ends = {"input_layers": [["image", 0, 0]], "output_layers": [["logits", 0, 0]]}
    config = {"name": "small", "trainable": True, "layers": layers, **ends}
    return {"module": "keras.src.models.functional", "class_name": "Functional", "config": config}


def weights(change=lambda file: None) -> bytes:
    """The weights of :func:`description`, after ``change(h5 file)``."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file[KERNEL] = np.full((640, 10), 0.5, np.float32)
        file[BIAS] = np.arange(10, dtype=np.float32)
        change(file)
    return content.getvalue()


def archive(path: Path, compression=zipfile.ZIP_STORED, **entries) -> Path:
    """Writes the small model; ``config``, ``metadata``, ``weights`` and ``more`` (a list of entries) replace parts."""
    parts = [
        ("metadata.json", json.dumps(entries.get("metadata", {"keras_version": "3.15.0"}))),
        ("config.json", json.dumps(entries.get("config", description()))),
        ("model.weights.h5", entries.get("weights", weights())),
    ]
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in [*parts, *entries.get("more", [])]:
            if content is not None:
                file.writestr(name, content)
    return path


def refused(path: Path, match: str, by=model_archive.read) -> None:
    """Sees that a file is refused in one sentence that names it."""
    with pytest.raises(ModelFileError, match=match) as caught:
        by(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert len(text) < len(str(path)) + 500


def network(file: Path, end=None, start=None, name="small", shape=(32, 20, 1), classes=10) -> Path:
    """Saves a small network with Keras; ``start`` and ``end`` are layers put first and last."""
    import keras
    from keras import layers

    image = keras.Input(shape, name="image")
    x = (start or layers.Rescaling(1 / 128, offset=-1))(image)
    x = layers.Dense(classes)(layers.Flatten()(x))
    keras.Model(image, end(x) if end else x, name=name).save(file)
    return file
