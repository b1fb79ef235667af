"""Source classifiers, calibrated, and the factor h~ made of them."""

from robustpo_kit.calibration.classifiers import SourceClassifier
from robustpo_kit.calibration.factor import KINDS, calibration_factor, uniform_factor
from robustpo_kit.calibration.fitting import fit_classifier
from robustpo_kit.calibration.maps import Isotonic, Temperature, fit_isotonic, fit_temperature
from robustpo_kit.calibration.quality import detectors, ece, quality, reliability
from robustpo_kit.calibration.responses import flat_responses, response_table, responses_per_row
from robustpo_kit.calibration.slots import SlotWeights, slot_ratios, slot_weights

__all__ = [
    "Isotonic",
    "KINDS",
    "SlotWeights",
    "SourceClassifier",
    "Temperature",
    "calibration_factor",
    "detectors",
    "ece",
    "fit_classifier",
    "fit_isotonic",
    "fit_temperature",
    "flat_responses",
    "quality",
    "reliability",
    "response_table",
    "responses_per_row",
    "slot_ratios",
    "slot_weights",
    "uniform_factor",
]
