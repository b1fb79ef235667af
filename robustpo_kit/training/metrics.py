"""What is logged of an optimizer step: one flat row of means over its samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustpo_kit.losses import Scores
from robustpo_kit.training.step_objective import StepValue

TINY = 1e-30  # keeps a division by weights that are all zero finite


def step_metrics(scores: Scores, value: StepValue) -> dict[str, float]:
    """Means over the samples of a step, by name.

    `ess` is the effective sample size of the weights, `max_weight` the largest weight's share.
    `chosen_shift` (`chosen_logp` without a reference) is column 0's log-prob, less the reference's;
    `margin` is how far it exceeds the mean of the other columns, `accuracy` how often it does. What
    the objective logs itself comes on top.
    """
    weights = value.weights.detach().abs()
    shares = weights / weights.sum().clamp_min(TINY)
    row = {
        "ess": float(1 / shares.square().sum().clamp_min(TINY)),
        "max_weight": float(shares.max()),
    }
    if scores.ref_logps is None:
        gains = scores.logps
        row["chosen_logp"] = float(gains[:, 0].mean())
    else:
        gains = scores.logps - scores.ref_logps
        row["chosen_shift"] = float(gains[:, 0].mean())
    if gains.shape[1] > 1:
        margins = gains[:, 0] - _mean_of_others(gains, scores.mask)
        row["margin"] = float(margins.mean())
        row["accuracy"] = float((margins > 0).float().mean())
    return row | {name: float(metric) for name, metric in value.metrics.items()}


def mean_of_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every column of metrics rows that have the same columns."""
    totals = dict.fromkeys(rows[0], 0.0)
    for row in rows:
        for name in totals:
            totals[name] += row[name]
    return {name: total / len(rows) for name, total in totals.items()}


def _mean_of_others(gains: Tensor, mask: Tensor | None) -> Tensor:
    """Mean [B] over the columns but the first that a row has."""
    others = gains[:, 1:]
    real_columns = torch.ones_like(others, dtype=torch.bool) if mask is None else mask[:, 1:]
    return (others * real_columns).sum(1) / real_columns.sum(1)
