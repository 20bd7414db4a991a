"""What data leave open, against laws that are known; and experiments that resolve it."""

import pytest
import torch

from sbi_bed.diagnostics import identifiability, resolving_designs
from sbi_bed.diagnostics.actors.identifiability import fisher_information
from sbi_bed.inference import batched_posteriors
from sbi_bed.simulators import BayesianActor, DesignSimulator, OptimalActor, QuadraticEffortCost
from sbi_bed.utils import pack_history

THETA = torch.tensor([0.2, 1.5, 0.15, 0.9])


def test_normal_covariances():
    """λ and v of C v = λ C_0 v, from exact draws of both."""
    torch.manual_seed(0)
    prior = torch.randn(50_000, 3)
    root = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, -0.5, 0.01]])
    report = identifiability(prior @ root.T, torch.randn(50_000, 3), ["a", "b", "c"])
    assert report.correlation[1, 2].item() == pytest.approx(-1, abs=1e-3)
    expected = torch.tensor([0.0, 1.0, -1.0]).double() / 2**0.5
    assert (report.direction.abs() - expected.abs()).abs().max() < 0.01 and report.direction[1:].prod() < 0
    assert report.direction_share_left == pytest.approx(0.5, rel=0.03)
    assert report.share_left[0].item() == pytest.approx(0.01, rel=0.05)
    assert "along the ridge 50%" in str(report)


@pytest.mark.filterwarnings("ignore:the chains of")
def test_ridge_of_quadratic_cost_with_effort():
    """log β + (1 − w) log μ_0 = const, exactly; correlation below −.8 with one noise level."""
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()))
    torch.manual_seed(0)
    stimuli = simulator.design_space.sample((2, 60))
    posterior = batched_posteriors(simulator, pack_history(stimuli, simulator(THETA, stimuli)), seed=0)
    report = identifiability(posterior.theta[:, 0], simulator.prior.sample((4000,)), simulator.parameter_names)
    assert report.correlation[1, 3] < -0.8
    weight = 0.5  # σ_0 = σ
    assert (report.direction[3] / report.direction[1]).item() == pytest.approx(-(1 - weight), abs=0.08)
    assert report.direction[[0, 2]].abs().max() < 0.15 and report.share_left[3] > 0.5


def test_fisher_information_of_a_regression():
    """y ~ N(θ_1 + θ_2 ξ, 1): F = (1, ξ)(1, ξ)ᵀ."""
    simulator = line()
    designs = torch.tensor([[0.5], [2.0]])
    found = fisher_information(simulator, torch.zeros(1, 2), designs, 20_000, seed=0)[0]
    for value, design in zip(found, designs, strict=True):
        features = torch.cat([torch.ones(1), design])
        torch.testing.assert_close(value, features.outer(features), rtol=0.05, atol=0.01)


def test_the_best_experiment_for_a_slope():
    """D-optimal for the slope alone: all trials at the ends, half and half (its intercept is unknown)."""
    candidates = torch.linspace(-2, 2, 9).unsqueeze(-1)
    found = resolving_designs(line(), torch.randn(50, 2), [1], candidates, 20, num_outcomes=4000, seed=0)
    assert found.counts.sum() == 20 and found.designs.shape == (20, 1)
    assert found.counts[0] + found.counts[-1] >= 18 and (found.counts[0] - found.counts[-1]).abs() <= 4
    assert found.expected_sd.item() == pytest.approx((1 / (1 + 20 * 4)) ** 0.5, rel=0.05)
    assert found.expected_sd < found.uniform_sd


@pytest.mark.filterwarnings("ignore:the chains of")
def test_designed_noise_levels_resolve_prior_and_cost():
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()), noise_range=(0.05, 0.4))
    grid = torch.cartesian_prod(torch.tensor([0.3, 1.0, 5.0]), torch.tensor([0.05, 0.2, 0.4]))
    found = resolving_designs(simulator, simulator.prior.sample((200,)), [1], grid, 60, num_outcomes=64, seed=0)
    assert set(found.designs[:, 1].tolist()) >= {grid[0, 1].item(), grid[2, 1].item()}  # extremes of noise
    torch.manual_seed(0)
    designs = torch.stack([found.designs, torch.cat([torch.rand(60, 1) * 6.9 + 0.1, torch.full((60, 1), 0.2)], -1)])
    posterior = batched_posteriors(simulator, pack_history(designs, simulator(THETA, designs)), seed=0)
    assert posterior.stddev[0, 1] < 0.5 * posterior.stddev[1, 1]


def test_errors():
    draws = torch.randn(100, 2)
    with pytest.raises(ValueError, match=r"must be \(N, P\) and \(M, P\)"):
        identifiability(draws, torch.randn(100, 3))
    with pytest.raises(ValueError, match="at least 4 draws"):
        identifiability(draws[:3], draws)
    with pytest.raises(ValueError, match="names must have one entry for each of 2"):
        identifiability(draws, draws, ["a"])
    with pytest.raises(ValueError, match="theta_2 does not vary in draws"):
        identifiability(draws * torch.tensor([1.0, 0.0]), draws)
    with pytest.raises(ValueError, match="of_interest must be indices below 2"):
        resolving_designs(line(), draws, [2], torch.zeros(1, 1), 5)
    with pytest.raises(ValueError, match="lies outside the design space"):
        resolving_designs(line(), draws, [1], torch.full((1, 1), 5.0), 5)


def line():
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))

    def mean(theta, design):
        return theta[..., :1] + theta[..., 1:] * design

    return DesignSimulator(
        prior,
        lambda theta, design: mean(theta, design) + torch.randn_like(mean(theta, design)),
        torch.distributions.constraints.interval(-2 * torch.ones(1), 2 * torch.ones(1)),
        lambda theta, design, y: -0.5 * (y - mean(theta, design)).square().sum(-1),
    )
