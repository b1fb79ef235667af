"""Sequence log-probabilities of K responses a prompt: tokens, shared-prefix batches, chunked vocabulary projection.

A prompt and its K responses are one block `[prompt | y1 | ... | yK]`; blocks are packed into one row without padding.
Responses see the prompt and themselves, never each other, and their positions restart at the end of the prompt, so a
prompt is computed once instead of K times. The vocabulary projection runs over response positions only, in chunks:
no [B, L, V] tensor exists.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from robustpo_kit.records import KitError

ATTENTION = "robustpo_blocks"  # the name under which transformers finds `block_attention`
CHUNK_BYTES = 32 * 2**20  # fp32 logits held at once
MATRIX_TOKENS = 512  # the longest block whose attention is computed by matrix products (CPU, half precision)
FLEX_MULTIPLE = 128  # FlexAttention's block size: rows are padded to it, on GPUs only

log = logging.getLogger(__name__)


# --- tokens -----------------------------------------------------------------------------------------------------------


class TokenRow(NamedTuple):
    """One prompt and its responses as tokens; `prompt + responses[k]` is what the model reads for response k.

    Where a tokenizer merges characters across the boundary, the merged tokens belong to the response and `skips[k]`
    leading tokens of `responses[k]` (the prompt's own, kept out of the shared prefix) are read but not scored.
    """

    row_id: str
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    skips: tuple[int, ...]

    def lengths(self) -> list[int]:
        """Scored tokens of each response."""
        return [len(response) - skip for response, skip in zip(self.responses, self.skips, strict=True)]

    def tokens(self) -> int:
        """Tokens that a shared-prefix block computes: the last token of a response is a target only."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """Token rows of a preference set with the counts of what tokenisation met."""

    rows: tuple[TokenRow, ...]
    counts: dict[str, int]
    mismatched: bool = False  # the last response of each row belongs to another prompt (KTO's KL term)

    def __len__(self) -> int:
        return len(self.rows)

    def digest(self) -> str:
        """sha256 of every token and boundary."""
        sha = hashlib.sha256()
        for row in self.rows:
            sha.update(repr(row).encode())
        return sha.hexdigest()


def tokenize(
    dataset: Any,
    tokenizer: Any,
    template: Any,
    *,
    max_length: int = 1024,
    max_response: int | None = None,
    columns: Sequence[int] | None = None,
    mismatched: bool = False,
) -> TokenTable:
    """Tokens of every row of a PreferenceSet.

    Boundary: the common token prefix of the prompt and of prompt + response. EOS: exactly once. Over-length: a response
    keeps its first `max_response` tokens (default half of `max_length`) and then ends without EOS; the prompt keeps its
    first token and its end, so that prompt + response fit `max_length`. Both are counted, nothing is dropped.
    `columns` selects responses (SFT: the golden one); `mismatched` appends the first response of the next row, the
    unrelated pair of KTO's KL term. Raises KitError naming the row of an empty prompt or response.
    """
    if tokenizer.eos_token_id is None:
        raise KitError("tokenizer: it has no EOS token; set tokenizer.eos_token so that responses can end")
    max_response = max_length // 2 if max_response is None else max_response
    if not 0 < max_response < max_length:
        raise KitError(f"max_response = {max_response} should lie between 1 and max_length - 1 = {max_length - 1}")
    counts = dict.fromkeys(("rows", "responses", "merged_boundary", "eos_present", "cut_response", "cut_prompt"), 0)
    encode = _encoder(tokenizer, special=getattr(template, "kind", "plain") != "chat")
    texts = [list(row.responses if columns is None else [row.responses[k] for k in columns]) for row in dataset]
    if mismatched:
        firsts = [responses[0] for responses in texts]
        texts = [[*responses, firsts[(i + 1) % len(firsts)]] for i, responses in enumerate(texts)]
    prompts = [template.render(row.prompt, tokenizer) for row in dataset]
    for row, responses in zip(dataset, texts, strict=True):
        _refuse_empty(row.row_id, responses)
    prompt_ids = encode(prompts)
    flat = encode([prompt + text for prompt, responses in zip(prompts, texts, strict=True) for text in responses])
    rows, cursor = [], 0
    for row, responses, ids in zip(dataset, texts, prompt_ids, strict=True):
        full = flat[cursor : cursor + len(responses)]
        cursor += len(responses)
        rows.append(_token_row(row.row_id, ids, full, tokenizer.eos_token_id, max_length, max_response, counts))
    return TokenTable(tuple(rows), counts, mismatched)


def _encoder(tokenizer: Any, special: bool) -> Any:
    """Texts -> token ids; with `special`, the tokenizer's BOS but not the EOS that some tokenizers append."""

    def encode(texts: list[str]) -> list[list[int]]:
        ids = tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        if special and tokenizer("", add_special_tokens=True)["input_ids"][-1:] and len(ids) > 0:
            appended = tokenizer("", add_special_tokens=True)["input_ids"][-1] in ends
            ids = [row[:-1] if appended and row[-1] in ends else row for row in ids]
        return ids

    return encode


def _refuse_empty(row_id: str, responses: Sequence[str]) -> None:
    for k, text in enumerate(responses):
        if not text.strip():
            raise KitError(
                f"row {row_id}: response {k} is empty; drop the row or give it text (its log-prob is undefined)"
            )


def _token_row(
    row_id: str,
    prompt: list[int],
    full: list[list[int]],
    eos: int,
    max_length: int,
    max_response: int,
    counts: dict[str, int],
) -> TokenRow:
    if not prompt:
        raise KitError(f"row {row_id}: the prompt has no token; give it text, or a template or tokenizer with a BOS")
    starts = [_common_prefix(prompt, ids) for ids in full]
    shared = min(starts)
    if shared == 0:
        raise KitError(f"row {row_id}: prompt and response share no token; use a template that separates them")
    responses = []
    for k, (ids, start) in enumerate(zip(full, starts, strict=True)):
        end = len(ids)
        while end > start and ids[end - 1] == eos:
            end -= 1
        if end == start:
            raise KitError(f"row {row_id}: response {k} is only an end-of-sequence token; drop the row or give it text")
        counts["eos_present"] += end < len(ids)
        counts["merged_boundary"] += start < len(prompt)
        scored = [*ids[start:end], eos]
        if len(scored) > max_response:
            scored = scored[:max_response]
            counts["cut_response"] += 1
        responses.append((*ids[shared:start], *scored))
    room = max_length - max(len(response) for response in responses)
    kept = prompt[:shared]
    if len(kept) > room:
        kept = [kept[0], *kept[len(kept) - max(room - 1, 0) :]] if room > 1 else kept[-1:]
        counts["cut_prompt"] += 1
    counts["rows"] += 1
    counts["responses"] += len(responses)
    return TokenRow(row_id, tuple(kept), tuple(responses), tuple(start - shared for start in starts))


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


# --- batches ----------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Where one prompt and its responses lie in a packed row, [start, stop), and the lengths of its segments."""

    start: int
    stop: int
    prompt: int
    responses: tuple[int, ...]


class Blocks:
    """The block structure of one packed row, handed down to every attention layer.

    Masks are made once a batch and window, on the device and in the dtype that attention asks for.
    """

    def __init__(self, blocks: list[Block], positions: Tensor, kernel: str = "sdpa"):
        self.blocks, self.positions, self.kernel = blocks, positions, kernel
        self.calls = 0  # attention layers that obeyed; `shared_prefix_support` counts them
        self._masks: dict[Any, Any] = {}

    def to(self, device: torch.device | str) -> "Blocks":
        """The same structure on another device."""
        return Blocks(self.blocks, self.positions.to(device), self.kernel)

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [L, L] of block `index`: 0 where a token may look, -inf elsewhere."""
        key = (index, window, dtype)
        if key not in self._masks:
            block = self.blocks[index]
            allowed = _allowed(*self._segments(block), self.positions[block.start : block.stop], window)
            self._masks[key] = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
                ~allowed, float("-inf")
            )
        return self._masks[key]

    def flex(self, window: int | None, length: int) -> Any:
        """FlexAttention BlockMask over the whole row."""
        key = ("flex", window, length)
        if key not in self._masks:
            self._masks[key] = _flex_mask(self, window, length)
        return self._masks[key]

    def _segments(self, block: Block) -> tuple[Tensor, Tensor]:
        """Segment number of each token (0 = prompt) and its index in the block."""
        sizes = torch.tensor([block.prompt, *block.responses])
        segment = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(self.positions.device)
        return segment, torch.arange(len(segment), device=self.positions.device)


def _allowed(segment: Tensor, index: Tensor, position: Tensor, window: int | None) -> Tensor:
    """[L, L] bool: row token may look at column token: an earlier one of its own segment or of the prompt."""
    own = (segment[:, None] == segment[None, :]) | (segment[None, :] == 0)
    allowed = own & (index[:, None] >= index[None, :])
    if window is not None:  # by position, which restarts with each response, and not by place in the row
        allowed &= position[:, None] - position[None, :] < window
    return allowed


def _flex_mask(blocks: Blocks, window: int | None, length: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    device = blocks.positions.device
    number = torch.full((length,), -1, device=device)
    segment = torch.zeros(length, dtype=torch.long, device=device)
    for i, block in enumerate(blocks.blocks):
        number[block.start : block.stop] = i
        segment[block.start : block.stop] = blocks._segments(block)[0]
    position = F.pad(blocks.positions, (0, length - len(blocks.positions)))

    def look(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        near = (q >= k) & (number[q] == number[k]) & ((segment[q] == segment[k]) | (segment[k] == 0))
        return near if window is None else near & (position[q] - position[k] < window)

    return create_block_mask(look, None, None, length, length, device=str(device))


@dataclasses.dataclass
class Batch:
    """Tokens of B prompts x K responses, laid out for the model, and where their log-probs are read.

    Shapes: input_ids, position_ids [R, T]; source, labels, owner [N], N = scored tokens in all; lengths, mask [B, K].
    """

    input_ids: Tensor
    position_ids: Tensor | None
    blocks: Blocks | None  # None: separate rows under the model's own causal mask
    source: Tensor  # place in the flattened [R * T] whose hidden state predicts the token
    labels: Tensor  # the token
    owner: Tensor  # b * K + k
    lengths: Tensor
    mask: Tensor  # False = a column that this prompt does not have
    rows: tuple[TokenRow, ...] = ()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        moved = {
            field.name: value.to(device) if isinstance(value, Tensor | Blocks) else value
            for field in dataclasses.fields(self)
            for value in (getattr(self, field.name),)
        }
        return Batch(**moved)


def collate(rows: Sequence[TokenRow], *, layout: str = "shared", kernel: str = "sdpa", pad: int = 0) -> Batch:
    """A batch of token rows: `layout="shared"` packs blocks into one row, "separate" pads B * K rows to the longest."""
    if not rows:
        raise ValueError("collate: no rows")
    if layout not in ("shared", "separate"):
        raise ValueError(f"layout: {layout!r} should be 'shared' or 'separate'")
    k_max = max(len(row.responses) for row in rows)
    lengths = torch.tensor([row.lengths() + [0] * (k_max - len(row.responses)) for row in rows])
    build = _shared if layout == "shared" else _separate
    ids, positions, structure, source, labels, owner = build(rows, k_max, kernel, pad)
    read = (torch.tensor(source), torch.tensor(labels), torch.tensor(owner))
    return Batch(ids, positions, structure, *read, lengths, lengths > 0, tuple(rows))


def _shared(rows: Sequence[TokenRow], k_max: int, kernel: str, pad: int) -> tuple:
    ids, positions, source, labels, owner, blocks = [], [], [], [], [], []
    for b, row in enumerate(rows):
        start, last = len(ids), len(ids) + len(row.prompt) - 1
        ids.extend(row.prompt)
        positions.extend(range(len(row.prompt)))
        for k, (response, skip) in enumerate(zip(row.responses, row.skips, strict=True)):
            here = len(ids)
            # token j of a response is predicted at token j - 1 of it, the first one at the prompt's last token
            source.extend(here + j - 1 if j else last for j in range(skip, len(response)))
            labels.extend(response[skip:])
            owner.extend([b * k_max + k] * (len(response) - skip))
            ids.extend(response[:-1])
            positions.extend(range(len(row.prompt), len(row.prompt) + len(response) - 1))
        blocks.append(Block(start, len(ids), len(row.prompt), tuple(len(r) - 1 for r in row.responses)))
    position = torch.tensor(positions)
    structure = Blocks(blocks, position, kernel)
    if kernel == "flex":
        extra = -len(ids) % FLEX_MULTIPLE
        ids.extend([pad] * extra)
        position = F.pad(position, (0, extra))
    return torch.tensor([ids]), position[None], structure, source, labels, owner


def _separate(rows: Sequence[TokenRow], k_max: int, kernel: str, pad: int) -> tuple:
    del kernel
    texts, source, labels, owner = [], [], [], []
    for row in rows:
        texts.extend(row.prompt + response[:-1] for response in row.responses)
    width = max(len(text) for text in texts)
    line = 0
    for b, row in enumerate(rows):
        for k, (response, skip) in enumerate(zip(row.responses, row.skips, strict=True)):
            first = line * width + len(row.prompt) - 1
            source.extend(range(first + skip, first + len(response)))
            labels.extend(response[skip:])
            owner.extend([b * k_max + k] * (len(response) - skip))
            line += 1
    # Padding is on the right, so that causal attention keeps it out without any mask.
    ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts])
    return ids, None, None, source, labels, owner


# --- attention --------------------------------------------------------------------------------------------------------


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
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _matrix_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention by two products of matrices: on CPUs in half precision, and for short blocks, faster than SDPA.

    Query heads that share a key head are one matrix, so that keys and values are not repeated. Costs: the probabilities
    [heads, L, L] are kept for the backward pass, and scores are rounded to the model's precision before the softmax, as
    in transformers' eager attention.
    """
    heads, length, size = k.shape[1], q.shape[2], q.shape[3]
    groups = q.shape[1] // heads
    rows = (q[0] * (size**-0.5 if scaling is None else scaling)).reshape(heads, groups * length, size)
    scores = torch.baddbmm(mask.repeat(groups, 1), rows, k[0].transpose(1, 2))
    return (torch.softmax(scores, dim=-1) @ v[0]).view(q.shape)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, softcap: float) -> Tensor:
    """Gemma-2's attention: cap * tanh(scores / cap) before the mask."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap) + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def _dense_softcap(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    if mask is None:
        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask = causal.tril(k.shape[2] - q.shape[2]) if getattr(module, "is_causal", True) else causal
    if mask.dtype == torch.bool:
        # The lowest number and not -inf: a padded query may look nowhere, and NaN would spread through its values.
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, torch.finfo(q.dtype).min)
    return _capped(q, k, v, mask, scaling, softcap).transpose(1, 2)


_compiled_flex: Any = None


def _flex(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    global _compiled_flex
    from torch.nn.attention.flex_attention import flex_attention

    if _compiled_flex is None:
        _compiled_flex = torch.compile(flex_attention, dynamic=True) if q.is_cuda else flex_attention
    cap = None if softcap is None else (lambda score, _b, _h, _q, _k: softcap * torch.tanh(score / softcap))
    mask = blocks.flex(window, q.shape[2])
    out = _compiled_flex(q, k, v, score_mod=cap, block_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


AttentionInterface.register(ATTENTION, block_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# --- log-probabilities ------------------------------------------------------------------------------------------------


class _TokenLogps(torch.autograd.Function):
    """log softmax(h W^T + b)[label] by chunks of rows, log-sum-exp in fp32.

    A frozen head (LoRA) leaves only d logp / d h = W[label] - softmax W, which the forward pass takes while it holds
    the chunk's softmax; a trained head recomputes the chunk in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, cap: float | None, rows: int
    ):
        need_h, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        logps = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if need_h and not need_w else None
        for at in range(0, len(labels), rows):
            part = slice(at, at + rows)
            logits, slope = _logits(hidden[part], weight, bias, cap, grad is not None)
            chosen = logits.gather(1, labels[part, None])
            lse = torch.logsumexp(logits, dim=1, keepdim=True)
            logps[part] = (chosen - lse)[:, 0]
            if grad is not None:
                residual = logits.sub_(lse).exp_().neg_()
                residual.scatter_add_(1, labels[part, None], torch.ones_like(chosen))
                residual = residual if slope is None else residual.mul_(slope)
                torch.mm(residual.to(weight.dtype), weight, out=grad[part])
        ctx.cap, ctx.rows, ctx.trained_head = cap, rows, need_w
        ctx.save_for_backward(*((hidden, weight, bias, labels) if need_w else (grad,)))
        return logps

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor):
        if not ctx.trained_head:
            (grad,) = ctx.saved_tensors
            return (grad * grad_out[:, None]).to(grad.dtype), None, None, None, None, None
        hidden, weight, bias, labels = ctx.saved_tensors
        grad_h = torch.empty_like(hidden)
        grad_w = torch.zeros_like(weight, dtype=torch.float32)
        grad_b = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for at in range(0, len(labels), ctx.rows):
            part = slice(at, at + ctx.rows)
            logits, slope = _logits(hidden[part], weight, bias, ctx.cap, True)
            residual = torch.softmax(logits, dim=1).neg_()
            residual.scatter_add_(1, labels[part, None], torch.ones_like(logits[:, :1]))
            residual.mul_(grad_out[part, None])
            residual = residual if slope is None else residual.mul_(slope)
            grad_h[part] = residual.to(weight.dtype) @ weight
            grad_w += residual.T @ hidden[part].float()
            if grad_b is not None:
                grad_b += residual.sum(0)
        return grad_h, grad_w.to(weight.dtype), None if grad_b is None else grad_b.to(bias.dtype), None, None, None


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, need_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """fp32 logits [n, V] and, where they are soft-capped, the slope d capped / d raw."""
    logits = F.linear(hidden, weight, bias).float()
    if cap is None:
        return logits, None
    bent = torch.tanh(logits / cap)
    return bent * cap, (1 - bent * bent) if need_slope else None


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Log-probability [N] (fp32, nats) of `labels` [N] given hidden states [N, D] and the head's weight [V, D]."""
    rows = max(8, chunk_bytes // (4 * weight.shape[0]))
    return _TokenLogps.apply(hidden, weight, bias, labels, softcap, rows)


def sequence_logps(model: nn.Module, batch: Batch, *, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Summed response log-probabilities [B, K] in nats, fp32; absent columns are 0.

    `model` is a transformers causal language model, with or without peft adapters, on the batch's device. A shared
    batch needs `use_block_attention(model)` once before.
    """
    core = unwrap(model)
    decoder, head = core.base_model, core.get_output_embeddings()
    if batch.blocks is None:
        hidden = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    else:
        # A 4-D mask is handed through untouched by transformers; block_attention reads `blocks` in its place.
        placeholder = torch.zeros((1, 1, 1, 1), device=batch.input_ids.device)
        hidden = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=placeholder,
            use_cache=False,
            blocks=batch.blocks,
        ).last_hidden_state
    flat = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.source)
    logps = token_logps(
        flat,
        head.weight,
        batch.labels,
        bias=getattr(head, "bias", None),
        softcap=getattr(core.config, "final_logit_softcapping", None),
        chunk_bytes=chunk_bytes,
    )
    out = torch.zeros(batch.lengths.numel(), dtype=torch.float32, device=logps.device)
    return out.index_add(0, batch.owner, logps).view(batch.lengths.shape)


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def use_block_attention(model: nn.Module) -> bool:
    """Route the model's attention through `block_attention`; False, logged once, where the architecture cannot.

    The check is a probe of a few tokens: every layer must have been called with the blocks, and positions accepted.
    """
    core = unwrap(model)
    if core.config._attn_implementation == ATTENTION:
        return True
    before = core.config._attn_implementation
    problem = _probe(core)
    if problem:
        core.set_attn_implementation(before)
        log.warning("%s: %s; prompts are computed once a response instead", type(core).__name__, problem)
        return False
    return True


def _probe(core: nn.Module) -> str:
    """Why the architecture cannot share a prefix, or an empty string."""
    kinds = set(getattr(core.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"layers of kind {', '.join(sorted(kinds))} do not take block masks"
    try:
        core.set_attn_implementation(ATTENTION)
        batch = collate([TokenRow("probe", (1, 2), ((1, 2), (2, 1)), (0, 0))]).to(next(core.parameters()).device)
        training = core.training
        with torch.no_grad():
            core.eval()
            sequence_logps(core, batch)
            core.train(training)
    except (TypeError, ValueError, AttributeError, NotImplementedError, KeyError) as error:
        return f"shared prefixes are not supported ({type(error).__name__}: {str(error)[:80]})"
    if batch.blocks.calls != core.config.num_hidden_layers:
        return f"{batch.blocks.calls} of {core.config.num_hidden_layers} layers take block masks"
    return ""
