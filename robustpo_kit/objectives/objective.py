"""An objective: a base loss, perhaps with dynamic target margins, under one aggregator."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustpo_kit import robust
from robustpo_kit.losses import BASES, Scores
from robustpo_kit.objectives.aggregation import Aggregation
from robustpo_kit.objectives.base_loss import BaseLoss, chosen_options
from robustpo_kit.objectives.layers import SpecError
from robustpo_kit.objectives.margin_layer import MarginLayer
from robustpo_kit.objectives.metrics import step_metrics


class StepLoss(NamedTuple):
    """What an objective makes of one optimizer step."""

    loss: Tensor  # scalar, differentiable in scores.logps
    per_sample: Tensor  # [B]
    weights: Tensor  # [B] d loss / d per_sample, detached
    metrics: dict[str, Tensor]  # scalars, detached


class Objective:
    """A base loss (+ dynamic margin) (+ aggregator); `build` makes one from a spec.

    Attributes:
        base, options: the loss's name and keywords.
        aggregator, aggregation: the aggregator's name and keywords.
        margin: the gamma layer's keywords, or None.
        responses: "pair" | "list" | "one" a prompt.
        needs_reference, needs_rewards, needs_h, needs_kl: what `step_loss` cannot do without.
        needs_ratios: whether h must be the ratio of each response, not their mean.
        logp: "mean" where the loss reads log-probs per token only, else "sum".
        coupling: "separable" if the loss is a mean over samples with weights known beforehand, so
            that micro-batches can be backpropagated one by one; "log_sum_exp" if the step's
            gradient is a mean of its parts' gradients with weights known at the end (`log_mass`);
            "step" if it needs all samples of the optimizer step at once.
        spec: canonical; building it gives the same objective.
    """

    def __init__(
        self,
        base: str,
        options: dict[str, Any],
        aggregator: str = "erm",
        aggregation: dict[str, Any] | None = None,
        margin: dict[str, Any] | None = None,
    ) -> None:
        self.base, self.options = base, dict(options)
        self.aggregator, self.aggregation = aggregator, dict(aggregation or {})
        self.margin = None if margin is None else dict(margin)
        self._row = BASES[base]
        self.responses = self._row.responses
        self.needs_reference = self._row.needs_reference
        self.needs_rewards = self._row.needs_rewards
        self.needs_kl = self._row.needs_kl
        self.logp = self._row.logp_kind(self.options)
        self._aggregation = Aggregation(aggregator, self.aggregation, base, self.options)
        self.needs_h = self._aggregation.needs_h
        self.needs_ratios = self._aggregation.needs_ratios
        self._loss = BaseLoss(base, self.options | self._aggregation.loss_options)
        self._margins: MarginLayer | None = None
        if self.margin is not None:
            self._margins = MarginLayer(self._loss, self.margin)
        self._check_arguments()
        self._refuse_nonsense()

    @property
    def gamma0(self) -> float | None:
        """The mean of dynamic margins; None without them, and where it is still to be solved."""
        return None if self._margins is None else self._margins.gamma0

    @property
    def strength(self) -> dict[str, float]:
        """What is wished, and what has been solved for it: ess, lam; spread, gamma0, tau."""
        wishes = {**(self.margin or {}), **self.aggregation}
        found = chosen_options(wishes, "spread", "ess")
        for part in (self._margins, self._aggregation):
            if part is not None and not part.solved.waiting:
                found |= part.solved.numbers
        return found

    @property
    def coupling(self) -> str:
        """ "separable", "log_sum_exp" or "step"; see the class."""
        if self.margin is not None or self._row.coupled:
            return "step"
        return self._aggregation.coupling

    @property
    def spec(self) -> str:
        """The canonical spec, every layer's keywords in its own parentheses."""
        text = _call(self.base, None, self.options)
        if self.margin is not None:
            text = _call("gamma", text, self.margin)
        if self.aggregator != "erm" or self.aggregation:
            text = _call(self.aggregator, text, self.aggregation)
        return text

    def __repr__(self) -> str:
        return f"<Objective {self.spec}: {self.responses}, {self.coupling}>"

    def step_loss(
        self, scores: Scores, h: Tensor | None = None, *, training: bool = True
    ) -> StepLoss:
        """The loss of one optimizer step.

        Args:
            scores: of *all* samples of the step.
            h: [B], calibration factors, where `needs_h`; ignored elsewhere. Or [B, K], the ratio of
                each response, whose means they are.
            training: False reads the gap queue and the moving averages without changing them.

        Raises:
            ValueError: a field or argument is missing, misshapen or not finite; it is named.
            KitError: no strength gives what is wished on this step.
        """
        factors = self._aggregation.factors(h, scores)
        margin = None
        if self._margins is not None:
            margin = self._margins.margins(scores, training)
        per_sample = self._loss.per_sample(scores, margin, training)
        loss, weights = self._aggregation(per_sample, h, scores, training)
        metrics = step_metrics(self._row, scores, per_sample.detach(), weights, factors)
        if self._margins is not None and margin is not None:
            metrics |= self._margins.metrics(margin)
        return StepLoss(loss, per_sample, weights, metrics)

    def log_mass(self, loss: Tensor, count: int) -> Tensor:
        """log sum exp over a part's `count` samples from its loss: its unscaled weight in the step.

        For parts S and T of a "log_sum_exp" step, grad f(S + T) is the mean of grad f(S) and
        grad f(T) weighted by exp(log_mass), as lam * log-mean-exp (DoRA Eq. 9) is differentiated.
        """
        return self._aggregation.log_mass(loss, count)

    def state_dict(self) -> dict[str, Any]:
        """Queue, moving averages and generators as tensors and numbers; empty if stateless."""
        state: dict[str, Any] = {}
        for name, part in self._parts().items():
            state |= {f"{name}.{entry}": value for entry, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises ValueError for entries that are missing or of another objective.
        """
        expected = set(self.state_dict())
        if wrong := sorted(expected.symmetric_difference(state)):
            raise ValueError(f"state: entry '{wrong[0]}' does not fit {self.spec}")
        for name, part in self._parts().items():
            entries = part.state_dict()
            part.load_state_dict({entry: state[f"{name}.{entry}"] for entry in entries})

    def _parts(self) -> dict[str, BaseLoss | MarginLayer | Aggregation]:
        """What may remember something between steps, by the prefix of its state's entries."""
        parts = {"loss": self._loss, "queue": self._margins, "aggregation": self._aggregation}
        return {name: part for name, part in parts.items() if part is not None}

    def _check_arguments(self) -> None:
        """Run one toy step: a bad argument is refused when the objective is built, not later."""
        logps = torch.tensor([[-2.0, -3.0]], dtype=torch.float64)
        toy = Scores(
            logps,
            ref_logps=logps - 0.5,
            lengths=torch.tensor([[2, 3]]),
            rewards=logps,
            kl_logps=logps[:, 0],
            kl_ref_logps=logps[:, 0],
        )
        self.step_loss(toy, torch.ones(1, 2, dtype=torch.float64), training=False)

    def _refuse_nonsense(self) -> None:
        """Combinations that run but mean nothing."""
        base, aggregator, share_kept = self.base, self.aggregator, self._row.share_kept
        filters = share_kept is not None and self._row.value_of(share_kept, self.options) < 1
        if filters and aggregator != "erm":
            raise SpecError(
                f"{aggregator}({base}({share_kept}=...)): the filter sets dropped samples to a "
                f"loss of 0, which {aggregator} would weigh as if they were good; "
                f"use {share_kept}=1.0 or erm"
            )
        if self._row.bounded and robust.AGGREGATORS[aggregator].sign < 0:
            raise SpecError(
                f"{aggregator}({base}): its soft minimum is derived for log-losses of pairs; "
                "use it with dpo and kin"
            )


def _call(name: str, inside: str | None, keywords: dict[str, Any]) -> str:
    """NAME(INSIDE, KEYWORD=VALUE, ...), keywords by name."""
    parts = [f"{keyword}={value!r}" for keyword, value in sorted(keywords.items())]
    if inside is not None:
        parts.insert(0, inside)
    return f"{name}({', '.join(parts)})"
