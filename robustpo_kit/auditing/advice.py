"""What to do, by rule: each line with its reason, and what stands behind it.

Rules read what was measured on the file itself, and the tables of the declared studies of notebook
11 at the doses that this file may have. Those are of a toy world: what they show to win is to be
tried first, beside the plain tuned loss, and no more.
"""

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustpo_kit import analysis, paths
from robustpo_kit.intervals import Interval

MEASURED, DECLARED, EXPLORATORY, UNKNOWN = "measured here", "declared", "exploratory", "cannot tell"
BARELY = 1.25  # average precision over chance from which a list of suspects is worth reading
FOUND = ((BARELY, "barely above chance"), (2.5, "somewhat above chance"), (np.inf, "well"))
TRUTH = {"oracle", "slot_oracle", "mask"}  # weights of who knows what nobody knows
STUDIES = {"phase_flips": "DPO", "phase_contamination": "ERM"}  # and the plain loss of each
HARMS = {"phase_flips": "labels turned round", "phase_contamination": "rows contaminated"}

BY = {"trusted": "by the trusted pairs", "checked": "by pairs of the file that were checked"}
BY_LOT = "if fewer than half are, and by lot"  # what a bound assumes
REVERSED = "labels look reversed: are the columns swapped?"

OF_ROWS = (  # a count of Facts, what is counted, what to do
    (
        "leaks",
        "rows share a prompt or group with the held-out file",
        "Remove these rows (leaks.csv).",
    ),
    (
        "contradictions",
        "rows repeat a pair with the opposite label",
        "Decide these by hand, or drop both (duplicates.csv).",
    ),
    ("repeats", "rows repeat an earlier one", "Keep one of each, unless repeats are votes."),
    (
        "unranked",
        "rows have more than two responses, and no rewards that say which is preferred",
        "Rank them by rewards first (`robustpo calibrate --reward MODEL`): training refuses them.",
    ),
    ("ties", "rows have responses of equal reward or text", "Drop ties: they prefer nothing."),
    (
        "ambiguous",
        "rows have two responses that share nearly all words",
        "Read some of them before training (pairs.csv).",
    ),
    (
        "scored_against",
        "of {scored} scored pairs score the rejected reply above the chosen one",
        "Find out whether the labels or the scores are right: training follows the labels.",
    ),
)


class Advice(NamedTuple):
    """One line."""

    advice: str
    because: str
    grade: str  # one of the four above


@dataclasses.dataclass(frozen=True)
class Facts:
    """What rules look at; what was not measured is None."""

    responses: int
    rows: int
    repeats: int = 0
    contradictions: int = 0
    leaks: int | None = None
    ties: int = 0
    unranked: int = 0  # without a label
    ambiguous: int = 0
    length: Interval | None = None  # accuracy of length alone
    model: Interval | None = None  # accuracy of the chosen view
    flips: Interval | None = None
    flips_by: str = "bound"  # else an estimate: trusted | checked
    lift: Interval | None = None  # average precision over chance, of flips put in
    length_lift: Interval | None = None  # the same of length alone
    top: Interval | None = None  # share of those flips in the most suspect tenth
    contamination: tuple[tuple[str, Interval], ...] = ()
    scored: int = 0  # pairs with a score of each reply
    scored_against: int = 0  # those whose rejected reply has the higher one
    has_h: bool = False
    has_rewards: bool = False

    @property
    def reversed(self) -> bool:
        """Whether more than half of the labels are flipped, by labels that are known."""
        return self.flips is not None and self.flips_by != "bound" and self.flips.low > 0.5


def advise(facts: Facts) -> list[Advice]:
    """All rules, those about the rows themselves first; one line a piece of advice.

    Labels that look reversed come before all.
    """
    rules = (_of_rows, _of_shortcuts, _of_flips, _of_contamination)
    if facts.reversed:
        rules = (_of_flips, _of_rows, _of_shortcuts, _of_contamination)
    merged: dict[tuple[str, str], str] = {}
    for line in chain.from_iterable(rule(facts) for rule in rules):
        key = (line.advice, line.grade)
        merged[key] = f"{merged[key]}. Likewise, {line.because}" if key in merged else line.because
    return [Advice(text, why, grade) for (text, grade), why in merged.items()]


def _of_rows(facts: Facts) -> list[Advice]:
    found = [
        Advice(text, f"{count} {why.format(**vars(facts))}", MEASURED)
        for name, why, text in OF_ROWS
        if (count := getattr(facts, name))
    ]
    if facts.leaks is None:
        why = "no --heldout file was given"
        found.append(Advice("Look for prompts that the held-out rows share.", why, UNKNOWN))
    return found


def _of_shortcuts(facts: Facts) -> list[Advice]:
    length = facts.length
    if length is None or length.low <= 0.5:
        return []
    why = f"length alone finds {_percent(length)} of held-out labels"
    text = "Judge the result at equal length: the labels follow length, and so will a policy."
    return [Advice(text, why, MEASURED)]


def _of_flips(facts: Facts) -> list[Advice]:
    if facts.unranked == facts.rows:
        return []
    if facts.flips is None:
        return [Advice("Judge label noise by hand.", "too few pairs for a model", UNKNOWN)]
    said = f"{_percent(facts.flips)} of labels are flipped, {BY.get(facts.flips_by)}"
    if facts.reversed:
        text = f"Train nothing yet: {REVERSED} Read some pairs, mend the file, audit it again."
        return [Advice(text, said, MEASURED)]
    found = [_of_lift(facts)] if facts.lift is not None else []
    if facts.flips_by == "bound":
        said = f"at most {facts.flips.high:.0%} of labels are flipped, {BY_LOT}"
        why = f"{said}; a model's errors and flips look alike without labels that are known"
        text = "Draw 100 or more pairs by lot, check them by hand and give them as --trusted, the "
        text += "right reply as the chosen one."
        found.append(Advice(text, why, UNKNOWN))
    return found + _of_study("phase_flips", facts, facts.flips, said)


def _of_lift(facts: Facts) -> Advice:
    assert facts.lift is not None
    why = f"of labels turned here by lot, a fifth, {how_found(facts)}"
    if facts.lift.low <= BARELY:
        return Advice("Drop or turn no pair because a model doubts it.", why, MEASURED)
    if facts.length_lift is not None and facts.lift.low <= facts.length_lift.value:
        text = "Drop or turn no pair because a model doubts it: it finds no more than length does."
        return Advice(text, why, MEASURED)
    return Advice("Read the most suspect pairs first (pairs.csv); drop none unread.", why, MEASURED)


def how_found(facts: Facts) -> str:
    """How well flips that were put in are found, against chance and against length alone."""
    assert facts.lift is not None
    low, high = facts.lift.low, facts.lift.high
    words = next(word for limit, word in FOUND if low <= limit)
    said = f"which ones is told {words}: {facts.lift.value:.2f} times [{low:.2f}, {high:.2f}]"
    if facts.length_lift is not None:
        said += f", by length alone {facts.length_lift.value:.2f} times"
    if facts.top is not None:
        said += f"; the most suspect tenth holds {facts.top.value:.0%} of turned labels"
    return said


def _of_contamination(facts: Facts) -> list[Advice]:
    if not facts.contamination:
        text = "Give trusted rows with their sources as --trusted, to look for contamination."
        why = "without them a classifier learns contaminated golden slots as golden"
        return [Advice(text, why, UNKNOWN)]
    found = []
    for source, rate in facts.contamination:
        said = f"{_percent(rate)} of golden slots look like {source}"
        found += _of_study("phase_contamination", facts, rate, said)
    if not (facts.has_h and facts.has_rewards):
        why = "the rows lack " + " and ".join(_missing(facts))
        text = "Run `robustpo calibrate` for what reweighting and DoRA take."
        found.append(Advice(text, why, MEASURED))
    return found


def _missing(facts: Facts) -> list[str]:
    given = {"h": facts.has_h, "rewards": facts.has_rewards}
    return [name for name, has in given.items() if not has]


def _of_study(name: str, facts: Facts, harm: Interval, said: str) -> list[Advice]:
    """The primary contrasts of a study, and its cells at the doses within an interval."""
    folder = paths.RESULTS / "studies" / name
    if not (folder / "cells.csv").exists():
        text = "Read notebook 11 for which method goes with which noise."
        return [Advice(text, f"{said}; its tables are not in this installation", UNKNOWN)]
    plain = STUDIES[name]
    axis = "K 2" if facts.responses == 2 else "base"
    table = first_to_try(name)
    table = table[table["axis"] == axis]
    table = table[table["dose"].isin(doses_within(sorted(set(table["dose"])), harm))]
    found = [
        _of_cell(row, plain, said, f"{name}, {axis}")
        for _, row in table.sort_values("dose").iterrows()
    ]
    return found + _declared(name, pd.read_csv(folder / "contrasts.csv"), harm)


def first_to_try(name: str) -> pd.DataFrame:
    """What the phase study `name` advises by gold in every world and dose: `analysis.which_method`.

    Methods that need to know what nobody knows are left out; `objective` is the spec of what to
    use, its knobs in braces.
    """
    methods = analysis.Study.load(name).methods
    unknowable = [m for m, how in methods.items() if TRUTH & {how.get("h"), how.get("sft_h")}]
    cells = pd.read_csv(paths.RESULTS / "studies" / name / "cells.csv")
    cells = cells[cells["outcome"] == "gold"]
    table = analysis.which_method(cells, STUDIES[name], leave_out=unknowable)
    return table.assign(objective=[methods[method]["spec"] for method in table["use"]])


def doses_within(doses: Sequence[float], harm: Interval) -> list[float]:
    """The doses that a file may have: those in the interval, and the one nearest to its middle."""
    low, high = np.nan_to_num([harm.low, harm.high], nan=harm.value)
    nearest = min(doses, key=lambda dose: abs(dose - np.clip(harm.value, low, high)))
    return [dose for dose in doses if low <= dose <= high or dose == nearest]


def _of_cell(row: "pd.Series[Any]", plain: str, said: str, where: str) -> Advice:
    """What a row of `which_method` advises."""
    why = f"{said}; toy worlds at {row['dose']:.0%} ({where}): {row['why']}"
    if row["loses"]:
        why += f"; shown to lose: {row['loses']}"
    if row["use"] == plain:
        return Advice(f"Train plain {plain}, its knobs tuned, first.", why, EXPLORATORY)
    return Advice(f"Try {row['use']} beside plain {plain}.", why, EXPLORATORY)


def _declared(name: str, contrasts: pd.DataFrame, harm: Interval) -> list[Advice]:
    """The primary contrasts of doses that the file may have."""
    found = []
    primary = contrasts[contrasts["kind"] == "primary"]
    dose_of = primary["where"].str.removeprefix("dose ").astype(float)
    for (_, row), dose in zip(primary.iterrows(), dose_of, strict=True):
        if harm.low <= dose <= harm.high:
            words = f"{row['method']} over {row['baseline']} {analysis.verdict(row)}"
            text = f"Before you tune {row['method']}, know that in toy worlds with {dose:.0%} of "
            text += f"{HARMS[name]} {words} (gold reward, standard deviations)."
            why = f"the contrast was declared before its {row['seeds']} worlds were run ({name})"
            found.append(Advice(text, why, DECLARED))
    return found


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"
