"""Posteriors of many people at once against exact grids."""

import math

import pytest
import torch
from reference import grid_moments
from torch.distributions import MultivariateNormal, Uniform

from sbi_bed import inference
from sbi_bed.inference import batched_posteriors
from sbi_bed.inference.posteriors.batched_posteriors import split_rhat
from sbi_bed.simulators import BayesianActor, DesignSimulator, LocationFinding, OptimalActor, QuadraticCost
from sbi_bed.simulators.actors.truncated import TruncatedIndependent
from sbi_bed.utils import pack_history

THETA = torch.tensor([0.15, 1.5, 0.1])


@pytest.fixture(scope="module")
def simulator():
    return BayesianActor(OptimalActor(QuadraticCost()))


def observe(simulator, num_people, num_trials, seed=0):
    torch.manual_seed(seed)
    stimuli = simulator.design_space.sample((num_people, num_trials))
    return pack_history(stimuli, simulator(THETA, stimuli))


def test_against_the_grid(simulator):
    """Means within .15 sd and sds within 10 %; 400 effective draws at least of each parameter."""
    x = observe(simulator, 2, 60)
    found = batched_posteriors(simulator, x, seed=0)
    for i in range(2):
        low, high = (found.mean[i] - 5 * found.stddev[i]).clamp_min(0.0101), found.mean[i] + 5 * found.stddev[i]
        mean, sd = grid_moments(simulator, x[i], low.tolist(), high.tolist(), num=25)
        assert ((found.mean[i] - mean) / sd).abs().max() < 0.15
        assert (found.stddev[i] / sd - 1).abs().max() < 0.1
    assert (found.effective_sample_size > 400).all() and (found.rhat < 1.02).all()
    assert found.theta.shape == (24 * 64 * 4, 2, 3) and found.num_populations == 4


@pytest.mark.filterwarnings("ignore:the populations of")
def test_padding_changes_nothing(simulator):
    x = observe(simulator, 2, 40)
    settings = {"num_populations": 2, "num_particles": 32, "num_moves": 80, "seed": 0}
    padded = batched_posteriors(simulator, torch.nn.functional.pad(x, (0, 0, 0, 7)), **settings)
    plain = batched_posteriors(simulator, x, **settings)
    torch.testing.assert_close(padded.theta, plain.theta, rtol=1e-6, atol=1e-6)
    assert torch.equal(plain.theta, batched_posteriors(simulator, x, **settings).theta)


def bumps(prior):
    """An experiment whose posterior has two sharp modes, at ±|y|."""
    return DesignSimulator(
        prior,
        lambda theta, design: theta.abs() + torch.randn_like(theta * design),
        torch.distributions.constraints.interval(torch.zeros(1), torch.ones(1)),
        lambda theta, design, y: -5e5 * (y - theta.abs()).square().sum(-1),
    )


def test_modes_get_their_masses():
    """At ±2 the prior N(0.2, 1) has log odds of 0.8; within 4 standard errors of 300 independent draws."""
    prior = MultivariateNormal(torch.tensor([0.2]), torch.eye(1))
    found = batched_posteriors(bumps(prior), torch.tensor([[0.5, 2.0, 1.0]]), num_particles=256, seed=0)
    assert (found.theta > 0).double().mean().item() == pytest.approx(
        1 / (1 + math.exp(-0.8)), abs=4 * (0.21 / 300) ** 0.5
    )


def test_populations_that_disagree_are_named():
    """Eight particles: each population keeps one of two modes, or a share of its own."""
    simulator = bumps(TruncatedIndependent([Uniform(-10.0, 10.0)]))
    with pytest.warns(UserWarning, match="the populations of 1 of 1 experiments disagree") as caught:
        found = batched_posteriors(simulator, torch.tensor([[0.5, 8.0, 1.0]]), num_particles=8, num_moves=80, seed=0)
    assert found.rhat.max() > 1.05 and caught[0].filename == __file__


def test_split_rhat():
    torch.manual_seed(0)
    chains = torch.randn(1000, 5, 4)
    assert (split_rhat(chains) - 1).abs().max() < 0.01
    assert split_rhat(chains + torch.linspace(0, 3, 1000)[:, None, None]).min() > 1.2  # drift shows within a chain


def test_errors(simulator):
    x = observe(simulator, 1, 5)
    with pytest.raises(ValueError, match="there are no histories"):
        batched_posteriors(simulator, x[:0])
    with pytest.raises(ValueError, match="history 1 has no trials"):
        batched_posteriors(simulator, torch.cat([x, 0 * x]))
    with pytest.raises(ValueError, match="must have 3 values in its last dimension"):
        batched_posteriors(simulator, torch.ones(2, 5, 4))
    with pytest.raises(ValueError, match="stimuli must be positive"):
        batched_posteriors(simulator, x * torch.tensor([-1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="lies outside the outcome space"):
        batched_posteriors(simulator, x * torch.tensor([1.0, -1.0, 1.0]))
    silent = DesignSimulator(simulator.prior, simulator.simulate, simulator.design_space)
    with pytest.raises(ValueError, match="with log_likelihood="):
        batched_posteriors(silent, x)


def test_any_simulator_with_a_likelihood():
    simulator = LocationFinding()
    torch.manual_seed(1)
    designs = torch.randn(2, 30, 2)
    theta = torch.tensor([[0.5, 0.5], [-0.5, 0.3]])
    x = pack_history(designs, simulator(theta.unsqueeze(1), designs))
    found = batched_posteriors(simulator, x, num_moves=100, seed=0)
    assert ((found.mean - theta).abs() < 4 * found.stddev + 0.02).all()


@pytest.mark.parametrize(
    "old, new", [("many_posteriors", "batched_posteriors"), ("ManyPosteriors", "BatchedPosteriors")]
)
def test_old_names_still_work_for_one_release(old, new):
    with pytest.warns(FutureWarning, match=f"{old} is now .*{new}"):
        found = getattr(inference, old)
    assert found is getattr(inference, new)
