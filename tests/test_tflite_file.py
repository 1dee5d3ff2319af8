import random

import numpy as np
import pytest

from tests import device_files
from utils import complexity, tflite_file


def test_facts_of_a_quantised_file():
    facts = tflite_file.read(device_files.quantised())
    assert (facts.input.shape, facts.input.dtype) == ((1, 32, 20, 1), "int8")
    assert (facts.input.scale, facts.input.zero_point) == (1 / 128, 0)
    assert (facts.output.shape, facts.output.dtype) == ((1, 10), "int8")
    assert facts.operators == ("CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "RESHAPE")
    assert facts.float_tensors == ()


def test_nodes_carry_what_decides_about_kernels():
    facts = tflite_file.read(device_files.quantised(body=device_files.strided))
    conv, depthwise = (
        next(node for node in facts.nodes if node.operator == name) for name in ("CONV_2D", "DEPTHWISE_CONV_2D")
    )
    assert (conv.stride_h, conv.stride_w, conv.padding) == (2, 2, "SAME")
    assert (conv.input_shape, conv.output_shape, conv.filter_shape) == ((1, 32, 20, 1), (1, 16, 10, 4), (4, 3, 3, 1))
    assert conv.input_scale == 1 / 128
    assert (depthwise.stride_h, depthwise.output_shape, depthwise.filter_shape) == (2, (1, 8, 5, 4), (1, 3, 3, 4))
    assert facts.nodes[-1].filter_shape == (10, 40)


def test_multiply_accumulates():
    assert tflite_file.read(device_files.quantised()).macs == 640 * 9 * 4 + 160 * 9 * 4 * 8 + 320 * 10
    for body in (device_files.plain, device_files.averaged, device_files.strided):
        expected = complexity.multiply_accumulates(device_files.model(body=body))
        assert tflite_file.read(device_files.quantised(body=body)).macs == expected


def test_float_tensors_are_those_between_the_ends():
    facts = tflite_file.read(device_files.floating())
    assert facts.input.dtype == facts.output.dtype == "float32"
    assert len(facts.float_tensors) > 5
    assert not {facts.input.name, facts.output.name} & set(facts.float_tensors)
    assert tflite_file.read(device_files.quantised("float32")).float_tensors == ()


def test_what_two_operators_take_has_no_first_step():
    def taken_again(model):
        graph = model.subgraphs[0]
        graph.operators[1].inputs = graph.inputs

    assert tflite_file.read(device_files.quantised()).first.operator == "CONV_2D"
    assert tflite_file.read(device_files.edited(device_files.quantised(), taken_again)).first is None


def test_softmax_at_the_end_makes_probabilities():
    assert not tflite_file.read(device_files.floating()).gives_probabilities
    assert tflite_file.read(device_files.floating(body=device_files.probable)).gives_probabilities


def test_the_way_back_from_the_outputs_ends_where_a_graph_runs_in_a_circle():
    def turned(model):
        graph = model.subgraphs[0]
        del graph.operators[-1]
        reshape = graph.operators[-1]
        reshape.inputs = np.array([*reshape.outputs, *reshape.inputs], np.int32)
        graph.outputs = reshape.outputs

    facts = tflite_file.read(device_files.edited(device_files.quantised(), turned))
    assert (facts.nodes[-1].operator, facts.last_operator) == ("RESHAPE", "MAX_POOL_2D")


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x00" * 100, b"PK\x03\x04" + b"x" * 500])
def test_what_is_no_tflite_file_is_refused(content):
    with pytest.raises(tflite_file.FileError, match="no TFLite file"):
        tflite_file.read(content)


def test_every_cut_is_noticed():
    content = device_files.quantised()
    for length in [*range(8, len(content), 131), *range(len(content) - 40, len(content))]:
        with pytest.raises(tflite_file.FileError, match="damaged or cut off"):
            tflite_file.read(content[:length])


def test_damage_never_ends_in_another_error():
    content, chance = device_files.quantised(), random.Random(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(8, len(damaged))] = chance.randrange(256)
        try:
            tflite_file.read(bytes(damaged))
        except tflite_file.FileError:
            refused += 1
    assert refused > 100


def test_an_empty_tensor_is_refused():
    with pytest.raises(tflite_file.FileError, match="damaged"):
        tflite_file.read(device_files.with_size(device_files.quantised(), "CONV_2D", 1, 0))


def _second_output(model):
    graph = model.subgraphs[0]
    graph.outputs = np.array([graph.outputs[0], graph.outputs[0]], np.int32)


def _short_weights(model):
    buffer = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda buffer: len(buffer.data))
    buffer.data = buffer.data[:-1]


def _weights_elsewhere(model):
    buffer = next(buffer for buffer in model.buffers if buffer.data is not None)
    buffer.data, buffer.offset, buffer.size = None, 4096, 36


def _no_such_tensor(model):
    model.subgraphs[0].operators[0].inputs = np.array([999, 0, 0], np.int32)


def _no_stride(model):
    model.subgraphs[0].operators[0].builtinOptions.strideW = 0


def _no_options(model):
    model.subgraphs[0].operators[0].builtinOptions = None


def _no_operators(model):
    model.subgraphs[0].operators = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_stride, "damaged"),
        (_no_options, "damaged"),
        (_no_operators, "no operators"),
        (_second_output, "has 2 outputs"),
        (
            lambda model: model.subgraphs.append(model.subgraphs[0]),
            "holds 2 graphs; one is supported: convert it anew with one signature",
        ),
        (_short_weights, "damaged"),
        (_weights_elsewhere, "damaged"),
        (_no_such_tensor, "damaged"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(change, message):
    with pytest.raises(tflite_file.FileError, match=message):
        tflite_file.read(device_files.edited(device_files.quantised(), change))
