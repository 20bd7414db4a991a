from .information_gain import InformationGain, expected_information_gain
from .step_dad_gain import StepDADGain, step_dad_information_gain

__all__ = ["InformationGain", "StepDADGain", "expected_information_gain", "step_dad_information_gain"]
