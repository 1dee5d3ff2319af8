import ast
import csv
import dataclasses
import importlib.util
import itertools
import json
import logging
import sys
import time

import keras
import pytest
import tensorflow as tf

import models
import train
import tuner
import utils
from models import _blocks
from tests.conftest import earlier_objects_hidden
from utils import (
    evaluation,
    export,
    loader,
    model_choice,
    model_files,
    oracle,
    search_space,
    smoothing,
    training,
    trials,
    tuning,
)
from utils import settings as settings_module
from utils.errors import UserError, exit_code
from utils.search_space import SearchError
from utils.trials import Outcome

SMALL = {
    "tuner_optimizers": ["adam", "sgd"],
    "tuner_learning_rates": [0.001, 0.01],
    "tuner_batch_sizes": [16, 32, 64],
    "tuner_epochs": 9,
    "model_architecture": "cnn32",
}
DRIVERS = ("keras_tuner", "loop")


@pytest.fixture(scope="module")
def splits():
    source = {"name": "synthetic", "type": "synthetic", "count": 240}
    return loader.load(settings_module.load(data_sources=[source]))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Garbage is collected after each trial, which must not go through what other tests left."""
    with earlier_objects_hidden():
        yield


@pytest.fixture
def small(tiny):
    return lambda **overrides: tiny(**{**SMALL, **overrides})


@pytest.fixture(params=DRIVERS)
def driver(request, monkeypatch):
    """Every test with it runs through KerasTuner, then with KerasTuner missing."""
    if request.param == "loop":
        without_keras_tuner(monkeypatch)
    return request.param


def without_keras_tuner(monkeypatch):
    monkeypatch.setitem(sys.modules, "utils.oracle", None)
    monkeypatch.delattr(utils, "oracle", raising=False)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the training: ``fake.score(combination)`` decides; ``fake.calls`` lists what was tried."""

    class Fake:
        def __init__(self):
            self.calls, self.epochs = [], []
            self.score = lambda combination: 0.5

        def run(self, combination, settings, splits, folder, until):
            self.calls.append(tuple(combination.values()))
            self.epochs.append(until)
            score = self.score(combination)
            return Outcome(score, until, 0.1) if isinstance(score, float) else Outcome(None, 0, 0.1, score)

    fake = Fake()
    monkeypatch.setattr(tuning, "run_trial", fake.run)
    return fake


def rows(found):
    with (found.folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_combination_once_in_the_lists_order(small, splits, fake, driver, caplog):
    caplog.set_level(logging.INFO)
    fake.score = lambda combination: combination["batch_size"] / 100 + combination["learning_rate"]
    found = tuning.search(small(), splits)
    assert fake.calls == [tuple(values.values()) for values in found.combinations]
    assert len(set(fake.calls)) == len(fake.calls) == 12
    assert [row["trial"] for row in rows(found)] == [str(number) for number in range(1, 13)]
    read = {(row["OPTIMIZER"], float(row["LEARNING_RATE"]), int(row["BATCH_SIZE"])) for row in rows(found)}
    assert read == set(fake.calls)
    assert {row["status"] for row in rows(found)} == {"COMPLETED"}
    assert found.best().values["batch_size"] == 64
    assert (found.best().values["learning_rate"], found.best().score) == (0.01, 0.65)
    assert "TUNER_MAX_TRIALS = 20, there are only 12 combinations: all are tried" in caplog.text
    assert ("KerasTuner can't run" in caplog.text) == (driver == "loop")
    assert "12 of 12 done, best 0.6500 (trial " in caplog.text
    head, _, *listed, _, notes = tuning.summary(found).splitlines()
    assert head.split() == ["trial", "OPTIMIZER", "LEARNING_RATE", "BATCH_SIZE", "val_accuracy", "epochs", "s"]
    # The best ten, none of the two with the least score, 0.161.
    assert [line.split()[4] for line in listed[:2] + listed[-2:]] == ["0.6500", "0.6500", "0.1700", "0.1700"]
    assert (len(listed), notes) == (10, f"12 trials completed, 0 failed, in {found.folder}")


def test_a_search_leaves_these_files(small, splits, fake):
    fake.score = lambda combination: 0.1 + combination["learning_rate"]
    found = tuning.search(small(tuner_max_trials=3, tuner_axes={"LOSS": ["categorical_crossentropy"]}), splits)
    assert {path.name for path in found.folder.iterdir()} == {
        *("search.json", "trials.csv", "tuning.png", "best_hyperparameters.json", "best_hyperparameters.py"),
    }
    assert found.folder.name.startswith("tuner_cnn32_2")
    assert (found.folder / "tuning.png").read_bytes().startswith(b"\x89PNG")
    best = json.loads((found.folder / "best_hyperparameters.json").read_text())
    assert best["score"] == 0.11
    assert best["hyperparameters"] == search_space.named(found.combinations[best["trial"] - 1])


def test_the_best_are_lines_for_parameters_py(small, splits, fake):
    found = tuning.search(small(tuner_max_trials=4, tuner_axes={"AUGMENT": [False]}), splits)
    path = found.folder / "best_hyperparameters.py"
    text = path.read_text()
    assert all(isinstance(node, ast.Assign) for node in ast.parse(text).body)
    spec = importlib.util.spec_from_file_location("best_hyperparameters", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = {name.lower(): value for name, value in vars(module).items() if name.isupper()}
    settings = settings_module.load(**values)
    assert {name: getattr(settings, name) for name in values} == found.best().values
    assert settings.augment is False
    for line in text.splitlines()[1:]:
        assert line.endswith("  # val_accuracy 0.5000, trial 1")


def test_dropout_is_an_axis(small, splits, fake):
    found = tuning.search(small(tuner_axes={"DROPOUT": [0, 0.3]}), splits)
    assert {call[-1] for call in fake.calls} == {0.0, 0.3}
    assert {row["DROPOUT"] for row in rows(found)} == {"0.0", "0.3"}


def test_a_failed_trial_has_its_error_and_no_score(small, splits, fake, driver, monkeypatch):
    # As on Windows, whose own encoding lacks most letters.
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "cp1252")
    fake.score = lambda combination: "OSError: d:/水表" if combination["batch_size"] == 64 else 0.25
    found = tuning.search(small(tuner_optimizers=["sgd"]), splits)
    failed = [row for row in rows(found) if row["status"] == "FAILED"]
    assert [row["BATCH_SIZE"] for row in failed] == ["64", "64"]
    assert {row["error"] for row in failed} == {"OSError: d:/水表"}
    assert {row["val_accuracy"] for row in failed} == {""}
    assert len(rows(found)) == 6
    assert found.stopped == ""
    assert found.best().score == 0.25


def test_three_failures_in_a_row_stop_the_search(small, splits, fake, driver, capfd):
    fake.score = lambda combination: 0.5 if len(fake.calls) in (1, 4) else f"ValueError: number {len(fake.calls)}"
    found = tuning.search(small(), splits)
    assert len(fake.calls) == 7
    assert [row["status"] for row in rows(found)] == ["COMPLETED", *["FAILED"] * 2, "COMPLETED", *["FAILED"] * 3]
    assert found.stopped == "3 trials in a row failed, the last with: ValueError: number 7"
    with pytest.raises(SearchError, match=r"3 trials in a row failed.*trials\.csv"):
        tuning.best_of(found)
    assert "the search was stopped: 3 trials" in tuning.summary(found)
    assert "Traceback" not in capfd.readouterr().err


def test_what_was_broken_off_starts_over_and_the_rest_stays(small, splits, fake, driver, caplog):
    caplog.set_level(logging.INFO)

    def score(combination):
        if len(fake.calls) == 4:
            raise KeyboardInterrupt
        return "no luck" if len(fake.calls) == 2 else 0.5

    fake.score = score
    with pytest.raises(KeyboardInterrupt):
        tuning.search(small(), splits)
    first = list(fake.calls)
    found = tuning.search(small(), splits)
    assert ": 3 trials done, 1 of them FAILED, which are not tried again" in caplog.text
    assert fake.calls[4] == first[3]
    assert len(fake.calls) == 13
    assert len(set(fake.calls)) == 12
    assert [row["status"] for row in rows(found)][:4] == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    assert len(list(found.folder.parent.iterdir())) == 1
    # A search that is done is not made again; more trials go on with it.
    tuning.search(small(), splits)
    assert len(fake.calls) == 13


def test_more_trials_go_on_with_the_same_list(small, splits, fake):
    one = tuning.search(small(tuner_max_trials=3), splits)
    two = tuning.search(small(tuner_max_trials=5), splits)
    assert one.folder == two.folder
    assert fake.calls == [tuple(values.values()) for values in two.combinations]
    assert len(rows(two)) == 5


def test_a_trial_that_takes_its_process_along_is_given_up(small, splits, fake):
    found = tuning.search(small(tuner_max_trials=2), splits)
    content = json.loads((found.folder / "search.json").read_text())
    content["trials"][1] |= {"status": "RUNNING", "score": None, "begun": 3}
    (found.folder / "search.json").write_text(json.dumps(content))
    again = tuning.search(small(tuner_max_trials=2), splits)
    assert rows(again)[1]["status"] == "FAILED"
    assert "its process ended 3 times without a word" in rows(again)[1]["error"]
    assert len(fake.calls) == 2


def test_a_trial_of_other_values_than_the_lists_is_made_anew(small, splits, fake):
    found = tuning.search(small(tuner_max_trials=2), splits)
    content = json.loads((found.folder / "search.json").read_text())
    content["trials"][1]["values"]["batch_size"] = 7
    (found.folder / "search.json").write_text(json.dumps(content))
    again = tuning.search(small(tuner_max_trials=2), splits)
    assert again.folder == found.folder
    assert fake.calls[2:] == fake.calls[1:2]
    assert rows(again)[1]["BATCH_SIZE"] == str(again.combinations[1]["batch_size"])


def test_an_interruption_does_not_count_against_a_trial(small, splits, fake):
    def interrupt(_):
        raise KeyboardInterrupt

    score, fake.score = fake.score, interrupt
    for _ in range(trials.BEGINNINGS + 1):
        with pytest.raises(KeyboardInterrupt):
            tuning.search(small(tuner_max_trials=2), splits)
    fake.score = score
    found = tuning.search(small(tuner_max_trials=2), splits)
    assert [row["status"] for row in rows(found)] == ["COMPLETED", "COMPLETED"]


def test_a_full_disk_does_not_count_against_a_trial(small, splits, driver, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def trained(*_):
        return training.Training([{"val_accuracy": 0.5}], 1)

    small = small(tuner_max_trials=2)
    monkeypatch.setattr(training, "fit", full)
    for _ in range(trials.BEGINNINGS + 1):
        with pytest.raises(SearchError, match=r"/tuner_.*: No space left on device; mend that, then the same command"):
            tuning.search(small, splits)
    monkeypatch.setattr(training, "fit", trained)
    found = tuning.search(small, splits)
    assert [row["status"] for row in rows(found)] == ["COMPLETED", "COMPLETED"]


def test_a_changed_space_is_named_and_gets_its_own_folder(small, splits, fake, caplog):
    caplog.set_level(logging.INFO)
    one = tuning.search(small(tuner_max_trials=1), splits)
    two = tuning.search(small(tuner_max_trials=1, tuner_batch_sizes=[8], weight_decay=0.5), splits)
    assert one.folder != two.folder
    said = f"not going on with {one.folder}: BATCH_SIZE was [16, 32, 64], is [8]; WEIGHT_DECAY was 0.0001, is 0.5"
    assert said in caplog.text
    assert tuning.search(small(tuner_max_trials=2), splits).folder == one.folder


def test_another_teacher_of_the_same_name_gets_its_own_folder(small, splits, fake, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    teacher, folders = tmp_path / "teacher.keras", []
    settings = small(tuner_max_trials=1, teachers=[str(teacher)])
    for seed in (1, 1, 2):
        if len(folders) != 1:
            keras.utils.set_random_seed(seed)
            models.get("cnn32").build(settings.input_shape, settings.nb_classes).save(teacher)
        folders.append(tuning.search(settings, splits).folder)
    assert folders[0] == folders[1] != folders[2]
    assert f"not going on with {folders[0]}: {teacher} has changed; beginning a new folder" in caplog.text


def test_another_architecture_of_the_same_name_gets_its_own_folder(small, splits, fake, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    one, kept = tuning.search(small(tuner_max_trials=1), splits), models.code
    monkeypatch.setattr(models, "code", lambda names: {**kept(names), "models/cnn32.py": b"# mended"})
    assert tuning.search(small(tuner_max_trials=1), splits).folder != one.folder
    assert f"not going on with {one.folder}: models/cnn32.py has changed; beginning a new folder" in caplog.text


def test_a_damaged_record_begins_anew(small, splits, fake, caplog):
    one = tuning.search(small(tuner_max_trials=1), splits)
    (one.folder / "search.json").write_text("{")
    assert tuning.search(small(tuner_max_trials=1), splits).folder != one.folder
    assert "not readable" in caplog.text


def test_halving_gives_the_best_third_more_epochs(small, splits, fake):
    place = {}
    fake.score = lambda combination: place.setdefault(tuple(combination.values()), 0.1 + len(place) / 100)
    found = tuning.search(small(tuner_strategy="halving"), splits)
    # 12 trials of 1 epoch, the best 4 of them to 3, the best 2 of those to 9.
    assert fake.epochs == [1] * 12 + [3] * 4 + [9] * 2
    assert fake.calls[12:] == [fake.calls[11 - n] for n in range(4)] + [fake.calls[11], fake.calls[10]]
    assert [int(row["epochs"]) for row in rows(found)] == [1] * 8 + [3] * 2 + [9] * 2
    assert len(rows(found)) == 12
    before = len(fake.calls)
    tuning.search(small(tuner_strategy="halving"), splits)
    assert len(fake.calls) == before


def test_halving_that_was_broken_off_keeps_what_was_reached(small, splits, fake):
    def score(combination):
        if len(fake.calls) == 14:
            raise KeyboardInterrupt
        return combination["batch_size"] / 100

    fake.score = score
    with pytest.raises(KeyboardInterrupt):
        tuning.search(small(tuner_strategy="halving"), splits)
    found = tuning.search(small(tuner_strategy="halving"), splits)
    # Of the second round the one that was finished is not made again.
    assert fake.epochs == [1] * 12 + [3] * 5 + [9] * 2
    assert fake.calls[13] in fake.calls[14:17]
    assert fake.calls[12] not in fake.calls[14:17]
    assert {row["status"] for row in rows(found)} == {"COMPLETED"}


def test_a_search_without_a_result_is_a_failed_model(small, splits, fake):
    fake.score = lambda combination: "no luck"
    (outcome,) = tuning.train(["cnn32"], small(), None, splits)
    assert outcome.results is None
    assert "3 trials in a row failed, the last with: no luck" in outcome.error


def test_a_full_disk_in_a_search_leaves_the_others_their_rows(small, splits, fake):
    def full(_):
        raise OSError(28, "No space left on device", "trials.csv")

    fake.score = full
    first, second = tuning.train(["cnn32", "digit_recognizer_v6"], small(), None, splits)
    assert [first.architecture, second.architecture] == ["cnn32", "digit_recognizer_v6"]
    for outcome in (first, second):
        assert outcome.error.startswith("trials.csv: No space left on device; mend that, then the same command goes on")


def test_what_could_not_be_trained_is_refused_before_the_search(small, splits, fake, monkeypatch):
    def with_softmax(input_shape, nb_classes):
        image, x = _blocks.image_input(input_shape)
        return keras.Model(image, keras.layers.Softmax()(_blocks.flat_logits(x, nb_classes)), name="odd")

    shares = {"deploy_targets": ["ai_on_the_edge"], "input_channels": 3, "label_spread": 5}
    (outcome,) = tuning.train(["cnn32"], small(**shares, tuner_axes={"LABEL_SPREAD": [5.0, 1.0]}), None, splits)
    assert "which training gives from LABEL_SPREAD = 5 on" in outcome.error
    monkeypatch.setattr(models, "get", lambda name: models.Architecture("odd", with_softmax, quantizable=True))
    (outcome,) = tuning.train(["odd"], small(), None, splits)
    assert "models/odd.py: the model ends in probabilities" in outcome.error
    with pytest.raises(UserError, match=r"models/odd\.py: the model ends in probabilities"):
        tuning.search(small(model_architecture="odd"), splits)
    assert not fake.calls


@pytest.fixture
def asked(small):
    """An oracle of twelve trials, and what a worker would say."""

    def end(trial, score):
        trial.hyperparameters.values |= {"score": score, "epochs": 1, "seconds": 1.0, "error": ""}
        trial.status = "COMPLETED"

    settings = small()
    axes = search_space.axes(settings)
    search = trials.Search(None, search_space.signature(settings, axes, "", {}), search_space.order(axes, 12, 1))
    return oracle.ListOracle(search, settings), search, end


def test_a_lost_workers_trial_is_handed_to_another_once(asked, monkeypatch):
    chief, search, end = asked
    lost = chief.create_trial("a")
    second = chief.create_trial("b")
    assert [trial.hyperparameters.values["trial"] for trial in (lost, second)] == [1, 2]
    monkeypatch.setattr(oracle, "LOST_AFTER", 0.2)
    time.sleep(0.3)
    chief.get_trial(second.trial_id)
    chief.drop_lost()
    end(second, 0.5)
    chief.end_trial(second)
    again = chief.create_trial("b")
    assert again.hyperparameters.values["trial"] == 1
    end(again, 0.75)
    chief.end_trial(again)
    # The lost one comes back after all: its trial is over.
    chief.end_trial(oracle.KerasTunerTrial.from_state({**again.get_state(), "score": 0.1}))
    assert [row.score for row in search.ended()] == [0.75, 0.5]
    assert chief.tuner_ids == {"b"}


def test_a_trial_that_takes_its_workers_along_is_given_up(asked, monkeypatch):
    chief, search, _ = asked
    monkeypatch.setattr(oracle, "LOST_AFTER", -1.0)
    for name in ("a", "a", "b"):  # the first is started again under its name before it is given up
        assert chief.create_trial(name).hyperparameters.values["trial"] == 1
        if search.rows[1].begun > 1:
            chief.drop_lost()
    assert chief.create_trial("c").hyperparameters.values["trial"] == 2
    (given_up,) = search.ended()
    assert (given_up.number, given_up.status) == (1, "FAILED")
    assert given_up.error == "its process ended 3 times without a word (out of memory?)"
    # Under its own name, too, a worker gets the next one.
    for _ in range(2):
        assert chief.create_trial("c").hyperparameters.values["trial"] == 2
    assert chief.create_trial("c").hyperparameters.values["trial"] == 3


def test_a_chief_says_how_to_start_workers_while_it_has_none(asked, monkeypatch, caplog):
    chief, _, _ = asked
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "192.168.0.7")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    command = "KERASTUNER_TUNER_ID=NAME KERASTUNER_ORACLE_IP=192.168.0.7 KERASTUNER_ORACLE_PORT=8000 python tuner.py"
    chief.say_waiting()
    assert caplog.text.count(f"no worker is there; start one: {command}") == 1
    chief.create_trial("a")
    chief.say_waiting()
    assert caplog.text.count("no worker is there") == 1
    monkeypatch.setattr(oracle, "LOST_AFTER", -1.0)
    chief.drop_lost()
    chief.say_waiting()
    assert caplog.text.count("no worker is there") == 2


def test_a_chief_that_cannot_listen_and_a_worker_that_waits_say_where(asked, small, monkeypatch, caplog):
    _, search, _ = asked
    caplog.set_level(logging.INFO)
    # An address of documentation (RFC 5737), no machine's.
    address = {"KERASTUNER_ORACLE_IP": "203.0.113.7", "KERASTUNER_ORACLE_PORT": "8000"}
    said = " ".join(f"{name}={value}" for name, value in address.items())
    for name, value in {**address, "KERASTUNER_TUNER_ID": "chief"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SearchError, match=f"^{said}: the chief can't listen there: the address must be this machine's"):
        oracle.drive(search, lambda *_: None, small(), "chief")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "one")
    monkeypatch.setattr(oracle.Tuner, "search", lambda tuner: None)
    oracle.drive(search, lambda *_: None, small(), "worker")
    assert f"asking the chief for trials ({said}); it is waited for" in caplog.text


def test_a_worker_of_a_chief_started_anew_changes_nothing(asked):
    chief, search, end = asked
    current = chief.create_trial("a")
    stale = oracle.KerasTunerTrial.from_state(current.get_state())
    stale.hyperparameters.values["trial"] = 9
    end(stale, 0.9)
    chief.end_trial(stale)
    chief.update_trial("99", {"score": 0.9})
    assert chief.get_trial("99").score is None
    assert search.ended() == []
    end(current, 0.5)
    chief.end_trial(current)
    assert [(row.number, row.score) for row in search.ended()] == [(1, 0.5)]


def test_a_worker_with_other_parameters_is_refused(asked, tmp_path):
    chief, search, _ = asked
    tuner = oracle.Tuner(chief, lambda number, until: pytest.fail("no trial is run"), "another digest", tmp_path)
    with pytest.raises(oracle.ForeignSpaceError):
        tuner.search()
    # It has taken none away.
    assert search.rows == {}


def test_workers_wait_while_another_is_at_the_last_trial(asked):
    chief, _, end = asked
    given = [chief.create_trial(f"w{number}") for number in range(12)]
    assert chief.create_trial("late").status == "IDLE"
    for trial in given:
        end(trial, 0.5)
        chief.end_trial(trial)
    assert chief.create_trial("late").status == "STOPPED"


def test_models_that_do_not_fit_are_left_out(small, splits, fake, caplog):
    caplog.set_level(logging.INFO)
    axis = {"MODEL_ARCHITECTURE": ["cnn32", "digit_recognizer_v4", "high_accuracy_validator"]}
    found = tuning.search(small(tuner_axes=axis, tuner_max_kb=100, tuner_max_macs=10_000_000), splits)
    assert {call[-1] for call in fake.calls} == {"digit_recognizer_v4"}
    assert len(found.combinations) == 12
    assert "cnn32 is left out: makes a file of " in caplog.text
    assert "high_accuracy_validator is left out: has " in caplog.text
    with pytest.raises(SearchError, match=r"nothing to search: cnn32 has .* TUNER_MAX_MACS = 1,000"):
        tuning.search(small(tuner_max_macs=1000), splits)


@pytest.mark.parametrize(
    ("door", "named"), [(tuner, ["--model", "cnn32"]), (train, ["--use_tuner", "--train", "cnn32"])]
)
def test_nothing_to_search_is_said_before_the_pictures(door, named, no_pictures, tmp_path, capsys):
    given = [*named, "--set", f"OUTPUT_DIR={tmp_path}", "--set", "TUNER_MAX_MACS=1000"]
    assert door.main(given) == 2
    assert "nothing to search: cnn32 has " in capsys.readouterr().err


def test_one_of_several_that_fits_is_enough_to_begin(small):
    settings = small(input_height=8, input_width=8, tuner_max_kb=100)
    names = ["cnn32", "digit_recognizer_v6"]
    model_choice.check_named(settings, *names, searching=True)
    assert search_space.misfits(settings, names)["digit_recognizer_v6"].startswith("can't be built for INPUT_HEIGHT")
    axis = dataclasses.replace(settings, tuner_axes={"MODEL_ARCHITECTURE": ["digit_recognizer_v6"]})
    with pytest.raises(SearchError, match="nothing to search: digit_recognizer_v6 can't be built"):
        model_choice.check_named(axis, "cnn32", searching=True)


def test_the_int8_objective_wants_a_model_that_is_quantised(small, splits):
    settings = small(model_architecture="high_accuracy_validator", nb_classes=100, tuner_objective="int8_within_0.1")
    with pytest.raises(SearchError, match="never quantised"):
        tuning.search(settings, splits)


@pytest.mark.slow
def test_the_int8_objective_is_the_exported_files_score(small, tmp_path):
    settings = small(nb_classes=100, tuner_objective="int8_within_0.1", tuner_epochs=1)
    splits = loader.load(settings)
    outcome = tuning.run_trial({"batch_size": 64}, settings, splits, tmp_path / "trial", 1)
    assert outcome.error == ""
    model = model_files.load(tmp_path / "trial" / "best_model.keras")
    smoothing.fold(model, settings)
    calibration = loader.calibration_images(splits, settings.calibration_images, settings.seed)
    content = export.quantized_tflite(model, calibration, "int8")
    images, tenths = splits.pool.images(splits.validation), splits.pool.tenths[splits.validation]
    predicted = evaluation.tflite_logits(content, images).argmax(axis=1)
    assert outcome.score == evaluation.metrics(predicted, tenths, 100)["within_0.1"]


def test_an_interruption_that_became_another_error_is_no_failed_trial(small, splits, tmp_path, ctrl_c, monkeypatch):
    monkeypatch.setattr(training, "fit", ctrl_c.as_another_error)
    trial = {"batch_size": 64}, small(), splits, tmp_path / "trial", 1
    assert exit_code("tuner.py", lambda: len(tuning.run_trial(*trial).error), "stopped") == 130


def test_a_batch_that_does_not_fit_memory_fails_its_trial_alone(small, splits, monkeypatch):
    planned = set()

    def fit(model, splits, settings, folder, until):
        planned.add((settings.epochs, settings.early_stopping_patience, settings.monitor, settings.checkpoint_epochs))
        if settings.batch_size == 64:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor of 64 pictures")
        row = {"val_accuracy": 0.5, "batch_size": settings.batch_size, "learning_rate": settings.learning_rate}
        return training.Training([row | {"seconds": 0.0}], 1)

    monkeypatch.setattr(training, "fit", fit)
    found = tuning.search(small(tuner_optimizers=["sgd"], tuner_patience=3), splits)
    assert planned == {(9, 3, "val_accuracy", 0)}
    assert {row["error"] for row in rows(found) if row["BATCH_SIZE"] == "64"} == {
        "ResourceExhaustedError: OOM when allocating a tensor of 64 pictures"
    }
    assert [row["status"] for row in rows(found) if row["BATCH_SIZE"] != "64"] == ["COMPLETED"] * 4


@pytest.mark.slow
def test_a_trial_costs_little_more_than_its_training_and_scores_its_best_epoch(small, splits, monkeypatch):
    fits, kept = [], training.fit

    def fit(*arguments):
        # The processor's seconds, since the clock's count other programs of a busy machine.
        started = time.process_time()
        fits.append((kept(*arguments), time.process_time() - started, time.process_time()))
        return fits[-1][0]

    monkeypatch.setattr(training, "fit", fit)
    with earlier_objects_hidden():
        found = tuning.search(small(tuner_max_trials=3, tuner_epochs=2, tuner_patience=1, augment=False), splits)
    best = [max(row["val_accuracy"] for row in fitted.rows) for fitted, _, _ in fits]
    assert [row.score for row in found.ended()] == pytest.approx(best, abs=1e-6)
    assert all(epoch <= 2 for epoch in (row.epochs for row in found.ended()))
    for (_, _, before), (_, seconds, ended) in itertools.pairwise(fits):
        overhead = ended - before - seconds
        print(f"overhead of a trial: {overhead:.2f} s, its training {seconds:.2f} s")
        assert overhead < 2


def test_trials_beyond_a_shortened_list_do_not_count_and_seconds_add_up():
    search = trials.Search(None, {"settings": {"TUNER_OBJECTIVE": "val_accuracy"}}, [{"batch_size": 8}] * 3)
    for number, score in enumerate((0.5, 0.6, 0.7), start=1):
        search.begin(number)
        search.end(number, 5, Outcome(score, 5, 2.0))
    search.begin(1)
    search.end(1, 10, Outcome(0.65, 10, 3.0))
    assert (search.best().number, search.rows[1].seconds, search.rows[1].epochs) == (3, 5.0, 10)
    # What came to an end is not held against it when it goes on for more epochs.
    assert search.rows[1].begun == 0
    search.combinations = search.combinations[:2]
    assert ([row.number for row in search.ended()], search.best().number, search.time_left()) == ([1, 2], 1, 0)


def test_time_is_told_in_the_unit_that_suits():
    assert [trials.duration(seconds) for seconds in (119, 120, 7199, 7200)] == ["119 s", "2 min", "120 min", "2 h"]
