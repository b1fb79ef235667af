"""Robust aggregation: numpy formulas, limits, duality by maximising over the ball, convergence."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize

from robustpo_kit import objectives, robust

quick = settings(max_examples=40, deadline=None)
VALUES = st.lists(st.floats(-5, 30), min_size=1, max_size=40)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def draw(count=9, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 2.0, count), rng.uniform(0.0, 4.0, count)


FORMULAS = {  # by the words of the methods' table, as plain averages of exponentials
    "erm": lambda x, h, lam: np.mean(x),
    "reweight": lambda x, h, lam: np.dot(h, x) / len(x),
    "dro": lambda x, h, lam: lam * np.log(np.mean(np.exp(x / lam))),
    "dora": lambda x, h, lam: lam * np.log(np.mean(np.exp(h * x / lam))),
    "dora_outside": lambda x, h, lam: np.mean(h) * lam * np.log(np.mean(np.exp(x / lam))),
    "dr_dpo": lambda x, h, lam: -lam * np.log(np.mean(np.exp(-x / lam))),
    "kldpo": lambda x, h, lam: np.mean(np.minimum(10, np.exp((x - np.mean(x)) / lam)) * x),
}
HELD = {"kldpo"}  # kinds whose weights are held fixed: no derivative of the value but of a step


@pytest.mark.parametrize("lam", [0.5, 1.0, 7.0])
@pytest.mark.parametrize("kind", robust.KINDS)
def test_value_and_weights(kind, lam):
    x, h = draw()
    losses, factors = tensor(x).requires_grad_(), tensor(h)
    value = robust.aggregate(losses, factors, kind=kind, lam=lam)
    assert float(value.detach()) == pytest.approx(FORMULAS[kind](x, h, lam), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, losses)
    torch.testing.assert_close(
        robust.weights(losses, factors, kind=kind, lam=lam), gradient, rtol=1e-12, atol=1e-14
    )
    assert kind in HELD or torch.autograd.gradcheck(
        lambda z: robust.aggregate(z, factors, kind=kind, lam=lam), losses
    )


def test_kldpo_tilts_towards_high_losses_up_to_ten_times():
    """Losses 0, 0, 3 around their mean of 1: e^-1, e^-1 and e^2, at a low lambda the cap."""
    losses = tensor([0.0, 0.0, 3.0])
    found = robust.aggregate_with_weights(losses, kind="kldpo")
    tilts = tensor([math.exp(-1), math.exp(-1), math.exp(2)])
    torch.testing.assert_close(found.weights, tilts / 3)
    assert float(found.value) == pytest.approx(math.exp(2))
    assert float(robust.weights(losses, kind="kldpo", lam=0.1)[2]) == pytest.approx(10 / 3)


@quick
@given(VALUES)
def test_large_lambda_is_the_mean_and_small_lambda_the_extreme(values):
    losses = tensor(values)
    for kind, extreme in (("dro", max(values)), ("dr_dpo", min(values))):
        mean = robust.aggregate(losses, kind=kind, lam=1e10)
        assert float(mean) == pytest.approx(np.mean(values), abs=1e-6)
        assert float(robust.aggregate(losses, kind=kind, lam=1e-9)) == pytest.approx(
            extreme, abs=1e-6
        )
    ones = torch.ones_like(losses)
    torch.testing.assert_close(
        robust.aggregate(losses, ones, kind="dora", lam=1e10), losses.mean(), rtol=0, atol=1e-6
    )


def test_large_lambda_is_the_mean_in_single_precision():
    losses = torch.linspace(0.1, 2.0, 32)
    assert float(robust.aggregate(losses, kind="dro", lam=1e6)) == pytest.approx(
        float(losses.mean()), abs=1e-5
    )


@quick
@given(VALUES, st.floats(0.05, 20.0), st.floats(-10, 10), st.integers(0, 1000))
def test_shift_moves_the_value_and_order_does_not(values, lam, shift, seed):
    losses = tensor(values)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    for kind in ("erm", "dro", "dr_dpo"):
        value = robust.aggregate(losses, kind=kind, lam=lam)
        assert float(robust.aggregate(losses + shift, kind=kind, lam=lam)) == pytest.approx(
            float(value) + shift, abs=1e-8
        )
        assert float(robust.aggregate(losses[order], kind=kind, lam=lam)) == pytest.approx(
            float(value), abs=1e-8
        )


@quick
@given(VALUES, st.floats(0.05, 20.0))
def test_dro_is_at_least_the_mean_and_dr_dpo_at_most(values, lam):
    losses = tensor(values)
    mean = float(losses.mean())
    assert float(robust.aggregate(losses, kind="dr_dpo", lam=lam)) <= mean + 1e-9
    assert mean <= float(robust.aggregate(losses, kind="dro", lam=lam)) + 1e-9
    assert float(robust.aggregate(losses, kind="dro", lam=lam)) <= max(values) + 1e-9


def test_h_of_one_turns_dora_into_dro():
    x, _ = draw()
    losses, ones = tensor(x), torch.ones(len(x), dtype=torch.float64)
    for kind in ("dora", "dora_outside"):
        torch.testing.assert_close(
            robust.aggregate(losses, ones, kind=kind), robust.aggregate(losses, kind="dro")
        )
    torch.testing.assert_close(robust.aggregate(losses, ones, kind="reweight"), losses.mean())


def test_micro_batch_of_one_has_no_robustness():
    losses, h = tensor([2.0]), tensor([1.5])
    torch.testing.assert_close(robust.aggregate(losses, h, kind="dora", lam=0.3), tensor(3.0))


def test_negative_losses_turn_h_round_until_shifted():
    losses, h = tensor([-0.5, -0.5, -0.5]), tensor([0.5, 1.0, 3.0])
    robust_share = robust.weights(losses, h, kind="dora", lam=0.2) / h
    assert robust_share.diff().max() < 0  # larger h, smaller exponential weight
    shifted = robust.weights(losses, h, kind="dora", lam=0.2, loss_shift=1.0) / h
    assert shifted.diff().min() > 0
    value = robust.aggregate(losses, h, kind="dora", lam=0.2, loss_shift=1.0)
    torch.testing.assert_close(value, robust.aggregate(losses + 1.0, h, kind="dora", lam=0.2))


def test_mean_one_h_has_the_summed_weight_of_erm():
    x, h = draw()
    losses, factors = tensor(x), tensor(h)
    summed = robust.weights(losses, factors, kind="reweight", normalise_h="mean_one").sum()
    assert float(summed) == pytest.approx(1.0, rel=1e-12)
    for kind in (kind for kind, row in robust.AGGREGATORS.items() if row.needs_h):
        scaled = robust.aggregate(losses, 17 * factors, kind=kind, normalise_h="mean_one")
        torch.testing.assert_close(
            scaled, robust.aggregate(losses, factors / factors.mean(), kind=kind)
        )


def test_effective_sample_size():
    assert float(robust.effective_sample_size(torch.full((8,), 0.3))) == pytest.approx(8)
    assert float(robust.effective_sample_size(tensor([0.0, 5.0, 0.0]))) == pytest.approx(1)
    assert float(robust.effective_sample_size(tensor([3.0, 1.0]))) == pytest.approx(16 / 10)
    assert float(robust.effective_sample_size(torch.zeros(4))) == 0


@pytest.mark.parametrize("extreme", [[-1e4, 1e4, 0.0], [1e4, 1e4, 1e4], [-1e4] * 3])
@pytest.mark.parametrize("kind", robust.KINDS)
def test_finite_at_extremes(kind, extreme):
    losses = torch.tensor(extreme, requires_grad=True)
    value = robust.aggregate(losses, torch.tensor([0.0, 4.0, 1.0]), kind=kind, lam=0.01)
    (gradient,) = torch.autograd.grad(value, losses)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


# --- the ball (Prop. 3.2, B.2) ---


@pytest.mark.filterwarnings("ignore:delta_grad")
@pytest.mark.parametrize("with_h", [False, True])
@pytest.mark.parametrize("rho", [0.01, 0.2, 0.8])
def test_duality_by_maximisation_over_the_ball(rho, with_h):
    x, h = draw(6, seed=1)
    x, h = np.abs(x), h if with_h else np.ones(6)
    target = h * x

    def divergence(q):
        return np.sum(q * np.log(np.maximum(q * len(q), 1e-300)))

    found = minimize(
        lambda q: -q @ target,
        np.full(6, 1 / 6),
        jac=lambda q: -target,
        bounds=[(1e-9, 1)] * 6,
        constraints=[
            LinearConstraint(np.ones(6), 1, 1),
            NonlinearConstraint(
                divergence, -np.inf, rho, jac=lambda q: 1 + np.log(np.maximum(q * 6, 1e-300))
            ),
        ],
        method="trust-constr",
        options={"gtol": 1e-10, "xtol": 1e-12, "maxiter": 2000},
    )
    factors = tensor(h) if with_h else None
    assert robust.worst_case_risk(tensor(x), rho, factors) == pytest.approx(-found.fun, rel=1e-4)
    lam = robust.lambda_from_radius(tensor(x), rho, factors)
    weights = robust.weights(tensor(target), kind="dro", lam=lam)
    assert float(robust.kl_from_uniform(weights)) == pytest.approx(rho, rel=1e-9)
    np.testing.assert_allclose(weights, found.x, atol=2e-3)


@quick
@given(
    st.lists(st.floats(0, 30), min_size=3, max_size=30, unique=True),
    st.floats(1e-4, 0.9),
    st.floats(-3, 3),
)
def test_no_other_lambda_has_a_smaller_dual(values, rho, step):
    losses = tensor(values)
    risk = robust.worst_case_risk(losses, rho)
    lam = robust.lambda_from_radius(losses, rho)
    other = lam * math.exp(step)
    value = float(robust.aggregate(losses, kind="dro", lam=other)) + other * rho
    assert risk <= value + 1e-9 * max(1.0, abs(value))
    assert float(losses.mean()) - 1e-9 <= risk <= max(values) + 1e-9


def test_a_radius_that_reaches_the_worst_sample():
    losses = tensor([1.0, 2.0, 5.0, 5.0])
    with pytest.raises(ValueError, match="rho"):
        robust.lambda_from_radius(losses, math.log(2))
    assert robust.worst_case_risk(losses, math.log(2)) == 5.0
    for rho in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="rho"):
            robust.lambda_from_radius(losses, rho)


def test_gradient_descent_on_a_convex_toy_converges_like_one_over_t():
    """B.3: the robust objective of convex smooth losses is convex.

    So F_t - F* <= |theta_0 - theta*|^2 / (2 step t).
    """
    rng = np.random.default_rng(2)
    features, targets = tensor(rng.normal(size=(40, 3))), tensor(rng.normal(size=40))
    h, step = tensor(rng.uniform(0.2, 2.0, 40)), 0.1
    theta, history = torch.zeros(3, dtype=torch.float64), []
    for _ in range(3000):
        theta.requires_grad_()
        losses = torch.nn.functional.softplus(targets - features @ theta)
        value = robust.aggregate(losses, h, kind="dora", lam=1.0)
        (gradient,) = torch.autograd.grad(value, theta)
        history.append(float(value.detach()))
        theta = (theta - step * gradient).detach()
    assert float(gradient.norm()) < 1e-6  # the last point is the minimum
    steps = np.arange(1, 3000)
    bound = float(theta.square().sum()) / (2 * step * steps)
    assert (np.array(history[1:]) - history[-1] <= bound).all()
    assert (np.diff(history) <= 1e-12).all()
    assert history[0] - history[-1] > 0.1


# --- refusals ---

ONES = torch.ones(3)
BAD = [
    ({"kind": "max"}, ONES, None, "kind"),
    ({"kind": "dro", "lam": -1.0}, ONES, None, "lam"),
    ({"kind": "dro", "lam": 0.0}, ONES, None, "lam"),
    ({"kind": "dro", "lam": math.nan}, ONES, None, "lam"),
    ({"kind": "dora"}, ONES, None, "h"),
    ({"kind": "dora"}, ONES, torch.ones(4), "h"),
    ({"kind": "dora"}, ONES, -ONES, "h"),
    ({"kind": "dora"}, ONES, ONES * math.nan, "h"),
    ({"kind": "reweight", "normalise_h": "mean_one"}, ONES, torch.zeros(3), "h"),
    ({"kind": "reweight", "normalise_h": "sum"}, ONES, ONES, "normalise_h"),
    ({"kind": "erm", "loss_shift": math.inf}, ONES, None, "loss_shift"),
    ({"kind": "erm"}, ONES * math.nan, None, "per_sample"),
    ({"kind": "erm"}, torch.ones(3, 2), None, "per_sample"),
    ({"kind": "erm"}, torch.ones(0), None, "per_sample"),
]


@pytest.mark.parametrize(("keywords", "losses", "h", "argument"), BAD)
def test_bad_arguments_are_named(keywords, losses, h, argument):
    for function in (robust.aggregate, robust.weights):
        with pytest.raises(ValueError, match=rf"^{argument}\b"):
            function(losses, h, **keywords)


@pytest.mark.parametrize(
    ("row", "argument"),
    [
        (lambda: robust.Aggregator(robust._erm, "steps"), "coupling"),
        (lambda: robust.Aggregator(lambda losses, *, lam=5.0: None, "step"), "lam"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(row, argument):
    with pytest.raises(ValueError, match=argument):
        row()


def test_a_keyword_without_default_is_asked_for_by_name(monkeypatch):
    def tail(losses, *, alpha):
        worst = losses.topk(max(1, round(alpha * len(losses)))).values
        return robust.Aggregate(worst.mean(), (losses >= worst.min()).to(losses) / len(worst))

    monkeypatch.setitem(robust.AGGREGATORS, "tail", robust.Aggregator(tail, "step"))
    losses = torch.arange(4.0)
    with pytest.raises(ValueError, match="alpha: 'tail' needs it"):
        robust.aggregate(losses, kind="tail")
    with pytest.raises(ValueError, match="tail needs alpha"):
        objectives.build("tail(dpo(beta=0.1))")
    assert robust.aggregate(losses, kind="tail", alpha=0.5) == 2.5
