"""The gold reward, fitted once a seed."""

import dataclasses
from pathlib import Path

from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import FineTune
from robustpo_kit.experiments.encoding import shared_encoder
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.rewards import GoldReward, fit_gold


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GoldStep(Step):
    """The gold reward of rows that nothing else sees."""

    rows: PreferenceSet
    encoder: str
    encoder_seed: int
    features: str  # of relevance: cosine | frozen | fine_tuned
    epochs: int
    kappa: float
    synthetic: tuple[str, ...]  # sources that are no humans
    seed: int

    def make(self, folder: Path) -> None:
        fitted = fit_gold(
            self.rows,
            seed=self.seed,
            kappa=self.kappa,
            synthetic=self.synthetic,
            encoder=shared_encoder(self.encoder, self.encoder_seed),
            features=self.features,
            fine_tune=FineTune(epochs=self.epochs),
        )
        fitted.save(folder)

    def load(self) -> GoldReward:
        """The gold reward, fitted now or before."""
        encoder = shared_encoder(self.encoder, self.encoder_seed)
        return GoldReward.load(self.kept(), encoder=encoder)
