r"""Perception without a closed form: the belief is learned from simulations of (state, measurement).

Any prior and any measurement noise can be used, if they can be simulated. In coordinates x (logarithms if positive) a net
learns the normal belief that is closest to the posterior,

    max E log N(x_s; μ_p(m, σ, σ_0, μ_0), σ_p(m, σ, σ_0, μ_0)²)   over   x_s ~ p(s | μ_0, σ_0), m ~ p(m | s, σ),

whose solution has the posterior's mean and standard deviation, of x. The net corrects the belief of a normal prior with
normal noise. Skewness and tails of a posterior are lost: actions are optimal for the normal belief.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..simulators.actors.perception import Belief, LogNormalPerception, NormalPerception, Perception, as_parameter
from ..utils.checks import check_count
from ..utils.warn_user import warn_user

__all__ = ["LearnedPerception"]

_FARTHEST = 6.0  # largest distance between measurement and prior, in standard deviations; beyond, it counts as this


class LearnedPerception(Perception, nn.Module):
    """Perception by simulation, trained by `PerceptionTrainer`; responses are normal in the coordinates.

    Args:
        sample_state: Callable (sigma_0 (N,), mu_0 (N,)) -> states (N,), random: the prior.
        sample_measurement: Callable (state (...), sigma (...)) -> measurements (...), random.
        positive: Whether states are positive; coordinates are then logarithms.
        hidden_dim: Width of the net.
        **ranges: As for `Perception`, with the defaults of `LogNormalPerception` or `NormalPerception`. Stimuli are drawn
            from the prior in training, so "stimulus" only bounds them.

    Attributes:
        fitted: Whether beliefs have been learned.
        net: Net from measurement and parameters to the belief.
        scale_free: Whether states are positive: moving a belief then multiplies states and responses by a number.

    Raises:
        TypeError: If `sample_state` or `sample_measurement` cannot be called.

    Example:
        >>> def uniform_state(sigma_0, mu_0):
        ...     return mu_0 * torch.exp(sigma_0 * (2 * torch.rand_like(sigma_0) - 1))
        >>> def measure(state, sigma):
        ...     return state * torch.exp(sigma * torch.randn_like(state))
        >>> perception = LearnedPerception(uniform_state, measure)  # `PerceptionTrainer` trains it
        >>> perception.fitted
        False
    """

    default_ranges: ClassVar[dict[str, tuple[float, float]]] = LogNormalPerception.default_ranges
    _fitted: Tensor

    def __init__(
        self,
        sample_state: Callable[[Tensor, Tensor], Tensor],
        sample_measurement: Callable[[Tensor, Tensor], Tensor],
        positive: bool = True,
        hidden_dim: int = 48,
        **ranges: tuple[float, float],
    ):
        for name, function in (("sample_state", sample_state), ("sample_measurement", sample_measurement)):
            if not callable(function):
                raise TypeError(f"{name} must be a callable, got {function!r}.")
        nn.Module.__init__(self)
        self._kind = LogNormalPerception() if positive else NormalPerception()
        self.scale_free = positive
        Perception.__init__(self, **{**self._kind.ranges, **ranges})
        self._sample_state, self._sample_measurement = sample_state, sample_measurement
        self._settings = {"positive": bool(positive), "hidden_dim": check_count(hidden_dim, "hidden_dim")}
        self.net = nn.Sequential(
            nn.Linear(6, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 2)
        )
        nn.init.zeros_(self.net[-1].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.net[-1].bias)  # pyright: ignore[reportArgumentType]
        self.register_buffer("_fitted", torch.tensor(False))

    @property
    def fitted(self) -> bool:
        """Whether beliefs have been learned."""
        return bool(self._fitted)

    @fitted.setter
    def fitted(self, value: bool) -> None:
        self._fitted.fill_(value)

    def describe(self) -> dict[str, Any]:
        """Also the settings."""
        return {**super().describe(), "settings": self._settings}

    def to_coordinate(self, value: Tensor) -> Tensor:
        """Logarithm, or the value itself."""
        return self._kind.to_coordinate(value)

    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        """Exponential, or the coordinate itself."""
        return self._kind.from_coordinate(coordinate)

    def sample_stimulus(self, num: int, sigma_0: Tensor, mu_0: Tensor) -> Tensor:
        """States (num,) drawn from the prior."""
        return self._sample_state(sigma_0, mu_0)

    def sample_measurement(self, stimulus: Tensor, sigma: Any) -> Tensor:
        """A measurement of each stimulus."""
        self._check_values(stimulus, "stimulus")
        sigma = as_parameter(sigma, stimulus)
        return self._sample_measurement(*torch.broadcast_tensors(stimulus, sigma))

    def log_prob_measurement(self, measurement: Tensor, stimulus: Tensor, sigma: Any) -> Tensor:
        """Not available: measurements can only be simulated.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "the density of a LearnedPerception's measurements is unknown: use simulation-based inference."
        )

    def belief(self, measurement: Tensor, sigma: Any, sigma_0: Any, mu_0: Any) -> Belief:
        """The learned belief, all broadcasting."""
        measurement = torch.as_tensor(measurement)
        sigma, sigma_0 = as_parameter(sigma, measurement), as_parameter(sigma_0, measurement)
        x_m, x_0 = self._coordinate_of(measurement, "measurement"), self._coordinate_of(mu_0, "mu_0")
        weight = sigma_0.square() / (sigma_0.square() + sigma.square())
        total, spread = (sigma_0.square() + sigma.square()).sqrt(), weight.sqrt() * sigma
        z = ((x_m - x_0) / total).clamp(-_FARTHEST, _FARTHEST)
        columns = torch.broadcast_tensors(z, z.abs(), x_0.to(z), (sigma / sigma_0).log(), sigma.log() + 2, weight)
        shift, stretch = self.net(torch.stack(columns, -1).to(self.net[0].weight)).to(z).unbind(-1)  # pyright: ignore
        return Belief(x_0 + weight * total * z + spread * shift, spread * stretch.clamp(-3, 3).exp())

    def simulated_log_prob(self, num: int) -> Tensor:
        """Log densities (num,) of simulated states' coordinates under the beliefs that their measurements lead to.

        Raises:
            ValueError: If a simulated state or measurement is not in the space of states.
        """
        sigma, sigma_0, mu_0 = (
            low + (high - low) * torch.rand(num) for low, high in (self.ranges[n] for n in ("sigma", "sigma_0", "mu_0"))
        )
        state = self._sample_state(sigma_0, mu_0)
        belief = self.belief(self._sample_measurement(state, sigma), sigma, sigma_0, mu_0)
        return self.noise_log_prob(self._coordinate_of(state, "a state") - belief.location, belief.spread)

    def fit(
        self, num_steps: int = 3000, batch_size: int = 512, learning_rate: float = 3e-3, *, seed: int | None = None
    ) -> LearnedPerception:
        """Old way to train, for one release: use `PerceptionTrainer(perception).train(...)`.

        Args:
            num_steps: As for `PerceptionTrainer.train`.
            batch_size: As there.
            learning_rate: As there.
            seed: As there.
        """
        from ..inference.trainers.actors.perception import PerceptionTrainer  # upwards, until this method goes

        warn_user(
            "LearnedPerception.fit is now sbi_bed.inference.PerceptionTrainer(perception).train; the old name goes with the "
            "next release.",
            FutureWarning,
        )
        trainer = PerceptionTrainer(self, show_progress_bars=False)
        return trainer.train(num_steps, batch_size, learning_rate, seed=seed)

    def _check_values(self, value: Tensor, name: str) -> None:
        self._kind._check_values(value, name)

    def _log_slope(self, value: Tensor) -> Tensor | float:
        return self._kind._log_slope(value)
