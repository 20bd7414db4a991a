from .experiments.design.adaptive import AdaptiveExperiment
from .experiments.design.step_dad import StepDAD
from .experiments.design.stopping import after_trials, gain_below, posterior_sd_below
from .experiments.treatment.experiment import TreatmentExperiment
from .posteriors.batched_posteriors import BatchedPosteriors, batched_posteriors
from .posteriors.context_model_posterior import ContextModelPosterior
from .posteriors.context_posterior import ContextPosterior
from .posteriors.deep_ensemble import DeepEnsemblePosterior
from .posteriors.likelihood_posterior import PosteriorReport, SMCPosterior, likelihood_posterior
from .posteriors.model_posterior import ModelPosterior
from .posteriors.model_probabilities import ModelProbabilities
from .posteriors.posterior_evidence import Evidence, PosteriorEvidence, posterior_evidence
from .posteriors.predictive_check import PredictiveCheck, predictive_check
from .trainers.actors.actor import ActorTrainer
from .trainers.actors.perception import PerceptionTrainer
from .trainers.by_steps import StepTrainer
from .trainers.design.dad import DAD
from .trainers.design.history_npe import HistoryNPE
from .trainers.design.policy_report import PolicyReport
from .trainers.design.refinement import Refinement, refine_policy
from .trainers.ensemble import train_ensemble
from .trainers.models.model_comparison import ModelComparison
from .trainers.sensitivity.context_dad import ContextDAD
from .trainers.sensitivity.context_npe import ContextNPE
from .trainers.settings import StepSettings
from .trainers.treatment.imitation import ImitationTrainer

__all__ = [
    "DAD",
    "ActorTrainer",
    "AdaptiveExperiment",
    "BatchedPosteriors",
    "ContextDAD",
    "ContextModelPosterior",
    "ContextNPE",
    "ContextPosterior",
    "DeepEnsemblePosterior",
    "Evidence",
    "HistoryNPE",
    "ImitationTrainer",
    "ModelComparison",
    "ModelPosterior",
    "ModelProbabilities",
    "PerceptionTrainer",
    "PolicyReport",
    "PosteriorEvidence",
    "PosteriorReport",
    "PredictiveCheck",
    "Refinement",
    "SMCPosterior",
    "StepDAD",
    "StepSettings",
    "StepTrainer",
    "TreatmentExperiment",
    "after_trials",
    "batched_posteriors",
    "gain_below",
    "likelihood_posterior",
    "posterior_evidence",
    "posterior_sd_below",
    "predictive_check",
    "refine_policy",
    "train_ensemble",
]
