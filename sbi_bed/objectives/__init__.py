"""Objectives: contrastive bounds on the expected information gain, and losses whose gradients raise them."""

from .bounds import InformationGain, estimate_bounds
from .contrastive import log_likelihood_of_history, log_sum_likelihood, snmc, spce
from .losses import pathwise_loss, score_function_loss

__all__ = [
    "InformationGain",
    "estimate_bounds",
    "log_likelihood_of_history",
    "log_sum_likelihood",
    "pathwise_loss",
    "score_function_loss",
    "snmc",
    "spce",
]
