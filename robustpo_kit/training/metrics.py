"""What is logged of an optimizer step: one flat row of means over its samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustpo_kit.losses import Scores
from robustpo_kit.training.step_objective import StepValue

TINY = 1e-30  # keeps a division by weights that are all zero finite


def step_metrics(scores: Scores, value: StepValue, *, responses: str) -> dict[str, float]:
    """Means over the samples of a step, by name.

    `ess` is the effective sample size of the weights, `max_weight` the largest weight's share.
    `chosen_shift` (`chosen_logp` without a reference) is the best response's log-prob, less the
    reference's; `margin` is how far it exceeds the mean of the others, `accuracy` how often it
    does. What the objective logs itself comes on top.

    Args:
        scores: Of B samples.
        value: The objective's, of the same samples.
        responses: "list": the best is the one of highest reward, where rewards are known; else the
            first one.
    """
    weights = value.weights.detach().abs()
    shares = weights / weights.sum().clamp_min(TINY)
    row = {
        "ess": float(1 / shares.square().sum().clamp_min(TINY)),
        "max_weight": float(shares.max()),
    }
    best = _best_columns(scores, responses)
    if scores.ref_logps is None:
        gains, name = scores.logps, "chosen_logp"
    else:
        gains, name = scores.logps - scores.ref_logps, "chosen_shift"
    chosen = gains.gather(1, best)
    row[name] = float(chosen.mean())
    if gains.shape[1] > 1:
        margins = chosen[:, 0] - _mean_of_others(gains, scores.mask, best)
        row["margin"] = float(margins.mean())
        row["accuracy"] = float((margins > 0).float().mean())
    return row | {name: float(metric) for name, metric in value.metrics.items()}


def mean_of_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every column of metrics rows that have the same columns; empty without rows."""
    if not rows:
        return {}
    totals = dict.fromkeys(rows[0], 0.0)
    for row in rows:
        for name in totals:
            totals[name] += row[name]
    return {name: total / len(rows) for name, total in totals.items()}


def _best_columns(scores: Scores, responses: str) -> Tensor:
    """The best response's column [B, 1] of every sample."""
    if responses != "list" or scores.rewards is None:
        return torch.zeros(len(scores.logps), 1, dtype=torch.long, device=scores.logps.device)
    rewards = scores.rewards
    if scores.mask is not None:
        rewards = rewards.masked_fill(~scores.mask, -torch.inf)
    return rewards.argmax(dim=1, keepdim=True)


def _mean_of_others(gains: Tensor, mask: Tensor | None, best: Tensor) -> Tensor:
    """Mean [B] over the columns but the best that a row has."""
    others = torch.ones_like(gains, dtype=torch.bool) if mask is None else mask.clone()
    others = others.scatter(1, best, False)
    return (gains * others).sum(1) / others.sum(1)
