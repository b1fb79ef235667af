"""A transformers.Trainer whose unit is the whole optimizer step; `step` says how one is taken."""

import contextlib
import copy
import logging
import time
from typing import Any

import torch
from torch import Tensor, nn
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
from robustpo_kit.policies import Policy, TokenTable, unwrap
from robustpo_kit.records import progress
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.generators import pack_generators, unpack_generators
from robustpo_kit.training.plan import step_rows
from robustpo_kit.training.ranks import (
    AnotherRankStarved,
    Exchange,
    HookedExchange,
    WrappedExchange,
    this_rank,
)
from robustpo_kit.training.resuming import ResumableTrainer
from robustpo_kit.training.scoring import Scorer, kernel_of, layout_of
from robustpo_kit.training.signals import Signals
from robustpo_kit.training.step import CutStep, ExactStep, NotFiniteError, StepResult
from robustpo_kit.training.step_objective import StepObjective

log = logging.getLogger(__name__)


class StepTrainer(ResumableTrainer):
    """A Trainer whose batches are whole optimizer steps, planned beforehand.

    It keeps what concerns a run: the plan, the rows of the history, smaller micro-batches when
    memory runs out. `exact_step` takes the steps.
    """

    def __init__(
        self,
        policy: Policy,
        tokens: TokenTable,
        signals: Signals,
        objective: StepObjective,
        config: TrainConfig,
        arguments: TrainingArguments,
        run: str,
    ):
        """Prepare a run.

        Args:
            policy: Is trained in place.
            tokens: N rows.
            signals: What is known of the same rows.
            objective: Its state moves with every step.
            config: Decides the plan.
            arguments: What transformers.Trainer is told, from `trainer_arguments`.
            run: Digest of what decides the run; a checkpoint of another one is refused.
        """
        self.policy, self.tokens, self.signals = policy, tokens, signals
        self.objective, self.config, self.run = objective, config, run
        self.plan = step_rows(len(tokens), config)
        self.history = []
        self.micro_limit = config.micro_batch_size
        if config.gradient_checkpointing:
            unwrap(policy.model).gradient_checkpointing_enable({"use_reentrant": False})
        self.scorer = Scorer(policy.model)
        super().__init__(self.scorer, arguments, train_dataset=range(len(self.plan)))
        self._refuse_wrappers()
        self.exact_step = ExactStep(
            tokens,
            signals,
            objective,
            self._exchange(),
            layout=layout_of(policy, config),
            kernel=kernel_of(policy, config),
            pad=policy.tokenizer.pad_token_id or 0,
            window=config.window,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_History(self))

    def _refuse_wrappers(self) -> None:
        """Raises KitError before the run for what FSDP and DeepSpeed cannot do here."""
        if self.is_deepspeed_enabled and self.config.checkpoint:
            raise KitError(
                "checkpoint: DeepSpeed writes pickles; leave it unset, or train under FSDP2 or "
                "torchrun"
            )
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage > 2:
            raise KitError(
                "DeepSpeed: ZeRO-3 shards weights; use accelerate/fsdp2.yaml, or zero_stage 2"
            )
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise KitError(
                "FSDP: version 1 is not supported; set fsdp_version: 2, as in accelerate/fsdp2.yaml"
            )
        if self.is_fsdp_enabled and self.policy.adapter_without_base:
            raise KitError(
                "FSDP2: this adapter's base lies in no file, so that the result could not be "
                "saved; save the policy before add_lora, and load it"
            )

    def _exchange(self) -> Exchange:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return HookedExchange(self.accelerator, deepspeed=self.is_deepspeed_enabled)
        return WrappedExchange(self.accelerator)

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
        naming step and rows where something is not finite.
        """
        self.started = time.perf_counter()
        model.train()
        number = place + 1
        try:
            result = self._step_in_memory(model, self.plan[place])
        except NotFiniteError as error:
            raise KitError(f"step {number}: {error}") from None
        self.row: dict[str, Any] = {"step": number, "loss": float(result.loss)}
        self.row |= {**result.metrics, "lr": self._get_learning_rate()}
        return result.loss

    def _step_in_memory(self, model: nn.Module, rows: list[int]) -> StepResult:
        """The step of `rows`, in micro-batches as small as memory needs."""
        while True:
            cut = self.exact_step.cut(rows, self.micro_limit)
            generators = pack_generators()
            state = copy.deepcopy(self.objective.state_dict())
            try:
                return self.exact_step.take(model, cut)
            except AnotherRankStarved:
                pass
            except (RuntimeError, MemoryError) as error:
                if not self._can_be_halved(cut, error):
                    raise
                with contextlib.suppress(AnotherRankStarved):
                    self.exact_step.exchange.agree_on_memory(starved=True)
            self.micro_limit = max(1, max(cut.sizes) // 2)
            log.warning("out of memory: micro-batches of %d prompts from here on", self.micro_limit)
            model.zero_grad(set_to_none=True)
            unpack_generators(generators)
            self.objective.load_state_dict(state)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _can_be_halved(self, cut: CutStep, error: BaseException) -> bool:
        """Whether a smaller micro-batch may mend the error."""
        if self.exact_step.exchange.hooks_reduce:
            return False
        return out_of_memory(error) and max(cut.sizes) > 1

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        self.row["grad_norm"] = float(grad_norm)
        return grad_norm

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
            control.should_save = due or state.global_step == len(trainer.plan)


def trainer_arguments(config: TrainConfig, folder: str, total: int) -> TrainingArguments:
    """What transformers.Trainer is told; everything about batches is the kit's own.

    Args:
        config: Of the run.
        folder: Where the Trainer may write; the kit's checkpoints go to `config.checkpoint`.
        total: Optimizer steps of the run.
    """
    schedule = config.schedule
    if schedule == "constant" and config.warmup:
        schedule = "constant_with_warmup"
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_steps=total,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=round(config.warmup * total),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed % 2**32,  # numpy takes no more
        data_seed=config.seed % 2**32,
        optim="adamw_torch",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # Buffers would be exchanged in the forward pass, which a rank without a row would miss.
        ddp_broadcast_buffers=False,
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
