"""How the entry scripts end."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError, exit_code, leave, stop_if_interrupted

ROOT = Path(__file__).parents[1]


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a.png: damaged"), 2, "door.py: a.png: damaged\n"),
        (PermissionError(13, "Permission denied", "/locked/x.csv"), 2, "door.py: /locked/x.csv: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "door.py: input or output: No space left on device\n"),
        (KeyboardInterrupt(), 130, "door.py: stopped\n"),
        (
            ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"),
            2,
            "door.py: tensorflow, which Keras is to compute with, is not installed: install it, or set the environment "
            "variable KERAS_BACKEND to jax or torch if that is installed\n",
        ),
        (
            ValueError("Unable to import backend : pytorch"),
            2,
            "door.py: pytorch, which KERAS_BACKEND names, is none of Keras' backends: set it to one of tensorflow, "
            "jax, torch\n",
        ),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(capsys, error, code, said):
    assert exit_code("door.py", raising(error), "stopped") == code
    assert capsys.readouterr() == ("", said)


def test_an_interruption_that_was_lost_is_raised_again_without_a_traceback(ctrl_c, capsys, monkeypatch):
    reached, reported = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: reported.append(lost.exc_type))

    class Faulty:
        def __del__(self):
            raise ZeroDivisionError

    def work():
        Faulty()
        ctrl_c.lost()
        reached.append("lost")
        stop_if_interrupted()
        return 0

    assert exit_code("door.py", work, "stopped") == 130
    assert (reached, capsys.readouterr().err) == (["lost"], "door.py: stopped\n")
    Faulty()
    assert reported == [ZeroDivisionError] * 2
    stop_if_interrupted()  # that one is over


def test_another_error_that_an_interruption_became_is_none(ctrl_c, capsys):
    assert exit_code("door.py", ctrl_c.as_another_error, "stopped") == 130
    assert capsys.readouterr().err == "door.py: stopped\n"


@pytest.mark.parametrize("error", [ZeroDivisionError(), ModuleNotFoundError("No module named 'util'", name="util")])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        exit_code("door.py", raising(error), "stopped")


def test_a_terminal_without_the_letters_gets_them_spelled_out():
    program = "from utils.errors import exit_code; exit_code('door.py', lambda: print('\\u6570.png') or 0, '')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, env={"PYTHONIOENCODING": "latin-1"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u6570.png\n", b"")


def test_a_reader_that_has_enough_is_no_error():
    program = "from utils.errors import exit_code; exit(exit_code('d', lambda: print('x\\n' * 10**6) or 0, ''))"
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, cwd=ROOT)
    assert writer.stdout.readline() == b"x\n"
    writer.stdout.close()
    assert (writer.stderr.read(), writer.wait()) == (b"", 1)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_stops_nothing(closed):
    program = (
        "import sys; from utils.errors import UserError, exit_code\n"
        f"sys.{closed} = None\n"
        "def work():\n    print('done')\n    raise UserError('said')\n"
        "exit(exit_code('d', work, ''))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == (("", "d: said\n") if closed == "stdout" else ("done\n", ""))


def test_after_an_interruption_nothing_is_waited_for():
    program = (
        "import threading; from utils.errors import exit_code, leave\n"
        "class Waiting:\n    def __del__(self):\n        threading.Event().wait()\n"
        "waiting = Waiting(); waiting.kept = waiting\n"
        "def work():\n    print('done')\n    raise KeyboardInterrupt\n"
        "leave(exit_code('d', work, 'stopped'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (130, "done\n", "d: stopped\n")


@pytest.mark.parametrize("door", ["train.py", "fine-tune.py", "retrain.py", "tuner.py"])
def test_every_door_that_trains_leaves_so(door):
    assert (ROOT / door).read_text().endswith('if __name__ == "__main__":\n    leave(main())\n')


def test_any_other_exit_code_ends_in_order():
    with pytest.raises(SystemExit) as ended:
        leave(2)
    assert ended.value.code == 2
