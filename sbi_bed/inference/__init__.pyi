from .experiments.adaptive import AdaptiveExperiment
from .experiments.step_dad import StepDAD
from .experiments.stopping import after_trials, gain_below, posterior_sd_below
from .posteriors.deep_ensemble import DeepEnsemblePosterior
from .posteriors.likelihood_posterior import PosteriorReport, SMCPosterior, likelihood_posterior
from .posteriors.model_posterior import ModelPosterior
from .posteriors.model_probabilities import ModelProbabilities
from .posteriors.posterior_evidence import Evidence, PosteriorEvidence, posterior_evidence
from .posteriors.predictive_check import PredictiveCheck, predictive_check
from .trainers.batched_refinement import refine_policies
from .trainers.dad import DAD
from .trainers.ensemble import train_ensemble
from .trainers.model_comparison import ModelComparison
from .trainers.refinement import Refinement, refine_policy

__all__ = [
    "DAD",
    "AdaptiveExperiment",
    "DeepEnsemblePosterior",
    "Evidence",
    "ModelComparison",
    "ModelPosterior",
    "ModelProbabilities",
    "PosteriorEvidence",
    "PosteriorReport",
    "PredictiveCheck",
    "Refinement",
    "SMCPosterior",
    "StepDAD",
    "after_trials",
    "gain_below",
    "likelihood_posterior",
    "posterior_evidence",
    "posterior_sd_below",
    "predictive_check",
    "refine_policies",
    "refine_policy",
    "train_ensemble",
]
