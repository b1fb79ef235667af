"""Robust aggregation of per-sample losses over the optimizer step: value, gradient weights, and lambda from a radius.

l_i is the loss and h_i the calibration factor h~ of sample i, B the samples of the *whole* step, and
lme(x) = logsumexp(x) - log B. The log-mean-exp of a part of the step is another objective.

| kind         | value                    | weight d value / d l_i            | source                      |
|--------------|--------------------------|-----------------------------------|-----------------------------|
| erm          | mean l                   | 1 / B                             |                             |
| reweight     | mean h l                 | h_i / B                           | DoRA Table 4                |
| dro          | lam lme(l / lam)         | softmax(l / lam)_i                | DoRA Table 4, B.2           |
| dora         | lam lme(h l / lam)       | h_i softmax(h l / lam)_i          | DoRA Eq. 9                  |
| dora_outside | mean(h) lam lme(l / lam) | mean(h) softmax(l / lam)_i        | DoRA Table 4, Sec. B.3      |
| dr_dpo       | -lam lme(-l / lam)       | softmax(-l / lam)_i, a soft *min* | Wu et al. 2024, lam = beta' |
"""

import math

import torch
from torch import Tensor

KINDS = ("erm", "reweight", "dro", "dora", "dora_outside", "dr_dpo")
NEEDS_H = ("reweight", "dora", "dora_outside")
COUPLING = {  # what a part of the step must know of the rest; the mean of h in dora_outside is over the step
    "erm": "separable",
    "reweight": "separable",
    "dro": "log_sum_exp",
    "dora": "log_sum_exp",
    "dora_outside": "step",
    "dr_dpo": "log_sum_exp",
}


def aggregate(
    per_sample: Tensor,
    h: Tensor | None = None,
    *,
    kind: str,
    lam: float = 1.0,
    loss_shift: float = 0.0,
    normalise_h: str = "none",
) -> Tensor:
    """The step's loss, a scalar, from per-sample losses [B] and calibration factors h [B] (see the module's table).

    `loss_shift` is added to every loss first (0 in the paper): where losses are negative, as LIRE's are, exp(h l / lam)
    gives *less* weight to larger h, and a shift that makes them positive turns that round. `normalise_h="mean_one"`
    divides h by its mean over the step, so learning rates compare with erm's. Kinds without h ignore it.
    Raises ValueError naming the argument.
    """
    losses, h = _prepare(per_sample, h, kind, lam, loss_shift, normalise_h)
    if kind == "erm":
        return losses.mean()
    if kind == "reweight":
        return (h * losses).mean()
    if kind == "dro":
        return lam * _log_mean_exp(losses / lam)
    if kind == "dora":
        return lam * _log_mean_exp(h * losses / lam)  # Eq. 9
    if kind == "dora_outside":
        return h.mean() * lam * _log_mean_exp(losses / lam)
    return -lam * _log_mean_exp(-losses / lam)  # dr_dpo


def weights(
    per_sample: Tensor,
    h: Tensor | None = None,
    *,
    kind: str,
    lam: float = 1.0,
    loss_shift: float = 0.0,
    normalise_h: str = "none",
) -> Tensor:
    """d aggregate / d per_sample [B], the gradient weight of each sample, in closed form; detached.

    Arguments and errors as `aggregate`.
    """
    losses, h = _prepare(per_sample.detach(), h, kind, lam, loss_shift, normalise_h)
    if kind == "erm":
        return torch.full_like(losses, 1 / len(losses))
    if kind == "reweight":
        return h / len(losses)
    if kind == "dro":
        return torch.softmax(losses / lam, dim=0)
    if kind == "dora":
        return h * torch.softmax(h * losses / lam, dim=0)
    if kind == "dora_outside":
        return h.mean() * torch.softmax(losses / lam, dim=0)
    return torch.softmax(-losses / lam, dim=0)  # dr_dpo


def log_mass(value: Tensor, count: int, *, kind: str, lam: float) -> Tensor:
    """log sum exp of the exponents of `count` samples, from their aggregate `value` (dro, dora and dr_dpo)."""
    if COUPLING.get(kind) != "log_sum_exp":
        raise ValueError(f"kind: '{kind}' is not lam times a log-mean-exp of its samples")
    return (-value if kind == "dr_dpo" else value) / lam + math.log(count)


def effective_sample_size(sample_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of weights [B] >= 0: how many samples drive the step, from 1 to B; 0 if all are 0."""
    squares = sample_weights.square().sum()
    return torch.where(
        squares > 0,
        sample_weights.sum().square() / squares.clamp(min=torch.finfo(squares.dtype).tiny),
        0.0,
    )


def kl_from_uniform(probabilities: Tensor) -> Tensor:
    """KL(p || uniform) in nats of probabilities [B]; 0 log 0 = 0."""
    return torch.xlogy(probabilities, probabilities * len(probabilities)).sum()


def lambda_from_radius(per_sample: Tensor, rho: float, h: Tensor | None = None) -> float:
    """The lambda > 0 at which the worst case in a KL ball of radius `rho` nats is reached (DoRA Prop. 3.2, Eq. 8).

    The infimum over lambda of `lam lme(h l / lam) + lam rho` lies where KL(softmax(h l / lam) || uniform) = rho; that
    falls in lambda, so bisection finds it. Raises ValueError when `rho` is not positive (lambda would be infinite) or
    reaches log(B / ties of the largest loss), where the ball holds the point mass on the worst sample and lambda is 0.
    """
    x, _ = _modulated(per_sample, h)
    if (
        isinstance(rho, bool)
        or not isinstance(rho, int | float)
        or not (math.isfinite(rho) and rho > 0)
    ):
        raise ValueError(f"rho: must be a positive number of nats, got {rho!r}")
    limit = math.log(len(x) / int((x == x.max()).sum()))
    if rho >= limit:
        raise ValueError(
            f"rho: {rho:g} nats reaches the largest of these {len(x)} losses (limit {limit:.4g}); lambda would be 0"
        )
    spread = float(x.max() - x.min())
    low, high = math.log(spread) - 40, math.log(spread) + 20 - math.log(min(rho, 1.0))
    for _ in range(100):
        middle = (low + high) / 2
        inside = float(kl_from_uniform(torch.softmax(x / math.exp(middle), dim=0))) > rho
        low, high = (middle, high) if inside else (low, middle)
    return math.exp((low + high) / 2)


def worst_case_risk(per_sample: Tensor, rho: float, h: Tensor | None = None) -> float:
    """sup of E_Q[h l] over KL(Q || uniform) <= rho, by its dual (DoRA Eq. 8), or the largest h l."""
    x, size = _modulated(per_sample, h)
    if rho >= math.log(size / int((x == x.max()).sum())):
        return float(x.max())
    lam = lambda_from_radius(per_sample, rho, h)
    return float(lam * _log_mean_exp(x / lam) + lam * rho)


def _log_mean_exp(x: Tensor) -> Tensor:
    """log mean e^x; near-equal x (a large lambda) keep their differences, which logsumexp - log B would round away."""
    top = x.detach().max()
    return top + torch.log1p(torch.expm1(x - top).mean())


def _modulated(per_sample: Tensor, h: Tensor | None) -> tuple[Tensor, int]:
    """h l in float64, detached, and B."""
    kind = "dro" if h is None else "dora"
    losses, h = _prepare(per_sample.detach().double(), h, kind, 1.0, 0.0, "none")
    return (losses if h is None else h * losses), len(losses)


def _prepare(
    per_sample: Tensor, h: Tensor | None, kind: str, lam: float, loss_shift: float, normalise_h: str
) -> tuple[Tensor, Tensor | None]:
    """Checked losses, shifted, and checked h, normalised; h is None for kinds that do not take it."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if (
        isinstance(lam, bool)
        or not isinstance(lam, int | float)
        or not (math.isfinite(lam) and lam > 0)
    ):
        raise ValueError(f"lam: must be a positive number, got {lam!r}")
    if (
        isinstance(loss_shift, bool)
        or not isinstance(loss_shift, int | float)
        or not math.isfinite(loss_shift)
    ):
        raise ValueError(f"loss_shift: must be a finite number, got {loss_shift!r}")
    if normalise_h not in ("none", "mean_one"):
        raise ValueError(f"normalise_h: expected 'none' or 'mean_one', got {normalise_h!r}")
    _check_vector("per_sample", per_sample)
    losses = per_sample + loss_shift if loss_shift else per_sample
    if kind not in NEEDS_H:
        return losses, None
    if h is None:
        raise ValueError(f"h: '{kind}' needs the calibration factor h~ of every sample, got None")
    _check_vector("h", h)
    if h.shape != per_sample.shape:
        raise ValueError(
            f"h: expected shape {list(per_sample.shape)} like per_sample, got {list(h.shape)}"
        )
    if not bool((h >= 0).all()):
        raise ValueError("h: must not be negative")
    h = h.detach().to(losses)
    if normalise_h == "mean_one":
        if not bool(h.sum() > 0):
            raise ValueError(
                "h: all factors are 0, so normalise_h='mean_one' has no mean to divide by"
            )
        h = h / h.mean()
    return losses, h


def _check_vector(name: str, value: Tensor) -> None:
    if value.dim() != 1 or len(value) < 1:
        raise ValueError(f"{name}: expected shape [B] with B >= 1, got {list(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: not finite at row {int((~torch.isfinite(value)).nonzero()[0])}")
