"""An objective: a base loss, perhaps with dynamic target margins, under one aggregator."""

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustpo_kit import losses, margins, robust
from robustpo_kit.losses import BASES, Scores
from robustpo_kit.objectives.layers import TARGETS, SpecError, check_takes_margin, chosen_options


class StepLoss(NamedTuple):
    """What an objective makes of one optimizer step."""

    loss: Tensor  # scalar, differentiable in scores.logps
    per_sample: Tensor  # [B]
    weights: Tensor  # [B] d loss / d per_sample, detached
    metrics: dict[str, Tensor]  # scalars, detached


class Objective:
    """A base loss (+ dynamic margin) (+ aggregator); `build` makes one from a spec.

    Attributes: `spec` (canonical: building it gives the same objective), `base`, `aggregator`, `margin` (None or the
    gamma layer's options), `responses` "pair" | "list" | "one", `needs_reference`, `needs_rewards`, `needs_h`,
    `needs_kl`, `logp` ("mean" where it reads log-probs per token only, else "sum"), and `coupling`: "separable" if the loss is a mean over samples with weights known beforehand, so that
    micro-batches can be backpropagated one by one; "log_sum_exp" if the step's gradient is a mean of its parts'
    gradients with weights known at the end (`log_mass`); "step" if it needs all samples of the optimizer step at once.
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
        needs = BASES[base]
        self.responses = needs.responses
        self.needs_reference = needs.needs_reference
        self.needs_rewards = needs.needs_rewards
        self.needs_h = aggregator in robust.NEEDS_H
        self.needs_kl = base == "kto"
        self.logp = needs.logp_kind(self.options)
        _refuse_nonsense(self)
        self._queue = self._beta_state = self._generator = None
        if base == "beta_dpo":
            self._generator = torch.Generator().manual_seed(_seed(self.options))
            self._beta_state = losses.BetaState(**chosen_options(self.options, "momentum"))
        if self.margin is not None:
            self._prepare_margin()
        self._check_arguments()

    @property
    def coupling(self) -> str:
        """ "separable", "log_sum_exp" or "step"; see the class."""
        if (
            self.margin is not None
            or BASES[self.base].coupled
            or self.aggregation.get("normalise_h", "none") != "none"
        ):
            return "step"
        return robust.COUPLING[self.aggregator]

    def log_mass(self, loss: Tensor, count: int) -> Tensor:
        """log sum exp over a part's `count` samples from the part's loss: its weight in the step's gradient, unscaled.

        For parts S and T of a "log_sum_exp" step, grad f(S + T) is the mean of grad f(S) and grad f(T) weighted by
        exp(log_mass), as lam * log-mean-exp (DoRA Eq. 9) is differentiated.
        """
        return robust.log_mass(
            loss, count, kind=self.aggregator, lam=self.aggregation.get("lam", 1.0)
        )

    @property
    def stateful(self) -> bool:
        """Whether steps change the objective: a gap queue or a moving average."""
        return self._queue is not None or self._beta_state is not None

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
        """The loss of a step from the scores of *all* its samples, with h [B] where `needs_h`.

        `training=False` reads the gap queue and the moving averages without changing them.
        Raises ValueError that names the field or argument that is missing, misshapen or not finite.
        """
        if self.needs_h and h is None:
            raise ValueError(
                f"h: '{self.aggregator}' needs the calibration factor of every sample, got None"
            )
        margin = self._margins(scores, training)
        per_sample = self._per_sample(scores, margin, training)
        arguments = {"kind": self.aggregator, **self.aggregation}
        h = h if self.needs_h else None
        loss = robust.aggregate(per_sample, h, **arguments)
        weights = robust.weights(per_sample, h, **arguments)
        return StepLoss(
            loss, per_sample, weights, self._metrics(scores, per_sample, weights, h, margin)
        )

    def state_dict(self) -> dict[str, Any]:
        """Queue, moving averages and generators as tensors and numbers; empty for stateless objectives."""
        state: dict[str, Any] = {}
        if self._queue is not None:
            state |= {f"queue.{name}": value for name, value in self._queue.state_dict().items()}
        if self._beta_state is not None:
            state |= {
                f"beta.{name}": value for name, value in self._beta_state.state_dict().items()
            }
            state["beta.generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValueError for entries that are missing or of another objective."""
        expected = set(self.state_dict())
        if wrong := sorted(expected.symmetric_difference(state)):
            raise ValueError(f"state: entry '{wrong[0]}' does not fit {self.spec}")
        if self._queue is not None:
            self._queue.load_state_dict(_section(state, "queue."))
        if self._beta_state is not None:
            section = _section(state, "beta.")
            self._generator.set_state(
                torch.as_tensor(section.pop("generator"), dtype=torch.uint8).cpu()
            )
            self._beta_state.load_state_dict(section)

    def _prepare_margin(self) -> None:
        """The queue and the solver's arguments of a gamma layer; centred by default, except over SimPO."""
        layer, parity = self.margin, self.margin.get("parity")
        self.gamma0 = losses.target_gamma0(
            beta=self.options["beta"], **chosen_options(layer, *TARGETS)
        )
        sizes = chosen_options(layer, "capacity", "solve_size")
        generator = torch.Generator().manual_seed(_seed(layer))
        self._queue = margins.GapQueue(**sizes, generator=generator, parity=parity)
        self._solver = chosen_options(layer, "tau", "solver", "steps", "parity")
        self._center = layer.get("center", self.base != "simpo")
        if self._center is not True and self._center is not False:
            raise ValueError(f"center: must be True or False, got {self._center!r}")

    def _margins(self, scores: Scores, training: bool) -> Tensor | None:
        """Dynamic target margins [B] of the step, or None."""
        if self.margin is None:
            return None
        gaps = BASES[self.base].gap(scores, beta=self.options["beta"]).detach()
        return margins.dynamic_margins(
            gaps,
            self._queue,
            gamma0=self.gamma0,
            center=self._center,
            training=training,
            **self._solver,
        )

    def _per_sample(self, scores: Scores, margin: Tensor | None, training: bool) -> Tensor:
        arguments = chosen_options(
            self.options, *inspect.signature(BASES[self.base].loss).parameters
        )
        if margin is not None:
            arguments["margin"] = margin
        if self._beta_state is not None:
            arguments |= {
                "state": self._beta_state,
                "generator": self._generator,
                "training": training,
            }
        return BASES[self.base].loss(scores, **arguments)

    @torch.no_grad()
    def _metrics(
        self,
        scores: Scores,
        per_sample: Tensor,
        weights: Tensor,
        h: Tensor | None,
        margin: Tensor | None,
    ) -> dict[str, Tensor]:
        """Scalars of the whole step for the log."""
        found = {
            "loss_mean": per_sample.mean(),
            "ess": robust.effective_sample_size(weights),
            "max_weight": weights.max() / weights.sum().clamp(min=1e-30),
            "weight_sum": weights.sum(),
            "logps_chosen": scores.logps[:, 0].mean(),
        }
        if self.needs_reference:
            found["chosen_shift"] = (scores.logps - scores.ref_logps)[:, 0].mean()
        if self.responses != "one":
            found["accuracy"] = self._accuracy(scores)
        if self.responses == "pair":
            found["gap_mean"] = (self._implicit(scores)[:, 0] - self._implicit(scores)[:, 1]).mean()
        if h is not None:
            found["h_mean"] = h.mean()
            found["corr_h_weight"] = _correlation(h, weights)
        if margin is not None:
            total = margin + self.gamma0 if self._center else margin
            found |= {
                "gamma_min": total.min(),
                "gamma_max": total.max(),
                "margin_mean": total.mean(),
            }
        return {name: value.detach() for name, value in found.items()}

    def _implicit(self, scores: Scores) -> Tensor:
        """The policy's own score of each response [B, K]: r_k with a reference, else the mean log-probability."""
        return (
            scores.logps - scores.ref_logps if self.needs_reference else losses.mean_logps(scores)
        )

    def _accuracy(self, scores: Scores) -> Tensor:
        """Share of samples whose best response (chosen, or highest reward) has the highest implicit score."""
        implicit = self._implicit(scores)
        real = torch.ones_like(implicit, dtype=torch.bool) if scores.mask is None else scores.mask
        if self.responses == "pair":
            return (implicit[:, 0] > implicit[:, 1]).to(implicit.dtype).mean()
        best = scores.rewards.masked_fill(~real, -math.inf).argmax(dim=-1)
        return (
            (implicit.masked_fill(~real, -math.inf).argmax(dim=-1) == best)
            .to(implicit.dtype)
            .mean()
        )

    def _check_arguments(self) -> None:
        """Run one toy step, so that a bad argument is refused when the objective is built and not an epoch later."""
        logps = torch.tensor([[-2.0, -3.0]], dtype=torch.float64)
        toy = Scores(
            logps, logps - 0.5, torch.tensor([[2, 3]]), logps, None, logps[:, 0], logps[:, 0]
        )
        self.step_loss(toy, torch.ones(1, dtype=torch.float64), training=False)


def _refuse_nonsense(objective: Objective) -> None:
    """Combinations that run but mean nothing."""
    base, aggregator = objective.base, objective.aggregator
    if objective.margin is not None:
        check_takes_margin(base)
    if base == "beta_dpo" and objective.options.get("keep", 1.0) < 1 and aggregator != "erm":
        raise SpecError(
            f"{aggregator}(beta_dpo(keep=...)): the filter sets dropped samples to a loss of 0, which {aggregator} "
            "would weigh as if they were good; use keep=1.0 or erm"
        )
    if base in ("kto", "kto_pair") and aggregator == "dr_dpo":
        raise SpecError(
            f"dr_dpo({base}): Dr.DPO's soft minimum is derived for log-losses of pairs; use it with dpo and kin"
        )


def _call(name: str, inside: str | None, keywords: dict[str, Any]) -> str:
    parts = ([inside] if inside else []) + [
        f"{key}={value!r}" for key, value in sorted(keywords.items())
    ]
    return f"{name}({', '.join(parts)})"


def _seed(options: dict[str, Any]) -> int:
    seed = options.get("seed", 0)
    if type(seed) is not int:
        raise ValueError(f"seed: must be a whole number, got {seed!r}")
    return seed


def _section(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation; 0 where either is constant."""
    x, y = (x - x.mean()).to(y.dtype), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=torch.finfo(y.dtype).tiny), 0.0)
