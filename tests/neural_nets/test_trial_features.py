"""What nets see of a trial: of order one for every model, blind to padding, finite at the edges."""

import copy

import pytest
import torch
from models import LinearGaussian, gaussian_prior
from torch import nn
from torch.distributions import constraints

from sbi_bed.neural_nets.trial_features import TrialFeatures, mlp
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import (
    ConstantElasticity,
    DesignSimulator,
    DesignSpace,
    HyperbolicDiscounting,
    LocationFinding,
    PolicySimulator,
)

MODELS = {
    "location": lambda: LocationFinding(2),
    "discounting": HyperbolicDiscounting,
    "elasticity": ConstantElasticity,
    "gaussian": lambda: LinearGaussian(2),
    "candidates": lambda: DesignSimulator(
        gaussian_prior(1), lambda t, d: t + d, torch.tensor([[900.0], [1000.0], [1200.0]])
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_of_order_one(name):
    simulator = MODELS[name]()
    features = TrialFeatures(simulator)
    design = simulator.design_space.sample((4000,))
    value = features(design, simulator(simulator.prior.sample((4000,)), design))
    assert value.shape == (4000, features.output_dim) and torch.isfinite(value).all()
    outcome = value[:, -1]
    # The outcome's mean and sd were measured on 512 simulations.
    assert abs(float(outcome.mean())) < 5 / 512**0.5
    assert 0.8 < float(outcome.std()) < 1.25
    assert value[:, :-1].abs().amax() <= 12 and 0.3 < float(value[:, :-1].std()) < 3.5


def test_padding_gives_zeros_and_leaves_trials_alone():
    simulator = LocationFinding()
    features = TrialFeatures(simulator)
    x = PolicySimulator(simulator, RandomPolicy(simulator), horizon=5, min_trials=0)(simulator.prior.sample((50,)))
    value, mask = features.of_history(x)
    assert value.shape == (50, 5, 3) and torch.equal(mask.squeeze(-1), x[..., -1])
    assert (value[mask.squeeze(-1) == 0] == 0).all()
    trials = x[x[..., -1] == 1]
    torch.testing.assert_close(value[mask.squeeze(-1) == 1], features(trials[:, :2], trials[:, 2:3]))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_in_a_padded_history_are_finite(name):
    simulator = MODELS[name]()
    x = PolicySimulator(simulator, RandomPolicy(simulator), horizon=3, min_trials=0)(simulator.prior.sample((20,)))
    x.requires_grad_()
    value, _ = TrialFeatures(simulator).of_history(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.isfinite(gradient).all()


def test_building_leaves_the_global_generator_alone_and_repeats():
    simulator = LocationFinding()
    before = torch.get_rng_state()
    first, second = TrialFeatures(simulator), TrialFeatures(simulator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.outcome_mean, second.outcome_mean) and torch.equal(first.outcome_sd, second.outcome_sd)


def test_a_copy_reads_large_outcomes_as_the_original_does():
    simulator = DesignSimulator(gaussian_prior(1), lambda t, d: 1000 * t + d, constraints.real)
    features = TrialFeatures(simulator)
    design, outcome = torch.zeros(3, 1), torch.tensor([[-2000.0], [0.0], [3000.0]])
    assert torch.equal(copy.deepcopy(features)(design, outcome), features(design, outcome))


def test_spaces_whose_free_coordinates_are_fewer():
    mixture = DesignSimulator(
        gaussian_prior(1), lambda t, d: t + d[..., :1], DesignSpace(constraints.simplex, dim=3), reparameterized=True
    )
    features = TrialFeatures(mixture)
    assert features.output_dim == 3  # two for a point of the simplex, one outcome
    assert features(mixture.design_space.sample((5,)), torch.zeros(5, 1)).shape == (5, 3)


def test_mlp():
    net = mlp(2, (3, 4), 5)
    assert [type(layer) for layer in net] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]
    assert net(torch.zeros(7, 2)).shape == (7, 5)
    assert [type(layer) for layer in mlp(2, (), 5)] == [nn.Linear]
