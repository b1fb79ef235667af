"""Robust aggregation of per-sample losses over the optimizer step, and lambda from a radius.

l_i is the loss and h_i the calibration factor h~ of sample i, B the samples of the *whole* step,
and lme(x) = logsumexp(x) - log B. The log-mean-exp of a part of the step is another objective.

| kind         | value                    | weight d value / d l_i            | source            |
|--------------|--------------------------|-----------------------------------|-------------------|
| erm          | mean l                   | 1 / B                             |                   |
| reweight     | mean h l                 | h_i / B                           | DoRA Table 4      |
| dro          | lam lme(l / lam)         | softmax(l / lam)_i                | DoRA Table 4, B.2 |
| dora         | lam lme(h l / lam)       | h_i softmax(h l / lam)_i          | DoRA Eq. 9        |
| dora_outside | mean(h) lam lme(l / lam) | mean(h) softmax(l / lam)_i        | DoRA Table 4      |
| dr_dpo       | -lam lme(-l / lam)       | softmax(-l / lam)_i, a soft *min* | Wu et al. 2024    |
| kldpo        | mean(w l), w held fixed  | w_i / B, w = e^((l - mean l)/lam) | Xu et al. 2025    |

kldpo's w is at most 10, as in the authors' code, and not normalised.

`AGGREGATORS` is the table of kinds: all that objectives and training know of one.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustpo_kit.losses import check_number, check_positive

COUPLINGS = ("separable", "log_sum_exp", "step")
DEFAULT_LAM = 1.0  # of every kind that takes lam (DoRA Fig. 5)
LARGEST_TILT = 10.0  # of kldpo


class Aggregate(NamedTuple):
    """What an aggregator makes of the losses of a step."""

    value: Tensor  # scalar, differentiable in the losses
    weights: Tensor  # [B] d value / d losses, in closed form


def _erm(losses: Tensor) -> Aggregate:
    return Aggregate(losses.mean(), torch.full_like(losses, 1 / len(losses)))


def _reweight(losses: Tensor, h: Tensor) -> Aggregate:
    return Aggregate((h * losses).mean(), h / len(losses))


def _dro(losses: Tensor, *, lam: float) -> Aggregate:
    exponents = losses / lam
    return Aggregate(lam * _log_mean_exp(exponents), torch.softmax(exponents, dim=0))


def _dora(losses: Tensor, h: Tensor, *, lam: float) -> Aggregate:
    exponents = h * losses / lam  # Eq. 9
    return Aggregate(lam * _log_mean_exp(exponents), h * torch.softmax(exponents, dim=0))


def _dora_outside(losses: Tensor, h: Tensor, *, lam: float) -> Aggregate:
    exponents, mean_h = losses / lam, h.mean()
    value = mean_h * lam * _log_mean_exp(exponents)
    return Aggregate(value, mean_h * torch.softmax(exponents, dim=0))


def _dr_dpo(losses: Tensor, *, lam: float) -> Aggregate:
    exponents = -losses / lam
    return Aggregate(-lam * _log_mean_exp(exponents), torch.softmax(exponents, dim=0))


def _kldpo(losses: Tensor, *, lam: float) -> Aggregate:
    tilts = ((losses - losses.mean()) / lam).exp().clamp(max=LARGEST_TILT).detach()
    return Aggregate((tilts * losses).mean(), tilts / len(losses))


@dataclasses.dataclass(frozen=True)
class Aggregator:
    """A kind: a function of the step's losses [B], of h [B] if it needs them, and of its keywords.

    `coupling` is what a part of the step must know of the rest: "separable" nothing, "log_sum_exp"
    the total of the exponentials (`log_mass`), "step" all of it.
    """

    function: Callable[..., Aggregate]
    coupling: str
    needs_h: bool = False
    sign: int = 1  # a log_sum_exp's value is sign * lam * log-mean-exp; -1 makes a soft minimum

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ValueError(f"coupling: one of {', '.join(COUPLINGS)}, got {self.coupling!r}")
        defaults = {name: p.default for name, p in self._parameters.items()}
        if defaults.get("lam", inspect.Parameter.empty) is not inspect.Parameter.empty:
            raise ValueError("lam: its one default is DEFAULT_LAM; the function gives none")

    @property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords of the function."""
        return tuple(self._parameters)

    @property
    def required(self) -> tuple[str, ...]:
        """The keywords that have no default; lam has one."""
        parameters = self._parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty and p.name != "lam")

    @property
    def options(self) -> tuple[str, ...]:
        """The keywords a spec may give."""
        shared = ("loss_shift", "normalise_h") if self.needs_h else ("loss_shift",)
        return (*self.keywords, *shared)


AGGREGATORS: dict[str, Aggregator] = {
    "erm": Aggregator(_erm, "separable"),
    "reweight": Aggregator(_reweight, "separable", needs_h=True),
    "dro": Aggregator(_dro, "log_sum_exp"),
    "dora": Aggregator(_dora, "log_sum_exp", needs_h=True),
    "dora_outside": Aggregator(_dora_outside, "step", needs_h=True),  # the mean of h is the step's
    "dr_dpo": Aggregator(_dr_dpo, "log_sum_exp", sign=-1),
    "kldpo": Aggregator(_kldpo, "step"),
}
KINDS = tuple(AGGREGATORS)


def aggregate_with_weights(
    per_sample: Tensor,
    h: Tensor | None = None,
    *,
    kind: str,
    lam: float = DEFAULT_LAM,
    loss_shift: float = 0.0,
    normalise_h: str = "none",
    **own: Any,
) -> Aggregate:
    """The step's loss and the gradient weight of each sample (see the module's table).

    Args:
        per_sample: [B], the loss of every sample of the step.
        h: [B], calibration factors >= 0; kinds without h ignore them.
        kind: a name in `AGGREGATORS`.
        lam: temperature > 0 of the exponentials; kinds without them ignore it.
        loss_shift: added to every loss first, 0 in the paper. Where losses are negative, as LIRE's
            are, exp(h l / lam) gives *less* weight to larger h; a shift turns that round.
        normalise_h: "mean_one" divides h by its mean over the step, so that learning rates compare
            with erm's; "none" takes h as it is.
        own: further keywords of the kind's function.

    Returns:
        The value, a scalar, and the weights [B], detached.

    Raises:
        ValueError: an argument is unknown, missing or outside its range; the message names it.
    """
    aggregator = AGGREGATORS.get(kind)
    if aggregator is None:
        raise ValueError(f"kind: expected one of {', '.join(AGGREGATORS)}, got {kind!r}")
    check_positive("lam", lam)
    check_number("loss_shift", loss_shift)
    if normalise_h not in ("none", "mean_one"):
        raise ValueError(f"normalise_h: expected 'none' or 'mean_one', got {normalise_h!r}")
    if unknown := [name for name in own if name not in aggregator.keywords]:
        raise ValueError(f"{unknown[0]}: '{kind}' takes {', '.join(aggregator.options)}")
    if missing := [name for name in aggregator.required if name not in own]:
        raise ValueError(f"{missing[0]}: '{kind}' needs it")
    _check_vector("per_sample", per_sample)
    arguments = [per_sample + loss_shift if loss_shift else per_sample]
    if aggregator.needs_h:
        arguments.append(_checked_h(h, per_sample, kind, normalise_h))
    if "lam" in aggregator.keywords:
        own["lam"] = lam
    value, weights = aggregator.function(*arguments, **own)
    return Aggregate(value, weights.detach())


def aggregate(per_sample: Tensor, h: Tensor | None = None, *, kind: str, **settings: Any) -> Tensor:
    """The step's loss, a scalar. Arguments and errors as `aggregate_with_weights`."""
    return aggregate_with_weights(per_sample, h, kind=kind, **settings).value


def weights(per_sample: Tensor, h: Tensor | None = None, *, kind: str, **settings: Any) -> Tensor:
    """d aggregate / d per_sample [B], the gradient weight of each sample, detached.

    Arguments and errors as `aggregate_with_weights`.
    """
    return aggregate_with_weights(per_sample.detach(), h, kind=kind, **settings).weights


def log_mass(value: Tensor, count: int, *, kind: str, lam: float = DEFAULT_LAM) -> Tensor:
    """log sum exp of the exponents of `count` samples, from their aggregate `value`.

    Raises ValueError for a kind that is not lam times a log-mean-exp.
    """
    aggregator = AGGREGATORS.get(kind)
    if aggregator is None or aggregator.coupling != "log_sum_exp":
        raise ValueError(f"kind: '{kind}' is not lam times a log-mean-exp of its samples")
    return aggregator.sign * value / lam + math.log(count)


def effective_sample_size(sample_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of weights [B] >= 0: how many samples drive the step, 0 if none."""
    squares = sample_weights.square().sum()
    smallest = torch.finfo(squares.dtype).tiny
    size = sample_weights.sum().square() / squares.clamp(min=smallest)
    return torch.where(squares > 0, size, 0.0)


def kl_from_uniform(probabilities: Tensor) -> Tensor:
    """KL(p || uniform) in nats of probabilities [B]; 0 log 0 = 0."""
    return torch.xlogy(probabilities, probabilities * len(probabilities)).sum()


def lambda_from_radius(per_sample: Tensor, rho: float, h: Tensor | None = None) -> float:
    """The lambda > 0 at which the worst case in a KL ball of radius `rho` nats is reached.

    The infimum over lambda of `lam lme(h l / lam) + lam rho` (DoRA Prop. 3.2, Eq. 8) lies where
    KL(softmax(h l / lam) || uniform) = rho; that falls in lambda, so bisection finds it. Raises
    ValueError when `rho` is not positive (lambda would be infinite) or reaches
    log(B / ties of the largest loss), where the ball holds the point mass on the worst sample and
    lambda is 0.
    """
    exposures = _exposures(per_sample, h)
    check_positive("rho", rho)
    limit = _largest_radius(exposures)
    if rho >= limit:
        raise ValueError(
            f"rho: {rho:g} nats reaches the largest of these {len(exposures)} losses "
            f"(limit {limit:.4g}); lambda would be 0"
        )
    spread = float(exposures.max() - exposures.min())
    low, high = math.log(spread) - 40, math.log(spread) + 20 - math.log(min(rho, 1.0))
    for _ in range(100):
        middle = (low + high) / 2
        tilted = torch.softmax(exposures / math.exp(middle), dim=0)
        if float(kl_from_uniform(tilted)) > rho:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def worst_case_risk(per_sample: Tensor, rho: float, h: Tensor | None = None) -> float:
    """sup of E_Q[h l] over KL(Q || uniform) <= rho, by its dual (DoRA Eq. 8); at most max h l."""
    exposures = _exposures(per_sample, h)
    if rho >= _largest_radius(exposures):
        return float(exposures.max())
    lam = lambda_from_radius(per_sample, rho, h)
    return float(lam * _log_mean_exp(exposures / lam) + lam * rho)


def _log_mean_exp(x: Tensor) -> Tensor:
    """log mean e^x.

    Near-equal x (a large lambda) keep their differences, which logsumexp - log B would round away.
    """
    top = x.detach().max()
    return top + torch.log1p(torch.expm1(x - top).mean())


def _exposures(per_sample: Tensor, h: Tensor | None) -> Tensor:
    """h l in float64 [B], detached."""
    losses = per_sample.detach().double()
    _check_vector("per_sample", losses)
    if h is None:
        return losses
    return _checked_h(h, losses, "dora", "none") * losses


def _largest_radius(exposures: Tensor) -> float:
    """The radius in nats that reaches all mass on the largest values."""
    return math.log(len(exposures) / int((exposures == exposures.max()).sum()))


def _checked_h(h: Tensor | None, per_sample: Tensor, kind: str, normalise_h: str) -> Tensor:
    """h [B] in the dtype of the losses, detached, normalised."""
    if h is None:
        raise ValueError(f"h: '{kind}' needs the calibration factor h~ of every sample, got None")
    _check_vector("h", h)
    if h.shape != per_sample.shape:
        raise ValueError(
            f"h: expected shape {list(per_sample.shape)} like per_sample, got {list(h.shape)}"
        )
    if not bool((h >= 0).all()):
        raise ValueError("h: must not be negative")
    h = h.detach().to(per_sample)
    if normalise_h == "none":
        return h
    if not bool(h.sum() > 0):
        raise ValueError("h: all factors are 0, so normalise_h='mean_one' has no mean to divide by")
    return h / h.mean()


def _check_vector(name: str, value: Tensor) -> None:
    if value.dim() != 1 or len(value) < 1:
        raise ValueError(f"{name}: expected shape [B] with B >= 1, got {list(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: not finite at row {int((~torch.isfinite(value)).nonzero()[0])}")
