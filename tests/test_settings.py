import dataclasses
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from utils.settings import Settings, SettingsError, from_dict, load, parse_assignments

ROOT = Path(__file__).parent.parent


def test_parameters_and_fields_have_the_same_names_in_the_same_order():
    lines = (ROOT / "parameters.py").read_text().splitlines()
    names = [line.split(" = ")[0] for line in lines if line[:1].isupper() and " = " in line]
    assert names == [field.name.upper() for field in dataclasses.fields(Settings)]


def test_every_parameter_has_a_comment():
    with (ROOT / "parameters.py").open("rb") as file:
        commented = {token.start[0] for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT}
    for number, line in enumerate((ROOT / "parameters.py").read_text().splitlines(), 1):
        if line[:1].isupper() and " = " in line:
            # A list that goes on over several lines has its comment above.
            assert number in commented or number - 1 in commented, line


def test_importing_parameters_imports_and_prints_nothing():
    code = "import sys; before = set(sys.modules); import parameters; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['parameters']\n"
    assert done.stderr == ""


def test_defaults_are_valid_and_as_documented():
    settings = load()
    assert settings.input_shape == (32, 20, 1)
    assert (settings.nb_classes, settings.model_architecture) == (10, "cnn32")
    assert settings.data_sources[0]["type"] == "synthetic"


def test_settings_survive_json():
    settings = load(epochs=3, deploy_targets=("esphome",), data_sources=[{"name": "a", "path": Path("x")}])
    assert (settings.deploy_targets, settings.data_sources) == (["esphome"], [{"name": "a", "path": "x"}])
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("EPOCHS=5", "epochs", 5),
        ("epochs = 5", "epochs", 5),
        ("LEARNING_RATE=1", "learning_rate", 1.0),
        ("LEARNING_RATE=1e-4", "learning_rate", 1e-4),
        ("AUGMENT=False", "augment", False),
        ("OPTIMIZER=sgd", "optimizer", "sgd"),
        ("OPTIMIZER='sgd'", "optimizer", "sgd"),
        ("OUTPUT_DIR=/tmp/a b=c", "output_dir", "/tmp/a b=c"),
        ("OUTPUT_DIR=123", "output_dir", "123"),
        ("OUTPUT_DIR=C:\\models\\new", "output_dir", "C:\\models\\new"),
        ("DATA_SOURCES=[{'name': 'k', 'type': 'filename', 'path': 'x'}]", "data_sources",
         [{"name": "k", "type": "filename", "path": "x"}]),
    ],
)  # fmt: skip
def test_set_takes_literals_and_bare_text(assignment, field, value):
    assert parse_assignments([assignment]) == {field: value}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("EPOCHS", "write NAME=VALUE"),
        ("EPOCH=5", "did you mean EPOCHS"),
        ("BATCHSIZE=5", "did you mean BATCH_SIZE"),
        ("EPOCHS=five", "EPOCHS: 'five' is no Python literal of type int"),
        ("EPOCHS=2.5", "EPOCHS = 2.5: needs a value of type int"),
        ("EPOCHS=True", "needs a value of type int, got bool"),
        ("EPOCHS=0", "EPOCHS = 0: accepted are 1..100000"),
        ("LEARNING_RATE=nan", "LEARNING_RATE"),
        ("LEARNING_RATE=1e999", "LEARNING_RATE = inf"),
        ("AUGMENT=1", "AUGMENT = 1: needs a value of type bool"),
        ("NB_CLASSES=11", "NB_CLASSES = 11: accepted are 10, 100"),
        ("OPTIMIZER=adma", "OPTIMIZER = 'adma': accepted are 'adam', 'adamw'"),
        ("INPUT_CHANNELS=2", "INPUT_CHANNELS = 2: accepted are 1, 3"),
        ("TEST_SHARE=0.6", "TEST_SHARE = 0.6: accepted are 0..0.5"),
        ("DATA_SOURCES=__import__('os')", "no Python literal of type list"),
        ("TUNER_AXES={[]: 1}", "is no Python literal of type dict"),
        ("EPOCHS=1" + "0" * 400, "accepted are 1..100000"),
        ("LEARNING_RATE=1" + "0" * 400, "LEARNING_RATE = inf"),
        ("SEED=" + "(" * 300 + ")" * 300, "SEED"),
    ],
)
def test_set_refuses_with_the_name_and_what_is_accepted(assignment, message):
    with pytest.raises(SettingsError, match=message.replace("(", r"\(").replace(")", r"\)")):
        parse_assignments([assignment])


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = load(output_dir="~/runs", start_from="~/a.keras", teachers=["~/b.keras", "~nosuch/c.keras"])
    assert (settings.output_dir, settings.start_from) == ("/home/me/runs", "/home/me/a.keras")
    assert settings.teachers == ["/home/me/b.keras", "~nosuch/c.keras"]


@pytest.mark.parametrize("value", ["", "a\0b", __file__])
def test_where_no_folder_can_be_is_refused_as_output_dir(value):
    with pytest.raises(SettingsError, match=r"OUTPUT_DIR = .*: needs the path of a folder"):
        load(output_dir=value)


def test_parameters_that_contradict_each_other_are_refused():
    with pytest.raises(SettingsError, match="TEST_SHARE = 0 without TEST_SOURCES"):
        load(test_share=0.0)
    with pytest.raises(SettingsError, match=r"VALIDATION_SHARE \+ TEST_SHARE"):
        load(test_share=0.5, validation_share=0.5)
    with pytest.raises(SettingsError, match="BATCH_SIZE = 3: needs at least 4 with GPUS = 2"):
        load(batch_size=3, gpus=2)
    with pytest.raises(SettingsError, match=r"TEACHERS\[1\] = '': needs the path"):
        load(teachers=["a.keras", ""])
    with pytest.raises(SettingsError, match="DATA_SOURCES is empty"):
        load(data_sources=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EPOCHS = 3\nEPOCHS = = 5\n", r"parameters\.py line 2: invalid syntax: EPOCHS = = 5"),
        (
            "EPOCHS = 3\nAUGMENT = Ture\n",
            r"parameters\.py line 2: AUGMENT = Ture: NameError: name 'Ture'",
        ),
        (
            "import nonesuch\n",
            r"parameters\.py line 1: import nonesuch: ModuleNotFoundError: ",
        ),
        (
            "EPOCHS = 30\nEpochs = 3\n",
            r"parameters\.py: write EPOCHS for Epochs, names are in capitals",
        ),
        (
            'EPOCHS = 3\nOUTPUT_DIR = "C:\\Users\\me"\n',
            r"parameters\.py line 2: .* truncated \\UXXXXXXXX escape; write / for \\ in a path: OUTPUT_DIR = ",
        ),
        ("EPOCHS = 3\n\0", r"parameters\.py: source code string cannot contain null bytes: save it as text in UTF-8"),
        (None, r"parameters\.py is missing beside the scripts"),
    ],
)
def test_a_slip_in_parameters_is_named_with_its_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "parameters.py").write_text(text)
    code = f"import sys; sys.path.append({str(ROOT)!r}); from utils import settings; sys.path.remove({str(ROOT)!r})\n"
    code += "try:\n    settings.load()\nexcept settings.SettingsError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.match(message, done.stdout)


def test_a_typo_or_a_missing_line_in_parameters_is_named():
    values = dataclasses.asdict(load())
    with pytest.raises(SettingsError, match="unknown parameter EPOCSH; did you mean EPOCHS"):
        from_dict({**values, "epocsh": 3})
    del values["epochs"]
    with pytest.raises(SettingsError, match=r"missing in parameters\.py: EPOCHS"):
        from_dict(values)
