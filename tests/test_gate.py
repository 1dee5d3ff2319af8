import dataclasses
import re
import types

import numpy as np
import pytest
from keras import layers

from tests import device_files
from utils import gate, micro, targets, tflite_file

needs_micro = pytest.mark.skipif(not micro.available(), reason="tflite-micro is not installed")
RGB_100 = {"channels": 3, "classes": 100}


def for_device(target: str) -> bytes:
    """A file that the device accepts."""
    if target == "ai_on_the_edge":
        return device_files.quantised("float32", **RGB_100)
    return device_files.quantised("uint8" if target == "esphome" else "int8")


def verdict(target: str, content: bytes, nb_classes: int | None = None, **more) -> gate.Verdict:
    nb_classes = nb_classes or tflite_file.read(content).output.shape[-1]
    return gate.check(target, content, nb_classes, more.pop("soft_labels", False), **more)


def reasons(*args, **more) -> str:
    found = verdict(*args, **more)
    assert not found.accepted
    return "\n".join(found.reasons)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_file_made_for_the_device_is_accepted(target):
    found = verdict(target, for_device(target))
    assert (found.target, found.accepted, found.reasons, found.warnings) == (target, True, (), ())
    if micro.available():
        assert found.checked_with == "TFLite Micro, loaded only"
        assert found.arena_bytes == micro.arena_bytes(for_device(target))


@pytest.mark.parametrize("target", targets.TARGETS)
def test_without_tflite_micro_the_table_decides(target, monkeypatch):
    monkeypatch.setattr(micro, "available", lambda: False)
    found = verdict(target, for_device(target), images=device_files.pictures(4))
    assert (found.accepted, found.arena_bytes) == (True, None)
    assert found.checked_with == "operator table; tflite-micro is not installed"


@needs_micro
@pytest.mark.parametrize("target", targets.TARGETS)
def test_sample_pictures_are_compared(target, monkeypatch):
    ran = []

    def counted(content, inputs):
        ran.append(len(inputs))
        return micro.reference(content, inputs)

    monkeypatch.setattr(micro, "run", counted)
    monkeypatch.setattr(gate, "MAX_PICTURES", 20)
    # Grey pictures serve the file that takes RGB too.
    found = verdict(target, for_device(target), images=device_files.pictures(30))
    assert (found.accepted, ran) == (True, [20])
    assert re.fullmatch(r"TFLite Micro, 20 pictures compared, (9[7-9]|100)\.\d\d% of outputs equal", found.checked_with)


@pytest.mark.parametrize(
    ("target", "io_type", "message"),
    [
        ("tflite_micro", "float32", "the input is float32; tflite_micro takes int8 or uint8"),
        ("ai_on_the_edge", "int8", "the output is int8; ai_on_the_edge takes float32"),
        ("esphome", "int8", "the input is int8; esphome takes uint8"),
    ],
)
def test_wrong_number_types_are_refused(target, io_type, message):
    assert message in reasons(target, device_files.quantised(io_type))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"channels": 1}, "the input has 1 channel; ai_on_the_edge feeds 3 (RGB)"),
        ({"size": (28, 20)}, "28 high and 20 wide; ai_on_the_edge feeds pictures 32 high and 20 wide"),
        ({"size": (32, 12)}, "32 high and 12 wide"),
    ],
)
def test_pictures_of_another_form_are_refused(shape, message):
    content = device_files.quantised("float32", **{**RGB_100, **shape})
    assert message in reasons("ai_on_the_edge", content)


@pytest.mark.parametrize("shape", [(1, 640), (2, 32, 20, 1)])
def test_what_takes_anything_but_one_picture_is_refused(shape):
    facts = tflite_file.read(device_files.quantised())
    facts = dataclasses.replace(facts, input=dataclasses.replace(facts.input, shape=shape))
    (reason,) = gate._ends(targets.get("tflite_micro"), facts)
    assert reason == f"the input has the shape {shape}; one picture (1, height, width, channels) is needed"


CONV_BN = "Conv2D, and BatchNormalization only right behind one without activation"


def _pooled_at_once():
    return lambda x: layers.MaxPooling2D(x.shape[1:3])(x)


def _beside(layer):
    return lambda: lambda x: layers.Add()([x, layer()(x)])


def _both(first, second):
    return lambda: lambda x: second()(first()(x))


def _of_two_maxima(layer):
    return lambda: lambda x: layer()([layers.MaxPooling2D(size, 4, "same")(x) for size in (2, 4)])


@pytest.mark.parametrize(
    ("operator", "lacking", "instead", "taken"),
    [
        ("MEAN", layers.GlobalAveragePooling2D, "MaxPooling2D(x.shape[1:3]) and Flatten", _pooled_at_once),
        ("REDUCE_MAX", layers.GlobalMaxPooling2D, "MaxPooling2D(x.shape[1:3]) and Flatten", _pooled_at_once),
        ("TANH", lambda: layers.Activation("tanh"), "ReLU or LeakyReLU", layers.ReLU),
        ("HARD_SWISH", lambda: layers.Activation("hard_silu"), "ReLU or LeakyReLU", layers.LeakyReLU),
        ("LOGISTIC", lambda: layers.Activation("sigmoid"), "ReLU or LeakyReLU", layers.ReLU),
        ("AVERAGE_POOL_2D", lambda: layers.AveragePooling2D(2), "MaxPooling2D", layers.MaxPooling2D),
        ("CONCATENATION", _of_two_maxima(layers.Concatenate), "Add", _of_two_maxima(layers.Add)),
        ("RELU", _beside(layers.ReLU), "LeakyReLU", _beside(layers.LeakyReLU)),
        ("PAD", layers.ZeroPadding2D, 'padding="same"', lambda: layers.Conv2D(16, 3, padding="same")),
        ("DEPTHWISE_CONV_2D", lambda: layers.DepthwiseConv2D(3), CONV_BN, lambda: layers.Conv2D(16, 3)),
        ("DEPTHWISE_CONV_2D", _both(layers.ReLU, norm := layers.BatchNormalization), CONV_BN, _both(norm, layers.ReLU)),
    ],
)
def test_what_is_unknown_to_ai_on_the_edge_alone_has_a_substitute(operator, lacking, instead, taken):
    def content(layer, io_type):
        def body(x, classes):
            return layers.Dense(classes)(layers.Flatten()(layer()(layers.Conv2D(16, 3, padding="same")(x))))

        return device_files.quantised(io_type, body=body, **RGB_100)

    reason = f"operator {operator} is not compiled into the AI-on-the-edge-device firmware: take {instead}"
    assert reasons("ai_on_the_edge", content(lacking, "float32")) == reason
    assert verdict("tflite_micro", content(lacking, "int8"), images=device_files.pictures(60, 3)).accepted
    assert verdict("ai_on_the_edge", content(taken, "float32")).accepted


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_foreign_operator_is_refused(target):
    content = device_files.with_operator(for_device(target), "MAX_POOL_2D", "GELU")
    assert reasons(target, content).startswith("operator GELU is not compiled into")


def test_float_tensors_inside():
    for target in ("tflite_micro", "esphome"):
        assert "all) is float; " in reasons(target, device_files.floating())
    found = verdict("ai_on_the_edge", device_files.floating(**RGB_100))
    assert found.accepted
    assert "tensors are float" in found.warnings[0]


@pytest.mark.parametrize("target", targets.TARGETS)
def test_another_number_of_classes_is_refused(target):
    content = for_device(target)
    assert "(1, 11) is needed for 11 classes" in reasons(target, content, 11)


def test_ten_outputs_of_hard_labels_are_refused_by_ai_on_the_edge():
    logits = device_files.quantised("float32", channels=3)
    shares = device_files.floating(channels=3, body=device_files.probable)
    assert "hard labels" in reasons("ai_on_the_edge", shares)
    assert "hard labels" in reasons("ai_on_the_edge", logits)
    assert "must be probabilities" in reasons("ai_on_the_edge", logits, soft_labels=True)
    assert verdict("ai_on_the_edge", shares, soft_labels=True).accepted


def test_a_number_of_outputs_that_ai_on_the_edge_cannot_decode_is_refused():
    content = device_files.quantised("float32", channels=3, classes=12)
    assert "can't decode 12 outputs; it knows 10 (a digit" in reasons("ai_on_the_edge", content)
    assert verdict("tflite_micro", device_files.quantised(classes=12)).accepted


def test_a_file_that_is_too_large_is_refused():
    import ai_edge_litert.schema_py_generated as schema

    def stuff(model):
        model.buffers.append(schema.BufferT(data=np.zeros(1_400_000, np.uint8)))

    content = device_files.edited(for_device("ai_on_the_edge"), stuff)
    assert reasons("ai_on_the_edge", content) == f"the file has {len(content):,} bytes; ai_on_the_edge takes 1,363,148"


@needs_micro
@pytest.mark.parametrize("target", targets.TARGETS)
def test_shapes_that_contradict_each_other_never_reach_tflite_micro(target, monkeypatch):
    # It would write beyond its memory and end the process.
    monkeypatch.setattr(micro, "_load", lambda content: pytest.fail("loaded"))
    content = device_files.with_size(for_device(target), "CONV_2D", 3, 4000)
    assert "contradict each other" in reasons(target, content)


@needs_micro
def test_a_file_that_needs_too_much_memory_is_refused(monkeypatch):
    small = dataclasses.replace(targets.TARGETS["esphome"], max_arena_bytes=2048)
    monkeypatch.setitem(targets.TARGETS, "esphome", small)
    assert reasons("esphome", for_device("esphome")).endswith("bytes of memory; esphome has 2,048")


def test_known_trouble_on_chips_is_a_warning():
    found = verdict("tflite_micro", device_files.quantised(body=device_files.strided))
    assert found.accepted
    text = "\n".join(found.warnings)
    assert len(found.warnings) == 3
    assert "stride 2 and SAME padding on an even size" in text
    assert "a depthwise convolution with stride 2" in text
    assert "a dense layer of 40 inputs, no multiple of 16" in text


def test_a_convolution_in_groups_or_padded_unevenly_is_trouble_on_chips():
    node = tflite_file.Node("CONV_2D", (1, 8, 8, 16), (1, 8, 8, 4), (4, 3, 3, 16), 1, 1, "SAME", None)
    facts = types.SimpleNamespace(float_tensors=(), nodes=(node,))
    assert list(gate._warnings(targets.get("tflite_micro"), facts)) == []
    facts.nodes = (dataclasses.replace(node, filter_shape=(4, 3, 3, 8)),)
    (text,) = gate._warnings(targets.get("tflite_micro"), facts)
    assert "a convolution in groups is wrong on chips" in text
    # What stride 2 is safe with: no padding at all, or as much in front as behind.
    node = dataclasses.replace(node, stride_h=2, stride_w=2)
    harmless = {"padding": "VALID"}, {"filter_shape": (4, 1, 1, 16)}, {"input_shape": (1, 9, 7, 16)}
    facts.nodes = tuple(dataclasses.replace(node, **changed) for changed in harmless)
    assert list(gate._warnings(targets.get("tflite_micro"), facts)) == []
    for shape in ((1, 8, 8, 16), (1, 9, 8, 16), (1, 8, 9, 16)):
        facts.nodes = (dataclasses.replace(node, input_shape=shape),)
        assert len(list(gate._warnings(targets.get("tflite_micro"), facts))) == 1


def wrong_by(change, step: float):
    """TFLite Micro as it would be if it computed the reference outputs, in steps, and then changed them."""

    def run(content, inputs):
        outputs = micro.reference(content, inputs)
        return (change(np.rint(outputs / step).astype(int)) * step).astype(outputs.dtype)

    return run


def _last_bits(outputs):
    outputs[:, ::5] -= 1
    return outputs


def _one_jump(outputs):
    outputs[3, outputs[3].argmin()] += 2
    return outputs


def _other_digit(outputs):
    row = outputs[3]
    row[:] = np.arange(len(row))[::-1] if row.argmax() else np.arange(len(row))
    return outputs


@needs_micro
@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (_last_bits, ["only 80.0% of the outputs in TFLite Micro equal LiteRT's; 97% are needed"]),
        (_one_jump, ["an output in TFLite Micro is 2 steps off LiteRT's; 1 is the most that rounding explains"]),
        (_other_digit, ["steps off", "TFLite Micro reads 1 of 60 pictures differently from LiteRT"]),
    ],
)
@pytest.mark.parametrize("target", ["tflite_micro", "ai_on_the_edge"])
def test_a_kernel_that_computes_something_else_is_noticed(change, messages, target, monkeypatch):
    content = for_device(target)
    # A file of float outputs ends in what makes them of integers.
    step = tflite_file.read(content).nodes[-1].input_scale if target == "ai_on_the_edge" else 1.0
    monkeypatch.setattr(micro, "run", wrong_by(change, step))
    found = reasons(target, content, images=device_files.pictures(60))
    for message in messages:
        assert message in found


@needs_micro
def test_single_steps_are_rounding(monkeypatch):
    def single(outputs):
        outputs[::30, outputs[0].argmin()] += 1
        return outputs

    monkeypatch.setattr(micro, "run", wrong_by(single, 1.0))
    assert verdict("tflite_micro", device_files.quantised(), images=device_files.pictures(60)).accepted


@needs_micro
@pytest.mark.parametrize(
    ("every", "steps", "message"),
    [
        (17, gate.SIGMOID_STEPS, None),
        (17, gate.SIGMOID_STEPS + 1, "an output in TFLite Micro is 9 steps off LiteRT's; 8 is the most"),
        (10, 1, "only 90.0% of the outputs in TFLite Micro equal LiteRT's; 92% are needed"),
    ],
)
def test_behind_sigmoids_more_is_rounding(every, steps, message, monkeypatch):
    def wrong(outputs):
        outputs.reshape(-1)[::every] -= steps
        return outputs

    monkeypatch.setattr(micro, "run", wrong_by(wrong, 1.0))
    content = device_files.quantised(body=device_files.weighed)
    found = verdict("tflite_micro", content, images=device_files.pictures(60)).reasons
    assert [text.startswith(message or "") for text in found] == [True] * bool(message)


def test_a_tie_reads_either_way():
    first, second = np.array([[3.0, 1, 3]]), np.array([[2.0, 1, 3]])
    assert not list(gate._differences(first, second, 1.0, gate.MIN_EQUAL, allowed=1))
    (reason,) = gate._differences(second, second[:, ::-1], 1.0, gate.MIN_EQUAL, allowed=1)
    assert reason == "TFLite Micro reads 1 of 1 pictures differently from LiteRT"


def test_an_8_bit_softmax_may_be_some_steps_off():
    first, second = np.array([[120.0, 0, 116]]), np.array([[116.0, 0, 120]])
    assert not list(gate._differences(first, second, 1.0, gate.MIN_EQUAL, gate.SOFTMAX_STEPS))
    (reason,) = gate._differences(first, second + np.array([6, 0, 0]), 1.0, gate.MIN_EQUAL, allowed=3)
    assert "4 steps off LiteRT's; 3 is the most" in reason


def test_an_unknown_target_is_refused():
    with pytest.raises(targets.TargetError, match="unknown target 'arduino': known are tflite_micro, ai_on_the_edge"):
        verdict("arduino", device_files.quantised())


def test_a_foreign_file_is_refused():
    with pytest.raises(tflite_file.FileError):
        gate.check("esphome", device_files.quantised()[:-9], 10, False)
