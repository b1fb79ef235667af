"""Sentences of effect, made from rows of tables, so that they say what their intervals say."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from robustpo_kit.analysis.declarations import Study
from robustpo_kit.analysis.paired import Difference, equivalence
from robustpo_kit.analysis.study_tables import could_see, holm, where_in_words, within

UNITS = ("seeds", "prompts", "n")  # columns that count independent units, the first one found
MANY = 10**6  # degrees of freedom of a normal interval
UNFINISHED = "declared, not finished"


def verdict(
    row: Mapping[str, Any] | pd.Series,
    value: str = "difference",
    *,
    places: int = 2,
    verbs: tuple[str, str] = ("gains", "loses"),
    level: float = 0.95,
) -> str:
    """What a row shows: "gains 0.03 [0.01, 0.05]", or that it shows no difference.

    A difference is shown where the interval leaves out zero and, if the row has `p_adjusted`, that
    is below 1 - `level`. With a `margin`, `p_adjusted` is of equivalence, which is shown where it
    is below 1 - `level` and the interval stays within the margin.

    Args:
        row: with VALUE, and its bounds in VALUE_low and VALUE_high or in low and high; `could_see`,
            or a count of units (seeds, prompts or n), says what could have been seen; `margin`
            makes it a test of equivalence.
        value: the column of the difference.
        places: digits after the point.
        verbs: for a difference above and below zero, of which the second turns the sign.
        level: of the interval.

    Returns:
        One of

            gains 0.03 [0.01, 0.05]
            loses 0.04 [0.02, 0.06]
            no difference shown: 0.00 [-0.02, 0.02], could have seen 0.03
            no difference shown: 0.03 [0.01, 0.05] but p 0.21 among all, could have seen 0.03
            no difference beyond 0.05: 0.00 [-0.02, 0.02]
            equivalence within 0.05 not shown: 0.03 [-0.01, 0.07]
            gains 0.30 [0.20, 0.40], beyond the margin of 0.05
            no interval: 0.03 from one unit
    """
    middle, low, high = _bounds(row, value)
    if np.isnan(low) or np.isnan(high):
        return f"no interval: {_shown(middle, places)} from one unit"
    among = float(row.get("p_adjusted", 0.0))
    numbers = _interval(middle, low, high, places)
    effect = f"{verbs[0]} {numbers}"
    if middle < 0:
        effect = f"{verbs[1]} {_interval(-middle, -high, -low, places)}"
    margin = _margin(row)
    if margin is not None:
        if low > margin or high < -margin:
            return f"{effect}, beyond the margin of {margin:g}"
        if among < 1 - level and within(low, high, margin):
            return f"no difference beyond {margin:g}: {numbers}"
        return f"equivalence within {margin:g} not shown: {numbers}"
    beyond = low > 0 or high < 0
    if beyond and among < 1 - level:
        return effect
    if beyond and not np.isnan(among):
        numbers += f" but p {among:.2f} among all"
    seen = _could_see(row, low, high, level)
    if np.isnan(seen):
        return f"no difference shown: {numbers}"
    return f"no difference shown: {numbers}, could have seen {_shown(seen, places)}"


def among_all(
    table: pd.DataFrame, value: str = "difference", *, level: float = 0.95
) -> pd.DataFrame:
    """`table` with Holm's `p_adjusted` over all its rows, and what they could have seen among them.

    Args:
        table: rows as in `verdict`; p stands in `p_value`, or is read back from the interval and a
            count of units: with a `margin` that of equivalence. Rows without an interval stay.
        value: the column of the difference.
        level: of the intervals.
    """
    p_values, errors = [], []
    for _, row in table.iterrows():
        middle, low, high = _bounds(row, value)
        se, df = _error(row, low, high, level)
        p_value = 2 * stats.t.sf(abs(middle) / max(se, 1e-300), df)
        margin = _margin(row)
        if margin is not None:
            found = Difference(middle, low, high, se, df, p_value, 0, 0)
            p_value = equivalence(found, margin)
        given = row.get("p_value", np.nan)
        p_values.append(p_value if np.isnan(given) else given)
        errors.append((se, min(df, MANY)))
    first = 1 - (1 - level) / max(1, np.isfinite(p_values).sum())  # Holm's first step
    seen = [could_see(*error, first) for error in errors]
    return table.assign(p_adjusted=holm(p_values), could_see=seen)


def declared_contrasts(study: Study | str, contrasts: pd.DataFrame | None = None) -> pd.DataFrame:
    """The primary contrasts of a study, whether or not its runs have ended.

    Args:
        study: a declaration, or its name.
        contrasts: of `study_table`; None: the runs have not ended.

    Returns:
        A row a primary contrast: study, kind, method, baseline, outcome, where, direction, margin,
        seeds, finished, says (its `verdict`, or UNFINISHED), difference, low, high, p_adjusted,
        could_see (NaN before the end).
    """
    if isinstance(study, str):
        study = Study.load(study)
    if contrasts is not None:
        rows = contrasts[contrasts["kind"] == "primary"].assign(study=study.name, finished=True)
        return rows.assign(says=[verdict(row) for _, row in rows.iterrows()])
    words = {"study": study.name, "kind": "primary", "says": UNFINISHED, "finished": False}
    numbers = dict.fromkeys(("difference", "low", "high", "p_adjusted", "could_see"), np.nan)
    names = ("method", "baseline", "outcome", "direction", "margin")
    declared = []
    for contrast in study.primary:
        row = {name: getattr(contrast, name) for name in names} | {"seeds": len(study.seeds)}
        declared.append(words | row | {"where": where_in_words(contrast)} | numbers)
    return pd.DataFrame(declared)


def _margin(row: Mapping[str, Any] | pd.Series) -> float | None:
    """The margin of a row that is about equivalence."""
    margin = row.get("margin")
    return None if margin is None or np.isnan(margin) else float(margin)


def _bounds(row: Mapping[str, Any] | pd.Series, value: str) -> tuple[float, float, float]:
    """Value and bounds, these in VALUE_low and VALUE_high, or else in low and high."""
    low, high = f"{value}_low", f"{value}_high"
    if low not in row:
        low, high = "low", "high"
    return float(row[value]), float(row[low]), float(row[high])


def _error(
    row: Mapping[str, Any] | pd.Series, low: float, high: float, level: float
) -> tuple[float, float]:
    """Standard error and degrees of freedom that an interval of t tells."""
    unit = next((name for name in UNITS if name in row and row[name] > 1), None)
    df = float(row[unit]) - 1 if unit else np.inf
    return (high - low) / 2 / float(stats.t.ppf((1 + level) / 2, df)), df


def _could_see(row: Mapping[str, Any] | pd.Series, low: float, high: float, level: float) -> float:
    if "could_see" in row:
        return float(row["could_see"])
    se, df = _error(row, low, high, level)
    return could_see(se, min(df, MANY), level)


def _interval(middle: float, low: float, high: float, places: int) -> str:
    return f"{_shown(middle, places)} [{_shown(low, places)}, {_shown(high, places)}]"


def _shown(number: float, places: int) -> str:
    """`number` to `places` digits; zero has no sign."""
    return f"{round(number, places) + 0.0:.{places}f}"
