"""A mixture of models is each model where its index says so."""

import math

import pytest
import torch
from models import gaussian_prior
from torch.distributions import constraints

from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import (
    ConstantElasticity,
    DesignSimulator,
    ExponentialDiscounting,
    HyperbolicDiscounting,
    LocationFinding,
    ModelMixture,
    PolicySimulator,
    StochasticEpidemic,
)


def discounting(model_prior=None):
    return ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()], model_prior)


def sources():
    """One source and two: models with different numbers of parameters."""
    return ModelMixture([LocationFinding(1), LocationFinding(2)])


def test_prior_draws_models_and_their_parameters():
    mixture = ModelMixture([LocationFinding(1), LocationFinding(2), LocationFinding(3)], [5.0, 3.0, 2.0])
    theta = mixture.prior.sample((20_000,))
    index = mixture.model_index(theta)
    for j, share in enumerate((0.5, 0.3, 0.2)):
        rows = theta[index == j, 1:]
        assert abs(len(rows) / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)
        assert not rows[:, 2 * (j + 1) :].any()
        assert abs(float(rows[:, : 2 * (j + 1)].std()) - 1) < 0.05
    assert mixture.prior.sample().shape == (7,) and mixture.prior.sample((0, 2)).shape == (0, 2, 7)


def test_prior_density_is_that_of_the_model_with_its_share():
    mixture = ModelMixture([LocationFinding(1), LocationFinding(2)], [0.7, 0.3])
    theta = mixture.prior.sample((50,))
    value = mixture.prior.log_prob(theta)
    for row, density in zip(theta, value.tolist(), strict=True):
        j, dim = int(row[0]), 2 * (int(row[0]) + 1)
        own = torch.distributions.Normal(0.0, 1.0).log_prob(row[1 : 1 + dim]).sum()
        assert density == pytest.approx(float(own) + math.log((0.7, 0.3)[j]), abs=1e-4)
    elsewhere = torch.tensor([[0.5, 0, 0, 0, 0], [0.0, 0, 0, 1, 0], [2.0, 0, 0, 0, 0]])
    assert mixture.prior.log_prob(elsewhere).tolist() == [-math.inf] * 3
    assert not mixture.prior.support.check(elsewhere).any() and mixture.prior.support.check(theta).all()
    assert mixture.prior.support.is_discrete


@pytest.mark.parametrize("mixture", [discounting(), sources()], ids=["discounting", "sources"])
def test_likelihood_and_gradient_are_those_of_the_rows_model(mixture):
    theta = mixture.prior.sample((3, 40))
    design = mixture.design_space.sample((40,)).requires_grad_()
    outcome = mixture(theta, design).detach()
    value = mixture.log_likelihood(theta, design, outcome)
    (gradient,) = torch.autograd.grad(value.sum(), design)
    alone = torch.zeros_like(gradient)
    for i in range(3):
        for n in range(40):
            simulator = mixture.simulators[int(theta[i, n, 0])]
            xi = design[n].detach().requires_grad_()
            single = simulator.log_likelihood(theta[i, n, 1 : 1 + simulator.theta_dim], xi, outcome[i, n])
            assert float(single.detach()) == pytest.approx(float(value[i, n].detach()), rel=1e-5, abs=1e-6)
            alone[n] += torch.autograd.grad(single, xi)[0]
    torch.testing.assert_close(gradient, alone, rtol=1e-4, atol=1e-5)


def test_outcomes_are_distributed_as_the_rows_model_says():
    mixture, design = discounting(), torch.tensor([10.0, 300.0])
    theta = torch.tensor([[0.0, math.log(0.01), 20.0], [1.0, math.log(0.01), 20.0]])
    share = mixture(theta.expand(20_000, 2, 3), design).mean((0, 2))
    expected = mixture.log_likelihood(theta, design, torch.ones(1)).exp()
    assert expected[0] - expected[1] > 0.2
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt()).all()


def test_a_model_that_is_not_the_rows_leaves_values_and_gradients_finite():
    """The other model would divide by the padding's zero."""

    def simulator(dim, log_likelihood):
        def draw(theta, design):
            return log_likelihood(theta, design).unsqueeze(-1)

        space = constraints.interval(0.0, 1.0)
        return DesignSimulator(
            gaussian_prior(dim), draw, space, lambda theta, design, y: log_likelihood(theta, design) + 0 * y.squeeze(-1)
        )

    mixture = ModelMixture(
        [
            simulator(1, lambda theta, design: theta[..., 0] * design[..., 0]),
            simulator(2, lambda theta, design: design[..., 0] / theta[..., 1]),
        ]
    )
    theta = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 2.0]], requires_grad=True)
    value = mixture.log_likelihood(theta, torch.tensor([0.5]), torch.zeros(1))
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    assert value.tolist() == [0.5, 0.25] and torch.isfinite(gradient).all()


def test_partly_discrete_outcomes_keep_their_discrete_part():
    mixture = ModelMixture([ConstantElasticity(), ConstantElasticity()])
    theta, design = mixture.prior.sample((30,)), mixture.design_space.sample((30,))
    outcome = mixture(theta, design)
    assert mixture.reparameterized and not mixture.pathwise
    torch.testing.assert_close(
        mixture.log_discrete(theta, design, outcome), ConstantElasticity().log_discrete(theta[:, 1:], design, outcome)
    )
    assert sources().pathwise and not discounting().reparameterized


def test_a_policy_runs_it():
    mixture = discounting()
    x = PolicySimulator(mixture, RandomPolicy(mixture), horizon=3)(mixture.prior.sample((5,)))
    assert x.shape == (5, 3, 4) and torch.isfinite(x).all()


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="got none"):
        ModelMixture([])
    with pytest.raises(TypeError, match=r"simulators\[1\] must be a DesignSimulator"):
        ModelMixture([LocationFinding(), 3])  # pyright: ignore
    with pytest.raises(ValueError, match="share one design space"):
        ModelMixture([LocationFinding(), HyperbolicDiscounting()])
    with pytest.raises(ValueError, match="share one outcome space"):
        other = DesignSimulator(
            gaussian_prior(2), lambda theta, design: theta, LocationFinding().design_space, None, (2,)
        )
        ModelMixture([LocationFinding(), other])
    with pytest.raises(ValueError, match="hidden state"):
        ModelMixture([StochasticEpidemic()])
    with pytest.raises(ValueError, match="2 positive weights"):
        discounting([0.5, -0.5])
