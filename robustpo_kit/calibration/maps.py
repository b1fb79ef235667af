"""Maps from logits to calibrated probabilities."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from robustpo_kit.calibration.quality import quality

CALIBRATORS = ("temperature", "isotonic", "none")
LEAST_NLL = "least_nll"  # whichever of them has the least NLL on held-out rows


@dataclasses.dataclass(frozen=True)
class Temperature:
    """c = sigmoid(logit / temperature); temperature 1 changes nothing."""

    temperature: float = 1.0

    def __call__(self, logits: ArrayLike) -> np.ndarray:
        return expit(np.asarray(logits, dtype=float) / self.temperature)


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """A non-decreasing map of logits to c, linear between knots, constant beyond the outer ones."""

    logits: tuple[float, ...]
    probs: tuple[float, ...]

    def __call__(self, logits: ArrayLike) -> np.ndarray:
        return np.interp(np.asarray(logits, dtype=float), self.logits, self.probs)


Calibrator = Temperature | Isotonic


def calibrator_from(fields: Mapping[str, Any]) -> Calibrator:
    """The calibrator whose fields, by name, `dataclasses.asdict` gave."""
    if "temperature" in fields:
        return Temperature(fields["temperature"])
    return Isotonic(logits=tuple(fields["logits"]), probs=tuple(fields["probs"]))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> Temperature:
    """The temperature of least NLL on held-out rows (Guo et al. 2017, Sec. 4.2).

    Args:
        logits: [N] of golden against the rest.
        labels: [N] 1 for golden, else 0.
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    signed = np.where(labels == 1, logits, -logits)

    def mean_nll(log_temperature: float) -> float:
        return np.logaddexp(0, -signed * np.exp(-log_temperature)).mean()

    best = minimize_scalar(mean_nll, bounds=(-4, 4), method="bounded")
    return Temperature(float(np.exp(best.x)))


def fit_isotonic(logits: ArrayLike, labels: ArrayLike) -> Isotonic:
    """Isotonic regression on held-out rows.

    c stays within [1/(N+2), 1 - 1/(N+2)], so that NLL and odds are finite.

    Args:
        logits: [N] of golden against the rest.
        labels: [N] 1 for golden, else 0.
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    floor = 1 / (len(labels) + 2)
    regression = IsotonicRegression(y_min=floor, y_max=1 - floor, out_of_bounds="clip")
    regression.fit(logits, labels)
    knots, values = regression.X_thresholds_, regression.y_thresholds_
    return Isotonic(tuple(knots.tolist()), tuple(values.tolist()))


def fit_calibrator(name: str, logits: np.ndarray, labels: np.ndarray) -> Calibrator:
    """The calibrator of that name, fitted; where a class is absent, one that changes nothing."""
    if name == "none" or not 0 < labels.mean() < 1:
        return Temperature()
    if name == "temperature":
        return fit_temperature(logits, labels)
    return fit_isotonic(logits, labels)


def least_nll(table: pd.DataFrame) -> str:
    """The calibrator of least NLL on held-out rows, of a table as `cross_fitted` takes it."""
    nll = {name: quality(table["label"], cross_fitted(table, name))["nll"] for name in CALIBRATORS}
    return min(nll, key=nll.__getitem__)


def cross_fitted(table: pd.DataFrame, calibrator: str) -> np.ndarray:
    """c [N] of a table's rows (fold, logit, label), by calibrators fitted on the other folds."""
    fold, logits = table["fold"].to_numpy(), table["logit"].to_numpy()
    labels, probs = table["label"].to_numpy(dtype=float), np.empty(len(table))
    for left_out in np.unique(fold):
        inside = fold == left_out
        probs[inside] = fit_calibrator(calibrator, logits[~inside], labels[~inside])(logits[inside])
    return probs
