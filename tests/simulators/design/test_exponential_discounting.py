"""Exponential discounting: its value of later money, the same choices otherwise, finite gradients."""

import math

import pytest
import torch
from scipy import stats

from sbi_bed.simulators import ExponentialDiscounting, HyperbolicDiscounting


def test_likelihood_follows_the_equation():
    simulator = ExponentialDiscounting(lapse=0.03)
    theta = simulator.prior.sample((500,)).double()
    design = simulator.design_space.sample((500,)).double()
    later = 100 * torch.exp(-theta[:, 0].exp() * design[:, 1])
    p = 0.03 + 0.94 * torch.from_numpy(stats.norm.cdf(((later - design[:, 0]) / theta[:, 1]).numpy()))
    ones = torch.ones(500, 1).double()
    torch.testing.assert_close(simulator.log_likelihood(theta, design, ones).exp(), p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, 0 * ones).exp(), 1 - p, rtol=1e-12, atol=1e-12)


def test_choices_come_with_the_probabilities_of_the_likelihood():
    simulator, theta, design = ExponentialDiscounting(), torch.tensor([-4.0, 10.0]), torch.tensor([30.0, 60.0])
    p = float(simulator.log_likelihood(theta, design, torch.ones(1)).exp())
    share = float(simulator(theta.expand(40_000, 2), design).mean())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 40_000)


def test_short_delays_are_discounted_as_hyperbolically_and_long_ones_more():
    theta = torch.tensor([math.log(0.01), 20.0]).double()
    for delay, difference in ((1.0, 0.0), (300.0, 1.0)):
        design = torch.tensor([10.0, delay]).double()
        gap = HyperbolicDiscounting().scaled_preference(theta, design) - ExponentialDiscounting().scaled_preference(
            theta, design
        )
        assert float(gap) == pytest.approx(difference * 5 * (1 / 4 - math.exp(-3)), abs=3e-4)


def test_gradients_are_finite_everywhere():
    simulator = ExponentialDiscounting()
    theta, design = simulator.prior.sample((4000,)), simulator.design_space.sample((4000,)).requires_grad_()
    value = simulator.log_likelihood(theta, design, torch.randint(2, (4000, 1)).float())
    (gradient,) = torch.autograd.grad(value.sum(), design)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def test_lapses_of_half_and_more_are_refused():
    with pytest.raises(ValueError, match=r"lapse must lie in \[0, 0.5\)"):
        ExponentialDiscounting(lapse=0.5)
