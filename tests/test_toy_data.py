"""Preference sets of the toy world: each knob does what it says, the kept truth fits the rows."""

import pytest
import torch

from robustpo_kit import toy


@pytest.fixture(scope="module")
def small():
    return toy.world.build(toy.world.WorldConfig(topics=3, tones=2, symbols=4, length=3, seed=3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(world, seed=0, **config):
    return toy.data.draw(world, toy.data.DataConfig(**config), generator(seed))


def test_draws_follow_the_densities(small):
    n = 60000
    responses = toy.data.draw_responses(
        small, torch.zeros(n).long(), torch.full((n, 1), 2), generator()
    )
    share = torch.bincount(responses.flatten(), minlength=64).double() / n
    assert (share - small.log_density[2, 0].exp()).abs().max() < 4 * 0.5 / n**0.5


def test_clean_data_carry_the_true_reward_and_sources(small):
    data = drawn(small, rows=50)
    rows = data.prompt_ids[:, None].expand_as(data.response_ids)
    rewards = torch.tensor([row.rewards for row in data.prefs], dtype=torch.float64)
    assert torch.equal(rewards, small.reward[rows, data.response_ids])
    assert (
        torch.equal(data.true_sources, torch.arange(4).expand(50, 4))
        and not data.contaminated.any()
    )
    row = data.prefs[7]
    assert row.responses == tuple(small.responses[r] for r in data.response_ids[7])
    assert row.sources == small.source_names and row.golden == 0
    assert set(data.prompt_ids.tolist()) <= set(small.train_prompts.tolist())
    assert not set(small.train_prompts.tolist()) & set(small.held_out_prompts.tolist())


def test_contaminated_rows_hold_a_synthetic_reply_ranked_first(small):
    data = drawn(small, rows=3000, contamination=0.4)
    assert float(data.contaminated.double().mean()) == pytest.approx(0.4, abs=4 * 0.5 / 3000**0.5)
    assert (data.true_sources[data.contaminated] != toy.world.GOLDEN).all()
    assert (data.claimed_sources[:, 0] == toy.world.GOLDEN).all()
    rewards = torch.tensor([row.rewards for row in data.prefs])
    assert (rewards[data.contaminated].argmax(1) == 0).all()
    style = small.style[data.response_ids[:, 0]]
    assert style[data.contaminated].mean() > style[~data.contaminated].mean() + 1


def test_label_noise_turns_rankings(small):
    clean, noisy = drawn(small, rows=200), drawn(small, rows=200, label_noise=0.25)
    assert int(noisy.turned.sum()) == 50
    for before, after in zip(clean.prefs, noisy.prefs, strict=True):
        if len(set(before.rewards)) < 4:  # a response drawn twice: tied with itself
            continue
        order = sorted(range(4), key=lambda k: before.rewards[k])
        assert sorted(range(4), key=lambda k: after.rewards[k]) == (
            order[::-1] if after.flipped else order
        )


def test_a_turned_pair_changes_columns_and_ids_follow(small):
    data = drawn(small, rows=100, responses=2, label_noise=0.5)
    for i, row in enumerate(data.prefs):
        assert row.responses == tuple(small.responses[r] for r in data.response_ids[i])
        assert row.golden == int(data.turned[i]) == int(data.true_sources[i, 0] != toy.world.GOLDEN)


def test_mixture_draws_every_response_from_alpha_and_beta(small):
    data = drawn(small, rows=4000, mixture=(0.5, 0.2, 0.2, 0.1))
    shares = torch.bincount(data.true_sources.flatten(), minlength=4).double() / 16000
    assert (shares - torch.tensor([0.5, 0.2, 0.2, 0.1])).abs().max() < 4 * 0.5 / 16000**0.5
    assert float(data.contaminated.double().mean()) == pytest.approx(
        0.5**4, abs=4 * 0.25 / 4000**0.5
    )
    assert torch.equal(data.true_sources[:, 0] != toy.world.GOLDEN, data.contaminated)


def test_reward_bias_ranks_style_up(small):
    fair, biased = drawn(small, rows=2000), drawn(small, rows=2000, reward_bias=2.0)

    def golden_first(data):
        return sum(row.rewards[0] == max(row.rewards) for row in data.prefs) / len(data.prefs)

    assert golden_first(biased) < golden_first(fair) - 0.1


def test_same_seed_same_data(small):
    config = {"rows": 40, "contamination": 0.3, "label_noise": 0.2, "reward_noise": 0.5}
    first, again, other = (
        drawn(small, 1, **config),
        drawn(small, 1, **config),
        drawn(small, 2, **config),
    )
    assert first.prefs.rows == again.prefs.rows and first.prefs.rows != other.prefs.rows


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rows": 0}, "rows"),
        ({"contamination": 1.5}, "contamination"),
        ({"label_noise": -0.1}, "label_noise"),
        ({"reward_noise": -1.0}, "reward_noise"),
        ({"mixture": (0.5, 0.5)}, "mixture"),
    ],
)
def test_bad_data_config_names_the_argument(small, change, name):
    with pytest.raises(ValueError, match=name):
        drawn(small, **change)


@pytest.mark.parametrize("responses", [2, 4, 6])
def test_the_slot_weight_is_the_exact_ratio(responses):
    """Golden over the weight is the density of the slot: held against 100,000 rows."""
    world = toy.world.build(toy.world.WorldConfig(topics=2, tones=2, symbols=3, length=2))
    config = toy.data.DataConfig(rows=100_000, responses=responses, contamination=0.4)
    data = toy.data.draw(world, config, generator())
    every = torch.arange(world.log_density.shape[2])
    for prompt in world.train_prompts[:2]:
        weight = toy.truth.true_slot_weight(world, config, prompt.expand(len(every)), every)
        density = world.log_density[0, prompt].exp() / weight
        assert float(density.sum()) == pytest.approx(1)
        slots = data.response_ids[data.prompt_ids == prompt, 0]
        found = torch.bincount(slots, minlength=len(every)) / len(slots)
        error = (density * (1 - density) / len(slots)).sqrt()
        assert float(((found - density).abs() / error).max()) < 4.5
    ids = data.prompt_ids[:50], data.response_ids[:50, 0]
    assert (toy.truth.true_slot_weight(world, toy.data.DataConfig(), *ids) == 1).all()
    with pytest.raises(ValueError, match="slot_oracle: known for data of fixed slots"):
        toy.truth.true_slot_weight(world, toy.data.DataConfig(reward_noise=0.1), *ids)
