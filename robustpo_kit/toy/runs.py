"""Runs in the toy world: one objective trained from a setting's start, evaluated exactly."""

import copy
import dataclasses

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from robustpo_kit import objectives
from robustpo_kit.calibration import slot_ratios, slot_weights
from robustpo_kit.policies import Policy
from robustpo_kit.records import RunRecord
from robustpo_kit.toy.data import DataConfig, proxy_reward
from robustpo_kit.toy.language import policy_logps
from robustpo_kit.toy.setting import Setting, draw_data, estimate, start, train
from robustpo_kit.toy.truth import Enumeration, evaluate, true_h, true_slot_weight
from robustpo_kit.toy.world import GOLDEN, World

# h of a run: h~ by the classifier and by the truth, the slot weight by both, 0 for bad rows
H_SOURCES = ("estimated", "oracle", "slot", "slot_oracle", "mask")


@dataclasses.dataclass(frozen=True)
class Run:
    """One objective in one setting."""

    objective: str = "dpo_pl(beta=0.1)"  # a spec of objectives.build
    h: str = "estimated"  # for objectives that need it, one of H_SOURCES
    setting: Setting = Setting()
    epochs: int = 3
    learning_rate: float = 2e-3
    batch_size: int = 32  # prompts an optimizer step

    def __post_init__(self) -> None:
        if self.h not in H_SOURCES:
            raise ValueError(f"h = '{self.h}': one of {', '.join(H_SOURCES)} is expected")

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
    setting, objective = config.setting, objectives.build(config.objective)
    world, data, first, reference = start(setting)
    prefs = data.prefs
    h_columns: dict[str, object] = {"h": "none", "h_rank": float("nan")}
    if objective.needs_h:
        h = weights(setting, config.h)
        exact = true_h(world, data.prompt_ids, data.response_ids)
        h_columns = {"h": config.h, "h_rank": _rank_correlation(h, exact)}
        prefs = prefs.with_h(h.numpy())
    if objective.responses == "pair":
        prefs = prefs.pairs("best_worst")
    policy = Policy(copy.deepcopy(first.model), first.tokenizer, first.template)
    record = train(
        policy,
        prefs,
        config.objective,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        seed=setting.seed,
    )
    row = settings_row(setting) | {"method": config.method, "loss": objective.base}
    row["objective"] = objective.spec
    after = policy_logps(policy, world)
    return row | h_columns | _measures(world, setting.data, after, reference, record)


def weights(setting: Setting, source: str) -> Tensor:
    """h [N] of the policy's data, by a name of H_SOURCES; `mask` is 1 for clean rows, else 0."""
    world, data, _ = draw_data(setting)
    if source == "estimated":
        return estimate(setting).h
    if source == "oracle":
        return true_h(world, data.prompt_ids, data.response_ids)
    if source == "mask":
        return (~data.contaminated).double()
    slot = torch.tensor([[row.golden] for row in data.prefs])
    if source == "slot_oracle":
        slot_ids = data.response_ids.gather(1, slot)[:, 0]
        return true_slot_weight(world, setting.data, data.prompt_ids, slot_ids)
    c = estimate(setting).probs.gather(1, slot)[:, 0].numpy()
    ratios = slot_ratios(c, imbalance=setting.data.responses - 1)  # golden is one column of K
    return torch.from_numpy(slot_weights(ratios).weights)


def _measures(
    world: World, data: DataConfig, after: Enumeration, before: Enumeration, record: RunRecord
) -> dict[str, float]:
    """Exact measures of the trained policy, and means over its steps of what drove them."""
    held_out, proxy = world.held_out_prompts, proxy_reward(world, data)
    row = evaluate(world, after, held_out, reference=before, proxy=proxy)
    row["seen_win_rate"] = evaluate(world, after, world.train_prompts)["win_rate"]
    sft = evaluate(world, before, held_out, proxy=proxy)
    row |= {f"sft_{name}": sft[name] for name in ("win_rate", "win_rate_valid", "gold", "mass")}
    for name in ("ess", "max_weight"):
        row[name] = float(np.mean([step[name] for step in record.history]))
    return row


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
