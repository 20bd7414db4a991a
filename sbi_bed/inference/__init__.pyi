from .experiments.adaptive import AdaptiveExperiment
from .experiments.step_dad import StepDAD
from .posteriors.likelihood_posterior import likelihood_posterior
from .trainers.dad import DAD
from .trainers.refinement import Refinement, refine_policy

__all__ = ["DAD", "AdaptiveExperiment", "Refinement", "StepDAD", "likelihood_posterior", "refine_policy"]
