"""One preference method, trained from the SFT policy, and the replies that it samples."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from robustpo_kit import objectives, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.experiments.sampled import RECORD, SAMPLED, sampled_replies
from robustpo_kit.experiments.supervised import SftStep, adapted
from robustpo_kit.policies import SamplingConfig
from robustpo_kit.records import write_json
from robustpo_kit.training import TrainConfig

SCORES = "scores.json"  # log-probabilities and lengths of responses after training


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MethodStep(Step):
    """A method's training record and replies; the policy itself is not kept.

    The preference data stand here with their rewards and h~, so that another reward model or
    classifier is another key, as far as it changes what the method sees.
    """

    sft: SftStep
    spec: str  # of objectives.build
    rows: PreferenceSet
    lora_targets: str
    lora_rank: int
    run: TrainConfig
    scored: Mapping[str, PreferenceSet]  # by name, sets to score after training
    prompts: PreferenceSet
    sampling: SamplingConfig
    sampling_seed: int

    def make(self, folder: Path) -> None:
        targets, rank = self.lora_targets, self.lora_rank
        policy = adapted(self.sft.load(), targets, rank, seed=self.run.seed)
        record = training.train(policy, self.rows, objectives.build(self.spec), self.run)
        record.to_json(folder / RECORD)
        replies = sampled_replies(
            policy, self.prompts, self.sampling, seed=self.sampling_seed, start=self.sft.load
        )
        write_json(folder / SAMPLED, replies)
        if self.scored:
            scores = {name: training.score(policy, rows) for name, rows in self.scored.items()}
            write_json(
                folder / SCORES, {name: [own[0].double(), own[1]] for name, own in scores.items()}
            )
