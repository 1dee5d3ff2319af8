"""Which model is meant, and what it asks of the settings."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from tests.keras_files import archive, refused
from utils import loader, model_archive, model_choice, runs
from utils import settings as settings_module
from utils.model_archive import ModelFileError


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


def test_a_file_is_itself_and_a_run_folder_its_best_model(tmp_path):
    folder = run(tmp_path, "cnn32", 1)
    best = folder / runs.BEST_MODEL_FILE
    assert model_choice.find(folder, tmp_path) == best
    assert model_choice.find(best, tmp_path) == best


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
    assert model_choice.find(None, tmp_path) == newest / runs.BEST_MODEL_FILE
    assert caplog.messages[-1] == f"no model named: taking {newest}"
    passed = [message for message in caplog.messages if "passed over" in message]
    assert [name in text for name, text in zip("fed", passed, strict=True)] == [True] * 3


def test_a_rejected_retraining_is_taken_only_by_name(tmp_path, caplog):
    older, rejected = run(tmp_path, "a", 100), run(tmp_path, "b", 200)
    (rejected / runs.RESULTS_FILE).write_text('{"judgement": {"accepted": false}}')
    assert model_choice.find(None, tmp_path) == older / runs.BEST_MODEL_FILE
    assert "its retraining was REJECTED" in caplog.text
    assert model_choice.find(rejected, tmp_path) == rejected / runs.BEST_MODEL_FILE


def test_of_two_runs_that_ended_together_the_later_name_is_taken(tmp_path):
    run(tmp_path, "cnn32_20250101-000000", 100)
    later = run(tmp_path, "cnn32_20250102-000000", 100)
    assert model_choice.find(None, tmp_path).parent == later


def test_no_finished_run(tmp_path):
    run(tmp_path, "only", 1, finished=False)
    for output in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelFileError, match=f"^{output}: no finished run there; train a model first"):
            model_choice.find(None, output)


def test_paths_that_lead_to_no_model(tmp_path):
    def find(path):
        model_choice.find(path, tmp_path)

    refused(tmp_path / "absent", "no such file or folder; name a .keras file or a run folder$", find)
    refused(tmp_path / ("x" * 300), "cannot be read .*name too long", find)
    refused(tmp_path, "no best_model.keras in this folder; name a .keras file", find)
    (tmp_path / "saved_model.pb").touch()
    refused(tmp_path, "no best_model.keras in this folder; this is a SavedModel: save the model as .keras", find)
    unfinished = run(tmp_path, "unfinished", 1, finished=False)
    (unfinished / runs.BEST_MODEL_FILE).unlink()
    refused(unfinished, "not finished: train.py --resume", find)
    (unfinished / runs.SETTINGS_FILE).write_text('{"fine_tuned_from": "a.keras"}')
    refused(unfinished, "can't be resumed; start it again with --model_path a.keras", find)


@pytest.mark.parametrize(("shape", "classes"), [((32, 20, 3), 100), ((48, 32, 1), 10), ((32, 20, 3), 10)])
def test_a_model_declares_the_settings_it_needs(tmp_path, shape, classes):
    import models

    models.get("digit_recognizer_v6").build(shape, classes).save(tmp_path / "a.keras")
    names = ("input_height", "input_width", "input_channels", "nb_classes")
    assert model_choice.declared(tmp_path / "a.keras") == dict(zip(names, (*shape, classes), strict=True))


def test_a_model_that_ends_in_a_convolution_declares_its_classes(tmp_path):
    import keras
    from keras import layers

    image = layers.Input((32, 20, 3))
    hidden = layers.Dense(10)(layers.Rescaling(1 / 128, offset=-1)(image))
    logits = layers.GlobalAveragePooling2D()(layers.Conv2D(100, 1)(hidden))
    keras.Model(image, logits).save(tmp_path / "a.keras")
    assert model_choice.declared(tmp_path / "a.keras")["nb_classes"] == 100


def test_a_model_of_a_run_says_what_labels_and_split_it_was_trained_on(trained_run, tmp_path):
    outcome, settings, _ = trained_run
    file = outcome.run_dir / runs.BEST_MODEL_FILE
    names = ("label_spread", "seed", "split_by", "test_share", "validation_share")
    of_run = {name: getattr(settings, name) for name in names}
    assert model_choice.trained_with(file) == {**model_choice.declared(file), **of_run}
    copy = tmp_path / "a.keras"
    copy.write_bytes(file.read_bytes())
    assert model_choice.trained_with(copy) == model_choice.declared(file)
    damaged = [json.dumps({"settings": {**of_run, **one}}) for one in ({"label_spread": 6}, {"seed": "much"})]
    for text in ("{", "[]", '{"settings": {"label_spread": 1}}', *damaged):
        (tmp_path / runs.SETTINGS_FILE).write_text(text)
        assert model_choice.trained_with(copy) == model_choice.declared(file)


def test_what_a_models_run_adds_to_contradicting_settings_is_said(trained_run, tmp_path):
    outcome, settings, _ = trained_run
    (tmp_path / "a.keras").write_bytes((outcome.run_dir / runs.BEST_MODEL_FILE).read_bytes())
    saved = {**dataclasses.asdict(settings), "test_share": 0, "seed": 7}
    (tmp_path / runs.SETTINGS_FILE).write_text(json.dumps({"settings": saved}))
    given = {"label_spread": 0.0}
    with pytest.raises(settings_module.SettingsError) as refused:
        model_choice.to_go_on(tmp_path / "a.keras", given)
    assert str(refused.value) == (
        "TEST_SHARE = 0 without TEST_SOURCES leaves nothing to measure on: set one of them; of the model's run are "
        "SEED = 7, SPLIT_BY = 'cluster', TEST_SHARE = 0.0, VALIDATION_SHARE = 0.1"
    )
    _, found = model_choice.to_go_on(tmp_path / "a.keras", {**given, "test_share": 0.2})
    assert (found.label_spread, found.seed, found.test_share) == (0, 7, 0.2)


def test_of_a_run_with_other_shares_nothing_learnt_is_measured_on(tiny, tmp_path):
    import models

    given = tiny(nb_classes=10, test_share=0.1, validation_share=0.1)
    of_run = dataclasses.replace(given, test_share=0.02, validation_share=0.03)
    models.get("digit_recognizer_v6").build(given.input_shape, 10).save(tmp_path / runs.BEST_MODEL_FILE)
    runs.save_settings(tmp_path, of_run, "")
    further = dataclasses.replace(given, **model_choice.trained_with(tmp_path / runs.BEST_MODEL_FILE))
    learnt, measured, careless = (loader.load(one) for one in (of_run, further, given))
    assert not np.isin(measured.measured["test"], learnt.train).any()
    assert np.isin(careless.measured["test"], learnt.train).mean() > 0.4


def test_what_a_run_was_trained_with_holds_whatever_else_stands_in_parameters(trained_run, monkeypatch):
    outcome, settings, _ = trained_run
    monkeypatch.setattr("parameters.VALIDATION_SHARE", 0.9)  # --set may mend it, when all is read together
    assert model_choice.trained_with(outcome.run_dir / runs.BEST_MODEL_FILE)["seed"] == settings.seed


def test_a_model_of_other_classes_declares_its_pictures_alone(tmp_path):
    import keras

    image = keras.Input((32, 20, 3))
    outputs = keras.layers.Dense(7)(keras.layers.Flatten()(image))
    keras.Model(image, outputs).save(tmp_path / "a.keras")
    assert model_choice.declared(tmp_path / "a.keras") == {"input_height": 32, "input_width": 20, "input_channels": 3}


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
    monkeypatch.setattr(model_archive, "read", lambda path: (json.dumps({"config": {"layers": layers}}), {}, {}))
    with pytest.raises(ModelFileError, match=f"^{tmp_path}/a.keras: .*{message}"):
        model_choice.declared(tmp_path / "a.keras")
