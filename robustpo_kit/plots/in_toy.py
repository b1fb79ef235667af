"""Figures of the toy world and of the studies in it, each of its one tidy table."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustpo_kit.plots import findings, marks
from robustpo_kit.plots.maps import verdict_map
from robustpo_kit.plots.style import (
    MARKERS,
    PALETTE,
    canvas,
    groups,
    head,
    label,
    name_lines,
    reference_line,
)

OUTCOMES = ("win_rate", "win_rate_valid", "mass")


def toy_h(table: pd.DataFrame) -> Figure:
    """True h~ by kind of sample, and its estimate against it: sample, contaminated, true_h, h."""
    figure, (left, right) = canvas(1, 2, figsize=(8, 3.3))
    marks.violins(
        table, left, value="true_h", by="sample", ylabel=r"true $\tilde h$ (exact densities)"
    )
    kinds = {"hue": "sample", "style": "sample", "palette": PALETTE[: table["sample"].nunique()]}
    sns.scatterplot(table, x="true_h", y="h", **kinds, alpha=0.6, s=18, ax=right)
    sns.move_legend(right, "lower right", title=None)
    right.set(xlabel=r"true $\tilde h$", ylabel=r"estimated $\tilde h$ (classifier)")
    medians = table.groupby("sample", sort=False)["true_h"].median()
    words = ", ".join(f"{value:.2f} on {name} samples" for name, value in medians.items())
    follows = table["true_h"].corr(table["h"], method="spearman")
    finding = (
        f"True h~ is {words} (medians); the estimate follows it, rank correlation {follows:.2f}"
    )
    head(figure, finding, f"n = {len(table)} samples of one toy world", table)
    return figure


def toy_methods(table: pd.DataFrame) -> Figure:
    """What each method changes of ERM's outcomes under each condition, of `summarise_outcomes`."""
    table = table[table["method"] != "erm"]
    conditions = list(dict.fromkeys(table["condition"]))
    figure, axes = canvas(
        3, len(conditions), figsize=(9.6, 6.2), sharey=True, sharex="row", height_ratios=(1.3, 1, 1)
    )
    for row, outcome in zip(axes, OUTCOMES, strict=True):
        part = table[table["outcome"] == outcome]
        part = part.assign(held=findings.held(part))
        for ax, condition in zip(row, conditions, strict=True):
            cell = part[part["condition"] == condition]
            marks.bars_with_ci(
                cell, ax, name="method", value="difference", xlabel="", reference=0.0, solid="held"
            )
            ax.set_title(condition.replace("_", " ") if outcome == OUTCOMES[0] else "")
            ax.locator_params(axis="x", nbins=4)
        row[len(row) // 2].set_xlabel(f"{label(outcome)} minus ERM's")
    wins = table[table["outcome"] == OUTCOMES[0]]
    names = wins["method"].map(label) + " (" + wins["condition"] + ")"
    note = findings.counted(table["n"], "worlds (seeds) a point, paired by world")
    note += "; 95 % intervals, not corrected; filled: holds after Holm within its row of panels"
    head(figure, "Win rate: " + findings.contrasts(names, wins, "ERM"), note)
    return figure


def toy_dose(table: pd.DataFrame) -> Figure:
    """ERM's outcomes by dose of each knob: knob, dose, outcome, mean, low, high, difference, n."""
    titles = {
        "contamination": "share of contaminated rows",
        "label_noise": "share of flipped rankings",
    }
    knobs = list(dict.fromkeys(table["knob"]))
    figure, axes = canvas(1, len(knobs), figsize=(8.4, 3.4), sharey=True)
    said = []
    for ax, knob in zip(axes, knobs, strict=True):
        part = table[table["knob"] == knob]
        ax.set(xlabel=titles[knob], ylim=(0, 1))
        marks.lines_with_bands(part, ax, x="dose", y="mean", by="outcome", named=True)
        wins = part[part["outcome"] == "win_rate"]
        worst = wins.loc[wins["dose"].idxmax()]
        said.append(f"{findings.interval(worst)} at {worst['dose']:.0%} ({titles[knob][9:]})")
    axes[0].set_ylabel("mean under ERM")
    note = findings.counted(table["n"], "worlds (seeds) a point; bands: 95 %")
    head(figure, "ERM's win rate against that on clean data: " + "; ".join(said), note)
    return figure


def toy_mass(table: pd.DataFrame) -> Figure:
    """Valid mass and win rate by loss: loss, method, outcome, mean, difference, intervals, n."""
    panels = (
        ("erm", "mass", "mean", "valid mass under ERM"),
        ("dro", "mass", "difference", "valid mass, DRO minus ERM"),
        ("erm", "win_rate", "mean", "win rate under ERM"),
    )
    figure, axes = canvas(1, 3, figsize=(9, 4.3), sharey=True)
    for ax, (method, outcome, value, xlabel) in zip(axes, panels, strict=True):
        part = table[(table["method"] == method) & (table["outcome"] == outcome)]
        zero = 0.0 if value == "difference" else None
        marks.bars_with_ci(part, ax, name="loss", value=value, xlabel=xlabel, reference=zero)
    mass = table[(table["method"] == "erm") & (table["outcome"] == "mass")].set_index("loss")[
        "mean"
    ]
    mass = mass.sort_values()
    ends = [f"{mass.iloc[place]:.2f} ({label(str(mass.index[place]))})" for place in (0, -1)]
    finding = f"Valid mass after training: from {' to '.join(ends)}"
    note = findings.counted(table["n"], "worlds (seeds) a point, clean data; 95 % intervals")
    head(figure, finding, note)
    return figure


def toy_h_rank(table: pd.DataFrame) -> Figure:
    """Rank correlation of estimated and true h~: golden_rows, classifier_rows, h_rank, n."""
    figure, ax = canvas(figsize=(6.4, 3.4))
    ax.set(
        xlabel="rows of four responses that the classifier saw",
        ylabel=r"rank correlation of $\tilde h$ with the truth",
        xscale="log",
    )
    ends = {"x": "classifier_rows", "y": "h_rank"}
    marks.lines_with_bands(table, ax, **ends, by="golden_rows", named=True)
    said = []
    for _, name, part in groups(table, "golden_rows"):
        part = part.sort_values("classifier_rows")
        said.append(f"from {part['h_rank'].iloc[0]:.2f} to {part['h_rank'].iloc[-1]:.2f} ({name})")
    rows = findings.ranged(table["classifier_rows"], 0)
    finding = f"With {rows} rows, the rank correlation with the true h~ goes {', '.join(said)}"
    note = findings.counted(
        table["n"], "worlds (seeds) a point; bands: 95 %; golden rows of the classifier"
    )
    head(figure, finding, note)
    return figure


def pairwise_losses(table: pd.DataFrame) -> Figure:
    """Gains over the losses in points, a paper's beside some: panel, method, difference, worlds.

    Columns "paper, MODEL" hold what a paper prints.
    """
    panels = list(dict.fromkeys(table["panel"]))
    printed = [name for name in map(str, table) if name.startswith("paper, ")]
    figure, axes = canvas(1, len(panels), figsize=(11, 3.8))
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table["panel"] == panel].dropna(axis=1, how="all")
        points = part.assign(solid=part["verdict"].isin(["win", "lose"]))
        points[["difference", "low", "high"]] *= 100
        theirs = [name for name in printed if name in part]
        marks.bars_with_ci(
            points,
            ax,
            name="method",
            value="difference",
            xlabel="percentage points",
            reference=0.0,
            solid="solid",
            printed=theirs,
        )
        ax.set_title(panel)
        ax.locator_params(axis="x", nbins=6)
        if theirs:
            ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)
    note = findings.counted(table["worlds"], "worlds (seeds) a point; simultaneous 95 % intervals")
    finding = f"DoRA and its weights, and other robust losses. {findings.verdicts(table)}"
    head(figure, finding, note + "; filled: shown; exploratory")
    return figure


def flips_gold(table: pd.DataFrame) -> Figure:
    """Gold over SFT by share of flips: family, method, dose, difference, verdict, worlds."""
    families = list(dict.fromkeys(table["family"]))
    figure, axes = canvas(1, len(families), figsize=(11.5, 3.8), sharey=True)
    for ax, family in zip(axes, families, strict=True):
        part = table[table["family"] == family]
        ends = {}
        for place, name, own in groups(part, "method"):
            own, shade = own.sort_values("dose"), PALETTE[place]
            clear = own["verdict"].isin(["win", "lose"])
            style = {"color": shade, "marker": MARKERS[place], "ms": 5}
            ax.plot(own["dose"], own["difference"], **style, lw=1.2, mfc="white")
            ax.plot(own["dose"][clear], own["difference"][clear], **style, ls="")
            ends[name] = (float(own["dose"].iloc[-1]), float(own["difference"].iloc[-1]), shade)
        reference_line(ax, 0.0, upright=False)
        ax.set(xlabel="share of flipped labels", title=family, ylim=_padded(table["difference"]))
        name_lines(ax, ends)
    axes[0].set_ylabel("gold minus SFT's (sds)")
    shown = table[table["verdict"].isin(["win", "lose"])]
    parts = [
        f"{(shown['dose'] == dose).sum()} at {dose:.0%}" for dose in sorted(set(table["dose"]))
    ]
    methods = table["method"].nunique()
    finding = f"Of {methods} methods, shown to differ from SFT: {', '.join(parts)} flips"
    note = findings.counted(
        table["worlds"], "worlds (seeds), the same for all; filled: a simultaneous"
    )
    head(figure, finding, f"{note} 95 % interval leaves zero out")
    return figure


def _padded(values: pd.Series) -> tuple[float, float]:
    """Limits of an axis a tenth beyond the values."""
    pad = 0.1 * (values.max() - values.min())
    return float(values.min() - pad), float(values.max() + pad)


def flips_added(table: pd.DataFrame) -> Figure:
    """What is added to SimPO, in points, and as printed: name, difference, low, high, printed."""
    figure, ax = canvas(figsize=(6.8, 3.6))
    theirs = table.rename(columns={"printed": "printed in the paper"})
    theirs["solid"] = table["verdict"].isin(["win", "lose"])
    marks.bars_with_ci(
        theirs,
        ax,
        name="name",
        value="difference",
        xlabel="win rate minus SimPO's, percentage points",
        reference=0.0,
        solid="solid",
        printed=["printed in the paper"],
    )
    inside = table["printed"].between(table["low"], table["high"]).sum()
    finding = f"{findings.verdicts(table)}; {inside} printed changes lie in our intervals"
    note = findings.counted(table["worlds"], "worlds (seeds) a point; simultaneous 95 % intervals")
    head(figure, finding, note + "; filled: shown; diamonds: printed in the paper")
    return figure


def _scale(ax: Axes, ticks: tuple[float, ...], xlabel: str, title: str) -> None:
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel=xlabel, title=title)


def ablations_lambda(table: pd.DataFrame) -> Figure:
    """Win rate and log-probability of golden replies by lambda: kind, at, outcome, dose, start."""
    figure, axes = canvas(1, 3, figsize=(10.5, 3.5))
    panels = (("win_rate", 0.0), ("win_rate", 0.6), ("golden_logp", 0.0))
    for ax, (outcome, dose) in zip(axes, panels, strict=True):
        part = table[(table["outcome"] == outcome) & (table["dose"] == dose)]
        level = part["start"].iloc[0] if outcome == "golden_logp" else 0.0
        part = part.assign(**{name: part[name] + level for name in ("difference", "low", "high")})
        reference_line(ax, level, upright=False)
        _scale(ax, (0.5, 1, 2, 4), r"$\lambda$", f"{dose:.0%} contaminated")
        marks.lines_with_bands(part, ax, x="at", y="difference", by="kind", named=True)
        words = "log p of golden, nats since SFT" if level else "win rate minus ERM's"
        ax.set_ylabel(words)
    drawn = pd.concat([table[(table["outcome"] == o) & (table["dose"] == d)] for o, d in panels])
    note = findings.counted(drawn["worlds"], "worlds (seeds); simultaneous 95 % bands; dotted: ERM")
    said = []
    for _, name, part in groups(drawn, "outcome"):
        said.append(f"{label(name).capitalize()}: {findings.verdicts(part).lower()}")
    head(figure, f"DRO and DoRA against ERM. {'. '.join(said)}", note)
    return figure


def ablations_tau(table: pd.DataFrame) -> Figure:
    """Win rate over the constant margin's by tau/gamma0: kind, at, dose, difference, low, high."""
    doses = sorted(set(table["dose"]))
    figure, axes = canvas(1, len(doses), figsize=(9, 3.4), sharey=True)
    for ax, dose in zip(axes, doses, strict=True):
        reference_line(ax, 0.0, upright=False)
        ax.axvline(4, color="#999999", lw=1, ls="--")
        _scale(ax, (0.5, 1, 2, 4, 10), r"$\tau/\gamma_0$", f"{dose:.0%} of labels flipped")
        part = table[table["dose"] == dose]
        marks.lines_with_bands(part, ax, x="at", y="difference", by="kind", named=True)
    axes[0].set_ylabel("win rate minus constant margin's")
    largest = table.sort_values("difference", key=abs).iloc[-1]
    most = findings.signed(largest["difference"], 3)
    finding = f"{findings.verdicts(table)}; the largest difference is {most}"
    note = findings.counted(
        table["worlds"], "worlds (seeds); simultaneous 95 % bands; dashed: where the"
    )
    head(figure, finding, note + " paper's metrics turn")
    return figure


def phase_map(table: pd.DataFrame) -> Figure:
    """Every method minus its tuned baseline by dose, of `analysis.cell_table` with a study."""
    studies = list(dict.fromkeys(table["study"]))
    rows = table.groupby("study")["method"].nunique()
    figure, axes = canvas(1, len(studies), figsize=(10.6, 0.215 * rows.max() + 1.3))
    for ax, study in zip(axes, studies, strict=True):
        part = table[table["study"] == study]
        harm = {"phase_contamination": "contaminated rows", "phase_flips": "flipped labels"}[study]
        verdict_map(part, ax, xlabel=f"share of {harm}", legend=ax is axes[-1])
        ax.set_title(f"gold minus the tuned baseline's (sds), {harm}")
    own = table[table["baseline"] != "SFT"]
    finding = f"{findings.verdicts(own)} (methods against a trained baseline)"
    note = findings.counted(table["worlds"], "worlds (seeds) a cell; simultaneous 95 % intervals")
    head(figure, finding, f"{note}; bold: shown; white: open")
    return figure


def self_training_rounds(table: pd.DataFrame) -> Figure:
    """Outcomes by round of self-training: method, round, outcome, value, low, high, n."""
    titles = {
        "gold": "gold reward (sds)",
        "proxy": "proxy reward (sds of gold)",
        "mass": "valid mass",
        "kl_reference": "KL to SFT (nats)",
    }
    figure, axes = canvas(1, len(titles), figsize=(11.5, 3.3))
    for ax, (outcome, title) in zip(axes, titles.items(), strict=True):
        part = table[table["outcome"] == outcome]
        marks.lines_with_bands(part, ax, x="round", y="value", by="method")
        ax.set(title=title, xlabel="round", xticks=sorted(set(part["round"])))
        if ax is not axes[0]:
            ax.get_legend().remove()
    axes[0].set_ylim(top=1.25 * axes[0].get_ylim()[1])
    means = table.pivot_table(
        index=["method", "outcome"], columns="round", values="value", sort=False
    )
    last = means.columns[-2:]
    rises = (means[last[1]] - means[last[0]]).unstack()[["gold", "proxy"]]
    words = "; ".join(
        f"{name}: gold {findings.signed(gold)}, proxy {findings.signed(proxy)}"
        for name, gold, proxy in rises.itertuples()
    )
    note = findings.counted(table["n"], "worlds (seeds) a point; bands: 95 %")
    head(figure, f"In the last round, {words}", note)
    return figure
