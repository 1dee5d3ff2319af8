import os

import numpy as np
import pytest

from tests import device_files
from utils import evaluation, micro, tflite_file

needs_micro = pytest.mark.skipif(not micro.available(), reason="tflite-micro is not installed")
RUNNERS = [pytest.param(micro.run, marks=needs_micro), micro.reference]


def test_pixels_as_input_types():
    images = np.array([0, 1, 127, 128, 255], np.uint8).reshape(5, 1, 1, 1)
    assert micro.encode(images, "int8").ravel().tolist() == [-128, -127, -1, 0, 127]
    assert micro.encode(images, "uint8").ravel().tolist() == [0, 1, 127, 128, 255]
    floats = micro.encode(images, "float32")
    assert (floats.dtype, floats.ravel().tolist()) == (np.float32, [0, 1, 127, 128, 255])


def logits_of(run, io_type: str, images: np.ndarray) -> np.ndarray:
    content = device_files.quantised(io_type)
    outputs = run(content, micro.encode(images, io_type))
    assert (outputs.shape, outputs.dtype) == ((40, 10), np.dtype(io_type))
    target = tflite_file.read(content).output
    logits = outputs.astype(np.float32)
    return logits if target.scale is None else (logits - target.zero_point) * target.scale


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("io_type", ["int8", "uint8", "float32"])
def test_raw_outputs_mean_what_the_network_says(run, io_type):
    images = device_files.pictures(40)
    logits = logits_of(run, io_type, images)
    # Whatever type goes in and comes out, it is the same integers between.
    np.testing.assert_allclose(logits, logits_of(run, "int8", images), atol=1e-4)
    expected = evaluation.keras_logits(device_files.model(), images)
    np.testing.assert_allclose(logits, expected, atol=0.08 * np.ptp(expected))
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.99


@needs_micro
def test_micro_and_reference_differ_by_single_steps_at_most():
    inputs = micro.encode(device_files.pictures(60), "int8")
    found, expected = (run(device_files.quantised(), inputs) for run in (micro.run, micro.reference))
    steps = np.abs(found.astype(int) - expected)
    assert steps.max() <= 1
    assert (steps == 0).mean() > 0.98


@pytest.mark.parametrize("run", RUNNERS)
def test_no_pictures_give_no_outputs(run):
    assert run(device_files.quantised(), np.empty((0, 32, 20, 1), np.int8)).shape == (0, 10)


@pytest.mark.parametrize("run", RUNNERS)
def test_wrong_pictures_are_refused(run):
    with pytest.raises(micro.MicroError, match=r"takes int8 pictures \(32, 20, 1\), not uint8 \(32, 20, 3\)"):
        run(device_files.quantised(), np.zeros((1, 32, 20, 3), np.uint8))


@pytest.mark.parametrize("run", RUNNERS)
def test_a_foreign_file_is_refused(run):
    with pytest.raises(tflite_file.FileError):
        run(b"x" * 100, np.zeros((1, 32, 20, 1), np.int8))


@needs_micro
def test_a_missing_operator_is_named_and_stderr_stays_clean(capfd):
    content = device_files.with_operator(device_files.quantised(), "MAX_POOL_2D", "GELU")
    for ask in (micro.arena_bytes, lambda content: micro.run(content, np.zeros((1, 32, 20, 1), np.int8))):
        with pytest.raises(micro.MicroError, match="operator GELU is not part of TFLite Micro"):
            ask(content)
    os.write(2, b"back again")
    assert capfd.readouterr().err == "back again"


def test_shapes_that_contradict_each_other_are_refused():
    content = device_files.with_size(device_files.quantised(), "CONV_2D", 3, 4000)
    with pytest.raises(micro.MicroError, match="contradict each other"):
        micro.reference(content, np.zeros((1, 32, 20, 1), np.int8))


@needs_micro
def test_the_arena_is_exactly_what_is_needed():
    from tflite_micro.python.tflite_micro import runtime

    content = device_files.quantised()
    needed = micro.arena_bytes(content)
    assert 4096 < needed < 65536
    runtime.Interpreter.from_bytes(content, arena_size=needed)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(content, arena_size=needed - 32)


@needs_micro
def test_the_arena_grows_with_the_pictures():
    assert micro.arena_bytes(device_files.floating()) > 2 * micro.arena_bytes(device_files.quantised())


@needs_micro
def test_a_file_beyond_the_memory_offered_is_refused(monkeypatch):
    monkeypatch.setattr(micro, "ARENA_OFFERED", 5 * 2**10)
    with pytest.raises(micro.MicroError, match="needs more than"):
        micro.arena_bytes(device_files.quantised())


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(micro, "_runtime", lambda: None)
    assert not micro.available()
    with pytest.raises(micro.MicroError, match="pip install tflite-micro"):
        micro.arena_bytes(device_files.quantised())
    with pytest.raises(micro.MicroError, match="pip install tflite-micro"):
        micro.run(device_files.quantised(), np.zeros((1, 32, 20, 1), np.int8))
    assert micro.reference(device_files.quantised(), np.zeros((1, 32, 20, 1), np.int8)).shape == (1, 10)
