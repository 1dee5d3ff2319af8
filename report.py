"""Makes report.html of finished runs anew, with the runs that are there by now beside them."""

import argparse
import sys
from pathlib import Path

from utils import console
from utils.errors import exit_code


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="a finished run's folder")
    return parser.parse_args(argv)


def report(arguments: argparse.Namespace) -> int:
    console.set_up()
    # Draws with matplotlib, which --help needn't wait for.
    from utils import report_page

    for run_dir in arguments.runs:
        print(report_page.write(run_dir))
    return 0


def main(argv: list[str] | None = None) -> int:
    return exit_code("report.py", lambda: report(parse_arguments(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
