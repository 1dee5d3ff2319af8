import ast
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from utils import chips, espdl_project

CPP = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror"]


def picture(channels: int = 1) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (32, 20, channels), dtype=np.uint8)
    values.flat[:3] = 0, 128, 255
    return values


def project(target: str = "esp32s3", nb_classes: int = 100, channels: int = 1, **changed) -> dict[str, str]:
    names = {"release_file": f"dig-1.2_{target}.espdl", "debug_file": f"dig-1.2_{target}_debug.espdl"}
    values = {**names, "true_class": 7, "threshold": None, **changed}
    return espdl_project.files(target=target, picture=picture(channels), nb_classes=nb_classes, **values)


def write(texts: dict[str, str], folder: Path) -> None:
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def numbers(header: str) -> list[int]:
    return ast.literal_eval("[" + re.search(r"\{(.*)\}", header, re.DOTALL)[1] + "]")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_written_as_the_model_takes_it(channels):
    header = project(channels=channels, true_class=43)["main/picture.h"]
    np.testing.assert_array_equal(numbers(header), picture(channels).astype(int).ravel() - 128)
    assert numbers(header)[:3] == [-128, 0, 127]
    defined = dict(re.findall(r"#define PICTURE_(\w+) (\d+)", header))
    assert defined == {"HEIGHT": "32", "WIDTH": "20", "CHANNELS": str(channels), "CLASS": "43"}


@pytest.mark.parametrize("target", chips.CHIPS)
def test_the_project_is_for_one_chip(target):
    texts = project(target)
    assert espdl_project.folder(target) == f"espdl_{target}"
    assert f"project(espdl_{target})" in texts["CMakeLists.txt"]
    settings = texts["sdkconfig.defaults"].splitlines()
    assert f'CONFIG_IDF_TARGET="{target}"' in settings
    assert {"CONFIG_SPIRAM=y", "CONFIG_ESPTOOLPY_FLASHSIZE_4MB=y", "CONFIG_PARTITION_TABLE_CUSTOM=y"} <= set(settings)
    assert all(line.startswith("# ") or re.fullmatch(r'CONFIG_\w+=[\w".]+', line) for line in settings)
    others = "|".join({"esp32", "esp32s3", "esp32p4"} - {target})
    assert not re.search(rf"(?i)\b({others})\b|CONFIG_({others})_", "".join(texts.values()))
    assert f"idf.py set-target {target} build flash monitor" in texts["README.md"]


def test_the_partition_fits_the_flash():
    offset, size = re.search(
        r"^factory, app, factory, (\w+), (\d+)M$", project()["partitions.csv"], re.MULTILINE
    ).groups()
    assert int(offset, 16) % 0x10000 == 0
    assert int(offset, 16) + (int(size) << 20) <= 4 << 20


def test_esp_dl_is_pinned():
    texts = project()
    manifest = texts["main/idf_component.yml"]
    assert f'espressif/esp-dl: "=={espdl_project.ESP_DL_VERSION}"' in manifest
    assert espdl_project.ESP_DL_VERSION in texts["README.md"]
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(manifest) == {
        "dependencies": {
            "idf": espdl_project.IDF_VERSIONS,
            "espressif/esp-dl": f"=={espdl_project.ESP_DL_VERSION}",
        }
    }


def test_cmake_embeds_the_files_where_the_caller_puts_them():
    texts = project("esp32p4")
    cmake = texts["main/CMakeLists.txt"]
    embedded = re.findall(r"target_add_aligned_binary_data\(\$\{COMPONENT_LIB\} (\S+) BINARY\)", cmake)
    assert embedded == ["dig-1.2_esp32p4_debug.espdl", "dig-1.2_esp32p4.espdl"]
    assert f"{espdl_project.MODEL_FOLDER}/CMakeLists.txt" in texts
    assert f"{espdl_project.MODEL_FOLDER}/{re.search(r'SRCS (.+?) ', cmake)[1]}" in texts
    symbols = re.findall(r'extern const uint8_t (\w+)\[\] asm\("(\w+)"\);', texts["main/main.cpp"])
    assert symbols == [
        ("debug_espdl", "_binary_dig_1_2_esp32p4_debug_espdl_start"),
        ("release_espdl", "_binary_dig_1_2_esp32p4_espdl_start"),
    ]


# ESP-IDF's and esp-dl's functions as far as main/CMakeLists.txt uses them. The symbol is made as in esp-dl's
# fbs_loader/cmake/data_file_embed_asm_aligned.cmake: MAKE_C_IDENTIFIER of "_binary_", the file's name and "_start".
CMAKE_STUBS = {
    "run.cmake": """\
cmake_minimum_required(VERSION 3.16)
function(idf_build_get_property var property)
    set(${var} ___idf_other ___idf_espressif__esp-dl PARENT_SCOPE)
endfunction()
function(idf_component_get_property var component property)
    set(${var} ${CMAKE_CURRENT_LIST_DIR}/../${component} PARENT_SCOPE)
endfunction()
function(idf_component_register)
    message("register ${ARGN}")
endfunction()
set(COMPONENT_LIB library)
include(main/CMakeLists.txt)
""",
    "espressif__esp-dl/fbs_loader/cmake/utilities.cmake": """\
function(target_add_aligned_binary_data target embed_file embed_type)
    string(MAKE_C_IDENTIFIER "_binary_${embed_file}_start" symbol)
    message("${target} ${embed_type} ${cmake_dir} ${symbol}")
endfunction()
""",
}


@pytest.mark.parametrize("name", ["dig-1.2", "7_Seg.v2-", "0"])
def test_cmake_gives_the_files_the_symbols_that_main_cpp_reads(name, tmp_path):
    if not shutil.which("cmake"):
        pytest.skip("no cmake")
    texts = project(release_file=f"{name}.espdl", debug_file=f"{name}.debug.espdl")
    write({**texts, **CMAKE_STUBS}, tmp_path)
    result = subprocess.run(["cmake", "-P", "run.cmake"], cwd=tmp_path, check=True, capture_output=True, text=True)
    scripts = tmp_path / "main" / ".." / "espressif__esp-dl" / "fbs_loader" / "cmake"
    symbols = re.findall(r'asm\("(\w+)"\)', texts["main/main.cpp"])
    assert result.stderr.splitlines() == [
        "register SRCS;main.cpp;REQUIRES;esp-dl",
        *(f"library BINARY {scripts} {symbol}" for symbol in symbols),
    ]


def test_no_placeholder_is_left():
    for text in project().values():
        assert text.isascii()
        assert "@" not in text
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


@pytest.mark.parametrize(
    "name", ["", ".dig", "-dig", "_dig", "a b", 'a"b', "a/b", "..", "a\n", "zähler", "$x", "a;b", "@x"]
)
def test_names_that_could_break_c_or_cmake_are_refused(name):
    for argument in ("release_file", "debug_file"):
        with pytest.raises(espdl_project.ProjectError, match="can't be used in an ESP-IDF project"):
            project(**{argument: f"{name}.espdl"})


@pytest.mark.parametrize("name", ["main.cpp", "dig.espdl\n", "dig"])
def test_only_espdl_files_are_embedded(name):
    with pytest.raises(espdl_project.ProjectError, match=r"\.espdl last"):
        project(release_file=name)


# Stand-ins for the headers of esp-dl and ESP-IDF, cut down to what main.cpp uses. Signatures as in espressif/esp-dl:
# dl/model/include/dl_model_base.hpp (commit 31f7801, class Model), dl/tensor/include/dl_tensor_base.hpp (class
# TensorBase, dtype_t, dequantize), fbs_loader/include/fbs_model.hpp (commit 6314095, model_location_type_t) and
# dl/dl_define.hpp (DL_SCALE, runtime_mode_t). ExponentInfo is what newer versions of dl_tensor_base.hpp have instead of
# int; with it, comparing `exponent` with a number is ambiguous.
STUBS = {
    "esp_err.h": """\
#pragma once
typedef int esp_err_t;
#define ESP_OK 0
#define ESP_FAIL -1
""",
    "sdkconfig.h": """\
#pragma once
#define CONFIG_IDF_TARGET "esp32s3"
""",
    "dl_model_base.hpp": """\
#pragma once
#include "esp_err.h"
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#define DL_SCALE(exponent) (((exponent) > 0) ? (1 << (exponent)) : ((float)1.0 / (1 << -(exponent))))

namespace fbs {
typedef enum {
    MODEL_LOCATION_IN_FLASH_RODATA = 0,
    MODEL_LOCATION_IN_FLASH_PARTITION = 1,
    MODEL_LOCATION_IN_SDCARD = 2,
} model_location_type_t;
}

namespace dl {
typedef enum { DATA_TYPE_FLOAT = 1, DATA_TYPE_INT8 = 3, DATA_TYPE_INT16 = 5 } dtype_t;
typedef enum { RUNTIME_MODE_AUTO = 0, RUNTIME_MODE_SINGLE_CORE = 1, RUNTIME_MODE_MULTI_CORE = 2 } runtime_mode_t;
typedef enum { MEMORY_MANAGER_GREEDY = 0, LINEAR_MEMORY_MANAGER = 1 } memory_manager_t;

template <typename T, typename RT = float>
RT dequantize(T input, float scale);

class ExponentInfo {
    int m_exponent;

public:
    ExponentInfo(int exponent = 0) : m_exponent(exponent) {}
    operator int() const { return m_exponent; }
    bool operator==(const ExponentInfo &other) const { return m_exponent == other.m_exponent; }
    bool operator!=(const ExponentInfo &other) const { return !(*this == other); }
};

class TensorBase {
public:
    std::vector<int> shape;
    dtype_t dtype;
    ExponentInfo exponent;
    void *data;
    std::vector<int> get_shape() { return this->shape; }
    int get_exponent() { return this->exponent; }
    dtype_t get_dtype() { return this->dtype; }
};

class Model {
    std::map<std::string, TensorBase *> m_inputs, m_outputs;

public:
    Model(const char *rodata_address_or_partition_label_or_path,
          fbs::model_location_type_t location = fbs::MODEL_LOCATION_IN_FLASH_RODATA,
          int max_internal_size = 0,
          memory_manager_t mm_type = MEMORY_MANAGER_GREEDY,
          const uint8_t *key = nullptr,
          bool param_copy = true);
    virtual ~Model();
    virtual void run(runtime_mode_t mode = RUNTIME_MODE_SINGLE_CORE);
    esp_err_t test();
    void profile(bool sort_module_by_latency = false);
    virtual std::map<std::string, TensorBase *> &get_inputs();
    virtual std::map<std::string, TensorBase *> &get_outputs();
    std::string get_metadata_prop(const std::string &key);
};
} // namespace dl
""",
}

# A model that gives the logits named by the environment and prints what it was given.
FAKE_MODEL = """\
#include "dl_model_base.hpp"
#include <cstdio>
#include <cstdlib>
#include <sstream>

extern "C" void app_main(void);
extern const uint8_t debug_file[] asm("_binary_dig_1_2_esp32s3_debug_espdl_start");
extern const uint8_t release_file[] asm("_binary_dig_1_2_esp32s3_espdl_start");
const uint8_t debug_file[] = "debug", release_file[] = "release";

static int number(const char *name) { return atoi(getenv(name)); }
static std::vector<int16_t> input_data(1920), output_data(128);
static int alive = 0;

namespace dl {
template <typename T, typename RT>
RT dequantize(T input, float scale) { return static_cast<RT>(input) * scale; }
template float dequantize<int8_t, float>(int8_t input, float scale);
template float dequantize<int16_t, float>(int16_t input, float scale);

Model::Model(const char *content, fbs::model_location_type_t location, int, memory_manager_t, const uint8_t *, bool)
{
    printf("load %s at %d, alive %d\\n", content, location, ++alive);
    if (number("LOADS")) {
        m_inputs["input"] = new TensorBase{{1, 32, 20, 1}, DATA_TYPE_INT8, number("INPUT_EXPONENT"), input_data.data()};
        m_outputs["output"] = new TensorBase{{1, number("CLASSES")}, (dtype_t)number("OUTPUT_TYPE"),
                                             number("OUTPUT_EXPONENT"), output_data.data()};
    }
}
Model::~Model() { alive--; }
void Model::run(runtime_mode_t)
{
    int8_t *input = (int8_t *)m_inputs["input"]->data;
    printf("input");
    for (int i = 0; i < 640; i++) {
        printf(" %d", input[i]);
        input[i] = 99;
    }
    std::istringstream logits(getenv("LOGITS"));
    for (int i = 0, logit; logits >> logit; i++) {
        if (m_outputs["output"]->dtype == DATA_TYPE_INT8) {
            ((int8_t *)output_data.data())[i] = logit;
        } else {
            output_data[i] = logit;
        }
    }
    printf("\\n");
}
esp_err_t Model::test() { return number("TEST"); }
void Model::profile(bool) { printf("profile\\n"); }
std::map<std::string, TensorBase *> &Model::get_inputs() { return m_inputs; }
std::map<std::string, TensorBase *> &Model::get_outputs() { return m_outputs; }
std::string Model::get_metadata_prop(const std::string &key) { return key == "target" ? getenv("TARGET") : ""; }
} // namespace dl

int main() { app_main(); }
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[int, Path]:
    """The program for 10 classes, unsure below 0.5, and for 100, never unsure; linked with the fake model."""
    if not shutil.which("g++"):
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("espdl_project")
    write({**STUBS, "fake.cpp": FAKE_MODEL}, folder)
    subprocess.run([*CPP, "-c", "fake.cpp", "-o", "fake.o"], cwd=folder, check=True)
    for nb_classes, threshold in ((10, 0.5), (100, None)):
        write(project(nb_classes=nb_classes, threshold=threshold), folder / str(nb_classes))
        main = f"{nb_classes}/main/main.cpp"
        subprocess.run([*CPP, "-I.", main, "fake.o", "-o", f"program{nb_classes}"], cwd=folder, check=True)
    return {nb_classes: folder / f"program{nb_classes}" for nb_classes in (10, 100)}


def run(program: Path, logits: list[int], **changed: object) -> list[str]:
    settings = {"LOADS": 1, "INPUT_EXPONENT": -7, "OUTPUT_TYPE": 3, "OUTPUT_EXPONENT": -3, "TEST": 0}
    settings |= {"TARGET": "esp32s3", "CLASSES": len(logits), "LOGITS": " ".join(map(str, logits)), **changed}
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    return subprocess.run([program], env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize(("output_type", "exponent", "top"), [(3, -3, 127), (3, 0, 2), (3, 1, -1), (5, -9, 3000)])
@pytest.mark.parametrize(("nb_classes", "best", "names"), [(100, 43, ("4.3", "0.7")), (10, 9, ("9", "7"))])
def test_the_program_prints_class_and_confidence(programs, nb_classes, best, names, output_type, exponent, top):
    logits = [top - 2 - i % 5 for i in range(nb_classes)]
    logits[best] = top
    lines = run(programs[nb_classes], logits, OUTPUT_TYPE=output_type, OUTPUT_EXPONENT=exponent)
    powers = [math.exp((logit - top) * 2.0**exponent) for logit in logits]
    counted = [best] if nb_classes == 10 else [best - 1, best, best + 1]
    confidence = 100 * sum(powers[i] for i in counted) / sum(powers)
    unsure = " (unsure)" if nb_classes == 10 and confidence < 50 else ""
    assert lines == [
        "load debug at 0, alive 1",
        "TEST PASS",
        "load release at 0, alive 1",
        "input " + " ".join(map(str, picture().astype(int).ravel() - 128)),
        f"CLASS {names[0]}{unsure}, confidence {confidence:.1f} %, true class {names[1]}",
        "profile",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"LOADS": 0}, "ERROR: dig-1.2_esp32s3.espdl can't be loaded"),
        ({"TARGET": "esp32p4"}, 'ERROR: dig-1.2_esp32s3.espdl is for "esp32p4", this chip is esp32s3'),
        ({"INPUT_EXPONENT": -8}, "ERROR: the model takes other pictures"),
        ({"OUTPUT_TYPE": 1}, "ERROR: the output is not 10 logits"),
        ({"CLASSES": 11}, "ERROR: the output is not 10 logits"),
    ],
)
def test_the_program_refuses_other_models(programs, changed, message):
    lines = run(programs[10], list(range(10)), **changed)
    assert lines[-1].startswith(message)
    assert not any(line.startswith("CLASS") for line in lines)


def test_the_program_reports_failing_test_values(programs):
    lines = run(programs[10], list(range(10)), TEST=-1)
    assert "TEST FAIL" in lines
    assert "TEST PASS" not in lines


def test_main_cpp_differs_between_chips_in_the_names_only():
    for target in chips.CHIPS:
        sources = [project(name)["main/main.cpp"].replace(f"_{name}", "") for name in (target, "esp32s3")]
        assert sources[0] == sources[1]
