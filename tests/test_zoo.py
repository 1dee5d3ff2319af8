"""The models that come with the project: whole, loadable, and as good as their papers say."""

import hashlib
import json
import re

import pytest

from utils import evaluation, frontier, labels, loader, manifest, model_choice, model_files, recognizers
from utils import settings as settings_module

MODELS = sorted(path.parent for path in frontier.ZOO.glob("*/results.json"))


@pytest.fixture(params=MODELS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


def results_of(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_there_are_tenths_and_digits_and_a_teacher():
    assert {"v15_tenths", "v7_tenths", "v6_tenths", "v7_digits", "high_accuracy_validator"} <= {p.name for p in MODELS}


def test_its_files_are_those_of_its_papers(folder):
    papers = json.loads((folder / "manifest.json").read_text())
    manifest.check(papers)
    for entry in papers["files"]:
        content = (folder / entry["name"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["bytes"])
        count, origin = entry["classes"]["count"], manifest.Training(**entry["training"])
        made = manifest.file_entry(entry["name"], content, count, None, entry["scores"], origin)
        for key in ("input", "output", "classes", "operators"):
            assert made[key] == entry[key]
    assert (folder / results_of(folder)["recommended"]).is_file()


def test_it_can_be_taught_further_without_a_word_about_its_pictures(folder):
    file = model_choice.find(folder, folder)
    stored = json.loads((folder / "settings.json").read_text())["settings"]
    declared = model_choice.declared(file)
    assert declared == {name: stored[name] for name in declared}
    assert settings_module.from_dict(stored).data_sources == stored["data_sources"]
    assert file.stat().st_size < 20 * 2**20
    assert model_files.identity(model_files.load(file)).nb_classes == stored["nb_classes"]


def test_its_means_count_drawn_digits_as_one_meter(folder):
    for entry in results_of(folder)["files"].values():
        for scores in entry["sets"].values():
            assert not any(meter.startswith("synthetic/") for meter in scores["per_meter"])
            assert scores["mean_over_meters"] == evaluation.mean_over(scores["per_meter"])


def test_its_first_reading(folder, rng):
    model = recognizers.load(folder, folder)
    numbers, sure = recognizers.decide(model, rng.integers(0, 256, (2, *model.input_shape), "uint8"))
    assert ((numbers >= 0) & (numbers < len(model.names)) & (sure > 0) & (sure <= 1)).all()
    assert model.threshold == results_of(folder)["recommended_confidence"]


@pytest.mark.slow
def test_its_score_on_unseen_meters(folder, real_data):
    """Pictures of these meters were in no training; see README.md."""
    results = results_of(folder)
    stored = json.loads((folder / "settings.json").read_text())["settings"]
    assert not any("unseen" in source.get("path", "") for source in stored["data_sources"])
    unseen = {"name": "unseen_meters", "type": "filename", "path": str(real_data / "unseen_meters")}
    own = {"name": "synthetic", "type": "synthetic", "count": 100}
    splits = loader.load(settings_module.from_dict({**stored, "data_sources": [own], "test_sources": [unseen]}))
    indices = splits.measured["unseen_meters"]
    name, metric = results["recommended"], labels.main_metric(stored["nb_classes"])
    logits = evaluation.file_logits(name, (folder / name).read_bytes(), splits.pool.images(indices))
    found = evaluation.metrics(logits.argmax(axis=1), splits.pool.tenths[indices], stored["nb_classes"])
    expected = results["files"][name]["sets"]["unseen_meters"]
    # Float kernels round differently from machine to machine, the integer ones don't.
    assert found[metric] == pytest.approx(expected[metric], abs=0.001)


def test_the_integer_file_reads_new_meters_like_the_float_one(folder):
    files = results_of(folder)["files"]
    metric = labels.main_metric(results_of(folder)["nb_classes"])
    scores = {name: entry["sets"]["unseen_meters"][metric] for name, entry in files.items()}
    for name in scores:
        if name.endswith("_quantized.tflite"):
            assert scores[name] == pytest.approx(scores["best_model.keras"], abs=0.003)


def test_readme_says_what_its_files_for_esp_dl_gain_or_lose():
    readme = (frontier.ZOO.parents[1] / "README.md").read_text()
    points = float(re.search(r"those of the zoo at\s+most ([0-9.]+);", readme)[1])
    changes = []
    for results in map(results_of, MODELS):
        keras = results["files"]["best_model.keras"]["sets"]
        for name in (name for name in results["files"] if name.endswith(".espdl") and results["nb_classes"] == 100):
            sets = results["files"][name]["sets"]
            changes += [abs(scores["within_0.1"] - keras[key]["within_0.1"]) for key, scores in sets.items()]
    assert len(changes) == 8
    assert points - 0.01 < 100 * max(changes) <= points
