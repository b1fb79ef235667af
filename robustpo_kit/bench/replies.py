"""Replies a second of every sampling backend, and what of a process's CPU time is the system's.

User and system time are told apart, and page faults counted, for sampling, for an epoch of
training, and for the start of a process with its imports: memory that is allocated anew shows as
faults and system time.
"""

import dataclasses
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustpo_kit import data, policies, records
from robustpo_kit.bench.children import child
from robustpo_kit.bench.config import BenchConfig
from robustpo_kit.bench.epochs import prepare_epoch
from robustpo_kit.bench.meters import peak_memory, reset_peak, synchronize
from robustpo_kit.bench.models import bench_policy
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError

BATCH = 100  # prompts, the evaluation batch of profile cpu
NEW_TOKENS = 40  # its longest reply
KEYS = ("work", "threads", "alternation")
MEASURED = ("replies_per_second", "user_s", "system_s", "peak_mb")
TRAINING = "training"  # in the place of a backend: an epoch of this engine


def run_sampling(
    out: str | None = None,
    *,
    model: str = "smollm2-135m-instruct",
    backends: tuple[str, ...] = ("kit", "transformers"),
    threads: tuple[int, ...] = (),
    alternations: int = 3,
    prompts: int = BATCH,
    penalty: float = 1.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Sample the same prompts by every backend in turn, each in a process of its own.

    Args:
        out: Folder of sampling.json and sampling.csv; without it, nothing is written.
        model: An asset, a folder, "tiny", or "llama-8b" (random weights, on a GPU).
        backends: Names of `policies.sample`; the last is what the others are compared with.
        threads: Of a process, each measured; without them, 1 and 2 on a CPU and 1 on a GPU.
        alternations: Turns of every backend, 1 or more.
        prompts: Of a batch, how-to questions under their chat template.
        penalty: Repetition penalty; continuous batching asks for 1.
        seed: Of the draws.

    Returns:
        What sampling.json says: `table`, one row a process, `ratios` by threads and backend, and
        `skipped`, the backends that refused, with their reasons.

    Raises:
        KitError: For arguments that measure nothing.
    """
    if alternations < 1 or len(backends) < 2:
        raise KitError(
            f"bench: alternations ({alternations}) should be at least 1 "
            f"and backends ({', '.join(backends)}) at least two"
        )
    started = time.time()
    dtype = "float32" if model == "tiny" else "bfloat16"
    config = BenchConfig(model=model, dtype=dtype, seed=seed)
    table: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for count in threads or ((1,) if torch.cuda.is_available() else (1, 2)):
        sized = dataclasses.asdict(dataclasses.replace(config, threads=count))
        task = {"config": sized, "contender": "replies", "prompts": prompts, "penalty": penalty}
        for turn in range(alternations):
            works = [*backends, TRAINING]
            for name in works[:: 1 - 2 * (turn % 2)]:
                row = {"work": name, "threads": count, "alternation": turn}
                if name not in skipped:
                    _measure(task, row, table, skipped)
    results = {
        "ratios": ratios(table, backends[-1]),
        "skipped": skipped,
        "table": table,
        "prompts": prompts,
        "max_new_tokens": NEW_TOKENS,
        "repetition_penalty": penalty,
        **records.provenance(config, seed, started),
    }
    if out is not None:
        records.write_json(Path(out) / "sampling.json", results)
        with records.atomic_write(Path(out) / "sampling.csv") as temporary:
            pd.DataFrame(table).to_csv(temporary, index=False, float_format="%.6g")
    return results


def _measure(
    task: dict[str, Any],
    row: dict[str, Any],
    table: list[dict[str, Any]],
    skipped: dict[str, str],
) -> None:
    """Add the row to the table, or the reason why its backend refused."""
    try:
        table.append(row | child(task | {"backend": row["work"]}, {}))
    except KitError as error:
        skipped[row["work"]] = str(error).strip().splitlines()[-1]


def ratios(table: list[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """Replies a second, and CPU time, of each backend beside `base`: median and range, in pairs."""
    frame = pd.DataFrame(table, columns=[*KEYS, *MEASURED]).set_index(list(KEYS))
    frame["cpu_s"] = frame["user_s"] + frame["system_s"]
    found = []
    for work in frame.index.unique("work").difference([base, TRAINING]):
        paired = frame.xs(work) / frame.xs(base)
        for threads, part in paired.groupby("threads"):
            for quantity, values in (
                ("replies_per_second", part["replies_per_second"]),
                ("cpu_time", 1 / part["cpu_s"]),
                ("peak_memory", part["peak_mb"]),
            ):
                spread = {"median": values.median(), "low": values.min(), "high": values.max()}
                key = {"backend": work, "beside": base, "threads": threads, "quantity": quantity}
                found.append(key | spread)
    return found


def sampling_summary(results: dict[str, Any]) -> str:
    """Ratios, and the share of system time, in lines a person reads."""
    lines = []
    for row in results["ratios"]:
        name = f"{row['backend']} beside {row['beside']}, threads {row['threads']}"
        spread = f"({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"{name:<40} {row['quantity']:<20} {row['median']:.2f} {spread}")
    frame = pd.DataFrame(results["table"])
    for (work, threads), part in frame.groupby(["work", "threads"]):
        middle = part.median(numeric_only=True)
        share = middle["system_s"] / (middle["system_s"] + middle["user_s"])
        lines.append(
            f"{f'{work}, threads {threads}':<40} user {middle['user_s']:.1f} s, "
            f"system {middle['system_s']:.2f} s ({100 * share:.1f} %), "
            f"{middle['minor_faults']:.0f} page faults, peak {middle['peak_mb']:.0f} MB"
        )
    lines += [f"{name:<40} left out: {reason}" for name, reason in results["skipped"].items()]
    return "\n".join(lines)


def measure_replies(task: dict[str, Any]) -> dict[str, float]:
    """Times, faults and memory of one batch, or of one epoch, after a small one that warms up."""
    config, started = BenchConfig(**task["config"]), _usage()
    policy = bench_policy(config)
    if task["backend"] == TRAINING:
        rows = PreferenceSet(list(data.load("how_to"))[: config.pairs])
        work = prepare_epoch(config, "engine", policy, rows)
        prepare_epoch(config, "engine", policy, PreferenceSet([rows[0]]))()
        replies = 0
    else:
        work, warm = _sampling(task, policy, task["prompts"]), _sampling(task, policy, 2)
        warm()
        replies = task["prompts"]
    reset_peak()
    before, wall = _usage(), time.perf_counter()
    work()
    synchronize()
    seconds, after = time.perf_counter() - wall, _usage()
    return {
        "wall_s": seconds,
        "replies_per_second": replies / seconds,
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
        "minor_faults": after.ru_minflt - before.ru_minflt,
        "peak_mb": peak_memory() / 2**20,
        "start_user_s": started.ru_utime,
        "start_system_s": started.ru_stime,
        "start_minor_faults": started.ru_minflt,
    }


def _sampling(task: dict[str, Any], policy: policies.Policy, prompts: int) -> Callable[[], Any]:
    """What draws a reply to each of the first how-to questions."""
    rows = data.load("how_to")
    texts = [row.prompt for row in list(rows)[:prompts]]
    decoding = policies.SamplingConfig(
        batch_size=prompts, max_new_tokens=NEW_TOKENS, repetition_penalty=task["penalty"]
    )
    told = dataclasses.replace(policy, template=rows.template)
    seed = task["config"]["seed"]
    return lambda: policies.sample(told, texts, decoding, seed=seed, backend=task["backend"])


def _usage() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_SELF)
