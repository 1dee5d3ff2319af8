"""Retrains a model on the pictures it read wrongly; accepts the result only if nothing else got worse."""

import argparse
import dataclasses
from pathlib import Path

from utils import chips, console, devices, model_choice, runs, sources, targets
from utils.errors import exit_code, leave
from utils.plans import NEW_WEIGHT, Plan
from utils.settings import parse_assignments

REJECTED = 3


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="exit code 3: the retrained model is no better")
    add = parser.add_argument
    add("--model_path", type=Path, metavar="FILE", help="a .keras file or a run folder; without it the newest run")
    add("--bad_images_dir", type=console.path, required=True, metavar="DIR", help="the pictures, rightly labelled")
    add("--weight", type=sources.weight, default=NEW_WEIGHT, metavar="X", help="how often each of them counts (300)")
    add("--epochs", type=console.count, default=8, metavar="N", help="of 50 batches each (8)")
    add("--lr", type=console.positive, default=0.0001, metavar="X", help="learning rate (0.0001)")
    console.add_common_arguments(parser)
    return parser.parse_args(argv)


def retrain(arguments: argparse.Namespace) -> int:
    console.set_up(arguments.debug)
    model_file, settings = model_choice.to_go_on(arguments.model_path, parse_assignments(arguments.set))
    folder, weight = arguments.bad_images_dir, arguments.weight
    declared, name = sources.with_source(settings.data_sources, folder, weight, settings.test_sources)
    # For the device the plain quantised file is what replaces the old one.
    settings = dataclasses.replace(settings, data_sources=declared, quantize_model=True, use_qat=False)
    chips.check(settings)
    targets.check(settings)
    runs.check_output(settings)
    devices.require_tensorflow("retrain.py")
    console.import_tensorflow(settings.gpu_memory_growth)
    from utils import loader, retraining, session

    plan = Plan(new=(name,), weight=weight, learning_rate=arguments.lr, epochs=arguments.epochs)
    # What can't be taught is refused before the pictures are read.
    lesson = session.prepare(model_file, plan, settings)
    splits = loader.load(settings, [name], aside_from=20, model_file=model_file)
    outcome, judgement = retraining.retrain(lesson, settings, splits)
    print(session.summary([outcome]))
    print(retraining.summary(outcome, judgement))
    return int(bool(session.refusals(outcome))) if judgement.accepted else REJECTED


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        "retrain.py", lambda: retrain(parse_arguments(argv)), "interrupted; nothing of the model was changed"
    )


if __name__ == "__main__":
    leave(main())
