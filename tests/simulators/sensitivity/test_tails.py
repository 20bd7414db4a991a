"""Which powers of a density are proper, and their quantiles: families × powers × scales against exact distributions."""

import math

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from sbi.utils import MultipleIndependent
from scipy import integrate, stats
from torch import distributions as td

from sbi_bed.simulators import Contexts, JointDistribution, LogUniform, PowerScaledPrior, simulate_with_context
from sbi_bed.simulators.sensitivity.numerical_density import PoweredDensity
from sbi_bed.simulators.sensitivity.tails import as_double, closed_form_tails, gamma_bounds, tails_of

LEVELS = [0.02, 0.25, 0.5, 0.75, 0.98, 0.999]


class Unknown(td.Distribution):
    """A distribution of a user's own, whose family the package does not know."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base):
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self):
        return self.base.support

    def sample(self, sample_shape=()):
        return self.base.sample(sample_shape)

    def log_prob(self, value):
        return self.base.log_prob(value)


def student(x, nu, df, scale):
    return stats.t.cdf(x / scale * math.sqrt(nu / df), nu)


def log_laplace(x, g, b):
    left, right, y = g / b + 1 - g, g / b - 1 + g, torch.log(torch.as_tensor(x)).numpy()
    below = right / (left + right) * math.e ** (left * y.clip(max=0))
    return below * (y < 0) + (1 - left / (left + right) * math.e ** (-right * y.clip(min=0))) * (y >= 0)


def beta_prime(x, g, a, b):
    first = g * (a / 2 - 1) + 1
    return stats.betaprime.cdf(a * x / b, first, g * (a + b) / 2 - first)


# Name -> (density from two shapes and a scale; smallest and largest proper power; exact distribution function of p^γ).
FAMILIES = {
    "Cauchy": (
        lambda a, b, s: td.Cauchy(0 * s, s),
        lambda a, b: (1 / 2, math.inf),
        lambda x, g, a, b, s: student(x, 2 * g - 1, 1, s),
    ),
    "HalfCauchy": (
        lambda a, b, s: td.HalfCauchy(s),
        lambda a, b: (1 / 2, math.inf),
        lambda x, g, a, b, s: 2 * student(x, 2 * g - 1, 1, s) - 1,
    ),
    "StudentT": (
        lambda a, b, s: td.StudentT(a, 0 * s, s),
        lambda a, b: (1 / (a + 1), math.inf),
        lambda x, g, a, b, s: student(x, g * (a + 1) - 1, a, s),
    ),
    "Pareto": (
        lambda a, b, s: td.Pareto(s, a),
        lambda a, b: (1 / (a + 1), math.inf),
        lambda x, g, a, b, s: 1 - (x / s) ** (1 - g * (a + 1)),
    ),
    "FisherSnedecor": (
        lambda a, b, s: td.FisherSnedecor(a, b),
        lambda a, b: (1 / (1 + b / 2), 1 / (1 - a / 2) if a < 2 else math.inf),
        lambda x, g, a, b, s: beta_prime(x, g, a, b),
    ),
    "Weibull": (
        lambda a, b, s: td.Weibull(s, a),
        lambda a, b: (0, 1 / (1 - a) if a < 1 else math.inf),
        lambda x, g, a, b, s: stats.gamma.cdf(g * (x / s) ** a, (g * (a - 1) + 1) / a),
    ),
    "Gamma": (
        lambda a, b, s: td.Gamma(a, 1 / s),
        lambda a, b: (0, 1 / (1 - a) if a < 1 else math.inf),
        lambda x, g, a, b, s: stats.gamma.cdf(g * x / s, g * (a - 1) + 1),
    ),
    "InverseGamma": (
        lambda a, b, s: td.InverseGamma(a, s),
        lambda a, b: (1 / (1 + a), math.inf),
        lambda x, g, a, b, s: stats.invgamma.cdf(x / (s * g), g * (a + 1) - 1),
    ),
    "Gumbel": (
        lambda a, b, s: td.Gumbel(0 * s, s),
        lambda a, b: (0, math.inf),
        lambda x, g, a, b, s: stats.gamma.sf(g * math.e ** (-x / s), g),
    ),
    "Beta": (
        lambda a, b, s: td.Beta(a, b),
        lambda a, b: (0, min(1 / (1 - c) if c < 1 else math.inf for c in (a, b))),
        lambda x, g, a, b, s: stats.beta.cdf(x, g * (a - 1) + 1, g * (b - 1) + 1),
    ),
    "Kumaraswamy": (
        lambda a, b, s: td.Kumaraswamy(a, b),
        lambda a, b: (0, min(1 / (1 - c) if c < 1 else math.inf for c in (a, b))),
        lambda x, g, a, b, s: stats.beta.cdf(x**a, (g * (a - 1) + 1) / a, g * (b - 1) + 1),
    ),
    "VonMises": (
        lambda a, b, s: td.VonMises(0 * s, a),
        lambda a, b: (0, math.inf),
        lambda x, g, a, b, s: stats.vonmises.cdf(x, g * a),
    ),
    "LogNormal": (
        lambda a, b, s: td.LogNormal(s.log(), a),
        lambda a, b: (0, math.inf),
        lambda x, g, a, b, s: stats.norm.cdf(
            torch.log(torch.as_tensor(x) / s).numpy() - (1 - g) / g * a**2, scale=a / math.sqrt(g)
        ),
    ),
    "log-Laplace": (
        lambda a, b, s: td.TransformedDistribution(td.Laplace(torch.zeros_like(s), a), td.ExpTransform()),
        lambda a, b: (1 / (1 + 1 / a), 1 / (1 - 1 / a) if a > 1 else math.inf),
        lambda x, g, a, b, s: log_laplace(x, g, a),
    ),
}
SHAPES = st.floats(0.3, 5.0)


@pytest.mark.parametrize(("family", "a", "gamma"), [("StudentT", 0.3, 4.0), ("LogNormal", 5.0, 0.1)])
def test_quantiles_of_a_power_far_from_the_density_that_the_grid_was_laid_for(family, a, gamma):
    build, _, cdf = FAMILIES[family]
    shapes = (torch.tensor(value, dtype=torch.float64) for value in (a, 1.0, 2e4))
    levels = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    x = PoweredDensity(build(*shapes), torch.tensor(gamma, dtype=torch.float64)).icdf(levels)
    reached = torch.as_tensor(cdf(x.numpy(), gamma, a, 1.0, torch.tensor(2e4).double()))
    torch.testing.assert_close(reached, levels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@given(a=SHAPES, b=SHAPES, gamma=st.floats(0.1, 4.0), scale=st.sampled_from([1e-3, 1.0, 2e4]), known=st.booleans())
@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_a_power_is_refused_if_it_is_improper_and_exact_otherwise(family, a, b, gamma, scale, known):
    build, bounds, cdf = FAMILIES[family]
    base = build(*(torch.tensor(value, dtype=torch.float64) for value in (a, b, scale)))
    low, high = bounds(a, b)
    if abs(gamma / low - 1 if low else 1) < 1e-5 or abs(gamma / high - 1) < 1e-5:
        return  # at the bound itself rounding decides
    base = base if known or family == "VonMises" else Unknown(base)  # its support does not say that it is an interval
    if not low < gamma < high:
        with pytest.raises(ValueError, match=f"no finite integral at γ = {gamma:g} .* above {low:.3g}"[:38]):
            PoweredDensity(base, torch.tensor(gamma, dtype=torch.float64))
        return
    try:
        found = PoweredDensity(base, torch.tensor(gamma, dtype=torch.float64))
    except ValueError as err:  # proper, but wider than float64: κ of an infinite end is below log(100) / 710
        assert "more than 1 % of its draws exceed" in str(err) and gamma / low - 1 < 0.0066
        return
    x = found.icdf(torch.tensor(LEVELS, dtype=torch.float64)).double()
    reached = cdf(x.numpy(), gamma, a, b, torch.tensor(scale).double())
    # Numbers near 1 and near π are 1e-16 apart, which a singular density notices: levels up to it are compared.
    resolved = x < float(1 - 1e-9) if family in ("Beta", "Kumaraswamy") else x < math.inf
    resolved &= x != 0  # a quantile below 1e-308, of a density that is singular at 0
    torch.testing.assert_close(
        torch.as_tensor(reached)[resolved], torch.tensor(LEVELS).double()[resolved], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
@given(a=SHAPES, b=SHAPES)
@example(a=0.39711106205478314, b=3.194802073880599)  # torch's Kumaraswamy density is lost to rounding below 1e-40
@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_measured_tails_are_those_of_the_family(family, a, b):
    build, bounds, _ = FAMILIES[family]
    base = build(*(torch.tensor(value) for value in (a, b, 1.0)))
    expected = torch.tensor(bounds(a, b), dtype=torch.float64)
    for density in (base, Unknown(base)):
        if family == "VonMises" and density is not base:
            continue  # its log_prob goes on beyond its interval, and its support does not say so
        found = torch.stack(gamma_bounds(tails_of(density)))
        torch.testing.assert_close(1 / found, 1 / expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (td.TransformedDistribution(td.HalfCauchy(1.0), td.AffineTransform(1.0, -2.0)), (1 / 2, math.inf)),
        (td.TransformedDistribution(td.HalfCauchy(1.0), td.PowerTransform(torch.tensor(2.0))), (2 / 3, 2.0)),
        (td.TransformedDistribution(td.Normal(0.0, 1.0), td.SigmoidTransform()), (0.0, math.inf)),
        (
            td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.StudentT(torch.tensor([1.0, 4.0]))),
            (1 / 2, math.inf),
        ),
        (
            td.MixtureSameFamily(td.Categorical(torch.tensor([0.0, 1.0])), td.StudentT(torch.tensor([1.0, 4.0]))),
            (1 / 5, math.inf),
        ),
        (
            td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Gamma(torch.tensor([0.4, 4.0]), 1.0)),
            (0.0, 1 / 0.6),
        ),
    ],
    ids=["affine", "power", "logit-normal", "mixture", "mixture without its heavy part", "mixture at 0"],
)
def test_tails_of_mixtures_and_transforms(base, expected):
    found = torch.stack(gamma_bounds(tails_of(base)))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-9)
    assert closed_form_tails(as_double(td.TransformedDistribution(td.Normal(0.0, 1.0), td.ExpTransform()))) is None


@pytest.mark.parametrize("gamma", [0.7, 1.0, 2.5])
def test_a_mixture_with_a_heavy_tail_has_the_quantiles_of_quadrature(gamma):
    base = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7])), td.StudentT(torch.tensor([1.0, 4.0]), torch.tensor([-3.0, 3.0]))
    )

    def integrand(t):  # x = sinh t
        x = torch.tensor(math.sinh(t), dtype=torch.float64)
        return float((gamma * as_double(base).log_prob(x)).exp()) * math.cosh(t)

    def integral(low, high):
        return integrate.quad(integrand, low, high, limit=500, points=[-1.82, 1.82], epsrel=1e-7)[0]

    total = integral(-90, 90)
    for level, x in zip(LEVELS, PoweredDensity(base, torch.tensor(gamma)).icdf(torch.tensor(LEVELS)), strict=True):
        assert integral(-90, math.asinh(float(x))) / total == pytest.approx(level, abs=1e-3)


def test_half_cauchy_priors_at_the_powers_that_a_grid_got_wrong():
    prior = PowerScaledPrior(td.Independent(td.HalfCauchy(torch.ones(1)), 1), numerical=True)
    assert prior.gamma_bounds.tolist() == [[0.5], [math.inf]]
    for gamma in (0.5, 0.4, 0.2):
        with pytest.raises(ValueError, match=r"no finite integral at γ = 0\.. for HalfCauchy: .* above 0\.5"):
            prior.condition(gamma)
    draws = prior.condition(0.55).sample((4000,)).double().flatten()
    assert bool(torch.isfinite(draws).all())
    assert stats.kstest(draws, lambda x: 2 * stats.t.cdf(x * math.sqrt(0.1), 0.1) - 1).pvalue > 1e-3
    for family, powers in ((td.Cauchy(torch.zeros(1), 1.0), (0.55, 0.8)), (td.StudentT(2 * torch.ones(1)), (0.4, 0.5))):
        for gamma in powers:
            PowerScaledPrior(td.Independent(family, 1), numerical=True).condition(gamma)
    with pytest.raises(ValueError, match=r"more than 1 % of its draws exceed the range of torch.float32 .* above 0\.5"):
        prior.condition(0.51)


def test_a_density_that_falls_like_one_over_x_has_no_powers():
    log_t = td.TransformedDistribution(td.StudentT(torch.tensor([3.0])), td.ExpTransform())
    with pytest.raises(ValueError, match="cannot be computed: its tails fall hardly faster than 1/x"):
        PowerScaledPrior(td.Independent(log_t, 1), numerical=True)


def test_a_density_that_is_not_normalised_is_refused():
    class Double(Unknown):
        def log_prob(self, value):
            return self.base.log_prob(value) + math.log(2)

    with pytest.raises(ValueError, match=r"cannot be integrated on a grid.*normalised"):
        PoweredDensity(Double(td.Normal(0.0, 1.0)), torch.tensor(0.5))


def test_a_dirichlet_vector_has_one_power():
    concentration = torch.tensor([0.5, 2.0, 3.0])
    prior = PowerScaledPrior(td.Dirichlet(concentration))
    assert prior.num_gammas == 1 and prior.gamma_bounds.tolist() == [[0.0], [2.0]]
    theta = prior.prior.sample((50,))
    difference = prior.condition(1.5).log_prob(theta) - 1.5 * td.Dirichlet(concentration).log_prob(theta)
    assert float(difference.std()) < 1e-4 * float(difference.abs().max() + 1)
    assert prior.condition(torch.tensor([[0.5], [1.5]])).sample((4,)).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="above 0 and below 2"):
        prior.condition(2.1)
    with pytest.raises(ValueError, match="simplex, which cannot stand beside"):
        JointDistribution([td.Dirichlet(concentration), td.Independent(td.Normal(torch.zeros(1), 1.0), 1)])


def test_parts_within_parts():
    """`MultipleIndependent` and `JointDistribution` inside one another are flattened, with a power for each parameter."""
    normal, half = td.Normal(torch.zeros(1), torch.ones(1)), td.HalfCauchy(torch.ones(1))
    inner = JointDistribution([td.Independent(part, 1) for part in (normal, half)])
    prior = PowerScaledPrior([inner, MultipleIndependent([half, normal])], numerical=True)
    assert prior.gamma_bounds[0].tolist() == [0.0, 0.5, 0.5, 0.0]
    scaled = prior.condition([2.0, 0.7, 1.0, 1.0])
    theta = prior.prior.sample((50,))
    difference = scaled.log_prob(theta) - prior.prior.log_prob(theta)
    expected = normal.log_prob(theta[:, :1]) - 0.3 * half.log_prob(theta[:, 1:2])
    assert float((difference - expected.squeeze(-1)).std()) < 1e-4
    with pytest.raises(ValueError, match=r"γ = 0\.4 for HalfCauchy"):
        prior.condition([0.1, 1.0, 0.4, 1.0])


# ---- contexts


def test_contexts_do_not_contain_improper_powers():
    prior = PowerScaledPrior(td.Independent(td.HalfCauchy(torch.ones(2)), 1), numerical=True)
    with pytest.raises(ValueError, match=r"from \[0\.5, 2\] contain powers .* above 0\.5\. .*another low"):
        Contexts.power_scaling(prior)
    with pytest.raises(ValueError, match="contain powers"):
        simulate_with_context(lambda theta: theta, prior, 10)
    with pytest.raises(ValueError, match="contain powers"):
        simulate_with_context(lambda theta: theta, prior, 10, Contexts(gamma=LogUniform(0.2, 2.0, 2)))
    with pytest.raises(ValueError, match="gamma must have 2 values"):
        simulate_with_context(lambda theta: theta, prior, 10, Contexts(gamma=LogUniform(0.6, 2.0)))
    theta, _, context = simulate_with_context(
        lambda theta: theta, prior, 4000, Contexts.power_scaling(prior, 0.6, 2.0), seed=0
    )
    nu = (2 * context - 1).double().numpy()
    place = 2 * stats.t.cdf(theta.double().numpy() * nu**0.5, nu) - 1
    assert stats.kstest(place.flatten(), "uniform").pvalue > 1e-3
    gamma = PowerScaledPrior(td.Independent(td.Gamma(torch.full((1,), 0.4), torch.ones(1)), 1))
    with pytest.raises(ValueError, match=r"below 1\.66667\. .*another high"):
        Contexts.power_scaling(gamma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_keep_the_dtype_of_the_prior(dtype):
    base = td.Independent(td.StudentT(torch.full((2,), 4.0, dtype=dtype)), 1)
    scaled = PowerScaledPrior(base, numerical=True).condition([0.7, 1.5])
    theta = scaled.sample((3,))
    assert theta.dtype == dtype and scaled.log_prob(theta).dtype == dtype
