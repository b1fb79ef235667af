"""Peers of the engine: TRL's DPOTrainer as it comes, and with what makes it faster."""

import importlib.metadata
import tempfile
from collections.abc import Callable
from typing import Any, cast

import torch
from packaging.requirements import Requirement
from peft import PeftModel
from peft.tuners.lora import Linear

from robustpo_kit import policies
from robustpo_kit.bench.config import BenchConfig
from robustpo_kit.bench.meters import clock
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError

WHEELS = {"trl_liger": "liger-kernel", "flash_pref": "flash-pref"}


def missing(name: str) -> str | None:
    """Why a peer cannot run here; None where it can."""
    wheel = WHEELS[name]
    try:
        version, needs = importlib.metadata.version(wheel), importlib.metadata.requires(wheel)
    except importlib.metadata.PackageNotFoundError:
        return f"{wheel} is not installed: pip install {wheel}"
    for need in map(Requirement, needs or ()):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            return f"{wheel} {version} asks for {need}, which is not installed"
        if not need.specifier.contains(found, prereleases=True):
            return f"{wheel} {version} asks for {need}; here it is {found}"
    if not torch.cuda.is_available():
        return f"{wheel} {version} has kernels for GPUs alone"
    return None


def trl_epoch(
    config: BenchConfig, name: str, policy: policies.Policy, rows: PreferenceSet
) -> Callable[[], float]:
    """What takes an epoch of TRL's DPOTrainer and returns its seconds.

    TRL 1.16 has a fused head as it comes. `name` is trl_checkpointing (as it comes), trl (without
    gradient checkpointing), trl_liger (that with Liger's layers) or flash_pref (its subclass, which
    shares prefixes).
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig

    attention = "flash_attention_2" if name == "flash_pref" else "sdpa"
    policies.unwrap(policy.model).set_attn_implementation(attention)
    set_lora_layers(policy, Linear)  # peft's own
    if "ref" in cast(PeftModel, policy.model).peft_config:  # of a trainer before
        cast(PeftModel, policy.model).delete_adapter("ref")
    scratch = tempfile.TemporaryDirectory()
    arguments = DPOConfig(
        output_dir=scratch.name,
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        beta=0.1,
        max_length=config.max_length,
        gradient_checkpointing=name == "trl_checkpointing",
        use_liger_kernel=name == "trl_liger",
        bf16=False,  # weights have their precision already, the adapter is fp32: as here
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        seed=config.seed,
    )
    trainer = _trainer_class(name)(
        cast(PeftModel, policy.model),
        args=arguments,
        train_dataset=Dataset.from_list(_trl_rows(rows)),
        processing_class=policy.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)

    def epoch() -> float:
        before = clock()
        trainer.train()
        if trainer.state.global_step != -(-len(rows) // config.batch_size):
            raise KitError(f"bench: TRL took {trainer.state.global_step} steps, not one epoch")
        scratch.cleanup()
        return clock() - before

    return epoch


def _trainer_class(name: str) -> Any:
    if name == "flash_pref":
        from flash_pref import FlashDPOTrainer

        return FlashDPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer

    return DPOTrainer


def _trl_rows(rows: PreferenceSet) -> list[dict[str, str]]:
    return [
        {"prompt": row.prompt, "chosen": row.responses[0], "rejected": row.responses[1]}
        for row in rows
    ]


def set_lora_layers(policy: policies.Policy, kind: type) -> None:
    """Make the adapted layers peft's own, or the engine's fused ones."""
    for module in policy.model.modules():
        if isinstance(module, Linear):
            module.__class__ = kind
