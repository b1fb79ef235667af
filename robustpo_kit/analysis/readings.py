"""Readings: what the kit's own tables say about an item of the papers, a number each.

A reader takes `read`, which gives a table by its folder of `data/results` ("" for the run's own)
and its title, and what an item's entry in `data/paper/items.json` names.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustpo_kit import published
from robustpo_kit.analysis.declarations import Study
from robustpo_kit.analysis.figures import normalise, slope_difference, training_gaps
from robustpo_kit.analysis.paired import mean_difference, paired_rows
from robustpo_kit.analysis.papers import paper_values
from robustpo_kit.analysis.slopes import REPLIES, wide_outcomes
from robustpo_kit.intervals import Interval, bootstrap_mean, t_interval

Read = Callable[[str, str], pd.DataFrame]
Pairs = Sequence[Sequence[str]]  # method and baseline
NARROW = 0.25  # share of the pairs that are called ambiguous, and of those that are called clear


class Reading(NamedTuple):
    """A number of ours with its interval, from `units` independent units of a kind."""

    what: str
    value: float
    low: float
    high: float
    units: int
    of: str  # of seeds, prompts of one seed, alternations, values or others
    p_adjusted: float = np.nan  # as its table has it
    kind: str = "exploratory"  # or primary
    tie: float = np.nan  # the difference that its study declared as not mattering


def _of_interval(what: str, found: Interval, of: str) -> Reading:
    return Reading(what, found.value, found.low, found.high, found.clusters, of)


def _of_row(
    what: str, row: Mapping[Any, Any], names: tuple[str, str, str], units: Any, of: str
) -> Reading:
    value, low, high = (float(row[name]) for name in names)
    return Reading(what, value, low, high, int(units), of)


# ---------------------------------------------------------------- method minus baseline


def contrasts(
    read: Read, *, study: str, pairs: Pairs, outcome: str, doses: Sequence[float]
) -> Iterator[Reading]:
    """Method minus baseline in a study's outcome, at each dose.

    As the study's own tables have it (primary, or in a simultaneous band); a pair that they do not
    hold against each other is taken from the outcomes.
    """
    for dose in doses:
        for method, baseline in pairs:
            names = {"method": method, "baseline": baseline, "outcome": outcome}
            row = _stated(read, f"studies/{study}", names, dose)
            if row is None:
                row = _computed(read(f"studies/{study}", "outcomes"), names, dose)
            what = f"{method} minus {baseline}, {outcome}, dose {dose:g}"
            found = _of_row(what, row, ("difference", "low", "high"), row["seeds"], "seeds")
            adjusted, kind = row.get("p_adjusted", np.nan), row.get("kind", "exploratory")
            tie = Study.load(study).settings.get("tie", {}).get(outcome, np.nan)
            yield found._replace(p_adjusted=float(adjusted), kind=kind, tie=tie)


def _stated(read: Read, folder: str, names: dict[str, str], dose: float) -> Any:
    """The row of a study's tables that holds them against each other, a primary one first."""
    table = read(folder, "contrasts")
    words = {f"dose {dose:g}", f"dose {float(dose)}"}
    found = table[table["where"].isin(words) & _has(table, names)]
    parts = [found[found["kind"] == "primary"], found]
    cells = _optional(read, folder, "cells")
    if cells is not None:
        parts.insert(1, cells[_has(cells, {**names, "axis": "base", "dose": dose})])
    return next((part.iloc[0] for part in parts if len(part)), None)


def _computed(outcomes: pd.DataFrame, names: dict[str, Any], dose: float) -> dict[str, Any]:
    where: dict[str, Any] = {"dose": dose}
    if "axis" in outcomes:
        where["axis"] = "base"
    found = mean_difference(paired_rows(outcomes, **names, where=where))
    return where | found._asdict()


def _has(table: pd.DataFrame, values: Mapping[str, Any]) -> "pd.Series[bool]":
    """Which rows have all these values."""
    return (table[list(values)] == pd.Series(values)).all(axis=1)


def _optional(read: Read, folder: str, title: str) -> pd.DataFrame | None:
    try:
        return read(folder, title)
    except FileNotFoundError:
        return None


def paired(
    read: Read,
    *,
    table: str,
    by: str,
    over: str,
    value: str,
    pairs: Pairs,
    where: Mapping[str, Any] | None = None,
) -> Iterator[Reading]:
    """Method minus baseline in one column of a run's table, paired over seeds or prompts.

    Args:
        read: as everywhere here.
        table: title of the run's table.
        by: its column of methods.
        over: its column of units, seed or prompt_id.
        value: its column of numbers.
        pairs: method and baseline.
        where: values of columns of the rows that count.
    """
    rows = read("", table)
    rows = rows[_has(rows, where)] if where else rows
    wide = rows.pivot_table(index=over, columns=by, values=value)
    of = {"seed": "seeds", "prompt_id": "prompts of one seed"}[over]
    for method, baseline in pairs:
        found = t_interval((wide[method] - wide[baseline]).dropna())
        yield _of_interval(f"{method} minus {baseline}, {value}", found, of)


def rows(
    read: Read, *, table: str, name: str, keep: Sequence[str], value: str, count: str, of: str
) -> Iterator[Reading]:
    """Rows of a run's table as they stand, with the bounds that are beside them.

    Args:
        read: as everywhere here.
        table: title of the run's table.
        name: its column that names a row; `keep` are the names that count.
        keep: names, in order.
        value: its column of numbers, with bounds in VALUE_low and VALUE_high or in low and high.
        count: its column of how many units; `of` says of what.
        of: as of a `Reading`.
    """
    found = read("", table).set_index(name)
    low, high = f"{value}_low", f"{value}_high"
    if low not in found:
        low, high = "low", "high"
    for each in keep:
        row = found.loc[each].to_dict()
        yield _of_row(f"{each}, {value}", row, (value, low, high), row[count], of)


def slopes(read: Read, *, study: str, pairs: Pairs, doses: Sequence[float]) -> Iterator[Reading]:
    """Slope of confidence on reward, method minus baseline, a regression a seed (DoRA Fig. 4)."""
    wide = wide_outcomes(read(f"studies/{study}", "outcomes"), REPLIES)
    wide = wide.rename(columns={"method": "policy", "row_id": "prompt_id"})
    for dose in doses:
        for method, baseline in pairs:
            part = wide[(wide["dose"] == dose) & wide["policy"].isin([method, baseline])]
            found = []
            for _, of_seed in part.groupby("seed"):
                points = of_seed.assign(reward=normalise(of_seed["reward"].tolist()))
                found.append(slope_difference(points, baseline, method)["difference"].iloc[0])
            what = f"{method} minus {baseline}, slope, dose {dose:g}"
            yield _of_interval(what, t_interval(found), "seeds")


# ---------------------------------------------------------------- of one method


def run_falls(read: Read, *, table: str, keep: Sequence[str]) -> Iterator[Reading]:
    """Training loss of a run's last third over that of its first, less one; one run each."""
    curves = read("", table).rename(columns={"loss": "value"})
    for policy in keep:
        change = _fall(curves[curves["policy"] == policy].sort_values("step"))
        what = f"{policy}, loss of the last third over the first, less 1"
        yield Reading(what, change, np.nan, np.nan, 1, "runs")


def study_falls(
    read: Read, *, study: str, keep: Sequence[str], doses: Sequence[float]
) -> Iterator[Reading]:
    """The same over the seeds of a study."""
    steps = read(f"studies/{study}", "steps")
    steps = steps[steps["outcome"] == "step_loss"].assign(row_id=steps["row_id"].astype(int))
    for dose in doses:
        for method in keep:
            part = steps[(steps["method"] == method) & (steps["dose"] == dose)]
            changes = [_fall(of_seed) for _, of_seed in part.sort_values("row_id").groupby("seed")]
            what = f"{method}, loss of the last third over the first, less 1, dose {dose:g}"
            yield _of_interval(what, t_interval(changes), "seeds")


def _fall(curve: pd.DataFrame) -> float:
    values = curve["value"].to_numpy()
    third = max(1, len(values) // 3)
    return float(values[-third:].mean() / values[:third].mean() - 1)


def run_near_zero(read: Read, *, table: str, keep: Sequence[str]) -> Iterator[Reading]:
    """Share of pairs whose gap is within a tenth of the largest one (gamma-PO Fig. 2)."""
    gaps = training_gaps(read("", table))
    for policy in keep:
        near = _near_zero(gaps.loc[gaps["policy"] == policy, "gap"])
        what = f"{policy}, share of gaps within a tenth of the largest"
        yield _of_interval(what, bootstrap_mean(near), "pairs of one seed")


def study_near_zero(
    read: Read, *, study: str, keep: Sequence[str], doses: Sequence[float]
) -> Iterator[Reading]:
    """The same over the seeds of a study."""
    for method, dose, seeds in _pairs_of(read, study, keep, doses):
        shares = [_near_zero(gaps["pair_gap"]).mean() for gaps in seeds]
        what = f"{method}, share of gaps within a tenth of the largest, dose {dose:g}"
        yield _of_interval(what, t_interval(shares), "seeds")


def _near_zero(gaps: "pd.Series[float]") -> np.ndarray:
    sizes = gaps.abs().to_numpy()
    return (sizes < 0.1 * sizes.max()).astype(float)


def ambiguous(
    read: Read, *, study: str, keep: Sequence[str], doses: Sequence[float]
) -> Iterator[Reading]:
    """Share of flipped labels among pairs of narrow gap less that among wide ones (Fig. 1)."""
    for method, dose, seeds in _pairs_of(read, study, keep, doses):
        shares = []
        for pairs in seeds:
            order = pairs["pair_flipped"].to_numpy()[np.argsort(pairs["pair_gap"].abs())]
            few = round(NARROW * len(order))
            shares.append(order[:few].mean() - order[-few:].mean())
        what = f"{method}, share of flipped labels, narrowest quarter minus widest, dose {dose:g}"
        yield _of_interval(what, t_interval(shares), "seeds")


def _pairs_of(
    read: Read, study: str, keep: Sequence[str], doses: Sequence[float]
) -> Iterator[tuple[str, float, list[pd.DataFrame]]]:
    """Method, dose, and each seed's training pairs with their gap after training."""
    table = read(f"studies/{study}", "pairs")
    for method in keep:
        for dose in doses:
            part = table[(table["method"] == method) & (table["dose"] == dose)]
            wide = part.pivot_table(index=["seed", "row_id"], columns="outcome", values="value")
            yield method, dose, [of_seed for _, of_seed in wide.groupby(level="seed")]


def overhead(read: Read, *, quantity: str) -> Iterator[Reading]:
    """Seconds of a step over those of its base, less one, over alternations of the bench."""
    bench = read("bench", "bench")
    ratios = bench.loc[bench["quantity"] == quantity, "value"] - 1
    yield _of_interval(f"{quantity}, less 1", t_interval(ratios), "alternations")


def rises(read: Read, *, table: str) -> Iterator[Reading]:
    """Rank correlation of target margin and gap, over the published settings (gamma-PO Fig. 5)."""
    parts = read("", table).groupby("setting", sort=False)
    found = [float(part["gap"].corr(part["gamma"], method="spearman")) for _, part in parts]
    what = "rank correlation of margin and gap"
    yield Reading(what, float(np.mean(found)), np.nan, np.nan, len(found), "settings")


# ---------------------------------------------------------------- what the papers set

LOSSES = {
    "DPO": "dpo", "R-DPO": "r_dpo_length", "EXO": "exo", "SimPO": "simpo", "DPO-PL": "dpo_pl",
    "RRHF": "rrhf", "LIRE": "lire", "IPO": "ipo", "CPO": "cpo", "KTO": "kto", "ORPO": "orpo",
    "rDPO": "cdpo", "beta-DPO": "beta_dpo",
}  # fmt: skip
TASKS = {"HH-RLHF": "hh", "Summarization": "summarization", "UltraFeedback": "ultrafeedback"}
# a printed name's names here; gamma is a ratio to beta in gamma-PO
KEYS = {
    "gamma": ("gamma0", "gamma_beta_ratio"), "T": ("temperature",), "lambda": ("lam",),
    "lambda_l": ("weight_rejected",), "lambda_w": ("weight_chosen",), "alpha": ("alpha", "lam"),
    "learning rate": ("learning_rate",),
}  # fmt: skip


def settings(_read: Read, *, paper: str, table: str) -> Iterator[Reading]:
    """How many of a table's printed settings the kit's presets, or its search ranges, have."""
    printed = paper_values(paper)
    printed = printed[printed["table"] == table]
    kept = 0
    for row in printed.to_dict("records"):
        symbol = row["column"].split(",")[0]
        have = [_named(here, symbol) for here in _set_here(paper, table, row["row"])]
        kept += bool(have) and all(row["value"] in values for values in have)
    what = "printed values that the presets have"
    yield Reading(what, kept, np.nan, np.nan, len(printed), "printed values")


def _set_here(paper: str, table: str, row: str) -> list[dict[str, tuple[float, ...]]]:
    """The values by name that the kit has for a row of a table of settings, a dict a preset."""
    parts = row.split(" / ")
    if table == "Table 6":
        return [published.SEARCH_RANGES[LOSSES[row]]]
    if paper == "dora":
        ends = [f"/{TASKS[parts[0]]}/{LOSSES[parts[1]]}"]
    else:
        model = _letters(row.partition("-Instruct")[0])
        ends = [
            name
            for name in published.PRESETS
            if _letters(name).startswith(f"gamma{model}") and "/gamma_" in name
        ]
    presets = [preset for name, preset in published.PRESETS.items() if name.endswith(tuple(ends))]
    return [_values_of(preset) for preset in presets]


def _named(here: Mapping[str, tuple[float, ...]], symbol: str) -> list[float]:
    """Values under the names that a printed symbol has here."""
    values = [here.get(name, ()) for name in KEYS.get(symbol, (symbol,))]
    return list(itertools.chain.from_iterable(values))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _values_of(preset: published.Preset) -> dict[str, tuple[float, ...]]:
    found = re.findall(r"(\w+)=([\d.e-]+)", preset.spec)
    values: dict[str, tuple[float, ...]] = {name: (float(number),) for name, number in found}
    if "learning_rate" in preset.settings:
        values["learning_rate"] = (preset.settings["learning_rate"],)
    return values


READERS: dict[str, Callable[..., Iterator[Reading]]] = {
    reader.__name__: reader
    for reader in (
        contrasts, paired, rows, slopes, run_falls, study_falls, run_near_zero, study_near_zero,
        ambiguous, overhead, rises, settings,
    )
}  # fmt: skip
