"""Which rows make which step, and how a step is cut into micro-batches and ranks."""

from collections.abc import Sequence

import torch

from robustpo_kit.training.config import TrainConfig


def steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a run; the last step of an epoch may be smaller, none is dropped."""
    total = config.epochs * -(-rows // config.batch_size)
    return min(total, config.max_steps) if config.max_steps else total


def step_rows(rows: int, config: TrainConfig) -> list[list[int]]:
    """The rows of every optimizer step: a fresh shuffle an epoch, from the seed alone."""
    plan = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(rows, generator=generator).tolist()
        plan.extend(order[at : at + config.batch_size] for at in range(0, rows, config.batch_size))
    return plan[: steps(rows, config)]


def micro_batches(
    sizes: Sequence[int], limit: int, world: int, *, balance: bool
) -> list[list[list[int]]]:
    """Places 0..n-1 of a step, of `sizes` tokens each, as [rank][micro-batch] -> places; as many on every rank.

    `balance` evens out tokens (packed rows have no padding); otherwise neighbours in length go together.
    """
    n = len(sizes)
    per_rank = -(-n // (limit * world))
    count = per_rank * world
    order = sorted(range(n), key=lambda i: (-sizes[i], i))
    cap = -(-n // count)
    if balance:
        bins, loads = [[] for _ in range(count)], [0] * count
        for i in order:
            lightest = min(
                (b for b in range(count) if len(bins[b]) < cap), key=lambda b: (loads[b], b)
            )
            bins[lightest].append(i)
            loads[lightest] += sizes[i]
    else:
        bins = [order[at : at + cap] for at in range(0, count * cap, cap)]
    return [bins[rank * per_rank : (rank + 1) * per_rank] for rank in range(world)]
