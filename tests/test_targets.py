from pathlib import Path

import pytest

from utils import targets
from utils.settings import SettingsError


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("tflite_micro", "cnn32_quantized.tflite"),
        ("ai_on_the_edge", "dig-class100_0182_s2_q.tflite"),
        ("esphome", "cnn32_esphome.tflite"),
    ],
)
def test_file_names(target, name):
    assert targets.file_name(target, "cnn32", 100, "0182") == name


def test_names_that_leave_the_folder_are_refused():
    for model, version in (("../cnn32", "1"), ("cnn32", "0/1"), ("", "1")):
        with pytest.raises(targets.TargetError, match="can't be part of a file name"):
            targets.file_name("ai_on_the_edge", model, 100, version)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"deploy_targets": ["arduino"]}, "unknown target 'arduino': known are tflite_micro"),
        ({"deploy_targets": [["x"]]}, r"unknown target \['x'\]"),
        ({"quantized_io_type": "float32"}, "QUANTIZED_IO_TYPE = 'float32': tflite_micro .* takes int8 or uint8"),
        (
            {"deploy_targets": ["ai_on_the_edge"]},
            "NB_CLASSES = 10: ai_on_the_edge .* LABEL_SPREAD = 5 on; set that, or NB_CLASSES = 100",
        ),
        ({"deploy_targets": ["ai_on_the_edge"], "input_width": 24}, "needs INPUT_HEIGHT = 32, INPUT_WIDTH = 20"),
        ({"deploy_targets": ["ai_on_the_edge"], "nb_classes": 100, "model_version": "../1"}, "can't be part of a file"),
    ],
)
def test_what_a_device_would_refuse_is_refused_before_training(tiny, overrides, message):
    with pytest.raises((SettingsError, targets.TargetError), match=message):
        targets.check(tiny(**overrides))
    targets.check(tiny(**overrides, quantize_model=False))


@pytest.mark.parametrize(
    "overrides",
    [
        {"input_height": 40, "input_width": 24},
        {"deploy_targets": ["ai_on_the_edge"], "nb_classes": 100, "quantized_io_type": "float32"},
        # Shared targets say what the ten outputs are read as.
        {"deploy_targets": ["ai_on_the_edge", "esphome"], "label_spread": 5.0},
    ],
)
def test_what_a_device_takes_is_trained(tiny, overrides):
    targets.check(tiny(**overrides))


def test_memory_that_devices_have():
    memory = {name: target.max_arena_bytes for name, target in targets.TARGETS.items()}
    assert memory == {"tflite_micro": None, "ai_on_the_edge": 819_200, "esphome": 1_024_000}


def test_readme_names_each_devices_file_and_memory():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    names = {"model": "<model>", "classes": "<NB_CLASSES>", "version": "<MODEL_VERSION>"}
    for target in targets.TARGETS.values():
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{target.name}`"))
        assert f"`{target.file_pattern.format(**names)}`" in row
        limits = (target.max_file_bytes, "MiB", 2**20), (target.max_arena_bytes, "KiB of memory", 2**10)
        for text in (f"{most / size:.4g} {unit}" for most, unit, size in limits if most):
            assert text in row
