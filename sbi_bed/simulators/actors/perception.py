r"""How a person perceives a stimulus and acts on it: measurement, belief, noisy response.

In coordinates x (the logarithm of positive quantities, the quantity itself, an angle) all four are location families,

    x_m ~ N(x_s, σ²),   prior x_s ~ N(x_{μ0}, σ_0²),   belief x_s | m ~ N(μ_p, σ_p²),   response x_r ~ N(x_a, σ_r²),
    w = σ_0² / (σ_0² + σ²),   μ_p = w x_m + (1 − w) x_{μ0},   1/σ_p² = 1/σ_0² + 1/σ²

(arXiv 2409.03710 for logarithms). On the circle N is the von Mises distribution with concentration κ = 1/σ²; prior and
likelihood multiply to a von Mises belief, κ_p e^{iμ_p} = κ_0 e^{iμ_0} + κ e^{im}, and σ_p = κ_p^{−1/2}.

So a belief is a location and a spread. The offset of the best action from the location depends only on the belief, σ_r and
the cost. Actors are trained in these coordinates.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import VonMises

from ...utils.as_numbers import as_numbers

__all__ = ["Belief", "CircularPerception", "LogNormalPerception", "NormalPerception", "Perception"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_MAX_CONCENTRATION = 1e8


class Belief(NamedTuple):
    """What a person believes about the state after a measurement, in the perception's coordinates.

    Attributes:
        location: μ_p, (...), or (..., D) where states are vectors.
        spread: σ_p, (...).
    """

    location: Tensor
    spread: Tensor


class Perception:
    """Normal perception and response in some coordinates; a base class.

    States, measurements, actions and responses have shape (...), or (..., D) where `action_dim` D is more than 1; parameters
    have shape (...) and all broadcast.

    Args:
        **ranges: Ranges (low, high) in which actors are trained, of "stimulus", "mu_0", "sigma", "sigma_0", "sigma_r",
            if other than the defaults.

    Attributes:
        ranges: Name -> (low, high).
        action_dim: Length D of a state, measurement, action or response.

    Raises:
        ValueError: If a range is not two increasing numbers, its name is unknown, or a σ is not positive.
    """

    action_dim = 1
    scale_free: bool = False  # whether moving the belief multiplies all states and responses by a number
    default_ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "stimulus": (-5.0, 5.0),
        "mu_0": (-5.0, 5.0),
        "sigma": (0.05, 2.0),
        "sigma_0": (0.05, 2.0),
        "sigma_r": (0.05, 2.0),
    }

    def __init__(self, **ranges: tuple[float, float]):
        self.ranges = dict(self.default_ranges)
        for name, value in ranges.items():
            if name not in self.ranges:
                raise ValueError(f"there is no range of {name!r}, only of {', '.join(self.ranges)}.")
            low, high = (float(bound) for bound in value)
            if not (low < high and math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"the range of {name} must be two increasing numbers, got {value}.")
            if name.startswith("sigma") and low <= 0:
                raise ValueError(f"{name} must be positive, got a range from {low}.")
            self.ranges[name] = (low, high)
        self._check_values(torch.tensor([*self.ranges["stimulus"], *self.ranges["mu_0"]]), "stimulus and mu_0")

    def describe(self) -> dict[str, Any]:
        """Kind, ranges and the constructor's other arguments, as plain data."""
        ranges = {name: list(value) for name, value in self.ranges.items()}
        return {"kind": type(self).__name__, "ranges": ranges, "settings": {}}

    # ---- coordinates

    def to_coordinate(self, value: Tensor) -> Tensor:
        """Coordinate of a state, measurement, action or response."""
        return value

    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        """Value that has this coordinate."""
        return coordinate

    def wrap(self, offset: Tensor) -> Tensor:
        """The shortest offset between two coordinates that are `offset` apart."""
        return offset

    def location_range(self) -> tuple[float, float]:
        """Lowest and highest location of beliefs: those of stimulus and prior, and four standard deviations of noise.

        Noise of a measurement moves the location by w σ z, at most σ_0/2 |z| or σ |z|, whichever is smaller.
        """
        bounds = [self.to_coordinate(torch.tensor(self.ranges[name])) for name in ("stimulus", "mu_0")]
        margin = 4 * min(self.ranges["sigma_0"][1] / 2, self.ranges["sigma"][1])
        return min(float(b[0]) for b in bounds) - margin, max(float(b[1]) for b in bounds) + margin

    def location_features(self, location: Tensor) -> Tensor:
        """Features (..., F) of a location (...) or (..., D), for nets."""
        return location if self.action_dim > 1 else location.unsqueeze(-1)

    # ---- the four steps

    def belief(self, measurement: Tensor, sigma: Any, sigma_0: Any, mu_0: Any) -> Belief:
        """The belief that a measurement and a prior make, all broadcasting.

        Raises:
            ValueError: If a measurement or a prior mean is outside the space of states.
        """
        sigma, sigma_0 = as_parameter(sigma, measurement), as_parameter(sigma_0, measurement)
        x_m, x_0 = self._coordinate_of(measurement, "measurement"), self._coordinate_of(mu_0, "mu_0")
        x_0 = self._per_coordinate(x_0)
        weight = sigma_0.square() / (sigma_0.square() + sigma.square())
        spread = weight.sqrt() * sigma
        weight = self._per_coordinate(weight)
        return Belief(weight * x_m + (1 - weight) * x_0, spread)

    def sample_stimulus(self, num: int, sigma_0: Tensor, mu_0: Tensor) -> Tensor:
        """Stimuli (num,) or (num, D) to train actors with: uniform over their range, whatever the person's prior is."""
        low, high = self.ranges["stimulus"]
        return low + (high - low) * torch.rand(num, *[self.action_dim] * (self.action_dim > 1))

    def sample_measurement(self, stimulus: Tensor, sigma: Any) -> Tensor:
        """A measurement of each stimulus, differentiable in both.

        Raises:
            ValueError: If a stimulus is outside the space of states.
        """
        x = self._coordinate_of(stimulus, "stimulus")
        return self.from_coordinate(x + self.sample_noise(x, sigma))

    def log_prob_measurement(self, measurement: Tensor, stimulus: Tensor, sigma: Any) -> Tensor:
        """log p(m | s), (...), a density of the measurement itself.

        Raises:
            ValueError: If a measurement or stimulus is outside the space of states.
        """
        return self._log_prob(measurement, "measurement", self._coordinate_of(stimulus, "stimulus"), sigma)

    def sample_state(self, belief: Belief, num: int | None = None) -> Tensor:
        """States drawn from a belief, (num, ...), or one (...) if `num` is None."""
        location = belief.location if num is None else belief.location.expand(num, *belief.location.shape)
        return self.from_coordinate(location + self.sample_noise(location, belief.spread))

    def sample_response(self, action: Tensor, sigma_r: Any) -> Tensor:
        """A response to each action, differentiable in both."""
        x = self._coordinate_of(action, "action")
        return self.from_coordinate(x + self.sample_response_noise(x, sigma_r))

    def log_prob_response(self, response: Tensor, action: Tensor, sigma_r: Any) -> Tensor:
        """log p(r | a), (...), a density of the response itself.

        Raises:
            ValueError: If a response or action is outside the space of states.
        """
        return self._log_prob(response, "response", self._coordinate_of(action, "action"), sigma_r, response=True)

    # ---- noise in the coordinates

    def noise_log_prob(self, offset: Tensor, spread: Tensor) -> Tensor:
        """Log density (...) of noise: of one coordinate if states are numbers, of all together if they are vectors."""
        spread = self._per_coordinate(spread)
        value = -0.5 * (offset / spread).square() - spread.log() - _HALF_LOG_TWO_PI
        return value if self.action_dim == 1 else value.sum(-1)

    def response_noise_log_prob(self, offset: Tensor, sigma_r: Tensor) -> Tensor:
        """Log density (...) of the response's noise."""
        return self.noise_log_prob(offset, sigma_r)

    def noise_cdf(self, offset: Tensor, spread: Tensor) -> Tensor:
        """Probability (...) that noise of one coordinate is at most `offset`."""
        return torch.special.ndtr(offset / spread)

    def sample_noise(self, like: Tensor, spread: Any) -> Tensor:
        """Noise, in the shape that coordinates `like` and spreads broadcast to."""
        spread = self._per_coordinate(as_parameter(spread, like))
        shape = torch.broadcast_shapes(like.shape, spread.shape)
        return spread * torch.randn(shape, dtype=like.dtype, device=like.device)

    def sample_response_noise(self, like: Tensor, sigma_r: Any) -> Tensor:
        """Noise of the response, in the shape that coordinates `like` and σ_r broadcast to."""
        return self.correlate(self.sample_noise(like, sigma_r))

    def correlate(self, noise: Tensor) -> Tensor:
        """Response noise (..., D) made of independent noise (..., D) of the same spread."""
        return noise

    def noise_reach(self, spread: Tensor, num_spreads: float) -> Tensor:
        """How far from its centre noise needs to be followed, (...): `num_spreads` spreads, at most the whole space."""
        return num_spreads * spread

    # ---- pieces

    def _per_coordinate(self, value: Tensor) -> Tensor:
        return value if self.action_dim == 1 else value.unsqueeze(-1)

    def _coordinate_of(self, value: Any, name: str) -> Tensor:
        value = torch.as_tensor(value)
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        if self.action_dim > 1 and value.shape[-1:] != (self.action_dim,) and name != "mu_0":
            raise ValueError(f"{name} must have shape (..., {self.action_dim}), got {tuple(value.shape)}.")
        self._check_values(value, name)
        return self.to_coordinate(value)

    def _check_values(self, value: Tensor, name: str) -> None:
        """Raise a ValueError if values cannot be states."""

    def _log_prob(self, value: Tensor, name: str, x: Tensor, spread: Any, response: bool = False) -> Tensor:
        offset = self._coordinate_of(value, name) - x
        density = self.response_noise_log_prob if response else self.noise_log_prob
        return density(offset, as_parameter(spread, x)) + self._log_slope(value)

    def _log_slope(self, value: Tensor) -> Tensor | float:
        """log |d coordinate / d value|, (...)."""
        return 0.0


class LogNormalPerception(Perception):
    """Positive quantities, perceived and produced in proportion (Weber's law): coordinates are logarithms.

    σ, σ_0, σ_r are standard deviations of logarithms; μ_0 is the prior's median.

    Example:
        >>> perception = LogNormalPerception()
        >>> belief = perception.belief(torch.tensor(2.0), sigma=0.2, sigma_0=0.2, mu_0=1.0)
        >>> round(float(belief.location.exp()), 4), round(float(belief.spread), 4)  # halfway, in logs
        (1.4142, 0.1414)
        >>> perception.belief(torch.tensor(-2.0), 0.2, 0.2, 1.0)
        Traceback (most recent call last):
        ...
        ValueError: measurement must be positive for LogNormalPerception, got -2.
    """

    scale_free = True
    default_ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "stimulus": (0.1, 7.0),
        "mu_0": (0.1, 7.0),
        "sigma": (0.01, 0.5),
        "sigma_0": (0.01, 0.5),
        "sigma_r": (0.01, 0.5),
    }

    def to_coordinate(self, value: Tensor) -> Tensor:
        """Logarithm."""
        return value.log()

    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        """Exponential."""
        return coordinate.exp()

    def _check_values(self, value: Tensor, name: str) -> None:
        if value.numel() and not bool((value > 0).all()):
            first = value[~(value > 0)].flatten()[0].item()
            raise ValueError(f"{name} must be positive for {type(self).__name__}, got {first:.6g}.")

    def _log_slope(self, value: Tensor) -> Tensor:
        return -value.log()


class NormalPerception(Perception):
    """Linear-Gaussian perception: σ, σ_0, σ_r in the units of the stimulus.

    Example:
        >>> NormalPerception().belief(torch.tensor(2.0), sigma=1.0, sigma_0=1.0, mu_0=0.0).location
        tensor(1.)
    """


class CircularPerception(Perception):
    """Angles in radians, with von Mises noise of concentration κ = 1/σ².

    If a measurement is opposite to the prior and has the same weight, the belief is flat: its spread is bounded at 10⁴.

    Example:
        >>> belief = CircularPerception().belief(torch.tensor(torch.pi / 2), sigma=0.5, sigma_0=0.5, mu_0=0.0)
        >>> round(float(belief.location), 4), round(float(belief.spread**-2), 4)  # κ_p = √2 · 4
        (0.7854, 5.6569)
    """

    default_ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "stimulus": (-math.pi, math.pi),
        "mu_0": (-math.pi, math.pi),
        "sigma": (0.05, 0.5),
        "sigma_0": (0.05, 0.5),
        "sigma_r": (0.05, 0.5),
    }

    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        """The angle, from −π to π."""
        return torch.remainder(coordinate + math.pi, 2 * math.pi) - math.pi

    def wrap(self, offset: Tensor) -> Tensor:
        """The offset from −π to π."""
        return self.from_coordinate(offset)

    def location_range(self) -> tuple[float, float]:
        """The circle."""
        return -math.pi, math.pi

    def location_features(self, location: Tensor) -> Tensor:
        """Sine and cosine."""
        return torch.stack([location.sin(), location.cos()], -1)

    def belief(self, measurement: Tensor, sigma: Any, sigma_0: Any, mu_0: Any) -> Belief:
        """The von Mises belief, all broadcasting."""
        m, mu_0 = torch.as_tensor(measurement), as_parameter(mu_0, measurement)
        kappa, kappa_0 = as_parameter(sigma, m) ** -2, as_parameter(sigma_0, m) ** -2
        sine = kappa * m.sin() + kappa_0 * mu_0.sin()
        cosine = kappa * m.cos() + kappa_0 * mu_0.cos()
        squared = (sine.square() + cosine.square()).clamp_min(1 / _MAX_CONCENTRATION**2)
        return Belief(torch.atan2(sine, cosine), squared**-0.25)

    def noise_log_prob(self, offset: Tensor, spread: Tensor) -> Tensor:
        """Log density (...) of von Mises noise."""
        kappa = spread**-2
        # cos x − 1 as −2 sin²(x/2): exact where κ is large
        return -2 * kappa * (offset / 2).sin().square() - (2 * math.pi * torch.special.i0e(kappa)).log()

    def noise_cdf(self, offset: Tensor, spread: Tensor) -> Tensor:
        """Probability (...) of von Mises noise from −π to `offset`, by 64 Gauss–Legendre nodes from its centre."""
        nodes, weights = (torch.as_tensor(part).to(offset) for part in np.polynomial.legendre.leggauss(64))
        reach = torch.minimum(offset.abs(), self.noise_reach(spread, 10.0)).unsqueeze(-1)
        density = self.noise_log_prob(0.5 * reach * (1 + nodes), spread.unsqueeze(-1)).exp()
        return 0.5 + offset.sign() * (0.5 * reach.squeeze(-1) * (density @ weights))

    def sample_noise(self, like: Tensor, spread: Any) -> Tensor:
        """Von Mises noise, in the shape that angles `like` and spreads broadcast to."""
        spread = as_parameter(spread, like)
        shape = torch.broadcast_shapes(like.shape, spread.shape)
        kappa = spread.expand(shape).detach() ** -2
        return VonMises(torch.zeros_like(kappa), kappa, validate_args=False).sample().to(like)

    def noise_reach(self, spread: Tensor, num_spreads: float) -> Tensor:
        """`num_spreads` spreads, at most half the circle."""
        return (num_spreads * spread).clamp_max(math.pi)


def as_parameter(value: Any, like: Tensor, name: str = "a parameter") -> Tensor:
    """A parameter as a tensor, of the dtype and device of `like` if it was a number."""
    if isinstance(value, Tensor):
        return value
    dtype = like.dtype if isinstance(like, Tensor) and like.is_floating_point() else torch.get_default_dtype()
    return as_numbers(value, name, dtype=dtype)
