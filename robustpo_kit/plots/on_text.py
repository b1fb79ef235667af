"""Figures of the notebooks on real text, each of its one tidy table."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustpo_kit.plots import findings, marks
from robustpo_kit.plots.style import (
    canvas,
    groups,
    head,
    label,
    reference_line,
)

STUDIES = {"dose_real": "proxy sees what gold sees", "dose_real_blind": "proxy blind to models"}


def mixture_composition(table: pd.DataFrame) -> Figure:
    """Who wrote each slot, by data: column, source, count, share, data."""
    figure, ax = canvas(figsize=(7.2, 2.1))
    marks.composition(table, ax)
    ax.set_ylabel("data")
    wrote = table[table["column"] == 0].pivot_table(index="data", columns="source", values="share")
    golden = table[table["column"] == 0]["source"].iloc[0]
    shares = ", ".join(f"{1 - share:.0%} in {name}" for name, share in wrote[golden].items())
    others = []
    for column, part in table[table["column"] > 0].groupby("column"):
        others.append(f"$y_{column}$ {', '.join(dict.fromkeys(part['source'].map(label)))}")
    rows = table[table["column"] == 0].groupby("data")["count"].sum()
    note = f"{findings.counted(rows, 'rows')}; the other slots in both: {', '.join(others)}"
    finding = f"Rows that lost their golden reply ({label(golden)}): {shares} data"
    head(figure, finding, note, table)
    return figure


def source_words(table: pd.DataFrame) -> Figure:
    """Lengths of the sources as ECDFs: source, words, responses, token_limit (of the sampled)."""
    figure, ax = canvas(figsize=(6.4, 3.9))
    marks.word_ecdf(table, ax)
    limit = table["token_limit"].iloc[0]
    ax.axvline(limit, color="#222222", lw=1, ls="-.")
    ax.annotate(
        f"token limit of sampled\nreplies: {limit:g} tokens",
        (limit, 0.06),
        (6, 0),
        textcoords="offset points",
        size=8.5,
    )
    ax.set_xlim(0, 1.35 * max(limit, table["words"].max()))
    said, rows = [], []
    for _, source, part in groups(table, "source"):
        middle = np.median(np.repeat(part["words"], part["responses"]))
        said.append(f"{label(source)} {middle:g}")
        rows.append(f"{part['responses'].sum()} {label(source)}")
    head(figure, f"Median words: {'; '.join(said)}", f"n = {'; '.join(rows)} (responses)", table)
    return figure


def reliability(table: pd.DataFrame) -> Figure:
    """Reliability of every head and map, of tables of `SourceClassifier.reliability`."""
    heads = list(dict.fromkeys(zip(table["classifier"], table["head"], strict=True)))
    figure, axes = canvas(4, 2, figsize=(8.4, 8.2), sharex=True, height_ratios=(4, 1, 4, 1))
    for place, (classifier, name) in enumerate(heads):
        part = table[(table["classifier"] == classifier) & (table["head"] == name)]
        above, below = axes[2 * (place // 2), place % 2], axes[2 * (place // 2) + 1, place % 2]
        marks.reliability(part, above).set_xlabel("")
        marks.counts(part, below)
        above.set_title(f"{classifier}: golden or {label(name)}\n{_errors(part)}")
        if place < len(heads) - 2:
            below.set_xlabel("")
        if place % 2:
            above.set_ylabel("")
            below.set_ylabel("")
    axes[0, 0].legend(loc="upper left")
    keys = ["classifier", "head", "stage"]
    ece = table.groupby(keys, sort=False)[["count", "gap"]].apply(_calibration_error).unstack()
    maps = ece.columns.drop("before")
    lower = [f"{name} lowers that of {(ece[name] < ece['before']).sum()}" for name in maps]
    finding = f"Of {len(ece)} heads' calibration errors (ECE), {', '.join(lower)}"
    n = table.groupby(keys)["count"].sum()
    note = f"{findings.counted(n, 'held-out responses a head and stage')}; Wilson 95 % intervals; "
    head(
        figure,
        finding,
        note + f"bins of fewer than {marks.FEWEST} left out above; below: counts",
        table,
    )
    return figure


def _calibration_error(bins: pd.DataFrame) -> float:
    """The mean distance from the diagonal over the responses."""
    return float(np.average(bins["gap"].abs(), weights=bins["count"]))


def _errors(part: pd.DataFrame) -> str:
    """The expected calibration error of each stage."""
    errors = [f"{s} {_calibration_error(rows):.3f}" for _, s, rows in groups(part, "stage")]
    return "ECE: " + ", ".join(errors)


def confidence_by_source(table: pd.DataFrame) -> Figure:
    """Confidence of the classifier by source: source, c."""
    figure, ax = canvas(figsize=(6.4, 3.7))
    marks.violins(table, ax, value="c", by="source", ylabel="classifier confidence $c$ in golden")
    by_source = table.groupby("source", sort=False)["c"]
    medians = ", ".join(f"{label(str(n))} {value:.2f}" for n, value in by_source.median().items())
    note = findings.counted(by_source.size(), "responses a source; lines: quartiles")
    head(figure, f"Median confidence: {medians}", note, table)
    return figure


def h_by_sample(table: pd.DataFrame) -> Figure:
    """h~ of clean and contaminated samples by classifier: classifier, sample, h."""
    names = list(dict.fromkeys(table["classifier"]))
    figure, axes = canvas(1, len(names), figsize=(8, 3.1), sharey=True)
    said = []
    for ax, name in zip(axes, names, strict=True):
        part = table[table["classifier"] == name]
        marks.violins(part, ax, value="h", by="sample", ylabel=r"calibration factor $\tilde h(z)$")
        ax.set(title=name)
        ax.label_outer()
        means = part.groupby("sample", sort=False)["h"].mean()
        said.append(" / ".join(f"{mean:.2f}" for mean in means))
    kinds = "/".join(dict.fromkeys(table["sample"]))
    finding = f"Mean h~, {kinds}: " + "; ".join(
        f"{s} ({n})" for s, n in zip(said, names, strict=True)
    )
    sizes = table[table["classifier"] == names[0]].groupby("sample", sort=False).size()
    note = "n = " + ", ".join(f"{size} {kind}" for kind, size in sizes.items())
    head(figure, finding, f"{note} samples a classifier; lines: quartiles", table)
    return figure


def slot_detectors(table: pd.DataFrame) -> Figure:
    """AUC of each weight as a detector of contaminated rows, of `calibration.detectors`."""
    kinds = list(dict.fromkeys(table["samples"]))
    figure, axes = canvas(1, len(kinds), figsize=(8.6, 3.2), sharey=True, sharex=True)
    counts = []
    for ax, kind in zip(axes, kinds, strict=True):
        part = table[table["samples"] == kind]
        marks.bars_with_ci(
            part, ax, name="weight", value="auc", xlabel="AUC (0.5: by lot)", reference=0.5
        )
        n, bad = part[["n", "contaminated"]].iloc[0]
        ax.set_title(f"samples: {kind}")
        counts.append(f"{n} rows, {bad} contaminated ({kind})")
    best = table[table["samples"] == kinds[0]].sort_values("auc").iloc[-1]
    equal = table[(table["samples"] == kinds[0]) & (best["auc"] - table["auc"] < 0.005)]
    finding = (
        f"Best detector of {kinds[0]} rows: {' and '.join(equal['weight'])}, AUC {best['auc']:.2f}"
    )
    finding += f" [{best['auc_low']:.2f}, {best['auc_high']:.2f}]"
    head(figure, finding, f"n = {'; '.join(counts)}; 95 % intervals", table)
    return figure


def reward_accuracy(table: pd.DataFrame) -> Figure:
    """Preference accuracy by kind of pair: kind, n, accuracy, low, high, trained_kind."""
    figure, ax = canvas(figsize=(7.2, 3.4))
    named = table.assign(kind=table["kind"].map(label) + " (" + table["n"].astype(str) + ")")
    marks.bars_with_ci(
        named,
        ax,
        name="kind",
        value="accuracy",
        xlabel="preference accuracy (0.5: by lot)",
        reference=0.5,
        solid="trained_kind",
    )
    above, below = (table["low"] > 0.5).sum(), (table["high"] < 0.5).sum()
    rest = table[(table["low"] <= 0.5) & (table["high"] >= 0.5)]["kind"].map(label)
    finding = f"Above chance for {above} of {len(table)} kinds of pair, below for {below}"
    finding += f"; not shown to differ: {'; '.join(rest)}" if len(rest) else ""
    note = f"{findings.counted(table['n'], 'held-out pairs')} (in brackets); 95 % intervals"
    head(figure, finding, f"{note}; filled: a kind it was trained on", table)
    return figure


def judge_audit(table: pd.DataFrame) -> Figure:
    """The judge's scores of controls and their limits: control, value, low, high, rule, n."""
    figure, ax = canvas(figsize=(7.2, 6.4))
    table = table.assign(passed=table["result"] == "pass").reset_index(drop=True)
    marks.bars_with_ci(
        table,
        ax,
        name="control",
        value="value",
        xlabel="score against the human reply; agreement; slope (red: the rule's limit)",
        solid="passed",
    )
    limits = table["rule"].str.extractall(r"(low|high) (<=|>=) (?P<limit>[\d.]+)")["limit"]
    places = len(table) - 1 - limits.index.get_level_values(0)
    ax.scatter(limits.astype(float), places, marker="|", color="#D55E00", s=110, lw=2, zorder=2)
    judge = ", ".join(dict.fromkeys(table["judge"]))
    failed = ", ".join(table.loc[~table["passed"], "control"]) or "none"
    passed = f"{table['passed'].sum()} of {len(table)}"
    finding = f"The {judge} judge passes {passed} controls (failed: {failed})"
    note = f"{findings.counted(table['n'], 'prompts a control')}; 95 % intervals; filled: passed"
    head(figure, finding, note, table)
    return figure


def dose_real(table: pd.DataFrame) -> Figure:
    """Outcomes by dose in the studies on real text: study, outcome, method, dose, value, n."""
    outcomes = ("implicit_accuracy", "expected_gold")
    studies = list(dict.fromkeys(table["study"]))
    figure, axes = canvas(len(studies), 2, figsize=(9.6, 5.2), sharex=True, sharey="col")
    for row, study in zip(axes, studies, strict=True):
        for ax, outcome in zip(row, outcomes, strict=True):
            part = table[(table["study"] == study) & (table["outcome"] == outcome)]
            both = table[table["outcome"] == outcome]
            ax.set(
                ylim=(both["low"].min() - 0.05, both["high"].max() + 0.05), ylabel=label(outcome)
            )
            marks.lines_with_bands(part, ax, x="dose", y="value", by="method", named=True)
            seeds = part["n"].iloc[0]
            ax.set_title(f"{STUDIES.get(study, study)}, {seeds} seeds")
    for ax in axes[-1]:
        ax.set_xlabel("share contaminated or flipped")
    said = []
    for _, study, rows in groups(table[table["outcome"] == outcomes[0]], "study"):
        parts = []
        for _, method, part in groups(rows.sort_values("dose"), "method"):
            ends = f"{part['value'].iloc[0]:.2f} \N{RIGHTWARDS ARROW} {part['value'].iloc[-1]:.2f}"
            parts.append(f"{ends} ({method.split(', ')[-1].split(' ')[0]})")
        said.append(f"{STUDIES.get(study, study)}: {', '.join(parts)}")
    note = f"{findings.counted(table['n'], 'seeds a point; bands: 95 %')}; exploratory"
    head(figure, f"Implicit accuracy by dose. {'; '.join(said).capitalize()}", note)
    return figure


def dora_curves(table: pd.DataFrame) -> Figure:
    """Loss and effective sample size of every step against ERM's: policy, step, loss_mean, ess."""
    keys = ["step", "seed"] if "seed" in table else ["step"]
    base = table[table["policy"] == "erm"].set_index(keys)
    others = table[table["policy"] != "erm"].set_index(keys)
    drawn = others.assign(
        loss=others["loss_mean"] - base["loss_mean"].reindex(others.index).to_numpy(),
        heard=others["ess"] / base["ess"].reindex(others.index).to_numpy(),
    ).reset_index()
    figure, (left, right) = canvas(1, 2, figsize=(10, 3.5))
    marks.curves(drawn, left, value="loss", ylabel="mean loss minus ERM's (nats)")
    marks.curves(drawn, right, value="heard", ylabel="effective samples over ERM's")
    reference_line(left, 0.0, upright=False)
    reference_line(right, 1.0, upright=False)
    for ax in (left, right):
        marks.name_curves(ax)
    means = drawn.groupby("policy", sort=False)[["loss", "heard"]].mean()
    words = "; ".join(
        f"{label(str(name))} {findings.signed(loss)} nats, {heard:.0%} of the samples"
        for name, loss, heard in means.itertuples()
    )
    seeds = drawn["seed"].nunique() if "seed" in drawn else 1
    note = f"n = {drawn['step'].nunique()} steps, {seeds} seed{'s' if seeds > 1 else ''}"
    head(figure, f"Against ERM, mean over the steps: {words}", note + "; the same batches", table)
    return figure


def win_rates(table: pd.DataFrame) -> Figure:
    """Scores against the human reply, of `judging.win_table`; its own row is 0.5 by definition."""
    table = table[table["policy"] != "golden"]
    judges = list(dict.fromkeys(table["judge"]))
    height = 1.5 + 0.26 * table["policy"].nunique()
    figure, axes = canvas(1, len(judges), figsize=(8, height), sharey=True, squeeze=False)
    said = []
    for ax, judge in zip(axes[0], judges, strict=True):
        part = table[table["judge"] == judge]
        marks.scores(part, ax)
        said.append(findings.against(part, "score", 0.5, ("above it", "below it")))
        ax.set_title(f"judge: {judge}" if len(judges) > 1 else "")
    finding = f"Against the human reply's 0.5 ({judges[0]} judge): {said[0]}"
    note = findings.counted(
        table["prompts"], "prompts a policy; 95 % intervals over prompts, not corrected"
    )
    head(figure, finding, note, table)
    return figure


def score_differences(table: pd.DataFrame) -> Figure:
    """Scores minus the baseline's, paired by prompt, of `judging.difference_table`."""
    table = table.reset_index(drop=True)
    names = table["policy"].map(label) + " \N{MINUS SIGN} " + table["baseline"].map(label)
    table = table.assign(name=names, held=findings.held(table, "score"))
    figure, ax = canvas(figsize=(7.6, 1.5 + 0.3 * len(table)))
    marks.bars_with_ci(
        table,
        ax,
        name="name",
        value="score",
        xlabel="difference of scores (win + tie/2)",
        reference=0.0,
        solid="held",
    )
    note = findings.counted(
        table["prompts"], "prompts, paired; 95 % intervals; filled: holds after Holm"
    )
    head(figure, findings.contrasts(names, table, "its baseline", "score"), note, table)
    return figure
