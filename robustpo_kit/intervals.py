"""Intervals: seeded cluster bootstrap. Responses to one prompt are not independent, so whole prompts are drawn."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with a percentile interval; `clusters` is the number of independent units behind it."""

    value: float
    low: float
    high: float
    clusters: int


def bootstrap_mean(
    values: Any,
    clusters: Sequence[Any] | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `values` [N] with a percentile interval over clusters drawn with replacement (None: each row alone).

    NaN values are left out; with no value left, or one cluster, the bounds are NaN. Raises ValueError on bad arguments.
    """
    values, codes, count = _clean(values, clusters, draws, level)
    if count == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    sums, sizes = (
        np.bincount(codes, values, count),
        np.bincount(codes, minlength=count).astype(float),
    )
    estimate = float(sums.sum() / sizes.sum())
    if count == 1:
        return Interval(estimate, np.nan, np.nan, 1)
    picks = _draws(count, draws, seed)
    means = (picks @ sums) / (picks @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), count)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    clusters: Sequence[Any],
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`statistic(rows)` of row numbers, on all rows and on clusters drawn with replacement; NaN replicates left out."""
    codes = _codes(clusters)
    count = int(codes.max(initial=-1)) + 1
    estimate = float(statistic(np.arange(len(codes))))
    if count < 2:
        return Interval(estimate, np.nan, np.nan, count)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(seed)
    replicates = [
        statistic(np.concatenate([members[c] for c in rng.integers(count, size=count)]))
        for _ in range(draws)
    ]
    low, high = np.nanquantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), count)


def _clean(
    values: Any, clusters: Sequence[Any] | None, draws: int, level: float
) -> tuple[np.ndarray, np.ndarray, int]:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"values: one value a row is expected, got shape {values.shape}")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"draws = {draws}, level = {level}: at least one draw and a level in (0, 1) are expected"
        )
    codes = np.arange(len(values)) if clusters is None else _codes(clusters)
    if len(codes) != len(values):
        raise ValueError(f"clusters: {len(codes)} for {len(values)} values; one a row is expected")
    keep = ~np.isnan(values)
    kept, codes = np.unique(codes[keep], return_inverse=True)
    return values[keep], codes, len(kept)


def _codes(clusters: Sequence[Any]) -> np.ndarray:
    return np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)


def _draws(count: int, draws: int, seed: int) -> np.ndarray:
    """[draws, count] how often each cluster is drawn."""
    return (
        np.random.default_rng(seed)
        .multinomial(count, np.full(count, 1 / count), size=draws)
        .astype(float)
    )
