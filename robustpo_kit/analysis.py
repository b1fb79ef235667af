"""Statistics behind the papers' figures; every function takes and returns tidy tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit.intervals import bootstrap_mean
from robustpo_kit.records import RunRecord


def normalise(rewards: Sequence[float], how: str = "minmax") -> np.ndarray:
    """Rewards on the unit interval (`minmax`) or as standard scores (`zscore`).

    Raises ValueError for another `how`, or when all rewards are equal.
    """
    values = np.asarray(rewards, dtype=float)
    if values.size == 0 or np.ptp(values) == 0:
        raise ValueError("rewards: all equal (or none); a slope against them is not defined")
    if how == "minmax":
        return (values - values.min()) / np.ptp(values)
    if how == "zscore":
        return (values - values.mean()) / values.std()
    raise ValueError(f"how = '{how}': choose 'minmax' or 'zscore'")


def reward_confidence(table: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Slope of classifier confidence on normalised reward, one row a policy (DoRA Fig. 4).

    `table` has columns policy, prompt_id, reward (normalised), confidence. OLS with errors clustered by prompt.
    Columns out: policy, intercept, slope, se, low, high, r_squared, replies, prompts.
    """
    rows = []
    for policy, part in table.groupby("policy", sort=False):
        fit = _clustered_ols("confidence ~ reward", part)
        low, high = fit.conf_int(1 - level).loc["reward"]
        rows.append(
            {
                "policy": policy,
                "intercept": fit.params["Intercept"],
                "slope": fit.params["reward"],
                "se": fit.bse["reward"],
                "low": low,
                "high": high,
                "r_squared": fit.rsquared,
                "replies": len(part),
                "prompts": part["prompt_id"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def slope_difference(
    table: pd.DataFrame, baseline: str, policy: str, *, level: float = 0.95
) -> pd.DataFrame:
    """Slope of `policy` minus slope of `baseline` as the interaction term of one OLS, clustered by prompt.

    Both policies answer the same prompts, so two separate fits would not give this interval. One row: difference, se,
    low, high, p_value. Raises ValueError when a policy is not in the table.
    """
    for name in (baseline, policy):
        if name not in set(table["policy"]):
            raise ValueError(
                f"policy '{name}' is not in the table; it has {sorted(set(table['policy']))}"
            )
    part = table[table["policy"].isin([baseline, policy])].assign(
        is_policy=lambda t: (t["policy"] == policy) * 1.0
    )
    fit = _clustered_ols("confidence ~ reward * is_policy", part)
    low, high = fit.conf_int(1 - level).loc["reward:is_policy"]
    return pd.DataFrame(
        [
            {
                "baseline": baseline,
                "policy": policy,
                "difference": fit.params["reward:is_policy"],
                "se": fit.bse["reward:is_policy"],
                "low": low,
                "high": high,
                "p_value": fit.pvalues["reward:is_policy"],
                "replies": len(part),
                "prompts": part["prompt_id"].nunique(),
            }
        ]
    )


def _clustered_ols(formula: str, table: pd.DataFrame) -> Any:
    import statsmodels.formula.api as smf

    codes = pd.factorize(table["prompt_id"])[0]
    return smf.ols(formula, table).fit(cov_type="cluster", cov_kwds={"groups": codes})


def training_curves(records: Mapping[str, RunRecord]) -> pd.DataFrame:
    """History of several runs as one tidy table: policy, step, and every logged quantity."""
    parts = [pd.DataFrame(record.history).assign(policy=name) for name, record in records.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["policy", "step", *[c for c in table.columns if c not in ("policy", "step")]]]


def gap_quantiles(
    gaps: Sequence[float], quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
) -> pd.DataFrame:
    """Quantiles of reward margins and the share within 0.1 of zero (gamma-PO Fig. 2), one row."""
    values = np.asarray(gaps, dtype=float)
    row = {f"q{round(100 * q):02d}": np.quantile(values, q) for q in quantiles}
    near = float(np.mean(np.abs(values) < 0.1))
    return pd.DataFrame(
        [row | {"near_zero": near, "positive": float(np.mean(values > 0)), "pairs": len(values)}]
    )


def energy_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| between two samples [n, d] and [m, d]: how far is far?

    Zero when both come from one distribution (Szekely and Rizzo, 2013). Raises ValueError for fewer than two rows.
    """
    from scipy.spatial.distance import cdist, pdist

    if len(first) < 2 or len(second) < 2:
        raise ValueError("first, second: at least two rows each are needed")
    # unbiased within-sample means: pairs of different rows only
    return float(2 * cdist(first, second).mean() - pdist(first).mean() - pdist(second).mean())


def mean_by(
    table: pd.DataFrame, by: Sequence[str], value: str, *, seed: int, level: float = 0.95
) -> pd.DataFrame:
    """Mean of `value` in each cell of `by` with a bootstrap interval over its rows: columns by, value, low, high, n."""
    rows = []
    for cell, part in table.groupby(list(by), sort=False):
        mean, low, high, n = bootstrap_mean(part[value], level=level, seed=seed)
        rows.append(
            dict(zip(by, cell, strict=True)) | {value: mean, "low": low, "high": high, "n": n}
        )
    return pd.DataFrame(rows)
