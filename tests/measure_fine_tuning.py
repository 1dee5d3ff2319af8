"""Makes the README's table of fine-tuning: ``python -m tests.measure_fine_tuning RUN_DIR [RUN_DIR ...]``.

Each run's model, which has never seen the meters of its ``unseen_meters``, learns each of them with at least 100
pictures from a few: ``--pictures``, seeded, twins not divided. The rest of the meter and the run's old test set are
measured before and after.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from utils import console, loader, plans

MIN_PICTURES = 100


def divide(splits: loader.Splits, meter: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pictures of a meter to learn from, and the rest that has no twin among them."""
    rng = np.random.default_rng([seed, meter])
    mine = np.flatnonzero(splits.pool.meter_ids == meter)
    clusters = splits.clusters[mine]
    turn = {cluster: number for number, cluster in enumerate(rng.permutation(np.unique(clusters)))}
    order = np.argsort([turn[cluster] for cluster in clusters], kind="stable")
    return mine[order[:count]], mine[~np.isin(clusters, clusters[order[:count]])]


def main() -> None:
    """Prints a row for each model, number of pictures and seed as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--pictures", nargs="+", type=int, default=[50, 20])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0005])
    parser.add_argument("--strategy", default="full")
    arguments = parser.parse_args()
    console.set_up()
    console.import_tensorflow(memory_growth=True)
    from tests import finished_runs
    from utils import evaluation, fine_tuning

    print("| model | pictures | seed | rate | within 0.1 before | after | error left | exact before | after | old set, points | worst | s |")  # fmt: skip  # noqa: E501
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for run in arguments.runs:
        settings = finished_runs.settings_of(run)
        splits = loader.load(settings)
        held = splits.source("unseen_meters")
        meters = np.unique(splits.pool.meter_ids[splits.pool.source_ids == held])
        meters = [meter for meter in meters if (splits.pool.meter_ids == meter).sum() >= MIN_PICTURES]

        def scores(model, indices, splits=splits):
            read = evaluation.keras_logits(model, splits.pool.images(indices)).argmax(axis=1)
            return evaluation.metrics(read, splits.pool.tenths[indices], 100)

        cases = [(n, seed, rate) for n in arguments.pictures for seed in arguments.seeds for rate in arguments.rates]
        teacher = finished_runs.model_of(run)
        for count, seed, rate in cases:
            plan = plans.Plan(strategy=arguments.strategy, learning_rate=rate)
            chosen = fine_tuning.mix(splits, plan, (), seed)
            old_set = splits.measured["test"]
            before, rows, seconds = scores(teacher, old_set)["within_0.1"], [], []
            for meter in meters:
                learnt, rest = divide(splits, meter, count, seed)
                model, started = finished_runs.model_of(run), time.monotonic()
                fine_tuning.freeze(model, plan.strategy)
                mine = dataclasses.replace(chosen, new=learnt, new_share=fine_tuning.NEW_SHARE)
                fine_tuning.fit(model, teacher, splits, mine, plan, settings)
                seconds.append(time.monotonic() - started)
                old, new = scores(teacher, rest), scores(model, rest)
                drop = scores(model, old_set)["within_0.1"] - before
                rows.append([old["within_0.1"], new["within_0.1"], old["accuracy"], new["accuracy"], drop])
            was, became, exact_was, exact_became, dropped = np.mean(rows, axis=0)
            cells = [f"`{teacher.name}`", count, seed, rate, f"{was:.4f}", f"{became:.4f}"]
            cells += [f"{(1 - became) / (1 - was):.2f}", f"{exact_was:.3f}", f"{exact_became:.3f}"]
            worst = min(row[-1] for row in rows)
            cells += [f"{100 * dropped:+.2f}", f"{100 * worst:+.2f}", f"{np.median(seconds):.0f}"]
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
