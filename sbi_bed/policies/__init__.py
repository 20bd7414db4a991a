"""Policies: history -> next design."""

from .base import Policy, load_policy
from .context import ContextPolicy
from .deep_sets import DeepSetsPolicy
from .experimenters import ExperimenterTransformer
from .gradient_experimenter import GradientExperimenter
from .greedy import GreedyPolicy
from .mixture_of_experimenters import MixtureOfExperimenters
from .neyman_teacher import NeymanTeacher
from .random import RandomPolicy
from .static import StaticPolicy
from .transformer import TransformerPolicy
from .treatment_baselines import CoinFlip, NonContextualNeyman, OracleNeyman
from .treatment_policy import TreatmentPolicy

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
    "TransformerPolicy",
    "TreatmentPolicy",
    "load_policy",
]
