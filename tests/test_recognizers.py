import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from tests import device_files, foreign_files
from utils import confidence, encodings, espdl_file, frontier, labels, micro, model_archive, recognizers, tflite_file
from utils.encodings import EncodingError
from utils.errors import UserError
from utils.recognizers import RecognizerError
from utils.tflite_file import First, TensorFacts

NOWHERE = Path("/nowhere")
PIXELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
FLOATS = TensorFacts("x", (1, 16, 16, 1), "float32", None, None)


def stored(folder: Path, content: bytes, name: str = "a.tflite") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def reaching(dtype: str, low: float, high: float) -> TensorFacts:
    """An input whose integers stand for numbers from ``low`` to ``high``."""
    scale = high / 32767 if dtype == "int16" else (high - low) / 255
    zero_point = 0 if dtype == "int16" else round(np.iinfo(dtype).min - low / scale)
    return TensorFacts("x", (1, 16, 16, 1), dtype, scale, zero_point)


def run_folder(folder: Path, recommended: object = "a.tflite", **results) -> Path:
    stored(folder, device_files.quantised())
    device_files.model().save(folder / "best_model.keras")
    (folder / "results.json").write_text(json.dumps({"recommended": recommended, **results}))
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_keras_and_float_tflite_read_the_same(tmp_path, channels):
    device_files.model(channels=channels).save(tmp_path / "a.keras")
    images = device_files.pictures(20, channels)
    files = [tmp_path / "a.keras", stored(tmp_path, device_files.floating(channels=channels))]
    loaded = [recognizers.load(file, NOWHERE) for file in files]
    (classes, confidences), (others, other_confidences) = [recognizers.decide(model, images) for model in loaded]
    assert loaded[0].input_shape == loaded[1].input_shape == (32, 20, channels)
    assert loaded[0].names == tuple("0123456789")
    assert (classes == others).all()
    np.testing.assert_allclose(confidences, other_confidences, atol=1e-5)


@pytest.mark.parametrize("io_type", ["int8", "uint8", "float32"])
def test_our_quantised_files_run_on_the_reference_kernels(tmp_path, io_type):
    content, images = device_files.quantised(io_type), device_files.pictures(5)
    facts = tflite_file.read(content)
    raw = micro.reference(content, micro.inputs_for(facts, images)).astype(float)
    logits = raw if facts.output.scale is None else (raw - facts.output.zero_point) * facts.output.scale
    classes, confidences = recognizers.decide(recognizers.load(stored(tmp_path, content), NOWHERE), images)
    assert (classes == logits.argmax(axis=1)).all()
    np.testing.assert_allclose(confidences, softmax(logits, axis=1).max(axis=1))


def test_a_keras_file_leaves_the_rest_of_a_card_to_others(tmp_path, monkeypatch):
    names = ("TF_FORCE_GPU_ALLOW_GROWTH", "XLA_PYTHON_CLIENT_PREALLOCATE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    foreign_files.network(10).save(tmp_path / "a.keras")
    recognizers.load(tmp_path / "a.keras", NOWHERE)
    assert [os.environ.get(name) for name in names] == ["true", "false"]


@pytest.mark.parametrize(
    ("end", "sure"),
    [
        ("sparsemax", 1.0),
        ("hard_sigmoid", 1 / (1 + 9 * 0.5)),
        ("sparse_sigmoid", 1 / (1 + 9 * 0.5)),
        ("log_softmax", 1 / (1 + 9 * np.exp(-8))),
    ],
)
def test_rarer_ends_are_shares_of_their_kind(tmp_path, end, sure):
    # The digit's own output is 8 before the activation, the others are 0.
    foreign_files.network(10, end=end).save(tmp_path / "a.keras")
    model = recognizers.load(tmp_path / "a.keras", NOWHERE)
    numbers, confidences = recognizers.decide(model, foreign_files.pictures()[[3, 34]])
    np.testing.assert_array_equal(numbers, [0, 3])
    np.testing.assert_allclose(confidences, sure, rtol=1e-5)


def test_esp_dl_files_read_as_their_own_interpreter_says(tmp_path):
    pytest.importorskip("esp_ppq")
    from tests import espdl_samples
    from utils import espdl_run

    sample = espdl_samples.quantized(espdl_samples.registered("cnn32"), "esp32s3", tmp_path)
    images = espdl_samples.PICTURES[:5]
    model = recognizers.load(stored(tmp_path, sample.content, "a.espdl"), NOWHERE)
    classes, confidences = recognizers.decide(model, images)
    logits = espdl_run.logits(sample.model, images).astype(float)
    assert model.input_shape == (32, 20, 3)
    assert (model.facts.parameters, model.facts.macs) == (213_348, 5_133_312)
    assert (classes == logits.argmax(axis=1)).all()
    np.testing.assert_allclose(confidences, confidence.of(logits))
    # This one says nothing of its pixels, and is fed with another range if that is tried.
    assert (model.facts.known, model.facts.pixels) == (False, encodings.OWN)
    tried = recognizers.load(model.file, NOWHERE, encodings.UNIT)
    inputs = np.rint(images / 255 * 128).clip(-128, 127).astype(np.int8)
    expected = confidence.of(espdl_run.outputs(sample.model, inputs).astype(float))
    np.testing.assert_allclose(recognizers.decide(tried, images)[1], expected)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "dark", "bright"),
    [
        ("float32", None, None, 0, 255),
        ("int8", None, None, -128, 127),
        ("int8", 1 / 128, 0, -128, 127),
        ("int8", 1.0, -128, -128, 127),
        ("int8", 1 / 255, -128, -128, 127),
        ("int8", 1 / 127.5, -1, -128, 127),
        ("uint8", 1 / 128, 128, 0, 255),
        ("uint8", 1.0, 0, 0, 255),
        ("uint8", 0.98, 2, 2, 255),
        ("int16", 255 / 32767, 0, 0, 32767),
        ("int16", 1 / 32767, 0, 0, 32767),
    ],
)
def test_pixels_are_encoded_by_scale_and_zero_point(dtype, scale, zero_point, dark, bright):
    tensor = TensorFacts("x", (1, 16, 16, 1), dtype, scale, zero_point)
    said = None if dtype == "float32" else encodings.fitting(tensor)
    encoded = encodings.encode(tensor, PIXELS, said or encodings.likeliest(tensor))
    assert (encoded.dtype, encoded.shape) == (dtype, PIXELS.shape)
    assert (encoded.min(), encoded.max()) == (dark, bright)
    assert (np.diff(encoded.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize(("dtype", "scale"), [("int8", 0.5), ("int8", 100.0), ("int32", 1.0), ("int8", 0.0)])
def test_inputs_that_take_no_pixels(dtype, scale):
    with pytest.raises(EncodingError):
        encodings.fitting(TensorFacts("x", (1, 16, 16, 1), dtype, scale, 0))


@pytest.mark.parametrize(
    ("dtype", "low", "high", "name"),
    [
        ("int8", -0.69, 0.99, "-1..1"),
        ("int8", -1, 0.3, "-1..1"),
        ("uint8", 0, 0.7, "0..1"),
        ("int8", -0.69, 0.4, "-1..1"),
        ("uint8", 0, 190, "0..255"),
        ("int8", 0, 140, "0..255"),
        ("uint8", 0, 100, None),
        ("uint8", 0, 0.4, None),
        ("int8", -0.3, 0.3, None),
        ("int16", -255, 255, "0..255"),
        ("int16", -140, 140, "0..255"),
        ("int16", -1, 1, None),
        ("int16", -0.8, 0.8, None),
    ],
)
def test_dim_pictures_hide_a_part_of_the_range(dtype, low, high, name):
    """An input reaches as far as the pictures it was calibrated on; of 16 bits as far below zero."""
    found = encodings.fitting(reaching(dtype, low, high))
    assert (found and found.name) == name


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", 0, 3), ("int8", -2.2, 2.6), ("uint8", 0, 300)])
def test_inputs_that_reach_as_no_pixels_do(dtype, low, high):
    with pytest.raises(EncodingError, match="fit no pixels"):
        encodings.fitting(reaching(dtype, low, high))


@pytest.mark.parametrize(
    ("dtype", "low", "high", "name"),
    [
        ("int16", -1, 1, "0..1"),
        ("int16", -100, 100, "0..255"),
        ("uint8", 0, 100, "0..255"),
        ("uint8", 0, 0.4, "0..1"),
        ("int8", -0.3, 0.3, "-1..1"),
        ("int8", -2.2, 2.6, "0..255"),
    ],
)
def test_what_is_assumed_can_be_held_by_the_integers(dtype, low, high, name):
    integers = reaching(dtype, low, high)
    assert encodings.likeliest(integers).name == name
    assert encodings.likeliest(FLOATS, First("QUANTIZE", integers, None)).name == name
    assert encodings.likeliest(FLOATS, First("CONV_2D", integers, 0.5)) is encodings.RAW


def test_a_run_folder_is_the_file_it_recommends(tmp_path):
    assert recognizers.load(run_folder(tmp_path), NOWHERE).file == tmp_path / "a.tflite"


@pytest.mark.parametrize("name", ["gone.tflite", "../secret.tflite", "/etc/passwd", ["a"], None, "a\0b", "..", ""])
def test_a_run_folder_that_recommends_nothing_usable_is_its_best_model(tmp_path, name):
    stored(tmp_path, device_files.quantised(), "secret.tflite")
    (tmp_path / "run").mkdir()
    assert recognizers.load(run_folder(tmp_path / "run", name), NOWHERE).file.name == "best_model.keras"


def test_no_path_takes_the_newest_run(tmp_path):
    (tmp_path / "run").mkdir()
    assert recognizers.load(None, run_folder(tmp_path / "run").parent).file == tmp_path / "run" / "a.tflite"
    with pytest.raises(UserError, match="no finished run"):
        recognizers.load(None, NOWHERE)


@pytest.mark.parametrize(("manifest", "results", "expected"), [(0.7, 0.6, 0.7), (None, 0.6, 0.6), ("x", 7, None)])
def test_recommended_confidence_comes_from_the_papers(tmp_path, manifest, results, expected):
    run_folder(tmp_path, recommended_confidence=results)
    other = {"name": "b.tflite", "recommended_confidence": 0.2}
    entries = [other, {"name": "a.tflite", "recommended_confidence": manifest}, 3]
    (tmp_path / "manifest.json").write_text(json.dumps({"files": entries}))
    assert recognizers.load(tmp_path, NOWHERE).threshold == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}', "\ufeff", "[" * 100_000])
def test_damaged_papers_do_no_harm(tmp_path, text):
    file = stored(tmp_path, device_files.quantised())
    for name in ("manifest.json", "results.json"):
        (tmp_path / name).write_text(text)
    assert recognizers.load(file, NOWHERE).threshold is None


@pytest.mark.parametrize("content", [b"", b"hello", b"\0\0\0\0TFL3", b"EDL2", b"PK\x03\x04", os.urandom(500)])
def test_what_is_no_model_is_refused_in_one_sentence(tmp_path, content):
    file = stored(tmp_path, content, "x.keras")
    with pytest.raises(RecognizerError) as caught:
        recognizers.load(file, NOWHERE)
    assert str(caught.value).count(str(file)) == 1
    assert "\n" not in str(caught.value)


def test_pipes_missing_files_and_empty_folders(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecognizerError, match="no regular file"):
        recognizers.load(tmp_path / "pipe", NOWHERE)
    with pytest.raises(RecognizerError, match="no such file or folder; name a model file"):
        recognizers.load(tmp_path / "gone", NOWHERE)
    with pytest.raises(UserError, match=r"no best_model\.keras"):
        recognizers.load(tmp_path, NOWHERE)


def test_graphs_that_do_not_run_or_read_no_digits(tmp_path):
    content = device_files.quantised()
    for damaged in (device_files.with_size(content, "CONV_2D", 1, 77), device_files.floating(classes=7)):
        with pytest.raises(RecognizerError):
            recognizers.load(stored(tmp_path, damaged), NOWHERE)
    for length in range(0, len(content), 3001):
        with pytest.raises(RecognizerError):
            recognizers.load(stored(tmp_path, content[:length]), NOWHERE)


@pytest.mark.parametrize(
    ("end", "shape", "said"),
    [
        ("inputs", (4, 32, 20, 1), "takes (4, 32, 20, 1), but one picture"),
        ("inputs", (1, 32, 20, 2), "takes (1, 32, 20, 2), but one picture"),
        ("inputs", (1, 7, 20, 1), "takes (1, 7, 20, 1), but one picture"),
        ("inputs", (1, 32, 513, 1), "takes (1, 32, 513, 1), but one picture"),
        ("inputs", (1, 640), "takes (1, 640), but one picture"),
        ("outputs", (2, 10), "gives (2, 10), but one vector"),
        ("outputs", (), "gives (), but one vector"),
    ],
)
def test_graphs_of_another_task(tmp_path, end, shape, said):
    def change(unpacked) -> None:
        graph = unpacked.subgraphs[0]
        graph.tensors[getattr(graph, end)[0]].shape = np.array(shape, np.int32)

    file = stored(tmp_path, device_files.edited(device_files.quantised(), change))
    with pytest.raises(RecognizerError, match=re.escape(f"{file}: the model {said}")):
        recognizers.load(file, NOWHERE)


def test_an_operator_of_tensorflow_or_of_somebody_else_is_named(tmp_path):
    file = stored(tmp_path, device_files.with_operator(device_files.quantised(), "MAX_POOL_2D", "CUSTOM"))
    with pytest.raises(RecognizerError, match="operator CUSTOM is not part of LiteRT; build the model without it and"):
        recognizers.load(file, NOWHERE)


def test_files_and_steps_too_large_for_memory(tmp_path):
    file = stored(tmp_path, device_files.with_size(device_files.quantised(), "CONV_2D", 1, 10**7))
    with pytest.raises(RecognizerError, match="one step makes more than 67,108,864 values of a picture"):
        recognizers.load(file, NOWHERE)
    os.truncate(file, model_archive.MAX_BYTES + 1)
    with pytest.raises(RecognizerError, match="no regular file, or one larger than 536,870,912 bytes"):
        recognizers.load(file, NOWHERE)


def test_an_esp_dl_file_of_ours_says_its_range_and_reads_like_the_tflite_file():
    folder, images = frontier.ZOO / "v6_tenths", device_files.pictures(30, 3)
    names = ("digit_recognizer_v6_esp32s3.espdl", "digit_recognizer_v6_quantized.tflite")
    models = [recognizers.load(folder / name, NOWHERE) for name in names]
    (classes, confidences), (others, other_confidences) = [recognizers.decide(model, images) for model in models]
    pixels = encodings.OWN
    assert models[0].facts == recognizers.Facts("100 tenths, logits", "int8", pixels, True, 12_676, 1_035_392)
    assert (labels.ring_distance(classes, others, 100) <= 1).sum() >= 29
    assert np.abs(confidences - other_confidences).mean() < 0.05


def test_an_esp_dl_file_may_take_channels_first_and_end_in_a_softmax(monkeypatch):
    file = frontier.ZOO / "v6_tenths" / "digit_recognizer_v6_esp32s3.espdl"
    images, plain = device_files.pictures(10, 3), recognizers.load(file, NOWHERE)
    model = espdl_file.read(file.read_bytes())
    (image,), (logits,) = model.inputs, model.outputs
    first = replace(image, name="first", shape=(1, 3, 32, 20))
    shares = espdl_file.ValueInfo("shares", "float32", logits.shape, (0,))
    turn = espdl_file.Node("Transpose", "turn", ("first",), (image.name,), {"perm": (0, 2, 3, 1)})
    softmax_node = espdl_file.Node("Softmax", "softmax", (logits.name,), ("shares",), {"axis": -1})
    values = {**model.values, "first": first, "shares": shares}
    nodes = (turn, *model.nodes, softmax_node)
    other = replace(model, nodes=nodes, inputs=(first,), outputs=(shares,), values=values)
    monkeypatch.setattr(espdl_file, "read", lambda content: other)
    loaded = recognizers.load(file, NOWHERE)
    assert (loaded.input_shape, loaded.facts.outputs) == ((32, 20, 3), "100 tenths, softmax")
    for one, two in zip(recognizers.decide(loaded, images), recognizers.decide(plain, images), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    # Where the file doesn't say its range, steps of a half are of -1..1, steps of one and more of 0..255.
    for exponent, pixels in ((-1, encodings.OWN), (0, encodings.RAW), (1, encodings.RAW)):
        other = replace(model, metadata={}, inputs=(replace(image, exponents=(exponent,)),))
        facts = recognizers.load(file, NOWHERE).facts
        assert (facts.pixels, facts.known) == (pixels, False)
