"""The picture that stands for a part where nothing moves: drawn of its state, by the package."""

from typing import Any

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from robustpo_kit import calibration, margins, plots, robust
from robustpo_kit.widgets.pair import REPLIES, losses

KINDS = ("erm", "dro", "reweight", "dora")  # DoRA Table 4


def batch_weights(state: dict[str, Any]) -> Figure:
    """Weights of the samples of a batch under each aggregator: losses, h, contaminated, lam."""
    losses, h = (torch.tensor(state[key], dtype=torch.float64) for key in ("losses", "h"))
    kinds = ["clean", "contaminated"]
    samples = pd.DataFrame({"sample": range(1, len(losses) + 1)})
    samples["kind"] = [kinds[wrong] for wrong in state["contaminated"]]
    figure, axes = plots.canvas(2, 2, figsize=(7.4, 4.6), sharex=True, sharey=True)
    carried = []
    for place, (kind, ax) in enumerate(zip(KINDS, axes.flat, strict=True)):
        weights = robust.weights(losses, h, kind=kind, lam=state["lam"])
        size = float(robust.effective_sample_size(weights))
        carried.append(f"{size:.1f} ({plots.label(kind)})")
        bars = samples.assign(weight=weights.numpy())
        palette = [plots.colour("golden"), plots.colour("smollm2")]
        sns.barplot(
            bars,
            x="sample",
            y="weight",
            hue="kind",
            hue_order=kinds,
            palette=palette,
            legend=place == 0,
            ax=ax,
        )
        ax.set(title=plots.label(kind), xlabel="sample", ylabel="weight in the gradient")
    axes[0, 0].legend(title=None)
    note = f"n = {len(losses)} samples, lambda {state['lam']:g}; h~ of the committed run, "
    finding = f"Of {len(losses)} samples so many carry the step: {', '.join(carried)}"
    plots.head(figure, finding, note + "losses made up")
    return figure


def gamma_gap(state: dict[str, Any]) -> Figure:
    """Target margins against the gap at one setting: gaps at beta 1, gamma0, tau, beta."""
    gamma0, tau = state["gamma0"], state["tau"]
    gaps = state["beta"] * torch.tensor(state["gaps"], dtype=torch.float64)
    gamma = margins.target_margins(gaps, gamma0=gamma0, tau=tau)
    table = pd.DataFrame({"gap": gaps.numpy(), "gamma": gamma.numpy()})
    figure, ax = plots.canvas(figsize=(7.4, 3.8))
    plots.gamma_versus_gap(table.assign(setting=state["setting"], gamma0=gamma0), ax)
    span = float(gamma.max() - gamma.min()) / gamma0
    finding = f"At gamma0/tau = {gamma0 / tau:.3g} the margins span {span:.0%} of gamma0"
    note = f"n = {len(gaps)} pairs; gamma0 {gamma0:g}, tau {tau:g}; dotted: the constant margin"
    plots.head(figure, finding, note)
    return figure


def reliability(state: dict[str, Any]) -> Figure:
    """Reliability and h~ at a temperature: c, golden, contaminated, temperature, bins."""
    c, golden = (torch.tensor(state[key], dtype=torch.float64) for key in ("c", "golden"))
    probs = calibration.Temperature(state["temperature"])(torch.logit(c).numpy())
    labels, flat = golden.numpy().ravel(), probs.ravel()
    table = calibration.reliability(labels, flat, bins=state["bins"])
    error = calibration.ece(labels, flat, bins=state["bins"])
    kinds = ["clean", "contaminated"]
    samples = pd.DataFrame({"sample": [kinds[wrong] for wrong in state["contaminated"]]})
    samples["h"] = calibration.uniform_factor(torch.from_numpy(probs)).numpy()
    figure, (left, right) = plots.canvas(1, 2, figsize=(7.4, 3.6))
    plots.reliability(table.assign(stage="c"), left)
    palette = [plots.colour("golden"), plots.colour("smollm2")]
    sns.stripplot(
        samples, x="sample", y="h", hue="sample", order=kinds, hue_order=kinds, palette=palette,
        legend=False, ax=right,
    )  # fmt: skip
    right.set(xlabel="", ylabel="h~")
    means = samples.groupby("sample")["h"].mean()
    words = ", ".join(f"{means[kind]:.2f} {kind}" for kind in kinds)
    finding = f"At temperature {state['temperature']:g} the calibration error is {error:.3f}; "
    note = f"n = {len(flat)} responses of {len(samples)} samples, the committed run"
    plots.head(figure, finding + f"mean h~ {words}", note)
    return figure


def phase(state: dict[str, Any]) -> Figure:
    """One method's row of the map with its intervals, an outcome a panel."""
    cells = pd.DataFrame(state["cells"])
    row = cells[(cells["harm"] == state["harm"]) & (cells["method"] == state["method"])]
    outcomes = [(name, words) for name, words in state["outcomes"] if name in set(row["outcome"])]
    harm = dict(state["harms"])[state["harm"]]
    figure, axes = plots.canvas(1, len(outcomes), figsize=(8.4, 3), squeeze=False)
    for ax, (name, words) in zip(axes.flat, outcomes, strict=True):
        part = row[row["outcome"] == name].sort_values("dose")
        plots.lines_with_bands(part, ax, x="dose", y="difference", by="method")
        plots.reference_line(ax, 0.0, upright=False)
        ax.set(title=words, xlabel=f"share of {harm}", ylabel="")
    axes[0, 0].set_ylabel("difference to the baseline")
    verdicts = row.loc[row["outcome"] == state["outcome"], "verdict"].value_counts()
    tally = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    names = f"{plots.label(state['method'])} minus {plots.label(row['baseline'].iloc[0])}"
    worlds = "{} to {}".format(*row["seeds"].agg(["min", "max"]))
    finding = f"{names}, {dict(state['outcomes'])[state['outcome']]} by dose: {tally}"
    plots.head(figure, finding, f"n = {worlds} worlds (seeds) a point; simultaneous 95 % bands")
    return figure


def pair(state: dict[str, Any]) -> Figure:
    """The followed pair's log-ratio, token by token, and the weights of the batch it is in."""
    figure, (left, right) = plots.canvas(1, 2, figsize=(7.4, 3.4), width_ratios=(2, 1))
    followed = state["pairs"][state["pair"]]
    parts = []
    for reply in REPLIES:
        own = pd.DataFrame(followed[reply])
        ratio = (own["logps"] - own["refs"]).cumsum()
        parts.append(pd.DataFrame({"reply": reply, "token": own.index + 1, "ratio": ratio}))
    lines = pd.concat(parts, ignore_index=True)
    palette = [plots.colour("golden"), plots.colour("smollm2")]
    sns.lineplot(lines, x="token", y="ratio", hue="reply", style="reply", palette=palette, ax=left)
    plots.reference_line(left, 0.0, upright=False)
    left.legend(title=None)
    left.set(xlabel="tokens read", ylabel="log ratio to the reference (nats)")
    per_pair = losses(state)
    weights = robust.weights(per_pair, kind="dro", lam=state["lam"])
    bars = pd.DataFrame({"pair": range(1, len(weights) + 1), "weight": weights.numpy()})
    sns.barplot(bars, x="pair", y="weight", color=palette[0], ax=right)
    plots.reference_line(right, 1 / len(weights), upright=False)
    right.set(ylabel="DRO's weight (dotted: ERM's)")
    loss = float(per_pair[state["pair"]])
    finding = f"Pair {state['pair'] + 1}: loss {loss:.3f} under {plots.label(state['loss'])}, "
    note = f"n = {len(weights)} pairs of SmolLM2's replies; beta {state['beta']:g}, "
    finding += f"weight {float(weights[state['pair']]):.3f} in its batch"
    plots.head(figure, finding, note + f"lambda {state['lam']:g}")
    return figure
