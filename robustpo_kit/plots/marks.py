"""What figures are made of: each function takes a tidy table and an axis, draws, returns it."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from robustpo_kit.plots.maps import VERDICTS
from robustpo_kit.plots.style import (
    GREY,
    MARKERS,
    PALETTE,
    colour,
    groups,
    label,
    name_lines,
    reference_line,
)  # fmt: skip

FEWEST = 10  # responses in a bin of a reliability diagram, or it is left out


def composition(table: pd.DataFrame, ax: Axes) -> Axes:
    """Who wrote the golden slot, a bar for each of `data`, of tables of `mixture.composition`."""
    golden = table[table["column"] == 0]
    wide = golden.pivot_table(index="data", columns="source", values="share", sort=False)
    left = np.zeros(len(wide))
    for place, source in enumerate(wide):
        shares, shade = wide[source].fillna(0.0).to_numpy(), colour(str(source), place)
        bars = ax.barh(wide.index, shares, left=left, color=shade, edgecolor="white")
        words = [f"{label(str(source))} {share:.0%}" if share else "" for share in shares]
        ax.bar_label(bars, words, label_type="center", color="white", size=9)
        left += shares
    ax.invert_yaxis()
    ax.set(xlabel="share of rows whose golden slot $y_0$ it wrote", xlim=(0, 1))
    ax.grid(axis="y", visible=False)
    return ax


def reliability(table: pd.DataFrame, ax: Axes) -> Axes:
    """Reliability diagram with Wilson intervals: a line a stage of `SourceClassifier.reliability`.

    Bins of fewer than FEWEST responses are left out.
    """
    from statsmodels.stats.proportion import proportion_confint

    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfect")
    for place, stage, part in groups(table[table["count"] >= FEWEST], "stage"):
        share, count = part["golden_share"], part["count"]
        low, high = proportion_confint(share * count, count, method="wilson")
        errors = [(share - low).clip(0), (high - share).clip(0)]
        look: dict[str, Any] = {"color": PALETTE[place], "marker": MARKERS[place], "ms": 4}
        look |= {"lw": 1.2, "elinewidth": 0.8, "label": stage}
        ax.errorbar(part["mean_c"], share, yerr=errors, **look)
    ax.set(xlabel="predicted probability of golden", ylabel="observed share of golden")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return ax


def counts(table: pd.DataFrame, ax: Axes) -> Axes:
    """How many responses lie in each bin of `reliability`, by stage."""
    for place, _, part in groups(table, "stage"):
        every = part.set_index("bin")["count"].reindex(range(10), fill_value=0)
        ax.stairs(every, np.linspace(0, 1, 11), color=PALETTE[place], lw=1.2)
    ax.set(xlabel="predicted probability of golden", ylabel="count", xlim=(0, 1), ylim=(0, None))
    return ax


def violins(
    table: pd.DataFrame, ax: Axes, *, value: str, by: str, ylabel: str, halves: str | None = None
) -> Axes:
    """One violin with its quartiles a level of `by`; its halves are the two levels of `halves`."""
    names = list(dict.fromkeys(table[by]))
    shades = [colour(str(name), place) for place, name in enumerate(names)]
    look: dict[str, Any] = {"inner": "quart", "cut": 0, "alpha": 0.6, "linewidth": 1}
    hues: dict[str, Any] = {"hue": by, "hue_order": names, "palette": shades, "legend": False}
    if halves:
        hues = {"hue": halves, "split": True, "palette": PALETTE[:2]}
    sns.violinplot(table, x=by, y=value, order=names, **hues, **look, ax=ax)
    if halves:
        sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1.0), title=None, ncols=2)
    ax.set_xticks(range(len(names)), [label(str(name)) for name in names])
    ax.set(xlabel="", ylabel=ylabel)
    return ax


def bars_with_ci(
    table: pd.DataFrame,
    ax: Axes,
    *,
    name: str = "name",
    value: str = "difference",
    xlabel: str = "",
    reference: float | None = 0.0,
    solid: str | None = None,
    printed: Sequence[str] = (),
) -> Axes:
    """Horizontal points with intervals and a vertical reference line.

    Args:
        table: a row a point; the bounds stand in VALUE_low and VALUE_high, or else in low and high.
        ax: where to draw.
        name: the column that labels the points.
        value: the column of estimates.
        xlabel: of the axis.
        reference: where the vertical line stands, if anywhere.
        solid: a column of truth values; where it is false the point is hollow.
        printed: columns of values that a paper prints, drawn hollow where there are some.
    """
    places = np.arange(len(table))[::-1]
    low, high = f"{value}_low", f"{value}_high"
    if low not in table:
        low, high = "low", "high"
    errors = [table[value] - table[low], table[high] - table[value]]
    ax.errorbar(table[value], places, xerr=errors, fmt="none", ecolor=PALETTE[0], capsize=3)
    filled = table[solid].astype(bool) if solid else np.full(len(table), True)
    faces = np.where(filled, PALETTE[0], "white")
    ax.scatter(table[value], places, c=faces, edgecolors=PALETTE[0], s=36, zorder=3)
    for mark, column in zip("Ds^", printed, strict=False):
        look: dict[str, Any] = {"marker": mark, "c": "none", "ec": "#222222", "s": 40, "zorder": 4}
        ax.scatter(table[column], places, label=column, **look)
    if reference is not None:
        reference_line(ax, reference)
    ax.set_yticks(places, [label(str(text)) for text in table[name]])
    ax.set(xlabel=xlabel, ylim=(-0.6, len(table) - 0.4))
    return ax


def curves(table: pd.DataFrame, ax: Axes, *, value: str, ylabel: str) -> Axes:
    """One line a method over optimizer steps; over several seeds their mean and its 95 % band."""
    names = list(dict.fromkeys(table["policy"]))
    look: dict[str, Any] = {"hue": "policy", "style": "policy", "dashes": False, "ms": 5}
    look["palette"] = [colour(str(name), place) for place, name in enumerate(names)]
    look["markers"] = [MARKERS[place % len(MARKERS)] for place in range(len(names))]
    named = table.assign(policy=table["policy"].map(label))
    sns.lineplot(named, x="step", y=value, errorbar=("ci", 95), seed=0, **look, ax=ax)
    ax.set(xlabel="optimizer step", ylabel=ylabel)
    ax.legend(title=None)
    return ax


def name_curves(ax: Axes) -> Axes:
    """The names of the lines at their ends, in place of the legend."""
    handles, names = ax.get_legend_handles_labels()
    drawn = [line for line in ax.lines if np.size(line.get_xdata())]
    lines = {str(line.get_color()): line.get_xydata() for line in drawn}  # by hue
    ends = {}
    for handle, name in zip(cast(list[Line2D], handles), names, strict=True):
        shade = str(handle.get_color())
        x, y = np.asarray(lines[shade])[-1]
        ends[name] = (float(x), float(y), shade)
    if legend := ax.get_legend():
        legend.remove()
    name_lines(ax, ends)
    return ax


def scores(table: pd.DataFrame, ax: Axes) -> Axes:
    """Win rate plus half the ties with its interval, over the ties as a faint band, by method.

    Of a table of `judging.win_table`.
    """
    places = np.arange(len(table))[::-1]
    ax.barh(places, table["tie"], left=table["win"], color="#dddddd", height=0.6, zorder=1)
    bars_with_ci(table, ax, name="policy", value="score", reference=0.5)
    ax.set(xlabel="score against the human reply: win + tie/2 (grey: ties)", xlim=(0, 1))
    return ax


def clouds(points: pd.DataFrame, bands: pd.DataFrame, ax: Axes) -> Axes:
    """Replies at (reward, confidence), each prompt's joined, and a regression with its band.

    DoRA Fig. 4.

    Args:
        points: a row a reply, with the columns policy, prompt_id, reward, confidence.
        bands: of `analysis.confidence_bands`.
        ax: where to draw.
    """
    for _, pair in points.groupby("prompt_id", sort=False):
        ax.plot(pair["reward"], pair["confidence"], color=GREY, lw=0.5, alpha=0.25, zorder=1)
    for place, policy, part in groups(points, "policy"):
        look: dict[str, Any] = {"color": colour(policy, place), "lw": 0}
        spots: dict[str, Any] = {"s": 14, "alpha": 0.5, "marker": MARKERS[place]}
        ax.scatter(part["reward"], part["confidence"], **look, **spots)
        band = bands[bands["policy"] == policy]
        ax.fill_between(band["reward"], band["low"], band["high"], alpha=0.25, **look)
        look |= {"lw": 2, "ls": "-" if place else "--"}
        ax.plot(band["reward"], band["confidence"], **look)
    ax.set(xlabel="reward, normalised to [0, 1]", ylabel="classifier confidence in golden")
    return ax


def gamma_versus_gap(table: pd.DataFrame, ax: Axes) -> Axes:
    """Target margin over gamma0 against the reward gap (gamma-PO Fig. 5): a line a setting.

    Columns setting, gap, gamma, gamma0.
    """
    ends = {}
    for place, setting, part in groups(table, "setting"):
        part = part.sort_values("gap")
        ratio = part["gamma"] / part["gamma0"]
        ax.plot(part["gap"], ratio, color=PALETTE[place], lw=1.2, marker=MARKERS[place], ms=3)
        ends[setting] = (float(part["gap"].iloc[-1]), float(ratio.iloc[-1]), PALETTE[place])
    reference_line(ax, 1.0, upright=False)
    ax.set(xlabel="reward gap $m = r_w - r_l$", ylabel=r"target margin $\gamma_i/\gamma_0$")
    name_lines(ax, ends)
    return ax


def word_ecdf(table: pd.DataFrame, ax: Axes) -> Axes:
    """Share of responses up to a length; columns source, words, responses (counts)."""
    ends = []
    for place, source, part in groups(table, "source"):
        look = {"color": colour(source, place), "ls": "--" if place % 2 else "-"}
        sns.ecdfplot(part, x="words", weights="responses", **look, ax=ax)
        middle = float(np.median(np.repeat(part["words"], part["responses"])))
        ends.append((middle, label(source), look["color"]))
    for place, (x, name, shade) in enumerate(sorted(ends, key=lambda end: -end[0])):
        ax.annotate(name, (x, 0.5), (10, -12 * place), textcoords="offset points", color=shade)
    ax.set(xlabel="words", ylabel="share of the source's responses up to that length")
    ax.set_ylim(0, 1.01)
    return ax


def lines_with_bands(
    table: pd.DataFrame, ax: Axes, *, x: str, y: str, by: str, named: bool = True
) -> Axes:
    """A line a level of `by` through `y` over `x`, with its interval (low, high) as a band.

    `named` lines have their name at their end, the others in a legend.
    """
    ends = {}
    for place, name, part in groups(table, by):
        part, shade = part.sort_values(x), colour(name, place)
        ax.fill_between(part[x], part["low"], part["high"], color=shade, alpha=0.2, linewidth=0)
        ax.plot(part[x], part[y], color=shade, marker=MARKERS[place % 8], ms=5, label=label(name))
        ends[label(name)] = (float(part[x].iloc[-1]), float(part[y].iloc[-1]), shade)
    if named:
        name_lines(ax, ends)
    else:
        ax.legend()
    return ax


def margin_range(table: pd.DataFrame, ax: Axes) -> Axes:
    """Smallest to largest target margin of each step as a band, and its mean, by method.

    Columns policy, step, gamma_min, gamma_max, margin_mean.
    """
    bounded = table.rename(columns={"gamma_min": "low", "gamma_max": "high"})
    lines_with_bands(bounded, ax, x="step", y="margin_mean", by="policy")
    ax.set(xlabel="optimizer step", ylabel=r"target margin $\gamma_i$ (nats)")
    return ax


def smoothing(table: pd.DataFrame, ax: Axes) -> Axes:
    """The smoothing weight that equals a change of margin, against m (gamma-PO Theorem 3.1).

    Columns m, exact, approximate (Eq. 14); the curves have a pole at m = 0. Where the weight is
    negative the ground is shaded.
    """
    for sign, names in ((-1, ("exact", "Eq. 14")), (1, (None, None))):  # one legend for both
        part = table[np.sign(table["m"]) == sign]
        ax.plot(part["m"], part["exact"], color=PALETTE[0], lw=3.5, alpha=0.5, label=names[0])
        ax.plot(part["m"], part["approximate"], color="#222222", ls="--", lw=1.2, label=names[1])
        ground = VERDICTS["win" if bool((part["exact"] > 0).all()) else "lose"]
        ax.axvspan(*part["m"].agg(["min", "max"]), color=ground, alpha=0.25, lw=0)
    reference_line(ax, 0.0, upright=False)
    ax.set(xlabel="reward margin $m$ (nats)", ylabel=r"smoothing $\varepsilon$")
    ax.legend(loc="upper left")
    return ax
