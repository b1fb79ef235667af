"""A transformers.Trainer whose unit is the whole optimizer step; `step` says how one is taken."""

import contextlib
import copy
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from robustpo_kit.errors import KitError
from robustpo_kit.policies import unwrap
from robustpo_kit.records import progress
from robustpo_kit.training.generators import pack_generators, unpack_generators
from robustpo_kit.training.identity import Identity, RunInputs
from robustpo_kit.training.interrupts import Termination
from robustpo_kit.training.launching import refuse_wrappers
from robustpo_kit.training.memory import free_memory, out_of_memory
from robustpo_kit.training.plan import step_rows
from robustpo_kit.training.precision import optimizer_choice
from robustpo_kit.training.ranks import (
    AnotherRankStarved,
    Exchange,
    HookedExchange,
    on_any_rank,
    this_rank,
)
from robustpo_kit.training.resuming import ResumableTrainer
from robustpo_kit.training.scoring import Scorer, kernel_of, layout_of
from robustpo_kit.training.step import CutStep, ExactStep, NotFiniteError, StepResult

log = logging.getLogger(__name__)


class StepTrainer(ResumableTrainer):
    """A Trainer whose batches are whole optimizer steps, planned beforehand.

    It keeps what concerns a run: the plan, the rows of the history, smaller micro-batches when
    memory runs out. `exact_step` takes the steps.
    """

    def __init__(self, inputs: RunInputs, run: Identity):
        """Prepare a run.

        Args:
            inputs: With reference log-probs among the signals where the objective needs them; the
                objective's state moves with every step.
            run: What decides the run; a checkpoint of another one is refused.

        Raises:
            KitError: For what FSDP or DeepSpeed cannot do, and for weights whose updates would be
                lost to rounding.
        """
        policy, tokens, signals, objective, config, arguments = inputs
        self.policy, self.tokens, self.signals = policy, tokens, signals
        self.objective, self.config, self.run = objective, config, run
        self.plan = step_rows(len(tokens), config)
        self.history = []
        self.micro_limit, self.token_limit = config.micro_batch_size, config.tokens_per_pass
        if config.gradient_checkpointing:
            unwrap(policy.model).gradient_checkpointing_enable({"use_reentrant": False})
        self.scorer = Scorer(policy.model)
        self.termination, self.terminated = Termination(), False
        self.score_reference: Callable[..., Tensor] | None = None  # where it waits for the shards
        super().__init__(self.scorer, arguments, train_dataset=range(len(self.plan)))
        refuse_wrappers(self, policy, config)
        if not self.is_deepspeed_enabled:  # which keeps masters itself
            weights = [weight for _, weight in policy.trainable()]
            self.optimizer_cls_and_kwargs = optimizer_choice(weights, config, arguments)
        self.exact_step = ExactStep(
            tokens,
            signals,
            objective,
            self._exchange(),
            layout=layout_of(policy, config),
            kernel=kernel_of(policy, config, self.accelerator.device),
            pad=policy.tokenizer.pad_token_id or 0,
            window=config.window,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_History(self))

    def before_first_step(self) -> None:
        """Score the reference, where only the sharded weights can."""
        if self.score_reference is not None:
            reference = self.score_reference(through=self.model_wrapped)
            for module in self.model_wrapped.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # a pass without gradients leaves the last layers whole
            self.signals = self.exact_step.signals = self.signals.with_reference(reference)

    def _exchange(self) -> Exchange:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return HookedExchange(self.accelerator, deepspeed=self.is_deepspeed_enabled)
        return Exchange(self.accelerator.device)

    def create_accelerator_and_postprocess(self) -> None:
        """As a Trainer does, but without DDP: `Exchange` sums gradients, its buckets would idle."""
        super().create_accelerator_and_postprocess()
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
            self.accelerator.prepare_model = prepare_model

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item a step, its place in the plan; every rank sees all and takes its share."""
        numbers: Any = range(len(self.plan))  # a data set, to all that a DataLoader asks of one
        return DataLoader(numbers, batch_size=1, collate_fn=lambda items: {"step": items[0]})

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """What a Trainer calls for each item of `get_train_dataloader`."""
        del num_items_in_batch
        return self.take_step(model, inputs["step"])

    def take_step(self, model: nn.Module, place: int) -> Tensor:
        """Leave the gradient of the step at `place` in the plan in `grad`; returns its loss.

        Out of memory halves the micro-batch and takes the step again, on all ranks. Raises KitError
        naming step and rows where something is not finite, or where a smaller micro-batch does not
        help.
        """
        self.started = time.perf_counter()
        model.train()
        self.place = place
        try:
            self.result = self._step_in_memory(model, self.plan[place])
        except NotFiniteError as error:
            raise self._named(error) from None
        self.row: dict[str, Any] = {"step": place + 1, "loss": float(self.result.loss)}
        self.row |= {**self.result.metrics, "lr": self._get_learning_rate()}
        return self.result.loss

    def _named(self, error: NotFiniteError) -> NotFiniteError:
        """The error with its step."""
        return NotFiniteError(f"step {self.place + 1}: {error}", error.rows, error.logps)

    def _step_in_memory(self, model: nn.Module, rows: list[int]) -> StepResult:
        """The step of `rows`, in micro-batches as small as memory needs."""
        while True:
            cut = self.exact_step.cut(rows, self.micro_limit, self.token_limit)
            generators = pack_generators()
            state = copy.deepcopy(self.objective.state_dict())
            try:
                return self.exact_step.take(model, cut)
            except AnotherRankStarved:
                pass
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._refuse_to_halve(cut)
                with contextlib.suppress(AnotherRankStarved):
                    self.exact_step.exchange.agree_on_memory(starved=True)
            self._halve(cut)
            model.zero_grad(set_to_none=True)
            unpack_generators(generators)
            self.objective.load_state_dict(state)
            free_memory()

    def _halve(self, cut: CutStep) -> None:
        """Smaller micro-batches from here on, on every rank alike."""
        name, half = self._half(cut)
        if self.token_limit:
            self.token_limit = half
        else:
            self.micro_limit = half
        log.warning("out of memory: %s is %d from here on", name, half)

    def _half(self, cut: CutStep) -> tuple[str, int]:
        """The setting that makes a pass smaller: tokens, where those are limited, or prompts."""
        if not self.token_limit:
            return "micro_batch_size", max(cut.sizes) // 2
        several = [places for places in itertools.chain(*cut.shares) if len(places) > 1]
        layout = self.exact_step.layout
        sizes = [self.tokens.pass_tokens(cut.rows_at(places), layout) for places in several]
        return "tokens_per_pass", max(sizes) // 2

    def _refuse_to_halve(self, cut: CutStep) -> None:
        """Raises KitError where memory ran out and a smaller micro-batch here would not mend it."""
        size = max(cut.sizes)
        mend = "set gradient_checkpointing=true, or lower max_length"
        if size > 1:
            name, half = self._half(cut)
            mend = f"set {name}={half}, or gradient_checkpointing=true"
        step = f"step {self.place + 1}: out of memory"
        again = "and start again: the run goes on from its last checkpoint, if it has one"
        if self.exact_step.exchange.hooks_reduce:
            raise KitError(
                f"{step} with micro-batches of {size} prompts; ranks under FSDP2 and DeepSpeed "
                f"cannot take a step again; {mend}, {again}"
            )
        if size == 1:
            rows = [self.tokens.rows[number] for number in cut.rows]
            longest = max(rows, key=lambda row: row.tokens())
            raise KitError(
                f"{step} with one prompt at a time (the longest of the step is row "
                f"{longest.row_id}, {longest.tokens()} tokens); {mend}, {again}"
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        self.row["grad_norm"] = float(grad_norm)
        if not math.isfinite(self.row["grad_norm"]):  # before it reaches the weights
            rows = self.plan[self.place]
            error = self.exact_step.not_finite("the gradient is", rows, self.result.logps)
            raise self._named(error)
        return grad_norm

    def should_stop(self) -> bool:
        """Whether SIGTERM has asked any rank to end; every rank asks after every step."""
        self.terminated = on_any_rank(self.termination.requested, self.accelerator.device)
        return self.terminated

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: the history holds a row a step, `records.progress` shows where the run is."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        """Not counted: the objective divides by the step's size itself."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0


class _History(TrainerCallback):
    """Closes the step's row of the history, shows progress, asks for checkpoints."""

    def __init__(self, trainer: StepTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        left = len(self.trainer.plan) - state.global_step
        self.bar = iter(progress(range(left), self.trainer.objective.spec))
        if this_rank() != 0:
            self.bar = iter(())
        next(self.bar, None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        trainer = self.trainer
        trainer.row["seconds"] = round(time.perf_counter() - trainer.started, 4)
        trainer.history.append(trainer.row)
        next(self.bar, None)
        if trainer.config.checkpoint:
            due = state.global_step % trainer.config.checkpoint_every == 0
            over = trainer.should_stop()
            control.should_training_stop |= over
            control.should_save = due or over or state.global_step == len(trainer.plan)
