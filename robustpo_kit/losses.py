"""Preference losses as pure functions of log-probabilities: one value a sample, the caller aggregates.

Notation (docstrings): s_k summed log-probability of response k, n_k its tokens, a_k = s_k / n_k, r_k = s_k - s_k^ref,
R_k its reward, w = column 0 (chosen), l = column 1 (rejected), D = r_w - r_l, sp = softplus.
Every loss raises ValueError that names the argument: a parameter outside its range, a missing or misshapen field of
`scores`, a value that is not finite, too few columns.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Scores(NamedTuple):
    """What every objective sees of the model: K scored responses a prompt, column 0 = chosen for pairs."""

    logps: Tensor  # [B, K] summed response log-probabilities, nats
    ref_logps: Tensor | None  # [B, K] the same under the reference policy
    lengths: Tensor  # [B, K] response tokens
    rewards: Tensor | None = None  # [B, K]
    mask: Tensor | None = None  # [B, K] bool, False = padding; None = every column is real
    kl_logps: Tensor | None = None  # [B] log-probabilities of mismatched responses (KTO)
    kl_ref_logps: Tensor | None = None  # [B]


# --- pairwise -------------------------------------------------------------------------------------------------------


def dpo(scores: Scores, *, beta: float, margin: Tensor | None = None) -> Tensor:
    """DPO: sp(-(beta D - margin)); ln 2 at the start of training (Rafailov et al. 2023, Eq. 7).

    `margin` [B] is an extra target margin in units of beta D (gamma-PO, Eq. 11). Returns [B].
    """
    gap = dpo_gap(scores, beta=beta)
    return softplus(_margin(margin, gap) - gap)  # [B]


def cdpo(scores: Scores, *, beta: float, epsilon: float, margin: Tensor | None = None) -> Tensor:
    """Conservative DPO, label smoothing: (1-e) sp(-beta D) + e sp(beta D) (Mitchell 2023).

    gamma-PO calls this loss "rDPO" (Eq. 5, with a margin on either side Eq. 13). Returns [B].
    """
    _between("epsilon", epsilon, 0.0, 1.0)
    kept, flipped = _both_labels(scores, beta, margin)
    return (1 - epsilon) * kept + epsilon * flipped


def rdpo(scores: Scores, *, beta: float, epsilon: float, margin: Tensor | None = None) -> Tensor:
    """Robust DPO: [(1-e) sp(-beta D) - e sp(beta D)] / (1-2e), unbiased under a flip rate e (Chowdhury et al. 2024).

    Returns [B]; values can be negative. Raises ValueError for epsilon outside [0, 0.5).
    """
    _between("epsilon", epsilon, 0.0, 0.5)
    kept, flipped = _both_labels(scores, beta, margin)
    return ((1 - epsilon) * kept - epsilon * flipped) / (1 - 2 * epsilon)


def r_dpo_length(scores: Scores, *, beta: float, alpha: float, margin: Tensor | None = None) -> Tensor:
    """R-DPO, regularised for length: sp(-(beta D - alpha (n_w - n_l))) (Park et al. 2024). Returns [B]."""
    _at_least("alpha", alpha, 0.0)
    gap = dpo_gap(scores, beta=beta)
    n = _lengths(scores)
    return softplus(_margin(margin, gap) + alpha * (n[:, 0] - n[:, 1]) - gap)


def ipo(scores: Scores, *, tau: float, reduction: str = "sum") -> Tensor:
    """IPO: (D - 1/(2 tau))^2 (Azar et al. 2024, Eq. 17). Returns [B].

    `reduction` "sum" is the paper's D; "mean" takes each r_k per token, as the paper's experiments and TRL do.
    """
    _positive("tau", tau)
    _check_pair(scores, reference=True)
    ratios = _log_ratios(scores)
    if _reduction(reduction) == "mean":
        ratios = ratios / _lengths(scores)
    return (ratios[:, 0] - ratios[:, 1] - 1 / (2 * tau)) ** 2


def exo(scores: Scores, *, beta: float, epsilon: float = 1e-3) -> Tensor:
    """EXO-pref: KL(softmax(beta r) || (1-e, e)), the reverse KL of DPO's (Ji et al. 2024, Eq. 16). Returns [B].

    The authors' code takes log e = -10 and a temperature of 0.8: epsilon = exp(-10), beta / 0.8.
    """
    _between("epsilon", epsilon, 0.0, 1.0, open_low=True)
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
    """SimPO: sp(-(beta (a_w - a_l) - gamma0)), no reference (Meng et al. 2024, Eq. 6). Returns [B].

    The target margin is exactly one of `gamma0`, `gamma_beta_ratio` (gamma0 = ratio * beta) and `margin` [B], one
    target a sample in place of gamma0 (gamma-PO, Eq. 12). Raises ValueError when several or none are given.
    """
    gap = simpo_gap(scores, beta=beta)
    if margin is not None:
        if gamma0 is not None or gamma_beta_ratio is not None:
            raise ValueError("margin: takes the place of gamma0 and gamma_beta_ratio; give only one of the three")
        return softplus(_margin(margin, gap) - gap)
    return softplus(target_gamma0(beta=beta, gamma0=gamma0, gamma_beta_ratio=gamma_beta_ratio) - gap)


def cpo(scores: Scores, *, beta: float, lam: float = 1.0, reduction: str = "sum") -> Tensor:
    """CPO: sp(-beta (s_w - s_l)) + lam * NLL(y_w) (Xu et al. 2024, Eq. 3, 5). Returns [B].

    `reduction` of the NLL: "sum" over tokens (-s_w, the paper) or "mean" (-a_w, what TRL's token average resembles).
    """
    _positive("beta", beta)
    _at_least("lam", lam, 0.0)
    _check_pair(scores)
    s = scores.logps
    return softplus(-beta * (s[:, 0] - s[:, 1])) + lam * _nll(scores, reduction)


def orpo(scores: Scores, *, lam: float = 0.1) -> Tensor:
    """ORPO: -a_w - lam log sigmoid(logodds(a_w) - logodds(a_l)), logodds(a) = a - log(1 - e^a).

    Hong et al. 2024, Eq. 6; TRL calls `lam` beta. Returns [B].
    """
    _at_least("lam", lam, 0.0)
    _check_pair(scores)
    a = mean_logps(scores)
    # a probability of exactly 1 has infinite odds: stay one rounding step below it
    below = a.clamp(max=-torch.finfo(a.dtype).eps)
    odds = below - _log1mexp(below)
    return -a[:, 0] + lam * softplus(odds[:, 1] - odds[:, 0])


def kto(scores: Scores, *, beta: float, weight_chosen: float = 1.0, weight_rejected: float = 1.0) -> Tensor:
    """KTO on pairs: [w_w sigmoid(beta (z - r_w)) + w_l sigmoid(beta (r_l - z))] / 2 (Ethayarajh et al. 2024, Eq. 8).

    z = max(0, mean over the batch of `kl_logps - kl_ref_logps`), detached: the KL estimate from mismatched responses.
    The half makes the mean over pairs the mean over their 2B responses. Returns [B].
    """
    _positive("beta", beta)
    _at_least("weight_chosen", weight_chosen, 0.0)
    _at_least("weight_rejected", weight_rejected, 0.0)
    _check_pair(scores, reference=True)
    for name in ("kl_logps", "kl_ref_logps"):
        _check_vector(name, getattr(scores, name), scores.logps)
    z = (scores.kl_logps - scores.kl_ref_logps).detach().mean().clamp(min=0)
    r = _log_ratios(scores)
    chosen = weight_chosen * torch.sigmoid(beta * (z - r[:, 0]))
    rejected = weight_rejected * torch.sigmoid(beta * (r[:, 1] - z))
    return (chosen + rejected) / 2


def kto_pair(scores: Scores, *, beta: float, detach_kl: bool = False) -> Tensor:
    """Legacy paired KTO (gamma-PO's table): the other half of the batch stands in for the KL's mismatched responses.

    [sigmoid(beta (z_l - r_w)) + sigmoid(beta (r_l - z_w))] / 2 with z_k = max(0, batch mean of r_k). The published
    code lets gradients flow through z; `detach_kl` stops them, as KTO's Eq. 8 does. Returns [B].
    """
    _positive("beta", beta)
    _check_pair(scores, reference=True)
    r = _log_ratios(scores)
    z = (r.detach() if detach_kl else r).mean(dim=0).clamp(min=0)  # [2]
    return (torch.sigmoid(beta * (z[1] - r[:, 0])) + torch.sigmoid(beta * (r[:, 1] - z[0]))) / 2


class BetaState:
    """Moving mean and deviation of the reward gap, what beta-DPO remembers between steps (Wu et al. 2024, Eq. 9)."""

    def __init__(self, momentum: float = 0.9, mean: float = 0.0, std: float = 1.0) -> None:
        _between("momentum", momentum, 0.0, 1.0)
        self.momentum, self.mean, self.std = momentum, mean, std

    def update(self, gaps: Tensor) -> None:
        """Move mean and deviation towards those of `gaps` [B]; a single gap moves only the mean."""
        keep = self.momentum
        self.mean = keep * self.mean + (1 - keep) * float(gaps.mean())
        if len(gaps) > 1:
            self.std = keep * self.std + (1 - keep) * float(gaps.std())

    def state_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {"momentum": self.momentum, "mean": self.mean, "std": self.std}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over `state`; raises ValueError for a missing entry."""
        if missing := [name for name in ("momentum", "mean", "std") if name not in state]:
            raise ValueError(f"state: entry '{missing[0]}' is missing; not a BetaState")
        self.momentum, self.mean, self.std = (float(state[name]) for name in ("momentum", "mean", "std"))


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
    """beta-DPO: sp(-beta_t D), beta_t = max(1e-3, beta (1 + alpha (mean M - M0))), M = beta D, all detached.

    M0 is the moving mean in `state`, updated by this batch before it is used (Wu et al. 2024, Eq. 8-9 and their code);
    `training=False` leaves it alone. `keep` < 1 is the beta-guided filter (Eq. 10-11): that share of the batch, drawn
    without replacement with the Gaussian weights exp(-(M - M0)^2 / 2 sd^2), enters mean M and the loss; the other
    samples return 0 and the kept ones are scaled by B / kept, so the mean over [B] is the mean over the kept.
    """
    _at_least("alpha", alpha, 0.0)
    _between("keep", keep, 0.0, 1.0, open_low=True, closed_high=True)
    gap = dpo_gap(scores, beta=beta)
    gaps = gap.detach()
    if training:
        state.update(gaps)
    kept = torch.ones_like(gaps)
    if training and keep < 1:
        kept = _gaussian_draw(gaps, state, keep, generator)
    mean = (kept * gaps).sum() / kept.sum()
    scale = (1 + alpha * (mean - state.mean)).clamp(min=1e-3 / beta)  # beta_t / beta
    return kept * (len(kept) / kept.sum()) * softplus(-scale * gap)


# --- listwise -------------------------------------------------------------------------------------------------------


def dpo_pl(scores: Scores, *, beta: float, reduction: str = "sum") -> Tensor:
    """Plackett-Luce DPO: sum_k [logsumexp_{j>=k} beta r_j - beta r_k], k in order of reward.

    Rafailov et al. 2023, App. A.3. Equal rewards keep their column order; at K = 2 this is `dpo`. `reduction` "mean"
    divides by the K of the row, as the DoRA code does. Returns [B].
    """
    _positive("beta", beta)
    _check_list(scores, reference=True)
    order, real = _ranking(scores)
    utility = (beta * _log_ratios(scores)).gather(1, order)  # [B, K], best first
    count = utility.shape[1]
    rest = torch.ones(count, count, dtype=torch.bool, device=utility.device).triu()  # rest[k, j]: j >= k
    lowest = torch.finfo(utility.dtype).min
    choices = utility[:, None, :].expand(-1, count, -1).masked_fill(~(rest & real[:, None, :]), lowest)  # [B, K, K]
    terms = torch.where(real, torch.logsumexp(choices, dim=-1) - utility, 0.0)
    total = terms.sum(dim=-1)
    return total / real.sum(dim=-1) if _reduction(reduction) == "mean" else total


def rrhf(scores: Scores, *, alpha: float = 1.0, reduction: str = "mean") -> Tensor:
    """RRHF: sum_{R_i < R_j} max(0, a_i - a_j) + alpha NLL(argmax R) (Yuan et al. 2023, Eq. 2-4). Returns [B].

    `reduction` of the NLL: "mean" over response tokens (default) or "sum". The first of equal best rewards is taken.
    """
    _at_least("alpha", alpha, 0.0)
    _check_list(scores)
    a, real = mean_logps(scores), _real(scores)
    rewards = torch.where(real, scores.rewards, 0.0)
    worse = rewards[:, :, None] < rewards[:, None, :]  # [B, i, j]: R_i < R_j
    worse = worse & real[:, :, None] & real[:, None, :]
    ranking = (F.relu(a[:, :, None] - a[:, None, :]) * worse).sum(dim=(1, 2))
    best = _ranking(scores)[0][:, :1]
    supervised = a if _reduction(reduction) == "mean" else _logps(scores)
    return ranking - alpha * supervised.gather(1, best)[:, 0]


def lire(scores: Scores, *, temperature: float, reward_transform: str = "none") -> Tensor:
    """LIRE: -sum_j softmax(s / T)_j R_j (Zhu et al. 2024, Eq. 7). Returns [B].

    `reward_transform` "softmax" replaces R by softmax(R) over the row, as the DoRA code does; values lie in (-1, 0).
    """
    _positive("temperature", temperature)
    _check_list(scores)
    real = _real(scores)
    rewards = torch.where(real, scores.rewards, 0.0)
    if reward_transform == "softmax":
        rewards = rewards.masked_fill(~real, -math.inf).softmax(dim=-1)
    elif reward_transform != "none":
        raise ValueError(f"reward_transform: expected 'none' or 'softmax', got {reward_transform!r}")
    policy = (_logps(scores) / temperature).masked_fill(~real, -math.inf).softmax(dim=-1)
    return -(policy * rewards).sum(dim=-1)


def sft(scores: Scores, *, reduction: str = "mean") -> Tensor:
    """Supervised negative log-likelihood of column 0: -a_0, or -s_0 with `reduction` "sum". Returns [B]."""
    _check(scores, columns=1)
    return _nll(scores, reduction)


# --- shared algebra -------------------------------------------------------------------------------------------------


def dpo_gap(scores: Scores, *, beta: float) -> Tensor:
    """Reward gap of DPO and its kin: beta D [B]."""
    _positive("beta", beta)
    _check_pair(scores, reference=True)
    r = _log_ratios(scores)
    return beta * (r[:, 0] - r[:, 1])


def simpo_gap(scores: Scores, *, beta: float) -> Tensor:
    """Reward gap of SimPO: beta (a_w - a_l) [B]."""
    _positive("beta", beta)
    _check_pair(scores)
    a = mean_logps(scores)
    return beta * (a[:, 0] - a[:, 1])


def mean_logps(scores: Scores) -> Tensor:
    """Log-probabilities per response token a_k [B, K]; 0 in padded columns."""
    return _logps(scores) / _lengths(scores)


def target_gamma0(*, beta: float, gamma0: float | None = None, gamma_beta_ratio: float | None = None) -> float:
    """The target margin gamma0 from exactly one of its two published forms; raises ValueError otherwise."""
    if (gamma0 is None) == (gamma_beta_ratio is None):
        raise ValueError(
            "gamma0, gamma_beta_ratio: give exactly one (gamma0 = gamma_beta_ratio * beta), got "
            + ("both" if gamma0 is not None else "none")
        )
    if gamma0 is None:
        _at_least("gamma_beta_ratio", gamma_beta_ratio, 0.0)
        return gamma_beta_ratio * beta
    _at_least("gamma0", gamma0, 0.0)
    return gamma0


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); F.softplus turns linear above 20 and so is off by 2e-9 there."""
    return -F.logsigmoid(-x)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact on both sides of -ln 2; each branch sees only arguments it is finite for."""
    near = x > -math.log(2)
    small = torch.where(near, x, -1.0)
    large = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def _both_labels(scores: Scores, beta: float, margin: Tensor | None) -> tuple[Tensor, Tensor]:
    """DPO loss of the pair as labelled and with its label flipped, each against the same target margin."""
    gap = dpo_gap(scores, beta=beta)
    margin = _margin(margin, gap)
    return softplus(margin - gap), softplus(margin + gap)


def _gaussian_draw(gaps: Tensor, state: BetaState, keep: float, generator: torch.Generator | None) -> Tensor:
    """1.0 for a share `keep` of the samples, drawn by Gumbel top-k: the weights themselves may underflow."""
    log_weights = -0.5 * ((gaps - state.mean) / max(state.std, 1e-10)) ** 2
    uniform = torch.rand(len(gaps), generator=generator, dtype=torch.float64).to(gaps.device)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    chosen = (log_weights.double() + gumbel).topk(max(1, int(len(gaps) * keep))).indices
    return torch.zeros_like(gaps).index_fill(0, chosen, 1.0)


def _ranking(scores: Scores) -> tuple[Tensor, Tensor]:
    """Columns [B, K] by falling reward, equal ones in column order, padding last; and which ranks are real."""
    real = _real(scores)
    rewards = scores.rewards.masked_fill(~real, -math.inf)
    order = torch.sort(rewards, dim=-1, descending=True, stable=True).indices
    return order, real.gather(1, order)


def _real(scores: Scores) -> Tensor:
    return torch.ones_like(scores.logps, dtype=torch.bool) if scores.mask is None else scores.mask


def _logps(scores: Scores) -> Tensor:
    return scores.logps if scores.mask is None else torch.where(scores.mask, scores.logps, 0.0)


def _log_ratios(scores: Scores) -> Tensor:
    """r_k = s_k - s_k^ref [B, K]; 0 in padded columns."""
    ratios = scores.logps - scores.ref_logps
    return ratios if scores.mask is None else torch.where(scores.mask, ratios, 0.0)


def _lengths(scores: Scores) -> Tensor:
    """Token counts [B, K] in the dtype of the log-probabilities; 1 in padded columns."""
    _check_field("lengths", scores.lengths, scores)
    lengths = scores.lengths if scores.mask is None else torch.where(scores.mask, scores.lengths, 1)
    if not bool((lengths >= 1).all()):
        raise ValueError("lengths: every response needs at least one token")
    return lengths.to(scores.logps.dtype)


def _nll(scores: Scores, reduction: str) -> Tensor:
    """Negative log-likelihood of column 0, over its tokens the sum or the mean."""
    if _reduction(reduction) == "mean":
        return -(scores.logps[:, 0] / _lengths(scores)[:, 0])
    return -scores.logps[:, 0]


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_pair(scores: Scores, *, reference: bool = False) -> None:
    _check(scores, columns=2, reference=reference)
    if scores.logps.shape[1] != 2:
        raise ValueError(
            f"logps: a pairwise loss takes K = 2 columns (chosen, rejected), got K = {scores.logps.shape[1]}; "
            "make pairs first"
        )


def _check_list(scores: Scores, *, reference: bool = False) -> None:
    _check(scores, columns=2, reference=reference)
    _check_field("rewards", scores.rewards, scores)


def _check(scores: Scores, *, columns: int, reference: bool = False) -> None:
    """Shapes, finiteness and at least `columns` real responses a row; ValueError names the field."""
    logps, mask = scores.logps, scores.mask
    if logps.dim() != 2 or logps.shape[0] < 1:
        raise ValueError(f"logps: expected shape [B, K] with B >= 1, got {list(logps.shape)}")
    if logps.shape[1] < columns:
        raise ValueError(f"logps: this loss needs K >= {columns} responses, got K = {logps.shape[1]}")
    if mask is not None:
        if mask.shape != logps.shape or mask.dtype != torch.bool:
            raise ValueError(f"mask: expected bool {list(logps.shape)}, got {mask.dtype} {list(mask.shape)}")
        if not bool((mask.sum(dim=-1) >= columns).all() and mask[:, 0].all()):
            raise ValueError(f"mask: every row needs column 0 and at least {columns} real responses")
    _check_field("logps", logps, scores)
    if reference:
        _check_field("ref_logps", scores.ref_logps, scores)
    if scores.lengths is not None and scores.lengths.shape != logps.shape:
        raise ValueError(f"lengths: expected shape {list(logps.shape)}, got {list(scores.lengths.shape)}")


def _check_field(name: str, value: Tensor | None, scores: Scores) -> None:
    """A present, finite [B, K] field, padding aside."""
    if value is None:
        raise ValueError(f"{name}: this loss needs it, got None")
    if value.shape != scores.logps.shape:
        raise ValueError(f"{name}: expected shape {list(scores.logps.shape)} like logps, got {list(value.shape)}")
    finite = torch.isfinite(value) if scores.mask is None else torch.isfinite(value) | ~scores.mask
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(f"{name}: not finite at row {row}, column {column} ({float(value[row, column])})")


def _check_vector(name: str, value: Tensor | None, like: Tensor) -> None:
    """A present, finite [B] tensor."""
    if value is None:
        raise ValueError(f"{name}: this loss needs it, got None")
    if value.shape != like.shape[:1]:
        raise ValueError(f"{name}: expected shape [{like.shape[0]}], got {list(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: not finite")


def _margin(margin: Tensor | None, gap: Tensor) -> Tensor | float:
    """The margin to subtract from `gap`; constant, no gradient flows through it."""
    if margin is None:
        return 0.0
    _check_vector("margin", margin, gap)
    return margin.detach()


def _reduction(reduction: str) -> str:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
    return reduction


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")


def _positive(name: str, value: float) -> None:
    _number(name, value)
    if not value > 0:
        raise ValueError(f"{name}: must be positive, got {value}")


def _at_least(name: str, value: float, low: float) -> None:
    _number(name, value)
    if not value >= low:
        raise ValueError(f"{name}: must be at least {low:g}, got {value}")


def _between(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, closed_high: bool = False
) -> None:
    _number(name, value)
    if not (low < value if open_low else low <= value) or not (value <= high if closed_high else value < high):
        left, right = "(" if open_low else "[", "]" if closed_high else ")"
        raise ValueError(f"{name}: must lie in {left}{low:g}, {high:g}{right}, got {value}")
