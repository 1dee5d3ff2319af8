"""Reads pictures of digits with a trained model: the reading and how sure the model is of it."""

import argparse
import logging
import sys
from pathlib import Path

from utils import console, encodings, prediction, recognizers
from utils import settings as settings_module
from utils.errors import exit_code

log = logging.getLogger("predict")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="exit code 1: a picture could not be read")
    add = parser.add_argument
    where = "pictures, or folders with pictures below them"
    add("pictures", type=console.path, nargs="+", metavar="IMAGE_OR_FOLDER", help=where)
    add("--model", type=Path, metavar="RUN_OR_FILE", help="a .keras, .tflite or .espdl file or a run; else the newest")
    add("--json", action="store_true", help="one JSON object a line instead of text")
    add("--save", type=console.path, metavar="DIR", help="copy the unsure pictures there as <reading>_<name>")
    add("--threshold", type=console.share, metavar="X", help="unsure below it; else as the run recommends, or 0.9")
    ranges = {pixels.name: pixels for pixels in encodings.TRIED}
    what = "what a pixel is to a model whose file doesn't say: --pixels=0..255, =0..1 or =-1..1"
    add("--pixels", choices=ranges, metavar="RANGE", help=what)
    console.add_common_arguments(parser)
    arguments = parser.parse_args(argv)
    arguments.pixels = ranges.get(arguments.pixels)
    return arguments


def predict(arguments: argparse.Namespace) -> int:
    settings = settings_module.load(**settings_module.parse_assignments(arguments.set))
    console.set_up(arguments.debug)
    files = [file for path in arguments.pictures for file in prediction.find_pictures(path, without=arguments.save)]
    model = recognizers.load(arguments.model, Path(settings.output_dir), arguments.pixels)
    if arguments.save:
        prediction.open_folder(arguments.save)
    threshold = next(x for x in (arguments.threshold, model.threshold, prediction.THRESHOLD) if x is not None)
    said = model.facts.pixels.name
    if arguments.pixels and model.facts.known and said != arguments.pixels.name:
        log.warning("%s says itself that a pixel is %s to it: --pixels is passed over", model.file, said)
    if not (model.facts.known or arguments.pixels):
        log.warning(
            "%s does not say which numbers stand for pixels; %s is assumed. If nearly all readings are wrong, however "
            "sure, it takes others: --pixels=0..1 or --pixels=-1..1; benchmark.py tells which by labelled pictures",
            *(model.file, said),
        )
    readings = prediction.read(model, files)
    if arguments.json:
        console.show("\n".join(map(prediction.as_json, readings)))
    else:
        console.show(prediction.summary(readings, model, threshold))
    if arguments.save:
        saved = prediction.save_unsure(readings, threshold, arguments.save)
        print(f"{len(set(saved))} unsure pictures are in {arguments.save}: correct their labels", file=sys.stderr)
    return int(any(reading.error is not None for reading in readings))


def main(argv: list[str] | None = None) -> int:
    return exit_code("predict.py", lambda: predict(parse_arguments(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
