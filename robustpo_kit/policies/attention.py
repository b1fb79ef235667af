"""Attention of packed rows: responses see the prompt and themselves, never each other."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from robustpo_kit.errors import KitError
from robustpo_kit.policies.blocks import Blocks

ATTENTION = "robustpo_blocks"  # the name under which transformers finds `block_attention`
MATRIX_TOKENS = 512  # the longest block computed by matrix products (CPU, half precision)


class Terms(NamedTuple):
    """What an architecture asks of its attention besides queries, keys and values."""

    scaling: float | None = None  # of the scores; default: D ** -0.5
    dropout: float = 0.0  # probability that an attention weight is dropped
    softcap: float | None = None  # scores are softcap * tanh(scores / softcap), as in Gemma-2
    sinks: Tensor | None = None  # [H] a score that takes its share of each softmax, as in GPT-OSS

    @property
    def usual(self) -> bool:
        """Whether SDPA knows all of it."""
        return self.softcap is None and self.sinks is None

    def scale(self, q: Tensor) -> float:
        """The factor of the scores of queries [..., D]."""
        return q.shape[-1] ** -0.5 if self.scaling is None else self.scaling


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
    s_aux: Tensor | None = None,
    blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside each block of a packed row; without `blocks` the model's usual attention.

    Args:
        module: the attention layer.
        query: [1, H, T, D].
        key: [1, Hkv, T, D].
        value: [1, Hkv, T, Dv]; Dv is another width in latent attention (DeepSeek).
        attention_mask: of the usual attention; blocks bring their own.
        dropout, scaling, softcap, s_aux: as in `Terms`; s_aux are the sinks.
        sliding_window: positions that a token looks back, itself included.
        blocks: the structure of the row.
        **kwargs: what transformers hands to any attention.

    Returns:
        [1, T, H, Dv], and None in the place of attention weights.

    Raises:
        KitError: for what FlexAttention does not have, or a bias by position.
    """
    terms = Terms(scaling, dropout, softcap, s_aux)
    if blocks is None:
        return _without_blocks(module, query, key, value, attention_mask, terms, kwargs), None
    if kwargs.get("position_bias") is not None:
        raise KitError("layout 'shared': attention with a bias by position has no blocks")
    blocks.beyond_flex |= bool(dropout) or s_aux is not None
    if blocks.kernel == "flex":
        return _flex(query, key, value, blocks, terms, sliding_window), None
    parts = []
    for i, block in enumerate(blocks.blocks):
        window = None
        if sliding_window is not None and sliding_window < block.stop - block.start:
            window = sliding_window
        q, k, v = (x[:, :, block.start : block.stop] for x in (query, key, value))
        mask = blocks.mask(i, window, q.dtype)
        matrices_fit = blocks.kernel == "sdpa" and q.shape[2] <= MATRIX_TOKENS
        parts.append(_one_block(q, k, v, mask, terms, matrices_fit))
    # contiguous, as SDPA's: some architectures take a view of it
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _without_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    terms: Terms,
    rest: dict[str, Any],
) -> Tensor:
    """Attention [B, T, H, Dv] of plain rows, as in sampling."""
    if not terms.usual:
        return _dense(module, query, key, value, mask, terms)
    if _one_token_on_cpu(query, terms.dropout, rest):
        return _one_token(query, key, value, mask, terms)
    dropout, scaling = terms.dropout, terms.scaling
    return sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **rest
    )[0]


def _one_block(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, terms: Terms, matrices_fit: bool
) -> Tensor:
    """Attention [1, H, L, Dv] of one block under its additive mask [L, L], by the fastest way."""
    half_on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    if half_on_cpu and matrices_fit and terms.usual and not terms.dropout:
        return _matrix_attention(q, k, v, mask, terms)
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    if not terms.usual:
        return _explicit(q, k, v, mask, terms)
    dropout, scaling = terms.dropout, terms.scaling
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)


def _one_token_on_cpu(query: Tensor, dropout: float, rest: dict[str, Any]) -> bool:
    """Whether a decoding step in half precision on a CPU may be taken by `_one_token`."""
    half_on_cpu = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)
    plain = not dropout and rest.get("position_bias") is None
    return query.shape[2] == 1 and half_on_cpu and plain


def _one_token(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, terms: Terms) -> Tensor:
    """Attention [B, 1, H, Dv] of one new token [B, H, 1, D] by batched products; SDPA is slow here.

    Query heads that share a key head are one matrix; softmax in fp32.
    """
    batch, heads, _, size = q.shape
    shared = k.shape[1]
    rows = q.view(batch, shared, heads // shared, size)
    scores = (rows @ k.transpose(2, 3)).float() * terms.scale(q)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    return (weights @ v).view(batch, 1, heads, v.shape[3])


def _matrix_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, terms: Terms) -> Tensor:
    """Attention by two products of matrices: on CPUs in half precision faster than SDPA.

    Query heads that share a key head are one matrix, so that keys and values are not repeated.
    Costs: the probabilities [heads, L, L] are kept for the backward pass, and scores are rounded to
    the model's precision before the softmax, as in transformers' eager attention.
    """
    heads, length, size = k.shape[1], q.shape[2], q.shape[3]
    groups = q.shape[1] // heads
    rows = (q[0] * terms.scale(q)).reshape(heads, groups * length, size)
    scores = torch.baddbmm(mask.repeat(groups, 1), rows, k[0].transpose(1, 2))
    return (torch.softmax(scores, dim=-1) @ v[0]).view(*q.shape[:3], v.shape[3])


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, terms: Terms) -> Tensor:
    """Attention [B, H, L, Dv] written out under an additive mask: SDPA knows neither cap nor sinks.

    A cap bends scores before the mask; a sink is one more score in the softmax, without a value.
    """
    scores = q @ k.transpose(-1, -2) * terms.scale(q)
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    scores = scores + mask
    if terms.sinks is not None:
        sinks = terms.sinks.to(scores.dtype).view(1, -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    if terms.dropout:
        weights = F.dropout(weights[..., : k.shape[2]], terms.dropout)
    return weights[..., : k.shape[2]] @ v


def _dense(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, terms: Terms
) -> Tensor:
    """`_explicit` [B, L, H, Dv] without blocks, for separate rows and sampling."""
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
    return _explicit(q, k, v, mask, terms).transpose(1, 2).contiguous()


@functools.cache
def _flex_attention(device_type: str) -> Callable[..., Any]:
    """FlexAttention, compiled once a process where there is a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    if device_type == "cuda":
        return torch.compile(flex_attention, dynamic=True)
    return flex_attention


def _flex(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, terms: Terms, window: int | None
) -> Tensor:
    """Attention [1, T, H, Dv] of the whole row by FlexAttention."""
    if blocks.beyond_flex:
        raise KitError(
            "kernel 'flex': it has no attention dropout and no sinks, and a layer asks for them; "
            "choose kernel 'sdpa'"
        )
    cap = None
    if terms.softcap is not None:
        softcap = terms.softcap

        def cap(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

    attend = _flex_attention(q.device.type)
    mask = blocks.flex(window, q.shape[2])
    grouped = q.shape[1] != k.shape[1]
    scaling = terms.scaling
    out = attend(q, k, v, score_mod=cap, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, block_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
