"""Where a run stands among others: size of the recommended file against how well it reads the same pictures."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import runs

ZOO = Path(__file__).parent.parent / "exported_models" / "zoo"


@dataclass(frozen=True)
class Point:
    """One model: ``kb`` KiB of the file for the device, ``score`` 0..1 on the test set; ``kind`` as in ``KINDS``."""

    name: str
    kind: str
    kb: float
    score: float


KINDS = ("this run", "other run", "zoo", "baseline")
# The public baseline of the same layout as measured here, see "How good is it?" in the README, and on what.
BASELINE = Point("public baseline", "baseline", 226.0, 0.904)
BASELINE_CLASSES, BASELINE_PICTURES, BASELINE_METERS = 100, 3903, 15


def test_set(results: dict) -> str:
    """The test set by which a run is judged, the last: of ``TEST_SOURCES``, else kept aside, else what is held out."""
    return list(_sets(results))[-1]


def points(run_dir: Path, results: dict, metric: str) -> list[Point]:
    """This run, then the runs next to it, in the zoo, and the baseline as far as measured on the same pictures.

    The same are pictures of as many classes, as many from each meter, and of the same names, if both results know them.
    Folders without readable results are passed over.
    """
    meters = _meters(results, test_set(results))
    found = {run_dir.resolve(): _point(run_dir, "this run", results, test_set(results), metric)}
    for kind, folder in (("zoo", ZOO), ("other run", run_dir.parent)):
        for path in sorted(folder.glob(f"*/{runs.RESULTS_FILE}")):
            if path.parent.resolve() not in found:
                found[path.parent.resolve()] = _comparable(path, kind, results, meters, metric)
    known = [point for point in found.values() if point]
    measured = results["nb_classes"], sum(meters.values()), len(meters)
    if measured == (BASELINE_CLASSES, BASELINE_PICTURES, BASELINE_METERS):
        known.append(BASELINE)
    return known


def best(found: Sequence[Point]) -> list[Point]:
    """The frontier, smallest file first: models than which no other is as small and reads better."""
    front: list[Point] = []
    for point in sorted(found, key=lambda one: (one.kb, -one.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def _comparable(path: Path, kind: str, own: dict, meters: dict[str, int], metric: str) -> Point | None:
    try:
        other = json.loads(path.read_bytes())
        name = test_set(own)
        if other["nb_classes"] != own["nb_classes"] or _meters(other, name) != meters:
            return None
        if len({known for one in (own, other) if (known := _sets(one)[name].get("pictures"))}) > 1:
            return None
        return _point(path.parent, kind, other, name, metric)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        # Half a run, an older version's or a stranger's folder is no reason to be without a page.
        return None


def _meters(results: dict, name: str) -> dict[str, int]:
    return {meter: scores["n"] for meter, scores in _sets(results)[name]["per_meter"].items()}


def _sets(results: dict) -> dict[str, dict]:
    return results["files"][results["recommended"]]["sets"]


def _point(run_dir: Path, kind: str, results: dict, name: str, metric: str) -> Point:
    entry = results["files"][results["recommended"]]
    kb, score = entry["bytes"] / 1024, float(entry["sets"][name][metric])
    if not (math.isfinite(kb) and 0 <= score <= 1):
        raise ValueError(f"{run_dir}: {kb} KB, {score}: no model has these")
    return Point(run_dir.resolve().name, kind, kb, score)
