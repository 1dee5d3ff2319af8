"""The same metrics for a Keras model and for an exported file, on the same pictures."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from utils import console, labels

BATCH = 512  # pictures a step of the Keras model


def keras_logits(model, images: np.ndarray) -> np.ndarray:
    """Logits of a Keras model, ``(N, nb_classes)`` float32, for ``(N, H, W, C)`` uint8 pictures."""
    starts = console.progress(range(0, len(images), BATCH), "Keras", unit="batch")
    logits = [model.predict_on_batch(images[start : start + BATCH]) for start in starts]
    return np.concatenate([np.empty((0, model.output_shape[-1]), np.float32), *logits])


def tflite_logits(content: bytes, images: np.ndarray, description: str = "tflite") -> np.ndarray:
    """Logits of a TFLite file, ``(N, nb_classes)`` float32, for ``(N, H, W, C)`` uint8 pictures, one at a time.

    Quantised files run on LiteRT's reference kernels: the default delegate rounds differently from the device. Pictures
    are spread over the cores, one interpreter each.
    """
    workers = min(cpu_count() or 1, max(1, len(images) // 100))
    chunks = np.array_split(images, workers)
    with console.quiet_native():
        interpreters = [_interpreter(content) for _ in chunks]
    bar = console.progress(None, description, len(images))
    with bar, ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(lambda pair: _run(*pair, bar), zip(interpreters, chunks, strict=True))))


def _run(interpreter: Interpreter, images: np.ndarray, bar) -> np.ndarray:
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    values = _encode(images, source)
    out = np.empty((len(images), target["shape"][-1]), np.float32)
    for number in range(len(images)):
        interpreter.set_tensor(source["index"], values[number : number + 1])
        interpreter.invoke()
        out[number] = _decode(interpreter.get_tensor(target["index"])[0], target)
        bar.update()
    return out


def _interpreter(content: bytes) -> Interpreter:
    interpreter = Interpreter(model_content=content, num_threads=1)
    if any(detail["dtype"] == np.int8 for detail in interpreter.get_tensor_details()):
        interpreter = Interpreter(
            model_content=content, num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
        )
    interpreter.allocate_tensors()
    return interpreter


def _encode(images: np.ndarray, detail: dict) -> np.ndarray:
    """Pixels as the file takes them; quantised inputs have scale 1/128, see ``export.quantized_tflite``."""
    if detail["dtype"] == np.int8:
        return (images.astype(np.int16) - 128).astype(np.int8)
    return images.astype(detail["dtype"])


def _decode(values: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    return (values.astype(np.float32) - zero_point) * scale if scale else values


def metrics(predicted: np.ndarray, tenths: np.ndarray, nb_classes: int) -> dict[str, float]:
    """Shares 0..1 of right readings.

    ``accuracy``: the class itself. For 100 classes also ``within_0.1`` and ``within_0.2``: at most one or two tenths
    off on the ring (9.9 is next to 0.0); ``digit``: the same nearest digit, by the rule of ``labels.to_classes``.

    Args:
        predicted: class numbers, ``(N,)``.
        tenths: true labels 0..99, ``(N,)``.
        nb_classes: 10 or 100.
    """
    scores = {"accuracy": predicted == labels.to_classes(tenths, nb_classes)}
    if nb_classes == 100:
        distance = labels.ring_distance(predicted, tenths, 100)
        scores |= {"within_0.1": distance <= 1, "within_0.2": distance <= 2}
        scores["digit"] = labels.to_classes(predicted, 10) == labels.to_classes(tenths, 10)
    return {name: round(float(np.mean(right)), 6) for name, right in scores.items()}


def grouped_metrics(
    predicted: np.ndarray, tenths: np.ndarray, groups: np.ndarray, names: Iterable[str], nb_classes: int
) -> dict[str, dict]:
    """:func:`metrics` of each group that occurs, with its number of pictures ``n``; ``groups`` indexes ``names``."""
    names = list(names)
    return {
        names[group]: {"n": int((mine := groups == group).sum()), **metrics(predicted[mine], tenths[mine], nb_classes)}
        for group in np.unique(groups)
    }
