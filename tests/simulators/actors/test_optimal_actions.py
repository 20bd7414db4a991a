"""Optimal actions: the search against scipy, on costs with two minima, jumps and circles; the actor's face."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from sbi_bed.simulators import (
    AbsoluteEffortCost,
    ActorCost,
    CircularPerception,
    InvertedGaussianCost,
    LogNormalPerception,
    NormalPerception,
    OptimalActor,
    QuadraticCost,
    QuadraticEffortCost,
    ReachingCost,
    minimise_expected_cost,
)
from sbi_bed.simulators.actors.perception import Belief


def double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize("gamma", [0.5, 2.5])
def test_the_search_agrees_with_scipy(gamma):
    location, spread, sigma_r = 0.7, 0.25, 0.3

    def mean_cost(log_action):
        def integrand(u, v):  # both noises standard normal
            r, s = math.exp(log_action + sigma_r * u), math.exp(location + spread * v)
            return -math.exp(-((r - s) ** 2) / (2 * gamma**2) - 0.5 * (u * u + v * v)) / (2 * math.pi)

        return integrate.dblquad(integrand, -6, 6, -6, 6, epsabs=1e-9)[0]

    best = optimize.minimize_scalar(mean_cost, bounds=(0.3, 0.9), method="bounded", options={"xatol": 1e-5}).x
    belief = Belief(*double(location, spread))
    cost, sigma_r_tensor = InvertedGaussianCost(), torch.tensor(sigma_r).double()
    found = minimise_expected_cost(cost, LogNormalPerception(), belief, sigma_r_tensor, {"gamma": double(gamma)[0]})
    assert float(found.log()) == pytest.approx(best, abs=1e-4)


def test_the_better_of_two_minima_is_found():
    """Wells at a third of the state and at three times it; which is deeper depends on a parameter."""

    def wells(response, state, depth):
        ratio = (response / state).log()
        return -torch.exp(-0.5 * ((ratio + 1.1) / 0.2) ** 2) - depth * torch.exp(-0.5 * ((ratio - 1.1) / 0.2) ** 2)

    cost = ActorCost.from_function(wells, {"depth": torch.distributions.Uniform(0.5, 1.5)}, homogeneous=True)
    belief, (sigma_r,) = Belief(*double(0.5, 0.02)), double(0.05)
    depth = torch.tensor([0.9, 1.1]).double()
    found = minimise_expected_cost(cost, LogNormalPerception(), belief, sigma_r, {"depth": depth}).log() - 0.5
    torch.testing.assert_close(found, torch.tensor([-1.1, 1.1]).double(), rtol=0, atol=1e-4)


def test_a_cost_that_jumps():
    """Hit or miss with a window of half-width h: the window is centred on the mode of a normal belief."""
    cost = ActorCost.from_function(lambda r, s: (r - s).abs() > 0.3, shift_invariant=True)
    belief, (sigma_r,) = Belief(*double(1.2, 0.5)), double(0.4)
    found = minimise_expected_cost(cost, NormalPerception(), belief, sigma_r, {})
    assert float(found) == pytest.approx(1.2, abs=1e-5)


def test_angles_wrap():
    cost = ActorCost.from_function(lambda r, s: 1 - torch.cos(r - s), shift_invariant=True)
    actor = OptimalActor(cost, CircularPerception())
    m = torch.tensor([3.1, -3.1, 0.4]).double()
    action = actor(m, sigma=0.3, sigma_0=0.4, mu_0=torch.tensor(-3.0).double(), sigma_r=0.2)
    belief = CircularPerception().belief(m, 0.3, 0.4, torch.tensor(-3.0).double())
    gap = CircularPerception().wrap(action - belief.location)
    assert gap.abs().max() < 1e-5 and action.abs().max() <= math.pi


def test_shapes_broadcast_and_precision_is_kept():
    actor = OptimalActor(AbsoluteEffortCost())
    beta = torch.tensor([[0.6], [0.9]])
    action = actor(torch.tensor([1.0, 2.0, 3.0]), sigma=0.2, sigma_0=0.3, mu_0=1.5, sigma_r=0.1, beta=beta)
    assert action.shape == (2, 3) and action.dtype == torch.float32 and actor.training_box is None
    alone = actor(torch.tensor(2.0), sigma=0.2, sigma_0=0.3, mu_0=1.5, sigma_r=0.1, beta=0.9)
    assert float(alone) == pytest.approx(float(action[1, 1]), rel=1e-6)
    searched = OptimalActor(InvertedGaussianCost())
    empty = searched(torch.zeros(0), sigma=0.2, sigma_0=0.3, mu_0=1.5, sigma_r=0.1, gamma=1.0)
    assert empty.shape == (0,)
    double_action = searched(torch.ones(2, 1).double(), sigma=0.2, sigma_0=0.3, mu_0=1.5, sigma_r=0.1, gamma=1.0)
    assert double_action.shape == (2, 1) and double_action.dtype == torch.float64


def test_actions_are_differentiable_in_closed_form():
    actor = OptimalActor(QuadraticEffortCost())
    m, beta = torch.tensor(2.0, requires_grad=True), torch.tensor(0.8, requires_grad=True)
    action = actor(m, sigma=0.2, sigma_0=0.2, mu_0=1.5, sigma_r=0.1, beta=beta)
    slope_m, slope_beta = torch.autograd.grad(action, [m, beta])
    np.testing.assert_allclose([float(slope_m), float(slope_beta)], [action.item() / 4, action.item() / 0.8], rtol=1e-5)


def test_errors_say_what_is_wrong():
    given = {"sigma": 0.1, "sigma_0": 0.1, "mu_0": 1.0, "sigma_r": 0.1}
    with pytest.raises(TypeError, match="cost must be an ActorCost"):
        OptimalActor(lambda r, s: r)
    with pytest.raises(TypeError, match="perception must be a Perception"):
        OptimalActor(QuadraticCost(), "normal")
    with pytest.raises(ValueError, match="must have the same number"):
        OptimalActor(ReachingCost(), NormalPerception())
    with pytest.raises(ValueError, match="is infinite"):
        OptimalActor(ActorCost.from_function(lambda r, s: torch.exp(r - s) - (r - s) - 1))
    actor = OptimalActor(QuadraticCost())
    with pytest.raises(ValueError, match=r"sigma_r must be positive, got -0\.1"):
        actor(torch.tensor(1.0), **(given | {"sigma_r": -0.1}))
    with pytest.raises(ValueError, match="measurement must be positive"):
        actor(torch.tensor([1.0, -1.0]), **given)
    with pytest.raises(TypeError, match="has parameters: none; got: beta"):
        actor(torch.tensor(1.0), **given, beta=0.3)
