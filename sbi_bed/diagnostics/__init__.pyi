from .atypical_data import Atypicality, atypicality, summary_atypicality
from .calibration import ModelCalibration, ReliabilityBins, model_calibration
from .evidence_routes import EvidenceRoutes, compare_evidence_routes
from .information_gain import InformationGain, expected_information_gain
from .mmd import MMDTest, mmd_test
from .model_gain import ModelInformationGain, model_information_gain
from .model_table import ModelReport, model_report
from .recovery import (
    EvidenceRecovery,
    ProbabilityRecovery,
    evidence_recovery,
    kl_to_exact,
    probability_recovery,
)
from .step_dad_gain import StepDADGain, step_dad_information_gain

__all__ = [
    "Atypicality",
    "EvidenceRecovery",
    "EvidenceRoutes",
    "InformationGain",
    "MMDTest",
    "ModelCalibration",
    "ModelInformationGain",
    "ModelReport",
    "ProbabilityRecovery",
    "ReliabilityBins",
    "StepDADGain",
    "atypicality",
    "compare_evidence_routes",
    "evidence_recovery",
    "expected_information_gain",
    "kl_to_exact",
    "mmd_test",
    "model_calibration",
    "model_information_gain",
    "model_report",
    "probability_recovery",
    "step_dad_information_gain",
    "summary_atypicality",
]
