"""Sampled replies, scored by everything that did not train on their prompts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robustpo_kit import judging, mixture
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.experiments.classifier import ClassifierStep
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.experiments.method import MethodStep
from robustpo_kit.experiments.reward import RewardStep
from robustpo_kit.experiments.sampled import SAMPLED, SftRepliesStep
from robustpo_kit.records import read_json

REPLIES = "replies.json"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoredRepliesStep(Step):
    """A policy's replies as a table, a row a reply.

    Columns: row_id, prompt_id, reply, words, finished; reward (proxy model), confidence (the
    classifier's c), verdict against the human reply (judge model: win | tie | lose),
    verdict_length_controlled (the same judge without its liking of length), log_ratio (see
    `sampled_replies`).
    """

    replies: MethodStep | SftRepliesStep
    prompts: PreferenceSet
    proxy: RewardStep
    judge: RewardStep
    classifier: ClassifierStep
    seed: int  # of the order in which the judge sees two replies

    def make(self, folder: Path) -> None:
        entries = read_json(self.replies.kept() / SAMPLED)
        row_of = {row.row_id: row for row in self.prompts}
        rows = [row_of[entry["row_id"]] for entry in entries]
        prompts, texts = [row.prompt for row in rows], [entry["reply"] for entry in entries]
        human = [_human_reply(row) for row in rows]
        ids = [mixture.digest(row.group) for row in rows]  # tables hold no human text
        plain, length_controlled = self._verdicts(prompts, texts, human, ids)
        table = pd.DataFrame(
            {
                "row_id": [row.row_id for row in rows],
                "prompt_id": ids,
                "reply": texts,
                "words": [len(text.split()) for text in texts],
                "finished": [entry["finished"] for entry in entries],
                "reward": self.proxy.load().score(prompts, texts),
                "confidence": self.classifier.load().score(prompts, texts),
                "verdict": plain,
                "verdict_length_controlled": length_controlled,
                "log_ratio": [entry["log_ratio"] for entry in entries],
            }
        )
        table.to_json(folder / REPLIES, orient="records", force_ascii=False)

    def _verdicts(
        self, prompts: Sequence[str], texts: Sequence[str], human: Sequence[str], ids: Sequence[str]
    ) -> tuple[pd.Series, pd.Series]:
        """The judge's verdicts [N] as it is, and without its liking of length."""
        model = self.judge.load()

        def verdicts(bias: float) -> pd.Series:
            judge = judging.RewardJudge(model, bias=bias)
            table = judging.compare(
                judge, prompts, {"": texts}, human, seed=self.seed, prompt_ids=ids
            )
            return table["verdict"]

        return verdicts(0.0), verdicts(-model.length_slope)


def _human_reply(row: Preference) -> str:
    if row.golden is None:
        raise KitError(f"row '{row.row_id}', field golden: none; replies are judged against it")
    return row.responses[row.golden]
