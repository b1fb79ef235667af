"""Where a method wins, ties and loses: a table of cells, and what it says about which to use."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import pandas as pd

from robustpo_kit.analysis.declarations import Contrast
from robustpo_kit.analysis.sentences import verdict
from robustpo_kit.analysis.study_tables import banded, contrast_row, within

VERDICTS = ("win", "tie", "lose", "open")
LESS_IS_BETTER = ("lose",)  # outcomes where a method wins below its baseline
LEAST = 0.5  # share of a cell's worlds that need an outcome; of a few, t values have no bounds


def cell_table(
    outcomes: pd.DataFrame,
    against: Mapping[str, Sequence[str]],
    tie: Mapping[str, float],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Every method minus each of its baselines in every cell, paired by world.

    All of it is exploratory, a primary contrast's cells too. Intervals are simultaneous (max-t)
    over a family: the rows of one outcome with as many worlds.

    Args:
        outcomes: tidy, as for `study_table`, with a column `axis` beside `dose`.
        against: baselines by method.
        tie: by outcome, of those to look at, the largest difference that does not matter.
        level: of the intervals.
        seed: of the flips of signs.

    Returns:
        A row a cell, method, baseline and outcome: kind (exploratory), axis, dose, method,
        baseline, outcome, worlds, seeds (worlds where both have the outcome; a row where fewer than
        LEAST of them have is left out), value (mean of the method), difference, low, high,
        p_adjusted, could_see, and verdict: "tie" where the interval stays within the margin, else
        "win" above zero, "lose" below it (the other way round for LESS_IS_BETTER), and "open"
        where it shows neither.
    """
    families: dict[tuple[str, int], list[dict[str, Any]]] = {}
    outcomes = outcomes[outcomes["outcome"].isin(tie)]
    for cell_of, part in outcomes.groupby(["outcome", "axis", "dose"], sort=False):
        outcome, axis, dose = cast(tuple[str, str, float], cell_of)
        for method, baseline in _pairs(against, set(part["method"])):
            rows = part[part["method"] == method]
            cell = {"axis": axis, "dose": dose}
            contrast = Contrast(method, baseline, outcome, cell, cell, "either")
            row = contrast_row(part, contrast, level) | cell
            row |= {"worlds": rows["seed"].nunique(), "value": rows["value"].mean()}
            if row["seeds"] >= LEAST * row["worlds"]:
                families.setdefault((outcome, row["worlds"]), []).append(row)
    parts = [banded(rows, level, seed) for rows in families.values()]
    table = pd.concat(parts, ignore_index=True)
    table["verdict"] = [_verdict(row, tie[row["outcome"]]) for _, row in table.iterrows()]
    names = ["kind", "axis", "dose", "method", "baseline", "outcome", "worlds", "seeds", "value"]
    return table[[*names, "difference", "low", "high", "p_adjusted", "could_see", "verdict"]]


def _pairs(against: Mapping[str, Sequence[str]], present: set[str]) -> list[tuple[str, str]]:
    """Method and baseline, where both are there."""
    named = [(method, other) for method, others in against.items() for other in others]
    return [pair for pair in named if present.issuperset(pair)]


def _verdict(row: "pd.Series[Any]", margin: float) -> str:
    low, high = row["low"], row["high"]
    if within(low, high, margin):
        return "tie"
    if row["outcome"] in LESS_IS_BETTER:
        low, high = -high, -low
    if low > 0:
        return "win"
    return "lose" if high < 0 else "open"


def which_method(
    cells: pd.DataFrame, baseline: str, *, leave_out: Collection[str] = ()
) -> pd.DataFrame:
    """What a table of cells advises: by cell, what wins most over a baseline, and what loses.

    Args:
        cells: of `cell_table`, of one outcome.
        baseline: what a reader would do otherwise, and what is advised where nothing wins.
        leave_out: methods that need to know what nobody knows.

    Returns:
        A row a cell: axis, dose, use, why (a sentence of `verdict`), wins, loses (names).
    """
    rows = []
    part = cells[(cells["baseline"] == baseline) & ~cells["method"].isin(leave_out)]
    for (axis, dose), cell in part.groupby(["axis", "dose"], sort=False):
        cell = cell.sort_values("difference", ascending=False)
        wins, loses = (
            cell.loc[cell["verdict"] == name, "method"].tolist() for name in ("win", "lose")
        )
        row = {"axis": axis, "dose": dose, "use": baseline, "why": "nothing is shown to beat it"}
        if wins:
            row |= {"use": wins[0], "why": verdict(cell[cell["method"] == wins[0]].iloc[0])}
        rows.append(row | {"wins": ", ".join(wins), "loses": ", ".join(loses)})
    return pd.DataFrame(rows)
