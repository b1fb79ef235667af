"""Source classifiers: the probability c that a response is golden, never of a row they were trained on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from robustpo_kit import encoders, intervals
from robustpo_kit.calibration.factor import EPS, calibration_factor
from robustpo_kit.calibration.maps import (
    Calibrator,
    Isotonic,
    Temperature,
    cross_fitted,
    fit_temperature,
)
from robustpo_kit.calibration.quality import area_under_curve, quality, reliability
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder
from robustpo_kit.encoders.heads import raw_logits


@dataclasses.dataclass(eq=False)
class SourceClassifier:
    """Fold models, a calibrator a head, and the out-of-fold scores of the rows they were trained on.

    `shared` has one head, golden against the rest; `per_source` a head a source (Eq. 5).
    """

    kind: str
    features: str
    encoder: Encoder
    models: dict[str, list[Any]]  # head -> a model a fold
    calibrators: dict[str, Calibrator]
    imbalance: dict[str, float]  # head -> gamma_i = n_other / n_golden of its training rows
    out_of_fold: pd.DataFrame  # row_id, group, column, source, label, head, fold, logit, prob, c
    config: dict[str, Any]

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
        """c [N], calibrated, of responses the classifier was not trained on (mean logit of the fold models).

        `per_source`: a response is scored by the head of its source; without `sources`, or for golden and unknown
        ones, by all heads together (golden against the rest). Raises ValueError when a row id was trained on.
        """
        if len(prompts) != len(responses):
            raise ValueError(
                f"prompts, responses: {len(prompts)} and {len(responses)}; equally many are expected"
            )
        if row_ids is not None:
            self._refuse_trained(row_ids)
        pairs = list(zip(prompts, responses, strict=True))
        probs = {}
        for head, models in self.models.items():
            logits = np.mean([raw_logits(model, self.encoder, pairs) for model in models], axis=0)
            probs[head] = self.calibrators[head](logits)
        return _combine(probs, sources)

    def score_set(self, preferences: PreferenceSet) -> np.ndarray:
        """c [N, K] of a set that shares no row with the training set; raises ValueError where it does.

        `per_source`: column k by the head of its source; the golden column, whoever wrote it, by all heads together.
        """
        count = _equal_k(preferences)
        self._refuse_trained([row.row_id for row in preferences])
        prompts = [row.prompt for row in preferences for _ in row.responses]
        responses = [response for row in preferences for response in row.responses]
        claimed = [
            REST if k == row.golden else source
            for row in preferences
            for k, source in enumerate(row.sources)
        ]
        return self.score(prompts, responses, sources=claimed).reshape(len(preferences), count)

    def out_of_fold_matrix(self, preferences: PreferenceSet) -> np.ndarray:
        """c [N, K] of the training rows themselves, each scored by the model of the fold that left it out."""
        count = _equal_k(preferences)
        column = {row.row_id: i for i, row in enumerate(preferences)}
        table = self.out_of_fold[self.out_of_fold["row_id"].isin(column)]
        missing = set(column) - set(table["row_id"])
        if missing:
            raise ValueError(f"row '{min(missing)}' was not trained on: use score_set for it")
        inverse_odds = np.zeros((len(preferences), count))
        np.add.at(
            inverse_odds,
            (table["row_id"].map(column), table["column"]),
            _inverse_odds(table["c"].to_numpy()),
        )
        return 1 / (1 + inverse_odds)

    def metrics(self, *, bins: int = 10, draws: int = 200, seed: int = 0) -> pd.DataFrame:
        """Out-of-fold quality, a row a head and stage (before, temperature, isotonic), AUC with a CI over groups.

        Calibrators are cross-fitted: each fold is mapped by one that was fitted on the other folds.
        """
        rows = []
        for head, table in self.out_of_fold.groupby("head", sort=False):
            labels, logits = table["label"].to_numpy(), table["logit"].to_numpy()
            auc = intervals.bootstrap_statistic(
                lambda i, y=labels, x=logits: area_under_curve(y[i], x[i]),
                table["group"].astype(str),
                draws=draws,
                seed=seed,
            )
            for stage in ("before", "temperature", "isotonic"):
                probs = cross_fitted(table, "none" if stage == "before" else stage)
                rows.append(
                    {"head": head, "stage": stage, **quality(labels, probs, bins=bins)}
                    | {
                        "auc_low": auc.low,
                        "auc_high": auc.high,
                        "temperature": self._temperature(head, stage),
                    }
                )
        return pd.DataFrame(rows)

    def _temperature(self, head: str, stage: str) -> float:
        if stage != "temperature":
            return 1.0 if stage == "before" else float("nan")
        table = self.out_of_fold[self.out_of_fold["head"] == head]
        return fit_temperature(table["logit"], table["label"]).temperature

    def reliability(self, *, bins: int = 10, scheme: str = "width") -> pd.DataFrame:
        """Out-of-fold reliability tables, stage and head as columns: the reliability diagram's data."""
        parts = []
        for head, table in self.out_of_fold.groupby("head", sort=False):
            for stage in ("before", "temperature", "isotonic"):
                probs = cross_fitted(table, "none" if stage == "before" else stage)
                part = reliability(table["label"], probs, bins=bins, scheme=scheme)
                parts.append(part.assign(head=head, stage=stage))
        return pd.concat(parts, ignore_index=True)

    def _refuse_trained(self, row_ids: Sequence[str]) -> None:
        seen = set(self.out_of_fold["row_id"]).intersection(row_ids)
        if seen:
            raise ValueError(
                f"row_ids: '{min(seen)}' ({len(seen)} in all) was trained on; a classifier never scores its own "
                "training rows: use out_of_fold_matrix, or a set of other rows"
            )

    def save(self, folder: str | Path) -> None:
        """Write classifier.safetensors, out_of_fold.csv and, last, classifier.json that names their sha256."""
        folder = Path(folder)
        tensors = {
            f"{head}/{fold}/{name}": value
            for head, models in self.models.items()
            for fold, model in enumerate(models)
            for name, value in model.trained_state().items()
        }
        about = {
            "kind": self.kind,
            "features": self.features,
            "folds": {head: len(models) for head, models in self.models.items()},
            "calibrators": {
                head: dataclasses.asdict(value) for head, value in self.calibrators.items()
            },
            "imbalance": self.imbalance,
            "config": self.config,
        }
        encoders.save_bundle(
            folder, "classifier", tensors, about, self.encoder, {"out_of_fold": self.out_of_fold}
        )

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> "SourceClassifier":
        """Read what `save` wrote; raises KitError naming the file that is missing or damaged."""
        bundle = encoders.load_bundle(Path(folder), "classifier", encoder)
        about, encoder = bundle.about, bundle.encoder
        models = {
            head: [
                bundle.scorer(f"{head}/{fold}/", about["config"]["fine_tune"])
                for fold in range(count)
            ]
            for head, count in about["folds"].items()
        }
        calibrators = {
            head: Temperature(**value)
            if "temperature" in value
            else Isotonic(*map(tuple, value.values()))
            for head, value in about["calibrators"].items()
        }
        table = bundle.tables["out_of_fold"]
        kind, features, imbalance, config = (
            about[key] for key in ("kind", "features", "imbalance", "config")
        )
        return cls(kind, features, encoder, models, calibrators, imbalance, table, config)


def _combine(probs: dict[str, np.ndarray], sources: Sequence[str] | None) -> np.ndarray:
    """c [N]: of the response's own head, else of golden against all sources, whose inverse odds add up."""
    inverse_odds = np.stack([_inverse_odds(value) for value in probs.values()])  # [heads, N]
    combined = inverse_odds.sum(0)
    if sources is not None:
        place = {head: i for i, head in enumerate(probs)}
        for i, source in enumerate(sources):
            if source in place:
                combined[i] = inverse_odds[place[source], i]
    return 1 / (1 + combined)


def _inverse_odds(probs: np.ndarray) -> np.ndarray:
    return (1 - probs) / np.clip(probs, EPS, None)


def _equal_k(preferences: PreferenceSet) -> int:
    counts = {len(row.responses) for row in preferences}
    if len(counts) != 1:
        raise ValueError(
            f"preferences: rows of {sorted(counts)} responses; equally many in every row are expected"
        )
    return counts.pop()


def h_table(
    preferences: PreferenceSet,
    probs: Any,
    *,
    alpha: float | None = None,
    beta: float | Sequence[float] | None = None,
    imbalance: float | Sequence[float] = 1.0,
    kind: str = "relative",
) -> pd.DataFrame:
    """h~ of every sample, from c [N, K] (score_set or out_of_fold_matrix); alpha and beta default to 1/K.

    Columns: row_id, group, first_source (who really wrote column 0, the slot that is taken for golden), h.
    """
    probs = torch.as_tensor(np.asarray(probs, dtype=float))
    if probs.ndim != 2 or len(probs) != len(preferences):
        raise ValueError(
            f"probs: shape {tuple(probs.shape)} for {len(preferences)} rows; [N, K] is expected"
        )
    share = 1 / probs.shape[1]
    h = calibration_factor(
        probs,
        alpha=share if alpha is None else alpha,
        beta=share if beta is None else beta,
        imbalance=imbalance,
        kind=kind,
    )
    columns = ("row_id", "group", "first_source")
    table = pd.DataFrame(
        [(row.row_id, row.group, row.sources[0]) for row in preferences], columns=columns
    )
    return table.assign(h=h.numpy())


def response_table(preferences: PreferenceSet, values: Any, name: str = "c") -> pd.DataFrame:
    """Tidy form of values [N, K]: a row a response with row_id, group, column, source, words and the value."""
    values = np.asarray(values, dtype=float)
    if values.shape != (len(preferences), _equal_k(preferences)):
        raise ValueError(
            f"values: shape {values.shape} for {len(preferences)} rows; [N, K] is expected"
        )
    rows = [
        (row.row_id, row.group, column, source, len(response.split()))
        for row in preferences
        for column, (source, response) in enumerate(zip(row.sources, row.responses, strict=True))
    ]
    table = pd.DataFrame(rows, columns=["row_id", "group", "column", "source", "words"])
    return table.assign(**{name: values.reshape(-1)})


def by_source(
    table: pd.DataFrame, value: str, by: str = "source", *, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Mean (with a CI over groups), sd and quartiles of a column by source: n, mean, low, high, sd, q25, q50, q75."""
    rows = []
    for source, part in table.groupby(by, sort=True):
        mean = intervals.bootstrap_mean(
            part[value], part["group"].astype(str), draws=draws, seed=seed
        )
        quartiles = dict(
            zip(("q25", "q50", "q75"), part[value].quantile([0.25, 0.5, 0.75]), strict=True)
        )
        rows.append(
            {by: source, "n": len(part), "mean": mean.value, "low": mean.low, "high": mean.high}
            | {"sd": part[value].std(), **quartiles}
        )
    return pd.DataFrame(rows)


REST = "rest"  # the head of a shared classifier: golden against everything else
