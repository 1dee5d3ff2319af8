"""The chips that ESP-DL files are written for: what its runtime can do there, what this computer needs to write one."""

import importlib.util
import os
import sys

from utils.settings import Settings, SettingsError

ESP_DL_VERSION = "3.3.9"  # what the files were tried with
# What it registers (esp-dl/dl/module/include/dl_module_creator.hpp); anything else ends in an abort on the chip.
OPERATORS = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("Add", "Sub", "Mul", "Div", "Concat", "Pad", "Resize"),
        *("Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Gelu", "Swish", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh"),
        *("Exp", "Log", "Sqrt", "Softmax", "LUT", "QuantizeLinear", "DequantizeLinear", "RequantizeLinear"),
        *("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity"),
        *("ReduceMean", "ReduceSum", "ReduceMin", "ReduceMax"),
    }
)
PACKAGES = ("torch", "esp_ppq", "tf2onnx", "onnx", "onnxsim", "onnxruntime")
INSTALL = "pip install -r requirements-espdl.txt"


# How wide each chip's kernels add up products of int8 and of int16 numbers. The S3's vector unit has accumulators of 20
# bits a lane; esp-ppq does not know that they can overflow.
ACCUMULATOR_BITS = {
    "esp32": {"int8": 32, "int16": 64},
    "esp32s3": {"int8": 20, "int16": 40},
    "esp32p4": {"int8": 32, "int16": 40},
}
CHIPS = tuple(ACCUMULATOR_BITS)


def check(settings: Settings) -> None:
    """Refuses before training what would keep ``.espdl`` files from being written after it.

    Raises:
        SettingsError: an unknown target, a Python that esp-ppq doesn't run on, or a package that is missing.
    """
    if not (settings.quantize_model and settings.esp_dl_quantize):
        return
    if not settings.esp_dl_targets:
        raise SettingsError(f"ESP_DL_TARGETS is empty: give at least one of {', '.join(CHIPS)}")
    for name in settings.esp_dl_targets:
        if name not in CHIPS:
            raise SettingsError(f"ESP_DL_TARGETS: unknown target {name!r}: known are {', '.join(CHIPS)}")
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        # Nothing is written here: --resume with TensorFlow does it, and asks again.
        return
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing and sys.version_info >= (3, 13):
        raise SettingsError("ESP_DL_QUANTIZE = True: esp-ppq needs Python 3.11 or 3.12, set it to False")
    if missing:
        raise SettingsError(f"ESP_DL_QUANTIZE = True: {', '.join(missing)} missing; {INSTALL}")


def file_name(model_name: str, target: str) -> str:
    """``cnn32_esp32s3.espdl``."""
    return f"{model_name}_{target}.espdl"
