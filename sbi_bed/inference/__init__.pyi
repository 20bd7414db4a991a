from .experiments.adaptive import AdaptiveExperiment
from .experiments.step_dad import StepDAD
from .experiments.stopping import after_trials, gain_below, posterior_sd_below
from .posteriors.likelihood_posterior import PosteriorReport, SMCPosterior, likelihood_posterior
from .posteriors.predictive_check import PredictiveCheck, predictive_check
from .trainers.batched_refinement import refine_policies
from .trainers.dad import DAD
from .trainers.refinement import Refinement, refine_policy

__all__ = [
    "DAD",
    "AdaptiveExperiment",
    "PosteriorReport",
    "PredictiveCheck",
    "Refinement",
    "SMCPosterior",
    "StepDAD",
    "after_trials",
    "gain_below",
    "likelihood_posterior",
    "posterior_sd_below",
    "predictive_check",
    "refine_policies",
    "refine_policy",
]
