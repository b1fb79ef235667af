"""Cross-fitted scores of pairs: what a model that never saw a prompt's labels thinks of them."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from robustpo_kit.auditing.views import Features
from robustpo_kit.calibration import fit_temperature, fold_of_groups
from robustpo_kit.intervals import bootstrap_mean
from robustpo_kit.records import stream

FOLDS = 5
STRENGTHS = (0.003, 0.03, 0.3, 3.0)  # 1 / L2 penalty, of which held-out likelihood chooses


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """Log-odds that the label of each pair is right, by a model of the other folds."""

    scores: np.ndarray  # [N] above 0 where the model agrees with the label
    fold: np.ndarray  # [N]
    view: str
    strength: float
    models: list[LogisticRegression]  # a fold

    def nll(self) -> float:
        """Nats a pair; log 2 = 0.693 is what knowing nothing costs."""
        return float(np.logaddexp(0, -self.scores).mean())

    def agreement(self) -> np.ndarray:
        """[N] probability of the label as given, by a temperature fitted on the other folds."""
        probs, ones = np.empty(len(self.scores)), np.ones(len(self.scores))
        for fold in np.unique(self.fold):
            inside = self.fold == fold
            calibrate = fit_temperature(self.scores[~inside], ones[~inside])
            probs[inside] = calibrate(self.scores[inside])
        return probs

    def score_others(self, features: Features, folds: ArrayLike, seed: int) -> np.ndarray:
        """Scores [M] of other pairs, each by one fold's model.

        Args:
            features: [M, F].
            folds: [M] the fold that has the pair's group, whose model did not see it; -1: none has,
                and a fold is drawn by lot.
            seed: of the lot.
        """
        each = np.stack([_apply(model, features) for model in self.models])
        lot = stream(seed, "audit", "fold of others").integers(len(each), size=each.shape[1])
        by = np.where(np.asarray(folds) < 0, lot, folds)
        return each[by, np.arange(each.shape[1])]


def cross_fit(
    features: Features,
    folds: np.ndarray,
    *,
    view: str,
    strength: float,
    seed: int,
    flipped: ArrayLike | None = None,
) -> Scored:
    """Logistic regression on differences (Bradley-Terry), by the folds that a pair is not in.

    Args:
        features: [N, F] first response minus second, the first being the preferred one.
        folds: [N], whole groups.
        view: its name.
        strength: 1 / L2 penalty.
        seed: of the order in which a pair is shown.
        flipped: [N] labels to turn round.
    """
    count = features.shape[0]
    signs = np.ones(count)
    if flipped is not None:
        signs = np.where(np.asarray(flipped), -1.0, 1.0)
    shown = stream(seed, "audit", "order").choice([-1.0, 1.0], count)
    design = sparse.diags_array(shown) @ sparse.csr_array(features)
    labels = shown * signs > 0
    scores, models = np.empty(count), []
    for fold in range(folds.max() + 1):
        inside = folds == fold
        model = _fit(design[~inside], labels[~inside], strength)
        scores[inside] = _apply(model, features[inside])
        models.append(model)
    return Scored(scores * signs, folds, view, strength, models)


def _fit(design: Features, labels: np.ndarray, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a fit that loses the choice
        return model.fit(design, labels)


def _apply(model: LogisticRegression, features: Features) -> np.ndarray:
    return np.asarray(features @ model.coef_[0]).reshape(-1)


def folds_of(groups: Sequence[str], seed: int) -> np.ndarray:
    """[N] fold of each pair: whole groups, so that no prompt is scored by what saw its labels."""
    return fold_of_groups(groups, FOLDS, seed)


def best_of_views(
    views: Mapping[str, Features],
    folds: np.ndarray,
    *,
    seed: int,
    flipped: ArrayLike | None = None,
) -> dict[str, Scored]:
    """By view, the scores of the penalty with the least held-out NLL."""
    best: dict[str, Scored] = {}
    for view, features in views.items():
        fits = [
            cross_fit(features, folds, view=view, strength=value, seed=seed, flipped=flipped)
            for value in STRENGTHS
        ]
        best[view] = min(fits, key=Scored.nll)
    return best


def chosen(scored: Mapping[str, Scored]) -> Scored:
    """The view of least held-out NLL."""
    return min(scored.values(), key=Scored.nll)


def view_table(
    scored: Mapping[str, Scored], groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """How often each view's model, on pairs it did not see, finds the preferred response.

    Returns:
        A row a view: view, n, accuracy (no opinion counts half), low, high (over groups), nll,
        strength, chosen.
    """
    best = chosen(scored).view
    rows = []
    for view, found in scored.items():
        right = np.where(found.scores == 0, 0.5, found.scores > 0)
        interval = bootstrap_mean(right, groups, draws=draws, seed=seed)
        row = {"view": view, "n": len(right), "accuracy": interval.value}
        row |= {"low": interval.low, "high": interval.high, "nll": found.nll()}
        rows.append(row | {"strength": found.strength, "chosen": view == best})
    return pd.DataFrame(rows)


def label_odds(scores: ArrayLike) -> np.ndarray:
    """2 sigmoid(score) - 1 [N]: by how much more often than not a label of that score is right."""
    return 2 * expit(np.asarray(scores, dtype=float)) - 1
