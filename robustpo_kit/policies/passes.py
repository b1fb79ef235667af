"""One forward pass of a batch: log-probabilities of its response tokens.

The vocabulary projection runs over response positions only, in chunks: no [R, T, V] tensor exists.
Where an architecture does more between its last hidden state and its logits than scaling and
soft-capping, its own logits at the response positions are taken instead.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from robustpo_kit.policies.batches import Batch
from robustpo_kit.policies.projection import LogitScale, token_logps


def batch_token_logps(
    core: PreTrainedModel,
    batch: Batch,
    scale: LogitScale | None,
    *,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Log-probabilities [N] (fp32, nats) of the scored tokens, in the order of `batch.labels`.

    Args:
        core: a transformers causal language model, on the batch's device.
        batch: what is scored; for a shared one the model's attention obeys blocks.
        scale: what lies between the head's product and the logits; None takes the model's own
            logits, fp32 [N, V] in memory.
        chunk_bytes: fp32 logits held at once, where they are computed here; default: by the device.
    """
    if scale is None:
        return F.cross_entropy(_own_logits(core, batch), batch.labels, reduction="none").neg()
    head = core.get_output_embeddings()
    hidden = last_hidden_states(core, batch).to(head.weight.dtype)
    return token_logps(
        hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.source),
        head.weight,
        batch.labels,
        bias=getattr(head, "bias", None),
        scale=scale,
        chunk_bytes=chunk_bytes,
    )


def last_hidden_states(core: PreTrainedModel, batch: Batch) -> Tensor:
    """Hidden states [R, T, D] of the decoder in front of its head."""
    decoder = core.base_model
    return decoder(**_inputs(decoder, batch)).last_hidden_state


def _own_logits(core: PreTrainedModel, batch: Batch) -> Tensor:
    """fp32 logits [N, V] at `batch.source`, as the model's own forward gives them."""
    length = batch.input_ids.shape[1]
    columns = batch.source % length
    kept = torch.unique(columns)
    inputs = _inputs(core, batch)
    if takes(core, "logits_to_keep"):
        inputs["logits_to_keep"] = kept
    logits = core(**inputs).logits
    if logits.shape[1] != length:
        columns, length = torch.searchsorted(kept, columns), len(kept)
    places = batch.source // batch.input_ids.shape[1] * length + columns
    return logits.reshape(-1, logits.shape[-1]).index_select(0, places).float()


def _inputs(module: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the forward method of a model, or of its decoder, is called with."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, **no_cache(module)}
    if batch.blocks is not None:
        inputs |= {"position_ids": batch.position_ids, "blocks": batch.blocks}
        # transformers hands a 4-D mask through untouched; block_attention reads `blocks` instead
        inputs["attention_mask"] = torch.zeros((1, 1, 1, 1), device=batch.input_ids.device)
    return inputs


def first_line(error: Exception) -> str:
    """What another library's error says, for the user's one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"


def no_cache(module: nn.Module) -> dict[str, bool]:
    """What tells a forward method to keep no keys and values, where it can be told."""
    return {"use_cache": False} if takes(module, "use_cache") or takes(module, "**") else {}


def takes(module: nn.Module, name: str) -> bool:
    """Whether the forward method has a parameter of that name."""
    return name in _parameters(type(module).forward)


@functools.cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    """Names of the parameters of a forward method; "**" where it hands others on."""
    parameters = inspect.signature(forward).parameters.values()
    names = {parameter.name for parameter in parameters}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names.add("**")
    return frozenset(names)
