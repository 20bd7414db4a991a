"""The learned density: normalised, exact where many meet many, with the gradients of its own distribution function."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal, Poisson

from sbi_bed.simulators.design.conditional_density import ConditionalDensity, _pairs
from sbi_bed.simulators.design.learned_likelihood import check_density, fit_density
from sbi_bed.simulators.design.scaling import Scaling
from sbi_bed.utils import seeded

NUM = 4000


def trials(draw):
    theta, design = torch.randn(NUM, 2), torch.rand(NUM, 1)
    return theta, design, draw(theta, design)


def mean_of(theta, design):
    return theta[:, :1] + theta[:, 1:] * design


KINDS = {
    "real": lambda t, d: mean_of(t, d) + 0.3 * torch.randn(NUM, 1),
    "over decades": lambda t, d: (3 * mean_of(t, d) + 0.3 * torch.randn(NUM, 1)).exp(),
    "heavy tails": lambda t, d: torch.distributions.Cauchy(mean_of(t, d), 0.3).sample(),
    "yes or no": lambda t, d: torch.bernoulli(mean_of(t, d).sigmoid()),
    "counts": lambda t, d: torch.poisson((mean_of(t, d) + 1.5).exp()),
    "zero or more": lambda t, d: (mean_of(t, d) + 0.3 * torch.randn(NUM, 1)).clamp_min(0.0),
    "choice and time": lambda t, d: torch.cat(
        [torch.bernoulli(mean_of(t, d).sigmoid()), (0.3 * torch.randn(NUM, 1) - t[:, :1].abs()).exp()], -1
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_many_thetas_meet_many_trials_as_they_do_one_by_one(kind):
    theta, design, outcome = trials(KINDS[kind])
    density = ConditionalDensity(theta, design, outcome).double().requires_grad_(False)
    few = [x[:7].double() for x in (theta, design, outcome)]
    table = density.log_prob(few[0][:, None], few[1], few[2])
    for i, j in itertools.product(range(7), range(7)):
        torch.testing.assert_close(table[i, j], density.log_prob(few[0][i], few[1][j], few[2][j]))
    deep = density.log_prob(few[0][:, None, None, None], few[1][:3, None, None], few[2][:6].reshape(2, 3, -1))
    assert deep.shape == (7, 3, 2, 3)
    torch.testing.assert_close(deep[4, 1, 0], density.log_prob(few[0][4], few[1][1], few[2][:3]))


def total_probability(density, theta, design, kind, outcome):
    if kind == "yes or no":
        values, step = torch.tensor([0.0, 1.0]).double(), 1.0
    elif kind == "counts":
        values, step = torch.arange(0, 3000).double(), 1.0
    else:
        scaling = density.factors[0].scaling
        edges = scaling.inverse(torch.linspace(-60.0, 60.0, 400_001).double().unsqueeze(-1))[:, 0]
        edges = edges if kind != "zero or more" else torch.linspace(-40.0, 40.0, 400_001).double()
        values, step = (edges[1:] + edges[:-1]) / 2, edges.diff()
    value = (density.log_prob(theta, design, values.unsqueeze(-1)).exp() * step).sum()
    if kind == "zero or more":
        value = value + density.log_prob(theta, design, torch.zeros(1).double()).exp()
    return float(value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "choice and time"])
def test_probabilities_sum_to_one(kind):
    theta, design, outcome = trials(KINDS[kind])
    density = ConditionalDensity(theta, design, outcome).double().requires_grad_(False)
    for row in range(3):
        assert total_probability(density, theta[row].double(), design[row].double(), kind, outcome) == pytest.approx(
            1.0, abs=2e-3
        )


@pytest.mark.parametrize("kind", KINDS)
def test_learned_density_is_calibrated_and_draws_what_it_says(kind):
    torch.manual_seed(1)
    data = [torch.cat(x) for x in zip(*(trials(KINDS[kind]) for _ in range(4)), strict=True)]  # 4,000 leave up to .06
    density = ConditionalDensity(*data)
    fit_density(density, *data, num_steps=300)
    fresh = trials(KINDS[kind])
    ranks = density.ranks(*fresh).detach().double().sort(0).values
    uniform = (torch.arange(NUM).double().unsqueeze(-1) + 0.5) / NUM
    assert (ranks - uniform).abs().max() < 0.03 + 1.63 / math.sqrt(
        NUM
    )  # an error of .03, and the 99 % quantile of chance
    own = density.ranks(fresh[0], fresh[1], density.sample(fresh[0], fresh[1]).detach()).detach().double()
    assert (own.sort(0).values - uniform).abs().max() < 1.95 / math.sqrt(NUM)  # the 99.9 % quantile of chance


def test_learned_likelihoods_are_close_to_the_exact_ones():
    torch.manual_seed(2)
    for kind, exact in (
        ("real", lambda t, d, y: Normal(mean_of(t, d), 0.3).log_prob(y)),
        ("counts", lambda t, d, y: Poisson((mean_of(t, d) + 1.5).exp()).log_prob(y)),
        ("yes or no", lambda t, d, y: (torch.where(y > 0.5, 1.0, -1.0) * mean_of(t, d)).sigmoid().log()),
    ):
        data, fresh = trials(KINDS[kind]), trials(KINDS[kind])
        density = ConditionalDensity(*data)
        fit_density(density, *data, num_steps=300)
        gap = exact(*fresh).squeeze(-1) - density.log_prob(*fresh).detach()
        assert 0 - 3 * gap.std() / math.sqrt(NUM) < gap.mean() < 0.05, kind  # Kullback-Leibler divergence, nats


def test_what_happens_early_in_a_long_range_is_learned():
    """A decay with log rates from −4.6 to 1.1, measured within 100 hours: at most rates all is over in a few hours."""

    def simulate(num, hours):
        theta = torch.stack([1 + 4 * torch.rand(num), 5.7 * torch.rand(num) - 4.6], -1)
        design = hours * torch.rand(num, 1)
        noisy = Normal(theta[:, :1] * (-theta[:, 1:].exp() * design).exp(), 0.1)
        return noisy, (theta, design, noisy.sample())

    data = simulate(20_000, 100.0)[1]
    density = ConditionalDensity(*data)
    fit_density(density, *data, num_steps=500)
    for hours, most in ((100.0, 0.03), (2.0, 0.5)):  # without logs of hours .04 and 1.0
        exact, fresh = simulate(4000, hours)
        gap = exact.log_prob(fresh[2]).squeeze(-1) - density.log_prob(*fresh).detach()
        assert gap.mean() < most + 2 * gap.std() / math.sqrt(len(gap))


def test_draws_have_the_gradients_of_the_distribution_function():
    """Means of draws under the same random numbers move as the mean of the distribution does."""
    torch.manual_seed(3)
    data = trials(lambda t, d: mean_of(t, d) + 0.5 * torch.randn(NUM, 1) + 2.0 * (torch.rand(NUM, 1) < 0.4))
    density = ConditionalDensity(*data)
    fit_density(density, *data, num_steps=300)
    density.double().requires_grad_(False)
    theta = torch.tensor([0.5, 1.0]).double()

    def mean_at(design):
        values = torch.linspace(-8.0, 10.0, 20_001).double().unsqueeze(-1)
        weight = density.log_prob(theta, design, values).exp()
        return (weight * values[:, 0]).sum() / weight.sum()

    design = torch.tensor([0.4]).double().requires_grad_()
    with seeded(0):
        slopes = []
        for _ in range(40):
            drawn = density.sample(theta.expand(2000, -1), design.expand(2000, -1))
            slopes.append(torch.autograd.grad(drawn.mean(), design)[0])
    slopes = torch.stack(slopes)
    exact = (mean_at(design + 1e-4) - mean_at(design - 1e-4)) / 2e-4
    assert (slopes.mean() - exact).abs() < 4 * slopes.std() / math.sqrt(40)
    assert slopes.std() / math.sqrt(40) < 0.1 * exact.abs()


def test_pairs_are_sums_over_terms():
    for a, b in (
        ((5, 1), (4,)),
        ((), (3,)),
        ((2, 1, 3), (4, 1)),
        ((1,), (1,)),
        ((6,), (6,)),
        ((3, 1, 2), (3, 4, 1)),
        ((3, 1, 2), (3, 0, 1)),
    ):
        x, y = torch.randn(*a, 3, 4, dtype=torch.float64), torch.randn(*b, 3, 4, dtype=torch.float64)
        torch.testing.assert_close(_pairs(x, y), (x * y).sum(-1).movedim(-1, 0))


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(1000, 1),
        (3 * torch.randn(1000, 1)).exp(),
        torch.distributions.Cauchy(5.0, 0.1).sample((1000, 1)),
        torch.full((100, 1), 3.0),
    ],
)
def test_scaling_is_inverted_and_knows_its_slope(values):
    scaling, values = Scaling(values), values.double().requires_grad_()
    z = scaling(values)
    torch.testing.assert_close(scaling.inverse(z), values, rtol=1e-5, atol=1e-5)
    slope = torch.autograd.grad(z.sum(), values)[0]
    torch.testing.assert_close(slope.log(), scaling.log_slope(values))


def test_report_finds_a_wrong_density():
    data = trials(KINDS["real"])
    density = ConditionalDensity(*data)
    fit_density(density, *data, num_steps=300)
    good = check_density(density, *data, 0, 0.0)
    wrong = data[0], data[1], data[2] + 0.3
    bad = check_density(density, *wrong, 0, 0.0)
    assert good.calibration_error < good.calibration_noise + 0.03 < bad.calibration_error
    assert bad.log_likelihood < good.log_likelihood - 0.2 and "calibration error" in str(bad)


def test_values_are_read_in_logs_only_if_that_straightens_them():
    uniform, exponent = torch.rand(2000, 1), 3 * torch.randn(2000, 1)
    assert [int(Scaling(x).kind) for x in (24 * uniform + 1e-4, exponent.exp(), (9 * uniform).exp())] == [0, 1, 1]


def test_beyond_the_simulations_it_answers_as_at_their_end():
    """A policy gains nothing by going where nothing was simulated, and all stays finite there."""
    theta, design = 3 * torch.randn(2000, 1), (5 * torch.rand(2000, 1)).exp()
    density = ConditionalDensity(theta, design, theta + design + torch.randn(2000, 1))
    far = torch.tensor([[1e4], [1e30], [0.0], [-1e5]], requires_grad=True)
    ends = torch.where(far.detach() > 1, density.design_scaling.high, density.design_scaling.low).float()
    for at, end in ((far, ends), (torch.full((4, 1), 1e5), theta.max().expand(4, 1))):
        args = (at, ends) if at is not far else (torch.zeros(4, 1), at)
        others = (end, ends) if at is not far else (torch.zeros(4, 1), end)
        value = density.log_prob(*args, torch.zeros(4, 1))
        torch.testing.assert_close(value, density.log_prob(*others, torch.zeros(4, 1)), rtol=1e-4, atol=1e-4)
    gradient = torch.autograd.grad(density.log_prob(torch.zeros(4, 1), far, torch.zeros(4, 1)).sum(), far)[0]
    assert torch.isfinite(gradient).all()
