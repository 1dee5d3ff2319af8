from pathlib import Path

import pytest

from utils import quantization
from utils.quantization import resolve
from utils.settings import load

README = Path(__file__).parent.parent / "README.md"


def settings(quantize_model, use_qat, esp_dl_quantize):
    return load(quantize_model=quantize_model, use_qat=use_qat, esp_dl_quantize=esp_dl_quantize)


@pytest.mark.parametrize(
    ("flags", "label", "files", "note"),
    [
        ((False, False, False), "FLOAT", (False, False, False), ""),
        ((False, True, False), "FLOAT", (False, False, False), "USE_QAT is ignored"),
        ((False, False, True), "FLOAT", (False, False, False), "ESP_DL_QUANTIZE is ignored"),
        ((False, True, True), "FLOAT", (False, False, False), "USE_QAT and ESP_DL_QUANTIZE are ignored"),
        ((True, False, False), "PTQ", (True, False, False), ""),
        ((True, True, False), "QAT", (True, True, False), ""),
        ((True, False, True), "PTQ", (True, False, True), ""),
        ((True, True, True), "QAT", (True, True, True), ""),
    ],
)
def test_every_row_of_the_table(flags, label, files, note, caplog):
    caplog.set_level("INFO")
    mode = resolve(settings(*flags), "cnn32", quantizable=True)
    assert mode.label == label
    assert (mode.int8, mode.qat, mode.espdl) == files
    assert mode.note.startswith(note)
    assert bool(mode.note) == bool(note)
    assert len(caplog.records) == bool(note)


@pytest.mark.parametrize("flags", quantization.MODES)
def test_what_is_never_quantised_switches_all_flags_off(flags):
    mode = resolve(settings(*flags), "validator", quantizable=False)
    assert (mode.label, mode.int8, mode.qat, mode.espdl) == ("FLOAT", False, False, False)
    ignored = "validator is never quantised: the quantisation flags do not apply to it"
    assert mode.note == (ignored if any(flags) else "")


def test_flags_stay_as_the_user_wrote_them():
    wanted = settings(True, True, False)
    resolve(wanted, "validator", quantizable=False)
    assert wanted == settings(True, True, False)


def test_the_readme_shows_the_table():
    rows = ["| QUANTIZE_MODEL | USE_QAT | ESP_DL_QUANTIZE | trained | files besides `best_model.keras` |"]
    rows.append("|---|---|---|---|---|")
    for flags, mode in quantization.MODES.items():
        files = ["`<model>_float.tflite` (float32)"]
        files += ["`<model>_quantized.tflite` (int8)"] * mode.int8
        files += ["`<model>_ptq.tflite` or `_qat` (int8, to compare)"] * mode.qat
        files += ["`<model>_<chip>.espdl` (int8)"] * mode.espdl
        trained = "float, then `QAT_EPOCHS` with fake quantisation" if mode.qat else "float"
        ignored = f" ({mode.note.split(':')[0]})" if mode.note else ""
        rows.append(f"| {' | '.join(map(str, flags))} | {trained}{ignored} | {', '.join(files)} |")
    assert "\n".join(["", *rows, "", ""]) in README.read_text()
