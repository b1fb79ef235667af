"""One exact optimizer step: the gradient of the one big batch, however the step is cut up.

Every objective sees the [B, K] log-probabilities of all prompts of a step, over every micro-batch
and rank. The step takes slope = d loss / d logps from it and backpropagates sum(slope * logps) a
micro-batch, so that gradient accumulation and several ranks give the gradient of the one big batch.
There are four ways, by what decides a sample's slope:

- `separable`: the sample alone; micro-batches are backpropagated one by one.
- `in_one_pass`: all samples, and each rank holds its own in one micro-batch.
- `online`: a log-sum-exp over samples; gradients of micro-batches are accumulated with a running
  weight, as an online softmax does.
- `in_two_passes`: all samples (target margins, KL terms, means of h); log-probs of every
  micro-batch first, gradients afterwards. FSDP2 and DeepSpeed take it for a log-sum-exp too, since
  their gradients are not at hand between micro-batches.

`by_micro_batch` is the authors' step, in which each micro-batch is a batch of its own: another
objective, for parity.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import TokenTable, collate
from robustpo_kit.training.generators import pack_generators, unpack_generators
from robustpo_kit.training.metrics import mean_of_rows, step_metrics
from robustpo_kit.training.plan import cut_rows
from robustpo_kit.training.ranks import Exchange, this_rank, world_size
from robustpo_kit.training.signals import Signals
from robustpo_kit.training.step_objective import StepObjective, StepValue


class NotFiniteError(KitError):
    """Something of a step is not finite; every rank raises it, with the whole step.

    Attributes:
        rows: Numbers of the step's rows.
        logps: [B, C], their log-probs.
    """

    def __init__(self, message: str, rows: list[int], logps: Tensor):
        super().__init__(message)
        self.rows, self.logps = rows, logps


class CutStep(NamedTuple):
    """An optimizer step, cut into micro-batches."""

    rows: list[int]  # numbers of the rows of the whole step, over all ranks
    shares: list[list[list[int]]]  # [rank][micro-batch] -> places in `rows`; as many on every rank

    @property
    def mine(self) -> list[list[int]]:
        """This rank's micro-batches; some may hold no place."""
        return self.shares[this_rank()]

    @property
    def sizes(self) -> list[int]:
        """Prompts of every micro-batch of every rank."""
        return [len(places) for places in itertools.chain.from_iterable(self.shares)]

    def rows_at(self, places: list[int]) -> list[int]:
        """The numbers of the rows at `places`."""
        return [self.rows[place] for place in places]


class StepResult(NamedTuple):
    """What is known of a step once its gradient is there."""

    loss: Tensor  # scalar, detached
    metrics: dict[str, float]
    logps: Tensor  # [B, C] of the whole step, detached


class ObjectiveGradient(NamedTuple):
    """The objective on some log-probs, and its derivative."""

    value: StepValue
    slope: Tensor  # d loss / d logps, shaped as the log-probs


@dataclasses.dataclass
class ExactStep:
    """Takes exact steps of one objective over one table of tokens; needs no trainer.

    Log-probs have C columns: the K responses and, where tokens are `mismatched`, one more.
    """

    tokens: TokenTable  # N rows
    signals: Signals  # of the same rows
    objective: StepObjective
    exchange: Exchange
    layout: str = "shared"  # as `policies.collate` takes it
    kernel: str = "sdpa"
    pad: int = 0  # token that fills up rows
    window: str = "step"  # "micro": the authors' step
    forward_passes: int = 0  # so far, on this rank

    def cut(self, rows: list[int], limit: int, tokens: int = 0) -> CutStep:
        """The step of `rows` in micro-batches of at most `limit` prompts, and of so many tokens."""
        table = [self.tokens.rows[number] for number in rows]
        shares = cut_rows(table, self.layout, limit, world_size(), tokens)
        return CutStep(rows, shares)

    def take(self, model: nn.Module, cut: CutStep) -> StepResult:
        """Leave the gradient of a whole step in the parameters' `grad`, the same on every rank.

        `grad` should be empty before: `online` scales what it finds there.

        Args:
            model: Maps a `policies.Batch` to log-probs [B, K]; accelerate may have wrapped it.
            cut: The step, from `cut`.

        Returns:
            The loss and the metrics of the whole step (in the authors' step, the metrics of this
            rank's part).

        Raises:
            NotFiniteError: Log-probs or the loss are not finite; names the rows.
            AnotherRankStarved: Another rank ran out of memory; the step should be taken again.
        """
        strategy = self._strategy(cut)
        result = strategy(self, model, cut)
        if not torch.isfinite(result.loss):
            raise self.not_finite("the loss is", cut.rows, result.logps)
        self.exchange.sum_gradients(model)
        return result

    def _strategy(self, cut: CutStep) -> "Strategy":
        if self.window == "micro":
            return by_micro_batch
        if self.objective.coupling == "separable":
            return separable
        if len(cut.mine) == 1:
            return in_one_pass
        if self.objective.coupling == "log_sum_exp" and not self.exchange.hooks_reduce:
            return online
        return in_two_passes

    def logps(self, model: nn.Module, cut: CutStep, places: list[int]) -> Tensor:
        """Log-probs [len(places), C] of a micro-batch."""
        if not places:
            return self._no_logps(model, cut)
        self.forward_passes += 1
        rows = [self.tokens.rows[number] for number in cut.rows_at(places)]
        batch = collate(rows, layout=self.layout, kernel=self.kernel, pad=self.pad)
        logps = model(batch.to(self.exchange.device))
        return nn.functional.pad(logps, (0, self.columns - logps.shape[1]))

    def _no_logps(self, model: nn.Module, cut: CutStep) -> Tensor:
        """Log-probs [0, C] of a rank without a row; hooks still wait for its passes."""
        if self.exchange.hooks_reduce:
            return self.logps(model, cut, [0])[:0]
        return torch.zeros(0, self.columns, device=self.exchange.device)

    def backward(self, logps: Tensor, slope: Tensor) -> None:
        """Add the gradient of sum(slope * logps)."""
        if logps.requires_grad:
            self.exchange.backward((logps * slope.to(logps.dtype)).sum())

    def blank_logps(self, cut: CutStep) -> Tensor:
        """Zeros [B, C], for the log-probs of a whole step."""
        return torch.zeros(len(cut.rows), self.columns, device=self.exchange.device)

    @property
    def columns(self) -> int:
        """C, the columns of log-probs."""
        return self.signals.lengths.shape[1] + self.tokens.mismatched

    def scores(self, logps: Tensor, rows: list[int]) -> tuple[Scores, Tensor | None]:
        """Scores and h of `rows` with their log-probs [B, C]; raises NotFiniteError naming rows."""
        self._check_finite(logps.detach(), rows)
        return self.signals.scores(logps, torch.tensor(rows), mismatched=self.tokens.mismatched)

    def objective_gradient(
        self, logps: Tensor, rows: list[int], *, training: bool = True
    ) -> ObjectiveGradient:
        """The objective on `rows` as one batch, and its slope in their log-probs [B, C].

        `training=False` leaves the objective's state as it is.
        """
        leaf = logps.detach().requires_grad_(True)
        scores, h = self.scores(leaf, rows)
        value = self.objective.step_loss(scores, h, training=training)
        (slope,) = torch.autograd.grad(value.loss, leaf)
        return ObjectiveGradient(value, slope)

    def part_gradient(
        self, logps: Tensor, rows: list[int], *, training: bool = True
    ) -> ObjectiveGradient | None:
        """As `objective_gradient`; None where log-probs are not finite.

        A part is on one rank alone, and the others would wait for a rank that raised: what is not
        finite is refused once the log-probs of the whole step are gathered, on all ranks.
        """
        if not bool(torch.isfinite(logps.detach()).all()):
            return None
        return self.objective_gradient(logps, rows, training=training)

    def result(self, logps: Tensor, rows: list[int], value: StepValue) -> StepResult:
        """Loss and metrics of `rows` from their log-probs [B, C] and the objective's value."""
        scores, _ = self.scores(logps.detach(), rows)
        metrics = step_metrics(scores, value, responses=self.objective.responses)
        return StepResult(value.loss.detach(), metrics, logps.detach())

    def _check_finite(self, logps: Tensor, rows: list[int]) -> None:
        finite = torch.isfinite(logps).all(dim=1).tolist()
        if not all(finite):
            spoilt = [row for row, is_finite in zip(rows, finite, strict=True) if not is_finite]
            raise self.not_finite("log-probs are", rows, logps, spoilt)

    def not_finite(
        self, what: str, rows: list[int], logps: Tensor, spoilt: list[int] | None = None
    ) -> NotFiniteError:
        """The error that names the spoilt rows of a step; default: any of them."""
        named = rows if spoilt is None else spoilt
        names = ", ".join(self.tokens.rows[number].row_id for number in named[:4])
        more = ", ..." if len(named) > 4 else ""
        return NotFiniteError(
            f"{what} not finite (rows {names}{more}); lower the learning rate or check these rows",
            rows,
            logps,
        )


Strategy = Callable[[ExactStep, nn.Module, CutStep], StepResult]


def separable(step: ExactStep, model: nn.Module, cut: CutStep) -> StepResult:
    """A sample's slope needs no other sample: one pass, a micro-batch at a time."""
    whole_logps = step.blank_logps(cut)
    for number, places in enumerate(cut.mine, start=1):
        with step.exchange.micro_batch(model, last=number == len(cut.mine)):
            logps = step.logps(model, cut, places)
            slope = torch.zeros_like(logps)
            if places:
                # The state moves once a step, below; the mean is over the step.
                part = step.part_gradient(logps, cut.rows_at(places), training=False)
                if part is not None:
                    slope = part.slope * (len(places) / len(cut.rows))
            step.backward(logps, slope)
            whole_logps[places] = logps.detach()
    step.exchange.gather(whole_logps)
    value = step.objective_gradient(whole_logps, cut.rows).value
    return step.result(whole_logps, cut.rows, value)


def in_one_pass(step: ExactStep, model: nn.Module, cut: CutStep) -> StepResult:
    """Every rank holds its samples in one micro-batch: log-probs, slopes, backward."""
    whole_logps = step.blank_logps(cut)
    (places,) = cut.mine
    with step.exchange.micro_batch(model, last=True):
        logps = step.logps(model, cut, places)
        whole_logps[places] = logps.detach()
        step.exchange.gather(whole_logps)
        value, slope = step.objective_gradient(whole_logps, cut.rows)
        step.backward(logps, slope[places])
    return step.result(whole_logps, cut.rows, value)


def online(step: ExactStep, model: nn.Module, cut: CutStep) -> StepResult:
    """The step is a log-sum-exp over samples: one pass, with weights that are known at its end.

    Each micro-batch is differentiated as a batch of its own and weighted by its share of
    exp(log mass) so far; the gradient of those before it is scaled down to theirs.
    """
    whole_logps = step.blank_logps(cut)
    log_mass = torch.tensor(-math.inf, device=step.exchange.device)
    for places in filter(None, cut.mine):
        with step.exchange.micro_batch(model, last=False):
            logps = step.logps(model, cut, places)
            whole_logps[places] = logps.detach()
            part = step.part_gradient(logps, cut.rows_at(places), training=False)  # as `separable`
            if part is None:
                continue
            part_mass = step.objective.log_mass(part.value.loss.detach(), len(places))
            new_mass = torch.logaddexp(log_mass, part_mass)
            scale_gradients(model, log_mass - new_mass)
            step.backward(logps, part.slope * (part_mass - new_mass).exp())
            log_mass = new_mass
    step.exchange.gather(whole_logps)
    value = step.objective_gradient(whole_logps, cut.rows).value
    if world_size() > 1:
        step_mass = step.objective.log_mass(value.loss.detach(), len(cut.rows))
        scale_gradients(model, log_mass - step_mass)
    return step.result(whole_logps, cut.rows, value)


def in_two_passes(step: ExactStep, model: nn.Module, cut: CutStep) -> StepResult:
    """Log-probs of all micro-batches without gradients, the step's slopes, then gradients."""
    whole_logps = step.blank_logps(cut)
    generators = []
    with torch.no_grad():
        for places in cut.mine:
            generators.append(pack_generators())
            whole_logps[places] = step.logps(model, cut, places)
    step.exchange.gather(whole_logps)
    value, slope = step.objective_gradient(whole_logps, cut.rows)
    for number, places in enumerate(cut.mine, start=1):
        # The second pass must drop what the first one dropped.
        unpack_generators(generators[number - 1])
        with step.exchange.micro_batch(model, last=number == len(cut.mine)):
            step.backward(step.logps(model, cut, places), slope[places])
    return step.result(whole_logps, cut.rows, value)


def by_micro_batch(step: ExactStep, model: nn.Module, cut: CutStep) -> StepResult:
    """Each micro-batch is its own batch; gradients are averaged over micro-batches and ranks."""
    share = 1 / sum(size > 0 for size in cut.sizes)
    whole_logps = step.blank_logps(cut)
    losses = torch.zeros(len(cut.sizes), device=step.exchange.device)
    parts = []
    for number, places in enumerate(cut.mine):
        with step.exchange.micro_batch(model, last=number + 1 == len(cut.mine)):
            logps = step.logps(model, cut, places)
            whole_logps[places] = logps.detach()
            slope, part = torch.zeros_like(logps), None
            if places:
                part = step.part_gradient(logps, cut.rows_at(places))
            if part is not None:
                slope = part.slope * share
                losses[this_rank() * len(cut.mine) + number] = part.value.loss.detach()
                parts.append((logps.detach(), cut.rows_at(places), part.value))
            step.backward(logps, slope)
    step.exchange.gather(whole_logps)
    step.scores(whole_logps, cut.rows)  # raises where they are not finite
    step.exchange.gather(losses)
    loss = losses[torch.tensor(cut.sizes) > 0].mean()
    metrics = [step.result(*part).metrics for part in parts]
    return StepResult(loss, mean_of_rows(metrics), whole_logps)


def scale_gradients(model: nn.Module, log_factor: Tensor) -> None:
    """Multiply the gradients so far by exp(`log_factor`)."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, float(log_factor.exp()))
