"""Policies: history -> next design."""

from .base import Policy, load_policy
from .deep_sets import DeepSetsPolicy
from .greedy import GreedyPolicy
from .random import RandomPolicy
from .static import StaticPolicy
from .transformer import TransformerPolicy

__all__ = [
    "DeepSetsPolicy",
    "GreedyPolicy",
    "Policy",
    "RandomPolicy",
    "StaticPolicy",
    "TransformerPolicy",
    "load_policy",
]
