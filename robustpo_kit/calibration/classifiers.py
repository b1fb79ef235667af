"""Source classifiers: c, the probability that a response is golden, on rows they never saw."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit import encoders
from robustpo_kit.calibration.maps import (
    Calibrator,
    calibrator_from,
    cross_fitted,
    fit_temperature,
)
from robustpo_kit.calibration.quality import EPS, auc_interval, quality, reliability
from robustpo_kit.calibration.responses import flat_responses, responses_per_row
from robustpo_kit.calibration.slots import slot_ratios
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder, Learned, LinearScorer, Pair, PairScorer
from robustpo_kit.intervals import Interval

REST = "rest"  # the head of a shared classifier: golden against everything else
STAGES = {"before": "none", "temperature": "temperature", "isotonic": "isotonic"}  # to calibrators


@dataclasses.dataclass(eq=False)
class SourceClassifier:
    """Fold models, a calibrator a head, and the out-of-fold scores of the rows they learned from.

    `shared` has one head, golden against the rest; `per_source` a head a source (DoRA Eq. 5).
    """

    kind: str
    features: str
    encoder: Encoder
    models: dict[str, list[LinearScorer | PairScorer]]  # head -> a model a fold
    calibrators: dict[str, Calibrator]
    imbalance: dict[str, float]  # head -> gamma_i = n_other / n_golden of its training rows
    out_of_fold: pd.DataFrame  # row_id, group, column, source, label, head, fold, logit, prob, c
    config: dict[str, Any]
    learned: Learned

    @property
    def heads(self) -> tuple[str, ...]:
        """`rest`, or the names of the sources that golden is told from."""
        return tuple(self.models)

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        sources: Sequence[str] | None = None,
        row_ids: Sequence[str] | None = None,
    ) -> np.ndarray:
        """c [N], calibrated, of responses that the classifier did not learn from.

        The logit of a head is the mean over its fold models. `per_source`: a response is scored by
        the head of its source; without `sources`, or for golden and unknown ones, by all heads
        together (golden against the rest).

        Args:
            prompts: [N].
            responses: [N].
            sources: [N] who wrote each response.
            row_ids: [N] the rows that the responses come from.

        Raises:
            ValueError: lengths differ, or the classifier learned from all that is given of a row.
        """
        pairs = encoders.unseen_pairs(prompts, responses, row_ids, self.learned)
        probs = {}
        for head, models in self.models.items():
            logits = np.mean([raw_logits(model, self.encoder, pairs) for model in models], axis=0)
            probs[head] = self.calibrators[head](logits)
        return _combine(probs, sources)

    def score_set(self, preferences: PreferenceSet, *, one_prior: bool = False) -> np.ndarray:
        """c [N, K] of a set that shares no row with the training set.

        `per_source`: column k by the head of its source, as h~ takes it (Eq. 5); the golden column,
        whoever wrote it, by all heads together. Their priors differ.

        Args:
            preferences: N rows of K responses.
            one_prior: score every column by all heads together, so that c of one column compares
                with that of another: what is displayed.

        Raises:
            ValueError: K differs between rows, or the classifier learned from a row.
        """
        count = responses_per_row(preferences)
        flat = flat_responses(preferences)
        sources = list(flat["source"].mask(flat["claimed"] | one_prior, REST))
        prompts, responses = list(flat["prompt"]), list(flat["response"])
        probs = self.score(prompts, responses, sources=sources, row_ids=list(flat["row_id"]))
        return probs.reshape(len(preferences), count)

    def slot_ratios(self, preferences: PreferenceSet, source: str) -> np.ndarray:
        """P_golden / S [N] at the golden slot of each row, S being `source`: see `slots`.

        `per_source`: by the head of that source alone. A head that cannot tell golden from its
        source would cap c, and with it bias what is estimated to be contaminated.

        Args:
            preferences: N rows that share none with the training set.
            source: whose replies may stand in the slot.

        Raises:
            ValueError: a row claims no golden slot, no head is of `source`, or the classifier
                learned from a row.
        """
        head = REST if self.kind == "shared" else source
        if head not in self.models:
            raise ValueError(f"source = '{source}': one of {', '.join(self.models)} is expected")
        flat = flat_responses(preferences)
        slots = flat[flat["claimed"]]
        if len(slots) != len(preferences):
            raise ValueError("preferences: a row claims no golden slot; set its field golden")
        probs = self.score(
            list(slots["prompt"]),
            list(slots["response"]),
            sources=[head] * len(slots),
            row_ids=list(slots["row_id"]),
        )
        return slot_ratios(probs, imbalance=self.imbalance[head])

    def metrics(
        self,
        *,
        bins: int = 10,
        draws: int = 200,
        seed: int = 0,
        cut: Collection[tuple[str, int]] = (),
    ) -> pd.DataFrame:
        """Out-of-fold quality by head and stage (before, temperature, isotonic).

        Calibrators are cross-fitted: each fold is mapped by one that was fitted on the other folds.

        Args:
            bins: of the ECE.
            draws: of the bootstrap over groups that gives the interval of the AUC.
            seed: of the bootstrap.
            cut: row id and column of replies cut at the token limit, whose length gives them away.

        Returns:
            A row a head and stage: head, stage, the numbers of `quality`, auc_low, auc_high;
            auc_whole, auc_whole_low, auc_whole_high, which leave out the replies of `cut`;
            temperature (of all folds); used, whether c is of this stage.
        """
        rows = []
        for head, table in self.out_of_fold.groupby("head", sort=False):
            places = zip(table["row_id"], table["column"], strict=True)
            whole = table[[place not in cut for place in places]]
            found = _auc(table, draws, seed).columns("auc")
            found |= _auc(whole, draws, seed).columns("auc_whole")
            temperature = fit_temperature(table["logit"], table["label"]).temperature
            temperatures = {"before": 1.0, "temperature": temperature, "isotonic": np.nan}
            for stage, calibrator in STAGES.items():
                probs = cross_fitted(table, calibrator)
                row = {"head": head, "stage": stage} | quality(table["label"], probs, bins=bins)
                row |= found | {"temperature": temperatures[stage]}
                rows.append(row | {"used": self.config["calibrators"][head] == calibrator})
        return pd.DataFrame(rows)

    def reliability(self, *, bins: int = 10, scheme: str = "width") -> pd.DataFrame:
        """The data of the reliability diagram: out-of-fold tables of `calibration.reliability`.

        Args:
            bins: at most so many a head and stage.
            scheme: width = equal intervals of c, mass = equally many responses a bin.

        Returns:
            A row a head, stage and bin: the columns of `calibration.reliability`, head, stage.
        """
        parts = []
        for head, table in self.out_of_fold.groupby("head", sort=False):
            for stage, calibrator in STAGES.items():
                probs = cross_fitted(table, calibrator)
                part = reliability(table["label"], probs, bins=bins, scheme=scheme)
                parts.append(part.assign(head=head, stage=stage))
        return pd.concat(parts, ignore_index=True)

    def save(self, folder: str | Path) -> None:
        """Write classifier.safetensors, out_of_fold.csv and, last, classifier.json (sha256)."""
        tensors = {}
        for head, models in self.models.items():
            for fold, model in enumerate(models):
                for name, value in model.trained_state().items():
                    tensors[_prefix(head, fold) + name] = value
        calibrators = {head: dataclasses.asdict(value) for head, value in self.calibrators.items()}
        about = {
            "kind": self.kind,
            "features": self.features,
            "folds": {head: len(models) for head, models in self.models.items()},
            "calibrators": calibrators,
            "imbalance": self.imbalance,
            "config": self.config,
            **self.learned.about(),
        }
        tables = {"out_of_fold": self.out_of_fold}
        encoders.save_bundle(Path(folder), "classifier", tensors, about, self.encoder, tables)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> "SourceClassifier":
        """Read what `save` wrote; arguments and errors as `encoders.load_bundle`."""
        bundle = encoders.load_bundle(Path(folder), "classifier", encoder)
        about = bundle.about
        fine_tune = about["config"]["fine_tune"]
        models = {}
        for head, folds in about["folds"].items():
            prefixes = [_prefix(head, fold) for fold in range(folds)]
            models[head] = [bundle.scorer(prefix, fine_tune) for prefix in prefixes]
        stored = about["calibrators"]
        return cls(
            kind=about["kind"],
            features=about["features"],
            encoder=bundle.encoder,
            models=models,
            calibrators={head: calibrator_from(fields) for head, fields in stored.items()},
            imbalance=about["imbalance"],
            out_of_fold=bundle.tables["out_of_fold"],
            config=about["config"],
            learned=Learned.stored(about, bundle.tables["out_of_fold"]["row_id"]),
        )


def raw_logits(
    model: LinearScorer | PairScorer, encoder: Encoder, pairs: Sequence[Pair]
) -> np.ndarray:
    """[N] logits of golden against the rest, not calibrated, of (prompt, response) pairs."""
    return encoders.raw_scores(model, encoder, pairs, encoders.response_features)


def _prefix(head: str, fold: int) -> str:
    """What the names of a fold model's stored tensors start with."""
    return f"{head}/{fold}/"


def _combine(probs: Mapping[str, np.ndarray], sources: Sequence[str] | None) -> np.ndarray:
    """c [N] by the head of each response's source, else of golden against all sources.

    Against all sources the inverse odds of the heads add up.
    """
    inverse_odds = np.stack([_inverse_odds(value) for value in probs.values()])  # [heads, N]
    combined = inverse_odds.sum(0)
    if sources is not None:
        number_of = {head: number for number, head in enumerate(probs)}
        for place, source in enumerate(sources):
            if source in number_of:
                combined[place] = inverse_odds[number_of[source], place]
    return 1 / (1 + combined)


def _inverse_odds(probs: np.ndarray) -> np.ndarray:
    return (1 - probs) / np.clip(probs, EPS, None)


def _auc(table: pd.DataFrame, draws: int, seed: int) -> Interval:
    """AUC of the out-of-fold logits of one head, with an interval over groups."""
    return auc_interval(table["label"], table["logit"], table["group"], draws=draws, seed=seed)
