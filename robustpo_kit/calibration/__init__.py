"""Source classifiers, calibrated, and the factor h~ made of them."""

from robustpo_kit.calibration.classifiers import (
    SourceClassifier,
    by_source,
    h_table,
    response_table,
)
from robustpo_kit.calibration.factor import KINDS, calibration_factor
from robustpo_kit.calibration.fitting import fit_classifier
from robustpo_kit.calibration.maps import Isotonic, Temperature, fit_isotonic, fit_temperature
from robustpo_kit.calibration.quality import ece, quality, reliability

__all__ = [
    "Isotonic",
    "KINDS",
    "SourceClassifier",
    "Temperature",
    "by_source",
    "calibration_factor",
    "ece",
    "fit_classifier",
    "fit_isotonic",
    "fit_temperature",
    "h_table",
    "quality",
    "reliability",
    "response_table",
]
