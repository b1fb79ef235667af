"""One preference datum: a prompt with K responses, and what may be wrong with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from robustpo_kit.errors import KitError


@dataclass(frozen=True)
class Preference:
    """One prompt with K responses. Column 0 is the chosen one of a pair; `golden` is the column from the target Q0."""

    row_id: str
    group: str  # conversation or prompt: splits and clusters never cut through it
    prompt: str
    responses: tuple[str, ...]
    sources: tuple[str, ...]  # who wrote each response
    rewards: tuple[float, ...] | None = None
    golden: int | None = 0
    flipped: bool = False
    h: float | None = None  # calibration factor h~ of the sample


def take(row: Preference, columns: Sequence[int]) -> Preference:
    """`row` with only `columns`, in that order."""
    return replace(
        row,
        responses=tuple(row.responses[c] for c in columns),
        sources=tuple(row.sources[c] for c in columns),
        rewards=None if row.rewards is None else tuple(row.rewards[c] for c in columns),
        golden=columns.index(row.golden) if row.golden in columns else None,
    )


def best_worst(row: Preference) -> tuple[int, int]:
    if row.rewards is None:
        raise KitError(
            f"row '{row.row_id}', field rewards: missing; pairs('best_worst') needs a reward a response"
        )
    order = sorted(range(len(row.rewards)), key=lambda k: -row.rewards[k])
    return order[0], order[-1]


def flipped_row(row: Preference) -> Preference:
    if row.rewards is None:
        swapped = take(row, (1, 0, *range(2, len(row.responses))))
        return replace(swapped, flipped=not row.flipped)
    order = sorted(range(len(row.rewards)), key=lambda k: row.rewards[k])
    mirrored = list(row.rewards)
    for low, high in zip(order, reversed(order), strict=True):
        mirrored[low] = row.rewards[high]
    flipped = replace(row, rewards=tuple(mirrored), flipped=not row.flipped)
    return take(flipped, (1, 0)) if len(row.responses) == 2 else flipped


def check_row(row: Preference, where: str) -> None:
    if not row.prompt.strip():
        raise KitError(f"{where}, field prompt: empty; remove the row or give the prompt")
    if len(row.responses) < 1:
        raise KitError(f"{where}, field responses: none; at least one is expected")
    if len(row.sources) != len(row.responses):
        raise KitError(
            f"{where}, field sources: {len(row.sources)} for {len(row.responses)} responses; one each"
        )
    for column, response in enumerate(row.responses):
        if not response.strip():
            raise KitError(
                f"{where}, field responses[{column}]: empty; remove the row or give the response"
            )
    if row.rewards is not None:
        if len(row.rewards) != len(row.responses):
            raise KitError(
                f"{where}, field rewards: {len(row.rewards)} for {len(row.responses)} responses; one each"
            )
        if not all(math.isfinite(value) for value in row.rewards):
            raise KitError(f"{where}, field rewards: a value is not finite")
    if row.golden is not None and not 0 <= row.golden < len(row.responses):
        raise KitError(
            f"{where}, field golden: {row.golden} is not a column of {len(row.responses)} responses"
        )
    if row.h is not None and not (math.isfinite(row.h) and row.h >= 0):
        raise KitError(f"{where}, field h: {row.h}; a finite value >= 0 is expected")
