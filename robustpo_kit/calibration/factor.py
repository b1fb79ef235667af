"""The calibration factor h~ of a sample, from the probabilities that its responses are golden."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustpo_kit.calibration.slots import slot_ratios, slot_weights

KINDS = ("relative", "stabilised", "raw", "slot")


def calibration_factor(
    probs: Tensor,
    *,
    alpha: float | None = None,
    beta: float | Sequence[float] | Tensor | None = None,
    imbalance: float | Sequence[float] | Tensor | None = None,
    kind: str = "relative",
) -> Tensor:
    """h~(z) [B]: the mean over the K responses of a density ratio of golden to the mixture.

    Source: DoRA Eq. 5-6. The ratio of a response by kind, with g = gamma_i:

    relative    g c / (alpha g c + beta_i (1-c)), to alpha P_golden + beta_i Q_i: below 1/alpha
    stabilised  g c / (beta_i (1-c) + 1/K), Eq. 6 with 1/n added to the denominator
    raw         g c / (beta_i (1-c)), Eq. 6 as printed: unbounded

    At alpha = beta_i = 1/K and imbalance 1, `relative` is the sum of the c_i, and both bounded
    kinds lie in [0, K].

    slot        1 / ((1 - r) + r / R), R = g c / (1-c) of column 0, which claims to be golden (see
                `slots`): its share of contamination r is estimated on *these* rows, so that all
                rows of a data set belong in one call

    Args:
        probs: [B, K] in [0, 1], floating point: c, the probability that a response is golden.
        alpha: share of golden responses in the mixture; all kinds but slot.
        beta: share of the source of each response in the mixture, one number or [K]; likewise.
        imbalance: gamma_i = q(y=0) / q(y=1) of the classifier's training rows, n_S / n_golden (a
            classifier's `imbalance` by source), one number or [K]; slot needs that of column 0,
            the other kinds take 1 where it is left out.
        kind: relative | stabilised | raw | slot.

    Raises:
        ValueError: naming the argument.
    """
    _check_probs(probs)
    if imbalance is None and kind == "slot":
        raise ValueError("imbalance: 'slot' needs n_S / n_golden of the classifier's training rows")
    imbalance = 1.0 if imbalance is None else imbalance
    if kind == "slot":
        return _slot_factor(probs, _per_column(imbalance, "imbalance", probs))
    if alpha is None or beta is None:
        raise ValueError(f"alpha, beta: '{kind}' needs the shares of the mixture")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha = {alpha}: a share in (0, 1] is expected")
    shares = _per_column(beta, "beta", probs)
    if bool((shares > 1).any()):
        raise ValueError("beta: a share in (0, 1] is expected")
    golden = _per_column(imbalance, "imbalance", probs) * probs
    other = shares * (1 - probs)
    # no kind divides by c, so that all are exact at c = 0
    if kind == "relative":
        mixture = alpha * golden + other
    elif kind == "stabilised":
        mixture = other + 1 / probs.shape[1]
    elif kind == "raw":
        mixture = other
    else:
        raise ValueError(f"kind = '{kind}': one of {', '.join(KINDS)} is expected")
    return (golden / mixture).mean(-1)  # [B]


def _slot_factor(probs: Tensor, imbalance: Tensor) -> Tensor:
    ratios = slot_ratios(probs[:, 0].double().cpu().numpy(), imbalance=float(imbalance[0]))
    return torch.from_numpy(slot_weights(ratios).weights).to(probs)


def uniform_factor(probs: Tensor) -> Tensor:
    """h~ [B] at the uniform mixture alpha = beta_i = 1/K: the sum of `probs` [B, K] over a row."""
    share = 1 / probs.shape[-1]
    return calibration_factor(probs, alpha=share, beta=share)


def _check_probs(probs: Tensor) -> None:
    if not torch.is_tensor(probs) or probs.ndim != 2 or not probs.is_floating_point():
        raise ValueError("probs: a floating-point tensor of shape [B, K] is expected")
    if probs.shape[1] < 2:
        raise ValueError(
            f"probs: K = {probs.shape[1]}; at least two responses a prompt are expected"
        )
    if not bool(((probs >= 0) & (probs <= 1)).all()):
        raise ValueError("probs: NaN or outside [0, 1]")


def _per_column(value: float | Sequence[float] | Tensor, name: str, probs: Tensor) -> Tensor:
    """`value` as [1] or [K]; raises ValueError unless positive and finite."""
    values = torch.as_tensor(value, dtype=probs.dtype, device=probs.device).reshape(-1)
    if len(values) not in (1, probs.shape[1]):
        raise ValueError(
            f"{name}: {len(values)} values for K = {probs.shape[1]} responses; one, or one each"
        )
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ValueError(f"{name}: a positive finite number is expected")
    return values
