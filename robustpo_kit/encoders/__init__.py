"""BERT encoders, and heads on them."""

from robustpo_kit.encoders.bundles import load_bundle, save_bundle
from robustpo_kit.encoders.encoder import Encoder, load
from robustpo_kit.encoders.heads import (
    DEFAULT_FINE_TUNE,
    FEATURES,
    FineTune,
    LinearScorer,
    Pair,
    PairScorer,
    fine_tune,
    fit_logistic,
    length_bucketed,
    relevance_features,
    response_features,
    score_pairs,
)

__all__ = [
    "DEFAULT_FINE_TUNE",
    "Encoder",
    "FEATURES",
    "FineTune",
    "LinearScorer",
    "Pair",
    "PairScorer",
    "fine_tune",
    "fit_logistic",
    "length_bucketed",
    "load",
    "load_bundle",
    "relevance_features",
    "response_features",
    "save_bundle",
    "score_pairs",
]
