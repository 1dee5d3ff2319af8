"""Shows what hurts training in folders of labelled pictures: ``python datasets/inspect.py FOLDER ...``."""
# ruff: noqa: E402

import os
import sys

# Python looks for modules in this script's folder first, and would take this file for the standard library's inspect.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [os.path.dirname(_HERE), *(entry for entry in sys.path if os.path.abspath(entry) != _HERE)]

import argparse
from pathlib import Path

from utils import console, inspection, inspection_page, recognizers, runs
from utils.errors import exit_code


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="exit code 1: a file can't be read, a label isn't understood, or a label file gives a picture two",
    )
    add = parser.add_argument
    add("sources", type=console.path, nargs="+", metavar="SOURCE", help="folder, in one of the forms of the README")
    add("--csv", type=Path, metavar="FILE", help="write one row a picture with what is wrong with it")
    add("--html", type=Path, metavar="FILE", help="write a page with the pictures")
    add("--model", type=Path, metavar="RUN_OR_FILE", help="name labels that this model confidently disagrees with")
    add("--debug", action="store_true", help="log more, TensorFlow's own log too")
    return parser.parse_args(argv)


def inspect(arguments: argparse.Namespace) -> int:
    console.set_up(arguments.debug)
    runs.check_writable([arguments.csv, arguments.html])
    model = recognizers.load(arguments.model, Path()) if arguments.model else None
    found = inspection.inspect(arguments.sources, model)
    console.show(inspection.summary(found))
    title = f"Inspection of {', '.join(map(str, arguments.sources))}"
    if arguments.csv:
        with runs.written(arguments.csv):
            runs.write_text(arguments.csv, inspection.as_csv(found))
    if arguments.html:
        with runs.written(arguments.html):
            runs.write_text(arguments.html, inspection_page.page(title, found))
    return int(inspection.is_damaged(found))


def main(argv: list[str] | None = None) -> int:
    return exit_code("inspect.py", lambda: inspect(parse_arguments(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
