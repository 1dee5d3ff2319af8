import copy
import hashlib
import json
import re
import types

import pytest

from tests import device_files
from utils import gate, manifest, micro, runs, tflite_file

TRAINING = manifest.Training("d1" * 8, "5e" * 32, "PTQ")


@pytest.fixture(scope="module")
def content() -> bytes:
    return device_files.quantised()


@pytest.fixture(scope="module")
def verdict(content) -> gate.Verdict:
    return gate.check("tflite_micro", content, 10, False)


@pytest.fixture
def built(content, verdict) -> dict:
    entry = manifest.file_entry("a.tflite", content, 10, verdict, {"accuracy": 0.9}, TRAINING, 0.6)
    return copy.deepcopy(manifest.build([entry]))


def test_what_the_manifest_says(built, content):
    (entry,) = built["files"]
    assert built["format"] == 1
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["bytes"] == len(content)
    assert entry["targets"] == ["tflite_micro"]
    assert entry["input"] == {
        **{"height": 32, "width": 20, "channels": 1, "channel_order": "GRAY"},
        **{"dtype": "int8", "scale": 1 / 128, "zero_point": 0, "encoding": "int8 = pixel - 128"},
    }
    output = tflite_file.read(content).output
    numbers = {"dtype": "int8", "scale": output.scale, "zero_point": output.zero_point}
    assert entry["output"] == {**numbers, "count": 10, "meaning": "logits"}
    assert entry["classes"]["names"] == "class = digit"
    assert entry["recommended_confidence"] == 0.6
    assert entry["operators"] == ["CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "RESHAPE"]
    assert entry["scores"] == {"accuracy": 0.9}
    assert entry["training"] == {"data_fingerprint": "d1" * 8, "settings_sha256": "5e" * 32, "mode": "PTQ"}


def test_a_manifest_survives_its_file(built, tmp_path):
    runs.write_json(tmp_path / "manifest.json", built)
    read = json.loads((tmp_path / "manifest.json").read_text())
    manifest.check(read)
    assert read == built


def test_colour_tenths_and_probabilities():
    content = device_files.floating(channels=3, classes=100, body=device_files.probable)
    verdict = gate.check("ai_on_the_edge", content, 100, False)
    (entry,) = manifest.build([manifest.file_entry("b.tflite", content, 100, verdict, {}, TRAINING)])["files"]
    assert entry["targets"] == ["ai_on_the_edge"]
    assert (entry["input"]["channel_order"], entry["input"]["scale"]) == ("RGB", None)
    assert entry["input"]["encoding"] == "float32 = pixel 0..255"
    assert entry["output"]["meaning"] == "probabilities"
    assert entry["classes"]["names"] == "class / 10 = digit.tenth"
    assert entry["classes"]["decoding"].endswith(manifest.CONFIDENCES[100])
    assert entry["recommended_confidence"] is None


@pytest.mark.parametrize(("measured", "recommended"), [(None, None), (1, 7168), (1024, 7168), (1025, 8192)])
def test_recommended_memory_has_room_for_the_kernels_of_a_chip(measured, recommended):
    plain = tflite_file.Node("CONV_2D", (1, 8, 6, 4), (1, 8, 6, 8), (8, 3, 3, 4), 1, 1, "SAME", None)
    deep = tflite_file.Node("DEPTHWISE_CONV_2D", (1, 4, 4, 8), (1, 4, 4, 8), (1, 3, 3, 8), 1, 1, "SAME", None)
    dense = tflite_file.Node("FULLY_CONNECTED", (1, 999), (1, 10), (10, 999), None, None, None, None)
    # Two padded pictures of 10 x 8 and the filters, their channels filled up to 16.
    assert manifest._scratch(plain) == 2 * (10 * 8 * 4 + 8 * 9 * 16) + 16 * 4 + 4 * 8 + 32 == 3072
    facts = types.SimpleNamespace(nodes=(plain, deep, dense))
    assert manifest.recommended_arena(None if measured is None else measured + 3072, facts) == recommended


def test_memory_comes_from_the_verdict(built, verdict):
    measured = built["files"][0]["arena"]["measured_bytes"]
    assert measured == verdict.arena_bytes
    assert measured < built["files"][0]["arena"]["recommended_bytes"] < measured + 40_960


CHANGES = {
    "manifest.format": 2,
    "manifest.files": {},
    "manifest.files[0].name": "../a.tflite",
    "manifest.files[0].sha256": "ab",
    "manifest.files[0].bytes": True,
    "manifest.files[0].targets[0]": "toaster",
    "manifest.files[0].input.height": 0,
    "manifest.files[0].input.channels": 2,
    "manifest.files[0].input.channel_order": "RGB",
    "manifest.files[0].input.dtype": "int16",
    "manifest.files[0].input.scale": "1/128",
    "manifest.files[0].input.zero_point": 0.5,
    "manifest.files[0].output.meaning": ["logits"],
    "manifest.files[0].classes.count": 100,
    "manifest.files[0].recommended_confidence": 1.5,
    "manifest.files[0].operators": "CONV_2D",
    "manifest.files[0].scores": ["accuracy"],
    "manifest.files[0].training.mode": "FAST",
    "manifest.files[0].arena.recommended_bytes": 7,
}


def holder(built: dict, path: str):
    """The container and the key of what a path such as manifest.files[0].name names."""
    keys = [int(key) if key.isdigit() else key for key in re.findall(r"\w+", path)[1:]]
    for key in keys[:-1]:
        built = built[key]
    return built, keys[-1]


# To Python True is 1, to JSON it isn't.
@pytest.mark.parametrize(("path", "value"), [*CHANGES.items(), ("manifest.format", True)])
def test_an_impossible_value_is_named(built, path, value):
    built["files"][0]["arena"].update(measured_bytes=9000, recommended_bytes=11264)
    manifest.check(built)
    within, key = holder(built, path)
    within[key] = value
    with pytest.raises(manifest.ManifestError, match=re.escape(f"{path}: ")):
        manifest.check(built)


def paths(value, path: str = "manifest"):
    for key, item in value.items():
        yield f"{path}.{key}"
        if isinstance(item, dict) and key != "scores":
            yield from paths(item, f"{path}.{key}")


def test_every_missing_and_every_unknown_key_is_named(built):
    names = [*paths({"format": 1, "files": []}), *paths(built["files"][0], "manifest.files[0]")]
    assert len(names) > 35
    for path in names:
        damaged = copy.deepcopy(built)
        within, key = holder(damaged, path)
        del within[key]
        with pytest.raises(manifest.ManifestError, match=re.escape(f"{path}: is missing")):
            manifest.check(damaged)
        within.update({key: holder(built, path)[0][key], "extra": 1})
        with pytest.raises(manifest.ManifestError, match=r"extra: is unknown"):
            manifest.check(damaged)


@pytest.mark.parametrize("value", [None, [], "manifest", 3])
def test_what_is_no_manifest_is_refused(value):
    with pytest.raises(manifest.ManifestError, match="needs an object"):
        manifest.check(value)


def test_two_files_of_one_name_are_refused(built):
    with pytest.raises(manifest.ManifestError, match="occurs twice"):
        manifest.build(built["files"] * 2)


def test_the_text_for_esphome():
    content = device_files.quantised("uint8")
    text = manifest.companion_text("a_esphome.tflite", content, 10, 10240)
    assert "Input shape: [1, 32, 20, 1] (batch, height, width, channels: grey)\n" in text
    assert "Input type: uint8 (uint8 = pixel 0..255)\n" in text
    output = tflite_file.read(content).output
    assert f"Output type: uint8 (scale {output.scale}, zero point {output.zero_point})\n" in text
    assert "Classes: 10 (class = digit)\n" in text
    assert "Recommended tensor arena: 15 KB\n" in text
    # The way the component finds the operators to compile in.
    section = re.search(r"Unique operator types:.*?(?=\n\s*\n|\Z)", text, re.DOTALL)[0]
    found = re.findall(r"^\s*([A-Z][A-Z0-9_]*):\s+(\d+)\s*$", section, re.MULTILINE)
    assert dict(found) == {
        **{"CONV_2D": "2", "FULLY_CONNECTED": "1", "MAX_POOL_2D": "2"},
        **{"QUANTIZE": "2", "RESHAPE": "1"},
    }
    assert "Recommended confidence: none\n" in text
    text = manifest.companion_text("a_esphome.tflite", content, 10, recommended_confidence=0.999962)
    assert f"arena: not measured, {micro.MISSING}\n" in text
    assert "Recommended confidence: 0.999962\n" in text
