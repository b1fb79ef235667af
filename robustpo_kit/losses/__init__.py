"""Preference losses as pure functions of log-probabilities: one value a sample.

s is a response's summed log-probability in nats, a = s / n per token, r = s - s^ref; w and l are
the chosen and the rejected response, D = r_w - r_l, and sp(x) = log(1 + e^x). The caller
aggregates. `BASES` is the table of losses: all that objectives and training know of one.
"""

from robustpo_kit.losses.checks import (
    check_at_least,
    check_between,
    check_flag,
    check_number,
    check_positive,
    check_whole,
)
from robustpo_kit.losses.coupled import alpha_dpo, beta_dpo, beta_simpo, kto, kto_pair
from robustpo_kit.losses.listwise import dpo_pl, lire, rrhf, sft
from robustpo_kit.losses.noise import cdpo, dpo_pro, rdpo, re_po, ropo, rsimpo
from robustpo_kit.losses.pairwise import (
    cpo,
    dpo,
    dpo_gap,
    exo,
    ipo,
    orpo,
    r_dpo_length,
    simpo,
    simpo_gap,
    target_gamma0,
)
from robustpo_kit.losses.scores import (
    Scores,
    column_rewards,
    log_ratios,
    mean_logps,
    real_columns,
    softplus,
)
from robustpo_kit.losses.states import AlphaState, BetaState, EtaState
from robustpo_kit.losses.table import BASES, TARGETS, Base, LossState

__all__ = [
    "AlphaState",
    "BASES",
    "Base",
    "BetaState",
    "EtaState",
    "LossState",
    "Scores",
    "TARGETS",
    "alpha_dpo",
    "beta_dpo",
    "beta_simpo",
    "check_at_least",
    "check_between",
    "check_flag",
    "check_number",
    "check_positive",
    "check_whole",
    "cdpo",
    "column_rewards",
    "cpo",
    "dpo",
    "dpo_pro",
    "dpo_gap",
    "dpo_pl",
    "exo",
    "ipo",
    "kto",
    "kto_pair",
    "lire",
    "log_ratios",
    "mean_logps",
    "orpo",
    "r_dpo_length",
    "rdpo",
    "re_po",
    "ropo",
    "real_columns",
    "rrhf",
    "rsimpo",
    "sft",
    "simpo",
    "simpo_gap",
    "softplus",
    "target_gamma0",
]
