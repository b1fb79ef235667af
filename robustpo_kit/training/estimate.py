"""What a run will take, before a weight is read: parameters, tokens, memory a device, passes.

Memory is what is there all the time (weights, fp32 masters, Adam's moments) and the larger of two
moments: the beginning of the backward pass (what the forward pass kept, the projection's chunks)
and the optimizer's step (gradients, its intermediate results). Reference log-probs are computed
once before training, by the same weights: they cost time and no memory.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedConfig

from robustpo_kit.policies import (
    CHUNK_BYTES,
    Policy,
    TokenRow,
    TokenTable,
    floating_type,
    kept_by_forward,
    shortened,
    weightless,
)
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.plan import cut_rows, step_rows, steps
from robustpo_kit.training.step_objective import StepObjective

SOUGHT = 20  # heaviest steps
CHUNKS_HELD = 3  # logits, softmax and the residual of a chunk of the projection


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides the size of a run."""

    model: PreTrainedConfig
    dtype: str
    lora: str  # attention | all-linear | none
    rank: int
    run: TrainConfig
    devices: int = 1  # ranks; more than one shard weights by FSDP2

    @property
    def kind(self) -> torch.dtype:
        """The weights' type."""
        return floating_type(self.dtype)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A setting on rows of tokens, for an objective; counts and bytes."""

    setting: Setting
    rows: Sequence[TokenRow]
    objective: StepObjective
    heldout: Sequence[TokenRow] = ()

    @cached_property
    def policy(self) -> Policy:
        """The policy without weights."""
        setting = self.setting
        return weightless(setting.model, setting.kind, lora=setting.lora, rank=setting.rank)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.policy.model.parameters())

    @property
    def parameters(self) -> int:
        """All, the adapter's among them."""
        return sum(weight.numel() for weight in self._parameters)

    @property
    def trainable(self) -> int:
        """Those that training changes."""
        return sum(weight.numel() for weight in self._parameters if weight.requires_grad)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return steps(len(self.rows), self.setting.run)

    @property
    def tokens(self) -> int:
        """That the model computes in all steps."""
        return sum(self._size(self.rows[number]) for number in chain.from_iterable(self._plan))

    def _size(self, row: TokenRow) -> int:
        return row.tokens(self.setting.run.layout)

    @cached_property
    def heaviest(self) -> list[TokenRow]:
        """The micro-batch of most tokens, sought in the heaviest steps and the longest row's."""
        plan = [self._rows_at(step) for step in self._plan]
        plan.sort(key=self._size_of_all)
        longest = max(plan, key=lambda step: max(map(self._size, step)))
        found = []
        for step in [longest, *plan[-SOUGHT:]]:
            for places in filter(None, chain.from_iterable(self._cut(step))):
                found.append([step[place] for place in places])
        return max(found, key=self._size_of_all)

    def _rows_at(self, numbers: Sequence[int]) -> list[TokenRow]:
        return [self.rows[number] for number in numbers]

    def _cut(self, rows: Sequence[TokenRow]) -> list[list[list[int]]]:
        run, devices = self.setting.run, self.setting.devices
        return cut_rows(rows, run.layout, run.micro_batch_size, devices, run.tokens_per_pass)

    @cached_property
    def _plan(self) -> list[list[int]]:
        return step_rows(len(self.rows), self.setting.run)

    def _size_of_all(self, rows: Sequence[TokenRow]) -> int:
        return TokenTable(tuple(rows), {}).pass_tokens(range(len(rows)), self.setting.run.layout)

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes on a device by what they are for; their sum is the peak, the process aside."""
        trained = [weight for weight in self._parameters if weight.requires_grad]
        share = 1 / self.setting.devices
        kinds = {weight.dtype for weight in trained}
        short = kinds != {torch.float32}
        masters = 4.0 * self.trainable if short and self.setting.run.master_weights else 0.0
        moment = 2 if short and not masters else 4
        static = {
            "weights": share * sum(map(_bytes, self._parameters)),
            "masters": share * masters,
            "Adam's moments": share * 2 * moment * self.trainable,
        }
        gradients = share * sum(map(_bytes, trained))
        backward = self._activations + self._backward_scratch + gradients * self._accumulates
        largest = max(weight.numel() for weight in trained)
        update = gradients + 3 * 4 * largest * share
        if self.setting.devices > 1:  # a layer and its neighbour are gathered whole
            static["gathered layers"] = 2 * self._layer_bytes
        peak = max(backward, update)
        static["gradients"] = min(gradients, peak)
        static["activations" if backward > update else "optimizer step"] = peak - gradients
        return {name: size for name, size in static.items() if size}

    @property
    def peak(self) -> float:
        """Bytes on a device, the process aside."""
        return sum(self.memory.values())

    @property
    def _accumulates(self) -> bool:
        """Whether gradients of an earlier micro-batch lie there while one is computed."""
        run, devices = self.setting.run, self.setting.devices
        return min(run.batch_size, len(self.rows)) > run.micro_batch_size * devices

    @property
    def _activations(self) -> float:
        """What the heaviest micro-batch's forward pass keeps; checkpoints keep a layer's input."""
        setting, config = self.setting, self.setting.model
        kept = kept_by_forward(
            config,
            setting.kind,
            self.heaviest,
            layout=setting.run.layout,
            kernel="flex" if self._device == "cuda" else "sdpa",
            lora=setting.lora,
            rank=setting.rank,
        )
        layers = config.num_hidden_layers
        if not setting.run.gradient_checkpointing:
            return kept.rest + layers * kept.layer
        entry = self._size_of_all(self.heaviest) * config.hidden_size
        return kept.rest + kept.layer + layers * entry * setting.kind.itemsize

    @property
    def _backward_scratch(self) -> float:
        """The projection's chunks and, where the head is trained, its gradient, once in fp32."""
        head = self.setting.model.vocab_size * self.setting.model.hidden_size
        chunks = CHUNKS_HELD * CHUNK_BYTES[self._device]
        if self.setting.lora != "none":
            return chunks
        return chunks + head * (4 + self.setting.kind.itemsize)

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def _layer_bytes(self) -> float:
        """Weights of a decoder layer."""
        config, kind = self.setting.model, self.setting.kind
        models = (weightless(shortened(config, layers), kind).model for layers in (1, 2))
        one, two = (sum(map(_bytes, model.parameters())) for model in models)
        return two - one

    @property
    def passes(self) -> dict[str, tuple[int, list[TokenRow]]]:
        """How often the model passes forward over which rows, by what for.

        A backward pass counts as two, or one where the weights are frozen. Recomputing is another,
        as is the first of two passes. The reference passes over the rows of all steps before the
        first one; held-out rows are scored before and after.
        """
        run = self.setting.run
        of_steps = 3 if self.setting.lora == "none" else 2
        of_steps += run.gradient_checkpointing
        of_steps += self.objective.coupling == "step" and self._accumulates
        numbers = list(chain.from_iterable(self._plan))
        found = {"steps": (of_steps, self._rows_at(numbers))}
        if self.objective.needs_reference:
            found["reference, before the first step"] = (1, self._rows_at(sorted(set(numbers))))
        if self.heldout:
            found["held-out rows"] = (2, list(self.heldout))
        return found


def _bytes(weight: nn.Parameter) -> int:
    return weight.numel() * weight.dtype.itemsize


def nearest_fit(estimate: Estimate, room: float) -> tuple[list[str], Estimate] | None:
    """The least change of a setting that fits into `room` bytes a device, in words, and what it is.

    First what leaves the gradient as it is (smaller micro-batches, checkpointing), then bfloat16,
    then LoRA; None where not even that fits.
    """
    words: list[str] = []
    while estimate.peak > room:
        change = _next_change(estimate.setting)
        if change is None:
            return None
        said, setting = change
        words = [word for word in words if word.split("=")[0] != said.split("=")[0]] + [said]
        estimate = dataclasses.replace(estimate, setting=setting)
    return words, estimate


def _next_change(setting: Setting) -> tuple[str, Setting] | None:
    run = setting.run
    if run.micro_batch_size > 1:
        size = run.micro_batch_size // 2
        smaller = dataclasses.replace(run, micro_batch_size=size)
        return f"micro_batch_size={size}", dataclasses.replace(setting, run=smaller)
    if not run.gradient_checkpointing:
        recomputing = dataclasses.replace(run, gradient_checkpointing=True)
        return "gradient_checkpointing=true", dataclasses.replace(setting, run=recomputing)
    if setting.dtype == "float32":
        return "dtype=bfloat16", dataclasses.replace(setting, dtype="bfloat16")
    if setting.lora == "none":
        return "lora=attention", dataclasses.replace(setting, lora="attention")
    return None


def devices_needed(estimate: Estimate, room: float, most: int = 64) -> int | None:
    """Devices of `room` bytes that a setting needs under FSDP2, its gradient as it is.

    Micro-batches of one prompt, and checkpointing; None where `most` are too few.
    """
    run = dataclasses.replace(estimate.setting.run, micro_batch_size=1, gradient_checkpointing=True)
    devices = 2
    while devices <= most:
        setting = dataclasses.replace(estimate.setting, run=run, devices=devices)
        if dataclasses.replace(estimate, setting=setting).peak <= room:
            return devices
        devices *= 2
    return None
