"""What is known of the target source, as rows to learn from; and c and h of other rows.

The target source Q0 is who should have written what the policy learns to write. Something has to
say which responses it wrote; there are three ways.

column   in every row the response of one column, as DoRA takes the first one. All that a column
         claims is learnt as true.
source   every response whose source has a given name.
trusted  other rows, whose golden slot holds a reply of the target source for certain. They are told
         from the other replies of these rows; or, where trusted rows have one reply each, from all
         replies of the file.
"""

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from robustpo_kit.calibration.classifiers import REST, SourceClassifier
from robustpo_kit.calibration.responses import by_row, flat_responses
from robustpo_kit.calibration.slots import slot_ratios, slot_weights
from robustpo_kit.data import Preference, PreferenceSet, preferred_and_least, shared
from robustpo_kit.errors import KitError

NAMED = ("chosen", "rejected")  # replies by their rank, in whatever column they stand


class Told(NamedTuple):
    """Rows that a classifier learns the target source from."""

    rows: PreferenceSet
    golden_sources: tuple[str, ...] | None  # as `fit_classifier` takes them
    said: str
    slots: bool  # whether golden is told from the replies of other slots


def told_by_column(rows: PreferenceSet, column: int | str) -> Told:
    """The response of one column is of the target source.

    Args:
        rows: of the file.
        column: its number; or "chosen", the preferred reply of each row (`preferred_and_least`), or
            "rejected", the other one of a pair, of a list that of lowest reward.

    Raises:
        KitError: a row lacks the column, or is a list without rewards that say which one is meant.
    """

    def claim(row: Preference) -> Preference:
        count, place = len(row.responses), column
        if isinstance(place, str):
            if count > 2 and row.rewards is None:
                raise KitError(
                    f"--golden {place}: row {row.row_id} has {count} responses and no rewards that "
                    "say which one is; give the number of a column, from 0"
                )
            place = preferred_and_least(row)[NAMED.index(place)]
        if count < 2 or not 0 <= place < count:
            raise KitError(
                f"--golden {column}: row {row.row_id} has {count} response(s); a "
                "column of at least two is expected"
            )
        return dataclasses.replace(row, golden=place)

    said = f"golden are the replies of column {column}, as the file claims"
    if column in NAMED:
        said = f"golden are the {column} replies, as the file's labels or rewards have them"
    return Told(rows.map(claim), None, said, slots=True)


def told_by_source(rows: PreferenceSet, name: str) -> Told:
    """Responses of the source `name` are golden; raises KitError where none or all are."""
    found = dict.fromkeys(chain.from_iterable(row.sources for row in rows))
    if name not in found or len(found) < 2:
        names = ", ".join(list(found)[:8])
        raise KitError(f"--source {name}: the file's sources are {names}; name one of several")
    return Told(rows, (name,), f"golden are the replies of the source {name}", slots=False)


def told_by_trusted(rows: PreferenceSet, trusted: PreferenceSet) -> Told:
    """Golden replies of trusted rows; those of prompts or groups of the file are left out.

    Raises KitError where trusted rows do not all name a golden reply, or none is left.
    """
    both = zip(trusted, shared(trusted, rows), strict=True)
    kept = PreferenceSet(row for row, is_shared in both if not is_shared)
    left_out = len(trusted) - len(kept)
    if not len(kept):
        raise KitError(
            f"--trusted: all {left_out} rows are to prompts or groups of the file; take others"
        )
    kept = kept.map(lambda row: dataclasses.replace(row, row_id=f"trusted {row.row_id}"))
    if any(row.golden is None for row in kept):
        raise KitError("--trusted: a row names no golden reply; set its field golden")
    said = f"golden are the golden replies of {len(kept)} trusted rows, told from"
    if left_out:
        said = f"{left_out} trusted rows left out, to prompts or groups of the file; {said}"
    counts = {len(row.responses) > 1 for row in kept}
    if counts == {True}:
        return Told(kept, None, f"{said} the other replies of these rows", slots=True)
    if counts == {False}:
        claimed_none = rows.map(lambda row: dataclasses.replace(row, golden=None))
        every = PreferenceSet([*kept, *claimed_none])
        return Told(every, None, f"{said} all replies of the file", slots=False)
    raise KitError("--trusted: some rows have one reply, some have more; give one kind")


def confidences(classifier: SourceClassifier, rows: PreferenceSet) -> list[list[float]]:
    """c of every response [N][K]: out of fold where the classifier learned from the row."""
    table = classifier.out_of_fold
    places = zip(table["row_id"], table["column"], strict=True)
    known = dict(zip(places, table["c"], strict=True))
    flat = flat_responses(rows)
    values = np.array(
        [known.get(place, np.nan) for place in zip(flat["row_id"], flat["column"], strict=True)]
    )
    unseen = flat[np.isnan(values)]
    if len(unseen):
        texts = (list(unseen["prompt"]), list(unseen["response"]))
        values[np.isnan(values)] = classifier.score(*texts)
    return by_row(rows, values)


def mean_factors(classifier: SourceClassifier, c: Sequence[Sequence[float]]) -> np.ndarray:
    """h~ [N], DoRA Eq. 6: the mean of the responses' ratios of golden to the classifier's mixture.

    With the shares alpha of golden and beta = 1 - alpha of the rest, of what a shared classifier
    learned from, gamma = beta / alpha, and the ratio `relative` of `calibration_factor` is
    c / alpha: one at the prior, at most 1 / alpha; with one golden reply in K, h~ is the sum of c.
    """
    alpha = 1 / (1 + classifier.imbalance[REST])
    return np.array([np.mean(of_row) / alpha for of_row in c])


def slot_factors(
    classifier: SourceClassifier, rows: PreferenceSet, c: Sequence[Sequence[float]]
) -> np.ndarray:
    """The weight [N] of each row's golden slot alone (see `slots`).

    Raises KitError where a row names no golden slot.
    """
    golden = []
    for row, of_row in zip(rows, c, strict=True):
        if row.golden is None:
            raise KitError(f"--factor slot: row {row.row_id} names no golden slot")
        golden.append(of_row[row.golden])
    return slot_weights(slot_ratios(golden, imbalance=classifier.imbalance[REST])).weights
