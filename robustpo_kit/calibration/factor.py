"""The calibration factor h~ of a sample from the probabilities that its responses are golden."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

KINDS = ("relative", "stabilised", "raw")


EPS = 1e-7


def calibration_factor(
    probs: Tensor,
    *,
    alpha: float,
    beta: float | Sequence[float] | Tensor,
    imbalance: float | Sequence[float] | Tensor = 1.0,
    kind: str = "relative",
) -> Tensor:
    """h~(z) [B]: the mean over the K responses of a density ratio of golden to the mixture (DoRA Eq. 5-6).

    probs [B, K] in [0, 1]: c, the probability that a response is golden; alpha: share of golden; beta: share of the
    source of each response, one number or [K]; imbalance: gamma_i = q(y=0)/q(y=1) of the classifier, one number or [K].

    relative    1 / (alpha + beta_i (1-c) / (gamma_i c)), the ratio to alpha P_golden + beta_i Q_i, below 1/alpha
    stabilised  gamma_i c / (beta_i (1-c) + 1/K), Eq. 6 with 1/n added to the denominator
    raw         gamma_i c / (beta_i (1-c)), Eq. 6 as printed: unbounded

    At alpha = beta_i = 1/K, imbalance 1, `relative` is the sum of the c_i, and both bounded kinds lie in [0, K].
    Raises ValueError naming the argument.
    """
    if not torch.is_tensor(probs) or probs.ndim != 2 or not probs.is_floating_point():
        raise ValueError("probs: a floating-point tensor of shape [B, K] is expected")
    count = probs.shape[1]
    if count < 2:
        raise ValueError(f"probs: K = {count}; at least two responses a prompt are expected")
    if not bool(((probs >= 0) & (probs <= 1)).all()):
        raise ValueError("probs: NaN or outside [0, 1]")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha = {alpha}: a share in (0, 1] is expected")
    beta = _per_column(beta, "beta", probs)
    if bool((beta > 1).any()):
        raise ValueError("beta: a share in (0, 1] is expected")
    imbalance = _per_column(imbalance, "imbalance", probs)
    golden, other = imbalance * probs, beta * (1 - probs)
    if kind == "relative":
        ratios = golden / (
            alpha * golden + other
        )  # multiplied through by gamma c: exact at c = 0 and c = 1
    elif kind == "stabilised":
        ratios = golden / (other + 1 / count)
    elif kind == "raw":
        ratios = golden / other
    else:
        raise ValueError(f"kind = '{kind}': one of {', '.join(KINDS)} is expected")
    return ratios.mean(-1)  # [B]


def _per_column(value: Any, name: str, probs: Tensor) -> Tensor:
    """`value` as [1] or [K]; raises ValueError unless positive and finite."""
    value = torch.as_tensor(value, dtype=probs.dtype, device=probs.device).reshape(-1)
    if len(value) not in (1, probs.shape[1]):
        raise ValueError(
            f"{name}: {len(value)} values for K = {probs.shape[1]} responses; one, or one each"
        )
    if not bool((torch.isfinite(value) & (value > 0)).all()):
        raise ValueError(f"{name}: a positive finite number is expected")
    return value
