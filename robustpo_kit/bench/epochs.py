"""One epoch of DPO in a process of its own: in this engine, and in TRL's DPOTrainer."""

import math
import tempfile
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from transformers import TrainerCallback

from robustpo_kit import objectives, policies, records, training
from robustpo_kit.bench.config import PEAK_FLOPS, BenchConfig
from robustpo_kit.bench.meters import clock, memory_in_use, peak_memory, reset_peak
from robustpo_kit.bench.models import bench_policy, bench_tokenizer, train_config
from robustpo_kit.data import PreferenceSet, Template
from robustpo_kit.errors import KitError

Epoch = Callable[[], float]  # takes an epoch; returns the seconds of its steps alone


class StepClock(TrainerCallback):
    """Sums a clock from the start of each step to its optimizer: what an epoch's gradients cost."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.seconds = clock, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer before it takes the gradient."""
        self._started = self.clock()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer once the gradient is there and clipped."""
        self.seconds += self.clock() - self._started


def engine_epoch(config: BenchConfig, rows: PreferenceSet) -> dict[str, Any]:
    """One epoch of DPO in this engine: tokens, reference and steps, nothing cached."""

    def prepare(policy: policies.Policy) -> Epoch:
        def epoch() -> float:
            steps = StepClock(clock)
            with tempfile.TemporaryDirectory() as scratch:
                objective = objectives.build("dpo(beta=0.1)")
                settings = train_config(config, scratch)
                trainer = training.prepare(policy, rows, objective, settings, scratch)
                trainer.add_callback(steps)
                trainer.train()
            return steps.seconds

        return epoch

    measured = _measure(config, rows, prepare)
    tokenizer, template = bench_tokenizer(config.model), Template("plain")
    table = policies.tokenize(rows, tokenizer, template, max_length=config.max_length)
    tokens = sum(row.tokens() for row in table.rows)
    flops = measured["flops_a_token"] * tokens / measured["steps_s"]
    device = records.device_name()
    peaks = [peak for card, peak in PEAK_FLOPS.items() if card in device] or [math.nan]
    return measured | {
        "tokens": tokens,
        "flops_per_second": flops,
        "share_of_peak": flops / peaks[0],
    }


def trl_epoch(config: BenchConfig, rows: PreferenceSet, *, checkpointing: bool) -> dict[str, Any]:
    """One epoch of TRL's DPOTrainer, with its default of gradient checkpointing or without."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    def prepare(policy: policies.Policy) -> Epoch:
        policies.unwrap(policy.model).set_attn_implementation("sdpa")
        set_lora_layers(policy, Linear)  # peft's own
        scratch = tempfile.TemporaryDirectory()
        arguments = DPOConfig(
            output_dir=scratch.name,
            per_device_train_batch_size=config.batch_size,
            num_train_epochs=1,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            beta=0.1,
            max_length=config.max_length,
            gradient_checkpointing=checkpointing,
            bf16=False,  # weights have their precision already, the adapter is fp32: as here
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            seed=config.seed,
        )
        trainer = DPOTrainer(
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
            return clock() - before

        return epoch

    return _measure(config, rows, prepare)


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


def _measure(
    config: BenchConfig,
    rows: PreferenceSet,
    prepare: Callable[[policies.Policy], Epoch],
) -> dict[str, Any]:
    """Seconds and peak memory of one epoch; memory counts from before the model is loaded.

    Args:
        config: Names the model.
        rows: Of the epoch.
        prepare: Makes of the loaded policy what takes the epoch; not timed.

    Returns:
        seconds and wall_s of the epoch, steps_s of its steps, pairs_per_second; peak_mb since
        before the model was loaded, above_model_mb since it was, process_peak_mb; flops_a_token.
    """
    empty = memory_in_use()
    policy = bench_policy(config)
    epoch = prepare(policy)
    loaded = memory_in_use()
    reset_peak()
    started, wall_started = clock(), time.perf_counter()
    steps_s = epoch()
    seconds, wall_s = clock() - started, time.perf_counter() - wall_started
    peak = peak_memory()
    return {
        "seconds": seconds,
        "wall_s": wall_s,
        "steps_s": steps_s,
        "pairs_per_second": len(rows) / seconds,
        "peak_mb": (peak - empty) / 2**20,
        "above_model_mb": (peak - loaded) / 2**20,
        "process_peak_mb": peak / 2**20,
        "flops_a_token": _flops_a_token(policy),
    }


def _flops_a_token(policy: policies.Policy) -> int:
    """Forward and, weights being frozen, half a backward pass; embeddings are not counted."""
    weights = [
        parameter
        for name, parameter in policy.model.named_parameters()
        if "lora_" not in name and "embed" not in name
    ]
    return 4 * sum(parameter.numel() for parameter in weights)
