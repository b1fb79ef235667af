"""The papers' tables and figures, each with its claim, its number, and ours beside it.

`data/paper/items.json` has an object an item:

    paper, item  as in `paper_values`
    title        what it is about, in three words
    claim        what the paper says there, in one sentence
    printed      which of its numbers: column, row (with a `*`), minus (the row that is subtracted)
    unit         of UNITS, of our numbers and of the printed ones where both can be compared
    wanted       what the claim wants of our numbers: higher or lower than `null` (0), equal to it
                 within `margin`, all of the printed ones, or "beside": shown, and not judged
    toy, real    lists of sources: what to read in the toy world, and on text (settings and times of
                 the kit's own count as such); the first source of which every table is there counts
    construction true: what is compared holds, or not, by how the kit was written, and shows nothing
    unlike       how our test is not the paper's, which may be why numbers differ
    reason       why nothing can be tested here, or what an item without a claim is
    tested       the tests that hold the same thing of the kit, of an item without a claim
    command      what tests it at the paper's scale
    notebook     where it stands

A source is a list of parts: a reader (`read`, of `readings.READERS`) and its arguments; a part may
have its own unit and wanted.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from robustpo_kit.analysis.judged import LEVEL, WHERE, item_verdict, paper_items
from robustpo_kit.analysis.papers import paper_values
from robustpo_kit.analysis.study_tables import could_see

# the factor by which a number is shown, and digits after the point
UNITS = {
    "points": (100, 1),
    "%": (100, 0),
    "sd": (1, 2),
    "slope": (1, 2),
    "words": (1, 1),
    "nats": (1, 2),
    "correlation": (1, 2),
    "% change": (100, 1),
    "ROUGE-L": (1, 3),
    "settings": (1, 0),
}
VERDICTS = (
    "agrees", "differs", "not shown", "by construction", "no claim", "cannot be tested here",
)  # fmt: skip


def item_table(readings: pd.DataFrame) -> pd.DataFrame:
    """A row an item: what the paper claims and prints, what we find, and the verdict.

    Args:
        readings: of `item_readings`.

    Returns:
        Columns paper, item, title, claim, unlike, unit; printed, printed_value (mean), printed_low
        and printed_high (least and largest); toy and real in words, and a number of each (the first
        that differs, or else the first): WHERE_value, WHERE_low, WHERE_high, WHERE_units and
        WHERE_unit; verdict (of VERDICTS), reason, turn (what would change it), command, notebook.
    """
    judged = readings[readings["verdict"] != "beside"]
    return pd.DataFrame(
        [
            _row(item, _of_item(readings if _unjudged(item) else judged, item))
            for item in paper_items()
        ]
    )


def _unjudged(item: Mapping[str, Any]) -> bool:
    """Whether all numbers of an item are shown, and not judged."""
    return item.get("wanted") == "beside"


def _of_item(readings: pd.DataFrame, item: Mapping[str, Any]) -> pd.DataFrame:
    mine = (readings["paper"] == item["paper"]) & (readings["item"] == item["item"])
    return readings[mine]


# ---------------------------------------------------------------- a row


def _row(item: Mapping[str, Any], readings: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {name: item[name] for name in ("paper", "item", "title", "claim")}
    row |= {name: item.get(name, "") for name in ("unlike", "unit")}
    row |= _printed(item)
    for where in WHERE:
        row |= _ours(item, where, readings[readings["where"] == where])
    row |= {"verdict": "no claim", "reason": item.get("reason", "")}
    if "tested" not in item:
        row |= _judged(item, readings)
    row["turn"] = _turn(row, item, readings)
    row["command"] = "; ".join(_commands(item))
    return row | {"notebook": item.get("notebook", "")}


def printed_values(item: Mapping[str, Any]) -> list[float]:
    """The paper's numbers of an item, differences where `minus` names what is subtracted."""
    if "printed" not in item:
        return []
    wanted, table = item["printed"], paper_values(item["paper"])
    table = table[(table["table"] == item["item"]) & (table["column"] == wanted["column"])]
    values = table.set_index("row")["value"].to_dict()
    pattern = re.compile(re.escape(wanted["row"]).replace(r"\*", "(.+)"))
    found = []
    for row, value in values.items():
        if match := pattern.fullmatch(row):
            minus = wanted.get("minus", "").replace("*", "".join(match.groups()))
            found.append(value - values[minus] if minus else value)
    return found


def _printed(item: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's numbers in words, and as shares where they are percentages."""
    values = printed_values(item)
    if not values:
        table = paper_values(item["paper"])["table"]
        count = int((table == item["item"]).sum())
        return {"printed": f"{count} numbers" if count else "no number"}
    column, mean = item["printed"]["column"], float(np.mean(values))
    share, sign = column.endswith("%"), "+" * ("minus" in item["printed"])
    unit = " points" if share and sign else " %" * share
    text = f"{column.removesuffix(', %')}: {mean:{sign}.3g}{unit}"
    if len(values) > 1:
        text += f", {min(values):{sign}.3g} to {max(values):{sign}.3g} in {len(values)}"
    numbers = {"value": mean, "low": min(values), "high": max(values)}
    scaled = {f"printed_{name}": number * 0.01**share for name, number in numbers.items()}
    return {"printed": text} | scaled


def _ours(item: Mapping[str, Any], where: str, readings: pd.DataFrame) -> dict[str, Any]:
    """The first number, of those that differ if any does, and how many more there are."""
    if readings.empty:
        return {where: _waits(item, where)}
    against = readings[readings["verdict"] == "differs"]
    first = (readings if against.empty else against).iloc[0]
    text = f"{shown(first)}, {first['units']} {first['of']}"
    if first["wanted"] == "all":
        text = f"{shown(first)} {first['of']}"
    if len(readings) > 1:
        text += f"; {len(readings) - 1} more"
    columns = ("value", "low", "high", "units", "unit")
    numbers = {f"{where}_{name}": first[name] for name in columns}
    return {where: text} | numbers


def shown(row: Mapping[str, Any] | pd.Series) -> str:
    """VALUE [LOW, HIGH] of a reading, in its unit."""
    if row["wanted"] == "all":
        return f"{row['value']:g} of {row['units']}"
    factor, places = UNITS[row["unit"]]
    sign = "" if row["unit"] == "%" else "+"
    numbers = [factor * row[name] for name in ("value", "low", "high")]
    value, low, high = (f"{round(number, places) + 0.0:{sign}.{places}f}" for number in numbers)
    bounds = "" if np.isnan(row["low"]) else f" [{low}, {high}]"
    return f"{value}{bounds} {row['unit']}"


def studies_of(item: Mapping[str, Any], where: Sequence[str] = WHERE) -> list[str]:
    """Names of the studies whose tables an item reads."""
    sources = itertools.chain.from_iterable(item.get(place, []) for place in where)
    parts = itertools.chain.from_iterable(sources)
    return list(dict.fromkeys(part["study"] for part in parts if "study" in part))


def _waits(item: Mapping[str, Any], where: str) -> str:
    """What an item's numbers wait for."""
    if where not in item:
        return ""
    missing = studies_of(item, [where])
    return f"the study {missing[0]} has not been run" if missing else "the series has not been run"


def _judged(item: Mapping[str, Any], readings: pd.DataFrame) -> dict[str, str]:
    """Verdict and reason of an item that claims something."""
    if readings.empty or _unjudged(item):
        waits = [text for where in WHERE if (text := _waits(item, where))]
        reason = item.get("reason") or "; ".join(dict.fromkeys(waits))
        return {"verdict": "cannot be tested here", "reason": reason}
    if item.get("construction"):
        reason = "; ".join(f"{row['what']} {shown(row)}" for _, row in readings.iterrows())
        return {"verdict": "by construction", "reason": reason}
    verdict = item_verdict(readings["verdict"].tolist())
    if verdict != "differs":
        agreed, ties = ((readings["verdict"] == name).sum() for name in ("agrees", "tie"))
        reason = f"{agreed} of {len(readings)} numbers agree" + f", {ties} tie" * bool(ties)
        return {"verdict": verdict, "reason": reason}
    against = readings[readings["verdict"] == "differs"]
    words = [f"{row['where']}: {row['what']} {shown(row)}" for _, row in against.iterrows()]
    return {"verdict": verdict, "reason": "; ".join(words)}


def _turn(row: Mapping[str, Any], item: Mapping[str, Any], readings: pd.DataFrame) -> str:
    """What would change a verdict, by the first number that has it."""
    mine = readings[(readings["verdict"] == row["verdict"]) & readings["low"].notna()]
    if mine.empty:
        return ""
    first, null = mine.iloc[0], item.get("null", 0)
    if row["verdict"] != "not shown":
        ends = np.abs([first["low"] - null, first["high"] - null])
        away = item["margin"] - ends.max() if first["wanted"] == "equal" else ends.min()
        factor, places = UNITS[first["unit"]]
        return f"an interval on other {first['of']} that ends {factor * away:.{places}f} further"
    target = row.get("printed_value", np.nan) - null
    if np.isnan(target) or first["unit"] != item["unit"]:
        factor, places = UNITS[first["unit"]]
        seen = f"{factor * smallest_seen(first):.{places}f} {first['unit']}"
        return f"an effect of {seen}, which {first['units']} {first['of']} show four times of five"
    needed = units_needed(first, target)
    if needed <= first["units"]:
        return f"more {first['of']}; of an effect as printed these have enough"
    return f"{needed} {first['of']}, of an effect as printed"


def smallest_seen(row: Mapping[str, Any] | pd.Series) -> float:
    """The smallest true effect that as many units show with probability 0.8, at this error."""
    df = row["units"] - 1
    se = (row["high"] - row["low"]) / 2 / float(stats.t.ppf((1 + LEVEL) / 2, df))
    return could_see(se, df, LEVEL)


def units_needed(row: Mapping[str, Any] | pd.Series, target: float) -> int:
    """How many units would show a true effect of `target` with probability 0.8, at this error."""
    return math.ceil(row["units"] * (smallest_seen(row) / target) ** 2)


def _commands(item: Mapping[str, Any]) -> list[str]:
    """What makes the item's numbers, and what would at the paper's scale."""
    commands = [f"robustpo study {name}" for name in studies_of(item)]
    if "tested" in item:
        return [f"pytest {name}" for name in item["tested"]]
    return [*commands, item["command"]]
