"""One contender in one process."""

import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft.tuners.lora import Linear

from robustpo_kit import objectives, policies, records, training
from robustpo_kit.bench.config import LLAMA_8B, OVERHEADS, PEAK_FLOPS, SCALING, BenchConfig
from robustpo_kit.bench.meters import clock, memory_in_use, peak_memory, reset_peak
from robustpo_kit.data import PreferenceSet, Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies import attention


def contender(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What one process measures, on the rows that lie in `folder`."""
    config = BenchConfig(**task["config"])
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rows = {
        name: PreferenceSet.from_jsonl(folder / f"{name}.jsonl")
        for name in ("pairs", "lists", "short")
    }
    if task["contender"] != "inside":
        if task["contender"] == "engine":
            return _engine(config, rows["pairs"])
        return _trl(config, rows["pairs"], checkpointing=task["contender"] == "trl_checkpointing")
    policy = _policy(config)  # one for all: these steps leave the weights alone
    return {
        "layouts_k4": _layouts(config, policy, rows["lists"], task["alternations"]),
        "objectives": _overheads(config, policy, rows["short"], task["alternations"]),
        "without": _ablations(config, policy, rows["pairs"], task["alternations"]),
        "scaling": _scaling(config, policy) if task["scaling"] else [],
    }


def _measured(
    config: BenchConfig,
    rows: PreferenceSet,
    prepare: Callable[[policies.Policy], Callable[[], float]],
) -> dict:
    """Seconds and peak memory of one epoch over `rows`; memory is counted from before the model is loaded."""
    empty = memory_in_use()
    policy = _policy(config)
    work = prepare(policy)
    loaded = memory_in_use()
    reset_peak()
    before, wall = clock(), time.perf_counter()
    steps_s = work()
    seconds, wall = clock() - before, time.perf_counter() - wall
    peak = peak_memory()
    flops = 4 * sum(
        p.numel()
        for n, p in policy.model.named_parameters()
        if "lora_" not in n and "embed" not in n
    )
    return {
        "seconds": seconds,
        "wall_s": wall,
        "steps_s": steps_s,
        "pairs_per_second": len(rows) / seconds,
        "peak_mb": (peak - empty) / 2**20,
        "above_model_mb": (peak - loaded) / 2**20,
        "process_peak_mb": peak / 2**20,
        "flops_a_token": flops,  # forward and, weights being frozen, half a backward pass; embeddings not counted
    }


def _engine(config: BenchConfig, rows: PreferenceSet) -> dict[str, Any]:
    """One epoch of DPO in this engine: tokens, reference and steps, nothing cached."""

    def prepare(policy: policies.Policy) -> Callable[[], float]:
        def work() -> float:
            with tempfile.TemporaryDirectory() as cache:
                clock = _Steps()
                with clock:
                    training.train(
                        policy,
                        rows,
                        objectives.build("dpo(beta=0.1)"),
                        _train_config(config, cache),
                    )
                return clock.seconds

        return work

    found = _measured(config, rows, prepare)
    tokens = policies.tokenize(
        rows, bench_tokenizer(config.model), Template("plain"), max_length=config.max_length
    )
    count = sum(row.tokens() for row in tokens.rows)
    flops = found["flops_a_token"] * count / found["steps_s"]
    peak = next(
        (value for card, value in PEAK_FLOPS.items() if card in records.device_name()), None
    )
    return found | {
        "tokens": count,
        "flops_per_second": flops,
        "share_of_peak": flops / peak if peak else math.nan,
    }


def _trl(config: BenchConfig, rows: PreferenceSet, *, checkpointing: bool) -> dict[str, Any]:
    """One epoch of TRL's DPOTrainer, with its default of gradient checkpointing or without; tokens are not counted."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    def prepare(policy: policies.Policy) -> Callable[[], float]:
        policies.unwrap(policy.model).set_attn_implementation("sdpa")
        _set_lora(policy, Linear)  # peft's own layers
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
            bf16=False,  # weights are in the precision asked for already, the adapter in fp32: as in this engine
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            seed=config.seed,
        )
        texts = [
            {"prompt": r.prompt, "chosen": r.responses[0], "rejected": r.responses[1]} for r in rows
        ]
        trainer = DPOTrainer(
            policy.model,
            args=arguments,
            train_dataset=Dataset.from_list(texts),
            processing_class=policy.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)

        def work() -> float:
            before = clock()
            trainer.train()
            if trainer.state.global_step != -(-len(rows) // config.batch_size):
                raise KitError(f"bench: TRL took {trainer.state.global_step} steps, not one epoch")
            return clock() - before

        return work

    return _measured(config, rows, prepare)


def _layouts(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int
) -> dict[str, Any]:
    """Seconds of a step of Plackett-Luce DPO at K = 4, prompts shared and separate, in turn."""
    steps = {
        layout: _step(config, policy, rows, "dpo_pl(beta=0.1)", layout=layout)
        for layout in ("shared", "separate")
    }
    return {"seconds": _alternate(steps, alternations), "rows": len(rows), "responses": 4}


def _overheads(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int
) -> dict[str, Any]:
    """Seconds of a step of each robust objective and of its base, in turn."""
    found = {}
    for name, (objective, base, micro) in OVERHEADS.items():
        steps = {
            "objective": _step(config, policy, rows, objective, micro_batch_size=micro),
            "base": _step(config, policy, rows, base, micro_batch_size=micro),
        }
        own = {f"{kind}_ms": _own_milliseconds(step.trainer) for kind, step in steps.items()}
        found[name] = (
            _alternate(steps, 6 * alternations) | own
        )  # the difference is small beside the noise
    return found


def _own_milliseconds(trainer: training.StepTrainer, repeats: int = 50) -> float:
    """Median time of the objective itself: from the step's log-probs to their gradient, the model aside."""
    rows = trainer.plan[0]
    logps = -2.0 * trainer.signals.lengths[rows].float().to(trainer.args.device)
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        trainer.exact_step.objective_gradient(logps, rows)
        times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times)


def _ablations(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int
) -> dict[str, list[float]]:
    """Seconds of a step of DPO in the whole engine, and with each idea behind its speed left out, in turn."""
    rows = PreferenceSet(list(rows)[: config.batch_size])
    step = _step(config, policy, rows, "dpo(beta=0.1)")

    def without_matrix_attention() -> None:
        with mock.patch.object(attention, "MATRIX_TOKENS", 0):
            step()

    def without_fused_lora() -> None:
        _set_lora(policy, Linear)
        step()
        _set_lora(policy, policies.FusedLinear)

    steps = {
        "nothing": step,
        "matrix_attention": without_matrix_attention,
        "fused_lora": without_fused_lora,
        "shared_prefix": _step(config, policy, rows, "dpo(beta=0.1)", layout="separate"),
    }
    return _alternate(steps, alternations)


def _set_lora(policy: policies.Policy, kind: type) -> None:
    """Make the adapted layers peft's or fused ones."""
    for module in policy.model.modules():
        if isinstance(module, Linear):
            module.__class__ = kind


def _scaling(config: BenchConfig, policy: policies.Policy) -> list[dict[str, Any]]:
    """Seconds of forward and backward by prompt length, K and batch, on random tokens."""
    generator = torch.Generator().manual_seed(config.seed)
    size = policies.unwrap(policy.model).get_input_embeddings().num_embeddings

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, size, (n,), generator=generator).tolist())

    found = []
    for prompt, k, batch in SCALING:
        texts = [
            policies.TokenRow(str(i), draw(prompt), tuple(draw(32) for _ in range(k)), (0,) * k)
            for i in range(batch)
        ]
        steps = {}
        for layout in ("shared", "separate"):
            kernel = "flex" if policy.device.type == "cuda" and layout == "shared" else "sdpa"
            tokens = policies.collate(texts, layout=layout, kernel=kernel).to(policy.device)
            steps[layout] = lambda tokens=tokens: (
                policies.sequence_logps(policy.model, tokens).sum().backward()
            )
        times = _alternate(steps, config.scaling_repeats)
        medians = {layout: statistics.median(values) for layout, values in times.items()}
        found.append({"prompt_tokens": prompt, "k": k, "batch": batch, **medians})
    return found


def _alternate(steps: dict[str, Callable[[], Any]], times: int) -> dict[str, list[float]]:
    """Seconds of each step, `times` times in turn, after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(times + 1):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            before = clock()
            steps[name]()
            if turn:
                found[name].append(clock() - before)
    return found


def _step(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, spec: str, **settings: Any
) -> Callable[[], Any]:
    """One training step on `rows` as the trainer takes it, the optimizer aside; weights do not change."""
    objective = objectives.build(spec)
    scratch = tempfile.TemporaryDirectory()
    train_config = dataclasses.replace(
        _train_config(config, scratch.name),
        **{"batch_size": len(rows), "micro_batch_size": len(rows)} | settings,
    )
    trainer = training.prepare(policy, rows, objective, train_config, scratch.name)
    trainer.create_optimizer_and_scheduler(1)

    def step() -> None:
        trainer.take_step(trainer.scorer, 0)
        trainer.scorer.zero_grad()

    step.trainer, step.keep = trainer, scratch  # the folder lives as long as the step
    return step


class _Steps:
    """Sums the clock over `StepTrainer.training_step` alone: what an epoch costs once the reference is cached."""

    def __enter__(self) -> "_Steps":
        self.seconds, self._real = 0.0, training.StepTrainer.training_step
        outer = self

        def timed(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
            before = clock()
            result = outer._real(trainer, *arguments, **keywords)
            outer.seconds += clock() - before
            return result

        training.StepTrainer.training_step = timed
        return self

    def __exit__(self, *_: Any) -> None:
        training.StepTrainer.training_step = self._real


def _train_config(config: BenchConfig, cache: str) -> training.TrainConfig:
    return training.TrainConfig(
        batch_size=config.batch_size,
        micro_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=0.0,
        seed=config.seed,
        max_length=config.max_length,
        reference_cache=cache,
    )


def _policy(config: BenchConfig) -> policies.Policy:
    """The model with a fresh adapter, prompts as they are."""
    if config.model == "llama-8b":
        policy = _random_llama(config)
    else:
        policy = policies.load(config.model, dtype=config.dtype, template=Template("plain"))
    return policy.add_lora("attention", config.lora_rank, seed=config.seed)


def _random_llama(config: BenchConfig) -> policies.Policy:
    """An 8B Llama with random weights, made on the GPU: speed needs no trained ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not torch.cuda.is_available():
        raise KitError("bench: model llama-8b needs a GPU; without one use smollm2-135m-instruct")
    shape = LlamaConfig(**LLAMA_8B, num_key_value_heads=8, vocab_size=128256, rope_theta=500000.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, config.dtype))
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(shape)
    finally:
        torch.set_default_dtype(before)
    return policies.Policy(
        model,
        bench_tokenizer("smollm2-135m-instruct"),
        Template("plain"),
        {"source": "llama-8b, random"},
    )


def bench_tokenizer(model: str) -> Any:
    if model == "tiny":
        return policies.byte_tokenizer()
    from transformers import AutoTokenizer

    from robustpo_kit import assets

    return AutoTokenizer.from_pretrained(
        assets.resolve("smollm2-135m-instruct" if model == "llama-8b" else model)
    )


if __name__ == "__main__":
    task_file, result_file = Path(sys.argv[1]), Path(sys.argv[2])
    records.write_json(result_file, contender(records.read_json(task_file), task_file.parent))
