import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from utils import evaluation, export, fake_quant, gate


@pytest.fixture(scope="module")
def trained(trained_run):
    outcome, _, splits = trained_run
    model = keras.models.load_model(outcome.run_dir / "best_model.keras", safe_mode=True)
    return model, splits.pool.images(splits.train[:200]), splits.pool.images(splits.measured["test"])


def details(content: bytes) -> tuple[dict, dict]:
    interpreter = Interpreter(model_content=content)
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


def operators(content: bytes) -> set[str]:
    interpreter = Interpreter(model_content=content)
    return {operator["op_name"] for operator in interpreter._get_ops_details()} - {"DELEGATE"}


def test_float_file_equals_keras(trained):
    model, _, test = trained
    logits = evaluation.tflite_logits(export.float_tflite(model), test)
    np.testing.assert_allclose(logits, evaluation.keras_logits(model, test), atol=2e-3)


@pytest.mark.parametrize(("io_type", "zero_point"), [("int8", 0), ("uint8", 128)])
def test_quantised_input_is_the_pixel_whatever_the_calibration_pictures(trained, io_type, zero_point):
    model, calibration, _ = trained
    source, target = details(export.quantized_tflite(model, calibration // 4, io_type))
    assert source["dtype"] == target["dtype"] == np.dtype(io_type)
    assert source["quantization"] == (1 / 128, zero_point)
    assert list(source["shape"]) == [1, 32, 20, 1]


def vectors(content: bytes) -> tuple[list[int], list[str], int]:
    """Where each constant starts, the tensors' names, and how many bytes of zero points the file points at."""
    root = schema.Model.GetRootAs(content, 0)
    constants = [root.Buffers(i) for i in range(root.BuffersLength())]
    starts = [one._tab.Vector(one._tab.Offset(4)) for one in constants if one.DataLength()]
    graph = root.Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    zeros = [q._tab for q in (tensor.Quantization() for tensor in tensors) if q and q.ZeroPointLength()]
    places = {tab.Vector(tab.Offset(10)): 8 * tab.VectorLen(tab.Offset(10)) for tab in zeros}
    return starts, [tensor.Name().decode() for tensor in tensors], sum(places.values())


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_files_are_packed_and_the_network_stays_the_same(trained, monkeypatch, kind):
    model, calibration, test = trained

    def made() -> bytes:
        return export.float_tflite(model) if kind == "float" else export.quantized_tflite(model, calibration, "int8")

    packed = made()
    monkeypatch.setattr(export, "_packed", lambda content: content)
    plain = made()
    assert np.array_equal(evaluation.tflite_logits(packed, test), evaluation.tflite_logits(plain, test))
    assert len(plain) - len(packed) > (500 if kind == "float" else 2500)
    starts, names, zeros = vectors(packed)
    assert all(start % 16 == 0 for start in starts)
    assert len(set(names)) == len(names) and max(map(len, names)) < 30
    assert zeros <= vectors(plain)[2] / 2


def test_quantised_file_is_integer_throughout_and_without_shape_arithmetic(trained):
    model, calibration, _ = trained
    content = export.quantized_tflite(model, calibration, "int8")
    types = {np.dtype(detail["dtype"]) for detail in Interpreter(model_content=content).get_tensor_details()}
    assert types <= {np.dtype(np.int8), np.dtype(np.int32)}
    assert operators(content) == {"CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"}


def test_dense_layers_are_quantised_per_tensor(trained):
    model, calibration, _ = trained
    content = export.quantized_tflite(model, calibration, "int8")
    interpreter = Interpreter(model_content=content)
    sizes = {
        tuple(detail["shape"]): len(detail["quantization_parameters"]["scales"])
        for detail in interpreter.get_tensor_details()
    }
    assert sizes[(256, 512)] == sizes[(10, 256)] == 1
    assert sizes[(64, 3, 3, 32)] == 64


def test_quantised_file_reads_like_keras(trained):
    model, calibration, test = trained
    logits = evaluation.tflite_logits(export.quantized_tflite(model, calibration, "int8"), test)
    expected = evaluation.keras_logits(model, test)
    # The network is unsure of many a picture, and what lies below the file's range is cut off there.
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9
    assert np.corrcoef(logits.ravel(), expected.clip(logits.min()).ravel())[0, 1] > 0.999


def test_a_float_file_is_refused_as_quantised(trained):
    with pytest.raises(export.ExportError, match="stayed float"):
        export.check_quantized(export.float_tflite(trained[0]))


def test_a_foreign_operator_is_refused():
    image = keras.Input((32, 20, 1), name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-1)(image)
    x = keras.layers.MaxPooling2D(2, data_format="channels_first")(keras.layers.Conv2D(4, 3)(x))
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    with pytest.raises(export.ExportError, match="no integer kernel for TRANSPOSE"):
        export.quantized_tflite(model, np.zeros((2, 32, 20, 1), np.uint8), "int8")


def test_a_model_without_rescaling_in_front_is_refused():
    model = keras.Sequential([keras.Input((32, 20, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    with pytest.raises(fake_quant.QuantizationError, match=r"does not start with Rescaling\(1/128"):
        export.quantized_tflite(model, np.zeros((2, 32, 20, 1), np.uint8), "int8")


def test_a_failing_converter_is_reported():
    def broken(self):
        raise RuntimeError("no such luck")

    with pytest.raises(export.ExportError, match="no such luck"):
        export._convert(type("Converter", (), {"convert": broken})())


def test_ten_digits_for_ai_on_the_edge_come_as_probabilities(trained):
    model, calibration, test = trained
    quantized = fake_quant.with_rgb_input(fake_quant.quantize(model, calibration))
    content = export.integer_tflite(quantized, "float32", probabilities=True)
    verdict = gate.check("ai_on_the_edge", content, 10, soft_labels=True, images=np.repeat(test, 3, axis=-1))
    assert verdict.accepted, verdict.reasons
    logits = evaluation.tflite_logits(export.integer_tflite(quantized, "float32"), test)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # One of 256 steps of the 8-bit softmax, and what its tables of exponentials lose.
    np.testing.assert_allclose(np.exp(evaluation.tflite_logits(content, test)), expected, atol=0.02)
