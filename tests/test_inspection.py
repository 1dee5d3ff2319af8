import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import foreign_files
from tests.kitchen import put
from utils import encodings, inspection, inspection_page, markup, pictures, recognizers, runs, synthetic, twins
from utils.inspection import KINDS, Inspected, Inspection
from utils.recognizers import Facts, Recognizer
from utils.sources import SourceError

DIGITS = synthetic.draw(40, 11).images


def draw(folder: Path, name: str, number: int) -> Path:
    """Writes the drawn digit ``number``; two of the same number are identical."""
    path = put(folder / name)
    Image.fromarray(DIGITS[number]).save(path)
    return path


def findings(inspected: Inspection) -> dict[str, list[str]]:
    """File names by kind of finding."""
    return {
        kind: [Path(one.place).name for one in inspection.of_kind(inspected.found, kind)]
        for kind in KINDS
        if inspection.of_kind(inspected.found, kind)
    }


def test_clean_pictures_have_no_findings(folder):
    for number in range(6):
        draw(folder, f"a/{number}.5_{number}.png", number)
    inspected = inspection.inspect([folder])
    assert findings(inspected) == {}
    assert not inspection.is_damaged(inspected)
    assert "suspicious" not in inspected.kinds


def test_copies_and_contradictions(folder):
    for name in ("a/3.4_x.png", "b/3.4_y.png", "b/3.5_z.png"):
        draw(folder, name, 0)
    draw(folder, "b/7.0_other.png", 1)
    inspected = inspection.inspect([folder])
    assert findings(inspected) == {
        "two labels": ["3.4_x.png", "3.4_y.png", "3.5_z.png"],
        "duplicate": ["3.4_y.png", "3.5_z.png"],
    }
    (last,) = [one for one in inspected.found if one.place.endswith("3.5_z.png")]
    assert last.findings["two labels"] == f"labelled 3.5, but 3.4 in {folder}/a/3.4_x.png"
    assert last.findings["duplicate"] == f"same pixels as {folder}/a/3.4_x.png"


def test_copies_are_found_across_folders(folder, tmp_path):
    draw(folder, "3.4_x.png", 0)
    draw(tmp_path / "cellar", "3.4_x.png", 0)
    inspected = inspection.inspect([folder, tmp_path / "cellar", folder])
    assert [one.source for one in inspected.found] == ["kitchen", "cellar"]
    assert findings(inspected) == {"duplicate": ["3.4_x.png"]}


def test_near_twins(folder):
    draw(folder, "3.4_x.png", 0)
    draw(folder, "8.1_z.png", 1)
    changed = DIGITS[0].copy()
    changed[0, 0] ^= 4
    Image.fromarray(changed).save(folder / "3.4_y.png")
    assert findings(inspection.inspect([folder])) == {"near twin": ["3.4_x.png", "3.4_y.png"]}


def test_damage_bad_labels_and_unreadable_ones(folder):
    draw(folder, "3.4_x.png", 0)
    draw(folder, "N_nobody.png", 1)
    draw(folder, "12_x.png", 2)
    (folder / "5.0_broken.png").write_bytes(b"no picture")
    inspected = inspection.inspect([folder])
    assert findings(inspected) == {"unreadable": ["5.0_broken.png"], "bad label": ["12_x.png"]}
    assert inspection.is_damaged(inspected)
    ((_, part),) = inspection.by_source(inspected.found).items()
    assert [one.label for one in part] == ["3.4"]
    assert "kitchen: 4 pictures, 1 of them with a label, 1 meter" in inspection.summary(inspected)


def test_a_damaged_picture_is_named_though_its_label_is_bad(folder):
    draw(folder, "camera_x.png", 0)
    (folder / "camera_y.png").write_bytes(b"no picture")
    inspected = inspection.inspect([folder])
    assert findings(inspected) == {"unreadable": ["camera_y.png"], "bad label": ["camera_x.png", "camera_y.png"]}
    assert "Files that can't be read: 1\n" in inspection.summary(inspected)


def test_a_label_file_whose_lines_are_wrong(folder):
    for number, name in enumerate("xyz"):
        draw(folder, f"{name}.png", number)
    lines = [
        "x.png\t3.4",
        "gone.png\t3.5",
        "x.png\t12",
        "y.png\t3.4",
        "y.png\t3.5",
        "z.png\t9.0",
        "z.png N",
        "z.png 8.0",
    ]
    (folder / "labels.txt").write_text("\n".join(lines))
    inspected = inspection.inspect([folder])
    assert findings(inspected) == {
        "unreadable": ["labels.txt line 2"],
        "bad label": ["labels.txt line 3"],
        "two labels": ["labels.txt line 5", "labels.txt line 7", "labels.txt line 8"],
    }
    twice = inspection.of_kind(inspected.found, "two labels")
    assert twice[0].findings["two labels"] == "two labels: y.png: '3.4' in line 4 and '3.5' in line 5"
    assert "kitchen: 3 pictures, 3 of them with a label, 1 meter" in inspection.summary(inspected)
    assert "<p>3 pictures in 1 folder</p>" in inspection_page.page("x", inspected)


def test_a_picture_with_two_labels_is_damage(folder):
    draw(folder, "x.png", 0)
    (folder / "labels.txt").write_text("x.png 3.4\nx.png 3.5\n")
    assert inspection.is_damaged(inspection.inspect([folder]))


def test_odd_sizes(folder):
    for number in range(3):
        put(folder / f"{number}_a.png", (number * 40, 0, 0), size=(24, 43))
    put(folder / "4_b.png", (0, 200, 0), size=(48, 86))
    put(folder / "4_d.png", (0, 100, 0), size=(24, 26))
    put(folder / "wide" / "5_c.png", (0, 0, 200), size=(40, 30))
    found = inspection.of_kind(inspection.inspect([folder]).found, "odd size")
    assert [one.findings["odd size"] for one in found] == [
        "48x86, usual for this meter is 24x43",
        "24x26, usual for this meter is 24x43",
        "40x30, wider than high",
    ]


def test_size_of_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert pictures.size(str(tmp_path / "a.png")) is None
    assert pictures.size(str(put(tmp_path / "b.png", size=(5, 7)))) == (5, 7)


@pytest.mark.parametrize(
    ("tenths", "expected"),
    [
        ([t for t in range(100) if t not in (36, 37, 38, 39, 72)], ["3.6-3.9", "7.2"]),
        (range(100), []),
        ([10 * d for d in range(8)], ["8-9", "tenths between digits"]),
        ([10 * d for d in range(10)], ["tenths between digits"]),
        (range(1, 99), ["0.0", "9.9"]),
        ([], ["0-9", "tenths between digits"]),
    ],
)
def test_missing_labels(tenths, expected):
    assert inspection.missing(list(tenths)) == expected


def reader(nb_classes: int, number: int, shape=(32, 20, 1), confidence=0.95, threshold=None) -> Recognizer:
    """A model that reads the same on every picture."""

    def probabilities(images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == shape
        answer = np.full((len(images), nb_classes), 0.0)
        answer[:, number] = confidence
        return answer

    facts = Facts("digits", "uint8", encodings.RAW, True, None, None)
    return Recognizer(Path("m"), shape, tuple(map(str, range(nb_classes))), probabilities, threshold, facts)


@pytest.mark.parametrize(
    ("model", "label", "suspicious"),
    [
        (reader(100, 34), "3.5", False),
        (reader(100, 34), "3.6", True),
        (reader(100, 0), "9.9", False),
        (reader(100, 34, confidence=0.8), "7.0", False),
        (reader(100, 34, confidence=0.8, threshold=0.7), "7.0", True),
        (reader(10, 3), "3.6", False),
        (reader(10, 3), "3.7", True),
        (reader(10, 0), "9.5", False),
        (reader(11, 10), "3.0", True),
        (reader(10, 3, shape=(32, 20, 3)), "3.0", False),
        (reader(10, 3), "N", False),
    ],
)
def test_a_model_that_disagrees_confidently(folder, model, label, suspicious):
    draw(folder, f"{label}_x.png", 0)
    inspected = inspection.inspect([folder], model)
    assert "suspicious" in inspected.kinds
    assert bool(inspection.of_kind(inspected.found, "suspicious")) == suspicious


@pytest.mark.parametrize("channels", [3, 1])
def test_a_model_that_has_learnt_the_labels_is_told(folder, tmp_path, caplog, channels):
    for number in range(3):
        draw(folder, f"3.{number}_x.png", number)
    shown = DIGITS[:2] if channels == 3 else pictures.grey(DIGITS[:2])
    model = dataclasses.replace(reader(100, 34, shape=(32, 20, channels)), file=tmp_path / "model.tflite")
    inspection.inspect([folder], model)
    assert "has learnt" not in caplog.text
    runs.save_learnt(tmp_path, twins.marks(shown))
    inspection.inspect([folder], model)
    assert f"{model.file} has learnt 2 of these pictures and agrees with their labels" in caplog.text


def test_labels_of_whole_digits_are_compared_by_digit(folder):
    draw(folder, "7_a.png", 0)
    draw(folder, "6_b.png", 1)
    found = inspection.inspect([folder], reader(100, 66)).found
    assert inspection.of_kind(found, "suspicious") == []
    # Where others have tenths, 7 is 7.0.
    draw(folder, "6.6_c.png", 2)
    found = inspection.inspect([folder], reader(100, 66)).found
    doubts = [(Path(one.place).name, one.findings["suspicious"]) for one in inspection.of_kind(found, "suspicious")]
    assert [name for name, _ in doubts] == ["6_b.png", "7_a.png"]
    # A name may not tell the label: where a file lists it.
    assert [text.split(" (")[0] for _, text in doubts] == [f"labelled {n}.0, but read as 66" for n in (6, 7)]


def test_a_model_that_hides_its_range_accuses_no_label(tmp_path):
    """It takes 0..1, which its file does not say; fed with 0..255 it reads 0 everywhere, and is sure of it."""
    folder = tmp_path / "meter"
    folder.mkdir()
    for tenths, image in zip(foreign_files.TENTHS, foreign_files.pictures(), strict=True):
        Image.fromarray(image).save(folder / f"{tenths / 10:.1f}_x.png")
    file = tmp_path / "a.tflite"
    file.write_bytes(foreign_files.as_float(foreign_files.picky(0.0)))
    model = recognizers.load(file, tmp_path)
    assert not model.facts.known
    found = inspection.inspect([folder], model).found
    assert len(found) == len(foreign_files.TENTHS)
    assert inspection.of_kind(found, "suspicious") == []


def test_doubtful_labels_come_surest_first():
    doubts = [
        Inspected("s", f"{doubt}.png", "", doubt=doubt, findings={"suspicious": "x"}) for doubt in (0.91, 0.99, 0.95)
    ]
    found = [*doubts, Inspected("s", "good.png", "")]
    assert [one.doubt for one in inspection.of_kind(found, "suspicious")] == [0.99, 0.95, 0.91]


def test_a_damaged_picture_is_not_shown_to_the_model(folder):
    (folder / "5.0_broken.png").write_bytes(b"no picture")
    assert findings(inspection.inspect([folder], reader(10, 1))) == {"unreadable": ["5.0_broken.png"]}


def test_a_folder_in_another_one_is_not_counted_twice(folder, tmp_path):
    draw(folder, "3.4_x.png", 0)
    draw(folder, "b/3.5_y.png", 1)
    (tmp_path / "link").symlink_to(folder / "b")
    for inner in (folder / "b", tmp_path / "link"):
        with pytest.raises(SourceError, match=rf"folder {inner} lies in {folder}: its pictures would count twice"):
            inspection.inspect([inner, folder])
    # The same one twice is one, and a name that only begins alike is another one.
    draw(tmp_path, f"{folder.name}_2/3.6_z.png", 2)
    both = inspection.inspect([folder, folder, tmp_path / f"{folder.name}_2"])
    assert inspection.picture_count(both.found) == 3


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(SourceError, match="not found"):
        inspection.inspect([tmp_path / "gone"])
    with pytest.raises(SourceError, match="no picture"):
        inspection.inspect([folder])


def test_text_names_counts_and_gaps(folder):
    for number in range(3):
        draw(folder, f"meter/{number}.5_x.png", number)
    text = inspection.summary(inspection.inspect([folder])).splitlines()
    assert text[2].split() == ["meter", "3", "3", "1", "1", "1", *"0000000"]
    assert "  0.0-0.4, 0.6-1.4, 1.6-2.4, 2.6-9.9: none" in text
    for number in range(5):
        draw(folder, f"unknown_{number}.png", 10 + number)
    text = inspection.summary(inspection.inspect([folder])).splitlines()
    start = text.index("Labels that are not understood: 5")
    assert text[start + 4] == "    and 2 more, which --html FILE and --csv FILE have"


def test_columns_stand_below_each_other_behind_wide_letters(folder):
    for number, meter in enumerate(("\u6c34\u8868\u4e00", "ku\u0308che", "meter_1")):
        draw(folder, f"{meter}/3.4_x.png", number)
    heading, *rows = inspection.summary(inspection.inspect([folder])).splitlines()[1:5]
    assert heading.startswith("  meter    pictures  labels")
    assert [row.split("  ")[1] for row in rows] == ["ku\u0308che", "meter_1", "\u6c34\u8868\u4e00"]
    # Each Chinese letter is as wide as two, the accent takes no column.
    assert [len(row) for row in rows] == [len(heading) + 1, len(heading), len(heading) - 3]


def test_csv_has_a_row_a_picture_and_no_formula(folder, monkeypatch):
    draw(folder, "=cmd()/3.4_x,\n.png", 0)
    draw(folder, "m/3.4_y.png", 0)
    monkeypatch.chdir(folder.parent)
    rows = list(csv.DictReader(inspection.as_csv(inspection.inspect([Path("kitchen")])).splitlines()))
    assert [row["meter"] for row in rows] == ["'=cmd()", "m"]
    assert rows[0]["file"] == "kitchen/=cmd()/3.4_x,\\n.png"
    assert [(row["width"], row["height"], row["label"]) for row in rows] == [("20", "32", "3.4")] * 2
    assert rows[1]["duplicate"] == "same pixels as kitchen/=cmd()/3.4_x,\\n.png"


def test_page_escapes_and_needs_nothing_from_outside(folder):
    draw(folder, "a/3.4_<script>alert(1)<.png", 0)
    draw(folder, "a/3.5_'\"&.png", 0)
    draw(folder, "IMG_1.png", 1)
    (folder / "5.0_broken.png").write_bytes(b"no picture")
    inspected = inspection.inspect([folder])
    page = inspection_page.page("<b>title</b>", inspected)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;title" in page
    assert not re.search(r"(src|href)=['\"](?!data:|#)", page)
    # Both under two labels, one of them also as a duplicate.
    assert page.count(f"base64,{markup.png(DIGITS[0])}") == 3
    # Who is to mend a label must see its picture.
    assert page.count(f"base64,{markup.png(DIGITS[1])}") == 1
    assert page.count("no picture</span>") == 1
    assert set(re.findall("href='#([^']+)'", page)) == set(re.findall("section id='([^']+)'", page))


def test_page_shows_the_first_of_many(folder, monkeypatch):
    monkeypatch.setattr(inspection_page, "MOST_SHOWN", 2)
    for number in range(4):
        draw(folder, f"3.4_{number}.png", 0)
    page = inspection_page.page("x", inspection.inspect([folder]))
    assert "The first 2 of 3; the CSV file lists all." in page
    assert page.count("<img") == 2
