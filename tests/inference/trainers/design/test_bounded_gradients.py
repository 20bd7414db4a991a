"""Designs are the policy's own; what one history sends back into one design is bounded, in free coordinates."""

import pytest
import torch
from models import LinearGaussian, TinyPolicy
from torch.distributions import constraints

from sbi_bed.inference.trainers.design.bounded_gradients import BoundedGradients
from sbi_bed.policies import StaticPolicy
from sbi_bed.simulators import DesignSimulator, DesignSpace, LocationFinding, rollout

SPACES = {
    "real": DesignSpace(constraints.real, dim=2, scale=3.0),
    "box": DesignSpace(constraints.interval(torch.zeros(2), torch.tensor([1.0, 100.0]))),
    "positive": DesignSpace(constraints.positive, dim=2),
    "candidates": DesignSpace(candidates=[[0.0, 1.0], [2.0, 50.0], [5.0, 80.0]]),
}


class Remember(torch.nn.Module):
    """A policy of free designs (B, F), one for each history."""

    def __init__(self, space, batch):
        super().__init__()
        self.space, self.free = space, torch.nn.Parameter(torch.randn(batch, space.free_dim))

    def propose(self, state):
        return self.space.from_free(self.free)


@pytest.mark.parametrize("name", SPACES)
def test_gradients_are_scaled_down_to_the_bound_and_no_further(name):
    torch.manual_seed(0)
    space, batch = SPACES[name], 6
    policy = Remember(space, batch)
    slopes = torch.randn(batch, 2) * torch.logspace(-4, 4, batch).unsqueeze(-1)
    plain = BoundedGradients(policy, space, float("inf")).propose(None)
    bounded = BoundedGradients(policy, space, 1.0).propose(None)
    assert torch.equal(plain, policy.propose(None)) and torch.equal(bounded, plain)
    (full,) = torch.autograd.grad((slopes * plain).sum(-1).mean(), plain)
    sent = []
    bounded.register_hook(sent.append)
    design = bounded.detach()
    (gradient,) = torch.autograd.grad((slopes * bounded).sum(-1).mean(), policy.free, retain_graph=True)
    (expected,) = torch.autograd.grad((slopes * policy.propose(None)).sum(-1).mean(), policy.free)
    norm = space.free_gradient(design, full).norm(dim=-1, keepdim=True) * batch
    torch.testing.assert_close(gradient, expected * (1 / norm).clamp(max=1.0), rtol=1e-4, atol=1e-8)
    assert (norm > 1).any() and (norm < 1).any()


@pytest.mark.parametrize("name", ["real", "box", "positive"])
def test_free_gradients_are_those_of_the_bijection(name):
    space = SPACES[name]
    free = torch.randn(5, 2).double().requires_grad_()
    design = space.parts[0]._bijection(space.parts[0]._constants[0] + space.parts[0]._constants[1] * free)
    slopes = torch.randn(5, 2).double()
    (expected,) = torch.autograd.grad((slopes * design).sum(), free)
    torch.testing.assert_close(space.free_gradient(design, slopes), expected, rtol=1e-6, atol=1e-9)


def test_a_rollout_under_a_large_bound_is_unchanged():
    simulator = LinearGaussian()
    policy = TinyPolicy(simulator)
    gradients = []
    for wrapped in (policy, BoundedGradients(policy, simulator.design_space, 1e9)):
        torch.manual_seed(1)
        trials = rollout(simulator, wrapped, simulator.prior.sample((20,)), 3)
        gradients.append(torch.autograd.grad(trials.outcomes.square().mean(), policy.weights)[0])
    torch.testing.assert_close(*gradients)


def test_one_steep_history_no_longer_drowns_the_others():
    """Of 100 histories one has a gradient 10^4 times as large, the other way."""
    space = DesignSpace(constraints.real)
    simulator = DesignSimulator(LinearGaussian().prior, lambda t, d: t + d, space)
    policy = StaticPolicy(simulator, 1)
    slopes = torch.full((100, 1), 1.0)
    slopes[0] = -1e4
    for bound, sign in ((1e9, -1), (1.0, 1)):
        wrapped = BoundedGradients(policy, space, bound)
        design = wrapped.propose(wrapped.initial_state((100,)))
        (gradient,) = torch.autograd.grad((slopes * design).mean(), policy.free)
        assert torch.sign(gradient).item() == sign


def test_nothing_is_asked_of_designs_without_gradient():
    simulator = LocationFinding()
    policy = StaticPolicy(simulator, 2, torch.ones(2, 2))
    wrapped = BoundedGradients(policy, simulator.design_space, 1.0)
    assert not wrapped.propose(wrapped.initial_state((3,))).requires_grad
