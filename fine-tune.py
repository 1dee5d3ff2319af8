"""Teaches a trained model more, above all a new meter from a few pictures, and shows what got better and worse."""

import argparse
import dataclasses
from pathlib import Path

from utils import chips, console, devices, markup, model_choice, runs, sources, targets
from utils.errors import exit_code, leave
from utils.plans import NEW_WEIGHT, STRATEGIES, Plan
from utils.settings import parse_assignments


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, metavar="FILE", help="a .keras file or a run folder; without it the newest run")
    add(
        "--data",
        type=console.path,
        action="append",
        default=[],
        metavar="DIR",
        help="pictures of the new meter; repeatable",
    )
    add("--strategy", choices=STRATEGIES, default="full", help="what is trained; feature_extractor: the dense layers")
    add("--data_ratio", type=console.share, default=0.1, metavar="X", help="share of DATA_SOURCES replayed (0.1)")
    add("--augmented_ratio", type=console.share, default=0.9, metavar="X", help="share of it much changed (0.9)")
    add("--learning_rate_multiplier", type=console.positive, default=0.1, metavar="X", help="of LEARNING_RATE (0.1)")
    add("--epochs", type=console.count, default=8, metavar="N", help="of 50 batches each (8)")
    console.add_common_arguments(parser)
    return parser.parse_args(argv)


def fine_tune(arguments: argparse.Namespace) -> int:
    console.set_up(arguments.debug)
    model_file, settings = model_choice.to_go_on(arguments.model_path, parse_assignments(arguments.set))
    chips.check(settings)
    targets.check(settings)
    runs.check_output(settings)
    sources.check_apart(arguments.data)
    new = []
    for folder in arguments.data:
        declared, name = sources.with_source(settings.data_sources, folder, NEW_WEIGHT, settings.test_sources)
        settings, new = dataclasses.replace(settings, data_sources=declared), [*new, name]
    devices.require_tensorflow("fine-tune.py")
    console.import_tensorflow(settings.gpu_memory_growth)
    from utils import loader, session

    plan = Plan(
        strategy=arguments.strategy,
        new=tuple(new),
        data_ratio=arguments.data_ratio,
        augmented_ratio=arguments.augmented_ratio,
        learning_rate=settings.learning_rate * arguments.learning_rate_multiplier,
        epochs=arguments.epochs,
    )
    # What can't be taught is refused before the pictures are read.
    lesson = session.prepare(model_file, plan, settings)
    splits = loader.load(settings, new, aside_from=100, model_file=model_file)
    outcome = session.fine_tune(lesson, settings, splits)
    print(session.summary([outcome]))
    unmeasured = [name for name in new if loader.aside_of(name) not in splits.measured]
    if unmeasured and not settings.test_sources:
        print(
            f"{markup.visible(', '.join(unmeasured))}: all pictures are learnt from, so the table says only what else "
            "is still read; measure on further ones: benchmark.py RUN OLD_MODEL --data FOLDER"
        )
    return int(bool(session.refusals(outcome)))


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        "fine-tune.py", lambda: fine_tune(parse_arguments(argv)), "interrupted; nothing of the model was changed"
    )


if __name__ == "__main__":
    leave(main())
