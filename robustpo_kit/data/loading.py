"""A file, folder or Hub data set of any known shape as a preference set."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from robustpo_kit.data.containers import MAX_ROW, Record, too_long
from robustpo_kit.data.packing import characters, kept
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.reading import row_from_json
from robustpo_kit.data.rows import BadRowError, Preference, check_row
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
    bad = BadRows(on_bad_row)
    shape, rows = _sniffed(records_of(source, split, bad), bad)
    kept_rows = kept(rows)  # all are read before anything is said of them
    name = Path(source).name if Path(source).exists() else str(source)
    if not kept_rows:
        reasons = ", ".join(f"{count} {why}" for why, count in bad.counts.items())
        raise KitError(
            f"{name}: holds no rows{f' but bad ones ({reasons})' * bool(reasons)}; "
            "one JSON object a line with preferences is expected"
        )
    return PreferenceSet(kept_rows, name=name, shape=shape, dropped=bad.counts)


def _sniffed(records: Iterator[Record], bad: BadRows) -> tuple[str, Iterator[Preference]]:
    """The shape of the first good record, in words, and the rows of all records."""
    for record in records:
        try:
            shape = recognise(record.value, record.where)
        except BadRowError as error:
            bad(error)
            continue
        said, records = shape.name, chain([record], records)
        if others := unread(shape, record.value):
            said += f" ({', '.join(others)} not read)"
        if shape is UNPAIRED:
            shape, records = PAIRS, paired(records, bad)
        return said, _rows(records, shape, bad)
    return "", iter(())


def _rows(records: Iterable[Record], shape: Shape, bad: BadRows) -> Iterator[Preference]:
    seen: set[str] = set()
    for record in records:
        try:
            row = _row(record, shape)
            if row.row_id in seen:
                said = f"'{row.row_id}' appears twice; ids are unique"
                raise BadRowError(record.where, "row_id", said, "twice")
        except BadRowError as error:
            bad(error)
            continue
        seen.add(row.row_id)
        yield row


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
