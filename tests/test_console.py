import argparse
import errno
import os
import sys
from pathlib import Path

import pytest

from utils import console


def test_an_empty_path_is_none():
    assert console.path("a b") == Path("a b")
    with pytest.raises(argparse.ArgumentTypeError, match="is empty; give a path"):
        console.path("")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EINVAL, errno.ENOSPC])
def test_what_follows_is_done_though_nobody_reads_the_result(tmp_path, monkeypatch, number):
    class Unread:
        def __init__(self, file):
            self.file, self.fileno = file, file.fileno

        def write(self, text):
            raise OSError(number, os.strerror(number))

    with (tmp_path / "pipe").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Unread(file))
        if number == errno.ENOSPC:
            with pytest.raises(OSError, match="No space left"):
                console.show("read")
        else:
            console.show("read")
            # What is still said goes nowhere.
            os.write(file.fileno(), b"more")
    assert (tmp_path / "pipe").read_bytes() == b""
