r"""Source location finding (Foster et al. 2021, arXiv 2103.02438).

K hidden sources θ_k in ℝ^dim emit signals; a sensor at ξ reads the total intensity with multiplicative noise:

    μ(θ, ξ) = b + Σ_k α / (m + ‖θ_k − ξ‖²),    log y ~ N(log μ(θ, ξ), σ²),

with α = 1, b = 0.1, m = 1e-4, σ = 0.5 and prior θ_k ~ N(0, I).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, MultivariateNormal, constraints

from ..base import DesignSimulator
from ..design_space import DesignSpace

__all__ = ["LocationFinding"]


class LocationFinding(DesignSimulator):
    """Locate `num_sources` hidden sources by reading the signal's strength at chosen points.

    Theta is (K · dim,), source after source; a design is a point (dim,); an outcome is one positive intensity (1,).

    Args:
        num_sources: Number K of sources.
        dim: Dimension of space.
        prior: Distribution of theta; N(0, I) if None. Figures depend on it: name it with them.

    Example:
        >>> simulator = LocationFinding(num_sources=2)
        >>> theta = simulator.prior.sample((5,))  # (5, 4)
        >>> simulator(theta, torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    strength, background, softening, noise_sd = 1.0, 0.1, 1e-4, 0.5

    def __init__(self, num_sources: int = 1, dim: int = 2, prior: Distribution | None = None):
        size = num_sources * dim
        self.num_sources, self.dim = num_sources, dim
        super().__init__(
            prior=MultivariateNormal(torch.zeros(size), torch.eye(size)) if prior is None else prior,
            simulate=self._simulate,
            design_space=DesignSpace(constraints.real_vector, dim=dim, names=tuple("xyz"[:dim]) if dim <= 3 else None),
            log_likelihood=self._log_density,
            reparameterized=True,
            outcome_space=constraints.positive,
        )
        if self.theta_dim != size:
            raise ValueError(
                f"{num_sources} sources in {dim} dimensions need a prior over {size}, got {self.theta_dim}."
            )

    def log_intensity(self, theta: Tensor, design: Tensor) -> Tensor:
        """Log of the noise-free intensity μ, shape (...), for theta (..., K · dim) and design (..., dim)."""
        if torch.compiler.is_compiling():  # which fuses this by itself
            return self._intensity(theta, design).log()
        constants = (self.strength, self.background, self.softening)
        return _LogIntensity.apply(theta, design, self.num_sources, constants)

    def _intensity(self, theta: Tensor, design: Tensor) -> Tensor:
        coordinates, sensor, total = theta.unbind(-1), design.unbind(-1), self.background
        for k in range(self.num_sources):
            gaps = [coordinates[k * self.dim + d] - sensor[d] for d in range(self.dim)]
            total = total + self.strength / (self.softening + sum(gap * gap for gap in gaps))
        return total  # pyright: ignore[reportReturnType]

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        mean = self.log_intensity(theta, design)
        return torch.exp(mean + self.noise_sd * torch.randn_like(mean)).unsqueeze(-1)

    def _log_density(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        log_y = outcome.squeeze(-1).log()
        residual = log_y - self.log_intensity(theta, design)
        constant = -log_y - math.log(self.noise_sd * math.sqrt(2 * math.pi))
        return torch.addcmul(constant, residual, residual, value=-0.5 / self.noise_sd**2)


class _LogIntensity(torch.autograd.Function):
    """log μ with its gradient by hand, ∂μ/∂ξ = Σ_k 2α (θ_k − ξ) / (m + ‖θ_k − ξ‖²)²: half the passes over memory."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, theta: Tensor, design: Tensor, num_sources: int, constants: tuple[float, float, float]
    ) -> Tensor:
        strength, background, softening = constants
        coordinates, sensor = theta.unbind(-1), design.unbind(-1)
        inverses, total = [], None
        for k in range(num_sources):
            gap = coordinates[k * len(sensor)] - sensor[0]
            distance = gap.square_().add_(softening)
            for d in range(1, len(sensor)):
                gap = coordinates[k * len(sensor) + d] - sensor[d]
                distance.addcmul_(gap, gap)
            inverses.append(distance.reciprocal_())
            total = inverses[0] * strength + background if total is None else total.add_(inverses[-1], alpha=strength)
        ctx.strength = strength
        ctx.save_for_backward(theta, design, total, *inverses)
        return total.log()  # pyright: ignore[reportOptionalMemberAccess]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        theta, design, total, *inverses = ctx.saved_tensors
        coordinates, sensor = theta.unbind(-1), design.unbind(-1)
        scale = grad_output / total
        of_theta, of_design = [], [torch.zeros_like(value) for value in sensor]
        for k, inverse in enumerate(inverses):
            weight = inverse.square().mul_(scale).mul_(2 * ctx.strength)
            for d, value in enumerate(sensor):
                coordinate = coordinates[k * len(sensor) + d]
                flow = (coordinate - value).mul_(weight)
                if ctx.needs_input_grad[0]:
                    of_theta.append(flow.sum_to_size(coordinate.shape).neg())
                if ctx.needs_input_grad[1]:
                    of_design[d] = of_design[d] + flow.sum_to_size(value.shape)
        return (
            torch.stack(of_theta, -1) if ctx.needs_input_grad[0] else None,
            torch.stack(of_design, -1) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )
