"""Log-probabilities of a table of tokens without gradients, in as much memory as there is."""

import functools
import itertools
import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustpo_kit.errors import KitError
from robustpo_kit.policies import Batch, TokenTable, collate, sequence_logps
from robustpo_kit.records import progress
from robustpo_kit.training.memory import free_memory, out_of_memory
from robustpo_kit.training.ranks import on_any_rank, this_rank, world_size

SCORING_TOKENS = 2048  # tokens of a forward pass

log = logging.getLogger(__name__)


def response_logps(
    model: nn.Module,
    tokens: TokenTable,
    *,
    layout: str = "shared",
    kernel: str = "sdpa",
    budget: int = 0,
    through: nn.Module | None = None,
) -> Tensor:
    """Log-probabilities of every response without gradients; rows are split over the ranks.

    Args:
        model: A causal language model, its layout's attention prepared.
        tokens: N rows of at most K responses.
        layout: "shared" or "separate", as `policies.collate` takes it.
        kernel: Attention of shared rows, as `policies.collate` takes it.
        budget: Tokens of a forward pass, 0 for `SCORING_TOKENS`; a longer row is a pass of its own.
            Halved, as often as needed, where memory runs out.
        through: The module that gives log-probs of a batch where the model's weights are sharded
            over the ranks, which then pass together: a rank without rows repeats one, and none can
            take a pass again.

    Returns:
        Log-probs [N, K] in nats on the CPU, on every rank; 0 in columns that a row does not have.

    Raises:
        KitError: Naming a row that does not fit into memory by itself.
    """
    width = max(len(row.responses) for row in tokens.rows)
    logps = torch.zeros(len(tokens), width)
    device = next(model.parameters()).device
    budget = budget or SCORING_TOKENS
    order = sorted(range(len(tokens)), key=lambda number: tokens.rows[number].size(layout))
    waiting = order[this_rank() :: world_size()]
    bar = iter(progress(range(len(waiting)), "scoring"))
    score = through or functools.partial(sequence_logps, model)
    while on_any_rank(bool(waiting), device) if through else waiting:
        group = waiting[: _fitting(tokens, waiting, budget, layout)] or order[:1]
        batch = collate([tokens.rows[number] for number in group], layout=layout, kernel=kernel)
        found = _logps_in_memory(score, batch.to(device))
        if found is None:
            budget = _smaller_budget(tokens, group, layout, sharded=through is not None)
            continue
        if waiting:
            logps[group, : found.shape[1]] = found
        waiting = waiting[len(group) :]
        for _ in itertools.islice(bar, len(group)):
            pass
    if world_size() > 1:
        on_device = logps.to(device)
        dist.all_reduce(on_device)
        logps = on_device.cpu()
    return logps


def _fitting(tokens: TokenTable, waiting: list[int], budget: int, layout: str) -> int:
    """How many of the rows, short ones first, make a pass of at most `budget` tokens; at least 1.

    Separate rows are padded to the last of them.
    """
    used = 0
    for count, number in enumerate(waiting):
        row = tokens.rows[number]
        used += row.tokens(layout) if layout == "shared" else len(row.responses)
        if (used if layout == "shared" else used * row.longest) > budget:
            return max(1, count)
    return len(waiting)


def _logps_in_memory(score: Callable[[Batch], Tensor], batch: Batch) -> Tensor | None:
    """Log-probs [B, K] on the CPU; None where memory runs out, which is free again then."""
    try:
        with torch.no_grad():
            return score(batch).cpu()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    free_memory()
    return None


def _smaller_budget(tokens: TokenTable, group: list[int], layout: str, *, sharded: bool) -> int:
    """Half the tokens of a pass that did not fit; raises KitError where that does not help."""
    size = tokens.pass_tokens(group, layout)
    if sharded and len(group) > 1:
        raise KitError(
            f"out of memory when scoring {size} tokens; ranks under FSDP2 cannot take a pass "
            f"again; set tokens_per_pass={size // 2}"
        )
    if len(group) == 1:
        raise KitError(
            f"row {tokens.rows[group[0]].row_id}: out of memory when scoring its {size} tokens "
            "alone; lower max_length, drop the row, or free memory on the device"
        )
    log.warning("out of memory: scoring passes of %d tokens from here on", size // 2)
    return size // 2
