"""A benchmark's table and figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
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
    with plots.styled():
        canvas = Figure(figsize=(10, 3.8), layout="constrained")
        axes = canvas.subplots(1, 3)
        measured = pd.concat([_measured(results, name) for name in CONTENDERS])
        for ax, quantity in zip(axes, ("pairs a second", "peak memory (MB)"), strict=False):
            sns.barplot(measured, x="of", y=quantity, estimator="median", errorbar=None, ax=ax)
            sns.stripplot(
                measured, x="of", y=quantity, color="#333333", size=4, jitter=False, ax=ax
            )
            ax.set_xlabel("")
        _draw_scaling(pd.DataFrame(results["scaling"]), axes[2])
        ratio = results["ratio_vs_trl_pairs"]["median"]
        note = f"n = {results['alternations']} alternations (dots; bars: medians), "
        note += f"seed {results['seed']}; {results['device']}"
        finding = f"{ratio:.1f} times TRL {results['versions']['trl']}'s pairs a second"
        plots.head(canvas, finding, note)
    return canvas


def _measured(results: dict[str, Any], name: str) -> pd.DataFrame:
    """What one contender did in each alternation."""
    words = {"engine": "this engine", "trl": "TRL", "trl_checkpointing": "TRL,\ncheckpointing"}
    columns = {"pairs_per_second": "pairs a second", "peak_mb": "peak memory (MB)"}
    return pd.DataFrame(results[name]).rename(columns=columns).assign(of=words[name])


def _draw_scaling(scaling: pd.DataFrame, ax: Axes) -> None:
    """Seconds a step of the shared and the separate layout, by size."""
    if scaling.empty:
        ax.set_axis_off()
        return
    sizes = scaling[["prompt_tokens", "k", "batch"]].astype(str).agg("/".join, axis=1)
    long = scaling.assign(size=sizes).melt("size", ["shared", "separate"], "layout", "seconds")
    sns.barplot(long, x="seconds", y="size", hue="layout", palette=plots.PALETTE[:2], ax=ax)
    for bars, hatch in zip(ax.containers, ("", "///"), strict=True):
        for bar in bars:
            bar.set(hatch=hatch, edgecolor="white")
    ax.set(xlabel="seconds a step", ylabel="prompt tokens / K / prompts")
    ax.legend(title=None)


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write bench.json, bench.csv, bench.png and bench.pdf into `folder`; partial.json goes."""
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / "bench.json", results)
    with records.atomic_write(folder / "bench.csv") as temporary:
        table(results).to_csv(temporary, index=False, float_format="%.6g")
    plots.save(figure(results), folder / "bench")
    (folder / "partial.json").unlink(missing_ok=True)
