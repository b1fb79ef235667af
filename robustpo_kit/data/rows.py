"""One preference datum: a prompt with K responses, and what may be wrong with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from robustpo_kit.errors import KitError


@dataclass(frozen=True)
class Preference:
    """One prompt with K responses. Column 0 is the chosen one of a pair."""

    row_id: str
    group: str  # conversation or prompt: splits and clusters never cut through it
    prompt: str
    responses: tuple[str, ...]
    sources: tuple[str, ...]  # who wrote each response
    rewards: tuple[float, ...] | None = None
    golden: int | None = 0  # the column from the target Q0
    flipped: bool = False
    # calibration factor h~ of the sample, or the density ratio of each response, whose mean it is
    h: float | tuple[float, ...] | None = None


def mean_h(row: Preference) -> float | None:
    """h~ of the sample."""
    if isinstance(row.h, tuple):
        return math.fsum(row.h) / len(row.h)
    return row.h


def take(row: Preference, columns: Sequence[int]) -> Preference:
    """`row` with only `columns`, in that order; its h~ stays that of the whole sample."""
    rewards, golden = None, None
    if row.rewards is not None:
        rewards = tuple(row.rewards[column] for column in columns)
    if row.golden in columns:
        golden = columns.index(row.golden)
    return replace(
        row,
        responses=tuple(row.responses[column] for column in columns),
        sources=tuple(row.sources[column] for column in columns),
        rewards=rewards,
        golden=golden,
        h=mean_h(row),
    )


def best_worst(row: Preference) -> tuple[int, int]:
    """The columns of highest and of lowest reward; raises KitError where the row has no rewards."""
    if row.rewards is None:
        raise KitError(
            f"row '{row.row_id}', field rewards: missing; "
            "pairs('best_worst') needs a reward a response"
        )
    order = _ascending([-reward for reward in row.rewards])
    return order[0], order[-1]


def flipped_row(row: Preference) -> Preference:
    """`row` with its preference reversed: columns 0 and 1 swap; rewards are mirrored."""
    if row.rewards is None:
        swapped = take(row, (1, 0, *range(2, len(row.responses))))
        return replace(swapped, flipped=not row.flipped)
    order = _ascending(row.rewards)
    mirrored = list(row.rewards)
    for low, high in zip(order, reversed(order), strict=True):
        mirrored[low] = row.rewards[high]
    flipped = replace(row, rewards=tuple(mirrored), flipped=not row.flipped)
    if len(row.responses) == 2:
        return take(flipped, (1, 0))
    return flipped


def _ascending(values: Sequence[float]) -> list[int]:
    """Places of `values` from the smallest to the largest; ties keep their order."""
    return sorted(range(len(values)), key=values.__getitem__)


def check_row(row: Preference, where: str) -> None:
    """Raises KitError naming `where`, the field and what is wrong with it."""
    count = len(row.responses)
    if not row.prompt.strip():
        raise KitError(f"{where}, field prompt: empty; remove the row or give the prompt")
    if count < 1:
        raise KitError(f"{where}, field responses: none; at least one is expected")
    if len(row.sources) != count:
        raise KitError(
            f"{where}, field sources: {len(row.sources)} for {count} responses; one each"
        )
    for column, response in enumerate(row.responses):
        if not response.strip():
            raise KitError(
                f"{where}, field responses[{column}]: empty; remove the row or give the response"
            )
    if row.rewards is not None:
        _check_rewards(row.rewards, count, where)
    if row.golden is not None and not 0 <= row.golden < count:
        raise KitError(f"{where}, field golden: {row.golden} is not a column of {count} responses")
    factors = row.h if isinstance(row.h, tuple) else (row.h,) * count
    if row.h is not None and len(factors) != count:
        raise KitError(f"{where}, field h: {len(factors)} for {count} responses; one each, or one")
    for factor in factors:
        if factor is not None and not (math.isfinite(factor) and factor >= 0):
            raise KitError(f"{where}, field h: {factor}; a finite value >= 0 is expected")


def _check_rewards(rewards: Sequence[float], count: int, where: str) -> None:
    if len(rewards) != count:
        raise KitError(f"{where}, field rewards: {len(rewards)} for {count} responses; one each")
    if not all(math.isfinite(reward) for reward in rewards):
        raise KitError(f"{where}, field rewards: a value is not finite")
