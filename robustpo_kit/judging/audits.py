"""The audit of a judge: what it makes of replies whose worth is known, before it judges others."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustpo_kit.calibration import word_count
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.intervals import Interval, bootstrap_mean, bootstrap_statistic
from robustpo_kit.judging.controls import golden_replies, made
from robustpo_kit.judging.judges import OTHER_WAY_ROUND, SCORES, Judge, compare, fingerprint_of

LEAST = 20  # groups of rows: of fewer that all agree, an interval says nothing


class Bound(NamedTuple):
    """A bound of the interval, held against a number."""

    bound: str  # low | high
    relation: str  # <= | >=
    number: float

    def holds(self, interval: Interval) -> bool:
        """Whether the interval passes; one without bounds does not."""
        relation = {"<=": operator.le, ">=": operator.ge}[self.relation]
        return bool(relation(getattr(interval, self.bound), self.number))

    def __str__(self) -> str:
        return f"{self.bound} {self.relation} {self.number}"


Limit = tuple[Bound, ...]  # what passes: all of them
CLEARLY_LOSES, LOSES = (Bound("high", "<=", 0.35),), (Bound("high", "<=", 0.5),)
NOT_PREFERRED = (Bound("low", "<=", 0.5), Bound("high", "<=", 0.65))  # the second asks for rows
MAKES = {  # controls that are made of the rows: score against the golden reply
    "echo": CLEARLY_LOSES,  # the prompt itself
    "perturbed echo": CLEARLY_LOSES,  # with a word after every second one
    "shuffled echo": CLEARLY_LOSES,
    "disguised echo": CLEARLY_LOSES,  # with accents, each word between underscores
    "hidden echo": CLEARLY_LOSES,  # with an invisible character in each word
    "inflected echo": CLEARLY_LOSES,  # its longer words, with or without an s at the end
    "nearly empty": CLEARLY_LOSES,
    "off-topic": CLEARLY_LOSES,  # a golden reply to another prompt, alike in length
    "truncated": LOSES,  # the first half of the golden reply
    "doubled": LOSES,  # the golden reply twice
    "with prompt words": LOSES,  # the golden reply, and the prompt's words after it
    "padded": LOSES,  # the golden reply, and PADDING golden replies to other prompts after it
    "shuffled": LOSES,  # the words of the golden reply in another order
    "very long": CLEARLY_LOSES,  # MANY golden replies to other prompts
    "dressed half": LOSES,  # its first half after DRESS
    "closed half": LOSES,  # its first half before CLOSE
    "listed half": LOSES,  # its first half as a list
    "dressed": NOT_PREFERRED,  # all of it after DRESS
    "telegram": NOT_PREFERRED,  # the golden reply without the prompt's words
}
GIVEN = {  # controls whose replies the caller gives
    "untrained model": LOSES,
    "contaminant": LOSES,  # what stands in the golden slot of contaminated rows
    "other human source": NOT_PREFERRED,
}
OTHERS = ("swapped order", "length slope")
TOO_FEW = "too few rows"
NOTHING = Interval(np.nan, np.nan, np.nan, 0)
AGREEMENT = (Bound("low", ">=", 0.8),)
SLOPE = (Bound("low", "<=", 0.05), Bound("high", "<=", 0.15))  # of score, for twice the words


def audit(
    judge: Judge,
    rows: PreferenceSet,
    *,
    given: Mapping[str, Sequence[str]] | None = None,
    seed: int,
    draws: int = 2000,
) -> pd.DataFrame:
    """What a judge makes of controls: replies whose worth against the golden one is known.

    Args:
        judge: any; it is asked twice a row and control at most.
        rows: N rows with a golden reply and at least one other, which the judge has not learned
            from, of two groups or more.
        given: replies [N] of the controls in GIVEN; one that is missing is not tested, and the
            table says so.
        seed: of the order of the two replies, of the replies to other prompts, of the bootstrap.
        draws: of the bootstrap over groups, whose intervals are at 95 %.

    Returns:
        A row a control: judge, fingerprint, control, n, value (score against the golden reply,
        win + tie/2; of "swapped order" the share of equal verdicts, of "length slope" the change of
        the score of the other replies for twice the words), low, high, rule, result (pass | fail |
        too few rows, which would pass but for LEAST groups | not tested).

    Raises:
        KitError: a row has no golden reply or no other.
        ValueError: a control is unknown, or its replies are not one a row, or the judge learned
            from a row.
    """
    given = dict(given or {})
    _check(rows, given)
    ask = _Asker(judge, rows, seed, draws)
    table = [ask.control(name, texts, MAKES[name]) for name, texts in made(rows, seed).items()]
    for name, limit in GIVEN.items():
        if name in given:
            table.append(ask.control(name, given[name], limit))
        else:
            table.append(_row(name, NOTHING, limit, "not tested"))
    table += [ask.swapped_order(), ask.length_slope()]
    named = pd.DataFrame(table).assign(judge=judge.name, fingerprint=fingerprint_of(judge))
    return named[["judge", "fingerprint", *table[0]]]


class _Asker:
    """Asks one judge about one set of rows."""

    def __init__(self, judge: Judge, rows: PreferenceSet, seed: int, draws: int) -> None:
        self.judge, self.rows, self.seed = judge, rows, seed
        self.options: dict[str, Any] = {"draws": draws, "seed": seed}
        self.prompts = [row.prompt for row in rows]
        self.groups = [row.group for row in rows]
        self.golden = golden_replies(rows)
        self.rivals = [_rival(row.responses, row.golden) for row in rows]

    def control(self, name: str, texts: Sequence[str], limit: Limit) -> dict[str, Any]:
        """The score of a control's replies."""
        interval = bootstrap_mean(self._scores(texts), self.groups, **self.options)
        return _row(name, interval, limit)

    def swapped_order(self) -> dict[str, Any]:
        """How often the verdict stays when the two replies change places; no verdict does not."""
        answers = self.judge.verdicts(self.prompts, self.golden, self.rivals)
        turned = self.judge.verdicts(self.prompts, self.rivals, self.golden)
        same = [
            float(answer == OTHER_WAY_ROUND.get(other))
            for answer, other in zip(answers, turned, strict=True)
        ]
        return _row("swapped order", bootstrap_mean(same, self.groups, **self.options), AGREEMENT)

    def length_slope(self) -> dict[str, Any]:
        """The least-squares slope of the score on log2 of the words' ratio."""
        scores = self._scores(self.rivals)
        ratios = np.log2(_words(self.rivals) / _words(self.golden))

        def slope(rows: np.ndarray) -> float:
            centred = ratios[rows] - ratios[rows].mean()
            power = float(centred @ centred)
            return float(centred @ scores[rows]) / power if power > 0 else float("nan")

        if np.ptp(ratios) == 0:  # there is no slope
            return _row("length slope", NOTHING, SLOPE, "not tested")
        interval = bootstrap_statistic(slope, self.groups, **self.options)
        return _row("length slope", interval, SLOPE)

    def _scores(self, texts: Sequence[str]) -> np.ndarray:
        """[N] 1, 1/2 or 0 for each reply against the golden one; NaN where there is no verdict."""
        verdicts = compare(
            self.judge,
            self.prompts,
            {"": texts},
            self.golden,
            seed=self.seed,
            row_ids=[row.row_id for row in self.rows],
        )
        return verdicts["verdict"].map(SCORES).to_numpy(dtype=float)


def _rival(responses: Sequence[str], golden: int | None) -> str:
    """The last response that is not the golden one."""
    return [text for column, text in enumerate(responses) if column != golden][-1]


def _words(texts: Sequence[str]) -> np.ndarray:
    return np.array([max(1, word_count(text)) for text in texts], dtype=float)


def _row(name: str, interval: Interval, limit: Limit, result: str | None = None) -> dict[str, Any]:
    rule = ", ".join(map(str, limit))
    if result is None:
        passed = TOO_FEW if interval.clusters < LEAST else "pass"
        result = passed if all(bound.holds(interval) for bound in limit) else "fail"
    return {
        "control": name,
        "n": interval.clusters,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "rule": rule,
        "result": result,
    }


def _check(rows: PreferenceSet, given: Mapping[str, Sequence[str]]) -> None:
    if len(rows) == 0:
        raise KitError("audit: the preference set has no rows")
    for row in rows:
        if row.golden is None or len(row.responses) < 2:
            raise KitError(
                f"row '{row.row_id}', field golden: a golden reply and one other are needed for "
                "an audit"
            )
    for name, texts in given.items():
        if name not in GIVEN or len(texts) != len(rows):
            raise ValueError(
                f"given: '{name}' with {len(texts)} replies for {len(rows)} rows; one a row for "
                f"one of {', '.join(GIVEN)} is expected"
            )


def check_admitted(
    verdicts: pd.DataFrame, table: pd.DataFrame | None, *, unaudited: bool
) -> dict[str, Any]:
    """How results of a judge are marked: judge, audited, untested (controls of the audit).

    Args:
        verdicts: with the columns judge and fingerprint; without the second, it is the name.
        table: of `audit`, whole.
        unaudited: whether a judge without audit, or one that fails it, is taken all the same.

    Raises:
        ValueError: it is not, naming the judge and the controls that it fails or lacks.
    """
    names = sorted(set(verdicts["judge"])) if "judge" in verdicts else []
    if len(names) != 1:
        raise ValueError(f"verdicts, column judge: {names}; those of one judge are expected")
    if unaudited:
        return {"judge": names[0], "audited": False, "untested": ""}
    if table is None or _identities(table) != _identities(verdicts):
        raise ValueError(
            f"judge '{names[0]}': no audit of it, as it is now; give that of `judging.audit`, or "
            "unaudited=True, which marks the table"
        )
    missing = [name for name in (*MAKES, *GIVEN, *OTHERS) if name not in set(table["control"])]
    if missing:
        raise ValueError(
            f"judge '{names[0]}': its audit lacks {', '.join(missing)}; give the whole table"
        )
    failed = table[table["result"].isin(["fail", TOO_FEW])]
    if len(failed):
        lines = dict.fromkeys(_why(row) for row in failed.to_dict("records"))
        raise ValueError(
            f"judge '{names[0]}': fails its audit ({'; '.join(lines)}); take another judge, or "
            "unaudited=True, which marks the table"
        )
    untested = table.loc[table["result"] == "not tested", "control"]
    return {"judge": names[0], "audited": True, "untested": ", ".join(untested)}


def _why(row: Mapping[Any, Any]) -> str:
    """Why a control does not admit a judge, in words."""
    if row["result"] == TOO_FEW:
        return f"{row['n']} groups of rows, {LEAST} are needed"
    found = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['control']} {found}, not {row['rule']}"


def _identities(table: pd.DataFrame) -> set[tuple[str, str]]:
    """Names and fingerprints of the judges of a table."""
    prints = table["fingerprint"] if "fingerprint" in table else table["judge"]
    return set(zip(table["judge"], prints, strict=True))
