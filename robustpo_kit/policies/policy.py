"""Policies: a causal language model with its tokenizer and template, LoRA adapters, and its reference."""

import contextlib
import copy
import dataclasses
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies.lora import fuse
from robustpo_kit.policies.probing import use_block_attention
from robustpo_kit.records import write_json

RECORD = "policy.json"


TARGETS = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "all-linear": "all-linear"}


@dataclasses.dataclass
class Policy:
    """A model, its tokenizer, the template of its prompts and the record of where it came from."""

    model: nn.Module
    tokenizer: Any
    template: Template
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    shared_prefix: bool = False  # the architecture takes block masks: prompts are computed once

    def __post_init__(self) -> None:
        self.shared_prefix = use_block_attention(self.model)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.model.parameters()).device

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA weights are attached (the reference is then the same model without them)."""
        return hasattr(self.model, "peft_config")

    @property
    def adapter_without_base(self) -> bool:
        """Whether the adapter's base weights, merged or random, lie in no file."""
        return self.has_adapter and bool(
            self.record.get("merged") or self.record.get("source") == "tiny"
        )

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @contextlib.contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The reference model: the base without its adapter, in evaluation mode.

        Raises KitError where there is no adapter, since full fine-tuning leaves no reference behind.
        """
        if not self.has_adapter:
            raise KitError(
                "policy: no adapter to disable; add_lora first, or cache reference log-probs before training"
            )
        training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter():
                yield self.model
        finally:
            self.model.train(training)

    def add_lora(
        self,
        targets: str = "attention",
        rank: int = 16,
        *,
        alpha: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> "Policy":
        """Freeze the model and attach a LoRA adapter (B = 0, so it starts as its reference); fp32 adapter weights.

        `targets`: "attention" (q, k, v, o projections) or "all-linear". `alpha` defaults to 2 * rank.
        """
        from peft import LoraConfig, get_peft_model

        if targets not in TARGETS:
            raise KitError(
                f"lora targets: '{targets}' is unknown; choose one of {', '.join(TARGETS)}"
            )
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            lora_dropout=dropout,
            target_modules=TARGETS[targets],
            bias="none",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # peft asks transformers by a name that is going away
            torch.manual_seed(seed)
            self.model = fuse(get_peft_model(self.model, config))
        lora = {"targets": targets, "rank": rank, "alpha": config.lora_alpha, "seed": seed}
        self.record = {**self.record, "lora": lora}
        return self

    def merge(self) -> "Policy":
        """Fold the adapter into the weights; the result is a plain model, ready to be the next reference."""
        if self.has_adapter:
            self.model = self.model.merge_and_unload()
            for parameter in self.model.parameters():
                parameter.requires_grad_(True)
            self.record = {key: value for key, value in self.record.items() if key != "lora"} | {
                "merged": True
            }
        return self

    def fingerprint(self) -> str:
        """sha256 over the base weights' names, shapes, sums and a sample of their bits: changes when a weight does."""
        sha = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                continue
            value = parameter.detach()
            sample = value.flatten()[:: max(1, value.numel() // 1024)].float().cpu()
            sums = torch.stack(
                [value.sum(dtype=torch.float64), value.abs().sum(dtype=torch.float64)]
            ).cpu()
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            sha.update(f"{plain}{tuple(value.shape)}{value.dtype}".encode())
            sha.update(sample.numpy().tobytes() + sums.numpy().tobytes())
        return sha.hexdigest()

    def save(self, folder: Path) -> Path:
        """Write safetensors (the adapter alone where there is one), tokenizer and JSON record; by rename.

        An adapter whose base exists in no file (merged or random weights) is written merged into it. Of several ranks
        all call it, since sharded weights are gathered, and the first one writes.
        """
        folder = Path(folder)
        whole = self._gathered()
        if dist.is_initialized() and dist.get_rank():
            return folder
        if self.adapter_without_base:
            return dataclasses.replace(self, model=copy.deepcopy(self.model)).merge().save(folder)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.model.save_pretrained(temporary, state_dict=whole)
        self.tokenizer.save_pretrained(temporary)
        record = {
            **self.record,
            "template": dataclasses.asdict(self.template),
            "adapter": self.has_adapter,
        }
        write_json(temporary / RECORD, record)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        return folder

    def _gathered(self) -> dict[str, torch.Tensor] | None:
        """The weights to save, whole on the first rank, where FSDP2 has sharded them; None where they are whole."""
        state = self.model.state_dict()
        if not any(isinstance(value, DTensor) for value in state.values()):
            return None
        wanted = {
            name: value for name, value in state.items() if "lora_" in name or not self.has_adapter
        }
        whole = {}
        for name, value in wanted.items():
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if dist.get_rank() == 0:
                whole[name] = value.cpu()
        return whole


def on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    if device is None:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    return model.to(device)


def with_pad(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
