"""Each entry script as a user runs it: a process of its own on a tiny set."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    *("--set", "DATA_SOURCES=[{'name': 'synthetic', 'type': 'synthetic', 'count': 150}]"),
    *("--set", "BATCH_SIZE=32", "--set", "EPOCHS=2", "--set", "CALIBRATION_IMAGES=100"),
]


def call(*arguments: str, cwd: Path = ROOT, project: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(project / "train.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def run_folders(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["--help"], 0, "digit_recognizer_v4"),
        (["--trian", "cnn32"], 2, "unrecognized arguments: --trian"),
        (["--train", "cnn23"], 2, "'cnn23': did you mean cnn32? known are cnn32, digit_recognizer_v4"),
        (["--set", "EPOCHSS=2"], 2, "did you mean EPOCHS"),
        (["--set", "EPOCHS=0"], 2, "EPOCHS = 0: accepted are 1..100000"),
        (["--set", "ESP_DL_QUANTIZE=True", "--set", "ESP_DL_TARGETS=['esp8']"], 2, "known are esp32, esp32s3"),
        (["--set", "DEPLOY_TARGETS=['ai']"], 2, "unknown target 'ai': known are tflite_micro"),
        (["--use_tuner"], 2, "not built yet"),
        (["--jobs", "0"], 2, "--jobs needs a number of at least 1"),
        (["--resume", "nowhere", "--set", "EPOCHS=3"], 2, "leave --set out"),
    ],
)
def test_answers_without_tensorflow(arguments, exit_code, text):
    started = time.monotonic()
    done = call(*arguments)
    # Half a second on an idle machine; TensorFlow alone would take several.
    assert time.monotonic() - started < 2
    assert done.returncode == exit_code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_bad_data_is_refused_without_tensorflow(tmp_path):
    source = "[{'name': 'kitchen', 'type': 'filename', 'path': 'nowhere'}]"
    done = call("--set", f"DATA_SOURCES={source}", "--set", f"OUTPUT_DIR={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "data source 'kitchen': folder nowhere not found" in done.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_to_resume(tmp_path):
    done = call("--resume", tmp_path)
    assert (done.returncode, "no run folder to resume" in done.stderr) == (2, True)


@pytest.mark.slow
def test_trains_the_configured_architecture_from_any_folder(tmp_path):
    done = call(*TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders(tmp_path / "exported_models")
    assert folder.name.startswith("cnn32_10cls_GRAY_PTQ_")
    results = json.loads((folder / "results.json").read_text())
    assert results["training"]["epochs"] == 2
    score = results["files"]["cnn32_quantized.tflite"]["sets"]["test"]["accuracy"]
    assert f"{score:.4f}" in done.stdout
    # No terminal: a line an epoch instead of a bar, and nothing of TensorFlow's own log.
    assert "epoch 2 of 2: " in done.stderr
    assert not any(noise in done.stderr for noise in ("it/s", "cuda", "oneDNN", "XNNPACK", "Warning"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("esp_ppq") is None, reason="esp-ppq is not installed")
def test_esp_dl_files_stand_beside_the_tflite_ones(tmp_path):
    wanted = ["ESP_DL_QUANTIZE=True", "ESP_DL_TARGETS=['esp32p4']", "ESP_DL_MIN_AGREEMENT=0.5"]
    done = call(*TINY, *(part for line in wanted for part in ("--set", line)), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = run_folders(tmp_path / "exported_models")
    written = {path.name for path in folder.iterdir()}
    assert written >= {"cnn32_esp32p4.espdl", "cnn32_esp32p4_debug.espdl", "cnn32_esp32p4.json", "espdl_esp32p4"}
    results = json.loads((folder / "results.json").read_text())
    assert results["devices"]["esp32p4"]["tried"].keys() == {"plain", "corrected"}
    score = results["files"]["cnn32_esp32p4.espdl"]["sets"]["test"]["accuracy"]
    (row,) = [line for line in done.stdout.splitlines() if " cnn32_esp32p4.espdl " in line]
    assert f"{score:.4f}" in row
    (entry,) = [
        entry
        for entry in json.loads((folder / "manifest.json").read_text())["files"]
        if entry["name"].endswith(".espdl")
    ]
    assert (entry["targets"], entry["input"]["encoding"]) == (["esp32p4"], "int8 = pixel - 128")
    assert (entry["input"]["scale"], entry["input"]["zero_point"]) == (1 / 128, 0)
    # esp-ppq's banner, bars and coloured lines.
    assert not any(noise in done.stdout + done.stderr for noise in ("____", "it/s", "\x1b[", "PPQ", "tf2onnx"))


@pytest.mark.slow
def test_all_models_take_one_epoch_side_by_side_and_a_failure_is_a_row(tmp_path):
    project, output = tmp_path / "project", tmp_path / "runs"
    project.mkdir()
    for part in ("models", "utils", "train.py", "parameters.py"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, project / part)
    (project / "models" / "broken.py").write_text(
        "def build(input_shape, nb_classes):\n    raise RuntimeError('out of luck')\n"
    )
    done = call("--test_all_models", "--jobs", "2", *TINY, "--set", f"OUTPUT_DIR={output}", project=project)
    assert done.returncode == 1, done.stderr
    assert "broken FAILED: RuntimeError: out of luck" in done.stdout
    finished = [path for path in run_folders(output) if (path / "results.json").exists()]
    results = {path.name.split("_10cls")[0]: json.loads((path / "results.json").read_text()) for path in finished}
    assert set(results) == {"cnn32", "digit_recognizer_v4", "digit_recognizer_v12", "high_accuracy_validator"}
    assert all(result["training"]["epochs"] == 1 for result in results.values())
    quantised = {name for name, result in results.items() if f"{name}_quantized.tflite" in result["files"]}
    assert quantised == set(results) - {"high_accuracy_validator"}


@pytest.mark.slow
def test_a_killed_run_is_resumed(tmp_path):
    arguments = [*TINY, "--set", "EPOCHS=400", "--set", f"OUTPUT_DIR={tmp_path}"]
    process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/epoch_00000[3-9].weights.h5")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.05)
    (folder,) = run_folders(tmp_path)
    in_use = call("--resume", folder)
    assert "another process is working in this run folder" in in_use.stdout
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    settings = json.loads((folder / "settings.json").read_text())
    settings["settings"]["epochs"] = 30
    (folder / "settings.json").write_text(json.dumps(settings))
    done = call("--resume", folder)
    assert done.returncode == 0, done.stderr
    assert f"resuming {folder} after epoch" in done.stderr
    log = (folder / "training_log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log[1:]] == [str(number) for number in range(1, len(log))]
    assert json.loads((folder / "results.json").read_text())["files"]["cnn32_quantized.tflite"]["bytes"] > 100_000
    assert not list(folder.glob(".partial-*"))
