"""Prey population: the differential equation, and a likelihood that is the simulator's."""

import math

import pytest
import torch
from models import gaussian_prior
from scipy import integrate, stats

from sbi_bed.simulators import PreyPopulation

SIMULATOR = PreyPopulation()


def test_the_share_eaten_solves_the_differential_equation():
    theta, prey = SIMULATOR.prior.sample((12,)).double(), torch.randint(1, 301, (12, 1)).double()
    for one, number in zip(theta, prey, strict=True):
        attack, handling = one.exp().tolist()
        solved = integrate.solve_ivp(
            lambda _, left, a=attack, h=handling: -a * left**2 / (1 + a * h * left**2),
            (0, 24), [number.item()], method="LSODA", rtol=1e-10, atol=1e-12,
        )  # fmt: skip
        expected = 1 - solved.y[0, -1] / number.item()
        assert SIMULATOR.share_eaten(one, number).item() == pytest.approx(expected, abs=1e-6)
        assert SIMULATOR.share_eaten(one.float(), number.float()).item() == pytest.approx(expected, abs=1e-5)


def test_outcomes_are_binomial_with_that_likelihood():
    theta, prey = torch.tensor([0.02, 0.8]).log(), torch.tensor([30.0])
    share = float(SIMULATOR.share_eaten(theta, prey))
    numbers = torch.arange(31.0).unsqueeze(-1)
    log_p = SIMULATOR.log_likelihood(theta, prey, numbers)
    torch.testing.assert_close(
        log_p.double(), torch.as_tensor(stats.binom(30, share).logpmf(numbers.flatten())), rtol=1e-4, atol=1e-3
    )
    counts = torch.bincount(SIMULATOR(theta.expand(20_000, 2), prey).flatten().long(), minlength=31)
    usual = log_p.exp() * 20_000 > 5
    expected = log_p.exp()[usual].double()
    assert (
        stats.chisquare(counts[usual].numpy(), (expected / expected.sum() * counts[usual].sum()).numpy()).pvalue > 1e-3
    )
    assert SIMULATOR.log_likelihood(theta, prey, torch.tensor([31.0])) == -math.inf


def test_everything_is_finite_in_the_whole_prior_range():
    theta = (-1.4 + 1.35 * 5 * torch.linspace(-1, 1, 9)).unsqueeze(-1)
    theta = torch.cat([theta.repeat_interleave(9, 0), theta.repeat(9, 1)], -1).requires_grad_()
    prey = torch.tensor([1.0, 2.0, 30.0, 300.0]).reshape(-1, 1, 1)
    outcome = SIMULATOR(theta.detach(), prey)
    assert SIMULATOR.check_outcome(outcome).shape == (4, 81, 1)
    log_p = SIMULATOR.log_likelihood(theta, prey, outcome)
    assert torch.isfinite(log_p).all() and torch.isfinite(torch.autograd.grad(log_p.sum(), theta)[0]).all()


def test_designs_are_whole_numbers_of_prey():
    with pytest.raises(ValueError, match=r"prey must be a whole number from 1 to 300, got 2.5|lies outside"):
        SIMULATOR.design_space.check([2.5])
    assert len(PreyPopulation(max_prey=20).design_space.candidates) == 20
    with pytest.raises(ValueError, match="prior must be over 2 values"):
        PreyPopulation(gaussian_prior(3))
