r"""Hamiltonian Monte Carlo for many densities of few dimensions side by side (Duane et al. 1987; Neal 2011).

Group g has a log density of its own and C chains on it. Chains move in coordinates q of their group, x = F_g(q), with
momenta p ~ N(0, I); a trajectory of S leapfrog steps of size ε,

    p ← p + ε/2 ∇_q log π(F(q)),    q ← q + ε p,    p ← p + ε/2 ∇_q log π(F(q)),

is accepted with probability min(1, e^{−ΔH}). S is drawn anew for each trajectory and is common to all, so that all chains
of all groups move in the same few tensor operations: trees of steps would have to wait for each other.

F straightens ridges, which are what makes posteriors of few parameters hard. With V the principal axes of draws so far, t
the coordinate along the longest (over its sd), and φ(t) = (1, t, t², t³) of a t that saturates at ±5,

    F(q) = mean + V [B φ(q_P) + L (q_1, …, q_{P−1}),  s q_P],

B by regression, L Lᵀ the covariance of what it leaves. The Jacobian of F is constant. During warm-up

- F is fitted, at the end of each of four windows, to all draws of the window of all chains of the group;
- each chain's ε follows its acceptance by dual averaging (Hoffman & Gelman 2014, arXiv 1111.4246): were it the group's, one
  chain that is stuck would not be heard among others that move. In the end it is the median over the group's chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_count

__all__ = ["HMCChains", "sample_hmc"]

_SHRINK = 5.0  # draws by which covariances are drawn to their diagonal and bends to none
_WINDOWS = (0.1, 0.25, 0.5, 0.8)  # shares of the warm-up at which the covariance is measured
_DIVERGENT = 100.0  # an energy error that a stable step never makes


class HMCChains(NamedTuple):
    """Draws and how they were made.

    Attributes:
        draws: Positions (num_samples, G, C, P).
        acceptance: Mean probability of acceptance after the warm-up, (G,).
        divergences: Trajectories after the warm-up that left the density altogether, (G,).
    """

    draws: Tensor
    acceptance: Tensor
    divergences: Tensor


@torch.no_grad()
def sample_hmc(
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    num_samples: int,
    num_warmup: int = 400,
    *,
    max_leapfrog: int = 10,
    target_acceptance: float = 0.85,
) -> HMCChains:
    """Draw from the densities of all groups; random numbers come from torch's global generator.

    Args:
        log_density: Callable (G, C, P) -> (G, C), differentiable; NaN is taken for −inf.
        start: Where chains start, (G, C, P), best float64 and with finite densities.
        num_samples: Draws kept of each chain.
        num_warmup: Trajectories before, which adapt and are thrown away.
        max_leapfrog: Most steps of a trajectory; their number is uniform from 1 to this.
        target_acceptance: Mean acceptance that step sizes aim at.

    Raises:
        ValueError: If the start has another shape, or a chain starts where the density is zero or not a number.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> sd = torch.tensor([[[1.0, 0.01]], [[5.0, 1.0]]], dtype=torch.float64)  # two groups
        >>> chains = sample_hmc(lambda x: -0.5 * (x / sd).square().sum(-1), torch.zeros(2, 4, 2).double(), 1000)
        >>> bool(((chains.draws.std((0, 2)) / sd.squeeze(1) - 1).abs() < 0.1).all())
        True
    """
    num_samples, num_warmup = check_count(num_samples, "num_samples"), check_count(num_warmup, "num_warmup", 20)
    max_leapfrog = check_count(max_leapfrog, "max_leapfrog")
    if start.ndim != 3:
        raise ValueError(f"start must have shape (groups, chains, parameters), got {tuple(start.shape)}.")
    chains = _Chains(log_density, start)
    step = _StepSize(chains.value, target_acceptance)
    ends = [max(2, round(share * num_warmup)) for share in _WINDOWS]
    window: list[Tensor] = []
    for done in range(1, num_warmup + 1):
        acceptance, _ = chains.move(step.current, _num_steps(max_leapfrog))
        step.update(acceptance)
        window.append(chains.position)
        if done in ends:
            chains.adapt(torch.stack(window, 1).flatten(1, 2))
            window = []
            step.restart()
    draws, accepted, divergences = [], torch.zeros_like(step.final), torch.zeros_like(step.final)
    for _ in range(num_samples):
        acceptance, divergent = chains.move(step.final, _num_steps(max_leapfrog))
        accepted, divergences = accepted + acceptance / num_samples, divergences + divergent
        draws.append(chains.position)
    return HMCChains(torch.stack(draws), accepted.mean(-1), divergences.sum(-1).long())


def _num_steps(most: int) -> int:
    return int(torch.randint(1, most + 1, ()))


class _Chains:
    """Positions (G, C, P) with their densities and gradients in the straightened coordinates q of each group."""

    def __init__(self, log_density: Callable[[Tensor], Tensor], start: Tensor):
        self._log_density = log_density
        self.position = start.detach().clone()
        self._map = _Straightening.identity(start)
        self._enter()
        if not torch.isfinite(self.value).all():
            index = tuple((~torch.isfinite(self.value)).nonzero()[0].tolist())
            raise ValueError(f"the log density at the start of chain {index} is {self.value[index].item()}.")

    def _enter(self) -> None:
        self.inner = self._map.inverse(self.position)
        self.position, self.value, self.gradient = self._evaluate(self.inner)

    def _evaluate(self, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            inner = inner.detach().requires_grad_()
            position = self._map.forward(inner)
            value = self._log_density(position)
            (gradient,) = torch.autograd.grad(value.sum(), inner)
        return (
            position.detach(),
            value.detach().nan_to_num(nan=-torch.inf, neginf=-torch.inf),
            gradient.nan_to_num(0.0, 0.0, 0.0),
        )

    def move(self, step: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """One trajectory of every chain with steps (G, C); probability of acceptance and divergence, (G, C) each."""
        size = step.unsqueeze(-1)
        momentum = torch.randn_like(self.inner)
        energy = 0.5 * momentum.square().sum(-1) - self.value
        inner, gradient = self.inner, self.gradient
        for _ in range(num_steps):
            momentum = momentum + 0.5 * size * gradient
            inner = inner + size * momentum
            position, value, gradient = self._evaluate(inner)
            momentum = momentum + 0.5 * size * gradient
        error = (0.5 * momentum.square().sum(-1) - value - energy).nan_to_num(nan=torch.inf, posinf=torch.inf)  # pyright: ignore
        acceptance = torch.exp(-error.clamp_min(0.0))
        accept = torch.rand_like(acceptance) < acceptance
        self.value = torch.where(accept, value, self.value)  # pyright: ignore[reportPossiblyUnboundVariable]
        accept = accept.unsqueeze(-1)
        self.inner = torch.where(accept, inner, self.inner)
        self.position = torch.where(accept, position, self.position)  # pyright: ignore[reportPossiblyUnboundVariable]
        self.gradient = torch.where(accept, gradient, self.gradient)
        return acceptance, (error > _DIVERGENT).to(acceptance)

    def adapt(self, draws: Tensor) -> None:
        """Straighten anew, from draws (G, N, P)."""
        self._map = _Straightening.of(draws)
        self._enter()


class _Straightening(NamedTuple):
    """x = mean + V [B φ(t) + L q', s t] for q = (q', t); its Jacobian is constant.

    Attributes:
        mean: (G, 1, P).
        axes: V, (G, P, P), the longest axis last.
        bend: B, (G, 4, P − 1).
        scale: L, (G, P − 1, P − 1).
        length: s, (G, 1).
    """

    mean: Tensor
    axes: Tensor
    bend: Tensor
    scale: Tensor
    length: Tensor

    @classmethod
    def identity(cls, like: Tensor) -> _Straightening:
        num, dim = len(like), like.shape[-1]
        eye = torch.eye(dim).to(like).expand(num, dim, dim)
        return cls(
            like.new_zeros(num, 1, dim), eye, like.new_zeros(num, 4, dim - 1), eye[:, 1:, 1:], like.new_ones(num, 1)
        )

    @classmethod
    def of(cls, draws: Tensor) -> _Straightening:
        num, dim = draws.shape[1:]
        mean = draws.mean(1, keepdim=True)
        deviation = draws - mean
        eigenvalues, axes = torch.linalg.eigh(deviation.mT @ deviation / num)
        length = eigenvalues[:, -1:].clamp_min(1e-18).sqrt()
        across, along = (deviation @ axes).split([dim - 1, 1], -1)
        basis = _basis(along.squeeze(-1) / length)
        gram = basis.mT @ basis + _SHRINK * torch.eye(4).to(draws)
        bend = torch.linalg.solve(gram, basis.mT @ across)
        rest = across - basis @ bend
        covariance = rest.mT @ rest / num
        diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-16))
        scale = torch.linalg.cholesky((num * covariance + _SHRINK * diagonal) / (num + _SHRINK) + 1e-6 * diagonal)
        return cls(mean, axes, bend, scale, length)

    def forward(self, inner: Tensor) -> Tensor:
        across, along = inner[..., :-1], inner[..., -1:]
        across = across @ self.scale.mT + _basis(along.squeeze(-1)) @ self.bend
        return self.mean + torch.cat([across, along * self.length.unsqueeze(-1)], -1) @ self.axes.mT

    def inverse(self, position: Tensor) -> Tensor:
        rotated = (position - self.mean) @ self.axes
        along = rotated[..., -1:] / self.length.unsqueeze(-1)
        across = rotated[..., :-1] - _basis(along.squeeze(-1)) @ self.bend
        across = torch.linalg.solve_triangular(self.scale, across.mT, upper=False).mT
        return torch.cat([across, along], -1)


def _basis(along: Tensor) -> Tensor:
    """Polynomials (..., 4) of degree 0 to 3 of a coordinate (...) that saturates at ±5, beyond which no draw speaks."""
    t = 5 * torch.tanh(along / 5)
    return torch.stack([torch.ones_like(t), t, t.square(), t**3], -1)


class _StepSize:
    """Dual averaging of log ε towards a mean acceptance, each chain by itself."""

    def __init__(self, like: Tensor, target: float):
        self._target = target
        self._centre = torch.full_like(like, math.log(0.1))
        self._clear()

    def _clear(self) -> None:
        self._excess, self._count = torch.zeros_like(self._centre), 0
        self._log, self._mean_log = self._centre.clone(), self._centre.clone()

    def restart(self) -> None:
        """Begin at a step of 1, which is about right in new coordinates."""
        self._centre = torch.zeros_like(self._centre)
        self._clear()

    @property
    def current(self) -> Tensor:
        return self._log.exp()

    @property
    def final(self) -> Tensor:
        """The median of each group's chains, since one chain's own is noisy."""
        return self._mean_log.median(-1, keepdim=True).values.exp().expand_as(self._log)

    def update(self, acceptance: Tensor) -> None:
        """Hoffman & Gelman's constants: γ = 0.05, t_0 = 10, κ = 0.75."""
        self._count += 1
        share = 1 / (self._count + 10)
        self._excess = (1 - share) * self._excess + share * (self._target - acceptance)
        self._log = self._centre - math.sqrt(self._count) / 0.05 * self._excess
        weight = self._count**-0.75
        self._mean_log = weight * self._log + (1 - weight) * self._mean_log
