"""Simulators with a design: the contract, design spaces, and the benchmark models."""

from .base import DesignSimulator
from .constant_elasticity import ConstantElasticity
from .design_space import DesignSpace
from .hyperbolic_discounting import HyperbolicDiscounting
from .location_finding import LocationFinding
from .rollout import PolicySimulator, Rollout, rollout

__all__ = [
    "ConstantElasticity",
    "DesignSimulator",
    "DesignSpace",
    "HyperbolicDiscounting",
    "LocationFinding",
    "PolicySimulator",
    "Rollout",
    "rollout",
]
