"""What every loss sees: the scores of K responses a prompt, and the algebra that losses share."""

from typing import NamedTuple

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


def mean_logps(scores: Scores) -> Tensor:
    """Log-probabilities per response token a_k [B, K]; 0 in padded columns."""
    return column_logps(scores) / response_lengths(scores)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); F.softplus turns linear above 20 and so is off by 2e-9 there."""
    return -F.logsigmoid(-x)


def real_columns(scores: Scores) -> Tensor:
    return torch.ones_like(scores.logps, dtype=torch.bool) if scores.mask is None else scores.mask


def column_logps(scores: Scores) -> Tensor:
    return scores.logps if scores.mask is None else torch.where(scores.mask, scores.logps, 0.0)


def log_ratios(scores: Scores) -> Tensor:
    """r_k = s_k - s_k^ref [B, K]; 0 in padded columns."""
    ratios = scores.logps - scores.ref_logps
    return ratios if scores.mask is None else torch.where(scores.mask, ratios, 0.0)


def response_lengths(scores: Scores) -> Tensor:
    """Token counts [B, K] in the dtype of the log-probabilities; 1 in padded columns."""
    _check_field("lengths", scores.lengths, scores)
    lengths = scores.lengths if scores.mask is None else torch.where(scores.mask, scores.lengths, 1)
    if not bool((lengths >= 1).all()):
        raise ValueError("lengths: every response needs at least one token")
    return lengths.to(scores.logps.dtype)


def mean_nll(scores: Scores, reduction: str) -> Tensor:
    """Negative log-likelihood of column 0, over its tokens the sum or the mean."""
    if check_reduction(reduction) == "mean":
        return -(scores.logps[:, 0] / response_lengths(scores)[:, 0])
    return -scores.logps[:, 0]


def check_pair(scores: Scores, *, reference: bool = False) -> None:
    check_scores(scores, columns=2, reference=reference)
    if scores.logps.shape[1] != 2:
        raise ValueError(
            f"logps: a pairwise loss takes K = 2 columns (chosen, rejected), got K = {scores.logps.shape[1]}; "
            "make pairs first"
        )


def check_list(scores: Scores, *, reference: bool = False) -> None:
    check_scores(scores, columns=2, reference=reference)
    _check_field("rewards", scores.rewards, scores)


def check_scores(scores: Scores, *, columns: int, reference: bool = False) -> None:
    """Shapes, finiteness and at least `columns` real responses a row; ValueError names the field."""
    logps, mask = scores.logps, scores.mask
    if logps.dim() != 2 or logps.shape[0] < 1:
        raise ValueError(f"logps: expected shape [B, K] with B >= 1, got {list(logps.shape)}")
    if logps.shape[1] < columns:
        raise ValueError(
            f"logps: this loss needs K >= {columns} responses, got K = {logps.shape[1]}"
        )
    if mask is not None:
        if mask.shape != logps.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask: expected bool {list(logps.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        if not bool((mask.sum(dim=-1) >= columns).all() and mask[:, 0].all()):
            raise ValueError(
                f"mask: every row needs column 0 and at least {columns} real responses"
            )
    _check_field("logps", logps, scores)
    if reference:
        _check_field("ref_logps", scores.ref_logps, scores)
    if scores.lengths is not None and scores.lengths.shape != logps.shape:
        raise ValueError(
            f"lengths: expected shape {list(logps.shape)}, got {list(scores.lengths.shape)}"
        )


def _check_field(name: str, value: Tensor | None, scores: Scores) -> None:
    """A present, finite [B, K] field, padding aside."""
    if value is None:
        raise ValueError(f"{name}: this loss needs it, got None")
    if value.shape != scores.logps.shape:
        raise ValueError(
            f"{name}: expected shape {list(scores.logps.shape)} like logps, got {list(value.shape)}"
        )
    finite = torch.isfinite(value) if scores.mask is None else torch.isfinite(value) | ~scores.mask
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name}: not finite at row {row}, column {column} ({float(value[row, column])})"
        )


def check_vector(name: str, value: Tensor | None, like: Tensor) -> None:
    """A present, finite [B] tensor."""
    if value is None:
        raise ValueError(f"{name}: this loss needs it, got None")
    if value.shape != like.shape[:1]:
        raise ValueError(f"{name}: expected shape [{like.shape[0]}], got {list(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: not finite")


def target_margin(margin: Tensor | None, gap: Tensor) -> Tensor | float:
    """The margin to subtract from `gap`; constant, no gradient flows through it."""
    if margin is None:
        return 0.0
    check_vector("margin", margin, gap)
    return margin.detach()


def check_reduction(reduction: str) -> str:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
    return reduction
