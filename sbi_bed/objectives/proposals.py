r"""Contrastive samples near the truth, for gains larger than the logarithm of their number.

If the gain is much larger than log L nats, no prior draw comes near θ_0, and sPCE is log(L + 1) for every policy. Here
half the contrastive samples are drawn near θ_0, at all scales, and weighted by importance:

    θ_l ~ q(θ | θ_0) = ½ p(θ) + ½ 1/J Σ_j N(θ; θ_0, (s_j σ)²),     p̂(h) = 1/L Σ_l p(θ_l) / q(θ_l | θ_0) · p(h | θ_l),

with σ the prior's standard deviations, in unconstrained coordinates. p̂ is unbiased for p(h) given any θ_0, so
E[log p(h | θ_0) − log p̂(h)] is an upper bound on the gain: a variational nested Monte Carlo bound (Foster et al. 2019,
arXiv 1903.05480). Its proposal may depend on θ_0, since θ_0 is not among its samples. The half from the prior keeps the
weights below 2. This bound is for training; `expected_information_gain` evaluates a policy.

Where some parameters z_0 are held fixed, the others η are drawn in the same way, with a wide normal density, of 1.5
prior standard deviations, in place of the prior. Their weights p(z_0, η) / q(η | η_0) need the joint density alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..simulators.base import prior_log_prob
from ..utils.seeding import seeded
from ..utils.transforms import to_unconstrained

__all__ = ["ConditionalProposal", "LocalProposal"]

_WIDE = 1.5  # prior standard deviations


class LocalProposal:
    """Draws contrastive samples, half from the prior and half near θ_0, with their importance weights.

    Args:
        prior: Distribution of theta, event shape (P,).
        smallest_scale: Smallest s_j, in prior standard deviations; the largest is 1.
        num_scales: Number J of scales, in geometric steps.

    Attributes:
        scales: The scales s_j, (J,), increasing.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> proposal = LocalProposal(LocationFinding().prior)
        >>> contrastive, log_weights = proposal.sample(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), 1000)
        >>> contrastive.shape
        torch.Size([1000, 2, 2])
        >>> bool((log_weights < math.log(2) + 1e-4).all())
        True
    """

    def __init__(self, prior: Distribution, smallest_scale: float = 0.01, num_scales: int = 8):
        if not 0 < smallest_scale <= 1:
            raise ValueError(f"smallest_scale must lie in (0, 1], got {smallest_scale}.")
        self.prior = prior
        self._transform = to_unconstrained(prior)
        with seeded(0):
            self._sd = self._transform(prior.sample((2000,))).std(0)
        self.scales = torch.logspace(math.log10(smallest_scale), 0.0, num_scales)

    def sample(self, theta: Tensor, num_contrastive: int) -> tuple[Tensor, Tensor]:
        """Contrastive samples (L, B, P) for theta_0 (B, P), and log p(θ_l) / q(θ_l | θ_0), (L, B).

        The prior draws and the steps away from θ_0 are shared by the batch.
        """
        dim, num_local = len(self._sd), num_contrastive // 2  # fewer than parameters on a simplex
        center, sd, scales = self._transform(theta) / self._sd.to(theta), self._sd.to(theta), self.scales.to(theta)
        wide = self.prior.sample((num_contrastive - num_local,)).to(theta)
        steps = scales[torch.arange(num_local, device=theta.device) % len(scales), None] * torch.randn(
            num_local, dim, device=theta.device, dtype=theta.dtype
        )
        near = self._transform.inv((center + steps.unsqueeze(1)) * sd)  # (L / 2, B, P)
        distance = (self._transform(wide) / sd).unsqueeze(1) - center
        log_near = torch.cat([self._log_kernel(distance), self._log_kernel(steps).unsqueeze(1).expand(-1, len(theta))])
        log_wide = torch.cat([self._log_prior(wide).unsqueeze(1).expand(-1, len(theta)), self._log_prior(near)])
        share = num_local / num_contrastive
        log_proposal = torch.logaddexp(log_wide + math.log1p(-share), log_near + math.log(share or 1e-30))
        contrastive = torch.cat([wide.unsqueeze(1).expand(-1, len(theta), -1), near])
        return contrastive, (log_wide - log_proposal).nan_to_num(nan=-torch.inf)

    def _log_prior(self, theta: Tensor) -> Tensor:
        """Log prior density (...) in unconstrained coordinates over standard deviations."""
        free = self._transform(theta)
        volume = self._transform.log_abs_det_jacobian(theta, free)
        if volume.ndim == theta.ndim:
            volume = volume.sum(-1)
        return prior_log_prob(self.prior, theta) - volume + self._sd.log().sum().to(theta)

    def _log_kernel(self, step: Tensor) -> Tensor:
        """Log of the mixture of normal densities (...) of a step (..., P)."""
        scales, dim = self.scales.to(step), step.shape[-1]
        squared = step.square().sum(-1, keepdim=True)
        each = -0.5 * squared / scales.square() - dim * (scales.log() + 0.5 * math.log(2 * math.pi))
        return each.logsumexp(-1) - math.log(len(scales))


class ConditionalProposal(LocalProposal):
    """Draws a nuisance η given the other parameters z_0, with importance weights for p(z_0, η).

    Args:
        prior: Distribution of theta, event shape (P,).
        kept: Indices of z in theta.

    Raises:
        ValueError: If a kept parameter has no unconstrained coordinate of its own, as one probability of a simplex.
    """

    def __init__(self, prior: Distribution, kept: list[int]):
        super().__init__(prior)
        with seeded(0):
            theta = prior.sample((2000,))
        free = self._transform(theta)
        self._mean, self._kept = free.mean(0), kept
        if free.shape[-1] == theta.shape[-1]:
            self._nuisance = [i for i in range(theta.shape[-1]) if i not in kept]
            others = free.clone()
            others[:, self._nuisance] = free.roll(1, 0)[:, self._nuisance]
            moved = (self._transform.inv(others) - theta)[:, kept].abs() > 1e-3 * theta[:, kept].std(0)
        if free.shape[-1] != theta.shape[-1] or bool(moved.any()):
            raise ValueError(
                "of= needs parameters with coordinates of their own, not such as probabilities that sum to 1: use "
                "PosteriorBound(simulator, horizon, of=...)."
            )

    def sample(self, theta: Tensor, num_contrastive: int, near: bool = True) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        """Draws (M, B, P) for theta_0 (B, P), logs of their weights (M, B), and that of theta_0 itself, (B,).

        Args:
            theta: Parameters theta_0, of which z_0 stays.
            num_contrastive: Number M of draws.
            near: Whether half of them lie near η_0.
        """
        num_near = num_contrastive // 2 if near else 0
        sd, mean = (part.to(theta)[self._nuisance] for part in (self._sd, self._mean))
        scales, free = self.scales.to(theta), self._transform(theta)
        center, wide_center = free[:, self._nuisance] / sd, mean / sd
        steps = torch.randn(num_contrastive, len(sd), device=theta.device, dtype=theta.dtype)
        steps[:num_near] *= scales[torch.arange(num_near, device=theta.device) % len(scales), None]
        nuisance = steps.unsqueeze(1) + center
        nuisance[num_near:] = (_WIDE * steps[num_near:] + wide_center).unsqueeze(1)

        def log_proposal(nuisance: Tensor) -> Tensor:
            standard = (nuisance - wide_center) / _WIDE
            log_wide = -0.5 * standard.square().sum(-1) - len(sd) * math.log(_WIDE * math.sqrt(2 * math.pi))
            if not near:
                return log_wide
            share = num_near / num_contrastive
            log_near = self._log_kernel(nuisance - center)
            return torch.logaddexp(log_wide + math.log1p(-share), log_near + math.log(share or 1e-30))

        everything = free.expand(num_contrastive, -1, -1).clone()
        everything[..., self._nuisance] = nuisance * sd
        draws = self._transform.inv(everything)
        draws[..., self._kept] = theta[:, self._kept]  # exactly
        log_weights = self._log_prior(draws) - log_proposal(nuisance)
        own = self._log_prior(theta) - log_proposal(center)
        return draws, log_weights.nan_to_num(nan=-torch.inf), own
