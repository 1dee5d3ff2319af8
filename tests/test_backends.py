"""Training where Keras runs on something else than TensorFlow, as on a GPU machine that only trains."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import models
from utils import evaluation, model_files, runs, session

ROOT = Path(__file__).parent.parent
BACKENDS = [name for name in ("jax", "torch") if find_spec(name)]
TRAIN_AND_READ = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
# As if it were not installed.
PathFinder.find_spec = staticmethod(lambda name, *more: None if name == "tensorflow" else find(name, *more))
import numpy as np
import train
folder, *arguments = sys.argv[1:]
assert train.main(arguments) == 0
from pathlib import Path
from utils import evaluation, model_files
(run,) = (Path(folder) / "exported").iterdir()
images = np.load(Path(folder) / "images.npy")
np.save(Path(folder) / "logits.npy", evaluation.keras_logits(model_files.load(run / "best_model.keras"), images))
"""


@pytest.mark.slow
@pytest.mark.skipif(not BACKENDS, reason="neither JAX nor PyTorch is installed")
def test_a_run_without_tensorflow_is_finished_with_it(tiny, tmp_path, rng):
    settings = tiny(data_sources=[{"name": "s", "type": "synthetic", "count": 300}])
    images = rng.integers(0, 256, (8, *settings.input_shape)).astype("uint8")
    np.save(tmp_path / "images.npy", images)
    models.get("cnn32").build(settings.input_shape, 10).save(tmp_path / "teacher.keras")
    lines = {name: getattr(settings, name) for name in ("data_sources", "epochs", "batch_size", "calibration_images")}
    assignments = [f"{name.upper()}={value!r}" for name, value in {**lines, "output_dir": settings.output_dir}.items()]
    arguments = [
        "--teacher",
        str(tmp_path / "teacher.keras"),
        *(part for one in assignments for part in ("--set", one)),
    ]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_READ, str(tmp_path), *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": BACKENDS[0]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "exported").iterdir()
    assert f"train.py --resume {run} makes them" in done.stderr
    results = json.loads((run / runs.RESULTS_FILE).read_text())
    assert (list(results["files"]), results["recommended"]) == ([runs.BEST_MODEL_FILE], runs.BEST_MODEL_FILE)
    assert math.isfinite(results["training"]["val_loss"])
    logits = evaluation.keras_logits(model_files.load(run / runs.BEST_MODEL_FILE), images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, atol=1e-3)

    outcome = session.resume(run, session.Options())
    assert outcome.results["recommended"] == "cnn32_quantized.tflite"
    assert outcome.results["training"] == results["training"]
    scores = [found["files"][runs.BEST_MODEL_FILE]["sets"]["test"] for found in (results, outcome.results)]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]
    with pytest.raises(runs.RunError, match="finished"):
        session.resume(run, session.Options())


@pytest.mark.skipif("torch" not in BACKENDS, reason="PyTorch is not installed")
@pytest.mark.parametrize(("growth", "preallocate"), [(True, "false"), (False, None)])
def test_other_backends_get_their_share_of_cores_and_card(growth, preallocate):
    program = (
        f"import os; from utils import console; console.import_tensorflow({growth}, 1); import torch;"
        "print(torch.get_num_threads(), os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE'))"
    )
    env = {name: value for name, value in os.environ.items() if name != "XLA_PYTHON_CLIENT_PREALLOCATE"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**env, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"1 {preallocate}\n"), done.stderr
