"""Pharmacokinetics: the equation, equal rates, and a likelihood that is the simulator's."""

import math

import pytest
import torch
from models import gaussian_prior
from scipy import integrate, stats

from sbi_bed.simulators import Pharmacokinetics

SIMULATOR = Pharmacokinetics()


def reference_concentration(theta, time):
    """As in the paper, float64; rates must differ."""
    absorption, elimination, volume = theta.double().exp().unbind(-1)
    decay = torch.exp(-elimination * time) - torch.exp(-absorption * time)
    return 400 / volume * absorption / (absorption - elimination) * decay


def test_concentration_follows_the_paper():
    theta = SIMULATOR.prior.sample((500,)).double()
    theta[250:, :2] = theta[250:, :2].flip(-1)  # slower uptake than clearance
    time = 24 * torch.rand(500, 1).double()
    expected = reference_concentration(theta, time.squeeze(-1))
    torch.testing.assert_close(SIMULATOR.concentration(theta, time), expected, rtol=1e-9, atol=1e-12)
    single = SIMULATOR.concentration(theta.float(), time.float()).double()
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gap", [0.0, 1e-7, -1e-7, 1e-4, -1e-4, 0.02, -0.02])
def test_equal_rates_are_no_singularity(gap):
    """The limit 400/V · k ξ exp(−k ξ), and derivatives of the exact curve, in single precision."""
    rate, time = 0.3, torch.tensor([5.0], requires_grad=True)
    theta = torch.tensor([math.log(rate) + gap, math.log(rate), math.log(20.0)], requires_grad=True)
    mean = SIMULATOR.concentration(theta, time)
    gradient = torch.autograd.grad(mean, [theta, time])
    exact_theta = theta.detach().double().requires_grad_()
    exact_time = time.detach().double().requires_grad_()
    # ∫ exp(−k_e (ξ − s)) k_a exp(−k_a s) ds, the uptake at s that is left at ξ: no quotient.
    share = (torch.arange(20_000).double() + 0.5) / 20_000
    uptake = exact_theta[0].exp() * torch.exp(-exact_theta[0].exp() * share * exact_time)
    left = torch.exp(-exact_theta[1].exp() * (1 - share) * exact_time)
    expected = 400 * torch.exp(-exact_theta[2]) * exact_time.squeeze() * (uptake * left).mean()
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=0)
    for single, exact in zip(gradient, torch.autograd.grad(expected, [exact_theta, exact_time]), strict=True):
        torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("time", [0.0, 0.5, 6.0, 24.0])
def test_the_likelihood_integrates_to_one_with_the_moments_of_the_paper(time):
    theta, design = torch.tensor([0.2, -2.0, 3.1]).double(), torch.tensor([time]).double()
    mean = float(reference_concentration(theta, time))
    sd = math.sqrt(0.01 * mean**2 + 0.1)

    def moment(power):
        def density(y):
            log_density = SIMULATOR.log_likelihood(theta, design, torch.tensor([y], dtype=torch.float64))
            return (y - mean) ** power * math.exp(log_density)

        return integrate.quad(density, mean - 12 * sd, mean + 12 * sd, epsabs=1e-12)[0]

    assert moment(0) == pytest.approx(1, abs=1e-9)
    assert moment(1) == pytest.approx(0, abs=1e-9)
    assert moment(2) == pytest.approx(sd**2, rel=1e-9)


def test_outcomes_are_distributed_as_the_likelihood_says():
    theta, design = torch.tensor([0.1, -2.2, 3.0]), torch.tensor([4.0])
    outcome = SIMULATOR(theta.expand(20_000, 3), design).squeeze(-1)
    mean = float(reference_concentration(theta, 4.0))
    assert stats.kstest(outcome.numpy(), stats.norm(mean, math.sqrt(0.01 * mean**2 + 0.1)).cdf).pvalue > 1e-3
    log_likelihood = SIMULATOR.log_likelihood(theta, design, outcome.unsqueeze(-1))
    entropy = 0.5 * math.log(2 * math.pi * math.e * (0.01 * mean**2 + 0.1))
    assert abs(float(log_likelihood.mean()) + entropy) < 4 * float(log_likelihood.std()) / math.sqrt(20_000)


def test_leading_dimensions_broadcast():
    theta, design = SIMULATOR.prior.sample((3,)), SIMULATOR.design_space.sample((4,))
    outcome = SIMULATOR(theta.unsqueeze(1), design)
    value = SIMULATOR.log_likelihood(theta.unsqueeze(1), design, outcome)
    alone = SIMULATOR.log_likelihood(theta[2], design[1], outcome[2, 1])
    assert value.shape == (3, 4) and torch.allclose(value[2, 1], alone)


def test_outcomes_carry_the_gradient_of_the_design():
    theta, design = SIMULATOR.prior.sample((200,)).double(), 24 * torch.rand(200, 1).double()

    def outcomes(design):
        torch.manual_seed(1)
        return SIMULATOR(theta, design)

    slope = (outcomes(design + 1e-5) - outcomes(design - 1e-5)) / 2e-5
    design.requires_grad_()
    (gradient,) = torch.autograd.grad(outcomes(design).sum(), design)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-6)


def test_gradients_are_finite_in_the_whole_range():
    theta, design = SIMULATOR.prior.sample((2000,)), 24 * torch.rand(2000, 1)
    theta[:500] += 6 * torch.randn(500, 3)
    theta[500:1000, 0] = theta[500:1000, 1]
    design[::10] = 0.0
    theta.requires_grad_(), design.requires_grad_()
    value = SIMULATOR.log_likelihood(theta, design, SIMULATOR(theta, design).detach())
    assert torch.isfinite(value).all()
    for gradient in torch.autograd.grad(value.sum(), [theta, design]):
        assert torch.isfinite(gradient).all()


def test_a_prior_over_something_else_is_refused():
    with pytest.raises(ValueError, match="must be over 3 values, got 2"):
        Pharmacokinetics(gaussian_prior(2))
