"""The plan of a run: which rows make which step, and which of them a pass reads together."""

import pytest

from robustpo_kit import training
from robustpo_kit.policies import TokenRow, TokenTable
from robustpo_kit.training import TrainConfig


def test_micro_batches_hold_every_place_once_and_as_many_on_every_rank():
    for n, limit, world in ((8, 3, 1), (7, 2, 2), (1, 4, 2), (9, 9, 3)):
        for padded in (None, [1] * n):
            ranks = training.micro_batches(list(range(5, 5 + n)), limit, world, padded=padded)
            assert len(ranks) == world and len({len(rank) for rank in ranks}) == 1
            assert sorted(i for rank in ranks for micro in rank for i in micro) == list(range(n))
            assert max(len(micro) for rank in ranks for micro in rank) <= limit


@pytest.mark.parametrize("padded", [None, [1] * 12])
@pytest.mark.parametrize("world", [1, 3])
def test_micro_batches_of_a_token_budget_are_few_and_stay_in_it(world, padded):
    sizes = [400, 30, 20, 90, 25, 35, 80, 40, 10, 15, 120, 5]
    (whole_step,) = training.micro_batches(sizes, 16, 1, padded=padded, tokens=10**6)
    assert len(whole_step) == 1 and len(whole_step[0]) == len(sizes)
    ranks = training.micro_batches(sizes, 16, world, padded=padded, tokens=250)
    assert len(ranks) == world and len({len(rank) for rank in ranks}) == 1
    batches = [micro for rank in ranks for micro in rank]
    assert sorted(place for micro in batches for place in micro) == list(range(len(sizes)))
    assert [0] in batches  # a prompt that has more by itself
    for micro in batches:
        tokens = [sizes[place] for place in micro]
        spent = sum(tokens) if padded is None else len(tokens) * max(tokens, default=0)
        assert len(micro) <= 1 or spent <= 250
    if padded is None:  # 870 tokens, 400 of them in one prompt: 3 passes, or one a rank
        assert len(batches) == 3
    alone = training.micro_batches(sizes, 16, world, padded=padded, tokens=1)
    assert max(len(micro) for rank in alone for micro in rank) == 1
    few = training.micro_batches(sizes, 2, world, padded=padded, tokens=10**6)
    assert max(len(micro) for rank in few for micro in rank) == 2


def test_neighbours_in_length_are_padded_together_and_packed_ones_are_evened_out():
    sizes = [10, 100, 12, 90]
    assert training.micro_batches(sizes, 2, 1, padded=[1] * 4) == [[[1, 3], [2, 0]]]
    assert training.micro_batches(sizes, 2, 1) == [[[1, 0], [3, 2]]]
    assert training.micro_batches([100, 10], 2, 1, tokens=110) == [[[0, 1]]]
    assert training.micro_batches([100, 10], 2, 1, tokens=109) == [[[0], [1]]]


def test_padded_rows_of_a_token_budget_fill_one_pass_after_another():
    """One long prompt does not set the number of prompts of every other pass."""
    sizes, padded = [1000] + [10] * 63, [2] * 64
    (rank,) = training.micro_batches(sizes, 64, 1, tokens=2000, padded=padded)
    assert [len(micro) for micro in rank] == [1, 63]


def test_padding_of_prompts_with_unlike_numbers_of_rows_counts():
    """Rows of 1 and 7 responses make 8 rows as long as the longest of all."""
    (rank,) = training.micro_batches([100, 10], 2, 1, tokens=799, padded=[1, 7])
    assert rank == [[0], [1]]
    (rank,) = training.micro_batches([100, 10], 2, 1, tokens=800, padded=[1, 7])
    assert rank == [[0, 1]]
    table = TokenTable((token_row(90, [11]), token_row(5, [6] * 7)), {})
    assert [row.longest for row in table.rows] == [100, 10]
    assert table.pass_tokens([0, 1], "separate") == 8 * 100
    assert table.pass_tokens([0, 1], "shared") == 100 + 5 + 7 * 5


def token_row(prompt, responses):
    return TokenRow("r", (1,) * prompt, tuple((2,) * n for n in responses), (0,) * len(responses))


def test_without_a_budget_of_tokens_only_prompts_are_counted():
    rows = [token_row(90, [11, 5]), token_row(5, [6, 6]), token_row(3, [1, 2])]
    assert training.plan.cut_rows(rows, "shared", 2, 1) == [[[0], [1, 2]]]
    assert training.plan.cut_rows(rows, "separate", 2, 1) == [[[0, 1], [2]]]


def test_every_epoch_shuffles_and_drops_no_row():
    plan = training.step_rows(10, TrainConfig(batch_size=4, epochs=2, seed=3))
    assert [len(rows) for rows in plan] == [4, 4, 2, 4, 4, 2]
    first, second = (sum(plan[at : at + 3], []) for at in (0, 3))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert plan == training.step_rows(10, TrainConfig(batch_size=4, epochs=2, seed=3))
