r"""Random functions on covariates as series, f(x) = Σ_k w_k φ_k(x) with independent normal coefficients w_k.

**Cosine series** on [0, 1]^d: φ_k(x) = Π_i √2^{[k_i > 0]} cos(π k_i x_i) for the multi-indices k ∈ ℕ^d of smallest length
|k|, an orthonormal basis under uniform covariates. With sd(w_k) ∝ |k|^{−(α + d/2)} a function has just under α derivatives
in L2 (van der Vaart & van Zanten 2008); the constant has a variance of its own.

**Random features** for many covariates: 1, the standardised covariates z, and √2 cos(ω_k·z + b_k) with ω_k drawn from the
spectral density of a Matérn process of smoothness α, a t distribution with 2α degrees of freedom, b_k uniform (Rahimi &
Recht 2007).
"""

from __future__ import annotations

import heapq
import math

import torch
from torch import Tensor

from ...utils.checks import check_count, check_positive
from ...utils.seeding import seeded

__all__ = ["CosineSeries", "RandomFeatures"]

_CONSTANT = 1 / 3  # share of a function's prior variance that is in its constant


class CosineSeries:
    """Tensor products of cosines on the unit cube.

    Args:
        covariate_dim: Number d of covariates; with 0 the only function is the constant.
        num_functions: Number m of functions, the constant included.

    Attributes:
        indices: Multi-indices k, (m, d), by increasing length.

    Example:
        >>> CosineSeries(1, 3).features(torch.zeros(1))
        tensor([1.0000, 1.4142, 1.4142])
    """

    def __init__(self, covariate_dim: int, num_functions: int):
        self.covariate_dim = check_count(covariate_dim, "covariate_dim", 0)
        num_functions = check_count(num_functions, "num_functions")
        shortest = _shortest(covariate_dim, num_functions)
        self.indices = torch.tensor(shortest).reshape(len(shortest), covariate_dim)

    def __len__(self) -> int:
        return len(self.indices)

    def features(self, covariates: Tensor) -> Tensor:
        """φ(x), shape (..., m), for x (..., d)."""
        indices = self.indices.to(covariates)
        cosines = torch.cos(math.pi * covariates.unsqueeze(-2) * indices)
        return (cosines * torch.where(indices > 0, math.sqrt(2.0), 1.0)).prod(-1)

    def sd(self, smoothness: float, scale: float) -> Tensor:
        """Prior sd of the coefficients, (m,), float64; `scale` is the sd of f(x), a third of its variance constant."""
        length = self.indices.double().norm(dim=-1)[1:]
        decay = length ** -(check_positive(smoothness, "smoothness") + self.covariate_dim / 2)
        return _share_out(decay, scale)


class RandomFeatures:
    """Linear functions and random cosines of covariates that are uniform on, or roughly spread over, [0, 1]^d.

    Args:
        covariate_dim: Number d of covariates, at least 1.
        num_functions: Number m of functions, the constant and the d linear ones included.
        smoothness: α of the random part.
        seed: Seed of frequencies and phases.

    Raises:
        ValueError: If there are too few functions for the linear ones, or the smoothness is not positive.
    """

    def __init__(self, covariate_dim: int, num_functions: int, smoothness: float, *, seed: int = 0):
        self.covariate_dim = check_count(covariate_dim, "covariate_dim")
        num_random = check_count(num_functions, "num_functions", covariate_dim + 2) - covariate_dim - 1
        freedom = 2 * check_positive(smoothness, "smoothness")
        with seeded(seed):
            normal = torch.randn(num_random, covariate_dim, dtype=torch.float64)
            spread = torch.distributions.Chi2(torch.tensor(freedom, dtype=torch.float64)).sample((num_random, 1))
            self.phase = 2 * math.pi * torch.rand(num_random, dtype=torch.float64)
        # A length scale of √d keeps ω·z of order one whatever the dimension.
        self.frequencies = normal * (freedom / spread).sqrt() / math.sqrt(covariate_dim)

    def __len__(self) -> int:
        return 1 + self.covariate_dim + len(self.phase)

    def features(self, covariates: Tensor) -> Tensor:
        """φ(x), shape (..., m), for x (..., d)."""
        z = (covariates - 0.5) * math.sqrt(12.0)
        waves = math.sqrt(2.0) * torch.cos(z @ self.frequencies.to(z).mT + self.phase.to(z))
        return torch.cat([torch.ones_like(z[..., :1]), z, waves], -1)

    def sd(self, smoothness: float, scale: float) -> Tensor:
        """Prior sd of the coefficients, (m,): linear and random parts share the variance that the constant leaves."""
        linear, waves = torch.ones(self.covariate_dim), torch.ones(len(self.phase))
        parts = [linear / math.sqrt(len(linear)), waves / math.sqrt(len(waves))]
        return _share_out(torch.cat(parts).double(), scale)


def _share_out(decay: Tensor, scale: float) -> Tensor:
    """Standard deviations of the constant and of the rest, whose squares sum to scale²."""
    if len(decay) == 0:
        return torch.full((1,), float(scale), dtype=torch.float64)
    rest = decay / decay.norm() * math.sqrt(1 - _CONSTANT)
    return scale * torch.cat([torch.full((1,), math.sqrt(_CONSTANT), dtype=torch.float64), rest])


def _shortest(dim: int, num: int) -> list[tuple[int, ...]]:
    """The `num` multi-indices of smallest length, ties in lexical order; only (,) in no dimension."""
    heap, seen, found = [(0, (0,) * dim)], {(0,) * dim}, []
    while heap and len(found) < num:
        _, index = heapq.heappop(heap)
        found.append(index)
        for i in range(dim):
            larger = (*index[:i], index[i] + 1, *index[i + 1 :])
            if larger not in seen:
                seen.add(larger)
                heapq.heappush(heap, (sum(k * k for k in larger), larger))
    return found
