"""Trains digit recognizers, exports them and measures every exported file."""

import argparse
import dataclasses
from pathlib import Path

import models
from utils import chips, console, devices, runs, search_space
from utils import settings as settings_module
from utils.errors import exit_code, leave


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"architectures: {', '.join(models.available())}")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--train", nargs="+", metavar="ARCHITECTURE", help="architectures to train (MODEL_ARCHITECTURE)")
    what.add_argument("--train_all", action="store_true", help="train every architecture")
    what.add_argument("--test_all_models", action="store_true", help="take every architecture through one epoch")
    what.add_argument("--list", action="store_true", help="say how large each architecture is and what it is for")
    what.add_argument("--resume", type=Path, metavar="RUN_DIR", help="finish a run, or add its files for devices")
    parser.add_argument("--teacher", nargs="+", metavar="RUN", help="trained models that teach (TEACHERS)")
    parser.add_argument("--use_tuner", action="store_true", help="search hyper-parameters first")
    parser.add_argument("--jobs", type=console.count, default=1, metavar="N", help="architectures trained side by side")
    parser.add_argument("--no_cleanup", action="store_true", help="keep checkpoints after the run")
    console.add_common_arguments(parser)
    arguments = parser.parse_args(argv)
    console.refuse_beside(parser, arguments, "use_tuner", "resume", "test_all_models", "list", "jobs")
    console.refuse_beside(parser, arguments, "resume", "set", "teacher")
    return arguments


def choose(arguments: argparse.Namespace) -> tuple[list[str], settings_module.Settings]:
    given = settings_module.parse_assignments(arguments.set) | ({"teachers": t} if (t := arguments.teacher) else {})
    settings = runs.read_settings(arguments.resume).settings if arguments.resume else settings_module.load(**given)
    chips.check(settings)
    if arguments.use_tuner:
        search_space.check(settings, model_is_given=bool(arguments.train or arguments.train_all))
    if arguments.test_all_models:
        return models.available(), dataclasses.replace(settings, epochs=1)
    names = models.available() if arguments.train_all else arguments.train or [settings.model_architecture]
    return [models.check(name) for name in dict.fromkeys(names)], settings


def train(arguments: argparse.Namespace) -> int:
    names, settings = choose(arguments)
    console.set_up(arguments.debug)
    from utils import loader, model_choice, targets

    targets.check(settings)
    devices.check(settings, arguments.use_tuner)
    if fresh := not (arguments.resume or arguments.list):
        runs.check_output(settings)
        model_choice.check_named(settings, *names, searching=arguments.use_tuner)
    # The pictures come before TensorFlow: what is wrong with them should not take its seconds to say.
    splits = loader.load(settings, model_file=model_choice.start(settings)) if fresh else None
    console.import_tensorflow(settings.gpu_memory_growth)
    from utils import catalog, session, tuning

    if arguments.list:
        print(catalog.table(settings))
        return 0
    options = session.Options(arguments.no_cleanup, arguments.debug)
    if arguments.resume:
        outcomes = [session.resume(arguments.resume, options)]
    elif min(arguments.jobs, len(names)) > 1:
        outcomes = session.train_side_by_side(names, settings, options, arguments.jobs)
    else:
        outcomes = (tuning if arguments.use_tuner else session).train(names, settings, options, splits)
    print(session.summary(outcomes))
    return int(any(outcome.results is None or session.refusals(outcome) for outcome in outcomes))


def main(argv: list[str] | None = None) -> int:
    hint = "interrupted; go on with --resume RUN_DIR (in the log above), with a search by the same command"
    return exit_code("train.py", lambda: train(parse_arguments(argv)), hint)


if __name__ == "__main__":
    leave(main())
