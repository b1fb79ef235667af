"""Paired differences by simulation: intervals cover as often as they say, and naive ones do not."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from robustpo_kit import analysis, intervals

SEEDS, PROMPTS = 8, 40


def made_up_pairs(rng, *, seed_sd, prompt_sd, effect=0.0, noise=0.5, seeds=SEEDS, prompts=PROMPTS):
    """Paired differences: effect + seed + prompt + noise, the same prompts under every seed."""
    shape = (seeds, prompts)
    shift = rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, prompt_sd, (1, prompts))
    gain = effect + shift + rng.normal(0, noise, shape)
    seed, row_id = np.indices(shape).reshape(2, -1)
    return pd.DataFrame({"seed": seed, "row_id": row_id, "difference": gain.ravel()})


def test_the_difference_is_that_of_pairs_by_hand():
    table = pd.DataFrame(
        {
            "seed": [0, 0, 1, 1, 0, 0, 1],
            "row_id": ["a", "b", "a", "b", "a", "b", "a"],
            "method": ["dora"] * 4 + ["erm"] * 3,
            "outcome": "gold",
            "value": [1.0, 2.0, 3.0, 9.0, 0.0, 1.5, 2.0],
        }
    )
    pairs = analysis.paired_rows(table, "dora", "erm", "gold")
    assert pairs["difference"].tolist() == [1.0, 0.5, 1.0]  # prompt b of seed 1 has no partner
    found = analysis.mean_difference(pairs)
    assert (found.seeds, found.prompts, found.df) == (2, 2, 1)
    assert found.difference == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("prompts", [2, 3, 5, 6, 40])
def test_differences_that_are_all_one_number_certify_no_more_than_a_sign_test(prompts):
    """Three prompts that are all won had p 0 and the interval [1, 1]."""
    pairs = pd.DataFrame({"seed": 0, "row_id": range(prompts), "difference": 0.3})
    found = analysis.mean_difference(pairs)
    assert found.p_value == pytest.approx(stats.binomtest(prompts, prompts).pvalue)
    assert (found.low > 0) == (found.p_value < 0.05) == (prompts >= 6)
    unseen = stats.binomtest(0, prompts).proportion_ci().high
    assert found.high - 0.3 == pytest.approx(2 * 0.3 * unseen) == 0.3 - found.low
    half = stats.t.ppf(0.975, found.df) * found.se
    assert half == pytest.approx(found.high - 0.3), "what reads the error says the same"


def test_zeros_alone_show_no_difference_and_equivalence_from_five_on():
    for prompts, shown in ((3, False), (4, False), (5, True)):
        pairs = pd.DataFrame({"seed": 0, "row_id": range(prompts), "difference": 0.0})
        found = analysis.mean_difference(pairs)
        assert (found.low, found.high, found.p_value) == (0, 0, 1)
        assert (analysis.equivalence(found, 0.05) < 0.05) == shown


def test_without_prompts_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 8), rng.normal(0.3, 1, 8)
    rows = {"seed": [*range(8), *range(8)], "method": ["dora"] * 8 + ["erm"] * 8}
    table = pd.DataFrame(rows | {"outcome": "gold", "value": [*first, *second]})
    pairs = analysis.paired_rows(table, "dora", "erm", "gold")
    found, peer = analysis.mean_difference(pairs, level=0.9), stats.ttest_rel(first, second)
    low, high = peer.confidence_interval(0.9)
    assert found[:3] == pytest.approx((np.mean(first - second), low, high))
    assert found.p_value == pytest.approx(peer.pvalue)


def test_one_seed_speaks_of_its_prompts_and_one_value_of_nothing():
    rng = np.random.default_rng(0)
    pairs = made_up_pairs(rng, seed_sd=0, prompt_sd=0, seeds=1)
    found = analysis.mean_difference(pairs)
    assert (found.seeds, found.df) == (1, PROMPTS - 1)
    assert found[:3] == pytest.approx(intervals.t_interval(pairs["difference"])[:3])
    alone = analysis.mean_difference(pairs[:1])
    assert np.isnan([alone.low, alone.high, alone.p_value]).all() and alone.df == 0


@pytest.mark.parametrize(("seed_sd", "prompt_sd"), [(0.2, 0.0), (0.0, 0.3), (0.15, 0.3)])
def test_intervals_cover_clustered_data_and_those_over_rows_do_not(seed_sd, prompt_sd):
    rng = np.random.default_rng(1)
    trials = 200
    hits, naive = 0, 0
    for _ in range(trials):
        pairs = made_up_pairs(rng, seed_sd=seed_sd, prompt_sd=prompt_sd)
        found = analysis.mean_difference(pairs)
        hits += found.low < 0 < found.high
        values = pairs["difference"].to_numpy()
        naive += abs(values.mean()) < 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    print(seed_sd, prompt_sd, hits / trials, naive / trials)
    # binomial(200, 0.95) lies below 181 with probability under one in 200
    assert hits >= 181 and naive < 0.9 * trials


def test_the_error_is_that_of_a_mixed_model_with_crossed_effects():
    rng = np.random.default_rng(3)
    pairs = made_up_pairs(rng, seed_sd=0.3, prompt_sd=0.3, seeds=12).assign(all=1)
    parts = {"seed": "0 + C(seed)", "prompt": "0 + C(row_id)"}
    peer = MixedLM.from_formula("difference ~ 1", pairs, groups="all", vc_formula=parts).fit()
    assert analysis.mean_difference(pairs).se == pytest.approx(peer.bse["Intercept"], rel=0.1)


def test_a_percentile_bootstrap_over_eight_seeds_is_too_narrow():
    rng = np.random.default_rng(2)
    widths = []
    for _ in range(50):
        pairs = made_up_pairs(rng, seed_sd=0.2, prompt_sd=0.0, prompts=4)
        found = analysis.mean_difference(pairs)
        other = intervals.bootstrap_mean(pairs["difference"], pairs["seed"], draws=400)
        widths.append((other.high - other.low) / (found.high - found.low))
    assert np.mean(widths) < 0.85


# ---------------------------------------------------------------- what could have been seen


def test_the_detectable_difference_is_seen_as_often_as_it_says():
    size = analysis.minimum_detectable(0.5, seeds=6, prompts=20, seed_sd=0.1)
    rng = np.random.default_rng(0)
    seen = rng.normal(size, np.hypot(0.1, 0.5 / np.sqrt(20)), (4000, 6))
    p_values = stats.ttest_1samp(seen, 0, axis=1).pvalue
    assert np.mean(p_values < 0.05) == pytest.approx(0.8, abs=0.025)


def test_detectable_differences_known_beforehand():
    # 2.80 standard errors for many units: 1.96 and 0.84
    assert analysis.minimum_detectable(0.35, 1, 1000) == pytest.approx(
        2.80 * 0.35 / np.sqrt(1000), rel=0.01
    )
    more_prompts = analysis.minimum_detectable(0.35, 8, 10**6, seed_sd=0.1)
    assert more_prompts == pytest.approx(analysis.minimum_detectable(0.1, 8), rel=1e-3)
    for numbers in ({"seeds": 1}, {"seeds": 0, "prompts": 9}, {"seeds": 2, "seed_sd": -1}):
        with pytest.raises(ValueError, match="two seeds or two prompts at least"):
            analysis.minimum_detectable(0.35, **numbers)
    with pytest.raises(ValueError, match="one seed cannot see beyond itself"):
        analysis.minimum_detectable(0.35, 1, 100, seed_sd=0.1)
    with pytest.raises(ValueError, match=r"seeds = 2\.5: a whole number"):
        analysis.minimum_detectable(0.35, 2.5)
    with pytest.raises(ValueError, match="level = 95: a share"):
        analysis.minimum_detectable(0.35, 8, level=95)


def test_equivalence_is_a_ninety_percent_interval_within_the_margin():
    pairs = made_up_pairs(np.random.default_rng(5), seed_sd=0.02, prompt_sd=0.0)
    found = analysis.mean_difference(pairs, level=0.9)
    widest = max(abs(found.low), abs(found.high))
    assert analysis.equivalence(found, widest) == pytest.approx(0.05, rel=1e-6)
    assert (
        analysis.equivalence(found, 1.5 * widest) < 0.05 < analysis.equivalence(found, 0.7 * widest)
    )


# ---------------------------------------------------------------- many at once


@pytest.mark.parametrize(("seeds", "count"), [(4, 6), (8, 6), (8, 20)])
def test_bands_cover_all_at_once_and_single_intervals_do_not(seeds, count):
    rng = np.random.default_rng(4)
    trials = 300
    bands = single = 0
    for trial in range(trials):
        units = rng.normal(0, 1, (seeds, count)) + rng.normal(0, 1, (seeds, 1))  # one baseline
        t_values = units.mean(axis=0) / (units.std(axis=0, ddof=1) / np.sqrt(seeds))
        found = analysis.simultaneous(units, t_values, seed=trial)
        bands += np.abs(t_values).max() < found.factor
        single += np.abs(t_values).max() < stats.t.ppf(0.975, seeds - 1)
    print(seeds, count, bands / trials, single / trials)
    # binomial(300, 0.95) lies below 273 with probability under one in 500
    assert bands >= 273 and single < 0.9 * trials


def test_drawn_flips_say_what_all_say_and_likeness_sharpens_what_bonferroni_says():
    rng = np.random.default_rng(0)
    units = rng.normal(0, 1, (12, 5)) + rng.normal(0, 1, (12, 1))
    t_values = np.array([0.5, 1.0, 2.5, 3.5, 4.5])
    every = analysis.simultaneous(units, t_values, seed=0)
    drawn = analysis.simultaneous(units, t_values, flips=2000, seed=0)
    assert drawn.factor == pytest.approx(every.factor, rel=0.05)
    assert drawn.p_values == pytest.approx(every.p_values, abs=0.04)
    few = analysis.simultaneous(units[:5], t_values, seed=0)
    assert few.p_values == pytest.approx(np.minimum(1, 10 * stats.t.sf(t_values, 4)))
    alike = units + rng.normal(0, 5, (12, 1))
    assert analysis.simultaneous(alike, t_values, seed=0).factor < 0.9 * stats.t.isf(0.005, 11)
