"""Figures: each function takes a tidy table and an axis, draws, and returns the axis."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

# Okabe and Ito (2008): distinguishable for every common form of colour vision
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
COLOURS = {
    "human_correct": "#0072B2",
    "human_matched": "#0072B2",
    "human_wrong": "#56B4E9",
    "human_mismatched": "#56B4E9",
    "smollm2": "#D55E00",
    "golden": "#0072B2",
    "base": "#999999",
    "sft": "#999999",
    "erm": "#0072B2",
    "dro": "#E69F00",
    "reweight": "#009E73",
    "dora": "#D55E00",
}
ROWS = ("golden", "base")  # of tables, by their whole name; elsewhere these words say what they say
NAMES = {
    "human_correct": "human, correct",
    "human_wrong": "human, wrong",
    "human_matched": "human",
    "human_mismatched": "human, other prompt",
    "smollm2": "SmolLM2",
    "golden": "human reply",
    "base": "base model",
    "sft": "SFT",
    "erm": "ERM",
    "dro": "DRO",
    "reweight": "reweighting",
    "dora": "DoRA",
    "dpo_pl": "DPO-PL",
    "rrhf": "RRHF",
    "lire": "LIRE",
    "win_rate": "win rate",
    "win_rate_valid": "win rate, if valid",
    "mass": "valid mass",
    "gold": "gold reward",
    "proxy": "proxy reward",
    "reweight+oracle": "reweighting, true h~",
    "dora+oracle": "DoRA, true h~",
}
VERDICTS = {"win": "#7fb8d8", "tie": "#d9d9d9", "lose": "#f2b880", "open": "#ffffff"}
GRID = "#e6e6e6"


def colour(name: str, place: int = 0) -> str:
    """The fixed colour of a source or method, else one of the palette by place."""
    return COLOURS.get(name, PALETTE[place % len(PALETTE)])


def label(name: str) -> str:
    """The readable name of a source or method; "LOSS AGGREGATOR" is read word by word."""
    words = (word if word in ROWS else NAMES.get(word, word) for word in name.split())
    return NAMES.get(name) or " ".join(words)


def _groups(table: pd.DataFrame, column: str) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Number, name and rows of each group, in the order of their first rows."""
    for place, (name, part) in enumerate(table.groupby(column, sort=False)):
        yield place, str(name), part


def composition(table: pd.DataFrame, ax: Axes, *, legend: bool = True) -> Axes:
    """Stacked shares of sources by column, of a table of `mixture.composition`."""
    wide = table.pivot_table(index="column", columns="source", values="share", fill_value=0.0)
    bottom = np.zeros(len(wide))
    for place, source in enumerate(wide.columns):
        ax.bar(
            wide.index,
            wide[source],
            bottom=bottom,
            color=colour(source, place),
            label=label(source),
            width=0.7,
        )
        bottom += wide[source].to_numpy()
    names = [f"$y_{column}$" for column in wide.index]
    if wide.index[0] == 0:
        names[0] += " (golden slot)"
    ax.set_xticks(wide.index, names)
    ax.set(ylabel="share of samples", ylim=(0, 1), title="Who wrote each response")
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return ax


def reliability(table: pd.DataFrame, ax: Axes) -> Axes:
    """Reliability diagram: a line a stage of the tables of `SourceClassifier.reliability`.

    The larger a marker, the more responses in its bin; bins of fewer than ten are left out.
    """
    table = table[table["count"] >= 10]
    ax.plot([0, 1], [0, 1], color="#555555", lw=1, ls=":", label="perfect")
    for place, stage, part in _groups(table, "stage"):
        ax.plot(part["mean_c"], part["golden_share"], color=PALETTE[place], lw=1.2, label=stage)
        ax.scatter(
            part["mean_c"],
            part["golden_share"],
            s=4 + 0.25 * part["count"],
            color=PALETTE[place],
            alpha=0.7,
        )
    ax.set(
        xlabel="predicted probability of golden",
        ylabel="observed share of golden",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.set_aspect("equal")
    ax.legend(loc="upper left")
    return ax


def violins(table: pd.DataFrame, ax: Axes, *, value: str, by: str, ylabel: str) -> Axes:
    """One violin with median and quartiles a level of `by`."""
    names = list(dict.fromkeys(table[by]))
    values = [table.loc[table[by] == name, value] for name in names]
    drawn = ax.violinplot(values, showextrema=False, widths=0.8)
    bodies = cast(list[Collection], drawn["bodies"])  # its stub promises a single one
    for place, (body, name) in enumerate(zip(bodies, names, strict=True)):
        body.set(facecolor=colour(name, place), alpha=0.55)
        low, mid, high = values[place].quantile([0.25, 0.5, 0.75])
        ax.vlines(place + 1, low, high, color="#222222", lw=4)
        ax.plot(place + 1, mid, marker="o", color="white", ms=4)
    ax.set_xticks(range(1, len(names) + 1), [label(name) for name in names])
    ax.set(ylabel=ylabel)
    return ax


def bars_with_ci(
    table: pd.DataFrame,
    ax: Axes,
    *,
    name: str,
    value: str,
    xlabel: str,
    reference: float | None = None,
) -> Axes:
    """Horizontal points with intervals and an optional vertical reference line.

    Args:
        table: a row a point; the bounds stand in VALUE_low and VALUE_high, or else in low and high.
        ax: where to draw.
        name: the column that labels the points.
        value: the column of estimates.
        xlabel: of the axis.
        reference: where the vertical line stands.
    """
    places = np.arange(len(table))[::-1]
    low, high = f"{value}_low", f"{value}_high"
    if low not in table:
        low, high = "low", "high"
    errors = [table[value] - table[low], table[high] - table[value]]
    ax.errorbar(table[value], places, xerr=errors, fmt="o", color=PALETTE[0], capsize=3)
    if reference is not None:
        ax.axvline(reference, color="#555555", lw=1, ls=":")
    ax.set_yticks(places, [label(text) for text in table[name]])
    ax.set(xlabel=xlabel, ylim=(-0.6, len(table) - 0.4))
    return ax


def curves(table: pd.DataFrame, ax: Axes, *, value: str, ylabel: str) -> Axes:
    """One line a method over optimizer steps."""
    for place, policy, part in _groups(table, "policy"):
        ax.plot(
            part["step"],
            part[value],
            color=colour(policy, place),
            label=label(policy),
            marker=".",
            ms=5,
        )
    ax.set(xlabel="optimizer step", ylabel=ylabel)
    ax.legend()
    return ax


def win_lose(table: pd.DataFrame, ax: Axes) -> Axes:
    """Stacked shares of win, tie and lose by method, of a table of `judging.win_table`."""
    places = np.arange(len(table))[::-1]
    left = np.zeros(len(table))
    for outcome, shade in (("win", PALETTE[0]), ("tie", "#cccccc"), ("lose", PALETTE[1])):
        ax.barh(places, table[outcome], left=left, color=shade, label=outcome, height=0.65)
        left += table[outcome].to_numpy()
    errors = [table["win"] - table["win_low"], table["win_high"] - table["win"]]
    ax.errorbar(table["win"], places, xerr=errors, fmt="none", ecolor="#222222", capsize=3, lw=1.2)
    ax.set_yticks(places, [label(text) for text in table["policy"]])
    ax.set(xlabel="share of prompts, against the human reply (bar: 95 % CI of win)", xlim=(0, 1))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    ax.grid(axis="y", visible=False)
    return ax


def reward_confidence(points: pd.DataFrame, fits: pd.DataFrame, ax: Axes) -> Axes:
    """Replies as points (reward, confidence) and a least-squares line a method (DoRA Fig. 4).

    Args:
        points: a row a reply, with the columns policy, reward, confidence.
        fits: of `analysis.reward_confidence`.
        ax: where to draw.
    """
    for place, policy, part in _groups(points, "policy"):
        shade = colour(policy, place)
        ax.scatter(part["reward"], part["confidence"], s=12, alpha=0.45, color=shade, linewidths=0)
        fit = fits.set_index("policy").loc[policy]
        ends = np.array([part["reward"].min(), part["reward"].max()])
        text = f"{label(policy)}: slope {fit.slope:.2f} [{fit.low:.2f}, {fit.high:.2f}]"
        ax.plot(ends, fit.intercept + fit.slope * ends, color=shade, ls="--", lw=2, label=text)
    ax.set(xlabel="normalised reward", ylabel="classifier confidence (golden)", ylim=(-0.02, 1.02))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22))
    return ax


def gamma_versus_gap(table: pd.DataFrame, ax: Axes, *, gamma0: ArrayLike = ()) -> Axes:
    """Target margin against reward gap (gamma-PO Fig. 5): a line a setting.

    Args:
        table: with the columns setting, gap, gamma.
        ax: where to draw.
        gamma0: dotted lines stand there, one or several.
    """
    for place, setting, part in _groups(table, "setting"):
        part = part.sort_values("gap")
        ax.plot(
            part["gap"],
            part["gamma"],
            color=PALETTE[place % 8],
            lw=1.2,
            marker=".",
            ms=4,
            label=setting,
        )
    for value in np.atleast_1d(gamma0):
        ax.axhline(value, color="#555555", lw=1, ls=":")
    ax.set(xlabel="reward gap $m = r_w - r_l$", ylabel=r"target margin $\gamma_i$")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # beside it would lie on the lines
    return ax


def word_histogram(table: pd.DataFrame, ax: Axes) -> Axes:
    """Share of responses by length, a line a source; columns source, words, responses (counts)."""
    for place, source, part in _groups(table, "source"):
        part = part.sort_values("words")
        share = part["responses"] / part["responses"].sum()
        ax.plot(
            part["words"],
            share.rolling(3, min_periods=1).mean(),
            color=colour(source, place),
            label=label(source),
        )
    ax.set(
        xlabel="words (3-word running mean)",
        ylabel="share of the source's responses",
        xlim=(0, 60),
    )
    ax.legend()
    return ax


def lines_with_bands(table: pd.DataFrame, ax: Axes, *, x: str, y: str, by: str) -> Axes:
    """A line a level of `by` through `y` over `x`, with its interval (low, high) as a band."""
    for place, name, part in _groups(table, by):
        part, shade = part.sort_values(x), colour(name, place)
        ax.fill_between(part[x], part["low"], part["high"], color=shade, alpha=0.2, linewidth=0)
        ax.plot(part[x], part[y], color=shade, marker="o", label=label(name))
    ax.legend()
    return ax


def margin_range(table: pd.DataFrame, ax: Axes) -> Axes:
    """Smallest to largest target margin of each step as a band, and its mean, by method.

    Columns policy, step, gamma_min, gamma_max, margin_mean.
    """
    for place, policy, part in _groups(table, "policy"):
        shade = PALETTE[place % 8]
        ax.fill_between(
            part["step"], part["gamma_min"], part["gamma_max"], color=shade, alpha=0.3, label=policy
        )
        ax.plot(part["step"], part["margin_mean"], color=shade, lw=1.2)
    ax.set(xlabel="optimizer step", ylabel=r"target margin $\gamma_i$: min, mean, max")
    ax.legend()
    return ax


def smoothing(table: pd.DataFrame, ax: Axes, *, delta: float) -> Axes:
    """The smoothing weight that equals a change of margin, against m (gamma-PO Theorem 3.1).

    Args:
        table: with the columns m, exact, approximate (Eq. 14); the curves have a pole at m = 0.
        ax: where to draw.
        delta: the change of margin.
    """
    for sign, names in ((-1, ("exact", "Eq. 14")), (1, (None, None))):  # one legend for both
        part = table[np.sign(table["m"]) == sign]
        ax.plot(part["m"], part["exact"], color=PALETTE[0], lw=2.5, label=names[0])
        ax.plot(part["m"], part["approximate"], color=PALETTE[1], ls="--", label=names[1])
    ax.axhline(0, color="#555555", lw=1, ls=":")
    ax.set(
        xlabel="reward margin $m$", ylabel=r"smoothing $\varepsilon$", title=rf"$\delta$ = {delta}"
    )
    ax.legend()
    return ax


def verdict_map(table: pd.DataFrame, ax: Axes, *, xlabel: str, legend: bool = True) -> Axes:
    """Where each method wins, ties and loses: a row a method and baseline, a column a dose.

    Numbers are differences; colour says what their intervals show, and white that they show none.

    Args:
        table: of `analysis.cell_table`, one outcome.
        ax: where to draw.
        xlabel: what a dose is.
        legend: whether colours are named.
    """
    pairs = [tuple(pair) for pair in table[["method", "baseline"]].to_numpy()]
    rows, doses = list(dict.fromkeys(pairs)), sorted(set(table["dose"]))
    for pair, (_, row) in zip(pairs, table.iterrows(), strict=True):
        x, y = doses.index(row["dose"]), rows.index(pair)
        text = f"{round(row['difference'], 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
        weight = "bold" if row["verdict"] in ("win", "lose") else "normal"
        ax.add_patch(_cell(x - 0.5, y - 0.5, row["verdict"]))
        ax.text(x, y, text, ha="center", va="center", weight=weight)
    ax.set_xticks(range(len(doses)), [f"{dose:g}" for dose in doses])
    names = [f"{label(method)} \N{MINUS SIGN} {label(baseline)}" for method, baseline in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set(xlabel=xlabel, xlim=(-0.5, len(doses) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.grid(False)
    if legend:
        boxes = [_cell(0, 0, verdict) for verdict in VERDICTS]
        ax.legend(boxes, VERDICTS, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return ax


def _cell(x: float, y: float, verdict: str) -> Rectangle:
    return Rectangle((x, y), 1, 1, facecolor=VERDICTS[verdict], edgecolor=GRID)
