"""A benchmark's table and figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustpo_kit import plots, records
from robustpo_kit.bench.config import CONTENDERS, BenchConfig


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


def speed_ratios(epochs: dict[str, list[dict]], inside: dict[str, Any]) -> dict[str, dict]:
    """Every ratio of one alternation, and their median."""

    def paired(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
        values = [a / b for a, b in zip(left, right, strict=True)]
        return {"median": statistics.median(values), "values": values}

    def of(name: str, field: str) -> list[float]:
        return [epoch[field] for epoch in epochs[name]]

    def best(field: str) -> list[float]:
        return [
            min(values)
            for values in zip(of("trl", field), of("trl_checkpointing", field), strict=True)
        ]

    layouts, without = inside["layouts_k4"]["seconds"], dict(inside["without"])
    whole = without.pop("nothing")
    found = {
        "ratio_vs_trl_pairs": paired(best("seconds"), of("engine", "seconds")),
        "ratio_vs_trl_pairs_wall": paired(best("wall_s"), of("engine", "wall_s")),
        "ratio_vs_trl_default_pairs": paired(
            of("trl_checkpointing", "seconds"), of("engine", "seconds")
        ),
        "ratio_vs_trl_cached_reference": paired(best("seconds"), of("engine", "steps_s")),
        "ratio_vs_separate_k4": paired(layouts["separate"], layouts["shared"]),
        "peak_memory_ratio_vs_trl": paired(of("engine", "peak_mb"), best("peak_mb")),
        "peak_memory_ratio_above_model": paired(
            of("engine", "above_model_mb"), best("above_model_mb")
        ),
        "peak_memory_ratio_vs_trl_no_checkpointing": paired(
            of("engine", "peak_mb"), of("trl", "peak_mb")
        ),
    }
    for name, times in inside["objectives"].items():
        found[name] = paired(times["objective"], times["base"])
        found[f"{name}_own_ms"] = {
            "median": times["objective_ms"],
            "values": [times["objective_ms"]],
        }
    return found | {f"gain_of_{name}": paired(times, whole) for name, times in without.items()}


def speed_targets(config: BenchConfig) -> dict[str, str]:
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
            rows += [
                {"quantity": f"{name}_{key}", "alternation": i, "value": value}
                for key, value in result.items()
            ]
    return pd.DataFrame(rows)


def figure(found: dict[str, Any]) -> Any:
    """Pairs a second and memory of both, and the time of a step by prompt length, K and batch."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 3.2), layout="constrained")
    axes = canvas.subplots(1, 3)
    for ax, key, title in (
        (axes[0], "pairs_per_second", "pairs a second"),
        (axes[1], "peak_mb", "peak memory, MB"),
    ):
        for place, name in enumerate(CONTENDERS):
            values = [result[key] for result in found[name]]
            ax.bar(place, statistics.median(values), color=plots.PALETTE[place], width=0.6)
            ax.plot([place] * len(values), values, "o", color="#333333", ms=3)
        version = found["versions"]["trl"]
        ax.set_xticks([0, 1, 2], ["this engine", f"TRL {version}", "TRL, check-\npointing"])
        ax.set_title(title)
    for place, layout in enumerate(("shared", "separate")):
        names = [f"{r['prompt_tokens']}/{r['k']}/{r['batch']}" for r in found["scaling"]]
        axes[2].plot(
            names,
            [r[layout] for r in found["scaling"]],
            "o-",
            color=plots.PALETTE[place],
            label=layout,
        )
    axes[2].set(title="seconds a step", xlabel="prompt tokens / K / prompts", ylim=(0, None))
    axes[2].tick_params(axis="x", rotation=60)
    if found["scaling"]:
        axes[2].legend()
    return canvas


def write_results(folder: Path, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / "bench.json", found)
    with records.atomic_write(folder / "bench.csv") as temporary:
        table(found).to_csv(temporary, index=False, float_format="%.6g")
    with records.atomic_write(folder / "bench.png") as temporary:
        figure(found).savefig(temporary, dpi=120, format="png")
    (folder / "partial.json").unlink(missing_ok=True)
