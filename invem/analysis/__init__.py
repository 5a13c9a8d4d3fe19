"""Identifiability and calibration: the information in the observations, before and during EM.

`identify` computes which directions of a signal, and which covariances, the operators and the noise
let be learned. `calibrate` estimates options of operator and noise that are only roughly known.
"""

from invem.analysis.calibration import (
    TRIALS,
    Calibrated,
    MeasurementAt,
    by_draws,
    by_moments,
    by_score,
    calibrate,
    calibrate_by_moments,
    rebuilt,
    score,
)
from invem.analysis.identifiability import Identifiability, identify
from invem.analysis.model import ObservationModel
from invem.analysis.noiselevel import NoiseLevel, noise_level
from invem.analysis.parameters import Parameters
from invem.analysis.words import describe, lines, warning

__all__ = [
    "TRIALS",
    "Calibrated",
    "Identifiability",
    "MeasurementAt",
    "NoiseLevel",
    "ObservationModel",
    "Parameters",
    "by_draws",
    "by_moments",
    "by_score",
    "calibrate",
    "calibrate_by_moments",
    "describe",
    "identify",
    "lines",
    "noise_level",
    "rebuilt",
    "score",
    "warning",
]
