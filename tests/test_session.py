import dataclasses
import functools
import hashlib
import json
import multiprocessing
import re
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import models
from models import _blocks
from tests.crashing import crash, hang
from utils import evaluation, export, loader, runs, session, training
from utils.errors import exit_code
from utils.loader import DataError
from utils.plans import Plan

FILES = {
    "settings.json", "best_model.keras", "cnn32_float.tflite", "cnn32_quantized.tflite", "training_history.png",
    "manifest.json", "golden", "training_log.csv", "confusion_matrix.png", "worst_predictions.png", "results.json",
    "worst_readings.json", "report.html", "learnt.npy",
    "reliability.png",
}  # fmt: skip


@pytest.fixture
def tiny(tiny):
    """As everywhere, without changed pictures: TensorFlow takes longer to build their graph than to train."""
    return functools.partial(tiny, augment=False)


def train(settings, names=("cnn32",), **options):
    return session.train(list(names), settings, session.Options(**options), loader.load(settings))


def figures(results: dict) -> dict:
    return {name: value for name, value in results.items() if name != "timing"}


def test_a_run_leaves_these_files_and_no_other(trained_run):
    outcome, _, _ = trained_run
    assert {path.name for path in outcome.run_dir.iterdir()} == FILES
    for name in (path for path in FILES if path.endswith(".png")):
        assert (outcome.run_dir / name).read_bytes().startswith(b"\x89PNG")


def test_results_hold_what_the_files_score(trained_run):
    outcome, _, splits = trained_run
    results = json.loads((outcome.run_dir / "results.json").read_text())
    assert results == outcome.results
    test = splits.measured["test"]
    images, tenths = splits.pool.images(test), splits.pool.tenths[test]
    model = keras.models.load_model(outcome.run_dir / "best_model.keras", safe_mode=True)
    logits = {"best_model.keras": evaluation.keras_logits(model, images)}
    for name in ("cnn32_float.tflite", "cnn32_quantized.tflite"):
        logits[name] = evaluation.tflite_logits((outcome.run_dir / name).read_bytes(), images)
    assert set(results["files"]) == set(logits)
    for name, values in logits.items():
        entry = results["files"][name]
        scores = entry["sets"]["test"]
        assert entry["bytes"] == (outcome.run_dir / name).stat().st_size
        assert scores["n"] == len(test) == 200
        assert scores["accuracy"] == evaluation.metrics(values.argmax(axis=1), tenths, 10)["accuracy"]
        agreement = (values.argmax(axis=1) == logits["best_model.keras"].argmax(axis=1)).mean()
        assert scores["agreement"] == pytest.approx(agreement, abs=1e-6)
        assert sum(meter["n"] for meter in scores["per_meter"].values()) == 200
        assert scores["per_source"]["synthetic"]["n"] == 200
    assert results["parameters"] == 189_642
    assert results["files"]["cnn32_float.tflite"]["sets"]["test"]["agreement"] == 1
    assert results["files"]["cnn32_quantized.tflite"]["bytes"] < 0.3 * results["files"]["cnn32_float.tflite"]["bytes"]


def test_the_page_shows_the_surest_errors_of_the_recommended_file(trained_run):
    outcome, _, splits = trained_run
    page = (outcome.run_dir / "report.html").read_text()
    saved = json.loads((outcome.run_dir / "worst_readings.json").read_text())
    assert saved["file"] == outcome.results["recommended"] == "cnn32_quantized.tflite"
    meters = {meter["meter"]: meter for meter in saved["meters"]}
    scores = outcome.results["files"]["cnn32_quantized.tflite"]["sets"]["test"]
    pool, test = splits.pool, splits.measured["test"]
    content = (outcome.run_dir / "cnn32_quantized.tflite").read_bytes()
    wrong = evaluation.tflite_logits(content, pool.images(test)).argmax(axis=1) != pool.classes(test)
    assert len(meters) == 15
    for name, meter in meters.items():
        mine = pool.meter_ids[test] == pool.meter_names.index(name)
        assert (meter["n"], meter["wrong"]) == (mine.sum(), wrong[mine].sum())
        assert all(picture["png"] in page for picture in meter["pictures"])
    assert f"<b>{100 * scores['accuracy']:.1f} %</b>" in page


def test_hundred_classes_and_test_sources_are_measured_on_the_ring(tiny):
    held = {"name": "held", "type": "synthetic", "count": 50}
    settings = tiny(nb_classes=100, input_channels=3, test_sources=[held], seed=3)
    (outcome,) = train(settings)
    sets = outcome.results["files"]["cnn32_quantized.tflite"]["sets"]
    assert list(sets) == ["test", "held"]
    assert sets["held"]["n"] == 50
    assert {"accuracy", "within_0.1", "within_0.2", "digit", "agreement"} <= set(sets["held"])
    assert "_100cls_RGB_PTQ_" in outcome.run_dir.name
    table = session.summary([outcome])
    assert "within 0.1" in table
    assert f"{sets['held']['within_0.1']:.4f}" in table


@pytest.mark.slow
def test_same_seed_same_figures(tiny, undrawn):
    first, second = (train(tiny(epochs=3, augment=True))[0] for _ in range(2))
    assert figures(first.results) == figures(second.results)
    assert first.run_dir != second.run_dir
    (other,) = train(tiny(epochs=3, augment=True, seed=7))
    assert figures(other.results) != figures(first.results)


def test_without_quantisation_only_the_float_file_comes_out(already_trained, tiny):
    (outcome,) = train(tiny(quantize_model=False))
    assert list(outcome.results["files"]) == ["best_model.keras", "cnn32_float.tflite"]
    assert "_FLOAT_" in outcome.run_dir.name


def test_traits_override_the_flags_for_that_model_alone(already_trained, tiny, monkeypatch, caplog):
    small = models.get("cnn32")
    validator = models.Architecture("high_accuracy_validator", small.build, quantizable=False)
    monkeypatch.setattr(models, "get", {"cnn32": small, "high_accuracy_validator": validator}.__getitem__)
    caplog.set_level("INFO")
    outcomes = train(tiny(), ["high_accuracy_validator", "cnn32"])
    assert [outcome.results["mode"] for outcome in outcomes] == ["FLOAT", "PTQ"]
    saved = [json.loads((outcome.run_dir / "settings.json").read_text())["settings"] for outcome in outcomes]
    assert [one["model_architecture"] for one in saved] == ["high_accuracy_validator", "cnn32"]
    papers = json.loads((outcomes[0].run_dir / "manifest.json").read_text())["files"][0]["training"]
    assert papers["settings_sha256"] == hashlib.sha256(json.dumps(saved[0], indent=2).encode()).hexdigest()
    assert caplog.text.count("high_accuracy_validator is never quantised") == 1


def test_one_that_fails_does_not_stop_the_others(already_trained, tiny, monkeypatch):
    def broken(input_shape, nb_classes):
        raise RuntimeError("out of luck")

    good = models.get("cnn32")
    bad = models.Architecture("bad", broken, quantizable=True)
    monkeypatch.setattr(models, "get", {"cnn32": good, "bad": bad}.__getitem__)
    outcomes = train(tiny(), ["bad", "cnn32"])
    assert outcomes[0].results is None
    assert outcomes[0].error == "RuntimeError: out of luck"
    assert outcomes[1].results is not None
    assert "bad FAILED: RuntimeError: out of luck" in session.summary(outcomes)


def test_a_killed_process_is_a_row_that_says_how_to_go_on(tiny, monkeypatch):
    monkeypatch.setattr(session, "_in_process", crash)
    outcomes = session.train_side_by_side(["cnn32", "digit_recognizer_v6"], tiny(), session.Options(), 2)
    assert [(outcome.architecture, outcome.results) for outcome in outcomes] == [
        ("cnn32", None),
        ("digit_recognizer_v6", None),
    ]
    assert {outcome.error for outcome in outcomes} == {
        "its process ended without a word (out of memory?); go on with train.py --resume and its run folder, if the log"
        " above names one"
    }


def test_an_interrupted_process_waits_for_no_training_beside_it(tiny, monkeypatch):
    monkeypatch.setattr(session, "_in_process", hang)

    def interrupt():
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A background process of a shell has the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            session.train_side_by_side(["cnn32"] * 3, tiny(), session.Options(), 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == []


def test_a_full_disk_is_said_in_one_line_with_what_to_do(tiny, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "Can't close file (file write failed: time = ...)")

    monkeypatch.setattr(session.training, "fit", full)
    (outcome,) = train(tiny())
    assert "No space left on device; mend that, then go on with train.py --resume" in outcome.error
    assert "Traceback" not in caplog.text


def test_a_run_that_lacks_its_page_alone_is_told_how_to_make_it(tiny, monkeypatch):
    def full(run_dir):
        raise OSError(28, "No space left on device", str(run_dir / "report.html"))

    monkeypatch.setattr(session.report_page, "write", full)
    settings = tiny(epochs=1)
    (outcome,) = train(settings)
    assert "report.html: No space left on device" in outcome.error
    (run_dir,) = runs.Path(settings.output_dir).iterdir()
    assert {path.name for path in run_dir.iterdir()} == FILES - {"report.html"}
    with pytest.raises(runs.RunError, match=r"nothing to resume; report\.py makes its page anew"):
        session.resume(run_dir, session.Options())


def test_a_failed_conversion_leaves_no_quantised_file_and_no_results(already_trained, tiny, monkeypatch):
    convert, calls = export.integer_tflite, []

    def refuse(*given):
        # The first one is the trial before the training.
        calls.append(given)
        if len(calls) > 1:
            raise export.ExportError("tensor x stayed float")
        return convert(*given)

    monkeypatch.setattr(export, "integer_tflite", refuse)
    (outcome,) = train(tiny())
    assert outcome.error == "tensor x stayed float"
    (run_dir,) = (path for path in (runs.Path(tiny().output_dir)).iterdir())
    names = {path.name for path in run_dir.iterdir()}
    assert "best_model.keras" in names
    assert not names & {"cnn32_quantized.tflite", "results.json"}


def test_what_cannot_be_converted_is_refused_before_the_training(undrawn, tiny, monkeypatch):
    def channels_first(input_shape, nb_classes):
        image, x = _blocks.image_input(input_shape)
        x = keras.layers.MaxPooling2D(4, data_format="channels_first")(_blocks.conv_bn(x, 8))
        return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="odd")

    odd = models.Architecture("odd", channels_first, quantizable=True)
    monkeypatch.setattr(models, "get", lambda name: odd)
    (outcome,) = train(tiny(nb_classes=100), ["odd"])
    assert "odd can't be quantised" in outcome.error and "TRANSPOSE" in outcome.error
    assert "set QUANTIZE_MODEL = False" in outcome.error
    assert not runs.Path(tiny().output_dir).exists()
    (outcome,) = train(tiny(nb_classes=100, quantize_model=False), ["odd"])
    assert "odd_float.tflite" in outcome.results["files"]


def test_checkpoints_are_kept_on_demand(undrawn, tiny):
    (outcome,) = train(tiny(), keep_checkpoints=True)
    kept = {path.name for path in (outcome.run_dir / "checkpoints").iterdir()}
    # The note that keeps a resumed run from calibrating twice is there if a temperature was found.
    assert kept - {"temperature.json"} == {"epoch_000001.npz"}


def test_a_lost_interruption_ends_a_training_with_the_next_batch(tiny, ctrl_c, monkeypatch):
    start_epoch = training._start_epoch
    monkeypatch.setattr(training, "_start_epoch", lambda *arguments: ctrl_c.lost(start_epoch(*arguments)))
    settings = tiny()
    assert exit_code("train.py", lambda: len(train(settings)), "stopped") == 130
    (run_dir,) = runs.Path(settings.output_dir).iterdir()
    assert not (run_dir / runs.TRAINING_LOG_FILE).exists()


def test_an_interruption_that_became_another_error_is_no_failed_model(tiny, ctrl_c, monkeypatch):
    monkeypatch.setattr(training, "_start_epoch", ctrl_c.as_another_error)
    assert exit_code("train.py", lambda: len(train(tiny())), "stopped") == 130


def cut_power(monkeypatch) -> None:
    """From now on, runs end after training, before the first file for a device."""
    monkeypatch.setattr(export, "float_tflite", lambda model: (_ for _ in ()).throw(RuntimeError("power cut")))


@pytest.mark.parametrize(("split_by", "measured"), [("cluster", 18), ("image", 24)])
def test_what_a_run_began_with_had_learnt_is_on_its_record_and_not_measured_on(
    undrawn, tiny, tmp_path, picture_folder, monkeypatch, split_by, measured
):
    folder = picture_folder("own", {"a": 120})
    # Copies: split by image, the model learns those of what is measured on.
    shutil.copytree(folder / "a", folder / "b")
    own = {"name": "own", "type": "filename", "path": str(folder)}
    settings = tiny(data_sources=[own], split_by=split_by, start_from=str(tmp_path / "start"))
    start = tmp_path / "start" / runs.BEST_MODEL_FILE
    start.parent.mkdir()
    models.get("cnn32").build((32, 20, 1), 10).save(start)
    splits = loader.load(settings)
    held_out = splits.measured["test"]
    assert len(held_out) == 24
    marks = splits.marks[held_out[:3]]
    runs.save_learnt(start.parent, marks)
    cut_power(monkeypatch)
    outcome = session._in_process("cnn32", settings, session.Options())
    assert "power cut" in outcome.error
    monkeypatch.undo()
    (run_dir,) = (tmp_path / "exported").iterdir()
    assert np.isin(marks, runs.learnt(run_dir / runs.BEST_MODEL_FILE)).all()
    # The run's own record says what that had learnt.
    shutil.rmtree(start.parent)
    outcome = session.resume(run_dir, session.Options())
    assert outcome.results["files"][runs.BEST_MODEL_FILE]["sets"]["test"]["n"] == measured, outcome.error


def test_resume_finishes_a_run_whose_export_failed(undrawn, tiny, monkeypatch):
    settings = tiny(epochs=2)
    (whole,) = train(settings)
    cut_power(monkeypatch)
    (broken,) = train(settings, tuned_by={"trial": 3})
    monkeypatch.undo()
    assert broken.results is None
    (run_dir,) = (path for path in runs.Path(settings.output_dir).iterdir() if path != whole.run_dir)
    log = run_dir / runs.TRAINING_LOG_FILE
    # As if each of the two epochs had taken 1,000 seconds.
    log.write_text(re.sub(r"[\d.]+$", "1000", log.read_text(), flags=re.MULTILINE))
    outcome = session.resume(run_dir, session.Options())
    assert outcome.run_dir == run_dir
    assert outcome.results["timing"]["training_s"] == 2000 < outcome.results["timing"]["run_s"] < 2600
    # Where the settings came from is not forgotten over the break.
    assert figures(outcome.results) == {**figures(whole.results), "tuned_by": {"trial": 3}}
    with pytest.raises(runs.RunError, match="finished"):
        session.resume(run_dir, session.Options())


def test_a_trained_run_is_finished_without_its_teacher(undrawn, tiny, monkeypatch, tmp_path):
    teacher, settings = tmp_path / "teacher.keras", tiny(epochs=2)
    models.get("cnn32").build(settings.input_shape, settings.nb_classes).save(teacher)
    settings = dataclasses.replace(settings, teachers=[str(teacher)])
    (whole,) = train(settings)
    cut_power(monkeypatch)
    train(settings)
    monkeypatch.undo()
    (run_dir,) = (path for path in runs.Path(settings.output_dir).iterdir() if path != whole.run_dir)
    teacher.unlink()
    assert figures(session.resume(run_dir, session.Options()).results) == figures(whole.results)


def test_resume_from_another_folder_says_what_relative_paths_are_taken_from(
    tiny, tmp_path, picture_folder, monkeypatch
):
    picture_folder("own", {"a": 120})
    cut_power(monkeypatch)
    monkeypatch.chdir(tmp_path)
    settings = tiny(data_sources=[{"name": "own", "type": "filename", "path": "own"}])
    train(settings)
    (run_dir,) = runs.Path(settings.output_dir).iterdir()
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(DataError, match=r"folder own not found.*the folder it was started in: start --resume there"):
        session.resume(run_dir, session.Options())


def test_resume_leaves_a_run_alone_that_was_finished_meanwhile(undrawn, tiny, monkeypatch):
    cut_power(monkeypatch)
    settings = tiny(epochs=1)
    train(settings)
    monkeypatch.undo()
    (run_dir,) = runs.Path(settings.output_dir).iterdir()
    load, finished = loader.load, []

    def load_slowly(settings, model_file):
        if not finished:
            finished.append(True)
            finished.append(session.resume(run_dir, session.Options()))
        return load(settings, model_file=model_file)

    monkeypatch.setattr(loader, "load", load_slowly)
    outcome = session.resume(run_dir, session.Options())
    assert finished[1].results and "this run is finished" in outcome.error
    assert json.loads((run_dir / runs.RESULTS_FILE).read_text()) == finished[1].results


def test_resume_does_not_start_over_on_a_trained_network(tiny, monkeypatch):
    cut_power(monkeypatch)
    settings = tiny(checkpoint_epochs=0)
    train(settings)
    (run_dir,) = runs.Path(settings.output_dir).iterdir()
    network = (run_dir / runs.BEST_MODEL_FILE).read_bytes()
    with pytest.raises(runs.RunError, match="CHECKPOINT_EPOCHS = 0 left no checkpoint"):
        session.resume(run_dir, session.Options())
    assert (run_dir / runs.BEST_MODEL_FILE).read_bytes() == network


def test_resume_notices_changed_pictures(tiny, monkeypatch, picture_folder):
    folder = picture_folder("own", {"a": 60})
    settings = tiny(data_sources=[{"name": "own", "type": "filename", "path": str(folder)}])
    cut_power(monkeypatch)
    train(settings)
    (run_dir,) = runs.Path(settings.output_dir).iterdir()
    next((folder / "a").iterdir()).unlink()
    with pytest.raises(DataError, match="the pictures or labels have changed"):
        session.resume(run_dir, session.Options())


def test_summary_of_a_run(trained_run):
    outcome, _, _ = trained_run
    text = session.summary([outcome, session.Outcome("other", None, None, "no memory")])
    assert "189,642 parameters, 4,741,632 multiply-accumulates" in text
    assert "other FAILED: no memory" in text
    assert "cnn32: the file for tflite_micro is cnn32_quantized.tflite" in text


def test_a_run_without_a_recommended_confidence_says_what_that_takes(trained_run):
    results = {**trained_run[0].results, "recommended_confidence": None}
    text = session.summary([session.Outcome("cnn32", None, results)])
    assert "no confidence is recommended: it takes 200 validation pictures, 99.5% right" in text


@pytest.mark.parametrize(
    ("then", "data", "weight", "recorded", "said"),
    [
        *(("own", "own", 1.0, False, True), ("own", "own/a", 1.0, False, True), ("own/a", "own", 1.0, False, True)),
        *(("own/b", "own/a", 1.0, False, False), ("own", "own", 0.0, False, False)),
        # The loader knows its pictures.
        ("own", "own", 1.0, True, False),
    ],
)
@pytest.mark.parametrize("since", ["", "fine_tuned_from", "START_FROM"])
def test_what_is_kept_aside_of_pictures_the_model_was_trained_on_is_no_measure(
    tiny, tmp_path, picture_folder, caplog, then, data, weight, recorded, said, since
):
    picture_folder("own", {"a": 120})
    own = {"name": "own", "type": "filename", "path": str(tmp_path / then), "weight": weight}
    settings = tiny()
    settings = dataclasses.replace(settings, data_sources=[*settings.data_sources, own])
    runs.save_settings(tmp_path, settings, "")
    if recorded:
        runs.save_learnt(tmp_path, np.empty(0, np.uint64))
    model = tmp_path / runs.BEST_MODEL_FILE
    if since:
        (tmp_path / "since").mkdir()
        begun = tiny(start_from=str(tmp_path) if since == "START_FROM" else "")
        taught = {since: str(model)} if since == "fine_tuned_from" else {}
        runs.save_settings(tmp_path / "since", begun, "", **taught)
        runs.save_learnt(tmp_path / "since", np.empty(0, np.uint64))
        model = tmp_path / "since" / runs.BEST_MODEL_FILE
    again = dataclasses.replace(
        settings, data_sources=[*settings.data_sources[:-1], {**own, "path": str(tmp_path / data), "weight": 300.0}]
    )
    splits = loader.load(again, ["own"], aside_from=100)
    assert len(splits.measured["own (kept aside)"]) == 36
    session._warn_of_learnt(model, Plan(new=("own",)), again, splits)
    assert ('may have learnt what is kept aside, so "own (kept aside)" looks better' in caplog.text) == said
    assert "is in no run's folder" not in caplog.text
    session._warn_of_learnt(tmp_path / "own" / "copied.keras", Plan(new=("own",)), again, splits)
    assert "copied.keras is in no run's folder: what it has learnt is not on record" in caplog.text


@pytest.mark.parametrize(("clusters", "said"), [([5, 5, 5, 5], ["4 pictures of new are only 1 "]), ([5, 5, 5, 8], [])])
def test_near_twins_are_told_before_they_are_learnt(clusters, said, caplog):
    pool = SimpleNamespace(source_ids=np.array([0, 1, 1, 1, 1]))
    splits = SimpleNamespace(pool=pool, clusters=np.array([0, *clusters]), source=["old", "new"].index)
    session._warn_of_twins(Plan(new=("new",)), splits)
    assert [text for text in said if text in caplog.text] == said
    assert len(caplog.messages) == len(said)


@pytest.mark.parametrize(
    ("n", "before", "now", "said"),
    [
        (1000, 0.98, 0.974, True),
        (1000, 0.98, 0.976, False),
        # One picture is lost by chance, though it be a point and more.
        (60, 1.0, 59 / 60, False),
        (60, 1.0, 58 / 60, True),
        (60, 0.9, 1.0, False),
    ],
)
def test_a_lesson_that_makes_a_set_worse_is_told(n, before, now, said, caplog):
    sets = {"own (kept aside)": {"n": n, "within_0.1": now}}
    old = {"own (kept aside)": {"n": n, "within_0.1": before}}
    files = {"m.tflite": {"sets": sets}}
    session._warn_of_losses({"nb_classes": 100, "recommended": "m.tflite", "files": files, "before": {"sets": old}})
    told = f"m.tflite reads own (kept aside) worse: within 0.1 {now:.4f}, before {before:.4f}; look for wrong"
    assert (told in caplog.text) == bool(caplog.messages) == said
