"""Log-probabilities under the reference, scored once and kept."""

import logging
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustpo_kit.policies import Policy, TokenTable
from robustpo_kit.records import atomic_write, digest
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.ranks import this_rank, world_size
from robustpo_kit.training.scoring import layout_of, response_logps

log = logging.getLogger(__name__)


def reference_logps(
    policy: Policy, tokens: TokenTable, *, config: TrainConfig, cache: Path | None
) -> Tensor:
    """Log-probabilities of every response under the reference, the policy without its adapter.

    Args:
        policy: The policy before training.
        tokens: N rows of at most K responses.
        config: Of the run; its layout.
        cache: Folder of what was scored before, recognised by rows, template, tokenizer and base
            weights; None scores anew. A file that is truncated or altered is noticed and rebuilt.

    Returns:
        Log-probs [N, K] in nats on the CPU.
    """
    if cache is None:
        return _scored(policy, tokens, config)
    key = _cache_key(policy, tokens)
    path = Path(cache) / f"{key[:24]}.safetensors"
    logps = _read_cache(path, key)
    found_everywhere = _on_all_ranks(logps is not None, policy.device)
    if logps is not None and found_everywhere:
        return logps
    logps = _scored(policy, tokens, config)
    if this_rank() == 0:
        metadata = {"key": key, "sha256": digest(logps)}
        with atomic_write(path) as temporary:
            save_file({"logps": logps}, temporary, metadata=metadata)
    return logps


def _scored(policy: Policy, tokens: TokenTable, config: TrainConfig) -> Tensor:
    layout = layout_of(policy, config)
    if policy.has_adapter:
        with policy.reference() as model:
            return response_logps(model, tokens, layout=layout)
    policy.model.eval()
    return response_logps(policy.model, tokens, layout=layout)


def _cache_key(policy: Policy, tokens: TokenTable) -> str:
    tokenizer = policy.tokenizer
    return digest(
        tokens.digest(),
        policy.template,
        type(tokenizer).__name__,
        len(tokenizer),
        policy.fingerprint(),
    )


def _read_cache(path: Path, key: str) -> Tensor | None:
    """The cached tensor, or None where the file is missing, damaged or of other inputs."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, logps = file.metadata() or {}, file.get_tensor("logps")
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("reference cache %s: damaged (%s); rebuilding", path.name, type(error).__name__)
        return None
    if metadata.get("key") != key or metadata.get("sha256") != digest(logps):
        log.warning("reference cache %s: stale or altered; rebuilding", path.name)
        return None
    return logps


def _on_all_ranks(condition: bool, device: torch.device) -> bool:
    vote = torch.tensor(float(condition), device=device)
    if world_size() > 1:
        dist.all_reduce(vote, op=dist.ReduceOp.MIN)
    return bool(vote.item())
