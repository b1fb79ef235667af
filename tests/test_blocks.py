"""What the tokens of a packed row look at: masks against the rule written out token by token."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from robustpo_kit.policies.batches import collate
from robustpo_kit.policies.blocks import TILE, Blocks
from robustpo_kit.policies.tokens import TokenRow

KINDS = {  # prompt and responses of each block, in tokens
    "pairs": [(7, (3, 9)), (1, (1, 1)), (12, (30, 2))],
    "ragged": [(40, (5, 90, 17)), (3, (1, 2)), (200, (64, 33, 150)), (9, (8,))],
    "four": [(130, (50, 60, 70, 80)), (50, (1, 140, 2, 90))],
    "at_the_edges": [(TILE, (TILE + 1, TILE + 1)), (TILE, (1, 1)), (2 * TILE, (TILE + 1, 300))],
    "one_tile_and_a_token": [(TILE, (2,))],
}


def packed(sizes: list[tuple[int, tuple[int, ...]]]) -> tuple[Blocks, int]:
    """The blocks of a flex batch of such rows, and the length of its padded row."""
    rows = [
        TokenRow("r", (1,) * prompt, tuple((1,) * n for n in responses), (0,) * len(responses))
        for prompt, responses in sizes
    ]
    batch = collate(rows, kernel="flex")
    return batch.blocks, batch.input_ids.shape[1]


def by_rule(blocks: Blocks, length: int, window: int | None) -> torch.Tensor:
    """[length, length] bool: block, segment and position of every token, compared in pairs."""
    block, segment = torch.full((2, length), -1)
    position = torch.zeros(length, dtype=torch.long)
    for number, (start, _, prompt, responses) in enumerate(blocks.blocks):
        for k, size in enumerate((prompt, *responses)):
            block[start : start + size], segment[start : start + size] = number, k
            begin = prompt if k else 0
            position[start : start + size] = torch.arange(begin, begin + size)
            start += size
    place = torch.arange(length)
    own = (segment[:, None] == segment) | (segment == 0)
    allowed = (block[:, None] == block) & own & (place[:, None] >= place)
    if window is not None:
        reach = torch.where(block < 0, place, position)
        allowed &= reach[:, None] - reach < window
    return allowed


@pytest.mark.parametrize("window", [None, 1, 5, 100, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_flex_masks_are_those_of_create_block_mask(kind, window):
    blocks, length = packed(KINDS[kind])
    expected = by_rule(blocks, length, window)

    def look(_b, _h, q, k):
        return expected[q, k]

    theirs = create_block_mask(look, None, None, length, length, device="cpu")
    own = blocks.flex(window, length)
    place = torch.arange(length)
    assert torch.equal(own.mask_mod(0, 0, place[:, None], place), expected)
    assert torch.equal(own.to_dense(), theirs.to_dense())
    assert own.seq_lengths == theirs.seq_lengths and own.BLOCK_SIZE == theirs.BLOCK_SIZE
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(own, name), getattr(theirs, name)), name
    for name in ("kv_indices", "full_kv_indices", "q_indices", "full_q_indices"):
        counts = getattr(own, name.replace("indices", "num_blocks"))
        listed = torch.arange(length // TILE) < counts[..., None]
        assert torch.equal(getattr(own, name)[listed], getattr(theirs, name)[listed]), name
        assert getattr(own, name).dtype == getattr(theirs, name).dtype


@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_single_blocks_are_the_same_rule(kind, window):
    blocks, length = packed(KINDS[kind])
    expected = by_rule(blocks, length, window)
    for number, block in enumerate(blocks.blocks):
        part = slice(block.start, block.stop)
        mask = blocks.mask(number, window, torch.bfloat16)
        assert mask.dtype == torch.bfloat16
        assert torch.equal(mask == 0, expected[part, part])
        assert torch.equal(mask == float("-inf"), ~expected[part, part])


class Bytes(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation returns, views too."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else (out,):
            if isinstance(value, torch.Tensor):
                self.total += value.numel() * value.element_size()
        return out


def test_a_flex_mask_of_8k_tokens_takes_far_less_than_its_square():
    blocks, length = packed([(512, (400, 500, 300))] * 5)
    assert length >= 8192
    with Bytes() as made:
        mask = blocks.flex(None, length)
    assert made.total < length * length  # all that was ever made, against one bool a pair
    assert mask.sparsity() > 80
