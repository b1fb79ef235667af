"""What the strength calibrator gives for a file: lambda, gamma0 and tau, on one batch of it."""

import pandas as pd
import torch

from robustpo_kit import objectives, training
from robustpo_kit.data import PreferenceSet, mean_h
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import Policy

BATCH = 32  # pairs, on which the numbers are solved
WISHES = (
    ("dro(simpo(beta=2.5, gamma_beta_ratio=0.4), ess=0.7)", False),
    ("dora(simpo(beta=2.5, gamma_beta_ratio=0.4), ess=0.7)", True),
    ("gamma(simpo(beta=2.5), gamma_beta_ratio=0.4, spread=0.2)", False),
    ("dro(dpo(beta=0.1), ess=0.7)", False),
    ("gamma(dpo(beta=0.1), spread=0.2)", False),
)  # and whether rows need h


BEFORE = (
    "cannot be told before the first step, when the policy is its reference; write the wish into "
    "the objective, it is solved as training goes"
)


def strength_table(policy: Policy, pairs: PreferenceSet) -> pd.DataFrame:
    """The numbers that a wish comes to on the first BATCH pairs, before any training.

    Args:
        policy: which training would start from.
        pairs: rows of two responses, the preferred one first.

    Returns:
        A row a wish: objective, found (lam, or gamma0 and tau; 0 where there is none), why (where
        nothing can be solved before the first update).
    """
    batch = pairs[:BATCH]
    logps, lengths = training.score(policy, batch)
    scores = Scores(logps, ref_logps=logps, lengths=lengths)
    factors = [mean_h(row) for row in batch]
    h = torch.tensor([value for value in factors if value is not None])
    rows = []
    for spec, needs_h in WISHES:
        if needs_h and len(h) < len(batch):
            continue
        rows.append({"objective": spec} | _solved(spec, scores, h))
    return pd.DataFrame(rows)


def _solved(spec: str, scores: Scores, h: torch.Tensor) -> dict[str, object]:
    """What `strength_table` says of one wish."""
    found: dict[str, float] = {}
    why = ""
    try:
        objective = objectives.build(spec)
        if objective.needs_reference:  # all pairs are alike while the policy is its reference
            raise KitError(BEFORE)
        objective.step_loss(scores, h)
        found = objective.strength
        if objective.gamma0 is not None:
            found["gamma0"] = objective.gamma0
    except KitError as error:
        why = str(error)
    return {name: found.get(name) for name in ("lam", "gamma0", "tau")} | {"why": why}
