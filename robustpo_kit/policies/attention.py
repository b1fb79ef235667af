"""Attention of packed rows: responses see the prompt and themselves, never each other."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from robustpo_kit.policies.batches import Blocks

ATTENTION = "robustpo_blocks"  # the name under which transformers finds `block_attention`


MATRIX_TOKENS = (
    512  # the longest block whose attention is computed by matrix products (CPU, half precision)
)


log = logging.getLogger(__name__)


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
    """Attention inside each block of a packed row; without `blocks` it is the model's usual attention.

    query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D]. `sliding_window` is intersected by position.
    """
    if blocks is None:
        if softcap is not None:
            return _dense_softcap(module, query, key, value, attention_mask, scaling, softcap), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("s_aux") is None and kwargs.get("position_bias") is None:
        blocks.calls += 1
    if blocks.kernel == "flex":
        return _flex(query, key, value, blocks, scaling, sliding_window, softcap), None
    groups = query.shape[1] // key.shape[1]
    parts = []
    for i, block in enumerate(blocks.blocks):
        q, k, v = (x[:, :, block.start : block.stop] for x in (query, key, value))
        length = block.stop - block.start
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        mask = blocks.mask(i, window, q.dtype)
        half_on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
        if half_on_cpu and length <= MATRIX_TOKENS and softcap is None and not dropout:
            parts.append(_matrix_attention(q, k, v, mask, scaling))
            continue
        k, v = repeat_kv(k, groups), repeat_kv(v, groups)
        if softcap is not None:
            parts.append(_capped(q, k, v, mask, scaling, softcap))
        else:
            parts.append(
                F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling
                )
            )
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _matrix_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Attention by two products of matrices: on CPUs in half precision, and for short blocks, faster than SDPA.

    Query heads that share a key head are one matrix, so that keys and values are not repeated. Costs: the probabilities
    [heads, L, L] are kept for the backward pass, and scores are rounded to the model's precision before the softmax, as
    in transformers' eager attention.
    """
    heads, length, size = k.shape[1], q.shape[2], q.shape[3]
    groups = q.shape[1] // heads
    rows = (q[0] * (size**-0.5 if scaling is None else scaling)).reshape(
        heads, groups * length, size
    )
    scores = torch.baddbmm(mask.repeat(groups, 1), rows, k[0].transpose(1, 2))
    return (torch.softmax(scores, dim=-1) @ v[0]).view(q.shape)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, softcap: float
) -> Tensor:
    """Gemma-2's attention: cap * tanh(scores / cap) before the mask."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
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
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    if mask is None:
        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask = (
            causal.tril(k.shape[2] - q.shape[2]) if getattr(module, "is_causal", True) else causal
        )
    if mask.dtype == torch.bool:
        # The lowest number and not -inf: a padded query may look nowhere, and NaN would spread through its values.
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(
            ~mask, torch.finfo(q.dtype).min
        )
    return _capped(q, k, v, mask, scaling, softcap).transpose(1, 2)


_compiled_flex: Any = None


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Blocks,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    global _compiled_flex
    from torch.nn.attention.flex_attention import flex_attention

    if _compiled_flex is None:
        _compiled_flex = (
            torch.compile(flex_attention, dynamic=True) if q.is_cuda else flex_attention
        )
    cap = (
        None
        if softcap is None
        else (lambda score, _b, _h, _q, _k: softcap * torch.tanh(score / softcap))
    )
    mask = blocks.flex(window, q.shape[2])
    out = _compiled_flex(
        q, k, v, score_mod=cap, block_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


AttentionInterface.register(ATTENTION, block_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
