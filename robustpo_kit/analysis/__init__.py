"""Statistics as tidy tables: what a study declares, and what stands behind the papers' figures."""

from robustpo_kit.analysis.declarations import Contrast, Study
from robustpo_kit.analysis.figures import (
    energy_distance,
    gap_quantiles,
    mean_by,
    normalise,
    reward_confidence,
    slope_difference,
    training_curves,
)

__all__ = [
    "Contrast",
    "Study",
    "energy_distance",
    "gap_quantiles",
    "mean_by",
    "normalise",
    "reward_confidence",
    "slope_difference",
    "training_curves",
]
