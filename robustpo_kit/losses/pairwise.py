"""Losses of a chosen and a rejected response."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustpo_kit.losses.checks import (
    check_at_least,
    check_between,
    check_flag,
    check_positive,
)
from robustpo_kit.losses.scores import (
    Scores,
    check_pair,
    check_reduction,
    log_ratios,
    mean_logps,
    mean_nll,
    response_lengths,
    softplus,
    target_margin,
)


def dpo(scores: Scores, *, beta: float, margin: Tensor | None = None) -> Tensor:
    """DPO: sp(-(beta D - margin)); ln 2 at the start of training (Rafailov et al. 2023, Eq. 7).

    `margin` [B] is an extra target margin in units of beta D (gamma-PO, Eq. 11). Returns [B].
    """
    gap = dpo_gap(scores, beta=beta)
    return softplus(target_margin(margin, gap) - gap)  # [B]


def r_dpo_length(
    scores: Scores,
    *,
    beta: float,
    alpha: float,
    printed: bool = False,
    margin: Tensor | None = None,
) -> Tensor:
    """R-DPO, regularised for length: sp(-(beta D + alpha (n_w - n_l))) (Park et al. 2024).

    The optimum of E[r - alpha n] - beta KL has r_w - r_l = beta D + alpha (n_w - n_l), so that this
    loss finds the policy whose replies cost alpha nats a token.

    Args:
        scores: of pairs, with a reference.
        beta: strength of the reference, > 0.
        alpha: nats a token of difference in length, >= 0.
        printed: take the sign that gamma-PO's Table 6 prints, sp(-(beta D - alpha (n_w - n_l))),
            whose minimiser makes replies longer.
        margin: [B], a target margin in units of beta D.

    Returns:
        [B]
    """
    check_at_least("alpha", alpha, 0.0)
    check_flag("printed", printed)
    gap = dpo_gap(scores, beta=beta)
    lengths = response_lengths(scores)
    penalty = alpha * (lengths[:, 0] - lengths[:, 1])
    if printed:
        penalty = -penalty
    return softplus(target_margin(margin, gap) - penalty - gap)


def ipo(scores: Scores, *, tau: float, reduction: str = "sum") -> Tensor:
    """IPO: (D - 1/(2 tau))^2 (Azar et al. 2024, Eq. 17). Returns [B].

    `reduction` "sum" is the paper's D; "mean" takes each r_k per token, as the paper's experiments
    and TRL do.
    """
    check_positive("tau", tau)
    return (ratio_gap(scores, reduction) - 1 / (2 * tau)) ** 2


def exo(scores: Scores, *, beta: float, epsilon: float = 1e-3) -> Tensor:
    """EXO-pref: KL(softmax(beta r) || (1-e, e)), the reverse KL of DPO's (Ji et al. 2024, Eq. 16).

    The authors' code takes log e = -10 and a temperature of 0.8: epsilon = exp(-10), beta / 0.8.
    Returns [B].
    """
    check_between("epsilon", epsilon, 0.0, 1.0, open_low=True)
    gap = dpo_gap(scores, beta=beta)
    chosen = torch.sigmoid(gap) * (F.logsigmoid(gap) - math.log1p(-epsilon))
    rejected = torch.sigmoid(-gap) * (F.logsigmoid(-gap) - math.log(epsilon))
    return chosen + rejected


def simpo(
    scores: Scores,
    *,
    beta: float,
    gamma0: float | None = None,
    gamma_beta_ratio: float | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """SimPO: sp(-(beta (a_w - a_l) - gamma0)), no reference (Meng et al. 2024, Eq. 6).

    The target margin is exactly one of `gamma0`, `gamma_beta_ratio` and `margin`.

    Args:
        scores: of pairs.
        beta: scale of the log-probabilities per token, > 0.
        gamma0: the target margin in units of the gap, >= 0.
        gamma_beta_ratio: the same in units of beta: gamma0 = ratio * beta.
        margin: [B], one target a sample in place of gamma0 (gamma-PO, Eq. 12).

    Returns:
        [B]

    Raises:
        ValueError: several or none of the three targets are given.
    """
    gap = simpo_gap(scores, beta=beta)
    return softplus(simpo_target(gap, margin, beta, gamma0, gamma_beta_ratio) - gap)


def cpo(scores: Scores, *, beta: float, lam: float = 1.0, reduction: str = "sum") -> Tensor:
    """CPO: sp(-beta (s_w - s_l)) + lam * NLL(y_w) (Xu et al. 2024, Eq. 3, 5).

    Args:
        scores: of pairs.
        beta: scale of the difference of log-probabilities, > 0.
        lam: weight of the NLL, >= 0.
        reduction: of the NLL, "sum" over tokens (-s_w, the paper) or "mean" (-a_w, what TRL's
            token average resembles).

    Returns:
        [B]
    """
    check_positive("beta", beta)
    check_at_least("lam", lam, 0.0)
    check_pair(scores)
    s = scores.logps
    return softplus(-beta * (s[:, 0] - s[:, 1])) + lam * mean_nll(scores, reduction)


def orpo(scores: Scores, *, lam: float = 0.1) -> Tensor:
    """ORPO: -a_w - lam log sigmoid(logodds(a_w) - logodds(a_l)), logodds(a) = a - log(1 - e^a).

    Hong et al. 2024, Eq. 6; TRL calls `lam` beta. Returns [B].
    """
    check_at_least("lam", lam, 0.0)
    check_pair(scores)
    a = mean_logps(scores)
    # a probability of exactly 1 has infinite odds: stay one rounding step below it
    below = a.clamp(max=-torch.finfo(a.dtype).eps)
    odds = below - _log1mexp(below)
    return -a[:, 0] + lam * softplus(odds[:, 1] - odds[:, 0])


def hinge(scores: Scores, *, beta: float) -> Tensor:
    """Hinge on DPO's gap: max(0, 1 - beta D) (Liu et al. 2024, RSO). Returns [B]."""
    return F.relu(1 - dpo_gap(scores, beta=beta))


def slic(scores: Scores, *, beta: float, lam: float, reduction: str = "sum") -> Tensor:
    """SLiC: max(0, 1 - beta (s_w - s_l)) + lam * NLL(y_w) (Zhao et al. 2023; their margin 1/beta).

    `reduction` of the NLL as `cpo` takes it. Returns [B].
    """
    check_positive("beta", beta)
    check_at_least("lam", lam, 0.0)
    check_pair(scores)
    s = scores.logps
    return F.relu(1 - beta * (s[:, 0] - s[:, 1])) + lam * mean_nll(scores, reduction)


def simper(scores: Scores) -> Tensor:
    """SimPER: e^a_l - e^a_w, of inverse perplexities (Xiao et al. 2025). In (-1, 1), [B]."""
    check_pair(scores)
    likelihoods = mean_logps(scores).exp()
    return likelihoods[:, 1] - likelihoods[:, 0]


def sppo(scores: Scores, *, beta: float) -> Tensor:
    """SPPO: [(r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2] / 2 (Wu et al. 2025, Eq. 4.7).

    With a probability of winning of 1 for the chosen and 0 for the rejected response; 1 / beta is
    their eta, 1000. Returns [B].
    """
    check_positive("beta", beta)
    check_pair(scores, reference=True)
    r, aim = log_ratios(scores), 1 / (2 * beta)
    return ((r[:, 0] - aim) ** 2 + (r[:, 1] + aim) ** 2) / 2


def dpop(scores: Scores, *, beta: float, lam: float = 50.0) -> Tensor:
    """DPO-positive: sp(-beta (D - lam max(0, -r_w))), which holds s_w up (Pal et al. 2024). [B]."""
    check_at_least("lam", lam, 0.0)
    gap = dpo_gap(scores, beta=beta)
    return softplus(beta * lam * F.relu(-log_ratios(scores)[:, 0]) - gap)


def chi_po(scores: Scores, *, beta: float, reward_bound: float) -> Tensor:
    """chi-PO: sp(-clip(beta (f(r_w) - f(r_l)), +-2R)), f(r) = e^r + r (Huang et al. 2025, Alg. 1).

    The exponential comes of a chi-squared divergence beside the KL. It is held at e^80, just short
    of what single precision can hold. Nothing moves a pair whose gap is outside +-2R.

    Args:
        scores: of pairs, with a reference.
        beta: strength of the reference, > 0.
        reward_bound: R > 0, the largest reward.

    Returns:
        [B]
    """
    check_positive("beta", beta)
    check_positive("reward_bound", reward_bound)
    check_pair(scores, reference=True)
    r = log_ratios(scores)
    f = r.clamp(max=80.0).exp() + r
    gap = beta * (f[:, 0] - f[:, 1])
    return softplus(-gap.clamp(-2 * reward_bound, 2 * reward_bound))


def ratio_gap(scores: Scores, reduction: str = "sum") -> Tensor:
    """D [B]; with `reduction` "mean" the difference of r_k / n_k."""
    check_pair(scores, reference=True)
    ratios = log_ratios(scores)
    if check_reduction(reduction) == "mean":
        ratios = ratios / response_lengths(scores)
    return ratios[:, 0] - ratios[:, 1]


def dpo_gap(scores: Scores, *, beta: float) -> Tensor:
    """Reward gap of DPO and its kin: beta D [B]."""
    check_positive("beta", beta)
    return beta * ratio_gap(scores)


def simpo_gap(scores: Scores, *, beta: float) -> Tensor:
    """Reward gap of SimPO: beta (a_w - a_l) [B]."""
    check_positive("beta", beta)
    check_pair(scores)
    a = mean_logps(scores)
    return beta * (a[:, 0] - a[:, 1])


def target_gamma0(
    *, beta: float, gamma0: float | None = None, gamma_beta_ratio: float | None = None
) -> float:
    """The target margin gamma0 from exactly one of its two published forms, else ValueError."""
    if gamma0 is not None and gamma_beta_ratio is None:
        check_at_least("gamma0", gamma0, 0.0)
        return gamma0
    if gamma_beta_ratio is not None and gamma0 is None:
        check_at_least("gamma_beta_ratio", gamma_beta_ratio, 0.0)
        return gamma_beta_ratio * beta
    given = "none" if gamma0 is None else "both"
    raise ValueError(
        "gamma0, gamma_beta_ratio: give exactly one (gamma0 = gamma_beta_ratio * beta), "
        f"got {given}"
    )


def simpo_target(
    gap: Tensor,
    margin: Tensor | None,
    beta: float,
    gamma0: float | None,
    gamma_beta_ratio: float | None,
) -> Tensor | float:
    """What SimPO and its kin take off the gap [B]: `margin` [B] or the constant, exactly one."""
    if margin is None:
        return target_gamma0(beta=beta, gamma0=gamma0, gamma_beta_ratio=gamma_beta_ratio)
    if gamma0 is not None or gamma_beta_ratio is not None:
        raise ValueError(
            "margin: takes the place of gamma0 and gamma_beta_ratio; give only one of the three"
        )
    return target_margin(margin, gap)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact on both sides of -ln 2.

    Each branch sees only arguments it is finite for, so that no NaN reaches the gradient.
    """
    near = x > -math.log(2)
    small = torch.where(near, x, -1.0)
    large = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
