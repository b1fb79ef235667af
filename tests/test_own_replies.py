"""A policy's own replies as rows, and rejection sampling among them: formula, law, bad input."""

import numpy as np
import pytest
from scipy import stats

from robustpo_kit import own_replies, policies
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.policies import SamplingConfig

REWARDS = np.array([0.0, 0.5, 1.0])
PROPOSAL = np.array([0.5, 0.3, 0.2])


def rows(count=3, responses=("a", "b")) -> PreferenceSet:
    made = []
    for number in range(count):
        row = Preference(
            f"r{number}", f"g{number}", f"question {number}", responses, ("x",) * len(responses)
        )
        made.append(row)
    return PreferenceSet(made, name="made")


def test_acceptance_is_its_formula():
    found = own_replies.acceptance([[1.0, 3.0, 2.0], [0.0, -1e9, 0.0]], beta=0.5)
    expected = [[np.exp(-4), 1, np.exp(-2)], [1, 0, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_what_is_accepted_follows_the_tilted_distribution(beta):
    """The first accepted of 60 draws, of which one is almost surely the best there is."""
    draws = np.random.default_rng(0).choice(3, (20_000, 60), p=PROPOSAL)
    columns = own_replies.accept(REWARDS[draws], 1, beta, seed=0)
    counts = np.bincount(np.take_along_axis(draws, columns, 1)[:, 0], minlength=3)
    tilted = PROPOSAL * np.exp(REWARDS / beta)
    tilted /= tilted.sum()
    assert stats.chisquare(counts, len(draws) * tilted).pvalue > 0.01
    untilted = stats.chisquare(counts, len(draws) * PROPOSAL).pvalue
    assert untilted < 1e-10, "the test would see draws that were not tilted"


def test_of_two_draws_the_worse_first_one_is_accepted_as_often_as_its_probability():
    columns = own_replies.accept(np.tile([0.0, 1.0], (20_000, 1)), 1, 0.7, seed=3)
    share, expected = (columns == 0).mean(), np.exp(-1 / 0.7)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(columns))


def test_what_is_left_is_held_against_the_best_that_is_left():
    """Towards beta 0 the best are taken, one by one, though all others underflow beside them."""
    rewards = np.random.default_rng(0).permuted(np.tile([5.0, 2.0, 1.0, -1e6], (50, 1)), axis=1)
    columns = own_replies.accept(rewards, 2, 1e-3, seed=0)
    taken = np.take_along_axis(rewards, columns, 1)
    assert (np.sort(taken) == [2.0, 5.0]).all() and (np.diff(columns) > 0).all()
    every = own_replies.accept(rewards, 4, 1e-3, seed=0)
    assert (every == np.arange(4)).all()
    any_two = own_replies.accept(rewards, 2, 1e9, seed=0)
    assert (any_two == [0, 1]).all(), "far above their spread the first draws are taken"


@pytest.mark.parametrize(
    ("rewards", "count", "beta", "message"),
    [
        ([[1.0, 2.0]], 1, 0.0, "beta = 0.0: a number above 0"),
        ([[1.0, 2.0]], 1, np.nan, "beta = nan"),
        ([[1.0, 2.0]], 3, 1.0, "count = 3: 1 to 2 of the draws"),
        ([[1.0, 2.0]], 0, 1.0, "count = 0"),
        ([1.0, 2.0], 1, 1.0, r"rewards: shape \(2,\)"),
        ([[1.0, np.nan]], 1, 1.0, "finite numbers"),
        ([[]], 1, 1.0, r"rewards: shape \(1, 0\)"),
    ],
)
def test_bad_draws_are_refused(rewards, count, beta, message):
    with pytest.raises(ValueError, match=message):
        own_replies.accept(rewards, count, beta, seed=0)


def test_accepted_rows_keep_responses_and_rewards_together():
    whole = rows(responses=("a", "b", "c"))
    whole = whole.with_rewards([[1, 2, 3], [3, 2, 1], [2, 3, 1]])
    found = own_replies.accepted_rows(whole, 2, 1e-3, seed=0)
    assert [row.responses for row in found] == [("b", "c"), ("a", "b"), ("a", "b")]
    assert [row.rewards for row in found] == [(2, 3), (3, 2), (2, 3)]
    with pytest.raises(KitError, match="made, row 'r0', field rewards: 0 of 2; score every draw"):
        own_replies.accepted_rows(rows(), 1, 1.0, seed=0)


def rows_of(monkeypatch, texts):
    def sampled(_policy, prompts, config, *, seed):
        return [[policies.Reply(text, 1, True) for text in replies] for replies in texts]

    monkeypatch.setattr(own_replies, "sample", sampled)
    return own_replies.sample_rows(rows(len(texts)), None, SamplingConfig(samples=2), seed=0)


def test_rows_hold_the_replies_and_nothing_of_the_row_before(monkeypatch):
    found = rows_of(monkeypatch, [("x", "y"), ("z", " "), ("x", "x")])
    assert [row.responses for row in found] == [("x", "y"), ("x", "x")]
    assert found.dropped == {"empty reply": 1}
    row = found[1]
    assert (row.row_id, row.prompt, row.sources) == ("r2", "question 2", ("policy", "policy"))
    assert (row.rewards, row.golden, row.h, row.flipped) == (None, None, None, False)
    found.validate()
    with pytest.raises(KitError, match="made: each of 2 rows has an empty reply"):
        rows_of(monkeypatch, [("", "y"), ("z", " ")])


def test_replies_on_text_are_drawn_scored_and_accepted():
    """The whole way, with a model of bytes and the number of letters as the reward."""
    policy = policies.tiny(policies.byte_tokenizer())
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=12, samples=6)
    drawn = own_replies.sample_rows(rows(8), policy, config, seed=1)
    again = own_replies.sample_rows(rows(8), policy, config, seed=1)
    assert drawn.rows == again.rows and drawn.responses_per_prompt == 6
    scored = drawn.with_rewards([[len(text) for text in row.responses] for row in drawn])
    kept = own_replies.accepted_rows(scored, 2, 0.5, seed=0)
    kept.validate()
    means = [np.mean([row.rewards for row in part]) for part in (kept, scored)]
    assert kept.responses_per_prompt == 2 and means[0] > means[1]
