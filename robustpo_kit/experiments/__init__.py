"""Experiments: from one task to disjoint splits, a mixture-shifted training set, trained policies and scored replies.

The notebooks share these steps. What takes long is kept under runs/PROFILE and made again only when its settings or
the kit's code change, so a killed run continues where it stood.
"""

from robustpo_kit.experiments.keeping import kept
from robustpo_kit.experiments.lab import SPLITS, Lab
from robustpo_kit.experiments.methods import (
    GAMMA_METHODS,
    Trained,
    all_replies,
    listwise_spec,
    reply_quality,
    simpo_gaps,
)

__all__ = [
    "GAMMA_METHODS",
    "Lab",
    "SPLITS",
    "Trained",
    "all_replies",
    "kept",
    "listwise_spec",
    "reply_quality",
    "simpo_gaps",
]
