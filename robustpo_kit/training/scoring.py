"""Log-probabilities of responses: with gradients in a step, without them for a data set."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import (
    Batch,
    Policy,
    TokenTable,
    collate,
    sequence_logps,
    tokenize,
    unwrap,
)
from robustpo_kit.records import progress
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.ranks import this_rank, world_size
from robustpo_kit.training.signals import Signals

SCORING_TOKENS = 2048  # tokens a row when scoring without gradients


class Scorer(nn.Module):
    """The policy as a module that maps a batch to [B, K] log-probs: what accelerate wraps."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # The layers that FSDP2 shards one by one.
        self._no_split_modules = getattr(unwrap(model), "_no_split_modules", None) or []

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities [B, K]."""
        return sequence_logps(self.model, batch)


def layout_of(policy: Policy, config: TrainConfig) -> str:
    """The layout of batches: prompts are computed once where the architecture takes block masks."""
    return config.layout if policy.shared_prefix else "separate"


def kernel_of(policy: Policy, config: TrainConfig) -> str:
    """The attention kernel of shared rows."""
    if config.kernel != "auto":
        return config.kernel
    return "flex" if policy.device.type == "cuda" else "sdpa"


def response_logps(
    model: nn.Module, tokens: TokenTable, *, layout: str = "shared", budget: int = SCORING_TOKENS
) -> Tensor:
    """Log-probabilities of every response without gradients; rows are split over the ranks.

    Args:
        model: A causal language model, its layout's attention prepared.
        tokens: N rows of at most K responses.
        layout: "shared" or "separate", as `policies.collate` takes it.
        budget: Tokens of a forward pass; a longer row is a pass of its own.

    Returns:
        Log-probs [N, K] in nats on the CPU, on every rank; 0 in columns that a row does not have.
    """
    width = max(len(row.responses) for row in tokens.rows)
    logps = torch.zeros(len(tokens), width)
    device = next(model.parameters()).device
    with torch.no_grad():
        for group in progress(_passes(tokens, budget), "scoring"):
            batch = collate([tokens.rows[number] for number in group], layout=layout).to(device)
            logps[group, : batch.lengths.shape[1]] = sequence_logps(model, batch).cpu()
    if world_size() > 1:
        on_device = logps.to(device)
        dist.all_reduce(on_device)
        logps = on_device.cpu()
    return logps


def _passes(tokens: TokenTable, budget: int) -> list[list[int]]:
    """This rank's rows by length, cut into forward passes of at most `budget` tokens."""
    order = sorted(range(len(tokens)), key=lambda number: tokens.rows[number].tokens())
    passes: list[list[int]] = []
    room = 0
    for number in order[this_rank() :: world_size()]:
        size = tokens.rows[number].tokens()
        if not passes or size > room:
            passes.append([])
            room = budget
        passes[-1].append(number)
        room -= size
    return passes


def score(
    policy: Policy, dataset: PreferenceSet, config: TrainConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and lengths [N, K] of a preference set's responses under the policy."""
    config = config or TrainConfig()
    tokens = tokenize(
        dataset,
        policy.tokenizer,
        policy.template,
        max_length=config.max_length,
        max_response=config.max_response,
    )
    was_training = policy.model.training
    policy.model.eval()
    logps = response_logps(policy.model, tokens, layout=layout_of(policy, config))
    policy.model.train(was_training)
    return logps, Signals.of(dataset, tokens, None).lengths
