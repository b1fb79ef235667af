"""What every loss sees: the scores of K responses a prompt, and the algebra that losses share."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustpo_kit.losses.checks import check_choice, present


class Scores(NamedTuple):
    """What a loss sees of the model: K scored responses a prompt, column 0 = chosen for pairs."""

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
    """Which columns are responses [B, K] bool, the rest is padding."""
    if scores.mask is None:
        return torch.ones_like(scores.logps, dtype=torch.bool)
    return scores.mask


def column_logps(scores: Scores) -> Tensor:
    """s_k [B, K]; 0 in padded columns."""
    return _fill_padding(scores.logps, scores, 0.0)


def column_rewards(scores: Scores) -> Tensor:
    """Rewards [B, K]; 0 in padded columns."""
    return _fill_padding(present("rewards", scores.rewards), scores, 0.0)


def log_ratios(scores: Scores) -> Tensor:
    """r_k = s_k - s_k^ref [B, K]; 0 in padded columns."""
    return _fill_padding(scores.logps - present("ref_logps", scores.ref_logps), scores, 0.0)


def response_lengths(scores: Scores) -> Tensor:
    """Token counts [B, K] in the dtype of the log-probabilities; 1 in padded columns."""
    _check_field("lengths", scores.lengths, scores)
    lengths = _fill_padding(scores.lengths, scores, 1)
    if not bool((lengths >= 1).all()):
        raise ValueError("lengths: every response needs at least one token")
    return lengths.to(scores.logps.dtype)


def mean_nll(scores: Scores, reduction: str) -> Tensor:
    """Negative log-likelihood of column 0, over its tokens the sum or the mean."""
    if check_reduction(reduction) == "mean":
        return -(scores.logps[:, 0] / response_lengths(scores)[:, 0])
    return -scores.logps[:, 0]


def _fill_padding(values: Tensor, scores: Scores, filler: float) -> Tensor:
    """`values` [B, K] with `filler` in padded columns, so that no NaN there meets a gradient."""
    if scores.mask is None:
        return values
    return torch.where(scores.mask, values, filler)


def check_pair(scores: Scores, *, reference: bool = False) -> None:
    """As `check_scores`, of exactly a chosen and a rejected response."""
    check_scores(scores, columns=2, reference=reference)
    if scores.logps.shape[1] != 2:
        raise ValueError(
            "logps: a pairwise loss takes K = 2 columns (chosen, rejected), "
            f"got K = {scores.logps.shape[1]}; make pairs first"
        )


def check_list(scores: Scores, *, reference: bool = False) -> None:
    """As `check_scores`, of at least two responses with rewards."""
    check_scores(scores, columns=2, reference=reference)
    _check_field("rewards", scores.rewards, scores)


def check_scores(scores: Scores, *, columns: int, reference: bool = False) -> None:
    """Shapes, finiteness, at least `columns` real responses a row; ValueError names the field."""
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
    value = present(name, value)
    if value.shape != scores.logps.shape:
        raise ValueError(
            f"{name}: expected shape {list(scores.logps.shape)} like logps, got {list(value.shape)}"
        )
    finite = torch.isfinite(value)
    if scores.mask is not None:
        finite = finite | ~scores.mask
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name}: not finite at row {row}, column {column} ({float(value[row, column])})"
        )


def checked_vector(name: str, value: Tensor | None, like: Tensor) -> Tensor:
    """A present, finite [B] tensor."""
    value = present(name, value)
    if value.shape != like.shape[:1]:
        raise ValueError(f"{name}: expected shape [{like.shape[0]}], got {list(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: not finite")
    return value


def target_margin(margin: Tensor | None, gap: Tensor) -> Tensor | float:
    """The margin to subtract from `gap`; constant, no gradient flows through it."""
    if margin is None:
        return 0.0
    return checked_vector("margin", margin, gap).detach()


def check_reduction(reduction: str, name: str = "reduction") -> str:
    """ "sum" or "mean", the argument `name`."""
    check_choice(name, reduction, ("sum", "mean"))
    return reduction
