"""Figures of the notebooks on real text, each of its one tidy table."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustpo_kit.plots import findings, marks
from robustpo_kit.plots.findings import counted
from robustpo_kit.plots.style import canvas, groups, head, label, panels, reference_line

STUDIES = {"dose_real": "proxy sees what gold sees", "dose_real_blind": "proxy blind to models"}


def mixture_composition(table: pd.DataFrame) -> Figure:
    """Who wrote each slot, by data: column, source, count, share, data."""
    figure, ax = canvas(figsize=(7.2, 2.1))
    marks.composition(table, ax)
    ax.set_ylabel("data")
    first = table[table["column"] == 0]
    golden, wrote = first["source"].iloc[0], first.set_index(["source", "data"])["share"]
    shares = ", ".join(f"{1 - share:.0%} in {name}" for name, share in wrote[golden].items())
    others = []
    for column, part in table[table["column"] > 0].groupby("column"):
        others.append(f"$y_{column}$ {', '.join(dict.fromkeys(part['source'].map(label)))}")
    rows = first.groupby("data")["count"].sum()
    note = f"{counted(rows, 'rows')}; the other slots in both: {', '.join(others)}"
    finding = f"Rows that lost their golden reply ({label(golden)}): {shares} data"
    return head(figure, finding, note, table)


def source_words(table: pd.DataFrame) -> Figure:
    """Lengths of the sources as ECDFs: source, words, responses, token_limit (of the sampled)."""
    figure, ax = canvas(figsize=(6.4, 3.9))
    marks.word_ecdf(table, ax)
    limit = table["token_limit"].iloc[0]
    ax.axvline(limit, color="#222222", lw=1, ls="-.")
    words = f"token limit of sampled\nreplies: {limit:g} tokens"
    ax.annotate(words, (limit, 0.06), (6, 0), textcoords="offset points", size=8.5)
    ax.set_xlim(0, 1.35 * max(limit, table["words"].max()))
    said, rows = [], []
    for _, source, part in groups(table, "source"):
        middle = np.median(np.repeat(part["words"], part["responses"]))
        said.append(f"{label(source)} {middle:g}")
        rows.append(f"{part['responses'].sum()} {label(source)}")
    note = f"n = {'; '.join(rows)} (responses)"
    return head(figure, f"Median words: {'; '.join(said)}", note, table)


def reliability(table: pd.DataFrame) -> Figure:
    """Reliability of every head and map, of tables of `SourceClassifier.reliability`."""
    figure, axes = canvas(4, 2, figsize=(8.4, 8.2), sharex=True, height_ratios=(4, 1, 4, 1))
    heads = table.groupby(["classifier", "head"], sort=False)
    for place, ((classifier, name), part) in enumerate(heads):
        above, below = axes[2 * (place // 2), place % 2], axes[2 * (place // 2) + 1, place % 2]
        marks.reliability(part, above).set_xlabel("")
        marks.counts(part, below)
        errors = [f"{s} {_calibration_error(rows):.3f}" for _, s, rows in groups(part, "stage")]
        above.set_title(f"{classifier}: golden or {label(str(name))}\nECE: {', '.join(errors)}")
        if place < len(heads) - 2:
            below.set_xlabel("")
        if place % 2:
            above.set_ylabel("")
            below.set_ylabel("")
    axes[0, 0].legend(loc="upper left")
    stages = table.groupby(["classifier", "head", "stage"], sort=False)
    ece = stages[["count", "gap"]].apply(_calibration_error).unstack()
    maps = ece.columns.drop("before")
    lower = [f"{name} lowers that of {(ece[name] < ece['before']).sum()}" for name in maps]
    finding = f"Of {len(ece)} heads' calibration errors (ECE), {', '.join(lower)}"
    note = counted(stages["count"].sum(), "held-out responses a head and stage; Wilson 95 % ")
    note += f"intervals; bins of fewer than {marks.FEWEST} left out above; below: counts"
    return head(figure, finding, note, table)


def _calibration_error(bins: pd.DataFrame) -> float:
    """The mean distance from the diagonal over the responses."""
    return float(np.average(bins["gap"].abs(), weights=bins["count"]))


def confidence_by_source(table: pd.DataFrame) -> Figure:
    """Confidence of the classifier by source: source, c."""
    figure, ax = canvas(figsize=(6.4, 3.7))
    marks.violins(table, ax, value="c", by="source", ylabel="classifier confidence $c$ in golden")
    by_source = table.groupby("source", sort=False)["c"]
    medians = ", ".join(f"{label(str(n))} {value:.2f}" for n, value in by_source.median().items())
    note = counted(by_source.size(), "responses a source; lines: quartiles")
    return head(figure, f"Median confidence: {medians}", note, table)


def h_by_sample(table: pd.DataFrame) -> Figure:
    """h~ of clean and contaminated samples by classifier: classifier, sample, h."""
    figure, parts = panels(table, "classifier", figsize=(8, 3.1), sharey=True)
    said = []
    for ax, name, part in parts:
        marks.violins(part, ax, value="h", by="sample", ylabel=r"calibration factor $\tilde h(z)$")
        ax.set(title=name)
        ax.label_outer()
        means = part.groupby("sample", sort=False)["h"].mean()
        said.append(f"{' / '.join(f'{mean:.2f}' for mean in means)} ({name})")
    sizes = parts[0][2].groupby("sample", sort=False).size()
    finding = f"Mean h~, {'/'.join(map(str, sizes.index))}: {'; '.join(said)}"
    note = "n = " + ", ".join(f"{size} {kind}" for kind, size in sizes.items())
    return head(figure, finding, f"{note} samples a classifier; lines: quartiles", table)


def slot_detectors(table: pd.DataFrame) -> Figure:
    """AUC of each weight as a detector of contaminated rows, of `calibration.detectors`."""
    figure, parts = panels(table, "samples", figsize=(8.6, 3.2), sharey=True, sharex=True)
    counts = []
    for ax, kind, part in parts:
        look: dict[str, Any] = {"value": "auc", "xlabel": "AUC (0.5: by lot)", "reference": 0.5}
        marks.bars_with_ci(part, ax, name="weight", **look)
        ax.set_title(f"samples: {kind}")
        n, bad = part[["n", "contaminated"]].iloc[0]
        counts.append(f"{n} rows, {bad} contaminated ({kind})")
    _, kind, first = parts[0]
    best = first.sort_values("auc").iloc[-1]
    equal = " and ".join(first[best["auc"] - first["auc"] < 0.005]["weight"])
    low, high = best["auc_low"], best["auc_high"]
    finding = (
        f"Best detector of {kind} rows: {equal}, AUC {best['auc']:.2f} [{low:.2f}, {high:.2f}]"
    )
    return head(figure, finding, f"n = {'; '.join(counts)}; 95 % intervals", table)


def reward_accuracy(table: pd.DataFrame) -> Figure:
    """Preference accuracy by kind of pair: kind, n, accuracy, low, high, trained_kind."""
    figure, ax = canvas(figsize=(7.2, 3.4))
    named = table.assign(kind=table["kind"].map(label) + " (" + table["n"].astype(str) + ")")
    look: dict[str, Any] = {"xlabel": "preference accuracy (0.5: by lot)", "reference": 0.5}
    marks.bars_with_ci(named, ax, name="kind", value="accuracy", solid="trained_kind", **look)
    above, below = (table["low"] > 0.5).sum(), (table["high"] < 0.5).sum()
    rest = table[(table["low"] <= 0.5) & (table["high"] >= 0.5)]["kind"].map(label)
    finding = f"Above chance for {above} of {len(table)} kinds of pair, below for {below}"
    finding += f"; not shown to differ: {'; '.join(rest)}" if len(rest) else ""
    note = f"{counted(table['n'], 'held-out pairs')} (in brackets); 95 % intervals"
    return head(figure, finding, f"{note}; filled: a kind it was trained on", table)


def judge_audit(table: pd.DataFrame) -> Figure:
    """The judge's scores of controls and their limits: control, value, low, high, rule, n."""
    figure, ax = canvas(figsize=(7.2, 6.4))
    table = table.assign(passed=table["result"] == "pass").reset_index(drop=True)
    words = "score against the human reply; agreement; slope (red: the rule's limit)"
    look: dict[str, Any] = {"xlabel": words, "solid": "passed", "reference": None}
    marks.bars_with_ci(table, ax, name="control", value="value", **look)
    limits = table["rule"].str.extractall(r"(low|high) (<=|>=) (?P<limit>[\d.]+)")["limit"]
    places = len(table) - 1 - limits.index.get_level_values(0)
    ax.scatter(limits.astype(float), places, marker="|", color="#D55E00", s=110, lw=2, zorder=2)
    judge = ", ".join(dict.fromkeys(table["judge"]))
    failed = ", ".join(table.loc[~table["passed"], "control"]) or "none"
    passed = f"{table['passed'].sum()} of {len(table)}"
    finding = f"The {judge} judge passes {passed} controls (failed: {failed})"
    note = f"{counted(table['n'], 'prompts a control')}; 95 % intervals; filled: passed"
    return head(figure, finding, note, table)


def dose_real(table: pd.DataFrame) -> Figure:
    """Outcomes by dose in the studies on real text: study, outcome, method, dose, value, n."""
    outcomes = ("implicit_accuracy", "expected_gold")
    studies, said = table["study"].nunique(), []
    figure, axes = canvas(studies, 2, figsize=(9.6, 5.2), sharex=True, sharey="col")
    for row, (_, study, rows) in zip(axes, groups(table, "study"), strict=True):
        for ax, outcome in zip(row, outcomes, strict=True):
            both = table[table["outcome"] == outcome]
            limits = both["low"].min() - 0.05, both["high"].max() + 0.05
            ax.set(ylim=limits, ylabel=label(outcome))
            part = rows[rows["outcome"] == outcome]
            marks.lines_with_bands(part, ax, x="dose", y="value", by="method")
            ax.set_title(f"{STUDIES.get(study, study)}, {part['n'].iloc[0]} seeds")
        parts = []
        first = rows[rows["outcome"] == outcomes[0]].sort_values("dose")
        for _, method, part in groups(first, "method"):
            ends = f"{part['value'].iloc[0]:.2f} \N{RIGHTWARDS ARROW} {part['value'].iloc[-1]:.2f}"
            parts.append(f"{ends} ({method.split(', ')[-1].split(' ')[0]})")
        said.append(f"{STUDIES.get(study, study)}: {', '.join(parts)}")
    for ax in axes[-1]:
        ax.set_xlabel("share contaminated or flipped")
    note = f"{counted(table['n'], 'seeds a point; bands: 95 %')}; exploratory"
    return head(figure, f"Implicit accuracy by dose. {'; '.join(said).capitalize()}", note)


def dora_curves(table: pd.DataFrame) -> Figure:
    """Loss and effective sample size of every step against ERM's: policy, step, loss_mean, ess."""
    keys = ["step", "seed"] if "seed" in table else ["step"]
    others = table[table["policy"] != "erm"].set_index(keys)
    base = table[table["policy"] == "erm"].set_index(keys).reindex(others.index)
    loss = others["loss_mean"].to_numpy() - base["loss_mean"].to_numpy()
    heard = others["ess"].to_numpy() / base["ess"].to_numpy()
    drawn = others.assign(loss=loss, heard=heard).reset_index()
    figure, axes = canvas(1, 2, figsize=(10, 3.5))
    words = {"loss": "mean loss minus ERM's (nats)", "heard": "effective samples over ERM's"}
    for ax, (value, ylabel) in zip(axes, words.items(), strict=True):
        marks.curves(drawn, ax, value=value, ylabel=ylabel)
        reference_line(ax, float(value == "heard"), upright=False)
        marks.name_curves(ax)
    means = drawn.groupby("policy", sort=False)[["loss", "heard"]].mean()
    said = "; ".join(
        f"{label(str(name))} {findings.signed(loss)} nats, {heard:.0%} of the samples"
        for name, loss, heard in means.itertuples()
    )
    seeds = drawn["seed"].nunique() if "seed" in drawn else 1
    note = f"n = {drawn['step'].nunique()} steps, {seeds} seed{'s' if seeds > 1 else ''}"
    return head(
        figure, f"Against ERM, mean over the steps: {said}", note + "; the same batches", table
    )


def win_rates(table: pd.DataFrame) -> Figure:
    """Scores against the human reply, of `judging.win_table`; its own row is 0.5 by definition."""
    table = table[table["policy"] != "golden"]
    size = (8, 1.5 + 0.26 * table["policy"].nunique())
    figure, parts = panels(table, "judge", figsize=size, sharey=True)
    for ax, judge, part in parts:
        marks.scores(part, ax)
        ax.set_title(f"judge: {judge}" if len(parts) > 1 else "")
    _, judge, first = parts[0]
    said = findings.against(first, "score", 0.5, ("above it", "below it"))
    note = counted(table["prompts"], "prompts a policy; 95 % intervals over prompts, not corrected")
    return head(figure, f"Against the human reply's 0.5 ({judge} judge): {said}", note, table)


def score_differences(table: pd.DataFrame) -> Figure:
    """Scores minus the baseline's, paired by prompt, of `judging.difference_table`."""
    table = table.reset_index(drop=True)
    names = table["policy"].map(label) + f" {findings.MINUS} " + table["baseline"].map(label)
    drawn = table.assign(name=names, held=findings.held(table, "score"))
    figure, ax = canvas(figsize=(7.6, 1.5 + 0.3 * len(table)))
    words = "difference of scores (win + tie/2)"
    marks.bars_with_ci(drawn, ax, value="score", xlabel=words, solid="held")
    note = counted(table["prompts"], "prompts, paired; 95 % intervals; filled: holds after Holm")
    return head(figure, findings.contrasts(names, table, "its baseline", "score"), note, table)
