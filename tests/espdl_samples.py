"""Small networks quantised by esp-ppq itself, for the tests of what reads and runs its files."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import keras
import numpy as np
from keras import layers

import models
from utils import espdl, espdl_file, synthetic

PICTURES = synthetic.draw(900, 3).images
TARGETS = ("esp32", "esp32s3", "esp32p4")


@dataclass(frozen=True)
class Sample:
    """A file and esp-ppq's graph behind it."""

    content: bytes
    model: espdl_file.EspdlModel
    graph: object


@cache
def registered(name: str) -> keras.Model:
    """An architecture of ours without its scaling; random weights, but neither biases nor averages are 0."""
    network = models.get(name).build((32, 20, 3), 100)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            rng = np.random.default_rng(0)
            scale, shift, mean, variance = (weight.shape for weight in layer.get_weights())
            weights = [rng.uniform(0.5, 1.5, scale), rng.normal(0, 0.3, shift)]
            layer.set_weights([*weights, rng.normal(0, 0.3, mean), rng.uniform(0.5, 1.5, variance)])
    return with_biases(keras.Model(network.get_layer("rescaling").output, network.output))


def with_biases(network: keras.Model) -> keras.Model:
    """The same network with random biases."""
    for number, layer in enumerate(network.layers):
        weights = layer.get_weights()
        if len(weights) == 2:
            layer.set_weights([weights[0] * 1.5, np.random.default_rng(number).normal(0, 0.2, weights[1].shape)])
    return network


def quantized(
    network: keras.Model, target: str, folder: Path, quant_type="w8a8", wide=(), exact=False, vectors=False
) -> Sample:
    """The network as esp-ppq writes it; operators of the kinds in ``wide`` get 16 bits.

    With ``exact`` esp-ppq simulates 16 bits in float64; with ``vectors`` the file has test values of all tensors.
    """
    with espdl._quiet():
        return _quantized(network, target, folder, quant_type, wide, exact, vectors)


def simulated(sample: Sample, images: np.ndarray, names: list[str], batch: int = 1) -> dict[str, np.ndarray]:
    """esp-ppq's own real numbers for raw pixels (N, H, W, C), channels first, by tensor.

    ``batch`` must be 1 unless the network ends in a global average: a reshape has its batch of 1 built in.
    """
    import torch
    from esp_ppq.executor import TorchExecutor

    executor = TorchExecutor(graph=sample.graph, device="cpu")
    batches = torch.split(torch.from_numpy(_channels_first(images)), batch)
    rows = [executor.forward([pictures], output_names=names) for pictures in batches]
    return {name: np.concatenate([row[number].numpy() for row in rows]) for number, name in enumerate(names)}


def _quantized(network, target, folder, quant_type, wide, exact, vectors) -> Sample:
    import onnx
    import torch
    from esp_ppq import QuantizationSettingFactory
    from esp_ppq.api import espdl_quantize_onnx, get_target_platform

    torch.set_num_threads(1)
    source, result = folder / "network.onnx", folder / "network.espdl"
    graph = _onnx(network)
    onnx.save(graph, str(source))
    setting = QuantizationSettingFactory.espdl_setting(num_of_bits=int(quant_type[1:].split("a")[0]))
    platform = get_target_platform(target, "w16a16", debug=exact)
    for node in graph.graph.node:
        if node.op_type in wide:
            setting.dispatching_table.append(node.name, platform)
    pictures = torch.from_numpy(_channels_first(PICTURES[:16, ..., : network.input_shape[-1]]))
    graph = espdl_quantize_onnx(
        str(source), str(result), torch.utils.data.DataLoader(pictures), len(pictures), [1, *pictures.shape[1:]],
        inputs=[pictures[:1]], target=target, quant_type=quant_type, setting=setting, device="cpu",
        error_report=False, export_test_values=True, metadata_props={"target": target}, debug=exact,
    )  # fmt: skip
    if vectors:
        _write_vectors(result, graph, get_target_platform(target, quant_type), pictures[:1], target)
    content = result.read_bytes()
    return Sample(content, espdl_file.read(content), graph)


def _write_vectors(path: Path, graph, platform, picture, target: str) -> None:
    from esp_ppq import lib
    from esp_ppq.api.espdl_interface import generate_test_value

    nodes = espdl_file.read(path.read_bytes()).nodes
    names = [name for node in nodes for name in node.outputs if name in graph.variables]
    values = generate_test_value(graph, "cpu", [picture], names)
    lib.Exporter(platform=platform).export(
        str(path), graph=graph, values_for_test=values, export_config=False, metadata_props={"target": target}
    )


@cache
def _onnx(network: keras.Model):
    import onnxsim
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, name="input")]
    function = tf.function(lambda input: network(input, training=False), input_signature=signature)
    graph, _ = tf2onnx.convert.from_function(function, signature, opset=17, inputs_as_nchw=["input"])
    return onnxsim.simplify(graph)[0]


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32) / 128 - 1)
