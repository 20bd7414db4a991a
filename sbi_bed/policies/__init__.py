"""Policies: history -> next design."""

from .base import Policy, load_policy
from .design.deep_sets import DeepSetsPolicy
from .design.greedy import GreedyPolicy
from .design.random import RandomPolicy
from .design.static import StaticPolicy
from .design.transformer import TransformerPolicy
from .sensitivity.context import ContextPolicy
from .treatment.base import TreatmentPolicy
from .treatment.baselines import CoinFlip, NonContextualNeyman, OracleNeyman
from .treatment.experimenters import ExperimenterTransformer
from .treatment.gradient_experimenter import GradientExperimenter
from .treatment.mixture_of_experimenters import MixtureOfExperimenters
from .treatment.neyman_teacher import NeymanTeacher
from .treatment.stratified_neyman import StratifiedNeyman

__all__ = [
    "CoinFlip",
    "ContextPolicy",
    "DeepSetsPolicy",
    "ExperimenterTransformer",
    "GradientExperimenter",
    "GreedyPolicy",
    "MixtureOfExperimenters",
    "NeymanTeacher",
    "NonContextualNeyman",
    "OracleNeyman",
    "Policy",
    "RandomPolicy",
    "StaticPolicy",
    "StratifiedNeyman",
    "TransformerPolicy",
    "TreatmentPolicy",
    "load_policy",
]
