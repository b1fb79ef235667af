"""gamma-PO's dynamic target margins around a base loss."""

from typing import Any

import torch
from torch import Tensor

from robustpo_kit import margins
from robustpo_kit.losses import TARGETS, Scores, check_flag, check_positive, target_gamma0
from robustpo_kit.objectives.base_loss import BaseLoss, chosen_options, seeded_generator
from robustpo_kit.objectives.layers import QUEUE_OPTIONS, SOLVER_OPTIONS, margin_gap
from robustpo_kit.objectives.strength import Solved, tau_for_spread


class MarginLayer:
    """The target margins of a loss's reward gaps, one a sample, with the queue of past gaps.

    Margins are centred (their mean gamma0 taken off) by default, except over a loss such as SimPO,
    whose constant target margin they replace. Given `spread` in place of tau, tau is solved on the
    gaps of one step, and so is gamma0 where none is given: their standard deviation.
    """

    def __init__(self, base: BaseLoss, options: dict[str, Any]) -> None:
        self._gap, self._beta = margin_gap(base.name), base.options["beta"]
        self._center = options.get("center", not base.row.has_target)
        check_flag("center", self._center)
        self._spread = options.get("spread")
        self._gamma0 = self._given_gamma0(options)
        generator = seeded_generator(options, "gap queue")
        self._queue = margins.GapQueue(
            generator=generator, **chosen_options(options, *QUEUE_OPTIONS)
        )
        self._solver = chosen_options(options, *SOLVER_OPTIONS)
        self.solved = Solved(self._to_solve(options), options.get("solve_step", 1))

    def _given_gamma0(self, options: dict[str, Any]) -> float | None:
        """The mean margin; None where it is to be solved."""
        given = chosen_options(options, *TARGETS)
        if not given and self._spread is not None and self._center:
            return None
        return target_gamma0(beta=self._beta, **given)

    def _to_solve(self, options: dict[str, Any]) -> tuple[str, ...]:
        if self._spread is None:
            if "solve_step" in options:
                raise ValueError("solve_step: says when spread is solved; give spread, too")
            return ()
        check_positive("spread", self._spread)
        if "tau" in options:
            raise ValueError("spread: gives tau; leave out tau")
        return ("tau",) if self._gamma0 is not None else ("gamma0", "tau")

    @property
    def gamma0(self) -> float | None:
        """The mean margin, None until it is solved."""
        if self._gamma0 is not None:
            return self._gamma0
        return self.solved.numbers["gamma0"] or None

    def margins(self, scores: Scores, training: bool) -> Tensor:
        """What the loss takes off its gaps [B]; `training=False` only reads the queue.

        Raises KitError where no tau gives the wished spread on the step that should.
        """
        gaps = self._gap(scores, beta=self._beta).detach()
        if training:
            self.solved.take_step(lambda: self._solve(gaps))
        if self.solved.waiting:
            return self._constant(gaps, training)
        settings = self._solver | self.solved.numbers | {"gamma0": self.gamma0}
        return margins.dynamic_margins(
            gaps, self._queue, center=self._center, training=training, **settings
        )

    def _constant(self, gaps: Tensor, training: bool) -> Tensor:
        """The margin of infinite tau."""
        if training:
            self._queue.push(gaps)
        if self._center or self._gamma0 is None:
            return torch.zeros_like(gaps)
        return torch.full_like(gaps, self._gamma0)

    def _solve(self, gaps: Tensor) -> dict[str, float]:
        assert self._spread is not None
        gamma0 = self._gamma0
        if gamma0 is None:
            gamma0 = float(gaps.double().std(correction=0)) or 1.0  # which tau_for_spread refuses
        found = {"gamma0": gamma0, "tau": tau_for_spread(gaps, self._spread, gamma0=gamma0)}
        return chosen_options(found, *self.solved.numbers)

    def metrics(self, margin: Tensor) -> dict[str, Tensor]:
        """Smallest, largest and mean of the step's gamma_i, scalars."""
        gammas = margin
        if self._center and self.gamma0 is not None:
            gammas = margin + self.gamma0
        return {
            "gamma_min": gammas.min(),
            "gamma_max": gammas.max(),
            "margin_mean": gammas.mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The queue's, and what is solved."""
        return self._queue.state_dict() | self.solved.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._queue.load_state_dict(state)
        self.solved.load_state_dict(state)
