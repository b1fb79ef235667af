"""Statistics behind the papers' figures, as tidy tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit.intervals import mean_by_group
from robustpo_kit.records import RunRecord


def normalise(rewards: Sequence[float], how: str = "minmax") -> np.ndarray:
    """Rewards [N] on the unit interval (`minmax`) or as standard scores (`zscore`).

    Raises:
        ValueError: another `how`, or all rewards are equal.
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
    """Slope of classifier confidence on normalised reward by policy (DoRA Fig. 4).

    Ordinary least squares with errors clustered by prompt.

    Args:
        table: a row a reply, with the columns policy, prompt_id, reward (normalised), confidence.
        level: of the interval of the slope.

    Returns:
        A row a policy: policy, intercept, slope, se, low, high, r_squared, replies, prompts.
    """
    rows = []
    for policy, part in table.groupby("policy", sort=False):
        fit = clustered_fit("confidence ~ reward", part, part["prompt_id"])
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


def confidence_bands(table: pd.DataFrame, *, level: float = 0.95, points: int = 41) -> pd.DataFrame:
    """The lines of `reward_confidence` with their pointwise bands, over each policy's rewards.

    Args:
        table: as for `reward_confidence`.
        level: of the bands.
        points: rewards a policy at which the band is computed.

    Returns:
        A row a policy and reward: policy, reward, confidence (predicted), low, high.
    """
    parts = []
    for policy, part in table.groupby("policy", sort=False):
        at = pd.DataFrame(
            {"reward": np.linspace(part["reward"].min(), part["reward"].max(), points)}
        )
        fit = clustered_fit("confidence ~ reward", part, part["prompt_id"])
        band = fit.get_prediction(at).summary_frame(1 - level)
        bounds = {"mean": "confidence", "mean_ci_lower": "low", "mean_ci_upper": "high"}
        found = band[list(bounds)].rename(columns=bounds)
        parts.append(pd.concat([at.assign(policy=policy), found], axis=1))
    return pd.concat(parts, ignore_index=True)


def slope_difference(
    table: pd.DataFrame, baseline: str, policy: str, *, level: float = 0.95
) -> pd.DataFrame:
    """Slope of a policy minus slope of a baseline: the interaction term of one regression.

    Both policies answer the same prompts, so two separate fits would not give this interval.

    Args:
        table: a row a reply, with the columns policy, prompt_id, reward (normalised), confidence.
        baseline: name of the policy whose slope is subtracted.
        policy: name of the other policy.
        level: of the interval.

    Returns:
        One row: baseline, policy, difference, se, low, high, p_value, replies, prompts.

    Raises:
        ValueError: a policy is not in the table.
    """
    for name in (baseline, policy):
        if name not in set(table["policy"]):
            raise ValueError(
                f"policy '{name}' is not in the table; it has {sorted(set(table['policy']))}"
            )
    part = table[table["policy"].isin([baseline, policy])]
    part = part.assign(is_policy=(part["policy"] == policy) * 1.0)
    fit = clustered_fit("confidence ~ reward * is_policy", part, part["prompt_id"])
    low, high = fit.conf_int(1 - level).loc["reward:is_policy"]
    row = {
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
    return pd.DataFrame([row])


def clustered_fit(formula: str, table: pd.DataFrame, clusters: "pd.Series[Any]") -> Any:
    """Least squares with errors clustered, as statsmodels fits it, which ships no types."""
    import statsmodels.formula.api as smf

    codes = pd.factorize(clusters)[0]
    return smf.ols(formula, table).fit(cov_type="cluster", cov_kwds={"groups": codes})


def training_curves(records: Mapping[str, RunRecord]) -> pd.DataFrame:
    """History of several runs as one tidy table: policy, step, and every logged quantity."""
    parts = [pd.DataFrame(record.history).assign(policy=name) for name, record in records.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["policy", "step", *table.columns.drop(["policy", "step"])]]


def training_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `experiments.simpo_gaps` that are after training, of the training pairs."""
    if "pairs" not in table:  # of a run that has no others
        return table
    return table[(table["pairs"] == "training") & (table["policy"] != "sft")]


def gap_quantiles(
    gaps: Sequence[float], quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
) -> pd.DataFrame:
    """Quantiles of reward margins [N] (gamma-PO Fig. 2).

    Returns:
        One row: qNN for each of `quantiles`, the shares near_zero (within 0.1 of zero) and
        positive, and pairs.
    """
    values = np.asarray(gaps, dtype=float)
    row = {f"q{round(100 * share):02d}": np.quantile(values, share) for share in quantiles}
    row["near_zero"] = np.mean(np.abs(values) < 0.1)
    row["positive"] = np.mean(values > 0)
    return pd.DataFrame([row]).assign(pairs=len(values))


def energy_distance(first: np.ndarray, second: np.ndarray, *, paired: bool = False) -> float:
    """Energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| between two samples [n, d] and [m, d].

    Zero when both come from one distribution (Szekely and Rizzo, 2013).

    Args:
        first, second: samples, a row each.
        paired: row i of both belongs to one prompt, and so is no pair of independent draws: such
            pairs are left out between the samples, as a row with itself is within one.

    Raises:
        ValueError: fewer than two rows, or unlike numbers of paired ones.
    """
    from scipy.spatial.distance import cdist, pdist

    if len(first) < 2 or len(second) < 2:
        raise ValueError("first, second: at least two rows each are needed")
    between = cdist(first, second)
    if paired:
        if len(first) != len(second):
            raise ValueError(f"first, second: {len(first)} and {len(second)} rows are not paired")
        between = between[~np.eye(len(first), dtype=bool)]
    # unbiased within-sample means: pairs of different rows only
    return float(2 * between.mean() - pdist(first).mean() - pdist(second).mean())


def mean_by(
    table: pd.DataFrame, by: Sequence[str], value: str, *, seed: int, level: float = 0.95
) -> pd.DataFrame:
    """Mean of a column in each cell with a bootstrap interval over the rows of the cell.

    Args:
        table: a row an observation, independent of the others.
        by: the columns whose values make a cell.
        value: the column to take means of; NaN is left out.
        seed: of the bootstrap.
        level: of the intervals.

    Returns:
        A row a cell: the columns `by`, `value`, low, high, n (rows that are not NaN).
    """
    means = mean_by_group(table, by, [value], level=level, seed=seed)
    present = table.groupby(list(by), sort=False)[value].count()
    means = means.rename(columns={f"{value}_low": "low", f"{value}_high": "high"})
    return means.assign(n=present.to_numpy())[[*by, value, "low", "high", "n"]]
