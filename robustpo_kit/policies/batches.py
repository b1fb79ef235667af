"""Batches that compute a prompt once for all its responses, and the blocks of a packed row."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustpo_kit.policies.tokens import TokenRow

FLEX_MULTIPLE = 128  # FlexAttention's block size: rows are padded to it, on GPUs only


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
            allowed = _allowed(
                *self._segments(block), self.positions[block.start : block.stop], window
            )
            self._masks[key] = torch.zeros(
                allowed.shape, dtype=dtype, device=allowed.device
            ).masked_fill_(~allowed, float("-inf"))
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
    if (
        window is not None
    ):  # by position, which restarts with each response, and not by place in the row
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
        near = (
            (q >= k) & (number[q] == number[k]) & ((segment[q] == segment[k]) | (segment[k] == 0))
        )
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


def collate(
    rows: Sequence[TokenRow], *, layout: str = "shared", kernel: str = "sdpa", pad: int = 0
) -> Batch:
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
        blocks.append(
            Block(start, len(ids), len(row.prompt), tuple(len(r) - 1 for r in row.responses))
        )
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
