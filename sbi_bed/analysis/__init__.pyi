from .actors import plot_response_bands, plot_ridge
from .arviz_export import to_arviz
from .design import plot_discounting, plot_experiment_in_plane, plot_posterior_spread
from .models import plot_atypicality, plot_bayes_factor_recovery, plot_confusion, plot_model_probs, plot_reliability
from .sensitivity import (
    plot_ensemble_disagreement,
    plot_gamma_map,
    plot_gamma_ridges,
    plot_power_scaling,
    plot_sources_of_sensitivity,
)
from .treatment import (
    plot_allocation,
    plot_efficiency,
    plot_gate_weights,
    plot_regret,
    plot_running_effect,
    plot_treatment_plan,
)

__all__ = [
    "plot_allocation",
    "plot_atypicality",
    "plot_bayes_factor_recovery",
    "plot_confusion",
    "plot_discounting",
    "plot_efficiency",
    "plot_ensemble_disagreement",
    "plot_experiment_in_plane",
    "plot_gamma_map",
    "plot_gamma_ridges",
    "plot_gate_weights",
    "plot_model_probs",
    "plot_posterior_spread",
    "plot_power_scaling",
    "plot_regret",
    "plot_reliability",
    "plot_response_bands",
    "plot_ridge",
    "plot_running_effect",
    "plot_sources_of_sensitivity",
    "plot_treatment_plan",
    "to_arviz",
]
