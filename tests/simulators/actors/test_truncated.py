"""Independent parameters inside bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Beta, Exponential, HalfNormal, Laplace, LogNormal, Normal, Uniform, biject_to

from sbi_bed.simulators.actors.truncated import TruncatedIndependent
from sbi_bed.utils.quasi_random import quasi_random_draws


@pytest.fixture
def prior():
    return TruncatedIndependent(
        [HalfNormal(0.25), LogNormal(0.0, 1.0), Uniform(0.5, 1.0)], [(0.01, 0.5), (0.5, 3.0), None]
    )


@st.composite
def parameters(draw):
    """A distribution, and two of its quantiles or nothing as bounds."""
    place, width = draw(st.floats(-3, 3)), draw(st.floats(0.1, 3))
    family = draw(st.sampled_from([Normal, Laplace, LogNormal, HalfNormal, Exponential, Uniform]))
    one_number, between = family in (HalfNormal, Exponential), family is Uniform
    one = family(width) if one_number else family(place, place + width if between else width)
    if draw(st.booleans()):
        return one, None
    share = draw(st.floats(0, 0.9))
    ends = torch.tensor([share, draw(st.floats(share + 0.05, 1))], dtype=torch.float64)
    return one, tuple(one.icdf(ends).tolist())


@given(st.lists(parameters(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_parameters_in_any_bounds(drawn):
    """Draws lie inside and are possible, quantiles undo the distribution function, and beyond the bounds is nothing."""
    prior = TruncatedIndependent(*zip(*drawn, strict=True))
    theta = prior.sample((64,))
    assert prior.support.check(theta).all() and torch.isfinite(prior.log_prob(theta)[1:]).all()
    assert prior.support.check(biject_to(prior.support)(3 * torch.randn(64, len(drawn)))).all()
    share = torch.rand(64, len(drawn), dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    theta, mass = prior.icdf(share), prior.cdf_high - prior.cdf_low
    for column, (one, bounds) in enumerate(drawn):
        found = (one.cdf(theta[:, column]) - prior.cdf_low[column]) / mass[column]
        torch.testing.assert_close(found, share[:, column], atol=1e-6, rtol=0)
        for end, beyond in zip(bounds or (), (-1, 1), strict=False):
            outside = theta.clone()
            outside[:, column] = end + beyond * 1e-3 * (1 + abs(end))
            assert not math.isfinite(end) or (prior.log_prob(outside) == -math.inf).all()
    expected = sum(one.log_prob(theta[:, column]) for column, (one, _) in enumerate(drawn)) - mass.log().sum()
    torch.testing.assert_close(prior.log_prob(theta), expected, atol=1e-5, rtol=1e-5)


def test_density_integrates_to_one(prior):
    ends = zip(prior.low.tolist(), prior.high.tolist(), strict=True)
    grids = [torch.linspace(low, high, 401, dtype=torch.float64) for low, high in ends]
    middle = torch.tensor([[0.2, 1.0, 0.7]], dtype=torch.float64)
    total = prior.log_prob(middle).exp().item()
    for i, grid in enumerate(grids):  # independent: the integral is a product
        theta = middle.repeat(401, 1)
        theta[:, i] = grid
        total *= torch.trapezoid((prior.log_prob(theta) - prior.log_prob(middle)).exp(), grid).item()
    assert total == pytest.approx(1.0, rel=2e-3)  # torch's uniform is 0 at its upper end: half a cell of 400


def test_draws_have_the_quantiles(prior):
    torch.manual_seed(0)
    theta = prior.sample((20_000,))
    for share in (0.1, 0.5, 0.9):
        quantile = prior.icdf(torch.full((3,), share, dtype=torch.float64)).float()
        error = 4 * math.sqrt(share * (1 - share) / 20_000)
        assert ((theta < quantile).float().mean(0) - share).abs().max() < error
    even = quasi_random_draws(prior, 1024)
    assert ((even < prior.icdf(torch.full((3,), 0.5)).float()).float().mean(0) - 0.5).abs().max() < 0.003


def test_support(prior):
    outside = torch.tensor([[0.6, 1.0, 0.7], [0.2, 0.4, 0.7], [0.2, 1.0, 1.1]])
    assert (prior.log_prob(outside) == -math.inf).all() and not prior.support.check(outside).any()
    theta = biject_to(prior.support)(torch.randn(50, 3))
    assert torch.isfinite(prior.log_prob(theta)).all()
    mixed = TruncatedIndependent([Normal(0.0, 1.0), HalfNormal(1.0), Uniform(0.0, 1.0)])
    theta = biject_to(mixed.support)(torch.randn(50, 3))
    assert torch.isfinite(mixed.log_prob(theta)).all() and (theta[:, 0] < 0).any() and (theta[:, 1:] > 0).all()


def test_gradients_are_finite_beside_the_bounds(prior):
    theta = torch.tensor([[0.2, 1.0, 0.7], [0.6, 1.0, 0.7]], requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.log_prob(theta)[0], theta)
    assert torch.isfinite(gradient).all() and gradient[0, 0].item() == pytest.approx(-0.2 / 0.25**2, rel=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="as many"):
        TruncatedIndependent([Normal(0.0, 1.0)], [])
    with pytest.raises(TypeError, match="needs a distribution"):
        TruncatedIndependent([3.0])
    with pytest.raises(ValueError, match="over single numbers"):
        TruncatedIndependent([Normal(torch.zeros(1), 1.0)])
    with pytest.raises(ValueError, match="no mass inside"):
        TruncatedIndependent([Uniform(0.0, 1.0)], [(2.0, 3.0)])
    with pytest.raises(ValueError, match="has no mass inside"):
        TruncatedIndependent([Normal(0.0, 1.0)], [(50.0, 60.0)])
    with pytest.raises(ValueError, match="no distribution function"):
        TruncatedIndependent([Beta(2.0, 2.0)], [(0.1, 0.9)])
