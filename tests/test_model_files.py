"""Hostile and unfit model files, made here; what needs no Keras comes first, since `check` must not import it."""

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from utils import loader, model_files, recognizers, runs
from utils import settings as settings_module
from utils.model_files import ModelFileError

ROOT = Path(__file__).parent.parent
KERNEL, BIAS = "layers/dense/vars/0", "layers/dense/vars/1"


@pytest.fixture(autouse=True)
def nothing_left_in_keras():
    """Weights too large to make stay on a list of Keras', and whatever is built next would fail on them."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session(free_memory=False)


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


def run(output: Path, name: str, second: int, finished: bool = True) -> Path:
    """A run folder whose results were written at ``second``."""
    folder = output / name
    folder.mkdir(parents=True)
    (folder / runs.SETTINGS_FILE).write_text("{}")
    archive(folder / runs.BEST_MODEL_FILE)
    if finished:
        (folder / runs.RESULTS_FILE).write_text("{}")
        os.utime(folder / runs.RESULTS_FILE, (second, second))
    return folder


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "stranger.keras"


def refused(path: Path, match: str, by=model_files.check) -> None:
    """Sees that a file is refused in one sentence that names it."""
    with pytest.raises(ModelFileError, match=match) as caught:
        by(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert len(text) < len(str(path)) + 500


def test_a_file_is_itself_and_a_run_folder_its_best_model(tmp_path):
    folder = run(tmp_path, "cnn32", 1)
    best = folder / runs.BEST_MODEL_FILE
    assert model_files.find(folder, tmp_path) == best
    assert model_files.find(best, tmp_path) == best


def test_no_path_takes_the_newest_finished_run_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    newest = run(tmp_path, "a_newest", 300)
    run(tmp_path, "b_older", 200)
    run(tmp_path, "c_unfinished", 400, finished=False)
    (run(tmp_path, "d_no_model", 500) / runs.BEST_MODEL_FILE).unlink()
    (run(tmp_path, "e_cut_off", 600) / runs.BEST_MODEL_FILE).write_bytes(b"PK\x03\x04")
    broken = run(tmp_path, "f_broken_results", 700) / runs.RESULTS_FILE
    broken.write_text("{")
    os.utime(broken, (700, 700))
    assert model_files.find(None, tmp_path) == newest / runs.BEST_MODEL_FILE
    assert f"no model named: taking {newest}" in caplog.messages[-1]
    passed = [message for message in caplog.messages if "passed over" in message]
    assert [name in text for name, text in zip("fed", passed, strict=True)] == [True] * 3


def test_a_rejected_retraining_is_taken_only_by_name(tmp_path, caplog):
    older, rejected = run(tmp_path, "a", 100), run(tmp_path, "b", 200)
    (rejected / runs.RESULTS_FILE).write_text('{"judgement": {"accepted": false}}')
    assert model_files.find(None, tmp_path) == older / runs.BEST_MODEL_FILE
    assert "its retraining was REJECTED" in caplog.text
    assert model_files.find(rejected, tmp_path) == rejected / runs.BEST_MODEL_FILE


def test_of_two_runs_that_ended_together_the_later_name_is_taken(tmp_path):
    run(tmp_path, "cnn32_20250101-000000", 100)
    later = run(tmp_path, "cnn32_20250102-000000", 100)
    assert model_files.find(None, tmp_path).parent == later


def test_no_finished_run(tmp_path):
    run(tmp_path, "only", 1, finished=False)
    for output in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelFileError, match=f"^{output}: no finished run there; train a model first"):
            model_files.find(None, output)


def test_paths_that_lead_to_no_model(tmp_path):
    def find(path):
        model_files.find(path, tmp_path)

    refused(tmp_path / "absent", "no such file or folder", find)
    refused(tmp_path / ("x" * 300), "cannot be read .*name too long", find)
    refused(tmp_path, "no best_model.keras in this folder; name a .keras file", find)
    unfinished = run(tmp_path, "unfinished", 1, finished=False)
    (unfinished / runs.BEST_MODEL_FILE).unlink()
    refused(unfinished, "not finished: train.py --resume", find)
    (unfinished / runs.SETTINGS_FILE).write_text('{"fine_tuned_from": "a.keras"}')
    refused(unfinished, "can't be resumed; start it again with --model_path a.keras", find)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(20), "a TFLite file"),
        ("a.keras", b"\x1c\x00\x00\x00TFL3" + bytes(20), "a TFLite file"),
        ("a.tflite", b"", "a TFLite file"),
        ("a.espdl", b"EDL2" + bytes(20), "an ESP-DL file"),
        ("a.keras", b"EDL2" + bytes(20), "an ESP-DL file"),
        ("a.h5", b"", "an HDF5 file of Keras 2"),
        ("a.keras", b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file of Keras 2"),
        ("a.onnx", b"", "an ONNX file"),
        ("a.zip", b"PK\x03\x04", "a zip archive"),
        ("results.json", b"{}", "a JSON file"),
        ("a.png", b"", "no .keras file"),
    ],
)
def test_other_kinds_of_file_are_named(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, f"this is {kind}.*, but a Keras 3 model is needed")
    refused(tmp_path / name, f"this is {kind}", lambda path: model_files.find(path, tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK", b"hello" * 9, b"MZ" + bytes(99)])
def test_no_archive(file, content):
    file.write_bytes(content)
    refused(file, "no .keras file or a damaged one")


def test_an_archive_behind_other_bytes(file):
    file.write_bytes(b"#!/bin/sh\n" + archive(file).read_bytes())
    refused(file, "no .keras file or a damaged one")


def test_a_missing_file_is_said_by_check_too(file):
    refused(file, "no such file")


def test_every_cut_and_every_flipped_weight_is_noticed(file):
    content = archive(file).read_bytes()
    for length in range(8, len(content), 997):
        file.write_bytes(content[:length])
        refused(file, "damaged")
    for at in range(2000, len(content) - 400, 2999):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused(file, "damaged")


def test_random_bytes_raise_nothing_else(file, rng):
    content = np.frombuffer(archive(file).read_bytes(), np.uint8)
    for _ in range(300):
        spoilt = content.copy()
        spoilt[rng.integers(4, len(spoilt), 8)] = rng.integers(0, 256, 8)
        file.write_bytes(spoilt.tobytes())
        try:
            model_files.check(file)
        except ModelFileError as error:
            assert str(error).isprintable()


def test_the_small_model_and_a_deflated_one_pass_without_keras(file):
    archive(file, zipfile.ZIP_DEFLATED)
    script = "import sys; from pathlib import Path; from utils import model_files as m; m.check(Path(sys.argv[1]))"
    script += "; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script, str(file)], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"more": [("../../evil.py", "x")]}, "holds ../../evil.py"),
        ({"more": [("assets/vocabulary.txt", "x")]}, "holds assets/vocabulary.txt"),
        ({"more": [("data.pkl\x1b[2J\n", "x")]}, r"holds data.pkl\?\[2J\?"),
        ({"more": [("config.json", "{}")]}, "holds config.json, which .* only once"),
        ({"weights": None}, "model.weights.h5 is missing"),
        ({"compression": zipfile.ZIP_BZIP2}, "packed strangely"),
        ({"compression": zipfile.ZIP_LZMA}, "packed strangely"),
        ({"metadata": {"keras_version": "2.15.0"}}, "saved by Keras 2.15.0; rebuild the model with Keras 3"),
        ({"config": {"x": "y" * 5_000_000}}, "config.json has 5,000,0.. bytes"),
        ({"config": [1, 2]}, "describes no model"),
        ({"weights": b"no HDF5"}, "damaged or cut off"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_strange_archives(file, entries, match):
    refused(archive(file, **entries), match)


def test_a_zip_bomb_is_refused_before_it_unpacks(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        bomb.writestr("config.json", json.dumps(description()))
        with bomb.open("model.weights.h5", "w") as entry:
            for _ in range(600):
                entry.write(bytes(1 << 20))
    assert file.stat().st_size < 4_000_000
    refused(file, "unpacked it has 629,.* bytes, more than the 536,870,912")


def test_a_bomb_that_lies_about_its_size(file):
    archive(file, zipfile.ZIP_DEFLATED, weights=bytes(200_000_000))
    real, lie = (200_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    assert file.read_bytes().count(real) == 2
    file.write_bytes(file.read_bytes().replace(real, lie))
    tracemalloc.start()
    refused(file, "damaged or cut off")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "\ud800".encode("utf-8", "replace")])
def test_descriptions_that_break_parsers(file, text):
    archive(file)
    with zipfile.ZipFile(file, "w") as broken:
        broken.writestr("config.json", text)
        broken.writestr("model.weights.h5", weights())
    refused(file, "damaged or cut off|describes no model")


FUNCTION = {"class_name": "function", "registered_name": None}


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ({"module": "keras.utils", "config": "get_file", **FUNCTION}, "keras.utils.get_file"),
        ({"module": "keras.config", "config": "set_floatx", **FUNCTION}, "keras.config.set_floatx"),
        ({"module": "builtins", "config": "eval", **FUNCTION}, "builtins.eval"),
        ({"module": "os", "config": "system", **FUNCTION}, "os.system"),
        ({"class_name": "__lambda__", "config": {"value": ["4wAA", None, None]}}, "__lambda__"),
        ({"module": "keras.saving", "class_name": "KerasFileEditor", "config": {}}, "keras.saving.KerasFileEditor"),
        ({"module": "my.package", "class_name": "Swish", "config": {}}, "my.package.Swish"),
        ({"class_name": "ReLU", "config": {}}, "ReLU"),
        ({"module": ["keras.layers"], "class_name": {"a": 1}, "config": {}}, "keras.layers"),
        ({"module": "keras.layers", "class_name": "ReLU", "config": {}, "registered_name": "evil>X"}, "evil>X"),
    ],
)
@pytest.mark.parametrize("place", ["activation", "kernel_initializer", "kwargs", "build_config"])
def test_parts_that_are_no_plain_layers(file, part, shown, place):
    config = description()
    last = config["config"]["layers"][-1]
    if place == "kwargs":
        last["inbound_nodes"][0]["kwargs"] = {"mask": [part]}
    else:
        last["config"][place] = part
    refused(archive(file, config=config), f"the model contains .*{shown}.*, but only plain layers are loaded")


@pytest.mark.parametrize(
    "kind", ["Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "StringLookup", "TextVectorization"]
)
def test_layers_that_run_code_or_read_files(file, kind):
    config = description()
    config["config"]["layers"][2]["class_name"] = kind
    refused(archive(file, config=config), f"the model contains keras.layers.{kind}, but only plain layers")


def test_a_model_in_a_model_and_how_it_was_compiled(file):
    config = description()
    config["config"]["layers"][2] = description()
    refused(archive(file, config=config), "contains keras.src.models.functional.Functional.* in one flat model")
    config = description() | {"class_name": "Model", "module": "keras"}
    refused(archive(file, config=config), "contains keras.Model")


@pytest.mark.parametrize("name", ["", "../evil", "a b", "-rf", ".hidden", "a\n", "é", "x" * 101, 5, None])
def test_names_that_are_unfit_for_files(file, name):
    config = description()
    config["config"]["name"] = name
    refused(archive(file, config=config), "becomes part of file names: save it with one of letters")


def test_any_name_will_do_to_be_measured(file):
    config = description()
    config["config"]["name"] = "My Net"
    model = recognizers.load(archive(file, config=config), file.parent)
    assert recognizers.decide(model, np.zeros((1, 32, 20, 1), np.uint8))[0].tolist() == [9]


@pytest.mark.parametrize("layers", [None, "x", {}, [layer("Flatten", "f")] * 1001])
def test_no_layers_or_too_many(file, layers):
    config = description()
    config["config"]["layers"] = layers
    refused(archive(file, config=config), "lists no layers or more than 1000")


def external_link(file):
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink("/etc/passwd", "/vars")


def external_group(file):
    file["layers/other"] = h5py.ExternalLink("other.h5", "/")


def soft_link(file):
    file["layers/soft"] = h5py.SoftLink(f"/{KERNEL}")


def external_storage(file):
    del file[KERNEL]
    file.create_dataset(KERNEL, (640, 10), "f4", external=[("/etc/passwd", 0, 25600)])


def virtual(file):
    del file[KERNEL]
    layout = h5py.VirtualLayout((640, 10), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "vars", (640, 10))
    file.create_virtual_dataset(KERNEL, layout)


def strings(file):
    file["text"] = np.array([b"a"], dtype=h5py.string_dtype())


def named_type(file):
    file["type"] = np.dtype("f4")


@pytest.mark.parametrize(
    "change", [external_link, external_group, soft_link, external_storage, virtual, strings, named_type]
)
def test_weights_that_point_elsewhere(file, change):
    refused(archive(file, weights=weights(change)), "among its weights points out of the file or holds no numbers")


def test_weights_that_unfold_or_go_in_circles(file):
    def bomb(h5):
        h5.create_dataset("bomb", (40_000, 40_000), "f4", chunks=(1000, 1000), compression="gzip")

    def circle(h5):
        h5["layers/again"] = h5["layers"]

    refused(archive(file, weights=weights(bomb)), "its weights have 6,400,025,640 bytes, more than")
    refused(archive(file, weights=weights(circle)), "a maze")


# From here on Keras is needed.


def network(file: Path, end=None, start=None, name="small", shape=(32, 20, 1), classes=10) -> Path:
    """Saves a small network with Keras; ``start`` and ``end`` are layers put first and last."""
    import keras
    from keras import layers

    image = keras.Input(shape, name="image")
    x = (start or layers.Rescaling(1 / 128, offset=-1))(image)
    x = layers.Dense(classes)(layers.Flatten()(x))
    keras.Model(image, end(x) if end else x, name=name).save(file)
    return file


def test_the_small_model_loads_with_its_weights(file):
    model = model_files.load(archive(file))
    assert model_files.identity(model) == model_files.Identity("small", (32, 20, 1), 10)
    assert not model.compiled
    black = np.zeros((1, 32, 20, 1), np.float32)
    np.testing.assert_allclose(model(black)[0], np.arange(10) - 320)


@pytest.mark.parametrize("name", ["cnn32", "digit_recognizer_v4", "digit_recognizer_v12", "high_accuracy_validator"])
def test_every_architecture_loads_as_it_was_saved(file, name):
    import keras

    import models

    made = models.get(name).build((32, 20, 3), 100)
    made = keras.Model(made.inputs, made.outputs, name="stranger-2.1")
    made.compile("adam", "categorical_crossentropy")
    made.save(file)
    loaded = model_files.load(file)
    assert model_files.identity(loaded) == model_files.Identity("stranger-2.1", (32, 20, 3), 100)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in made.layers]
    for one, other in zip(loaded.weights, made.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_how_a_stranger_compiled_is_never_read(file):
    loss = {"module": "os", "class_name": "function", "config": "system", "registered_name": None}
    assert not model_files.load(archive(file, config=description() | {"compile_config": {"loss": loss}})).compiled


def test_a_sequential_comes_as_a_graph(file):
    import keras
    from keras import layers

    steps = [keras.Input((32, 20, 1)), layers.Rescaling(1 / 128, offset=-1), layers.Flatten(), layers.Dense(10)]
    keras.Sequential(steps, name="row").save(file)
    model = model_files.load(file)
    assert not isinstance(model, keras.Sequential)
    assert isinstance(model.layers[1], layers.Rescaling)
    assert {len(layer._inbound_nodes) for layer in model.layers[1:]} == {1}
    model.save(file)
    assert model_files.identity(model_files.load(file)).name == "row"


def test_more_weights_than_memory_are_never_made(file):
    config = description()
    config["config"]["layers"][-1]["config"]["units"] = 10**9
    refused(archive(file, config=config), "has 641,000,000,000 weights but the file holds 6,410;", model_files.load)


def test_a_layer_that_blows_pictures_up(file):
    config = description()
    config["config"]["layers"][2] = layer("UpSampling2D", "flatten", "rescaling", size=[3000, 3000])
    refused(archive(file, config=config), "layer flatten makes 5,760,000,000 values", model_files.load)


@pytest.mark.parametrize(
    ("shape", "classes", "match"),
    [
        ((32, 20, 2), 10, r"takes \(batch, 32, 20, 2\), but one picture"),
        ((32, 20, 4), 10, r"takes \(batch, 32, 20, 4\), but one picture"),
        ((640,), 10, r"takes \(batch, 640\), but one picture"),
        ((4, 20, 1), 10, r"takes \(batch, 4, 20, 1\).* with sides of 8 to 512"),
        ((32, 20, 1), 11, r"gives \(batch, 11\), but one vector \(batch, 10 or 100\)"),
    ],
)
def test_other_tasks(file, shape, classes, match):
    refused(network(file, shape=shape, classes=classes), match, model_files.load)


def test_two_inputs_two_outputs_and_a_picture_out(file):
    import keras
    from keras import layers

    images = [keras.Input((32, 20, 1), name=name) for name in ("a", "b")]
    x = layers.Flatten()(layers.Rescaling(1 / 128, offset=-1)(layers.Add()(images)))
    keras.Model(images, layers.Dense(10)(x), name="two").save(file)
    refused(file, r"takes \(batch, 32, 20, 1\) and \(batch, 32, 20, 1\), but one", model_files.load)
    image = keras.Input((32, 20, 1))
    x = layers.Rescaling(1 / 128, offset=-1)(image)
    ends = [layers.Dense(10)(layers.Flatten()(x)) for _ in range(2)]
    keras.Model(image, ends, name="two").save(file)
    refused(file, r"gives \(batch, 10\) and \(batch, 10\), but one", model_files.load)
    keras.Model(image, layers.Conv2D(10, 3)(x), name="map").save(file)
    refused(file, r"gives \(batch, 30, 18, 10\), but one", model_files.load)


def test_wrong_starts(file):
    from keras import layers

    def refuse(start, match):
        refused(
            network(file, start=start),
            f"begins with {match} instead of Rescaling.*, which the files for devices",
            model_files.load,
        )

    refuse(layers.Rescaling(1 / 255), r"Rescaling\(scale=0.00392\d+, offset=0.0\)")
    refuse(layers.Rescaling(1 / 127.5, offset=-1), r"Rescaling\(scale=0.00784\d+, offset=-1\)")
    refuse(layers.Conv2D(1, 3, name="c"), "Conv2D c")


def test_pictures_that_also_go_round_the_rescaling(file):
    import keras
    from keras import layers

    image = keras.Input((32, 20, 1))
    both = layers.Add(name="sum")([image, layers.Rescaling(1 / 128, offset=-1, name="scaled")(image)])
    keras.Model(image, layers.Dense(10)(layers.Flatten()(both)), name="round").save(file)
    refused(file, "begins with Rescaling scaled and Add sum instead of", model_files.load)


def test_probabilities_at_the_end(file):
    from keras import layers

    ends = [layers.Softmax(), layers.Activation("sigmoid"), layers.Dense(10, activation="softmax")]
    ends.append(lambda x: layers.Reshape((10,))(layers.Softmax()(x)))
    ends.append(lambda x: layers.Average()([layers.Softmax()(x), layers.Softmax()(layers.Dense(10)(x))]))
    for end in ends:
        refused(
            network(file, end), "ends in probabilities .*, but logits are needed; save it without", model_files.load
        )
    assert model_files.load(network(file, layers.Activation("linear"))).name == "small"


def test_weights_that_are_no_use(file):
    def at(place, value):
        def change(h5):
            h5[place][3] = value

        return weights(change)

    for value in (np.nan, np.inf):
        spoilt = archive(file, weights=at(BIAS, value))
        refused(spoilt, r"1 of the model's weights are not finite \(logits/bias\)", model_files.load)
    config = description()
    config["config"]["layers"][-1]["config"]["activation"] = "exponential"
    spoilt = archive(file, config=config, weights=at(BIAS, 1e30))
    refused(spoilt, "no finite logits for a black picture", model_files.load)


@pytest.mark.parametrize(("gone", "left"), [("layers", "0"), (BIAS, "6,400")])
def test_missing_weights(file, gone, left):
    spoilt = archive(file, weights=weights(lambda h5: h5.pop(gone)))
    refused(spoilt, f"has 6,410 weights but the file holds {left};", model_files.load)


def test_weights_of_another_shape_or_place(file):
    def wider(h5):
        del h5[KERNEL]
        h5[KERNEL] = np.zeros((640, 11), np.float32)

    def elsewhere(h5):
        h5.move("layers/dense", "layers/dense_1")

    for change in (wider, elsewhere):
        spoilt = archive(file, weights=weights(change))
        refused(spoilt, "Keras cannot load this model.*logits", model_files.load)


def test_other_number_formats(file):
    config = description()
    config["config"]["layers"][-1]["config"]["dtype"] = "float16"
    refused(archive(file, config=config), "calculates in float16, but float32 is needed", model_files.load)


def test_random_descriptions_raise_nothing_else(file, rng):
    values = [None, -1, 0, 3, 1e9, "", "same", [], [None], {}, {"name": "x"}, True, "float32", 10**30]
    for _ in range(150):
        config = description()
        target = config["config"]["layers"][rng.integers(4)]
        if rng.random() < 0.7:
            target = target["config"]
        options = [*target, "data_format", "trainable", "kernel_initializer", "lora_rank", "quantization_config"]
        target[options[rng.integers(len(options))]] = values[rng.integers(len(values))]
        archive(file, config=config)
        try:
            model_files.load(file)
        except ModelFileError as error:
            assert str(error).startswith(f"{file}: ")
            assert str(error).isprintable()


def test_models_that_fit_and_those_that_do_not(file, tiny):
    model = model_files.load(archive(file))
    fitting = {"nb_classes": 10, "input_height": 32, "input_width": 20, "input_channels": 1}
    model_files.check_fits(model, tiny(**fitting), new_head=False)
    hundred = tiny(**{**fitting, "nb_classes": 100})
    model_files.check_fits(model, hundred, new_head=True)
    match = "^the model small reads 10 classes but NB_CLASSES = 100: use --set NB_CLASSES=10, or a new head by fine-"
    with pytest.raises(ModelFileError, match=match):
        model_files.check_fits(model, hundred, new_head=False)
    match = r"pictures of 32 x 20 x 1 \(height, width, channels\) but INPUT_WIDTH = 24, INPUT_CHANNELS = 3: "
    for new_head in (False, True):
        with pytest.raises(ModelFileError, match=match + "use --set INPUT_WIDTH=20 INPUT_CHANNELS=1,"):
            model_files.check_fits(model, tiny(**{**fitting, "input_width": 24, "input_channels": 3}), new_head)


@pytest.mark.slow
def test_a_trained_run_loads(trained_run):
    outcome, settings, _ = trained_run
    model = model_files.load(model_files.find(None, Path(settings.output_dir)))
    assert model_files.identity(model).name == outcome.architecture
    model_files.check_fits(model, settings, new_head=False)


@pytest.mark.parametrize(("shape", "classes"), [((32, 20, 3), 100), ((48, 32, 1), 10), ((32, 20, 3), 10)])
def test_a_model_declares_the_settings_it_needs(tmp_path, shape, classes):
    import models

    models.get("digit_recognizer_v6").build(shape, classes).save(tmp_path / "a.keras")
    names = ("input_height", "input_width", "input_channels", "nb_classes")
    assert model_files.declared(tmp_path / "a.keras") == dict(zip(names, (*shape, classes), strict=True))


def test_a_model_that_ends_in_a_convolution_declares_its_classes(tmp_path):
    import keras
    from keras import layers

    image = layers.Input((32, 20, 3))
    hidden = layers.Dense(10)(layers.Rescaling(1 / 128, offset=-1)(image))
    logits = layers.GlobalAveragePooling2D()(layers.Conv2D(100, 1)(hidden))
    keras.Model(image, logits).save(tmp_path / "a.keras")
    assert model_files.declared(tmp_path / "a.keras")["nb_classes"] == 100


def test_a_model_of_a_run_says_what_labels_and_split_it_was_trained_on(trained_run, tmp_path):
    outcome, settings, _ = trained_run
    file = outcome.run_dir / runs.BEST_MODEL_FILE
    names = ("label_spread", "seed", "split_by", "test_share", "validation_share")
    of_run = {name: getattr(settings, name) for name in names}
    assert model_files.trained_with(file) == {**model_files.declared(file), **of_run}
    copy = tmp_path / "a.keras"
    copy.write_bytes(file.read_bytes())
    assert model_files.trained_with(copy) == model_files.declared(file)
    damaged = [json.dumps({"settings": {**of_run, **one}}) for one in ({"label_spread": 6}, {"seed": "much"})]
    for text in ("{", "[]", '{"settings": {"label_spread": 1}}', *damaged):
        (tmp_path / runs.SETTINGS_FILE).write_text(text)
        assert model_files.trained_with(copy) == model_files.declared(file)


def test_what_a_models_run_adds_to_contradicting_settings_is_said(trained_run, tmp_path):
    outcome, settings, _ = trained_run
    (tmp_path / "a.keras").write_bytes((outcome.run_dir / runs.BEST_MODEL_FILE).read_bytes())
    saved = {**json.loads(settings_module.to_json(settings)), "test_share": 0, "seed": 7}
    (tmp_path / runs.SETTINGS_FILE).write_text(json.dumps({"settings": saved}))
    given = {"label_spread": 0.0}
    with pytest.raises(settings_module.SettingsError) as refused:
        model_files.to_go_on(tmp_path / "a.keras", given)
    assert str(refused.value) == (
        "TEST_SHARE = 0 without TEST_SOURCES leaves nothing to measure on: set one of them; of the model's run are "
        "SEED = 7, SPLIT_BY = 'cluster', TEST_SHARE = 0.0, VALIDATION_SHARE = 0.1"
    )
    _, found = model_files.to_go_on(tmp_path / "a.keras", {**given, "test_share": 0.2})
    assert (found.label_spread, found.seed, found.test_share) == (0, 7, 0.2)


def test_of_a_run_with_other_shares_nothing_learnt_is_measured_on(tiny, tmp_path):
    import models

    given = tiny(nb_classes=10, test_share=0.1, validation_share=0.1)
    of_run = dataclasses.replace(given, test_share=0.02, validation_share=0.03)
    models.get("digit_recognizer_v6").build(given.input_shape, 10).save(tmp_path / runs.BEST_MODEL_FILE)
    runs.save_settings(tmp_path, of_run, "digit_recognizer_v6", "")
    further = dataclasses.replace(given, **model_files.trained_with(tmp_path / runs.BEST_MODEL_FILE))
    learnt, measured, careless = (loader.load(one) for one in (of_run, further, given))
    assert not np.isin(measured.measured["test"], learnt.train).any()
    assert np.isin(careless.measured["test"], learnt.train).mean() > 0.4


def test_what_a_run_was_trained_with_holds_whatever_else_stands_in_parameters(trained_run, monkeypatch):
    outcome, settings, _ = trained_run
    monkeypatch.setattr("parameters.VALIDATION_SHARE", 0.9)  # --set may mend it, when all is read together
    assert model_files.trained_with(outcome.run_dir / runs.BEST_MODEL_FILE)["seed"] == settings.seed


def test_a_model_of_other_classes_declares_its_pictures_alone(tmp_path):
    import keras

    image = keras.Input((32, 20, 3))
    outputs = keras.layers.Dense(7)(keras.layers.Flatten()(image))
    keras.Model(image, outputs).save(tmp_path / "a.keras")
    assert model_files.declared(tmp_path / "a.keras") == {"input_height": 32, "input_width": 20, "input_channels": 3}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["x"], "its description of the layers is damaged"),
        ([{"class_name": "InputLayer"}], "its description of the layers is damaged"),
        ([{"class_name": "InputLayer", "config": 5}], "its description of the layers is damaged"),
        ([{"class_name": "InputLayer", "config": {"batch_shape": [None, 600, 600, 3]}}], "INPUT_HEIGHT = 600"),
        ([{"class_name": "InputLayer", "config": {"batch_shape": [None, "a", 20, 3]}}], "INPUT_HEIGHT = 'a'"),
        ([{"class_name": "InputLayer", "config": {"batch_shape": [None, 32, 20, 4]}}], "INPUT_CHANNELS = 4"),
    ],
)
def test_a_model_that_declares_nonsense_is_named(tmp_path, monkeypatch, layers, message):
    monkeypatch.setattr(model_files, "_read", lambda path: (json.dumps({"config": {"layers": layers}}), {}, {}))
    with pytest.raises(ModelFileError, match=f"^{tmp_path}/a.keras: .*{message}"):
        model_files.declared(tmp_path / "a.keras")
