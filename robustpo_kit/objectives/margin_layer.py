"""gamma-PO's dynamic target margins around a base loss."""

from typing import Any

from torch import Tensor

from robustpo_kit import margins
from robustpo_kit.losses import TARGETS, Scores, target_gamma0
from robustpo_kit.objectives.base_loss import BaseLoss, chosen_options, seeded_generator
from robustpo_kit.objectives.layers import QUEUE_OPTIONS, SOLVER_OPTIONS, margin_gap


class MarginLayer:
    """The target margins of a loss's reward gaps, one a sample, with the queue of past gaps.

    Margins are centred (their mean gamma0 taken off) by default, except over a loss such as SimPO,
    whose constant target margin they replace.
    """

    def __init__(self, base: BaseLoss, options: dict[str, Any]) -> None:
        self._gap, self._beta = margin_gap(base.name), base.options["beta"]
        self.gamma0 = target_gamma0(beta=self._beta, **chosen_options(options, *TARGETS))
        generator = seeded_generator(options, "gap queue")
        self._queue = margins.GapQueue(
            generator=generator, **chosen_options(options, *QUEUE_OPTIONS)
        )
        self._solver = chosen_options(options, *SOLVER_OPTIONS)
        self._center = options.get("center", not base.row.has_target)
        if not isinstance(self._center, bool):
            raise ValueError(f"center: must be True or False, got {self._center!r}")

    def margins(self, scores: Scores, training: bool) -> Tensor:
        """What the loss takes off its gaps [B]; `training=False` only reads the queue."""
        return margins.dynamic_margins(
            self._gap(scores, beta=self._beta).detach(),
            self._queue,
            gamma0=self.gamma0,
            center=self._center,
            training=training,
            **self._solver,
        )

    def metrics(self, margin: Tensor) -> dict[str, Tensor]:
        """Smallest, largest and mean of the step's gamma_i, scalars."""
        gammas = margin + self.gamma0 if self._center else margin
        return {
            "gamma_min": gammas.min(),
            "gamma_max": gammas.max(),
            "margin_mean": gammas.mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The queue's."""
        return self._queue.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._queue.load_state_dict(state)
