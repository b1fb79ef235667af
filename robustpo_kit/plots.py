"""Figures: each function takes a tidy table and an axis, draws, and returns the axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

# Okabe and Ito (2008): distinguishable for every common form of colour vision
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
COLOURS = {
    "human_correct": "#0072B2",
    "human_matched": "#0072B2",
    "human_wrong": "#56B4E9",
    "human_mismatched": "#56B4E9",
    "smollm2": "#D55E00",
    "sft": "#999999",
    "erm": "#0072B2",
    "dro": "#E69F00",
    "reweight": "#009E73",
    "dora": "#D55E00",
}
NAMES = {
    "human_correct": "human, correct",
    "human_wrong": "human, wrong",
    "human_matched": "human",
    "human_mismatched": "human, other prompt",
    "smollm2": "SmolLM2",
    "sft": "SFT",
    "erm": "ERM",
    "dro": "DRO",
    "reweight": "reweighting",
    "dora": "DoRA",
    "dpo_pl": "DPO-PL",
    "rrhf": "RRHF",
    "lire": "LIRE",
    "reweight+oracle": "reweighting, true h~",
    "dora+oracle": "DoRA, true h~",
}


def colour(name: str, place: int = 0) -> str:
    """The fixed colour of a source or method, else one of the palette by place."""
    return COLOURS.get(name, PALETTE[place % len(PALETTE)])


def label(name: str) -> str:
    """The readable name of a source or method; "LOSS AGGREGATOR" is read word by word."""
    return NAMES.get(name) or " ".join(NAMES.get(word, word) for word in name.split())


def composition(table: pd.DataFrame, ax: Any, *, legend: bool = True) -> Any:
    """Stacked shares of sources by column; table of `mixture.composition` (column, source, share)."""
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
    ax.set_xticks(
        wide.index, [f"$y_{k}$" + (" (golden slot)" if k == 0 else "") for k in wide.index]
    )
    ax.set(ylabel="share of samples", ylim=(0, 1), title="Who wrote each response")
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return ax


def reliability(table: pd.DataFrame, ax: Any) -> Any:
    """Reliability diagram of `calibration.reliability`: columns stage, mean_c, golden_share, count (one row a bin).

    The larger a marker, the more responses in its bin; bins of fewer than ten are left out.
    """
    table = table[table["count"] >= 10]
    ax.plot([0, 1], [0, 1], color="#555555", lw=1, ls=":", label="perfect")
    for place, (stage, part) in enumerate(table.groupby("stage", sort=False)):
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


def violins(table: pd.DataFrame, ax: Any, *, value: str, by: str, ylabel: str) -> Any:
    """One violin with median and quartiles a level of `by`."""
    names = list(dict.fromkeys(table[by]))
    parts = ax.violinplot(
        [table.loc[table[by] == name, value] for name in names], showextrema=False, widths=0.8
    )
    for place, (body, name) in enumerate(zip(parts["bodies"], names, strict=True)):
        body.set(facecolor=colour(name, place), alpha=0.55)
        low, mid, high = table.loc[table[by] == name, value].quantile([0.25, 0.5, 0.75])
        ax.vlines(place + 1, low, high, color="#222222", lw=4)
        ax.plot(place + 1, mid, marker="o", color="white", ms=4)
    ax.set_xticks(range(1, len(names) + 1), [label(name) for name in names])
    ax.set(ylabel=ylabel)
    return ax


def bars_with_ci(
    table: pd.DataFrame,
    ax: Any,
    *,
    name: str,
    value: str,
    xlabel: str,
    reference: float | None = None,
) -> Any:
    """Horizontal points with intervals and an optional vertical reference line.

    Columns `name`, `value` and its bounds: VALUE_low, VALUE_high, or else low, high.
    """
    places = np.arange(len(table))[::-1]
    low, high = (f"{value}_{end}" if f"{value}_{end}" in table else end for end in ("low", "high"))
    errors = [table[value] - table[low], table[high] - table[value]]
    ax.errorbar(table[value], places, xerr=errors, fmt="o", color=PALETTE[0], capsize=3)
    if reference is not None:
        ax.axvline(reference, color="#555555", lw=1, ls=":")
    ax.set_yticks(places, [label(text) for text in table[name]])
    ax.set(xlabel=xlabel, ylim=(-0.6, len(table) - 0.4))
    return ax


def curves(table: pd.DataFrame, ax: Any, *, value: str, ylabel: str) -> Any:
    """One line a method over optimizer steps."""
    for place, (policy, part) in enumerate(table.groupby("policy", sort=False)):
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


def win_lose(table: pd.DataFrame, ax: Any) -> Any:
    """Stacked win, tie, lose shares a method; columns policy, win, tie, lose (shares) and win_low, win_high."""
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


def reward_confidence(points: pd.DataFrame, fits: pd.DataFrame, ax: Any) -> Any:
    """DoRA Fig. 4: replies as points (reward, confidence), a dashed least-squares line a method."""
    for place, (policy, part) in enumerate(points.groupby("policy", sort=False)):
        shade = colour(policy, place)
        ax.scatter(part["reward"], part["confidence"], s=12, alpha=0.45, color=shade, linewidths=0)
        fit = fits.set_index("policy").loc[policy]
        ends = np.array([part["reward"].min(), part["reward"].max()])
        text = f"{label(policy)}: slope {fit.slope:.2f} [{fit.low:.2f}, {fit.high:.2f}]"
        ax.plot(ends, fit.intercept + fit.slope * ends, color=shade, ls="--", lw=2, label=text)
    ax.set(xlabel="normalised reward", ylabel="classifier confidence (golden)", ylim=(-0.02, 1.02))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22))
    return ax


def gamma_versus_gap(
    table: pd.DataFrame, ax: Any, *, gamma0: float | Sequence[float] | None = None
) -> Any:
    """gamma-PO Fig. 5: target margin against reward gap; columns setting, gap, gamma; dotted line(s) at gamma0."""
    for place, (setting, part) in enumerate(table.groupby("setting", sort=False)):
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
    for value in np.atleast_1d(gamma0) if gamma0 is not None else ():
        ax.axhline(value, color="#555555", lw=1, ls=":")
    ax.set(xlabel="reward gap $m = r_w - r_l$", ylabel=r"target margin $\gamma_i$")
    ax.legend()
    return ax


def word_histogram(table: pd.DataFrame, ax: Any, *, longest: int = 60) -> Any:
    """Share of responses by length, one line a source; columns source, words, responses (counts)."""
    for place, (source, part) in enumerate(table.groupby("source", sort=False)):
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
        xlim=(0, longest),
    )
    ax.legend()
    return ax


def points_with_band(
    table: pd.DataFrame, ax: Any, *, x: str, y: str, xlabel: str, ylabel: str
) -> Any:
    """A line through `y` over `x` with its interval (columns low, high) as a band."""
    table = table.sort_values(x)
    ax.fill_between(
        table[x], table["low"], table["high"], color=PALETTE[4], alpha=0.35, label="95 % CI"
    )
    ax.plot(table[x], table[y], color=PALETTE[0], marker="o")
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    ax.legend()
    return ax


def margin_range(table: pd.DataFrame, ax: Any) -> Any:
    """Smallest to largest target margin of each step as a band, one a method; columns step, gamma_min, gamma_max."""
    for place, (policy, part) in enumerate(table.groupby("policy", sort=False)):
        shade = PALETTE[place % 8]
        ax.fill_between(
            part["step"], part["gamma_min"], part["gamma_max"], color=shade, alpha=0.3, label=policy
        )
        ax.plot(part["step"], part["margin_mean"], color=shade, lw=1.2)
    ax.set(xlabel="optimizer step", ylabel=r"target margin $\gamma_i$: min, mean, max")
    ax.legend()
    return ax


def smoothing(table: pd.DataFrame, ax: Any, *, delta: float) -> Any:
    """Theorem 3.1: the smoothing weight that equals a margin change `delta`, approximate and exact, against m."""
    for sign in (-1, 1):
        part = table[np.sign(table["m"]) == sign]
        shown = sign < 0
        ax.plot(
            part["m"], part["exact"], color=PALETTE[0], lw=2.5, label="exact" if shown else None
        )
        ax.plot(
            part["m"],
            part["approximate"],
            color=PALETTE[1],
            ls="--",
            label="Eq. 14" if shown else None,
        )
    ax.axhline(0, color="#555555", lw=1, ls=":")
    ax.set(
        xlabel="reward margin $m$", ylabel=r"smoothing $\varepsilon$", title=rf"$\delta$ = {delta}"
    )
    ax.legend()
    return ax
