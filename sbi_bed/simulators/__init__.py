"""Simulators with a design: the contract, design spaces, and the benchmark models."""

from .base import DesignSimulator
from .constant_elasticity import ConstantElasticity
from .design_space import DesignSpace
from .hyperbolic_discounting import HyperbolicDiscounting
from .location_finding import LocationFinding
from .recorded_choices import RecordedChoices, delay_discounting_simulator, read_choices, read_participant
from .rollout import PolicySimulator, Rollout, rollout

__all__ = [
    "ConstantElasticity",
    "DesignSimulator",
    "DesignSpace",
    "HyperbolicDiscounting",
    "LocationFinding",
    "PolicySimulator",
    "RecordedChoices",
    "Rollout",
    "delay_discounting_simulator",
    "read_choices",
    "read_participant",
    "rollout",
]
