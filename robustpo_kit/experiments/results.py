"""Methods after training: what notebooks make their tables of."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from robustpo_kit import judging
from robustpo_kit.experiments.method import SCORES
from robustpo_kit.experiments.sampled import RECORD
from robustpo_kit.experiments.scoring import REPLIES
from robustpo_kit.intervals import mean_by_group
from robustpo_kit.records import RunRecord, read_json

SIMILARITIES = ("rouge_l", "chrf", "embedding_f1")  # to the human reply


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method: its run record, none where nothing was trained, and its scored replies."""

    name: str
    record: RunRecord | None  # of the training run
    replies: pd.DataFrame  # see ScoredRepliesStep
    scores: dict[str, np.ndarray] | None = None  # logps, lengths [N, K] of the training responses

    @classmethod
    def read(cls, name: str, method: Path, scored: Path) -> "Trained":
        """Read the folders that a method's step and the scoring of its replies have kept."""
        scores = None
        if (method / SCORES).exists():
            stored = read_json(method / SCORES)
            scores = {key: np.array(values) for key, values in stored.items()}
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


def simpo_gaps(method: Trained, beta: float) -> pd.DataFrame:
    """SimPO's reward gaps beta (a_w - a_l) of the training pairs: columns policy, gap.

    a is the mean log-probability a token; beta is one for all methods (`simpo_beta`), whatever they
    were trained by. Raises ValueError for a method whose scores were not kept.
    """
    if method.scores is None:
        raise ValueError(
            f"{method.name}: scores of the training pairs are missing; give keep_scores"
        )
    means = method.scores["logps"] / method.scores["lengths"]
    return pd.DataFrame({"policy": method.name, "gap": beta * (means[:, 0] - means[:, 1])})
