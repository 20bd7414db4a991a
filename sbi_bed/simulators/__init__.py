"""Simulators with a design: the contract, design spaces, and the benchmark models."""

from .actors.bayesian_actor import BayesianActor
from .actors.cost import ActorCost
from .actors.costs import (
    AbsoluteCost,
    AbsoluteEffortCost,
    AsymmetricQuadraticCost,
    InvertedGaussianCost,
    PinballCost,
    QuadraticCost,
    QuadraticEffortCost,
)
from .actors.minimise import minimise_expected_cost
from .actors.optimal_actions import OptimalActor, optimal_action
from .actors.perception import CircularPerception, LogNormalPerception, NormalPerception, Perception
from .actors.population import Population
from .actors.reaching import ReachingCost, ReachingPerception, ReachingTask
from .actors.recorded_responses import RecordedResponses, pack_responses, read_responses
from .base import DesignSimulator
from .batched import BatchedSimulator
from .design.black_box import BlackBoxSimulator, process_design_simulator
from .design.constant_elasticity import ConstantElasticity
from .design.discounting import Discounting, ExponentialDiscounting, HyperbolicDiscounting, PresentBiasedDiscounting
from .design.epidemic import StochasticEpidemic
from .design.location_finding import LocationFinding
from .design.pharmacokinetics import Pharmacokinetics
from .design.prey_population import PreyPopulation
from .design.recorded_choices import RecordedChoices, delay_discounting_simulator, read_choices, read_participant
from .design_space import DesignSpace
from .models.classrooms import Classrooms
from .models.conjugate_nested_normal import ConjugateNestedNormal
from .models.evidence_accumulation import EvidenceAccumulation
from .models.first_passage import first_passage
from .models.model_family import ModelFamily
from .models.model_mixture import ModelMixture
from .models.multinomial_tree import MultinomialTree
from .models.nested_normal import NestedNormal
from .models.recognition_memory import RecognitionMemory
from .models.signal_detection import SignalDetection
from .models.simulate_models import simulate_models
from .rollout import PolicySimulator, Rollout, rollout
from .sensitivity.contexts import Choice, Contexts, LogUniform, UniformRange
from .sensitivity.joint_distribution import JointDistribution
from .sensitivity.outbreak import CovidOutbreak
from .sensitivity.power_scaled_prior import PowerScaledPrior
from .sensitivity.simulate_with_context import simulate_models_with_context, simulate_with_context
from .simulate import simulate_histories
from .treatment.problem import (
    TreatmentProblem,
    binary_outcomes,
    linear_benchmark,
    multi_arm_benchmark,
    normal_outcomes,
    two_arm_benchmark,
)
from .treatment.recorded_trial import RecordedTrial, read_trial
from .treatment.stream import TreatmentStream, assign_stream

__all__ = [
    "AbsoluteCost",
    "AbsoluteEffortCost",
    "ActorCost",
    "AsymmetricQuadraticCost",
    "BatchedSimulator",
    "BayesianActor",
    "BlackBoxSimulator",
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
    "PreyPopulation",
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
    "multi_arm_benchmark",
    "normal_outcomes",
    "optimal_action",
    "pack_responses",
    "process_design_simulator",
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
