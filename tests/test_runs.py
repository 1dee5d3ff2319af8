import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from utils import runs
from utils.runs import RunError

ROOT = Path(__file__).parent.parent


def test_name_tells_architecture_classes_colour_and_mode(tiny):
    settings = tiny(nb_classes=100, input_channels=3)
    assert runs.name(settings, "PTQ", "20250131-180000") == "cnn32_100cls_RGB_PTQ_20250131-180000"
    assert runs.name(tiny(), "FLOAT", "x") == "cnn32_10cls_GRAY_FLOAT_x"


def test_no_two_runs_share_a_folder(tiny):
    settings = tiny()
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runs.create(settings, "PTQ"), range(24)))
    assert len(set(folders)) == 24
    assert all(folder.is_dir() for folder in folders)


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    settings = tiny(output_dir=str(tmp_path / "file" / "below"))
    with pytest.raises(RunError, match=r"OUTPUT_DIR .*file/below: cannot make a folder there"):
        runs.create(settings, "PTQ")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")

    def half(path):
        path.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.write(target, half)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_settings_come_back(tiny, tmp_path):
    settings = tiny(epochs=7)
    runs.save_settings(tmp_path, settings, "abc")
    assert runs.read_settings(tmp_path) == runs.Started(settings, "cnn32", "abc", None)


def test_what_cannot_be_resumed_is_refused(tiny, tmp_path):
    with pytest.raises(RunError, match=r"no run folder to resume \(settings.json is missing\)"):
        runs.read_settings(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(RunError, match="not the settings of a run"):
        runs.read_settings(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"settings": {"EPOCHS": 1}}))
    with pytest.raises(RunError, match="not the settings of a run"):
        runs.read_settings(tmp_path)
    runs.save_settings(tmp_path, tiny(), "abc", fine_tuned_from="zoo/best_model.keras")
    with pytest.raises(RunError, match=r"can't be resumed; start it again with --model_path zoo/best_model\.keras$"):
        runs.read_settings(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RunError, match="finished"):
        runs.read_settings(tmp_path)


def test_a_folder_in_use_is_refused_to_other_processes(tmp_path):
    code = f"from pathlib import Path; from utils import runs; runs.hold(Path({str(tmp_path)!r})).__enter__()"
    with runs.hold(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert "another process is working in this run folder" in done.stderr
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    code = "import sys; from pathlib import Path; from utils import runs; runs.write_text(Path(sys.argv[1]), '\\u201c')"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "a"], cwd=ROOT, env={**os.environ, **plain}, check=True)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "\u201c"


def test_files_that_cannot_be_written_are_refused_first(tmp_path):
    runs.check_writable([None, tmp_path / "a.csv"])
    for file in (tmp_path, tmp_path / "gone" / "a.csv"):
        with pytest.raises(runs.RunError, match="cannot be written"):
            runs.check_writable([file])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(runs.RunError, match="pipe: cannot be written"):
        runs.check_writable([tmp_path / "pipe"])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(runs.RunError, match="loop: cannot be written"):
        runs.check_writable([tmp_path / "loop"])
    with pytest.raises(runs.RunError, match="is named twice"):
        runs.check_writable([tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "x" / ".." / "a.csv"])


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link.csv").symlink_to("real.csv")
    runs.write_text(tmp_path / "link.csv", "new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"


def test_an_output_folder_that_cannot_be_is_refused_first(tiny, tmp_path):
    runs.check_output(tiny(output_dir=str(tmp_path / "a" / "b")))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(runs.RunError, match=r"OUTPUT_DIR \S+/file/x: \S+/file cannot be written to"):
        runs.check_output(tiny(output_dir=str(tmp_path / "file" / "x")))
    # Of a disk that is not mounted, for instance.
    (tmp_path / "gone").symlink_to(tmp_path / "disk")
    for folder in ("gone", "gone/x"):
        with pytest.raises(runs.RunError, match=r"OUTPUT_DIR \S+: \S+/gone cannot be written to"):
            runs.check_output(tiny(output_dir=str(tmp_path / folder)))


def test_a_fine_tuned_model_has_learnt_what_the_one_before_had(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = (tmp_path / name / runs.BEST_MODEL_FILE for name in ("old", "new"))
    assert runs.learnt(old).tolist() == []
    runs.save_learnt(old.parent, np.array([2**64 - 1, 5], np.uint64))
    runs.save_learnt(new.parent, np.array([7, 5], np.uint64), old)
    assert runs.learnt(new).tolist() == [5, 7, 2**64 - 1]


@pytest.mark.parametrize("content", [b"", b"x", np.arange(3), np.zeros((2, 2), np.uint64), np.array([{}])])
def test_a_damaged_record_of_what_was_learnt_is_refused(tmp_path, content):
    path = tmp_path / runs.LEARNT_FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(RunError, match=r"learnt\.npy: not a record of learnt pictures .*; remove it to go on without"):
        runs.learnt(tmp_path / runs.BEST_MODEL_FILE)
