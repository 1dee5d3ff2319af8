"""Sources of one-coloured pictures, for the tests of what reads them; the fixture ``folder`` is the source."""

from pathlib import Path

from PIL import Image

from utils import readers
from utils.sources import DataSource, SourceData


def put(path: Path, colour=(90, 120, 150), size=(24, 43), mode="RGB") -> Path:
    """Writes a picture of one colour; size is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def put_many(folder: Path, count: int, name: str = "3.4_{}.png") -> None:
    """Writes copies of one picture."""
    content = put(folder / name.format(0)).read_bytes()
    for number in range(1, count):
        (folder / name.format(number)).write_bytes(content)


def declare(folder: Path, kind: str = "filename", parameter: str = "DATA_SOURCES", **more) -> DataSource:
    """Declares the folder as source "kitchen"; keyword arguments are further keys."""
    return DataSource.from_dict({"name": "kitchen", "type": kind, "path": str(folder), **more}, parameter)


def read(folder: Path, kind: str = "filename", channels: int = 3, nb_classes: int = 100, **more) -> SourceData:
    """Reads the folder as pictures of 32x20."""
    return readers.read(declare(folder, kind, **more), 32, 20, channels, nb_classes, 0)


def read_lines(folder: Path, text: str) -> SourceData:
    """Reads the folder with this text as its label file."""
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return read(folder, "label_file")
