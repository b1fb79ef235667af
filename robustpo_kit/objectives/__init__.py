"""Objectives: one base loss, perhaps with dynamic target margins, under one aggregator, built from a spec.

    build("dpo(beta=0.1)")                                                     erm is the default aggregator
    build("dora(dpo_pl, beta=0.1, lam=1.0)")                                   flat: each keyword finds its layer
    build("dora(gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau=10), lam=1)")  nested: the same, said in full
    build("hh/dora_dpo_pl")                                                    a preset with the papers' hyperparameters

What trains the model sees only `Objective`: what it needs, whether its samples are coupled, and `step_loss`.
"""

from robustpo_kit.objectives.layers import SpecError
from robustpo_kit.objectives.objective import Objective, StepLoss
from robustpo_kit.objectives.presets import PRESETS, SEARCH_RANGES, Preset
from robustpo_kit.objectives.specs import build

__all__ = [
    "Objective",
    "PRESETS",
    "Preset",
    "SEARCH_RANGES",
    "SpecError",
    "StepLoss",
    "build",
]
