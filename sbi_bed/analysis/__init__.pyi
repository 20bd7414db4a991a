from .discounting import plot_discounting
from .experiments import plot_experiment_in_plane, plot_posterior_spread
from .model_comparison import (
    plot_atypicality,
    plot_bayes_factor_recovery,
    plot_confusion,
    plot_model_probs,
    plot_reliability,
)

__all__ = [
    "plot_atypicality",
    "plot_bayes_factor_recovery",
    "plot_confusion",
    "plot_discounting",
    "plot_experiment_in_plane",
    "plot_model_probs",
    "plot_posterior_spread",
    "plot_reliability",
]
