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
import dataclasses
import hashlib
import json
import logging
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
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
from robustpo_kit.data import PreferenceSet
from robustpo_kit.logprobs import Batch, TokenRow, TokenTable, collate, sequence_logps, tokenize, unwrap
from robustpo_kit.losses import Scores
from robustpo_kit.policies import Policy
from robustpo_kit.records import KitError, RunRecord, atomic_write, progress, provenance, read_json, write_json

CHECKPOINTS_KEPT = 2
SCORING_TOKENS = 2048  # tokens a row when scoring without gradients
GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
SCATTER = StateDictOptions(full_state_dict=True, strict=False)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. Sizes count prompts; `batch_size` is the whole step, over all micro-batches and ranks."""

    batch_size: int = 16
    micro_batch_size: int = 16  # a forward pass on one rank; halved when memory runs out, the step stays exact
    epochs: int = 1
    max_steps: int = 0  # 0: as many as the epochs need
    learning_rate: float = 5e-4
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    window: str = "step"  # step: the objective sees the whole step | micro: each micro-batch alone, as the authors do
    layout: str = "shared"  # shared: a prompt is computed once | separate: once a response
    kernel: str = "auto"  # attention of shared rows: sdpa | flex (GPU) | auto
    max_length: int = 1024  # tokens of prompt + response
    max_response: int | None = None  # default: half of max_length
    gradient_checkpointing: bool = False
    checkpoint: str | None = None  # folder; None: no checkpoints
    checkpoint_every: int = 20  # steps
    reference_cache: str | None = None  # folder of reference log-probs; None: the kit's cache

    def __post_init__(self) -> None:
        for name, allowed in (
            ("schedule", ("cosine", "linear", "constant")),
            ("window", ("step", "micro")),
            ("layout", ("shared", "separate")),
            ("kernel", ("auto", "sdpa", "flex")),
        ):
            if getattr(self, name) not in allowed:
                raise KitError(f"{name}: {getattr(self, name)!r} should be one of {', '.join(allowed)}")
        for name in ("batch_size", "micro_batch_size", "epochs", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise KitError(f"{name}: {getattr(self, name)} should be at least 1")


def train(policy: Policy, dataset: PreferenceSet, objective: Any, config: TrainConfig) -> RunRecord:
    """Train `policy` in place on `dataset` by `objective` (objectives.build); resumes from `config.checkpoint`.

    Raises KitError naming the row whose responses, rewards or h do not fit the objective, and the step whose loss is
    not finite.
    """
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(policy, dataset, objective, config, config.checkpoint or scratch)
        trainer.train(resume_from_checkpoint=trainer.resume())
    return _record(trainer, started)


def step_gradient(policy: Policy, dataset: PreferenceSet, objective: Any, config: TrainConfig) -> Tensor:
    """Gradient [P] (fp32, on the CPU) that the first optimizer step would take; the weights stay as they are.

    Errors as `train`. For studies of what cutting a step into micro-batches does to it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(policy, dataset, objective, dataclasses.replace(config, checkpoint=None), scratch)
        trainer.create_optimizer_and_scheduler(1)
        trainer.training_step(trainer.model, 0)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in policy.trainable()]
    flat = torch.cat([gradient.float().cpu().flatten() for gradient in gradients])
    policy.model.zero_grad(set_to_none=True)
    return flat


def prepare(policy: Policy, dataset: PreferenceSet, objective: Any, config: TrainConfig, folder: str) -> "StepTrainer":
    """The trainer of a run before its first step: rows checked, tokens, reference log-probs."""
    rows = _fit(dataset, objective)
    tokens = tokenize(
        rows,
        policy.tokenizer,
        policy.template,
        max_length=config.max_length,
        max_response=config.max_response,
        mismatched=objective.needs_kl,
    )
    run = _digest(tokens, policy, objective, config)
    arguments = _arguments(config, folder, steps(len(tokens), config))
    reference = None
    if objective.needs_reference:
        cache = Path(config.reference_cache or paths.CACHE / "reference")
        reference = reference_logps(policy, tokens, config=config, cache=cache)
    signals = Signals.of(rows, tokens, reference)
    return StepTrainer(policy, tokens, signals, objective, config, arguments, run)


# --- what a step consists of ------------------------------------------------------------------------------------------


def _fit(dataset: PreferenceSet, objective: Any) -> PreferenceSet:
    """The rows as the objective takes them; raises KitError naming a row that does not fit."""
    if len(dataset) == 0:
        raise KitError("training: the preference set has no rows")
    for row in dataset:
        k = len(row.responses)
        if objective.responses == "pair" and k != 2:
            raise KitError(f"row {row.row_id}: {objective.spec} takes pairs, this row has {k} responses; use .pairs()")
        if objective.responses == "list" and k < 2:
            raise KitError(f"row {row.row_id}: {objective.spec} takes at least 2 responses, this row has {k}")
        if objective.responses == "one" and row.golden is None:
            raise KitError(f"row {row.row_id}: {objective.spec} trains on the golden response, but 'golden' is not set")
        if objective.needs_rewards and row.rewards is None:
            raise KitError(f"row {row.row_id}: {objective.spec} needs rewards; add them with .with_rewards(array)")
        if objective.needs_h and row.h is None:
            raise KitError(
                f"row {row.row_id}: {objective.spec} needs h (calibration factor); add it with .with_h(array)"
            )
    if objective.responses != "one":
        return dataset
    golden = [
        dataclasses.replace(
            row, responses=(row.responses[row.golden],), sources=(row.sources[row.golden],), rewards=None, golden=0
        )
        for row in dataset
    ]
    return PreferenceSet(golden)


class Signals(NamedTuple):
    """What is known of every row before training; K is the largest number of responses."""

    ref_logps: Tensor | None  # [N, K]
    kl_ref_logps: Tensor | None  # [N]
    lengths: Tensor  # [N, K]
    mask: Tensor | None  # [N, K], None where every column is real
    rewards: Tensor | None  # [N, K]
    h: Tensor | None  # [N]

    @classmethod
    def of(cls, rows: PreferenceSet, tokens: TokenTable, reference: Tensor | None) -> "Signals":
        """Signals of a preference set; `reference` [N, K (+ 1 for the mismatched pair)]."""
        k = max(len(row.responses) for row in rows)
        lengths = torch.tensor([(r.lengths() + [0] * k)[:k] for r in tokens.rows])
        rewards = [row.rewards for row in rows]
        return cls(
            None if reference is None else reference[:, :k],
            reference[:, k] if reference is not None and tokens.mismatched else None,
            lengths,
            None if bool((lengths > 0).all()) else lengths > 0,
            None if None in rewards else torch.tensor([[*r, *[0.0] * (k - len(r))] for r in rewards]),
            None if any(row.h is None for row in rows) else torch.tensor([row.h for row in rows]),
        )

    def scores(self, logps: Tensor, index: Tensor, *, mismatched: bool) -> tuple[Scores, Tensor | None]:
        """Scores and h of the rows `index`; a mismatched pair's log-prob is the last column of `logps`."""
        device = logps.device
        pick = lambda value: None if value is None else value[index].to(device)  # noqa: E731
        k = self.lengths.shape[1]
        scores = Scores(
            logps[:, :k],
            pick(self.ref_logps),
            pick(self.lengths),
            pick(self.rewards),
            pick(self.mask),
            logps[:, k].detach() if mismatched else None,
            pick(self.kl_ref_logps),
        )
        return scores, pick(self.h)


def steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a run; the last step of an epoch may be smaller, none is dropped."""
    total = config.epochs * -(-rows // config.batch_size)
    return min(total, config.max_steps) if config.max_steps else total


def step_rows(rows: int, config: TrainConfig) -> list[list[int]]:
    """The rows of every optimizer step: a fresh shuffle an epoch, from the seed alone."""
    plan = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(rows, generator=generator).tolist()
        plan.extend(order[at : at + config.batch_size] for at in range(0, rows, config.batch_size))
    return plan[: steps(rows, config)]


def micro_batches(sizes: Sequence[int], limit: int, world: int, *, balance: bool) -> list[list[list[int]]]:
    """Places 0..n-1 of a step, of `sizes` tokens each, as [rank][micro-batch] -> places; as many on every rank.

    `balance` evens out tokens (packed rows have no padding); otherwise neighbours in length go together.
    """
    n = len(sizes)
    per_rank = -(-n // (limit * world))
    count = per_rank * world
    order = sorted(range(n), key=lambda i: (-sizes[i], i))
    cap = -(-n // count)
    if balance:
        bins, loads = [[] for _ in range(count)], [0] * count
        for i in order:
            lightest = min((b for b in range(count) if len(bins[b]) < cap), key=lambda b: (loads[b], b))
            bins[lightest].append(i)
            loads[lightest] += sizes[i]
    else:
        bins = [order[at : at + cap] for at in range(0, count * cap, cap)]
    return [bins[rank * per_rank : (rank + 1) * per_rank] for rank in range(world)]


# --- reference --------------------------------------------------------------------------------------------------------


def response_logps(
    model: nn.Module, tokens: TokenTable, *, layout: str = "shared", budget: int = SCORING_TOKENS
) -> Tensor:
    """Log-probabilities [N, K] of every response without gradients, on the CPU; rows are split over the ranks."""
    k = max(len(row.responses) for row in tokens.rows)
    out = torch.zeros(len(tokens), k)
    order = sorted(range(len(tokens)), key=lambda i: tokens.rows[i].tokens())
    groups, size = [[]], 0
    for i in order[_rank() :: _world()]:
        if groups[-1] and size + tokens.rows[i].tokens() > budget:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += tokens.rows[i].tokens()
    device = next(model.parameters()).device
    with torch.no_grad():
        for group in progress([g for g in groups if g], "scoring"):
            batch = collate([tokens.rows[i] for i in group], layout=layout).to(device)
            out[group, : batch.lengths.shape[1]] = sequence_logps(model, batch).cpu()
    if _world() > 1:
        moved = out.to(device)
        dist.all_reduce(moved)
        out = moved.cpu()
    return out


def score(policy: Policy, dataset: PreferenceSet, config: TrainConfig | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and lengths [N, K] of a preference set's responses under the policy as it is."""
    config = config or TrainConfig()
    tokens = tokenize(
        dataset, policy.tokenizer, policy.template, max_length=config.max_length, max_response=config.max_response
    )
    training = policy.model.training
    policy.model.eval()
    logps = response_logps(policy.model, tokens, layout=_layout(policy, config))
    policy.model.train(training)
    return logps, Signals.of(dataset, tokens, None).lengths


def reference_logps(policy: Policy, tokens: TokenTable, *, config: TrainConfig, cache: Path | None) -> Tensor:
    """Reference log-probs [N, K] with the adapter disabled, from `cache` where rows, template, tokenizer, model agree.

    A file that is truncated, tampered with or of other inputs is noticed by its checksum and rebuilt.
    """
    key = hashlib.sha256(
        json.dumps(
            [
                tokens.digest(),
                dataclasses.asdict(policy.template),
                type(policy.tokenizer).__name__,
                len(policy.tokenizer),
                policy.fingerprint(),
            ]
        ).encode()
    ).hexdigest()
    path = None if cache is None else Path(cache) / f"{key[:24]}.safetensors"
    found = _read_cache(path, key) if path is not None else None
    hit = torch.tensor(float(found is not None), device=policy.device)
    if _world() > 1:
        dist.all_reduce(hit, op=dist.ReduceOp.MIN)
    if hit.item():
        return found
    layout = _layout(policy, config)
    if policy.has_adapter:
        with policy.reference() as model:
            logps = response_logps(model, tokens, layout=layout)
    else:
        policy.model.eval()
        logps = response_logps(policy.model, tokens, layout=layout)
    if path is not None and _rank() == 0:
        with atomic_write(path) as temporary:
            save_file({"logps": logps}, temporary, metadata={"key": key, "sha256": _sha256(logps)})
    return logps


def _read_cache(path: Path, key: str) -> Tensor | None:
    """The cached tensor, or None where the file is missing, damaged or of other inputs."""
    from safetensors import safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, logps = file.metadata() or {}, file.get_tensor("logps")
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("reference cache %s: damaged (%s); rebuilding", path.name, type(error).__name__)
        return None
    if metadata.get("key") != key or metadata.get("sha256") != _sha256(logps):
        log.warning("reference cache %s: stale or altered; rebuilding", path.name)
        return None
    return logps


def _sha256(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()


# --- the trainer ------------------------------------------------------------------------------------------------------


class Scorer(nn.Module):
    """The policy as a module that maps a batch to [B, K] log-probs: what accelerate wraps."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._no_split_modules = unwrap(model)._no_split_modules or []  # the layers that FSDP2 shards one by one

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
        self.policy, self.tokens, self.signals, self.objective, self.config = policy, tokens, signals, objective, config
        self.run = run
        self.plan = step_rows(len(tokens), config)
        self.layout = _layout(policy, config)
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
            raise KitError("checkpoint: DeepSpeed writes pickles; leave it unset, or train under FSDP2 or torchrun")
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage > 2:
            raise KitError("DeepSpeed: ZeRO-3 shards weights; use accelerate/fsdp2.yaml, or zero_stage 2")
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise KitError("FSDP: version 1 is not supported; set fsdp_version: 2, as in accelerate/fsdp2.yaml")
        if self.is_fsdp_enabled and self.policy.adapter_without_base:
            raise KitError(
                "FSDP2: this adapter's base lies in no file, so that the result could not be saved; save the policy "
                "before add_lora, and load it"
            )

    def get_train_dataloader(self) -> DataLoader:
        """One item a step: its number. Every rank sees every step and takes its own share of it."""
        return DataLoader(range(len(self.plan)), batch_size=1, collate_fn=lambda items: items[0])

    def training_step(self, model: nn.Module, inputs: int, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of the whole step `inputs`; out of memory halves the micro-batch and takes the step again."""
        del num_items_in_batch
        self._started = time.perf_counter()
        model.train()
        rows = self.plan[inputs]
        while True:
            before = (_pack_rng(), copy.deepcopy(self.objective.state_dict()))
            try:
                loss, row = self._step(model, rows)
                break
            except _AnotherRankStarved:
                pass
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or self._largest == 1 or self._wrapper_reduces:
                    raise
                with contextlib.suppress(_AnotherRankStarved):
                    self._agree(starved=True)
            self.micro_limit = max(1, self._largest // 2)
            log.warning("out of memory: micro-batches of %d prompts from here on", self.micro_limit)
            model.zero_grad(set_to_none=True)
            _unpack_rng(before[0])
            self.objective.load_state_dict(before[1])
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if not torch.isfinite(loss):
            raise self._not_finite("the loss is", rows)
        self._row = {"step": inputs + 1, "loss": float(loss), **row, "lr": self._get_learning_rate()}
        return loss

    # -- one step

    def _step(self, model: nn.Module, rows: list[int]) -> tuple[Tensor, dict[str, float]]:
        sizes = [self.tokens.rows[i].tokens() for i in rows]
        shares = micro_batches(sizes, self.micro_limit, _world(), balance=self.layout == "shared")
        mine = shares[_rank()]
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
            if _world() > 1:
                self._scale_gradients(model, mass - self.objective.log_mass(result.loss.detach(), len(rows)))
        else:
            states = []
            with torch.no_grad():
                for places in mine:
                    states.append(_pack_rng() if self._dropout else None)
                    known[places] = self._logps(model, rows, places)
            known = self._gather(known)
            result, slope = self._whole(known, rows)
            for i, places in enumerate(mine):
                if self._dropout:  # the second pass must drop what the first one dropped
                    _unpack_rng(states[i])
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

    def _online(self, model: nn.Module, rows: list[int], mine: list[list[int]], known: Tensor) -> Tensor:
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
            if self._wrapper_reduces:  # a rank without a row still takes part in the exchange of weights and gradients
                return self._logps(model, rows, [0])[:0]
            return torch.zeros(0, self._columns(), device=self.args.device)
        self.forward_passes += 1
        pad = self.policy.tokenizer.pad_token_id or 0
        batch = collate(chosen, layout=self.layout, kernel=self.kernel, pad=pad).to(self.args.device)
        logps = model(batch)
        return nn.functional.pad(logps, (0, self._columns() - logps.shape[1]))

    def _backward(self, logps: Tensor, slope: Tensor) -> None:
        if logps.requires_grad:
            scale = _world() if self._wrapper_reduces else 1  # FSDP and DeepSpeed average over ranks
            self.accelerator.backward((logps * slope.to(logps.dtype)).sum() * scale)

    def _not_finite(self, what: str, rows: list[int]) -> KitError:
        names = ", ".join(self.tokens.rows[i].row_id for i in rows[:4]) + (", ..." if len(rows) > 4 else "")
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
        if self.is_deepspeed_enabled:  # it takes its optimizer step inside the backward pass, unless told to wait
            self.accelerator.gradient_state._set_sync_gradients(last)
            return contextlib.nullcontext()
        if self._wrapper_reduces and last:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(model) if _world() > 1 else contextlib.nullcontext()

    def _gather(self, known: Tensor) -> Tensor:
        """Log-probs of the whole step: each rank fills in its places, the rest is zero."""
        if _world() > 1:
            self._agree()
            dist.all_reduce(known)
        return known

    def _agree(self, *, starved: bool = False) -> None:
        """Before ranks exchange anything: raises on all of them where one has run out of memory."""
        if _world() == 1 or self._wrapper_reduces:  # their hooks have exchanged tensors already
            return
        votes = torch.tensor(float(starved), device=self.args.device)
        dist.all_reduce(votes)
        if votes.item():
            raise _AnotherRankStarved

    def _reduce(self, model: nn.Module) -> None:
        """Sum the gradients over ranks: the objective already divided by the whole step's size."""
        if _world() == 1 or self._wrapper_reduces:
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
        row = {"ess": float(1 / share.square().sum().clamp_min(1e-30)), "max_weight": float(share.max())}
        gain = scores.logps if scores.ref_logps is None else scores.logps - scores.ref_logps
        row["chosen_shift" if scores.ref_logps is not None else "chosen_logp"] = float(gain[:, 0].mean())
        if gain.shape[1] > 1:
            others = torch.ones_like(gain[:, 1:], dtype=torch.bool) if scores.mask is None else scores.mask[:, 1:]
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
        state = load_state(folder / f"rank{_rank()}")
        self.objective.load_state_dict(state["objective"])
        return str(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        del trial
        root = Path(self.config.checkpoint)
        folder = root / f"checkpoint-{self.state.global_step}"
        temporary = root / f".{folder.name}.tmp"
        if _rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        _barrier()
        save_state(temporary / f"rank{_rank()}", {"rng": _pack_rng(), "objective": self.objective.state_dict()})
        weights, optimizer = self._whole_state(model)
        if _rank() == 0:
            save_file(weights, temporary / "trainable.safetensors")
            save_state(temporary / "optimizer", optimizer)
            write_json(temporary / "scheduler.json", self.lr_scheduler.state_dict())
            write_json(temporary / "history.json", self.history)
            self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
        _barrier()
        if _rank() == 0:
            files = {path.name: _file_sha256(path) for path in sorted(temporary.iterdir())}
            about = {"run": self.run, "layout": self._ranks(), "micro_limit": self.micro_limit, "files": files}
            write_json(temporary / "checkpoint.json", about)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            for old in _checkpoints(root)[:-CHECKPOINTS_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        _barrier()

    def _ranks(self) -> str:
        """How the state of a checkpoint is cut up."""
        return f"{_world()} rank(s){' under FSDP2' if self.is_fsdp_enabled else ''}"

    def _whole_state(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Trainable weights and optimizer state, gathered from all ranks where FSDP2 has sharded them."""
        if self.is_fsdp_enabled:
            weights, optimizer = get_state_dict(model, self.optimizer.optimizer, options=GATHER)
            trained = {name for name, _ in self._trainable(model)}
            return {name: value.contiguous() for name, value in weights.items() if name in trained}, optimizer
        weights = {name: p.detach().cpu().contiguous() for name, p in self._trainable(model)}
        return weights, self.optimizer.state_dict()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
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
                set_optimizer_state_dict(self.model_wrapped, self.optimizer.optimizer, state, options=SCATTER)
            else:
                self.optimizer.load_state_dict(state)
            self.lr_scheduler.load_state_dict(read_json(Path(checkpoint) / "scheduler.json"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            _unpack_rng(load_state(Path(checkpoint) / f"rank{_rank()}")["rng"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """No scaler: bf16 and fp32 need none."""

    def _trainable(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        core = self.accelerator.unwrap_model(model)
        return [(name, p) for name, p in core.named_parameters() if p.requires_grad]


class _AnotherRankStarved(Exception):
    """A rank ran out of memory, so that every rank takes the step again."""


class _Rows(TrainerCallback):
    """Closes the step's row of the history, shows progress, asks for checkpoints."""

    def __init__(self, trainer: StepTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        left = len(self.trainer.plan) - state.global_step
        self.bar = progress(range(left), self.trainer.objective.spec) if _rank() == 0 else iter(())
        next(self.bar, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        trainer._row["seconds"] = round(time.perf_counter() - trainer._started, 4)
        trainer.history.append(trainer._row)
        next(self.bar, None)
        if trainer.config.checkpoint:
            due = state.global_step % trainer.config.checkpoint_every == 0
            control.should_save = due or state.global_step == len(trainer.plan)


def _arguments(config: TrainConfig, folder: str, total: int) -> TrainingArguments:
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


def _record(trainer: StepTrainer, started: float) -> RunRecord:
    """Config, versions, seed, time and the means of the last tenth of the steps."""
    tokens, objective, config = trainer.tokens, trainer.objective, trainer.config
    about = provenance(dataclasses.asdict(config), config.seed, started)
    history = trainer.history
    tail = history[-max(1, len(history) // 10) :]
    seconds = sum(row["seconds"] for row in history)
    metrics = {
        "steps": len(history),
        "rows": len(tokens),
        "last_loss": float(np.mean([row["loss"] for row in tail])),
        "prompts_per_second": round(sum(len(rows) for rows in trainer.plan) / max(seconds, 1e-9), 3),
        "forward_passes": trainer.forward_passes,
        "micro_batch_size": trainer.micro_limit,
        "layout": trainer.layout,
        "world_size": _world(),
        "logp": logp_kind(objective),
        "tokens": tokens.counts,
    }
    metrics |= {key: float(np.mean([row[key] for row in tail])) for key in ("margin", "accuracy") if key in tail[-1]}
    return RunRecord(
        objective=objective.spec,
        config=about["config"] | {"policy": trainer.policy.record},
        seed=config.seed,
        versions=about["versions"],
        device=about["device"],
        duration_s=about["duration_s"],
        metrics=metrics,
        history=history,
    )


def logp_kind(objective: Any) -> str:
    """ "mean" where the loss reads log-probs per token only, else "sum".

    Asked of the objective itself: twice the tokens at twice the log-prob leave a length-normalised loss as it was.
    """
    logps = torch.tensor([[-2.0, -9.0]], dtype=torch.float64)
    state = copy.deepcopy(objective.state_dict())
    values = []
    for scale in (1, 2):
        policy, reference = scale * logps, scale * (logps - torch.tensor([[0.5, 1.5]]))
        lengths = scale * torch.tensor([[2, 3]])
        scores = Scores(policy, reference, lengths, torch.tensor([[1.0, 0.0]]), None, policy[:, 1], reference[:, 1])
        values.append(objective.step_loss(scores, torch.ones(1, dtype=torch.float64), training=False).per_sample)
    objective.load_state_dict(state)
    return "mean" if torch.allclose(values[0], values[1], rtol=1e-9) else "sum"


def run_card(record: RunRecord) -> str:
    """The run in a few lines a person reads: objective, normalisation of log-probs, sizes, what tokenisation met."""
    m, c = record.metrics, record.config
    met = {key: value for key, value in m["tokens"].items() if value and key not in ("rows", "responses")}
    counts = ", ".join(f"{key} {value}" for key, value in met.items())
    return "\n".join(
        (
            f"objective  {record.objective}   logp = {m['logp']}   window = {c['window']}",
            f"steps      {m['steps']} of {c['batch_size']} prompts, micro-batch {m['micro_batch_size']}, "
            f"{m['world_size']} rank(s), layout {m['layout']}, lr {c['learning_rate']:g} ({c['schedule']})",
            f"data       {m['rows']} rows; {counts or 'nothing cut or merged'}",
            f"time       {record.duration_s:.0f} s, {m['prompts_per_second']:.2f} prompts/s on {record.device}",
        )
    )


# --- state as safetensors + JSON --------------------------------------------------------------------------------------


def save_state(path: Path, state: Any) -> None:
    """Write nested state as PATH.json with its tensors in PATH.safetensors; no pickle."""
    tensors: dict[str, Tensor] = {}
    write_json(path.with_name(path.name + ".json"), _encode(state, tensors))
    save_file(tensors, path.with_name(path.name + ".safetensors"))


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote."""
    tensors = load_file(path.with_name(path.name + ".safetensors"))
    return _decode(read_json(path.with_name(path.name + ".json")), tensors)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(value, dict):
        return {"__items__": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"__tuple__" if isinstance(value, tuple) else "__list__": [_encode(v, tensors) for v in value]}
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__items__" in value:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["__items__"]}
    if "__tuple__" in value:
        return tuple(_decode(v, tensors) for v in value["__tuple__"])
    return [_decode(v, tensors) for v in value["__list__"]]


def last_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint whose files all have their recorded sha256; a damaged one is passed over, and said."""
    for folder in reversed(_checkpoints(root)):
        try:
            files = read_json(folder / "checkpoint.json")["files"]
            if all(_file_sha256(folder / name) == digest for name, digest in files.items()):
                return folder
        except (KitError, OSError, KeyError):
            pass
        log.warning("%s: incomplete or damaged; passed over", paths.show(folder))
    return None


def _checkpoints(root: Path) -> list[Path]:
    found = [path for path in root.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pack_rng() -> dict[str, Any]:
    """Every generator that a forward pass may draw from."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _unpack_rng(state: dict[str, Any]) -> None:
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# --- small things -----------------------------------------------------------------------------------------------------


def _layout(policy: Policy, config: TrainConfig) -> str:
    return config.layout if policy.shared_prefix else "separate"


def _kernel(policy: Policy, config: TrainConfig) -> str:
    if config.kernel != "auto":
        return config.kernel
    return "flex" if policy.device.type == "cuda" else "sdpa"


def _digest(tokens: TokenTable, policy: Policy, objective: Any, config: TrainConfig) -> str:
    """What a checkpoint belongs to: everything that decides the run except where it is written."""
    settings = dataclasses.asdict(config)
    for name in ("checkpoint", "checkpoint_every", "reference_cache"):
        settings.pop(name)
    text = json.dumps([tokens.digest(), policy.fingerprint(), objective.spec, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _barrier() -> None:
    if _world() > 1:
        dist.barrier()


def end_ranks() -> None:
    """Wait for the other ranks and leave the process group: a rank that just exits can abort those that still talk."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


__all__ = ["TokenRow", "TrainConfig", "end_ranks", "run_card", "score", "step_gradient", "train"]
