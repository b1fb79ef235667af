"""Losses of a list of responses with rewards, and of one response alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustpo_kit.losses.checks import check_at_least, check_choice, check_positive
from robustpo_kit.losses.scores import (
    Scores,
    check_list,
    check_reduction,
    check_scores,
    column_logps,
    column_rewards,
    log_ratios,
    mean_logps,
    mean_nll,
    real_columns,
    softplus,
)


def dpo_pl(scores: Scores, *, beta: float, reduction: str = "sum") -> Tensor:
    """Plackett-Luce DPO: sum_k [logsumexp_{j>=k} beta r_j - beta r_k], k in order of reward.

    Rafailov et al. 2023, App. A.3. Equal rewards keep their column order; at K = 2 this is `dpo`.
    `reduction` "mean" divides by the K of the row, as the DoRA code does. Returns [B].
    """
    check_positive("beta", beta)
    check_list(scores, reference=True)
    order, real = _ranking(scores)
    utility = (beta * log_ratios(scores)).gather(1, order)  # [B, K], best first
    count = utility.shape[1]
    left = torch.ones(
        count, count, dtype=torch.bool, device=utility.device
    ).triu()  # [k, j]: j >= k
    choosable = left & real[:, None, :]  # [B, K, K]
    lowest = torch.finfo(utility.dtype).min
    choices = utility[:, None, :].expand(-1, count, -1).masked_fill(~choosable, lowest)
    terms = torch.where(real, torch.logsumexp(choices, dim=-1) - utility, 0.0)
    total = terms.sum(dim=-1)
    if check_reduction(reduction) == "mean":
        return total / real.sum(dim=-1)
    return total


def rrhf(
    scores: Scores,
    *,
    alpha: float = 1.0,
    reduction: str = "mean",
    supervised: str = "best",
    ranking: str = "sum",
) -> Tensor:
    """RRHF: sum_{R_i < R_j} max(0, a_i - a_j) + alpha NLL(argmax R) (Yuan et al. 2023, Eq. 2-4).

    Args:
        scores: of lists, with rewards.
        alpha: weight of the NLL, >= 0.
        reduction: of the NLL, "mean" over response tokens or "sum".
        supervised: whose NLL, "best" = the response of highest reward (the first of equal ones), or
            "first" = column 0, as the DoRA code takes the chosen one.
        ranking: "sum" over pairs, or "mean" = divided by the K of the row, as the DoRA code does.

    Returns:
        [B]
    """
    check_at_least("alpha", alpha, 0.0)
    check_choice("supervised", supervised, ("best", "first"))
    check_list(scores)
    a, real, rewards = mean_logps(scores), real_columns(scores), column_rewards(scores)
    worse = rewards[:, :, None] < rewards[:, None, :]  # [B, i, j]: R_i < R_j
    worse = worse & real[:, :, None] & real[:, None, :]
    misordered = (F.relu(a[:, :, None] - a[:, None, :]) * worse).sum(dim=(1, 2))
    if check_reduction(ranking, "ranking") == "mean":
        misordered = misordered / real.sum(dim=-1)
    likelihood = a
    if check_reduction(reduction) == "sum":
        likelihood = column_logps(scores)
    chosen = torch.zeros_like(real[:, :1], dtype=torch.long)
    if supervised == "best":
        chosen = _ranking(scores)[0][:, :1]
    return misordered - alpha * likelihood.gather(1, chosen)[:, 0]


def lire(
    scores: Scores,
    *,
    temperature: float,
    reward_transform: str = "none",
    reduction: str = "sum",
) -> Tensor:
    """LIRE: -sum_j softmax(s / T)_j R_j (Zhu et al. 2024, Eq. 7). Returns [B].

    `reward_transform` "softmax" replaces R by softmax(R) over the row, as the DoRA code does;
    values lie in (-1, 0). `reduction` "mean" divides by the K of the row, as that code does too.
    """
    check_positive("temperature", temperature)
    check_choice("reward_transform", reward_transform, ("none", "softmax"))
    check_list(scores)
    real, rewards = real_columns(scores), column_rewards(scores)
    if reward_transform == "softmax":
        rewards = _reward_shares(scores, 1.0)
    policy = (column_logps(scores) / temperature).masked_fill(~real, -math.inf).softmax(dim=-1)
    total = -(policy * rewards).sum(dim=-1)
    if check_reduction(reduction) == "mean":
        return total / real.sum(dim=-1)
    return total


def infonca(scores: Scores, *, beta: float, temperature: float) -> Tensor:
    """InfoNCA: -sum_k p_k log softmax(beta r)_k, p = softmax(R / T) (Chen et al. 2024).

    Args:
        scores: of lists, with a reference and rewards.
        beta: strength of the reference, > 0.
        temperature: T > 0; towards 0 only the best response has a share.

    Returns:
        [B]
    """
    utility, shares = _utility_and_shares(scores, beta, temperature)
    padding = ~real_columns(scores)
    lowest = torch.finfo(utility.dtype).min
    return -(shares * utility.masked_fill(padding, lowest).log_softmax(dim=-1)).sum(dim=-1)


def nca(scores: Scores, *, beta: float, temperature: float) -> Tensor:
    """NCA: sum_k [p_k sp(-beta r_k) + sp(beta r_k) / K], p = softmax(R / T) (Chen et al. 2024).

    Arguments as `infonca` takes them; it also holds the likelihood of the best. Returns [B].
    """
    utility, shares = _utility_and_shares(scores, beta, temperature)
    real = real_columns(scores)
    uniform = real.to(utility.dtype) / real.sum(dim=-1, keepdim=True)
    return (shares * softplus(-utility) + uniform * softplus(utility)).sum(dim=-1)


def sft(scores: Scores, *, reduction: str = "mean") -> Tensor:
    """Supervised negative log-likelihood of column 0: -a_0, or -s_0 with `reduction` "sum". [B]."""
    check_scores(scores, columns=1)
    return mean_nll(scores, reduction)


def _utility_and_shares(scores: Scores, beta: float, temperature: float) -> tuple[Tensor, Tensor]:
    """beta r and softmax(R / temperature), [B, K] each; 0 in padded columns."""
    check_positive("beta", beta)
    check_positive("temperature", temperature)
    check_list(scores, reference=True)
    return beta * log_ratios(scores), _reward_shares(scores, temperature)


def _reward_shares(scores: Scores, temperature: float) -> Tensor:
    """softmax(R / temperature) over each row's responses [B, K]; 0 in padded columns."""
    rewards = column_rewards(scores) / temperature
    return rewards.masked_fill(~real_columns(scores), -math.inf).softmax(dim=-1)


def _ranking(scores: Scores) -> tuple[Tensor, Tensor]:
    """Columns [B, K] by falling reward, equal ones in column order, padding last; real ranks."""
    real = real_columns(scores)
    rewards = column_rewards(scores).masked_fill(~real, -math.inf)
    order = torch.sort(rewards, dim=-1, descending=True, stable=True).indices
    return order, real.gather(1, order)
