"""What a step reports beside its loss, each a scalar of the whole step."""

import math

import torch
from torch import Tensor

from robustpo_kit import losses, robust
from robustpo_kit.losses import Base, Scores


@torch.no_grad()
def step_metrics(
    base: Base, scores: Scores, per_sample: Tensor, weights: Tensor, h: Tensor | None
) -> dict[str, Tensor]:
    """Losses, weights and how the policy ranks the responses of the step.

    Args:
        base: the row of the loss.
        scores: of B samples.
        per_sample: [B], their losses.
        weights: [B], their gradient weights.
        h: [B], calibration factors, or None where the objective takes none.
    """
    best = _best_columns(base, scores)
    measured = {
        "loss_mean": per_sample.mean(),
        "ess": robust.effective_sample_size(weights),
        "max_weight": weights.max() / weights.sum().clamp(min=1e-30),
        "weight_sum": weights.sum(),
        "logps_chosen": scores.logps.gather(1, best).mean(),
    }
    if base.needs_reference:
        measured["chosen_shift"] = losses.log_ratios(scores).gather(1, best).mean()
    if base.responses != "one":
        measured |= _ranking_metrics(base, scores, best)
    if h is not None:
        measured["h_mean"] = h.mean()
        measured["corr_h_weight"] = _correlation(h, weights)
    return measured


def _best_columns(base: Base, scores: Scores) -> Tensor:
    """The best response's column [B, 1]: the chosen one of a pair, a list's of highest reward."""
    if base.responses != "list":
        return torch.zeros(len(scores.logps), 1, dtype=torch.long, device=scores.logps.device)
    padding = ~losses.real_columns(scores)
    rewards = losses.column_rewards(scores).masked_fill(padding, -math.inf)
    return rewards.argmax(dim=-1, keepdim=True)


def _ranking_metrics(base: Base, scores: Scores, best: Tensor) -> dict[str, Tensor]:
    """How often the best response has the policy's highest score.

    The policy's own score of a response is r_k with a reference, else a_k.
    """
    score_of = losses.log_ratios if base.needs_reference else losses.mean_logps
    implicit = score_of(scores)  # [B, K]
    if base.responses == "pair":
        right = implicit[:, 0] > implicit[:, 1]
        gap = (implicit[:, 0] - implicit[:, 1]).mean()
        return {"accuracy": right.to(implicit.dtype).mean(), "gap_mean": gap}
    padding = ~losses.real_columns(scores)
    right = implicit.masked_fill(padding, -math.inf).argmax(dim=-1, keepdim=True) == best
    return {"accuracy": right.to(implicit.dtype).mean()}


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation; 0 where either is constant."""
    x, y = (x - x.mean()).to(y.dtype), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=torch.finfo(y.dtype).tiny), 0.0)
