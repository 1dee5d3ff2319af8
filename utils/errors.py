"""The one kind of error that is the user's to mend, and how an entry script ends with it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Its message says what is wrong and what to do; the entry scripts print it without a traceback."""


def exit_code(door: str, work: Callable[[], int], interrupted: str) -> int:
    """What an entry script ends with: the exit code of ``work``, 2 for the user's error, 130 for Ctrl-C.

    Args:
        door: name of the script, for messages.
        work: does it all.
        interrupted: what is said after Ctrl-C.
    """
    try:
        return work()
    except UserError as error:
        print(f"{door}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{door}: {interrupted}", file=sys.stderr)
        return 130
