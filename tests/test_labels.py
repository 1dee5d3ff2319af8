import numpy as np
import pytest

from utils import labels
from utils.labels import Label, LabelError


@pytest.mark.parametrize(
    ("text", "tenths", "has_tenth"),
    [
        ("3.4", 34, True),
        ("3", 30, False),
        ("3.0", 30, True),
        ("0.0", 0, True),
        (" 9.9\n", 99, True),
        ("2.3000000000000003", 23, True),
        ("2.2999999999999998", 23, True),
        ("2.1.0", 21, True),
        ("9.96", 0, True),
        ("9.94", 99, True),
        ("1.25", 13, True),
        ("0.15", 2, True),
    ],
)
def test_labels_are_read(text: str, tenths: int, has_tenth: bool) -> None:
    assert labels.parse(text) == Label(tenths, has_tenth)


@pytest.mark.parametrize("text", ["N", "n", "NaN", "NAN", "?", "10", "10.0", "103.4", "100.0", "109.9", "N.N", "n.n"])
def test_marks_of_unreadable_pictures(text: str) -> None:
    assert labels.parse(text) is None


@pytest.mark.parametrize(
    "text",
    ["12", "-3", "abc", "", "3,4", "3.", ".4", "10.1", "110.2", "103", "2.1.0.0", "+3", "3e0", "07", "٣", "nano"],
)
def test_other_texts_are_errors_that_say_what_is_accepted(text: str) -> None:
    with pytest.raises(LabelError, match=r"accepted are a digit \(3\), a digit with tenths \(3\.4\)") as error:
        labels.parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("3.4_1a2b.jpg", Label(34, True)),
        ("3.4.jpg", Label(34, True)),
        ("3.jpg", Label(30, False)),
        ("3_a_b.PNG", Label(30, False)),
        ("3.4", Label(34, True)),
        ("2.1.0_x.jpeg", Label(21, True)),
        ("2.3000000000000003_x.y.webp", Label(23, True)),
        ("N_17.jpg", None),
        ("N.N_17.jpg", None),
        ("103.4_17.jpg", None),
    ],
)
def test_file_names(name: str, expected: Label | None) -> None:
    assert labels.parse_file_name(name) == expected


@pytest.mark.parametrize("name", ["kitchen.jpg", "_3.4.jpg", "x_3.4.jpg", "3.4kitchen.jpg", "3.x_17.jpg"])
def test_file_names_without_label(name: str) -> None:
    with pytest.raises(LabelError):
        labels.parse_file_name(name)


def test_to_classes() -> None:
    tenths = np.array([0, 4, 5, 34, 35, 94, 95, 99], np.int16)
    assert labels.to_classes(tenths, 100).tolist() == tenths.tolist()
    assert labels.to_classes(tenths, 10).tolist() == [0, 0, 1, 3, 4, 9, 0, 0]
    assert labels.to_classes(tenths, 10).dtype == np.int64


def test_class_names() -> None:
    assert labels.class_names(10) == list("0123456789")
    names = labels.class_names(100)
    assert (len(names), names[0], names[34], names[99]) == (100, "0.0", "3.4", "9.9")


@pytest.mark.parametrize("nb_classes", [0, 9, 11, 101])
def test_other_numbers_of_classes_are_refused(nb_classes: int) -> None:
    with pytest.raises(ValueError, match=str(nb_classes)):
        labels.to_classes(np.array([1]), nb_classes)
    with pytest.raises(ValueError, match=str(nb_classes)):
        labels.class_names(nb_classes)


def test_ring_distance() -> None:
    a, b = np.array([99, 0, 20, 50]), np.array([0, 99, 25, 0])
    assert labels.ring_distance(a, b, 100).tolist() == [1, 1, 5, 50]
    assert labels.ring_distance(9.9, 0.0, 10.0) == pytest.approx(0.1)
    assert labels.ring_distance(np.uint8(3), np.uint8(250), 100) == 47


def test_what_counts_as_the_same_reading() -> None:
    a, b = np.array([0, 99, 3, 3, 3]), np.array([0, 0, 4, 5, 1])
    assert labels.alike(a, b, 100).tolist() == [True, True, True, False, False]
    assert labels.alike(np.array([3, 3, 9]), np.array([3, 4, 0]), 10).tolist() == [True, False, False]
    assert (labels.main_metric(100), labels.main_metric(10)) == ("within_0.1", "accuracy")


def test_every_class_name_reads_back() -> None:
    assert [labels.parse(name).tenths for name in labels.class_names(100)] == list(range(100))


def test_labels_as_text_read_back() -> None:
    for nb_classes in (10, 100):
        assert [labels.parse(labels.text(tenths, nb_classes)).tenths for tenths in range(100)] == list(range(100))
    assert [labels.text(30, nb_classes) for nb_classes in (10, 100)] == ["3", "3.0"]


def test_ten_alone_does_not_number_folders() -> None:
    assert not labels.are_class_numbers([str(digit) for digit in range(11)])
    assert labels.are_class_numbers(["7", "10", "11"]) and labels.are_class_numbers(["90"])
    assert not labels.are_class_numbers(["7", "34", "3.4"])
    assert labels.parse_folder_name("10", numbered=False) is None


@pytest.mark.parametrize(
    ("name", "numbered", "tenths"), [("7", True, 7), ("34", True, 34), ("00", True, 0), ("7", False, 70)]
)
def test_class_numbers_are_tenths(name: str, numbered: bool, tenths: int) -> None:
    assert labels.parse_folder_name(name, numbered).tenths == tenths


def test_targets_without_spread_are_one_hot() -> None:
    np.testing.assert_array_equal(labels.targets(100), np.eye(100))
    assert labels.targets(10)[[34, 35, 95]].argmax(axis=1).tolist() == [3, 4, 0]


def test_targets_share_what_the_label_may_be_off() -> None:
    row = labels.targets(100, 1.0)[0]
    assert {i: float(row[i]) for i in np.flatnonzero(row)} == {0: 0.5, 1: 0.25, 99: 0.25}
    wide = labels.targets(100, 2.0)[50]
    np.testing.assert_allclose(wide[48:53], [0.125, 0.25, 0.25, 0.25, 0.125])


def test_targets_of_ten_classes_share_between_the_two_digits_of_the_drum() -> None:
    rows = labels.targets(10, 5.0)
    np.testing.assert_allclose(rows[34], 0.6 * np.eye(10)[3] + 0.4 * np.eye(10)[4], atol=1e-6)
    np.testing.assert_allclose(rows[98], 0.2 * np.eye(10)[9] + 0.8 * np.eye(10)[0], atol=1e-6)
    np.testing.assert_allclose(labels.targets(10, 1.0)[[34, 35, 36], 4], [0, 0.5, 1], atol=1e-6)


@pytest.mark.parametrize("nb_classes", [10, 100])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 2.5, 5.0])
def test_targets_add_up_to_one(nb_classes: int, spread: float) -> None:
    np.testing.assert_allclose(labels.targets(nb_classes, spread).sum(axis=1), 1, atol=1e-6)
