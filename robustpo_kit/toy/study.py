"""Studies in the toy world: the whole idea on one seed, the methods under what can go wrong, and h~ as data grows."""

import dataclasses
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from robustpo_kit import records
from robustpo_kit.toy.data import DataConfig
from robustpo_kit.toy.runs import Run, Setting, data_row, estimate, h_quality, run, start
from robustpo_kit.toy.sweep import sweep
from robustpo_kit.toy.truth import evaluate
from robustpo_kit.toy.world import World

METHODS = {  # DoRA Table 4 on listwise DPO, lambda and beta as the papers have them for HH
    "erm": "dpo_pl(beta=0.1)",
    "reweight": "reweight(dpo_pl, beta=0.1)",
    "dro": "dro(dpo_pl, beta=0.1, lam=1.0)",
    "dora": "dora(dpo_pl, beta=0.1, lam=1.0)",
}


CONDITIONS = {  # one thing wrong at a time
    "clean": DataConfig(),
    "contamination 0.2": DataConfig(contamination=0.2),
    "contamination 0.4": DataConfig(contamination=0.4),
    "label noise 0.3": DataConfig(label_noise=0.3),
    "reward bias 1.5": DataConfig(reward_bias=1.5),
}


STANDARD = Setting()


class Quickstart(NamedTuple):
    """What a first look shows: three tables of one seed."""

    world: World
    sources: (
        pd.DataFrame
    )  # a row a source: exact win rate against golden, reward, style, Bayes' c, KL to golden
    samples: pd.DataFrame  # a row a sample: contaminated or not, true and estimated h~
    results: pd.DataFrame  # a row a method


def quickstart(
    seed: int = 0, *, contamination: float = 0.4, setting: Setting = STANDARD
) -> Quickstart:
    """The whole idea on one seed, in seconds: a mixture, h~ true and estimated, four objectives, exact win rates."""
    data = dataclasses.replace(setting.data, contamination=contamination)
    setting = dataclasses.replace(setting, seed=seed, data=data)
    first, found = start(setting), estimate(setting)
    world, data = first.world, first.data
    every = torch.arange(len(world.prompts))
    sources = [
        {"source": name} | evaluate(world, world.log_density[i], every)
        for i, name in enumerate(world.source_names)
    ]
    samples = {
        "contaminated": data.contaminated.numpy(),
        "true_h": found.true_h.numpy(),
        "h": found.h.numpy(),
    }
    results = [run(config) for config in comparison(setting)]
    return Quickstart(world, pd.DataFrame(sources), pd.DataFrame(samples), pd.DataFrame(results))


def comparison(setting: Setting, *, oracle: bool = True) -> Iterator[Run]:
    """The runs that compare METHODS on one setting; with `oracle`, those that use h~ again with the true one."""
    for method, spec in METHODS.items():
        yield Run(spec, setting=setting)
        if oracle and method in ("reweight", "dora"):
            yield Run(spec, h="oracle", setting=setting)


def methods_study(seeds: Sequence[int]) -> list[Run]:
    """Six runs a condition and seed: what contamination, label noise and reward bias do to each method."""
    settings = [Setting(seed=seed, data=data) for data in CONDITIONS.values() for seed in seeds]
    return [config for setting in settings for config in comparison(setting)]


def h_study(
    seeds: Sequence[int],
    rows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
    contamination: float = 0.4,
) -> list[Setting]:
    """Settings whose classifiers see more and more rows, trusted and contaminated ones; for `toyruns.h_quality`."""
    data = DataConfig(contamination=contamination)
    return [
        Setting(seed=seed, data=data, classifier_rows=count, trusted=trusted)
        for trusted in (True, False)
        for count in rows
        for seed in seeds
    ]


def name_conditions(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with a first column `condition`, found by the data knobs; a row that fits none is an error (KeyError)."""
    names = {tuple(sorted(data_row(data).items())): name for name, data in CONDITIONS.items()}
    knobs = list(data_row(DataConfig()))
    found = [names[tuple(sorted(row.items()))] for row in table[knobs].to_dict("records")]
    return table.assign(condition=found)[["condition", *table.columns]]


def write_reference(
    folder: Path, *, seeds: Sequence[int] = range(10), workers: int | None = None
) -> None:
    """Both studies as tables with provenance: toy_sweep and toy_h_rank (.csv, .json) in `folder`; resumable.

    Finished runs wait in `folder`/NAME.runs.jsonl until their table is written.
    """
    studies = (("toy_sweep", run, methods_study(seeds)), ("toy_h_rank", h_quality, h_study(seeds)))
    for name, function, configs in studies:
        started, revision, runs = (
            time.time(),
            records.git_revision(),
            Path(folder) / f"{name}.runs.jsonl",
        )
        table = sweep(function, configs, runs, workers=workers, desc=name)
        table = name_conditions(table) if name == "toy_sweep" else table
        about = {
            "made_by": f"robustpo_kit.toy.study.write_reference: {len(configs)} runs of {function.__name__}",
            "first": dataclasses.asdict(configs[0]),
            "seeds": list(seeds),
        }
        record = records.provenance(about, seeds[0], started)
        record |= {"device": f"cpu ({platform.machine()}), one thread a run", "revision": revision}
        record["seconds_of_runs"] = round(
            float(table["seconds"].sum()), 1
        )  # wall clock, summed over runs
        records.write_table(Path(folder) / f"{name}.csv", table, record)
        runs.unlink()
