"""Which rows make which step, and how a step is cut into micro-batches and ranks."""

from collections.abc import Sequence

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
    sizes: Sequence[int], limit: int, world: int, *, balance: bool, tokens: int = 0
) -> list[list[list[int]]]:
    """Cut a step into micro-batches, as few as the limits allow and as many on every rank.

    Args:
        sizes: Tokens of each prompt of the step, with its responses.
        limit: Prompts that a micro-batch may hold.
        world: Ranks.
        balance: Whether to even out tokens, as suits packed rows, which have no padding; otherwise
            neighbours in length go together.
        tokens: That a micro-batch of several prompts may hold, padding included; 0: any number.

    Returns:
        [rank][micro-batch] -> places 0 to len(sizes) - 1 in the step; some may hold none.
    """
    per_rank = -(-len(sizes) // (limit * world))
    batches = _dealt(sizes, limit, per_rank * world, balance=balance, tokens=tokens)
    while tokens and not all(_fits(sizes, batch, tokens, balance=balance) for batch in batches):
        per_rank += 1
        batches = _dealt(sizes, limit, per_rank * world, balance=balance, tokens=tokens)
    return [batches[rank * per_rank : (rank + 1) * per_rank] for rank in range(world)]


def _fits(sizes: Sequence[int], batch: Sequence[int], tokens: int, *, balance: bool) -> bool:
    """Whether a micro-batch, packed where it is balanced and padded otherwise, has `tokens`."""
    own = [sizes[place] for place in batch]
    return len(own) < 2 or (sum(own) if balance else len(own) * max(own)) <= tokens


def _dealt(
    sizes: Sequence[int], limit: int, count: int, *, balance: bool, tokens: int
) -> list[list[int]]:
    """All places in `count` micro-batches; some may hold none."""
    capacity = -(-len(sizes) // count)
    order = sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))
    if balance:  # many short prompts beside few long ones, where tokens are what counts
        return _balanced(sizes, order, count, limit if tokens else capacity)
    starts = range(0, count * capacity, capacity)
    return [order[start : start + capacity] for start in starts]


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
