"""What a source classifier is worth: its held-out quality beside that of length alone."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.special import expit

from robustpo_kit.calibration.classifiers import SourceClassifier
from robustpo_kit.calibration.quality import EPS, area_under_curve, ece
from robustpo_kit.calibration.responses import flat_responses, word_count
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import fit_logistic
from robustpo_kit.intervals import Interval, bootstrap_statistic

CLASSIFIER, LENGTH, OVER_LENGTH = "classifier", "length alone", "classifier less length"

Statistic = Callable[[np.ndarray, np.ndarray], float]  # of labels and probabilities


def evidence(
    classifier: SourceClassifier, preferences: PreferenceSet, *, draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Held-out quality of a shared classifier, before and after calibration, and of length alone.

    Length alone is a logistic curve of log words and its square, fitted on the same folds. All
    intervals are of a bootstrap over groups.

    Args:
        classifier: shared.
        preferences: the rows it was fitted on.
        draws, seed: of the bootstrap.

    Returns:
        Rows CLASSIFIER (c), before calibration, LENGTH, the share of golden alone, and OVER_LENGTH
        (the difference of the AUCs): of, n, auc, nll (nats a response) and ece, each with _low and
        _high where it is worth one.
    """
    table = classifier.out_of_fold
    labels, groups = table["label"].to_numpy(float), table["group"].to_numpy()
    length = length_alone(table, preferences)
    scores = {
        (CLASSIFIER, "ece"): table["c"].to_numpy(),
        ("before calibration", "ece"): table["prob"].to_numpy(),
        (LENGTH, ""): length,
    }
    rows = []
    for (name, last), probs in scores.items():
        row = {"of": name, "n": len(table)}
        for statistic in filter(None, ("auc", "nll", last)):
            found = _interval(STATISTICS[statistic], labels, probs, groups, draws, seed)
            row |= found.columns(statistic)
        rows.append(row)
    constant = np.full(len(table), labels.mean())
    rows.append({"of": "share of golden alone", "n": len(table), "nll": nll(labels, constant)})
    own = scores[CLASSIFIER, "ece"]

    def gain(drawn: np.ndarray) -> float:
        right = labels[drawn]
        return area_under_curve(right, own[drawn]) - area_under_curve(right, length[drawn])

    over = bootstrap_statistic(gain, groups, draws=draws, seed=seed)
    rows.append({"of": OVER_LENGTH, "n": len(table)} | over.columns("auc"))
    return pd.DataFrame(rows)


def length_alone(table: pd.DataFrame, preferences: PreferenceSet) -> np.ndarray:
    """[N] probability of golden by length alone, of the rows of an out-of-fold table."""
    flat = flat_responses(preferences)
    words = [word_count(response) for response in flat["response"]]
    by_place = dict(zip(zip(flat["row_id"], flat["column"], strict=True), words, strict=True))
    places = zip(table["row_id"], table["column"], strict=True)
    logs = np.log1p([by_place[place] for place in places])
    centred = (logs - logs.mean()) / (logs.std() or 1.0)
    features = np.stack([centred, centred**2], axis=1)
    labels, fold = table["label"].to_numpy(float), table["fold"].to_numpy()
    probs = np.empty(len(table))
    for left_out in np.unique(fold):
        inside = fold == left_out
        model = fit_logistic(features[~inside], labels[~inside], 1.0)
        probs[inside] = expit(model(features[inside]))
    return probs


def nll(labels: np.ndarray, probs: np.ndarray) -> float:
    """Mean negative log-likelihood, nats a response; c clipped to 1e-7."""
    right = np.where(labels == 1, probs, 1 - probs)
    return float(-np.log(np.clip(right, EPS, 1 - EPS)).mean())


STATISTICS: dict[str, Statistic] = {"auc": area_under_curve, "nll": nll, "ece": ece}


def _interval(
    function: Statistic,
    labels: np.ndarray,
    probs: np.ndarray,
    groups: np.ndarray,
    draws: int,
    seed: int,
) -> Interval:
    def of_rows(drawn: np.ndarray) -> float:
        return function(labels[drawn], probs[drawn])

    return bootstrap_statistic(of_rows, groups, draws=draws, seed=seed)


def verdict(table: pd.DataFrame) -> str:
    """What a table of `evidence` says, in a sentence."""
    low = dict(zip(table["of"], table["auc_low"].fillna(0.0), strict=True))
    said = f"AUC {_auc(table, CLASSIFIER)}, length alone {_auc(table, LENGTH)}"
    if low[CLASSIFIER] <= 0.5:
        return f"The classifier cannot tell the sources apart ({said}): h~ says nothing of them."
    if low[OVER_LENGTH] <= 0:
        return (
            f"The classifier tells the sources apart no better than their length does ({said}): h~ "
            "would weigh rows by length."
        )
    return f"The classifier tells the sources apart ({said})."


def _auc(table: pd.DataFrame, name: str) -> str:
    ((value, low, high),) = table.loc[
        table["of"] == name, ["auc", "auc_low", "auc_high"]
    ].to_numpy()
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
