"""A file, folder or Hub data set of any known shape as a preference set."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from robustpo_kit.data.containers import MAX_ROW, Record, too_long
from robustpo_kit.data.conversation import question
from robustpo_kit.data.packing import characters, kept
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.reading import row_from_json
from robustpo_kit.data.rows import BadRowError, Preference, check_row, preferred_and_least
from robustpo_kit.data.shapes import PAIRS, UNPAIRED, Shape, own_fields, recognise, unread
from robustpo_kit.data.sources import records_of
from robustpo_kit.data.unpaired import paired
from robustpo_kit.errors import KitError

log = logging.getLogger(__name__)

ON_BAD_ROW = ("raise", "skip")
SHOWN = 5  # bad rows that are named one by one


class BadRows:
    """What becomes of bad rows: the first one is an error, or all are counted by reason."""

    def __init__(self, on_bad_row: str):
        if on_bad_row not in ON_BAD_ROW:
            raise KitError(f"on_bad_row: '{on_bad_row}' should be one of {', '.join(ON_BAD_ROW)}")
        self.skip = on_bad_row == "skip"
        self.counts: Counter[str] = Counter()

    def __call__(self, error: BadRowError) -> None:
        if not self.skip:
            raise error
        self.counts[error.why] += 1
        if self.counts.total() <= SHOWN:
            log.warning("skipped: %s", error)


@dataclass
class Notes:
    """What is said of all rows together."""

    shapes: dict[str, dict[str, None]] = field(default_factory=dict)  # and fields not read, by row
    unpaired: bool = False  # whether pairs were made of replies
    contrary: int = 0  # rows with scores against their label
    repeating: int = 0  # rows whose replies repeat the prompt
    grouped: bool = False  # whether a row names its group
    joined: int = 0  # groups that share a prompt with another one

    def in_words(self, count: int) -> str:
        """The shape of `count` rows, and what was done about them."""
        said = "; also ".join(self._shape(*met) for met in self.shapes.items())
        if self.repeating:
            said += (
                f"; in {self.repeating:,} of {count:,} rows both replies begin with the prompt, "
                "which stands there twice (leave the field prompt out, where that is not meant)"
            )
        if self.contrary:
            said += (
                f"; {self.contrary:,} of {count:,} rows score the rejected reply above the chosen "
                "one (the label counts, these scores are not read)"
            )
        if self.joined:
            said += f"; {self.joined:,} groups joined to others that have the same prompts"
        return said

    def _shape(self, name: str, others: dict[str, None]) -> str:
        if self.unpaired and name == PAIRS.name:
            name = UNPAIRED.name
        return f"{name} ({', '.join(others)} not read)" if others else name

    def add(self, shape: Shape, value: dict[str, Any], row: Preference) -> None:
        """Take note of a row."""
        self.shapes.setdefault(shape.name, {}).update(dict.fromkeys(unread(shape, value)))
        self.grouped |= value.get("group") is not None
        prompt = row.prompt.strip()
        self.repeating += all(text.lstrip().startswith(prompt) for text in row.responses)


def load_source(
    source: str | Path, *, split: str | None = None, on_bad_row: str = "raise"
) -> PreferenceSet:
    """The rows of a source of any known container and shape, both found out from the source.

    Args:
        source: a file, a folder, or the id of a Hub data set, as `records_of` takes them.
        split: of a folder or Hub data set.
        on_bad_row: "raise", or "skip": bad rows are left out and counted in `dropped`.

    Raises:
        KitError: naming the source that cannot be read or has no usable row; file, row, field and
            reason of the first bad row, where these are not skipped.
    """
    bad, notes = BadRows(on_bad_row), Notes()
    rows = kept(_sniffed(records_of(source, split, bad), bad, notes))  # before anything is said
    name = Path(source).name if Path(source).exists() else str(source)
    if not rows:
        reasons = ", ".join(f"{count} {why}" for why, count in bad.counts.items())
        raise KitError(
            f"{name}: holds no rows{f' but bad ones ({reasons})' * bool(reasons)}; "
            "one JSON object a line with preferences is expected"
        )
    if notes.grouped:
        rows = united(rows, notes)
    said = notes.in_words(len(rows))
    known: dict[str, Any] = {"name": name, "shape": said, "dropped": bad.counts}
    return PreferenceSet(rows, ranked=True, contrary=notes.contrary, **known)


def _sniffed(records: Iterator[Record], bad: BadRows, notes: Notes) -> Iterator[Preference]:
    """The rows of all records, from the first good one on; unpaired replies as pairs."""
    for record in records:
        try:
            shape = recognise(record.value, record.where)
        except BadRowError as error:
            bad(error)
            continue
        records = chain([record], records)
        if shape is UNPAIRED:
            notes.unpaired, records = True, paired(records, bad)
        return _rows(records, bad, notes)
    return iter(())


def _rows(records: Iterable[Record], bad: BadRows, notes: Notes) -> Iterator[Preference]:
    seen: set[str] = set()
    for record in records:
        try:
            shape = recognise(record.value, record.where)
            row = _row(record, shape)
            if row.row_id in seen:
                said = f"'{row.row_id}' appears twice; ids are unique"
                raise BadRowError(record.where, "row_id", said, "twice")
        except BadRowError as error:
            bad(error)
            continue
        seen.add(row.row_id)
        notes.add(shape, record.value, row)
        if shape.labelled and preferred_and_least(row)[0]:
            notes.contrary += 1
            row = replace(row, rewards=None)
        yield row


def united(rows: Sequence[Preference], notes: Notes) -> Sequence[Preference]:
    """Rows of one prompt in one group: groups that share a prompt take the name of the first."""
    first: dict[int, str] = {}  # a prompt -> the group it was first met in
    joined: dict[str, str] = {}  # a group -> one that it is part of

    def whole(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    for row in rows:
        met = first.setdefault(hash(question(row.prompt)), row.group)
        own, other = whole(row.group), whole(met)
        if own != other:
            joined[own] = other
    notes.joined = len(joined)
    return kept(replace(row, group=whole(row.group)) for row in rows) if joined else rows


def _row(record: Record, shape: Shape) -> Preference:
    """The row of a record; raises BadRowError where it is none."""
    where = record.where
    row = row_from_json(own_fields(shape, record.value, where), where, record.name)
    check_row(row, where)
    if len(set(row.responses)) < len(row.responses):
        said = "two are equal; remove the row, or one of them"
        raise BadRowError(where, "responses", said, "equal")
    if characters(row) > MAX_ROW:
        raise too_long(where, characters(row), "characters")
    return row
