"""Figures of the toy world and of the studies in it, each of its one tidy table."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustpo_kit.plots import findings, marks, style
from robustpo_kit.plots.findings import counted
from robustpo_kit.plots.maps import verdict_map
from robustpo_kit.plots.style import PALETTE, canvas, groups, head, label, panels, reference_line

OUTCOMES = ("win_rate", "win_rate_valid", "mass")
WORLDS = "worlds (seeds) a point"


def toy_h(table: pd.DataFrame) -> Figure:
    """True h~ by kind of sample, and its estimate against it: sample, contaminated, true_h, h."""
    figure, (left, right) = canvas(1, 2, figsize=(8, 3.3))
    words = r"true $\tilde h$ (exact densities)"
    marks.violins(table, left, value="true_h", by="sample", ylabel=words)
    look: dict[str, Any] = {"hue": "sample", "style": "sample", "alpha": 0.6, "s": 18}
    shades = PALETTE[: table["sample"].nunique()]
    sns.scatterplot(table, x="true_h", y="h", palette=shades, **look, ax=right)
    sns.move_legend(right, "lower right", title=None)
    right.set(xlabel=r"true $\tilde h$", ylabel=r"estimated $\tilde h$ (classifier)")
    medians = table.groupby("sample", sort=False)["true_h"].median()
    words = ", ".join(f"{value:.2f} on {name} samples" for name, value in medians.items())
    follows = table["true_h"].corr(table["h"], method="spearman")
    finding = f"True h~ is {words} (medians); the estimate follows it, rank correlation"
    note = f"n = {len(table)} samples of one toy world"
    return head(figure, f"{finding} {follows:.2f}", note, table)


def toy_methods(table: pd.DataFrame) -> Figure:
    """What each method changes of ERM's outcomes under each condition, of `summarise_outcomes`."""
    table = table[table["method"] != "erm"]
    conditions = list(dict.fromkeys(table["condition"]))
    shape: dict[str, Any] = {"sharey": True, "sharex": "row", "height_ratios": (1.3, 1, 1)}
    figure, axes = canvas(3, len(conditions), figsize=(9.6, 6.2), **shape)
    for row, outcome in zip(axes, OUTCOMES, strict=True):
        part = table[table["outcome"] == outcome]
        part = part.assign(held=findings.held(part))
        for ax, condition in zip(row, conditions, strict=True):
            cell = part[part["condition"] == condition]
            marks.bars_with_ci(cell, ax, name="method", solid="held")
            ax.set_title(condition.replace("_", " ") if outcome == OUTCOMES[0] else "")
            ax.locator_params(axis="x", nbins=4)
        row[len(row) // 2].set_xlabel(f"{label(outcome)} minus ERM's")
    wins = table[table["outcome"] == OUTCOMES[0]]
    names = wins["method"].map(label) + " (" + wins["condition"] + ")"
    note = counted(table["n"], f"{WORLDS}, paired by world; 95 % intervals, not corrected; ")
    note += "filled: holds after Holm within its row of panels"
    return head(figure, "Win rate: " + findings.contrasts(names, wins, "ERM"), note)


def toy_dose(table: pd.DataFrame) -> Figure:
    """ERM's outcomes by dose of each knob: knob, dose, outcome, mean, low, high, difference, n."""
    shares = {"contamination": "contaminated rows", "label_noise": "flipped rankings"}
    figure, parts = panels(table, "knob", figsize=(8.4, 3.4), sharey=True)
    said = []
    for ax, knob, part in parts:
        ax.set(xlabel=f"share of {shares[knob]}", ylim=(0, 1))
        marks.lines_with_bands(part, ax, x="dose", y="mean", by="outcome")
        wins = part[part["outcome"] == "win_rate"]
        worst = wins.iloc[wins["dose"].argmax()]
        said.append(f"{findings.interval(worst)} at {worst['dose']:.0%} ({shares[knob]})")
    parts[0][0].set_ylabel("mean under ERM")
    finding = f"ERM's win rate against that on clean data: {'; '.join(said)}"
    return head(figure, finding, counted(table["n"], f"{WORLDS}; bands: 95 %"))


def toy_mass(table: pd.DataFrame) -> Figure:
    """Valid mass and win rate by loss: loss, method, outcome, mean, difference, intervals, n."""
    drawn = (
        ("erm", "mass", "mean", "valid mass under ERM"),
        ("dro", "mass", "difference", "valid mass, DRO minus ERM"),
        ("erm", "win_rate", "mean", "win rate under ERM"),
    )
    figure, axes = canvas(1, 3, figsize=(9, 4.3), sharey=True)
    for ax, (method, outcome, value, xlabel) in zip(axes, drawn, strict=True):
        part = table[(table["method"] == method) & (table["outcome"] == outcome)]
        zero = 0.0 if value == "difference" else None
        marks.bars_with_ci(part, ax, name="loss", value=value, xlabel=xlabel, reference=zero)
    erm = table[(table["method"] == "erm") & (table["outcome"] == "mass")]
    mass = erm.set_index("loss")["mean"].sort_values()
    ends = [f"{mass.iloc[place]:.2f} ({label(str(mass.index[place]))})" for place in (0, -1)]
    note = counted(table["n"], f"{WORLDS}, clean data; 95 % intervals")
    return head(figure, f"Valid mass after training: from {' to '.join(ends)}", note)


def toy_h_rank(table: pd.DataFrame) -> Figure:
    """Rank correlation of estimated and true h~: golden_rows, classifier_rows, h_rank, n."""
    figure, ax = canvas(figsize=(6.4, 3.4))
    ax.set(xlabel="rows of four responses that the classifier saw", xscale="log")
    ax.set_ylabel(r"rank correlation of $\tilde h$ with the truth")
    marks.lines_with_bands(table, ax, x="classifier_rows", y="h_rank", by="golden_rows")
    said = []
    for _, name, part in groups(table, "golden_rows"):
        ranks = part.sort_values("classifier_rows")["h_rank"]
        said.append(f"from {ranks.iloc[0]:.2f} to {ranks.iloc[-1]:.2f} ({name})")
    rows = findings.ranged(table["classifier_rows"], 0)
    finding = f"With {rows} rows, the rank correlation with the true h~ goes {', '.join(said)}"
    note = counted(table["n"], f"{WORLDS}; bands: 95 %; golden rows of the classifier")
    return head(figure, finding, note)


def pairwise_losses(table: pd.DataFrame) -> Figure:
    """Gains over the losses in points, a paper's beside some: panel, method, difference, worlds.

    Columns "paper, MODEL" hold what a paper prints.
    """
    printed = [name for name in map(str, table) if name.startswith("paper, ")]
    figure, parts = panels(table, "panel", figsize=(11, 3.8))
    for ax, panel, part in parts:
        part = part.dropna(axis=1, how="all")
        points = part.assign(solid=_shown(part))
        points[["difference", "low", "high"]] *= 100
        theirs = [name for name in printed if name in part]
        look: dict[str, Any] = {"xlabel": "percentage points", "solid": "solid"}
        marks.bars_with_ci(points, ax, name="method", **look, printed=theirs)
        ax.set_title(panel)
        ax.locator_params(axis="x", nbins=6)
        if theirs:
            ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)
    note = counted(table["worlds"], f"{WORLDS}; simultaneous 95 % intervals")
    finding = f"DoRA and its weights, and other robust losses. {findings.verdicts(table)}"
    return head(figure, finding, note + "; filled: shown; exploratory")


def _shown(table: pd.DataFrame) -> "pd.Series[bool]":
    """Which cells of a map are won or lost."""
    return table["verdict"].isin(["win", "lose"])


def flips_gold(table: pd.DataFrame) -> Figure:
    """Gold over SFT by share of flips: family, method, dose, difference, verdict, worlds."""
    figure, parts = panels(table, "family", figsize=(11.5, 3.8), sharey=True)
    least, most = table["difference"].agg(["min", "max"])
    pad = 0.1 * (most - least)
    for ax, family, part in parts:
        ends = {}
        for place, name, own in groups(part, "method"):
            own, shade = own.sort_values("dose"), PALETTE[place]
            clear = own[_shown(own)]
            look: dict[str, Any] = {"color": shade, "marker": style.MARKERS[place], "ms": 5}
            ax.plot(own["dose"], own["difference"], **look, lw=1.2, mfc="white")
            ax.plot(clear["dose"], clear["difference"], **look, ls="")
            ends[name] = (float(own["dose"].iloc[-1]), float(own["difference"].iloc[-1]), shade)
        reference_line(ax, 0.0, upright=False)
        ax.set(xlabel="share of flipped labels", title=family, ylim=(least - pad, most + pad))
        style.name_lines(ax, ends)
    parts[0][0].set_ylabel("gold minus SFT's (sds)")
    doses = table.assign(shown=_shown(table)).groupby("dose")["shown"].sum()
    said = ", ".join(f"{count} at {dose:.0%}" for dose, count in doses.items())
    finding = f"Of {table['method'].nunique()} methods, shown to differ from SFT: {said} flips"
    note = counted(table["worlds"], "worlds (seeds), the same for all; filled: a simultaneous")
    return head(figure, finding, f"{note} 95 % interval leaves zero out")


def flips_added(table: pd.DataFrame) -> Figure:
    """What is added to SimPO, in points, and as printed: name, difference, low, high, printed."""
    figure, ax = canvas(figsize=(6.8, 3.6))
    theirs = table.rename(columns={"printed": "printed in the paper"}).assign(solid=_shown(table))
    words = "win rate minus SimPO's, percentage points"
    marks.bars_with_ci(theirs, ax, xlabel=words, solid="solid", printed=["printed in the paper"])
    inside = table["printed"].between(table["low"], table["high"]).sum()
    finding = f"{findings.verdicts(table)}; {inside} printed changes lie in our intervals"
    note = counted(table["worlds"], f"{WORLDS}; simultaneous 95 % intervals; filled: shown; ")
    return head(figure, finding, note + "diamonds: printed in the paper")


def _scale(ax: Axes, ticks: Sequence[float], xlabel: str, title: str) -> None:
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel=xlabel, title=title)


def ablations_lambda(table: pd.DataFrame) -> Figure:
    """Win rate and log-probability of golden replies by lambda: kind, at, outcome, dose, start."""
    figure, axes = canvas(1, 3, figsize=(10.5, 3.5))
    drawn = []
    shown = (("win_rate", 0.0), ("win_rate", 0.6), ("golden_logp", 0.0))
    for ax, (outcome, dose) in zip(axes, shown, strict=True):
        part = table[(table["outcome"] == outcome) & (table["dose"] == dose)]
        drawn.append(part)
        level = part["start"].iloc[0] if outcome == "golden_logp" else 0.0
        part = part.assign(**{name: part[name] + level for name in ("difference", "low", "high")})
        reference_line(ax, level, upright=False)
        _scale(ax, (0.5, 1, 2, 4), r"$\lambda$", f"{dose:.0%} contaminated")
        marks.lines_with_bands(part, ax, x="at", y="difference", by="kind")
        ax.set_ylabel("log p of golden, nats since SFT" if level else "win rate minus ERM's")
    every, said = pd.concat(drawn), []
    for _, name, part in groups(every, "outcome"):
        said.append(f"{label(name).capitalize()}: {findings.verdicts(part).lower()}")
    note = counted(every["worlds"], "worlds (seeds); simultaneous 95 % bands; dotted: ERM")
    return head(figure, f"DRO and DoRA against ERM. {'. '.join(said)}", note)


def ablations_tau(table: pd.DataFrame) -> Figure:
    """Win rate over the constant margin's by tau/gamma0: kind, at, dose, difference, low, high."""
    figure, parts = panels(table.sort_values("dose"), "dose", figsize=(9, 3.4), sharey=True)
    for ax, dose, part in parts:
        reference_line(ax, 0.0, upright=False)
        ax.axvline(4, color="#999999", lw=1, ls="--")
        _scale(ax, (0.5, 1, 2, 4, 10), r"$\tau/\gamma_0$", f"{float(dose):.0%} of labels flipped")
        marks.lines_with_bands(part, ax, x="at", y="difference", by="kind")
    parts[0][0].set_ylabel("win rate minus constant margin's")
    most = findings.signed(table.sort_values("difference", key=abs)["difference"].iloc[-1], 3)
    finding = f"{findings.verdicts(table)}; the largest difference is {most}"
    note = counted(table["worlds"], "worlds (seeds); simultaneous 95 % bands; dashed: where the")
    return head(figure, finding, note + " paper's metrics turn")


def phase_map(table: pd.DataFrame) -> Figure:
    """Every method minus its tuned baseline by dose, of `analysis.cell_table` with a study."""
    most = table.groupby("study")["method"].nunique().max()
    figure, parts = panels(table, "study", figsize=(10.6, 0.215 * most + 1.3))
    for ax, study, part in parts:
        harm = {"phase_contamination": "contaminated rows", "phase_flips": "flipped labels"}[study]
        verdict_map(part, ax, xlabel=f"share of {harm}", legend=ax is parts[-1][0])
        ax.set_title(f"gold minus the tuned baseline's (sds), {harm}")
    own = table[table["baseline"] != "SFT"]
    finding = f"{findings.verdicts(own)} (methods against a trained baseline)"
    note = counted(table["worlds"], "worlds (seeds) a cell; simultaneous 95 % intervals")
    return head(figure, finding, f"{note}; bold: shown; white: open")


def self_training_rounds(table: pd.DataFrame) -> Figure:
    """Outcomes by round of self-training: method, round, outcome, value, low, high, n."""
    titles = {"gold": "gold reward (sds)", "proxy": "proxy reward (sds of gold)"}
    titles |= {"mass": "valid mass", "kl_reference": "KL to SFT (nats)"}
    figure, axes = canvas(1, len(titles), figsize=(11.5, 3.3))
    for ax, (outcome, title) in zip(axes, titles.items(), strict=True):
        part = table[table["outcome"] == outcome]
        marks.lines_with_bands(part, ax, x="round", y="value", by="method", named=False)
        ax.set(title=title, xlabel="round", xticks=sorted(set(part["round"])))
        if ax is not axes[0]:
            ax.get_legend().remove()
    axes[0].set_ylim(top=1.25 * axes[0].get_ylim()[1])
    last = sorted(set(table["round"]))[-2:]
    rounds = table.set_index(["method", "outcome", "round"])["value"].unstack(sort=False)
    rises = rounds[last].diff(axis=1)[last[1]].unstack()
    words = "; ".join(
        f"{name}: gold {findings.signed(gold)}, proxy {findings.signed(proxy)}"
        for name, gold, proxy in rises[["gold", "proxy"]].itertuples()
    )
    return head(
        figure, f"In the last round, {words}", counted(table["n"], f"{WORLDS}; bands: 95 %")
    )
