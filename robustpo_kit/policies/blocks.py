"""The blocks of a packed row: what each of its tokens looks at, as masks for every kernel."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TILE = 128  # FlexAttention's block size: rows are padded to it


class Block(NamedTuple):
    """Where one prompt and its responses lie in a packed row, [start, stop), and their lengths."""

    start: int
    stop: int
    prompt: int
    responses: tuple[int, ...]


class Sight(NamedTuple):
    """What each of the T tokens of a row looks at, two runs of places; all [T].

    A response looks at its prompt and at itself so far, a prompt at itself so far alone.
    """

    prompt_start: Tensor
    prompt_stop: Tensor
    own_start: Tensor  # up to the token itself

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the tokens at `query` look at those at `key`, shaped as both broadcast."""
        prompt = (key >= self.prompt_start[query]) & (key < self.prompt_stop[query])
        return prompt | (key >= self.own_start[query]) & (key <= query)


class Blocks:
    """The block structure of one packed row, handed down to every attention layer.

    Masks are made once a batch and window, on the device and in the dtype that attention asks for.
    """

    def __init__(self, blocks: list[Block], positions: Tensor, kernel: str = "sdpa"):
        self.blocks, self.positions, self.kernel = blocks, positions, kernel
        self.beyond_flex = False  # a layer asked for what FlexAttention does not have
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}
        self._flex_masks: dict[tuple[int | None, int], BlockMask] = {}

    def to(self, device: torch.device | str) -> "Blocks":
        """The same structure on another device."""
        return Blocks(self.blocks, self.positions.to(device), self.kernel)

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [L, L] of block `index`: 0 where a token may look, -inf elsewhere."""
        key = (index, window, dtype)
        if key not in self._masks:
            block = self.blocks[index]
            alone = Block(0, block.stop - block.start, block.prompt, block.responses)
            sight = _sight([alone], self.positions[block.start : block.stop], window)
            place = torch.arange(alone.stop, device=self.positions.device)
            forbidden = ~sight.allows(place[:, None], place[None, :])
            mask = torch.zeros(forbidden.shape, dtype=dtype, device=forbidden.device)
            self._masks[key] = mask.masked_fill_(forbidden, float("-inf"))
        return self._masks[key]

    def flex(self, window: int | None, length: int) -> "BlockMask":
        """FlexAttention's mask over the whole row of `length` tokens, padding included."""
        key = (window, length)
        if key not in self._flex_masks:
            positions = F.pad(self.positions, (0, length - len(self.positions)))
            self._flex_masks[key] = flex_mask(_sight(self.blocks, positions, window))
        return self._flex_masks[key]


def _sight(blocks: list[Block], positions: Tensor, window: int | None) -> Sight:
    """What T tokens at `positions` [T] look at; padding behind the blocks is one segment more.

    Positions restart with each response, so that a window of W tokens counts from the end of the
    prompt for each of them.
    """
    sizes, starts, end = [], [], 0
    for block in blocks:
        end = block.start + block.prompt
        sizes += [block.prompt, *block.responses]
        starts.append((0, 0, block.start))
        for size in block.responses:
            starts.append((block.start, block.start + block.prompt, end))
            end += size
    sizes.append(len(positions) - end)
    starts.append((0, 0, end))
    of_segments = torch.tensor(starts).repeat_interleave(torch.tensor(sizes), dim=0)
    prompt_start, prompt_stop, own_start = of_segments.to(positions.device).unbind(1)
    if window is not None:
        place = torch.arange(len(positions), device=positions.device)
        prompt_start = prompt_start + (positions - window + 1).clamp_min(0)
        own_start = torch.maximum(own_start, place - window + 1)
    return Sight(prompt_start, prompt_stop, own_start)


def flex_mask(sight: Sight) -> "BlockMask":
    """FlexAttention's mask of T tokens from what each looks at; its memory is T x T / `TILE`.

    FlexAttention skips tiles that are empty and masks those that are not full; `create_block_mask`
    would find them in a mask of T x T.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = len(sight.own_start)
    place = torch.arange(length, device=sight.own_start.device)
    counts = _seen_in_tiles(sight.prompt_start, sight.prompt_stop)
    counts += _seen_in_tiles(sight.own_start, place + 1)
    full = counts == TILE * TILE

    def look(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sight.allows(query, key)

    return BlockMask.from_kv_blocks(
        *_listed((counts > 0) & ~full),
        *_listed(full),
        BLOCK_SIZE=TILE,
        mask_mod=look,
        seq_lengths=(length, length),
    )


def _seen_in_tiles(start: Tensor, stop: Tensor) -> Tensor:
    """How many pairs of query and key lie in each tile [T / TILE, T / TILE], keys [start, stop)."""
    tiles = -(-len(start) // TILE)
    edges = torch.arange(tiles, device=start.device) * TILE
    first = torch.maximum(start[:, None], edges)
    seen = torch.minimum(stop[:, None], edges + TILE).sub_(first).clamp_min_(0)
    seen = F.pad(seen, (0, 0, 0, tiles * TILE - len(start)))
    return seen.view(tiles, TILE, tiles).sum(1)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of tiles, how many are chosen, and their columns in front of the others."""
    columns = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], columns.int()[None, None]
