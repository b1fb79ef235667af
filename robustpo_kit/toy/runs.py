"""Runs in the toy world: one objective trained from a setting's start, evaluated exactly."""

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from robustpo_kit import objectives
from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import Policy
from robustpo_kit.records import stream_seed
from robustpo_kit.toy.data import DataConfig, proxy_reward
from robustpo_kit.toy.language import policy_logps
from robustpo_kit.toy.rounds import OWN_H, ROUNDS, own_rows, own_weights
from robustpo_kit.toy.setting import (
    H_SOURCES,
    Setting,
    draw_data,
    estimate,
    start,
    train,
    weights,
)
from robustpo_kit.toy.truth import Enumeration, evaluate, true_h
from robustpo_kit.toy.world import GOLDEN, World, held_out

PLACES = 6  # digits after the point that a path keeps


@dataclasses.dataclass(frozen=True)
class Run:
    """One objective in one setting."""

    objective: str = "dpo_pl(beta=0.1)"  # a spec of objectives.build
    h: str = "estimated"  # for objectives that need it, one of H_SOURCES
    sft_h: str = "ones"  # of the rows of SFT, one of H_SOURCES
    setting: Setting = Setting()
    epochs: int = 3
    learning_rate: float = 2e-3
    batch_size: int = 32  # prompts an optimizer step
    window: int | None = None  # prompts that an aggregator sees at once; None: those of the step
    points: int = 1  # n of `path`, after (1/n)^2, (2/n)^2 .. 1 of the steps: a policy moves early
    rounds: tuple[str, ...] = ("given",)  # of ROUNDS; each goes on from the policy before, its
    # reference, by an optimizer of its own
    rso_beta: float = 0.5  # of the acceptance in a round "rso"

    def __post_init__(self) -> None:
        for name in ("h", "sft_h"):
            if (value := getattr(self, name)) not in H_SOURCES:
                raise ValueError(f"{name} = '{value}': one of {', '.join(H_SOURCES)} is expected")
        if self.window is not None and not 1 <= self.window <= self.batch_size:
            raise ValueError(f"window = {self.window}: 1 to {self.batch_size} prompts are expected")
        if not self.rounds or not set(self.rounds) <= set(ROUNDS):
            raise ValueError(f"rounds = {self.rounds}: some of {', '.join(ROUNDS)} are expected")
        if set(self.rounds) != {"given"} and self.h not in OWN_H:
            raise ValueError(f"h = '{self.h}': of own replies one of {', '.join(OWN_H)} is known")
        if self.h == "slot" and not set(self.rounds) <= {"given", "own_golden"}:
            raise ValueError(f"h = 'slot': rounds {self.rounds} have rows without a golden slot")

    @property
    def method(self) -> str:
        """Short name: the aggregator, _gamma for a dynamic margin, +H for another h."""
        built = objectives.build(self.objective)
        name = built.aggregator
        if built.margin is not None:
            name += "_gamma"
        if built.needs_h and self.h != "estimated":
            name += f"+{self.h}"
        return name


def run(config: Run) -> dict[str, object]:
    """One run from SFT to exact evaluation: a flat row of settings and measures.

    Measures are those of `truth.evaluate` over the held-out prompts, exact; sft_NAME are those of
    the start, and `seen_win_rate` is over the prompts of the data.
    """
    first, setting = start(config.setting, config.sft_h), config.setting
    policy = _copy(first.policy)
    history = _train(config, policy)
    world, data, _, before = first
    objective = objectives.build(config.objective)
    row = settings_row(setting) | {"method": config.method, "loss": objective.base}
    row |= {"objective": objective.spec, "h": "none", "h_rank": float("nan")}
    if objective.needs_h:
        exact = true_h(world, data.prompt_ids, data.response_ids)
        row |= {"h": config.h, "h_rank": _rank_correlation(weights(setting, config.h), exact)}
    row |= _measures(world, setting.data, policy_logps(policy, world), before)
    for name in ("ess", "max_weight"):
        row[name] = float(np.mean([step[name] for step in history]))
    return row


def path(config: Run) -> dict[str, object]:
    """One run as the measures of its `points` in each round behind those of its start.

    Returns:
        `path`, by measure of `truth.evaluate` its values over the held-out prompts; `ess`, the
        effective sample size of a step, on average.
    """
    first, setting = start(config.setting, config.sft_h), config.setting
    world, policy = held_out(first.world), _copy(first.policy)
    watches = [_Watch(policy, world, config.points) for _ in config.rounds]
    history = _train(config, policy, watches)
    rows = first.world.held_out_prompts
    before = Enumeration(*(part[rows] for part in first.distribution))
    proxy, every = proxy_reward(world, setting.data), world.held_out_prompts
    seen = itertools.chain.from_iterable(watch.seen for watch in watches)
    points = [
        evaluate(world, point, every, reference=before, proxy=proxy) for point in (before, *seen)
    ]
    measures = {name: [round(point[name], PLACES) for point in points] for name in points[0]}
    return {"path": measures, "ess": float(np.mean([step["ess"] for step in history]))}


class _Watch(TrainerCallback):
    """Enumerates a policy in training at its `points`, the last of which is its end."""

    def __init__(self, policy: Policy, world: World, points: int):
        self.policy, self.world, self.points = policy, world, points
        self.seen: list[Enumeration] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        due = (len(self.seen) + 1) ** 2 * state.max_steps
        if state.global_step * self.points**2 >= due:
            self.seen.append(policy_logps(self.policy, self.world))


def _copy(policy: Policy) -> Policy:
    return Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.template)


def _round_rows(config: Run, policy: Policy, number: int) -> PreferenceSet:
    """What the policy trains on in one round, as the objective takes it."""
    objective, setting = objectives.build(config.objective), config.setting
    kind = config.rounds[number]
    if kind == "given":
        prefs = draw_data(setting).policy_data.prefs
    else:
        prefs = own_rows(setting, policy, kind, number=number, rso_beta=config.rso_beta)
    if objective.needs_h and kind == "given":
        prefs = prefs.with_h(weights(setting, config.h).numpy())
    elif objective.needs_h:
        prefs = prefs.with_h(own_weights(setting, prefs, config.h).numpy())
    if objective.responses == "pair":
        prefs = prefs.pairs("best_worst")
    return prefs


def _train(
    config: Run, policy: Policy, watches: Sequence[TrainerCallback] = ()
) -> list[dict[str, Any]]:
    """Train the policy in every round, with a watch each if any; a row of means a step."""
    history = []
    for number in range(len(config.rounds)):
        seed = config.setting.seed
        history += train(
            policy,
            _round_rows(config, policy, number),
            config.objective,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            window=config.window,
            seed=stream_seed(seed, "round", number) if number else seed,
            watch=watches[number : number + 1],
        )
    return history


def _measures(
    world: World, data: DataConfig, after: Enumeration, before: Enumeration
) -> dict[str, float]:
    """Exact measures of the trained policy and of its start."""
    rows, proxy = world.held_out_prompts, proxy_reward(world, data)
    row = evaluate(world, after, rows, reference=before, proxy=proxy)
    row["seen_win_rate"] = evaluate(world, after, world.train_prompts)["win_rate"]
    sft = evaluate(world, before, rows, proxy=proxy)
    return row | {
        f"sft_{name}": sft[name] for name in ("win_rate", "win_rate_valid", "gold", "mass")
    }


def settings_row(setting: Setting) -> dict[str, object]:
    """The knobs of a setting, as columns of a table."""
    world = {
        "seed": setting.seed,
        "shift": setting.world.shift,
        "support": setting.world.support,
    }
    classifier = {"classifier_rows": setting.classifier_rows, "trusted": setting.trusted}
    return world | data_row(setting.data) | classifier


def data_row(config: DataConfig) -> dict[str, object]:
    """The knobs of a data set, as columns of a table; a mixture as text."""
    row = dataclasses.asdict(config)
    row["mixture"] = "slots"
    if config.mixture is not None:
        row["mixture"] = "/".join(f"{share:g}" for share in config.mixture)
    return row


def h_quality(setting: Setting) -> dict[str, object]:
    """How well the classifier's c and h~ agree with the truth, as a flat row.

    Rank correlations (Spearman) with true h~ and Bayes' c on rows the classifier has not seen; AUC
    of c for responses that really are golden and of h~ for rows that are not contaminated (NaN
    without any), beside the best possible.
    """
    data = draw_data(setting).policy_data
    estimated = estimate(setting)
    probs, true_probs = estimated.probs.flatten(), estimated.true_probs.flatten()
    golden = (data.true_sources == GOLDEN).flatten()
    clean = ~data.contaminated
    return settings_row(setting) | {
        "h_rank": _rank_correlation(estimated.h, estimated.true_h),
        "c_rank": _rank_correlation(probs, true_probs),
        "auc": _auc(golden, probs),
        "bayes_auc": _auc(golden, true_probs),
        "clean_auc": _auc(clean, estimated.h),
        "bayes_clean_auc": _auc(clean, estimated.true_h),
    }


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """NaN where either is constant, as a slot weight is on data that it finds clean."""
    if bool((first == first[0]).all()) or bool((second == second[0]).all()):
        return float("nan")
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def _auc(labels: Tensor, scores: Tensor) -> float:
    """NaN where only one label occurs."""
    if bool(labels.all()) or not bool(labels.any()):
        return float("nan")
    return float(roc_auc_score(labels.numpy(), scores.numpy()))
