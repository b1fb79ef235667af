"""A preference set: rows with what was dropped on the way, split by group, flipped, weighted."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robustpo_kit import paths
from robustpo_kit.data.reading import json_lines, row_from_json
from robustpo_kit.data.rows import Preference, best_worst, check_row, flipped_row, take
from robustpo_kit.data.template import Template
from robustpo_kit.errors import KitError
from robustpo_kit.records import atomic_write


class PreferenceSet(Sequence[Preference]):
    """An immutable sequence of rows, with where they came from and what was dropped on the way."""

    def __init__(
        self,
        rows: Iterable[Preference],
        *,
        name: str = "preferences",
        template: Template = Template("plain"),
        dropped: Mapping[str, int] | None = None,
    ):
        self.rows = tuple(rows)
        self.name = name
        self.template = template
        self.dropped = dict(dropped or {})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self._with(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"PreferenceSet({self.name}: {len(self)} rows, K = {self.responses_per_prompt})"

    def _with(self, rows: Iterable[Preference]) -> "PreferenceSet":
        return PreferenceSet(rows, name=self.name, template=self.template, dropped=self.dropped)

    @property
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
                    f"{self.name}, row {number}, field row_id: '{row.row_id}' appears twice; ids are unique"
                )
            seen.add(row.row_id)
        return self

    @classmethod
    def from_jsonl(
        cls, path: str | Path, *, template: Template = Template("plain")
    ) -> "PreferenceSet":
        """Read and validate JSON lines (or .gz), with `prompt` and `responses`, or `prompt`, `chosen`, `rejected`.

        Raises KitError naming file, line and field.
        """
        path = Path(path)
        rows = [row_from_json(value, where, number) for number, where, value in json_lines(path)]
        if not rows:
            raise KitError(f"{paths.show(path)}: holds no rows; expected one JSON object a line")
        return cls(rows, name=path.name, template=template).validate()

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a line, by rename."""
        with (
            atomic_write(Path(path)) as temporary,
            open(temporary, "w", encoding="utf-8") as stream,
        ):
            for row in self.rows:
                stream.write(json.dumps(row.__dict__, ensure_ascii=False) + "\n")

    def split(self, sizes: Mapping[str, int], seed: int) -> dict[str, "PreferenceSet"]:
        """Disjoint parts of about the given row counts, whole groups only; raises KitError when rows run out."""
        members: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            members.setdefault(row.group, []).append(index)
        groups = list(members)
        order = iter(np.random.default_rng(seed).permutation(len(groups)))
        parts = {}
        for name, size in sizes.items():
            chosen: list[int] = []
            while len(chosen) < size:
                try:
                    chosen += members[groups[next(order)]]
                except StopIteration:
                    raise KitError(
                        f"{self.name}: {len(self)} rows are too few for the splits {dict(sizes)}; "
                        f"lower '{name}' or another split"
                    ) from None
            parts[name] = self.select(chosen)
        return parts

    def flip(self, rate: float, seed: int) -> "PreferenceSet":
        """Label noise: a fixed share of rows has its preference reversed, once, marked in `flipped`.

        Without rewards columns 0 and 1 swap; with rewards the ranking is mirrored (best and worst exchange rewards).
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate = {rate}: a share between 0 and 1 is expected")
        count = round(rate * len(self))
        chosen = set(np.random.default_rng(seed).permutation(len(self))[:count].tolist())
        return self._with(
            flipped_row(row) if i in chosen else row for i, row in enumerate(self.rows)
        )

    def with_rewards(self, rewards: Any) -> "PreferenceSet":
        """Rows with `rewards` [N, K]; raises ValueError on another shape or a value that is not finite."""
        rewards = np.asarray(rewards, dtype=float)
        if (
            rewards.shape != (len(self), self.responses_per_prompt)
            or not np.isfinite(rewards).all()
        ):
            raise ValueError(
                f"rewards: shape {rewards.shape}, finite: {bool(np.isfinite(rewards).all())}; expected finite "
                f"[{len(self)}, {self.responses_per_prompt}]"
            )
        return self._with(
            replace(row, rewards=tuple(r.tolist()))
            for row, r in zip(self.rows, rewards, strict=True)
        )

    def with_h(self, h: Any) -> "PreferenceSet":
        """Rows with calibration factors `h` [N] >= 0; raises ValueError on another shape or value."""
        h = np.asarray(h, dtype=float)
        if h.shape != (len(self),) or not np.isfinite(h).all() or (h < 0).any():
            raise ValueError(f"h: expected {len(self)} finite values >= 0, got shape {h.shape}")
        return self._with(
            replace(row, h=float(value)) for row, value in zip(self.rows, h, strict=True)
        )

    def pairs(self, how: str = "columns") -> "PreferenceSet":
        """K = 2 rows: columns 0 and 1, or (`best_worst`) the responses of highest and lowest reward."""
        return self.map(lambda row: take(row, (0, 1) if how == "columns" else best_worst(row)))

    def golden_only(self) -> "PreferenceSet":
        """K = 1 rows that hold the golden response, for supervised fine-tuning."""
        return self._with(take(row, (row.golden,)) for row in self.rows if row.golden is not None)
