"""Methods after training: what notebooks make their tables of."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from robustpo_kit import judging
from robustpo_kit.experiments.method import SCORES
from robustpo_kit.experiments.sampled import RECORD
from robustpo_kit.experiments.scoring import REPLIES
from robustpo_kit.intervals import mean_by_group
from robustpo_kit.records import RunRecord, read_json

# log-probabilities and lengths [N, K] of the responses of sets by name
Scores = Mapping[str, tuple[np.ndarray, np.ndarray]]
SIMILARITIES = ("rouge_l", "chrf", "embedding_f1")  # to the human reply


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method: its run record, none where nothing was trained, and its scored replies."""

    name: str
    record: RunRecord | None  # of the training run
    replies: pd.DataFrame  # see ScoredRepliesStep
    scores: Scores = dataclasses.field(default_factory=dict)  # of the sets scored after training

    @classmethod
    def read(cls, name: str, method: Path, scored: Path) -> "Trained":
        """Read the folders that a method's step and the scoring of its replies have kept."""
        stored = read_json(method / SCORES) if (method / SCORES).exists() else {}
        scores = {key: (np.array(own[0]), np.array(own[1])) for key, own in stored.items()}
        record = method / RECORD
        trained = RunRecord.from_json(record) if record.exists() else None
        replies = pd.DataFrame(read_json(scored / REPLIES)).astype({"log_ratio": float})
        return cls(name, trained, replies, scores)


def all_replies(methods: Sequence[Trained]) -> pd.DataFrame:
    """The replies of several methods as one table with a column `policy`, without their texts."""
    parts = [method.replies.drop(columns="reply").assign(policy=method.name) for method in methods]
    return pd.concat(parts, ignore_index=True)


def reply_quality(methods: Sequence[Trained], *, draws: int, seed: int) -> pd.DataFrame:
    """By method: words, rewards, confidence, similarity and KL with CIs; distance, distinct-n."""
    measures = ["words", "reward", "gold", "confidence", *SIMILARITIES, "log_ratio"]
    means = mean_by_group(
        all_replies(methods), "policy", measures, cluster="prompt_id", draws=draws, seed=seed
    ).rename(columns={"clusters": "prompts"})
    texts = judging.text_table({method.name: list(method.replies["reply"]) for method in methods})
    distances = {method.name: method.replies["energy_distance"].iloc[0] for method in methods}
    means["energy_distance"] = means["policy"].map(distances)
    return means.merge(texts[["policy", "distinct_1", "distinct_2", "duplicates"]], on="policy")


def simpo_gaps(policy: str, scores: Scores, beta: float) -> pd.DataFrame:
    """SimPO's reward gaps beta (a_w - a_l) of pairs, a the mean log-probability a token.

    Args:
        policy: whose scores they are.
        scores: of pairs, as a `Trained` has them.
        beta: one for all policies (`simpo_beta`), whatever they were trained by.

    Returns:
        A row a pair: policy, pairs (their set's name), gap.

    Raises:
        ValueError: nothing was scored.
    """
    if not scores:
        raise ValueError(f"{policy}: no pairs were scored after training; give `scored`")
    parts = []
    for name, (logps, lengths) in scores.items():
        means = np.asarray(logps, dtype=float) / np.asarray(lengths)
        gaps = beta * (means[:, 0] - means[:, 1])
        parts.append(pd.DataFrame({"policy": policy, "pairs": name, "gap": gaps}))
    return pd.concat(parts, ignore_index=True)
