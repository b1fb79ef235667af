"""Bradley-Terry reward models: how well a reply answers its prompt.

The room's door says why they are no source classifiers.
"""

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit import encoders
from robustpo_kit.calibration import flat_responses, responses_per_row, word_count
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder, Learned, LinearScorer, Pair, PairScorer
from robustpo_kit.records import digest
from robustpo_kit.rewards.pairs import RankedPair
from robustpo_kit.rewards.tables import accuracy_table


class Rewards(abc.ABC):
    """Scores of responses, high for good ones; those that it learned from are refused."""

    learned: Learned

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        bias: float = 0.0,
        row_ids: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Scores [N] of responses that were not learned from.

        Args:
            prompts: [N].
            responses: [N].
            bias: so many sds of reward are added for one sd of log length: a reward that likes long
                replies.
            row_ids: [N] the rows that the responses come from.

        Raises:
            ValueError: lengths differ, or all that is given of a row was learned from.
        """
        pairs = encoders.unseen_pairs(prompts, responses, row_ids, self.learned)
        return self._scores(pairs, bias)

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Changes when a score may."""

    @abc.abstractmethod
    def _scores(self, pairs: Sequence[Pair], bias: float) -> np.ndarray:
        """What `Rewards.score` returns, of pairs (prompt, response)."""

    def score_set(self, preferences: PreferenceSet, *, bias: float = 0.0) -> np.ndarray:
        """Scores [N, K], with the `bias` of `Rewards.score`.

        Raises:
            ValueError: K differs between rows, or a row was learned from.
        """
        shape = (len(preferences), responses_per_row(preferences))
        flat = flat_responses(preferences)
        prompts, responses, row_ids = (
            list(flat[name]) for name in ("prompt", "response", "row_id")
        )
        return self.score(prompts, responses, bias=bias, row_ids=row_ids).reshape(shape)


@dataclasses.dataclass(eq=False)
class RewardModel(Rewards):
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
    learned: Learned
    held_out: pd.DataFrame  # row_id, group, kind, trained_kind, difference (scores), gap_words
    config: dict[str, Any]

    def fingerprint(self) -> str:
        """Of the tensors, the encoder's included, and of what scales scores."""
        settings = [self.features, self.temperature, self.scale, self.log_words]
        return digest(self.model.trained_state(), self.encoder.about(), settings)

    def _scores(self, pairs: Sequence[Pair], bias: float) -> np.ndarray:
        scores = raw_scores(self.model, self.encoder, pairs) / self.temperature
        if bias:
            responses = [response for _, response in pairs]
            scores += length_bias(responses, bias=bias * self.scale, log_words=self.log_words)
        return scores

    def compare(self, pairs: Sequence[RankedPair], *, bias: float = 0.0) -> pd.DataFrame:
        """Score differences of ranked pairs.

        Args:
            pairs: N pairs.
            bias: of `Rewards.score`.

        Returns:
            A row a pair: row_id, group, kind, difference (better - worse), gap_words (the same of
            words).
        """
        prompts = [pair.prompt for pair in pairs]
        better = self.score(prompts, [pair.better for pair in pairs], bias=bias)
        worse = self.score(prompts, [pair.worse for pair in pairs], bias=bias)
        return comparison_table(pairs, better - worse)

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
            "trained_rows": sorted(self.learned.row_ids),
            **self.learned.about(),
            "config": self.config,
        }
        state, tables = self.model.trained_state(), {"held_out": self.held_out}
        encoders.save_bundle(Path(folder), "reward", state, about, self.encoder, tables)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> "RewardModel":
        """Read what `save` wrote; arguments and errors as `encoders.load_bundle`."""
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
            learned=Learned.stored(about, about["trained_rows"]),
            held_out=bundle.tables["held_out"],
            config=about["config"],
        )


def comparison_table(pairs: Sequence[RankedPair], differences: np.ndarray) -> pd.DataFrame:
    """The table of `RewardModel.compare`."""
    table = pd.DataFrame([pair[:3] for pair in pairs], columns=["row_id", "group", "kind"])
    gap = [word_count(pair.better) - word_count(pair.worse) for pair in pairs]
    return table.assign(difference=differences, gap_words=gap)


def raw_scores(
    model: LinearScorer | PairScorer, encoder: Encoder, pairs: Sequence[Pair]
) -> np.ndarray:
    """[N] scores that no temperature has divided yet."""
    return encoders.raw_scores(model, encoder, pairs, encoders.relevance_features)


def length_bias(
    responses: Sequence[str], *, bias: float, log_words: tuple[float, float]
) -> np.ndarray:
    """[N] bias * (log(1 + words) - mean) / sd: what a length-biased reward adds."""
    mean, sd = log_words
    return bias * (np.log1p([word_count(response) for response in responses]) - mean) / sd
