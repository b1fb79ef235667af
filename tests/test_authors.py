"""parity="authors": DoRA branch by branch, against the formulas of the authors' script."""

import math

import numpy as np
import pytest
import torch

from robustpo_kit import objectives, robust, training
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.training import TrainConfig
from tests.training_setting import preferences, tiny

LOGPS = np.array([[-4.0, -7.5, -3.0, -9.0], [-6.0, -2.0, -8.0, -5.0]])
REFERENCE = np.array([[-5.0, -7.0, -3.5, -8.0], [-6.5, -2.5, -7.0, -6.0]])
LENGTHS = np.array([[3.0, 5.0, 2.0, 6.0], [4.0, 2.0, 5.0, 4.0]])
REWARDS = np.array([[2.0, 0.5, -1.0, 0.0], [1.0, 1.5, -0.5, 0.2]])  # row 1: the chosen is not best
C = np.array([[0.9, 0.4, 0.1, 0.05], [0.3, 0.6, 0.2, 0.1]])
W = 1 / (1 / 4 + 1 / 4 * (1 - C) / C)  # their weight of a response, at a uniform mixture of four
LAM = 0.5


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def scores():
    fields = (LOGPS, REFERENCE, LENGTHS, REWARDS)
    return Scores(*(torch.tensor(field) for field in fields))


def plackett_luce():
    """-(1/K) sum_k [beta g_(k) - log sum_{j >= k} e^{beta g_(j)}], from the best reward down."""
    found = []
    for gain, reward in zip(0.1 * (LOGPS - REFERENCE), REWARDS, strict=True):
        ordered = gain[np.argsort(-reward)]
        left = [np.log(np.exp(ordered[k:]).sum()) for k in range(4)]
        found.append(-(ordered - left).sum() / 4)
    return np.array(found)


def lire():
    """-(1/K) sum_k softmax(s / 2)_k softmax(reward)_k."""
    return -(softmax(LOGPS / 2) * softmax(REWARDS)).sum(axis=1) / 4


def rrhf():
    """(1/K) sum of (a_i - a_j)_+ over R_i < R_j, less the chosen reply's log-prob a token."""
    a, found = LOGPS / LENGTHS, []
    for own, reward in zip(a, REWARDS, strict=True):
        worse = reward[:, None] < reward[None, :]
        found.append((np.maximum(own[:, None] - own[None, :], 0) * worse).sum() / 4 - own[0])
    return np.array(found)


def dpo_pl_value(w):
    """lam log mean_b exp(h_b l_b / lam), h_b = mean_k w_bk."""
    loss = plackett_luce()[: len(w)]
    return LAM * np.log(np.exp(w.mean(axis=1) * loss / LAM).mean())


def lire_value(w):
    """lam mean_bk(w) log mean_b exp(l_b / lam)."""
    return LAM * w.mean() * np.log(np.exp(lire()[: len(w)] / LAM).mean())


def rrhf_value(w):
    """lam log mean_bk exp(lbar w_bk / lam), lbar the mean of the batch."""
    return LAM * np.log(np.exp(rrhf()[: len(w)].mean() * w / LAM).mean())


BRANCHES = {
    "dpo_pl(beta=0.1)": (plackett_luce, dpo_pl_value),
    "lire(temperature=2.0)": (lire, lire_value),
    "rrhf(alpha=1.0)": (rrhf, rrhf_value),
}


def test_their_weight_at_four_responses_is_four_times_c():
    np.testing.assert_allclose(W, 4 * C)


@pytest.mark.parametrize("base", BRANCHES)
def test_a_micro_batch_of_two_is_their_formula(base):
    per_sample, value = BRANCHES[base]
    objective = objectives.build(f"dora({base}, lam={LAM}, parity=authors, micro_batch=2)")
    step = objective.step_loss(scores(), torch.tensor(W))
    np.testing.assert_allclose(step.per_sample, per_sample(), rtol=1e-12)
    assert float(step.loss) == pytest.approx(value(W), rel=1e-12)
    assert objective.coupling == "step"


@pytest.mark.parametrize("base", BRANCHES)
def test_their_script_has_one_prompt_a_micro_batch(base):
    """The step is then the mean of two formulas of one prompt each: nothing couples them."""
    objective = objectives.build(f"dora({base}, lam={LAM}, parity=authors)")
    step = objective.step_loss(scores(), torch.tensor(W))
    losses, h = BRANCHES[base][0](), W.mean(axis=1)
    by_prompt = [
        LAM * np.log(np.exp(loss * w / LAM).mean()) for loss, w in zip(losses, W, strict=True)
    ]
    if "rrhf" not in base:
        by_prompt = h * losses  # lam log e^{h l / lam}, and lam h log e^{l / lam}
        np.testing.assert_allclose(step.weights, h / 2, rtol=1e-12)
    assert float(step.loss) == pytest.approx(np.mean(by_prompt), rel=1e-12)
    assert objective.coupling == "separable"


@pytest.mark.parametrize("base", BRANCHES)
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_weights_are_the_derivative(base, micro_batch, monkeypatch):
    spec = f"dora({base}, lam={LAM}, parity=authors, micro_batch={micro_batch})"
    objective, found = objectives.build(spec), {}
    monkeypatch.setattr(objective._loss, "per_sample", lambda *_: found.setdefault("leaf", leaf))
    leaf = torch.tensor(BRANCHES[base][0](), requires_grad=True)
    step = objective.step_loss(scores(), torch.tensor(W))
    (slope,) = torch.autograd.grad(step.loss, leaf)
    torch.testing.assert_close(step.weights, slope, rtol=1e-12, atol=0)


def test_means_of_ratios_are_enough_but_for_rrhf():
    h = torch.tensor(W)
    for base in ("dpo_pl(beta=0.1)", "lire(temperature=2.0)"):
        objective = objectives.build(f"dora({base}, parity=authors, micro_batch=2)")
        losses = [objective.step_loss(scores(), x).loss for x in (h, h.mean(dim=1))]
        torch.testing.assert_close(*losses, rtol=1e-14, atol=0)
    objective = objectives.build("dora(rrhf(), parity=authors)")
    assert objective.needs_ratios
    with pytest.raises(ValueError, match="h: 'rrhf' .* ratio of each response"):
        objective.step_loss(scores(), h.mean(dim=1))
    with pytest.raises(ValueError, match=r"h: expected shape \[B\] or \[2, 4\]"):
        objective.step_loss(scores(), h[:, :3])
    with pytest.raises(KitError, match="row r0: .* ratio of each response"):
        training.train(tiny(), preferences(3), objective, TrainConfig())


def test_padded_columns_have_no_ratio():
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    spoilt = torch.tensor(W).masked_fill(~mask, math.nan)
    for base in BRANCHES:
        objective = objectives.build(f"dora({base}, lam={LAM}, parity=authors)")
        step = objective.step_loss(scores()._replace(mask=mask), spoilt)
        assert torch.isfinite(step.loss) and torch.isfinite(step.weights).all()
        alone = Scores(*(x if x is None else x[:1, :3] for x in scores()))
        first = objective.step_loss(alone, torch.tensor(W[:1, :3])).loss
        second = objective.step_loss(
            Scores(*(x if x is None else x[1:] for x in scores())), torch.tensor(W[1:])
        ).loss
        torch.testing.assert_close(step.loss, (first + second) / 2)


def test_division_by_k_before_the_exponential_is_lambda_times_k():
    """At the start every Plackett-Luce loss is log 24: what lambda 1 means is h alone."""
    h = torch.tensor([0.2, 0.5, 0.8, 1.0, 1.1, 1.3, 1.6, 2.0], dtype=torch.float64)
    start = torch.full((8,), math.log(24), dtype=torch.float64)
    ours = robust.weights(start, h, kind="dora", lam=1.0)
    theirs = robust.weights(start / 4, h, kind="dora", lam=1.0)
    torch.testing.assert_close(theirs, robust.weights(start, h, kind="dora", lam=4.0))
    sizes = [float(robust.effective_sample_size(weights)) for weights in (ours, theirs)]
    assert sizes[0] < sizes[1] < float(robust.effective_sample_size(h))


@pytest.mark.parametrize(
    "spec", ["dora(rrhf(alpha=1.0), parity=authors)", "dora(lire(temperature=2.0), parity=authors)"]
)
def test_training_takes_it_however_a_step_is_cut(spec, tmp_path):
    """Micro-batches of our trainer decide nothing: the authors' one prompt is in the objective."""
    rows = preferences(3)
    ratios = np.random.default_rng(0).uniform(0.1, 3.9, (len(rows), 3))
    gradients = []
    for size in (1, 3, 8):
        config = TrainConfig(batch_size=8, micro_batch_size=size)
        objective = objectives.build(spec)
        gradients.append(training.step_gradient(tiny(), rows.with_h(ratios), objective, config))
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) < 1e-5
