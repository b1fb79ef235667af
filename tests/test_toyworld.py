"""The toy world: exact quantities against closed forms, Monte Carlo and the models that run in it."""

import dataclasses

import pytest
import torch

from robustpo_kit import toyworld

SMALL = toyworld.WorldConfig(topics=3, tones=2, symbols=4, length=3, seed=3)


@pytest.fixture(scope="module")
def world():
    return toyworld.build()


@pytest.fixture(scope="module")
def small():
    return toyworld.build(SMALL)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(world, seed=0, **config):
    return toyworld.draw(world, toyworld.DataConfig(**config), generator(seed))


# --- the world ---------------------------------------------------------------------------------------------------


def test_world_has_the_size_of_the_design(world):
    assert 32 <= len(world.prompts) <= 64
    assert len(world.responses) == world.config.symbols**4 == len(set(world.responses))
    assert world.log_density.shape == (4, len(world.prompts), len(world.responses))


def test_densities_sum_to_one(world):
    assert torch.allclose(world.log_density.exp().sum(-1), torch.ones(world.n, 48).double(), atol=1e-12, rtol=0)
    mixture = toyworld.mixture_log_density(world, (0.4, 0.3, 0.2, 0.1)).exp()
    by_hand = sum(a * q for a, q in zip((0.4, 0.3, 0.2, 0.1), world.log_density.exp(), strict=True))
    assert torch.allclose(mixture, by_hand, atol=1e-15)


def test_style_is_no_quality(world):
    assert abs(float((world.style * world.reward.mean(0)).mean())) < 1e-12
    assert torch.allclose(world.reward.mean(-1), torch.zeros(48).double(), atol=1e-12)


def test_synthetic_sources_lose_to_golden_and_like_the_style(world):
    every = torch.arange(48)
    measures = [toyworld.evaluate(world, world.log_density[i], every) for i in range(4)]
    assert measures[0]["win_rate"] == pytest.approx(0.5, abs=1e-12)
    assert all(m["win_rate"] < 0.45 and m["style"] > measures[0]["style"] + 0.5 for m in measures[1:])
    assert all(m["confidence"] < measures[0]["confidence"] for m in measures[1:])


def test_same_seed_same_world_other_seed_another(small):
    again, other = toyworld.build(SMALL), toyworld.build(dataclasses.replace(SMALL, seed=4))
    assert torch.equal(again.log_density, small.log_density) and torch.equal(again.train_prompts, small.train_prompts)
    assert not torch.equal(other.log_density, small.log_density)


def test_no_shift_and_equal_quality_is_no_mixture_shift():
    config = dataclasses.replace(SMALL, shift=0.0, quality=(1.5, 1.5), style=(1.0, 1.0))
    world = toyworld.build(config)
    assert torch.allclose(toyworld.log_density_ratio(world), torch.zeros(()).double(), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"quality": (1.0,)}, "quality"), ({"symbols": 1}, "symbols"), ({"held_out": 1.0}, "held_out")],
)
def test_bad_world_names_the_argument(change, name):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SMALL, **change)


# --- h~ ----------------------------------------------------------------------------------------------------------


def test_true_h_by_hand(small):
    """One row, every term of Eq. 6 with bounded denominators written out."""
    prompt, row = torch.tensor([2]), torch.tensor([[5, 9, 40, 63]])
    q = small.log_density[:, 2].exp()
    pool = q[1:].mean(0)
    shared = sum(float(q[0, r] / (0.25 * q[0, r] + 0.25 * pool[r])) for r in row[0]) / 4
    assert float(toyworld.true_h(small, prompt, row)) == pytest.approx(shared, abs=1e-12)
    sources = torch.tensor([[0, 1, 2, 3]])
    others = (pool, q[1], q[2], q[3])
    own = sum(float(q[0, r] / (0.25 * q[0, r] + 0.25 * o[r])) for r, o in zip(row[0], others, strict=True)) / 4
    assert float(toyworld.true_h(small, prompt, row, sources)) == pytest.approx(own, abs=1e-12)


def test_h_of_uniform_mixture_is_the_sum_of_the_probabilities(world):
    data = drawn(world, rows=300, contamination=0.3)
    h = toyworld.true_h(world, data.prompt_ids, data.response_ids)
    probs = toyworld.bayes_probs(world, data.prompt_ids, data.response_ids)
    assert torch.allclose(h, probs.sum(1), atol=1e-12, rtol=0)
    assert h.min() > 0 and h.max() < 4


def test_true_h_tells_contaminated_rows(world):
    data = drawn(world, rows=2000, contamination=0.4)
    h = toyworld.true_h(world, data.prompt_ids, data.response_ids)
    assert h[~data.contaminated].mean() > h[data.contaminated].mean() + 0.3


def test_bayes_probs_are_calibrated(world):
    """Among responses of probability about c from a balanced pool, a share c is golden."""
    rows = 20000
    prompts = torch.arange(48).repeat(rows // 48 + 1)[:rows]
    golden = torch.rand(rows, generator=generator(1)) < 0.5
    sources = torch.where(golden, 0, torch.randint(1, 4, (rows,), generator=generator(2)))
    responses = toyworld.draw_responses(world, prompts, sources[:, None], generator(3))
    probs = toyworld.bayes_probs(world, prompts, responses).squeeze(1)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (probs >= low) & (probs < low + 0.2)
        error = golden[inside].double().mean() - probs[inside].mean()
        assert abs(error) < 4 * 0.5 / inside.sum() ** 0.5


# --- exact measures of a policy ----------------------------------------------------------------------------------


def test_win_rate_and_reward_agree_with_monte_carlo(small):
    policy = toyworld.tilted(small.log_density[1], small.reward, beta=1.0)
    result, reward = toyworld.outcome(small, policy), toyworld.expected(policy, small.reward)
    n = 40000
    for prompt in range(len(small.prompts)):
        ours = torch.multinomial(policy[prompt].exp(), n, True, generator=generator(prompt))
        golden = torch.multinomial(small.log_density[0, prompt].exp(), n, True, generator=generator(prompt + 100))
        a, b = small.reward[prompt, ours], small.reward[prompt, golden]
        assert float((a > b).double().mean()) == pytest.approx(float(result.win[prompt]), abs=4 * 0.5 / n**0.5)
        assert float((a == b).double().mean()) == pytest.approx(float(result.tie[prompt]), abs=4 * 0.5 / n**0.5)
        assert float(a.mean()) == pytest.approx(float(reward[prompt]), abs=4 * float(a.std()) / n**0.5)
    assert torch.allclose(result.win + result.tie + result.lose, torch.ones(6).double())


def test_win_rate_counts_ties_of_equal_rewards(small):
    flat = dataclasses.replace(small, reward=torch.zeros_like(small.reward))
    result = toyworld.outcome(flat, small.log_density[1])
    assert torch.allclose(result.tie, torch.ones(6).double()) and torch.allclose(result.rate, result.tie / 2)


def test_kl_is_positive_and_zero_for_identical(small):
    golden, other = small.log_density[0], small.log_density[1]
    assert torch.equal(toyworld.kl(golden, golden), torch.zeros(6).double())
    assert (toyworld.kl(golden, other) > 0).all() and (toyworld.kl(other, golden) > 0).all()
    assert float(toyworld.kl(golden, other)[0]) == pytest.approx(
        float(torch.nn.functional.kl_div(other[0], golden[0], log_target=True, reduction="sum")), abs=1e-12
    )


def test_kl_of_a_policy_with_a_hole_is_finite(small):
    hole = small.log_density[0].clone()
    hole[:, 0] = -torch.inf
    hole = torch.log_softmax(hole, -1)
    assert torch.isfinite(toyworld.kl(hole, small.log_density[0])).all()


def test_tilted_policy_maximises_the_regularised_reward(small):
    golden, beta = small.log_density[0], 0.5
    best = toyworld.tilted(golden, small.reward, beta)

    def value(policy):
        return toyworld.expected(policy, small.reward) - beta * toyworld.kl(policy, golden)

    for seed in range(20):
        noise = torch.randn(best.shape, generator=generator(seed), dtype=torch.float64)
        assert (value(torch.log_softmax(best + 0.3 * noise, -1)) < value(best)).all()
    # its value is beta * log Z
    assert torch.allclose(value(best), beta * torch.logsumexp(golden + small.reward / beta, -1), atol=1e-12)


# --- data --------------------------------------------------------------------------------------------------------


def test_draws_follow_the_densities(small):
    n = 60000
    responses = toyworld.draw_responses(small, torch.zeros(n).long(), torch.full((n, 1), 2), generator())
    share = torch.bincount(responses.flatten(), minlength=64).double() / n
    assert (share - small.log_density[2, 0].exp()).abs().max() < 4 * 0.5 / n**0.5


def test_clean_data_carry_the_true_reward_and_sources(small):
    data = drawn(small, rows=50)
    rows = data.prompt_ids[:, None].expand_as(data.response_ids)
    rewards = torch.tensor([row.rewards for row in data.prefs], dtype=torch.float64)
    assert torch.equal(rewards, small.reward[rows, data.response_ids])
    assert torch.equal(data.true_sources, torch.arange(4).expand(50, 4)) and not data.contaminated.any()
    row = data.prefs[7]
    assert row.responses == tuple(small.responses[r] for r in data.response_ids[7])
    assert row.sources == small.source_names and row.golden == 0
    assert set(data.prompt_ids.tolist()) <= set(small.train_prompts.tolist())
    assert not set(small.train_prompts.tolist()) & set(small.held_out_prompts.tolist())


def test_contaminated_rows_hold_a_synthetic_reply_ranked_first(small):
    data = drawn(small, rows=3000, contamination=0.4)
    assert float(data.contaminated.double().mean()) == pytest.approx(0.4, abs=4 * 0.5 / 3000**0.5)
    assert (data.true_sources[data.contaminated] != toyworld.GOLDEN).all()
    assert (data.claimed_sources[:, 0] == toyworld.GOLDEN).all()
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
        assert sorted(range(4), key=lambda k: after.rewards[k]) == (order[::-1] if after.flipped else order)


def test_a_turned_pair_changes_columns_and_ids_follow(small):
    data = drawn(small, rows=100, responses=2, label_noise=0.5)
    for i, row in enumerate(data.prefs):
        assert row.responses == tuple(small.responses[r] for r in data.response_ids[i])
        assert row.golden == int(data.turned[i]) == int(data.true_sources[i, 0] != toyworld.GOLDEN)


def test_mixture_draws_every_response_from_alpha_and_beta(small):
    data = drawn(small, rows=4000, mixture=(0.5, 0.2, 0.2, 0.1))
    shares = torch.bincount(data.true_sources.flatten(), minlength=4).double() / 16000
    assert (shares - torch.tensor([0.5, 0.2, 0.2, 0.1])).abs().max() < 4 * 0.5 / 16000**0.5
    assert float(data.contaminated.double().mean()) == pytest.approx(0.5**4, abs=4 * 0.25 / 4000**0.5)
    assert torch.equal(data.true_sources[:, 0] != toyworld.GOLDEN, data.contaminated)


def test_reward_bias_ranks_style_up(small):
    fair, biased = drawn(small, rows=2000), drawn(small, rows=2000, reward_bias=2.0)

    def golden_first(data):
        return sum(row.rewards[0] == max(row.rewards) for row in data.prefs) / len(data.prefs)

    assert golden_first(biased) < golden_first(fair) - 0.1


def test_same_seed_same_data(small):
    config = {"rows": 40, "contamination": 0.3, "label_noise": 0.2, "reward_noise": 0.5}
    first, again, other = drawn(small, 1, **config), drawn(small, 1, **config), drawn(small, 2, **config)
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
