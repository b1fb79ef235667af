"""Tuning before a comparison: every method's tries, and which of them did best elsewhere."""

import itertools
import json
from collections.abc import Mapping, Sequence

import pandas as pd

from robustpo_kit.errors import KitError

Knobs = dict[str, float]


def knobs_of(tries: Mapping[str, Sequence[float]]) -> list[Knobs]:
    """Every combination of the values of each knob; none without knobs."""
    values = itertools.product(*tries.values()) if tries else ()
    return [dict(zip(tries, each, strict=True)) for each in values]


def choose(tried: pd.DataFrame, outcome: str, *, units: str) -> pd.DataFrame:
    """What tuning found: the best try of every method and dose.

    Args:
        tried: a row a run: method, dose, knobs (`Knobs`), and the column `outcome`, where more is
            better.
        outcome: its column.
        units: names the column that counts the runs of a try.

    Returns:
        A row a method, dose and try: method, dose, knobs (JSON), `outcome` (mean), `units`, chosen.
    """
    tried = tried.assign(knobs=tried["knobs"].map(json.dumps))
    by_try = tried.groupby(["method", "dose", "knobs"], sort=False)[outcome]
    means = by_try.agg(["mean", "size"]).reset_index()
    means = means.rename(columns={"mean": outcome, "size": units})
    best = means.groupby(["method", "dose"])[outcome].transform("idxmax")
    return means.assign(**{outcome: means[outcome].round(4)}, chosen=best == means.index)


def chosen_tries(tuned: pd.DataFrame) -> pd.DataFrame:
    """What was chosen, and what might be better beyond the grid.

    Args:
        tuned: of `choose`.

    Returns:
        Its chosen rows without `chosen`, and with `at_end`: names of the knobs whose least or
        largest value was taken; of two values each is an end.
    """
    ends = {}
    for _, part in tuned.groupby(["method", "dose"], sort=False):
        tried = pd.DataFrame(map(json.loads, part["knobs"]), index=part.index)
        [(place, chosen)] = tried[part["chosen"]].iterrows()
        names = [
            knob
            for knob in tried.columns[tried.nunique() > 1]
            if chosen[knob] in (tried[knob].min(), tried[knob].max())
        ]
        ends[place] = ", ".join(names)
    rows = tuned[tuned["chosen"]].drop(columns="chosen")
    return rows.assign(at_end=pd.Series(ends)).reset_index(drop=True)


def chosen_knobs(
    study: str,
    tuned: pd.DataFrame,
    tries: Mapping[str, Sequence[Knobs]],
    doses: Sequence[float],
) -> dict[tuple[str, float], Knobs]:
    """The chosen knobs of each method and dose of tuning.

    Args:
        study: its name.
        tuned: of `choose`.
        tries: of each method that is tuned.
        doses: of tuning.

    Raises:
        KitError: where `tuned` is not of these tries.
    """
    found = {}
    for (name, knobs), dose in itertools.product(tries.items(), doses):
        rows = tuned[(tuned["method"] == name) & (tuned["dose"] == dose)]
        chosen = rows[rows["chosen"]]["knobs"].tolist()
        if sorted(rows["knobs"]) != sorted(map(json.dumps, knobs)) or len(chosen) != 1:
            raise KitError(
                f"study {study}: tuned.csv has not the {len(knobs)} tries of '{name}' at dose "
                f"{dose:g}; tune again with --tune"
            )
        found[name, dose] = json.loads(chosen[0])
    return found


def nearest(doses: Sequence[float], dose: float) -> float:
    """The dose of tuning whose choice a dose takes."""
    return min(doses, key=lambda tuned: abs(tuned - dose))
