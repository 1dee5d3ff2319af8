"""Runs a TFLite file as a device does: in TFLite Micro if it is installed, else on LiteRT's reference kernels.

TFLite Micro comes as the package ``tflite-micro`` (Linux on x86_64); without it :func:`available` is False.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import IO, Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from utils import tflite_file
from utils.console import native_stderr_into
from utils.errors import UserError

# Offered to every file; the memory is only touched where a file needs it.
ARENA_OFFERED = 64 * 2**20
MIN_PER_THREAD = 100  # pictures that are worth a further interpreter
MISSING = "TFLite Micro is not installed: pip install tflite-micro (Linux on x86_64)"

_MISSING_OPERATOR = re.compile(r"Didn't find op for builtin opcode '(\w+)'")
# A DEQUANTIZE of something else than integers.
_NOT_WIDENED = re.compile(r"dequantize_common\.cc:\d+ input->type")
# Said of a convolution, and of a dense layer.
_HYBRID = re.compile("Hybrid models are not supported|Input type: FLOAT32 with filter type: INT8")
_ARENA_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


class MicroError(UserError):
    """A file doesn't run. The message names the missing operator where that is why."""


def available() -> bool:
    """True if TFLite Micro is installed and loads."""
    return _runtime() is not None


def encode(images: np.ndarray, dtype: str) -> np.ndarray:
    """Pixels ``(N, H, W, C)`` uint8 as the file's input type: int8 is ``pixel - 128``, others are the pixel itself."""
    if dtype == "int8":
        return (images ^ 0x80).view(np.int8)
    return images.astype(dtype)


def inputs_for(facts: tflite_file.FileFacts, images: np.ndarray) -> np.ndarray:
    """Pictures ``(N, H, W, C)`` uint8 encoded for a file; grey ones are repeated for a file that takes RGB."""
    if images.shape[-1] == 1 and facts.input.shape[-1] == 3:
        images = np.repeat(images, 3, axis=-1)
    return encode(images, facts.input.dtype)


def run(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """Raw outputs ``(N, classes)`` in the file's own type, computed by TFLite Micro one picture at a time.

    Args:
        content: the TFLite file.
        inputs: ``(N, H, W, C)`` in the file's own input type, see :func:`encode`.

    Raises:
        FileError: no TFLite file.
        MicroError: TFLite Micro is missing, lacks an operator of the file, or fails on it.
    """
    facts = _checked(content, inputs)
    interpreter = _load(content)

    def one(value: np.ndarray) -> np.ndarray:
        interpreter.set_input(value, 0)
        interpreter.invoke()
        return interpreter.get_output(0)

    # One thread: invoke holds the interpreter lock, two threads are as fast as one.
    return _speaking(lambda: _each(one, inputs, facts.output))


def reference(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """As :func:`run`, computed by LiteRT's reference kernels, which are always there, on all cores.

    Raises:
        FileError: no TFLite file.
        MicroError: LiteRT can't run the file.
    """
    return _litert(content, inputs, OpResolverType.BUILTIN_REF)


def floating(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """As :func:`reference`, by LiteRT's fastest kernels: for files of floats, where rounding is no question."""
    return _litert(content, inputs, OpResolverType.AUTO)


def _litert(content: bytes, inputs: np.ndarray, kernels: OpResolverType) -> np.ndarray:
    facts = _checked(content, inputs)
    chunks = np.array_split(inputs, min(os.cpu_count() or 1, max(1, len(inputs) // MIN_PER_THREAD)))
    with _litert_errors():
        # Made here, since silencing native code is not for threads.
        runners = [_runner(content, kernels) for _ in chunks]
        with ThreadPoolExecutor(len(chunks)) as pool:
            return np.concatenate(list(pool.map(lambda *pair: _each(*pair, facts.output), runners, chunks)))


def fast(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function from one encoded picture ``(1, H, W, C)`` to its outputs: LiteRT's fastest kernels, one thread.

    They round otherwise than devices do: for timing only.

    Raises:
        FileError: no TFLite file.
        MicroError: LiteRT can't run the file.
    """
    tflite_file.read(content)
    with _litert_errors():
        return _runner(content, OpResolverType.AUTO)


@contextlib.contextmanager
def _litert_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise MicroError(f"LiteRT can't run the file: {_first_line(str(error))}") from error


def _runner(content: bytes, kernels: OpResolverType) -> Callable[[np.ndarray], np.ndarray]:
    with tempfile.TemporaryFile() as unread, native_stderr_into(unread):
        interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kernels)
        declared = _shapes(interpreter)
        interpreter.allocate_tensors()
    # LiteRT works the shapes out anew; TFLite Micro would take the file's word and write beyond its memory.
    if _shapes(interpreter)[: len(declared)] != declared:
        raise ValueError("the shapes of its tensors contradict each other")
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def one(value: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source["index"], value)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return one


def arena_bytes(content: bytes) -> int:
    """Tensor arena in bytes that TFLite Micro needs on this computer.

    Pointers have 64 bits here and 32 on an ESP32, which makes this figure the larger one; optimised kernels on the chip
    may ask for scratch memory on top.

    Raises:
        FileError: no TFLite file.
        MicroError: TFLite Micro is missing, lacks an operator of the file, or fails on it.
    """
    tflite_file.read(content)
    interpreter = _load(content)
    # Asked of the allocator's own records: trying out smaller and smaller arenas would take twenty loads, and far too
    # small ones end in an assertion instead of an error.
    with tempfile.TemporaryFile() as kept:
        with native_stderr_into(kept):
            interpreter.print_allocations()
        total = _ARENA_TOTAL.search(_text(kept))
    if not total:
        raise MicroError("this version of tflite-micro doesn't report how much memory a file needs")
    return int(total[1])


def _shapes(interpreter: Interpreter) -> list[tuple[int, ...]]:
    return [tuple(detail["shape"]) for detail in interpreter.get_tensor_details()]


def _runtime() -> ModuleType | None:
    try:
        from tflite_micro.python.tflite_micro import runtime
    except (ImportError, OSError):
        return None
    return runtime


def _load(content: bytes) -> Any:
    runtime = _runtime()
    if runtime is None:
        raise MicroError(MISSING)
    return _speaking(lambda: runtime.Interpreter.from_bytes(content, arena_size=ARENA_OFFERED))


def _speaking(action: Callable[[], Any]) -> Any:
    """Result of ``action``; TFLite Micro's bare RuntimeError is replaced by what it wrote to stderr."""
    with tempfile.TemporaryFile() as kept:
        try:
            with native_stderr_into(kept):
                return action()
        except (RuntimeError, ValueError) as error:
            raise MicroError(_explanation(_text(kept), error)) from error


def _explanation(text: str, error: Exception) -> str:
    if missing := _MISSING_OPERATOR.search(text):
        return f"operator {missing[1]} is not part of TFLite Micro"
    if _NOT_WIDENED.search(text):
        return "TFLite Micro widens no weights of float16; convert the model anew with float32 or integers"
    if _HYBRID.search(text):
        return (
            "TFLite Micro runs no floats on weights of integers (dynamic range); convert the model anew with float32 "
            "or with integers throughout"
        )
    if "Failed to allocate" in text or "Failed to resize buffer" in text:
        return f"TFLite Micro needs more than {ARENA_OFFERED // 2**20} MiB of memory for the file"
    return f"TFLite Micro can't run the file: {_first_line(text) or _first_line(str(error))}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _text(kept: IO[bytes]) -> str:
    kept.seek(0)
    return kept.read().decode(errors="replace")


def _checked(content: bytes, inputs: np.ndarray) -> tflite_file.FileFacts:
    facts = tflite_file.read(content)
    expected = facts.input
    if inputs.dtype != expected.dtype or inputs.shape[1:] != expected.shape[1:]:
        raise MicroError(
            f"the file takes {expected.dtype} pictures {expected.shape[1:]}, not {inputs.dtype} {inputs.shape[1:]}"
        )
    return facts


def _each(one: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, output: tflite_file.TensorFacts) -> np.ndarray:
    # A file may leave out the 1 of its batch.
    of_one = output.shape[1:] or output.shape
    outputs = np.empty((len(inputs), *of_one), output.dtype)
    for number in range(len(inputs)):
        outputs[number] = one(np.ascontiguousarray(inputs[number : number + 1])).reshape(of_one)
    return outputs
