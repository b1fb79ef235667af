"""Losses of pairs whose value depends on the other pairs of the step."""

import torch
from torch import Tensor

from robustpo_kit.losses.checks import check_at_least, check_between, check_positive
from robustpo_kit.losses.pairwise import dpo_gap
from robustpo_kit.losses.scores import Scores, check_pair, checked_vector, log_ratios, softplus


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


class BetaState:
    """Moving mean and deviation of the reward gap, what beta-DPO remembers between steps.

    Both move by `momentum` from 0 and 1 (Wu et al. 2024, Eq. 9).
    """

    def __init__(self, momentum: float = 0.9) -> None:
        check_between("momentum", momentum, 0.0, 1.0)
        self.momentum, self.mean, self.std = momentum, 0.0, 1.0

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
        if missing := [name for name in self.state_dict() if name not in state]:
            raise ValueError(f"state: entry '{missing[0]}' is missing; not a BetaState")
        self.momentum = float(state["momentum"])
        self.mean, self.std = float(state["mean"]), float(state["std"])


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
    mean = (chosen * gaps).sum() / chosen.sum()
    scale = (1 + alpha * (mean - state.mean)).clamp(min=1e-3 / beta)  # beta_t / beta
    return chosen * (len(chosen) / chosen.sum()) * softplus(-scale * gap)


def _gaussian_draw(
    gaps: Tensor, state: BetaState, keep: float, generator: torch.Generator | None
) -> Tensor:
    """1.0 for a share `keep` of the samples, drawn by Gumbel top-k: weights may underflow."""
    log_weights = -0.5 * ((gaps - state.mean) / max(state.std, 1e-10)) ** 2
    uniform = torch.rand(len(gaps), generator=generator, dtype=torch.float64).to(gaps.device)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    chosen = (log_weights.double() + gumbel).topk(max(1, int(len(gaps) * keep))).indices
    return torch.zeros_like(gaps).index_fill(0, chosen, 1.0)
