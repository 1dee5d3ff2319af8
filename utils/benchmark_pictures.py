"""The pictures that all models of a benchmark read, in every size that one of them takes."""

import functools
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils import loader, pictures, readers, sources, twins
from utils.sources import DataSource

log = logging.getLogger(__name__)

SYNTHETIC = "synthetic"  # as a source: drawn digits
SYNTHETIC_COUNT = 2000
SEED = 90_001  # another one than SEED of parameters.py, or a model would be measured on what it was trained on
DRAWN_SHAPE = (32, 20)  # at which digits are drawn; other sizes are made of that


@dataclass(frozen=True)
class Pictures:
    """The pictures that all models read: ``tenths`` (N,) labels 0..99, ``meters`` (N,) indices into ``meter_names``.

    ``counted`` (N,) has a number for each meter of a mean; drawn digits are one, -1, as their typefaces are no meters.
    ``different`` are the indices of one picture of all that are exact copies of each other with the same label.
    """

    declared: tuple[DataSource, ...]
    tenths: np.ndarray
    meters: np.ndarray
    meter_names: tuple[str, ...]
    counted: np.ndarray
    different: np.ndarray

    @property
    def has_tenths(self) -> bool:
        """False if the labels are whole digits."""
        return bool((self.tenths % 10).any())

    @property
    def rolling(self) -> np.ndarray:
        """(N,) bool: False for drawn seven-segment displays."""
        display = np.array([name.startswith(f"{SYNTHETIC}/lcd_") for name in self.meter_names])
        return ~display[self.meters]

    def rgb(self, height: int, width: int) -> np.ndarray:
        """The pictures in a size, ``(N, height, width, 3)`` uint8."""
        return np.concatenate([part.images for part in _read(self.declared, height, width)])


def load(declared: Sequence[str]) -> Pictures:
    """Reads the sources: folders with labelled pictures, each taken for what it looks like, or ``synthetic``.

    Raises:
        SourceError: a folder is missing, empty or damaged, or lies in another.
    """
    sources.check_apart([Path(text) for text in declared if text != SYNTHETIC])
    entries: list[dict[str, Any]] = []
    for text in declared:
        if text != SYNTHETIC:
            entries, _ = sources.with_source(entries, Path(text), 1.0)
        elif not any(entry["type"] == SYNTHETIC for entry in entries):
            entries.append({"name": SYNTHETIC, "type": SYNTHETIC, "count": SYNTHETIC_COUNT})
    parsed = tuple(DataSource.from_dict(entry, "--data") for entry in entries)
    read = _read(parsed, *DRAWN_SHAPE)
    pool = loader.pool_of(read, nb_classes=10)
    drawn = np.array([source.type == SYNTHETIC for source in parsed])[pool.source_ids]
    different = twins.one_of_copies(twins.exact_groups(itertools.chain(*pool.arrays)), pool.tenths)
    counted = np.where(drawn, -1, pool.meter_ids)
    found = Pictures(parsed, pool.tenths, pool.meter_ids, pool.meter_names, counted, different)
    digits_only = [part.name for part in read if not (part.tenths % 10).any()]
    if not found.has_tenths:
        log.warning("no label has a tenth but .0: models are compared by digit, and 3 counts as 3.0 otherwise")
    elif digits_only:
        # Beside labels with tenths a rolling wheel's "3" makes every model of tenths look bad, and it can't be seen.
        log.warning(
            "no label of %s has a tenth but .0, and 3 counts as 3.0: if wheels roll there, look at the digits alone, "
            "or measure these pictures by themselves",
            ", ".join(digits_only),
        )
    return found


@functools.lru_cache(maxsize=2)
def _read(declared: tuple[DataSource, ...], height: int, width: int) -> tuple[sources.SourceData, ...]:
    return tuple(_read_one(source, height, width) for source in declared)


def _read_one(source: DataSource, height: int, width: int) -> sources.SourceData:
    if source.type != SYNTHETIC:
        # 10 classes, as that accepts labels without tenths.
        return readers.read(source, height, width, 3, nb_classes=10, seed=SEED)
    drawn = readers.read(source, *DRAWN_SHAPE, 3, nb_classes=10, seed=SEED)
    images = np.stack([pictures.resized(image, height, width) for image in drawn.images])
    return replace(drawn, images=images)
