"""A benchmark's table and figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from robustpo_kit import plots, records
from robustpo_kit.bench.config import CONTENDERS, PEERS


def summary(results: dict[str, Any]) -> str:
    """The ratios in lines a person reads, each with its target and range."""
    lines = []
    for name, target in results["targets"].items():
        values, median = results[name]["values"], results[name]["median"]
        spread = f"{min(values):.3f} to {max(values):.3f}, {len(values)} values"
        lines.append(f"{name:<32} {median:.3f}   target {target}   ({spread})")
    lines += [f"{name:<32} left out: {reason}" for name, reason in results["skipped"].items()]
    for row in results["sizes"]:
        name = f"{row['contender']}, prompt {row['prompt_tokens']}, K {row['k']}"
        lines.append(f"{name:<32} {row['seconds']:.2f} s   {row['times']:.2f} times the engine's")
    shares = [measured["share_of_peak"] for measured in results["engine"]]
    flops = statistics.median(measured["flops_per_second"] for measured in results["engine"])
    share = f", {100 * statistics.median(shares):.1f} % of the card's peak" if shares[0] > 0 else ""
    lines.append(f"{'engine, operations a second':<32} {flops:.3g}{share}")
    return "\n".join(lines)


def speed_ratios(
    epochs: dict[str, list[dict[str, Any]]], inside: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every ratio, one value an alternation, and its median.

    Args:
        epochs: What each of CONTENDERS measured, one dict an alternation.
        inside: What the steps inside the engine took.
    """
    engine, trl = _columns(epochs["engine"]), _columns(epochs["trl"])
    trl_checkpointing = _columns(epochs["trl_checkpointing"])
    best = {}
    for field in ("seconds", "wall_s", "peak_mb", "above_model_mb"):
        best[field] = list(map(min, trl[field], trl_checkpointing[field]))
    layouts, without = inside["layouts_k4"]["seconds"], dict(inside["without"])
    whole = without.pop("nothing")
    ratios = {
        "ratio_vs_trl_pairs": _paired(best["seconds"], engine["seconds"]),
        "ratio_vs_trl_pairs_wall": _paired(best["wall_s"], engine["wall_s"]),
        "ratio_vs_trl_default_pairs": _paired(trl_checkpointing["seconds"], engine["seconds"]),
        "ratio_vs_trl_cached_reference": _paired(best["seconds"], engine["steps_s"]),
        "ratio_vs_separate_k4": _paired(layouts["separate"], layouts["shared"]),
        "peak_memory_ratio_vs_trl": _paired(engine["peak_mb"], best["peak_mb"]),
        "peak_memory_ratio_above_model": _paired(engine["above_model_mb"], best["above_model_mb"]),
        "peak_memory_ratio_vs_trl_no_checkpointing": _paired(engine["peak_mb"], trl["peak_mb"]),
    }
    for name, times in inside["objectives"].items():
        own_ms = times["objective_ms"]
        ratios[name] = _paired(times["objective"], times["base"])
        ratios[f"{name}_own_ms"] = {"median": own_ms, "values": [own_ms]}
    return ratios | {f"gain_of_{name}": _paired(times, whole) for name, times in without.items()}


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Field -> its value in every row."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for field, value in row.items():
            columns.setdefault(field, []).append(value)
    return columns


def _paired(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """left / right, value by value, and the median."""
    values = [first / second for first, second in zip(left, right, strict=True)]
    return {"median": statistics.median(values), "values": values}


def speed_targets() -> dict[str, str]:
    """The bounds that are aimed at, on this machine."""
    return {
        "ratio_vs_trl_pairs": ">= 1.5" if torch.cuda.is_available() else ">= 3",
        "ratio_vs_separate_k4": ">= 2",
        "dora_over_erm": "<= 1.02",
        "gamma_over_base": "<= 1.01",
        "peak_memory_ratio_vs_trl": "<= 0.7",
    }


def table(results: dict[str, Any]) -> pd.DataFrame:
    """Tidy: quantity, alternation, value."""
    columns = {
        name: entry["values"]
        for name, entry in results.items()
        if isinstance(entry, dict) and "values" in entry
    }
    rows = []
    for name, values in columns.items():
        for turn, value in enumerate(values):
            rows.append({"quantity": name, "alternation": turn, "value": value})
    for name in (*CONTENDERS, *PEERS):
        for turn, measured in enumerate(results.get(name, ())):
            for field, value in measured.items():
                rows.append({"quantity": f"{name}_{field}", "alternation": turn, "value": value})
    for row in results["sizes"]:
        name = f"{row['contender']}_seconds_prompt_{row['prompt_tokens']}_k_{row['k']}"
        rows.append({"quantity": name, "alternation": 0, "value": row["seconds"]})
    return pd.DataFrame(rows)


def figure(results: dict[str, Any]) -> Figure:
    """Pairs a second and memory of both, and the time of a step by prompt length, K and batch."""
    canvas = Figure(figsize=(10, 3.2), layout="constrained")
    speed, memory, sizes = canvas.subplots(1, 3)
    version = results["versions"]["trl"]
    labels = ["this engine", f"TRL {version}", "TRL, check-\npointing"]
    panels = ((speed, "pairs_per_second", "pairs a second"), (memory, "peak_mb", "peak memory, MB"))
    for ax, field, title in panels:
        for place, name in enumerate(CONTENDERS):
            values = [measured[field] for measured in results[name]]
            ax.bar(place, statistics.median(values), color=plots.PALETTE[place], width=0.6)
            ax.plot([place] * len(values), values, "o", color="#333333", ms=3)
        ax.set_xticks([0, 1, 2], labels)
        ax.set_title(title)
    scaling = results["scaling"]
    names = [f"{row['prompt_tokens']}/{row['k']}/{row['batch']}" for row in scaling]
    for place, layout in enumerate(("shared", "separate")):
        seconds = [row[layout] for row in scaling]
        places = [0.4 * place + number for number in range(len(scaling))]
        sizes.bar(places, seconds, 0.4, color=plots.PALETTE[place], label=layout)
    sizes.set_xticks([0.2 + number for number in range(len(scaling))], names)
    sizes.set(title="seconds a step", xlabel="prompt tokens / K / prompts")
    sizes.tick_params(axis="x", rotation=60)
    if scaling:
        sizes.margins(y=0.25)
        sizes.legend(loc="upper center", ncols=2)
    return canvas


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write bench.json, bench.csv and bench.png into `folder`; partial.json goes."""
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / "bench.json", results)
    with records.atomic_write(folder / "bench.csv") as temporary:
        table(results).to_csv(temporary, index=False, float_format="%.6g")
    with records.atomic_write(folder / "bench.png") as temporary:
        figure(results).savefig(temporary, dpi=120, format="png")
    (folder / "partial.json").unlink(missing_ok=True)
