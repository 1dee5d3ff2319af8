import logging
import os
import time
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import earlier_objects_hidden
from tests.kitchen import declare, put, put_many, read, read_lines
from utils import pictures, readers, synthetic
from utils.pictures import PictureError
from utils.sources import DataSource, SourceError


def test_file_names_labels_and_meters(folder):
    for name in ("3.4_b.jpg", "cellar/left/9.9_a.PNG", "cellar/2.1.0_c.bmp", "cellar/0.0.webp", "N_x.jpeg"):
        put(folder / name)
    for hidden in ("._3.4_b.jpg", ".trash/1.0_a.jpg"):
        put(folder / hidden)
    (folder / "notes.txt").write_text("no picture")
    data = read(folder)
    assert data.files == ("3.4_b.jpg", "cellar/0.0.webp", "cellar/2.1.0_c.bmp", "cellar/left/9.9_a.PNG")
    assert data.tenths.tolist() == [34, 0, 21, 99]
    assert data.meters == ("cellar", "cellar/left", "kitchen")
    assert [data.meters[i] for i in data.meter_ids] == ["kitchen", "cellar", "cellar", "cellar/left"]
    assert data.skipped == {"not readable": 1}
    assert (data.tenths.dtype, data.meter_ids.dtype, data.images.dtype) == (np.int16, np.int32, np.uint8)
    assert data.images.shape == (4, 32, 20, 3)


@pytest.mark.parametrize(
    ("names", "meters"),
    [
        (["20240131/09/3.4_a", "20240131/23/3.5_a", "20240201/3.6_a"], ["kitchen"]),
        (["cellar/20240131/09/3.4_a", "cellar/20240201/10/3.5_a", "cellar/3.6_a"], ["cellar"]),
        (["2024-01-31/09/3.4_a", "2024-02-01/3.5_a", "2024-0201/3.6_a"], ["2024-0201", "kitchen"]),
        (["20240131/main/3.4_a", "20241301/3.5_a", "09/3.6_a"], ["09", "20240131/main", "20241301"]),
        (["3/3.4_a", "3/N_a", "4/3.6_a", "0/9.1_a", "0/0.9_a"], ["kitchen"]),
        (["cellar/3/3.4_a", "cellar/4/4.4_a", "attic/3/3.9_a"], ["attic", "cellar"]),
        (["3/3.4_a", "3/4.0_a", "4/4.4_a"], ["3", "4"]),
        (["3/3.4_a", "3.4_a"], ["3", "kitchen"]),
    ],
)
def test_folders_that_say_when_or_which_digit_are_no_meters(folder, names, meters):
    for name in names:
        put(folder / f"{name}.png")
    assert list(read(folder).meters) == meters


def test_hours_below_a_day_that_is_the_source_are_no_meters(tmp_path):
    for hour in ("09", "13"):
        put(tmp_path / "20240131" / hour / "3.4_a.png")
    assert read(tmp_path / "20240131").meters == ("kitchen",)
    for root in ("C:/log/20240131", r"C:\log\20240131"):
        assert pictures.without_time(root, "13") == pictures.without_time(root, "") == ""
        assert pictures.without_time(root, "main/20240201/07") == "main"


def test_linked_folders_are_read_once_and_loops_end(folder, tmp_path):
    put(tmp_path / "elsewhere/1.0_a.png")
    put(folder / "3.4_a.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert read(folder).files == ("3.4_a.png", "linked/1.0_a.png")


@pytest.mark.parametrize(
    ("folders", "tenths", "meters"),
    [
        (["7", "34", "0"], [0, 34, 7], ["kitchen"]),
        (["7", "11"], [11, 7], ["kitchen"]),
        (["7", "3.4", "0.0"], [0, 34, 70], ["kitchen"]),
        (["m1/3.4", "m2/3.4", "m2/x/7.0"], [34, 34, 70], ["m1", "m2", "m2/x"]),
        (["m1/20240131/09/3.4", "m1/20240131/10/7.0"], [34, 70], ["m1"]),
        (["99", "N", "34"], [34, 99], ["kitchen"]),
    ],
)
def test_folder_structure(folder, folders, tenths, meters):
    for name in folders:
        put(folder / name / "a.png")
    data = read(folder, "folder_structure")
    assert data.tenths.tolist() == tenths
    assert list(data.meters) == meters


@pytest.mark.parametrize("name", ["misc", "100", "103", "3.4/misc"])
def test_folders_that_are_no_class_are_bad_labels(folder, name):
    for path in ("34/a.png", "34/b.png", "34/c.png", f"{name}/a.png"):
        put(folder / path)
    with pytest.raises(SourceError, match=rf"1 of 4 entries are unusable.*{name}/a.png: bad label"):
        read(folder, "folder_structure")


def test_whole_digit_sources_need_to_say_so(folder):
    put(folder / "3/a.png")
    put(folder / "7/a.png")
    wanted = r'kitchen.*list the folder in DATA_SOURCES in parameters.py with "whole_digits": True; .*NB_CLASSES = 10'
    with pytest.raises(SourceError, match=wanted):
        read(folder, "folder_structure")
    assert read(folder, "folder_structure", whole_digits=True).tenths.tolist() == [30, 70]
    assert read(folder, "folder_structure", nb_classes=10).tenths.tolist() == [30, 70]


def test_label_file(folder):
    for name in ("a b.png", "images/c.png", "images/cellar/d.png", "hall/e.png", "f.png"):
        put(folder / name)
    text = "\ufeff# our meters\n\na b.png\t3.4\r\nc.png   0.1\ncellar/d.png\t9.9\nhall\\e.png 2.0\nf.png N\nc.png 0.1\n"
    data = read_lines(folder, text)
    assert data.files == ("a b.png", "images/c.png", "images/cellar/d.png", "hall/e.png")
    assert data.tenths.tolist() == [34, 1, 99, 20]
    assert [data.meters[i] for i in data.meter_ids] == ["kitchen", "kitchen", "cellar", "hall"]
    assert data.skipped == {"not readable": 1}


@pytest.mark.parametrize("heading", ["filename,label", "Image name;Digit", "filename\tlabel"])
def test_label_files_of_other_tools(folder, heading, caplog):
    caplog.set_level("INFO")
    for name in ("a,1.png", "b c.JPG", "d.png", "e.png", "f.png", "g.png"):
        put(folder / name)
    data = read_lines(folder, f"{heading}\na,1.png,3.4\nb c.JPG; 0.1\nd.png ,9.9\ne.png\t2.0\nf.png;6,0\ng.png\t7,3\n")
    assert data.files == ("a,1.png", "b c.JPG", "d.png", "e.png", "f.png", "g.png")
    assert data.tenths.tolist() == [34, 1, 99, 20, 60, 73]
    assert data.skipped == {}
    shown = heading.replace("\t", " ")
    assert f"labels.txt line 1 is passed over as a heading: {shown}" in caplog.text


@pytest.mark.parametrize("line", ["gone.png,label", "gone 3.4"])
def test_a_first_line_whose_picture_is_missing_is_no_heading(folder, line):
    put(folder / "a.png")
    with pytest.raises(SourceError, match=r"labels.txt line 1: missing picture: gone\S* is neither"):
        read_lines(folder, f"{line}\na.png,3.4\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_label_files_end_their_lines_as_any_machine_does(folder, end):
    put(folder / "a.png")
    put(folder / "b\u2028.png")
    (folder / "labels.txt").write_bytes(end.join(["\ufeffa.png 3.4", "", "b\u2028.png 3.5", ""]).encode())
    assert read(folder, "label_file").tenths.tolist() == [34, 35]
    (folder / "labels.txt").write_bytes(end.encode().join([b"a.png 3.4", b"", b"b\xff.png 3.4"]))
    with pytest.raises(SourceError, match=r"labels.txt line 3 is not UTF-8"):
        read(folder, "label_file")


def test_pictures_that_a_label_file_does_not_list_are_counted(folder, caplog):
    for name in ("a.png", "b.png", "images/c.png"):
        put(folder / name)
    assert read_lines(folder, "b.png 3.4\n").files == ("b.png",)
    assert "2 pictures are not listed in labels.txt and are left out, first: a.png" in caplog.text
    caplog.clear()
    read_lines(folder, "a.png 1.0\nb.png 3.4\nc.png N\n")
    assert "not listed" not in caplog.text
    with pytest.raises(SourceError, match=r"labels.txt lists no picture"):
        read_lines(folder, "# nothing yet\n")


def test_a_picture_whose_name_begins_a_comment_can_be_listed(folder, caplog):
    for name in ("a.png", "images/#1.png", "#2/b.png"):
        put(folder / name)
    assert read_lines(folder, "a.png 3.4\n#1.png 1.0\n#2/b.png 2.0\n").files == ("a.png",)
    assert "first: #2/b.png; to read them, add lines (./ in front of a name keeps its #" in caplog.text
    caplog.clear()
    listed = read_lines(folder, "a.png 3.4\n./#1.png 1.0\n./#2/b.png 2.0\n")
    assert dict(zip(listed.files, listed.tenths.tolist(), strict=True)) == {
        "a.png": 34,
        "images/#1.png": 10,
        "#2/b.png": 20,
    }
    assert "not listed" not in caplog.text


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_are_found_however_they_are_spelt(folder, listed, stored):
    listed, stored = (unicodedata.normalize(form, "zähler/é.png") for form in (listed, stored))
    put(folder / "images" / stored)
    assert read_lines(folder, f"{listed} 3.4\n").files == (f"images/{stored}",)


def test_label_file_of_another_name_in_a_folder(folder):
    put(folder / "2024/a.png")
    (folder / "2024/train.csv").write_text("a.png 3.4\n")
    assert read(folder, "label_file", labels="2024/train.csv").files == ("2024/a.png",)


def test_an_absolute_path_into_the_folder_is_told_from_one_out_of_it(folder):
    put(folder / "a.png")
    with pytest.raises(SourceError, match=r"a\.png is an absolute path; name it from the folder"):
        read_lines(folder, f"{folder / 'a.png'}\t3.4")


@pytest.mark.parametrize("name", ["../outside.png", "hall/../../outside.png", "{absolute}", "..\\outside.png"])
def test_label_file_may_not_leave_the_folder(folder, tmp_path, name):
    put(tmp_path / "outside.png")
    put(folder / "a.png")
    name = name.format(absolute=tmp_path / "outside.png")
    with pytest.raises(SourceError, match=r"data source 'kitchen': labels.txt line 2: .*outside.png lies outside"):
        read_lines(folder, f"a.png 3.4\n{name} 3.4\n")


def test_an_absolute_path_is_refused_without_a_look_there(folder, monkeypatch):
    # Of Windows: looking at //server/share logs on to that server.
    put(folder / "a.png")
    for looks in ("realpath", "islink"):
        look = getattr(os.path, looks)
        monkeypatch.setattr(os.path, looks, lambda path, look=look: pytest.fail() if "server" in path else look(path))
    with pytest.raises(SourceError, match=r"//server/share/a.png lies outside the folder"):
        read_lines(folder, "//server/share/a.png\t3.4")


def test_links_may_not_leave_the_folder(folder, tmp_path):
    # Its path begins as the folder's own.
    beside = put(tmp_path / "kitchen_old/a.png")
    (folder / "linked").symlink_to(beside.parent)
    (folder / "b.png").symlink_to(beside)
    for line in ("linked/a.png 3.4", "b.png 3.4"):
        with pytest.raises(SourceError, match=r"labels.txt line 1: \S+ lies outside the folder"):
            read_lines(folder, line)
    put(folder / "c.png")
    (folder / "d.png").symlink_to(folder / "c.png")
    assert read_lines(folder, "d.png 3.4").files == ("d.png",)


def test_contradicting_lines_are_both_named(folder):
    put_many(folder, 200, "images/{}.png")
    good = "".join(f"{number}.png 3.4\n" for number in range(2, 200))
    two = r"images/0\.png: '3.4' in line 1 and '3.5' in line 3"
    with pytest.raises(SourceError, match=rf"labels.txt gives 1 picture two labels: {two}\. Leave one line for each"):
        read_lines(folder, f"0.png 3.4\n\nimages/0.png 3.5\n{good}")
    with pytest.raises(
        SourceError, match=r"gives 2 pictures two labels: .*1\.png: '0.0' in line 1 and 'N' in line 2; "
    ):
        read_lines(folder, f"1.png 0.0\n1.png N\n0.png 1.0\n0.png 2.0\n{good}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("gone.png 3.4", "labels.txt line 2: missing picture: gone.png"),
        ("hall 3.4", "labels.txt line 2: missing picture: hall"),
        (
            "a.png|3.4",
            "missing picture: a.png|3.4 is neither beside it nor in images/; a line needs the picture's name, a tab,",
        ),
        ("a.png,3,4", "labels.txt line 2: bad label: label '3,4'"),
        ("a.png;3,4,7", "labels.txt line 2: bad label: label '3.4,7'"),
        ("a.png,3.4,7", "labels.txt line 2: bad label: label '3.4,7'"),
        ("image,label", "labels.txt line 2: missing picture: image,label"),
        ("a.png", "labels.txt line 2: bad label: label ''"),
        ("b.png 12", "labels.txt line 2: bad label: label '12'"),
        ("\0.png 3.4", "labels.txt line 2: missing picture"),
        ("b.png 3.4\tc\033[2J.png 3.4", r"missing picture: b.png 3.4\tc\x1b[2J.png is neither beside it"),
    ],
)
def test_problems_of_label_files_name_the_line(folder, line, problem):
    for name in ("a.png", "b.png", "hall/c.png"):
        put(folder / name)
    with pytest.raises(SourceError) as error:
        read_lines(folder, f"a.png 3.4\n{line}\n")
    assert problem in str(error.value)


def test_label_files_that_cannot_be_read(folder):
    with pytest.raises(SourceError, match=r'kitchen.*labels.txt can\'t be read.*mend its "labels" in DATA_SOURCES'):
        read(folder, "label_file")
    (folder / "labels.txt").write_bytes(b"a.png 3.4\nb\xff.png 3.4\n")
    with pytest.raises(SourceError, match=r"labels.txt line 2 is not UTF-8"):
        read(folder, "label_file")


def test_broken_pictures_under_one_percent_are_skipped(folder, caplog):
    put_many(folder, 100)
    (folder / "1.0_broken.jpg").write_bytes(b"not a picture")
    for _ in ("decoded", "cached"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data = read(folder)
        assert data.skipped == {"damaged picture": 1}
        assert len(data.images) == len(data.files) == len(data.tenths) == len(data.meter_ids) == 100
        assert "1.0_broken.jpg" not in data.files
        assert data.images.min() > 0
        assert len(caplog.records) == 1
        assert "'kitchen': 1 of 101 skipped, first: 1.0_broken.jpg: damaged picture: no JPEG" in caplog.text


def test_broken_pictures_from_one_percent_on_are_an_error(folder):
    put_many(folder, 99)
    (folder / "1.0_broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(SourceError, match=r"data source 'kitchen': 1 of 100 entries.*1.0_broken.jpg: damaged picture"):
        read(folder)


def test_many_problems_show_the_first_three_and_what_to_do(folder):
    put_many(folder, 5, "wheel{}.png")
    with pytest.raises(SourceError) as error:
        read(folder)
    assert "5 of 5 entries" in str(error.value)
    assert str(error.value).count("bad label") == 3
    assert "The label stands in front of a picture's name (3.4_a.jpg), where predict.py with" in str(error.value)
    assert "or is its folder's name (3.4/a.jpg) if no picture lies elsewhere" in str(error.value)
    assert "or stands in the folder's labels.txt with a line for each picture: name, tab, label" in str(error.value)
    assert 'Correct or remove them, or mend its "path" in DATA_SOURCES in parameters.py' in str(error.value)


def test_kinds_of_problems_count_together(folder):
    put_many(folder, 299)
    put(folder / "wheel.png")
    (folder / "3.4_x.jpg").write_bytes(b"")
    assert read(folder).skipped == {"bad label": 1, "damaged picture": 1}
    (folder / "3.4_y.jpg").symlink_to("nowhere")
    assert read(folder).skipped == {"bad label": 1, "damaged picture": 1, "file can't be opened": 1}
    (folder / "3.4_z.jpg").symlink_to("nowhere")
    with pytest.raises(SourceError, match="4 of 303"):
        read(folder)


def test_a_jpeg_by_another_ending_is_read(folder):
    put(folder / "3.4_x.jpg").rename(folder / "3.4_x.jfif")
    data = read(folder)
    assert (data.files, data.tenths.tolist()) == (("3.4_x.jfif",), [34])


def test_pictures_of_formats_that_are_not_read_are_counted(folder, caplog):
    put_many(folder, 299)
    put(folder / "3.4_x.gif")
    (folder / "3.4_x.HEIC").write_bytes(b"....ftypheic")
    (folder / "notes.txt").write_text("no picture")
    assert read(folder).skipped == {"damaged picture": 2}
    assert "2 of 301 skipped, first: 3.4_x.HEIC: damaged picture: no JPEG, PNG, BMP or WebP picture" in caplog.text
    read_lines(folder, "".join(f"3.4_{number}.png\t3.4\n" for number in range(299)))
    assert "2 pictures are not listed in labels.txt and are left out, first: 3.4_x.HEIC" in caplog.text


def test_missing_and_empty_sources(folder, tmp_path):
    with pytest.raises(
        SourceError, match=r"'kitchen': folder .*gone not found; mend its \"path\" in TEST_SOURCES in p"
    ):
        readers.read(declare(tmp_path / "gone", parameter="TEST_SOURCES"), 32, 20, 3, 100, 0)
    with pytest.raises(SourceError, match=r"no picture \(.jpg .*\) found in"):
        read(folder)
    (tmp_path / "file.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match=r"file.jpg is a file, a folder is needed"):
        read(tmp_path / "file.jpg")
    put(folder / "N_a.png")
    with pytest.raises(SourceError, match='every one of its 1 pictures is labelled "not readable"'):
        read(folder)


def test_files_that_could_not_be_opened_are_tried_again(folder, monkeypatch):
    put_many(folder, 101)
    original = pictures.decode

    def denied(path, *shape):
        if path.endswith("3.4_7.png"):
            raise PictureError(pictures.NOT_OPENED, "Permission denied")
        return original(path, *shape)

    monkeypatch.setattr(pictures, "decode", denied)
    assert read(folder).skipped == {"file can't be opened": 1}
    monkeypatch.setattr(pictures, "decode", original)
    assert read(folder).skipped == {}


@pytest.mark.parametrize("channels", [1, 3])
def test_synthetic_pictures(monkeypatch, channels):
    def draw(count, seed, height, width, system_fonts):
        assert (count, seed, height, width, system_fonts) == (3, 7, 32, 20, True)
        return SimpleNamespace(
            images=np.full((3, 32, 20, 3), (255, 0, 0), np.uint8),
            tenths=np.array([0, 34, 99], np.int16),
            typefaces=("drum", "lcd"),
            typeface_ids=np.array([1, 0, 1], np.int16),
        )

    monkeypatch.setattr(synthetic, "draw", draw)
    declared = {"name": "s", "type": "synthetic", "count": 3, "system_fonts": True}
    data = readers.read(DataSource.from_dict(declared, "DATA_SOURCES"), 32, 20, channels, 100, 7)
    assert data.images.shape == (3, 32, 20, channels)
    assert data.images[2, 0, 0].tolist() == ([255, 0, 0] if channels == 3 else [76])
    assert data.tenths.tolist() == [0, 34, 99]
    assert (data.meters, data.meter_ids.tolist(), data.meter_ids.dtype) == (("drum", "lcd"), [1, 0, 1], np.int32)
    assert data.files == ("synthetic/000000", "synthetic/000001", "synthetic/000002")


def test_real_pictures(real_data, monkeypatch):
    source = declare(real_data / "meter_digits")
    readers.read(source, 32, 20, 3, 100, 0)
    monkeypatch.setattr(pictures, "decode", None)  # nothing is decoded anew
    # Not the reader's, which takes a fifth of a second: what else the machine does, and the garbage collector's look
    # through all that earlier tests left behind, up to a second.
    with earlier_objects_hidden():
        started = time.thread_time()
        data = readers.read(source, 32, 20, 3, 100, 0)
        spent = time.thread_time() - started
    assert spent < 1
    assert data.images.shape == (20_897, 32, 20, 3)
    assert len(data.meters) == 21
    assert data.skipped == {}
