r"""Constant elasticity of substitution (Foster et al. 2020, arXiv 1911.00294; figures in arXiv 2202.00821).

A person says on a slider how much basket x is preferred to basket x', three goods each, amounts in [0, 100]:

    U(x) = (Σ_i α_i x_i^ρ)^{1/ρ},   η ~ N(u (U(x) − U(x')), (τ u (1 + ‖x − x'‖))²),   y = clip(sigmoid(η), ε, 1 − ε),
    ρ ~ U(0.01, 1),   α ~ Dirichlet(1, 1, 1),   log u ~ N(1, 3²),   τ = 0.005,   ε = 2⁻²².

Clipping makes the likelihood censored: point masses at both ends, a logit-normal density between, all in log space. It
also makes plain pathwise gradients wrong, since the gain jumps where η crosses an end. So where the slider stops (an end,
or between) counts as discrete, and only the place between is reparameterised, as a truncated normal.

α is given by its stick-breaking fractions, α = (b_1, (1 − b_1) b_2, (1 − b_1)(1 − b_2)) with b_1 ~ Beta(1, 2) and
b_2 ~ U(0, 1): the same Dirichlet, in coordinates free of the constraint Σα = 1 that density estimators and samplers
cannot take.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, Distribution, Normal, Uniform, constraints

from ..base import DesignSimulator
from ..design_space import DesignSpace

__all__ = ["ConstantElasticity"]


class ConstantElasticity(DesignSimulator):
    """Slider comparisons of two baskets of three goods.

    Theta is (ρ, b_1, b_2, log u); a design is the two baskets side by side, (6,) in [0, 100]; an outcome is the slider's
    place in [ε, 1 − ε].

    Args:
        prior: Distribution of theta; the one above if None.

    Example:
        >>> simulator = ConstantElasticity()
        >>> simulator(simulator.prior.sample((5,)), torch.full((5, 6), 50.0)).shape
        torch.Size([5, 1])
    """

    noise, epsilon = 0.005, 2.0**-22

    def __init__(self, prior: Distribution | None = None):
        super().__init__(
            prior=_default_prior() if prior is None else prior,
            simulate=self._simulate,
            design_space=DesignSpace(
                constraints.interval(torch.zeros(6), torch.full((6,), 100.0)),
                names=tuple(f"{basket}_{good}" for basket in ("left", "right") for good in (1, 2, 3)),
            ),
            log_likelihood=self._log_density,
            reparameterized=True,
            outcome_space=constraints.unit_interval,
            log_discrete=self._log_place,
        )

    @staticmethod
    def log_weights(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logs of the goods' weights α_1, α_2, α_3, each (...), for theta (..., 4)."""
        first, second = theta[..., 1], theta[..., 2]
        rest = torch.log1p(-first)
        return first.log(), rest + second.log(), rest + torch.log1p(-second)

    def log_utility(self, theta: Tensor, basket: Tensor) -> Tensor:
        """log U, shape (...), for theta (..., 4) and basket (..., 3)."""
        rho = theta[..., 0]
        amounts = basket.clamp_min(1e-6).log().unbind(-1)
        terms = [rho * amount + weight for amount, weight in zip(amounts, self.log_weights(theta), strict=True)]
        return torch.logaddexp(torch.logaddexp(terms[0], terms[1]), terms[2]) / rho

    def slider_moments(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of the latent slider η, each (...), for theta (..., 4) and design (..., 6)."""
        left, right = design[..., :3], design[..., 3:]
        scale = theta[..., 3].exp()
        mean = scale * (self.log_utility(theta, left).exp() - self.log_utility(theta, right).exp())
        return mean, self.noise * scale * (1 + (left - right).norm(dim=-1))

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        mean, sd = self.slider_moments(theta, design)
        z = torch.randn_like(mean)
        low, high = self._standard_bounds(mean, sd)
        inside = (z > low) & (z < high)
        if mean.requires_grad:
            z = _reparameterize_truncated(z, low, high)
        ends = torch.where(z <= low, self.epsilon, 1 - self.epsilon)
        slider = torch.where(inside, torch.sigmoid(mean + sd * z), ends)
        return slider.clamp(self.epsilon, 1 - self.epsilon).unsqueeze(-1)

    def _standard_bounds(self, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
        """The slider's ends in units of its noise."""
        bound = math.log1p(-self.epsilon) - math.log(self.epsilon)
        return (-bound - mean) / sd, (bound - mean) / sd

    def _log_place(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        """Log-probability of where the slider stopped: at its low end, at its high end, or between."""
        low, high = self._standard_bounds(*self.slider_moments(theta, design))
        y = outcome.squeeze(-1)
        at_low, at_high = y <= self.epsilon, y >= 1 - self.epsilon
        between = torch.log1p(-(torch.special.ndtr(low) + torch.special.ndtr(-high)).clamp_max(1 - 1e-6))
        end = torch.where(at_low, low, torch.where(at_high, -high, 0.0))
        return torch.where(at_low | at_high, _LogNormalCDF.apply(end), between)

    def _log_density(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        mean, sd = self.slider_moments(theta, design)
        y = outcome.squeeze(-1)
        low, high = self._standard_bounds(mean, sd)
        at_low, at_high = y <= self.epsilon, y >= 1 - self.epsilon
        inside = y.clamp(self.epsilon, 1 - self.epsilon)
        z = (torch.logit(inside) - mean) / sd
        density = -0.5 * z.square() - sd.log() - 0.5 * math.log(2 * math.pi) - inside.log() - torch.log1p(-inside)
        # Only the branch that applies is given its true argument, so that an unused one cannot send NaN backwards.
        end = torch.where(at_low, low, torch.where(at_high, -high, 0.0))
        return torch.where(at_low | at_high, _LogNormalCDF.apply(end), density)


def _reparameterize_truncated(z: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """z, with the gradient of a normal truncated to (low, high): z = Φ⁻¹(Φ(low) + v (Φ(high) − Φ(low))) at fixed v."""
    below, above = low.detach(), high.detach()
    ndtr = torch.special.ndtr
    share = ((ndtr(z) - ndtr(below)) / (ndtr(above) - ndtr(below)).clamp_min(1e-12)).clamp(0, 1)
    from_low = (1 - share) * torch.exp((0.5 * (z.square() - below.square())).clamp_max(10.0))
    from_high = share * torch.exp((0.5 * (z.square() - above.square())).clamp_max(10.0))
    return z + from_low * (low - below) + from_high * (high - above)


class _LogNormalCDF(torch.autograd.Function):
    """log Φ(z), with the gradient φ(z)/Φ(z) = √(2/π) / erfcx(−z/√2).

    torch's own gradient of `log_ndtr` is wrong below z ≈ −10³ and often 0, which is where most designs of this model lie.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(z)
        return torch.special.log_ndtr(z)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        return grad_output * math.sqrt(2 / math.pi) / torch.special.erfcx(z * -math.sqrt(0.5))


def _default_prior() -> Distribution:
    from sbi.utils import MultipleIndependent

    one = torch.ones(1)
    return MultipleIndependent(
        [Uniform(0.01 * one, one), Beta(one, 2 * one), Uniform(0 * one, one), Normal(one, 3 * one)], validate_args=False
    )
