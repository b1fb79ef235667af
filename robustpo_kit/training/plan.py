"""Which rows make which step, and how a step is cut into micro-batches and ranks."""

from collections.abc import Sequence

from robustpo_kit.policies import TokenRow
from robustpo_kit.records import stream
from robustpo_kit.training.config import TrainConfig


def steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a run; the last step of an epoch may be smaller, none is dropped."""
    total = config.epochs * -(-rows // config.batch_size)
    return min(total, config.max_steps) if config.max_steps else total


def step_rows(rows: int, config: TrainConfig) -> list[list[int]]:
    """The rows of every optimizer step: a fresh shuffle an epoch, from the seed alone."""
    plan: list[list[int]] = []
    for epoch in range(config.epochs):
        order = stream(config.seed, "order of rows", epoch).permutation(rows).tolist()
        starts = range(0, rows, config.batch_size)
        plan.extend(order[start : start + config.batch_size] for start in starts)
    return plan[: steps(rows, config)]


def micro_batches(
    sizes: Sequence[int],
    limit: int,
    world: int,
    *,
    tokens: int = 0,
    padded: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """Cut a step into micro-batches, as few as the limits allow and as many on every rank.

    Packed prompts have no padding, so their tokens are evened out; of padded ones neighbours in
    length go together.

    Args:
        sizes: Tokens of each prompt of the step with its responses; of padded ones with its
            longest response.
        limit: Prompts that a micro-batch may hold.
        world: Ranks.
        tokens: That a micro-batch of several prompts may hold, padding included; 0: any number.
        padded: Rows that each prompt makes where rows are padded; None: they are packed.

    Returns:
        [rank][micro-batch] -> places 0 to len(sizes) - 1 in the step; some may hold none.
    """
    order = sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))
    if padded is None:
        batches = _packed(sizes, order, limit, world, tokens)
    elif tokens:
        batches = _filled(sizes, order, limit, tokens, padded)
    else:
        capacity = -(-len(order) // (world * -(-len(order) // (limit * world))))
        batches = [order[start : start + capacity] for start in range(0, len(order), capacity)]
    per_rank = -(-len(batches) // world)
    batches += [[] for _ in range(world * per_rank - len(batches))]
    return [batches[rank * per_rank : (rank + 1) * per_rank] for rank in range(world)]


def cut_rows(
    rows: Sequence[TokenRow], layout: str, limit: int, world: int, tokens: int = 0
) -> list[list[list[int]]]:
    """`micro_batches` of a step of token rows, in a layout."""
    sizes = [row.size(layout) for row in rows]
    padded = None if layout == "shared" else [len(row.responses) for row in rows]
    return micro_batches(sizes, limit, world, tokens=tokens, padded=padded)


def _filled(
    sizes: Sequence[int], order: list[int], limit: int, tokens: int, padded: Sequence[int]
) -> list[list[int]]:
    """Places in `order`, longest first, each batch filled before the next begins."""
    batches: list[list[int]] = []
    rows = 0
    for place in order:
        rows += padded[place]
        if not batches or len(batches[-1]) == limit or rows * sizes[batches[-1][0]] > tokens:
            batches.append([])
            rows = padded[place]
        batches[-1].append(place)
    return batches


def _packed(
    sizes: Sequence[int], order: list[int], limit: int, world: int, tokens: int
) -> list[list[int]]:
    """Places in `order` in as few batches for every rank as hold them, tokens evened out."""
    per_rank = -(-len(sizes) // (limit * world))
    while True:
        count = per_rank * world
        capacity = limit if tokens else -(-len(sizes) // count)
        batches = _balanced(sizes, order, count, capacity)
        fits = [len(batch) < 2 or sum(sizes[i] for i in batch) <= tokens for batch in batches]
        if not tokens or all(fits):
            return batches
        per_rank += 1


def _balanced(
    sizes: Sequence[int], order: Sequence[int], count: int, capacity: int
) -> list[list[int]]:
    """Places in `order`, each dealt out to the batch with fewest tokens that has room."""
    batches: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for place in order:
        with_room = [number for number in range(count) if len(batches[number]) < capacity]
        lightest = min(with_room, key=lambda number: (loads[number], number))
        batches[lightest].append(place)
        loads[lightest] += sizes[place]
    return batches
