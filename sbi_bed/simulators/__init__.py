"""Simulators with a design: the contract, design spaces, and the benchmark models."""

from .actor_costs import (
    AbsoluteCost,
    AbsoluteEffortCost,
    ActorCost,
    AsymmetricQuadraticCost,
    InvertedGaussianCost,
    PinballCost,
    QuadraticCost,
    QuadraticEffortCost,
)
from .base import DesignSimulator
from .bayesian_actor import BayesianActor
from .classrooms import Classrooms
from .conjugate_nested_normal import ConjugateNestedNormal
from .constant_elasticity import ConstantElasticity
from .contexts import Choice, Contexts, LogUniform, UniformRange
from .design_space import DesignSpace
from .discounting import Discounting
from .epidemic import StochasticEpidemic
from .evidence_accumulation import EvidenceAccumulation
from .exponential_discounting import ExponentialDiscounting
from .first_passage import first_passage
from .hyperbolic_discounting import HyperbolicDiscounting
from .joint_distribution import JointDistribution
from .location_finding import LocationFinding
from .model_family import ModelFamily
from .model_mixture import ModelMixture
from .multinomial_tree import MultinomialTree
from .nested_normal import NestedNormal
from .optimal_actions import OptimalActor, minimise_expected_cost, optimal_action
from .outbreak import CovidOutbreak
from .perception import CircularPerception, LogNormalPerception, NormalPerception, Perception
from .pharmacokinetics import Pharmacokinetics
from .population import Population
from .power_scaled_prior import PowerScaledPrior
from .present_biased_discounting import PresentBiasedDiscounting
from .reaching import ReachingCost, ReachingPerception, ReachingTask
from .recognition_memory import RecognitionMemory
from .recorded_choices import RecordedChoices, delay_discounting_simulator, read_choices, read_participant
from .recorded_responses import RecordedResponses, pack_responses, read_responses
from .recorded_trial import RecordedTrial, read_trial
from .rollout import PolicySimulator, Rollout, rollout
from .signal_detection import SignalDetection
from .simulate import simulate_histories
from .simulate_models import simulate_models
from .simulate_with_context import simulate_models_with_context, simulate_with_context
from .treatment_problem import TreatmentProblem, binary_outcomes, linear_benchmark, normal_outcomes, two_arm_benchmark
from .treatment_stream import TreatmentStream, assign_stream

__all__ = [
    "AbsoluteCost",
    "AbsoluteEffortCost",
    "ActorCost",
    "AsymmetricQuadraticCost",
    "BayesianActor",
    "Choice",
    "CircularPerception",
    "Classrooms",
    "ConjugateNestedNormal",
    "ConstantElasticity",
    "Contexts",
    "CovidOutbreak",
    "DesignSimulator",
    "DesignSpace",
    "Discounting",
    "EvidenceAccumulation",
    "ExponentialDiscounting",
    "HyperbolicDiscounting",
    "InvertedGaussianCost",
    "JointDistribution",
    "LocationFinding",
    "LogNormalPerception",
    "LogUniform",
    "ModelFamily",
    "ModelMixture",
    "MultinomialTree",
    "NestedNormal",
    "NormalPerception",
    "OptimalActor",
    "Perception",
    "Pharmacokinetics",
    "PinballCost",
    "PolicySimulator",
    "Population",
    "PowerScaledPrior",
    "PresentBiasedDiscounting",
    "QuadraticCost",
    "QuadraticEffortCost",
    "ReachingCost",
    "ReachingPerception",
    "ReachingTask",
    "RecognitionMemory",
    "RecordedChoices",
    "RecordedResponses",
    "RecordedTrial",
    "Rollout",
    "SignalDetection",
    "StochasticEpidemic",
    "TreatmentProblem",
    "TreatmentStream",
    "UniformRange",
    "assign_stream",
    "binary_outcomes",
    "delay_discounting_simulator",
    "first_passage",
    "linear_benchmark",
    "minimise_expected_cost",
    "normal_outcomes",
    "optimal_action",
    "pack_responses",
    "read_choices",
    "read_participant",
    "read_responses",
    "read_trial",
    "rollout",
    "simulate_histories",
    "simulate_models",
    "simulate_models_with_context",
    "simulate_with_context",
    "two_arm_benchmark",
]
