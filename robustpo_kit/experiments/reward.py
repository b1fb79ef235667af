"""A fitted Bradley-Terry reward model."""

import dataclasses
from pathlib import Path

from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import FineTune
from robustpo_kit.experiments.encoding import shared_encoder
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.rewards import RewardModel, fit_reward_model


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RewardStep(Step):
    """A Bradley-Terry reward model."""

    rows: PreferenceSet
    encoder: str
    encoder_seed: int
    features: str  # cosine | frozen | fine_tuned
    epochs: int
    seed: int

    def make(self, folder: Path) -> None:
        fitted = fit_reward_model(
            self.rows,
            encoder=shared_encoder(self.encoder, self.encoder_seed),
            features=self.features,
            fine_tune=FineTune(epochs=self.epochs),
            seed=self.seed,
        )
        fitted.save(folder)

    def load(self) -> RewardModel:
        """The reward model, fitted now or before."""
        encoder = shared_encoder(self.encoder, self.encoder_seed)
        return RewardModel.load(self.kept(), encoder=encoder)
