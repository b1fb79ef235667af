"""Studies in the toy world: a first look, methods under what goes wrong, h~ as data grows."""

import dataclasses
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from robustpo_kit import objectives, records, robust
from robustpo_kit.published import PRESETS
from robustpo_kit.toy.data import DataConfig
from robustpo_kit.toy.runs import Run, data_row, h_quality, run
from robustpo_kit.toy.setting import Setting, estimate, start
from robustpo_kit.toy.sweep import sweep
from robustpo_kit.toy.truth import Enumeration, evaluate
from robustpo_kit.toy.world import World

LOSS = PRESETS["dora/mistral-7b/hh/dpo_pl"].spec  # listwise DPO at the papers' beta
METHODS = {  # DoRA Table 4 on that loss
    "erm": LOSS,
    "reweight": f"reweight({LOSS})",
    "dro": f"dro({LOSS}, lam={robust.DEFAULT_LAM})",
    "dora": PRESETS["dora/mistral-7b/hh/dora_dpo_pl"].spec,
}

OTHER_LOSSES = (  # that DoRA Table 8 does not have, at usual values; not all of the table
    "cdpo(beta=0.1, epsilon=0.1)",
    "rdpo(beta=0.1, epsilon=0.1)",
    "ipo(tau=0.1)",
    "cpo(beta=0.1)",
    "orpo(lam=0.1)",
    "kto(beta=0.1)",
    "kto_pair(beta=0.1)",
    "beta_dpo(beta=0.1, alpha=0.6)",
    "sft()",
)
LOSSES = (
    tuple(
        preset.spec
        for name, preset in PRESETS.items()
        if name.startswith("dora/mistral-7b/hh/") and not name.endswith("/sft")
        if "dora_" not in name
    )
    + OTHER_LOSSES
)

DOSES = (  # of what goes wrong, each alone
    *(DataConfig(contamination=share) for share in (0.0, 0.2, 0.4, 0.6, 0.8)),
    *(DataConfig(label_noise=share) for share in (0.1, 0.2, 0.3, 0.4, 0.5)),
)

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
    sources: pd.DataFrame  # a row a source: `truth.evaluate` over all prompts
    samples: pd.DataFrame  # a row a sample: contaminated or not, true and estimated h~
    results: pd.DataFrame  # a row a method


def quickstart(
    seed: int = 0, *, contamination: float = 0.4, setting: Setting = STANDARD
) -> Quickstart:
    """The whole idea on one seed, in seconds: a mixture, h~ true and estimated, four objectives."""
    config = dataclasses.replace(setting.data, contamination=contamination)
    setting = dataclasses.replace(setting, seed=seed, data=config)
    first, estimated = start(setting), estimate(setting)
    world = first.world
    every = torch.arange(len(world.prompts))
    all_valid = torch.ones(len(every), dtype=torch.float64)
    sources = [
        {"source": name} | evaluate(world, Enumeration(log_density, all_valid), every)
        for name, log_density in zip(world.source_names, world.log_density, strict=True)
    ]
    samples = {
        "contaminated": first.data.contaminated.numpy(),
        "true_h": estimated.true_h.numpy(),
        "h": estimated.h.numpy(),
    }
    results = [run(config) for config in comparison(setting)]
    return Quickstart(world, pd.DataFrame(sources), pd.DataFrame(samples), pd.DataFrame(results))


def comparison(setting: Setting, *, oracle: bool = True) -> Iterator[Run]:
    """The runs of METHODS on one setting; with `oracle`, those that use h~ again with the true."""
    for spec in METHODS.values():
        yield Run(spec, setting=setting)
        if oracle and objectives.build(spec).needs_h:
            yield Run(spec, h="oracle", setting=setting)


def methods_study(seeds: Sequence[int]) -> list[Run]:
    """Six runs a condition and seed: what contamination, label noise and reward bias do."""
    runs: list[Run] = []
    for data, seed in itertools.product(CONDITIONS.values(), seeds):
        runs += comparison(Setting(seed=seed, data=data))
    return runs


def losses_study(seeds: Sequence[int]) -> list[Run]:
    """DoRA's losses and kin as a mean and under DRO, on clean data: what each does to the mass."""
    specs = []
    for spec in LOSSES:
        specs += [spec, f"dro({spec}, lam={robust.DEFAULT_LAM})"]
    cells = itertools.product(seeds, specs)
    return [Run(spec, setting=Setting(seed=seed)) for seed, spec in cells]


def dose_study(seeds: Sequence[int]) -> list[Run]:
    """ERM under ever more contamination and ever more flips: what a robust method could mend."""
    cells = itertools.product(seeds, DOSES)
    return [Run(LOSS, setting=Setting(seed=seed, data=data)) for seed, data in cells]


def h_study(
    seeds: Sequence[int],
    rows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
    contamination: float = 0.4,
) -> list[Setting]:
    """Settings whose classifiers see ever more rows, trusted and not; for `runs.h_quality`."""
    data = DataConfig(contamination=contamination)
    cells = itertools.product((True, False), rows, seeds)
    return [
        Setting(seed=seed, data=data, classifier_rows=count, trusted=trusted)
        for trusted, count, seed in cells
    ]


def name_conditions(table: pd.DataFrame) -> pd.DataFrame:
    """`table` behind a column `condition`, found by the data knobs; KeyError where none fits."""
    names = {tuple(data_row(data).values()): name for name, data in CONDITIONS.items()}
    knobs = list(data_row(DataConfig()))
    rows = table[knobs].itertuples(index=False, name=None)
    return table.assign(condition=[names[row] for row in rows])[["condition", *table.columns]]


def write_reference(
    folder: Path,
    *,
    seeds: Sequence[int] = range(10),
    dose_seeds: Sequence[int] = range(24),
    only: Sequence[str] = ("toy_sweep", "toy_dose", "toy_losses", "toy_h_rank"),
    workers: int | None = None,
) -> None:
    """The studies `only` names as tables with provenance (.csv, .json) in `folder`.

    Resumable: finished runs wait in `folder`/NAME.runs.jsonl until their table is written.
    """
    folder = Path(folder)
    studies: tuple[tuple[str, Callable[[Any], dict[str, object]], Sequence[Any]], ...] = (
        ("toy_sweep", run, methods_study(seeds)),
        ("toy_dose", run, dose_study(dose_seeds)),
        ("toy_losses", run, losses_study(seeds)),
        ("toy_h_rank", h_quality, h_study(seeds)),
    )
    for name, function, configs in studies:
        if name not in only:
            continue
        started, revision = time.time(), records.git_revision()
        finished_runs = folder / f"{name}.runs.jsonl"
        table = sweep(function, configs, finished_runs, workers=workers, desc=name)
        if name == "toy_sweep":
            table = name_conditions(table)
        made_by = f"{__name__}.write_reference: {len(configs)} runs of {function.__name__}"
        seeds_run = sorted(set(table["seed"].tolist()))
        config = {
            "made_by": made_by,
            "first": dataclasses.asdict(configs[0]),
            "seeds": seeds_run,
        }
        record = records.provenance(config, seeds_run[0], started)
        record["device"] = f"cpu ({platform.machine()}), one thread a run"
        record["revision"] = revision  # of the code that ran, not of a commit meanwhile
        seconds = float(table["seconds"].sum())
        record["seconds_of_runs"] = round(seconds, 1)  # wall clock, summed over runs
        records.write_table(folder / f"{name}.csv", table, record)
        finished_runs.unlink()
