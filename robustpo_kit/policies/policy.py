"""Policies: a causal language model, its tokenizer and template, LoRA adapters, its reference."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from robustpo_kit import paths
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies.first_rank import first_rank_loads, of_first_rank
from robustpo_kit.policies.lora import fold, fuse, quietly
from robustpo_kit.policies.probing import use_block_attention
from robustpo_kit.records import atomic_folder, digest, stream_seed, write_json, write_text

RECORD, CARD = "policy.json", "README.md"
SAMPLED_BITS = 1024  # values of a weight that its fingerprint reads one by one
TARGETS: dict[str, str | list[str]] = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all-linear": "all-linear",
}


@dataclasses.dataclass
class Policy:
    """A model, its tokenizer, the template of its prompts and the record of where it came from."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: Template
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    shared_prefix: bool = dataclasses.field(init=False)  # found out: prompts are computed once

    def __post_init__(self) -> None:
        self.shared_prefix = use_block_attention(self.model)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.model.parameters()).device

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA weights are attached (the reference is the same model without them)."""
        return hasattr(self.model, "peft_config")

    @property
    def adapter_without_base(self) -> bool:
        """Whether the adapter's base weights, merged or random, lie in no file."""
        in_no_file = self.record.get("merged") or self.record.get("source") == "tiny"
        return self.has_adapter and bool(in_no_file)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @contextlib.contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The reference model: the base without its adapter, in evaluation mode.

        Raises KitError where there is no adapter: full fine-tuning leaves no reference behind.
        """
        if not self.has_adapter:
            raise KitError(
                "policy: no adapter to disable; add_lora first, or cache reference log-probs "
                "before training"
            )
        model = cast(PeftModel, self.model)
        training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(training)

    def add_lora(
        self,
        targets: str = "attention",
        rank: int = 16,
        *,
        alpha: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> "Policy":
        """Freeze the model and attach a LoRA adapter with fp32 weights; B = 0, its reference.

        Args:
            targets: "attention" (q, k, v, o projections) or "all-linear".
            rank: r, columns of A^T and B.
            alpha: the adapter counts alpha / rank times; default: 2 * rank.
            dropout: probability that an input of the adapter is dropped.
            seed: of A.

        Raises:
            KitError: for targets that are unknown or not in the model, or rank below 1.
        """
        from peft import LoraConfig, get_peft_model

        if targets not in TARGETS:
            raise KitError(
                f"lora targets: '{targets}' is unknown; choose one of {', '.join(TARGETS)}"
            )
        if rank < 1:
            raise KitError(f"lora rank: {rank} should be at least 1")
        if alpha is None:
            alpha = 2 * rank
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=TARGETS[targets],
            bias="none",
        )
        with torch.random.fork_rng(devices=[]), quietly():
            torch.manual_seed(stream_seed(seed, "adapter"))
            try:
                self.model = fuse(get_peft_model(cast(Any, self.model), config))
            except ValueError:
                raise KitError(
                    f"lora targets: {type(self.model).__name__} has no layers of '{targets}' "
                    f"({TARGETS[targets]}); choose all-linear, or none for full fine-tuning"
                ) from None
        lora = {"targets": targets, "rank": rank, "alpha": alpha, "seed": seed}
        self.record = {**self.record, "lora": lora}
        return self

    def merge(self) -> "Policy":
        """Fold the adapter into the weights: a plain model, ready to be the next reference."""
        if self.has_adapter:
            self.model = fold(cast(PeftModel, self.model))
            without_lora = {key: value for key, value in self.record.items() if key != "lora"}
            self.record = without_lora | {"merged": True}
        return self

    def fingerprint(self) -> str:
        """sha256 over the base weights' names, shapes, sums and a sample of their bits.

        Weights are parameters, and buffers that are stored with them.
        """
        return of_first_rank(self._fingerprint)

    def _fingerprint(self) -> str:
        stored = [*self.model.named_parameters(), *_stored_buffers(self.model)]
        base = [(name, value.detach()) for name, value in stored if "lora_" not in name]
        sums = torch.empty(len(base), 2, dtype=torch.float64, device=self.device)
        for row, (_, value) in zip(sums, base, strict=True):
            # nothing small is kept between these large intermediates: the heap would not close up
            row[0] = value.sum(dtype=torch.float64)
            row[1] = value.abs().sum(dtype=torch.float64)
        parts = []
        for (name, value), both in zip(base, sums, strict=True):
            bits = value.flatten()[:: max(1, value.numel() // SAMPLED_BITS)].float()
            plain_name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            parts.append([plain_name, list(value.shape), str(value.dtype), bits, list(both)])
        return digest(parts)

    def save(self, folder: Path) -> Path:
        """Write safetensors (of an adapter, it alone), tokenizer and record; whole or not at all.

        An adapter whose base exists in no file (merged or random weights) is written merged into
        it. Of several ranks all call it, since sharded weights are gathered; the first one writes.
        """
        folder = Path(folder)
        whole = self._gathered()
        if dist.is_initialized() and dist.get_rank():
            return folder
        if self.adapter_without_base:
            return dataclasses.replace(self, model=copy.deepcopy(self.model)).merge().save(folder)
        record = {
            **self.record,
            "template": dataclasses.asdict(self.template),
            "adapter": self.has_adapter,
        }
        with atomic_folder(folder) as temporary:
            with quietly():
                cast(Any, self.model).save_pretrained(temporary, state_dict=whole)
            self.tokenizer.save_pretrained(temporary)
            write_text(temporary / CARD, self.card())  # in the place of peft's, which is a form
            write_json(temporary / RECORD, record)
        return folder

    def card(self) -> str:
        """What a person should know of the saved policy, as Markdown."""
        base = Path(str(self.record.get("origin") or self.record.get("source") or "unknown"))
        kind = "The weights of a language model"
        if self.has_adapter and not self.adapter_without_base:
            kind = "A LoRA adapter"
        return (
            f"# A policy of robustpo-kit\n\n{kind}, from `{paths.show(base)}`; {RECORD} says what "
            "it was made of.\n\n    from robustpo_kit import policies\n    "
            'policy = policies.load("PATH/OF/THIS/FOLDER")\n\nor '
            "`robustpo score --data FILE --model FOLDER`.\n"
        )

    def _gathered(self) -> dict[str, torch.Tensor] | None:
        """The weights to save, whole on the first rank, where FSDP2 has sharded them; else None."""
        state = self.model.state_dict()
        if not any(isinstance(value, DTensor) for value in state.values()):
            return None
        whole = {}
        for name, value in state.items():
            if self.has_adapter and "lora_" not in name:
                continue
            if isinstance(value, DTensor):
                value = value.full_tensor()
            if dist.get_rank() == 0:
                whole[name] = value.cpu()
        return whole


def own_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template of a model that is told no other: its tokenizer's chat template, if any."""
    if getattr(tokenizer, "chat_template", None):
        return Template("chat")
    return Template("plain")


def on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """`model` on `device`; default: this rank's GPU, or the CPU where there is none.

    Weights that the first rank alone has stay where they are, until they are sharded.
    """
    if first_rank_loads():
        return model
    if device is None:
        device = "cpu"
        if torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return model.to(device)


def with_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer` with a padding token: its own, or the end of sequence."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _stored_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the buffers that are stored, as a router's corrections are."""
    for place, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{place}.{name}", buffer.double()  # a sum of booleans would not be one
