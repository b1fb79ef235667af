"""Sampled replies, scored by everything that did not train on their prompts."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit import analysis, judging, mixture, similarity
from robustpo_kit.calibration import SourceClassifier
from robustpo_kit.data import PreferenceSet
from robustpo_kit.experiments.classifier import ClassifierStep
from robustpo_kit.experiments.gold import GoldStep
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.experiments.method import MethodStep
from robustpo_kit.experiments.sampled import (
    SAMPLED,
    GoldenRepliesStep,
    StartRepliesStep,
    golden_reply,
)
from robustpo_kit.records import read_json
from robustpo_kit.rewards import ProxyReward

REPLIES = "replies.json"
RepliesStep = MethodStep | StartRepliesStep | GoldenRepliesStep
GOLD_JUDGE = "gold"  # name of the judge


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoredRepliesStep(Step):
    """A policy's replies as a table, a row a reply.

    Columns: row_id, prompt_id, reply, words, finished; reward (of the proxy), gold, confidence
    (c of another classifier than the one whose c weighs), rouge_l, chrf and embedding_f1
    (similarity to the human reply), verdict against the human reply by gold (win | tie | lose),
    judge and its fingerprint, log_ratio (see `sampled_replies`); energy_distance between the
    embeddings of replies and of human ones (`distance_by_draw`), in every row.
    """

    replies: RepliesStep
    prompts: PreferenceSet
    gold: GoldStep
    style_bias: float  # of the proxy
    noise: float
    blindness: float
    classifier: ClassifierStep
    seed: int  # of the order in which the judge sees two replies

    def make(self, folder: Path) -> None:
        gold = self.gold.load()
        proxy = ProxyReward(gold, self.style_bias, self.noise, self.seed, self.blindness)
        entries = read_json(self.replies.kept() / SAMPLED)
        table = scored_replies(entries, self.prompts, proxy, self.classifier.load(), self.seed)
        table.to_json(folder / REPLIES, orient="records", force_ascii=False)


def scored_replies(
    entries: Sequence[Mapping[str, Any]],
    asked: PreferenceSet,
    proxy: ProxyReward,
    classifier: SourceClassifier,
    seed: int,
) -> pd.DataFrame:
    """The table of `ScoredRepliesStep`.

    Args:
        entries: of `sampled_replies`.
        asked: rows of the prompts that were answered.
        proxy: with the gold that judges.
        classifier: of confidence.
        seed: of the order in which the judge sees two replies.
    """
    row_of = {row.row_id: row for row in asked}
    rows = [row_of[entry["row_id"]] for entry in entries]
    prompts, texts = [row.prompt for row in rows], [entry["reply"] for entry in entries]
    human = [golden_reply(row) for row in rows]
    ids = [mixture.digest(row.group) for row in rows]  # tables hold no human text
    judge = judging.RewardJudge(proxy.gold, name=GOLD_JUDGE)
    row_ids = [row.row_id for row in rows]
    verdicts = judging.compare(
        judge, prompts, {"": texts}, human, seed=seed, prompt_ids=ids, row_ids=row_ids
    )
    table = pd.DataFrame(
        {
            "row_id": row_ids,
            "prompt_id": ids,
            "reply": texts,
            "words": [len(text.split()) for text in texts],
            "finished": [entry["finished"] for entry in entries],
            "reward": proxy.score(prompts, texts),
            "gold": proxy.gold.score(prompts, texts),
            "confidence": classifier.score(prompts, texts),
            "verdict": verdicts["verdict"],
            "judge": verdicts["judge"],
            "fingerprint": verdicts["fingerprint"],
            "log_ratio": [entry["log_ratio"] for entry in entries],
        }
    )
    encoder = proxy.gold.relevance.encoder
    table = table.join(similarity.to_reference(texts, human, encoder))
    vectors, human_vectors = (encoder.embed(part).numpy() for part in (texts, human))
    table["energy_distance"] = distance_by_draw(vectors, human_vectors, table["row_id"])
    return table


def distance_by_draw(replies: np.ndarray, human: np.ndarray, row_ids: "pd.Series[str]") -> float:
    """Mean energy distance of the first, second, ... replies to every prompt from the human ones.

    Two replies to one prompt are alike, and their human reply is the same text: all at once, a
    sample would count such pairs, which its distance to itself has none of.

    Args:
        replies: [N, D] embeddings.
        human: [N, D] embeddings of the human reply to the same prompt.
        row_ids: [N], which prompt.
    """
    draw = row_ids.groupby(row_ids).cumcount().to_numpy()
    distances = [
        analysis.energy_distance(replies[draw == number], human[draw == number], paired=True)
        for number in range(draw.max() + 1)
    ]
    return float(np.mean(distances))
