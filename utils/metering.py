"""A counter that is read again and again: from single digits to whole readings, and how many of those are wrong.

A counter runs on by a random amount between two readings. Its lowest wheel turns all the time; every other one turns
while the wheel at its right goes from 9 to 0, as in a mechanical counter, and stands up to a tenth beside its digit
because wheels have play. Each wheel is shown as a picture with that label, all of one meter; where no meter has all
the labels that a reading needs, drawn drums are shown.

The wheels are read together by the usual rule, from right to left: a digit counts as turned once its right neighbour
has passed zero (:func:`resolve`).
"""

from dataclasses import dataclass

import numpy as np

from utils.labels import ring_distance

READINGS = 10_000
COURSES = 100  # counters that are followed, so that the high wheels show every digit, too
CONSUMPTION = 3.7  # mean step between two readings, in digits of the lowest wheel
PLAY = 1  # tenths that a wheel but the lowest may stand beside its place
REACH = 1  # tenths that a picture's label may be away from what a wheel shows
WRONG = 10  # tenths of the lowest wheel, a whole digit, from which on a reading is false
NO_READING = -1  # in place of tenths: the model says that the digit is not readable


@dataclass(frozen=True)
class Plan:
    """What is shown: ``pictures`` (R, digits) index into the pictures given, or with ``len`` of them added, drums.

    ``truth`` (R,) is the counter in tenths of its lowest wheel; ``drawn`` (R,) marks readings shown on drawn drums.
    """

    pictures: np.ndarray
    truth: np.ndarray
    drawn: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """Of 10,000 readings: false and refused ones at a threshold, and false ones if none is refused for its sake."""

    threshold: float
    false: int
    refused: int
    false_unrefused: int


def plan(tenths: np.ndarray, meters: np.ndarray, drum_tenths: np.ndarray, digits: int, seed: int) -> Plan:
    """Chooses the pictures of 10,000 readings.

    Args:
        tenths: labels 0..99 of the pictures, ``(N,)``.
        meters: number of each picture's meter, ``(N,)``; -1 for what is of none and isn't shown.
        drum_tenths: labels of drawn drums ``(M,)`` with every tenth among them, -1 for what is none; they follow the
            pictures.
        digits: wheels of the counter.
        seed: equal seeds give equal plans.
    """
    rng = np.random.default_rng(seed)
    counts = _course(rng, digits)
    shown = wheels(counts, digits)
    play = rng.integers(-PLAY, PLAY + 1, (COURSES, digits))
    play[:, -1] = 0
    shown = (shown + np.repeat(play, READINGS // COURSES, axis=0)) % 100
    shelves = [_shelf(np.flatnonzero(meters == meter), tenths) for meter in np.unique(meters[meters >= 0])]
    drums = _shelf(len(tenths) + np.arange(len(drum_tenths)), drum_tenths, len(tenths))
    # Which meters can show which tenth, as a table (meters, 100).
    able = np.array([[bool(len(place)) for place in shelf] for shelf in shelves]).reshape(len(shelves), 100)
    pictures, drawn = np.empty(shown.shape, int), np.zeros(len(shown), bool)
    for number, row in enumerate(shown):
        possible = np.flatnonzero(able[:, row].all(axis=1))
        drawn[number] = not len(possible)
        shelf = drums if drawn[number] else shelves[rng.choice(possible)]
        pictures[number] = [rng.choice(shelf[place]) for place in row]
    # The lowest wheel's truth is what its picture shows.
    labels = np.concatenate([tenths, drum_tenths])[pictures[:, -1]]
    off = (labels - shown[:, -1] + 50) % 100 - 50
    return Plan(pictures, (counts + off) % 10 ** (digits + 1), drawn)


def wheels(counts: np.ndarray, digits: int) -> np.ndarray:
    """What the wheels show, highest first: tenths 0..99, ``(R, digits)``, of counters in tenths of the lowest wheel."""
    shown = np.empty((len(counts), digits), int)
    shown[:, -1] = position = counts % 100
    for place in range(1, digits):
        turning = (position - 90).clip(0)
        position = counts // (10 * 10**place) % 10 * 10 + turning
        shown[:, -1 - place] = position
    return shown


def resolve(tenths: np.ndarray) -> np.ndarray:
    """The readings ``(R,)``, in tenths of the lowest wheel, of what its wheels were read as, ``(R, digits)`` 0..99.

    The lowest wheel is taken as it is. Every other one has turned on as far as the lowest is on its way from 9 to 0 if
    all wheels between them are at 9, else not at all; the digit nearest to what is left is its digit. So 2.9 beside 9.9
    is a 2, beside 0.1 a 3, and a wheel may stand nearly half a digit off its place.
    """
    readings = tenths[:, -1].astype(np.int64)
    turning = (tenths[:, -1] - 90).clip(0)
    for place in range(1, tenths.shape[1]):
        digit = (tenths[:, -1 - place] - turning + 5) // 10 % 10
        readings = readings + digit * 10 ** (place + 1)
        turning = np.where(digit == 9, turning, 0)
    return readings


def judge(plan: Plan, tenths: np.ndarray, confidences: np.ndarray, threshold: float) -> Outcome:
    """Counts false and refused readings.

    A reading is refused if a wheel is not readable or its confidence lies below the threshold, and false if it is a
    whole digit of the lowest wheel or more away from the truth, around the counter's end as well.

    Args:
        plan: what was shown.
        tenths: what a model reads on each picture, the drums behind the others, 0..99 or ``NO_READING``.
        confidences: 0..1 of each.
        threshold: 0..1.
    """
    read, sure = tenths[plan.pictures], confidences[plan.pictures]
    unreadable = (read == NO_READING).any(axis=1)
    period = 10 ** (read.shape[1] + 1)
    false = (ring_distance(resolve(read.clip(0)), plan.truth, period) >= WRONG) & ~unreadable
    refused = unreadable | (sure < threshold).any(axis=1)
    return Outcome(threshold, *(int(part.sum()) for part in (false & ~refused, refused, false)))


def _course(rng: np.random.Generator, digits: int) -> np.ndarray:
    """Counters in tenths of the lowest wheel, one course after the other."""
    steps = rng.exponential(10 * CONSUMPTION, (COURSES, READINGS // COURSES))
    starts = rng.uniform(0, 10 ** (digits + 1), (COURSES, 1))
    return (starts + steps.cumsum(axis=1)).astype(np.int64).ravel() % 10 ** (digits + 1)


def _shelf(indices: np.ndarray, tenths: np.ndarray, first: int = 0) -> list[np.ndarray]:
    """Of each tenth 0..99 the pictures that show it, else those nearest to it within reach; empty if there are none."""
    mine = tenths[indices - first]
    shelf = [indices[mine == tenth] for tenth in range(100)]
    near = [np.concatenate([shelf[(tenth + side) % 100] for side in (-REACH, REACH)]) for tenth in range(100)]
    return [exact if len(exact) else other for exact, other in zip(shelf, near, strict=True)]
