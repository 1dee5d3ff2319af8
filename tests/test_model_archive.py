"""Hostile and unfit model files, made here; `read` must not import Keras."""

import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.keras_files import KERNEL, archive, description, layer, refused, weights
from utils import model_archive
from utils.model_archive import ModelFileError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "stranger.keras"


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
    made = "give the .keras file it was made from"
    advice = "save the whole model as .keras with Keras 3" if "HDF5" in kind else made
    refused(tmp_path / name, f"this is {kind}.*, but a Keras 3 model is needed; {advice}, or name a run folder")


@pytest.mark.parametrize("content", [b"", b"PK", b"hello" * 9, b"MZ" + bytes(99)])
def test_no_archive(file, content):
    file.write_bytes(content)
    refused(file, "no .keras file or a damaged one")


def test_an_archive_behind_other_bytes(file):
    file.write_bytes(b"#!/bin/sh\n" + archive(file).read_bytes())
    refused(file, "no .keras file or a damaged one")


def test_a_missing_file(file):
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
            model_archive.read(file)
        except ModelFileError as error:
            assert str(error).isprintable()


def test_the_small_model_and_a_deflated_one_pass_without_keras(file):
    archive(file, zipfile.ZIP_DEFLATED)
    script = "import sys; from pathlib import Path; from utils import model_archive as m; m.read(Path(sys.argv[1]))"
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


def test_an_encrypted_archive_is_refused(file):
    content = bytearray(archive(file).read_bytes())
    # The flags of its directory's first entry.
    content[content.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    refused(file, "metadata.json is encrypted or packed strangely")


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
    refused(
        archive(file, config=config),
        "contains keras.src.models.functional.Functional.* in one flat model.* alone, convert it",
    )
    config = description() | {"class_name": "Model", "module": "keras"}
    refused(archive(file, config=config), "contains keras.Model")


@pytest.mark.parametrize("name", ["", "../evil", "a b", "-rf", ".hidden", "a\n", "é", "x" * 101, 5, None])
def test_names_that_are_unfit_for_files(file, name):
    config = description()
    config["config"]["name"] = name
    refused(archive(file, config=config), "becomes part of file names: save it with one of letters")


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
