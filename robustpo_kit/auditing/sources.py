"""Who wrote what, and which golden slots hold something else."""

import dataclasses
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustpo_kit import data
from robustpo_kit.calibration import (
    fit_classifier,
    flat_responses,
    slot_weights,
    word_count,
)
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.encoders import Encoder
from robustpo_kit.intervals import Interval, bootstrap_statistic

LEAST_GROUPS = 10  # of trusted rows that show a source, for a classifier
LABELS = ("chosen", "rejected")  # a label's name, which says nothing of who wrote a response


def source_table(rows: PreferenceSet) -> pd.DataFrame:
    """A row a source and column: source, column, count, share (of the column), words (mean)."""
    flat = flat_responses(rows)
    flat = flat.assign(words=flat["response"].map(word_count))
    parts = flat.groupby(["source", "column"])["words"].agg(["size", "mean"]).reset_index()
    parts = parts.rename(columns={"size": "count", "mean": "words"})
    parts["share"] = parts["count"] / parts.groupby("column")["count"].transform("sum")
    return parts[["source", "column", "count", "share", "words"]]


def cannot_tell(rows: PreferenceSet, trusted: PreferenceSet | None) -> str:
    """Why contamination cannot be estimated; empty where it can."""
    if trusted is None:
        return "it needs rows whose golden slot is known to be golden (--trusted)"
    for name, part in (("the file", rows), ("the trusted rows", trusted)):
        if not all(row.golden is not None for row in part):
            return f"{name} do not all name a golden response"
    if not len(rows):
        return "every row of the file is among the trusted ones"
    golden = {row.sources[row.golden] for row in trusted if row.golden is not None}
    others = set(chain.from_iterable(row.sources for row in trusted)) - golden
    if others <= {LABELS[1]} or all(name.startswith("source_") for name in others):
        return "the trusted rows do not say who wrote the other responses"
    if not _shown(trusted):
        return f"no other source is in trusted rows of {LEAST_GROUPS} prompts"
    return ""


def _shown(trusted: PreferenceSet) -> set[str]:
    """The other sources that enough trusted rows show for a classifier."""
    flat = flat_responses(trusted)
    groups = flat[~flat["claimed"]].groupby("source")["group"].nunique()
    return set(groups.index[groups >= LEAST_GROUPS])


def _take_shown(row: Preference, shown: set[str]) -> Preference:
    """A trusted row with its golden response and those of the sources that are shown."""
    columns = [k for k, name in enumerate(row.sources) if k == row.golden or name in shown]
    return dataclasses.replace(data.take(row, columns), row_id=f"trusted {row.row_id}")


class Contamination(NamedTuple):
    """How many golden slots hold a reply of another source, and which."""

    source: str
    rate: Interval
    probabilities: np.ndarray  # [N] that the slot holds one


def contamination(
    rows: PreferenceSet, trusted: PreferenceSet, *, encoder: Encoder, seed: int, draws: int = 200
) -> list[Contamination]:
    """Contamination by every other source that enough trusted rows show (`calibration.slots`).

    A classifier learns golden from other replies on the trusted rows, and the share of golden slots
    that look otherwise is the one of greatest likelihood. Without trusted rows it would learn
    contaminated slots as golden, and find none: hence there is no such estimate then.

    Args:
        rows: N rows that claim a golden slot.
        trusted: rows whose golden slot is golden, of other prompts.
        encoder: of the classifier.
        seed: of its folds, and of the bootstrap over groups.
        draws: of the bootstrap.
    """
    shown = _shown(trusted)
    named = trusted.map(lambda row: _take_shown(row, shown))
    classifier = fit_classifier(named, seed=seed, kind="per_source", encoder=encoder)
    groups, found = [row.group for row in rows], []
    for source in classifier.heads:
        ratios = classifier.slot_ratios(rows, source)
        rate = bootstrap_statistic(
            lambda drawn, ratios=ratios: slot_weights(ratios[drawn]).rate,  # type: ignore[misc]
            groups,
            draws=draws,
            seed=seed,
        )
        golden = (1 - rate.value) * slot_weights(ratios, rate=rate.value).weights
        found.append(Contamination(source, rate, 1 - golden))
    return found
