"""Objectives: bounds on the expected information gain, and losses whose gradients raise them."""

from .base import Bound, NeuralBound
from .bounds import InformationGain, estimate_bounds
from .contrastive import log_likelihood_of_history, log_sum_likelihood, snmc, spce
from .critics import NWJ, InfoNCE
from .decision import Decision
from .decision_utility import DecisionUtility
from .evidence_losses import CrossEntropyLoss, LPopLoss
from .losses import pathwise_loss, score_function_loss
from .model_gain import ModelPCE, log_model_probs, model_gain_loss
from .pce import PCE
from .proposals import LocalProposal
from .sbi_bounds import LikelihoodBound, PosteriorBound, RatioBound

__all__ = [
    "NWJ",
    "PCE",
    "Bound",
    "CrossEntropyLoss",
    "Decision",
    "DecisionUtility",
    "InfoNCE",
    "InformationGain",
    "LPopLoss",
    "LikelihoodBound",
    "LocalProposal",
    "ModelPCE",
    "NeuralBound",
    "PosteriorBound",
    "RatioBound",
    "estimate_bounds",
    "log_likelihood_of_history",
    "log_model_probs",
    "log_sum_likelihood",
    "model_gain_loss",
    "pathwise_loss",
    "score_function_loss",
    "snmc",
    "spce",
]
