"""The table of a declared study: its primary contrasts, all of them, and then what else is seen."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from robustpo_kit.analysis.declarations import Contrast, Study
from robustpo_kit.analysis.paired import (
    equivalence,
    mean_difference,
    minimum_detectable,
    paired_rows,
    simultaneous,
)
from robustpo_kit.errors import KitError

COLUMNS = ("study", "seed", "method", "dose", "outcome", "row_id", "value")


def study_table(
    study: Study | str, outcomes: pd.DataFrame, *, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """What a declared study found: every primary contrast with Holm's p, then exploratory ones.

    Exploratory are every baseline of a primary contrast at each dose minus itself at the first, and
    every other method minus the first of these at each dose; their intervals and p values are
    simultaneous (max-t).

    Args:
        study: a declaration, or its name.
        outcomes: tidy, with the columns study, seed, method, dose, outcome, row_id, value.
        level: of the intervals.
        seed: of the flips of signs.

    Returns:
        A row a contrast, primaries first: kind (primary | exploratory), method, baseline, outcome,
        where, direction, margin, seeds, prompts, difference, low, high, se, p_value, p_adjusted,
        could_see (`minimum_detectable` at this error, by what a primary needs among the others
        and an exploratory row to leave its band), shown (of a primary: p_adjusted below 1 - level
        and the difference as declared, the interval of an equivalence within its margin).

    Raises:
        KitError: where a primary outcome, or a declared seed or a prompt of one, is missing, where
            there are seeds that were not declared, or rows of another study.
    """
    if isinstance(study, str):
        study = Study.load(study)
    _check(study, outcomes)
    primary = [contrast_row(outcomes, contrast, level) for contrast in study.primary]
    each = 1 - (1 - level) / len(primary)  # Holm's first step
    for row in primary:
        row["could_see"] = could_see(row["se"], row["df"], each)
    _check_seeds(study, primary)
    _check_prompts(study, primary, outcomes)
    table = pd.DataFrame(primary).drop(columns=["pairs", "df"])
    table.insert(0, "kind", "primary")
    table["p_adjusted"] = holm(table["p_value"])
    signs = np.sign(table["difference"])
    wanted = table["direction"].map({"higher": 1, "lower": -1})
    table["shown"] = (table["p_adjusted"] < 1 - level) & (wanted.isna() | (wanted == signs))
    margins = table["margin"].astype(float)
    table["shown"] &= margins.isna() | within(table["low"], table["high"], margins)
    others = [c for c in _exploratory(study, outcomes) if c not in _undirected(study.primary)]
    rows = [contrast_row(outcomes, contrast, level) for contrast in others]
    rows = [row for row in rows if row["seeds"] > 0]
    if not rows:
        return table
    return pd.concat([table, banded(rows, level, seed)], ignore_index=True)


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Holm's adjusted p values [n]; NaN, where nothing was tested, stays and does not count."""
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(list(p_values), dtype=float)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = multipletests(adjusted[tested], method="holm")[1]
    return adjusted


def contrast_row(outcomes: pd.DataFrame, contrast: Contrast, level: float) -> dict[str, Any]:
    """One contrast as a row, with its pairs; without any pair, its seeds are 0."""
    pairs = paired_rows(
        outcomes,
        contrast.method,
        contrast.baseline,
        contrast.outcome,
        where=contrast.where,
        against=contrast.against,
    )
    found = mean_difference(pairs, level=level)
    p_value = found.p_value
    if contrast.margin is not None:
        p_value = equivalence(found, contrast.margin)
    return {
        "method": contrast.method,
        "baseline": contrast.baseline,
        "outcome": contrast.outcome,
        "where": where_in_words(contrast),
        "direction": contrast.direction,
        "margin": contrast.margin,
        "seeds": found.seeds,
        "prompts": found.prompts,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "se": found.se,
        "p_value": p_value,
        "could_see": could_see(found.se, found.df, level),
        "df": found.df,
        "pairs": pairs,
    }


def could_see(se: float, df: float, level: float = 0.95) -> float:
    """The smallest true difference that a t test with this error shows with probability 0.8.

    NaN where there is no error, or a level that rounds to 1, at which no difference can be seen.
    """
    if not (df > 0 and se > 0 and level < 1):
        return np.nan
    units = round(df) + 1
    return minimum_detectable(se * np.sqrt(units), units, level=level)


def within(low: Any, high: Any, margin: Any) -> Any:
    """Whether an interval stays within plus or minus `margin`; of numbers, or of columns."""
    return np.maximum(-low, high) <= margin


def where_in_words(contrast: Contrast) -> str:
    """Where a contrast is taken, in words: "dose 0.6", or "dose 0.6 against dose 0"."""
    here, there = (_listed(where) for where in (contrast.where, contrast.against))
    return here if here == there else f"{here} against {there}"


def _listed(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} {value}" for column, value in where.items()) or "all rows"


def banded(rows: list[dict[str, Any]], level: float, seed: int) -> pd.DataFrame:
    """Exploratory rows with simultaneous intervals and p values, over seeds or one seed's prompts.

    Rows of one value (one seed, one prompt) have no error, and stay without an interval.
    """
    table = pd.DataFrame(rows).drop(columns=["pairs", "direction", "margin"])
    unit = "seed" if table["seeds"].max() > 1 else "row_id"
    means = [row["pairs"].groupby(unit)["difference"].mean() for row in rows]
    units = pd.concat(means, axis=1)
    t_values = (table["difference"] / table["se"]).fillna(0.0)
    table["p_adjusted"] = np.nan
    if len(units) > 1:
        bands = simultaneous(units.to_numpy(), t_values.to_numpy(), level=level, seed=seed)
        table["p_adjusted"] = bands.p_values
        table["low"] = table["difference"] - bands.factor * table["se"]
        table["high"] = table["difference"] + bands.factor * table["se"]
        levels = 1 - 2 * stats.t.sf(bands.factor, table["df"])
        rows_seen = zip(table["se"], table["df"], levels, strict=True)
        table["could_see"] = [could_see(*row) for row in rows_seen]
    table = table.drop(columns="df")
    table.insert(0, "kind", "exploratory")
    return table


def _exploratory(study: Study, outcomes: pd.DataFrame) -> list[Contrast]:
    """Doses of the baselines against their first, other methods against the first baseline.

    The direction is 'either', so that a primary contrast is recognised by `_undirected`.
    """
    baselines = list(dict.fromkeys(contrast.baseline for contrast in study.primary))
    contrasts = []
    for outcome in dict.fromkeys(outcomes["outcome"]):
        for dose in study.doses:
            here = {"dose": dose}
            for method in study.methods:
                other, against = baselines[0], here
                if method in baselines:
                    other, against = method, {"dose": study.doses[0]}
                if (method, here) != (other, against):
                    contrasts.append(Contrast(method, other, outcome, here, against, "either"))
    return contrasts


def _undirected(contrasts: Iterable[Contrast]) -> list[Contrast]:
    return [
        Contrast(c.method, c.baseline, c.outcome, c.where, c.against, "either") for c in contrasts
    ]


def _check(study: Study, outcomes: pd.DataFrame) -> None:
    """Refuse outcomes that are not tidy, of another study, or lack a primary outcome."""
    missing = [column for column in COLUMNS if column not in outcomes]
    if missing:
        raise KitError(f"study {study.name}: the outcomes lack the column '{missing[0]}'")
    names = sorted(set(outcomes["study"]))
    if names != [study.name]:
        raise KitError(f"study {study.name}: the outcomes are of {', '.join(names) or 'no study'}")
    have = sorted(set(outcomes["outcome"]))
    for contrast in study.primary:
        if contrast.outcome not in have:
            raise KitError(
                f"study {study.name}: primary outcome '{contrast.outcome}' is missing, the "
                f"outcomes are {', '.join(have)}; a table without it is not the study's"
            )
    extra = sorted(set(outcomes["seed"]) - set(study.seeds))
    if extra:
        raise KitError(
            f"study {study.name}: seed {extra[0]} was not declared; declare seeds before they run"
        )


def _check_seeds(study: Study, rows: list[dict[str, Any]]) -> None:
    """Refuse a primary contrast without a pair for each declared seed."""
    for row in rows:
        missing = sorted(set(study.seeds) - set(row["pairs"]["seed"]))
        if missing:
            raise KitError(
                f"study {study.name}: {row['method']} minus {row['baseline']} in {row['outcome']} "
                f"({row['where']}) lacks seed {missing[0]} of {len(study.seeds)} declared; "
                "run them all, then look"
            )


def _check_prompts(study: Study, rows: list[dict[str, Any]], outcomes: pd.DataFrame) -> None:
    """Refuse a primary contrast that lacks prompts of a seed, which would be a choice of them."""
    for row in rows:
        of_it = outcomes[outcomes["outcome"] == row["outcome"]]
        sides = of_it[of_it["method"].isin([row["method"], row["baseline"]])]
        asked = sides.groupby("seed")["row_id"].nunique()
        paired = row["pairs"].groupby("seed").size()
        for seed in study.seeds:
            if paired[seed] < asked[seed]:
                raise KitError(
                    f"study {study.name}: {row['method']} minus {row['baseline']} in "
                    f"{row['outcome']} ({row['where']}) has a number for {paired[seed]} of "
                    f"{asked[seed]} prompts of seed {seed}; a method without one has failed, "
                    "and the study is not done"
                )
