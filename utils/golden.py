"""Golden pictures: inputs with the exact outputs of a file, so that a board can prove its kernels."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import micro, tflite_file

PICTURES = 16
_C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "float32": "float"}


@dataclass(frozen=True)
class Golden:
    """Pictures ``(N, H, W, C)`` as the file takes them, its exact outputs ``(N, classes)``, and what computed them."""

    inputs: np.ndarray
    outputs: np.ndarray
    made_with: str


def make(content: bytes, images: np.ndarray) -> Golden:
    """Runs the first 16 pictures ``(N, H, W, C)`` uint8 through a file, in TFLite Micro where it is installed.

    Only for files that a gate has accepted: TFLite Micro takes a damaged graph on trust.

    Raises:
        FileError: no TFLite file.
        MicroError: the file doesn't run, or takes other pictures.
    """
    inputs = micro.inputs_for(tflite_file.read(content), images[:PICTURES])
    if micro.available():
        return Golden(inputs, micro.run(content, inputs), "TFLite Micro")
    return Golden(inputs, micro.reference(content, inputs), "LiteRT reference kernels")


def write_npz(path: Path, value: Golden) -> None:
    """Writes ``inputs``, ``outputs`` and ``made_with`` as a NumPy archive, to be used through ``runs.write``."""
    np.savez_compressed(path, inputs=value.inputs, outputs=value.outputs, made_with=value.made_with)


def header(name: str, value: Golden) -> str:
    """C99 header with the golden pictures and outputs of the file ``name`` as constant arrays."""
    stem = re.sub(r"\W", "_", name, flags=re.ASCII).lower()
    stem = stem if stem[:1].isalpha() else f"model_{stem}"
    upper = stem.upper()
    inputs, outputs = (array.reshape(len(array), -1) for array in (value.inputs, value.outputs))
    return "\n".join(
        [
            f"/* Golden pictures of {re.sub(r'[^ -.0-~]', '_', name)}, outputs computed by {value.made_with}. */",
            f"#ifndef {upper}_GOLDEN_H",
            f"#define {upper}_GOLDEN_H",
            "#include <stdint.h>",
            f"#define {upper}_PICTURES {len(inputs)}",
            f"#define {upper}_INPUT_SIZE {inputs.shape[1]}",
            f"#define {upper}_OUTPUT_SIZE {outputs.shape[1]}",
            _c_array(f"{stem}_inputs", f"{upper}_PICTURES", f"{upper}_INPUT_SIZE", inputs),
            _c_array(f"{stem}_outputs", f"{upper}_PICTURES", f"{upper}_OUTPUT_SIZE", outputs),
            f"#endif /* {upper}_GOLDEN_H */",
            "",
        ]
    )


def _c_array(name: str, rows: str, columns: str, values: np.ndarray) -> str:
    dtype = str(values.dtype)
    lines = ["    {" + ", ".join(map(_c_literal, row)) + "}," for row in values]
    return "\n".join([f"static const {_C_TYPES[dtype]} {name}[{rows}][{columns}] = {{", *lines, "};"])


def _c_literal(value: np.generic) -> str:
    # Nine digits bring back every float32 exactly.
    return f"{value:.8e}f" if isinstance(value, np.floating) else str(value)
