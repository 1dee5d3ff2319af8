import math
import os
import time

import pytest

from tests.crashing import without_backend
from utils import tflite_file
from utils.errors import UserError
from utils.isolation import Isolated, IsolationError


def test_results_errors_crashes_and_hangs():
    with Isolated(seconds=5) as process:
        assert process.call(math.comb, 5, 2) == 10
        assert process.call(os.getpid) != os.getpid()
        with pytest.raises(IsolationError, match="ZeroDivisionError: "):
            process.call(divmod, 1, 0)
        with pytest.raises(tflite_file.FileError, match="no TFLite file"):
            process.call(tflite_file.read, b"")
        with pytest.raises(UserError, match="tensorflow, which Keras is to compute with, is not installed: install it"):
            process.call(without_backend)
        assert process.call(abs, -3) == 3
        with pytest.raises(IsolationError, match=r"ended \(SIGABRT\)"):
            process.call(os.abort)
        with pytest.raises(IsolationError, match="ended"):
            process.call(abs, -3)


def test_what_takes_too_long_is_stopped():
    with Isolated(seconds=2) as process:
        process.call(abs, 1)
        started = time.monotonic()
        with pytest.raises(IsolationError, match=r"was stopped \(no answer for 2 s\)"):
            process.call(time.sleep, 60)
        assert time.monotonic() - started < 10
