"""Losses of pairs whose labels may be wrong."""

import torch
from torch import Tensor

from robustpo_kit.losses.checks import check_at_least, check_between, check_flag
from robustpo_kit.losses.pairwise import dpo_gap, simpo_gap, simpo_target
from robustpo_kit.losses.scores import Scores, check_list, column_rewards, softplus, target_margin
from robustpo_kit.losses.states import EtaState


def cdpo(scores: Scores, *, beta: float, epsilon: float, margin: Tensor | None = None) -> Tensor:
    """Conservative DPO, label smoothing: (1-e) sp(-beta D) + e sp(beta D) (Mitchell 2023).

    gamma-PO calls this loss "rDPO" (Eq. 5, with a margin on either side Eq. 13).

    Args:
        scores: of pairs, with a reference.
        beta: strength of the reference, > 0.
        epsilon: share of labels taken to be flipped, in [0, 1).
        margin: [B], a target margin in units of beta D on the side of each label.

    Returns:
        [B]
    """
    gap = dpo_gap(scores, beta=beta)
    return _smoothed(gap, target_margin(margin, gap), epsilon)


def rdpo(scores: Scores, *, beta: float, epsilon: float, margin: Tensor | None = None) -> Tensor:
    """Robust DPO: [(1-e) sp(-beta D) - e sp(beta D)] / (1-2e) (Chowdhury et al. 2024).

    Unbiased where a share e of the labels is flipped.

    Args:
        scores: of pairs, with a reference.
        beta: strength of the reference, > 0.
        epsilon: the flip rate, in [0, 0.5).
        margin: [B], a target margin in units of beta D on the side of each label.

    Returns:
        [B]; values can be negative.
    """
    gap = dpo_gap(scores, beta=beta)
    return _unbiased(gap, target_margin(margin, gap), epsilon)


def rsimpo(
    scores: Scores,
    *,
    beta: float,
    epsilon: float,
    gamma0: float | None = None,
    gamma_beta_ratio: float | None = None,
    debiased: bool = False,
    margin: Tensor | None = None,
) -> Tensor:
    """Robust SimPO, u = beta (a_w - a_l): (1-e) sp(g - u) + e sp(g + u), g the target margin.

    Label smoothing, as gamma-PO's Eq. 5 and 13 and its code have it; Table 6 prints a difference.

    Args:
        scores: of pairs.
        beta: scale of the log-probabilities per token, > 0.
        epsilon: share of labels taken to be flipped, in [0, 1), or [0, 0.5) where `debiased`.
        gamma0, gamma_beta_ratio, margin: the target margin, as `simpo` takes it; it stands on the
            side of each label.
        debiased: [(1-e) sp(g - u) - e sp(g + u)] / (1-2e) instead, as `rdpo`, whose mean over a
            share e of flips is SimPO.

    Returns:
        [B]; where `debiased`, values can be negative.
    """
    check_flag("debiased", debiased)
    gap = simpo_gap(scores, beta=beta)
    target = simpo_target(gap, margin, beta, gamma0, gamma_beta_ratio)
    if debiased:
        return _unbiased(gap, target, epsilon)
    return _smoothed(gap, target, epsilon)


def ropo(scores: Scores, *, beta: float, alpha: float = 14.0) -> Tensor:
    """ROPO's loss: 4 alpha / (1 + alpha)^2 [sp(-m) + alpha sigmoid(-m)], m = beta D.

    Its gradient falls off for pairs that the policy finds clearly mislabelled (Liang et al. 2025).
    Their filtering of pairs and their rejection sampling between epochs are not here.

    Args:
        scores: of pairs, with a reference.
        beta: strength of the reference, > 0.
        alpha: weight of the bounded part, > 2.

    Returns:
        [B]
    """
    check_between("alpha", alpha, 2.0, float("inf"), open_low=True)
    gap = dpo_gap(scores, beta=beta)
    scale = 4 * alpha / (1 + alpha) ** 2
    return scale * (softplus(-gap) + alpha * torch.sigmoid(-gap))


def dpo_pro(scores: Scores, *, beta: float, rho: float) -> Tensor:
    """DPO-PRO: the worst of p sp(-m) + (1-p) sp(m), (p - q)^2 <= rho q (1-q), m = beta D.

    q = sigmoid(R_w - R_l) is the probability that the label is right: rewards in log-odds, such as
    a Bradley-Terry model gives. Towards a hard q of 0 or 1 the ball shrinks to a point, and the
    loss is DPO's on the label that q says (Kim et al. 2025).

    Args:
        scores: of pairs, with a reference and rewards.
        beta: strength of the reference, > 0.
        rho: size of the ball, >= 0.

    Returns:
        [B]
    """
    check_at_least("rho", rho, 0.0)
    check_list(scores)
    gap, rewards = dpo_gap(scores, beta=beta), column_rewards(scores)
    log_odds = rewards[:, 0] - rewards[:, 1]
    q, rest = torch.sigmoid(log_odds), torch.sigmoid(-log_odds)
    room = torch.where(gap > 0, q, rest)  # p stays a probability
    shift = torch.minimum((rho * q * rest).sqrt(), room)
    return q * softplus(-gap) + rest * softplus(gap) + gap.abs() * shift


def re_po(scores: Scores, *, beta: float, state: EtaState, training: bool = True) -> Tensor:
    """RE-PO over DPO: w sp(-m) + (1-w) sp(m), w = p eta / (p eta + (1-p)(1-eta)), p = sigmoid(m).

    w is the posterior that the label is right, without gradient, m = beta D, and eta the share of
    right labels in `state`, which moves towards the step's mean w after its use (Cao et al. 2026,
    Algorithm 1). One eta for all rows: rows name no annotator.

    Args:
        scores: of pairs, with a reference.
        beta: strength of the reference, > 0.
        state: eta.
        training: False leaves `state` alone.

    Returns:
        [B]
    """
    gap = dpo_gap(scores, beta=beta)
    logits = gap.detach() + torch.logit(gap.new_tensor(state.eta))
    right = torch.sigmoid(logits)  # w
    if training:
        state.update(right)
    return right * softplus(-gap) + (1 - right) * softplus(gap)


def _smoothed(gap: Tensor, target: Tensor | float, epsilon: float) -> Tensor:
    """The loss of the label and of its reverse by their shares, each against the same target."""
    check_between("epsilon", epsilon, 0.0, 1.0)
    return (1 - epsilon) * softplus(target - gap) + epsilon * softplus(target + gap)


def _unbiased(gap: Tensor, target: Tensor | float, epsilon: float) -> Tensor:
    """That whose mean over a share `epsilon` of reversed labels is the loss of right ones."""
    check_between("epsilon", epsilon, 0.0, 0.5)
    difference = (1 - epsilon) * softplus(target - gap) - epsilon * softplus(target + gap)
    return difference / (1 - 2 * epsilon)
