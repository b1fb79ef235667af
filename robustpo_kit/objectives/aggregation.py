"""The aggregator of an objective: by the table, by the authors' branches, or of a wished ess."""

from typing import Any

from torch import Tensor

from robustpo_kit import robust
from robustpo_kit.losses import Scores, real_columns
from robustpo_kit.objectives.authors import (
    BRANCHES,
    authors_aggregate,
    check_options,
    mean_ratios,
)
from robustpo_kit.objectives.base_loss import chosen_options
from robustpo_kit.objectives.strength import MILD, Solved, check_share, lambda_for_ess
from robustpo_kit.robust import AGGREGATORS, Aggregate

WISH = ("ess", "solve_step")  # instead of lam
PARITY = ("parity", "micro_batch")  # of dora


def aggregator_options(name: str) -> tuple[str, ...]:
    """The keywords of an aggregator that a spec may give."""
    options = AGGREGATORS[name].options
    if "lam" in options:
        options += WISH
    if name == "dora":
        options += PARITY
    return options


class Aggregation:
    """How the losses of a step become one value; remembers the lambda that it has solved.

    Attributes:
        loss_options: keywords that it gives the loss, those of the authors' branch.
        needs_h, needs_ratios: h~ of every sample; the ratio of every response.
    """

    def __init__(self, name: str, keywords: dict[str, Any], base: str, options: dict[str, Any]):
        self.name, self._base, self._row = name, base, AGGREGATORS[name]
        self._settings = {k: v for k, v in keywords.items() if k not in WISH + PARITY}
        self._authors: dict[str, Any] | None = None
        self.needs_h, self.needs_ratios = self._row.needs_h, False
        self.loss_options: dict[str, Any] = {}
        if "parity" in keywords:
            check_options(base, options, keywords)
            self._authors = chosen_options(keywords, "lam", "micro_batch")
            self.needs_ratios = BRANCHES[base].needs_ratios
            self.loss_options = BRANCHES[base].options
        elif "micro_batch" in keywords:
            raise ValueError("micro_batch: goes with parity='authors'; training has its own")
        self._ess = keywords.get("ess")
        names = () if self._ess is None else ("lam",)
        self._check_wish(keywords)
        self.solved = Solved(names, keywords.get("solve_step", 1))

    def _check_wish(self, keywords: dict[str, Any]) -> None:
        if self._ess is None:
            if "solve_step" in keywords:
                raise ValueError("solve_step: says when ess is solved; give ess, too")
            return
        check_share(self._ess)
        for other in ("lam", "parity"):
            if other in keywords:
                raise ValueError(f"ess: gives lambda; leave out {other}")

    @property
    def coupling(self) -> str:
        """As `Objective.coupling`; a step that solves needs all its samples at once."""
        if self._authors is not None:
            return "separable" if self._authors.get("micro_batch", 1) == 1 else "step"
        if self.solved.waiting or self._settings.get("normalise_h", "none") != "none":
            return "step"
        return self._row.coupling

    def factors(self, h: Tensor | None, scores: Scores) -> Tensor | None:
        """h~ [B] of what rows have, [B] or a ratio of each response [B, K]; None if not needed.

        Raises ValueError where it is needed and missing or misshapen.
        """
        if not self.needs_h:
            return None
        if h is None:
            raise ValueError(
                f"h: '{self.name}' needs the calibration factor of every sample, got None"
            )
        if h.dim() == 1:
            return h
        if h.shape != scores.logps.shape:
            expected = list(scores.logps.shape)
            raise ValueError(f"h: expected shape [B] or {expected}, got {list(h.shape)}")
        return mean_ratios(h, real_columns(scores))

    def __call__(
        self, per_sample: Tensor, h: Tensor | None, scores: Scores, training: bool
    ) -> Aggregate:
        """Value and weights of a step from its losses [B]; h as `factors` takes it."""
        factors = self.factors(h, scores)
        if self._authors is not None and h is not None:
            return authors_aggregate(per_sample, h, scores, base=self._base, **self._authors)
        if training:
            self.solved.take_step(lambda: self._solve(per_sample, factors))
        return robust.aggregate_with_weights(
            per_sample, factors, kind=self.name, **self._settings, **self._lam
        )

    def _solve(self, per_sample: Tensor, factors: Tensor | None) -> dict[str, float]:
        assert self._ess is not None
        lam = lambda_for_ess(per_sample, self._ess, factors, kind=self.name, **self._settings)
        return {"lam": lam}

    @property
    def _lam(self) -> dict[str, Any]:
        """A solved lambda, a mild one before; nothing where the settings have theirs."""
        if self.solved.waiting:
            return {"lam": MILD}
        return self.solved.numbers

    def log_mass(self, loss: Tensor, count: int) -> Tensor:
        """As `Objective.log_mass`."""
        lam = chosen_options(self._settings, "lam") | self._lam
        return robust.log_mass(loss, count, kind=self.name, **lam)

    def state_dict(self) -> dict[str, Any]:
        """The solved lambda; empty where it is given."""
        return self.solved.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.solved.load_state_dict(state)
