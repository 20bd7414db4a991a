r"""A proposal for importance sampling, adapted to particles but safe where they are wrong (Hesterberg 1995).

    q(θ) = (1 − λ) Σ_k w_k t_ν(u; m_k, S_k) |du/dθ| + λ p(θ),   u = transform(θ).

The particles are cut into K cells by k-means; each cell gives a multivariate Student-t with its mean, its covariance
(shrunk to the mean covariance of all cells) and its share of the particles, so that rings and several modes are
followed. The share λ of the prior bounds every importance weight by max_θ p(h | θ) / λ.

Discrete parameters d are drawn with their cell k, from the shares of its particles (shrunk to those of all cells): a factor
π_k(d) beside the density of the others. Values that no particle has are left to the prior.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Chi2, Distribution

from ...simulators.base import prior_log_prob
from ...utils.smc import ParticleBelief
from ...utils.student_t import log_student_t

__all__ = ["DefensiveProposal"]


class DefensiveProposal:
    """Mixture of Student-t around particles and a share of the prior; `sample` and `log_prob` as sbi's proposals.

    Args:
        belief: Particles theta (N, P) to adapt to.
        prior: Distribution of theta.
        transform: Bijection from theta to unconstrained coordinates.
        num_components: Number K of cells; one for each hundred particles, at most 40, if None.
        degrees_of_freedom: ν of the Student-t.
        prior_share: λ.
    """

    def __init__(
        self,
        belief: ParticleBelief,
        prior: Distribution,
        transform: Any,
        num_components: int | None = None,
        degrees_of_freedom: float = 5.0,
        prior_share: float = 0.1,
    ):
        self.prior, self.transform, self.prior_share, self._df = (prior, transform, prior_share, degrees_of_freedom)
        free = transform(belief.resample().theta)
        num_components = max(1, min(40, len(free) // 100)) if num_components is None else num_components
        discrete = getattr(transform, "discrete", torch.zeros(free.shape[-1], dtype=torch.bool))
        if not all(part.whole for part in getattr(transform, "discrete_parts", ())):
            self.prior_share = 1.0  # a density of its own for each model, which no mixture over all of theta has
        self._discrete = discrete.to(free.device)
        cell = _cells(free, num_components)
        self._weights = torch.bincount(cell, minlength=num_components).to(free)
        self._weights = self._weights[self._weights > 0] / len(free)
        cell = cell.unique(return_inverse=True)[1]  # without those that are empty
        self._means, covariances = _moments(free[:, ~self._discrete], cell)
        self._factors = torch.linalg.cholesky(covariances)
        if self._discrete.any():
            self._values, index = free[:, self._discrete].unique(dim=0, return_inverse=True)
            self._shares = _shares(index, cell, len(self._values)).to(free)

    def sample(self, sample_shape: tuple[int, ...] = (1,)) -> Tensor:
        """Draws of theta, shape (*sample_shape, P)."""
        num = math.prod(sample_shape)
        cell = torch.multinomial(self._weights, num, replacement=True)
        noise = torch.randn(num, self._means.shape[-1]).to(self._means)
        chi2 = Chi2(torch.tensor(self._df)).sample((num, 1)).to(noise)
        steps = (self._factors[cell] @ (noise * (self._df / chi2).sqrt()).unsqueeze(-1)).squeeze(-1)
        free = self._means.new_empty(num, len(self._discrete))
        free[:, ~self._discrete] = self._means[cell] + steps
        if self._discrete.any():
            free[:, self._discrete] = self._values[torch.multinomial(self._shares[cell], 1).squeeze(-1)]
        theta = self.transform.inv(free)
        from_prior = torch.rand(num, 1, device=theta.device) < self.prior_share
        return torch.where(from_prior, self.prior.sample((num,)), theta).reshape(*sample_shape, -1)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density (N,) of theta (N, P)."""
        if len(theta) > 20_000:
            return torch.cat([self.log_prob(chunk) for chunk in theta.split(20_000)])
        free = self.transform(theta)
        inverse = torch.linalg.inv(self._factors)
        centred = free[:, ~self._discrete].unsqueeze(-2) - self._means
        distance = torch.einsum("kij,nkj->nki", inverse, centred).square().sum(-1)
        log_kernel = self._weights.log() + log_student_t(distance, self._factors, self._df)
        if self._discrete.any():
            log_kernel = log_kernel + self._log_share(free[:, self._discrete])
        adapted = log_kernel.logsumexp(-1) + self.transform.log_abs_det_jacobian(theta, free)
        adapted = adapted.masked_fill(adapted.isnan(), -torch.inf)  # on the edge of the support, where u is infinite
        log_prior = prior_log_prob(self.prior, theta)
        if self.prior_share == 1:
            return log_prior
        return torch.logaddexp(adapted + math.log1p(-self.prior_share), log_prior + math.log(self.prior_share))

    def _log_share(self, values: Tensor) -> Tensor:
        """log π_k(d), shape (N, K), of values d (N, p) of the discrete parameters; −inf for those no particle has."""
        _, index = torch.cat([self._values, values]).unique(dim=0, return_inverse=True)
        known = torch.full((int(index.max()) + 1,), -1, device=values.device)
        known[index[: len(self._values)]] = torch.arange(len(self._values), device=values.device)
        found = known[index[len(self._values) :]]
        return torch.where((found >= 0).unsqueeze(-1), self._shares.T[found].log(), -torch.inf)


def _cells(points: Tensor, num_cells: int, num_iterations: int = 10) -> Tensor:
    """Cell (N,) of each point (N, F) by k-means."""
    scale = points.std(0).clamp_min(1e-12)
    centers = points[torch.randperm(len(points))[:num_cells]]
    cell = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for _ in range(num_iterations):
        cell = torch.cdist(points / scale, centers / scale).argmin(-1)
        member = torch.nn.functional.one_hot(cell, num_cells).to(points)
        count = member.sum(0)
        centers = torch.where(count.unsqueeze(-1) > 0, (member.T @ points) / count.clamp_min(1).unsqueeze(-1), centers)
    return cell


def _moments(points: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Means (K, F) and covariances (K, F, F) of points (N, F) in each of K cells, none of which is empty."""
    dim = points.shape[-1]
    scale = points.std(0).clamp_min(1e-12) if dim else points.new_zeros(0)
    member = torch.nn.functional.one_hot(cell).to(points)
    count = member.sum(0)
    means = (member.T @ points) / count.unsqueeze(-1)
    deviation = points - means[cell]
    scatter = torch.einsum("nk,ni,nj->kij", member, deviation, deviation)
    pooled = scatter.sum(0) / len(points) + torch.diag(1e-6 * scale.square())
    return means, (scatter + (dim + 2) * pooled) / (count + dim + 2)[:, None, None]


def _shares(value: Tensor, cell: Tensor, num_values: int) -> Tensor:
    """Share (K, V) of each value in each of K cells, shrunk to that of all cells."""
    counts = torch.zeros(int(cell.max()) + 1, num_values, device=value.device)
    counts.index_put_((cell, value), torch.ones(len(value), device=value.device), accumulate=True)
    overall = counts.sum(0) / len(value)
    return (counts + 2 * overall) / (counts.sum(-1, keepdim=True) + 2)
