"""Differences between methods, paired by seed and by prompt, and what they could have seen.

The unit of replication is a seed; the prompts of a seed share it, and a prompt may come back under
other seeds. The variance of a mean difference over both kinds of cluster is

    V = V_seeds + V_prompts - V_(seed, prompt)     (Cameron, Gelbach and Miller, 2011, Eq. 2.11)

and its interval is Student's with Satterthwaite's degrees of freedom of the two kinds: a percentile
bootstrap over eight seeds is too narrow, as tests/test_paired.py shows.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from robustpo_kit.records import stream

UNITS = ("seed", "row_id")  # clusters of a difference
NO_ERROR = 1e-12  # of a mean: a standard error of rounding
FEWEST = 6  # units that give 32 different flips of signs


class Difference(NamedTuple):
    """A mean difference: its interval at the level asked for, and the clusters behind it."""

    difference: float
    low: float
    high: float
    se: float  # of differences that are all one number: as their interval has it
    df: float  # degrees of freedom of t; 0 where there is one cluster, and no interval
    p_value: float  # of no difference, two-sided
    seeds: int
    prompts: int


def paired_rows(
    outcomes: pd.DataFrame,
    method: str,
    baseline: str,
    outcome: str,
    *,
    where: Mapping[str, Any] | None = None,
    against: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Method minus baseline for every seed and prompt that both have.

    Args:
        outcomes: tidy, a row a value: seed, method, outcome, value, row_id where a value belongs to
            a prompt, and the columns that `where` names.
        method: whose values are taken.
        baseline: whose values are subtracted.
        outcome: which outcome.
        where: values of columns that both sides' rows have, such as {"dose": 0.6}.
        against: the same for the baseline, where its rows are others.

    Returns:
        A row a pair: seed, row_id, difference. Values of one prompt are averaged, NaN is left out.
    """
    here = where or {}
    sides = [
        _values(outcomes, method, outcome, here),
        _values(outcomes, baseline, outcome, here if against is None else against),
    ]
    return (sides[0] - sides[1]).dropna().rename("difference").reset_index()


def _values(
    outcomes: pd.DataFrame, method: str, outcome: str, where: Mapping[str, Any]
) -> "pd.Series[float]":
    """Values by seed and prompt; a value that belongs to no prompt stands under prompt ''."""
    chosen = (outcomes["method"] == method) & (outcomes["outcome"] == outcome)
    for column, value in where.items():
        chosen &= outcomes[column] == value
    part = outcomes[chosen]
    prompts = part["row_id"].astype(object).fillna("").astype(str) if "row_id" in part else ""
    return part.assign(row_id=prompts).groupby(list(UNITS))["value"].mean()


def mean_difference(pairs: pd.DataFrame, *, level: float = 0.95) -> Difference:
    """The mean of paired differences over clusters of seeds and of prompts.

    Where all differences are one number d, t has no error to go by, and what was not seen decides:
    p is the exact sign test's of n = df + 1 clusters, 2^(1 - n), and the interval that of a mean
    to which a share of at most 1 - (alpha/2)^(1/n) (Clopper and Pearson, 1934, no case in n) comes
    with anything from -d to 3d. It leaves out zero where that test does, from n = 6 at 0.95. Zeros
    alone have the interval [0, 0] and p = 1.

    Args:
        pairs: of `paired_rows`. With one seed the clusters are its prompts, and the interval says
            nothing of other seeds; with one pair there is no interval, and without any all is NaN.
        level: of the interval.
    """
    from statsmodels.regression.linear_model import OLS

    counts = [int(pairs[unit].nunique()) for unit in UNITS]
    values = pairs["difference"].to_numpy(float)
    clusters = [pd.factorize(pairs[unit])[0] for unit in UNITS if pairs[unit].nunique() > 1]
    mean = float(pairs["difference"].mean())
    if not clusters:
        return Difference(mean, np.nan, np.nan, np.nan, 0, np.nan, *counts)
    se, df = _error(OLS(values, np.ones_like(values)).fit(), clusters)
    quantile = float(stats.t.ppf((1 + level) / 2, df))
    p_value = float(2 * stats.t.sf(abs(mean) / max(se, 1e-300), df))
    if se <= NO_ERROR * abs(mean):
        se = 2 * _unseen(df, level) * abs(mean) / quantile
        p_value = 2 * _sign_test(df) if mean else 1.0
    half = quantile * se
    return Difference(mean, mean - half, mean + half, float(se), df, p_value, *counts)


def _unseen(df: float, level: float) -> float:
    """The largest share of others that no case of them in df + 1 leaves open, two-sided."""
    return float(1 - ((1 - level) / 2) ** (1 / (df + 1)))


def _sign_test(df: float) -> float:
    """One-sided p of the exact sign test where all df + 1 clusters agree."""
    return float(0.5 ** (df + 1))


def _error(fit: Any, clusters: list[np.ndarray]) -> tuple[float, float]:
    """Standard error of the mean that `fit` holds, never below one cluster's own; its freedom."""
    from statsmodels.stats.sandwich_covariance import cov_cluster, cov_cluster_2groups

    freedom = np.array([codes.max() for codes in clusters], dtype=float)
    if len(clusters) == 1:
        return float(np.sqrt(cov_cluster(fit, clusters[0])[0, 0])), float(freedom[0])
    both, *alone = (float(part[0, 0]) for part in cov_cluster_2groups(fit, *clusters))
    variance = max(both, *alone)
    satterthwaite = variance**2 / max(np.sum(np.square(alone) / freedom), 1e-300)
    return float(np.sqrt(variance)), float(np.clip(satterthwaite, freedom.min(), freedom.max()))


def minimum_detectable(
    effect_sd: float,
    seeds: int,
    prompts: int = 1,
    *,
    seed_sd: float = 0.0,
    level: float = 0.95,
    power: float = 0.8,
) -> float:
    """The smallest true difference that a paired t test shows with probability `power`.

    Args:
        effect_sd: standard deviation of the paired difference of one prompt (with prompts = 1: of
            one seed).
        seeds: how many; with one, the test is over its prompts.
        prompts: in each seed.
        seed_sd: standard deviation of a seed's true mean difference, beside that of its prompts.
        level: of the two-sided test, as that of an interval.
        power: probability to see the difference.

    Raises:
        ValueError: a number out of its range, or `seed_sd` with one seed, which cannot show it.
    """
    if min(effect_sd, seed_sd) < 0 or min(seeds, prompts) < 1 or seeds * prompts < 2:
        raise ValueError(
            f"effect_sd = {effect_sd}, seed_sd = {seed_sd}, seeds = {seeds}, prompts = {prompts}: "
            "no negative sd, and two seeds or two prompts at least"
        )
    if seeds == 1 and seed_sd > 0:
        raise ValueError(f"seed_sd = {seed_sd}: one seed cannot see beyond itself; take two")
    for name, count in (("seeds", seeds), ("prompts", prompts)):
        if count != int(count):
            raise ValueError(f"{name} = {count}: a whole number is expected")
    for name, share in (("level", level), ("power", power)):
        if not 0 < share < 1:
            raise ValueError(f"{name} = {share}: a share between 0 and 1 is expected")
    spread = np.sqrt(seed_sd**2 + effect_sd**2 / prompts)
    units = seeds
    if seeds == 1:
        spread, units = effect_sd, prompts
    return float(_standard_effect(units, level, power) * spread)


@functools.cache  # the search takes up to half a second
def _standard_effect(units: int, level: float, power: float) -> float:
    """The smallest detectable difference in standard deviations of one unit."""
    from statsmodels.stats.power import TTestPower

    return float(np.squeeze(TTestPower().solve_power(nobs=units, alpha=1 - level, power=power)))


def equivalence(found: Difference, margin: float) -> float:
    """p of "the difference is not within plus or minus `margin`": two one-sided t tests.

    Below 0.05 the 90 % interval lies within the margin (Schuirmann, 1987). Differences that are all
    zero show it as the exact sign test does: with half of all beyond the margin, 0.5^n is chance.
    """
    if found.se == 0 and found.difference == 0:
        return _sign_test(found.df)
    return float(stats.t.sf((margin - abs(found.difference)) / max(found.se, 1e-300), found.df))


class Bands(NamedTuple):
    """Simultaneous inference over k differences: a factor for their errors, and p values [k]."""

    factor: float  # difference +- factor * se covers all k at the level
    p_values: np.ndarray  # of no difference, adjusted for looking at all k


def simultaneous(
    units: np.ndarray, t_values: np.ndarray, *, level: float = 0.95, flips: int = 4096, seed: int
) -> Bands:
    """Max-t bands: how large is the largest of k |t| where signs of whole seeds are chance?

    Residuals of the units change sign together over all k, which keeps the correlation of the
    differences, and every t is taken anew (Romano and Wolf, 2005, with flips for the bootstrap).
    Below `FEWEST` units there are too few flips, and both are Bonferroni's.

    Args:
        units: [n, k] the mean difference of each unit (seed), NaN where it has none; n > 1.
        t_values: [k] difference over its standard error.
        level: that all k intervals cover at once.
        flips: how many are drawn where there are more; else each is taken once.
        seed: of the draws.
    """
    count, differences = units.shape
    if count < FEWEST:
        tails = stats.t.sf(np.abs(t_values), count - 1)
        factor = stats.t.isf((1 - level) / 2 / differences, count - 1)
        return Bands(float(factor), np.minimum(1, 2 * differences * tails))
    residuals = np.nan_to_num(units - np.nanmean(units, axis=0))
    counts = np.isfinite(units).sum(axis=0)
    means = flipped_signs(count, flips, seed) @ residuals / counts
    variances = ((residuals**2).sum(axis=0) / counts - means**2) / np.maximum(counts - 1, 1)
    largest = np.abs(means / np.sqrt(np.maximum(variances, 1e-300))).max(axis=1)
    p_values = (largest[:, None] >= np.abs(t_values)).mean(axis=0)
    return Bands(float(np.quantile(largest, level)), np.maximum(p_values, 1 / len(largest)))


def flipped_signs(count: int, flips: int, seed: int) -> np.ndarray:
    """[flips, count] of 1 and -1: all with a first 1 (the others mirror them), or drawn ones."""
    if 2 ** (count - 1) <= flips:
        bits = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
        return 1.0 - 2.0 * bits
    return stream(seed, "max-t").choice([-1.0, 1.0], size=(flips, count))
