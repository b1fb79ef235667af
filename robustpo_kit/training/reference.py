"""Log-probabilities without gradients, and the cache of the reference."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import Policy, TokenTable, collate, sequence_logps, tokenize
from robustpo_kit.records import atomic_write, progress
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.ranks import this_rank, world_size
from robustpo_kit.training.signals import Signals

SCORING_TOKENS = 2048  # tokens a row when scoring without gradients


log = logging.getLogger(__name__)


def response_logps(
    model: nn.Module, tokens: TokenTable, *, layout: str = "shared", budget: int = SCORING_TOKENS
) -> Tensor:
    """Log-probabilities [N, K] of every response without gradients, on the CPU; rows are split over the ranks."""
    k = max(len(row.responses) for row in tokens.rows)
    out = torch.zeros(len(tokens), k)
    order = sorted(range(len(tokens)), key=lambda i: tokens.rows[i].tokens())
    groups, size = [[]], 0
    for i in order[this_rank() :: world_size()]:
        if groups[-1] and size + tokens.rows[i].tokens() > budget:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += tokens.rows[i].tokens()
    device = next(model.parameters()).device
    with torch.no_grad():
        for group in progress([g for g in groups if g], "scoring"):
            batch = collate([tokens.rows[i] for i in group], layout=layout).to(device)
            out[group, : batch.lengths.shape[1]] = sequence_logps(model, batch).cpu()
    if world_size() > 1:
        moved = out.to(device)
        dist.all_reduce(moved)
        out = moved.cpu()
    return out


def score(
    policy: Policy, dataset: PreferenceSet, config: TrainConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and lengths [N, K] of a preference set's responses under the policy as it is."""
    config = config or TrainConfig()
    tokens = tokenize(
        dataset,
        policy.tokenizer,
        policy.template,
        max_length=config.max_length,
        max_response=config.max_response,
    )
    training = policy.model.training
    policy.model.eval()
    logps = response_logps(policy.model, tokens, layout=layout_of(policy, config))
    policy.model.train(training)
    return logps, Signals.of(dataset, tokens, None).lengths


def reference_logps(
    policy: Policy, tokens: TokenTable, *, config: TrainConfig, cache: Path | None
) -> Tensor:
    """Reference log-probs [N, K] with the adapter disabled, from `cache` where rows, template, tokenizer, model agree.

    A file that is truncated, tampered with or of other inputs is noticed by its checksum and rebuilt.
    """
    key = hashlib.sha256(
        json.dumps(
            [
                tokens.digest(),
                dataclasses.asdict(policy.template),
                type(policy.tokenizer).__name__,
                len(policy.tokenizer),
                policy.fingerprint(),
            ]
        ).encode()
    ).hexdigest()
    path = None if cache is None else Path(cache) / f"{key[:24]}.safetensors"
    found = _read_cache(path, key) if path is not None else None
    hit = torch.tensor(float(found is not None), device=policy.device)
    if world_size() > 1:
        dist.all_reduce(hit, op=dist.ReduceOp.MIN)
    if hit.item():
        return found
    layout = layout_of(policy, config)
    if policy.has_adapter:
        with policy.reference() as model:
            logps = response_logps(model, tokens, layout=layout)
    else:
        policy.model.eval()
        logps = response_logps(policy.model, tokens, layout=layout)
    if path is not None and this_rank() == 0:
        with atomic_write(path) as temporary:
            save_file({"logps": logps}, temporary, metadata={"key": key, "sha256": _sha256(logps)})
    return logps


def _read_cache(path: Path, key: str) -> Tensor | None:
    """The cached tensor, or None where the file is missing, damaged or of other inputs."""
    from safetensors import safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, logps = file.metadata() or {}, file.get_tensor("logps")
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("reference cache %s: damaged (%s); rebuilding", path.name, type(error).__name__)
        return None
    if metadata.get("key") != key or metadata.get("sha256") != _sha256(logps):
        log.warning("reference cache %s: stale or altered; rebuilding", path.name)
        return None
    return logps


def _sha256(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()


def layout_of(policy: Policy, config: TrainConfig) -> str:
    return config.layout if policy.shared_prefix else "separate"
