"""The registry: a file in this folder with a function ``build(input_shape, nb_classes)`` is an architecture.

Names starting with ``_`` are shared parts. Listing reads file names only; a file is imported when it is asked for.
"""

import difflib
import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError

NOT_LOADABLE = "Keras can't load this model once it is saved; build it of Keras' own layers"


class UnknownArchitectureError(UserError):
    """No file of that name in ``models/``. The message lists the known ones."""


class BuildError(UserError):
    """An architecture has no network for pictures of that size, or none at all. The message names it and says why."""


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
        BuildError: its file can't be imported, or has no ``build``.
    """
    try:
        module = importlib.import_module(f"models.{check(name)}")
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        raise BuildError(f"models/{name}.py can't be imported ({type(error).__name__}: {error})") from error
    if not callable(getattr(module, "build", None)):
        raise BuildError(f"models/{name}.py has no function build(input_shape, nb_classes)")
    return Architecture(
        name, _refusing(name, module.build), getattr(module, "QUANTIZABLE", True), getattr(module, "PURPOSE", "")
    )


def code(names: Iterable[str]) -> dict[str, bytes]:
    """By file name the code of architectures and of the parts they share, the same however lines end."""
    files = [Path(__file__).parent / f"{check(name)}.py" for name in names]
    files += sorted(Path(__file__).parent.glob("_[a-z]*.py"))
    return {f"models/{file.name}": file.read_text(encoding="utf-8").encode() for file in files}


def _refusing(name: str, build: Callable) -> Callable:
    """``build``, which says in one sentence that pictures are too small for it: Keras takes a paragraph."""

    def checked(input_shape: tuple[int, int, int], nb_classes: int):
        try:
            model = build(input_shape, nb_classes)
        except ValueError as error:
            # Keras paints its messages; the line that says why is one of many.
            lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() or [""]
            reason = next((line for line in lines if "negative" in line), lines[0])
            size = f"INPUT_HEIGHT x INPUT_WIDTH = {input_shape[0]} x {input_shape[1]}"
            raise BuildError(f"{name} can't be built for {size} ({reason[:200].strip()})") from error
        if not hasattr(model, "inputs"):
            wanted = "keras.Model(image, logits), or a Sequential that begins with keras.Input(input_shape)"
            raise BuildError(f"models/{name}.py: build returns a {type(model).__name__}, it has to return {wanted}")
        as_it_is = type(model).__name__ == "Functional" and model.name == name
        # What takes or gives more than one tensor is refused by its user.
        if as_it_is or len(model.inputs) + len(model.outputs) != 2:
            return model
        try:
            return as_graph(model, name)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise BuildError(f"models/{name}.py: {NOT_LOADABLE} ({str(error).splitlines()[0][:200]})") from error

    return checked


def as_graph(model: Any, name: str) -> Any:
    """The same layers and weights as one graph (``keras.Model``), a ``Sequential``'s too, for export to walk through.

    A ``Sequential`` calls its layers anew whenever one is added. Built from its description, each is called once.
    """
    import keras

    graph = keras.Model(model.inputs[0], model.outputs[0], name=name)
    built = keras.Model.from_config(graph.get_config())
    built.set_weights(graph.get_weights())
    return built
