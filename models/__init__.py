"""The registry: a file in this folder with a function ``build(input_shape, nb_classes)`` is an architecture.

Names starting with ``_`` are shared parts. Listing reads file names only; a file is imported when it is asked for.
"""

import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError


class UnknownArchitectureError(UserError):
    """No file of that name in ``models/``. The message lists the known ones."""


@dataclass(frozen=True)
class Architecture:
    """One architecture: its name, its ``build(input_shape, nb_classes) -> keras.Model`` and its traits.

    ``purpose``: what it is for, in a phrase.
    """

    name: str
    build: Callable
    quantizable: bool
    purpose: str = ""


def available() -> list[str]:
    """Names of all architectures, numbers in natural order (v4 before v12). Imports none of them."""
    names = [path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")]
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def check(name: str) -> str:
    """Returns ``name`` if it is an architecture.

    Raises:
        UnknownArchitectureError: it is none; the message lists the known ones.
    """
    known = available()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownArchitectureError(f"unknown architecture {name!r}: {hint}known are {', '.join(known)}")
    return name


def get(name: str) -> Architecture:
    """Imports one architecture.

    Raises:
        UnknownArchitectureError: there is none of that name.
    """
    module = importlib.import_module(f"models.{check(name)}")
    return Architecture(name, module.build, getattr(module, "QUANTIZABLE", True), getattr(module, "PURPOSE", ""))
