from .actor_validation import ActorRegion, ActorValidation, actor_validation
from .atypical_data import Atypicality, atypicality, summary_atypicality
from .calibration import ModelCalibration, ReliabilityBins, model_calibration
from .data_sensitivity import DataSensitivity, data_sensitivity
from .evidence_routes import EvidenceRoutes, compare_evidence_routes
from .identifiability import Identifiability, ResolvingDesigns, identifiability, resolving_designs
from .information_gain import InformationGain, expected_information_gain
from .mmd import MMDTest, mmd_test
from .model_gain import ModelInformationGain, model_information_gain
from .model_table import ModelReport, model_report
from .power_scaling import PowerScaling, power_scaling_by_importance
from .recovery import (
    EvidenceRecovery,
    ProbabilityRecovery,
    evidence_recovery,
    kl_to_exact,
    probability_recovery,
)
from .sensitivity import ModelSensitivity, PriorSensitivity, prior_sensitivity
from .simulation_gap import SimulationGap, simulation_gap
from .step_dad_gain import StepDADGain, step_dad_information_gain
from .treatment import TreatmentReport, gate_weights, treatment_report, treatment_table
from .treatment_replay import TrialReplay, replay_trial
from .treatment_study import TreatmentStudy, run_treatment_study

__all__ = [
    "ActorRegion",
    "ActorValidation",
    "Atypicality",
    "DataSensitivity",
    "EvidenceRecovery",
    "EvidenceRoutes",
    "Identifiability",
    "InformationGain",
    "MMDTest",
    "ModelCalibration",
    "ModelInformationGain",
    "ModelReport",
    "ModelSensitivity",
    "PowerScaling",
    "PriorSensitivity",
    "ProbabilityRecovery",
    "ReliabilityBins",
    "ResolvingDesigns",
    "SimulationGap",
    "StepDADGain",
    "TreatmentReport",
    "TreatmentStudy",
    "TrialReplay",
    "actor_validation",
    "atypicality",
    "compare_evidence_routes",
    "data_sensitivity",
    "evidence_recovery",
    "expected_information_gain",
    "gate_weights",
    "identifiability",
    "kl_to_exact",
    "mmd_test",
    "model_calibration",
    "model_information_gain",
    "model_report",
    "power_scaling_by_importance",
    "prior_sensitivity",
    "probability_recovery",
    "replay_trial",
    "resolving_designs",
    "run_treatment_study",
    "simulation_gap",
    "step_dad_information_gain",
    "summary_atypicality",
    "treatment_report",
    "treatment_table",
]
