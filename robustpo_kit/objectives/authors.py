"""DoRA as its authors' script computes it, a branch a loss: what `parity="authors"` restores.

w_k is the density ratio of response k (at their mixture 4 c_k, K = 4), h = mean_k w_k, lme the log
of a mean of exponentials, and b runs over one *micro-batch*, of one prompt in their launch script:

| branch | l_b                                                  | value of a micro-batch          |
|--------|------------------------------------------------------|---------------------------------|
| dpo_pl | 1/K of the Plackett-Luce loss                        | lam lme_b(h_b l_b / lam)        |
| lire   | -(1/K) sum_k softmax(s / T)_k softmax(R)_k           | lam mean_bk(w) lme_b(l_b / lam) |
| rrhf   | (1/K) sum of (a_i - a_j)_+ + alpha NLL of the chosen | lam lme_bk(w_bk mean(l) / lam)  |

The value of a step is the mean over its micro-batches. With one prompt in each nothing couples the
prompts: dpo_pl and lire are then reweighting by h. (Their supervised term of rrhf is a mean over
prompt, response and padding; here it is one over the response.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustpo_kit import robust
from robustpo_kit.losses import Scores, check_whole, real_columns
from robustpo_kit.robust import Aggregate

Part = Callable[..., Aggregate]  # of losses [b], ratios [b, K], real columns [b, K], lam


def mean_ratios(ratios: Tensor, real: Tensor) -> Tensor:
    """h~ [B], the mean over a row's responses of their density ratios [B, K]."""
    return torch.where(real, ratios, 0.0).sum(dim=-1) / real.sum(dim=-1)


def authors_aggregate(
    losses: Tensor,
    h: Tensor,
    scores: Scores,
    *,
    base: str,
    lam: float = robust.DEFAULT_LAM,
    micro_batch: int = 1,
) -> Aggregate:
    """The value of a step and d value / d losses.

    Args:
        losses: [B], of `base` with the options of its branch.
        h: the density ratio of each response [B, K]; [B], their means, is enough but for rrhf.
        scores: of the same rows, for which columns are responses.
        base: a branch.
        lam: temperature > 0.
        micro_batch: prompts that a log-mean-exp spans; 1 in the authors' script.

    Raises:
        ValueError: naming the argument that is missing or misshapen.
    """
    ratios, real = h.detach().to(losses), real_columns(scores)
    if h.dim() == 1:
        if BRANCHES[base].needs_ratios:
            raise ValueError(f"h: '{base}' at parity='authors' needs the ratio of each response")
        ratios, real = ratios[:, None], real[:, :1]
    micro_batches = zip(
        losses.split(micro_batch), ratios.split(micro_batch), real.split(micro_batch), strict=True
    )
    parts = [BRANCHES[base].value(*rows, lam=lam) for rows in micro_batches]
    weights = torch.cat([part.weights for part in parts]) / len(parts)
    return Aggregate(torch.stack([part.value for part in parts]).mean(), weights.detach())


def check_options(base: str, options: dict[str, Any], aggregation: dict[str, Any]) -> None:
    """Raises ValueError for a loss without a branch, and for options that the branch decides."""
    if aggregation["parity"] != "authors":
        raise ValueError(f"parity: expected 'authors', got {aggregation['parity']!r}")
    if base not in BRANCHES:
        known = ", ".join(BRANCHES)
        raise ValueError(f"parity: the authors' script has the losses {known}, not {base}")
    for name, value in BRANCHES[base].options.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name}: parity='authors' means {value!r}, got {options[name]!r}")
    for name in ("loss_shift", "normalise_h"):
        if name in aggregation:
            raise ValueError(f"{name}: the authors' script has none; leave it out, or parity")
    check_whole("micro_batch", aggregation.get("micro_batch", 1), low=1)


def _each_response(losses: Tensor, ratios: Tensor, real: Tensor, *, lam: float) -> Aggregate:
    """lam times the log-mean-exp of w_bk mean(l) / lam over rows and responses."""
    exponents = (ratios * losses.mean() / lam).masked_fill(~real, -math.inf)
    value = lam * (torch.logsumexp(exponents.flatten(), 0) - math.log(int(real.sum())))
    shares = torch.softmax(exponents.flatten(), 0).view_as(ratios)
    slope = torch.where(real, shares * ratios, 0.0).sum()
    return Aggregate(value, (slope / len(losses)).expand_as(losses))


def _of_means(losses: Tensor, ratios: Tensor, real: Tensor, *, kind: str, lam: float) -> Aggregate:
    """The aggregator `kind`, which sees of the ratios their mean over each row."""
    h = mean_ratios(ratios, real)
    return robust.aggregate_with_weights(losses, h, kind=kind, lam=lam)


class Branch(NamedTuple):
    """The authors' loss, as options of the kit's, and their value of a micro-batch."""

    options: dict[str, Any]
    value: Part
    needs_ratios: bool = False


BRANCHES = {
    "dpo_pl": Branch({"reduction": "mean"}, functools.partial(_of_means, kind="dora")),
    "lire": Branch(
        {"reward_transform": "softmax", "reduction": "mean"},
        functools.partial(_of_means, kind="dora_outside"),
    ),
    "rrhf": Branch({"ranking": "mean", "supervised": "first"}, _each_response, needs_ratios=True),
}
