"""BERT encoders, and heads on them."""

from robustpo_kit.encoders.bundles import (
    Learned,
    load_bundle,
    raw_scores,
    save_bundle,
    unseen_pairs,
)
from robustpo_kit.encoders.encoder import Encoder, load
from robustpo_kit.encoders.fine_tuning import (
    DEFAULT_FINE_TUNE,
    FineTune,
    PairScorer,
    fine_tune,
    length_bucketed,
    score_pairs,
)
from robustpo_kit.encoders.linear import (
    LinearScorer,
    Pair,
    fit_logistic,
    relevance_features,
    response_features,
)

FEATURES = ("frozen", "fine_tuned")  # a linear head on embeddings, or the whole encoder trained

__all__ = [
    "DEFAULT_FINE_TUNE",
    "Encoder",
    "FEATURES",
    "FineTune",
    "Learned",
    "LinearScorer",
    "Pair",
    "PairScorer",
    "fine_tune",
    "fit_logistic",
    "length_bucketed",
    "load",
    "load_bundle",
    "raw_scores",
    "relevance_features",
    "response_features",
    "save_bundle",
    "score_pairs",
    "unseen_pairs",
]
