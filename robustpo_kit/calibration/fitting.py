"""Fitting source classifiers out of fold."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustpo_kit import encoders
from robustpo_kit.calibration.classifiers import REST, SourceClassifier
from robustpo_kit.calibration.maps import CALIBRATORS, cross_fitted, fit_calibrator, sigmoid
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import (
    DEFAULT_FINE_TUNE,
    FEATURES,
    Encoder,
    FineTune,
    LinearScorer,
    PairScorer,
)
from robustpo_kit.encoders.heads import raw_logits


def fit_classifier(
    preferences: PreferenceSet,
    *,
    seed: int,
    kind: str = "shared",
    features: str = "frozen",
    encoder: Encoder | str = "minilm-l6",
    golden_sources: Sequence[str] | None = None,
    folds: int = 4,
    calibrator: str = "temperature",
    penalty: float = 50.0,
    fine_tune: FineTune = DEFAULT_FINE_TUNE,
) -> SourceClassifier:
    """Fit K-fold classifiers (whole groups a fold), score each fold by the model that left it out, calibrate.

    kind: shared | per_source. features: frozen (embedding of the response and its cosine to the prompt, logistic
    head with L2 `penalty`) | fine_tuned (BERT on the pair prompt, response). golden: the golden column of each row,
    or, with `golden_sources`, every response of those sources (others are never golden, wherever they stand).
    calibrator: temperature | isotonic | none. Raises ValueError naming the argument.
    """
    _check_arguments(kind, features, calibrator, folds)
    encoder = encoders.load(encoder) if isinstance(encoder, str) else encoder
    table = _training_table(preferences, golden_sources, folds, seed)
    parts, models = [], {}
    for head in _heads(table, kind):
        part = table if head == REST else table[(table["label"] == 1) | (table["source"] == head)]
        part, models[head] = _fit_head(
            part.assign(head=head), preferences, encoder, features, penalty, fine_tune, seed
        )
        parts.append(
            part.assign(prob=sigmoid(part["logit"].to_numpy()), c=cross_fitted(part, calibrator))
        )
    calibrators = {
        head: fit_calibrator(calibrator, part["logit"].to_numpy(), part["label"].to_numpy())
        for head, part in zip(models, parts, strict=True)
    }
    imbalance = {
        head: float((1 - p["label"]).sum() / p["label"].sum())
        for head, p in zip(models, parts, strict=True)
    }
    config = {
        "golden_sources": None if golden_sources is None else list(golden_sources),
        "calibrator": calibrator,
        "penalty": penalty,
        "fine_tune": dataclasses.asdict(fine_tune),
        "seed": seed,
        "rows": len(preferences),
    }
    columns = ["row_id", "group", "column", "source", "label", "head", "fold", "logit", "prob", "c"]
    out_of_fold = pd.concat(parts, ignore_index=True)[columns]
    return SourceClassifier(
        kind, features, encoder, models, calibrators, imbalance, out_of_fold, config
    )


def _check_arguments(kind: str, features: str, calibrator: str, folds: int) -> None:
    choices = (
        ("kind", kind, ("shared", "per_source")),
        ("features", features, FEATURES),
        ("calibrator", calibrator, CALIBRATORS),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{name} = '{value}': one of {', '.join(allowed)} is expected")
    if folds < 2:
        raise ValueError(f"folds = {folds}: at least two are expected, or no row would be held out")


def _training_table(
    preferences: PreferenceSet, golden_sources: Sequence[str] | None, folds: int, seed: int
) -> pd.DataFrame:
    """A row a response: row (its number), row_id, group, column, source, label, fold (whole groups)."""
    golden = None if golden_sources is None else set(golden_sources)
    rows = [
        (
            number,
            row.row_id,
            row.group,
            column,
            source,
            int(column == row.golden if golden is None else source in golden),
        )
        for number, row in enumerate(preferences)
        for column, source in enumerate(row.sources)
    ]
    table = pd.DataFrame(rows, columns=["row", "row_id", "group", "column", "source", "label"])
    if table.empty or not 0 < table["label"].mean() < 1:
        raise ValueError(
            "preferences: golden and other responses are both needed to train a classifier"
        )
    fold = fold_of_groups(table["group"], folds, seed)
    return table.assign(fold=fold)


def fold_of_groups(groups: Any, folds: int, seed: int) -> np.ndarray:
    """[N] fold of each row: whole groups, shuffled, dealt round. Raises ValueError with fewer groups than folds."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < folds:
        raise ValueError(
            f"folds = {folds}: only {len(names)} groups; lower folds or give more rows"
        )
    dealt = np.empty(len(names), dtype=int)
    dealt[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    return dealt[codes]


def _heads(table: pd.DataFrame, kind: str) -> list[str]:
    if kind == "shared":
        return [REST]
    return sorted(table.loc[table["label"] == 0, "source"].unique())


def _fit_head(
    table: pd.DataFrame,
    preferences: PreferenceSet,
    encoder: Encoder,
    features: str,
    penalty: float,
    config: FineTune,
    seed: int,
) -> tuple[pd.DataFrame, list[LinearScorer | PairScorer]]:
    """`table` with out-of-fold logits, and the model of each fold."""
    pairs = [
        (preferences[row].prompt, preferences[row].responses[column])
        for row, column in zip(table["row"], table["column"], strict=True)
    ]
    labels, fold = table["label"].to_numpy(dtype=float), table["fold"].to_numpy()
    logits, models = np.empty(len(table)), []
    for left_out in range(fold.max() + 1):
        train, test = np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)
        if not 0 < labels[train].mean() < 1:
            raise ValueError(
                f"preferences: fold {left_out} leaves one class only; lower folds or give more rows"
            )
        examples = [pairs[i] for i in train]
        if features == "frozen":
            model = encoders.fit_logistic(
                encoders.response_features(encoder, examples), labels[train], penalty
            )
        else:
            desc = f"classifier fold {left_out + 1}/{fold.max() + 1}"
            model = encoders.fine_tune(
                encoder,
                [[pair] for pair in examples],
                labels[train],
                _bce,
                config,
                seed=seed + left_out,
                desc=desc,
            )
        logits[test] = raw_logits(model, encoder, [pairs[i] for i in test])
        models.append(model)
    return table.assign(logit=logits), models


def _bce(scores: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], targets)
