"""Training on a transformers.Trainer subclass whose unit is the whole optimizer step.

Every objective sees the [B, K] log-probabilities of all prompts of a step, over every micro-batch and rank; the trainer
takes d loss / d logps from it and backpropagates sum(g * logps) a micro-batch. So gradient accumulation and several
ranks give the gradient of the one big batch. Where the coupling is a log-sum-exp, gradients of micro-batches are
accumulated with a running weight, as an online softmax does; a second forward pass is taken only for other couplings
(target margins, KL terms, means of h) when the step has several micro-batches on a rank, and for every coupling under
FSDP2 and DeepSpeed, whose gradients are not at hand between micro-batches.
"""

import contextlib
import copy
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import Batch, Policy, TokenTable, collate, sequence_logps, unwrap
from robustpo_kit.records import progress, read_json, write_json
from robustpo_kit.training.checkpoints import (
    CHECKPOINTS_KEPT,
    checkpoint_folders,
    file_sha256,
    last_checkpoint,
    load_state,
    pack_rng,
    save_state,
    unpack_rng,
)
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.plan import micro_batches, step_rows
from robustpo_kit.training.ranks import AnotherRankStarved, barrier, this_rank, world_size
from robustpo_kit.training.reference import layout_of, log
from robustpo_kit.training.signals import Signals

GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


SCATTER = StateDictOptions(full_state_dict=True, strict=False)


class Scorer(nn.Module):
    """The policy as a module that maps a batch to [B, K] log-probs: what accelerate wraps."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._no_split_modules = (
            unwrap(model)._no_split_modules or []
        )  # the layers that FSDP2 shards one by one

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities [B, K]."""
        return sequence_logps(self.model, batch)


class StepTrainer(Trainer):
    """A Trainer whose batches are whole optimizer steps; the objective decides, the trainer never asks which one."""

    def __init__(
        self,
        policy: Policy,
        tokens: TokenTable,
        signals: Signals,
        objective: Any,
        config: TrainConfig,
        arguments: TrainingArguments,
        run: str,
    ):
        self.policy, self.tokens, self.signals, self.objective, self.config = (
            policy,
            tokens,
            signals,
            objective,
            config,
        )
        self.run = run
        self.plan = step_rows(len(tokens), config)
        self.layout = layout_of(policy, config)
        self.kernel = _kernel(policy, config)
        self.micro_limit = self._largest = config.micro_batch_size
        self.history: list[dict[str, Any]] = []
        self.forward_passes = 0
        self._dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in policy.model.modules())
        if config.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        super().__init__(Scorer(policy.model), arguments, train_dataset=range(len(self.plan)))
        self._refuse_wrappers()
        self.remove_callback(PrinterCallback)
        self.add_callback(_Rows(self))

    def _refuse_wrappers(self) -> None:
        """Raises KitError for what FSDP and DeepSpeed cannot do here, before the run and not after it."""
        if self.is_deepspeed_enabled and self.config.checkpoint:
            raise KitError(
                "checkpoint: DeepSpeed writes pickles; leave it unset, or train under FSDP2 or torchrun"
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
                "FSDP2: this adapter's base lies in no file, so that the result could not be saved; save the policy "
                "before add_lora, and load it"
            )

    def get_train_dataloader(self) -> DataLoader:
        """One item a step: its number. Every rank sees every step and takes its own share of it."""
        return DataLoader(range(len(self.plan)), batch_size=1, collate_fn=lambda items: items[0])

    def training_step(
        self, model: nn.Module, inputs: int, num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradients of the whole step `inputs`; out of memory halves the micro-batch and takes the step again."""
        del num_items_in_batch
        self._started = time.perf_counter()
        model.train()
        rows = self.plan[inputs]
        while True:
            before = (pack_rng(), copy.deepcopy(self.objective.state_dict()))
            try:
                loss, row = self._step(model, rows)
                break
            except AnotherRankStarved:
                pass
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or self._largest == 1 or self._wrapper_reduces:
                    raise
                with contextlib.suppress(AnotherRankStarved):
                    self._agree(starved=True)
            self.micro_limit = max(1, self._largest // 2)
            log.warning("out of memory: micro-batches of %d prompts from here on", self.micro_limit)
            model.zero_grad(set_to_none=True)
            unpack_rng(before[0])
            self.objective.load_state_dict(before[1])
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if not torch.isfinite(loss):
            raise self._not_finite("the loss is", rows)
        self._row = {
            "step": inputs + 1,
            "loss": float(loss),
            **row,
            "lr": self._get_learning_rate(),
        }
        return loss

    # -- one step

    def _step(self, model: nn.Module, rows: list[int]) -> tuple[Tensor, dict[str, float]]:
        sizes = [self.tokens.rows[i].tokens() for i in rows]
        shares = micro_batches(
            sizes, self.micro_limit, world_size(), balance=self.layout == "shared"
        )
        mine = shares[this_rank()]
        self._largest = max(len(places) for rank in shares for places in rank)
        if self.config.window == "micro":
            filled = sum(bool(places) for rank in shares for places in rank)
            return self._authors_step(model, rows, mine, 1 / filled)
        known = torch.zeros(len(rows), self._columns(), device=self.args.device)
        if self.objective.coupling == "separable":
            for i, places in enumerate(mine):
                with self._sync(model, i == len(mine) - 1):
                    known[places] = self._separable(model, rows, places)
            known = self._gather(known)
            result = self._whole(known, rows)[0]
        elif len(mine) == 1:
            with self._sync(model, True):
                logps = self._logps(model, rows, mine[0])
                known[mine[0]] = logps.detach()
                known = self._gather(known)
                result, slope = self._whole(known, rows)
                self._backward(logps, slope[mine[0]])
        elif self.objective.coupling == "log_sum_exp" and not self._wrapper_reduces:
            mass = self._online(model, rows, mine, known)
            known = self._gather(known)
            result = self._whole(known, rows)[0]
            if world_size() > 1:
                self._scale_gradients(
                    model, mass - self.objective.log_mass(result.loss.detach(), len(rows))
                )
        else:
            states = []
            with torch.no_grad():
                for places in mine:
                    states.append(pack_rng() if self._dropout else None)
                    known[places] = self._logps(model, rows, places)
            known = self._gather(known)
            result, slope = self._whole(known, rows)
            for i, places in enumerate(mine):
                if self._dropout:  # the second pass must drop what the first one dropped
                    unpack_rng(states[i])
                with self._sync(model, i == len(mine) - 1):
                    self._backward(self._logps(model, rows, places), slope[places])
        self._reduce(model)
        return result.loss.detach(), self._metrics(known, rows, result)

    def _whole(self, known: Tensor, rows: list[int]) -> tuple[Any, Tensor]:
        """The objective on the whole step: its result and d loss / d logps [B, columns]."""
        leaf = known.detach().requires_grad_(True)
        scores, h = self._scores(leaf, rows)
        result = self.objective.step_loss(scores, h, training=True)
        (slope,) = torch.autograd.grad(result.loss, leaf)
        return result, slope

    def _separable(self, model: nn.Module, rows: list[int], places: list[int]) -> Tensor:
        """Backward of one micro-batch whose gradient needs no other sample; a mean over the step all the same."""
        logps = self._logps(model, rows, places)
        if not places:
            self._backward(logps, torch.zeros_like(logps))
            return logps.detach()
        leaf = logps.detach().requires_grad_(True)
        scores, h = self._scores(leaf, [rows[i] for i in places])
        result = self.objective.step_loss(scores, h, training=False)
        (slope,) = torch.autograd.grad(result.loss, leaf)
        self._backward(logps, slope * (len(places) / len(rows)))
        return logps.detach()

    def _online(
        self, model: nn.Module, rows: list[int], mine: list[list[int]], known: Tensor
    ) -> Tensor:
        """Backward of this rank's micro-batches as one batch, in one pass; fills `known`, returns its log mass.

        Each micro-batch's gradient is weighted by its share of exp(log mass) so far; what came before is scaled down.
        """
        mass = torch.tensor(-math.inf, device=self.args.device)
        for places in filter(None, mine):
            with self._sync(model, False):
                logps = self._logps(model, rows, places)
                known[places] = logps.detach()
                result, slope = self._whole(logps, [rows[i] for i in places])
                part = self.objective.log_mass(result.loss.detach(), len(places))
                total = torch.logaddexp(mass, part)
                self._scale_gradients(model, mass - total)
                self._backward(logps, slope * (part - total).exp())
                mass = total
        return mass

    def _scale_gradients(self, model: nn.Module, log_factor: Tensor) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, float(log_factor.exp()))

    def _authors_step(
        self, model: nn.Module, rows: list[int], mine: list[list[int]], share: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Each micro-batch is its own batch, averaged over micro-batches and ranks: another objective, for parity."""
        losses, metrics = [], []
        for i, places in enumerate(mine):
            with self._sync(model, i == len(mine) - 1):
                logps = self._logps(model, rows, places)
                if not places:
                    self._backward(logps, torch.zeros_like(logps))
                    continue
                result, slope = self._whole(logps.detach(), [rows[j] for j in places])
                self._backward(logps, slope * share)
            losses.append(result.loss.detach())
            metrics.append(self._metrics(logps.detach(), [rows[j] for j in places], result))
        self._reduce(model)
        if not losses:  # a rank without a row in this step
            return torch.zeros((), device=self.args.device), {}
        mean = {key: sum(m[key] for m in metrics) / len(metrics) for key in metrics[0]}
        return torch.stack(losses).mean(), mean

    def _logps(self, model: nn.Module, rows: list[int], places: list[int]) -> Tensor:
        """Log-probs [len(places), columns] of a micro-batch."""
        chosen = [self.tokens.rows[rows[i]] for i in places]
        if not chosen:
            if (
                self._wrapper_reduces
            ):  # a rank without a row still takes part in the exchange of weights and gradients
                return self._logps(model, rows, [0])[:0]
            return torch.zeros(0, self._columns(), device=self.args.device)
        self.forward_passes += 1
        pad = self.policy.tokenizer.pad_token_id or 0
        batch = collate(chosen, layout=self.layout, kernel=self.kernel, pad=pad).to(
            self.args.device
        )
        logps = model(batch)
        return nn.functional.pad(logps, (0, self._columns() - logps.shape[1]))

    def _backward(self, logps: Tensor, slope: Tensor) -> None:
        if logps.requires_grad:
            scale = (
                world_size() if self._wrapper_reduces else 1
            )  # FSDP and DeepSpeed average over ranks
            self.accelerator.backward((logps * slope.to(logps.dtype)).sum() * scale)

    def _not_finite(self, what: str, rows: list[int]) -> KitError:
        names = ", ".join(self.tokens.rows[i].row_id for i in rows[:4]) + (
            ", ..." if len(rows) > 4 else ""
        )
        return KitError(
            f"step {self.state.global_step + 1}: {what} not finite (rows {names}); lower the learning rate or check "
            "these rows"
        )

    def _scores(self, logps: Tensor, rows: list[int]) -> tuple[Scores, Tensor | None]:
        finite = torch.isfinite(logps.detach()).all(dim=1)
        if not finite.all():
            spoilt = [row for row, good in zip(rows, finite.tolist(), strict=True) if not good]
            raise self._not_finite("log-probs are", spoilt)
        return self.signals.scores(logps, torch.tensor(rows), mismatched=self.tokens.mismatched)

    def _columns(self) -> int:
        return self.signals.lengths.shape[1] + self.tokens.mismatched

    # -- several ranks

    @property
    def _wrapper_reduces(self) -> bool:
        """Whether gradients are reduced by FSDP's or DeepSpeed's own hooks; otherwise by `_reduce`, exactly once."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _sync(self, model: nn.Module, last: bool) -> Any:
        """Gradients are reduced in the backward pass only where the wrapper does it, and at the last micro-batch."""
        if (
            self.is_deepspeed_enabled
        ):  # it takes its optimizer step inside the backward pass, unless told to wait
            self.accelerator.gradient_state._set_sync_gradients(last)
            return contextlib.nullcontext()
        if self._wrapper_reduces and last:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(model) if world_size() > 1 else contextlib.nullcontext()

    def _gather(self, known: Tensor) -> Tensor:
        """Log-probs of the whole step: each rank fills in its places, the rest is zero."""
        if world_size() > 1:
            self._agree()
            dist.all_reduce(known)
        return known

    def _agree(self, *, starved: bool = False) -> None:
        """Before ranks exchange anything: raises on all of them where one has run out of memory."""
        if world_size() == 1 or self._wrapper_reduces:  # their hooks have exchanged tensors already
            return
        votes = torch.tensor(float(starved), device=self.args.device)
        dist.all_reduce(votes)
        if votes.item():
            raise AnotherRankStarved

    def _reduce(self, model: nn.Module) -> None:
        """Sum the gradients over ranks: the objective already divided by the whole step's size."""
        if world_size() == 1 or self._wrapper_reduces:
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._agree()
        for parameter in trained:
            dist.all_reduce(parameter.grad)

    # -- metrics

    def _metrics(self, known: Tensor, rows: list[int], result: Any) -> dict[str, float]:
        """One flat row of means over the step's samples."""
        scores, _ = self._scores(known.detach(), rows)
        share = result.weights.detach().abs()
        share = share / share.sum().clamp_min(1e-30)
        row = {
            "ess": float(1 / share.square().sum().clamp_min(1e-30)),
            "max_weight": float(share.max()),
        }
        gain = scores.logps if scores.ref_logps is None else scores.logps - scores.ref_logps
        row["chosen_shift" if scores.ref_logps is not None else "chosen_logp"] = float(
            gain[:, 0].mean()
        )
        if gain.shape[1] > 1:
            others = (
                torch.ones_like(gain[:, 1:], dtype=torch.bool)
                if scores.mask is None
                else scores.mask[:, 1:]
            )
            margin = gain[:, 0] - (gain[:, 1:] * others).sum(1) / others.sum(1)
            row |= {"margin": float(margin.mean()), "accuracy": float((margin > 0).float().mean())}
        return row | {key: float(value) for key, value in result.metrics.items()}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        self._row["grad_norm"] = float(grad_norm)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: the history holds a row a step, and `records.progress` shows where the run is."""

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        """Not counted: the objective divides by the step's size itself."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    # -- checkpoints: safetensors and JSON, complete or absent

    def resume(self) -> str | None:
        """The last complete checkpoint of this run; raises KitError where the folder holds another run's."""
        if not self.config.checkpoint:
            return None
        folder = last_checkpoint(Path(self.config.checkpoint))
        if folder is None:
            return None
        about = read_json(folder / "checkpoint.json")
        if about["layout"] != self._ranks():
            raise KitError(
                f"{paths.show(folder.parent)}: written by {about['layout']}, and this is {self._ranks()}; resume it "
                "as it was started, or choose another folder"
            )
        if about["run"] != self.run:
            raise KitError(
                f"{paths.show(folder.parent)}: holds checkpoints of another run (data, model, objective or config "
                "differ); choose another folder or delete it"
            )
        self.history = read_json(folder / "history.json")
        self.micro_limit = about["micro_limit"]
        state = load_state(folder / f"rank{this_rank()}")
        self.objective.load_state_dict(state["objective"])
        return str(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        del trial
        root = Path(self.config.checkpoint)
        folder = root / f"checkpoint-{self.state.global_step}"
        temporary = root / f".{folder.name}.tmp"
        if this_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        save_state(
            temporary / f"rank{this_rank()}",
            {"rng": pack_rng(), "objective": self.objective.state_dict()},
        )
        weights, optimizer = self._whole_state(model)
        if this_rank() == 0:
            save_file(weights, temporary / "trainable.safetensors")
            save_state(temporary / "optimizer", optimizer)
            write_json(temporary / "scheduler.json", self.lr_scheduler.state_dict())
            write_json(temporary / "history.json", self.history)
            self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
        barrier()
        if this_rank() == 0:
            files = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
            about = {
                "run": self.run,
                "layout": self._ranks(),
                "micro_limit": self.micro_limit,
                "files": files,
            }
            write_json(temporary / "checkpoint.json", about)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            for old in checkpoint_folders(root)[:-CHECKPOINTS_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        barrier()

    def _ranks(self) -> str:
        """How the state of a checkpoint is cut up."""
        return f"{world_size()} rank(s){' under FSDP2' if self.is_fsdp_enabled else ''}"

    def _whole_state(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Trainable weights and optimizer state, gathered from all ranks where FSDP2 has sharded them."""
        if self.is_fsdp_enabled:
            weights, optimizer = get_state_dict(model, self.optimizer.optimizer, options=GATHER)
            trained = {name for name, _ in self._trainable(model)}
            return {
                name: value.contiguous() for name, value in weights.items() if name in trained
            }, optimizer
        weights = {name: p.detach().cpu().contiguous() for name, p in self._trainable(model)}
        return weights, self.optimizer.state_dict()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        weights = load_file(Path(resume_from_checkpoint) / "trainable.safetensors")
        if self.is_fsdp_enabled:
            set_model_state_dict(model, weights, options=SCATTER)
            return
        with torch.no_grad():
            for name, parameter in self._trainable(model or self.model):
                parameter.copy_(weights[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = load_state(Path(checkpoint) / "optimizer")
            if self.is_fsdp_enabled:
                set_optimizer_state_dict(
                    self.model_wrapped, self.optimizer.optimizer, state, options=SCATTER
                )
            else:
                self.optimizer.load_state_dict(state)
            self.lr_scheduler.load_state_dict(read_json(Path(checkpoint) / "scheduler.json"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            unpack_rng(load_state(Path(checkpoint) / f"rank{this_rank()}")["rng"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """No scaler: bf16 and fp32 need none."""

    def _trainable(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        core = self.accelerator.unwrap_model(model)
        return [(name, p) for name, p in core.named_parameters() if p.requires_grad]


class _Rows(TrainerCallback):
    """Closes the step's row of the history, shows progress, asks for checkpoints."""

    def __init__(self, trainer: StepTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        left = len(self.trainer.plan) - state.global_step
        self.bar = (
            progress(range(left), self.trainer.objective.spec) if this_rank() == 0 else iter(())
        )
        next(self.bar, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        trainer._row["seconds"] = round(time.perf_counter() - trainer._started, 4)
        trainer.history.append(trainer._row)
        next(self.bar, None)
        if trainer.config.checkpoint:
            due = state.global_step % trainer.config.checkpoint_every == 0
            control.should_save = due or state.global_step == len(trainer.plan)


def trainer_arguments(config: TrainConfig, folder: str, total: int) -> TrainingArguments:
    """What transformers.Trainer is told; everything about batches is the kit's own."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_steps=total,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup"
        if config.schedule == "constant" and config.warmup
        else config.schedule,
        warmup_steps=round(config.warmup * total),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        data_seed=config.seed,
        optim="adamw_torch",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # an exchange in the forward pass, which a rank without a row would miss
    )


def _kernel(policy: Policy, config: TrainConfig) -> str:
    if config.kernel != "auto":
        return config.kernel
    return "flex" if policy.device.type == "cuda" else "sdpa"


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
