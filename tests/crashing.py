"""A function that takes its process along, in a module that another process imports quickly."""

import os
from pathlib import Path


def crash(_: Path) -> None:
    """As native code does on a damaged file."""
    os.abort()
