import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.kitchen import put
from utils import encodings, pictures, prediction
from utils.prediction import PredictionError, Reading
from utils.recognizers import Facts, Recognizer, RecognizerError


def sure(images: np.ndarray) -> np.ndarray:
    """Class 3, the surer the brighter the picture."""
    confidence = images.mean(axis=(1, 2, 3)) / 255
    probabilities = np.zeros((len(images), 10))
    probabilities[:, 3], probabilities[:, 4] = 0.5 + confidence / 2, 0.5 - confidence / 2
    return probabilities


FACTS = Facts("10 digits, softmax", "uint8", encodings.RAW, True, None, None)
MODEL = Recognizer(Path("m.tflite"), (32, 20, 3), tuple("0123456789"), sure, None, FACTS)
DARK, BRIGHT = (10, 10, 10), (250, 250, 250)


def folder_of(tmp_path: Path) -> Path:
    put(tmp_path / "in" / "b" / "dark.png", DARK)
    put(tmp_path / "in" / "bright.jpg", BRIGHT)
    put(tmp_path / "in" / "a" / "dark.png", (12, 10, 10))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def test_a_folder_with_unreadable_pictures(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "photo.HEIC").write_bytes(b"....ftypheic")
    files = prediction.find_pictures(folder)
    readings = prediction.read(MODEL, files)
    assert [str(one.file.relative_to(tmp_path / "in")) for one in readings] == [
        *("a/dark.png", "b/dark.png", "bright.jpg", "broken.png", "photo.HEIC"),
    ]
    assert [one.reading for one in readings] == ["3", "3", "3", None, None]
    assert readings[3].error.startswith(pictures.DAMAGED)
    assert readings[4].error == "damaged picture: no JPEG, PNG, BMP or WebP picture"
    assert prediction.read(MODEL, files[3:]) == readings[3:]
    text = prediction.summary(readings, MODEL, 0.9).splitlines()
    assert ["unsure" in line for line in text] == [True, True, False, False, False, True]
    assert text[2].startswith("   3   99.0%")
    assert text[-1] == (
        "5 pictures, 2 of them unsure (confidence below 0.9), 2 unreadable; read with m.tflite"
    )  # fmt: skip


def test_pictures_are_decoded_as_for_training(tmp_path):
    path = put(tmp_path / "a.png", (200, 100, 50), size=(40, 90))
    seen = []
    model = dataclasses.replace(
        MODEL, input_shape=(32, 20, 1), probabilities=lambda images: seen.append(images) or sure(images)
    )
    prediction.read(model, [path])
    assert (seen[0][0] == pictures.decode(str(path), 32, 20, 1)).all()


def test_more_pictures_than_are_read_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK", 2)
    files = [put(tmp_path / f"{number}.png", (50 * number,) * 3) for number in range(5)]
    confidences = [one.confidence for one in prediction.read(MODEL, files)]
    assert len(confidences) == 5
    assert confidences == sorted(confidences)


def test_json_has_every_key_on_one_line():
    lines = [prediction.as_json(one) for one in (Reading(Path("a\n.png"), 3, "3", 0.5), Reading(Path("b"), error="x"))]
    assert [json.loads(line) for line in lines] == [
        {"file": "a\n.png", "class": 3, "reading": "3", "confidence": 0.5, "error": None},
        {"file": "b", "class": None, "reading": None, "confidence": None, "error": "x"},
    ]
    assert not any("\n" in line for line in lines)


def test_odd_names_are_spelled_out():
    readings = [Reading(Path("a\x1b[2J\n\udcff.png"), 3, "3", 1.0), Reading(Path("b"), error="bad\x1b")]
    text = prediction.summary(readings, MODEL, 0.9)
    text.encode()
    assert "\x1b" not in text
    assert len(text.splitlines()) == 3


def test_nothing_to_read(tmp_path):
    with pytest.raises(PredictionError, match="no such file or folder"):
        prediction.find_pictures(tmp_path / "gone")
    with pytest.raises(PredictionError, match="no picture"):
        prediction.find_pictures(tmp_path)
    assert prediction.find_pictures(tmp_path / ".." / tmp_path.name / put(tmp_path / "a.png").name)


def test_of_folders_the_one_that_can_not_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path / "open" / "locked" / "a.png")
    listed = os.scandir

    def scandir(folder):
        if "locked" in str(folder):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/open/locked/'"):
        prediction.find_pictures(tmp_path)


def test_outputs_that_are_no_numbers(tmp_path):
    broken = dataclasses.replace(MODEL, probabilities=lambda images: np.full((len(images), 10), np.nan))
    with pytest.raises(RecognizerError, match="not finite"):
        prediction.read(broken, [put(tmp_path / "a.png")])


def saved(tmp_path: Path, readings: list[Reading], threshold: float = 0.9) -> list[str]:
    prediction.open_folder(tmp_path / "out")
    return [path.name for path in prediction.save_unsure(readings, threshold, tmp_path / "out")]


def test_unsure_pictures_are_copied_under_their_reading(tmp_path):
    readings = prediction.read(MODEL, prediction.find_pictures(folder_of(tmp_path)))
    assert saved(tmp_path, readings) == ["3_dark.png", "3_dark-2.png"]
    assert (tmp_path / "out" / "3_dark.png").read_bytes() == (tmp_path / "in" / "a" / "dark.png").read_bytes()
    # A second time everything is there.
    assert saved(tmp_path, readings) == ["3_dark.png", "3_dark-2.png"]
    assert sorted(os.listdir(tmp_path / "out")) == ["3_dark-2.png", "3_dark.png"]


def test_many_pictures_of_one_name_are_copied_with_one_look_at_each_copy(tmp_path, monkeypatch):
    files = [put(tmp_path / "in" / str(number) / "digit1.png", (number, 0, 0)) for number in range(40)]
    readings = [Reading(file, 3, "3.0", 0.1) for file in files]
    looks, digest = [], prediction.runs.sha256
    monkeypatch.setattr(prediction.runs, "sha256", lambda path: looks.append(path) or digest(path))
    names = ["3.0_digit1.png", *(f"3.0_digit1-{number}.png" for number in range(2, 41))]
    assert saved(tmp_path, readings) == names
    assert saved(tmp_path, readings[::-1]) == names[::-1]
    assert len(looks) == 40 + 80


def test_a_threshold_of_1_saves_what_was_read_with_certainty_too(tmp_path):
    readings = [Reading(put(tmp_path / "in" / "x.png"), 34, "3.4", 1.0), Reading(tmp_path / "y", error="damaged")]
    assert saved(tmp_path, readings, threshold=0.999) == []
    assert saved(tmp_path, readings, threshold=1.0) == ["3.4_x.png"]


def test_a_corrected_label_is_not_undone_by_saving_again(tmp_path):
    picture = put(tmp_path / "in" / "x.png")
    assert saved(tmp_path, [Reading(picture, 34, "3.4", 0.1)]) == ["3.4_x.png"]
    (tmp_path / "out" / "3.4_x.png").rename(tmp_path / "out" / "3.6_x.png")
    assert saved(tmp_path, [Reading(picture, 34, "3.4", 0.1)]) == ["3.6_x.png"]
    assert os.listdir(tmp_path / "out") == ["3.6_x.png"]


def test_saved_pictures_inside_the_folder_are_not_read_again(tmp_path):
    folder = folder_of(tmp_path)
    before = prediction.find_pictures(folder)
    prediction.open_folder(folder / "unsure")
    prediction.save_unsure(prediction.read(MODEL, before), 0.9, folder / "unsure")
    assert prediction.find_pictures(folder, without=folder / "unsure") == before


def test_a_link_to_itself_is_a_picture_that_cannot_be_opened(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    found = prediction.find_pictures(tmp_path, without=tmp_path / "unsure")
    assert [one.error for one in prediction.read(MODEL, found)] == [
        "file can't be opened: Too many levels of symbolic links"
    ]


def test_a_folder_with_pictures_only_where_they_are_saved_is_not_called_empty(tmp_path):
    put(tmp_path / "unsure" / "3.0_x.png")
    with pytest.raises(PredictionError, match=f"^{tmp_path}: all its pictures are in {tmp_path}/unsure, which --save"):
        prediction.find_pictures(tmp_path, without=tmp_path / "unsure")


def test_pictures_are_saved_above_their_folder_but_not_in_it(tmp_path):
    folder = folder_of(tmp_path)
    assert prediction.find_pictures(folder, without=tmp_path) == prediction.find_pictures(folder)
    with pytest.raises(PredictionError, match=f"^{folder}: --save names the folder of the pictures themselves"):
        prediction.find_pictures(folder, without=folder / "a" / "..")


def test_a_copy_that_fails_leaves_no_empty_picture(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    picture = put(tmp_path / "x.png")
    monkeypatch.setattr(prediction.shutil, "copyfile", full)
    with pytest.raises(PredictionError, match=r"cannot save pictures there \(No space left"):
        saved(tmp_path, [Reading(picture, 3, "3", 0.1)])
    assert os.listdir(tmp_path / "out") == []


def test_nothing_is_overwritten_not_even_through_a_link(tmp_path):
    picture = put(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "3_x.png").symlink_to(tmp_path / "gone")
    (tmp_path / "out" / "3_x-2.png").write_text("mine")
    assert saved(tmp_path, [Reading(picture, 3, "3", 0.1)]) == ["3_x-3.png"]
    assert not (tmp_path / "gone").exists()
    assert (tmp_path / "out" / "3_x-2.png").read_text() == "mine"


@pytest.mark.parametrize("name", ["..png", "-rf.png", "a\nb.png", "ü" * 120 + ".png", "\udcff.png", "3.4_a.png"])
def test_odd_names_stay_in_the_folder(tmp_path, name):
    # Pillow asks the name for the format, which not each of these gives.
    picture = put(tmp_path / "in" / "x.png").rename(tmp_path / "in" / name)
    (copy,) = saved(tmp_path, [Reading(picture, 34, "3.4", 0.1)])
    assert copy.startswith("3.4_")
    assert copy.endswith("png")
    assert os.listdir(tmp_path / "out") == [copy]
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PredictionError, match="cannot save pictures there"):
        prediction.open_folder(tmp_path / "out")
