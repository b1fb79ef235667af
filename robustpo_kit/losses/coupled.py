"""Losses of pairs whose value depends on the other pairs of the step."""

import torch
from torch import Tensor

from robustpo_kit.losses.checks import check_at_least, check_between, check_positive, present
from robustpo_kit.losses.pairwise import dpo_gap, ratio_gap, simpo_gap, target_gamma0
from robustpo_kit.losses.scores import Scores, check_pair, checked_vector, log_ratios, softplus
from robustpo_kit.losses.states import AlphaState, BetaState


def kto(
    scores: Scores, *, beta: float, weight_chosen: float = 1.0, weight_rejected: float = 1.0
) -> Tensor:
    """KTO on pairs: [w_w sigmoid(beta (z - r_w)) + w_l sigmoid(beta (r_l - z))] / 2.

    z = max(0, mean over the batch of `kl_logps - kl_ref_logps`), detached: the KL estimate from
    mismatched responses (Ethayarajh et al. 2024, Eq. 8). The half makes the mean over pairs the
    mean over their 2B responses.

    Args:
        scores: of pairs, with a reference and the log-probabilities of mismatched responses.
        beta: strength of the reference, > 0.
        weight_chosen: w_w >= 0.
        weight_rejected: w_l >= 0.

    Returns:
        [B]
    """
    check_positive("beta", beta)
    check_at_least("weight_chosen", weight_chosen, 0.0)
    check_at_least("weight_rejected", weight_rejected, 0.0)
    check_pair(scores, reference=True)
    mismatched = checked_vector("kl_logps", scores.kl_logps, scores.logps)
    mismatched_ref = checked_vector("kl_ref_logps", scores.kl_ref_logps, scores.logps)
    z = (mismatched - mismatched_ref).detach().mean().clamp(min=0)
    r = log_ratios(scores)
    chosen = weight_chosen * torch.sigmoid(beta * (z - r[:, 0]))
    rejected = weight_rejected * torch.sigmoid(beta * (r[:, 1] - z))
    return (chosen + rejected) / 2


def kto_pair(scores: Scores, *, beta: float, detach_kl: bool = False) -> Tensor:
    """Legacy paired KTO (gamma-PO's table): the batch's other half stands in for mismatched ones.

    [sigmoid(beta (z_l - r_w)) + sigmoid(beta (r_l - z_w))] / 2, z_k = max(0, batch mean of r_k).
    The published code lets gradients flow through z; `detach_kl` stops them, as KTO's Eq. 8 does.
    Returns [B].
    """
    check_positive("beta", beta)
    check_pair(scores, reference=True)
    r = log_ratios(scores)
    estimates = r.detach() if detach_kl else r
    z = estimates.mean(dim=0).clamp(min=0)  # [2]
    return (torch.sigmoid(beta * (z[1] - r[:, 0])) + torch.sigmoid(beta * (r[:, 1] - z[0]))) / 2


def beta_dpo(
    scores: Scores,
    *,
    beta: float,
    alpha: float,
    state: BetaState,
    keep: float = 1.0,
    generator: torch.Generator | None = None,
    training: bool = True,
) -> Tensor:
    """beta-DPO: sp(-beta_t D), beta_t = max(1e-3, beta (1 + alpha (mean M - M0))), M = beta D.

    beta_t is detached; M0 is the moving mean in `state`, updated by this batch before it is used
    (Wu et al. 2024, Eq. 8-9 and their code). `keep` < 1 is the beta-guided filter (Eq. 10-11): that
    share of the batch, drawn without replacement with the Gaussian weights
    exp(-(M - M0)^2 / 2 sd^2), enters mean M and the loss; the other samples return 0 and the kept
    ones are scaled by B / kept, so the mean over [B] is the mean over the kept.

    Args:
        scores: of pairs, with a reference.
        beta: beta at the mean gap, > 0.
        alpha: how far beta follows the batch's mean gap, >= 0.
        state: moving mean and deviation of the gap.
        keep: share of the batch that the filter keeps, in (0, 1].
        generator: of the filter's draws, on the CPU.
        training: False leaves `state` alone and filters nothing.

    Returns:
        [B]
    """
    check_at_least("alpha", alpha, 0.0)
    check_between("keep", keep, 0.0, 1.0, open_low=True, closed_high=True)
    gap = dpo_gap(scores, beta=beta)
    gaps = gap.detach()
    if training:
        state.update(gaps)
    chosen = torch.ones_like(gaps)
    if training and keep < 1:
        chosen = _gaussian_draw(gaps, state, keep, generator)
    scale = _guided_scale(gaps, chosen, state, beta, alpha)
    return chosen * (len(chosen) / chosen.sum()) * softplus(-scale * gap)


def beta_simpo(
    scores: Scores,
    *,
    beta: float,
    alpha: float,
    state: BetaState,
    gamma0: float | None = None,
    gamma_beta_ratio: float | None = None,
    keep: float = 0.8,
    generator: torch.Generator | None = None,
    training: bool = True,
) -> Tensor:
    """beta-SimPO: sp(-beta_t (u - gamma0) / beta), u = beta (a_w - a_l), beta_t as in `beta_dpo`.

    As gamma-PO's Tables 3 and 4 have it by their code: mean M is over the share `keep` of the gaps
    u, every sample stays in the loss, and M0 is of the steps before this one.

    Args:
        scores: of pairs.
        beta: beta at the mean gap, > 0.
        alpha: how far beta follows the batch's mean gap, >= 0.
        state: moving mean and deviation of the gap.
        gamma0, gamma_beta_ratio: the target margin, as `simpo` takes it.
        keep: share of the batch whose gaps are averaged, in (0, 1].
        generator: of the draws, on the CPU.
        training: False leaves `state` alone and averages all gaps.

    Returns:
        [B]
    """
    check_at_least("alpha", alpha, 0.0)
    check_between("keep", keep, 0.0, 1.0, open_low=True, closed_high=True)
    gap = simpo_gap(scores, beta=beta)
    target = target_gamma0(beta=beta, gamma0=gamma0, gamma_beta_ratio=gamma_beta_ratio)
    gaps = gap.detach()
    chosen = torch.ones_like(gaps)
    if training and keep < 1:
        chosen = _gaussian_draw(gaps, state, keep, generator)
    scale = _guided_scale(gaps, chosen, state, beta, alpha)
    if training:
        state.update(gaps)
    return softplus(scale * (target - gap))


def alpha_dpo(
    scores: Scores,
    *,
    beta: float,
    alpha: float,
    state: AlphaState,
    gamma0: float | None = None,
    gamma_beta_ratio: float | None = None,
    training: bool = True,
) -> Tensor:
    """AlphaDPO: sp(-(u - gamma0 - beta alpha z)), u = beta (a_w - a_l) (Wu et al. 2025).

    z is the difference of r_k / n_k, standardised by the moving mean and deviation in `state` and
    without gradient: pairs that the policy already tells apart get the larger margin.

    Args:
        scores: of pairs, with a reference.
        beta: scale of the log-probabilities per token, > 0.
        alpha: margin per deviation, in units of beta, >= 0.
        state: moving mean and deviation, which this batch moves before they are used.
        gamma0, gamma_beta_ratio: the target margin, as `simpo` takes it.
        training: False leaves `state` alone.

    Returns:
        [B]
    """
    check_at_least("alpha", alpha, 0.0)
    gap = simpo_gap(scores, beta=beta)
    target = target_gamma0(beta=beta, gamma0=gamma0, gamma_beta_ratio=gamma_beta_ratio)
    ratios = ratio_gap(scores, "mean").detach()
    if training:
        state.update(ratios)
    return softplus(target + beta * alpha * state.standardised(ratios) - gap)


def aot(scores: Scores, *, beta: float) -> Tensor:
    """AOT, paired: sp(-beta (x_(i) - y_(i))), both in order (Melnyk et al. 2024).

    x = s_w - s_l, y the same of the reference: each sample's x against the y of equal rank in the
    step, so that the one distribution comes to dominate the other. Returns [B].
    """
    check_positive("beta", beta)
    check_pair(scores, reference=True)
    ref_logps = present("ref_logps", scores.ref_logps)
    gaps, ref_gaps = (x[:, 0] - x[:, 1] for x in (scores.logps, ref_logps))
    ranks = gaps.argsort().argsort()
    return softplus(-beta * (gaps - ref_gaps.sort().values[ranks]))


def _guided_scale(
    gaps: Tensor, chosen: Tensor, state: BetaState, beta: float, alpha: float
) -> Tensor:
    """beta_t / beta by the mean of the `chosen` gaps [B]."""
    mean = (chosen * gaps).sum() / chosen.sum()
    return (1 + alpha * (mean - state.mean)).clamp(min=1e-3 / beta)


def _gaussian_draw(
    gaps: Tensor, state: BetaState, keep: float, generator: torch.Generator | None
) -> Tensor:
    """1.0 for a share `keep` of the samples, drawn by Gumbel top-k: weights may underflow."""
    log_weights = -0.5 * ((gaps - state.mean) / max(state.std, 1e-10)) ** 2
    uniform = torch.rand(len(gaps), generator=generator, dtype=torch.float64).to(gaps.device)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    chosen = (log_weights.double() + gumbel).topk(max(1, int(len(gaps) * keep))).indices
    return torch.zeros_like(gaps).index_fill(0, chosen, 1.0)
