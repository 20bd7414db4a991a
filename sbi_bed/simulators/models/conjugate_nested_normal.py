r"""The nested normal models with conjugate priors: their evidences are closed.

    x_li ~ N(θ_l, σ²),   θ_l ~ N(μ, ρ σ²),   σ² ~ InvGamma(a, b),   M0: μ = 0,   M1: μ ~ N(0, k σ²).

In units of σ² the variances of `NestedNormal` are known: c_l = ρ + 1/n_l for the mean of group l, A = Σ_l 1/c_l, and the
variance of μ is s² = 0 under M0 and k under M1. With SSW, m, n and L as there,

    S = SSW + Σ_l (x̄_l − m)² / c_l + m² A / (1 + s² A),
    log p(x) = −½ n log 2π − ½ Σ_l log n_l − ½ Σ_l log c_l − ½ log(1 + s² A)
               + a log b − log Γ(a) + log Γ(a + n/2) − (a + n/2) log(b + S/2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Gamma

from ...utils.checks import check_positive
from .nested_normal import NestedNormal, mean_terms, size_statistics

__all__ = ["ConjugateNestedNormal"]


class ConjugateNestedNormal(NestedNormal):
    """Is the mean of all groups zero? As `NestedNormal`, under priors that make the evidence a formula.

    Parameters of both models are theta (3,): μ, τ² = ρσ², σ².

    Args:
        num_groups: Number of groups, or (low, high): then drawn for each data set, padded to `high`.
        num_observations: Number of observations in every group, or (low, high): then drawn for each data set.
        missing: Share of observations that are missing, each independently, in [0, 1).
        variance_ratio: The ρ above, of variances between and within groups.
        mean_ratio: The k above, of the variances of μ and within groups.
        shape: The a of the prior of σ².
        rate: The b of the prior of σ².

    Raises:
        ValueError: If a size or a share is out of range, or a constant of the prior not positive.

    Example:
        >>> models = ConjugateNestedNormal(num_groups=5, num_observations=4)
        >>> models.log_probs(models.simulate(0, 3, seed=0)).exp().sum(-1)
        tensor([1., 1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        num_groups: int | tuple[int, int] = 50,
        num_observations: int | tuple[int, int] = 50,
        missing: float = 0.0,
        variance_ratio: float = 0.5,
        mean_ratio: float = 0.5,
        shape: float = 3.0,
        rate: float = 2.0,
    ):
        super().__init__(num_groups, num_observations, missing)
        constants = {"variance_ratio": variance_ratio, "mean_ratio": mean_ratio, "shape": shape, "rate": rate}
        for name, value in constants.items():
            check_positive(value, name)
        self.variance_ratio, self.mean_ratio, self.shape, self.rate = variance_ratio, mean_ratio, shape, rate

    def sample_parameters(self, model_index: int, num: int) -> Tensor:
        """Prior draws (num, 3) of μ, τ², σ²."""
        within = self.rate / Gamma(self.shape, 1.0).sample((num, 1))
        mean = (self.mean_ratio * within).sqrt() * torch.randn(num, 1) * model_index
        return torch.cat([mean, self.variance_ratio * within, within], -1)

    def _log_evidence(self, x: Tensor, model_index: int) -> Tensor:
        s = size_statistics(x)
        variances = [self.variance_ratio + 1 / size for size in s.size.unbind(1)]
        log_v, squares, log_ratio = mean_terms(s, variances, self.mean_ratio * model_index)
        power = self.shape + s.total / 2
        return (
            -0.5 * (s.total * math.log(2 * math.pi) + s.log_sizes + log_v + log_ratio)
            + self.shape * math.log(self.rate)
            - math.lgamma(self.shape)
            + torch.lgamma(power)
            - power * torch.log(self.rate + 0.5 * (s.within + squares))
        )
