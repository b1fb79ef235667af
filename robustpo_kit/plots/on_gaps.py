"""Figures about rewards, margins and what the papers print, each of its one tidy table."""

from typing import Any, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from robustpo_kit import analysis
from robustpo_kit.plots import findings, marks, style
from robustpo_kit.plots.findings import counted
from robustpo_kit.plots.style import GREY, PALETTE, canvas, groups, head, label, reference_line

SHADES = {  # of verdicts on items of the papers
    "agrees": "#7fb8d8", "differs": "#f2b880", "not shown": "#ffffff",
    "by construction": "#e4efe4", "cannot be tested here": "#d9d9d9", "no claim": "#eeeeee",
}  # fmt: skip
PAPERS = {"dora": "DoRA", "gamma_po": "gamma-PO"}


def reward_confidence(points: pd.DataFrame) -> Figure:
    """Replies at (reward, confidence), with marginals: policy, prompt_id, reward, confidence."""
    shape: dict[str, Any] = {"width_ratios": (5, 1), "height_ratios": (1, 4)}
    figure, axes = canvas(2, 2, figsize=(7.4, 5.4), sharex="col", sharey="row", **shape)
    (above, corner), (ax, beside) = axes
    corner.remove()
    marks.clouds(points, analysis.confidence_bands(points), ax)
    for place, policy, part in groups(points, "policy"):
        look = {"element": "step", "fill": False, "bins": 20, "lw": 1.3}
        look |= {"color": style.colour(policy, place), "ls": "-" if place else "--"}
        sns.histplot(part, x="reward", **look, label=label(policy), ax=above)
        sns.histplot(part, y="confidence", **look, ax=beside)
    above.set_ylabel("replies")
    beside.set_xlabel("replies")
    ax.set_xlabel("reward, normalised to [0, 1]")
    above.legend(ncols=2, loc="upper left")
    fits = analysis.reward_confidence(points)
    slopes = [findings.interval(row, "slope") for row in fits.to_dict("records")]
    words = "; ".join(fits["policy"].map(label) + " " + slopes)
    note = f"{counted(fits['replies'], 'replies a policy')}, a prompt's joined, of "
    note += f"{fits['prompts'].iloc[0]} prompts; 95 % bands, errors clustered by prompt"
    return head(figure, f"Slope of confidence on reward: {words}", note, points)


def confidence_slope_differences(table: pd.DataFrame) -> Figure:
    """Slopes of DoRA minus ERM by loss, and the paper's: loss, difference, low, high, prompts."""
    paper = analysis.paper_values("dora").query("table == 'Figure 4'")
    models = "paper, " + paper["row"].str.split(" / ").str[0]
    printed = pd.DataFrame({"loss": models, "printed in the paper": paper["value"]})
    rows = pd.concat([table, printed], ignore_index=True)
    figure, ax = canvas(figsize=(6.8, 1.6 + 0.32 * len(rows)))
    words = "slope of confidence on reward, DoRA minus ERM"
    marks.bars_with_ci(rows, ax, name="loss", xlabel=words, printed=["printed in the paper"])
    sentence = findings.contrasts(table["loss"].map(label), table, "ERM's slope")
    reach = (table["high"] >= paper["value"].min()).sum()
    finding = f"{sentence}; {reach} of {len(table)} intervals reach the paper's values"
    prompts = findings.ranged(table["prompts"], 0)
    note = f"{counted(table['replies'], 'replies')}, {prompts} prompts; 95 % intervals, "
    return head(figure, finding, note + "errors clustered by prompt; hollow: printed", table)


def gamma_curves(table: pd.DataFrame) -> Figure:
    """Accuracy of gamma forms over their plain losses, and the margins: policy, step, accuracy."""
    plain = [name for name in dict.fromkeys(table["policy"]) if not name.startswith("gamma-")]
    figure, axes = canvas(1, len(plain) + 1, figsize=(11, 3.6))
    under: dict[str, Any] = {"color": "#bbbbbb", "lw": 6, "solid_capstyle": "round"}
    over: dict[str, Any] = {"color": PALETTE[0], "lw": 1.4, "marker": "o", "mfc": "white", "ms": 5}
    said = []
    for ax, name in zip(axes[:-1], plain, strict=True):
        own, dynamic = (table[table["policy"] == policy] for policy in (name, f"gamma-{name}"))
        ax.plot(own["step"], own["accuracy"], **under, label=label(name))
        ax.plot(dynamic["step"], dynamic["accuracy"], **over, label=label(f"gamma-{name}"))
        same = np.isclose(own["accuracy"], dynamic["accuracy"]).sum()
        said.append(f"{same} of {len(own)} steps ({label(name)})")
        ax.set(xlabel="optimizer step", ylim=(-0.05, 1.28), yticks=np.linspace(0, 1, 6))
        ax.legend(loc="upper left", ncols=2)
    axes[0].set_ylabel("share of pairs ranked right")
    marks.margin_range(table[table["policy"].str.startswith("gamma-")], axes[-1])
    finding = f"The dynamic margin leaves the accuracy as it is in {' and '.join(said)}"
    note = f"n = {table['step'].nunique()} steps, each on its batch of pairs, one seed; "
    return head(figure, finding, note + "right: least to largest margin", table)


def margin_violin(table: pd.DataFrame) -> Figure:
    """Gaps of the training pairs, and held-out ones beside them: policy (sft: before), pairs, gap.

    A table without `pairs` is of the training pairs.
    """
    figure, ax = canvas(figsize=(6.8, 3.9))
    named = table.replace({"policy": {"sft": "before (SFT)"}})
    words = r"gap $m = r_w - r_l$ ($\beta\,\cdot$ nats a token)"
    halves = "pairs" if "pairs" in table else None
    marks.violins(named, ax, value="gap", by="policy", ylabel=words, halves=halves)
    reference_line(ax, 0.0, upright=False)
    pairs = table["pairs"] if halves else pd.Series("training", index=table.index)
    said = []
    for name, part in table.groupby(pairs, sort=False):
        by_policy = part.groupby("policy", sort=False)["gap"]
        after = by_policy.median().drop("sft", errors="ignore")
        right = by_policy.agg(lambda gap: 100 * (gap > 0).mean()).drop("sft", errors="ignore")
        words = (
            f"{findings.ranged(after, 1)} on {name} pairs, {findings.ranged(right, 0)} % positive"
        )
        before = part.loc[part["policy"] == "sft", "gap"]
        if len(before):
            words += f" (before {before.median():.1f}, {(before > 0).mean():.0%})"
        said.append(words)
    sizes = table.groupby(["policy", pairs]).size()
    note = f"{counted(sizes, 'pairs a policy')}; lines: quartiles"
    return head(figure, f"Median gap after training {'; '.join(said)}", note, table)


def gamma_versus_gap(table: pd.DataFrame) -> Figure:
    """Target margins over gamma0 at the published settings: setting, gap, gamma, gamma0."""
    figure, ax = canvas(figsize=(7.4, 4.2))
    ratio = table["gamma"] / table["gamma0"]
    ax.set_ylim(ratio.min() - 0.05, ratio.max() + 0.05)
    marks.gamma_versus_gap(table, ax)
    spread = ratio.groupby(table["setting"]).agg(np.ptp).sort_values()
    ends = [f"{spread.iloc[place]:.2f} of gamma0 ({spread.index[place]})" for place in (0, -1)]
    note = counted(
        table.groupby("setting").size(), "pairs, the same for all settings, each at its "
    )
    note += "own beta; dotted: the constant margin"
    return head(figure, f"The margins' spread: from {' to '.join(ends)}", note, table)


def theorem_3_1(table: pd.DataFrame) -> Figure:
    """Smoothing weight and the error of Eq. 14: m, exact, approximate, gamma0, delta."""
    figure, (above, below) = canvas(2, 1, figsize=(6.6, 5), sharex=True, height_ratios=(2.4, 1))
    marks.smoothing(table, above)
    above.set_xlabel("")
    table = table.assign(error=table["approximate"] - table["exact"])
    for _, side in table.groupby(table["m"] > 0):
        below.plot(side["m"], side["error"], color=PALETTE[5], lw=1.5)
    reference_line(below, 0.0, upright=False)
    below.set(xlabel="reward margin $m$ (nats)", ylabel="Eq. 14 minus exact")
    where = "m > 0" if ((table["exact"] < 0) == (table["m"] > 0)).all() else "some m"
    worst = table.sort_values("error", key=abs).iloc[-1]
    finding = (
        f"The weight is negative for {where}; Eq. 14 errs by {abs(worst['error']):.3f} at most "
    )
    finding += f"(m = {worst['m']:.2f})"
    gamma0, delta = table["gamma0"].iloc[0], table["delta"].iloc[0]
    note = f"n = {len(table)} values of m, computed, no seeds; gamma0 {gamma0:g}, delta {delta:g}; "
    return head(figure, finding, note + "blue ground: weight above zero, orange: below")


def benchmark_length_control(table: pd.DataFrame) -> Figure:
    """Raw and length-controlled scores by truth: replies, score, truth, value, judgments."""
    figure, parts = style.panels(table, "score", figsize=(8.4, 4), sharey=True)
    said = []
    for ax, kind, part in parts:
        ax.axline((0, 0), slope=1, color=GREY, lw=1, ls=":")
        for place, habit, own in groups(part, "replies"):
            look: dict[str, Any] = {"color": PALETTE[place], "marker": style.MARKERS[place]}
            ax.plot(own["truth"], own["value"], **look, ms=5, label=f"{habit} replies")
        ax.set(title=kind, xlabel="win rate at equal length, known (%)")
        ax.set(xlim=(0, 100), ylim=(0, 100))
        said.append(f"{(part['value'] - part['truth']).abs().mean():.1f} points ({kind})")
    cast(ConstrainedLayoutEngine, figure.get_layout_engine()).set(wspace=0.08)
    parts[0][0].set_ylabel("score (%)")
    parts[0][0].legend(loc="upper left")
    note = f"{counted(table['judgments'], 'simulated judgments a point')}, one seed"
    return head(figure, f"Mean distance from the truth: {', '.join(said)}", note, table)


def your_detection(table: pd.DataFrame) -> Figure:
    """How turned labels are found and counted by task: task, rate, seeds, n, the estimators."""
    figure, (left, right) = canvas(1, 2, figsize=(10, 4))
    for ax in (left, right):
        ax.plot([0, 0.4], [0, 0.4], ":", color=GREY, lw=1)
        ax.set_xlabel("share of labels turned")
    ours = "average_precision_ours"
    bounds = {f"{ours}_low": "low", f"{ours}_high": "high"}
    left.set(ylabel="average precision (dotted: by lot)", ylim=(0, 1.02))
    turned = table[table["rate"] > 0].rename(columns=bounds)
    marks.lines_with_bands(turned, left, x="rate", y=ours, by="task")
    ends: dict[str, tuple[float, float, str]] = {}
    for place, task, part in groups(table, "task"):
        rate, shade = part["rate"], PALETTE[place]
        look: dict[str, Any] = {"color": shade, "ms": 5, "lw": 1.2}
        trusted = rate + part["trusted_bias"]
        right.plot(rate, trusted, **look, ls="-", marker=style.MARKERS[place])
        right.plot(rate, rate + part["confident_bias"], **look, ls="--", marker="x")
        band = part["trusted_low"], part["trusted_high"]
        right.fill_between(rate, *band, color=shade, alpha=0.12, lw=0)
        ends[task] = (0.4, float(trusted.iloc[-1]), shade)
    right.set_ylabel("estimated share (dotted: the truth)")
    right.set_ylim(0, max(0.5, float(table["trusted_high"].max())) + 0.01)
    style.name_lines(right, ends)
    right.set_title("solid: trusted pairs; dashed, x: confident learning")
    at = table[np.isclose(table["rate"], 0.2)].set_index("task")[ours]
    words = ", ".join(f"{value:.2f} ({task})" for task, value in at.items())
    note = f"{counted(table['n'], 'pairs')}, {findings.ranged(table['seeds'], 0)} seeds a point; "
    note += "bands: 95 %, right: of one file, mean over seeds"
    return head(figure, f"With 20 % turned, average precision is {words}; 0.20 by lot", note)


def paper_items(items: pd.DataFrame) -> Figure:
    """Every table and figure of the papers, its numbers and ours, of `analysis.item_table`."""
    names = items["paper"].map(PAPERS) + " " + items["item"] + " · " + items["title"]
    drawn = items.assign(place=np.arange(len(items))[::-1])
    figure, ax = canvas(figsize=(9, 9))
    for _, verdict, part in groups(drawn, "verdict"):
        look: dict[str, Any] = {"color": SHADES[verdict], "edgecolor": style.GRID, "label": verdict}
        ax.barh(part["place"], 160, left=-80, height=1, **look)
    _numbers(drawn, ax)
    reference_line(ax, 0.0)
    ax.set_yticks(drawn["place"], names + " · " + items["verdict"], size=8)
    ax.set_xscale("symlog", linthresh=5, linscale=1.5)
    ticks = [-50, -20, -10, -5, 0, 5, 10, 20, 50]
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlim=(-80, 80), ylim=(-0.5, len(items) - 0.5))
    words = "percentage points, or hundredths of an sd of gold; as the caption takes the difference"
    ax.set_xlabel(words)
    ax.legend(loc="upper center", bbox_to_anchor=(0.3, -0.05), ncols=4)
    found = items["verdict"].value_counts()
    parts = [f"{word} {found[word]}" for word in SHADES if word in found]
    finding = f"Of {len(items)} tables and figures: {', '.join(parts)}"
    note = f"n = {len(items)} items; worlds and seeds of each number in the table; 95 % intervals"
    return head(figure, finding, note, items)


def _numbers(drawn: pd.DataFrame, ax: Axes) -> None:
    """The paper's number hollow, ours filled; words where a row is on another scale."""
    looks: dict[str, tuple[float, dict[str, Any]]] = {
        "printed": (0.25, {"fmt": "D", "mfc": "none", "color": GREY, "ms": 5, "lw": 1}),
        "toy": (0.0, {"fmt": "o", "color": PALETTE[0], "ms": 4, "lw": 1.5}),
        "real": (-0.25, {"fmt": "s", "color": "#000000", "ms": 4, "lw": 1.5}),
    }
    words = {"printed": "the paper", "toy": "toy world", "real": "real text"}
    for where, (raised, look) in looks.items():
        if where == "printed":
            part = drawn[drawn["unit"] == "points"].dropna(subset="printed_value")
        else:
            part = drawn[drawn[f"{where}_unit"].isin(["points", "sd"])]
        numbers = (part[f"{where}_{name}"].astype(float) for name in ("value", "low", "high"))
        x, low, high = (100 * column for column in numbers)
        errors = [x - low, high - x]
        ax.errorbar(x, part["place"] + raised, xerr=errors, **look, label=words[where])
    known = drawn[["printed_value", "toy_value", "real_value"]].notna().any(axis=1)
    worded = drawn[(drawn["unit"] != "points") | ~known].astype(object)
    for row in worded.where(worded.notna(), "").to_dict("records"):
        ours = " | ".join(row[where] for where in ("toy", "real") if row[where])
        said = ours or row["reason"].split(",")[0].split(";")[0]
        ax.text(0, row["place"], said, ha="center", va="center", fontsize=7.5)
