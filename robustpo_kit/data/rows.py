"""One preference datum: a prompt with K responses, and what may be wrong with it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from robustpo_kit.data.conversation import question
from robustpo_kit.errors import KitError


class BadRowError(KitError):
    """A row that cannot be used.

    Args:
        where: file and row.
        field: of the row; empty for the row itself.
        said: what is wrong, and what to do.
        why: the same in a word or two, under which such rows are counted.
    """

    def __init__(self, where: str, field: str, said: str, why: str):
        name = f", field {field}" if field else ""
        super().__init__(f"{where}{name}: {said}")
        self.why = f"{re.split(r'[( []', field)[0]} {why}".strip()


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with K responses; `preferred_and_least` says which is preferred."""

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


def preferred_and_least(row: Preference) -> tuple[int, int]:
    """The columns of highest and of lowest reward, of equals the first; without rewards 0 and 1."""
    if row.rewards is None:
        return 0, 1
    order = _ascending([-reward for reward in row.rewards])
    return order[0], order[-1]


def preferred_pair(row: Preference) -> Preference:
    """`row` as a pair of the preferred reply and the least; a pair in this order as it is."""
    columns = preferred_and_least(row)
    if len(row.responses) != 2:
        return take(row, columns)
    if columns == (0, 1):
        return row
    turned = take(row, columns)
    return replace(turned, h=row.h[::-1]) if isinstance(row.h, tuple) else turned


def first_of_two(row: Preference) -> Preference:
    """A pair with the preferred response first; another row as it is."""
    return preferred_pair(row) if len(row.responses) == 2 else row


def best_worst(row: Preference) -> tuple[int, int]:
    """The columns of highest and of lowest reward; raises KitError where the row has no rewards."""
    if row.rewards is None:
        raise KitError(
            f"row '{row.row_id}', field rewards: missing; "
            "pairs('best_worst') needs a reward a response"
        )
    return preferred_and_least(row)


def shared(rows: Iterable[Preference], taken: Iterable[Preference]) -> list[bool]:
    """Whether each row has the prompt, in whatever form, or the group of a row of `taken`."""
    prompts, groups = set(), set()
    for row in taken:
        prompts.add(question(row.prompt))
        groups.add(row.group)
    return [question(row.prompt) in prompts or row.group in groups for row in rows]


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
    """Raises BadRowError naming `where`, the field and what is wrong with it."""
    count = len(row.responses)
    if not row.prompt.strip():
        raise BadRowError(where, "prompt", "empty; remove the row or give the prompt", "empty")
    if count < 1:
        raise BadRowError(where, "responses", "none; at least one is expected", "empty")
    if len(row.sources) != count:
        raise _not_one_each(where, "sources", row.sources, count)
    for column, response in enumerate(row.responses):
        if not response.strip():
            said = "empty; remove the row or give the response"
            pair = row.sources == ("chosen", "rejected")  # as files of pairs call their columns
            field = (
                f"{row.sources[column]} (responses[{column}])" if pair else f"responses[{column}]"
            )
            raise BadRowError(where, field, said, "empty")
    if row.rewards is not None and len(row.rewards) != count:
        raise _not_one_each(where, "rewards", row.rewards, count)
    if row.rewards is not None and not all(map(math.isfinite, row.rewards)):
        raise BadRowError(where, "rewards", "a value is not finite", "not finite")
    if row.golden is not None and not 0 <= row.golden < count:
        said = f"{row.golden} is not a column of {count} responses"
        raise BadRowError(where, "golden", said, "no column")
    if row.h is not None:
        _check_factors(row.h, count, where)


def _check_factors(h: float | tuple[float, ...], count: int, where: str) -> None:
    factors = h if isinstance(h, tuple) else (h,) * count
    if len(factors) != count:
        raise _not_one_each(where, "h", factors, count, ", or one")
    for factor in factors:
        if not (math.isfinite(factor) and factor >= 0):
            why = "below 0" if math.isfinite(factor) else "not finite"
            raise BadRowError(where, "h", f"{factor}; a finite value >= 0 is expected", why)


def _not_one_each(
    where: str, field: str, values: Sequence[object], count: int, also: str = ""
) -> BadRowError:
    said = f"{len(values)} for {count} responses; one each{also}"
    return BadRowError(where, field, said, "not one a response")
