"""Accuracy and correlations of reward models as tidy tables."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from robustpo_kit.intervals import Interval, bootstrap_statistic, mean_by_group


def accuracy_table(comparisons: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Preference accuracy by kind of pair.

    Args:
        comparisons: a row a pair, with the columns kind, group, difference (score of the better
            reply minus that of the worse), gap_words (the same of words); trained_kind where it is
            known.
        draws, seed: of the bootstrap over groups.

    Returns:
        A row a kind: kind, n, accuracy (ties count half), low, high, mean_difference, longer_share
        (how often the preferred reply is the longer one: far from that of the better reply it tells
        a bias to length), trained_kind where it is known.
    """
    difference = comparisons["difference"]
    correct = np.where(difference == 0, 0.5, difference > 0)
    accuracy = mean_by_group(
        comparisons.assign(accuracy=correct),
        "kind",
        ["accuracy"],
        cluster="group",
        sort=True,
        draws=draws,
        seed=seed,
    )
    accuracy = accuracy.rename(columns={"accuracy_low": "low", "accuracy_high": "high"})
    details = [_comparison_details(part) for _, part in comparisons.groupby("kind", sort=True)]
    columns = ["kind", "n", "accuracy", "low", "high"]
    return pd.concat([accuracy[columns], pd.DataFrame(details)], axis=1)


def _comparison_details(comparisons: pd.DataFrame) -> dict[str, Any]:
    """The columns of `accuracy_table` that have no interval, of one kind of pair."""
    difference = comparisons["difference"].to_numpy()
    gap = comparisons["gap_words"].to_numpy()
    longer_wins = np.sign(gap[gap != 0]) == np.sign(difference[gap != 0])
    details = {"mean_difference": difference.mean(), "longer_share": np.nan}
    if len(longer_wins):
        details["longer_share"] = longer_wins.mean()
    if "trained_kind" in comparisons:
        details["trained_kind"] = bool(comparisons["trained_kind"].iloc[0])
    return details


def correlation_table(table: pd.DataFrame, *, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Pearson and Spearman correlation of reward and confidence, with intervals over groups.

    Args:
        table: a row a response (`calibration.response_table`), with the columns group, source,
            reward and c, its confidence.
        draws, seed: of the bootstrap over groups.

    Returns:
        A row a scope: scope (overall; within sources, whose means are taken out; within each
        source), n, pearson, pearson_low, pearson_high, and the same of spearman.
    """
    centred = table.copy()
    for column in ("reward", "c"):
        centred[column] -= centred.groupby("source")[column].transform("mean")
    scopes = {"overall": table, "within sources": centred}
    scopes |= {f"within {source}": part for source, part in table.groupby("source", sort=True)}
    rows = []
    for scope, part in scopes.items():
        row = {"scope": scope, "n": len(part)}
        for name, function in (("pearson", pearsonr), ("spearman", spearmanr)):
            interval = _correlation(function, part, draws, seed)
            row |= interval.columns(name)
        rows.append(row)
    return pd.DataFrame(rows)


def _correlation(
    function: Callable[..., Any], table: pd.DataFrame, draws: int, seed: int
) -> Interval:
    """A correlation of reward and c; NaN where one of them does not vary."""
    rewards, confidences = table["reward"].to_numpy(), table["c"].to_numpy()

    def correlation(rows: np.ndarray) -> float:
        x, y = rewards[rows], confidences[rows]
        if len(rows) <= 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return float("nan")
        return float(function(x, y)[0])

    return bootstrap_statistic(correlation, table["group"], draws=draws, seed=seed)
