"""Figures about rewards, margins and what the papers print, each of its one tidy table."""

from typing import Any, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from robustpo_kit import analysis
from robustpo_kit.plots import findings, marks
from robustpo_kit.plots.style import (
    GREY,
    GRID,
    MARKERS,
    PALETTE,
    canvas,
    colour,
    groups,
    head,
    label,
    name_lines,
    reference_line,
)

SHADES = {  # of verdicts on items of the papers
    "agrees": "#7fb8d8",
    "differs": "#f2b880",
    "not shown": "#ffffff",
    "by construction": "#e4efe4",
    "cannot be tested here": "#d9d9d9",
    "no claim": "#eeeeee",
}
PAPERS = {"dora": "DoRA", "gamma_po": "gamma-PO"}


def reward_confidence(points: pd.DataFrame) -> Figure:
    """Replies at (reward, confidence), with marginals: policy, prompt_id, reward, confidence."""
    figure, axes = canvas(
        2,
        2,
        figsize=(7.4, 5.4),
        width_ratios=(5, 1),
        height_ratios=(1, 4),
        sharex="col",
        sharey="row",
    )
    ax, above, beside = axes[1, 0], axes[0, 0], axes[1, 1]
    axes[0, 1].remove()
    marks.clouds(points, analysis.confidence_bands(points), ax)
    for place, policy, part in groups(points, "policy"):
        look = {"element": "step", "fill": False, "bins": 20, "color": colour(policy, place)}
        look |= {"ls": "-" if place else "--", "lw": 1.3}
        sns.histplot(part, x="reward", **look, label=label(policy), ax=above)
        sns.histplot(part, y="confidence", **look, ax=beside)
    above.set_ylabel("replies")
    beside.set_xlabel("replies")
    ax.set_xlabel("reward, normalised to [0, 1]")
    above.legend(ncols=2, loc="upper left")
    fits = analysis.reward_confidence(points)
    words = "; ".join(
        f"{label(row['policy'])} {findings.interval(row, 'slope')}"
        for row in fits.to_dict("records")
    )
    note = f"{findings.counted(fits['replies'], 'replies a policy')}, a prompt's joined, of "
    note += f"{fits['prompts'].iloc[0]} prompts; 95 % bands, errors clustered by prompt"
    head(figure, f"Slope of confidence on reward: {words}", note, points)
    return figure


def confidence_slope_differences(table: pd.DataFrame) -> Figure:
    """Slopes of DoRA minus ERM by loss, and the paper's: loss, difference, low, high, prompts."""
    paper = analysis.paper_values("dora").query("table == 'Figure 4'")
    models = "paper, " + paper["row"].str.split(" / ").str[0]
    printed = pd.DataFrame({"loss": models, "printed in the paper": paper["value"]})
    rows = pd.concat([table, printed], ignore_index=True)
    figure, ax = canvas(figsize=(6.8, 1.6 + 0.32 * len(rows)))
    marks.bars_with_ci(
        rows,
        ax,
        name="loss",
        value="difference",
        xlabel="slope of confidence on reward, DoRA minus ERM",
        reference=0.0,
        printed=["printed in the paper"],
    )
    sentence = findings.contrasts(table["loss"].map(label), table, "ERM's slope")
    above = (table["high"] < paper["value"].min()).sum()
    finding = f"{sentence}; {len(table) - above} of {len(table)} intervals reach the paper's values"
    prompts = findings.ranged(table["prompts"], 0)
    note = f"{findings.counted(table['replies'], 'replies')}, {prompts} prompts; 95 % intervals, "
    head(figure, finding, note + "errors clustered by prompt; hollow: printed", table)
    return figure


def gamma_curves(table: pd.DataFrame) -> Figure:
    """Accuracy of gamma forms over their plain losses, and the margins: policy, step, accuracy."""
    plain = [name for name in dict.fromkeys(table["policy"]) if not name.startswith("gamma-")]
    figure, axes = canvas(1, len(plain) + 1, figsize=(11, 3.6))
    said = []
    for ax, name in zip(axes[:-1], plain, strict=True):
        pair = [table[table["policy"] == policy] for policy in (name, f"gamma-{name}")]
        under = {"color": "#bbbbbb", "lw": 6, "solid_capstyle": "round"}
        over = {"color": PALETTE[0], "lw": 1.4, "marker": "o", "mfc": "white", "ms": 5}
        for part, policy, look in zip(pair, (name, f"gamma-{name}"), (under, over), strict=True):
            ax.plot(part["step"], part["accuracy"], **look, label=label(policy))
        same = np.isclose(pair[0]["accuracy"], pair[1]["accuracy"]).sum()
        said.append(f"{same} of {len(pair[0])} steps ({label(name)})")
        ax.set(xlabel="optimizer step", ylim=(-0.05, 1.28), yticks=np.linspace(0, 1, 6))
        ax.legend(loc="upper left", ncols=2)
    axes[0].set_ylabel("share of pairs ranked right")
    dynamic = table[table["policy"].str.startswith("gamma-")]
    marks.margin_range(dynamic, axes[-1])
    finding = f"The dynamic margin leaves the accuracy as it is in {' and '.join(said)}"
    note = f"n = {table['step'].nunique()} steps, each on its batch of pairs, one seed; "
    head(figure, finding, note + "right: least to largest margin", table)
    return figure


def margin_violin(table: pd.DataFrame) -> Figure:
    """Reward gaps before training (policy sft, where it is there) and after it: policy, gap."""
    figure, ax = canvas(figsize=(6.8, 3.9))
    names = {"sft": "before (SFT)"}
    marks.violins(table.replace({"policy": names}), ax, value="gap", by="policy", ylabel="")
    ax.set_ylabel(r"gap $m = r_w - r_l$ ($\beta\,\cdot$ nats a token)")
    reference_line(ax, 0.0, upright=False)
    by_policy = table.groupby("policy", sort=False)["gap"]
    after = by_policy.median().drop("sft", errors="ignore")
    right = by_policy.agg(lambda gap: 100 * (gap > 0).mean()).drop("sft", errors="ignore")
    finding = f"Median gap {findings.ranged(after, 1)} after training, "
    finding += f"{findings.ranged(right, 0)} % positive"
    if "sft" in by_policy.groups:
        before = table.loc[table["policy"] == "sft", "gap"]
        finding += f"; before {before.median():.1f}, {(before > 0).mean():.0%} positive"
    note = f"{findings.counted(by_policy.size(), 'training pairs a policy')}; lines: quartiles"
    head(figure, finding, note, table)
    return figure


def gamma_versus_gap(table: pd.DataFrame) -> Figure:
    """Target margins over gamma0 at the published settings: setting, gap, gamma, gamma0."""
    figure, ax = canvas(figsize=(7.4, 4.2))
    ratio = table["gamma"] / table["gamma0"]
    ax.set_ylim(ratio.min() - 0.05, ratio.max() + 0.05)
    marks.gamma_versus_gap(table, ax)
    spread = ratio.groupby(table["setting"]).agg(lambda own: own.max() - own.min()).sort_values()
    ends = [f"{spread.iloc[place]:.2f} of gamma0 ({spread.index[place]})" for place in (0, -1)]
    finding = f"The margins' spread: from {' to '.join(ends)}"
    note = findings.counted(table.groupby("setting").size(), "pairs, the same for all settings")
    head(figure, finding, note + ", each at its own beta; dotted: the constant margin", table)
    return figure


def theorem_3_1(table: pd.DataFrame) -> Figure:
    """Smoothing weight and the error of Eq. 14: m, exact, approximate, gamma0, delta."""
    figure, (above, below) = canvas(2, 1, figsize=(6.6, 5), sharex=True, height_ratios=(2.4, 1))
    marks.smoothing(table, above)
    above.set_xlabel("")
    error = table["approximate"] - table["exact"]
    for sign in (-1, 1):
        side = np.sign(table["m"]) == sign
        below.plot(table["m"][side], error[side], color=PALETTE[5], lw=1.5)
    reference_line(below, 0.0, upright=False)
    below.set(xlabel="reward margin $m$ (nats)", ylabel="Eq. 14 minus exact")
    negative = table.loc[table["exact"] < 0, "m"]
    where = (
        "m > 0" if negative.min() > 0 and (table["exact"][table["m"] > 0] < 0).all() else "some m"
    )
    worst = table.assign(error=error.abs()).sort_values("error").iloc[-1]
    finding = f"The weight is negative for {where}; Eq. 14 errs by {worst['error']:.3f} at most "
    finding += f"(m = {worst['m']:.2f})"
    gamma0, delta = table["gamma0"].iloc[0], table["delta"].iloc[0]
    note = f"n = {len(table)} values of m, computed, no seeds; gamma0 {gamma0:g}, delta {delta:g}; "
    head(figure, finding, note + "blue ground: weight above zero, orange: below")
    return figure


def benchmark_length_control(table: pd.DataFrame) -> Figure:
    """Raw and length-controlled scores by truth: replies, score, truth, value, judgments."""
    kinds = list(dict.fromkeys(table["score"]))
    figure, axes = canvas(1, len(kinds), figsize=(8.4, 4), sharey=True)
    errors = (table["value"] - table["truth"]).abs().groupby(table["score"]).mean()
    for ax, kind in zip(axes, kinds, strict=True):
        ax.axline((0, 0), slope=1, color=GREY, lw=1, ls=":")
        for place, habit, own in groups(table[table["score"] == kind], "replies"):
            ax.plot(
                own["truth"],
                own["value"],
                color=PALETTE[place],
                marker=MARKERS[place],
                ms=5,
                label=f"{habit} replies",
            )
        ax.set(
            title=kind, xlabel="win rate at equal length, known (%)", xlim=(0, 100), ylim=(0, 100)
        )
    cast(ConstrainedLayoutEngine, figure.get_layout_engine()).set(wspace=0.08)
    axes[0].set_ylabel("score (%)")
    axes[0].legend(loc="upper left")
    words = ", ".join(f"{errors[kind]:.1f} points ({kind})" for kind in kinds)
    note = f"{findings.counted(table['judgments'], 'simulated judgments a point')}, one seed"
    head(figure, f"Mean distance from the truth: {words}", note, table)
    return figure


def your_detection(table: pd.DataFrame) -> Figure:
    """How turned labels are found and counted by task: task, rate, seeds, n, the estimators."""
    figure, (left, right) = canvas(1, 2, figsize=(10, 4))
    for ax in (left, right):
        ax.plot([0, 0.4], [0, 0.4], ":", color=GREY, lw=1)
    ours = "average_precision_ours"
    renamed = table[table["rate"] > 0].rename(
        columns={f"{ours}_low": "low", f"{ours}_high": "high"}
    )
    left.set(
        xlabel="share of labels turned", ylabel="average precision (dotted: by lot)", ylim=(0, 1.02)
    )
    marks.lines_with_bands(renamed, left, x="rate", y=ours, by="task", named=True)
    ends: dict[str, tuple[float, float, str]] = {}
    for place, task, part in groups(table, "task"):
        shade = PALETTE[place]
        for column, ls, mark in (
            ("trusted_bias", "-", MARKERS[place]),
            ("confident_bias", "--", "x"),
        ):
            estimate = part["rate"] + part[column]
            right.plot(part["rate"], estimate, color=shade, ls=ls, marker=mark, ms=5, lw=1.2)
        right.fill_between(
            part["rate"], part["trusted_low"], part["trusted_high"], color=shade, alpha=0.12, lw=0
        )
        ends[task] = (0.4, float((part["rate"] + part["trusted_bias"]).iloc[-1]), shade)
    top = max(0.5, float(table["trusted_high"].max()))
    right.set(xlabel="share of labels turned", ylabel="estimated share (dotted: the truth)")
    right.set_ylim(0, top + 0.01)
    name_lines(right, ends)
    right.set_title("solid: trusted pairs; dashed, x: confident learning")
    at = table[np.isclose(table["rate"], 0.2)].set_index("task")[ours]
    words = ", ".join(f"{value:.2f} ({task})" for task, value in at.items())
    seeds = findings.ranged(table["seeds"], 0)
    note = f"{findings.counted(table['n'], 'pairs')}, {seeds} seeds a point; "
    note += "bands: 95 %, right: of one file, mean over seeds"
    head(figure, f"With 20 % turned, average precision is {words}; 0.20 by lot", note)
    return figure


def paper_items(items: pd.DataFrame) -> Figure:
    """Every table and figure of the papers, its numbers and ours, of `analysis.item_table`."""
    names = items["paper"].map(PAPERS) + " " + items["item"] + " · " + items["title"]
    drawn = items.assign(place=np.arange(len(items))[::-1])
    figure, ax = canvas(figsize=(9, 9))
    for verdict, part in drawn.groupby("verdict", sort=False):
        shade = SHADES[str(verdict)]
        ax.barh(part["place"], 160, left=-80, height=1, color=shade, edgecolor=GRID, label=verdict)
    _numbers(drawn, ax)
    reference_line(ax, 0.0)
    ax.set_yticks(drawn["place"], names + " · " + items["verdict"], size=8)
    ax.set_xscale("symlog", linthresh=5, linscale=1.5)
    ticks = [-50, -20, -10, -5, 0, 5, 10, 20, 50]
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlim=(-80, 80), ylim=(-0.5, len(items) - 0.5))
    ax.set_xlabel(
        "percentage points, or hundredths of an sd of gold; as the caption takes the difference"
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.3, -0.05), ncols=4)
    found = items["verdict"].value_counts()
    parts = [f"{word} {found[word]}" for word in SHADES if word in found]
    finding = f"Of {len(items)} tables and figures: {', '.join(parts)}"
    note = f"n = {len(items)} items; worlds and seeds of each number in the table; 95 % intervals"
    head(figure, finding, note, items)
    return figure


def _numbers(drawn: pd.DataFrame, ax: Axes) -> None:
    """The paper's number hollow, ours filled; words where a row is on another scale."""
    printed = drawn[drawn["unit"] == "points"].dropna(subset="printed_value")
    x, low, high = (100 * printed[f"printed_{name}"] for name in ("value", "low", "high"))
    look: dict[str, Any] = {"fmt": "D", "mfc": "none", "color": GREY, "ms": 5, "lw": 1}
    ax.errorbar(x, printed["place"] + 0.25, xerr=[x - low, high - x], **look, label="the paper")
    for where, shade, mark, lower in (
        ("toy", PALETTE[0], "o", 0.0),
        ("real", "#000000", "s", 0.25),
    ):
        part = drawn[drawn[f"{where}_unit"].isin(["points", "sd"])]
        x, low, high = (
            100 * part[f"{where}_{name}"].astype(float) for name in ("value", "low", "high")
        )
        words = {"toy": "toy world", "real": "real text"}[where]
        look = {"fmt": mark, "color": shade, "ms": 4, "lw": 1.5, "label": words}
        ax.errorbar(x, part["place"] - lower, xerr=[x - low, high - x], **look)
    numbers = drawn[["printed_value", "toy_value", "real_value"]].notna().any(axis=1)
    worded = drawn[(drawn["unit"] != "points") | ~numbers].astype(object)
    for row in worded.where(worded.notna(), "").to_dict("records"):
        ours = " | ".join(row[where] for where in ("toy", "real") if row[where])
        words = ours or row["reason"].split(",")[0].split(";")[0]
        ax.text(0, row["place"], words, ha="center", va="center", fontsize=7.5)
