"""Slot weights: the exact ratio of a shift of one slot, and the share of contamination by EM."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm

from robustpo_kit import calibration
from robustpo_kit.calibration import slot_ratios, slot_weights


def drawn(rate, rows=4000, shift=2.0, seed=0):
    """Golden replies from N(shift, 1), others from N(0, 1); which rows are contaminated."""
    generator = np.random.default_rng(seed)
    contaminated = generator.random(rows) < rate
    y = generator.normal(np.where(contaminated, 0.0, shift))
    return y, contaminated, norm.pdf(y, shift) / norm.pdf(y)


def test_the_weight_is_the_density_ratio_of_a_shift_of_one_slot():
    """Def. 2.1 with mixture (1 - r) P + r S in one slot; every other slot cancels."""
    y, _, ratios = drawn(0.4)
    mixture = 0.6 * norm.pdf(y, 2.0) + 0.4 * norm.pdf(y)
    found = slot_weights(ratios, rate=0.4).weights
    np.testing.assert_allclose(found, norm.pdf(y, 2.0) / mixture, rtol=1e-12)
    assert found.max() < 1 / 0.6


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.8])
def test_the_share_of_contamination_is_found_whatever_prior_the_classifier_had(rate):
    _, _, ratios = drawn(rate)
    rates = []
    for prior in (0.2, 0.5, 0.75):
        c = expit(np.log(ratios) + np.log(prior / (1 - prior)))
        found = slot_weights(slot_ratios(c, imbalance=(1 - prior) / prior))
        rates.append(found.rate)
        assert found.weights.mean() == pytest.approx(1.0, abs=1e-9)
    assert rates[0] == pytest.approx(rate, abs=0.04)
    np.testing.assert_allclose(rates, rates[0], atol=1e-6)


def test_it_is_the_fixed_point_of_expectation_maximisation():
    _, _, ratios = drawn(0.3, rows=300)
    share = 0.5
    for _ in range(3000):
        share = (share * ratios / (share * ratios + 1 - share)).mean()
    assert 1 - slot_weights(ratios).rate == pytest.approx(share, abs=1e-9)


def test_without_contamination_it_is_erm():
    """Not one weight moves, where h~ weighs clean samples by chance."""
    ratios = np.array([1.2, 3.0, 8.0, 0.9])
    found = slot_weights(ratios)
    assert found.rate == 0.0 and (found.weights == 1).all()


def test_where_nothing_is_golden_the_weight_is_the_ratio():
    ratios = np.array([0.5, 0.1, 0.9])
    found = slot_weights(ratios)
    assert found.rate == 1.0
    np.testing.assert_allclose(found.weights, ratios)


def test_the_factor_looks_at_the_claimed_slot_alone():
    c = torch.tensor(np.random.default_rng(0).uniform(0.05, 0.95, (50, 4)))
    other = torch.cat([c[:, :1], c[:, 1:].flip(0)], dim=1)
    found = calibration.calibration_factor(c, kind="slot", imbalance=3.0)
    assert torch.equal(found, calibration.calibration_factor(other, kind="slot", imbalance=3.0))
    expected = slot_weights(slot_ratios(c[:, 0].numpy(), imbalance=3.0)).weights
    np.testing.assert_array_equal(found.numpy(), expected)
    relative = calibration.calibration_factor(c, alpha=0.25, beta=0.25)
    assert not torch.equal(relative, calibration.calibration_factor(other, alpha=0.25, beta=0.25))


REFUSED = {
    "probs": lambda: slot_ratios([0.5, 1.2]),
    "imbalance": lambda: slot_ratios([0.5], imbalance=0.0),
    "ratios": lambda: slot_weights([1.0, 0.0]),
    "rate": lambda: slot_weights([1.0], rate=1.5),
    "imbalance: 'slot' needs": lambda: calibration.calibration_factor(
        torch.ones(2, 2) / 2, kind="slot"
    ),
    "alpha, beta": lambda: calibration.calibration_factor(torch.ones(1, 2) / 2),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_bad_arguments_are_named(argument):
    with pytest.raises(ValueError, match=argument):
        REFUSED[argument]()
