"""The toy world: exact quantities against closed forms, Monte Carlo and the models in it."""

import dataclasses
import math

import pytest
import torch

from robustpo_kit import calibration, policies, toy

SMALL = toy.world.WorldConfig(topics=3, tones=2, symbols=4, length=3, seed=3)


@pytest.fixture(scope="module")
def world():
    return toy.world.build()


@pytest.fixture(scope="module")
def small():
    return toy.world.build(SMALL)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(world, seed=0, **config):
    return toy.data.draw(world, toy.data.DataConfig(**config), generator(seed))


# --- the world -----------------------------------------------------------------------------------


def test_world_has_the_size_of_the_design(world):
    assert 32 <= len(world.prompts) <= 64
    assert len(world.responses) == world.config.symbols**4 == len(set(world.responses))
    assert world.log_density.shape == (4, len(world.prompts), len(world.responses))


def test_densities_sum_to_one(world):
    assert torch.allclose(
        world.log_density.exp().sum(-1), torch.ones(world.n, 48).double(), atol=1e-12, rtol=0
    )


def test_style_is_no_quality(world):
    assert abs(float((world.style * world.reward.mean(0)).mean())) < 1e-12
    assert torch.allclose(world.reward.mean(-1), torch.zeros(48).double(), atol=1e-12)


def test_synthetic_sources_lose_to_golden_and_like_the_style(world):
    every = torch.arange(48)
    measures = [toy.truth.evaluate(world, valid(world.log_density[i]), every) for i in range(4)]
    assert measures[0]["win_rate"] == pytest.approx(0.5, abs=1e-12)
    assert all(
        m["win_rate"] < 0.45 and m["style"] > measures[0]["style"] + 0.5 for m in measures[1:]
    )
    assert all(m["confidence"] < measures[0]["confidence"] for m in measures[1:])


def test_same_seed_same_world_other_seed_another(small):
    again, other = toy.world.build(SMALL), toy.world.build(dataclasses.replace(SMALL, seed=4))
    assert torch.equal(again.log_density, small.log_density) and torch.equal(
        again.train_prompts, small.train_prompts
    )
    assert not torch.equal(other.log_density, small.log_density)


def test_no_shift_and_equal_quality_is_no_mixture_shift():
    config = dataclasses.replace(SMALL, shift=0.0, quality=(1.5, 1.5), style=(1.0, 1.0))
    world = toy.world.build(config)
    assert (world.log_density[1:] - world.log_density[0]).abs().max() < 1e-12  # log Q_i / Q_0
    data = drawn(world, rows=20)
    h = toy.truth.true_h(world, data.prompt_ids, data.response_ids)
    assert torch.allclose(
        h, torch.ones(20).double(), atol=1e-12
    )  # every response is golden: density ratio 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"quality": (1.0,)}, "quality"),
        ({"symbols": 1}, "symbols"),
        ({"held_out": 1.0}, "held_out"),
        ({"support": 0.0}, "support"),
        ({"support": 1.5}, "support"),
    ],
)
def test_bad_world_names_the_argument(change, name):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SMALL, **change)


def test_a_world_of_less_support_has_fewer_responses_and_counts_the_others_invalid():
    world = toy.world.build(dataclasses.replace(SMALL, support=0.25))
    assert len(world.responses) == 16 == len(set(world.responses)) == len(world.places)
    sums = world.log_density.exp().sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-12, rtol=0)
    policy = policies.tiny(toy.language.tokenizer(world), hidden=16)
    every = toy.world.build(SMALL)
    found, whole = (toy.language.policy_logps(policy, w) for w in (world, every))
    kept = whole.logps[:, world.places].logsumexp(-1).exp() * whole.mass
    assert torch.allclose(found.mass, kept, atol=1e-12) and float(found.mass.max()) < 0.9
    assert [every.responses[place] for place in world.places] == list(world.responses)


# --- h~ ------------------------------------------------------------------------------------------


def test_true_h_by_hand(small):
    """One row, every term written out."""
    prompt, row, shares = torch.tensor([2]), torch.tensor([[5, 9, 40, 63]]), (0.4, 0.3, 0.2, 0.1)
    q = small.log_density[:, 2].exp()
    whole = sum(a * q[i] for i, a in enumerate(shares))
    shared = sum(float(q[0, r] / whole[r]) for r in row[0]) / 4
    assert float(toy.truth.true_h(small, prompt, row, mixture=shares)) == pytest.approx(
        shared, abs=1e-12
    )
    others = sum(shares[i] * q[i] for i in (1, 2, 3))
    probs = toy.truth.bayes_probs(small, prompt, row, mixture=shares)
    by_hand = 1 / (1 + others / (0.4 * q[0]))
    torch.testing.assert_close(probs, by_hand[row], rtol=0, atol=1e-12)
    own = [whole] + [0.4 * q[0] + shares[i] * q[i] for i in (1, 2, 3)]
    each = sum(float(q[0, r] / other[r]) for r, other in zip(row[0], own, strict=True)) / 4
    found = toy.truth.true_h(small, prompt, row, torch.tensor([[0, 1, 2, 3]]), mixture=shares)
    assert float(found) == pytest.approx(each, abs=1e-12)


@pytest.mark.parametrize("mixture", [None, (0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4)])
def test_relative_factor_of_the_best_classifier_is_the_closed_form(world, mixture):
    """calibration_factor of Bayes' probabilities is h~ from the densities: shared, per source."""
    data = drawn(world, rows=300, contamination=0.3)
    shares = world.shares(mixture)
    alpha, betas = float(shares[0]), shares[1:]
    probs = toy.truth.bayes_probs(world, data.prompt_ids, data.response_ids, mixture=mixture)
    h = toy.truth.true_h(world, data.prompt_ids, data.response_ids, mixture=mixture)
    factor = calibration.calibration_factor(
        probs, alpha=alpha, beta=1 - alpha, imbalance=(1 - alpha) / alpha
    )
    assert torch.allclose(factor, h, atol=1e-12, rtol=0)
    ids = data.claimed_sources
    probs = toy.truth.bayes_probs(world, data.prompt_ids, data.response_ids, ids, mixture=mixture)[
        :, 1:
    ]
    h = toy.truth.true_h(
        world, data.prompt_ids, data.response_ids[:, 1:], ids[:, 1:], mixture=mixture
    )
    # drop the contaminated rows, where columns no longer follow the order of the sources
    clean = (ids == torch.arange(4)).all(1)
    factor = calibration.calibration_factor(
        probs[clean], alpha=alpha, beta=betas, imbalance=betas / alpha
    )
    assert clean.sum() > 100 and torch.allclose(factor, h[clean], atol=1e-12, rtol=0)


def test_h_of_uniform_mixture_is_the_sum_of_the_probabilities(world):
    data = drawn(world, rows=300, contamination=0.3)
    h = toy.truth.true_h(world, data.prompt_ids, data.response_ids)
    probs = toy.truth.bayes_probs(world, data.prompt_ids, data.response_ids)
    assert torch.allclose(h, probs.sum(1), atol=1e-12, rtol=0)
    assert h.min() > 0 and h.max() < 4


def test_true_h_tells_contaminated_rows(world):
    data = drawn(world, rows=2000, contamination=0.4)
    h = toy.truth.true_h(world, data.prompt_ids, data.response_ids)
    assert h[~data.contaminated].mean() > h[data.contaminated].mean() + 0.3


def test_bayes_probs_are_calibrated(world):
    """Among responses of probability about c from the mixture, a share c is golden."""
    rows, mixture = 20000, (0.5, 0.2, 0.2, 0.1)
    prompts = torch.randint(48, (rows,), generator=generator(1))
    sources = torch.multinomial(world.shares(mixture), rows, True, generator=generator(2))
    responses = toy.data.draw_responses(world, prompts, sources[:, None], generator(3))
    probs = toy.truth.bayes_probs(world, prompts, responses, mixture=mixture).squeeze(1)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (probs >= low) & (probs < low + 0.2)
        error = (sources == 0)[inside].double().mean() - probs[inside].mean()
        assert inside.sum() > 100 and abs(error) < 4 * 0.5 / inside.sum() ** 0.5


# --- exact measures of a policy ------------------------------------------------------------------


def tilted(logps, reward, beta):
    """[P, R] the policy that maximises E[reward] - beta KL(. || logps)."""
    return torch.log_softmax(logps + reward / beta, -1)


def test_win_rate_and_reward_agree_with_monte_carlo(small):
    policy = tilted(small.log_density[1], small.reward, beta=1.0)
    result, reward = toy.truth.outcome(small, policy), toy.truth.expected(policy, small.reward)
    n = 40000
    for prompt in range(len(small.prompts)):
        ours = torch.multinomial(policy[prompt].exp(), n, True, generator=generator(prompt))
        golden = torch.multinomial(
            small.log_density[0, prompt].exp(), n, True, generator=generator(prompt + 100)
        )
        a, b = small.reward[prompt, ours], small.reward[prompt, golden]
        assert float((a > b).double().mean()) == pytest.approx(
            float(result.win[prompt]), abs=4 * 0.5 / n**0.5
        )
        assert float((a == b).double().mean()) == pytest.approx(
            float(result.tie[prompt]), abs=4 * 0.5 / n**0.5
        )
        assert float(a.mean()) == pytest.approx(
            float(reward[prompt]), abs=4 * float(a.std()) / n**0.5
        )
    assert torch.allclose(result.win + result.tie + result.lose, torch.ones(6).double())


def valid(logps, mass=1.0):
    """A policy that writes a response of the world with this probability."""
    return toy.truth.Enumeration(logps, torch.full((len(logps),), mass, dtype=torch.float64))


def test_an_invalid_response_loses_and_has_the_least_reward(small):
    """Monte Carlo, three draws of four from golden and one of four invalid."""
    golden, every = small.log_density[0], torch.arange(6)
    found = toy.truth.evaluate(small, valid(golden, 0.75), every, proxy=small.biased_reward(1.0))
    n, win, gold, proxy = 40000, [], [], []
    for prompt in range(6):
        ours, theirs = (
            torch.multinomial(golden[prompt].exp(), n, True, generator=generator(seed + prompt))
            for seed in (0, 100)
        )
        ill = torch.rand(n, generator=generator(200 + prompt)) < 0.25
        reward, paid = small.reward[prompt], small.biased_reward(1.0)[prompt]
        first, second = reward[ours].masked_fill(ill, reward.min()), reward[theirs]
        win.append((first > second).double() + (first == second).double() / 2 * ~ill)
        gold.append(first)
        proxy.append(paid[ours].masked_fill(ill, paid.min()))
    for name, drawn_values in (("win_rate", win), ("gold", gold), ("proxy", proxy)):
        values = torch.cat(drawn_values)
        error = 4 * float(values.std()) / len(values) ** 0.5
        assert found[name] == pytest.approx(float(values.mean()), abs=error), name
    whole = toy.truth.evaluate(small, valid(golden), every)
    assert found["win"] + found["tie"] + found["lose"] == pytest.approx(1, abs=1e-12)
    assert found["win_rate"] == pytest.approx(0.75 * 0.5, abs=1e-12) and found["mass"] == 0.75
    for name in ("win_rate_valid", "gold_valid", "kl_golden", "style", "confidence"):
        assert found[name] == pytest.approx(whole[name], abs=1e-12), name
    assert whole["win_rate"] == whole["win_rate_valid"] and whole["gold"] == whole["gold_valid"]


def test_divergences_count_what_is_invalid(small):
    golden, other, every = small.log_density[0], small.log_density[1], torch.arange(6)
    half, most = valid(golden, 0.5), valid(other, 0.9)
    found = toy.truth.evaluate(small, half, every, reference=most)
    assert found["kl_from_golden"] == pytest.approx(math.log(2), abs=1e-9)
    p = torch.cat([0.5 * golden.exp(), torch.full((6, 1), 0.5)], -1)
    q = torch.cat([0.9 * other.exp(), torch.full((6, 1), 0.1)], -1)
    by_hand = (p * (p / q).log()).sum(-1).mean()
    assert found["kl_reference"] == pytest.approx(float(by_hand), abs=1e-7)


def test_win_rate_counts_ties_of_equal_rewards(small):
    flat = dataclasses.replace(small, reward=torch.zeros_like(small.reward))
    result = toy.truth.outcome(flat, small.log_density[1])
    assert torch.allclose(result.tie, torch.ones(6).double()) and torch.allclose(
        result.rate, result.tie / 2
    )


def test_kl_is_positive_and_zero_for_identical(small):
    golden, other = small.log_density[0], small.log_density[1]
    assert torch.equal(toy.truth.kl(golden, golden), torch.zeros(6).double())
    assert (toy.truth.kl(golden, other) > 0).all() and (toy.truth.kl(other, golden) > 0).all()
    assert float(toy.truth.kl(golden, other)[0]) == pytest.approx(
        float(torch.nn.functional.kl_div(other[0], golden[0], log_target=True, reduction="sum")),
        abs=1e-12,
    )


def test_kl_of_a_policy_with_a_hole_is_finite(small):
    hole = small.log_density[0].clone()
    hole[:, 0] = -torch.inf
    hole = torch.log_softmax(hole, -1)
    assert torch.isfinite(toy.truth.kl(hole, small.log_density[0])).all()


def test_tilted_policy_maximises_the_regularised_reward(small):
    golden, beta = small.log_density[0], 0.5
    best = tilted(golden, small.reward, beta)

    def value(policy):
        return toy.truth.expected(policy, small.reward) - beta * toy.truth.kl(policy, golden)

    for seed in range(20):
        noise = torch.randn(best.shape, generator=generator(seed), dtype=torch.float64)
        assert (value(torch.log_softmax(best + 0.3 * noise, -1)) < value(best)).all()
    # its value is beta * log Z
    assert torch.allclose(
        value(best), beta * torch.logsumexp(golden + small.reward / beta, -1), atol=1e-12
    )


# --- language models in the world ----------------------------------------------------------------


def test_enumeration_agrees_with_sequence_logps(world):
    policy = policies.tiny(toy.language.tokenizer(world), seed=1)
    found = toy.language.policy_logps(policy, world)
    data = drawn(world, rows=30)
    batch = policies.collate(policies.tokenize(data.prefs, policy.tokenizer, policy.template).rows)
    scores = policies.sequence_logps(policy.model, batch).double()
    rows = data.prompt_ids[:, None].expand_as(data.response_ids)
    ours = found.logps[rows, data.response_ids] + found.mass.log()[rows]
    assert torch.allclose(ours, scores, atol=2e-5, rtol=0)
    assert torch.allclose(found.logps.exp().sum(-1), torch.ones(48).double(), atol=1e-12)


def test_enumeration_does_not_depend_on_the_batch(small):
    policy = policies.tiny(toy.language.tokenizer(small), seed=2)
    one, all_ = (toy.language.policy_logps(policy, small, prompts_at_once=n).logps for n in (1, 6))
    assert torch.allclose(one, all_, atol=1e-5, rtol=0)


def test_tokenizer_reads_every_text_symbol_by_symbol(small):
    words = toy.language.tokenizer(small)
    for prompt in small.prompts:
        for response in small.responses[::7]:
            ids = words(prompt + response)["input_ids"]
            assert len(ids) == 3 + small.config.length and words.unk_token_id not in ids
