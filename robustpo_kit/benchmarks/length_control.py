"""AlpacaEval's length-controlled win rate: what a model would win if replies were equally long.

Preference is a logistic regression on the length difference, the instruction's difficulty and the
model itself; predicted at no difference (Dubois et al. 2024, Length-Controlled AlpacaEval, Eq. 2).
As in tatsu-lab/alpaca_eval, src/alpaca_eval/metrics/glm_winrate.py (`length_controlled_v1`).
"""

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import make_scorer
from sklearn.model_selection import GroupKFold

FOLDS = 5
GAMED_WEIGHT = 0.1  # of a gamed row: lambda 0.2 over two gamed baselines
SEED = 123  # of liblinear's coordinate order, theirs


def length_controlled(judgments: pd.DataFrame, gamed: pd.DataFrame | None = None) -> np.ndarray:
    """Probability that the model is preferred to the baseline at equal length.

    Args:
        judgments: [N] rows of one model, in the order of the benchmark's instructions, with
            preference (0 to 1 for the model; NaN: none) and length_difference (characters of the
            baseline's output minus the model's).
        gamed: AlpacaEval's `df_gamed.csv`: preferences of the baseline against itself when told to
            be brief or verbose, which hold the length coefficient, and the difficulty of each
            instruction. None: neither, for instructions of one's own; not the leaderboard's number.

    Returns:
        [N]; its mean is the length-controlled win rate. NaN where, without `gamed`, fewer than
        FOLDS wins or losses leave nothing to fit.
    """
    difference = judgments["length_difference"].to_numpy(dtype=float)
    spread = difference.std(ddof=1)
    scaled = np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))
    preference = judgments["preference"].to_numpy(dtype=float)
    if gamed is None:
        if min(np.nansum(preference), np.nansum(1 - preference)) < FOLDS:
            return np.full(len(judgments), np.nan)
        features = np.column_stack([scaled, np.ones(len(judgments))])
        model = _fit(features, preference, np.ones(len(judgments)))
    else:
        difficulty = _difficulty(gamed)[: len(judgments)]
        features = np.column_stack([scaled, difficulty, np.ones(len(judgments))])
        others = np.column_stack(
            [np.tanh(gamed["std_delta_len"]), gamed["instruction_difficulty"], np.zeros(len(gamed))]
        )
        model = _fit(
            np.vstack([others, features]),
            np.concatenate([gamed["preference"], preference]),
            np.repeat([GAMED_WEIGHT, 1.0], [len(gamed), len(judgments)]),
        )
    features[:, 0] = 0
    return model.predict_proba(features)[:, 1]


def _difficulty(gamed: pd.DataFrame) -> np.ndarray:
    """[instructions] in the order of the benchmark."""
    by_instruction = gamed.drop_duplicates("index").set_index("index").sort_index()
    return by_instruction["instruction_difficulty"].to_numpy(dtype=float)


def _fit(features: np.ndarray, preference: np.ndarray, weights: np.ndarray) -> LogisticRegressionCV:
    """Logistic regression on probabilities, its L1 penalty chosen by cross-validated log loss.

    Every row stands there twice, preferred and not, weighted by the probability of each.

    Args:
        features: [N, F].
        preference: [N], from 0 to 1; rows with NaN are left out.
        weights: [N].
    """
    known = ~np.isnan(preference)
    features, preference, weights = features[known], preference[known], weights[known]
    count = len(preference)
    labels = np.repeat([1, 0], count)
    truth, weight = np.tile(preference, 2), np.tile(weights, 2)
    with config_context(enable_metadata_routing=True):
        loss = make_scorer(_log_loss, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            cv=GroupKFold(FOLDS),
            scoring=loss.set_score_request(truth=True, weight=True),
            l1_ratios=(1.0,),
            solver="liblinear",
            fit_intercept=False,  # the model's own column
            random_state=SEED,
            use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)
        return model.fit(
            np.vstack([features, features]),
            labels,
            sample_weight=np.where(labels == 1, truth, 1 - truth) * weight,
            groups=np.tile(np.arange(count), 2),
            truth=truth,
            weight=weight,
        )


def _log_loss(
    _labels: np.ndarray, predicted: np.ndarray, truth: np.ndarray, weight: np.ndarray
) -> float:
    """Mean weighted log loss against probabilities."""
    predicted = np.clip(predicted, 1e-15, 1 - 1e-15)
    loss = truth * np.log(predicted) + (1 - truth) * np.log(1 - predicted)
    return -float(np.mean(loss * weight))
