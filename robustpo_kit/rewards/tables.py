"""Accuracy and correlations of reward models as tidy tables."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from robustpo_kit import intervals


def accuracy_table(comparisons: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Preference accuracy by kind: n, accuracy with CI over groups (ties count half), mean difference, longer_share.

    longer_share: how often the preferred reply is the longer one; far from that of the better reply = length bias.
    """
    rows = []
    for kind, part in comparisons.groupby("kind", sort=True):
        difference, gap = part["difference"].to_numpy(), part["gap_words"].to_numpy()
        correct = np.where(difference == 0, 0.5, difference > 0)
        estimate = intervals.bootstrap_mean(
            correct, part["group"].astype(str), draws=draws, seed=seed
        )
        longer = np.sign(gap[gap != 0]) == np.sign(difference[gap != 0])
        rows.append(
            {
                "kind": kind,
                "n": len(part),
                "accuracy": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
            }
            | {
                "mean_difference": difference.mean(),
                "longer_share": longer.mean() if len(longer) else np.nan,
            }
            | (
                {"trained_kind": bool(part["trained_kind"].iloc[0])}
                if "trained_kind" in part
                else {}
            )
        )
    return pd.DataFrame(rows)


def correlation_table(
    table: pd.DataFrame,
    *,
    reward: str = "reward",
    confidence: str = "c",
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Pearson and Spearman correlation of reward and classifier confidence: overall, within each source, and within
    sources pooled (source means taken out), with CIs over groups.

    `table`: a row a response with group, source and the two columns (`calibration.response_table`).
    """
    centred = table.copy()
    for column in (reward, confidence):
        centred[column] -= centred.groupby("source")[column].transform("mean")
    scopes = {"overall": table, "within sources": centred}
    scopes |= {f"within {source}": part for source, part in table.groupby("source", sort=True)}
    rows = []
    for scope, part in scopes.items():
        x, y, row = (
            part[reward].to_numpy(),
            part[confidence].to_numpy(),
            {"scope": scope, "n": len(part)},
        )
        for name, function in (("pearson", pearsonr), ("spearman", spearmanr)):
            estimate = intervals.bootstrap_statistic(
                lambda i, x=x, y=y, f=function: _correlation(f, x[i], y[i]),
                part["group"].astype(str),
                draws=draws,
                seed=seed,
            )
            row |= {
                name: estimate.value,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _correlation(function: Any, x: np.ndarray, y: np.ndarray) -> float:
    """NaN where one side does not vary."""
    return (
        float(function(x, y)[0]) if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")
    )
