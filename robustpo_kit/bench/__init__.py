"""Bench: this engine beside TRL's DPOTrainer: the same pairs, model, LoRA, precision and batch.

Contenders alternate, each in a process of its own (`contenders`), so that memory is told apart and
a slow minute hits all. TRL runs twice: with gradient checkpointing, its default, and without. Speed
is compared with the faster of the two, memory with the leaner. On a CPU every process has one
thread and the clock is its CPU time, which a busy machine does not stretch; on a GPU it is the wall
clock.
"""

from robustpo_kit.bench.config import CONTENDERS, PEAK_FLOPS, SCALING, BenchConfig
from robustpo_kit.bench.flops import step_flops
from robustpo_kit.bench.layouts import layouts_summary, run_layouts
from robustpo_kit.bench.meters import memory_in_use
from robustpo_kit.bench.replies import run_sampling, sampling_summary
from robustpo_kit.bench.report import summary
from robustpo_kit.bench.runner import run

__all__ = [
    "CONTENDERS",
    "PEAK_FLOPS",
    "SCALING",
    "BenchConfig",
    "layouts_summary",
    "memory_in_use",
    "run",
    "run_layouts",
    "run_sampling",
    "sampling_summary",
    "step_flops",
    "summary",
]
