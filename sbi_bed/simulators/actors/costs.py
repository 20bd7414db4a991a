r"""What a response costs: ℓ(r, s) of a response r where the state of the world is s, with parameters of its own.

A cost of one's own is a short subclass, or `ActorCost.from_function`. The shipped costs (arXiv 2409.03710):

    quadratic               (r − s)²
    absolute                |r − s|
    pinball                 |r − s| times 1 − α where r ≥ s, else α
    quadratic with effort   β (r − s)² + (1 − β) r²
    absolute with effort    β |r − s| + (1 − β) r²
    asymmetric quadratic    (r − s)² times 2(1 − α) where r ≥ s, else 2α
    inverted Gaussian       1 − exp(−(r − s)² / 2γ²)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Uniform

from ...utils.checks import check_count
from ...utils.seeding import seeded
from .perception import Belief, LogNormalPerception, NormalPerception, Perception
from .roots import increasing_root

__all__ = [
    "AbsoluteCost",
    "AbsoluteEffortCost",
    "ActorCost",
    "AsymmetricQuadraticCost",
    "InvertedGaussianCost",
    "PinballCost",
    "QuadraticCost",
    "QuadraticEffortCost",
]

_TAIL = 5e-4  # probability cut off at an end of a parameter's prior that is unbounded there


class ActorCost:
    """A cost ℓ(response, state; parameters): subclass it, or use `from_function`.

    A subclass gives `__call__`, and as class attributes or in its constructor what is listed here where it differs.

    Attributes:
        parameters: Name -> distribution of a number, from which training draws.
        homogeneous: Whether ℓ(c r, c s; parameters) = c^p ℓ(r, s; parameters) for some p and all c > 0. Then a* is
            proportional to the belief's median where perception is log-normal, and nets are built so.
        shift_invariant: Whether ℓ(r + c, s + c; parameters) = ℓ(r, s; parameters) for all c. Then a* is at a constant
            distance from the belief's centre where perception is normal or circular, and nets are built so.
        action_dim: Length D of responses and states; with 1 they have shape (...), else (..., D), and costs always (...).
        name: What to call it.

    Example:
        >>> class DeadZone(ActorCost):
        ...     parameters = {"width": Uniform(0.1, 1.0)}
        ...
        ...     def __call__(self, response, state, width):
        ...         return ((response - state).abs() - width).clamp_min(0)
        >>> float(DeadZone()(torch.tensor(2.0), torch.tensor(1.0), width=0.25))
        0.75
    """

    parameters: Mapping[str, Distribution] = {}
    homogeneous: bool = False
    shift_invariant: bool = False
    action_dim: int = 1

    def __call__(self, response: Tensor, state: Tensor, **parameters: Tensor) -> Tensor:
        """Costs (...) of responses (...) where states are (...), all broadcasting."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(response, state, **parameters).")

    @property
    def name(self) -> str:
        """What to call the cost."""
        return type(self).__name__

    @property
    def training_box(self) -> dict[str, tuple[float, float]]:
        """Name -> (low, high) of each parameter: its prior's support, cut at 0.05 % of the probability where unbounded."""
        return {name: prior_range(prior) for name, prior in self.parameters.items()}

    def describe(self) -> dict[str, Any]:
        """Name, ranges of parameters, symmetry and dimension, as plain data."""
        box = {name: list(bounds) for name, bounds in self.training_box.items()}
        return {
            "name": self.name,
            "parameters": box,
            "homogeneous": bool(self.homogeneous),
            "shift_invariant": bool(self.shift_invariant),
            "action_dim": int(self.action_dim),
        }

    def closed_form(
        self, perception: Perception, belief: Belief, sigma_r: Tensor, **parameters: Tensor
    ) -> Tensor | None:
        """Optimal action (...) in closed form or by a root; None where there is none known."""
        return None

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise a TypeError unless exactly this cost's parameters are given."""
        if parameters.keys() != self.parameters.keys():
            wanted = ", ".join(self.parameters) or "none"
            raise TypeError(f"{self.name} has parameters: {wanted}; got: {', '.join(parameters) or 'none'}.")

    @staticmethod
    def from_function(
        function: Callable[..., Tensor],
        parameters: Mapping[str, Distribution] | None = None,
        homogeneous: bool = False,
        action_dim: int = 1,
        shift_invariant: bool = False,
    ) -> ActorCost:
        """A cost from a function (response, state, **parameters) -> costs.

        Raises:
            TypeError: If `function` cannot be called, or a parameter has no distribution.

        Example:
            >>> cubic = ActorCost.from_function(lambda r, s, b: b * (r - s).abs() ** 3, {"b": Uniform(1.0, 2.0)})
            >>> float(cubic(torch.tensor(3.0), torch.tensor(1.0), b=1.0))
            8.0
        """
        return _FunctionCost(function, parameters or {}, (homogeneous, shift_invariant), action_dim)


class _FunctionCost(ActorCost):
    def __init__(
        self, function: Any, parameters: Mapping[str, Distribution], symmetries: tuple[bool, bool], action_dim: int
    ):
        if not callable(function):
            raise TypeError(f"function must be a callable (response, state, **parameters) -> costs, got {function!r}.")
        for name, prior in parameters.items():
            if not isinstance(prior, Distribution):
                raise TypeError(f"the parameter {name} needs a torch distribution to be trained with, got {prior!r}.")
        self._function: Any = function
        self.parameters = dict(parameters)
        self.homogeneous, self.shift_invariant = symmetries
        self.action_dim = check_count(action_dim, "action_dim")

    def __call__(self, response: Tensor, state: Tensor, **parameters: Tensor) -> Tensor:
        return self._function(response, state, **parameters)

    @property
    def name(self) -> str:
        return str(getattr(self._function, "__name__", type(self._function).__name__))


class QuadraticCost(ActorCost):
    """(r − s)².

    Example:
        >>> cost = QuadraticCost()(torch.tensor(3.0), torch.tensor(1.0))
        >>> round(float(cost), 4)
        4.0
    """

    homogeneous = True
    shift_invariant = True

    def __call__(self, response: Tensor, state: Tensor) -> Tensor:
        """Costs (...)."""
        return (response - state).square()

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor) -> Tensor | None:
        """exp(μ_p + σ_p²/2 − 3σ_r²/2), or μ_p where perception is normal."""
        if isinstance(perception, LogNormalPerception):
            return (belief.location + 0.5 * belief.spread.square() - 1.5 * sigma_r.square()).exp()
        return belief.location + 0 * sigma_r if isinstance(perception, NormalPerception) else None


class AbsoluteCost(ActorCost):
    """|r − s|.

    Example:
        >>> cost = AbsoluteCost()(torch.tensor(3.0), torch.tensor(1.0))
        >>> round(float(cost), 4)
        2.0
    """

    homogeneous = True
    shift_invariant = True

    def __call__(self, response: Tensor, state: Tensor) -> Tensor:
        """Costs (...)."""
        return (response - state).abs()

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor) -> Tensor | None:
        """exp(μ_p − σ_r²), or μ_p where perception is normal."""
        if isinstance(perception, LogNormalPerception):
            return (belief.location - sigma_r.square()).exp()
        return belief.location + 0 * sigma_r if isinstance(perception, NormalPerception) else None


class PinballCost(ActorCost):
    """|r − s|, times 1 − α where the response is too large, α where it is too small.

    Args:
        alpha: Prior of α, within (0, 1); uniform from 0.1 to 0.9 if None.

    Example:
        >>> cost = PinballCost()(torch.tensor(3.0), torch.tensor(1.0), alpha=torch.tensor(0.8))
        >>> round(float(cost), 4)
        0.4
    """

    homogeneous = True
    shift_invariant = True

    def __init__(self, alpha: Distribution | None = None):
        self.parameters = {"alpha": alpha or Uniform(0.1, 0.9)}

    def __call__(self, response: Tensor, state: Tensor, alpha: Tensor) -> Tensor:
        """Costs (...)."""
        error = response - state
        return torch.maximum((1 - alpha) * error, -alpha * error)

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor, alpha: Tensor) -> Tensor | None:
        """exp(μ_p − σ_r² + τ Φ⁻¹(α)), τ² = σ_p² + σ_r², or μ_p + τ Φ⁻¹(α) where perception is normal."""
        quantile = belief.location + (belief.spread.square() + sigma_r.square()).sqrt() * torch.special.ndtri(alpha)
        if isinstance(perception, LogNormalPerception):
            return (quantile - sigma_r.square()).exp()
        return quantile if isinstance(perception, NormalPerception) else None


class QuadraticEffortCost(ActorCost):
    """β (r − s)² + (1 − β) r²: large responses are an effort.

    Args:
        beta: Prior of β, within (0, 1]; uniform from 0.5 to 1 if None.

    Example:
        >>> cost = QuadraticEffortCost()(torch.tensor(3.0), torch.tensor(1.0), beta=torch.tensor(0.8))
        >>> round(float(cost), 4)
        5.0
    """

    homogeneous = True

    def __init__(self, beta: Distribution | None = None):
        self.parameters = {"beta": beta or Uniform(0.5, 1.0)}

    def __call__(self, response: Tensor, state: Tensor, beta: Tensor) -> Tensor:
        """Costs (...)."""
        return beta * (response - state).square() + (1 - beta) * response.square()

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor, beta: Tensor) -> Tensor | None:
        """β times the action of the quadratic cost."""
        action = QuadraticCost().closed_form(perception, belief, sigma_r)
        return None if action is None else beta * action


class AbsoluteEffortCost(ActorCost):
    """β |r − s| + (1 − β) r².

    Args:
        beta: Prior of β, within (0, 1]; uniform from 0.5 to 1 if None.

    Example:
        >>> cost = AbsoluteEffortCost()(torch.tensor(3.0), torch.tensor(1.0), beta=torch.tensor(0.8))
        >>> round(float(cost), 4)
        3.4
    """

    def __init__(self, beta: Distribution | None = None):
        self.parameters = {"beta": beta or Uniform(0.5, 1.0)}

    def __call__(self, response: Tensor, state: Tensor, beta: Tensor) -> Tensor:
        """Costs (...)."""
        return beta * (response - state).abs() + (1 - beta) * response.square()

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor, beta: Tensor) -> Tensor | None:
        """Root of β e^{σ_r²/2} (2Φ((ln a − μ_p + σ_r²)/τ) − 1) + 2(1 − β) a e^{2σ_r²} = 0."""
        if not isinstance(perception, LogNormalPerception):
            return None
        tau, variance = (belief.spread.square() + sigma_r.square()).sqrt(), sigma_r.square()

        def slope(log_action: Tensor) -> Tensor:
            balance = torch.special.erf((log_action - belief.location + variance) / (math.sqrt(2) * tau))
            return beta * (variance / 2).exp() * balance + 2 * (1 - beta) * (log_action + 2 * variance).exp()

        with torch.no_grad():
            high = (belief.location - variance) + 0 * (tau + beta)  # the response without effort
            cheap = (0.25 * beta / (1 - beta)).clamp_max(1e300).log() - 1.5 * variance  # effort outweighed by Φ < ¼
            low = torch.minimum(high - tau, cheap)
        return increasing_root(slope, low, high).exp()


class AsymmetricQuadraticCost(ActorCost):
    """(r − s)², times 2(1 − α) where the response is too large, 2α where it is too small.

    Args:
        alpha: Prior of α, within (0, 1); uniform from 0.1 to 0.9 if None.

    Example:
        >>> cost = AsymmetricQuadraticCost()(torch.tensor(3.0), torch.tensor(1.0), alpha=torch.tensor(0.2))
        >>> round(float(cost), 4)
        6.4
    """

    homogeneous = True
    shift_invariant = True

    def __init__(self, alpha: Distribution | None = None):
        self.parameters = {"alpha": alpha or Uniform(0.1, 0.9)}

    def __call__(self, response: Tensor, state: Tensor, alpha: Tensor) -> Tensor:
        """Costs (...)."""
        error = response - state
        return 2 * torch.where(error >= 0, 1 - alpha, alpha) * error.square()

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor, alpha: Tensor) -> Tensor | None:
        """Root of (1 − α)(aM p_1 − C p_2) + α(aM(1 − p_1) − C(1 − p_2)) = 0, in units of exp(μ_p).

        M = e^{2σ_r²}, C = e^{μ_p + σ_p²/2 + σ_r²/2}, p_1 = Φ((ln a + 2σ_r² − μ_p)/τ), p_2 = Φ((ln a + σ_r² − μ_p − σ_p²)/τ).
        """
        if not isinstance(perception, LogNormalPerception):
            return None
        believed, variance = belief.spread.square(), sigma_r.square()
        tau = (believed + variance).sqrt()
        log_ratio = 0.5 * believed - 1.5 * variance  # log C/M

        def slope(offset: Tensor) -> Tensor:
            too_large = torch.special.ndtr((offset + 2 * variance) / tau)
            weighted = torch.special.ndtr((offset + variance - believed) / tau)
            action = (offset - log_ratio).exp()  # aM/C
            over = (1 - alpha) * (action * too_large - weighted)
            return over + alpha * (action * (1 - too_large) - (1 - weighted))

        with torch.no_grad():  # where aM/C is α the slope is negative, where it is 1/(1 − α) positive
            low, high = log_ratio + alpha.log(), log_ratio - (-alpha).log1p()
        return (belief.location + increasing_root(slope, low, high)).exp()


class InvertedGaussianCost(ActorCost):
    """1 − exp(−(r − s)² / 2γ²): errors beyond about γ are all alike.

    Args:
        gamma: Prior of γ, positive; log-normal with median 2.5 and standard deviation 0.5 of the logarithm if None.

    Example:
        >>> cost = InvertedGaussianCost()(torch.tensor(3.0), torch.tensor(1.0), gamma=torch.tensor(1.0))
        >>> round(float(cost), 4)
        0.8647
    """

    shift_invariant = True

    def __init__(self, gamma: Distribution | None = None):
        self.parameters = {"gamma": gamma or LogNormal(math.log(2.5), 0.5)}

    def __call__(self, response: Tensor, state: Tensor, gamma: Tensor) -> Tensor:
        """Costs (...)."""
        return -torch.expm1(-0.5 * ((response - state) / gamma).square())

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor, gamma: Tensor) -> Tensor | None:
        """μ_p where perception is normal; none is known where it is log-normal."""
        return belief.location + 0 * (sigma_r + gamma) if isinstance(perception, NormalPerception) else None


def prior_range(prior: Distribution) -> tuple[float, float]:
    """Support of a distribution of numbers; where it is unbounded, cut at 0.05 % of the probability."""
    support: Any = prior.support
    low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    bounds = [None if bound is None else float(bound) for bound in (low, high)]
    unbounded = [bound is None for bound in bounds]
    if bounds[0] == 0 and unbounded[1]:
        unbounded[0] = True  # a scale: zero itself is of no use
    if any(unbounded):
        tails = torch.tensor([_TAIL, 1 - _TAIL])
        try:
            quantiles = prior.icdf(tails)
        except NotImplementedError:
            with seeded(0):
                quantiles = prior.sample((100_000,)).quantile(tails)
        bounds = [float(q) if cut else bound for q, cut, bound in zip(quantiles, unbounded, bounds, strict=True)]
    return bounds[0], bounds[1]  # pyright: ignore[reportReturnType]
