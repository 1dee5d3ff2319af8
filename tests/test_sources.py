import argparse
import ntpath
import os
import types
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest

from utils import sources
from utils.sources import DataSource, SourceError


def test_declaration_and_its_defaults():
    declared = {"name": "kitchen", "type": "filename", "path": "pictures", "weight": 2}
    source = DataSource.from_dict(declared, "DATA_SOURCES")
    assert source.path == Path("pictures")
    assert (source.weight, source.labels, source.whole_digits, source.augmented) == (2.0, "labels.txt", False, False)
    synthetic = DataSource.from_dict({"name": "s", "type": "synthetic", "count": 10}, "TEST_SOURCES")
    assert (synthetic.path, synthetic.count, synthetic.parameter) == (None, 10, "TEST_SOURCES")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wieght": 2}, 'unknown key "wieght" for its type; did you mean "weight"?'),
        ({"zzz": 2}, 'unknown key "zzz" for its type; known are name, type'),
        ({"count": 5}, 'unknown key "count" for its type'),
        (
            {"type": "folders"},
            "unknown \"type\" 'folders'; types are synthetic, filename, label_file, folder_structure",
        ),
        ({"type": ["filename"]}, "unknown \"type\" ['filename']"),
        ({"weight": -1}, '"weight" is -1; accepted is a number of 0 to 10,000'),
        ({"weight": 10**400}, "accepted is a number of 0 to 10,000"),
        ({"weight": float("nan")}, '"weight" is nan'),
        ({"weight": float("inf")}, '"weight" is inf'),
        ({"weight": True}, '"weight" is True'),
        ({"weight": "2"}, "\"weight\" is '2'"),
        ({"weight": np.float32(2)}, '"weight" is np.float32(2.0)'),
        ({"path": ""}, "\"path\" is ''; accepted is a folder's path"),
        ({"path": 3}, '"path" is 3'),
        ({"path": None}, '"path" is None'),
        ({"type": "label_file", "labels": "a\0"}, '"labels" is'),
        ({"name": " "}, "\"name\" is ' '"),
        ({"name": "a/b"}, '"name" is \'a/b\'; accepted is a text that is not empty, without "/"'),
        ({"augmented": 1}, '"augmented" is 1; accepted is True or False'),
        ({"whole_digits": "yes"}, "\"whole_digits\" is 'yes'"),
    ],
)
def test_declarations_that_are_refused(change, message):
    with pytest.raises(SourceError) as error:
        DataSource.from_dict({"name": "kitchen", "type": "filename", "path": "x", **change}, "TEST_SOURCES")
    assert message in str(error.value)
    assert "TEST_SOURCES in parameters.py" in str(error.value)


def test_a_tilde_is_the_home_folder_where_there_is_such_a_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = [DataSource.from_dict({"name": "k", "type": "filename", "path": p}, "X").path for p in ("~/x", "~nosuch/x")]
    assert paths == [Path("/home/me/x"), Path("~nosuch/x")]


def test_a_wrong_declaration_is_named_before_a_folder_is_added(tmp_path):
    with pytest.raises(SourceError, match='"path" is None'):
        sources.with_source([{"name": "x", "type": "filename", "path": None}], tmp_path, 1.0)


@pytest.mark.parametrize("count", [0, -1, 10_000_001, 1.0, True, "5", None, np.int64(5)])
def test_counts_that_are_refused(count):
    with pytest.raises(SourceError, match=r'"count" is .*; accepted is a whole number of 1 to 10,000,000'):
        DataSource.from_dict({"name": "s", "type": "synthetic", "count": count}, "DATA_SOURCES")


@pytest.mark.parametrize(
    ("declared", "missing"),
    [
        ({"type": "filename", "path": "x"}, "name"),
        ({"name": "kitchen", "path": "x"}, "type"),
        ({"name": "kitchen", "type": "filename"}, "path"),
        ({"name": "kitchen", "type": "synthetic"}, "count"),
    ],
)
def test_missing_keys(declared, missing):
    with pytest.raises(SourceError, match=f'key "{missing}" is missing'):
        DataSource.from_dict(declared, "DATA_SOURCES")


def test_lists_of_sources():
    first = {"name": "a", "type": "filename", "path": "x"}
    assert [s.name for s in sources.parse_sources([first, {**first, "name": "b"}], "DATA_SOURCES")] == ["a", "b"]
    assert sources.parse_sources([], "TEST_SOURCES") == ()
    with pytest.raises(SourceError, match="data source 'a': 2 entries of DATA_SOURCES have this name"):
        sources.parse_sources([first, first], "DATA_SOURCES")
    with pytest.raises(SourceError, match=r"DATA_SOURCES in parameters.py: needs a list of dicts, got dict"):
        sources.parse_sources(first, "DATA_SOURCES")
    with pytest.raises(SourceError, match="needs a dict"):
        sources.parse_sources(["kitchen"], "DATA_SOURCES")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["3.4_a.png", "5_b.png"], "filename"),
        (["kitchen/3.4_a.png", "cellar/5_b.png"], "filename"),
        (["a.png", "labels.txt"], "label_file"),
        (["3/a.png", "4.5/b.png", "NaN/c.png"], "folder_structure"),
        (["3/a.png", "4_b.png"], "filename"),
        (["meter/3/a.png", "meter/4/b.png"], "folder_structure"),
        (["3/a.png", "4/b.png", ".DS_Store", "readme.txt", "__MACOSX/._a.png"], "folder_structure"),
        (["3/3.4_a.png", "4/3.8_b.png"], "filename"),
        (["readme.txt"], "filename"),
        (["7/a.png", "34/b.png"], "folder_structure"),
        (["7/7_a.png", "7/8.png", "7/c.png", "3/d.png"], "folder_structure"),
        (["7/a.png", "10/b.png"], "folder_structure"),
        (["10/7.1_a.png", "11/3.4_b.png"], "filename"),
        (["3.4/3.4_a.png", "9.9/9.9_b.png", "NaN/N_c.png"], "folder_structure"),
        (["meter/3/3_a.png", "meter/4/4_b.png"], "folder_structure"),
        (["3/3.0_a.png", "4/4.0_b.png"], "filename"),
        (["20240131/09/a.png", "20240131/13/b.png"], "filename"),
        (["kitchen/20240131/09/N.N_a.png", "kitchen/20240131/13/3.4_b.png"], "filename"),
    ],
)
def test_a_folder_is_declared_as_what_it_looks_like(tmp_path, files, kind):
    for name in files:
        (tmp_path / "my meter" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my meter" / name).touch()
    declared = sources.declare(tmp_path / "my meter", 7.0)
    assert declared == {"name": "my meter", "type": kind, "path": str(tmp_path / "my meter"), "weight": 7.0}
    assert DataSource.from_dict(declared, "DATA_SOURCES").type == kind


@pytest.mark.parametrize("files", [("1/1.4_a.png", "2/3.0_b.png"), ("1/IMG.png", "2/3.0_b.png", "12/1.2_c.png")])
def test_labels_of_folders_and_of_names_that_contradict_are_refused(tmp_path, files):
    """One folder for each place of the counter looks like one folder a class, also where a picture has no label."""
    # A digit is the least that they contradict each other by.
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    match = r"the label of 2/3.0_b.png may be 2 or what its name begins with; list .* in DATA_SOURCES .*type"
    with pytest.raises(SourceError, match=match):
        sources.with_source([], tmp_path, 1.0)
    assert sources.declare(tmp_path / "2", 1.0)["type"] == "filename"
    for kind in ("filename", "folder_structure"):
        listed = {"name": "mine", "type": kind, "path": str(tmp_path)}
        assert sources.with_source([listed], tmp_path, 300.0) == ([{**listed, "weight": 300.0}], "mine")


def test_a_missing_folder_is_refused(tmp_path):
    (tmp_path / "3_a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"3_a\.png is a file: give the folder that it lies in"):
        sources.declare(tmp_path / "3_a.png", 1)
    with pytest.raises(SourceError, match="nowhere not found: give a folder with labelled pictures"):
        sources.declare(tmp_path / "nowhere", 1.0)
    (tmp_path / "loop").symlink_to("loop")
    listed = [{"name": "loop", "type": "filename", "path": tmp_path / "loop"}]
    assert sources.with_source(listed, tmp_path / "loop", 3.0) == ([{**listed[0], "weight": 3.0}], "loop")
    with pytest.raises(SourceError, match="loop not found: give a folder with labelled pictures"):
        sources.with_source([], tmp_path / "loop", 1.0)


def test_a_folder_that_may_not_be_entered_is_named_and_no_file_in_it(tmp_path, monkeypatch):
    def refusing(call):
        def called(path, *args, **more):
            if str(path).startswith(f"{tmp_path}/"):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **more)

        return called

    # Not by its rights, as root enters every folder.
    for name in ("stat", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(PermissionError) as error:
        sources.declare(tmp_path, 1.0)
    assert error.value.filename == f"{tmp_path}/"
    # One that is listed is named where it is read.
    listed = {"name": "x", "type": "filename", "path": str(tmp_path)}
    assert sources.with_source([listed], tmp_path, 2.0) == ([{**listed, "weight": 2.0}], "x")


def test_folders_on_two_drives_are_apart(monkeypatch):
    monkeypatch.setattr(sources, "os", types.SimpleNamespace(path=ntpath))
    monkeypatch.setattr(sources, "Path", PureWindowsPath)
    sources.check_apart(["C:\\pictures", "D:\\pictures\\a", "C:\\pictures2"])
    with pytest.raises(SourceError, match=r"folder c:\\Pictures\\a lies in C:\\pictures: its pictures"):
        sources.check_apart(["C:\\pictures", "c:\\Pictures\\a"])


def test_a_listed_folder_only_gets_the_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kitchen").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kitchen")
    listed = [{"name": "mine", "type": "label_file", "path": "kitchen", "labels": "x.txt", "weight": 0.5}]
    declared, name = sources.with_source(listed, tmp_path / "link", 300.0)
    assert name == "mine"
    assert declared == [{**listed[0], "weight": 300.0}]
    assert listed[0]["weight"] == 0.5


def test_a_listed_folder_whose_label_file_is_not_listed_is_refused(tmp_path):
    (tmp_path / "labels.txt").touch()
    listed = [{"name": "failed", "type": "filename", "path": str(tmp_path)}]
    for known in (listed[0], {**listed[0], "type": "label_file", "labels": "first.txt"}):
        with pytest.raises(SourceError, match=r"'failed' .* does not go by the labels.txt in its folder: set its"):
            sources.with_source([known], tmp_path, 300.0)
    listed[0]["type"] = "label_file"
    assert sources.with_source(listed, tmp_path, 300.0) == ([{**listed[0], "weight": 300.0}], "failed")


def test_a_new_folder_is_appended_under_a_free_name(tmp_path):
    (tmp_path / "kitchen").mkdir()
    listed = [{"name": name, "type": "synthetic", "count": 9} for name in ("kitchen", "kitchen-2")]
    declared, name = sources.with_source(listed, tmp_path / "kitchen", 300.0)
    assert name == "kitchen-3"
    tested = [{"name": "kitchen-3", "type": "synthetic", "count": 9}]
    assert sources.with_source(listed, tmp_path / "kitchen", 300.0, tested)[1] == "kitchen-4"
    assert declared[:2] == listed
    assert declared[2]["name"] == "kitchen-3"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "20000"])
def test_a_weight_that_no_source_may_have_is_no_argument(text):
    with pytest.raises(argparse.ArgumentTypeError, match="above 0, up to 10,000"):
        sources.weight(text)
    assert sources.weight("300") == 300.0
