"""Many rows, on disk: what a set keeps in memory is bounded."""

import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import overload

from robustpo_kit.data.reading import row_as_json, row_from_json
from robustpo_kit.data.rows import Preference

IN_MEMORY = 100_000_000  # characters; longer sets go to a file


def kept(rows: Iterable[Preference]) -> Sequence[Preference]:
    """Rows in memory where they are few, else in a file that is gone with the process."""
    if isinstance(rows, tuple | Packed):
        return rows
    size, first, more = 0, [], iter(rows)
    for row in more:
        first.append(row)
        size += characters(row)
        if size > IN_MEMORY:
            return Packed(chain(first, more))
    return tuple(first)


def characters(row: Preference) -> int:
    """How long a row's prompt and responses are together."""
    return len(row.prompt) + sum(map(len, row.responses))


class Packed(Sequence[Preference]):
    """Rows as JSON lines in a temporary file; memory holds 8 bytes a row, and one row at a time."""

    def __init__(self, rows: Iterable[Preference]):
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the rows live
        self.ends = array("Q", [0])
        for row in rows:
            line = json.dumps(row_as_json(row), ensure_ascii=False).encode()
            self.file.write(line)
            self.ends.append(self.ends[-1] + len(line))
        self.file.flush()

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Preference: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Preference]: ...

    def __getitem__(self, index: int | slice) -> Preference | Sequence[Preference]:
        if isinstance(index, slice):
            return kept(self[place] for place in range(len(self))[index])
        place = range(len(self))[index]
        start, end = self.ends[place], self.ends[place + 1]
        line = os.pread(self.file.fileno(), end - start, start)
        return row_from_json(json.loads(line), "temporary file", place)
