import importlib.util
import sys

import pytest

from utils import chips
from utils.settings import CHOICES, SettingsError, load


def wanted(**overrides):
    return load(**{"esp_dl_quantize": True, **overrides})


@pytest.fixture
def installed(monkeypatch):
    """Makes packages look installed, or with an argument some of them missing."""

    def pretend(*missing: str):
        real = importlib.util.find_spec
        known = {name: None if name in missing else object() for name in chips.PACKAGES}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: known[name] if name in known else real(name))

    pretend()
    return pretend


def test_known_chips_pass(installed):
    chips.check(wanted(esp_dl_targets=list(chips.CHIPS)))


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["esp8266"], "ESP_DL_TARGETS: unknown target 'esp8266': known are esp32, esp32s3, esp32p4"),
        ([], "ESP_DL_TARGETS is empty"),
        ([32], "unknown target 32"),
        ([["x"]], "unknown target"),
    ],
)
def test_wrong_targets_are_refused(installed, targets, reason):
    with pytest.raises(SettingsError, match=reason):
        chips.check(wanted(esp_dl_targets=targets))


def test_missing_packages_are_named_with_the_line_that_installs_them(installed):
    installed("esp_ppq", "onnx")
    with pytest.raises(SettingsError, match=r"esp_ppq, onnx missing; pip install -r requirements-espdl\.txt"):
        chips.check(wanted())


def test_a_python_that_esp_ppq_lacks_is_said_first(installed, monkeypatch):
    installed("esp_ppq")
    monkeypatch.setattr(sys, "version_info", (3, 12, 9))
    with pytest.raises(SettingsError, match="esp_ppq missing; pip install"):
        chips.check(wanted())
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(SettingsError, match=r"esp-ppq needs Python 3\.11 or 3\.12"):
        chips.check(wanted())
    installed()
    chips.check(wanted())


@pytest.mark.parametrize("flags", [{"esp_dl_quantize": False}, {"quantize_model": False}])
def test_who_does_not_want_esp_dl_needs_nothing(installed, flags):
    installed(*chips.PACKAGES)
    chips.check(wanted(esp_dl_targets=["esp8266"], **flags))


def test_a_machine_that_only_trains_needs_nothing(installed, monkeypatch):
    installed(*chips.PACKAGES)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    chips.check(wanted())
    with pytest.raises(SettingsError, match="unknown target 'esp8266'"):
        chips.check(wanted(esp_dl_targets=["esp8266"]))


def test_modes_are_those_of_the_settings():
    espdl = pytest.importorskip("utils.espdl")
    assert set(espdl.TRIED) == {*CHOICES["esp_dl_mode"], "trial"}
    assert {name for names in espdl.TRIED.values() for name in names} == set(espdl.RECIPES)


def test_accumulators_are_as_wide_as_the_chips():
    widths = {name: bits["int8"] for name, bits in chips.ACCUMULATOR_BITS.items()}
    # What is taken to fit, and doesn't, makes another reading.
    assert widths == {"esp32": 32, "esp32s3": 20, "esp32p4": 32}


def test_file_names():
    assert chips.file_name("cnn32", "esp32p4") == "cnn32_esp32p4.espdl"
