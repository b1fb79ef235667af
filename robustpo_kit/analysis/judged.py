"""Numbers of ours that an item of the papers names (`items`), and what each says to its claim."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit import paths, records
from robustpo_kit.analysis.papers import FOLDER
from robustpo_kit.analysis.readings import READERS
from robustpo_kit.analysis.sentences import among_all
from robustpo_kit.analysis.study_tables import within

OWN = ("unit", "wanted")  # of an item, and of a part of a source that has its own
WHERE = ("toy", "real")
LEVEL = 0.95


def paper_items() -> list[dict[str, Any]]:
    """The entries of `data/paper/items.json`, in the papers' order."""
    return records.read_json(FOLDER / "items.json")


def item_readings(
    runs: Sequence[str] = ("reference",), *, instead: str | None = None
) -> pd.DataFrame:
    """Every number of ours that an item names and that a table has.

    Args:
        runs: folders of `data/results` with the tables of a series, of which the first that has a
            table counts; studies have their own.
        instead: an outcome that is judged where it stands beside another of the same study, which
            stands beside then; None judges what `items.json` says.

    Returns:
        A row a number: paper, item, where (toy or real), unit, wanted, what, value, low, high,
        units (how many, `of` what), p_adjusted (its table's, else Holm's among the item's numbers
        there), kind (primary or exploratory), tie (the margin of its study, if any), verdict.
    """
    read = functools.cache(functools.partial(_read, tuple(runs)))
    asked = itertools.product(paper_items(), WHERE)
    parts = [_readings_of(read, _judging(item, instead), where) for item, where in asked]
    return pd.concat([part for part in parts if not part.empty], ignore_index=True)


def _judging(item: dict[str, Any], instead: str | None) -> dict[str, Any]:
    """The item with `instead` judged where it stands beside another outcome."""
    if instead is None:
        return item
    return item | {
        where: [_judging_part(source, instead) for source in item[where]]
        for where in WHERE
        if where in item
    }


def _judging_part(source: list[dict[str, Any]], instead: str) -> list[dict[str, Any]]:
    is_there = [part.get("outcome") == instead for part in source]
    beside = {part["study"] for part, there in zip(source, is_there, strict=True) if there}
    parts = []
    for part, there in zip(source, is_there, strict=True):
        if there:
            part = {name: value for name, value in part.items() if name != "wanted"}
        elif part.get("study") in beside:
            part = part | {"wanted": "beside"}
        parts.append(part)
    return parts


# ---------------------------------------------------------------- reading


def _read(runs: Sequence[str], folder: str, title: str) -> pd.DataFrame:
    places = [paths.RESULTS / name / f"{title}.csv" for name in ([folder] if folder else runs)]
    return pd.read_csv(next((path for path in places if path.exists()), places[-1]))


def _readings_of(read: Any, item: Mapping[str, Any], where: str) -> pd.DataFrame:
    """Readings of the first source that is there, with their verdicts."""
    for source in item.get(where, []):
        try:
            rows = list(_of_source(read, item, source))
        except FileNotFoundError:
            continue
        names = {"paper": item["paper"], "item": item["item"], "where": where}
        table = pd.DataFrame([names | row for row in rows])
        alone = table[table["p_adjusted"].isna()]  # no study has held them among others
        for _, part in alone.groupby(alone["wanted"] == "beside"):
            table.loc[part.index, "p_adjusted"] = _among(part, item)
        table["verdict"] = [reading_verdict(row, item) for _, row in table.iterrows()]
        if where == "toy":
            table = table.replace({"of": {"seeds": "worlds"}})
        return table
    return pd.DataFrame()


def _of_source(
    read: Any, item: Mapping[str, Any], source: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The readings of a source, each with its unit and what is wanted of it."""
    for part in source:
        arguments = {name: value for name, value in part.items() if name not in ("read", *OWN)}
        own = {name: part.get(name, item[name]) for name in OWN}
        for reading in READERS[part["read"]](read, **arguments):
            yield own | reading._asdict()


def _among(table: pd.DataFrame, item: Mapping[str, Any]) -> "pd.Series[float]":
    """Holm's p of each number among those beside it, against the claim's null."""
    shifted = table[["value", "low", "high"]] - item.get("null", 0)
    return among_all(shifted.assign(n=table["units"]), "value", level=LEVEL)["p_adjusted"]


# ---------------------------------------------------------------- the verdict


def reading_verdict(row: Mapping[str, Any] | pd.Series, item: Mapping[str, Any]) -> str:
    """What one number says to a claim: "agrees", "differs", "tie" or "not shown".

    A direction needs an interval on one side of the null and a p value, adjusted for its company,
    below 1 - LEVEL. "equal" agrees where the interval stays within the margin, and differs where it
    lies beyond. "all" is a count, without an interval. What stands "beside" is not judged. A tie
    lies within the margin that its study declared as not mattering, whichever side it is on.

    Args:
        row: of `item_readings`: wanted, value, low, high, units, p_adjusted, tie.
        item: with null and margin, where it has them.
    """
    if row["wanted"] == "beside":
        return "beside"
    if row["wanted"] == "all":
        return "agrees" if row["value"] == row["units"] else "differs"
    low, high = row["low"] - item.get("null", 0), row["high"] - item.get("null", 0)
    if within(low, high, row.get("tie", np.nan)):  # NaN, of no margin, is not
        return "tie"
    if row["wanted"] == "lower":
        low, high = -high, -low
    if row["wanted"] == "equal":
        holds = within(low, high, item["margin"])
        fails = low > item["margin"] or high < -item["margin"]
    else:
        clear = row["p_adjusted"] < 1 - LEVEL  # NaN, of a number without an interval, is not
        holds, fails = clear and low > 0, clear and high < 0
    if holds:
        return "agrees"
    return "differs" if fails else "not shown"


def item_verdict(verdicts: Sequence[str]) -> str:
    """Of an item: differs where one number does, agrees where all do, else it is not shown."""
    if "differs" in verdicts:
        return "differs"
    return "agrees" if set(verdicts) == {"agrees"} else "not shown"
