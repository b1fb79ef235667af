"""Log-probabilities under the reference, scored once and kept."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustpo_kit.errors import KitError
from robustpo_kit.policies import Policy, TokenTable, unwrap
from robustpo_kit.records import atomic_write, digest, key_of_function
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.forward import response_logps
from robustpo_kit.training.ranks import this_rank, world_size
from robustpo_kit.training.scoring import pass_settings

# Entries of a model's config that name or describe it.
ASIDE = ("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache")

log = logging.getLogger(__name__)


def reference_logps(
    policy: Policy,
    tokens: TokenTable,
    *,
    config: TrainConfig,
    cache: Path | None,
    key: str | None = None,
    through: nn.Module | None = None,
) -> Tensor:
    """Log-probabilities of every response under the reference, the policy without its adapter.

    Args:
        policy: The policy before training.
        tokens: N rows of at most K responses.
        config: Of the run; its layout.
        cache: Folder of what was scored before, recognised by `reference_key`; None scores anew. A
            file that is truncated or altered is noticed and rebuilt.
        key: Digest of `reference_key`, where it was asked before weights were sharded.
        through: The sharded policy, as `response_logps` takes it.

    Returns:
        Log-probs [N, K] in nats on the CPU.

    Raises:
        KitError: Naming the first row whose log-probs are not finite; nothing is cached then.
    """
    if cache is None:
        return _scored(policy, tokens, config, through)
    key = key or digest(reference_key(policy, tokens))
    path = Path(cache) / f"{key[:24]}.safetensors"
    logps = _read_cache(path, key)
    found_everywhere = _on_all_ranks(logps is not None, policy.device)
    if logps is not None and found_everywhere:
        return logps
    logps = _scored(policy, tokens, config, through)
    if this_rank() == 0:
        _write_cache(path, key, logps)
    return logps


def reference_key(policy: Policy, tokens: TokenTable) -> dict[str, Any]:
    """All that decides reference log-probs, by name, but not how they are computed.

    Layout and kernel change their rounding only, so that one cache serves them all; the code that
    computes them counts, and the library that holds the architectures.
    """
    return {
        "tokens": tokens.digest(),
        "weights": policy.fingerprint(),
        "model config": model_config(policy),
        "code": reference_code(),
        "transformers": transformers.__version__,
    }


def reference_code() -> str:
    """Key of the code that computes reference log-probs: this module, with what it imports."""
    return key_of_function(reference_logps)


def model_config(policy: Policy) -> dict[str, Any]:
    """The model's class and configuration as JSON, but for entries that decide no log-prob."""
    core = unwrap(policy.model)
    settings = {name: value for name, value in core.config.to_dict().items() if name not in ASIDE}
    return json.loads(json.dumps({"class": type(core).__name__, **settings}, default=str))


def _scored(
    policy: Policy, tokens: TokenTable, config: TrainConfig, through: nn.Module | None
) -> Tensor:
    how = pass_settings(policy, config) | {"through": through}
    if policy.has_adapter:
        with policy.reference() as model:
            logps = response_logps(model, tokens, **how)
    else:
        policy.model.eval()
        logps = response_logps(policy.model, tokens, **how)
    bad = (~torch.isfinite(logps).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise KitError(
            f"row {tokens.rows[bad[0]].row_id}: its log-probs under the reference are not finite "
            f"({len(bad)} of {len(tokens)} rows); load the model with dtype float32, or mend its "
            "weights"
        )
    return logps


def _write_cache(path: Path, key: str, logps: Tensor) -> None:
    """Write a cache file; a disk that is full is no reason to end the run."""
    metadata = {"key": key, "sha256": digest(logps)}
    try:
        with atomic_write(path) as temporary:
            save_file({"logps": logps}, temporary, metadata=metadata)
    except (OSError, SafetensorError, KitError) as error:
        log.warning("reference cache %s: not written (%s)", path.name, error)


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
