from .actors.identifiability import Identifiability, ResolvingDesigns, identifiability, resolving_designs
from .actors.validation import ActorRegion, ActorValidation, actor_validation
from .design.decision_value import ExpectedUtility, expected_utility
from .design.information_gain import InformationGain, expected_information_gain
from .design.model_gain import ModelInformationGain, model_information_gain
from .design.step_dad_gain import StepDADGain, step_dad_information_gain
from .mmd import MMDTest, mmd_test
from .models.calibration import ModelCalibration, ReliabilityBins, model_calibration
from .models.evidence_routes import EvidenceRoutes, compare_evidence_routes
from .models.model_table import ModelReport, model_report
from .models.recovery import EvidenceRecovery, ProbabilityRecovery, evidence_recovery, kl_to_exact, probability_recovery
from .sensitivity.data_sensitivity import DataSensitivity, data_sensitivity
from .sensitivity.power_scaling import PowerScaling, power_scaling_by_importance
from .sensitivity.prior_sensitivity import prior_sensitivity
from .sensitivity.prior_sensitivity_results import ModelSensitivity, PriorSensitivity
from .sensitivity.simulation_gap import SimulationGap, simulation_gap
from .treatment.plan import TreatmentPlan, plan_treatment
from .treatment.replay import TrialReplay, replay_trial
from .treatment.report import TreatmentReport, gate_weights, treatment_report, treatment_table
from .treatment.study import TreatmentStudy, run_treatment_study
from .typicality import Atypicality, atypicality, summary_atypicality

__all__ = [
    "ActorRegion",
    "ActorValidation",
    "Atypicality",
    "DataSensitivity",
    "EvidenceRecovery",
    "EvidenceRoutes",
    "ExpectedUtility",
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
    "TreatmentPlan",
    "TreatmentReport",
    "TreatmentStudy",
    "TrialReplay",
    "actor_validation",
    "atypicality",
    "compare_evidence_routes",
    "data_sensitivity",
    "evidence_recovery",
    "expected_information_gain",
    "expected_utility",
    "gate_weights",
    "identifiability",
    "kl_to_exact",
    "mmd_test",
    "model_calibration",
    "model_information_gain",
    "model_report",
    "plan_treatment",
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
