r"""The costs of the package, ℓ(r, s) of a response r when the state is s (arXiv 2409.03710):

    quadratic               (r − s)²
    absolute                |r − s|
    pinball                 |r − s| times 1 − α where r ≥ s, else α
    quadratic with effort   β (r − s)² + (1 − β) r²
    absolute with effort    β |r − s| + (1 − β) r²
    asymmetric quadratic    (r − s)² times 2(1 − α) where r ≥ s, else 2α
    inverted Gaussian       1 − exp(−(r − s)² / 2γ²)

Your own cost is a short subclass of `ActorCost`, or `ActorCost.from_function`.

Where the optimal action is a root, bisection finds it, and gradients follow from the implicit function theorem
(`zuko.utils.bisection`): first derivatives only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Uniform
from zuko.utils import bisection

from .cost import ActorCost
from .perception import Belief, LogNormalPerception, NormalPerception, Perception

__all__ = [
    "AbsoluteCost",
    "AbsoluteEffortCost",
    "AsymmetricQuadraticCost",
    "InvertedGaussianCost",
    "PinballCost",
    "QuadraticCost",
    "QuadraticEffortCost",
]

_HALVINGS = 60


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
            high = (belief.location - variance) + 0 * (tau + beta)  # the optimal action without effort
            cheap = (0.25 * beta / (1 - beta)).clamp_max(1e300).log() - 1.5 * variance  # effort outweighed by Φ < ¼
            low = torch.minimum(high - tau, cheap)
        return _root(slope, low, high, *belief, sigma_r, beta).exp()


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
        return (belief.location + _root(slope, low, high, belief.spread, sigma_r, alpha)).exp()


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
        return -torch.expm1(-0.5 * ((response - state) / gamma).square())

    def closed_form(self, perception: Perception, belief: Belief, sigma_r: Tensor, gamma: Tensor) -> Tensor | None:
        """μ_p where perception is normal; no closed form is known where it is log-normal."""
        return belief.location + 0 * (sigma_r + gamma) if isinstance(perception, NormalPerception) else None


def _root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, *parameters: Tensor) -> Tensor:
    """Where an increasing function crosses zero between `low` and `high`, differentiable in its `parameters`.

    None of the parameters may be computed from another one: its derivative would count twice.
    """
    low, high = torch.broadcast_tensors(low, high)
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    return bisection(function, torch.zeros_like(low), low, high, _HALVINGS, wanted)
