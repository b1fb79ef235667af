"""Bench: this engine beside TRL's DPOTrainer on the same pairs, model, LoRA, precision and batch; memory, scaling.

Contenders alternate, each in a process of its own, so that memory is told apart and a slow minute hits all. TRL runs
twice: with gradient checkpointing, its default, and without. Speed is compared with the faster of the two, memory with
the leaner. On a CPU every process has one thread and the clock is its CPU time, which a busy machine does not stretch;
on a GPU it is the wall clock. `python -m robustpo_kit.bench.contenders TASK.json RESULT.json` is such a process.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustpo_kit import records
from robustpo_kit.bench.config import CONTENDERS, BenchConfig
from robustpo_kit.bench.contenders import bench_tokenizer
from robustpo_kit.bench.report import speed_ratios, speed_targets, write_results
from robustpo_kit.data import Preference, PreferenceSet, load
from robustpo_kit.errors import KitError


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
        raise KitError(
            'TRL is not installed, and it is what the bench compares with: pip install "trl>=1.16"'
        )
    if alternations < 1 or pairs < 4:
        raise KitError(
            f"bench: alternations ({alternations}) should be at least 1 and pairs ({pairs}) at least 4"
        )
    if dtype == "auto":
        dtype = "float32" if model == "tiny" else "bfloat16"
    config = BenchConfig(model=model, dtype=dtype, pairs=pairs, seed=seed)
    tokenizer = bench_tokenizer(model)
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
        **speed_ratios(epochs, inside),
        "targets": speed_targets(config),
        **epochs,
        **inside,
        "clock": "wall" if torch.cuda.is_available() else "CPU time of a process with one thread",
        "data": {
            "source": Path(data).name if data else "how_to",
            "prompt_tokens": rows["prompt_tokens"],
        },
        "alternations": alternations,
        **records.provenance(config, seed, started),
    }
    found["versions"] |= {"trl": importlib.metadata.version("trl")}
    if out is not None:
        write_results(Path(out), found)
    return found


def _rows(source: str | None, tokenizer: Any, config: BenchConfig) -> dict[str, Any]:
    """The same texts for every contender: pairs; rows of four responses (two are the next prompt's); short pairs."""
    pool = load("hh", source) if source else load("how_to")
    order = np.random.default_rng(config.seed).permutation(len(pool)).tolist()
    chosen, short, sizes = [], [], []
    for i in order:
        row = pool[i]
        prompt = (
            pool.template.render(row.prompt, tokenizer)
            if pool.template.kind == "plain"
            else row.prompt
        )
        lengths = [len(ids) for ids in tokenizer([prompt, *row.responses])["input_ids"]]
        longest = lengths[0] + max(lengths[1:]) + 1
        if (
            max(lengths[1:]) >= config.max_length // 2
            or longest > config.max_length
            or min(lengths) == 0
        ):
            continue
        plain = Preference(
            row.row_id, row.group, prompt, row.responses, row.sources, (1.0, 0.0), 0, False, 1.0
        )
        if len(chosen) < config.pairs:
            chosen.append(plain)
            sizes.append(lengths[0])
        if longest <= config.max_overhead_length and len(short) < config.batch_size:
            short.append(dataclasses.replace(plain, h=0.5 + len(short) / 4))
        if len(chosen) == config.pairs and len(short) == config.batch_size:
            break
    else:
        raise KitError(
            f"{source or 'how_to'}: fewer than {config.pairs} pairs fit {config.max_length} tokens"
        )
    lists = []
    for row, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        four = (*row.responses, *other.responses)
        lists.append(
            dataclasses.replace(
                row, responses=four, sources=("a", "b", "c", "d"), rewards=(3.0, 2.0, 1.0, 0.0)
            )
        )
    return {
        "pairs": chosen,
        "lists": lists[: config.batch_size // 2],
        "short": short,
        "prompt_tokens": {"median": statistics.median(sizes), "longest": max(sizes)},
    }


def _child(task: dict[str, Any], rows: dict[str, Any]) -> Any:
    """Run one contender in a process of its own; raises KitError with the end of what it said when it fails."""
    threads = str(task["config"]["threads"])
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "ROBUSTPO_PROGRESS": "off",
    }
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "task.json", Path(folder) / "result.json"
        records.write_json(before, task)
        for name in ("pairs", "lists", "short"):
            PreferenceSet(rows[name]).to_jsonl(Path(folder) / f"{name}.jsonl")
        command = [sys.executable, "-m", "robustpo_kit.bench.contenders", str(before), str(after)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise KitError(f"bench: contender {task['contender']} failed: {done.stderr[-600:]}")
        return records.read_json(after)
