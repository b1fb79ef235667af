"""The layers of an objective, outermost to base loss, and the keywords that each of them takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustpo_kit.errors import KitError
from robustpo_kit.losses import BASES, TARGETS
from robustpo_kit.objectives.aggregation import aggregator_options
from robustpo_kit.robust import AGGREGATORS

SOLVER_OPTIONS = ("tau", "solver", "steps", "parity")
QUEUE_OPTIONS = ("capacity", "solve_size", "parity")
WISH = ("spread", "solve_step")  # instead of tau
MARGIN_OPTIONS = (*TARGETS, *SOLVER_OPTIONS, *QUEUE_OPTIONS, *WISH, "center", "seed")


class SpecError(KitError, ValueError):
    """A spec that is not understood, or a combination that makes no sense; the message says why."""


@dataclasses.dataclass
class Layer:
    """One name of a spec with the keywords in its parentheses, if it has any."""

    name: str
    keywords: dict[str, Any]
    has_parentheses: bool

    def accepts(self, *, under_gamma: bool) -> tuple[str, ...]:
        """The keywords of the layer; under a dynamic margin a loss has no constant of its own."""
        if self.name == "gamma":
            return MARGIN_OPTIONS
        if self.name in AGGREGATORS:
            return aggregator_options(self.name)
        options = BASES[self.name].options
        if under_gamma:
            return tuple(keyword for keyword in options if keyword not in TARGETS)
        return options

    @property
    def required(self) -> tuple[str, ...]:
        """The keywords that the layer cannot do without."""
        if self.name == "gamma":
            return () if "spread" in self.keywords else ("tau",)
        if self.name in BASES:
            return BASES[self.name].required
        return AGGREGATORS[self.name].required


def margin_gap(base: str) -> Callable[..., Tensor]:
    """The reward gap of a loss that a dynamic margin applies to; SpecError if it has none."""
    gap = BASES[base].gap
    if gap is None:
        takers = ", ".join(name for name, row in BASES.items() if row.gap)
        raise SpecError(
            f"gamma({base}): {base} has no target margin on a pairwise reward gap; "
            f"gamma takes {takers}"
        )
    return gap
