"""The exact posterior on a grid, itself against closed forms and against a finer grid."""

import math

import pytest
import torch
from models import LinearGaussian
from reference import grid_posterior, joint_density
from torch.distributions import MultivariateNormal

from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import LocationFinding, PolicySimulator
from sbi_bed.utils import pack_history


@pytest.mark.parametrize("noise_sd", [0.5, 0.002], ids=["broad", "a thousandth of the box"])
def test_linear_gaussian(noise_sd):
    model = LinearGaussian(dim=2, noise_sd=noise_sd)
    designs = torch.rand(6, 2) * 2 - 1
    outcomes = model(torch.tensor([1.0, -0.5]), designs)
    d, y = designs.double(), outcomes.double().squeeze(-1)
    covariance = torch.linalg.inv(torch.eye(2).double() + d.T @ d / noise_sd**2)
    exact = MultivariateNormal(covariance @ d.T @ y / noise_sd**2, covariance)
    evidence = MultivariateNormal(torch.zeros(6).double(), d @ d.T + noise_sd**2 * torch.eye(6).double()).log_prob(y)
    grid = grid_posterior(model, pack_history(designs, outcomes, horizon=8), (-6, 6), variation=0.05)
    sd = covariance.diagonal().sqrt()
    assert ((grid.mean - exact.mean).abs() < 0.01 * sd).all()
    torch.testing.assert_close(grid.covariance, covariance, rtol=0.01, atol=1e-12)
    assert abs(grid.log_evidence - float(evidence)) < 0.01
    draws = grid.sample(20_000, seed=1)
    torch.testing.assert_close(grid.log_prob(draws), exact.log_prob(draws.double()), rtol=0, atol=0.01)
    assert ((draws.mean(0) - exact.mean).abs() < 4 * sd / math.sqrt(20_000)).all()
    assert torch.equal(draws, grid.sample(20_000, seed=1)) and not torch.equal(draws, grid.sample(20_000))


def test_no_trials_give_the_prior():
    grid = grid_posterior(LocationFinding(), torch.zeros(3, 4), (-6, 6))
    assert abs(grid.log_evidence) < 0.01 and torch.allclose(grid.covariance, torch.eye(2).double(), atol=0.01)


def test_rings_agree_with_a_plain_fine_grid():
    simulator = LocationFinding()
    x = PolicySimulator(simulator, RandomPolicy(simulator), horizon=2)(simulator.prior.sample((4,)))
    axis = torch.linspace(-6, 6, 1501, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    for history in x:
        weight = joint_density(simulator, history)(points).softmax(0)
        mean = weight @ points
        gap = points - mean
        grid = grid_posterior(simulator, history, (-6, 6))
        torch.testing.assert_close(grid.mean, mean, rtol=0, atol=2e-3)
        torch.testing.assert_close(grid.covariance, gap.T @ (weight.unsqueeze(-1) * gap), rtol=0, atol=5e-3)
