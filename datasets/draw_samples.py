"""Writes a sheet of synthetic digits with their labels as a picture: ``python -m datasets.draw_samples FILE``."""

import argparse
from pathlib import Path

import cv2

from utils import synthetic


def main() -> None:
    """Draws the sheet that the README shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="picture to write, .jpg or .png")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sheet = synthetic.sample_sheet(arguments.seed, rows=6, columns=16)
    cv2.imwrite(str(arguments.file), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
