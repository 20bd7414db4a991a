"""Reaching: the search in two dimensions, the likelihood against simulations, and a trained actor's inference."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import ndtr

from sbi_bed.inference import ActorTrainer, likelihood_posterior
from sbi_bed.neural_nets import NeuralActor
from sbi_bed.simulators import (
    ActorCost,
    OptimalActor,
    QuadraticCost,
    ReachingCost,
    ReachingPerception,
    ReachingTask,
    minimise_expected_cost,
)
from sbi_bed.simulators.actors.perception import Belief
from sbi_bed.utils import pack_history


def untrained(correlation=0.4):
    """An actor that aims beside the target, by how much depending on σ_r."""
    actor = NeuralActor(ReachingCost(), ReachingPerception(correlation))
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return actor.eval()


def test_the_search_in_two_dimensions_finds_the_minimum_of_a_smooth_cost():
    """ℓ = xᵀ A x − 2 bᵀ x of x = r − s has its minimum, whatever the noise, at A⁻¹ b."""
    matrix, vector = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double(), torch.tensor([0.4, -0.3]).double()

    def cost(response, state):
        x = response - state
        return ((x @ matrix) * x).sum(-1) - 2 * x @ vector

    quadratic = ActorCost.from_function(cost, action_dim=2, shift_invariant=True)
    belief = Belief(torch.tensor([1.0, -2.0]).double(), torch.tensor(0.2).double())
    found = minimise_expected_cost(quadratic, ReachingPerception(), belief, torch.tensor(0.4).double(), {})
    torch.testing.assert_close(found - belief.location, torch.linalg.solve(matrix, vector), rtol=0, atol=2e-4)


NODES = np.polynomial.legendre.leggauss(200)


def hit_probability(aim, covariance):
    """Probability of the unit disc under N(aim, covariance): x by Gauss-Legendre nodes in the angle, y exactly."""
    nodes, weights = NODES
    x, half = np.sin(nodes * math.pi / 2), np.cos(nodes * math.pi / 2)
    (variance, shared), (_, other) = covariance
    mean, rest = aim[1] + shared / variance * (x - aim[0]), math.sqrt(other - shared**2 / variance)
    inner = ndtr((half - mean) / rest) - ndtr((-half - mean) / rest)
    density = np.exp(-0.5 * (x - aim[0]) ** 2 / variance) / math.sqrt(2 * math.pi * variance)
    return float((weights * math.pi / 2 * half * density * inner).sum())


@pytest.mark.parametrize(
    ("spread", "sigma_r", "correlation", "penalty", "separation"),
    [(0.05, 0.2, 0.4, 5.0, 1.5), (0.4, 0.8, 0.4, 5.0, 1.5), (0.2, 0.4, -0.7, 3.0, 1.0), (0.48, 0.2, 0.4, 2.0, 2.0)],
)
def test_discs_are_aimed_at_as_exactly_as_quadrature_says(spread, sigma_r, correlation, penalty, separation):
    covariance = spread**2 * np.eye(2) + sigma_r**2 * np.array([[1, correlation], [correlation, 1]])

    def expected(aim):
        return penalty * hit_probability(aim + np.array([separation, 0]), covariance) - hit_probability(aim, covariance)

    starts = [(x, y) for x in (0.0, 0.5) for y in (0.0, 0.3)]
    options = {"xatol": 1e-8, "fatol": 1e-14, "maxiter": 2000}
    found = [optimize.minimize(expected, start, method="Nelder-Mead", options=options) for start in starts]
    exact = min(found, key=lambda result: result.fun).x
    location, *numbers = (torch.tensor(v).double() for v in ([1.0, -2.0], spread, sigma_r, penalty))
    belief, cost = Belief(location, numbers[0]), ReachingCost(separation)
    perception = ReachingPerception(correlation)
    action = minimise_expected_cost(cost, perception, belief, numbers[1], {"penalty": numbers[2]})
    assert np.abs((action - location).numpy() - exact).max() < 2e-3 * math.hypot(spread, sigma_r)


def test_without_penalty_one_aims_at_the_target_and_with_it_beside():
    actor = OptimalActor(ReachingCost(), ReachingPerception(correlation=0.0))
    given = {"sigma": 0.1, "sigma_0": 2.0, "mu_0": 0.0, "sigma_r": torch.tensor([0.4, 0.4, 0.6])}
    aim = actor(torch.zeros(2), **given, penalty=torch.tensor([0.0, 3.0, 3.0]))
    assert aim[0].norm() < 0.03 and 0.1 < aim[1, 0] < aim[2, 0] and aim[1:, 1].abs().max() < 0.03


def test_the_likelihood_is_that_of_the_simulator():
    task = ReachingTask(untrained(), fixed={"mu_0": 0.5})
    assert task.names == ("sigma", "sigma_0", "sigma_r", "penalty")
    theta, design = torch.tensor([0.4, 0.6, 0.3, 2.0]), torch.tensor([1.0, -2.0])
    num = 40_000
    outcome = task(theta.expand(num, 4), design)
    axis = torch.linspace(-4, 4, 401)
    points = outcome.mean(0) + torch.cartesian_prod(axis, axis)
    density = task.log_likelihood(theta, design, points).double().exp() * 0.02**2
    assert float(density.detach().sum()) == pytest.approx(1, abs=1e-5)
    mean = density @ points.double()
    gap = points.double() - mean
    covariance = torch.einsum("n,ni,nj->ij", density, gap, gap)
    stderr = covariance.diagonal().sqrt() / math.sqrt(num)
    assert ((outcome.mean(0) - mean).abs() < 4 * stderr).all()
    torch.testing.assert_close(
        outcome.double().T.cov(), covariance, rtol=0, atol=5 * float(covariance.max()) * math.sqrt(2 / num)
    )


def test_leading_dimensions_broadcast_and_gradients_flow():
    task = ReachingTask(untrained())
    theta, designs = task.prior.sample((4, 1)).requires_grad_(), task.design_space.sample((3,))
    outcome = task(theta, designs)
    value = task.log_likelihood(theta, designs, outcome.detach())
    assert outcome.shape == (4, 3, 2) and value.shape == (4, 3)
    (slope,) = torch.autograd.grad(value.sum(), theta)
    assert torch.isfinite(slope).all() and (slope.abs().sum((0, 1)) > 0).all()


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="separation must be positive"):
        ReachingCost(separation=0.0)
    with pytest.raises(ValueError, match="must be for a ReachingCost"):
        ReachingTask(OptimalActor(QuadraticCost()))
    with pytest.raises(ValueError, match="no parameter 'gain'"):
        ReachingTask(untrained(), fixed={"gain": 1.0})


@pytest.mark.slow
def test_a_trained_actor_is_accurate_and_its_parameters_are_recovered():
    trainer = ActorTrainer(ReachingCost(), ReachingPerception(), show_progress_bars=False)
    actor = trainer.train(1500, batch_size=64, seed=0, num_validation=40)
    assert trainer.errors.median < 0.05 and trainer.errors.upper < 0.15  # of the noise
    task = ReachingTask(actor)
    truth = torch.tensor([0.5, 0.4, 2.0])
    designs = 6 * torch.rand(80, 2) - 3
    history = pack_history(designs, task(truth, designs).detach())
    posterior = likelihood_posterior(task, history, "smc", num_particles=1000, seed=0)
    draws = posterior.sample((4000,))
    sd = draws.std(0)
    assert ((draws.mean(0) - truth).abs() < 4 * sd).all()
    assert (sd < torch.tensor([0.15, 0.05, 1.0])).all()  # the prior's are 0.55, 0.17 and 1.44
