from .discounting import plot_discounting
from .experiments import plot_experiment_in_plane, plot_posterior_spread

__all__ = ["plot_discounting", "plot_experiment_in_plane", "plot_posterior_spread"]
