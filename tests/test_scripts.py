"""Each entry script as a user runs it: a process of its own on a tiny set."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest

import train
from tests import foreign_files
from tests.conftest import write_digit
from utils import runs, synthetic

ROOT = Path(__file__).parent.parent
TINY = [
    *("--set", "DATA_SOURCES=[{'name': 'synthetic', 'type': 'synthetic', 'count': 150}]"),
    *("--set", "BATCH_SIZE=32", "--set", "EPOCHS=2", "--set", "CALIBRATION_IMAGES=100"),
]
# TensorFlow takes longer to build the graph of changed pictures than to train.
PLAIN = ["--set", "AUGMENT=False"]


def call(
    *arguments: str, door: str = "train.py", cwd: Path = ROOT, project: Path = ROOT
) -> subprocess.CompletedProcess:
    command = [sys.executable, str(project / door), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def without_tensorflow(tmp_path_factory, monkeypatch) -> None:
    """A program that imports what takes a user seconds to wait for ends there, with 1."""
    folder = tmp_path_factory.mktemp("missing")
    for package in ("tensorflow", "keras", "matplotlib", "scipy", "torch", "onnx"):
        (folder / f"{package}.py").write_text("raise SystemExit(f'{__name__} was imported')")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def run_folders(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["--help"], 0, "digit_recognizer_v4"),
        (["--trian", "cnn32"], 2, "unrecognized arguments: --trian"),
        (["--train", "cnn23"], 2, "'cnn23': did you mean cnn32? known are cnn32, digit_recognizer_v3"),
        (["--set", "EPOCHSS=2"], 2, "did you mean EPOCHS"),
        (["--set", "EPOCHS=0"], 2, "EPOCHS = 0: accepted are 1..100000"),
        (["--set", "ESP_DL_QUANTIZE=True", "--set", "ESP_DL_TARGETS=['esp8']"], 2, "known are esp32, esp32s3"),
        (["--set", "DEPLOY_TARGETS=['ai']"], 2, "unknown target 'ai': known are tflite_micro"),
        (["--use_tuner", "--test_all_models"], 2, "leave --test_all_models out"),
        (["--use_tuner", "--set", "TUNER_OPTIMIZERS=[]"], 2, "TUNER_OPTIMIZERS is empty: give at least one value"),
        (["--jobs", "0"], 2, "--jobs: needs a number of at least 1"),
        (["--resume", "nowhere", "--set", "EPOCHS=3"], 2, "leave --set out"),
        (["--resume", "nowhere", "--teacher", "x"], 2, "leave --teacher out"),
    ],
)
def test_answers_without_tensorflow(arguments, exit_code, text, without_tensorflow):
    done = call(*arguments)
    assert done.returncode == exit_code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_bad_data_is_refused_without_tensorflow(tmp_path, without_tensorflow):
    source = "[{'name': 'kitchen', 'type': 'filename', 'path': 'nowhere'}]"
    done = call("--set", f"DATA_SOURCES={source}", "--set", f"OUTPUT_DIR={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "data source 'kitchen': folder nowhere not found" in done.stderr
    assert not (tmp_path / "out").exists()


def test_teachers_of_the_command_win():
    arguments = train.parse_arguments(["--teacher", "a", "b", "--set", "TEACHERS=['c']"])
    assert train.choose(arguments)[1].teachers == ["a", "b"]


def test_a_run_is_resumed_with_its_own_settings(tiny, tmp_path):
    runs.save_settings(tmp_path, tiny(epochs=77), "")
    assert train.choose(train.parse_arguments(["--resume", str(tmp_path)]))[1].epochs == 77


def test_nothing_to_resume(tmp_path):
    done = call("--resume", tmp_path)
    assert (done.returncode, "no run folder to resume" in done.stderr) == (2, True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``train.py`` run in an empty folder: what it said, and the folder."""
    folder = tmp_path_factory.mktemp("work")
    # After two epochs it is so undecided that TFLite Micro's rounding shows, and the gate may refuse its file.
    return call(*TINY, "--set", "EPOCHS=8", cwd=folder), folder


@pytest.fixture(scope="module")
def meter(tmp_path_factory):
    """A folder with 24 labelled pictures."""
    folder = tmp_path_factory.mktemp("meter")
    digits = synthetic.draw(24, 8)
    for number in range(24):
        write_digit(folder, digits, number)
    return folder


@pytest.mark.slow
def test_trains_the_configured_architecture_from_any_folder(trained):
    done, work = trained
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders(work / "exported_models")
    assert folder.name.startswith("cnn32_10cls_GRAY_PTQ_")
    results = json.loads((folder / "results.json").read_text())
    assert results["training"]["epochs"] == 8
    score = results["files"]["cnn32_quantized.tflite"]["sets"]["test"]["accuracy"]
    assert f"{score:.4f}" in done.stdout
    # No terminal: a line an epoch instead of a bar, and nothing of TensorFlow's own log.
    assert "epoch 8 of 8: " in done.stderr
    assert not any(noise in done.stderr for noise in ("it/s", "cuda", "oneDNN", "XNNPACK", "Warning"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("esp_ppq") is None, reason="esp-ppq is not installed")
def test_esp_dl_files_stand_beside_the_tflite_ones(tmp_path):
    wanted = ["ESP_DL_QUANTIZE=True", "ESP_DL_TARGETS=['esp32p4']", "ESP_DL_MIN_AGREEMENT=0.5"]
    done = call(*TINY, *PLAIN, *(part for line in wanted for part in ("--set", line)), cwd=tmp_path)
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
def test_fine_tunes_the_newest_run_on_a_new_meter(trained, meter, tmp_path):
    _, work = trained
    (given,) = run_folders(work / "exported_models")
    shutil.copytree(given, tmp_path / "exported_models" / given.name)
    before = (given / "best_model.keras").read_bytes()
    arguments = ("--data", meter, "--epochs", "1", "--strategy", "last_layer", "--learning_rate_multiplier", "0.2")
    done = call(*TINY, *arguments, "--set", "LEARNING_RATE=0.005", door="fine-tune.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"taking exported_models/{given.name}" in done.stderr
    assert "strategy last_layer: 2570 of 189642 parameters train" in done.stderr
    assert (
        "learning from 24 new pictures (10 % of each batch), 12 old ones and 108 old ones much changed" in done.stderr
    )
    (folder,) = [path for path in run_folders(tmp_path / "exported_models") if path.name.endswith("_finetuned")]
    results = json.loads((folder / "results.json").read_text())
    assert (results["training"]["epochs"], results["training"]["learning_rate"]) == (1, 0.001)
    assert results["before"]["sets"]["test"]["n"] == results["files"]["cnn32_quantized.tflite"]["sets"]["test"]["n"]
    assert " before " in done.stdout
    assert "all pictures are learnt from, so the table says only what else is still read" in done.stdout
    assert (tmp_path / "exported_models" / given.name / "best_model.keras").read_bytes() == before
    learnt = [set(runs.learnt(one / "best_model.keras").tolist()) for one in (given, folder)]
    assert learnt[0] < learnt[1] and len(learnt[1]) == len(learnt[0]) + 24


@pytest.mark.slow
@pytest.mark.parametrize(("door", "option"), [("fine-tune.py", "--data"), ("retrain.py", "--bad_images_dir")])
def test_pictures_that_the_model_has_learnt_are_not_kept_aside(trained, meter, tmp_path, door, option):
    _, work = trained
    (given,) = run_folders(work / "exported_models")
    shutil.copytree(given, tmp_path / "run")
    (tmp_path / "run" / "learnt.npy").write_bytes(b"damaged")
    done = call("--model_path", tmp_path / "run", option, meter, door=door, cwd=tmp_path)
    assert done.returncode == 2
    assert "learnt.npy: not a record of learnt pictures" in done.stderr


@pytest.mark.slow
def test_a_retrained_model_that_is_no_better_is_rejected(trained, meter, tmp_path):
    _, work = trained
    (given,) = run_folders(work / "exported_models")
    # With so small a step nothing can change.
    arguments = ("--model_path", given, "--bad_images_dir", meter, "--epochs", "1", "--lr", "1e-9")
    done = call(*TINY, *arguments, "--set", "USE_QAT=True", "--set", f"OUTPUT_DIR={tmp_path}", door="retrain.py")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "REJECTED: of the bad pictures kept aside" in done.stdout
    (folder,) = run_folders(tmp_path)
    assert "_PTQ_" in folder.name
    assert {"review.html", "best_model.keras", "cnn32_quantized.tflite"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "results.json").read_text())["judgement"]["accepted"] is False


def test_a_benchmark_of_what_is_no_model(meter, tmp_path):
    done = call("README.md", "--data", meter, "--csv", tmp_path / "a.csv", door="benchmark.py")
    assert done.returncode == 1, done.stderr
    assert "README.md FAILED: README.md: this is no model" in done.stdout
    assert "24 pictures of 1 meter" in done.stdout
    (row,) = csv.DictReader((tmp_path / "a.csv").open())
    assert (row["name"], row["accuracy"]) == ("README.md", "")


@pytest.mark.parametrize(
    ("door", "arguments", "written"),
    [
        ("predict.py", ["PICTURES", "--model", "MODEL", "--threshold", "1", "--save", "saved"], 24),
        ("benchmark.py", ["MODEL", "--data", "PICTURES", "--csv", "saved/a.csv", "--json", "saved/a.json"], 2),
        ("datasets/inspect.py", ["PICTURES", "--csv", "saved/a.csv", "--html", "saved/a.html"], 2),
    ],
)
def test_files_are_written_though_nobody_reads_the_output(meter, tmp_path, door, arguments, written):
    (tmp_path / "saved").mkdir()
    places = {"PICTURES": str(meter), "MODEL": str(ROOT / "exported_models" / "zoo" / "v6_tenths")}
    command = [sys.executable, str(ROOT / door), *(places.get(one, one) for one in arguments)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "saved").iterdir())) == written


LOST = "DATA_SOURCES=[{'name': 'a', 'type': 'filename', 'path': 'nowhere'}]"


@pytest.mark.parametrize("door", ["fine-tune.py", "retrain.py"])
def test_a_model_that_can_not_be_taught_is_refused_before_pictures_are_read(tmp_path, door):
    import keras
    from keras import layers

    image = keras.Input((32, 20, 1))
    logits = layers.Dense(10)(layers.Flatten()(layers.Rescaling(1 / 255)(image)))
    keras.Model(image, logits).save(tmp_path / "a.keras")
    (tmp_path / "bad").mkdir()
    write_digit(tmp_path / "bad", synthetic.draw(1, seed=0), 0)
    bad = ["--bad_images_dir", tmp_path / "bad"] if door == "retrain.py" else []
    done = call("--model_path", tmp_path / "a.keras", *bad, "--set", LOST, door=door)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a.keras: the model begins with Rescaling(scale=0.00392" in done.stderr


@pytest.mark.parametrize(
    ("door", "arguments", "text"),
    [
        ("fine-tune.py", ["--set", "NB_CLASSES=10"], "reads 100 classes but NB_CLASSES = 10"),
        ("retrain.py", ["--bad_images_dir", "bad", "--set", "INPUT_WIDTH=24"], "but INPUT_WIDTH = 24: use --set INPUT"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_pictures_are_read(tmp_path, door, arguments, text):
    (tmp_path / "bad").mkdir()
    model = ROOT / "exported_models" / "zoo" / "v6_tenths"
    done = call("--model_path", model, *arguments, "--set", LOST, door=door, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{door}: the model digit_recognizer_v6 " in done.stderr
    assert text in done.stderr


@pytest.mark.parametrize("door", ["fine-tune.py", "retrain.py"])
def test_what_needs_tensorflow_advises_no_other_backend_where_it_is_missing(tmp_path, monkeypatch, door):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ModuleNotFoundError(name='tensorflow')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    bad = ["--bad_images_dir", tmp_path] if door == "retrain.py" else []
    done = call("--model_path", "exported_models/zoo/v6_tenths", *bad, door=door)
    said = f"{door}: {door} needs TensorFlow, which is not installed: install it\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


ZOO_DIGITS = "exported_models/zoo/v6_digits"
DIGITS_ON_THE_EDGE = [ZOO_DIGITS, "--set", "DEPLOY_TARGETS=['ai_on_the_edge']"]


@pytest.mark.parametrize(
    ("door", "arguments", "text"),
    [
        ("fine-tune.py", ["--help"], "--learning_rate_multiplier"),
        ("tuner.py", ["--set", "TEACHERS=['nowhere']"], "nowhere: no such file or folder"),
        ("fine-tune.py", ["--model_path", "nowhere"], "nowhere: no such file or folder"),
        ("fine-tune.py", ["--model_path", "README.md"], "README.md"),
        ("fine-tune.py", ["--data_ratio", "1.5"], "1.5 is not from 0 to 1"),
        ("fine-tune.py", ["--strategy", "all"], "invalid choice: 'all'"),
        ("fine-tune.py", ["--epochs", "0"], "--epochs: needs a number of at least 1"),
        ("fine-tune.py", ["--set", "OUTPUT_DIR=/nowhere"], "no finished run"),
        ("fine-tune.py", ["--model_path", ZOO_DIGITS, "--data", "tests", "--data", "."], "folder tests lies in .: its"),
        ("fine-tune.py", ["--model_path", *DIGITS_ON_THE_EDGE], "NB_CLASSES = 10: ai_on_the_edge in DEPLOY_TARGETS"),
        ("predict.py", ["--help"], "--threshold"),
        ("predict.py", [], "IMAGE_OR_FOLDER"),
        ("predict.py", ["nowhere"], "nowhere: no such file or folder"),
        ("predict.py", ["README.md", "--model", "README.md"], "README.md: this is no model"),
        ("predict.py", ["README.md", "--model", "nowhere"], "nowhere: no such file or folder"),
        ("predict.py", ["README.md", "--set", "OUTPUT_DIR=/nowhere"], "no finished run"),
        ("predict.py", ["README.md", "--threshold", "2"], "2 is not from 0 to 1"),
        ("benchmark.py", ["--help"], "--robustness"),
        ("benchmark.py", ["README.md"], "required: --data"),
        ("predict.py", ["README.md", "--save", ""], "--save: is empty; give a path"),
        ("benchmark.py", ["README.md", "--data", ""], "--data: is empty; give a path"),
        ("benchmark.py", ["README.md", "--data", "nowhere"], "folder nowhere not found"),
        ("benchmark.py", ["README.md", "--data", "synthetic", "--csv", "nowhere/a.csv"], "cannot be written"),
        ("datasets/inspect.py", ["--help"], "--html"),
        ("datasets/inspect.py", [], "SOURCE"),
        ("datasets/inspect.py", [""], "SOURCE: is empty; give a path"),
        ("datasets/inspect.py", ["nowhere"], "folder nowhere not found"),
        ("datasets/inspect.py", ["tests", "--model", "README.md"], "README.md: this is no model"),
        ("datasets/inspect.py", ["tests", "--html", "nowhere/a.html"], "nowhere/a.html: cannot be written"),
        ("report.py", ["--help"], "RUN_DIR"),
        ("tuner.py", ["--help"], "--trials N"),
        ("tuner.py", ["--model", "cnn23"], "'cnn23': did you mean cnn32?"),
        ("tuner.py", ["--model", "cnn32", "--set", f"START_FROM={ZOO_DIGITS!r}"], ", to be trained is cnn32"),
        ("tuner.py", ["--trials", "0"], "--trials: needs a number of at least 1"),
        ("tuner.py", ["--set", "TUNER_OPTIMIZERS=['adm']"], "TUNER_OPTIMIZERS: OPTIMIZER = 'adm': accepted are 'adam'"),
        ("tuner.py", ["--set", "TUNER_AXES={'EPOCHS': [1]}"], "TUNER_AXES EPOCHS: no axis, known are WEIGHT_DECAY"),
        ("tuner.py", ["--set", "TUNER_OBJECTIVE=int8_within_0.1"], "needs tenths: set NB_CLASSES = 100"),
        (
            "tuner.py",
            ["--set", "DATA_SOURCES=[{'name': 'a', 'type': 'filename', 'path': 'no'}]"],
            "folder no not found",
        ),
        ("retrain.py", ["--model_path", "x"], "--bad_images_dir"),
        ("retrain.py", ["--bad_images_dir", "nowhere", "--model_path", ZOO_DIGITS], "folder nowhere not found"),
        ("retrain.py", ["--bad_images_dir", "tests", "--model_path", *DIGITS_ON_THE_EDGE], "NB_CLASSES = 10: ai_on_"),
        ("retrain.py", ["--bad_images_dir", "tests", "--lr", "-1"], "-1 is not above 0"),
        ("retrain.py", ["--bad_images_dir", "tests", "--epochs", "0"], "--epochs: needs a number of at least 1"),
        ("retrain.py", ["--bad_images_dir", "tests", "--set", "RETRAIN_MAX_DROP=-1"], "accepted are 0..100"),
    ],
)
def test_the_other_doors_answer_without_tensorflow(door, arguments, text, without_tensorflow):
    done = call(*arguments, door=door)
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_reads_a_folder_with_a_run(trained, meter, tmp_path):
    _, work = trained
    (tmp_path / "in").mkdir()
    for picture in list(meter.iterdir())[:3]:
        shutil.copy(picture, tmp_path / "in")
    (tmp_path / "in" / "z.png").write_bytes(b"no picture")
    arguments = (tmp_path / "in", "--json", "--threshold", "1", "--save", tmp_path / "out")
    done = call(*arguments, door="predict.py", cwd=work)
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["error"] is None for row in rows] == [True, True, True, False]
    assert len(list((tmp_path / "out").iterdir())) == 3
    (given,) = run_folders(work / "exported_models")
    # A shell makes a list of in/*.png.
    several = (tmp_path / "in", *sorted((tmp_path / "out").iterdir())[:2])
    keras = call(*several, "--model", given / "best_model.keras", door="predict.py")
    assert keras.returncode == 1, keras.stderr
    assert "6 pictures, " in keras.stdout
    assert not any(noise in keras.stderr for noise in ("cuda", "oneDNN", "XNNPACK", "Warning"))


@pytest.mark.slow
def test_one_picture_is_read_without_tensorflow(trained, meter, without_tensorflow):
    (given,) = run_folders(trained[1] / "exported_models")
    done = call(next(meter.iterdir()), "--model", given, door="predict.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cnn32_quantized.tflite" in done.stdout


def test_a_range_that_was_assumed_is_mended_as_the_warning_says(tmp_path):
    import keras

    taken, digit = foreign_files.picky(low=0.0), foreign_files.pictures()[70]
    cv2.imwrite(str(tmp_path / "7.png"), digit)
    raw = keras.Sequential([keras.Input(foreign_files.SIZE), keras.layers.Rescaling(1 / 255), taken])
    found = []
    for model, given in ((taken, ()), (taken, ("--pixels=0..1",)), (raw, ("--pixels=0..1",))):
        (tmp_path / "a.tflite").write_bytes(foreign_files.as_float(model))
        done = call(tmp_path / "7.png", "--model", tmp_path / "a.tflite", "--json", *given, door="predict.py")
        said = [words for words in ("is assumed. If nearly all", "is passed over") if words in done.stderr]
        found.append((json.loads(done.stdout)["reading"], said))
    assert found == [("0", ["is assumed. If nearly all"]), ("7", []), ("7", ["is passed over"])]


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "datasets"])
def test_inspect_is_not_taken_for_the_standard_library(meter, tmp_path, cwd):
    written = ("--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, os.path.relpath(ROOT / "datasets" / "inspect.py", cwd), meter, *written]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "24 pictures, 24 of them with a label, 1 meter" in done.stdout
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 25
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_all_models_take_one_epoch_side_by_side_and_a_failure_is_a_row(tmp_path):
    project, output = tmp_path / "project", tmp_path / "runs"
    project.mkdir()
    for part in ("models", "utils", "train.py", "parameters.py"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, project / part)
    # Each takes seconds; test_models.py and test_fake_quant.py have all of them.
    names = {"cnn32", "high_accuracy_validator"}
    for path in project.glob("models/[a-z]*.py"):
        if path.stem not in names:
            path.unlink()
    (project / "models" / "broken.py").write_text(
        "def build(input_shape, nb_classes):\n    raise RuntimeError('out of luck')\n"
    )
    done = call("--test_all_models", "--jobs", "2", *TINY, *PLAIN, "--set", f"OUTPUT_DIR={output}", project=project)
    assert done.returncode == 1, done.stderr
    assert "cudart" not in done.stderr
    assert "broken FAILED: RuntimeError: out of luck" in done.stdout
    finished = [path for path in run_folders(output) if (path / "results.json").exists()]
    results = {path.name.split("_10cls")[0]: json.loads((path / "results.json").read_text()) for path in finished}
    assert set(results) == names
    assert all(result["training"]["epochs"] == 1 for result in results.values())
    quantised = {name for name, result in results.items() if f"{name}_quantized.tflite" in result["files"]}
    assert quantised == set(results) - {"high_accuracy_validator"}


@pytest.mark.slow
def test_a_killed_run_is_resumed(tmp_path):
    arguments = [*TINY, *PLAIN, "--set", "EPOCHS=400", "--set", f"OUTPUT_DIR={tmp_path}"]
    process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("*/checkpoints/epoch_*[3-9].npz")), process, "third epoch")
    (folder,) = run_folders(tmp_path)
    # It keeps its folder, and leaves the processor to the other.
    os.kill(process.pid, signal.SIGSTOP)
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


SEARCH = [
    *TINY,
    *PLAIN,
    *("--set", "TUNER_EPOCHS=2", "--set", "TUNER_OPTIMIZERS=['sgd', 'adam']"),
    *("--set", "TUNER_LEARNING_RATES=[0.001, 0.01]", "--set", "TUNER_BATCH_SIZES=[32, 64]"),
]


def read_trials(output: Path) -> list[dict]:
    (path,) = output.glob("tuner_*/trials.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def combinations(rows: list[dict]) -> set[tuple]:
    return {(row["OPTIMIZER"], row["LEARNING_RATE"], row["BATCH_SIZE"]) for row in rows}


def wait_for(condition, process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"ended before {what}"
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path):
    arguments = [*SEARCH, "--trials", "3", "--set", f"OUTPUT_DIR={tmp_path}"]
    process = subprocess.Popen([sys.executable, "tuner.py", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    # The second trial has begun.
    wait_for(lambda: list(tmp_path.glob("*/scratch/00002")), process, "second trial")
    process.kill()
    process.wait()
    killed = read_trials(tmp_path)
    assert [row["status"] for row in killed] == ["COMPLETED", "RUNNING"]
    done = call(*arguments, door="tuner.py")
    assert done.returncode == 0, done.stderr
    assert "1 trials done" in done.stderr
    assert [line.split(" trial ")[1][0] for line in done.stderr.splitlines() if " of 3: OPTIMIZER" in line] == [*"23"]
    rows = read_trials(tmp_path)
    assert rows[0] == killed[0]
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3
    assert len(combinations(rows)) == 3
    (folder,) = run_folders(tmp_path)
    assert not (folder / "scratch").exists()
    assert not any(noise in done.stdout + done.stderr for noise in ("Traceback", "Reloading", "oneDNN", "Search: "))


@pytest.mark.slow
def test_trains_with_what_the_search_found(tmp_path):
    done = call(*SEARCH, "--use_tuner", "--set", "TUNER_MAX_TRIALS=2", "--set", f"OUTPUT_DIR={tmp_path}")
    assert done.returncode == 0, done.stderr
    (run,) = [path for path in run_folders(tmp_path) if not path.name.startswith("tuner_")]
    (folder,) = [path for path in run_folders(tmp_path) if path.name.startswith("tuner_")]
    best = json.loads((folder / "best_hyperparameters.json").read_text())
    results, settings = (json.loads((run / name).read_text()) for name in ("results.json", "settings.json"))
    told = {"folder": str(folder), **{name: best[name] for name in ("trial", "objective", "score", "hyperparameters")}}
    assert results["tuned_by"] == told
    assert {name.upper(): settings["settings"][name.lower()] for name in best["hyperparameters"]} == best[
        "hyperparameters"
    ]
    assert settings["settings"]["epochs"] == results["training"]["epochs"] == 2


# Shorter silences than the real ones, so that the test ends soon.
IMPATIENT = """
import sys
from utils import console
console.set_up()
console.import_tensorflow(False)
from utils import oracle
oracle.HEARTBEAT, oracle.LOST_AFTER = 1.0, 8.0
import tuner
sys.exit(tuner.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_one_chief_and_two_workers_of_whom_one_is_killed(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*SEARCH, "--trials", "4", "--set", f"OUTPUT_DIR={tmp_path / 'out'}"]

    def start(name: str) -> subprocess.Popen:
        machine = {"KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": "127.0.0.1"}
        machine |= {"KERASTUNER_ORACLE_PORT": str(port), "PYTHONPATH": str(ROOT)}
        with (tmp_path / f"{name}.log").open("w") as file:
            command = [sys.executable, "-c", IMPATIENT, *arguments]
            return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **machine}, stdout=file, stderr=file)

    processes = {name: start(name) for name in ("chief", "one", "two")}
    try:
        log = tmp_path / "two.log"
        wait_for(lambda: log.read_text().count("epoch 1 of 2") >= 1, processes["two"], "trial of worker two")
        processes["two"].kill()
        assert processes["one"].wait(240) == 0, (tmp_path / "one.log").read_text()
        assert processes["chief"].wait(60) == 0, (tmp_path / "chief.log").read_text()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    rows = read_trials(tmp_path / "out")
    assert [row["status"] for row in rows] == ["COMPLETED"] * 4
    assert len(combinations(rows)) == 4
    said = (tmp_path / "chief.log").read_text()
    lost = said.count("nothing heard of worker two: its trial")
    begun = [line.split(" trial ")[1].split()[0] for line in said.splitlines() if " of 4: OPTIMIZER" in line]
    # The lost trial alone is made a second time; killed between two trials, the worker had none.
    assert sorted(set(begun)) == [*"1234"]
    assert len(begun) == 4 + lost <= 5
    assert "no trial left for this worker" in (tmp_path / "one.log").read_text()
