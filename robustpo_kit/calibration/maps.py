"""Maps from logits to calibrated probabilities."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

CALIBRATORS = ("temperature", "isotonic", "none")


@dataclasses.dataclass(frozen=True)
class Temperature:
    """c = sigmoid(logit / temperature); temperature 1 changes nothing."""

    temperature: float = 1.0

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return sigmoid(np.asarray(logits, dtype=float) / self.temperature)


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """A non-decreasing step-linear map of logits to c through knots; constant beyond the first and the last."""

    logits: tuple[float, ...]
    probs: tuple[float, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return np.interp(logits, self.logits, self.probs)


Calibrator = Temperature | Isotonic


def fit_temperature(logits: Any, labels: Any) -> Temperature:
    """The temperature of least NLL on held-out rows (Guo et al. 2017, Sec. 4.2)."""
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    signed = np.where(labels == 1, logits, -logits)
    found = minimize_scalar(
        lambda log_t: np.logaddexp(0, -signed * np.exp(-log_t)).mean(),
        bounds=(-4, 4),
        method="bounded",
    )
    return Temperature(float(np.exp(found.x)))


def fit_isotonic(logits: Any, labels: Any) -> Isotonic:
    """Isotonic regression on held-out rows; c stays within [1/(n+2), 1 - 1/(n+2)], so that NLL and odds are finite."""
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    floor = 1 / (len(labels) + 2)
    fitted = IsotonicRegression(y_min=floor, y_max=1 - floor, out_of_bounds="clip").fit(
        logits, labels
    )
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


def fit_calibrator(name: str, logits: np.ndarray, labels: np.ndarray) -> Calibrator:
    if name == "none" or not 0 < labels.mean() < 1:
        return Temperature()
    return (
        fit_temperature(logits, labels) if name == "temperature" else fit_isotonic(logits, labels)
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def cross_fitted(table: pd.DataFrame, calibrator: str) -> np.ndarray:
    """c of every row, by a calibrator fitted on the other folds."""
    fold, logits = table["fold"].to_numpy(), table["logit"].to_numpy()
    labels, probs = table["label"].to_numpy(dtype=float), np.empty(len(table))
    for left_out in np.unique(fold):
        inside = fold == left_out
        probs[inside] = fit_calibrator(calibrator, logits[~inside], labels[~inside])(logits[inside])
    return probs
