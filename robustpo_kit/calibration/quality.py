"""How good probabilities are: reliability, ECE, Brier score, log loss, AUC."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from robustpo_kit.calibration.factor import EPS


def reliability(labels: Any, probs: Any, *, bins: int = 10, scheme: str = "width") -> pd.DataFrame:
    """Reliability table, a row a non-empty bin: low, high, count, mean_c, golden_share, gap = mean_c - golden_share.

    `scheme` width = equal intervals of c, mass = equally many responses a bin.
    """
    labels, probs = _labels_and_probs(labels, probs)
    if scheme == "width":
        edges = np.linspace(0, 1, bins + 1)
    elif scheme == "mass":
        edges = np.unique(np.quantile(probs, np.linspace(0, 1, bins + 1)))
    else:
        raise ValueError(f"scheme = '{scheme}': 'width' or 'mass' is expected")
    place = np.clip(np.searchsorted(edges, probs, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for b in np.unique(place):
        inside = place == b
        mean_c, share = probs[inside].mean(), labels[inside].mean()
        high = edges[min(b + 1, len(edges) - 1)]
        rows.append((b, edges[b], high, int(inside.sum()), mean_c, share, mean_c - share))
    return pd.DataFrame(
        rows, columns=["bin", "low", "high", "count", "mean_c", "golden_share", "gap"]
    )


def ece(labels: Any, probs: Any, *, bins: int = 10, scheme: str = "width") -> float:
    """Expected calibration error: the mean over responses of |gap| of their bin."""
    table = reliability(labels, probs, bins=bins, scheme=scheme)
    return float((table["count"] * table["gap"].abs()).sum() / table["count"].sum())


def quality(labels: Any, probs: Any, *, bins: int = 10) -> dict[str, float]:
    """n, golden share, AUC, ECE, Brier score and NLL (nats a response, c clipped to 1e-7) of probabilities [N]."""
    labels, probs = _labels_and_probs(labels, probs)
    clipped = np.clip(probs, EPS, 1 - EPS)
    return {
        "n": len(labels),
        "golden_share": float(labels.mean()),
        "auc": area_under_curve(labels, probs),
        "ece": ece(labels, probs, bins=bins),
        "brier": float(np.mean((probs - labels) ** 2)),
        "nll": float(-np.mean(np.where(labels == 1, np.log(clipped), np.log1p(-clipped)))),
    }


def area_under_curve(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN when one class is absent."""
    return float(roc_auc_score(labels, scores)) if 0 < labels.mean() < 1 else float("nan")


def _labels_and_probs(labels: Any, probs: Any) -> tuple[np.ndarray, np.ndarray]:
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
