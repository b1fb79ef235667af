"""Steps inside this engine, beside each other in one process: layouts, objectives, ideas, sizes."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import nn

from robustpo_kit import objectives, policies, training
from robustpo_kit.bench.config import OVERHEADS, SCALING, BenchConfig
from robustpo_kit.bench.meters import clock
from robustpo_kit.bench.models import train_config
from robustpo_kit.bench.peers import set_lora_layers
from robustpo_kit.data import PreferenceSet
from robustpo_kit.records import torch_stream

LAYOUTS = ("shared", "separate")
OVERHEAD_TURNS = 6  # times more than elsewhere: the difference is small beside the noise


class Step:
    """One training step on `rows` as the trainer takes it, the optimizer aside.

    Weights do not change.
    """

    def __init__(
        self,
        config: BenchConfig,
        policy: policies.Policy,
        rows: PreferenceSet,
        spec: str,
        **settings: Any,
    ):
        """Prepare the step; `settings` are fields of TrainConfig beside those of `config`."""
        self._scratch = tempfile.TemporaryDirectory()  # lives as long as the step
        folder = self._scratch.name
        whole = {"batch_size": len(rows), "micro_batch_size": len(rows)}
        run = dataclasses.replace(train_config(config, folder), **(whole | settings))
        self.trainer = training.prepare(policy, rows, objectives.build(spec), run, folder)
        self.trainer.create_optimizer_and_scheduler(1)

    def __call__(self) -> None:
        """Take the step."""
        self.trainer.take_step(self.trainer.scorer, 0)
        self.trainer.scorer.zero_grad()

    def objective_ms(self, repeats: int = 50) -> float:
        """Median time of the objective itself: from log-probs to their gradient, no model."""
        step, rows = self.trainer.exact_step, self.trainer.plan[0]
        logps = -2.0 * step.signals.lengths[rows].float().to(step.exchange.device)
        times = []
        for _ in range(repeats):
            before = time.perf_counter()
            step.objective_gradient(logps, rows)
            times.append(1e3 * (time.perf_counter() - before))
        return statistics.median(times)


def compare_layouts(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int
) -> dict[str, Any]:
    """Seconds of a step of Plackett-Luce DPO at K = 4, prompts shared and separate, in turn."""
    steps = {
        layout: Step(config, policy, rows, "dpo_pl(beta=0.1)", layout=layout) for layout in LAYOUTS
    }
    return {"seconds": alternate(steps, alternations), "rows": len(rows), "responses": 4}


def compare_objectives(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int
) -> dict[str, Any]:
    """Seconds of a step of each robust objective and of its base, in turn."""
    overheads = {}
    for name, (objective, base, micro) in OVERHEADS.items():
        steps = {
            "objective": Step(config, policy, rows, objective, micro_batch_size=micro),
            "base": Step(config, policy, rows, base, micro_batch_size=micro),
        }
        own_times = {f"{kind}_ms": step.objective_ms() for kind, step in steps.items()}
        overheads[name] = alternate(steps, OVERHEAD_TURNS * alternations) | own_times
    return overheads


def leave_ideas_out(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int
) -> dict[str, list[float]]:
    """Seconds of a step of DPO with all, and with each, of the ideas behind its speed left out."""
    rows = PreferenceSet(list(rows)[: config.batch_size])
    step = Step(config, policy, rows, "dpo(beta=0.1)")
    without_matrices = Step(config, policy, rows, "dpo(beta=0.1)")
    without_matrices.trainer.exact_step.kernel = "plain_sdpa"

    def without_fused_lora() -> None:
        set_lora_layers(policy, Linear)
        step()
        set_lora_layers(policy, policies.FusedLinear)

    steps: dict[str, Callable[[], None]] = {
        "nothing": step,
        "matrix_attention": without_matrices,
        "fused_lora": without_fused_lora,
        "shared_prefix": Step(config, policy, rows, "dpo(beta=0.1)", layout="separate"),
    }
    return alternate(steps, alternations)


def scale_sizes(config: BenchConfig, policy: policies.Policy) -> list[dict[str, Any]]:
    """Seconds of forward and backward by prompt length, K and batch, on random tokens."""
    generator = torch_stream(config.seed, "bench tokens")
    embeddings = cast(nn.Embedding, policies.unwrap(policy.model).get_input_embeddings())
    vocabulary = embeddings.num_embeddings

    def random_tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (count,), generator=generator).tolist())

    table = []
    for prompt_tokens, k, batch in SCALING:
        rows = []
        for number in range(batch):
            prompt = random_tokens(prompt_tokens)
            responses = tuple(random_tokens(32) for _ in range(k))
            rows.append(policies.TokenRow(str(number), prompt, responses, (0,) * k))
        steps = {layout: _forward_and_backward(policy, rows, layout) for layout in LAYOUTS}
        times = alternate(steps, config.scaling_repeats)
        row = {"prompt_tokens": prompt_tokens, "k": k, "batch": batch}
        table.append(row | {layout: statistics.median(times[layout]) for layout in LAYOUTS})
    return table


def _forward_and_backward(
    policy: policies.Policy, rows: list[policies.TokenRow], layout: str
) -> Callable[[], None]:
    kernel = "flex" if policy.device.type == "cuda" and layout == "shared" else "sdpa"
    batch = policies.collate(rows, layout=layout, kernel=kernel).to(policy.device)

    def take() -> None:
        policies.sequence_logps(policy.model, batch).sum().backward()

    return take


def alternate(steps: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each step, `turns` times in turn, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        names = list(steps)
        if turn % 2 == 0:
            names.reverse()
        for name in names:
            before = clock()
            steps[name]()
            if turn:
                seconds[name].append(clock() - before)
    return seconds
