"""Hamiltonian Monte Carlo against densities whose moments are known."""

import pytest
import torch

from sbi_bed.utils.hmc import sample_hmc


def test_many_normal_densities():
    """Groups of different scales and correlations; errors of means and covariances within 5 standard errors."""
    torch.manual_seed(0)
    root = torch.randn(6, 3, 3, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64)[:, None]
    mean = torch.randn(6, 1, 3, dtype=torch.float64)
    precision = torch.linalg.inv(root @ root.mT)

    def log_density(x):
        return -0.5 * ((x - mean) @ precision * (x - mean)).sum(-1)

    chains = sample_hmc(log_density, torch.zeros(6, 4, 3, dtype=torch.float64), 700, 300)
    white = torch.linalg.solve(root.unsqueeze(1), (chains.draws - mean).permute(1, 2, 3, 0)).transpose(-1, -2)
    white = white.flatten(1, 2)  # (6, 2800, 3), standard normal; 1000 independent draws are a cautious count
    assert white.mean(1).abs().max() < 5 / 1000**0.5
    covariance = white.mT @ white / white.shape[1]
    assert (covariance - torch.eye(3)).abs().max() < 5 * (2 / 1000) ** 0.5
    assert ((chains.acceptance > 0.7) & (chains.acceptance < 0.99)).all() and chains.divergences.sum() == 0


def test_a_bent_ridge():
    """y given x is normal about x² / 8, 0.05 wide: variances of x and of y − x² / 8."""
    torch.manual_seed(0)

    def log_density(q):
        x, y = q.unbind(-1)
        return -0.5 * x.square() - 0.5 * ((y - x.square() / 8) / 0.05).square()

    chains = sample_hmc(log_density, torch.randn(3, 8, 2, dtype=torch.float64), 400, 200)
    x, y = chains.draws.unbind(-1)
    assert (x.square().mean((0, 2)) - 1).abs().max() < 0.15
    assert ((y - x.square() / 8).square().mean((0, 2)).sqrt() / 0.05 - 1).abs().max() < 0.1


def test_same_seed_same_draws():
    def run():
        torch.manual_seed(3)
        return sample_hmc(lambda x: -0.5 * x.square().sum(-1), torch.zeros(1, 2, 2, dtype=torch.float64), 20, 20).draws

    assert torch.equal(run(), run())


def test_errors():
    def log_density(x):
        return torch.where(x[..., 0] > 0, 0.0, -torch.inf) - x.square().sum(-1)

    with pytest.raises(ValueError, match="start must have shape"):
        sample_hmc(log_density, torch.zeros(2, 2), 10)
    with pytest.raises(ValueError, match=r"start of chain \(0, 0\) is -inf"):
        sample_hmc(log_density, -torch.ones(2, 2, 2), 10)
