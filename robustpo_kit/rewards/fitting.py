"""Fitting Bradley-Terry reward models, and measuring their units on held-out rows."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustpo_kit import encoders
from robustpo_kit.calibration import fit_temperature, flat_responses, word_count
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import (
    DEFAULT_FINE_TUNE,
    Encoder,
    FineTune,
    Learned,
    LinearScorer,
    Pair,
    PairScorer,
)
from robustpo_kit.records import stream, stream_seed
from robustpo_kit.rewards.models import RewardModel, comparison_table, raw_scores
from robustpo_kit.rewards.pairs import DIRECT, RankedPair, pairs_across_sources, training_pairs

FEATURES = ("cosine", "frozen", "fine_tuned")

ScorePairs = Callable[[Sequence[Pair]], np.ndarray]  # [N] scores of (prompt, response) pairs


def fit_reward_model(
    preferences: PreferenceSet,
    *,
    seed: int,
    features: str = "frozen",
    encoder: Encoder | str = "minilm-l6",
    direct: Sequence[tuple[str, str]] = DIRECT,
    held_out: float = 0.25,
    penalty: float = 500.0,
    fine_tune: FineTune = DEFAULT_FINE_TUNE,
) -> RewardModel:
    """Fit a Bradley-Terry model on `training_pairs`.

    Args:
        preferences: the rows.
        seed: of the split, of the draw of pairs, and of fine-tuning.
        features: cosine (of the embeddings, nothing trained) | frozen (their elementwise product,
            linear head) | fine_tuned (BERT on the pair prompt, reply).
        encoder: or its name.
        direct: sources (better, worse) that the data rank themselves.
        held_out: share of the groups that is kept for accuracy, temperature and scale.
        penalty: L2 penalty of the linear head.
        fine_tune: how BERT is fine-tuned.

    Raises:
        ValueError: naming the argument.
    """
    if features not in FEATURES:
        raise ValueError(f"features = '{features}': one of {', '.join(FEATURES)} is expected")
    if isinstance(encoder, str):
        encoder = encoders.load(encoder)
    train, test = split_groups(preferences, held_out, seed)
    pairs = training_pairs(train, seed=seed, direct=direct)
    if not pairs:
        raise ValueError(
            "preferences: no pair to train on; two prompts with replies of one source are needed"
        )
    model = _fit_scorer(pairs, encoder, features, penalty, fine_tune, seed)
    score = functools.partial(raw_scores, model, encoder)
    comparisons, temperature = _held_out_comparisons(score, test, direct, seed)
    replies = _reply_statistics(score, test, temperature)
    learned = Learned() if features == "cosine" else learned_from(train)
    return RewardModel(
        features=features,
        encoder=encoder,
        model=model,
        temperature=temperature,
        scale=replies.scale,
        log_words=replies.log_words,
        length_slope=replies.length_slope,
        learned=learned,
        held_out=comparisons,
        config={
            "direct": [list(pair) for pair in direct],
            "held_out": held_out,
            "penalty": penalty,
            "fine_tune": dataclasses.asdict(fine_tune),
            "seed": seed,
            "rows": len(preferences),
            "pairs": len(pairs),
        },
    )


def learned_from(preferences: PreferenceSet) -> Learned:
    """All responses of a set, as what a reward model learned from."""
    flat = flat_responses(preferences)
    return Learned.of(flat["prompt"], flat["response"], flat["row_id"])


def split_groups(
    preferences: PreferenceSet, held_out: float, seed: int
) -> tuple[PreferenceSet, PreferenceSet]:
    """Training and held-out rows, whole groups."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out = {held_out}: a share between 0 and 1 is expected")
    names, codes = np.unique([row.group for row in preferences], return_inverse=True)
    count = round(held_out * len(names))
    if min(count, len(names) - count) < 2:
        raise ValueError(
            f"held_out = {held_out}: {len(names)} groups are too few to keep two on each side"
        )
    groups_out = stream(seed, "reward model", "held out").permutation(len(names))[:count]
    is_out = np.isin(codes, groups_out)
    return preferences.select(np.flatnonzero(~is_out)), preferences.select(np.flatnonzero(is_out))


def _fit_scorer(
    pairs: Sequence[RankedPair],
    encoder: Encoder,
    features: str,
    penalty: float,
    config: FineTune,
    seed: int,
) -> LinearScorer | PairScorer:
    if features == "cosine":
        return LinearScorer(np.eye(1, encoder.width + 1)[0])
    better = [(pair.prompt, pair.better) for pair in pairs]
    worse = [(pair.prompt, pair.worse) for pair in pairs]
    if features == "frozen":
        better_features = encoders.relevance_features(encoder, better)
        difference = better_features - encoders.relevance_features(encoder, worse)
        return encoders.fit_logistic(difference, np.ones(len(pairs)), penalty, intercept=False)
    examples = list(zip(better, worse, strict=True))
    targets = [1.0] * len(pairs)
    return encoders.fine_tune(
        encoder,
        examples,
        targets,
        bradley_terry,
        config,
        seed=stream_seed(seed, "reward model"),
        desc="reward model",
    )


def bradley_terry(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log sigmoid(better - worse); scores [B, 2], column 0 the better; targets [B] 1."""
    return torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).mul(targets).mean()


def _held_out_comparisons(
    score: ScorePairs, test: PreferenceSet, direct: Sequence[tuple[str, str]], seed: int
) -> tuple[pd.DataFrame, float]:
    """Comparisons of held-out pairs, and the temperature that makes their differences odds.

    The temperature is fitted on the kinds of pairs that are trained on.
    """
    trained_kind = training_pairs(test, seed=seed, direct=direct)
    pairs = [*trained_kind, *pairs_across_sources(test, seed=seed, direct=direct)]
    better = score([(pair.prompt, pair.better) for pair in pairs])
    worse = score([(pair.prompt, pair.worse) for pair in pairs])
    fitted_on = (better - worse)[: len(trained_kind)]
    temperature = fit_temperature(fitted_on, np.ones(len(fitted_on))).temperature
    table = comparison_table(pairs, (better - worse) / temperature)
    return table.assign(trained_kind=np.arange(len(pairs)) < len(trained_kind)), temperature


class _ReplyStatistics(NamedTuple):
    """Of replies to their own prompts; the fields of the same names in `RewardModel`."""

    scale: float
    log_words: tuple[float, float]
    length_slope: float


def _reply_statistics(
    score: ScorePairs, test: PreferenceSet, temperature: float
) -> _ReplyStatistics:
    replies = flat_responses(test)
    scores = score(list(zip(replies["prompt"], replies["response"], strict=True))) / temperature
    log_words = np.log1p([word_count(reply) for reply in replies["response"]])
    scale, spread = float(scores.std()) or 1.0, float(log_words.std()) or 1.0
    slope = slope_within(log_words / spread, scores / scale, list(replies["source"]))
    return _ReplyStatistics(scale, (float(log_words.mean()), spread), slope)


def slope_within(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> float:
    """Least-squares slope of y on x with the means of groups taken out; 0 where x does not vary."""
    table = pd.DataFrame({"x": x, "y": y, "group": groups})
    centred = table[["x", "y"]] - table.groupby("group")[["x", "y"]].transform("mean")
    centred_x, centred_y = centred["x"].to_numpy(), centred["y"].to_numpy()
    power = float(centred_x @ centred_x)
    if power == 0:
        return 0.0
    return float(centred_x @ centred_y) / power
