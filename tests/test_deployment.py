import dataclasses
import json

import keras
import numpy as np
import pytest

import models
from utils import deployment, espdl, evaluation, gate, loader, manifest, micro, quantization, session, targets
from utils import settings as settings_module
from utils.espdl_file import EspdlError


def train(settings):
    (outcome,) = session.train(["cnn32"], settings, session.Options(), loader.load(settings))
    return outcome


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """A QAT run for all devices."""
    source = {"name": "synthetic", "type": "synthetic", "count": 2000}
    settings = settings_module.load(
        data_sources=[source], epochs=5, qat_epochs=1, batch_size=64, nb_classes=100, augment=False,
        calibration_images=200, use_qat=True, deploy_targets=list(targets.TARGETS), model_version="0007",
        output_dir=str(tmp_path_factory.mktemp("everywhere")),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # After five epochs none would be recommended, and the papers are to have one.
        patch.setattr(session.confidence, "recommended", lambda *_: 0.8125)
        outcome = train(settings)
    assert outcome.error == ""
    return outcome, settings


@pytest.mark.slow
def test_every_device_gets_its_file(everywhere):
    outcome, _ = everywhere
    files = {name for name in outcome.results["files"] if name.endswith(".tflite")}
    expected = {"cnn32_float.tflite", "cnn32_quantized.tflite", "cnn32_esphome.tflite", "dig-class100_0007_s2_q.tflite"}
    assert files - {"cnn32_ptq.tflite", "cnn32_qat.tflite"} == expected and len(files) == 5
    assert {name: verdict["accepted"] for name, verdict in outcome.results["devices"].items()} == {
        "tflite_micro": True, "ai_on_the_edge": True, "esphome": True,
    }  # fmt: skip
    text = (outcome.run_dir / "cnn32_esphome.txt").read_text()
    assert "Unique operator types" in text and "Recommended tensor arena: not measured" not in text
    assert "Recommended confidence: 0.8125\n" in text
    assert [path.name for path in outcome.run_dir.glob("*.txt")] == ["cnn32_esphome.txt"]
    assert session.refusals(outcome) == []
    assert outcome.results["recommended"] == "cnn32_quantized.tflite"
    assert outcome.run_dir.name.startswith("cnn32_100cls_GRAY_QAT_")


@pytest.mark.slow
def test_all_quantised_files_of_a_run_read_nearly_alike(everywhere):
    outcome, _ = everywhere
    names = ("cnn32_quantized.tflite", "cnn32_esphome.tflite", "dig-class100_0007_s2_q.tflite")
    scores = [outcome.results["files"][name]["sets"]["test"] for name in names]
    assert scores[0]["accuracy"] == pytest.approx(scores[1]["accuracy"], abs=0.005)
    assert scores[0]["accuracy"] == pytest.approx(scores[2]["accuracy"], abs=0.03)
    assert all(0 <= score["ties"] < 0.2 for score in scores)
    assert all(score["at_recommended_confidence"]["coverage"] < 1 for score in scores)


@pytest.mark.slow
def test_manifest_tells_what_a_firmware_needs(everywhere):
    outcome, _ = everywhere
    papers = json.loads((outcome.run_dir / "manifest.json").read_text())
    manifest.check(papers)
    by_name = {entry["name"]: entry for entry in papers["files"]}
    entry = by_name["cnn32_quantized.tflite"]
    assert entry["input"]["encoding"] == "int8 = pixel - 128"
    assert (entry["input"]["scale"], entry["input"]["zero_point"]) == (1 / 128, 0)
    assert entry["scores"]["test"]["accuracy"] == outcome.results["files"][entry["name"]]["sets"]["test"]["accuracy"]
    assert by_name["dig-class100_0007_s2_q.tflite"]["input"]["channels"] == 3
    assert by_name["cnn32_esphome.tflite"]["targets"] == ["esphome"]
    modes = {name: entry["training"]["mode"] for name, entry in by_name.items()}
    lesser = "cnn32_ptq.tflite" if "cnn32_ptq.tflite" in modes else "cnn32_qat.tflite"
    better, worse = ("QAT", "PTQ") if lesser == "cnn32_ptq.tflite" else ("PTQ", "QAT")
    assert modes == {
        "cnn32_float.tflite": "FLOAT", "cnn32_quantized.tflite": better, "dig-class100_0007_s2_q.tflite": better,
        "cnn32_esphome.tflite": better, lesser: worse,
    }  # fmt: skip
    assert all(entry["recommended_confidence"] == 0.8125 for entry in papers["files"])


@pytest.mark.slow
def test_golden_pictures_prove_the_files(everywhere):
    outcome, _ = everywhere
    quantised = [name for name in outcome.results["files"] if name.endswith(".tflite") and "float" not in name]
    assert len(quantised) == 4
    for name in (name.removesuffix(".tflite") for name in quantised):
        content = (outcome.run_dir / f"{name}.tflite").read_bytes()
        with np.load(outcome.run_dir / "golden" / f"{name}.npz") as vectors:
            run = micro.run if vectors["made_with"] == "TFLite Micro" else micro.reference
            assert len(vectors["inputs"]) == 16
            np.testing.assert_array_equal(run(content, vectors["inputs"]), vectors["outputs"])
        assert (outcome.run_dir / "golden" / f"{name}.h").read_text().startswith("/* Golden pictures")


@pytest.mark.parametrize("better", ["ptq", "qat"])
def test_devices_get_the_better_state_of_quantisation_aware_training(
    trained_run, already_trained, tiny, monkeypatch, better, caplog
):
    trained, for_chips, made = [], [], []

    def spoil(quantized):
        weights = quantized.get_layer("logits").get_weights()
        quantized.get_layer("logits").set_weights([-weights[0], weights[1]])
        return quantized

    if better == "qat":  # what is spoilt before the training, the training mends
        quantize = deployment.fake_quant.quantize
        monkeypatch.setattr(deployment.fake_quant, "quantize", lambda *given: spoil(quantize(*given)))
    monkeypatch.setattr(deployment.training, "fit_quantized", lambda quantized, *_: trained.append(spoil(quantized)))
    refused = gate.Verdict("esp32s3", False, ("no such operator",), (), None, "not converted")

    def make_espdl(model, quantized, *_):
        for_chips.append(quantized)
        yield "cnn32_esp32s3.espdl", None, refused

    facts = deployment.facts
    monkeypatch.setattr(deployment.espdl_deployment, "make", make_espdl)
    monkeypatch.setattr(deployment, "facts", lambda files: made.extend(files) or facts(files))
    calls = []
    for name in ("fold", "taken_out"):
        act = getattr(deployment.temperature, name)
        monkeypatch.setattr(
            deployment.temperature,
            name,
            lambda *given, act=act, name=name, **by: calls.append(name) or act(*given, **by),
        )
    _, settings, splits = trained_run
    devices = {"deploy_targets": ["tflite_micro", "esphome"], "esp_dl_quantize": True}
    settings = tiny(use_qat=True, **devices, data_sources=settings.data_sources, augment=False)
    (outcome,) = session.train(["cnn32"], settings, session.Options(), splits)
    # Trained on at the size of logits that training asks for, then made to say how sure it is once more.
    assert calls == ["fold", "taken_out", "fold"]
    assert (for_chips[0] is trained[0]) == (better == "qat")
    assert [file.kind for file in made if file.verdict == refused] == [better]
    lesser = f"cnn32_{'qat' if better == 'ptq' else 'ptq'}.tflite"
    score = {name: entry["sets"]["test"]["accuracy"] for name, entry in outcome.results["files"].items()}
    assert score["cnn32_quantized.tflite"] == score["cnn32_esphome.tflite"] > score[lesser] + 0.1
    assert outcome.results["recommended"] == "cnn32_quantized.tflite"
    assert lesser not in session.summary([outcome]).split("the file for")[1]
    assert ("that stays" in caplog.text) == (better == "ptq")
    assert f"{lesser} reads only " in caplog.text


def test_quantisation_aware_training_leaves_it_as_sure_as_the_model(trained_run, monkeypatch):
    outcome, settings, splits = trained_run
    model = keras.models.load_model(outcome.run_dir / "best_model.keras", compile=False, safe_mode=True)
    # As of an old model that was made to say how sure it is on other pictures.
    model.layers[-1].set_weights([2 * weight for weight in model.layers[-1].get_weights()])
    monkeypatch.setattr(deployment.training, "fit_quantized", lambda *_: None)
    settings = dataclasses.replace(settings, use_qat=True)
    files = deployment.make(model, splits, settings, quantization.resolve(settings, model.name, True))
    (after,) = [file for file in files if file.kind == "qat"]
    images = splits.pool.images(splits.validation)
    expected, logits = evaluation.keras_logits(model, images), evaluation.tflite_logits(after.content, images)
    # 0.80, as rounding costs some readings; asked of the validation pictures it was 0.40.
    assert (logits * expected).sum() / (expected**2).sum() == pytest.approx(0.8, abs=0.2)


def test_of_equal_states_that_before_the_training_stays_and_a_refused_one_is_not_compared(trained_run):
    outcome, _, splits = trained_run
    content = (outcome.run_dir / "cnn32_quantized.tflite").read_bytes()
    accepted, refused = (gate.Verdict("esphome", taken, (), (), None, "") for taken in (True, False))
    before, after = (deployment.DeviceFile("a.tflite", content, kind, accepted, "a.txt") for kind in ("ptq", "qat"))
    assert deployment._ranked(before, after, splits) == (before, after)
    worse = dataclasses.replace(before, verdict=refused)
    assert deployment._ranked(worse, after, splits) == (after, worse)
    assert deployment._to_compare(after, "a_qat.tflite") == [deployment.DeviceFile("a_qat.tflite", content, "qat")]
    assert deployment._to_compare(dataclasses.replace(after, verdict=refused), "a_qat.tflite") == []


@pytest.mark.parametrize("error", [espdl.EspdlExportError, EspdlError])
def test_a_chip_whose_file_cannot_be_made_leaves_the_others_theirs(already_trained, tiny, monkeypatch, error):
    pytest.importorskip("esp_ppq")

    def fail(*_):
        raise error("ESP-DL conversion failed: no such operator")

    monkeypatch.setattr(espdl, "export", fail)
    outcome = train(tiny(esp_dl_quantize=True, esp_dl_targets=["esp32", "esp32s3"]))
    assert (outcome.run_dir / "cnn32_quantized.tflite").is_file()
    assert not list(outcome.run_dir.glob("*.espdl"))
    reason = "cnn32_esp32s3.espdl: ESP-DL conversion failed: no such operator"
    assert f"esp32s3 refuses {reason}" in session.summary([outcome])
    assert len(session.refusals(outcome)) == 2


def test_the_file_of_a_device_is_recommended_where_there_is_one(already_trained, tiny):
    outcome = train(tiny(deploy_targets=["esphome", "esphome"]))
    assert outcome.results["recommended"] == "cnn32_esphome.tflite"
    assert "cnn32_quantized.tflite" in outcome.results["files"]


def test_a_refused_file_is_not_written_and_the_run_says_why(already_trained, tiny, monkeypatch):
    def refuse(target, content, *_):
        return gate.Verdict(target, False, ("too large for the chip",), (), None, "operator table")

    monkeypatch.setattr(gate, "check", refuse)
    outcome = train(tiny())
    assert not (outcome.run_dir / "cnn32_quantized.tflite").exists()
    assert (outcome.run_dir / "cnn32_float.tflite").exists()
    assert outcome.results["devices"]["tflite_micro"]["accepted"] is False
    text = "tflite_micro refuses cnn32_quantized.tflite: too large for the chip"
    assert session.refusals(outcome) == [text]
    assert text in session.summary([outcome])
    assert "the file for tflite_micro" not in session.summary([outcome])


def test_what_a_device_will_refuse_is_said_before_training(tiny, caplog):
    settings = tiny(deploy_targets=["tflite_micro", "ai_on_the_edge"], nb_classes=100)
    for name in ("digit_recognizer_v4", "digit_recognizer_v6"):
        deployment.foresee(models.get(name).build(settings.input_shape, 100), settings)
    (text,) = (text for text in caplog.messages if "will refuse" in text)
    assert text.startswith("ai_on_the_edge will refuse digit_recognizer_v4 once it is trained: operator MEAN")
    # Of ten digits it needs probabilities, which the network gets for this device alone.
    caplog.clear()
    settings = tiny(deploy_targets=["ai_on_the_edge"], label_spread=5.0)
    deployment.foresee(models.get("digit_recognizer_v6").build(settings.input_shape, 10), settings)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("pooling", "refused"),
    [
        (
            keras.layers.GlobalMaxPooling2D(name="top"),
            "esp32p4 will refuse own once it is trained: layer top is a global",
        ),
        (keras.layers.MaxPooling2D((32, 20)), None),
        (keras.layers.MaxPooling2D(4), None),
        # Padding is computed with channels first.
        (lambda x: keras.layers.MaxPooling2D(4)(keras.layers.ZeroPadding2D(2)(x)), None),
    ],
)
def test_what_a_chip_will_refuse_is_said_before_training(tiny, caplog, pooling, refused):
    pytest.importorskip("esp_ppq")
    image = keras.Input((32, 20, 1))
    x = keras.layers.Rescaling(1 / 128, offset=-1)(image)
    x = pooling(keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x))
    own = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)), name="own")
    deployment.foresee(own, tiny(esp_dl_quantize=True, esp_dl_targets=["esp32p4", "esp32"]))
    said = [text for text in caplog.messages if "will refuse" in text]
    assert len(said) == bool(refused) and all(text.startswith(refused) for text in said)


def test_few_calibration_pictures_are_warned_about(already_trained, tiny, caplog):
    outcome = train(tiny(data_sources=[{"name": "s", "type": "synthetic", "count": 80}]))
    assert "only 64 training pictures to calibrate on" in caplog.text
    # Eight validation pictures are too few to compare kernels on.
    assert "72 pictures compared" in outcome.results["devices"]["tflite_micro"]["checked_with"]
    assert outcome.results["files"]["cnn32_quantized.tflite"]["sets"]["test"]["n"] == 8


def test_golden_pictures_of_a_name_with_dots_do_not_replace_each_other(trained_run, tmp_path):
    outcome, _, splits = trained_run
    content = (outcome.run_dir / "cnn32_quantized.tflite").read_bytes()
    for kind in ("ptq", "quantized"):
        deployment._write_golden(tmp_path, deployment.DeviceFile(f"meter.v2_{kind}.tflite", content, kind), splits)
    names = {f"meter.v2_{kind}{ending}" for kind in ("ptq", "quantized") for ending in (".h", ".npz")}
    assert {path.name for path in (tmp_path / "golden").iterdir()} == names


def test_without_devices_the_plain_file_comes_out_ungated(already_trained, tiny, monkeypatch):
    monkeypatch.setattr(gate, "check", lambda *_: pytest.fail("nobody asked"))
    outcome = train(tiny(deploy_targets=[], quantized_io_type="float32"))
    assert (outcome.run_dir / "cnn32_quantized.tflite").exists()
    assert outcome.results["devices"] == {}


def test_tflite_micro_is_there_where_the_tests_run():
    assert micro.available()
