"""Mixtures of normal densities against plain formulas in float64, values and gradients, and far out in the tails."""

import math

import pytest
import torch
from torch.distributions import Normal

from sbi_bed.simulators.design.normal_mixture import mixture_log_interval, mixture_log_prob

SHAPES = [((5, 4, 1), (3, 5, 1, 6)), ((7,), (3, 7)), ((2, 3), (1, 2, 3)), ((5, 4, 6), (3, 1, 1, 6)), ((), (3, 4))]


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


def plain_interval(low, high, log_weight):
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return (log_weight + above + torch.log1p(-torch.exp(below - above))).logsumexp(0)


def compare(function, plain, arguments, tolerance=1e-12):
    arguments = [x.detach().requires_grad_() for x in arguments]
    value, exact = function(*arguments), plain(*arguments)
    assert value.shape == exact.shape and torch.allclose(value, exact, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(exact)
    found, wanted = (torch.autograd.grad(x, arguments, weights) for x in (value, exact))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize(("of_z", "of_mixture"), SHAPES)
def test_densities(of_z, of_mixture):
    arguments = draws(*of_z), draws(*of_mixture).log_softmax(0), draws(*of_mixture), draws(*of_mixture)
    compare(mixture_log_prob, lambda z, w, m, log_sd: (w + Normal(m, log_sd.exp()).log_prob(z)).logsumexp(0), arguments)


@pytest.mark.parametrize("spread", [0.5, 3.0, 30.0, 300.0])
def test_intervals_near_and_far(spread):
    low = spread * draws(3, 5, 1, 40)
    arguments = low, low + 0.1 + 3 * torch.rand_like(low), draws(3, 1, 4, 40).log_softmax(0)
    compare(mixture_log_interval, plain_interval, arguments, 1e-11)


def test_single_precision_keeps_its_digits():
    low = torch.linspace(-12.0, 12.0, 400).double().expand(2, -1)
    weights = torch.full((2, 1), math.log(0.5)).double()
    exact = plain_interval(low, low + 0.5, weights)
    assert (mixture_log_interval(low.float(), low.float() + 0.5, weights.float()) - exact).abs().max() < 3e-5
    z, mean = torch.linspace(-50.0, 50.0, 400).double(), torch.zeros(2, 1).double()
    exact = Normal(0.0, 0.02).log_prob(z)
    found = mixture_log_prob(z.float(), weights.float(), mean.float(), mean.float() + math.log(0.02))
    assert ((found - exact) / (1 + exact.abs())).abs().max() < 1e-6


def test_what_is_impossible_for_all_components():
    far = torch.tensor([1e30])
    value = mixture_log_prob(far, torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))
    assert value == -torch.inf


def test_an_interval_by_integration():
    for low in (-12.0, -3.0, 0.0, 3.0, 12.0):
        grid = torch.linspace(low, low + 0.1, 10_001).double()
        integral = torch.trapezoid(Normal(0.0, 1.0).log_prob(grid).exp(), grid).log()
        value = mixture_log_interval(grid[:1], grid[-1:], torch.zeros(1).double())
        torch.testing.assert_close(value, integral, rtol=1e-6, atol=1e-6)
