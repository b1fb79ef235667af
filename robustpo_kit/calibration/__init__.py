"""Source classifiers, calibrated, and the factor h~ made of them."""

from robustpo_kit.calibration.classifiers import SourceClassifier
from robustpo_kit.calibration.evidence import evidence, verdict
from robustpo_kit.calibration.factor import KINDS, calibration_factor, uniform_factor
from robustpo_kit.calibration.fitting import fit_classifier, fold_of_groups
from robustpo_kit.calibration.maps import Isotonic, Temperature, fit_isotonic, fit_temperature
from robustpo_kit.calibration.quality import detectors, ece, quality, reliability
from robustpo_kit.calibration.responses import (
    WORD,
    by_row,
    flat_responses,
    response_table,
    responses_per_row,
    word_count,
)
from robustpo_kit.calibration.slots import SlotWeights, slot_ratios, slot_weights
from robustpo_kit.calibration.told import (
    Told,
    confidences,
    mean_factors,
    slot_factors,
    told_by_column,
    told_by_source,
    told_by_trusted,
)

__all__ = [
    "Isotonic",
    "KINDS",
    "SlotWeights",
    "SourceClassifier",
    "Temperature",
    "Told",
    "WORD",
    "by_row",
    "calibration_factor",
    "confidences",
    "detectors",
    "ece",
    "evidence",
    "fit_classifier",
    "fit_isotonic",
    "fit_temperature",
    "flat_responses",
    "fold_of_groups",
    "mean_factors",
    "quality",
    "reliability",
    "response_table",
    "responses_per_row",
    "slot_factors",
    "slot_ratios",
    "slot_weights",
    "told_by_column",
    "told_by_source",
    "told_by_trusted",
    "uniform_factor",
    "verdict",
    "word_count",
]
