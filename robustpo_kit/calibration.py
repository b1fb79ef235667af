"""Calibration: classifiers that tell golden from other sources, calibrated out of fold, and the factor h~ they give.

DoRA, Sec. 3.1. A classifier's c is the probability that a response is golden, under the class shares it was trained
with: c/(1-c) = (n_golden/n_other) P_golden/Q_other. With one golden response among n and alpha = beta_i = 1/n the
`relative` factor then is the exact density ratio to the pooled mixture, without a further imbalance ratio.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from robustpo_kit import encoders, intervals, scorers
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder
from robustpo_kit.scorers import DEFAULT_FINE_TUNE, FEATURES, FineTune, LinearScorer, Pair, PairScorer

KINDS = ("relative", "stabilised", "raw")
REST = "rest"  # the head of a shared classifier: golden against everything else
CALIBRATORS = ("temperature", "isotonic", "none")
EPS = 1e-7


# ---- h~ --------------------------------------------------------------------------------------------------------


def calibration_factor(
    probs: Tensor,
    *,
    alpha: float,
    beta: float | Sequence[float] | Tensor,
    imbalance: float | Sequence[float] | Tensor = 1.0,
    kind: str = "relative",
) -> Tensor:
    """h~(z) [B]: the mean over the K responses of a density ratio of golden to the mixture (DoRA Eq. 5-6).

    probs [B, K] in [0, 1]: c, the probability that a response is golden; alpha: share of golden; beta: share of the
    source of each response, one number or [K]; imbalance: gamma_i = q(y=0)/q(y=1) of the classifier, one number or [K].

    relative    1 / (alpha + beta_i (1-c) / (gamma_i c)), the ratio to alpha P_golden + beta_i Q_i, below 1/alpha
    stabilised  gamma_i c / (beta_i (1-c) + 1/K), Eq. 6 with 1/n added to the denominator
    raw         gamma_i c / (beta_i (1-c)), Eq. 6 as printed: unbounded

    At alpha = beta_i = 1/K, imbalance 1, `relative` is the sum of the c_i, and both bounded kinds lie in [0, K].
    Raises ValueError naming the argument.
    """
    if not torch.is_tensor(probs) or probs.ndim != 2 or not probs.is_floating_point():
        raise ValueError("probs: a floating-point tensor of shape [B, K] is expected")
    count = probs.shape[1]
    if count < 2:
        raise ValueError(f"probs: K = {count}; at least two responses a prompt are expected")
    if not bool(((probs >= 0) & (probs <= 1)).all()):
        raise ValueError("probs: NaN or outside [0, 1]")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha = {alpha}: a share in (0, 1] is expected")
    beta = _per_column(beta, "beta", probs)
    if bool((beta > 1).any()):
        raise ValueError("beta: a share in (0, 1] is expected")
    imbalance = _per_column(imbalance, "imbalance", probs)
    golden, other = imbalance * probs, beta * (1 - probs)
    if kind == "relative":
        ratios = golden / (alpha * golden + other)  # multiplied through by gamma c: exact at c = 0 and c = 1
    elif kind == "stabilised":
        ratios = golden / (other + 1 / count)
    elif kind == "raw":
        ratios = golden / other
    else:
        raise ValueError(f"kind = '{kind}': one of {', '.join(KINDS)} is expected")
    return ratios.mean(-1)  # [B]


def _per_column(value: Any, name: str, probs: Tensor) -> Tensor:
    """`value` as [1] or [K]; raises ValueError unless positive and finite."""
    value = torch.as_tensor(value, dtype=probs.dtype, device=probs.device).reshape(-1)
    if len(value) not in (1, probs.shape[1]):
        raise ValueError(f"{name}: {len(value)} values for K = {probs.shape[1]} responses; one, or one each")
    if not bool((torch.isfinite(value) & (value > 0)).all()):
        raise ValueError(f"{name}: a positive finite number is expected")
    return value


# ---- measures --------------------------------------------------------------------------------------------------


def reliability(labels: Any, probs: Any, *, bins: int = 10, scheme: str = "width") -> pd.DataFrame:
    """Reliability table, a row a non-empty bin: low, high, count, mean_c, golden_share, gap = mean_c - golden_share.

    `scheme` width = equal intervals of c, mass = equally many responses a bin.
    """
    labels, probs = _labels_and_probs(labels, probs)
    if scheme == "width":
        edges = np.linspace(0, 1, bins + 1)
    elif scheme == "mass":
        edges = np.unique(np.quantile(probs, np.linspace(0, 1, bins + 1)))
    else:
        raise ValueError(f"scheme = '{scheme}': 'width' or 'mass' is expected")
    place = np.clip(np.searchsorted(edges, probs, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for b in np.unique(place):
        inside = place == b
        mean_c, share = probs[inside].mean(), labels[inside].mean()
        high = edges[min(b + 1, len(edges) - 1)]
        rows.append((b, edges[b], high, int(inside.sum()), mean_c, share, mean_c - share))
    return pd.DataFrame(rows, columns=["bin", "low", "high", "count", "mean_c", "golden_share", "gap"])


def ece(labels: Any, probs: Any, *, bins: int = 10, scheme: str = "width") -> float:
    """Expected calibration error: the mean over responses of |gap| of their bin."""
    table = reliability(labels, probs, bins=bins, scheme=scheme)
    return float((table["count"] * table["gap"].abs()).sum() / table["count"].sum())


def quality(labels: Any, probs: Any, *, bins: int = 10) -> dict[str, float]:
    """n, golden share, AUC, ECE, Brier score and NLL (nats a response, c clipped to 1e-7) of probabilities [N]."""
    labels, probs = _labels_and_probs(labels, probs)
    clipped = np.clip(probs, EPS, 1 - EPS)
    return {
        "n": len(labels),
        "golden_share": float(labels.mean()),
        "auc": _auc(labels, probs),
        "ece": ece(labels, probs, bins=bins),
        "brier": float(np.mean((probs - labels) ** 2)),
        "nll": float(-np.mean(np.where(labels == 1, np.log(clipped), np.log1p(-clipped)))),
    }


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN when one class is absent."""
    return float(roc_auc_score(labels, scores)) if 0 < labels.mean() < 1 else float("nan")


def _labels_and_probs(labels: Any, probs: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, probs = np.asarray(labels, dtype=float), np.asarray(probs, dtype=float)
    if labels.shape != probs.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels {labels.shape}, probs {probs.shape}: two equal non-empty vectors are expected")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels: 0 or 1 is expected")
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probs: NaN or outside [0, 1]")
    return labels, probs


# ---- calibrators: logits -> probabilities ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Temperature:
    """c = sigmoid(logit / temperature); temperature 1 changes nothing."""

    temperature: float = 1.0

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return _sigmoid(np.asarray(logits, dtype=float) / self.temperature)


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """A non-decreasing step-linear map of logits to c through knots; constant beyond the first and the last."""

    logits: tuple[float, ...]
    probs: tuple[float, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return np.interp(logits, self.logits, self.probs)


Calibrator = Temperature | Isotonic


def fit_temperature(logits: Any, labels: Any) -> Temperature:
    """The temperature of least NLL on held-out rows (Guo et al. 2017, Sec. 4.2)."""
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    signed = np.where(labels == 1, logits, -logits)
    found = minimize_scalar(
        lambda log_t: np.logaddexp(0, -signed * np.exp(-log_t)).mean(), bounds=(-4, 4), method="bounded"
    )
    return Temperature(float(np.exp(found.x)))


def fit_isotonic(logits: Any, labels: Any) -> Isotonic:
    """Isotonic regression on held-out rows; c stays within [1/(n+2), 1 - 1/(n+2)], so that NLL and odds are finite."""
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    floor = 1 / (len(labels) + 2)
    fitted = IsotonicRegression(y_min=floor, y_max=1 - floor, out_of_bounds="clip").fit(logits, labels)
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


def _fit_calibrator(name: str, logits: np.ndarray, labels: np.ndarray) -> Calibrator:
    if name == "none" or not 0 < labels.mean() < 1:
        return Temperature()
    return fit_temperature(logits, labels) if name == "temperature" else fit_isotonic(logits, labels)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


# ---- classifiers -----------------------------------------------------------------------------------------------


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
            raise ValueError(f"prompts, responses: {len(prompts)} and {len(responses)}; equally many are expected")
        if row_ids is not None:
            self._refuse_trained(row_ids)
        pairs = list(zip(prompts, responses, strict=True))
        probs = {}
        for head, models in self.models.items():
            logits = np.mean([_logits(model, self.encoder, pairs) for model in models], axis=0)
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
        claimed = [REST if k == row.golden else source for row in preferences for k, source in enumerate(row.sources)]
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
        np.add.at(inverse_odds, (table["row_id"].map(column), table["column"]), _inverse_odds(table["c"].to_numpy()))
        return 1 / (1 + inverse_odds)

    def metrics(self, *, bins: int = 10, draws: int = 200, seed: int = 0) -> pd.DataFrame:
        """Out-of-fold quality, a row a head and stage (before, temperature, isotonic), AUC with a CI over groups.

        Calibrators are cross-fitted: each fold is mapped by one that was fitted on the other folds.
        """
        rows = []
        for head, table in self.out_of_fold.groupby("head", sort=False):
            labels, logits = table["label"].to_numpy(), table["logit"].to_numpy()
            auc = intervals.bootstrap_statistic(
                lambda i, y=labels, x=logits: _auc(y[i], x[i]), table["group"].astype(str), draws=draws, seed=seed
            )
            for stage in ("before", "temperature", "isotonic"):
                probs = _cross_fitted(table, "none" if stage == "before" else stage)
                rows.append(
                    {"head": head, "stage": stage, **quality(labels, probs, bins=bins)}
                    | {"auc_low": auc.low, "auc_high": auc.high, "temperature": self._temperature(head, stage)}
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
                probs = _cross_fitted(table, "none" if stage == "before" else stage)
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
            "calibrators": {head: dataclasses.asdict(value) for head, value in self.calibrators.items()},
            "imbalance": self.imbalance,
            "config": self.config,
        }
        scorers.save_bundle(folder, "classifier", tensors, about, self.encoder, {"out_of_fold": self.out_of_fold})

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> "SourceClassifier":
        """Read what `save` wrote; raises KitError naming the file that is missing or damaged."""
        bundle = scorers.load_bundle(Path(folder), "classifier", encoder)
        about, encoder = bundle.about, bundle.encoder
        models = {
            head: [bundle.scorer(f"{head}/{fold}/", about["config"]["fine_tune"]) for fold in range(count)]
            for head, count in about["folds"].items()
        }
        calibrators = {
            head: Temperature(**value) if "temperature" in value else Isotonic(*map(tuple, value.values()))
            for head, value in about["calibrators"].items()
        }
        table = bundle.tables["out_of_fold"]
        kind, features, imbalance, config = (about[key] for key in ("kind", "features", "imbalance", "config"))
        return cls(kind, features, encoder, models, calibrators, imbalance, table, config)


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
        part, models[head] = _fit_head(part.assign(head=head), preferences, encoder, features, penalty, fine_tune, seed)
        parts.append(part.assign(prob=_sigmoid(part["logit"].to_numpy()), c=_cross_fitted(part, calibrator)))
    calibrators = {
        head: _fit_calibrator(calibrator, part["logit"].to_numpy(), part["label"].to_numpy())
        for head, part in zip(models, parts, strict=True)
    }
    imbalance = {head: float((1 - p["label"]).sum() / p["label"].sum()) for head, p in zip(models, parts, strict=True)}
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
    return SourceClassifier(kind, features, encoder, models, calibrators, imbalance, out_of_fold, config)


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
        raise ValueError("preferences: golden and other responses are both needed to train a classifier")
    fold = fold_of_groups(table["group"], folds, seed)
    return table.assign(fold=fold)


def fold_of_groups(groups: Any, folds: int, seed: int) -> np.ndarray:
    """[N] fold of each row: whole groups, shuffled, dealt round. Raises ValueError with fewer groups than folds."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"folds = {folds}: only {len(names)} groups; lower folds or give more rows")
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
            raise ValueError(f"preferences: fold {left_out} leaves one class only; lower folds or give more rows")
        examples = [pairs[i] for i in train]
        if features == "frozen":
            model = scorers.fit_logistic(scorers.response_features(encoder, examples), labels[train], penalty)
        else:
            desc = f"classifier fold {left_out + 1}/{fold.max() + 1}"
            model = scorers.fine_tune(
                encoder, [[pair] for pair in examples], labels[train], _bce, config, seed=seed + left_out, desc=desc
            )
        logits[test] = _logits(model, encoder, [pairs[i] for i in test])
        models.append(model)
    return table.assign(logit=logits), models


def _bce(scores: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], targets)


def _logits(model: LinearScorer | PairScorer, encoder: Encoder, pairs: Sequence[Pair]) -> np.ndarray:
    if isinstance(model, LinearScorer):
        return model(scorers.response_features(encoder, pairs))
    return scorers.score_pairs(model, encoder, pairs)


def _cross_fitted(table: pd.DataFrame, calibrator: str) -> np.ndarray:
    """c of every row, by a calibrator fitted on the other folds."""
    fold, logits = table["fold"].to_numpy(), table["logit"].to_numpy()
    labels, probs = table["label"].to_numpy(dtype=float), np.empty(len(table))
    for left_out in np.unique(fold):
        inside = fold == left_out
        probs[inside] = _fit_calibrator(calibrator, logits[~inside], labels[~inside])(logits[inside])
    return probs


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
        raise ValueError(f"preferences: rows of {sorted(counts)} responses; equally many in every row are expected")
    return counts.pop()


# ---- tables ----------------------------------------------------------------------------------------------------


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
        raise ValueError(f"probs: shape {tuple(probs.shape)} for {len(preferences)} rows; [N, K] is expected")
    share = 1 / probs.shape[1]
    h = calibration_factor(
        probs,
        alpha=share if alpha is None else alpha,
        beta=share if beta is None else beta,
        imbalance=imbalance,
        kind=kind,
    )
    columns = ("row_id", "group", "first_source")
    table = pd.DataFrame([(row.row_id, row.group, row.sources[0]) for row in preferences], columns=columns)
    return table.assign(h=h.numpy())


def response_table(preferences: PreferenceSet, values: Any, name: str = "c") -> pd.DataFrame:
    """Tidy form of values [N, K]: a row a response with row_id, group, column, source, words and the value."""
    values = np.asarray(values, dtype=float)
    if values.shape != (len(preferences), _equal_k(preferences)):
        raise ValueError(f"values: shape {values.shape} for {len(preferences)} rows; [N, K] is expected")
    rows = [
        (row.row_id, row.group, column, source, len(response.split()))
        for row in preferences
        for column, (source, response) in enumerate(zip(row.sources, row.responses, strict=True))
    ]
    table = pd.DataFrame(rows, columns=["row_id", "group", "column", "source", "words"])
    return table.assign(**{name: values.reshape(-1)})


def by_source(table: pd.DataFrame, value: str, by: str = "source", *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean (with a CI over groups), sd and quartiles of a column by source: n, mean, low, high, sd, q25, q50, q75."""
    rows = []
    for source, part in table.groupby(by, sort=True):
        mean = intervals.bootstrap_mean(part[value], part["group"].astype(str), draws=draws, seed=seed)
        quartiles = dict(zip(("q25", "q50", "q75"), part[value].quantile([0.25, 0.5, 0.75]), strict=True))
        rows.append(
            {by: source, "n": len(part), "mean": mean.value, "low": mean.low, "high": mean.high}
            | {"sd": part[value].std(), **quartiles}
        )
    return pd.DataFrame(rows)
