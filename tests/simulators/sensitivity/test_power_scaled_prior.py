"""Powers of priors: against the definition, against quadrature, and the same for γ in batches and one by one."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.utils import BoxUniform, MultipleIndependent, mcmc_transform
from scipy import integrate, stats
from torch.distributions import (
    Beta,
    Chi2,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    InverseGamma,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    Uniform,
)
from torch.distributions.categorical import Categorical

from sbi_bed.simulators import JointDistribution, PowerScaledPrior
from sbi_bed.simulators.sensitivity.numerical_density import PoweredDensity


def two(family, *parameters):
    """Two independent parameters of a family."""
    return Independent(family(*(torch.tensor(p) for p in parameters)), 1)


FAMILIES = [
    two(Normal, [1.0, -2.0], [0.5, 3.0]),
    two(LogNormal, [0.3, -1.0], [0.5, 1.2]),
    two(HalfNormal, [0.5, 3.0]),
    two(Exponential, [0.5, 3.0]),
    two(Laplace, [1.0, -2.0], [0.5, 3.0]),
    two(Gamma, [1.5, 4.0], [0.5, 3.0]),
    two(InverseGamma, [2.5, 4.0], [0.5, 3.0]),
    two(Beta, [1.5, 4.0], [2.5, 1.0]),
    two(Chi2, [3.0, 5.0]),
    two(Uniform, [-1.0, 0.0], [1.0, 3.0]),
    BoxUniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])),
]


@pytest.mark.parametrize("prior", FAMILIES, ids=lambda p: type(p.base_dist).__name__)
@given(log_gamma=st.lists(st.floats(-0.9, 1.5), min_size=2, max_size=2))
@settings(max_examples=15, deadline=None)
def test_the_density_is_the_prior_to_a_power_up_to_a_constant(prior, log_gamma):
    gamma = torch.tensor(log_gamma).exp()
    scaled = PowerScaledPrior(prior).condition(gamma)
    theta = prior.sample((50,))
    difference = scaled.log_prob(theta) - (gamma * prior.base_dist.log_prob(theta)).sum(-1)
    assert float(difference.std()) < 1e-3 * (1 + float(difference.abs().max()))
    assert scaled.sample((3,)).shape == (3, 2)


@given(places=st.lists(st.integers(0, len(FAMILIES) - 1), min_size=1, max_size=3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_power_of_a_power_is_the_power_of_the_product(places, data):
    prior = PowerScaledPrior([FAMILIES[place] for place in places])
    powers = st.lists(st.floats(0.7, 1.5), min_size=prior.num_gammas, max_size=prior.num_gammas)
    first, second = torch.tensor(data.draw(powers)), torch.tensor(data.draw(powers))
    theta = prior.prior.sample((20,))
    twice = PowerScaledPrior(prior.condition(first)).condition(second).log_prob(theta)
    torch.testing.assert_close(twice, prior.condition(first * second).log_prob(theta), rtol=1e-3, atol=1e-3)
    batch = prior.condition(torch.stack([first, second])).log_prob(theta.unsqueeze(1).expand(-1, 2, -1))
    torch.testing.assert_close(batch[:, 1], prior.condition(second).log_prob(theta), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", FAMILIES, ids=lambda p: type(p.base_dist).__name__)
@pytest.mark.parametrize("gamma", [0.6, 2.5])
def test_the_density_integrates_to_one(prior, gamma):
    scaled = PowerScaledPrior(prior).condition(gamma).base_dist
    ranges = {Beta: (0, 1), Uniform: (-1, 1), Normal: (-math.inf, math.inf), Laplace: (-math.inf, math.inf)}
    low, high = ranges.get(type(prior.base_dist), (0, math.inf))

    def density(value):
        inside = torch.full((2,), 0.5)
        inside[0] = value
        return float(scaled.log_prob(inside)[0].exp())

    # in two parts, since the peaks are narrow beside the range
    middle = 0.5 if low >= 0 else 0.0
    parts = [integrate.quad(density, *ends, epsabs=1e-5, epsrel=1e-4)[0] for ends in ((low, middle), (middle, high))]
    assert sum(parts) == pytest.approx(1, abs=2e-4)


def test_a_normal_vector_has_one_power_and_independent_parameters_one_each():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    correlated = PowerScaledPrior(MultivariateNormal(torch.ones(2), covariance))
    assert correlated.num_gammas == 1
    torch.testing.assert_close(correlated.condition(4.0).covariance_matrix, covariance / 4)
    batch = correlated.condition(torch.tensor([[0.5], [2.0]]))
    torch.testing.assert_close(batch.covariance_matrix, torch.stack([covariance * 2, covariance / 2]))
    diagonal = PowerScaledPrior(MultivariateNormal(torch.ones(2), torch.diag(torch.tensor([1.0, 4.0]))))
    assert diagonal.num_gammas == 2
    torch.testing.assert_close(diagonal.condition([4.0, 1.0]).stddev, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(diagonal.condition(4.0).stddev, torch.tensor([0.5, 1.0]))


def blocks():
    return [
        MultivariateNormal(torch.ones(2), torch.tensor([[1.0, 0.6], [0.6, 2.0]])),
        Gamma(torch.tensor([2.0]), torch.tensor([0.5])),
        Uniform(torch.zeros(1), torch.ones(1)),
        LogNormal(torch.zeros(1), torch.ones(1)),
    ]


@pytest.mark.parametrize("form", [list, MultipleIndependent])
def test_blocks_of_different_families(form):
    prior = PowerScaledPrior(form(blocks()))
    assert prior.num_gammas == 4 and prior.event_shape == (5,)
    gamma = torch.tensor([[0.5, 2.0, 0.7, 1.0], [1.0, 1.0, 1.0, 1.0], [2.0, 0.6, 2.0, 0.5]])
    batch = prior.condition(gamma)
    theta = MultipleIndependent(blocks()).sample((7,)).unsqueeze(1)
    value = batch.log_prob(theta.expand(7, 3, 5))
    for row, powers in enumerate(gamma):
        torch.testing.assert_close(value[:, row], prior.condition(powers).log_prob(theta[:, 0]))
    torch.testing.assert_close(value[:, 1], MultipleIndependent(blocks()).log_prob(theta[:, 0]))
    assert batch.sample((4,)).shape == (4, 3, 5)
    outside = torch.tensor([0.0, 0.0, 1.0, 1.5, 1.0]).expand(3, 5)
    assert batch.support.check(theta.expand(7, 3, 5)).all() and not batch.support.check(outside).any()


def test_draws_have_the_moments_of_their_density():
    scaled = PowerScaledPrior(blocks()).condition([2.0, 0.7, 1.0, 4.0])
    draws = scaled.sample((40_000,))
    error = (draws.mean(0) - scaled.mean) / scaled.stddev * math.sqrt(len(draws))
    assert error.abs().max() < 4.5
    torch.testing.assert_close(draws.std(0), scaled.stddev, rtol=0.03, atol=0)


def test_sbi_makes_parameters_unconstrained():
    scaled = PowerScaledPrior(blocks()).condition(0.8)
    transform = mcmc_transform(scaled)
    theta = scaled.sample((10,))
    torch.testing.assert_close(transform.inv(transform(theta)), theta, rtol=1e-3, atol=1e-4)


def test_a_prior_travels():
    prior = PowerScaledPrior([*blocks(), StudentT(torch.tensor([5.0]))], numerical=True)
    copied = pickle.loads(pickle.dumps(prior))
    theta = prior.prior.sample((5,))
    assert torch.equal(copied.condition(0.7).log_prob(theta), prior.condition(0.7).log_prob(theta))


# ---- by quadrature


@pytest.mark.parametrize("prior", [*FAMILIES[:5], *FAMILIES[7:10]], ids=lambda p: type(p.base_dist).__name__)
def test_quadrature_agrees_with_closed_forms(prior):
    gamma = torch.tensor([[0.5, 2.0], [1.0, 0.7]])
    exact, found = PowerScaledPrior(prior).condition(gamma), Independent(PoweredDensity(prior.base_dist, gamma), 1)
    theta = prior.sample((40, 1)).expand(40, 2, 2)
    torch.testing.assert_close(found.log_prob(theta), exact.log_prob(theta), atol=2e-3, rtol=1e-3)
    if isinstance(prior.base_dist, (Normal, Laplace, Exponential, HalfNormal, LogNormal)):
        levels = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.999]).reshape(-1, 1, 1)
        expected = exact.base_dist.icdf(levels)
        torch.testing.assert_close(found.base_dist.icdf(levels), expected, rtol=2e-3, atol=2e-3)


def test_numerical_powers_of_densities_without_closed_form():
    mixture = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Normal(torch.tensor([-2.0, 1.0]), 0.5))
    prior = PowerScaledPrior([mixture, Independent(StudentT(torch.tensor([4.0, 9.0])), 1)], numerical=True)
    assert prior.num_gammas == 3 and prior.event_shape == (3,)
    scaled = prior.condition([2.0, 0.5, 1.0])
    total = integrate.quad(lambda v: math.exp(2 * float(mixture.log_prob(torch.tensor(v)))), -8, 8, points=[-2, 1])[0]
    theta = torch.tensor([0.3, 0.2, -0.4])
    expected = 2 * mixture.log_prob(theta[0]) - math.log(total)
    torch.testing.assert_close(scaled.blocks[0].log_prob(theta[:1]), expected, rtol=1e-4, atol=1e-4)
    draws = scaled.blocks[1].sample((4000,))[:, 0].double()  # t_4 to the power ½ is a t_{1.5}, stretched by √(4/1.5)
    assert stats.kstest(draws, lambda v: stats.t.cdf(v * math.sqrt(1.5 / 4), 1.5)).pvalue > 1e-3


# ---- what is refused


@pytest.mark.parametrize(
    ("prior", "gamma"),
    [
        (two(Gamma, [0.4, 1.0], [1.0, 1.0]), [2.0, 1.0]),
        (two(Beta, [2.0, 2.0], [0.4, 1.0]), [2.0, 1.0]),
        (two(InverseGamma, [0.2, 1.0], [1.0, 1.0]), [0.5, 1.0]),
    ],
)
def test_powers_without_a_finite_integral(prior, gamma):
    with pytest.raises(ValueError, match="no finite integral at γ = "):
        PowerScaledPrior(prior).condition(gamma)
    PowerScaledPrior(prior).condition(1.0)


def test_a_heavy_tail_has_no_small_powers():
    prior = PowerScaledPrior(Independent(StudentT(torch.tensor([1.5])), 1), numerical=True)
    with pytest.raises(ValueError, match=r"no finite integral at γ = 0\.3"):
        prior.condition(0.3)


@pytest.mark.parametrize(
    ("prior", "error", "match"),
    [
        (Independent(Gumbel(torch.zeros(2), torch.ones(2)), 1), TypeError, "Gumbel is not known.*numerical=True"),
        (Normal(torch.zeros(3), torch.ones(3)), ValueError, r"Independent\(\.\.\., 1\)"),
        (MultivariateNormal(torch.zeros(4, 2), torch.eye(2)), ValueError, "over vectors"),
        ("normal", TypeError, "made of torch distributions"),
        ([], ValueError, "got none"),
    ],
)
def test_priors_that_are_refused(prior, error, match):
    with pytest.raises(error, match=match):
        PowerScaledPrior(prior)


def test_a_scaled_prior_is_not_scaled_again():
    with pytest.raises(TypeError, match="already"):
        PowerScaledPrior(PowerScaledPrior(FAMILIES[0]))


@pytest.mark.parametrize(
    ("gamma", "match"),
    [([1.0, 2.0, 3.0], "2 values"), ([1.0, 0.0], "positive.*index"), ([math.nan, 1.0], "finite.*index")],
)
def test_powers_that_are_refused(gamma, match):
    with pytest.raises(ValueError, match=match):
        PowerScaledPrior(FAMILIES[0]).condition(gamma)


def test_quadrature_is_for_continuous_scalars():
    with pytest.raises(ValueError, match="one continuous variable"):
        PoweredDensity(Poisson(3.0), torch.tensor(0.5))


def test_joint_blocks_that_are_refused():
    with pytest.raises(ValueError, match="distribution of vectors"):
        JointDistribution([Normal(0.0, 1.0)])
    with pytest.raises(ValueError, match="same batch shape"):
        JointDistribution([FAMILIES[0], FAMILIES[0].expand((3,))])
