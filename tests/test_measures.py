"""Measures without sampling, against values by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import measures

GOLD = np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 3.0]])
GAIN = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def candidates():
    reference = np.array([[-4.0, -5.0, -6.0], [-7.0, -8.0, -9.0]])
    lengths = np.array([[2, 3, 4], [7, 2, 2]])
    return measures.Candidates(["a", "b"], GOLD, reference, lengths, rivals=[1, 2])


def test_by_hand():
    assert measures.implicit_accuracy(GAIN, [1, 2]).tolist() == [1.0, 0.25]
    # row b: pairs (0, 2) agree, (1, 2) agree, (0, 1) ties in g: tau-b = 2 / sqrt(3 * 2)
    np.testing.assert_allclose(measures.gold_tau(GAIN, GOLD), [1.0, 2 / 6**0.5])
    weights = np.exp([2.0, 1.0, 0.0])
    expected = (weights @ GOLD[0]) / weights.sum()
    assert measures.expected_gold(GAIN, GOLD)[0] == pytest.approx(expected)


def test_the_reference_itself_and_the_golden_policy():
    same = candidates()
    table = same.outcomes(same.reference_logps).pivot(
        index="row_id", columns="outcome", values="value"
    )
    assert set(table.columns) == set(measures.OUTCOMES)
    assert (table["implicit_accuracy"] == 0.5).all() and (table["gold_tau"] == 0).all()
    np.testing.assert_allclose(table["expected_gold"], GOLD.mean(axis=1))
    np.testing.assert_allclose(table["golden_logp"], [-2.0, -1.0])
    best = same.best_possible()
    assert best["value"].tolist() == [3.0, 2.0] and set(best["outcome"]) == {"expected_gold"}


def test_expected_gold_converges_to_the_truth():
    """Candidates drawn from the reference: the estimate is that of the policy."""
    rng = np.random.default_rng(0)
    reference, policy = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    gold = np.array([1.0, -1.0, 2.0])
    drawn = rng.choice(3, size=(1, 40_000), p=reference)
    gain = np.log(policy / reference)[drawn]
    assert measures.expected_gold(gain, gold[drawn])[0] == pytest.approx(policy @ gold, abs=0.03)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match=r"logps: shape \(3,\)"):
        candidates().outcomes(np.zeros(3))
    with pytest.raises(ValueError, match="finite: False"):
        candidates().outcomes(np.full((2, 3), np.nan))


def test_candidates_without_a_number_are_refused_by_row():
    known, gold = candidates(), GOLD.copy()
    gold[1, 2] = np.nan
    with pytest.raises(ValueError, match="gold, row 'b': finite numbers"):
        dataclasses.replace(known, gold=gold)


def test_tables_are_tidy():
    table = measures.tidy(["a"], {"x": np.array([1.0]), "y": np.array([2.0])})
    expected = pd.DataFrame({"row_id": "a", "outcome": ["x", "y"], "value": [1.0, 2.0]})
    pd.testing.assert_frame_equal(table, expected)
