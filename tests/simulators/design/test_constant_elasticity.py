"""CES: prior, censored likelihood and its gradients."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sbi_bed.simulators import ConstantElasticity
from sbi_bed.simulators.base import prior_log_prob

EPSILON, TAU = 2.0**-22, 0.005


def reference_moments(theta, design):
    """Mean and sd of η, written as in the paper, float64 and linear space."""
    rho, b1, b2, log_u = theta
    alpha = np.array([b1, (1 - b1) * b2, (1 - b1) * (1 - b2)])
    left, right = np.asarray(design[:3]), np.asarray(design[3:])

    def utility(basket):
        return (alpha @ basket**rho) ** (1 / rho)

    u = math.exp(log_u)
    return u * (utility(left) - utility(right)), TAU * u * (1 + np.linalg.norm(left - right))


def reference_log_likelihood(theta, design, y):
    mean, sd = reference_moments(theta, design)
    end = math.log(EPSILON) - math.log1p(-EPSILON)
    if y <= EPSILON:
        return stats.norm.logcdf(end, mean, sd)
    if y >= 1 - EPSILON:
        return stats.norm.logsf(-end, mean, sd)
    return stats.norm.logpdf(math.log(y) - math.log1p(-y), mean, sd) - math.log(y) - math.log1p(-y)


def draws(n, dtype=torch.float64):
    simulator = ConstantElasticity()
    return simulator, simulator.prior.sample((n,)).to(dtype), simulator.design_space.sample((n,)).to(dtype)


def test_prior_weights_are_dirichlet():
    n = 30_000
    theta = ConstantElasticity().prior.sample((n,)).double()
    alpha = torch.stack(ConstantElasticity.log_weights(theta), -1).exp()
    torch.testing.assert_close(alpha.sum(-1), torch.ones(n).double())
    # Dirichlet(1, 1, 1): every margin Beta(1, 2), mean 1/3, variance 1/18, covariance −1/36; uniform on the simplex.
    for margin in alpha.T:
        assert stats.kstest(margin.numpy(), stats.beta(1, 2).cdf).pvalue > 1e-3
    covariance = torch.cov(alpha.T)
    expected = torch.full((3, 3), -1 / 36).double() + torch.eye(3).double() * (1 / 18 + 1 / 36)
    torch.testing.assert_close(covariance, expected, atol=4 / 18 / math.sqrt(n), rtol=0)
    assert stats.kstest((alpha[:, 0] / (alpha[:, 0] + alpha[:, 2])).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest((alpha.amax(-1)).numpy(), lambda m: _largest_share_cdf(m)).pvalue > 1e-3


def _largest_share_cdf(m):
    """P(max α ≤ m) for a uniform point of the simplex (largest of three spacings)."""
    terms = [(-1) ** j * math.comb(3, j) * np.clip(1 - j * np.asarray(m), 0, None) ** 2 for j in range(4)]
    return np.clip(sum(terms), 0, 1)


def test_prior_of_elasticity_and_scale():
    theta = ConstantElasticity().prior.sample((20_000,)).double().numpy()
    assert theta[:, 0].min() >= 0.01 and theta[:, 0].max() <= 1
    assert stats.kstest(theta[:, 0], stats.uniform(0.01, 0.99).cdf).pvalue > 1e-3
    assert stats.kstest(theta[:, 3], stats.norm(1, 3).cdf).pvalue > 1e-3
    correlation = np.corrcoef(theta.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(20_000)


def test_prior_density():
    prior = ConstantElasticity().prior
    theta = torch.tensor([[0.5, 0.2, 0.3, 2.0], [0.5, 1.2, 0.3, 2.0], [0.001, 0.2, 0.3, 2.0], [0.5, 0.2, 0.3, -7.0]])
    expected = [
        math.log(1 / 0.99) + stats.beta(1, 2).logpdf(0.2) + stats.norm(1, 3).logpdf(log_u) for log_u in (2.0, -7.0)
    ]
    value = prior_log_prob(prior, theta)
    assert value[[1, 2]].tolist() == [-math.inf, -math.inf]
    torch.testing.assert_close(
        value[[0, 3]].double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        prior_log_prob(prior, theta.double())[[0, 3]], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )


def test_moments_follow_the_paper():
    simulator, theta, design = draws(300)
    mean, sd = simulator.slider_moments(theta, design)
    expected = torch.tensor([reference_moments(t, d) for t, d in zip(theta.tolist(), design.numpy(), strict=True)])
    torch.testing.assert_close(sd, expected[:, 1], rtol=1e-12, atol=0)
    torch.testing.assert_close(mean / sd, expected[:, 0] / expected[:, 1], rtol=1e-9, atol=1e-9)


def test_likelihood_is_the_censored_logit_normal():
    simulator, theta, design = draws(400)
    outcome = simulator(theta, design)
    outcome[:40] = EPSILON
    outcome[40:80] = 1 - EPSILON
    outcome[80:120] = torch.rand(40, 1).double()
    expected = torch.tensor(
        [
            reference_log_likelihood(t, d, float(y))
            for t, d, y in zip(theta.tolist(), design.numpy(), outcome, strict=True)
        ]
    )
    assert (outcome <= EPSILON).any() and (outcome >= 1 - EPSILON).any() and ((outcome > 0.01) & (outcome < 0.99)).any()
    torch.testing.assert_close(simulator.log_likelihood(theta, design, outcome), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("theta", "design"),
    [
        ([0.5, 0.3, 0.5, -1.0], [30.0, 40.0, 50.0, 35.0, 40.0, 42.0]),
        ([0.9, 0.1, 0.2, 1.0], [30.0, 40.0, 50.0, 31.0, 44.0, 45.0]),
        ([0.05, 0.6, 0.9, 3.0], [10.0, 90.0, 5.0, 11.0, 80.0, 9.0]),
        ([0.3, 0.4, 0.5, 0.0], [20.0, 20.0, 20.0, 20.0, 20.0, 20.0]),
    ],
)
def test_point_masses_and_density_add_up_to_one(theta, design):
    simulator = ConstantElasticity()
    theta_, design_ = torch.tensor(theta, dtype=torch.float64), torch.tensor(design, dtype=torch.float64)

    def likelihood(y):
        return math.exp(simulator.log_likelihood(theta_, design_, torch.tensor([y], dtype=torch.float64)))

    mean, sd = reference_moments(theta, np.array(design))
    end = -math.log(EPSILON) + math.log1p(-EPSILON)

    def in_logits(eta):
        y = 1 / (1 + math.exp(-eta))
        return likelihood(y) * y * (1 - y)

    low, high = max(-end, mean - 12 * sd), min(end, mean + 12 * sd)
    inside = (
        integrate.quad(in_logits, low, high, points=[min(max(mean, low), high)], epsabs=1e-12, limit=500)[0]
        if low < high
        else 0.0
    )
    assert likelihood(EPSILON) + inside + likelihood(1 - EPSILON) == pytest.approx(1.0, abs=1e-8)


def test_outcomes_are_distributed_as_the_likelihood_says():
    simulator, n = ConstantElasticity(), 20_000
    design = torch.tensor([30.0, 40.0, 50.0, 31.0, 44.0, 43.0], dtype=torch.float64)
    theta = torch.tensor([0.9, 0.1, 0.2, 0.0], dtype=torch.float64)
    theta[3] = math.log(
        15.2 / abs(reference_moments(theta.tolist(), design.numpy())[0])
    )  # just inside the end of the slider
    outcome = simulator(theta.expand(n, 4), design).squeeze(-1)
    mean, sd = reference_moments(theta.tolist(), design.numpy())
    end = -math.log(EPSILON) + math.log1p(-EPSILON)
    at_high, at_low = stats.norm.sf(end, mean, sd), stats.norm.cdf(-end, mean, sd)
    for observed, p in [((outcome >= 1 - EPSILON), at_high), ((outcome <= EPSILON), at_low)]:
        assert abs(float(observed.double().mean()) - p) <= 4 * math.sqrt(p * (1 - p) / n) + 1e-12
    inside = outcome[(outcome > EPSILON) & (outcome < 1 - EPSILON)]
    assert 0.1 < len(inside) / n < 0.9
    eta = torch.logit(inside).numpy()
    assert stats.kstest(eta, stats.truncnorm((-end - mean) / sd, (end - mean) / sd, mean, sd).cdf).pvalue > 1e-3


def test_leading_dimensions_broadcast():
    simulator, theta, design = draws(3)
    value = simulator.log_likelihood(theta.unsqueeze(1), design, torch.full((5, 1, 1, 1), 0.3).double())
    assert value.shape == (5, 3, 3)
    torch.testing.assert_close(
        value[4, 2, 1], simulator.log_likelihood(theta[2], design[1], torch.tensor([0.3]).double())
    )
    assert simulator(theta.unsqueeze(1), design).shape == (3, 3, 1)


@pytest.mark.parametrize("place", ["anywhere", "near the edges", "equal baskets"])
@pytest.mark.parametrize("outcome", ["own", "low", "high", "middle"])
def test_gradients_in_the_design_are_finite_and_not_zero(place, outcome):
    simulator, theta, design = draws(2000, torch.float32)
    theta[:200, 3], theta[200:400, 3] = 13.0, -11.0  # u four standard deviations out, both ways
    theta[400:500, 0], theta[500:600, 0] = 0.01, 1.0
    if place == "near the edges":
        design = torch.where(
            torch.rand_like(design) < 0.5, 1e-3 * torch.rand_like(design) + 1e-5, 100 - 1e-3 * torch.rand_like(design)
        )
    elif place == "equal baskets":
        design[:, 3:] = design[:, :3]
    y = {"low": EPSILON, "high": 1 - EPSILON, "middle": 0.4}.get(outcome)
    y = simulator(theta, design) if y is None else torch.full((2000, 1), y)
    design.requires_grad_()
    value = simulator.log_likelihood(theta, design, y)
    (gradient,) = torch.autograd.grad(value.sum(), design)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    # A foregone conclusion (the end that was bound to be reached) has likelihood 1, log 0, and nothing to say; equal
    # baskets answered with exactly one half are at the top of a ridge.
    foregone = (value.detach().abs() < 1e-20) | (y.squeeze(-1) == 0.5)
    assert (gradient.abs().amax(-1)[~foregone] > 0).all()
    assert (~foregone).double().mean() > 0.25


def test_gradients_in_theta_are_finite():
    simulator, theta, design = draws(2000, torch.float32)
    outcome = simulator(theta, design)
    theta.requires_grad_()
    (gradient,) = torch.autograd.grad(simulator.log_likelihood(theta, design, outcome).sum(), theta)
    assert torch.isfinite(gradient).all()


def test_single_precision_is_good_enough():
    """Rounding a slider near 1 to float32 moves its logit by up to 0.12; few outcomes are there and not clipped."""
    simulator, theta, design = draws(50_000)
    outcome = simulator(theta, design)
    exact = simulator.log_likelihood(theta, design, outcome)
    single = simulator.log_likelihood(theta.float(), design.float(), outcome.float()).double()
    error = (single - exact).abs()
    assert error.median() < 1e-4
    assert (error > 0.1).double().mean() < 0.006
    away = outcome.squeeze(-1) < 1 - 1e-3
    assert error[away].max() < 0.1


def test_outcome_space():
    simulator = ConstantElasticity()
    assert torch.isfinite(simulator.standardize_outcome(torch.tensor([[EPSILON], [1 - EPSILON], [0.5]]))).all()
    with pytest.raises(ValueError, match="outside the outcome space"):
        simulator.check_outcome([1.5])


def test_gradient_of_a_censored_expectation():
    """d/dξ E[g(y)] for a g that jumps at the ends: score of the place plus pathwise between, against quadrature."""
    simulator = ConstantElasticity()
    theta = torch.tensor(
        [0.5, 0.3, 0.4, 7.0], dtype=torch.float64
    )  # u so large that both ends and the middle are likely

    def gain(y):
        inside = (y > EPSILON) & (y < 1 - EPSILON)
        return torch.where(inside, torch.logit(y.clamp(EPSILON, 1 - EPSILON)), torch.where(y > 0.5, 40.0, -5.0))

    design = torch.tensor([30.0, 40.0, 50.0, 30.0, 40.0, 50.001], dtype=torch.float64, requires_grad=True)
    mean, sd = simulator.slider_moments(theta, design)
    bound = math.log1p(-EPSILON) - math.log(EPSILON)
    normal = torch.distributions.Normal(mean, sd)
    eta = torch.linspace(-bound, bound, 20_001, dtype=torch.float64)
    between = torch.trapezoid(eta * normal.log_prob(eta).exp(), eta)
    exact = between - 5 * normal.cdf(torch.tensor(-bound)) + 40 * (1 - normal.cdf(torch.tensor(bound)))
    (expected,) = torch.autograd.grad(exact, design)
    count = 200_000
    designs = design.detach().expand(count, 6).clone().requires_grad_()
    y = simulator(theta, designs)
    place = simulator.log_discrete(theta, designs, y.detach())
    gains = gain(y).squeeze(-1)
    (each,) = torch.autograd.grad((gains + gains.detach() * place).sum(), designs)
    stderr = each.std(0) / count**0.5
    assert ((each.mean(0) - expected).abs() < 4 * stderr).all()
    (pathwise,) = torch.autograd.grad(gain(simulator(theta, designs)).sum(), designs)
    assert ((pathwise.mean(0) - expected).abs() > 10 * stderr).any()  # without the score the gradient is wrong
