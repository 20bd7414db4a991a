"""Prior draws that fill the prior evenly: fewer particles represent it as well as many independent ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal

from .seeding import seeded

__all__ = ["quasi_random_draws"]


def quasi_random_draws(prior: Any, num: int, seed: int = 0) -> Tensor:
    """`num` draws of theta, shape (num, P): scrambled Sobol points mapped through the prior's quantile function.

    Works for normal priors, for independent ones with an `icdf`, and for products of these (`Independent`, sbi's
    `MultipleIndependent` and `BoxUniform`); any other prior gives `num` independent draws. The global generator is left
    as it was.

    Args:
        prior: Distribution of theta, event shape (P,).
        num: Number of draws.
        seed: Seed of the scrambling, or of the draws.

    Example:
        >>> prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> bool(quasi_random_draws(prior, 1024).mean(0).abs().max() < 0.01)
        True
    """
    with seeded(seed), torch.no_grad():
        example = prior.sample()
        points = torch.quasirandom.SobolEngine(example.numel(), scramble=True, seed=seed).draw(num, dtype=torch.float64)
        try:
            theta = _quantile(prior, points.clamp(1e-9, 1 - 1e-9)).to(example)
        except (NotImplementedError, AttributeError, ValueError, RuntimeError):
            return prior.sample((num,))
        return theta if torch.isfinite(theta).all() else prior.sample((num,))


def _quantile(prior: Any, points: Tensor) -> Tensor:
    """Map points (num, P) of the unit cube to draws (num, P) of a prior whose sample is a vector (P,)."""
    if isinstance(prior, MultivariateNormal):
        return prior.loc.double() + torch.special.ndtri(points) @ prior.scale_tril.double().mT
    if hasattr(prior, "dists") and hasattr(prior, "dims_per_dist"):  # sbi's MultipleIndependent
        parts = points.split(prior.dims_per_dist, -1)
        return torch.cat([_quantile(part, u) for part, u in zip(prior.dists, parts, strict=True)], -1)
    if isinstance(prior, Independent):
        return _quantile(prior.base_dist, points)
    theta = prior.icdf(points)
    if theta.shape != points.shape:
        raise NotImplementedError
    return theta
