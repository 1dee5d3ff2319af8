"""Compares models, your own and other people's, on the same labelled pictures: size, speed, memory, scores."""

import argparse
import sys
from pathlib import Path

from utils import console, runs
from utils.errors import exit_code

DIGITS = range(2, 10)  # of a counter whose readings are simulated


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="exit code 1: a model could not be measured")
    add = parser.add_argument
    add("models", type=Path, nargs="+", metavar="MODEL", help="a .tflite, .keras or .espdl file or a run folder")
    data = "folders with labelled pictures, or synthetic"
    add("--data", type=console.source, nargs="+", required=True, metavar="SOURCE", help=data)
    add("--robustness", action="store_true", help="measure on changed pictures, too: rotated, darker, noisy ...")
    add(
        "--reading", type=int, choices=DIGITS, default=0, metavar="DIGITS", help="simulate a counter with 2 to 9 digits"
    )
    add(
        "--threshold", type=console.share, metavar="X", help="refuse readings below it (recommended by the run, or 0.9)"
    )
    add("--csv", type=Path, metavar="FILE", help="write one row a model")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--plot", type=Path, metavar="PNG", help="draw the score against the size")
    add("--card", type=Path, metavar="PNG", help="draw the robustness of all models; implies --robustness")
    add("--debug", action="store_true", help="log more, TensorFlow's own log too")
    return parser.parse_args(argv)


def benchmark(arguments: argparse.Namespace) -> int:
    console.set_up(arguments.debug)
    files = (arguments.csv, arguments.json, arguments.plot, arguments.card)
    runs.check_writable(files)
    # Heavier modules, once the arguments are known to be right.
    from utils import benchmark_pictures

    pictures = benchmark_pictures.load(arguments.data)
    from utils import benchmark as bench
    from utils import benchmark_report

    options = bench.Options(arguments.robustness or bool(arguments.card), arguments.reading, arguments.threshold)
    results = bench.run(arguments.models, pictures, options)
    console.show(benchmark_report.summary(results))
    benchmark_report.write(results, *files)
    return int(any("error" in entry for entry in results["models"]))


def main(argv: list[str] | None = None) -> int:
    return exit_code("benchmark.py", lambda: benchmark(parse_arguments(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
