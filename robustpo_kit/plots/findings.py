"""What a figure says above and below itself: sentences made from its table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit.analysis import among_all
from robustpo_kit.plots.style import label

MINUS = "\N{MINUS SIGN}"


def signed(value: float, places: int = 2) -> str:
    """ "+0.05", with a minus that is one; zero is "0.00"."""
    text = f"{round(value, places) + 0.0:+.{places}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def interval(row: Mapping[Any, Any] | pd.Series, value: str = "difference", places: int = 2) -> str:
    """ "+0.05 [+0.02, +0.08]" of a row whose bounds stand in VALUE_low, or else in low."""
    ends = (f"{value}_low", f"{value}_high") if f"{value}_low" in row else ("low", "high")
    low, high = (signed(row[end], places) for end in ends)
    return f"{signed(row[value], places)} [{low}, {high}]"


def ranged(values: pd.Series, places: int = 2) -> str:
    """ "0.64 to 0.97", or one number where both would read the same."""
    low, high = (f"{value:.{places}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def counted(counts: pd.Series, unit: str) -> str:
    """ "n = 24 worlds", "n = 12 to 24 worlds"."""
    return f"n = {ranged(counts, 0)} {unit}"


def held(table: pd.DataFrame, value: str = "difference") -> pd.Series:
    """Whether each row's difference is shown: Holm over all rows, an interval without zero."""
    low, high = f"{value}_low", f"{value}_high"
    if low not in table:
        low, high = "low", "high"
    leaves_zero_out = (table[low] > 0) | (table[high] < 0)
    adjusted = among_all(table.drop(columns="p_adjusted", errors="ignore"), value)["p_adjusted"]
    return leaves_zero_out & (adjusted < 0.05)


def contrasts(
    names: pd.Series, table: pd.DataFrame, baseline: str, value: str = "difference"
) -> str:
    """Which differences to a baseline hold, and by how much; or that none is shown.

    Args:
        names: what each row of the table is called.
        table: a row a difference, with what `analysis.among_all` reads.
        baseline: what they are differences to.
        value: the column of the difference.
    """
    shown = held(table, value)
    total = f"{len(table)} difference{'s' if len(table) > 1 else ''} to {baseline}"
    if not shown.any():
        return f"None of {total} is shown (Holm)"
    words = names[shown] + " " + table.loc[shown, value].map(signed)
    return (
        f"{shown.sum()} of {total} hold{'s' if shown.sum() == 1 else ''} after Holm: "
        + ", ".join(words)
    )


def verdicts(table: pd.DataFrame) -> str:
    """How many cells of `analysis.cell_table` are won, lost, tied and open."""
    found = table["verdict"].value_counts()
    parts = [f"{found.get(name, 0)} {word}" for name, word in VERDICT_WORDS.items()]
    return f"Of {len(table)} cells " + ", ".join(parts)


VERDICT_WORDS = {"win": "won", "lose": "lost", "tie": "tied", "open": "open"}


def against(table: pd.DataFrame, value: str, level: float, words: tuple[str, str]) -> str:
    """Which rows' intervals lie above a level, and which below: "above 0.5: DRO; below: SFT"."""
    low, high = table[f"{value}_low"], table[f"{value}_high"]
    parts = []
    for word, where in zip(words, (low > level, high < level), strict=True):
        names = ", ".join(table.loc[where, "policy"].map(label))
        if names:
            parts.append(f"{word}: {names}")
    rest = int(np.sum((low <= level) & (high >= level)))
    return "; ".join([*parts, f"nothing shown for the other {rest}" if parts else "nothing shown"])
