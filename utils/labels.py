"""Label grammar: from the texts people write on digit pictures to tenths of a digit wheel's turn and to classes."""

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

NB_TENTHS = 100
LABEL_FILE = "labels.txt"  # what makes a folder a source of the type "label_file", and what a review downloads

# Digits are spelled [0-9] because \d also takes other scripts' digits.
_VALUE = re.compile(r"([0-9])(?:\.([0-9]+)(?:\.[0-9]+)?)?")
# 10 and 10.0 are the "not a number" class of older collections; AI-on-the-edge files rejects as 100 + value.
_NOT_READABLE = re.compile(r"n|nan|\?|n\.n|10(?:\.0)?|10[0-9]\.[0-9]+", re.IGNORECASE)
_EXTENSION = re.compile(r"\.[a-z][a-z0-9]*$", re.IGNORECASE)


class LabelError(ValueError):
    """A text is neither a label nor one of the "not readable" marks."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a picture shows: tenths 0..99 (34 is 3.4), and whether the text named a tenth ("3.0") or a digit ("3")."""

    tenths: int
    has_tenth: bool


def parse(text: str) -> Label | None:
    """Read one label: "3.4", "3" (= 3.0), "2.1.0" (= 2.1), longer decimals rounded half up to a tenth on the ring.

    Returns None for the marks of an unreadable picture (N, NaN, ?, N.N, 10, 10.0, 103.4); raises LabelError otherwise.
    """
    text = text.strip()
    value = _VALUE.fullmatch(text)
    if value is None:
        if _NOT_READABLE.fullmatch(text):
            return None
        raise LabelError(
            f"label {text!r} is not understood; accepted are a digit (3), a digit with tenths (3.4) "
            "and, for a picture nobody can read, N, NaN, ? or 10"
        )
    digit, decimals = int(value[1]), value[2] or ""
    # Decided on the written digits: as a binary float 0.15 would lie below the half.
    tenths = 10 * digit + int(decimals[:1] or "0") + (decimals[1:2] >= "5")
    return Label(tenths % NB_TENTHS, bool(decimals))


def parse_file_name(name: str) -> Label | None:
    """Read the label in front of the first "_" of a file's name ("3.4_kitchen.jpg", "3.4.jpg"); see parse."""
    return parse(_EXTENSION.sub("", name).split("_", 1)[0])


def are_class_numbers(folders: Collection[str]) -> bool:
    """Whether class folders of these names are numbered (34/ can't be a digit; then 7/ beside it is 0.7, not 7.0).

    10/ alone does not say so: beside 0/ to 9/ it holds what nobody can read.
    """
    return any(re.fullmatch("1[1-9]|[2-9][0-9]", name) for name in folders) and not any("." in name for name in folders)


def parse_folder_name(name: str, numbered: bool) -> Label | None:
    """Read the name of a class folder, the number of one of 100 classes (34 is 3.4) if so; see parse."""
    return parse(".".join(name.zfill(2)) if numbered and re.fullmatch("[0-9]{1,2}", name) else name)


def to_classes(tenths: np.ndarray, nb_classes: int) -> np.ndarray:
    """Class numbers (int64, same shape) of tenths 0..99: 100 classes are the tenths, 10 classes the nearest digit.

    x.5 counts as the next digit, from 9.5 on as 0. Raises ValueError for another number of classes.
    """
    tenths = np.asarray(tenths, dtype=np.int64)
    _check_nb_classes(nb_classes)
    return tenths if nb_classes == NB_TENTHS else (tenths + 5) // 10 % 10


def targets(nb_classes: int, spread: float = 0.0) -> np.ndarray:
    """What to train each label on: row t of the (100, nb_classes) float32 holds the classes' shares for t tenths.

    People disagree by a tenth. So the drum stands anywhere within ``spread`` tenths of its label, and a class gets the
    part of that stretch which it covers: 0 is one-hot; for 100 classes 1 gives 1/4, 1/2, 1/4; for 10 classes 5 shares
    every position between the two digits that the drum shows, 3.4 being 60 % a 3 and 40 % a 4.
    """
    tenths = np.arange(NB_TENTHS)
    hard = np.eye(nb_classes, dtype=np.float32)[to_classes(tenths, nb_classes)]
    if spread == 0:
        return hard
    width = NB_TENTHS / nb_classes
    distance = ring_distance(tenths[:, None], np.arange(nb_classes) * width, NB_TENTHS)
    covered = np.minimum(distance + spread, width / 2) - np.maximum(distance - spread, -width / 2)
    return (np.maximum(covered, 0) / (2 * spread)).astype(np.float32)


def class_names(nb_classes: int) -> list[str]:
    """Names of the classes in order: "0".."9" for 10, "0.0".."9.9" for 100; ValueError for another number."""
    _check_nb_classes(nb_classes)
    return [text(tenths, nb_classes) for tenths in range(0, NB_TENTHS, NB_TENTHS // nb_classes)]


def text(tenths: int, nb_classes: int) -> str:
    """The label that :func:`parse` reads as these tenths, 0..99: "3.4", "3.0"; for 10 classes "3.4", "3"."""
    label = f"{tenths // 10}.{tenths % 10}"
    # A whole digit with a tenth behind it would pass for one that was read to the tenth.
    return label.removesuffix(".0") if nb_classes == 10 else label


def main_metric(nb_classes: int) -> str:
    """The score that models are compared by: within a tenth for 100 classes, since people disagree by that much."""
    return "within_0.1" if nb_classes == 100 else "accuracy"


def alike(read: np.ndarray | int, other: np.ndarray | int, nb_classes: int) -> np.ndarray:
    """Whether classes mean the same reading: equal ones; of 100, up to a tenth apart, since people disagree by that."""
    return ring_distance(read, other, nb_classes) <= (1 if nb_classes == 100 else 0)


def ring_distance(a: np.ndarray | float, b: np.ndarray | float, period: float) -> np.ndarray:
    """Elementwise distance of a and b (broadcast) on a ring of the given period: 9.9 and 0.0 are 0.1 apart."""
    # Unsigned numbers would wrap around in the subtraction, narrow ones overflow.
    a, b = (value.astype(np.int64) if value.dtype.kind in "iub" else value for value in map(np.asarray, (a, b)))
    distance = np.abs(a - b) % period
    return np.minimum(distance, period - distance)


def _check_nb_classes(nb_classes: int) -> None:
    if nb_classes not in (10, NB_TENTHS):
        raise ValueError(f"number of classes is {nb_classes}; only 10 (digits) and 100 (tenths) exist")
