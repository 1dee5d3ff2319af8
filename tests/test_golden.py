import re
import shutil
import subprocess

import numpy as np
import pytest

from tests import device_files
from utils import golden, micro, runs


@pytest.fixture(scope="module")
def content() -> bytes:
    return device_files.quantised()


@pytest.mark.parametrize("io_type", ["int8", "uint8", "float32"])
def test_golden_pictures_come_back_from_their_archive(io_type, tmp_path):
    content, images = device_files.quantised(io_type), device_files.pictures(20)
    vectors = golden.make(content, images)
    assert (vectors.inputs.shape, vectors.inputs.dtype) == ((16, 32, 20, 1), np.dtype(io_type))
    assert (vectors.outputs.shape, vectors.outputs.dtype) == ((16, 10), np.dtype(io_type))
    np.testing.assert_array_equal(vectors.inputs, micro.encode(images[:16], io_type))
    runs.write(tmp_path / "golden.npz", lambda partial: golden.write_npz(partial, vectors))
    assert [path.name for path in tmp_path.iterdir()] == ["golden.npz"]
    with np.load(tmp_path / "golden.npz") as read:
        np.testing.assert_array_equal(read["inputs"], vectors.inputs)
        np.testing.assert_array_equal(read["outputs"], vectors.outputs)
        assert read["made_with"] == vectors.made_with


def test_grey_golden_pictures_serve_a_file_that_takes_rgb():
    images = device_files.pictures(3)
    vectors = golden.make(device_files.quantised("float32", channels=3, classes=100), images)
    np.testing.assert_array_equal(vectors.inputs, np.repeat(images, 3, axis=-1))


@pytest.mark.parametrize("installed", [True, False])
def test_changed_weights_show_in_the_golden_outputs(content, installed, monkeypatch):
    if installed and not micro.available():
        pytest.skip("tflite-micro is not installed")
    monkeypatch.setattr(micro, "available", lambda: installed)
    vectors = golden.make(content, device_files.pictures(16))
    assert vectors.made_with == ("TFLite Micro" if installed else "LiteRT reference kernels")
    run = micro.run if installed else micro.reference
    np.testing.assert_array_equal(run(content, vectors.inputs), vectors.outputs)
    other = run(device_files.with_other_weights(content), vectors.inputs)
    assert (other != vectors.outputs).any(axis=1).sum() > 8


def numbers(header: str, array: str) -> list[float]:
    block = re.search(rf"{array}\[.*?= \{{(.*?)\}};", header, re.DOTALL)[1]
    return [float(text.rstrip("f")) for text in re.findall(r"-?[0-9][0-9.e+-]*f?", block)]


@pytest.mark.parametrize("io_type", ["int8", "uint8", "float32"])
def test_the_header_holds_the_golden_values_and_compiles(io_type, tmp_path):
    vectors = golden.make(device_files.quantised(io_type), device_files.pictures(16))
    header = golden.header("7-seg*/ë.tflite", vectors)
    np.testing.assert_array_equal(np.array(numbers(header, "_inputs"), np.float32), vectors.inputs.ravel())
    np.testing.assert_array_equal(np.array(numbers(header, "_outputs"), np.float32), vectors.outputs.ravel())
    assert ("f, " in header) == (io_type == "float32")
    assert " cnn32_tflite_inputs[CNN32_TFLITE_PICTURES][" in golden.header("cnn32.tflite", vectors)
    assert header.isascii()
    if not shutil.which("gcc"):
        return
    (tmp_path / "golden.h").write_text(header)
    (tmp_path / "main.c").write_text(
        '#include "golden.h"\n#include "golden.h"\n'
        "int main(void) { return MODEL_7_SEG____TFLITE_PICTURES - 16 + (int)sizeof(model_7_seg____tflite_inputs[0])"
        " + (int)model_7_seg____tflite_outputs[15][MODEL_7_SEG____TFLITE_OUTPUT_SIZE - 1]; }\n"
    )
    flags = ["-fsyntax-only", "-std=c99", "-pedantic-errors", "-Wall", "-Werror"]
    subprocess.run(["gcc", *flags, str(tmp_path / "main.c")], check=True)
