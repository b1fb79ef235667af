"""Rewards: Bradley-Terry models of how well a reply answers its prompt, checked not to be source classifiers.

Both sides of every training pair come from the same kind of writer: a reply against one of the same source to another
prompt, matched in length, and the human pairs of the data. So neither source nor length decides a training pair.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustpo_kit import encoders
from robustpo_kit.calibration import fit_temperature
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


@dataclasses.dataclass(eq=False)
class RewardModel:
    """A scorer in Bradley-Terry units: sigmoid(difference) is the probability that the first reply is preferred."""

    features: str
    encoder: Encoder
    model: LinearScorer | PairScorer
    temperature: float  # scores are divided by it; fitted on the held-out training-kind pairs
    scale: float  # sd of the scores of replies to their own prompts, held out
    log_words: tuple[float, float]  # mean and sd of log(1 + words) of the same replies
    length_slope: float  # sds of score for one sd of log length among replies of one source: the model's own length bias
    trained_rows: frozenset[str]
    held_out: pd.DataFrame  # row_id, group, kind, trained_kind, difference (score units), gap_words
    config: dict[str, Any]

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        bias: float = 0.0,
        row_ids: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Scores [N]; `bias` adds that many sds of reward for one sd of log length: a reward that likes long replies.

        Raises ValueError when a row id was trained on.
        """
        if len(prompts) != len(responses):
            raise ValueError(
                f"prompts, responses: {len(prompts)} and {len(responses)}; equally many are expected"
            )
        seen = self.trained_rows.intersection(row_ids or ())
        if seen:
            raise ValueError(
                f"row_ids: '{min(seen)}' ({len(seen)} in all) was trained on; score rows of another split"
            )
        pairs = list(zip(prompts, responses, strict=True))
        scores = _raw_scores(self.model, self.encoder, pairs) / self.temperature
        return (
            scores + length_bias(responses, bias=bias * self.scale, log_words=self.log_words)
            if bias
            else scores
        )

    def score_set(self, preferences: PreferenceSet, *, bias: float = 0.0) -> np.ndarray:
        """Scores [N, K]; raises ValueError where a row was trained on or K differs between rows."""
        counts = {len(row.responses) for row in preferences}
        if len(counts) != 1:
            raise ValueError(
                f"preferences: rows of {sorted(counts)} responses; equally many in every row are expected"
            )
        prompts = [row.prompt for row in preferences for _ in row.responses]
        responses = [response for row in preferences for response in row.responses]
        row_ids = [row.row_id for row in preferences]
        return self.score(prompts, responses, bias=bias, row_ids=row_ids).reshape(
            len(preferences), -1
        )

    def compare(self, pairs: Sequence[RankedPair], *, bias: float = 0.0) -> pd.DataFrame:
        """Score differences of ranked pairs: row_id, group, kind, difference, gap_words (words of better - worse)."""
        prompts = [pair.prompt for pair in pairs]
        better = self.score(prompts, [pair.better for pair in pairs], bias=bias)
        worse = self.score(prompts, [pair.worse for pair in pairs], bias=bias)
        table = pd.DataFrame([pair[:3] for pair in pairs], columns=["row_id", "group", "kind"])
        gap = [len(pair.better.split()) - len(pair.worse.split()) for pair in pairs]
        return table.assign(difference=better - worse, gap_words=gap)

    def accuracy(self, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Held-out preference accuracy by kind of pair, with CIs over groups; see `accuracy_table`."""
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
        state = self.model.trained_state()
        encoders.save_bundle(
            Path(folder), "reward", state, about, self.encoder, {"held_out": self.held_out}
        )

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> "RewardModel":
        """Read what `save` wrote; raises KitError naming the file that is missing or damaged."""
        bundle = encoders.load_bundle(Path(folder), "reward", encoder)
        about = bundle.about
        return cls(
            about["features"],
            bundle.encoder,
            bundle.scorer("", about["config"]["fine_tune"]),
            about["temperature"],
            about["scale"],
            tuple(about["log_words"]),
            about["length_slope"],
            frozenset(about["trained_rows"]),
            bundle.tables["held_out"],
            about["config"],
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
    """Fit a Bradley-Terry model on `training_pairs`; a share `held_out` of the groups is kept for accuracy and scale.

    features: cosine (of the embeddings, nothing trained) | frozen (their elementwise product, linear head with L2
    `penalty`) | fine_tuned (BERT on the pair prompt, reply). Raises ValueError naming the argument.
    """
    if features not in FEATURES:
        raise ValueError(f"features = '{features}': one of {', '.join(FEATURES)} is expected")
    encoder = encoders.load(encoder) if isinstance(encoder, str) else encoder
    train, test = _split(preferences, held_out, seed)
    pairs = training_pairs(train, seed=seed, direct=direct)
    if not pairs:
        raise ValueError(
            "preferences: no pair to train on; two prompts with replies of one source are needed"
        )
    model = _fit(pairs, encoder, features, penalty, fine_tune, seed)
    config = {
        "direct": [list(pair) for pair in direct],
        "held_out": held_out,
        "penalty": penalty,
        "fine_tune": dataclasses.asdict(fine_tune),
        "seed": seed,
        "rows": len(preferences),
        "pairs": len(pairs),
    }
    trained = frozenset(row.row_id for row in train) if features != "cosine" else frozenset()
    raw = RewardModel(
        features, encoder, model, 1.0, 1.0, (0.0, 1.0), 0.0, trained, pd.DataFrame(), config
    )
    return _with_held_out(raw, test, direct, seed)


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
    kept = np.isin(codes, np.random.default_rng(seed).permutation(len(names))[:count])
    return preferences.select(np.flatnonzero(~kept)), preferences.select(np.flatnonzero(kept))


def _fit(
    pairs: Sequence[RankedPair],
    encoder: Encoder,
    features: str,
    penalty: float,
    config: FineTune,
    seed: int,
) -> LinearScorer | PairScorer:
    if features == "cosine":
        return LinearScorer(np.eye(1, encoder.width + 1)[0])
    better, worse = [(p.prompt, p.better) for p in pairs], [(p.prompt, p.worse) for p in pairs]
    if features == "frozen":
        difference = encoders.relevance_features(encoder, better) - encoders.relevance_features(
            encoder, worse
        )
        return encoders.fit_logistic(difference, np.ones(len(pairs)), penalty, intercept=False)
    examples = list(zip(better, worse, strict=True))
    targets = np.ones(len(pairs))
    return encoders.fine_tune(
        encoder, examples, targets, bradley_terry, config, seed=seed, desc="reward model"
    )


def bradley_terry(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log sigmoid(better - worse); scores [B, 2], column 0 the better."""
    return torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).mul(targets).mean()


def _with_held_out(
    raw: RewardModel, test: PreferenceSet, direct: Sequence[tuple[str, str]], seed: int
) -> RewardModel:
    """`raw` with its temperature, scale and held-out comparisons."""
    trained_kind = training_pairs(test, seed=seed, direct=direct)
    across = pairs_across_sources(test, seed=seed)
    table = raw.compare([*trained_kind, *across])
    table["trained_kind"] = np.arange(len(table)) < len(trained_kind)
    fitted = table.loc[table["trained_kind"], "difference"].to_numpy()
    temperature = fit_temperature(fitted, np.ones(len(fitted))).temperature
    table["difference"] /= temperature
    replies = [(row.prompt, reply) for row in test for reply in row.responses]
    scores = _raw_scores(raw.model, raw.encoder, replies) / temperature
    log_words = np.log1p([len(reply.split()) for _, reply in replies])
    scale, spread = float(scores.std()) or 1.0, float(log_words.std()) or 1.0
    slope = _slope_within(
        log_words / spread, scores / scale, [source for row in test for source in row.sources]
    )
    return dataclasses.replace(
        raw,
        temperature=temperature,
        scale=scale,
        log_words=(float(log_words.mean()), spread),
        length_slope=slope,
        held_out=table,
    )


def _slope_within(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> float:
    """Least-squares slope of y on x with the means of groups taken out; 0 where x does not vary."""
    table = pd.DataFrame({"x": x, "y": y, "group": groups})
    centred = table[["x", "y"]] - table.groupby("group")[["x", "y"]].transform("mean")
    power = float(centred["x"] @ centred["x"])
    return float(centred["x"] @ centred["y"]) / power if power > 0 else 0.0


def _raw_scores(
    model: LinearScorer | PairScorer, encoder: Encoder, pairs: Sequence[Pair]
) -> np.ndarray:
    if isinstance(model, LinearScorer):
        return model(encoders.relevance_features(encoder, pairs))
    return encoders.score_pairs(model, encoder, pairs)


def length_bias(
    responses: Sequence[str], *, bias: float, log_words: tuple[float, float]
) -> np.ndarray:
    """[N] bias * (log(1 + words) - mean) / sd: what a length-biased reward adds."""
    mean, sd = log_words
    return bias * (np.log1p([len(response.split()) for response in responses]) - mean) / sd
