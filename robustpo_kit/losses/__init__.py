"""Preference losses as pure functions of log-probabilities: one value a sample.

s is a response's summed log-probability in nats, a = s / n per token, r = s - s^ref; w and l are
the chosen and the rejected response, D = r_w - r_l, and sp(x) = log(1 + e^x). The caller aggregates.
`BASES` is the table of losses: all that objectives and training know of one.
"""

from robustpo_kit.losses.coupled import BetaState, beta_dpo, kto, kto_pair
from robustpo_kit.losses.listwise import dpo_pl, lire, rrhf, sft
from robustpo_kit.losses.pairwise import (
    cdpo,
    cpo,
    dpo,
    dpo_gap,
    exo,
    ipo,
    orpo,
    r_dpo_length,
    rdpo,
    simpo,
    simpo_gap,
    target_gamma0,
)
from robustpo_kit.losses.scores import Scores, mean_logps, softplus
from robustpo_kit.losses.table import BASES, Base

__all__ = [
    "BASES",
    "Base",
    "BetaState",
    "Scores",
    "beta_dpo",
    "cdpo",
    "cpo",
    "dpo",
    "dpo_gap",
    "dpo_pl",
    "exo",
    "ipo",
    "kto",
    "kto_pair",
    "lire",
    "mean_logps",
    "orpo",
    "r_dpo_length",
    "rdpo",
    "rrhf",
    "sft",
    "simpo",
    "simpo_gap",
    "softplus",
    "target_gamma0",
]
