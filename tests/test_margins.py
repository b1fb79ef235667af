"""Dynamic margins: optimality, monotonicity, limits, mirror descent as published, and the queue."""

import math
import statistics
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustpo_kit import losses
from robustpo_kit.losses import Scores
from robustpo_kit.margins import (
    GapQueue,
    dynamic_margins,
    target_margins,
)

quick = settings(max_examples=40, deadline=None)
GAPS = st.lists(st.floats(-30, 30), min_size=2, max_size=60)


def kkt_residual(found, gaps, *, gamma0, tau):
    """How far margins are from optimal: 0 at the solution.

    The larger of the deviation of Eq. 23 from its mid value and of mean q from 1.
    """
    q = found.double() / gamma0
    multiplier = gamma0 * torch.sigmoid(found.double() - gaps.double()) + tau * (1 + torch.log(q))
    return max(float(multiplier.max() - multiplier.min()) / 2, abs(float(q.mean()) - 1))


def margin_objective(found, gaps, *, gamma0, tau):
    """The objective of Eq. 22 at `found` [n] for `gaps` [n], a scalar.

    mean softplus(gamma_i - m_i) + tau KL(p || uniform), p_i = gamma_i / (n gamma0).
    """
    q = found / gamma0
    return torch.nn.functional.softplus(found - gaps).mean() + tau * torch.xlogy(q, q).mean()


def draw(count, scale=3.0, seed=0):
    return scale * torch.randn(
        count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("gamma0", [0.375, 1.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 3.0, 10.0, 20.0, 1e3])
@pytest.mark.parametrize("count", [2, 3, 17, 256, 4096])
def test_exact_solver_meets_its_optimality_conditions(gamma0, tau, count):
    for scale in (0.1, 3.0, 30.0):
        gaps = draw(count, scale, seed=count)
        found = target_margins(gaps, gamma0=gamma0, tau=tau)
        # Eq. 23 written out here, not through the package: one multiplier for all, and mean q = 1
        q = found.numpy() / gamma0
        value = gamma0 / (1 + np.exp(gaps.numpy() - found.numpy())) + tau * (1 + np.log(q))
        assert np.abs(value - value.mean()).max() <= 1e-9
        assert abs(q.mean() - 1) <= 1e-9
        assert kkt_residual(found, gaps, gamma0=gamma0, tau=tau) <= 1e-9


def test_the_residual_notices_a_wrong_solution():
    gaps = draw(16)
    found = target_margins(gaps, gamma0=4.0, tau=10.0)
    assert kkt_residual(found * 1.001, gaps, gamma0=4.0, tau=10.0) > 1e-4
    assert kkt_residual(torch.full((16,), 4.0), gaps, gamma0=4.0, tau=10.0) > 1e-2


def test_two_gaps_by_brute_force():
    gaps = torch.tensor([2.0, -1.0], dtype=torch.float64)
    share = torch.linspace(0.001, 1.999, 400001, dtype=torch.float64)
    pairs = 3.0 * torch.stack([share, 2 - share])  # every gamma with mean 3
    values = -torch.nn.functional.logsigmoid(gaps[:, None] - pairs).mean(0) + 2.0 * torch.xlogy(
        pairs / 3, pairs / 3
    ).mean(0)
    best = pairs[:, values.argmin()]
    torch.testing.assert_close(target_margins(gaps, gamma0=3.0, tau=2.0), best, rtol=0, atol=2e-5)


@quick
@given(GAPS, st.floats(0.1, 10.0), st.floats(0.1, 50.0))
def test_mean_monotony_and_spread(values, gamma0, tau):
    gaps = torch.tensor(values, dtype=torch.float64)
    found = target_margins(gaps, gamma0=gamma0, tau=tau)
    assert float(found.mean()) == pytest.approx(gamma0, rel=1e-12)
    assert (found[gaps.argsort()].diff() >= -1e-12).all()  # never falls with the gap
    strength = math.exp(gamma0 / tau)
    assert gamma0 / strength * (1 - 1e-9) <= float(found.min())
    assert float(found.max()) <= gamma0 * strength * (1 + 1e-9)


@quick
@given(GAPS, st.floats(0.1, 10.0), st.integers(0, 1000))
def test_order_does_not_matter_and_large_tau_is_the_constant(values, gamma0, seed):
    gaps = torch.tensor(values, dtype=torch.float64)
    order = torch.randperm(len(gaps), generator=torch.Generator().manual_seed(seed))
    found = target_margins(gaps, gamma0=gamma0, tau=3.0)
    torch.testing.assert_close(
        target_margins(gaps[order], gamma0=gamma0, tau=3.0), found[order], rtol=1e-11, atol=0
    )
    constant = target_margins(gaps, gamma0=gamma0, tau=1e9)
    torch.testing.assert_close(constant, torch.full_like(constant, gamma0), rtol=1e-7, atol=0)


def test_no_feasible_neighbour_is_better():
    gaps = draw(40)
    found = target_margins(gaps, gamma0=4.0, tau=1.0)
    best = margin_objective(found, gaps, gamma0=4.0, tau=1.0)
    g = torch.Generator().manual_seed(3)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            other = found * torch.exp(size * torch.randn(40, generator=g, dtype=torch.float64))
            other = other * 4.0 / other.mean()
            assert margin_objective(other, gaps, gamma0=4.0, tau=1.0) > best


def test_published_settings_have_the_stated_strength():
    """gamma-PO Table 7: gamma0 / tau is 0.4 (Llama), 0.25 (Gemma), 1.0 (Qwen).

    Mistral's margins hardly move.
    """
    far = torch.tensor([-50.0, 50.0], dtype=torch.float64)
    spread = {}
    for name, gamma0, tau in (
        ("llama", 4.0, 10.0),
        ("gemma", 5.0, 20.0),
        ("qwen", 3.0, 3.0),
        ("mistral", 0.375, 10.0),
    ):
        low, high = target_margins(far, gamma0=gamma0, tau=tau).tolist()
        spread[name] = math.log(high / low)
        assert spread[name] == pytest.approx(
            gamma0 / tau, rel=1e-9
        )  # sigmoids 1 and 0 at gaps this far
    assert min(spread, key=spread.get) == "mistral"
    values = target_margins(draw(256), gamma0=0.375, tau=10.0)
    assert float(values.max() - values.min()) <= 0.04 * 0.375  # practically SimPO


def test_types_and_zero_margin():
    gaps = draw(8).float().requires_grad_()
    found = target_margins(gaps, gamma0=4.0, tau=10.0)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (target_margins(gaps, gamma0=0.0, tau=10.0) == 0).all()
    one = target_margins(gaps[:1], gamma0=4.0, tau=10.0)
    torch.testing.assert_close(one, torch.tensor([4.0]))


def test_256_gaps_take_at_most_two_milliseconds():
    gaps, times = draw(256).float(), []
    for _ in range(50):
        started = time.perf_counter()
        target_margins(gaps, gamma0=4.0, tau=10.0)
        times.append(time.perf_counter() - started)
    # the fastest quarter: what the work takes when nothing else has the core
    assert statistics.quantiles(times, n=4)[0] <= 2e-3


# --- mirror descent ---


def published(gaps, gamma0, tau, updates, epsilon):
    """Eq. 23-24 on p itself, in numpy."""
    n, rate = len(gaps), min(0.5 / tau, 1.0)
    p = np.full(n, 1 / n)
    for _ in range(updates):
        gradient = gamma0 / (1 + np.exp(gaps - n * p * gamma0)) + tau * (
            1 + np.log(n * (p + epsilon))
        )
        p = p * np.exp(-rate * gradient)
        p /= p.sum()
    return n * p * gamma0


@pytest.mark.parametrize(
    ("gamma0", "tau"), [(4.0, 10.0), (0.375, 10.0), (5.0, 20.0), (3.0, 3.0), (0.2, 0.3)]
)
def test_mirror_descent_is_the_published_iteration(gamma0, tau):
    gaps = draw(64)
    found = target_margins(gaps, gamma0=gamma0, tau=tau, solver="mirror_descent", steps=20)
    np.testing.assert_allclose(found, published(gaps.numpy(), gamma0, tau, 20, 0.0), rtol=1e-10)
    official = target_margins(gaps, gamma0=gamma0, tau=tau, parity="official")
    np.testing.assert_allclose(
        official, published(gaps.numpy(), gamma0, tau, 19, 1e-10), rtol=1e-12
    )
    assert (
        np.abs(official.numpy() - published(gaps.numpy(), gamma0, tau, 20, 1e-10)).max()
        > 1e-12 * gamma0
    )


@pytest.mark.parametrize(("gamma0", "tau"), [(4.0, 10.0), (0.375, 10.0), (5.0, 20.0), (3.0, 3.0)])
def test_mirror_descent_converges_to_the_exact_solution(gamma0, tau):
    gaps = draw(256)
    exact = target_margins(gaps, gamma0=gamma0, tau=tau)
    long = target_margins(gaps, gamma0=gamma0, tau=tau, solver="mirror_descent", steps=300)
    torch.testing.assert_close(long, exact, rtol=1e-10, atol=0)
    short = target_margins(gaps, gamma0=gamma0, tau=tau, parity="official")
    torch.testing.assert_close(short, exact, rtol=1e-3, atol=0)


def test_mirror_descent_cycles_where_it_warns():
    gaps = draw(256)
    with pytest.warns(RuntimeWarning, match="unstable"):
        last = target_margins(gaps, gamma0=5.0, tau=1.0, solver="mirror_descent", steps=2000)
    with pytest.warns(RuntimeWarning, match="unstable"):
        next_one = target_margins(gaps, gamma0=5.0, tau=1.0, solver="mirror_descent", steps=2001)
    exact = target_margins(gaps, gamma0=5.0, tau=1.0)
    assert (last - next_one).abs().max() > 0.1  # a limit cycle, not slow convergence
    assert (last - exact).abs().max() > 0.1
    assert kkt_residual(exact, gaps, gamma0=5.0, tau=1.0) <= 1e-9


def test_no_warning_where_it_is_stable():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target_margins(draw(256), gamma0=4.0, tau=10.0, solver="mirror_descent")
        target_margins(draw(256), gamma0=5.0, tau=1.0)


def test_it_warns_from_twelve_tau_on_and_names_the_caller():
    gaps, said = draw(64), []
    for gamma0 in np.linspace(1.5, 4.0, 40):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = target_margins(gaps, gamma0=gamma0, tau=1.0, solver="mirror_descent")
        assert bool(caught) == (gamma0 * float(found.max()) > 12.0)
        said += caught
    assert 0 < len(said) < 40 and {warning.filename for warning in said} == {__file__}


# --- the queue ---


def test_queue_is_first_in_first_out():
    queue = GapQueue(capacity=5, solve_size=8)
    assert len(queue) == 0
    assert len(queue.sample(3)) == 0
    queue.push(torch.arange(4.0))
    queue.push(torch.arange(4.0, 7.0))
    assert sorted(queue.sample(99).tolist()) == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert len(set(queue.sample(3).tolist())) == 3  # without replacement
    queue.push(torch.arange(10.0, 20.0))
    assert sorted(queue.sample(5).tolist()) == [15.0, 16.0, 17.0, 18.0, 19.0]


def test_queue_resumes_bit_for_bit():
    queue = GapQueue(generator=torch.Generator().manual_seed(7))
    queue.push(draw(300))
    queue.sample(5)
    state = {
        name: value.tolist() for name, value in queue.state_dict().items()
    }  # as JSON would carry it
    twin = GapQueue(generator=torch.Generator().manual_seed(99))
    twin.load_state_dict(state)
    assert torch.equal(queue.sample(64), twin.sample(64))
    assert torch.equal(queue.sample(64), twin.sample(64))
    with pytest.raises(ValueError, match="gaps"):
        twin.load_state_dict({"generator": state["generator"]})
    with pytest.raises(ValueError, match="state"):
        GapQueue(capacity=10).load_state_dict(state)


def test_dynamic_margins_solve_over_current_and_drawn_gaps():
    queue = GapQueue(capacity=2048, solve_size=256, generator=torch.Generator().manual_seed(1))
    past, gaps = draw(400, seed=1), draw(32, seed=2)
    queue.push(past)
    twin = torch.Generator().manual_seed(1)
    company = past[torch.randperm(400, generator=twin)[:224]]
    expected = target_margins(torch.cat([gaps, company]), gamma0=4.0, tau=10.0)[:32]
    found = dynamic_margins(gaps, queue, gamma0=4.0, tau=10.0)
    assert torch.equal(found, expected)
    assert len(queue) == 432
    centred = dynamic_margins(gaps, GapQueue(), gamma0=4.0, tau=10.0, center=True)
    assert float(centred.mean()) == pytest.approx(0.0, abs=1e-12)  # an empty queue: the step alone
    large = draw(300, seed=3)
    alone = dynamic_margins(large, GapQueue(), gamma0=4.0, tau=10.0)
    assert torch.equal(alone, target_margins(large, gamma0=4.0, tau=10.0))


def test_what_is_not_said_is_training_by_twenty_updates():
    queue, twin = GapQueue(), GapQueue(capacity=2048, solve_size=256)
    assert (queue.capacity, queue.solve_size) == (2048, 256)
    past, gaps = draw(3000), draw(8, seed=5)
    for each in (queue, twin):
        each.push(past)
    stated = {"solver": "mirror_descent", "gamma0": 4.0, "tau": 10.0}
    found = dynamic_margins(gaps, queue, **stated)
    every = {"steps": 20, "center": False, "parity": None, "training": True}
    assert torch.equal(found, dynamic_margins(gaps, twin, **stated, **every))
    assert torch.equal(queue.state_dict()["gaps"], torch.cat([past, gaps])[-2048:])


def test_evaluation_only_reads_the_queue():
    queue = GapQueue()
    queue.push(draw(500))
    before = queue.state_dict()
    first = dynamic_margins(draw(8, seed=5), queue, gamma0=4.0, tau=10.0, training=False)
    again = dynamic_margins(draw(8, seed=5), queue, gamma0=4.0, tau=10.0, training=False)
    assert torch.equal(first, again)
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


def test_official_queue_starts_with_eight_normals():
    assert len(GapQueue(parity="official")) == 8
    values = torch.cat(
        [
            GapQueue(generator=torch.Generator().manual_seed(s), parity="official").sample(8)
            for s in range(500)
        ]
    )
    assert abs(float(values.mean())) < 0.06  # 4 standard errors of 4000 normals
    assert float(values.std()) == pytest.approx(1.0, abs=0.05)


# --- Theorem 3.1 ---


def implied_smoothing(gaps, deltas, *, gamma0, exact=False):
    """Eq. 14: the label smoothing at which Eq. 13's loss is gamma-PO's at margin gamma0 + delta.

    To first order in delta, or `exact`; a smaller margin than gamma0 at a positive gap means a
    *negative* smoothing, and at gap 0 none exists.
    """
    softplus = losses.softplus
    base = softplus(gamma0 - gaps)
    change = (
        softplus(gamma0 + deltas - gaps) - base if exact else deltas * torch.sigmoid(gamma0 - gaps)
    )
    return change / (softplus(gaps + gamma0) - base)


def test_smoothing_makes_both_losses_equal_and_eq_14_is_its_first_order():
    gaps = torch.tensor([-3.0, -0.5, 0.7, 2.0, 6.0], dtype=torch.float64)
    scores = Scores(
        torch.stack([gaps, 0 * gaps], dim=1), torch.zeros(5, 2).double(), torch.ones(5, 2)
    )
    gamma0, delta = 0.8, torch.tensor([0.3, -0.2, 0.1, -0.3, 0.4], dtype=torch.float64)
    epsilon = implied_smoothing(gaps, delta, gamma0=gamma0, exact=True)
    constant = torch.full_like(gaps, gamma0)
    kept = losses.dpo(scores, beta=1.0, margin=constant)
    flipped = losses.dpo(scores._replace(logps=scores.logps.flip(1)), beta=1.0, margin=constant)
    ours = losses.dpo(scores, beta=1.0, margin=constant + delta)  # Eq. 11
    torch.testing.assert_close((1 - epsilon) * kept + epsilon * flipped, ours)  # Eq. 13
    for shrink in (1e-2, 1e-4):
        small = shrink * delta
        exact = implied_smoothing(gaps, small, gamma0=gamma0, exact=True)
        first = implied_smoothing(gaps, small, gamma0=gamma0)
        assert (exact / first - 1).abs().max() < 2 * shrink
    assert torch.equal(
        epsilon.sign(), delta.sign() * gaps.sign()
    )  # where the theorem's reading holds and fails


BAD = [
    ({"gamma0": -1.0, "tau": 1.0}, "gamma0"),
    ({"gamma0": math.nan, "tau": 1.0}, "gamma0"),
    ({"gamma0": 1.0, "tau": 0.0}, "tau"),
    ({"gamma0": 1.0, "tau": -1.0}, "tau"),
    ({"gamma0": 1.0, "tau": 1.0, "solver": "newton"}, "solver"),
    ({"gamma0": 1.0, "tau": 1.0, "steps": 0}, "steps"),
    ({"gamma0": 1.0, "tau": 1.0, "parity": "paper"}, "parity"),
]


@pytest.mark.parametrize(("keywords", "argument"), BAD)
def test_bad_arguments_are_named(keywords, argument):
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        target_margins(draw(4), **keywords)


def test_bad_gaps_and_sizes_are_named():
    for gaps in (torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="gaps"):
            target_margins(gaps, gamma0=1.0, tau=1.0)
        with pytest.raises(ValueError, match="gaps"):
            GapQueue().push(gaps)
    for name in ("capacity", "solve_size"):
        with pytest.raises(ValueError, match=name):
            GapQueue(**{name: 0})
    with pytest.raises(ValueError, match="parity"):
        GapQueue(parity="paper")
