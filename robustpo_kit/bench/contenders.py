"""One contender in one process: `python -m robustpo_kit.bench.contenders TASK.json RESULT.json`."""

import sys
from pathlib import Path
from typing import Any

import torch

from robustpo_kit import data, records
from robustpo_kit.bench.config import BenchConfig
from robustpo_kit.bench.epochs import measure
from robustpo_kit.bench.inside import (
    compare_layouts,
    compare_objectives,
    leave_ideas_out,
    scale_sizes,
)
from robustpo_kit.bench.models import bench_policy
from robustpo_kit.bench.replies import measure_replies
from robustpo_kit.bench.sizes import measure_sizes
from robustpo_kit.records import stream_seed


def contender(task: dict[str, Any], folder: Path) -> Any:
    """What one process measures.

    Args:
        task: `config` (fields of BenchConfig), `contender` (one of CONTENDERS or PEERS,
            "inside", "layouts" or "replies"), whether `sizes` are measured instead of epochs; for
            "inside" and "layouts" `alternations`, for "inside" `scaling`, for "replies" `backend`,
            `prompts` and `penalty`.
        folder: Holds the rows: pairs.jsonl, lists.jsonl, short.jsonl; of "layouts" the second.
    """
    config = BenchConfig(**task["config"])
    torch.set_num_threads(config.threads)
    torch.manual_seed(stream_seed(config.seed, "bench"))
    if task["contender"] == "replies":
        return measure_replies(task)
    name, alternations = task["contender"], task["alternations"]
    if name == "layouts":
        lists = data.load(folder / "lists.jsonl")
        return compare_layouts(config, bench_policy(config), lists, alternations)
    rows = {name: data.load(folder / f"{name}.jsonl") for name in ("pairs", "lists", "short")}
    if task.get("sizes"):
        return measure_sizes(config, name)
    if name != "inside":
        return measure(config, name, rows)
    policy = bench_policy(config)  # one for all: these steps leave the weights alone
    return {
        "layouts_k4": compare_layouts(config, policy, rows["lists"], alternations),
        "objectives": compare_objectives(config, policy, rows["short"], alternations),
        "without": leave_ideas_out(config, policy, rows["pairs"], alternations),
        "scaling": scale_sizes(config, policy) if task["scaling"] else [],
    }


if __name__ == "__main__":
    task_file, result_file = Path(sys.argv[1]), Path(sys.argv[2])
    records.write_json(result_file, contender(records.read_json(task_file), task_file.parent))
