"""The gate for ESP-DL files: whether a chip would run a given file, and read with it what the Keras model reads."""

from collections.abc import Iterator

import numpy as np

from utils import chips, espdl_file, espdl_run, labels
from utils.espdl_file import EspdlError, EspdlModel
from utils.gate import Verdict


def check(
    target: str, release: bytes, debug: bytes, images: np.ndarray, reference: np.ndarray, min_agreement: float
) -> Verdict:
    """Checks a file against the chip's table, then executes it.

    Args:
        target: a name in ``chips.CHIPS``.
        release: the file for the device.
        debug: the same network with test values in it.
        images: pictures ``(N, H, W, C)`` uint8 to run it on.
        reference: classes that the Keras model reads on them, ``(N,)``.
        min_agreement: share of them, 0..1, that the file must read alike (:func:`labels.alike`).
    """
    try:
        model, tested = espdl_file.read(release), espdl_file.read(debug)
        reasons = [*_inside(model, target), *_input(model, images)]
        # What is wrong so far would make its execution meaningless.
        reasons = reasons or [*_executed(model, target, images, reference, min_agreement), *_vectors(model, tested)]
    except EspdlError as error:
        reasons = [str(error)]
    checked_with = f"integer interpreter, {len(images)} pictures compared"
    return Verdict(target, not reasons, tuple(reasons), (), None, checked_with)


def _inside(model: EspdlModel, target: str) -> Iterator[str]:
    written_for = model.metadata.get("target")
    if written_for != target:
        yield f"the metadata names {written_for or 'no target'} instead of {target}: the chips' files differ in layout"
    for operator in sorted({node.operator for node in model.nodes} - chips.OPERATORS):
        yield f"esp-dl {chips.ESP_DL_VERSION} has no operator {operator}"
    for name in espdl_file.misplaced_constants(model):
        yield f"constant {name} has its channels first beside a tensor with channels last"
    for node in model.nodes:
        if node.operator == "AveragePool" and any(node.attributes.get("pads", ())):
            yield f"{node.operator} {node.name} is padded: on the chip the border's zeros count; pool without padding"
        if node.operator in espdl_file.WEIGHTED and _shifts_left(model, node):
            yield f"{node.operator} {_named(node)} would have to shift its result to the left"


def _named(node: espdl_file.Node) -> str:
    # The converter numbers some convolutions, such as Conv__41; their bias has the layer's name.
    return node.name if "/" in node.name else node.inputs[-1]


def _shifts_left(model: EspdlModel, node: espdl_file.Node) -> bool:
    source, weight = (_exponents(model, name) for name in node.inputs[:2])
    return min(_exponents(model, node.outputs[0])) < max(source) + max(weight)


def _exponents(model: EspdlModel, name: str) -> tuple[int, ...]:
    return (model.values.get(name) or model.initializers[name]).exponents


def _input(model: EspdlModel, images: np.ndarray) -> Iterator[str]:
    if len(model.inputs) != 1:
        yield f"it has {len(model.inputs)} inputs, not one picture"
        return
    (source,) = model.inputs
    if (source.dtype, source.exponents) != ("int8", (espdl_run.PIXEL_EXPONENT,)):
        yield f"the input is {source.dtype} with exponents {source.exponents}, not int8 with -7: pixel - 128 is wrong"
    if source.shape != (1, *images.shape[1:]):
        # Channels first where there is nothing but dense layers.
        wanted = (1, *images.shape[1:])
        yield f"the input has the shape {source.shape}, not {wanted}: let a convolution or a pooling be the first layer"


def _executed(
    model: EspdlModel, target: str, images: np.ndarray, reference: np.ndarray, min_agreement: float
) -> Iterator[str]:
    logits = espdl_run.logits(model, images)
    # Trained on what people read, a network finds two tenths nearly equal on many a picture, and half a step decides.
    agreement = float(labels.alike(logits.argmax(axis=1), reference, logits.shape[1]).mean())
    if agreement < min_agreement:
        yield f"it reads {agreement:.1%} of the pictures like the Keras model; {min_agreement:.1%} are needed"
    peaks = espdl_run.accumulator_peaks(model, (images.astype(np.int16) - 128).astype(np.int8))
    for node in model.nodes:
        bits = chips.ACCUMULATOR_BITS[target].get(model.values[node.inputs[0]].dtype)
        if node.name in peaks and peaks[node.name] >= 2 ** (bits - 1):
            yield f"{_named(node)} adds up to {peaks[node.name]:,}, beyond the accumulators of {bits} bits"


def _vectors(model: EspdlModel, tested: EspdlModel) -> Iterator[str]:
    if model.test_outputs:
        yield "the file for the device holds test values: they only take room there"
    missing = [name for node in tested.nodes for name in node.outputs if name not in tested.test_outputs]
    if missing:
        yield f"the debug file has no test value for {missing[0]} ({len(missing)} in all)"
    for name in espdl_run.differing_vectors(tested):
        yield f"{name} comes out otherwise than esp-ppq computed it"
