"""Attention of packed rows: responses see the prompt and themselves, never each other."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from robustpo_kit.policies.batches import Blocks

ATTENTION = "robustpo_blocks"  # the name under which transformers finds `block_attention`
MATRIX_TOKENS = 512  # the longest block computed by matrix products (CPU, half precision)


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside each block of a packed row; without `blocks` the model's usual attention.

    Args:
        module: the attention layer.
        query: [1, H, T, D].
        key: [1, Hkv, T, D].
        value: [1, Hkv, T, D].
        attention_mask: of the usual attention; blocks bring their own.
        dropout: probability that an attention weight is dropped.
        scaling: of the scores; default: D ** -0.5.
        sliding_window: positions that a token looks back, itself included.
        softcap: scores are softcap * tanh(scores / softcap), as in Gemma-2.
        blocks: the structure of the row.
        **kwargs: what transformers hands to any attention.

    Returns:
        [1, T, H, D], and None in the place of attention weights.
    """
    if blocks is None:
        if softcap is not None:
            return _dense_softcap(module, query, key, value, attention_mask, scaling, softcap), None
        if _one_token_on_cpu(query, dropout, kwargs):
            return _one_token(query, key, value, attention_mask, scaling), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("s_aux") is None and kwargs.get("position_bias") is None:
        blocks.calls += 1
    if blocks.kernel == "flex":
        return _flex(query, key, value, blocks, scaling, sliding_window, softcap), None
    parts = []
    for i, block in enumerate(blocks.blocks):
        window = None
        if sliding_window is not None and sliding_window < block.stop - block.start:
            window = sliding_window
        q, k, v = (x[:, :, block.start : block.stop] for x in (query, key, value))
        mask = blocks.mask(i, window, q.dtype)
        matrices_fit = blocks.kernel == "sdpa" and q.shape[2] <= MATRIX_TOKENS
        parts.append(_one_block(q, k, v, mask, dropout, scaling, softcap, matrices_fit))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _one_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    matrices_fit: bool,
) -> Tensor:
    """Attention [1, H, L, D] of one block under its additive mask [L, L], by the fastest way."""
    half_on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    if half_on_cpu and matrices_fit and softcap is None and not dropout:
        return _matrix_attention(q, k, v, mask, scaling)
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    if softcap is not None:
        return _capped(q, k, v, mask, scaling, softcap)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)


def _scale(q: Tensor, scaling: float | None) -> float:
    if scaling is None:
        return q.shape[-1] ** -0.5
    return scaling


def _one_token_on_cpu(query: Tensor, dropout: float, rest: dict[str, Any]) -> bool:
    """Whether a decoding step in half precision on a CPU may be taken by `_one_token`."""
    half_on_cpu = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)
    plain = not dropout and rest.get("s_aux") is None and rest.get("position_bias") is None
    return query.shape[2] == 1 and half_on_cpu and plain


def _one_token(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention [B, 1, H, D] of one new token [B, H, 1, D] by batched products: SDPA is slow there.

    Query heads that share a key head are one matrix; softmax in fp32.
    """
    batch, heads, _, size = q.shape
    shared = k.shape[1]
    rows = q.view(batch, shared, heads // shared, size)
    scores = (rows @ k.transpose(2, 3)).float() * _scale(q, scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    return (weights @ v).view(batch, 1, heads, size)


def _matrix_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Attention by two products of matrices: on CPUs in half precision faster than SDPA.

    Query heads that share a key head are one matrix, so that keys and values are not repeated.
    Costs: the probabilities [heads, L, L] are kept for the backward pass, and scores are rounded to
    the model's precision before the softmax, as in transformers' eager attention.
    """
    heads, length, size = k.shape[1], q.shape[2], q.shape[3]
    groups = q.shape[1] // heads
    rows = (q[0] * _scale(q, scaling)).reshape(heads, groups * length, size)
    scores = torch.baddbmm(mask.repeat(groups, 1), rows, k[0].transpose(1, 2))
    return (torch.softmax(scores, dim=-1) @ v[0]).view(q.shape)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, softcap: float
) -> Tensor:
    """Gemma-2's attention: cap * tanh(scores / cap) before the mask."""
    scores = q @ k.transpose(-1, -2) * _scale(q, scaling)
    scores = softcap * torch.tanh(scores / softcap) + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def _dense_softcap(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Gemma-2's attention without blocks, for sampling: SDPA knows no softcap."""
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        if getattr(module, "is_causal", True):
            mask = mask.tril(k.shape[2] - q.shape[2])
    if mask.dtype == torch.bool:
        # the lowest number and not -inf: a padded query may look nowhere, and NaN would spread
        lowest = torch.finfo(q.dtype).min
        additive = torch.zeros(mask.shape, dtype=q.dtype, device=q.device)
        mask = additive.masked_fill_(~mask, lowest)
    return _capped(q, k, v, mask, scaling, softcap).transpose(1, 2)


@functools.cache
def _flex_attention(device_type: str) -> Callable[..., Any]:
    """FlexAttention, compiled once a process where there is a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    if device_type == "cuda":
        return torch.compile(flex_attention, dynamic=True)
    return flex_attention


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Blocks,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    cap = None
    if softcap is not None:

        def cap(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

    attend = _flex_attention(q.device.type)
    mask = blocks.flex(window, q.shape[2])
    grouped = q.shape[1] != k.shape[1]
    out = attend(q, k, v, score_mod=cap, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2)


AttentionInterface.register(ATTENTION, block_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
