"""A ready ESP-IDF project that tests one ``.espdl`` file on its chip and reads one picture with it.

Written from esp-dl's tutorials "How to load & test & profile model" and "How to run model" and their examples. Nothing
here compiles the project, that takes ESP-IDF.
"""

import re
import string

import numpy as np

from utils.chips import ESP_DL_VERSION
from utils.errors import UserError

MODEL_FOLDER = "main"  # where in the project's folder the .espdl files lie
# From 5.3 on by esp-dl's own manifest; of an ESP-IDF 7 nothing is known yet.
IDF_VERSIONS = ">=5.3,<7.0"

# What the examples of esp-dl set for each chip, less what only suits Espressif's own boards.
_CHIP_SETTINGS = {
    "esp32": """\
# External RAM at its default speed, which every module with PSRAM reaches.
CONFIG_SPIRAM=y
CONFIG_ESP_DEFAULT_CPU_FREQ_MHZ_240=y
""",
    "esp32s3": """\
# Modules with 8 MB PSRAM (..R8) take the octal mode; for 2 MB (..R2) replace OCT by QUAD.
CONFIG_SPIRAM=y
CONFIG_SPIRAM_MODE_OCT=y
CONFIG_SPIRAM_SPEED_80M=y
CONFIG_ESP_DEFAULT_CPU_FREQ_MHZ_240=y
# The largest caches, since weights are read from flash or PSRAM.
CONFIG_ESP32S3_INSTRUCTION_CACHE_32KB=y
CONFIG_ESP32S3_DATA_CACHE_64KB=y
CONFIG_ESP32S3_DATA_CACHE_LINE_64B=y
""",
    "esp32p4": """\
# Up to ESP-IDF 5.4 the full speed of the PSRAM counts as an experimental feature.
CONFIG_SPIRAM=y
CONFIG_IDF_EXPERIMENTAL_FEATURES=y
CONFIG_SPIRAM_SPEED_200M=y
# The largest caches, since weights are read from flash or PSRAM.
CONFIG_CACHE_L2_CACHE_256KB=y
CONFIG_CACHE_L2_CACHE_LINE_128B=y
""",
}


class ProjectError(UserError):
    """A name for which no project can be written."""


class _Template(string.Template):
    # CMake's own variables are spelled with the default "$".
    delimiter = "@"


_README = """\
# @release_file on the @target

Project for ESP-IDF @idf_versions; the first build downloads esp-dl @esp_dl_version. With the board plugged in:

    idf.py set-target @target build flash monitor

It checks the chip's arithmetic with the test values inside `@debug_file`, prints `TEST PASS` or `TEST FAIL`,
reads the picture in `main/picture.h` with `@release_file` and prints class, confidence (unsure below
the recommended one, see `manifest.json`), memory and time of each layer.
Only `@release_file` belongs into your product; it takes bytes `pixel - 128`, rows first, colours last.
`sdkconfig.defaults` says what the board must have. Without PSRAM delete its lines with `SPIRAM`;
after any change there delete the file `sdkconfig` before building again.
"""

_TOP_CMAKE = """\
cmake_minimum_required(VERSION 3.16)
include($ENV{IDF_PATH}/tools/cmake/project.cmake)
project(espdl_@target)
"""

_SDKCONFIG = """\
# The .espdl files are for this chip only.
CONFIG_IDF_TARGET="@target"
# 4 MB suffice; larger flash chips run with it too.
CONFIG_ESPTOOLPY_FLASHSIZE_4MB=y
# The standard partition for the program (1 MB) is too small for esp-dl with two models.
CONFIG_PARTITION_TABLE_CUSTOM=y
CONFIG_PARTITION_TABLE_CUSTOM_FILENAME="partitions.csv"
@chip_settings"""

_PARTITIONS = """\
# Name, Type, SubType, Offset, Size
factory, app, factory, 0x10000, 3M
"""

_MAIN_CMAKE = """\
# The way to esp-dl's CMake functions that its documentation gives; they take the folder from cmake_dir.
idf_build_get_property(component_targets __COMPONENT_TARGETS)
if("___idf_espressif__esp-dl" IN_LIST component_targets)
    idf_component_get_property(espdl_dir espressif__esp-dl COMPONENT_DIR)
elseif("___idf_esp-dl" IN_LIST component_targets)
    idf_component_get_property(espdl_dir esp-dl COMPONENT_DIR)
endif()
set(cmake_dir ${espdl_dir}/fbs_loader/cmake)
include(${cmake_dir}/utilities.cmake)

idf_component_register(SRCS main.cpp REQUIRES esp-dl)

# Not EMBED_FILES: esp-dl wants each file to start at a multiple of 16 bytes.
target_add_aligned_binary_data(${COMPONENT_LIB} @debug_file BINARY)
target_add_aligned_binary_data(${COMPONENT_LIB} @release_file BINARY)
"""

_MANIFEST = """\
dependencies:
  idf: "@idf_versions"
  espressif/esp-dl: "==@esp_dl_version"
"""

_PICTURE = """\
/* A test picture as the model takes it: pixel - 128, rows first, colours last. */
#pragma once
#include <stdint.h>
#define PICTURE_HEIGHT @height
#define PICTURE_WIDTH @width
#define PICTURE_CHANNELS @channels
#define PICTURE_CLASS @true_class
static const int8_t picture[PICTURE_HEIGHT * PICTURE_WIDTH * PICTURE_CHANNELS] = {
@rows
};
"""

_MAIN = """\
// Tests @debug_file on this chip, then reads one picture with @release_file.
#include "dl_model_base.hpp"
#include "esp_err.h"
#include "picture.h"
#include "sdkconfig.h"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

extern const uint8_t debug_espdl[] asm("@debug_symbol");
extern const uint8_t release_espdl[] asm("@release_symbol");

static constexpr int NB_CLASSES = @nb_classes;
static constexpr float UNSURE_BELOW = @{threshold}f; // the recommended confidence; 0: none is recommended
static constexpr int PICTURE_EXPONENT = -7; // the picture's bytes stand for (pixel - 128) / 128

// nullptr, after a message, unless the file could be loaded and was made for this chip.
static std::unique_ptr<dl::Model> load(const char *name, const uint8_t *content)
{
    std::unique_ptr<dl::Model> model(new dl::Model((const char *)content, fbs::MODEL_LOCATION_IN_FLASH_RODATA));
    if (model->get_inputs().size() != 1 || model->get_outputs().size() != 1) {
        printf("ERROR: %s can't be loaded, the log above says why\\n", name);
        return nullptr;
    }
    const std::string target = model->get_metadata_prop("target");
    if (target != CONFIG_IDF_TARGET) {
        printf("ERROR: %s is for \\"%s\\", this chip is %s\\n", name, target.c_str(), CONFIG_IDF_TARGET);
        return nullptr;
    }
    return model;
}

static bool fill(dl::TensorBase *input)
{
    const std::vector<int> shape = {1, PICTURE_HEIGHT, PICTURE_WIDTH, PICTURE_CHANNELS};
    if (input->get_dtype() != dl::DATA_TYPE_INT8 || input->get_exponent() != PICTURE_EXPONENT ||
        input->get_shape() != shape) {
        printf("ERROR: the model takes other pictures than the one in picture.h\\n");
        return false;
    }
    std::copy(std::begin(picture), std::end(picture), (int8_t *)input->data);
    return true;
}

// Empty, after a message, unless the output is one integer for each class.
static std::vector<float> read_logits(dl::TensorBase *output)
{
    const std::vector<int> shape = {1, NB_CLASSES};
    const bool wide = output->get_dtype() == dl::DATA_TYPE_INT16; // with mixed precision
    if (output->get_shape() != shape || (!wide && output->get_dtype() != dl::DATA_TYPE_INT8)) {
        printf("ERROR: the output is not %d logits of 8 or 16 bits\\n", NB_CLASSES);
        return {};
    }
    const int exponent = output->get_exponent();
    const float scale = DL_SCALE(exponent);
    std::vector<float> logits;
    for (int i = 0; i < NB_CLASSES; i++) {
        logits.push_back(wide ? dl::dequantize(((const int16_t *)output->data)[i], scale)
                              : dl::dequantize(((const int8_t *)output->data)[i], scale));
    }
    return logits;
}

static std::string class_name(int number)
{
    return NB_CLASSES == 100 ? std::to_string(number / 10) + "." + std::to_string(number % 10) : std::to_string(number);
}

extern "C" void app_main(void)
{
    std::unique_ptr<dl::Model> model = load("@debug_file", debug_espdl);
    if (model) {
        printf("TEST %s\\n", model->test() == ESP_OK ? "PASS" : "FAIL");
        model.reset(); // its memory is needed for the next
    }
    model = load("@release_file", release_espdl);
    // The picture goes in right before each run, which may overwrite it.
    if (!model || !fill(model->get_inputs().begin()->second)) {
        return;
    }
    model->run();
    const std::vector<float> logits = read_logits(model->get_outputs().begin()->second);
    if (logits.empty()) {
        return;
    }
    const auto best = std::max_element(logits.begin(), logits.end());
    float sum = 0;
    for (float logit : logits) {
        sum += std::exp(logit - *best);
    }
    // Of tenths, which people disagree about by one, the two neighbours count, too.
    const int classes = logits.size(), read = best - logits.begin(), reach = classes == 100 ? 1 : 0;
    float confidence = 0;
    for (int step = -reach; step <= reach; step++) {
        confidence += std::exp(logits[(read + step + classes) % classes] - *best) / sum;
    }
    const char *verdict = confidence < UNSURE_BELOW ? " (unsure)" : "";
    printf("CLASS %s%s, confidence %.1f %%, ", class_name(read).c_str(), verdict, 100 * confidence);
    printf("true class %s\\n", class_name(PICTURE_CLASS).c_str());
    model->profile();
}
"""

_TEMPLATES = {
    "README.md": _README,
    "CMakeLists.txt": _TOP_CMAKE,
    "sdkconfig.defaults": _SDKCONFIG,
    "partitions.csv": _PARTITIONS,
    "main/CMakeLists.txt": _MAIN_CMAKE,
    "main/idf_component.yml": _MANIFEST,
    "main/picture.h": _PICTURE,
    "main/main.cpp": _MAIN,
}


def folder(target: str) -> str:
    """Name of the project's folder for a chip of ``chips.CHIPS``."""
    return f"espdl_{target}"


def files(
    target: str,
    release_file: str,
    debug_file: str,
    picture: np.ndarray,
    true_class: int,
    nb_classes: int,
    threshold: float | None,
) -> dict[str, str]:
    """Text files of the project by their path in its folder; the caller adds the two files to ``MODEL_FOLDER`` in it.

    Both files must carry the metadata property ``target`` with the chip's name as here (``esp32``, not esp-ppq's
    ``c``), take int8 pictures with exponent -7 and end in logits of 8 or 16 bits.

    Args:
        target: a name in ``chips.CHIPS``.
        release_file: name of the ``.espdl`` file to be used.
        debug_file: name of an ``.espdl`` file of the same model with test values in it.
        picture: ``(H, W, C)`` uint8, as the model takes it.
        true_class: class of the picture, 0 to ``nb_classes`` - 1.
        nb_classes: 10 or 100.
        threshold: confidence 0..1 below which a reading is called unsure; None: no reading is.

    Raises:
        ProjectError: names that can't stand in CMake and C files.
    """
    height, width, channels = picture.shape
    rows = (picture.astype(np.int16).reshape(height, -1) - 128).tolist()
    values = {
        "target": target,
        "chip_settings": _CHIP_SETTINGS[target],
        "debug_file": debug_file,
        "release_file": release_file,
        "debug_symbol": _symbol(debug_file),
        "release_symbol": _symbol(release_file),
        "idf_versions": IDF_VERSIONS,
        "esp_dl_version": ESP_DL_VERSION,
        "nb_classes": nb_classes,
        "threshold": f"{threshold or 0:.6f}",
        "height": height,
        "width": width,
        "channels": channels,
        "true_class": true_class,
        "rows": "\n".join("    " + ", ".join(map(str, row)) + "," for row in rows),
    }
    return {path: _Template(text).substitute(values) for path, text in _TEMPLATES.items()}


def _symbol(file_name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.espdl", file_name):
        raise ProjectError(
            f"the name {file_name!r} can't be used in an ESP-IDF project: only letters, digits and . _ - are allowed, "
            "with a letter or a digit first and .espdl last"
        )
    # As CMake's MAKE_C_IDENTIFIER, with which esp-dl names embedded files.
    return "_binary_" + re.sub(r"[.-]", "_", file_name) + "_start"
