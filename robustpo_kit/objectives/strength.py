"""How strong a robust objective is, from a wish: lambda, or tau and gamma0, solved on a batch.

lambda means nothing without the scale of the losses, and tau none without that of the gaps. A wish
does: `ess=0.7`, that 70 % of the batch drive the step; `spread=0.2`, that target margins vary by a
fifth of their mean.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from robustpo_kit import margins, robust
from robustpo_kit.errors import KitError
from robustpo_kit.losses import check_between, check_positive, check_whole

MILD = 1e6  # lambda, in units of the losses' scale, at which weights no longer follow the losses
HARSH = 1e-4  # and that at which the largest loss has them all
STRENGTHS = (1e-4, 1e2)  # of gamma0 / tau: margins all equal; margins that follow the gaps


def lambda_for_ess(
    per_sample: Tensor, ess: float, h: Tensor | None = None, *, kind: str, **settings: Any
) -> float:
    """The largest lambda at which the weights' effective sample size is `ess` times the batch.

    Args:
        per_sample: [B], the losses of a whole step.
        ess: wished share of the batch, in (0, 1).
        h: [B], calibration factors, for kinds that need them.
        kind: an aggregator with a lambda.
        settings: further keywords of `robust.weights`.

    Raises:
        KitError: no lambda gives it on these losses; says what they allow.
    """
    losses = per_sample.detach().double()
    factors = torch.ones_like(losses) if h is None else h.detach().double()

    def excess(log_lam: float) -> float:
        weights = robust.weights(losses, factors, kind=kind, lam=math.exp(log_lam), **settings)
        return float(robust.effective_sample_size(weights)) / len(losses) - ess

    scale = float((losses * factors).std(correction=0)) or 1.0
    grid = np.linspace(math.log(MILD * scale), math.log(HARSH * scale), 100)
    found = np.array([excess(log_lam) for log_lam in grid])
    changes = np.flatnonzero(np.diff(found > 0))
    if not len(changes):
        low, high = found.min() + ess, found.max() + ess
        raise KitError(
            f"ess={ess:g}: on these {len(losses)} losses {kind} has effective sample sizes from "
            f"{low:.2g} to {high:.2g} of the batch, {found[0] + ess:.2g} at an infinite lambda"
            f"{_of_equal(losses, 'losses')}; wish for another share"
        )
    first = changes[0]
    return math.exp(brentq(excess, grid[first + 1], grid[first], xtol=1e-12))


def tau_for_spread(gaps: Tensor, spread: float, *, gamma0: float) -> float:
    """The tau at which the target margins of these gaps have standard deviation spread * gamma0.

    Args:
        gaps: [n], reward gaps.
        spread: wished standard deviation of the margins over their mean, > 0.
        gamma0: the mean margin, in units of the gaps.

    Raises:
        KitError: no tau gives it on these gaps; says what they allow.
    """
    check_positive("spread", spread)
    check_positive("gamma0", gamma0)
    values = gaps.detach().double()

    def excess(log_strength: float) -> float:
        tau = gamma0 / math.exp(log_strength)
        solved = margins.target_margins(values, gamma0=gamma0, tau=tau)
        return float(solved.std(correction=0)) / gamma0 - spread

    low, high = (math.log(strength) for strength in STRENGTHS)
    if excess(high) < 0 or excess(low) > 0:
        raise KitError(
            f"spread={spread:g}: margins of mean {gamma0:.3g} can spread by "
            f"{excess(low) + spread:.2g} to {excess(high) + spread:.2g} on these {len(values)} gaps"
            f" of sd {float(values.std(correction=0)):.2g}{_of_equal(values, 'gaps')}; wish for "
            "less, or lower gamma0"
        )
    return gamma0 / math.exp(brentq(excess, low, high, xtol=1e-12))


def _of_equal(values: Tensor, name: str) -> str:
    """Why a batch allows nothing, where all its values are one."""
    if float(values.max() - values.min()) > 1e-9 * float(values.abs().max()):
        return ""
    return (
        f" (all {name} are equal, as before the first update of a policy that is its own "
        "reference: solve at a later step, solve_step=...)"
    )


class Solved:
    """Numbers that one optimizer step decides for all that follow, kept in checkpoints.

    Args:
        names: of the numbers; none where nothing is to be solved.
        solve_step: the optimizer step, counted from 1, whose whole batch decides.
    """

    def __init__(self, names: tuple[str, ...], solve_step: int = 1) -> None:
        check_whole("solve_step", solve_step, low=1)
        self._solve_step = solve_step
        self._state = dict.fromkeys(("steps", *names), 0.0) if names else {}

    @property
    def waiting(self) -> bool:
        """Whether numbers are still to be solved."""
        return bool(self._state) and not any(self.numbers.values())

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by name, 0 until they are solved."""
        return {name: value for name, value in self._state.items() if name != "steps"}

    def take_step(self, solve: Callable[[], dict[str, float]]) -> None:
        """Count an optimizer step of training; at its turn, keep what `solve` finds."""
        if not self.waiting:
            return
        self._state["steps"] += 1
        if self._state["steps"] >= self._solve_step:
            self._state |= solve()

    def state_dict(self) -> dict[str, float]:
        """The numbers, and how many steps have been counted; empty where nothing is solved."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what `state_dict` gave."""
        self._state = {name: float(state[name]) for name in self._state}


def check_share(ess: float) -> None:
    """A share of the batch that weights can be spread over."""
    check_between("ess", ess, 0.0, 1.0, open_low=True)
