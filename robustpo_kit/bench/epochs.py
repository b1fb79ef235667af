"""One epoch of DPO in a process of its own: in this engine, in TRL's DPOTrainer and its kin."""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from robustpo_kit import objectives, policies, training
from robustpo_kit.bench.config import BenchConfig
from robustpo_kit.bench.flops import achieved
from robustpo_kit.bench.meters import clock, memory_in_use, peak_memory, reset_peak
from robustpo_kit.bench.models import bench_policy, bench_tokenizer, train_config
from robustpo_kit.bench.peers import trl_epoch
from robustpo_kit.data import PreferenceSet, Template

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


def measure(config: BenchConfig, name: str, rows: dict[str, PreferenceSet]) -> dict[str, Any]:
    """Seconds and peak memory of one epoch of a contender.

    A GPU compiles and chooses its kernels by size: there the same epoch is taken once before. A CPU
    has nothing to warm, and the heap would keep what a first epoch freed.

    Args:
        config: Names the model.
        name: One of CONTENDERS or PEERS.
        rows: `pairs` are those of the epoch.

    Returns:
        seconds and wall_s of the epoch, steps_s of its steps, pairs_per_second; peak_mb since
        before the model was loaded, above_model_mb since it was, process_peak_mb; of the engine
        also flops_per_second and share_of_peak.
    """
    empty = memory_in_use()
    policy = bench_policy(config)
    if torch.cuda.is_available():
        prepare_epoch(config, name, policy, rows["pairs"])()
    epoch = prepare_epoch(config, name, policy, rows["pairs"])
    loaded = memory_in_use()
    reset_peak()
    started, wall_started = clock(), time.perf_counter()
    steps_s = epoch()
    seconds, wall_s = clock() - started, time.perf_counter() - wall_started
    peak = peak_memory()
    measured = {
        "seconds": seconds,
        "wall_s": wall_s,
        "steps_s": steps_s,
        "pairs_per_second": len(rows["pairs"]) / seconds,
        "peak_mb": (peak - empty) / 2**20,
        "above_model_mb": (peak - loaded) / 2**20,
        "process_peak_mb": peak / 2**20,
    }
    if name == "engine":
        measured |= achieved(policy, token_rows(config, rows["pairs"]), steps_s)
    return measured


def prepare_epoch(
    config: BenchConfig, name: str, policy: policies.Policy, rows: PreferenceSet
) -> Epoch:
    """What takes one epoch of the contender `name` over `rows`: reference and steps,
    nothing cached."""
    if name != "engine":
        return trl_epoch(config, name, policy, rows)
    spec = "dpo(beta=0.1)" if len(rows[0].responses) == 2 else "dpo_pl(beta=0.1)"

    def epoch() -> float:
        steps = StepClock(clock)
        with tempfile.TemporaryDirectory() as scratch:
            settings = train_config(config, scratch)
            trainer = training.prepare(policy, rows, objectives.build(spec), settings, scratch)
            trainer.add_callback(steps)
            trainer.train()
        return steps.seconds

    return epoch


def token_rows(config: BenchConfig, rows: PreferenceSet) -> list[policies.TokenRow]:
    """The rows as the engine reads them."""
    tokenizer, template = bench_tokenizer(config.model), Template("plain")
    return list(policies.tokenize(rows, tokenizer, template, max_length=config.max_length).rows)
