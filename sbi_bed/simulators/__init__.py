"""Simulators with a design: the contract, design spaces, and the benchmark models."""

from .base import DesignSimulator
from .classrooms import Classrooms
from .conjugate_nested_normal import ConjugateNestedNormal
from .constant_elasticity import ConstantElasticity
from .design_space import DesignSpace
from .discounting import Discounting
from .epidemic import StochasticEpidemic
from .evidence_accumulation import EvidenceAccumulation
from .exponential_discounting import ExponentialDiscounting
from .first_passage import first_passage
from .hyperbolic_discounting import HyperbolicDiscounting
from .location_finding import LocationFinding
from .model_family import ModelFamily
from .model_mixture import ModelMixture
from .multinomial_tree import MultinomialTree
from .nested_normal import NestedNormal
from .pharmacokinetics import Pharmacokinetics
from .recognition_memory import RecognitionMemory
from .recorded_choices import RecordedChoices, delay_discounting_simulator, read_choices, read_participant
from .rollout import PolicySimulator, Rollout, rollout
from .signal_detection import SignalDetection
from .simulate import simulate_histories
from .simulate_models import simulate_models

__all__ = [
    "Classrooms",
    "ConjugateNestedNormal",
    "ConstantElasticity",
    "DesignSimulator",
    "DesignSpace",
    "Discounting",
    "EvidenceAccumulation",
    "ExponentialDiscounting",
    "HyperbolicDiscounting",
    "LocationFinding",
    "ModelFamily",
    "ModelMixture",
    "MultinomialTree",
    "NestedNormal",
    "Pharmacokinetics",
    "PolicySimulator",
    "RecognitionMemory",
    "RecordedChoices",
    "Rollout",
    "SignalDetection",
    "StochasticEpidemic",
    "delay_discounting_simulator",
    "first_passage",
    "read_choices",
    "read_participant",
    "rollout",
    "simulate_histories",
    "simulate_models",
]
