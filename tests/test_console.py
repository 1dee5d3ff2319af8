import argparse
from pathlib import Path

import pytest

from utils import console


def test_an_empty_path_is_none():
    assert console.path("a b") == Path("a b")
    with pytest.raises(argparse.ArgumentTypeError, match="is empty; give a path"):
        console.path("")
