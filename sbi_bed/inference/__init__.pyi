from .experiments.adaptive import AdaptiveExperiment
from .experiments.step_dad import StepDAD
from .experiments.stopping import after_trials, gain_below, posterior_sd_below
from .experiments.treatment import TreatmentExperiment
from .posteriors.context_model_posterior import ContextModelPosterior
from .posteriors.context_posterior import ContextPosterior
from .posteriors.deep_ensemble import DeepEnsemblePosterior
from .posteriors.likelihood_posterior import PosteriorReport, SMCPosterior, likelihood_posterior
from .posteriors.many_posteriors import ManyPosteriors, many_posteriors
from .posteriors.model_posterior import ModelPosterior
from .posteriors.model_probabilities import ModelProbabilities
from .posteriors.posterior_evidence import Evidence, PosteriorEvidence, posterior_evidence
from .posteriors.predictive_check import PredictiveCheck, predictive_check
from .trainers.actor import ActorTrainer
from .trainers.batched_refinement import refine_policies
from .trainers.context_dad import ContextDAD
from .trainers.context_npe import ContextNPE
from .trainers.dad import DAD
from .trainers.ensemble import train_ensemble
from .trainers.experimenter import ExperimenterTrainer
from .trainers.model_comparison import ModelComparison
from .trainers.refinement import Refinement, refine_policy

__all__ = [
    "DAD",
    "ActorTrainer",
    "AdaptiveExperiment",
    "ContextDAD",
    "ContextModelPosterior",
    "ContextNPE",
    "ContextPosterior",
    "DeepEnsemblePosterior",
    "Evidence",
    "ExperimenterTrainer",
    "ManyPosteriors",
    "ModelComparison",
    "ModelPosterior",
    "ModelProbabilities",
    "PosteriorEvidence",
    "PosteriorReport",
    "PredictiveCheck",
    "Refinement",
    "SMCPosterior",
    "StepDAD",
    "TreatmentExperiment",
    "after_trials",
    "gain_below",
    "likelihood_posterior",
    "many_posteriors",
    "posterior_evidence",
    "posterior_sd_below",
    "predictive_check",
    "refine_policies",
    "refine_policy",
    "train_ensemble",
]
