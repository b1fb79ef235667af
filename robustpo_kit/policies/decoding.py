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

from robustpo_kit.errors import KitError

TIE_ROOM = 14  # candidates beyond top-k: half precision has ties there, and all of them stay
PREFILL_ROWS = 25  # prompts read together


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

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (self.temperature > 0, "above 0 (top_k=1 takes the likeliest token)"),
            "top_k": (self.top_k >= 0, "at least 0 (0: all tokens)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1: all tokens)"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1: none)"),
        }
        for count in ("max_new_tokens", "batch_size", "samples"):
            allowed[count] = (getattr(self, count) >= 1, "at least 1")
        for field, (good, rule) in allowed.items():
            if not good:
                raise KitError(f"{field} = {getattr(self, field)}: it should be {rule}")


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, in memory that is reserved once and never allocated again.

    One new token sees the whole reservation, whose empty end the mask hides: products of matrices
    would copy a part of it. Rows that are kept move together in place.
    """

    def __init__(self, rows: int, room: int) -> None:
        super().__init__()
        self.rows, self.room, self.length = rows, room, 0
        self.buffers: list[Tensor] = []  # keys and values, [B, heads, room, width]

    def place(self, rows: list[int], states: Sequence[Tensor], prefix: int, end: int) -> None:
        """Write what the prompts of `rows` gave: the prefix first, the rest before column `end`.

        Args:
            rows: n of the B rows.
            states: keys and values [n, heads, prefix + T, width].
            prefix: tokens that all prompts begin with.
            end: columns that prompts take with their padding.
        """
        if not self.buffers:
            self.dtype, self.device, self.is_initialized = states[0].dtype, states[0].device, True
            # zeros: what the mask hides has weight 0, and 0 times NaN would be NaN
            shapes = [(self.rows, part.shape[1], self.room, part.shape[3]) for part in states]
            self.buffers = [states[0].new_zeros(shape) for shape in shapes]
        for buffer, part in zip(self.buffers, states, strict=True):
            own = part[:, :, prefix:]
            buffer[rows, :, :prefix] = part[:, :, :prefix]
            buffer[rows, :, end - own.shape[2] : end] = own
        self.length = end

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write one new token of every row behind the others; returns all keys and values."""
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : self.length + 1] = states
        self.length += 1
        self.keys, self.values = self.buffers
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a new token is shown, and where those begin."""
        return self.room, 0

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` [n] alone, each as often as it is named."""
        kept = []
        for buffer in self.buffers:
            rows = buffer[indices]
            if len(rows) <= len(buffer):
                buffer = buffer[: len(rows)]
                rows = buffer.copy_(rows)
            kept.append(rows)
        self.buffers = kept


def decodes(model: nn.Module) -> bool:
    """Whether every layer of `model` keeps all its keys and values: a reserved cache serves it."""
    layers = DynamicCache(config=cast(Any, model).config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def next_tokens(logits: Tensor, seen: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Candidates [B, C] for the next token, most likely first, and their probabilities [B, C].

    `logits` [B, V] in nats, `seen` [B, S]: tokens of the prompt and of the reply so far, some more
    than once. The probabilities are those of the whole vocabulary under repetition penalty,
    temperature, top-k and top-p; all others are 0.
    """
    said = logits.gather(1, seen).float()
    penalty = config.repetition_penalty
    penalised = torch.where(said < 0, said * penalty, said / penalty)
    scores = logits.to(torch.float32, copy=True).scatter_(1, seen, penalised)
    vocabulary = scores.shape[-1]
    k = min(config.top_k or vocabulary, vocabulary)
    top, candidates = scores.topk(min(k + TIE_ROOM, vocabulary), dim=-1)
    last = top[:, k - 1 : k]
    if top.shape[-1] < vocabulary and bool((top[:, -1:] == last).any()):  # more ties than room
        top, candidates = scores.sort(dim=-1, descending=True)
    top = top.masked_fill(top < last, float("-inf")) / config.temperature
    probabilities = torch.softmax(top, dim=-1)
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
        self.model, self.samples, self.pad = cast(Any, model), config.samples, pad
        self.device = next(model.parameters()).device
        self.prompts, self.shared = prompts, _shared_prefix(prompts)
        ids, mask = (tensor.to(self.device) for tensor in left_padded(prompts, pad))
        own, self.mask = self._own(range(len(prompts)))
        # padding names a token that is there
        self.seen = torch.where(mask.bool(), ids, ids[:, -1:])
        self.width = self.shared + own.shape[1]
        self.cache = DynamicCache(config=self.model.config)
        room = self.width + config.max_new_tokens
        self.layers = [ReservedLayer(len(prompts), room) for _ in self.cache.layers]
        self.cache.layers = list(self.layers)
        self.places = list(range(len(prompts) * config.samples))

    def prefill(self) -> Tensor:
        """Logits [B, V] after the prompts; what all prompts begin with is computed once.

        Prompts of like lengths are read together, so that little is computed for padding.
        """
        count = len(self.prompts)
        order = sorted(range(count), key=lambda row: len(self.prompts[row]))
        prefix = DynamicCache(config=self.model.config)
        if self.shared:
            start = torch.tensor([list(self.prompts[0][: self.shared])], device=self.device)
            self._forward(start, torch.ones_like(start), prefix)
        logits = []
        for place in range(0, count, PREFILL_ROWS):
            logits.append(self._read(order[place : place + PREFILL_ROWS], prefix))
        last = torch.cat(logits)[torch.tensor(order, device=self.device).argsort()]
        if self.samples > 1:
            self.keep([row for row in range(count) for _ in range(self.samples)])
            self.places = list(range(count * self.samples))
            last = last.repeat_interleave(self.samples, dim=0)
        return last

    def _read(self, rows: list[int], prefix: DynamicCache) -> Tensor:
        """Logits [n, V] after the prompts of `rows`, whose keys and values go into the cache."""
        ids, mask = self._own(rows)
        cache = DynamicCache(config=self.model.config)
        if self.shared:
            for layer, source in zip(_layers(cache), _layers(prefix), strict=True):
                both = (source.keys, source.values)
                layer.update(*(states.expand(len(rows), -1, -1, -1) for states in both))
        logits = self._forward(ids, mask, cache)
        for reserved, filled in zip(self.layers, _layers(cache), strict=True):
            reserved.place(rows, (filled.keys, filled.values), self.shared, self.width)
        return logits

    def _own(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What rows have behind the prefix, left-padded [n, T]; the mask with it [n, P+T]."""
        ids, mask = left_padded([self.prompts[row][self.shared :] for row in rows], self.pad)
        mask = torch.cat([mask.new_ones(len(rows), self.shared), mask], dim=1)
        return ids.to(self.device), mask.to(self.device)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] of every row."""
        self.seen = torch.cat([self.seen, tokens[:, None]], dim=1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(tokens[:, None], self.mask, self.cache)

    def keep(self, rows: list[int]) -> None:
        """Go on with `rows` alone."""
        index = torch.tensor(rows, device=self.device)
        self.mask, self.seen = self.mask[index], self.seen[index]
        self.places = [self.places[row] for row in rows]
        for layer in self.layers:
            layer.batch_select_indices(index)

    def _forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Logits [n, V] after the tokens `ids` [n, T]; `mask` [n, L] tells of those before, too."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # an index gives a matrix, -1 a view with gaps, for which a frozen head is copied once a row
        last = torch.tensor([ids.shape[1] - 1], device=self.device)
        kept = {"past_key_values": cache, "use_cache": True, "logits_to_keep": last}
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, **kept)
        return out.logits[:, -1]


def _layers(cache: DynamicCache) -> list[Any]:
    return cast(list[Any], cache.layers)


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
