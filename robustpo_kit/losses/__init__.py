"""Preference losses as pure functions of log-probabilities: one value a sample, the caller aggregates."""

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
