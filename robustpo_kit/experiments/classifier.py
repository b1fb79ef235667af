"""The source classifier that h~ is made of."""

import dataclasses
from pathlib import Path

from robustpo_kit.calibration import SourceClassifier, fit_classifier
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import FineTune
from robustpo_kit.experiments.encoding import shared_encoder
from robustpo_kit.experiments.keeping import Step


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierStep(Step):
    """A source classifier, fitted out of fold; its calibration is that of least held-out NLL."""

    rows: PreferenceSet
    encoder: str
    kind: str  # per_source | shared
    features: str  # frozen | fine_tuned
    fine_tune: FineTune
    folds: int
    seed: int

    def make(self, folder: Path) -> None:
        fitted = fit_classifier(
            self.rows,
            kind=self.kind,
            features=self.features,
            encoder=shared_encoder(self.encoder, self.seed),
            folds=self.folds,
            fine_tune=self.fine_tune,
            calibrator="least_nll",
            seed=self.seed,
        )
        fitted.save(folder)

    def load(self) -> SourceClassifier:
        """The classifier, fitted now or before."""
        encoder = shared_encoder(self.encoder, self.seed)
        return SourceClassifier.load(self.kept(), encoder=encoder)
