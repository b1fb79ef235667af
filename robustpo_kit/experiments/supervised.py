"""Supervised fine-tuning on golden replies: where every method starts, and its reference."""

import dataclasses
from pathlib import Path

from robustpo_kit import objectives, policies, training
from robustpo_kit.data import PreferenceSet, Template
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.policies import Policy
from robustpo_kit.training import TrainConfig


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SftStep(Step):
    """The policy after supervised fine-tuning, an adapter merged, and the record of that run."""

    rows: PreferenceSet
    model: str
    dtype: str
    template: Template | None  # None: the model's own
    lora_targets: str
    lora_rank: int
    run: TrainConfig

    def make(self, folder: Path) -> None:
        policy = adapted(self.start(), self.lora_targets, self.lora_rank, seed=self.run.seed)
        record = training.train(policy, self.rows, objectives.build("sft()"), self.run)
        policy.merge().save(folder / "policy")
        record.to_json(folder / "record.json")

    def start(self) -> Policy:
        """The model before fine-tuning, with the template."""
        return policies.load(self.model, template=self.template, dtype=self.dtype)

    def load(self) -> Policy:
        """The policy, trained now or before."""
        return policies.load(self.kept() / "policy", dtype=self.dtype)


def adapted(policy: Policy, targets: str, rank: int, *, seed: int) -> Policy:
    """The policy with a new adapter; as it is where `targets` is "none", for full fine-tuning."""
    return policy if targets == "none" else policy.add_lora(targets, rank, seed=seed)
