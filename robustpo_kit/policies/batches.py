"""Batches that compute a prompt once for all its responses."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustpo_kit.policies.blocks import TILE, Block, Blocks
from robustpo_kit.policies.tokens import TokenRow

KERNELS = ("sdpa", "plain_sdpa", "flex")


@dataclasses.dataclass
class Batch:
    """Tokens of B prompts x K responses, laid out for the model, and where log-probs are read.

    Shapes: input_ids, position_ids [R, T]; source, labels, owner [N], N = scored tokens in all;
    lengths, mask [B, K].
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
        values: dict[str, Any] = dict(vars(self))
        for name, value in values.items():
            if isinstance(value, Tensor | Blocks):
                values[name] = value.to(device)
        return Batch(**values)


def collate(
    rows: Sequence[TokenRow], *, layout: str = "shared", kernel: str = "sdpa", pad: int = 0
) -> Batch:
    """A batch of token rows.

    Args:
        rows: B prompts with up to K responses each.
        layout: "shared" packs blocks into one row, "separate" pads B * K rows to the longest.
        kernel: attention of a shared layout. "sdpa" computes short half-precision blocks on a CPU
            by matrix products, "plain_sdpa" does not, "flex" is for GPUs.
        pad: the token that fills up, which nothing looks at.

    Raises:
        ValueError: for no rows, or an unknown layout or kernel.
    """
    if not rows:
        raise ValueError("collate: no rows")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: {kernel!r} should be one of {', '.join(KERNELS)}")
    if layout not in ("shared", "separate"):
        raise ValueError(f"layout: {layout!r} should be 'shared' or 'separate'")
    columns = max(len(row.responses) for row in rows)
    lengths = torch.zeros(len(rows), columns, dtype=torch.long)
    for b, row in enumerate(rows):
        lengths[b, : len(row.responses)] = torch.tensor(row.lengths())
    targets = _Targets(columns)
    if layout == "shared":
        ids, positions, blocks = _packed(rows, targets, kernel, pad)
    else:
        ids, positions, blocks = _padded(rows, targets, pad), None, None
    source, labels, owner = targets.tensors()
    mask = lengths > 0
    return Batch(ids, positions, blocks, source, labels, owner, lengths, mask, tuple(rows))


class _Targets:
    """Scored tokens: where each is predicted, which token it is, whose response it belongs to."""

    def __init__(self, columns: int):
        self.columns = columns
        self.source: list[int] = []
        self.labels: list[int] = []
        self.owner: list[int] = []

    def add(self, b: int, k: int, places: Iterable[int], labels: Sequence[int]) -> None:
        """Response `k` of prompt `b`: its scored tokens, and the places that predict them."""
        self.source.extend(places)
        self.labels.extend(labels)
        self.owner.extend([b * self.columns + k] * len(labels))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(self.source), torch.tensor(self.labels), torch.tensor(self.owner)


def _packed(
    rows: Sequence[TokenRow], targets: _Targets, kernel: str, pad: int
) -> tuple[Tensor, Tensor, Blocks]:
    """One row [1, T] of blocks [prompt | y1 | ... | yK], its positions and its structure."""
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[Block] = []
    for b, row in enumerate(rows):
        start, prompt = len(ids), len(row.prompt)
        ids.extend(row.prompt)
        positions.extend(range(prompt))
        for k, (response, skip) in enumerate(zip(row.responses, row.skips, strict=True)):
            # token j of a response is predicted at token j - 1 of it, the first at the prompt's end
            places = [start + prompt - 1, *range(len(ids), len(ids) + len(response) - 1)]
            targets.add(b, k, places[skip:], response[skip:])
            ids.extend(response[:-1])
            positions.extend(range(prompt, prompt + len(response) - 1))
        sizes = tuple(len(response) - 1 for response in row.responses)
        blocks.append(Block(start, len(ids), prompt, sizes))
    position = torch.tensor(positions)
    structure = Blocks(blocks, position, kernel)
    if kernel == "flex":
        extra = -len(ids) % TILE
        ids.extend([pad] * extra)
        position = F.pad(position, (0, extra))
    return torch.tensor([ids]), position[None], structure


def _padded(rows: Sequence[TokenRow], targets: _Targets, pad: int) -> Tensor:
    """Rows [B * K, T] of a prompt and one response; padding on the right needs no mask."""
    texts: list[tuple[int, ...]] = []
    for row in rows:
        texts.extend(row.prompt + response[:-1] for response in row.responses)
    ids = torch.full((len(texts), max(len(text) for text in texts)), pad)
    for line, text in enumerate(texts):
        ids[line, : len(text)] = torch.tensor(text)
    start = 0
    for b, row in enumerate(rows):
        for k, (response, skip) in enumerate(zip(row.responses, row.skips, strict=True)):
            first = start + len(row.prompt) - 1
            targets.add(b, k, range(first + skip, first + len(response)), response[skip:])
            start += ids.shape[1]
    return ids
