"""Source location: the formulas, against independent ones."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import MultivariateNormal, Uniform

from sbi_bed.simulators import LocationFinding


def intensity(theta: np.ndarray, design: np.ndarray, num_sources: int) -> float:
    """b + Σ_k α / (m + ‖θ_k − ξ‖²), straight from the paper."""
    return 0.1 + sum(1.0 / (1e-4 + np.sum((source - design) ** 2)) for source in theta.reshape(num_sources, -1))


@pytest.mark.parametrize(("num_sources", "dim"), [(1, 2), (2, 2), (3, 1), (1, 3)])
def test_likelihood_is_a_lognormal_around_the_intensity(num_sources, dim):
    simulator = LocationFinding(num_sources, dim)
    theta, design = torch.randn(20, num_sources * dim).double(), torch.randn(20, dim).double()
    outcome = simulator(theta, design)
    expected = [
        stats.lognorm(s=0.5, scale=intensity(t, d, num_sources)).logpdf(y[0])
        for t, d, y in zip(theta.numpy(), design.numpy(), outcome.numpy(), strict=True)
    ]
    torch.testing.assert_close(
        simulator.log_likelihood(theta, design, outcome), torch.tensor(expected), rtol=1e-10, atol=1e-10
    )


def test_likelihood_integrates_to_one():
    simulator = LocationFinding(num_sources=2)
    theta, design = (
        torch.tensor([0.3, -1.0, 1.2, 0.4], dtype=torch.float64),
        torch.tensor([0.1, 0.2], dtype=torch.float64),
    )
    total, _ = integrate.quad(
        lambda y: math.exp(simulator.log_likelihood(theta, design, torch.tensor([y], dtype=torch.float64))),
        0,
        np.inf,
        epsabs=1e-11,
        limit=200,
    )
    assert total == pytest.approx(1.0, abs=1e-8)


def test_outcomes_have_the_mean_and_sd_of_the_model():
    simulator, n = LocationFinding(num_sources=2), 40_000
    theta, design = torch.tensor([0.3, -1.0, 1.2, 0.4]), torch.tensor([0.1, 0.2])
    log_y = simulator(theta.expand(n, 4), design).log().double()
    mean = math.log(intensity(theta.numpy(), design.numpy(), 2))
    assert abs(float(log_y.mean()) - mean) < 4 * 0.5 / math.sqrt(n)
    assert abs(float(log_y.std()) - 0.5) < 4 * 0.5 / math.sqrt(2 * n)
    assert stats.kstest(((log_y - mean) / 0.5).numpy(), "norm").pvalue > 1e-3


def test_at_the_source_the_softening_keeps_all_finite():
    simulator = LocationFinding()
    theta, design = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert float(simulator.log_intensity(theta, design.detach())) == pytest.approx(math.log(0.1 + 1e4), rel=1e-6)
    value = simulator.log_likelihood(theta, design, torch.tensor([3.0]))
    assert torch.isfinite(torch.autograd.grad(value, design)[0]).all()


def test_leading_dimensions_broadcast():
    simulator = LocationFinding(num_sources=2)
    theta, design, outcome = torch.randn(5, 1, 4), torch.randn(3, 2), torch.rand(7, 1, 1, 1) + 0.1
    value = simulator.log_likelihood(theta, design, outcome)
    assert value.shape == (7, 5, 3)
    for i, j, k in [(0, 0, 0), (6, 4, 2), (3, 1, 2)]:
        torch.testing.assert_close(value[i, j, k], simulator.log_likelihood(theta[j, 0], design[k], outcome[i, 0, 0]))
    assert simulator(theta, design).shape == (5, 3, 1)
    # Noise is drawn for each place, not shared over broadcast ones.
    assert simulator(torch.zeros(100, 4), torch.ones(2)).unique().numel() > 95


def test_outcomes_are_reparameterized_in_design():
    simulator = LocationFinding()
    theta, design = (
        torch.tensor([0.5, -0.2], dtype=torch.float64),
        torch.tensor([0.1, 0.3], dtype=torch.float64).requires_grad_(),
    )
    torch.manual_seed(1)
    outcome = simulator(theta, design)
    (gradient,) = torch.autograd.grad(outcome.log().sum(), design)
    (expected,) = torch.autograd.grad(simulator.log_intensity(theta, design), design)
    assert simulator.reparameterized
    torch.testing.assert_close(gradient, expected)


def test_priors():
    assert isinstance(LocationFinding(2).prior, MultivariateNormal)
    assert LocationFinding(2).prior.sample((3,)).shape == (3, 4)
    box = torch.distributions.Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    assert LocationFinding(prior=box).prior is box
    with pytest.raises(ValueError, match="2 sources in 2 dimensions need a prior over 4, got 2"):
        LocationFinding(2, prior=box)


@pytest.mark.parametrize(("num_sources", "dim"), [(1, 2), (2, 2), (3, 1), (2, 3)])
def test_the_gradient_by_hand_is_autograds(num_sources, dim):
    simulator = LocationFinding(num_sources, dim)
    theta = torch.randn(4, 1, num_sources * dim, dtype=torch.float64, requires_grad=True)
    design = torch.randn(3, 1, 5, dim, dtype=torch.float64, requires_grad=True)
    value = simulator.log_intensity(theta, design)
    gaps = theta.unflatten(-1, (num_sources, dim)) - design.unsqueeze(-2)
    plain = torch.log(0.1 + (1 / (1e-4 + gaps.square().sum(-1))).sum(-1))
    torch.testing.assert_close(value, plain)
    weight = torch.randn_like(plain)
    found, expected = (torch.autograd.grad((v * weight).sum(), (theta, design)) for v in (value, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
