"""Fitting source classifiers out of fold."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.model_selection import GroupKFold
from torch import Tensor

from robustpo_kit import encoders
from robustpo_kit.calibration.classifiers import REST, SourceClassifier, raw_logits
from robustpo_kit.calibration.maps import (
    CALIBRATORS,
    LEAST_NLL,
    cross_fitted,
    fit_calibrator,
    least_nll,
)
from robustpo_kit.calibration.responses import flat_responses
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import (
    DEFAULT_FINE_TUNE,
    FEATURES,
    Encoder,
    FineTune,
    Learned,
    LinearScorer,
    Pair,
    PairScorer,
)
from robustpo_kit.records import stream_seed

OUT_OF_FOLD = ["row_id", "group", "column", "source", "label", "head", "fold", "logit", "prob", "c"]

FitModel = Callable[
    ..., LinearScorer | PairScorer
]  # `_fit_model`, all but pairs, labels and folds given


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
    """Fit K-fold classifiers, score each fold by the model that left it out, calibrate.

    Args:
        preferences: rows with a golden column; whole groups go into one fold.
        seed: of the folds and of fine-tuning.
        kind: shared (golden against the rest) | per_source (a head a source, DoRA Eq. 5).
        features: frozen (embedding of the response and its cosine to the prompt, logistic head) |
            fine_tuned (BERT on the pair prompt, response).
        encoder: or its name.
        golden_sources: every response of these sources is golden, and no other, wherever it stands;
            None: the golden column of each row.
        folds: at least two.
        calibrator: temperature | isotonic | none | least_nll: of each head, that of them whose c
            has the least NLL on the rows that it was not fitted on.
        penalty: L2 penalty of the logistic head.
        fine_tune: how BERT is fine-tuned.

    Raises:
        ValueError: naming the argument.
    """
    _check_arguments(kind, features, calibrator, folds)
    if isinstance(encoder, str):
        encoder = encoders.load(encoder)
    fit_model = functools.partial(
        _fit_model,
        encoder=encoder,
        features=features,
        penalty=penalty,
        fine_tune=fine_tune,
        seed=seed,
    )
    table = _training_table(preferences, golden_sources, folds, seed)
    parts: dict[str, pd.DataFrame] = {}
    chosen: dict[str, str] = {}
    models, calibrators, imbalance = {}, {}, {}
    for head in _heads(table, kind):
        part, models[head] = _fit_head(_rows_of_head(table, head), encoder, fit_model)
        logits, labels = part["logit"].to_numpy(), part["label"].to_numpy()
        chosen[head] = least_nll(part) if calibrator == LEAST_NLL else calibrator
        c = cross_fitted(part, chosen[head])
        parts[head] = part.assign(head=head, prob=expit(logits), c=c)
        calibrators[head] = fit_calibrator(chosen[head], logits, labels)
        imbalance[head] = float((1 - labels).sum() / labels.sum())
    config = {
        "golden_sources": None if golden_sources is None else list(golden_sources),
        "calibrator": calibrator,
        "calibrators": chosen,
        "penalty": penalty,
        "fine_tune": dataclasses.asdict(fine_tune),
        "seed": seed,
        "rows": len(preferences),
    }
    return SourceClassifier(
        kind=kind,
        features=features,
        encoder=encoder,
        models=models,
        calibrators=calibrators,
        imbalance=imbalance,
        out_of_fold=pd.concat(parts.values(), ignore_index=True)[OUT_OF_FOLD],
        config=config,
        learned=Learned.of(table["prompt"], table["response"], table["row_id"]),
    )


def _check_arguments(kind: str, features: str, calibrator: str, folds: int) -> None:
    choices = (
        ("kind", kind, ("shared", "per_source")),
        ("features", features, FEATURES),
        ("calibrator", calibrator, (*CALIBRATORS, LEAST_NLL)),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{name} = '{value}': one of {', '.join(allowed)} is expected")
    if folds < 2:
        raise ValueError(f"folds = {folds}: at least two are expected, or no row would be held out")


def _training_table(
    preferences: PreferenceSet, golden_sources: Sequence[str] | None, folds: int, seed: int
) -> pd.DataFrame:
    """The columns of `flat_responses`, label, and fold (whole groups)."""
    table = flat_responses(preferences)
    golden = table["claimed"]
    if golden_sources is not None:
        golden = table["source"].isin(list(golden_sources))
    if table.empty or not 0 < golden.mean() < 1:
        raise ValueError(
            "preferences: golden and other responses are both needed to train a classifier"
        )
    return table.assign(label=golden.astype(int), fold=fold_of_groups(table["group"], folds, seed))


def fold_of_groups(groups: ArrayLike, folds: int, seed: int) -> np.ndarray:
    """[N] fold of each row: whole groups, shuffled, dealt round.

    Raises:
        ValueError: fewer groups than folds.
    """
    groups = np.asarray(groups)
    count = len(np.unique(groups))
    if count < folds:
        raise ValueError(
            f"preferences: {count} groups (prompts or conversations), and each of {folds} folds "
            "needs one; give rows to more prompts"
        )
    random_state = stream_seed(seed, "folds") % 2**32  # scikit-learn takes no more
    splitter = GroupKFold(folds, shuffle=True, random_state=random_state)
    fold_of_row = np.empty(len(groups), dtype=int)
    for fold, (_, inside) in enumerate(splitter.split(groups, groups=groups)):
        fold_of_row[inside] = fold
    return fold_of_row


def _heads(table: pd.DataFrame, kind: str) -> list[str]:
    if kind == "shared":
        return [REST]
    return sorted(table.loc[table["label"] == 0, "source"].unique())


def _rows_of_head(table: pd.DataFrame, head: str) -> pd.DataFrame:
    """The golden responses and those that the head tells them from."""
    if head == REST:
        return table
    return table[(table["label"] == 1) | (table["source"] == head)]


def _fit_head(
    table: pd.DataFrame, encoder: Encoder, fit_model: FitModel
) -> tuple[pd.DataFrame, list[LinearScorer | PairScorer]]:
    """`table` with out-of-fold logits, and the model of each fold."""
    pairs = list(zip(table["prompt"], table["response"], strict=True))
    labels, fold = table["label"].to_numpy(dtype=float), table["fold"].to_numpy()
    logits = np.empty(len(table))
    models = []
    folds = fold.max() + 1
    for left_out in range(folds):
        train, test = np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)
        if not 0 < labels[train].mean() < 1:
            raise ValueError(
                f"preferences: fold {left_out} leaves one class only; give rows to more prompts"
            )
        model = fit_model([pairs[i] for i in train], labels[train], fold=left_out, folds=folds)
        logits[test] = raw_logits(model, encoder, [pairs[i] for i in test])
        models.append(model)
    return table.assign(logit=logits), models


def _fit_model(
    pairs: Sequence[Pair],
    labels: np.ndarray,
    *,
    fold: int,
    folds: int,
    encoder: Encoder,
    features: str,
    penalty: float,
    fine_tune: FineTune,
    seed: int,
) -> LinearScorer | PairScorer:
    """The model of one fold, from the pairs of the others and their labels."""
    if features == "frozen":
        return encoders.fit_logistic(encoders.response_features(encoder, pairs), labels, penalty)
    return encoders.fine_tune(
        encoder,
        [[pair] for pair in pairs],
        labels.tolist(),
        _cross_entropy,
        fine_tune,
        seed=stream_seed(seed, "classifier", "fold", fold),
        desc=f"classifier fold {fold + 1}/{folds}",
    )


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of scores [B, 1] for targets [B] of 0 or 1."""
    return torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], targets)
