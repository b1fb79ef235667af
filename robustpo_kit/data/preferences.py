"""A preference set: rows with what was dropped on the way, split by group, flipped, weighted."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from robustpo_kit.data.packing import kept
from robustpo_kit.data.reading import row_as_json
from robustpo_kit.data.rows import (
    Preference,
    best_worst,
    check_row,
    first_of_two,
    flipped_row,
    take,
)
from robustpo_kit.data.template import PLAIN, Template
from robustpo_kit.errors import KitError
from robustpo_kit.records import atomic_write, stream


class PreferenceSet(Sequence[Preference]):
    """An immutable sequence of rows, with where they came from and what was dropped on the way."""

    def __init__(
        self,
        rows: Iterable[Preference],
        *,
        name: str = "preferences",
        template: Template = PLAIN,
        shape: str = "",
        dropped: Mapping[str, int] | None = None,
        ranked: bool = False,
        contrary: int = 0,
    ):
        self.rows = kept(rows)
        self.name = name
        self.template = template
        self.shape = shape  # in words, of the file that the rows are from
        self.dropped = dict(dropped or {})
        self.ranked = ranked  # by their rewards, for every reader: rows that were loaded
        self.contrary = contrary  # pairs that were loaded with scores against their label

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Preference: ...

    @overload
    def __getitem__(self, index: slice) -> "PreferenceSet": ...

    def __getitem__(self, index: int | slice) -> "Preference | PreferenceSet":
        if isinstance(index, slice):
            return self._with(self.rows[index])
        return self.rows[index]

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"PreferenceSet({self.name}: {len(self)} rows, K = {self.responses_per_prompt})"

    def _with(self, rows: Iterable[Preference], **other: bool) -> "PreferenceSet":
        names = ("name", "template", "shape", "dropped", "ranked", "contrary")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        return PreferenceSet(rows, **(own | other))

    def describe(self) -> str:
        """One line: name, shape, how many rows of how many responses, what was dropped."""
        counts = sorted({len(row.responses) for row in self.rows}) or [0]
        responses = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        parts = [self.shape, f"{len(self):,} rows", f"K = {responses}"]
        if self.dropped:
            parts.append(f"dropped: {self._reasons()}")
        return f"{self.name}: {', '.join(filter(None, parts))}"

    def _reasons(self) -> str:
        return ", ".join(f"{count} {why}" for why, count in self.dropped.items())

    @cached_property
    def responses_per_prompt(self) -> int:
        """The largest K of the set; 0 for an empty one."""
        return max((len(row.responses) for row in self.rows), default=0)

    def select(self, indices: Iterable[int]) -> "PreferenceSet":
        """The rows at `indices`, in that order."""
        return self._with(self.rows[i] for i in indices)

    def map(self, function: Callable[[Preference], Preference]) -> "PreferenceSet":
        """A set with `function` applied to every row."""
        return self._with(function(row) for row in self.rows)

    def validate(self) -> "PreferenceSet":
        """Return self; raises KitError naming set, row and field of the first defect."""
        seen: set[str] = set()
        for number, row in enumerate(self.rows, start=1):
            check_row(row, f"{self.name}, row {number}")
            if row.row_id in seen:
                raise KitError(
                    f"{self.name}, row {number}, field row_id: "
                    f"'{row.row_id}' appears twice; ids are unique"
                )
            seen.add(row.row_id)
        return self

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a line, by rename; `data.load` reads the same rows from it."""
        with (
            atomic_write(Path(path)) as temporary,
            open(temporary, "w", encoding="utf-8") as stream,
        ):
            for row in self.rows:
                stream.write(json.dumps(row_as_json(row), ensure_ascii=False) + "\n")

    def split(self, sizes: Mapping[str, int], seed: int) -> dict[str, "PreferenceSet"]:
        """Disjoint parts of about the given row counts, whole groups only, in a seeded order.

        Raises KitError when rows run out.
        """
        rows_of_group: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            rows_of_group.setdefault(row.group, []).append(index)
        groups = list(rows_of_group.values())
        order = deque(stream(seed, "splits").permutation(len(groups)).tolist())
        parts = {}
        for name, size in sizes.items():
            chosen: list[int] = []
            while len(chosen) < size:
                if not order:
                    raise KitError(
                        f"{self.name}: {len(self)} rows are too few for the splits {dict(sizes)}; "
                        f"lower '{name}' or another split{self._dropped_in_words()}"
                    )
                chosen += groups[order.popleft()]
            parts[name] = self.select(chosen)
        return parts

    def _dropped_in_words(self) -> str:
        """Why there are no more rows."""
        if not self.dropped:
            return ""
        return f" (dropped before: {self._reasons()})"

    def flip(self, rate: float, seed: int) -> "PreferenceSet":
        """Label noise: a fixed share of rows has its preference reversed, marked in `flipped`.

        Without rewards columns 0 and 1 swap; with rewards the ranking is mirrored (best and worst
        exchange rewards).
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate = {rate}: a share between 0 and 1 is expected")
        rows = list(self.rows)
        order = stream(seed, "flips").permutation(len(rows)).tolist()
        for index in order[: round(rate * len(rows))]:
            rows[index] = flipped_row(rows[index])
        return self._with(rows)

    def with_rewards(self, rewards: ArrayLike) -> "PreferenceSet":
        """Rows with `rewards` [N, K]; column 0 of a pair stays preferred by a pair loss.

        Raises ValueError on another shape or a value not finite.
        """
        values = np.asarray(rewards, dtype=float)
        expected = (len(self), self.responses_per_prompt)
        finite = bool(np.isfinite(values).all())
        if values.shape != expected or not finite:
            raise ValueError(
                f"rewards: shape {values.shape}, finite: {finite}; expected finite {list(expected)}"
            )
        rewarded = (
            replace(row, rewards=tuple(of_row))
            for row, of_row in zip(self.rows, values.tolist(), strict=True)
        )
        return self._with(rewarded, ranked=False)

    def with_h(self, h: ArrayLike) -> "PreferenceSet":
        """Rows with factors `h` [N], or the ratio of each response [N, K], whose means they are.

        Raises ValueError on another shape or a value below 0.
        """
        values = np.asarray(h, dtype=float)
        fits = values.shape in ((len(self),), (len(self), self.responses_per_prompt))
        if not fits or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(
                f"h: expected {len(self)} finite values >= 0, or so many a response, got shape "
                f"{values.shape}"
            )
        of_rows = values.tolist()
        if values.ndim == 2:
            of_rows = [tuple(ratios) for ratios in of_rows]
        return self._with(
            replace(row, h=of_row) for row, of_row in zip(self.rows, of_rows, strict=True)
        )

    def preferred_first(self) -> "PreferenceSet":
        """Loaded pairs with the preferred response first; lists, and other sets, as they are."""
        return self.map(first_of_two) if self.ranked else self

    def pairs(self, how: str = "columns") -> "PreferenceSet":
        """K = 2 rows: columns 0 and 1, or `best_worst`: those of highest and of lowest reward.

        Raises ValueError for another `how`, KitError for a row without rewards.
        """
        if how == "columns":
            return self.map(lambda row: take(row, (0, 1)))
        if how == "best_worst":
            return self.map(lambda row: take(row, best_worst(row)))
        raise ValueError(f"how = '{how}': 'columns' or 'best_worst' is expected")

    def golden_only(self) -> "PreferenceSet":
        """K = 1 rows that hold the golden response, for supervised fine-tuning, without rewards.

        Rows whose golden response is not known are left out.
        """
        return self._with(
            replace(take(row, (row.golden,)), rewards=None)
            for row in self.rows
            if row.golden is not None
        )
