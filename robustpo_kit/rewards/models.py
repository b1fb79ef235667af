"""Bradley-Terry reward models: how well a reply answers its prompt.

The room's door says why they are no source classifiers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustpo_kit import encoders
from robustpo_kit.calibration import fit_temperature, flat_responses, responses_per_row
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import (
    DEFAULT_FINE_TUNE,
    Encoder,
    FineTune,
    LinearScorer,
    Pair,
    PairScorer,
)
from robustpo_kit.rewards.pairs import DIRECT, RankedPair, pairs_across_sources, training_pairs
from robustpo_kit.rewards.tables import accuracy_table

FEATURES = ("cosine", "frozen", "fine_tuned")

ScorePairs = Callable[[Sequence[Pair]], np.ndarray]  # [N] scores of (prompt, response) pairs


@dataclasses.dataclass(eq=False)
class RewardModel:
    """A scorer in Bradley-Terry units.

    sigmoid(difference of two scores) is the probability that the first reply is preferred.
    """

    features: str
    encoder: Encoder
    model: LinearScorer | PairScorer
    temperature: float  # scores are divided by it; fitted on the held-out training-kind pairs
    scale: float  # sd of the scores of replies to their own prompts, held out
    log_words: tuple[float, float]  # mean and sd of log(1 + words) of the same replies
    length_slope: float  # sds of score for one sd of log length among replies of one source
    trained_rows: frozenset[str]
    held_out: pd.DataFrame  # row_id, group, kind, trained_kind, difference (scores), gap_words
    config: dict[str, Any]

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        bias: float = 0.0,
        row_ids: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Scores [N] of responses that the model did not learn from.

        Args:
            prompts: [N].
            responses: [N].
            bias: so many sds of reward are added for one sd of log length: a reward that likes long
                replies.
            row_ids: ids of the rows that the responses come from.

        Raises:
            ValueError: lengths differ, or the model learned from a row of `row_ids`.
        """
        if len(prompts) != len(responses):
            raise ValueError(
                f"prompts, responses: {len(prompts)} and {len(responses)}; equally many are "
                "expected"
            )
        seen = self.trained_rows.intersection(row_ids or ())
        if seen:
            raise ValueError(
                f"row_ids: '{min(seen)}' ({len(seen)} in all) was trained on; score rows of "
                "another split"
            )
        pairs = list(zip(prompts, responses, strict=True))
        scores = _raw_scores(self.model, self.encoder, pairs) / self.temperature
        if bias:
            scores += length_bias(responses, bias=bias * self.scale, log_words=self.log_words)
        return scores

    def score_set(self, preferences: PreferenceSet, *, bias: float = 0.0) -> np.ndarray:
        """Scores [N, K], with the `bias` of `score`.

        Raises:
            ValueError: K differs between rows, or the model learned from a row.
        """
        shape = (len(preferences), responses_per_row(preferences))
        flat = flat_responses(preferences)
        prompts, responses, row_ids = (
            list(flat[name]) for name in ("prompt", "response", "row_id")
        )
        return self.score(prompts, responses, bias=bias, row_ids=row_ids).reshape(shape)

    def compare(self, pairs: Sequence[RankedPair], *, bias: float = 0.0) -> pd.DataFrame:
        """Score differences of ranked pairs.

        Args:
            pairs: N pairs.
            bias: of `score`.

        Returns:
            A row a pair: row_id, group, kind, difference (better - worse), gap_words (the same of
            words).
        """
        prompts = [pair.prompt for pair in pairs]
        better = self.score(prompts, [pair.better for pair in pairs], bias=bias)
        worse = self.score(prompts, [pair.worse for pair in pairs], bias=bias)
        return _comparison_table(pairs, better - worse)

    def accuracy(self, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Held-out preference accuracy by kind of pair, with CIs over groups (`accuracy_table`)."""
        return accuracy_table(self.held_out, draws=draws, seed=seed)

    def save(self, folder: str | Path) -> None:
        """Write reward.safetensors, held_out.csv and, last, reward.json that names their sha256."""
        about = {
            "features": self.features,
            "temperature": self.temperature,
            "scale": self.scale,
            "log_words": self.log_words,
            "length_slope": self.length_slope,
            "trained_rows": sorted(self.trained_rows),
            "config": self.config,
        }
        state, tables = self.model.trained_state(), {"held_out": self.held_out}
        encoders.save_bundle(Path(folder), "reward", state, about, self.encoder, tables)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> "RewardModel":
        """Read what `save` wrote.

        Args:
            folder: that `save` was given.
            encoder: the one that the model was trained on; None loads it by its name.

        Raises:
            KitError: naming the file that is missing or damaged.
        """
        bundle = encoders.load_bundle(Path(folder), "reward", encoder)
        about = bundle.about
        mean_log_words, sd_log_words = about["log_words"]
        return cls(
            features=about["features"],
            encoder=bundle.encoder,
            model=bundle.scorer("", about["config"]["fine_tune"]),
            temperature=about["temperature"],
            scale=about["scale"],
            log_words=(mean_log_words, sd_log_words),
            length_slope=about["length_slope"],
            trained_rows=frozenset(about["trained_rows"]),
            held_out=bundle.tables["held_out"],
            config=about["config"],
        )


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
    train, test = _split(preferences, held_out, seed)
    pairs = training_pairs(train, seed=seed, direct=direct)
    if not pairs:
        raise ValueError(
            "preferences: no pair to train on; two prompts with replies of one source are needed"
        )
    model = _fit_scorer(pairs, encoder, features, penalty, fine_tune, seed)
    score = functools.partial(_raw_scores, model, encoder)
    comparisons, temperature = _held_out_comparisons(score, test, direct, seed)
    replies = _reply_statistics(score, test, temperature)
    trained_rows = [row.row_id for row in train]
    return RewardModel(
        features=features,
        encoder=encoder,
        model=model,
        temperature=temperature,
        scale=replies.scale,
        log_words=replies.log_words,
        length_slope=replies.length_slope,
        trained_rows=frozenset() if features == "cosine" else frozenset(trained_rows),
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


def _split(
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
    groups_out = np.random.default_rng(seed).permutation(len(names))[:count]
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
        encoder, examples, targets, bradley_terry, config, seed=seed, desc="reward model"
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
    pairs = [*trained_kind, *pairs_across_sources(test, seed=seed)]
    better = score([(pair.prompt, pair.better) for pair in pairs])
    worse = score([(pair.prompt, pair.worse) for pair in pairs])
    fitted_on = (better - worse)[: len(trained_kind)]
    temperature = fit_temperature(fitted_on, np.ones(len(fitted_on))).temperature
    table = _comparison_table(pairs, (better - worse) / temperature)
    return table.assign(trained_kind=np.arange(len(pairs)) < len(trained_kind)), temperature


def _comparison_table(pairs: Sequence[RankedPair], differences: np.ndarray) -> pd.DataFrame:
    """The table of `RewardModel.compare`."""
    table = pd.DataFrame([pair[:3] for pair in pairs], columns=["row_id", "group", "kind"])
    gap = [len(pair.better.split()) - len(pair.worse.split()) for pair in pairs]
    return table.assign(difference=differences, gap_words=gap)


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
    log_words = np.log1p([len(reply.split()) for reply in replies["response"]])
    scale, spread = float(scores.std()) or 1.0, float(log_words.std()) or 1.0
    slope = _slope_within(log_words / spread, scores / scale, list(replies["source"]))
    return _ReplyStatistics(scale, (float(log_words.mean()), spread), slope)


def _slope_within(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> float:
    """Least-squares slope of y on x with the means of groups taken out; 0 where x does not vary."""
    table = pd.DataFrame({"x": x, "y": y, "group": groups})
    centred = table[["x", "y"]] - table.groupby("group")[["x", "y"]].transform("mean")
    centred_x, centred_y = centred["x"].to_numpy(), centred["y"].to_numpy()
    power = float(centred_x @ centred_x)
    if power == 0:
        return 0.0
    return float(centred_x @ centred_y) / power


def _raw_scores(
    model: LinearScorer | PairScorer, encoder: Encoder, pairs: Sequence[Pair]
) -> np.ndarray:
    """[N] scores that no temperature has divided yet."""
    if isinstance(model, LinearScorer):
        return model(encoders.relevance_features(encoder, pairs))
    return encoders.score_pairs(model, encoder, pairs)


def length_bias(
    responses: Sequence[str], *, bias: float, log_words: tuple[float, float]
) -> np.ndarray:
    """[N] bias * (log(1 + words) - mean) / sd: what a length-biased reward adds."""
    mean, sd = log_words
    return bias * (np.log1p([len(response.split()) for response in responses]) - mean) / sd
