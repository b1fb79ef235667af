"""What transformers.Trainer is told before a run, and launches that are refused."""

import logging

import torch
from transformers import Trainer, TrainingArguments

from robustpo_kit.errors import KitError
from robustpo_kit.policies import Policy
from robustpo_kit.training.config import TrainConfig

log = logging.getLogger(__name__)


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
    arguments = TrainingArguments(
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
        optim="adamw_torch_fused" if torch.cuda.is_available() else "adamw_torch",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
    )
    if arguments.n_gpu > 1:
        # A Trainer would wrap the model in nn.DataParallel, which splits batches as it likes.
        log.warning(
            "%d GPUs and no launcher: one is used; `torchrun --nproc-per-node %d -m robustpo_kit "
            "train ...` takes all",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    return arguments


def refuse_wrappers(trainer: Trainer, policy: Policy, config: TrainConfig) -> None:
    """Raises KitError before the run for what FSDP and DeepSpeed cannot do here."""
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled and config.checkpoint:
        raise KitError(
            "checkpoint: DeepSpeed writes pickles; leave it unset, or train under FSDP2 or torchrun"
        )
    if trainer.is_deepspeed_enabled and accelerator.state.deepspeed_plugin.zero_stage > 2:
        raise KitError(
            "DeepSpeed: ZeRO-3 shards weights; use accelerate/fsdp2.yaml, or zero_stage 2"
        )
    short = any(weight.dtype == torch.bfloat16 for _, weight in policy.trainable())
    if trainer.is_deepspeed_enabled and short and accelerator.mixed_precision != "bf16":
        raise KitError(
            "DeepSpeed: it keeps fp32 masters of bfloat16 weights under mixed_precision: bf16 "
            "only; set that in the launch file, or train under FSDP2 or torchrun"
        )
    if trainer.is_fsdp_enabled and not accelerator.is_fsdp2:
        raise KitError(
            "FSDP: version 1 is not supported; set fsdp_version: 2, as in accelerate/fsdp2.yaml"
        )
    if trainer.is_fsdp_enabled and policy.adapter_without_base:
        raise KitError(
            "FSDP2: this adapter's base lies in no file, so that the result could not be saved; "
            "save the policy before add_lora, and load it"
        )
