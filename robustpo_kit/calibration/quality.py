"""How good probabilities are: reliability, ECE, Brier score, log loss, AUC."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from robustpo_kit.intervals import Interval, bootstrap_statistic

EPS = 1e-7  # probabilities are clipped by it where their logarithm or their odds are taken


def reliability(
    labels: ArrayLike, probs: ArrayLike, *, bins: int = 10, scheme: str = "width"
) -> pd.DataFrame:
    """Reliability table: predicted against observed share of golden in bins of c.

    Args:
        labels: [N] 1 for golden, else 0.
        probs: [N] c in [0, 1].
        bins: at most so many; empty ones are left out.
        scheme: width = equal intervals of c, mass = equally many responses a bin.

    Returns:
        A row a bin: bin, low, high, count, mean_c, golden_share, gap = mean_c - golden_share.

    Raises:
        ValueError: naming the argument.
    """
    labels, probs = _labels_and_probs(labels, probs)
    if scheme == "width":
        edges = np.linspace(0, 1, bins + 1)
    elif scheme == "mass":
        edges = np.unique(np.quantile(probs, np.linspace(0, 1, bins + 1)))
    else:
        raise ValueError(f"scheme = '{scheme}': 'width' or 'mass' is expected")
    bin_of = np.clip(np.searchsorted(edges, probs, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        mean_c, share = probs[inside].mean(), labels[inside].mean()
        high = edges[min(number + 1, len(edges) - 1)]
        count = int(inside.sum())
        rows.append((number, edges[number], high, count, mean_c, share, mean_c - share))
    columns = ["bin", "low", "high", "count", "mean_c", "golden_share", "gap"]
    return pd.DataFrame(rows, columns=columns)


def ece(labels: ArrayLike, probs: ArrayLike, *, bins: int = 10, scheme: str = "width") -> float:
    """Expected calibration error: the mean over responses of |gap| of their bin (`reliability`)."""
    table = reliability(labels, probs, bins=bins, scheme=scheme)
    return float((table["count"] * table["gap"].abs()).sum() / table["count"].sum())


def quality(labels: ArrayLike, probs: ArrayLike, *, bins: int = 10) -> dict[str, float]:
    """How good probabilities are, in numbers.

    Args:
        labels: [N] 1 for golden, else 0.
        probs: [N] c in [0, 1].
        bins: of the ECE.

    Returns:
        n, golden_share, auc, ece, brier, and nll (nats a response, c clipped to 1e-7).

    Raises:
        ValueError: naming the argument.
    """
    labels, probs = _labels_and_probs(labels, probs)
    clipped = np.clip(probs, EPS, 1 - EPS)
    log_likelihood = np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    return {
        "n": len(labels),
        "golden_share": float(labels.mean()),
        "auc": area_under_curve(labels, probs),
        "ece": ece(labels, probs, bins=bins),
        "brier": float(np.mean((probs - labels) ** 2)),
        "nll": float(-np.mean(log_likelihood)),
    }


def area_under_curve(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN when one class is absent."""
    if not 0 < labels.mean() < 1:
        return float("nan")
    return float(roc_auc_score(labels, scores))


def _labels_and_probs(labels: ArrayLike, probs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, probs = np.asarray(labels, dtype=float), np.asarray(probs, dtype=float)
    if labels.shape != probs.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels {labels.shape}, probs {probs.shape}: two equal non-empty vectors are expected"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels: 0 or 1 is expected")
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probs: NaN or outside [0, 1]")
    return labels, probs


def auc_interval(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, draws: int = 200, seed: int = 0
) -> Interval:
    """AUC of scores [N] for labels [N] of 0 or 1, with an interval over groups [N]."""
    labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)

    def auc(rows: np.ndarray) -> float:
        return area_under_curve(labels[rows], scores[rows])

    return bootstrap_statistic(auc, groups, draws=draws, seed=seed)


def detectors(
    clean: ArrayLike,
    weights: Mapping[str, ArrayLike],
    groups: ArrayLike,
    *,
    cut: ArrayLike,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each weight finds the samples that are not contaminated.

    Args:
        clean: [N] which samples are.
        weights: by name, [N] each.
        groups: [N] clusters of the bootstrap.
        cut: [N] which samples hold a reply in the golden slot that was cut at the token limit, and
            may be known by its length.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A row a weight and choice of samples: weight, samples (all | none cut), n, contaminated,
        auc, auc_low, auc_high.
    """
    clean, groups = np.asarray(clean, dtype=bool), np.asarray(groups)
    choices = {"all": np.ones_like(clean), "none cut": ~np.asarray(cut, dtype=bool)}
    rows = []
    for (name, values), (samples, kept) in itertools.product(weights.items(), choices.items()):
        scores = np.asarray(values, dtype=float)[kept]
        auc = auc_interval(clean[kept], scores, groups[kept], draws=draws, seed=seed)
        counts = {"n": int(kept.sum()), "contaminated": int((~clean[kept]).sum())}
        rows.append({"weight": name, "samples": samples} | counts | auc.columns("auc"))
    return pd.DataFrame(rows)
