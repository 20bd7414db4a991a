"""Responses of a Bayesian actor: likelihood against dense quadrature and closed forms, priors, errors."""

import math

import pytest
import torch
from torch.distributions import Uniform

from sbi_bed.neural_nets import NeuralActor
from sbi_bed.simulators import (
    AbsoluteEffortCost,
    ActorCost,
    BayesianActor,
    CircularPerception,
    NormalPerception,
    OptimalActor,
    PinballCost,
    QuadraticCost,
    QuadraticEffortCost,
)
from sbi_bed.simulators.actors.truncated import TruncatedIndependent


def dense(simulator, theta, design, response, num=4001):
    """log p(r | s, θ) by the trapezoidal rule over ±9 sd of the measurement, for flat batches."""
    perception, values = simulator.perception, simulator.parameters(theta.unsqueeze(-2), design.unsqueeze(-2))
    x_s = perception.to_coordinate(design[..., :1])
    z = x_s + values["sigma"] * torch.linspace(-9, 9, num, dtype=theta.dtype)
    action = simulator.actor(perception.from_coordinate(z), **values)
    log_f = perception.noise_log_prob(z - x_s, values["sigma"])
    log_f = log_f + perception.log_prob_response(response, action, values["sigma_r"])
    return torch.logsumexp(log_f, -1) + (z[..., 1] - z[..., 0]).log()


def draw(simulator, num, seed=0):
    torch.manual_seed(seed)
    theta, design = simulator.prior.sample((num,)).double(), simulator.design_space.sample((num,)).double()
    return theta, design, simulator(theta, design)


@pytest.mark.parametrize("cost", [QuadraticCost(), QuadraticEffortCost(), PinballCost()], ids=lambda cost: cost.name)
def test_costs_that_scale_have_an_exact_density(cost):
    """Against quadrature that knows of no power law; σ is free, too."""
    simulator = BayesianActor(OptimalActor(cost), fixed={})
    assert simulator.power_law
    theta, design, response = draw(simulator, 50)
    exact = dense(simulator, theta, design, response, 12_001)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, response), exact, atol=1e-6, rtol=0)


def test_quadratic_cost_by_hand():
    simulator = BayesianActor(OptimalActor(QuadraticCost()))
    theta, s, r = (torch.tensor(value, dtype=torch.float64) for value in ([0.15, 1.5, 0.1], [2.0], [1.7]))
    weight = 0.15**2 / (0.15**2 + 0.2**2)
    log_k = 0.5 * weight * 0.2**2 - 1.5 * 0.1**2
    mean = log_k + (1 - weight) * math.log(1.5) + weight * math.log(2.0)
    variance = weight**2 * 0.2**2 + 0.1**2
    by_hand = -0.5 * (math.log(1.7) - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance) - math.log(1.7)
    assert simulator.log_likelihood(theta, s, r).item() == pytest.approx(by_hand, abs=1e-9)


def test_five_nodes_suffice_for_costs_that_do_not_scale():
    """Actions under absolute cost with effort level off at a kink: a few responses beyond it are the hard ones."""
    simulator = BayesianActor(OptimalActor(AbsoluteEffortCost()), noise_range=(0.05, 0.4))
    theta, design, response = draw(simulator, 200)
    exact = dense(simulator, theta, design, response)
    error = (simulator.log_likelihood(theta, design, response) - exact).abs()
    assert not simulator.power_law and error.median() < 1e-5 and error.quantile(0.97) < 0.005


class Untold:
    """An actor whose cost does not say that it scales."""

    training_box = None

    def __init__(self, cost):
        self.told, self.perception = OptimalActor(cost), OptimalActor(cost).perception
        self.cost = ActorCost.from_function(cost, cost.parameters)

    def __call__(self, measurement, **parameters):
        return self.told(measurement, **parameters)


def test_nodes_agree_with_the_power_law():
    told = BayesianActor(OptimalActor(QuadraticEffortCost()))
    simulator = BayesianActor(Untold(QuadraticEffortCost()), num_nodes=3)
    theta, design, response = draw(told, 300)
    error = simulator.log_likelihood(theta, design, response) - told.log_likelihood(theta, design, response)
    assert not simulator.power_law and error.abs().max() < 1e-6


def test_tabulated_actions_change_nothing():
    """Sixty trials of one person ask for a table of actions, a trial by itself does not; in value and gradient."""
    simulator = BayesianActor(OptimalActor(AbsoluteEffortCost()), fixed={"sigma": 0.2})
    torch.manual_seed(0)
    theta = simulator.prior.sample((20, 1)).double().requires_grad_()
    design = simulator.design_space.sample((20, 60)).double()
    response = simulator(theta.detach(), design)
    together = simulator.log_likelihood(theta, design, response)
    alone = simulator.log_likelihood(theta.expand(20, 60, 4), design, response)
    # An action that is off by δ changes a log-likelihood by z δ / σ_r, z the response's distance in units of σ_r.
    error = (together - alone).abs() * theta[..., simulator.parameter_names.index("sigma_r")]
    assert error.max() < 5e-4 and error.mean() < 5e-6
    assert not torch.equal(together, alone)  # there was a table
    weight = torch.randn(20, 60).double()
    (one,), (other,) = (torch.autograd.grad((weight * value).sum(), theta) for value in (together, alone))
    assert ((one - other).norm(dim=-1) / other.norm(dim=-1)).max() < 0.02  # of each person's gradient


def test_density_under_normal_perception():
    perception = NormalPerception(stimulus=(-2.0, 2.0), mu_0=(-2.0, 2.0))
    simulator = BayesianActor(OptimalActor(QuadraticCost(), perception), fixed={"sigma": 0.3})
    theta, design, response = draw(simulator, 50)
    exact = dense(simulator, theta, design, response, 12_001)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, response), exact, atol=1e-6, rtol=0)
    assert (response < 0).any()


def test_simulated_responses_follow_the_density():
    """Mean and variance of log r, and the mean of −log p, which is the entropy of a normal density in log r."""
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()))
    theta, design = torch.tensor([0.15, 1.5, 0.1, 0.8]), torch.tensor([[3.0]])
    torch.manual_seed(0)
    response = simulator(theta, design.expand(40_000, 1))
    weight = 0.15**2 / (0.15**2 + 0.2**2)
    variance = weight**2 * 0.2**2 + 0.1**2
    assert response.log().var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))
    surprise = -(simulator.log_likelihood(theta, design, response) + response.log().squeeze(-1))
    expected = 0.5 * math.log(2 * math.pi * math.e * variance)
    assert surprise.mean().item() == pytest.approx(expected, abs=4 * math.sqrt(0.5 / 40_000))


@pytest.mark.parametrize("actor", [OptimalActor, Untold])
def test_gradients(actor):
    """Nodes are held fixed in gradients; those of the dense quadrature know no nodes."""
    simulator = BayesianActor(actor(QuadraticEffortCost()))
    theta, design, response = draw(simulator, 40, seed=1)
    inputs = [value.detach().clone().requires_grad_() for value in (theta, design, response)]
    found = torch.autograd.grad(simulator.log_likelihood(*inputs).sum(), inputs)
    exact = torch.autograd.grad(dense(simulator, *inputs, 12_001).sum(), inputs)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_weights_of_a_net_are_not_followed():
    simulator = BayesianActor(NeuralActor(QuadraticEffortCost()))
    theta, design = simulator.prior.sample((3,)), torch.tensor([2.0])
    response = simulator(theta, design)
    assert not response.requires_grad and not simulator.log_likelihood(theta, design, response).requires_grad
    assert simulator(theta.requires_grad_(), design).requires_grad


def test_leading_dimensions_broadcast():
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()), noise_range=(0.05, 0.4))
    theta, design = simulator.prior.sample((5, 1)), simulator.design_space.sample((7,))
    response = simulator(theta, design)
    together = simulator.log_likelihood(theta, design, response)
    assert response.shape == (5, 7, 1) and together.shape == (5, 7)
    alone = simulator.log_likelihood(theta[3, 0], design[2], response[3, 2])
    torch.testing.assert_close(together[3, 2], alone)


def test_free_and_fixed_parameters():
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()), fixed={"mu_0": 1.5, "beta": 0.9})
    assert simulator.parameter_names == ("sigma", "sigma_0", "sigma_r") and simulator.theta_dim == 3
    values = simulator.parameters(torch.tensor([[0.1, 0.2, 0.3]]))
    assert values["sigma_0"].item() == pytest.approx(0.2) and values["beta"].item() == pytest.approx(0.9)
    designed = BayesianActor(OptimalActor(QuadraticEffortCost()), noise_range=(0.05, 0.4))
    assert designed.parameter_names == ("sigma_0", "mu_0", "sigma_r", "beta") and designed.design_dim == 2
    values = designed.parameters(torch.ones(4), torch.tensor([2.0, 0.3]))
    assert values["sigma"].item() == pytest.approx(0.3)
    narrow = TruncatedIndependent([Uniform(0.1, 0.2)] * 4)
    assert designed.with_prior(narrow).noise_range == (0.05, 0.4) and designed.with_prior(narrow).prior is narrow


def test_default_prior_is_cut_to_the_training_box():
    simulator = BayesianActor(NeuralActor(QuadraticEffortCost()))
    theta = simulator.prior.sample((20_000,))
    low, high = theta.amin(0), theta.amax(0)
    assert (low >= torch.tensor([0.01, 0.1, 0.01, 0.5])).all() and (high <= torch.tensor([0.5, 5.0, 0.5, 1.0])).all()
    # HalfNormal(.25) on (.01, .5): its median by the normal distribution function
    ends = torch.special.ndtr(torch.tensor([0.04, 2.0]))
    median = 0.25 * torch.special.ndtri(ends.mean())
    assert (theta[:, 0] < median).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(20_000))
    assert simulator.prior.log_prob(torch.tensor([0.6, 1.0, 0.1, 0.8])) == -math.inf


def test_errors():
    actor = NeuralActor(QuadraticEffortCost())
    optimal = OptimalActor(QuadraticEffortCost())
    with pytest.raises(TypeError, match="actor must be an OptimalActor or a NeuralActor"):
        BayesianActor(QuadraticCost())
    with pytest.raises(ValueError, match="single numbers, perceived log-normally or normally; got CircularPerception"):
        BayesianActor(OptimalActor(QuadraticCost(), CircularPerception()))
    with pytest.raises(ValueError, match="fixed has 'gamma', but the parameters"):
        BayesianActor(optimal, fixed={"gamma": 1.0})
    with pytest.raises(ValueError, match="noises positive, got sigma = -1"):
        BayesianActor(optimal, fixed={"sigma": -1})
    with pytest.raises(ValueError, match="set by the experiment"):
        BayesianActor(optimal, fixed={"sigma": 0.2}, noise_range=(0.1, 0.4))
    with pytest.raises(ValueError, match="nothing to infer"):
        BayesianActor(optimal, fixed={"sigma": 0.2, "sigma_0": 0.1, "mu_0": 1, "sigma_r": 0.1, "beta": 0.9})
    with pytest.raises(ValueError, match=r"stimulus_range must be \(low, high\) with 0 < low < high"):
        BayesianActor(optimal, stimulus_range=(-1.0, 2.0))
    with pytest.raises(ValueError, match=r"sigma reaches 0.9, but the actor was trained on 0.01 to 0.5"):
        BayesianActor(actor, fixed={"sigma": 0.9})
    with pytest.raises(ValueError, match=r"sigma reaches 0\.1 to 0\.8"):
        BayesianActor(actor, noise_range=(0.1, 0.8))
    wide = TruncatedIndependent([Uniform(0.01, 0.5), Uniform(0.1, 9.0), Uniform(0.01, 0.5), Uniform(0.5, 1.0)])
    with pytest.raises(ValueError, match="the prior of mu_0 reaches"):
        BayesianActor(actor, prior=wide)
    BayesianActor(optimal, prior=wide)  # knows no bounds
    with pytest.raises(ValueError, match="the prior is over 1 values, but the free parameters"):
        BayesianActor(optimal, prior=TruncatedIndependent([Uniform(0.0, 1.0)]))
    simulator = BayesianActor(optimal)
    theta = torch.tensor([0.1, 1.0, 0.1, 0.9])
    with pytest.raises(ValueError, match="stimuli must be positive, got -1"):
        simulator(theta, torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="response must be positive"):
        simulator.log_likelihood(theta, torch.tensor([1.0]), torch.tensor([-1.0]))


def test_nodes_that_would_lie_beyond_what_actors_know_are_refused():
    with pytest.raises(ValueError, match="num_nodes must be at most 7"):
        BayesianActor(OptimalActor(QuadraticCost()), num_nodes=9)
