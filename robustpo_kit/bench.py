"""Bench: this engine beside TRL's DPOTrainer on the same pairs, model, LoRA, precision and batch; memory, scaling.

Contenders alternate, each in a process of its own, so that memory is told apart and a slow minute hits all. TRL runs
twice: with gradient checkpointing, its default, and without. Speed is compared with the faster of the two, memory with
the leaner. On a CPU every process has one thread and the clock is its CPU time, which a busy machine does not stretch;
on a GPU it is the wall clock. `python -m robustpo_kit.bench TASK.json RESULT.json` is such a process.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

from robustpo_kit import data, logprobs, lora, objectives, plots, policies, records, training
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.records import KitError

LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, from the cards' data sheets
CONTENDERS = ("engine", "trl", "trl_checkpointing")
OVERHEADS = {  # published name of the ratio: (objective, its base, prompts a micro-batch)
    "dora_over_erm": ("dora(dpo(beta=0.1), lam=1.0)", "dpo(beta=0.1)", 4),
    "gamma_over_base": (
        "gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau=10)",
        "simpo(beta=10, gamma_beta_ratio=0.4)",
        4,
    ),
    "dora_over_erm_two_micro_batches": ("dora(dpo(beta=0.1), lam=1.0)", "dpo(beta=0.1)", 2),
}
SCALING = (  # prompt tokens, K, prompts a batch; responses have 32 tokens
    (32, 2, 2),
    (128, 2, 2),
    (512, 2, 2),
    (128, 4, 2),
    (128, 8, 2),
    (128, 2, 1),
    (128, 2, 4),
)


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What all contenders share."""

    model: str = "smollm2-135m-instruct"  # an asset, a folder, "tiny", or "llama-8b": random weights, for GPUs
    dtype: str = "bfloat16"
    pairs: int = 8
    batch_size: int = 4  # prompts a step, in one micro-batch
    max_length: int = 512
    max_overhead_length: int = 128  # tokens of the short rows on which an objective's own time shows most
    lora_rank: int = 16
    learning_rate: float = 1e-4
    threads: int = 1
    seed: int = 0
    scaling_repeats: int = 1


def run(
    data: str | None = None,
    out: str | None = None,
    *,
    model: str = "smollm2-135m-instruct",
    pairs: int = 8,
    alternations: int = 5,
    dtype: str = "auto",
    seed: int = 0,
    scaling: bool = True,
) -> dict[str, Any]:
    """Run every contender `alternations` times in turn; returns what bench.json says and writes it into `out`.

    `data`: HH-RLHF dialogues as .jsonl(.gz); without it, the kit's how-to pairs. `dtype` "auto" is bfloat16, and
    float32 for "tiny". Raises KitError where TRL is missing or the file has too few pairs that fit.
    """
    started = time.time()
    if importlib.util.find_spec("trl") is None:
        raise KitError('TRL is not installed, and it is what the bench compares with: pip install "trl>=1.16"')
    if alternations < 1 or pairs < 4:
        raise KitError(f"bench: alternations ({alternations}) should be at least 1 and pairs ({pairs}) at least 4")
    if dtype == "auto":
        dtype = "float32" if model == "tiny" else "bfloat16"
    config = BenchConfig(model=model, dtype=dtype, pairs=pairs, seed=seed)
    tokenizer = _tokenizer(model)
    rows = _rows(data, tokenizer, config)
    task = {"config": dataclasses.asdict(config), "alternations": alternations}
    epochs: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    for turn in range(alternations):
        for name in CONTENDERS[:: 1 if turn % 2 == 0 else -1]:
            epochs[name].append(_child(task | {"contender": name}, rows))
            if out is not None:  # a bench that is stopped leaves what it has measured
                records.write_json(Path(out) / "partial.json", epochs)
    inside = _child(task | {"contender": "inside", "scaling": scaling}, rows)
    found = {
        **_ratios(epochs, inside),
        "targets": _targets(config),
        **epochs,
        **inside,
        "clock": "wall" if torch.cuda.is_available() else "CPU time of a process with one thread",
        "data": {"source": Path(data).name if data else "how_to", "prompt_tokens": rows["prompt_tokens"]},
        "alternations": alternations,
        **records.provenance(config, seed, started),
    }
    found["versions"] |= {"trl": importlib.metadata.version("trl")}
    if out is not None:
        _write(Path(out), found)
    return found


def summary(found: dict[str, Any]) -> str:
    """The ratios in lines a person reads, each with its target and range."""
    lines = []
    for name, target in found["targets"].items():
        values = found[name]["values"]
        lines.append(
            f"{name:<32} {found[name]['median']:.3f}   target {target}   ({min(values):.3f} to {max(values):.3f}, "
            f"{len(values)} values)"
        )
    return "\n".join(lines)


# --- the parent: rows, ratios, files ----------------------------------------------------------------------------------


def _rows(source: str | None, tokenizer: Any, config: BenchConfig) -> dict[str, Any]:
    """The same texts for every contender: pairs; rows of four responses (two are the next prompt's); short pairs."""
    pool = data.load_hh(source) if source else data.load_how_to()
    order = np.random.default_rng(config.seed).permutation(len(pool)).tolist()
    chosen, short, sizes = [], [], []
    for i in order:
        row = pool[i]
        prompt = pool.template.render(row.prompt, tokenizer) if pool.template.kind == "plain" else row.prompt
        lengths = [len(ids) for ids in tokenizer([prompt, *row.responses])["input_ids"]]
        longest = lengths[0] + max(lengths[1:]) + 1
        if max(lengths[1:]) >= config.max_length // 2 or longest > config.max_length or min(lengths) == 0:
            continue
        plain = Preference(row.row_id, row.group, prompt, row.responses, row.sources, (1.0, 0.0), 0, False, 1.0)
        if len(chosen) < config.pairs:
            chosen.append(plain)
            sizes.append(lengths[0])
        if longest <= config.max_overhead_length and len(short) < config.batch_size:
            short.append(dataclasses.replace(plain, h=0.5 + len(short) / 4))
        if len(chosen) == config.pairs and len(short) == config.batch_size:
            break
    else:
        raise KitError(f"{source or 'how_to'}: fewer than {config.pairs} pairs fit {config.max_length} tokens")
    lists = []
    for row, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        four = (*row.responses, *other.responses)
        lists.append(
            dataclasses.replace(row, responses=four, sources=("a", "b", "c", "d"), rewards=(3.0, 2.0, 1.0, 0.0))
        )
    return {
        "pairs": chosen,
        "lists": lists[: config.batch_size // 2],
        "short": short,
        "prompt_tokens": {"median": statistics.median(sizes), "longest": max(sizes)},
    }


def _ratios(epochs: dict[str, list[dict]], inside: dict[str, Any]) -> dict[str, dict]:
    """Every ratio of one alternation, and their median."""

    def paired(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
        values = [a / b for a, b in zip(left, right, strict=True)]
        return {"median": statistics.median(values), "values": values}

    def of(name: str, field: str) -> list[float]:
        return [epoch[field] for epoch in epochs[name]]

    def best(field: str) -> list[float]:
        return [min(values) for values in zip(of("trl", field), of("trl_checkpointing", field), strict=True)]

    layouts, without = inside["layouts_k4"]["seconds"], dict(inside["without"])
    whole = without.pop("nothing")
    found = {
        "ratio_vs_trl_pairs": paired(best("seconds"), of("engine", "seconds")),
        "ratio_vs_trl_pairs_wall": paired(best("wall_s"), of("engine", "wall_s")),
        "ratio_vs_trl_default_pairs": paired(of("trl_checkpointing", "seconds"), of("engine", "seconds")),
        "ratio_vs_trl_cached_reference": paired(best("seconds"), of("engine", "steps_s")),
        "ratio_vs_separate_k4": paired(layouts["separate"], layouts["shared"]),
        "peak_memory_ratio_vs_trl": paired(of("engine", "peak_mb"), best("peak_mb")),
        "peak_memory_ratio_above_model": paired(of("engine", "above_model_mb"), best("above_model_mb")),
        "peak_memory_ratio_vs_trl_no_checkpointing": paired(of("engine", "peak_mb"), of("trl", "peak_mb")),
    }
    for name, times in inside["objectives"].items():
        found[name] = paired(times["objective"], times["base"])
        found[f"{name}_own_ms"] = {"median": times["objective_ms"], "values": [times["objective_ms"]]}
    return found | {f"gain_of_{name}": paired(times, whole) for name, times in without.items()}


def _targets(config: BenchConfig) -> dict[str, str]:
    gpu = torch.cuda.is_available()
    return {
        "ratio_vs_trl_pairs": ">= 1.5" if gpu else ">= 3",
        "ratio_vs_separate_k4": ">= 2",
        "dora_over_erm": "<= 1.02",
        "gamma_over_base": "<= 1.01",
        "peak_memory_ratio_vs_trl": "<= 0.7",
    }


def table(found: dict[str, Any]) -> pd.DataFrame:
    """Tidy: quantity, alternation, value."""
    rows = [
        {"quantity": name, "alternation": i, "value": value}
        for name, entry in found.items()
        if isinstance(entry, dict) and "values" in entry
        for i, value in enumerate(entry["values"])
    ]
    for name in CONTENDERS:
        for i, result in enumerate(found[name]):
            rows += [{"quantity": f"{name}_{key}", "alternation": i, "value": value} for key, value in result.items()]
    return pd.DataFrame(rows)


def figure(found: dict[str, Any]) -> Any:
    """Pairs a second and memory of both, and the time of a step by prompt length, K and batch."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 3.2), layout="constrained")
    axes = canvas.subplots(1, 3)
    for ax, key, title in ((axes[0], "pairs_per_second", "pairs a second"), (axes[1], "peak_mb", "peak memory, MB")):
        for place, name in enumerate(CONTENDERS):
            values = [result[key] for result in found[name]]
            ax.bar(place, statistics.median(values), color=plots.PALETTE[place], width=0.6)
            ax.plot([place] * len(values), values, "o", color="#333333", ms=3)
        version = found["versions"]["trl"]
        ax.set_xticks([0, 1, 2], ["this engine", f"TRL {version}", "TRL, check-\npointing"])
        ax.set_title(title)
    for place, layout in enumerate(("shared", "separate")):
        names = [f"{r['prompt_tokens']}/{r['k']}/{r['batch']}" for r in found["scaling"]]
        axes[2].plot(names, [r[layout] for r in found["scaling"]], "o-", color=plots.PALETTE[place], label=layout)
    axes[2].set(title="seconds a step", xlabel="prompt tokens / K / prompts", ylim=(0, None))
    axes[2].tick_params(axis="x", rotation=60)
    if found["scaling"]:
        axes[2].legend()
    return canvas


def _write(folder: Path, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / "bench.json", found)
    with records.atomic_write(folder / "bench.csv") as temporary:
        table(found).to_csv(temporary, index=False, float_format="%.6g")
    with records.atomic_write(folder / "bench.png") as temporary:
        figure(found).savefig(temporary, dpi=120, format="png")
    (folder / "partial.json").unlink(missing_ok=True)


def _child(task: dict[str, Any], rows: dict[str, Any]) -> Any:
    """Run one contender in a process of its own; raises KitError with the end of what it said when it fails."""
    threads = str(task["config"]["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "ROBUSTPO_PROGRESS": "off"}
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "task.json", Path(folder) / "result.json"
        records.write_json(before, task)
        for name in ("pairs", "lists", "short"):
            PreferenceSet(rows[name]).to_jsonl(Path(folder) / f"{name}.jsonl")
        command = [sys.executable, "-m", "robustpo_kit.bench", str(before), str(after)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise KitError(f"bench: contender {task['contender']} failed: {done.stderr[-600:]}")
        return records.read_json(after)


# --- the children: one contender each ---------------------------------------------------------------------------------


def contender(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What one process measures, on the rows that lie in `folder`."""
    config = BenchConfig(**task["config"])
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rows = {name: PreferenceSet.from_jsonl(folder / f"{name}.jsonl") for name in ("pairs", "lists", "short")}
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
    config: BenchConfig, rows: PreferenceSet, prepare: Callable[[policies.Policy], Callable[[], float]]
) -> dict:
    """Seconds and peak memory of one epoch over `rows`; memory is counted from before the model is loaded."""
    empty = _memory()
    policy = _policy(config)
    work = prepare(policy)
    loaded = _memory()
    _reset_peak()
    clock, wall = _clock(), time.perf_counter()
    steps_s = work()
    seconds, wall = _clock() - clock, time.perf_counter() - wall
    peak = _peak()
    flops = 4 * sum(p.numel() for n, p in policy.model.named_parameters() if "lora_" not in n and "embed" not in n)
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
                    training.train(policy, rows, objectives.build("dpo(beta=0.1)"), _train_config(config, cache))
                return clock.seconds

        return work

    found = _measured(config, rows, prepare)
    tokens = logprobs.tokenize(rows, _tokenizer(config.model), Template("plain"), max_length=config.max_length)
    count = sum(row.tokens() for row in tokens.rows)
    flops = found["flops_a_token"] * count / found["steps_s"]
    peak = next((value for card, value in PEAK_FLOPS.items() if card in records.device_name()), None)
    return found | {"tokens": count, "flops_per_second": flops, "share_of_peak": flops / peak if peak else math.nan}


def _trl(config: BenchConfig, rows: PreferenceSet, *, checkpointing: bool) -> dict[str, Any]:
    """One epoch of TRL's DPOTrainer, with its default of gradient checkpointing or without; tokens are not counted."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    def prepare(policy: policies.Policy) -> Callable[[], float]:
        logprobs.unwrap(policy.model).set_attn_implementation("sdpa")
        _set_lora(policy, lora.Linear)  # peft's own layers
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
        texts = [{"prompt": r.prompt, "chosen": r.responses[0], "rejected": r.responses[1]} for r in rows]
        trainer = DPOTrainer(
            policy.model, args=arguments, train_dataset=Dataset.from_list(texts), processing_class=policy.tokenizer
        )
        trainer.remove_callback(PrinterCallback)

        def work() -> float:
            before = _clock()
            trainer.train()
            if trainer.state.global_step != -(-len(rows) // config.batch_size):
                raise KitError(f"bench: TRL took {trainer.state.global_step} steps, not one epoch")
            return _clock() - before

        return work

    return _measured(config, rows, prepare)


def _layouts(config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int) -> dict[str, Any]:
    """Seconds of a step of Plackett-Luce DPO at K = 4, prompts shared and separate, in turn."""
    steps = {
        layout: _step(config, policy, rows, "dpo_pl(beta=0.1)", layout=layout) for layout in ("shared", "separate")
    }
    return {"seconds": _alternate(steps, alternations), "rows": len(rows), "responses": 4}


def _overheads(config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int) -> dict[str, Any]:
    """Seconds of a step of each robust objective and of its base, in turn."""
    found = {}
    for name, (objective, base, micro) in OVERHEADS.items():
        steps = {
            "objective": _step(config, policy, rows, objective, micro_batch_size=micro),
            "base": _step(config, policy, rows, base, micro_batch_size=micro),
        }
        own = {f"{kind}_ms": _own_milliseconds(step.trainer) for kind, step in steps.items()}
        found[name] = _alternate(steps, 6 * alternations) | own  # the difference is small beside the noise
    return found


def _own_milliseconds(trainer: training.StepTrainer, repeats: int = 50) -> float:
    """Median time of the objective itself: from the step's log-probs to their gradient, the model aside."""
    rows = trainer.plan[0]
    logps = -2.0 * trainer.signals.lengths[rows].float().to(trainer.args.device)
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        trainer._whole(logps, rows)
        times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times)


def _ablations(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, alternations: int
) -> dict[str, list[float]]:
    """Seconds of a step of DPO in the whole engine, and with each idea behind its speed left out, in turn."""
    rows = PreferenceSet(list(rows)[: config.batch_size])
    step = _step(config, policy, rows, "dpo(beta=0.1)")

    def without_matrix_attention() -> None:
        with mock.patch.object(logprobs, "MATRIX_TOKENS", 0):
            step()

    def without_fused_lora() -> None:
        _set_lora(policy, lora.Linear)
        step()
        _set_lora(policy, lora.FusedLinear)

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
        if isinstance(module, lora.Linear):
            module.__class__ = kind


def _scaling(config: BenchConfig, policy: policies.Policy) -> list[dict[str, Any]]:
    """Seconds of forward and backward by prompt length, K and batch, on random tokens."""
    generator = torch.Generator().manual_seed(config.seed)
    size = logprobs.unwrap(policy.model).get_input_embeddings().num_embeddings

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, size, (n,), generator=generator).tolist())

    found = []
    for prompt, k, batch in SCALING:
        texts = [
            logprobs.TokenRow(str(i), draw(prompt), tuple(draw(32) for _ in range(k)), (0,) * k) for i in range(batch)
        ]
        steps = {}
        for layout in ("shared", "separate"):
            kernel = "flex" if policy.device.type == "cuda" and layout == "shared" else "sdpa"
            tokens = logprobs.collate(texts, layout=layout, kernel=kernel).to(policy.device)
            steps[layout] = lambda tokens=tokens: logprobs.sequence_logps(policy.model, tokens).sum().backward()
        times = _alternate(steps, config.scaling_repeats)
        medians = {layout: statistics.median(values) for layout, values in times.items()}
        found.append({"prompt_tokens": prompt, "k": k, "batch": batch, **medians})
    return found


def _alternate(steps: dict[str, Callable[[], Any]], times: int) -> dict[str, list[float]]:
    """Seconds of each step, `times` times in turn, after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(times + 1):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            before = _clock()
            steps[name]()
            if turn:
                found[name].append(_clock() - before)
    return found


def _step(
    config: BenchConfig, policy: policies.Policy, rows: PreferenceSet, spec: str, **settings: Any
) -> Callable[[], Any]:
    """One training step on `rows` as the trainer takes it, the optimizer aside; weights do not change."""
    objective = objectives.build(spec)
    scratch = tempfile.TemporaryDirectory()
    train_config = dataclasses.replace(
        _train_config(config, scratch.name), **{"batch_size": len(rows), "micro_batch_size": len(rows)} | settings
    )
    trainer = training.prepare(policy, rows, objective, train_config, scratch.name)
    trainer.create_optimizer_and_scheduler(1)

    def step() -> None:
        trainer.training_step(trainer.model, 0)
        trainer.model.zero_grad()

    step.trainer, step.keep = trainer, scratch  # the folder lives as long as the step
    return step


class _Steps:
    """Sums the clock over `StepTrainer.training_step` alone: what an epoch costs once the reference is cached."""

    def __enter__(self) -> "_Steps":
        self.seconds, self._real = 0.0, training.StepTrainer.training_step
        outer = self

        def timed(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
            before = _clock()
            result = outer._real(trainer, *arguments, **keywords)
            outer.seconds += _clock() - before
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
        model, _tokenizer("smollm2-135m-instruct"), Template("plain"), {"source": "llama-8b, random"}
    )


def _tokenizer(model: str) -> Any:
    if model == "tiny":
        return policies.byte_tokenizer()
    from transformers import AutoTokenizer

    from robustpo_kit import assets

    return AutoTokenizer.from_pretrained(assets.resolve("smollm2-135m-instruct" if model == "llama-8b" else model))


def _clock() -> float:
    """Seconds: of the wall on a GPU, of this process's CPU time otherwise."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _memory() -> int:
    """Bytes in use: allocated on the GPU, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status("VmRSS") or _maxrss()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Most bytes in use since `_reset_peak` (outside Linux: since the process began)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or _maxrss()


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    line = next(line for line in path.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _maxrss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    task_file, result_file = Path(sys.argv[1]), Path(sys.argv[2])
    records.write_json(result_file, contender(records.read_json(task_file), task_file.parent))
