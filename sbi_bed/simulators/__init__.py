"""Simulators with a design: the contract, design spaces, and the benchmark models."""

from .base import DesignSimulator
from .constant_elasticity import ConstantElasticity
from .design_space import DesignSpace
from .epidemic import StochasticEpidemic
from .hyperbolic_discounting import HyperbolicDiscounting
from .location_finding import LocationFinding
from .pharmacokinetics import Pharmacokinetics
from .recorded_choices import RecordedChoices, delay_discounting_simulator, read_choices, read_participant
from .rollout import PolicySimulator, Rollout, rollout
from .simulate import simulate_histories

__all__ = [
    "ConstantElasticity",
    "DesignSimulator",
    "DesignSpace",
    "HyperbolicDiscounting",
    "LocationFinding",
    "Pharmacokinetics",
    "PolicySimulator",
    "RecordedChoices",
    "Rollout",
    "StochasticEpidemic",
    "delay_discounting_simulator",
    "read_choices",
    "read_participant",
    "rollout",
    "simulate_histories",
]
