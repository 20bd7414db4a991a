"""Independent parameters inside bounds."""

import math

import pytest
import torch
from torch.distributions import Beta, HalfNormal, LogNormal, Normal, Uniform, biject_to

from sbi_bed.utils.quasi_random import quasi_random_draws
from sbi_bed.utils.truncated import TruncatedIndependent


@pytest.fixture
def prior():
    return TruncatedIndependent(
        [HalfNormal(0.25), LogNormal(0.0, 1.0), Uniform(0.5, 1.0)], [(0.01, 0.5), (0.5, 3.0), None]
    )


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
    with pytest.raises(ValueError, match="leave nothing"):
        TruncatedIndependent([Uniform(0.0, 1.0)], [(2.0, 3.0)])
    with pytest.raises(ValueError, match="has no mass inside"):
        TruncatedIndependent([Normal(0.0, 1.0)], [(50.0, 60.0)])
    with pytest.raises(ValueError, match="no distribution function"):
        TruncatedIndependent([Beta(2.0, 2.0)], [(0.1, 0.9)])
