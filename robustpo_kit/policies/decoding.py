"""Decoding: many replies at once, from a cache that is reserved once and shrinks as rows finish.

The tokens that all prompts begin with are computed once, a prompt's own once for all its samples,
and a row that has ended is computed no more. The next-token distribution is that of transformers'
processors: repetition penalty, temperature, top-k, top-p, in this order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

TIE_ROOM = (
    14  # candidates beyond top-k: half precision has ties at the k-th place, and all of them stay
)


@dataclass(frozen=True)
class SamplingConfig:
    """Decoding of the papers (DoRA App. C.1, C.3)."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    max_new_tokens: int = 48
    batch_size: int = 64  # prompts a batch
    samples: int = 1  # replies a prompt


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, in memory reserved once instead of a larger copy a token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0
        self.buffers: list[Tensor] = []  # keys and values, [B, heads, room, width]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write new tokens behind those that are there; returns views of all keys and values."""
        new = (key_states, value_states)
        if not self.buffers:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.buffers = [s.new_empty(*s.shape[:2], self.room, s.shape[3]) for s in new]
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[2]
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[:, :, start : self.length] = states
        return self._show()

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` [n] alone, each as often as it is named."""
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values


def decodes(model: nn.Module) -> bool:
    """Whether every layer of `model` keeps all its keys and values: a reserved cache serves it."""
    layers = DynamicCache(config=cast(Any, model).config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def next_tokens(logits: Tensor, seen: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Candidates [B, C] for the next token, most likely first, and their probabilities [B, C].

    `logits` [B, V] in nats, `seen` [B, V] bool: tokens of the prompt and of the reply so far. The
    probabilities are those of the whole vocabulary under repetition penalty, temperature, top-k and
    top-p; all others are 0.
    """
    penalised = torch.where(
        logits < 0, logits * config.repetition_penalty, logits / config.repetition_penalty
    )
    scores = torch.where(seen, penalised, logits.float()) / config.temperature
    vocabulary = scores.shape[-1]
    k = min(config.top_k or vocabulary, vocabulary)
    top, candidates = scores.topk(min(k + TIE_ROOM, vocabulary), dim=-1)
    last = top[:, k - 1 : k]
    if top.shape[-1] < vocabulary and bool((top[:, -1:] == last).any()):  # more ties than room
        top, candidates = scores.sort(dim=-1, descending=True)
    probabilities = torch.softmax(top.masked_fill(top < last, float("-inf")), dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = torch.where(before < config.top_p, probabilities, 0.0)
    return candidates, kept / kept.sum(dim=-1, keepdim=True)


@torch.inference_mode()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    ends: frozenset[int],
    pad: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """Tokens of `config.samples` replies a prompt, [N x samples]; one that ended has its end token.

    `model` must be one that `decodes`; `generator` lies on its device.
    """
    rows = _Rows(model, prompts, config, pad)
    logits = rows.prefill()
    replies: list[list[int]] = [[] for _ in range(len(prompts) * config.samples)]
    for step in range(config.max_new_tokens):
        candidates, probabilities = next_tokens(logits, rows.seen, config)
        choice = torch.multinomial(probabilities, 1, generator=generator)
        tokens = candidates.gather(1, choice)[:, 0]
        listed = tokens.tolist()
        for place, token in zip(rows.places, listed, strict=True):
            replies[place].append(token)
        going = [i for i, token in enumerate(listed) if token not in ends]
        if not going or step + 1 == config.max_new_tokens:
            break
        if len(going) < len(listed):
            tokens = tokens[going]
            rows.keep(going)
        logits = rows.step(tokens)
    return replies


class _Rows:
    """The rows that are still going: their cache, mask, positions and the tokens each has seen."""

    def __init__(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], config: SamplingConfig, pad: int
    ) -> None:
        self.model, self.samples = cast(Any, model), config.samples
        self.device = next(model.parameters()).device
        ids, mask = left_padded(prompts, pad)
        self.seen = torch.zeros(
            len(prompts), self.model.get_output_embeddings().weight.shape[0], dtype=torch.bool
        )
        for row, prompt in enumerate(prompts):
            self.seen[row, list(prompt)] = True
        self.ids, self.mask, self.seen = (t.to(self.device) for t in (ids, mask, self.seen))
        self.shared = _shared_prefix(prompts)
        self.first = prompts[0][: self.shared]
        self.cache = DynamicCache(config=self.model.config)
        room = ids.shape[1] + config.max_new_tokens
        self.layers = [ReservedLayer(room) for _ in self.cache.layers]
        self.cache.layers = list(self.layers)
        self.places = list(range(len(prompts) * config.samples))

    def prefill(self) -> Tensor:
        """Logits [B, V] after the prompts; what all prompts begin with is computed once."""
        count, width = self.ids.shape
        ids, mask = self.ids, self.mask
        if self.shared:
            start = DynamicCache(config=self.model.config)
            prefix = torch.tensor([list(self.first)], device=self.device)
            self.model(input_ids=prefix, past_key_values=start, use_cache=True, logits_to_keep=1)
            for layer, source in zip(self.layers, cast(list[Any], start.layers), strict=True):
                layer.update(*(s.expand(count, -1, -1, -1) for s in (source.keys, source.values)))
            # the prefix moves in front of the padding
            padding = width - mask.sum(1, keepdim=True)
            place = torch.arange(width, device=self.device)[None]
            mask = ((place < self.shared) | (place >= self.shared + padding)).long()
            ids = ids[:, self.shared :]
            inside = place[:, self.shared :] >= self.shared + padding
            ids = torch.where(inside, ids, ids.new_zeros(()))
        self.mask = mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, self.shared :]
        logits = self._forward(ids, positions)
        if self.samples > 1:
            self.keep([row for row in range(count) for _ in range(self.samples)])
            self.places = list(range(count * self.samples))
            logits = logits.repeat_interleave(self.samples, dim=0)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] of every row."""
        self.seen[torch.arange(len(tokens), device=self.device), tokens] = True
        positions = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(tokens[:, None], positions)

    def keep(self, rows: list[int]) -> None:
        """Go on with `rows` alone."""
        index = torch.tensor(rows, device=self.device)
        self.mask, self.seen = self.mask[index], self.seen[index]
        self.places = [self.places[row] for row in rows]
        for layer in self.layers:
            layer.batch_select_indices(index)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids [N, T] and mask [N, T] of prompts, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; each keeps at least one of its own. 0 for one prompt."""
    if len(prompts) < 2:
        return 0
    most = min(map(len, prompts)) - 1
    first = prompts[0]
    count = 0
    while count < most and all(prompt[count] == first[count] for prompt in prompts):
        count += 1
    return count
