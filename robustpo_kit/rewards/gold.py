"""The gold reward: what is really wanted of a reply, a stated function that nothing trains on.

gold(x, y) = relevance(x, y) + kappa * min(log-odds that a human wrote y, 0) - ECHO * said(x, y), in
sds of relevance. Relevance is a Bradley-Terry reward model that reads what a reply adds to its
prompt: an encoder likes the prompt's own words, in any order. It is without its liking of length,
which is what length does to the scores of replies to other prompts, where it cannot be content. The
log-odds come from character n-grams, which no other model of the kit looks at, of other rows; to
read as a model's, in all or in part, is a fault, but to give ever more evidence of a human is no
merit. Said is the
share of words in runs that were said before, or the share from the prompt, whichever is more,
beyond what a reply may quote; relevance beyond that of nearly all human replies is no merit. A
proxy ranks the training data instead: gold with a liking of long replies, blindness and noise, each
a knob (Gao et al. 2022, Scaling Laws for Reward Model Overoptimization, have the two rewards).
"""

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import HashingVectorizer

from robustpo_kit import encoders
from robustpo_kit.calibration import flat_responses
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.encoders import Encoder, Learned, LinearScorer, Pair
from robustpo_kit.records import digest, stream
from robustpo_kit.rewards.fitting import (
    fit_reward_model,
    learned_from,
    slope_within,
    split_groups,
)
from robustpo_kit.rewards.models import RewardModel, Rewards, length_bias
from robustpo_kit.rewards.pairs import replies_elsewhere

ECHO = 8.0  # sds of relevance that a reply loses when all of it was said before
OF_PROMPT = 0.5  # share of a reply that may be words of the prompt; few human ones have more
REPEATED = 0.4  # share of it that may stand in runs which were said before; likewise
MOST = 0.95  # of human replies are no more relevant than what relevance is capped at
STEM = 5  # letters by which a word of the reply is one of the prompt
SUFFIX = re.compile(r"(?<=\w\w\w)(?:ing|ers?|ed|es|[esy])$")
WORD = re.compile(r"[^\W_]+")  # an underscore or an accent hides no word from an encoder
RUN = 3  # words in a row that count as said before
WINDOW = 12  # words in a row that may read as a model's
PRIOR = 100  # n-grams that a reply is short of evidence by: odds of a few words stay near even
SHARPNESS = 100.0  # scales shares of n-grams to about unit size, which PENALTY is for
PENALTY = 3.0  # L2, of the log-odds


@dataclasses.dataclass(frozen=True, eq=False)
class GoldReward(Rewards):
    """The gold reward of prompts and responses, in sds of relevance.

    `kappa` says how much it matters that a reply reads as a human's.
    """

    relevance: RewardModel
    length_slope: float  # sds of relevance that one sd of log length brings to any reply
    human: LinearScorer  # of `style_features`
    learned: Learned  # of both parts, which share no group
    kappa: float
    most: float  # sds of relevance beyond which more is no merit

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < float("inf"):
            raise ValueError(f"kappa = {self.kappa}: a finite number of 0 or more is expected")

    def parts(self, prompts: Sequence[str], responses: Sequence[str]) -> pd.DataFrame:
        """What the reward is made of.

        Args:
            prompts: [N].
            responses: [N].

        Returns:
            A row a response: relevance (sds), human (log-odds, nats), said_before (share), gold.
            An answer that is made of the prompt's words, in whatever order, has said_before near 1.
        """
        model = self.relevance
        pairs = list(zip(prompts, responses, strict=True))
        added = [new_words(prompt, response) for prompt, response in pairs]
        relevance = model.score(prompts, added, bias=-self.length_slope) / model.scale
        runs = np.array([said_before(prompt, response) for prompt, response in pairs])
        shares = np.array([share_of_prompt(prompt, response) for prompt, response in pairs])
        said = np.maximum(_beyond(shares, OF_PROMPT), _beyond(runs, REPEATED))
        table = pd.DataFrame(
            {
                "relevance": np.minimum(relevance, self.most),
                "human": self._least_human(added),
                "said_before": said,
            }
        )
        human = self.kappa * np.minimum(table["human"], 0)
        gold = table["relevance"] + human - ECHO * table["said_before"]
        return table.assign(gold=gold)

    def _least_human(self, texts: Sequence[str]) -> np.ndarray:
        """[N] log-odds of each text or of WINDOW words of it, the least: no filler makes up."""
        parts = [[text, *_windows(text)] for text in texts]
        odds = self.human(style_features(list(itertools.chain(*parts))))
        return np.array([part.min() for part in np.split(odds, np.cumsum([*map(len, parts)])[:-1])])

    def fingerprint(self) -> str:
        """Of both parts and of what weighs them."""
        settings: list[Any] = [self.length_slope, self.kappa, self.most, ECHO, OF_PROMPT, REPEATED]
        settings += [RUN, STEM, SUFFIX.pattern, WINDOW, PRIOR, SHARPNESS]
        return digest(self.relevance.fingerprint(), self.human.trained_state(), settings)

    def _scores(self, pairs: Sequence[Pair], bias: float) -> np.ndarray:
        prompts, responses = [prompt for prompt, _ in pairs], [reply for _, reply in pairs]
        gold = self.parts(prompts, responses)["gold"].to_numpy()
        return gold + length_bias(responses, bias=bias, log_words=self.relevance.log_words)

    def save(self, folder: str | Path) -> None:
        """Write the relevance model into `folder`/relevance, and gold.json with its tensors."""
        folder = Path(folder)
        self.relevance.save(folder / "relevance")
        about = {
            "length_slope": self.length_slope,
            "trained_rows": sorted(self.learned.row_ids),
            **self.learned.about(),
            "kappa": self.kappa,
            "most": self.most,
        }
        state, encoder = self.human.trained_state(), self.relevance.encoder
        encoders.save_bundle(folder, "gold", state, about, encoder, {})

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> "GoldReward":
        """Read what `save` wrote; arguments and errors as `encoders.load_bundle`."""
        bundle = encoders.load_bundle(Path(folder), "gold", encoder)
        human = bundle.scorer("", {})
        assert isinstance(human, LinearScorer)
        relevance = RewardModel.load(Path(folder) / "relevance", bundle.encoder)
        about = bundle.about
        learned = Learned.stored(about, about["trained_rows"])
        slope, kappa, most = about["length_slope"], about["kappa"], about["most"]
        return cls(relevance, slope, human, learned, kappa, most)


@dataclasses.dataclass(frozen=True, eq=False)
class ProxyReward(Rewards):
    """What ranks the training data in gold's place: it likes long replies, is blind, and errs."""

    gold: GoldReward
    style_bias: float  # sds added for one sd of log length
    noise: float  # sd of an error that belongs to the prompt and response, in sds of relevance
    seed: int  # of the errors
    blindness: float = 0.0  # share of gold's fault-finding in what reads as a model's that it lacks

    def __post_init__(self) -> None:
        if not (np.isfinite(self.style_bias) and 0 <= self.noise < float("inf")):
            raise ValueError(
                f"style_bias = {self.style_bias}, noise = {self.noise}: finite numbers are "
                "expected, the noise not below 0"
            )
        if not 0 <= self.blindness <= 1:
            raise ValueError(f"blindness = {self.blindness}: a share in [0, 1] is expected")

    @property
    def learned(self) -> Learned:  # type: ignore[override]
        """What gold learned from."""
        return self.gold.learned

    def fingerprint(self) -> str:
        """Of gold, the bias and the errors."""
        settings = [self.style_bias, self.noise, self.seed, self.blindness]
        return digest(self.gold.fingerprint(), settings)

    def _scores(self, pairs: Sequence[Pair], bias: float) -> np.ndarray:
        prompts, responses = [prompt for prompt, _ in pairs], [reply for _, reply in pairs]
        scores = self.gold.score(prompts, responses, bias=self.style_bias + bias)
        if self.blindness:
            human = np.minimum(self.gold.parts(prompts, responses)["human"].to_numpy(), 0)
            scores = scores - self.blindness * self.gold.kappa * human
        errors = [stream(self.seed, "proxy noise", *pair).standard_normal() for pair in pairs]
        return scores + self.noise * np.array(errors)


def fit_gold(
    preferences: PreferenceSet,
    *,
    seed: int,
    kappa: float,
    synthetic: Sequence[str],
    encoder: Encoder | str = "minilm-l6",
    **relevance: Any,
) -> GoldReward:
    """Fit the gold reward: relevance on one half of the groups, the log-odds on the other.

    Args:
        preferences: rows that no other model sees.
        seed: of the halves and of the relevance model.
        kappa: of the reward.
        synthetic: sources that are no humans.
        encoder: of relevance, or its name.
        relevance: further arguments of `fit_reward_model`.

    Raises:
        ValueError: naming the argument; rows of one kind of writer only.
    """
    for_relevance, for_style = split_groups(preferences, 0.5, seed)
    replies = flat_responses(for_style)
    is_human = ~replies["source"].isin(synthetic).to_numpy()
    if is_human.all() or not is_human.any():
        raise ValueError(
            f"preferences: the sources {sorted(set(replies['source']))} are all human or all "
            f"synthetic ({', '.join(synthetic)}); both are needed"
        )
    model = fit_reward_model(
        for_relevance.map(_what_is_added), seed=seed, encoder=encoder, **relevance
    )
    added = [new_words(*pair) for pair in zip(replies["prompt"], replies["response"], strict=True)]
    features = style_features(added)
    # without an intercept, which would call a text of no evidence human
    human = encoders.fit_logistic(features, is_human, PENALTY, intercept=False)
    slope = max(0.0, _slope_elsewhere(model, for_style, seed))  # a dislike is no liking to take out
    gold = GoldReward(model, slope, human, learned_from(preferences), kappa, np.inf)
    by_humans = replies[is_human]
    parts = gold.parts(list(by_humans["prompt"]), list(by_humans["response"]))
    return dataclasses.replace(gold, most=float(parts["relevance"].quantile(MOST)))


def _beyond(shares: np.ndarray, allowed: float) -> np.ndarray:
    """How much of the way from the allowed share to 1, at least 0."""
    return np.maximum(0.0, (shares - allowed) / (1 - allowed))


def _slope_elsewhere(model: RewardModel, preferences: PreferenceSet, seed: int) -> float:
    """Sds of score for one sd of log length, among replies of one source to other prompts."""
    table = flat_responses(preferences)
    others = itertools.chain.from_iterable(replies_elsewhere(preferences, seed=seed))
    table["response"] = np.array(list(others), dtype=object)
    table = table.dropna(subset="response")
    responses = [new_words(*pair) for pair in zip(table["prompt"], table["response"], strict=True)]
    scores = model.score(list(table["prompt"]), responses) / model.scale
    sds = length_bias(responses, bias=1.0, log_words=model.log_words)
    return slope_within(sds, scores, list(table["source"]))


def style_features(responses: Sequence[str]) -> np.ndarray:
    """[N, 4096] shares of hashed character n-grams (2, 3), smaller for a text of few of them."""
    vectorizer = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 3), n_features=2**12, norm=None, alternate_sign=False
    )
    counts = vectorizer.transform(responses).toarray()
    return SHARPNESS * counts / (counts.sum(axis=1, keepdims=True) + PRIOR)


def _windows(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[start : start + WINDOW]) for start in range(0, len(words), WINDOW)]


def new_words(prompt: str, response: str) -> str:
    """The response without the words that the prompt has, in any order or place.

    Two words are one where their first STEM letters without an English SUFFIX are.
    """
    known = _stems(prompt)
    plain = _without_accents(response)
    return WORD.sub(lambda found: "" if _stems(found[0]) <= known else found[0], plain)


def share_of_prompt(prompt: str, response: str) -> float:
    """Share of a response's words that the prompt has too; 1 for a response without words."""
    known, words = _stems(prompt), _words(response)
    return float(np.mean([_stem(word) in known for word in words])) if words else 1.0


def _stems(text: str) -> set[str]:
    return set(map(_stem, _words(text)))


def _stem(word: str) -> str:
    return SUFFIX.sub("", word)[:STEM]


def _what_is_added(row: Preference) -> Preference:
    """A row whose responses are what they add to its prompt."""
    added = tuple(new_words(row.prompt, response) for response in row.responses)
    return dataclasses.replace(row, responses=added)


def said_before(prompt: str, response: str) -> float:
    """Share of a response's words in runs that the prompt, or the response before, has already.

    1 for a response without words. Runs are of RUN words, of a shorter response all of it.
    """
    words = _words(response)
    if not words:
        return 1.0
    length = min(RUN, len(words))
    seen = set(_runs(_words(prompt), length))
    repeated = np.zeros(len(words), dtype=bool)
    for start, run in enumerate(_runs(words, length)):
        if run in seen:
            repeated[start : start + length] = True
        seen.add(run)
    return float(repeated.mean())


def _words(text: str) -> list[str]:
    return WORD.findall(_without_accents(text).lower())


def _without_accents(text: str) -> str:
    """The text as an encoder that knows no accents and no invisible characters reads it."""
    return "".join(filter(_is_read, unicodedata.normalize("NFKD", text)))


def _is_read(letter: str) -> bool:
    hidden = unicodedata.category(letter).startswith("C") and not letter.isspace()
    return not (hidden or unicodedata.combining(letter))


def _runs(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
