"""Keras model -> ``.espdl`` file for Espressif's ESP-DL, through ONNX and esp-ppq.

esp-ppq and what it needs (torch, onnx) are optional packages, imported only here and only when a file is made; so is
TensorFlow, which a machine that only trains may lack.
"""

import contextlib
import gc
import io
import logging
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from utils import espdl_file, espdl_run, fake_quant
from utils.console import quiet_native
from utils.errors import UserError
from utils.espdl_file import EspdlError, Node

log = logging.getLogger(__name__)

CALIBRATION_IMAGES = 128  # more changes nothing: 128, 256 and 512 pictures agreed with Keras within 0.2 points
# Powers of two by which the logits may exceed their 8 bits. Cutting 15 % off both ends instead of doubling the steps
# halved the ties (5.9 to 2.9 %) and raised the agreement with Keras (96.7 to 97.8 %) in a trial with cnn32.
LOGITS_OVERFLOW = 0.25
OPSET = 17  # 18 turns the global average into operators that esp-ppq takes apart
TQT_STEPS = 200
INPUT_NAME = "input"


class EspdlExportError(UserError):
    """A conversion failed or gave a file that would be wrong on the device. Nothing has been written."""


@dataclass(frozen=True)
class Recipe:
    """One way to quantise; ranges are those with the least loss of information (Kullback-Leibler) in all of them.

    ``corrected``: biases make up for the mean error (Nagel et al. 2019, "Data-Free Quantization Through Weight
    Equalization and Bias Correction"); ``trained``: the ranges are trained on (Jain et al. 2019, "Trained Quantization
    Thresholds"); ``wide_layers`` get 16 bits.
    """

    corrected: bool = False
    trained: bool = False
    wide_layers: int = 0


RECIPES = {
    "plain": Recipe(),
    "corrected": Recipe(corrected=True),
    "trained": Recipe(trained=True),
    "mixed": Recipe(wide_layers=2),
    "mixed, corrected": Recipe(corrected=True, wide_layers=2),
}
# ESP_DL_MODE -> recipes to try, the plainest first: it wins a draw.
TRIED = {"ptq": ("plain", "corrected"), "tqt": ("trained",), "mixed": ("mixed", "mixed, corrected")}
TRIED["auto"] = TRIED["ptq"] + TRIED["mixed"]
TRIED["trial"] = ("plain",)  # what a network not yet trained is converted by


@dataclass(frozen=True)
class Network:
    """ONNX network with a fixed batch of 1, ``(1, C, H, W)`` in, logits up to ``largest_logit`` in magnitude out."""

    onnx: bytes
    largest_logit: float


@dataclass(frozen=True)
class Espdl:
    """One quantised network: the file for the device, the same with the values of every tensor for one picture in it,
    esp-ppq's account of all scales (JSON), the recipe, and the agreement of each recipe tried, if more than one was.
    """

    release: bytes
    debug: bytes
    scales: str
    recipe: str
    tried: dict[str, float]


def to_onnx(quantized: keras.Model) -> Network:
    """The float network of a model for :func:`export`, batch normalisation folded, without its rescaling layer.

    Args:
        quantized: as :func:`fake_quant.quantize` makes it; of its ranges only the logits' is used.

    Raises:
        EspdlExportError: the conversion failed, or a layer is one that ESP-DL can't compute.
    """
    import tensorflow as tf

    network, largest_logit = fake_quant.folded(quantized)
    if lacking := [f"layer {layer.name} {text}" for layer in network.layers if (text := _lacking(layer))]:
        raise EspdlExportError("; ".join(lacking))
    for layer in network.layers:
        if isinstance(layer, keras.layers.Add):
            # Keras makes a bias of a tensor with one value a channel, but a bias is a constant in ESP-DL.
            layer._merge_function = lambda tensors: tensors[0] + tensors[1]
    signature = [tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, name=INPUT_NAME)]
    # tf2onnx names the input after the argument.
    function = tf.function(lambda input: network(input, training=False), input_signature=signature)
    with _quiet():
        import onnxsim
        import tf2onnx

        graph, _ = tf2onnx.convert.from_function(function, signature, opset=OPSET, inputs_as_nchw=[INPUT_NAME])
        graph, sound = onnxsim.simplify(graph)
    for node in graph.graph.node:
        pads = next((list(entry.ints) for entry in node.attribute if entry.name == "pads"), [])
        if node.op_type == "AveragePool" and pads[:2] != pads[2:]:
            # esp-ppq breaks off; those padded evenly the gate refuses.
            raise EspdlExportError(f"AveragePool {node.name} is padded on one side: pool without padding")
    if not sound:
        raise EspdlExportError("the simplified ONNX network computes something else than the original")
    return Network(graph.SerializeToString(), largest_logit)


def _lacking(layer: keras.layers.Layer) -> str:
    """What ESP-DL lacks for a layer, and what to do instead; "" if nothing."""
    if getattr(layer, "groups", 1) != 1:
        # Keras leaves them to XLA, which ONNX knows nothing of.
        return (
            f"has {layer.groups} groups, which can't be converted for ESP-DL: use one group, or a depthwise convolution"
        )
    if getattr(layer, "depth_multiplier", 1) != 1 and layer.input.shape[-1] != 1:
        return (
            f"has a depth_multiplier of {layer.depth_multiplier}, which ESP-DL can't compute: let it be 1, and a 1x1 "
            "convolution make the channels"
        )
    if isinstance(layer, keras.layers.GlobalMaxPooling2D):
        return "is a global maximum, which ESP-DL can't compute: take MaxPooling2D(x.shape[1:3]) and Flatten"
    if isinstance(layer, keras.layers.Dense) and len(layer.output.shape) > 2:
        return "is a dense layer of several rows, which can't be converted for ESP-DL: take Conv2D with kernel 1"
    if fake_quant.joins_picture(layer):
        # What is joined has one scale, and the picture's is fixed.
        return (
            "joins the picture with other values, which ESP-DL would cut off where a picture ends, at 1: let a "
            "convolution of kernel 1 be between"
        )
    if getattr(layer, "activation", None) is keras.activations.hard_tanh:
        return "is a hard_tanh, which ESP-DL can't compute: take tanh"
    return ""


def export(
    network: Network,
    target: str,
    mode: str,
    calibration: np.ndarray,
    images: np.ndarray,
    reference: np.ndarray,
    metadata: dict[str, str],
) -> Espdl:
    """Quantises a network for one chip; where ``mode`` names several recipes, the one nearest to Keras is kept.

    Args:
        network: of :func:`to_onnx`.
        target: a name in ``chips.CHIPS``.
        mode: "ptq", "tqt", "mixed", "auto" or "trial".
        calibration: training pictures ``(N, H, W, C)`` uint8 that set the ranges.
        images: validation pictures ``(M, H, W, C)`` uint8 on which recipes are compared; the first one goes into the
            debug file.
        reference: classes that the Keras model reads on them, ``(M,)``.
        metadata: texts that go into the file, besides the target.

    Raises:
        EspdlExportError: esp-ppq failed.
        EspdlError: it wrote a file that can't be read.
    """
    recipes = {name: RECIPES[name] for name in TRIED[mode]}
    wide = any(recipe.wide_layers for recipe in recipes.values())
    worst = _worst_layers(network, target, calibration) if wide else []
    made = {}
    for name, recipe in recipes.items():
        made[name] = _quantize(network, target, recipe, worst, calibration, images[:1], metadata)
    if len(made) == 1:
        ((name, files),) = made.items()
        return Espdl(*files, name, {})
    tried = {name: _agreement(release, images, reference) for name, (release, *_) in made.items()}
    best = max(tried, key=tried.get)
    log.info("%s: %s", target, ", ".join(f"{name} agrees with Keras on {share:.2%}" for name, share in tried.items()))
    return Espdl(*made[best], best, tried)


def _agreement(release: bytes, images: np.ndarray, reference: np.ndarray) -> float:
    try:
        classes = espdl_run.logits(espdl_file.read(release), images).argmax(axis=1)
    except EspdlError as error:
        # esp-ppq writes such files without a word. Another recipe may do, else the gate gives the reason.
        log.info("%s", error)
        return 0.0
    return round(float((classes == reference).mean()), 6)


def _quantize(
    network: Network,
    target: str,
    recipe: Recipe,
    worst: list[str],
    calibration: np.ndarray,
    picture: np.ndarray,
    metadata: dict[str, str],
) -> tuple[bytes, bytes, str]:
    inputs, vector = _as_network_takes_it(calibration), _as_network_takes_it(picture)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        work, platform = Path(folder), _platform(target)
        graph = _run_ppq(work, network.onnx, target, recipe, worst[: recipe.wide_layers], inputs)
        _fix_ends(graph, network.largest_logit)
        metadata = {"target": target, **metadata}
        release = _write(work / "release.espdl", graph, platform, metadata, None)
        values = _test_values(graph, vector, espdl_file.read(release).nodes)
        debug = _write(work / "debug.espdl", graph, platform, metadata, values)
        return release, debug, (work / "release.json").read_text()


def _platform(target: str):
    from esp_ppq.api import get_target_platform
    from esp_ppq.core import TargetPlatform

    platform = get_target_platform(target, "w8a8")
    if platform == TargetPlatform.FP32:
        raise EspdlExportError(f"esp-ppq does not know the target {target}: it would write a float file")
    return platform


def _run_ppq(work: Path, network: bytes, target: str, recipe: Recipe, wide: list[str], inputs: np.ndarray):
    import torch
    from esp_ppq import QuantizationSettingFactory
    from esp_ppq.api import espdl_quantize_onnx, get_target_platform

    torch.set_num_threads(1)  # threads cost more than they bring on networks this small
    setting = QuantizationSettingFactory.espdl_setting(num_of_bits=8)
    setting.bias_correct = recipe.corrected
    setting.bias_correct_setting.steps = len(inputs)
    setting.tqt_optimization = recipe.trained
    setting.tqt_optimization_setting.steps = TQT_STEPS
    setting.tqt_optimization_setting.block_size = 2
    setting.tqt_optimization_setting.int_lambda = 0.25
    for name in wide:
        setting.dispatching_table.append(name, get_target_platform(target, "w16a16"))
    source = work / "network.onnx"
    source.write_bytes(network)  # anew each time: esp-ppq overwrites it
    loader = torch.utils.data.DataLoader(torch.from_numpy(inputs), batch_size=1, shuffle=False)
    return espdl_quantize_onnx(
        str(source),
        str(work / "unused.espdl"),
        loader,
        len(inputs),
        [1, *inputs.shape[1:]],
        inputs=[torch.from_numpy(inputs[:1])],
        target=target,
        quant_type="w8a8",
        setting=setting,
        device="cpu",
        error_report=False,
        skip_export=True,
    )


def _worst_layers(network: Network, target: str, calibration: np.ndarray) -> list[str]:
    """Layers by how far their own quantisation moves the logits; not the first, whose input must stay 8 bits wide."""
    inputs = _as_network_takes_it(calibration)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        import torch
        from esp_ppq.quantization.analyse import layerwise_error_analyse

        _platform(target)
        graph = _run_ppq(Path(folder), network.onnx, target, Recipe(), [], inputs)
        batches = [torch.from_numpy(inputs[number : number + 1]) for number in range(min(len(inputs), 32))]
        errors = layerwise_error_analyse(graph, batches, running_device="cpu", steps=len(batches), verbose=False)
        first = {operation.name for operation in graph.inputs[INPUT_NAME].dest_ops}
        return sorted(errors.keys() - first, key=errors.get, reverse=True)


def _fix_ends(graph, largest_logit: float) -> None:
    """Makes the input byte ``pixel - 128``, whatever the calibration pictures had, and the logits' steps no wider than
    their range needs; logits of 16 bits stay as they are.
    """
    import torch
    from esp_ppq.quantization.optim import PassiveParameterQuantizePass

    source, (output,) = graph.inputs[INPUT_NAME], graph.outputs.values()
    target = output.source_op.output_quant_config[0].dominated_by
    for operation in source.dest_ops:
        config = operation.input_quant_config[operation.inputs.index(source)].dominated_by
        config.scale = torch.full_like(config.scale, 2.0**espdl_run.PIXEL_EXPONENT)
    if target.num_of_bits == 8:
        exponent = math.ceil(math.log2(largest_logit / 127) - LOGITS_OVERFLOW)
        target.scale = torch.full_like(target.scale, 2.0**exponent)
    PassiveParameterQuantizePass().optimize(graph)  # a bias has the scale of input times weight


def _test_values(graph, vector: np.ndarray, nodes: tuple[Node, ...]) -> dict:
    """The value of every tensor in the file for one picture."""
    import torch
    from esp_ppq.api.espdl_interface import generate_test_value

    names = [name for node in nodes for name in node.outputs if name in graph.variables]
    values = generate_test_value(graph, "cpu", [torch.from_numpy(vector)], names)
    for node in nodes:
        if node.outputs[0] not in graph.variables:
            # What the exporter has put in: a change of scale is the same value, which it rounds anew; so is one to
            # channels first, as which values are given here.
            value = values["outputs"][node.inputs[0]]
            to_last = node.operator == "Transpose" and node.attributes["perm"] == (0, 2, 3, 1)
            values["outputs"][node.outputs[0]] = value.permute(0, 2, 3, 1) if to_last else value
    return values


def _write(path: Path, graph, platform, metadata: dict[str, str], values: dict | None) -> bytes:
    import esp_ppq.lib

    exporter = esp_ppq.lib.Exporter(platform=platform)
    exporter.export(str(path), graph=graph, values_for_test=values, export_config=True, metadata_props=metadata)
    return path.read_bytes()


def _as_network_takes_it(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32) / 128 - 1)


@contextlib.contextmanager
def _quiet():
    """Keeps esp-ppq's banner, bars and coloured lines from the user, and turns what it raises into one error."""
    said = io.StringIO()
    before = list(sys.path)
    # esp-ppq collects garbage before most of its steps: what is there already need not be gone through each time.
    gc.freeze()
    try:
        with quiet_native(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    except UserError:
        raise
    except Exception as error:
        log.debug("%s", said.getvalue())
        raise EspdlExportError(f"ESP-DL conversion failed: {type(error).__name__}: {error}") from error
    finally:
        gc.unfreeze()
        # esp-ppq puts folders of its own in front of every other module.
        sys.path[:] = before
