"""Source classifiers, calibrated, and the factor h~ made of them."""

from robustpo_kit.calibration.classifiers import SourceClassifier
from robustpo_kit.calibration.factor import KINDS, calibration_factor, uniform_factor
from robustpo_kit.calibration.fitting import fit_classifier
from robustpo_kit.calibration.maps import Isotonic, Temperature, fit_isotonic, fit_temperature
from robustpo_kit.calibration.quality import ece, quality, reliability
from robustpo_kit.calibration.responses import flat_responses, response_table, responses_per_row

__all__ = [
    "Isotonic",
    "KINDS",
    "SourceClassifier",
    "Temperature",
    "calibration_factor",
    "ece",
    "fit_classifier",
    "fit_isotonic",
    "fit_temperature",
    "flat_responses",
    "quality",
    "reliability",
    "response_table",
    "responses_per_row",
    "uniform_factor",
]
