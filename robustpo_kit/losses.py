"""Preference losses as pure functions: one value a sample, the caller aggregates."""

from typing import NamedTuple

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
