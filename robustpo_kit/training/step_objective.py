"""The seam between training and objectives: all that training needs of an objective.

`objectives.build` makes such objects; any other object with these attributes trains as well.
"""

from typing import Any, Protocol

from torch import Tensor

from robustpo_kit.losses import Scores


class StepValue(Protocol):
    """What an objective makes of the samples of a step."""

    @property
    def loss(self) -> Tensor:
        """Scalar, differentiable in `scores.logps`."""

    @property
    def weights(self) -> Tensor:
        """[B] d loss / d per-sample loss, detached."""

    @property
    def metrics(self) -> dict[str, Tensor]:
        """Scalars for the log, detached."""


class StepObjective(Protocol):
    """From the scores of all samples of an optimizer step to one loss, perhaps with state."""

    responses: str  # "pair" | "list" | "one": the responses it takes of a row
    needs_reference: bool  # log-probs under the reference policy
    needs_rewards: bool
    needs_h: bool  # calibration factors
    needs_ratios: bool  # them as the density ratio of each response
    needs_kl: bool  # log-probs of a mismatched response a row
    logp: str  # "mean" where it reads log-probs per token only, else "sum"

    @property
    def spec(self) -> str:
        """Its canonical name, for records and messages."""

    @property
    def strength(self) -> dict[str, float]:
        """What it solves on a whole step, and found, by name; empty where it solves nothing."""

    @property
    def coupling(self) -> str:
        """How samples decide each other's gradient: "separable", "log_sum_exp" or "step"."""

    def log_mass(self, loss: Tensor, count: int) -> Tensor:
        """Log of the unscaled weight of `count` samples in a "log_sum_exp" step, by their loss."""

    def step_loss(
        self, scores: Scores, h: Tensor | None = None, *, training: bool = True
    ) -> StepValue:
        """The value of a step; `training=False` reads the state and leaves it as it is."""

    def state_dict(self) -> dict[str, Any]:
        """State that steps change, as tensors and numbers; empty where there is none."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
