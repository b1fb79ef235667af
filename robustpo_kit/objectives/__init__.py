"""Objectives: one base loss, perhaps with dynamic target margins, under one aggregator.

`build` makes one from a spec, or from the name of a preset with the papers' hyperparameters:

    build("dpo(beta=0.1)")                      erm is the default aggregator
    build("dora(dpo_pl(beta=0.1), lam=1.0)")    nested: each layer's keywords in its parentheses
    build("dora(dpo_pl, beta=0.1, lam=1.0)")    flat: the same, each keyword finds its layer
    build("dora(gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau=10), lam=1)")
    build("dora(dpo_pl, beta=0.1, ess=0.7)")    a wish in place of lambda; `strength` solves it
    build("dora(dpo_pl(beta=0.1), parity=authors)")  as the authors' script; `authors` says how
    build("dora/mistral-7b/hh/dora_dpo_pl")     a preset (`published`)

What trains the model sees only `Objective`: what it needs, whether its samples are coupled, and
`step_loss`.
"""

from robustpo_kit.objectives.layers import SpecError
from robustpo_kit.objectives.objective import Objective, StepLoss
from robustpo_kit.objectives.specs import build
from robustpo_kit.objectives.strength import lambda_for_ess, tau_for_spread

__all__ = [
    "Objective",
    "SpecError",
    "StepLoss",
    "build",
    "lambda_for_ess",
    "tau_for_spread",
]
