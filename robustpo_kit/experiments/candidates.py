"""Held-out rows with fixed candidates, scored by all that no method changes."""

import dataclasses
from pathlib import Path

import numpy as np

from robustpo_kit import training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.experiments.gold import GoldStep
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.experiments.supervised import SftStep
from robustpo_kit.measures import Candidates
from robustpo_kit.records import read_json, write_json

SCORES = "scores.json"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CandidatesStep(Step):
    """Gold rewards of the candidates, and their log-probabilities under the SFT and base model.

    Column 0 is the golden reply; its rivals are the columns whose sources are no humans.
    """

    rows: PreferenceSet
    sft: SftStep
    gold: GoldStep
    synthetic: tuple[str, ...]

    def make(self, folder: Path) -> None:
        sft, lengths = training.score(self.sft.load(), self.rows)
        base_logps, _ = training.score(self.sft.start(), self.rows)
        gold = self.gold.load().score_set(self.rows)
        scores = {
            "sft": sft.double(),
            "base": base_logps.double(),
            "lengths": lengths,
            "gold": gold,
        }
        write_json(folder / SCORES, {name: np.asarray(value) for name, value in scores.items()})

    def load(self) -> Candidates:
        """The candidates, scored now or before; the SFT policy is their reference."""
        scores = self._scores()
        sources = self.rows[0].sources
        return Candidates(
            row_ids=[row.row_id for row in self.rows],
            gold=scores["gold"],
            reference_logps=scores["sft"],
            lengths=scores["lengths"],
            rivals=[column for column, name in enumerate(sources) if name in self.synthetic],
        )

    def base_logps(self) -> np.ndarray:
        """[N, K] under the model before SFT, nats."""
        return self._scores()["base"]

    def _scores(self) -> dict[str, np.ndarray]:
        stored = read_json(self.kept() / SCORES)
        return {name: np.array(values) for name, values in stored.items()}
