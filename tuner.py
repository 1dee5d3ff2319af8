"""Searches hyper-parameters: every trial different, none lost, on one machine or several."""

import argparse
import dataclasses

import models
from utils import console, devices, runs, search_space
from utils import settings as settings_module
from utils.errors import exit_code, leave


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"architectures: {', '.join(models.available())}")
    parser.add_argument("--model", metavar="NAME", help="architecture; without it MODEL_ARCHITECTURE")
    parser.add_argument(
        "--trials", type=console.count, metavar="N", help="combinations to try; without it TUNER_MAX_TRIALS"
    )
    console.add_common_arguments(parser)
    return parser.parse_args(argv)


def choose(arguments: argparse.Namespace) -> settings_module.Settings:
    settings = settings_module.load(**settings_module.parse_assignments(arguments.set))
    if arguments.model is not None:
        settings = dataclasses.replace(settings, model_architecture=arguments.model)
    if arguments.trials is not None:
        settings = dataclasses.replace(settings, tuner_max_trials=arguments.trials)
    search_space.check(settings, model_is_given=arguments.model is not None)
    return settings


def tune(arguments: argparse.Namespace) -> int:
    settings = choose(arguments)
    console.set_up(arguments.debug)
    from utils import loader, model_choice

    devices.check(settings, searching=True)
    runs.check_output(settings)
    names = search_space.architectures(settings, search_space.axes(settings))
    model_choice.check_named(settings, *names, searching=True)
    splits = loader.load(settings, model_file=model_choice.start(settings))
    console.import_tensorflow(settings.gpu_memory_growth)
    from utils import tuning

    found = tuning.search(settings, splits)
    if found is None:
        print("no trial left for this worker; the chief has the results")
        return 0
    print(tuning.summary(found))
    return int(bool(found.stopped) or found.best() is None)


def main(argv: list[str] | None = None) -> int:
    hint = "interrupted; the same command goes on where it was"
    return exit_code("tuner.py", lambda: tune(parse_arguments(argv)), hint)


if __name__ == "__main__":
    leave(main())
