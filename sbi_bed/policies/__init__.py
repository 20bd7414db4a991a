"""Policies: history -> next design."""

from .base import Policy, load_policy
from .deep_sets import DeepSetsPolicy
from .random import RandomPolicy
from .static import StaticPolicy
from .transformer import TransformerPolicy

__all__ = ["DeepSetsPolicy", "Policy", "RandomPolicy", "StaticPolicy", "TransformerPolicy", "load_policy"]
