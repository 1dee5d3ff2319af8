"""Files as the toolkit itself exports, checks and writes them, from a trained model."""

import dataclasses
import gc
import json
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from keras import layers

from utils import (
    chips,
    espdl,
    espdl_deployment,
    espdl_file,
    espdl_gate,
    espdl_run,
    evaluation,
    fake_quant,
    runs,
    synthetic,
)
from utils.espdl import EspdlExportError
from utils.espdl_file import EspdlError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("esp_ppq") is None, reason="esp-ppq is not installed")]

# The model of these tests is trained for seconds and unsure; the script measure_espdl.py measures good ones.
ENOUGH = 0.94


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Fewer pictures and steps than a user gets: what is tested here doesn't hang on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(espdl, "CALIBRATION_IMAGES", 40)
        patch.setattr(espdl, "TQT_STEPS", 10)
        yield


@pytest.fixture(scope="module")
def trained(trained_run):
    """Model, its fake-quantised clone, splits and settings."""
    outcome, settings, splits = trained_run
    model = keras.models.load_model(outcome.run_dir / runs.BEST_MODEL_FILE, compile=False, safe_mode=True)
    return model, fake_quant.quantize(model, splits.pool.images(splits.train[:200])), splits, settings


@pytest.fixture(scope="module")
def made(trained):
    """What is made of it for every chip: ``{chip: (name, file, verdict)}``."""
    model, quantized, splits, settings = trained
    settings = dataclasses.replace(settings, esp_dl_targets=list(chips.CHIPS), esp_dl_min_agreement=ENOUGH)
    files = espdl_deployment.make(model, quantized, splits, settings)
    return {verdict.target: (name, file, verdict) for name, file, verdict in files}


@pytest.fixture(scope="module")
def pictures(trained):
    """Validation pictures and what Keras reads on them."""
    model, _, splits, _ = trained
    images = splits.pool.images(splits.validation)
    return images, evaluation.keras_logits(model, images)


def check(file, images, reference, chip="esp32s3", **changed):
    given = {"release": file.release, "debug": file.debug, "min_agreement": ENOUGH, **changed}
    return espdl_gate.check(chip, images=images, reference=reference.argmax(axis=1), **given)


def reasons_against(model, images, mode="ptq", **changed):
    """What the gate says of the file that an untrained network gives."""
    reference = evaluation.keras_logits(model, images)
    network = espdl.to_onnx(fake_quant.quantize(model, images))
    file = espdl.export(network, "esp32s3", mode, images[:40], images, reference.argmax(axis=1), {})
    return check(file, images, reference, **changed).reasons


def flat_network(images):
    """An untrained network with what can't fold: batch normalisation behind ReLU and behind pooling."""
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 20, 1))
    x = layers.Rescaling(1 / 128, offset=-1)(image)
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, activation="relu")(x))
    x = layers.BatchNormalization()(layers.MaxPooling2D(4)(x))
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(x)), name="flat")
    for number, layer in enumerate(model.layers):
        if isinstance(layer, layers.BatchNormalization):
            spread = np.random.default_rng(number).uniform(0.3, 3, (4, 8)).astype(np.float32)
            layer.set_weights(spread * [[1], [0.3], [0.2], [1]])
    return model, fake_quant.quantize(model, images)


@pytest.mark.parametrize("chip", chips.CHIPS)
def test_reads_what_keras_reads_on_every_chip(made, pictures, chip):
    name, file, verdict = made[chip]
    images, reference = pictures
    assert name == f"cnn32_{chip}.espdl"
    assert (verdict.accepted, verdict.reasons) == (True, ())
    model = espdl_file.read(file.release)
    logits = espdl_run.logits(model, images)
    assert (logits.argmax(axis=1) == reference.argmax(axis=1)).mean() >= ENOUGH
    assert model.metadata == {"target": chip, "input": "int8 = pixel - 128", "classes": "class = digit"}


def test_the_chips_byte_is_the_pixel_less_128(made, pictures):
    images, _ = pictures
    model = espdl_file.read(made["esp32p4"][1].release)
    (source,) = model.inputs
    assert (source.dtype, source.shape, source.exponents) == ("int8", (1, 32, 20, 1), (-7,))
    bytes_of_the_device = (images[:20].astype(int) - 128).astype(np.int8)
    steps = 2.0 ** model.outputs[0].exponents[0]
    assert np.array_equal(espdl_run.run(model, bytes_of_the_device) * steps, espdl_run.logits(model, images[:20]))


def test_the_logits_differences_are_kept(made, trained, pictures):
    images, reference = pictures
    model = espdl_file.read(made["esp32p4"][1].release)
    logits = espdl_run.logits(model, images)
    sure = np.partition(reference, -2, axis=1)[:, -2:]
    found = np.partition(logits, -2, axis=1)[:, -2:]
    # The two largest: the rest may lie below what the 8 bits reach.
    error = (found[:, 1] - found[:, 0]) - (sure[:, 1] - sure[:, 0])
    assert abs(np.median(error)) < 0.1 * np.median(sure[:, 1] - sure[:, 0])
    # The smallest power of two that leaves no more than 16 % off both ends.
    _, largest = fake_quant.folded(trained[1])
    assert 0.84 <= 127 * 2.0 ** model.outputs[0].exponents[0] / largest < 1.69


def test_test_values_are_in_the_debug_file_only(made):
    file = made["esp32s3"][1]
    release, debug = espdl_file.read(file.release), espdl_file.read(file.debug)
    assert release.test_outputs == {}
    assert set(debug.test_outputs) == {name for node in debug.nodes for name in node.outputs}
    assert espdl_run.differing_vectors(debug) == []


def test_calibration_pictures_of_one_grey_do_not_move_the_inputs_scale(trained):
    _, quantized, splits, _ = trained
    grey = np.full((20, 32, 20, 1), 130, np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None] % 4
    images = splits.pool.images(splits.validation[:50])
    network = espdl.to_onnx(quantized)
    file = espdl.export(network, "esp32s3", "tqt", grey, images, np.zeros(50), {})
    assert espdl_file.read(file.release).inputs[0].exponents == (-7,)


def test_batch_normalisation_that_can_not_fold_is_right_on_the_device(pictures):
    images, _ = pictures
    model, quantized = flat_network(images)
    reference = evaluation.keras_logits(model, images)
    file = espdl.export(espdl.to_onnx(quantized), "esp32", "ptq", images[:40], images, reference.argmax(axis=1), {})
    assert check(file, images, reference, "esp32", min_agreement=0.9).reasons == ()
    logits = espdl_run.logits(espdl_file.read(file.release), images)
    centred = [values - values.mean(axis=1, keepdims=True) for values in (logits, reference)]
    # A constant in the wrong layout would leave nothing of them.
    # Root mean square, since one value beyond its range says nothing of the layout.
    assert np.std(centred[0] - centred[1]) < 0.05 * np.std(centred[1])


def test_padded_averages_are_refused(pictures):
    images, _ = pictures
    image = keras.Input((32, 20, 1))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 128, offset=-1)(image))
    x = layers.AveragePooling2D(3, strides=1, padding="same", name="mean")(x)
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(x)), name="averaged")
    (reason,) = reasons_against(model, images)
    assert reason.startswith("AveragePool")
    assert "pool without padding" in reason


def test_two_rows_that_are_added_make_no_bias(rng):
    keras.utils.set_random_seed(3)
    images = rng.integers(0, 256, (60, 32, 20, 1)).astype(np.uint8)
    image = keras.Input((32, 20, 1))
    x = layers.Flatten()(layers.Conv2D(4, 3, strides=4)(layers.Rescaling(1 / 128, offset=-1)(image)))
    rows = [layers.Dense(10, bias_initializer="ones")(of) for of in (x, layers.Dense(16, activation="relu")(x))]
    model = keras.Model(image, layers.Add()(rows), name="added")
    assert reasons_against(model, images, min_agreement=0.8) == ()


def test_several_layers_may_read_the_picture(rng):
    keras.utils.set_random_seed(3)
    images = rng.integers(0, 256, (60, 32, 20, 1)).astype(np.uint8)
    image = keras.Input((32, 20, 1))
    scaled = layers.Rescaling(1 / 128, offset=-1)(image)
    x = layers.Concatenate()([layers.Conv2D(4, size, strides=4, padding="same")(scaled) for size in (1, 3, (1, 5))])
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(x)), name="branches")
    assert reasons_against(model, images, "mixed", min_agreement=0.8) == ()


def test_what_is_joined_with_the_picture_needs_a_convolution_between():
    keras.utils.set_random_seed(3)
    images = synthetic.draw(100, seed=3).images
    image = keras.Input((32, 20, 3))
    scaled = layers.Rescaling(1 / 128, offset=-1)(image)
    high = layers.Conv2D(8, 3, padding="same", activation="relu")
    x = high(scaled)
    # Values of ten and more, where the picture's end at 1.
    high.set_weights([high.get_weights()[0] * 20, high.get_weights()[1]])

    def joined(picture) -> keras.Model:
        both = layers.MaxPooling2D(4)(layers.Concatenate(name="odd")([picture, x]))
        return keras.Model(image, layers.Dense(10)(layers.Flatten()(both)), name="joined")

    with pytest.raises(EspdlExportError, match=r"^layer odd joins the picture with other values, .*: let a conv"):
        espdl.to_onnx(fake_quant.quantize(joined(layers.MaxPooling2D(1)(scaled)), images))
    assert reasons_against(joined(layers.Conv2D(3, 1)(scaled)), images, min_agreement=0.9) == ()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.Conv2D(8, 3, groups=2, name="odd"), "^layer odd has 2 groups, which can't be converted"),
        (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="odd"), "^layer odd has a depth_multiplier of 2"),
        (lambda: layers.GlobalMaxPooling2D(name="odd"), r"^layer odd .*: take MaxPooling2D\(x.shape\[1:3\]\) and Flat"),
        (lambda: layers.Dense(8, name="odd"), "^layer odd is a dense layer of several rows, .*: take Conv2D"),
        (lambda: layers.Activation("hard_tanh", name="odd"), "^layer odd is a hard_tanh, which .*: take tanh$"),
        (
            lambda: layers.AveragePooling2D(2, 1, "same", name="odd"),
            r"^AveragePool net_\d/odd.* padded on one side: pool",
        ),
        (
            lambda: lambda x: layers.GlobalMaxPooling2D(name="second")(layers.Activation("hard_tanh", name="first")(x)),
            r"^layer first is a hard_tanh, .*; layer second is a global max",
        ),
    ],
)
def test_what_esp_dl_lacks_is_refused_by_name(layer, message, rng):
    images = rng.integers(0, 256, (20, 32, 20, 1)).astype(np.uint8)
    image = keras.Input((32, 20, 1))
    x = layers.Conv2D(8, 3, strides=4)(layers.Rescaling(1 / 128, offset=-1)(image))
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(layer()(x))), name="net")
    with pytest.raises(espdl.EspdlExportError, match=message):
        espdl.to_onnx(fake_quant.quantize(model, images))


def test_mixed_keeps_the_input_in_8_bits_and_says_what_was_tried(trained, pictures):
    _, quantized, splits, _ = trained
    images, reference = pictures
    network, calibration = espdl.to_onnx(quantized), splits.pool.images(splits.train[:40])
    file = espdl.export(network, "esp32s3", "auto", calibration, images, reference.argmax(axis=1), {})
    assert list(file.tried) == ["plain", "corrected", "mixed", "mixed, corrected"]
    assert file.tried[file.recipe] == max(file.tried.values())
    assert "mixed" in file.recipe
    model = espdl_file.read(file.release)
    assert model.inputs[0].dtype == "int8"
    assert [info.dtype for info in model.values.values()].count("int16") >= 2
    assert check(file, images, reference).accepted


def test_a_target_that_would_become_float_is_an_error(trained, pictures):
    _, quantized, _, _ = trained
    images, reference = pictures
    with pytest.raises(EspdlExportError, match="does not know the target esp8266"):
        espdl.export(espdl.to_onnx(quantized), "esp8266", "ptq", images, images, reference.argmax(axis=1), {})


def test_the_gate_refuses_the_file_of_another_chip(made, pictures):
    verdict = check(made["esp32"][1], *pictures, chip="esp32s3")
    assert verdict.reasons == ("the metadata names esp32 instead of esp32s3: the chips' files differ in layout",)


def test_a_tenth_beside_keras_is_read_alike_two_tenths_are_not(rng):
    keras.utils.set_random_seed(3)
    images = rng.integers(0, 256, (60, 32, 20, 1)).astype(np.uint8)
    image = keras.Input((32, 20, 1))
    x = layers.Conv2D(4, 3, strides=4, activation="relu")(layers.Rescaling(1 / 128, offset=-1)(image))
    model = keras.Model(image, layers.Dense(100)(layers.Flatten()(x)), name="tenths")
    network = espdl.to_onnx(fake_quant.quantize(model, images))
    file = espdl.export(network, "esp32s3", "tqt", images[:40], images, np.zeros(60), {})
    logits = espdl_run.logits(espdl_file.read(file.release), images)
    assert check(file, images, np.roll(logits, 1, axis=1), min_agreement=1).accepted
    verdict = check(file, images, np.roll(logits, 2, axis=1), min_agreement=0.01)
    assert verdict.reasons == ("it reads 0.0% of the pictures like the Keras model; 1.0% are needed",)


def test_the_gate_refuses_what_reads_otherwise_than_keras(made, pictures):
    images, reference = pictures
    odd = np.arange(len(reference))[:, None] % 4 == 0
    verdict = check(made["esp32s3"][1], images, np.where(odd, np.roll(reference, 1, axis=1), reference))
    assert not verdict.accepted
    assert "of the pictures like the Keras model; 94.0% are needed" in verdict.reasons[0]


def test_a_file_is_held_against_the_trained_model_by_the_share_of_the_settings(made, trained, monkeypatch):
    model, quantized, splits, settings = trained
    other = keras.models.clone_model(model)
    other.set_weights(
        [*model.get_weights()[:-2], *(np.roll(weight, 1, axis=-1) for weight in model.get_weights()[-2:])]
    )
    monkeypatch.setattr(espdl, "export", lambda *_: made["esp32s3"][1])
    settings = dataclasses.replace(settings, esp_dl_targets=["esp32s3"], esp_dl_min_agreement=0.75)
    ((_, _, verdict),) = espdl_deployment.make(other, quantized, splits, settings)
    (reason,) = verdict.reasons
    assert reason.endswith(" of the pictures like the Keras model; 75.0% are needed")


def test_the_gate_catches_one_flipped_weight(made, pictures):
    file = made["esp32s3"][1]
    model = espdl_file.read(file.debug)
    first = next(node for node in model.nodes if node.operator == "Conv")
    weights, outputs = model.initializers[first.inputs[1]], model.test_outputs[first.outputs[0]]
    # A filter that answers to the test picture; in another the weight may go without effect.
    alive = int(np.flatnonzero((outputs.values[..., :16] > 0).any(axis=(0, 1, 2)))[0])
    # The chip's layout begins with the first 16 filters' weights for the first pixel and channel.
    position = file.debug.index(weights.values[0, 0, 0, :16].tobytes())
    damaged = bytearray(file.debug)
    damaged[position + alive] ^= 0x40
    (reason,) = check(file, *pictures, debug=bytes(damaged)).reasons
    assert reason.endswith("comes out otherwise than esp-ppq computed it")


def test_the_gate_refuses_unknown_operators_and_narrow_accumulators(made, pictures, monkeypatch):
    file = made["esp32s3"][1]
    pixels = (pictures[0].astype(int) - 128).astype(np.int8)
    peaks = espdl_run.accumulator_peaks(espdl_file.read(file.release), pixels).values()
    largest = max(peaks)
    # One bit is the sign's.
    for bits in (largest.bit_length() + 1, largest.bit_length()):
        monkeypatch.setitem(chips.ACCUMULATOR_BITS, "esp32s3", {"int8": bits, "int16": 40})
        told = [reason.partition(" adds up to ")[2] for reason in check(file, *pictures).reasons]
        beyond = [peak for peak in peaks if peak >= 2 ** (bits - 1)]
        assert told == [f"{peak:,}, beyond the accumulators of {bits} bits" for peak in beyond]
    assert largest in beyond
    monkeypatch.setattr(chips, "OPERATORS", chips.OPERATORS - {"MaxPool"})
    assert check(file, *pictures).reasons == (f"esp-dl {chips.ESP_DL_VERSION} has no operator MaxPool",)


def test_the_gate_refuses_another_input_and_scales_that_no_chip_computes(made, pictures):
    file, (images, _) = made["esp32s3"][1], pictures
    model = espdl_file.read(file.release)
    (source,), first = model.inputs, model.nodes[0]
    for change, reason in (
        ({"exponents": (-6,)}, "the input is int8 with exponents (-6,), not int8 with -7"),
        ({"dtype": "int16"}, "the input is int16 with exponents (-7,), not int8 with -7"),
        ({"shape": (1, 32, 20, 3)}, "the input has the shape (1, 32, 20, 3), not (1, 32, 20, 1): let a conv"),
    ):
        other = dataclasses.replace(model, inputs=(dataclasses.replace(source, **change),))
        (found,) = espdl_gate._input(other, images)
        assert found.startswith(reason)
    (found,) = espdl_gate._input(dataclasses.replace(model, inputs=(source, source)), images)
    assert found == "it has 2 inputs, not one picture"
    # The sums of products have the exponent of a pixel and that of the coarsest filter.
    for coarser in (0, 1):
        output = model.values[first.outputs[0]]
        (pixel,), weights = source.exponents, model.initializers[first.inputs[1]].exponents
        output = dataclasses.replace(output, exponents=(pixel + max(weights) - coarser,))
        other = dataclasses.replace(model, values=model.values | {output.name: output})
        reasons = list(espdl_gate._inside(other, "esp32s3"))
        assert reasons == [f"Conv {first.name} would have to shift its result to the left"] * coarser
    # What the converter has numbered is found in the network by its bias.
    numbered = dataclasses.replace(first, name="Conv__41")
    (reason,) = espdl_gate._inside(dataclasses.replace(other, nodes=(numbered, *model.nodes[1:])), "esp32s3")
    assert reason.startswith(f"Conv {first.inputs[2]} would have to shift")
    tested = espdl_file.read(file.debug)
    values = {name: value for name, value in tested.test_outputs.items() if name != first.outputs[0]}
    (found,) = espdl_gate._vectors(model, dataclasses.replace(tested, test_outputs=values))
    assert found == f"the debug file has no test value for {first.outputs[0]} (1 in all)"


@pytest.mark.parametrize("kind", ["release", "debug"])
def test_the_gate_refuses_damaged_files(made, pictures, kind):
    file = made["esp32s3"][1]
    (reason,) = check(file, *pictures, **{kind: getattr(file, kind)[:5000]}).reasons
    assert "cut off" in reason


def test_a_debug_file_in_place_of_the_release_is_refused(made, pictures):
    file = made["esp32s3"][1]
    assert check(file, *pictures, release=file.debug).reasons[0].startswith("the file for the device holds test values")


def test_what_goes_with_a_file_is_written(made, trained, tmp_path):
    name, file, _ = made["esp32p4"]
    (tmp_path / name).write_bytes(file.release)
    espdl_deployment.write(tmp_path, "esp32p4", name, file, trained[2], 0.8125)
    assert (tmp_path / "cnn32_esp32p4_debug.espdl").read_bytes() == file.debug
    assert "values" in json.loads((tmp_path / "cnn32_esp32p4.json").read_text())
    project = tmp_path / "espdl_esp32p4" / "main"
    assert {path.name for path in project.iterdir()} >= {name, "cnn32_esp32p4_debug.espdl", "main.cpp", "picture.h"}
    assert (project / name).read_bytes() == file.release
    assert (project / "cnn32_esp32p4_debug.espdl").read_bytes() == file.debug
    assert "UNSURE_BELOW = 0.812500f;" in (project / "main.cpp").read_text()
    splits, header = trained[2], (project / "picture.h").read_text()
    shown = splits.measured["test"][:1]
    assert f"#define PICTURE_CLASS {splits.pool.classes(shown)[0]}\n" in header
    first = ", ".join(map(str, splits.pool.images(shown)[0, 0].ravel().astype(int) - 128))
    assert f"    {first},\n" in header


def test_esp_ppqs_garbage_collection_does_not_go_through_what_was_there_before():
    before = [[]]
    with espdl._quiet():
        assert not any(found is before for found in gc.get_objects())
    assert any(found is before for found in gc.get_objects())


def test_a_stranger_file_is_no_model():
    with pytest.raises(EspdlError, match="no ESP-DL file"):
        evaluation.file_logits("model.espdl", b"TFL3" * 10, np.zeros((1, 32, 20, 1), np.uint8))
