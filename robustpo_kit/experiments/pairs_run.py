"""One run of a study on real preferences: labels turned round, a loss, held-out pairs as they are.

Nobody knows a gold reward of such pairs: what is measured is how held-out labels are answered.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from robustpo_kit import data, objectives, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.experiments.steps import sft_step, train_config
from robustpo_kit.experiments.study_run import share_problem
from robustpo_kit.experiments.supervised import SftStep, adapted
from robustpo_kit.measures import implicit_accuracy, tidy
from robustpo_kit.profiles import Profile
from robustpo_kit.records import digest

# Of a held-out pair: whether the chosen response has the higher implicit reward over the SFT
# policy (ties count half), the higher mean log-probability (SimPO's reward), by how many nats the
# implicit rewards differ, and the mean log-probability of a token of the chosen response.
OUTCOMES = ("implicit_accuracy", "mean_accuracy", "implicit_margin", "golden_logp")
SPLITS = ("sft", "policy", "eval")


@dataclasses.dataclass(frozen=True)
class PairsRun:
    """What decides the outcomes of one method at one share of turned labels and one seed."""

    cfg: Profile
    seed: int
    method: str  # as tables name it
    spec: str  # of objectives.build; "" trains nothing
    source: str  # where the preferences are: a file, or "" for the task's own place
    dose: float = 0.0

    @property
    def setting(self) -> tuple[Profile, int]:
        """Runs of one setting follow one another, and share what is cached."""
        return self.cfg, self.seed

    @property
    def inputs(self) -> tuple[str, ...]:
        """Digest of what a run reads, the preferences."""
        return (_pairs_digest(self.cfg.task, self.source),)

    def problem(self) -> str | None:
        """What is wrong with a run before anything is trained; None where nothing is."""
        if objectives.build(self.spec).needs_h:
            return f"{self.spec} needs h~, which pairs without sources have not"
        return share_problem(self.dose)


@functools.lru_cache(maxsize=1)
def pairs(task: str, source: str) -> PreferenceSet:
    """The preferences of a task, from a file or its own place; read once."""
    rows = data.load(task, source or None)
    if rows.responses_per_prompt != 2:
        raise KitError(f"{task}: {rows.responses_per_prompt} responses a row; pairs are needed")
    return rows


@functools.lru_cache(maxsize=1)
def _pairs_digest(task: str, source: str) -> str:
    rows = pairs(task, source)
    return digest(rows.rows, rows.template)


def pairs_run(run: PairsRun) -> dict[str, object]:
    """Train and measure: `values` holds row_id, outcome (of OUTCOMES) and value."""
    start = _start(run.cfg, run.seed, run.source)
    logps = start.logps
    if run.spec:
        objective = objectives.build(run.spec, seed=run.seed)
        cfg = run.cfg.of_method(objective.base)
        policy = adapted(start.step.load(), cfg.lora_targets, cfg.lora_rank, seed=run.seed)
        turned = start.splits["policy"].flip(run.dose, run.seed)
        config = train_config(cfg, run.seed)
        training.train(policy, turned, objective, config)
        logps, _ = training.score(policy, start.splits["eval"], config)
    ids = [row.row_id for row in start.splits["eval"]]
    arrays = [np.asarray(values, dtype=float) for values in (logps, start.logps, start.lengths)]
    values = outcomes(ids, *arrays)
    return {"values": values.assign(value=values["value"].round(5)).to_dict("list")}


def outcomes(
    row_ids: list[str], logps: np.ndarray, reference: np.ndarray, lengths: np.ndarray
) -> pd.DataFrame:
    """OUTCOMES of a policy on pairs, column 0 the chosen response.

    Args:
        row_ids: [N].
        logps: [N, 2] summed log-probabilities under the policy, nats.
        reference: [N, 2] under the reference.
        lengths: [N, 2] tokens.

    Returns:
        A row a pair and outcome: row_id, outcome, value.
    """
    gain, means = logps - reference, logps / lengths
    columns = (
        implicit_accuracy(gain, [1]),
        implicit_accuracy(means, [1]),
        gain[:, 0] - gain[:, 1],
        means[:, 0],
    )
    return tidy(row_ids, dict(zip(OUTCOMES, columns, strict=True)))


class Start(NamedTuple):
    """Where all methods of a setting begin: rows, SFT, and how SFT scores the held-out rows."""

    splits: Mapping[str, PreferenceSet]  # by the names of SPLITS
    step: SftStep
    logps: Tensor  # [N, 2] nats
    lengths: Tensor  # [N, 2] tokens


@functools.lru_cache(maxsize=1)
def _start(cfg: Profile, seed: int, source: str) -> Start:
    splits = splits_of(cfg, seed, source)
    step = sft_step(cfg, seed, splits["sft"])
    config = train_config(cfg, seed)  # held-out rows are cut as training rows are
    return Start(splits, step, *training.score(step.load(), splits["eval"], config))


def splits_of(cfg: Profile, seed: int, source: str) -> dict[str, PreferenceSet]:
    """Disjoint parts of the preferences, by the names of SPLITS."""
    sizes = {name: getattr(cfg, f"{name}_rows") for name in SPLITS}
    return pairs(cfg.task, source).split(sizes, seed)
