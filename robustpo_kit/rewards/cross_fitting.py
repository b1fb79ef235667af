"""Rewards of rows by models that never saw them, fitted to the labels of their pairs alone."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from robustpo_kit import encoders
from robustpo_kit.calibration import fit_temperature, flat_responses, fold_of_groups
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder


class CrossFitted(NamedTuple):
    """Scores, and how well models that did not see a pair agree with its label."""

    scores: np.ndarray  # [M] of all responses, in the order of rows and columns
    held_out: pd.DataFrame  # a row a pair: group, correct (ties count half)


def cross_fitted_rewards(
    preferences: PreferenceSet,
    fitted_on: PreferenceSet,
    *,
    seed: int,
    encoder: Encoder,
    folds: int = 4,
    penalty: float = 500.0,
) -> CrossFitted:
    """Bradley-Terry rewards of responses, each row's by the model that left it out.

    A linear head on `response_features`, in units in which sigmoid(difference) is the probability
    of the label, as one temperature makes them on the pairs left out. Unlike `fit_reward_model` it
    learns from labels alone, whatever they reward.

    Args:
        preferences: all rows.
        fitted_on: those of them that models may learn from: their pairs, as
            `preferred_first` has them. Other rows are scored by the mean of all models.
        seed: of the folds.
        encoder: of responses and prompts.
        folds: of whole groups; at least two.
        penalty: L2 penalty of the head.

    Raises:
        ValueError: fewer groups with a pair than folds.
    """
    pairs = [row for row in fitted_on.preferred_first() if len(row.responses) == 2]
    fold = fold_of_groups([row.group for row in pairs], folds, seed)
    better = encoders.response_features(encoder, [(row.prompt, row.responses[0]) for row in pairs])
    worse = encoders.response_features(encoder, [(row.prompt, row.responses[1]) for row in pairs])
    gaps, models = np.empty(len(pairs)), []
    for left_out in range(folds):
        inside, held = fold != left_out, fold == left_out
        labels = np.ones(int(inside.sum()))
        learnt = (better - worse)[inside]
        models.append(encoders.fit_logistic(learnt, labels, penalty, intercept=False))
        gaps[held] = models[-1]((better - worse)[held])
    flat = flat_responses(preferences)
    texts = list(zip(flat["prompt"], flat["response"], strict=True))
    features = encoders.response_features(encoder, texts)
    scores = np.stack([model(features) for model in models])  # [folds, M]
    fold_of_row = dict(zip([row.row_id for row in pairs], fold.tolist(), strict=True))
    own = flat["row_id"].map(fold_of_row)
    left_out_by = own.fillna(0).to_numpy(int)
    by_own = np.take_along_axis(scores, left_out_by[None], axis=0)[0]
    chosen = np.where(own.notna(), by_own, scores.mean(axis=0))
    temperature = fit_temperature(gaps, np.ones(len(gaps))).temperature
    correct = (1 + np.sign(gaps)) / 2
    held_out = pd.DataFrame({"group": [row.group for row in pairs], "correct": correct})
    return CrossFitted(chosen / temperature, held_out)
