"""Confidence intervals: a seeded bootstrap over clusters, and Student's t over independent runs.

Responses to one prompt are not independent, so the bootstrap draws whole prompts (clusters) with
replacement.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from robustpo_kit.records import stream


class Interval(NamedTuple):
    """An estimate with its bounds; `clusters` is the number of independent units behind it."""

    value: float
    low: float
    high: float
    clusters: int

    def columns(self, name: str) -> dict[str, float]:
        """NAME, NAME_low and NAME_high: the estimate and its bounds as the columns of a table."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of values with a percentile interval over clusters drawn with replacement.

    Args:
        values: [N]; NaN is left out. With no value left, or one cluster, the bounds are NaN.
        clusters: [N] the cluster of each value, told apart as text; None: one for each value.
        draws: number of bootstrap replicates.
        level: share of the replicates that lie within the bounds.
        seed: of the draws.

    Raises:
        ValueError: naming the argument.
    """
    present, codes, count = _present(values, clusters, draws, level)
    if count == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    sums = np.bincount(codes, present, count)
    sizes = np.bincount(codes, minlength=count).astype(float)
    estimate = float(sums.sum() / sizes.sum())
    if count == 1:
        return Interval(estimate, np.nan, np.nan, 1)
    times_drawn = _times_drawn(count, draws, seed)
    means = (times_drawn @ sums) / (times_drawn @ sizes)
    low, high = np.quantile(means, _tails(level))
    return Interval(estimate, float(low), float(high), count)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    clusters: ArrayLike,
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic on all rows, with a percentile interval over clusters drawn with replacement.

    Args:
        statistic: takes row numbers [n], in which a row may come several times; where it gives NaN
            for drawn rows, the replicate is left out.
        clusters: [N] the cluster of each row, told apart as text.
        draws: number of bootstrap replicates.
        level: share of the replicates that lie within the bounds.
        seed: of the draws.
    """
    codes = _codes(clusters)
    count = int(codes.max(initial=-1)) + 1
    estimate = float(statistic(np.arange(len(codes))))
    if count < 2:
        return Interval(estimate, np.nan, np.nan, count)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    rng = stream(seed, "bootstrap")
    replicates = []
    for _ in range(draws):
        rows = [members[cluster] for cluster in rng.integers(count, size=count)]
        replicates.append(statistic(np.concatenate(rows)))
    if np.isnan(replicates).all():  # as an area under the curve of a single class
        return Interval(estimate, np.nan, np.nan, count)
    low, high = np.nanquantile(replicates, _tails(level))
    return Interval(estimate, float(low), float(high), count)


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean and Student's t interval of independent values [n]; NaN bounds below two values."""
    values = np.asarray(values, dtype=float)
    count = len(values)
    if count == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(values.mean())
    if count == 1:
        return Interval(mean, np.nan, np.nan, 1)
    half = float(stdtrit(count - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def mean_by_group(
    table: pd.DataFrame,
    by: str | Sequence[str],
    values: Sequence[str],
    *,
    cluster: str | None = None,
    sort: bool = False,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Means of columns in each group of rows, with bootstrap intervals.

    Args:
        table: a row an observation.
        by: the column, or columns, whose values make a group.
        values: the columns to take means of; NaN is left out.
        cluster: the column that tells which rows belong together; None: each row alone.
        sort: groups in the order of their names, else in that of their first rows.
        draws, level, seed: of `bootstrap_mean`; every group and column has the same seed.

    Returns:
        A row a group: the columns `by`, clusters, n (rows), and NAME, NAME_low, NAME_high for each
        of `values`.
    """
    by = [by] if isinstance(by, str) else list(by)
    columns = [*by, "clusters", "n"]
    for value in values:
        columns += [value, f"{value}_low", f"{value}_high"]
    rows = []
    for names, part in table.groupby(by, sort=sort):
        clusters = None if cluster is None else part[cluster]
        units = len(part) if clusters is None else clusters.nunique()
        row = dict(zip(by, names, strict=True)) | {"clusters": units, "n": len(part)}
        means = column_means(part, values, clusters, draws=draws, level=level, seed=seed)
        rows.append(row | means)
    return pd.DataFrame(rows, columns=columns)  # an empty table has its columns as well


def column_means(
    table: pd.DataFrame, values: Sequence[str], clusters: ArrayLike | None = None, **options: Any
) -> dict[str, float]:
    """NAME, NAME_low, NAME_high of every column in `values`; options as `bootstrap_mean`."""
    row: dict[str, float] = {}
    for value in values:
        row |= bootstrap_mean(table[value], clusters, **options).columns(value)
    return row


def _present(
    values: ArrayLike, clusters: ArrayLike | None, draws: int, level: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """The values that are not NaN, the number of the cluster of each, and the count of clusters."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"values: one value a row is expected, got shape {values.shape}")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"draws = {draws}, level = {level}: at least one draw and a level in (0, 1) "
            "are expected"
        )
    codes = np.arange(len(values)) if clusters is None else _codes(clusters)
    if len(codes) != len(values):
        raise ValueError(f"clusters: {len(codes)} for {len(values)} values; one a row is expected")
    present = ~np.isnan(values)
    clusters_left, codes = np.unique(codes[present], return_inverse=True)
    return values[present], codes, len(clusters_left)


def _codes(clusters: ArrayLike) -> np.ndarray:
    """[N] number of each row's cluster, in the order of their names."""
    names = np.asarray(clusters).astype(str)  # ids read back from a file draw as those in memory
    return np.unique(names, return_inverse=True)[1].reshape(-1)


def _times_drawn(count: int, draws: int, seed: int) -> np.ndarray:
    """[draws, count] how often each cluster is drawn."""
    rng = stream(seed, "bootstrap")
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]
