"""Bounds with a net inside: below the exact gain, close to it once trained, and refused where they do not hold."""

import math

import pytest
import torch
from models import LinearGaussian

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD
from sbi_bed.objectives import NWJ, PCE, InfoNCE, LikelihoodBound, PosteriorBound, RatioBound
from sbi_bed.policies import DeepSetsPolicy, StaticPolicy
from sbi_bed.simulators import DesignSimulator, DesignSpace, PolicySimulator

HORIZON = 2
BUILD = {
    "InfoNCE": lambda s: InfoNCE(s, 32, 64),
    "NWJ": lambda s: NWJ(s, 32, 64),
    "PosteriorBound": lambda s: PosteriorBound(s, HORIZON, num_components=2),
    "LikelihoodBound": lambda s: LikelihoodBound(s, num_components=1, num_contrastive=127),
    "RatioBound": lambda s: RatioBound(s, num_contrastive=127),
}


def implicit(dim=1):
    """The linear-Gaussian experiment without its likelihood."""
    model = LinearGaussian(dim)
    return model, DesignSimulator(model.prior, model.simulate, model.design_space, reparameterized=True)


def held_out(simulator, policy, bound, num=4096):
    torch.manual_seed(5)
    theta = simulator.prior.sample((num,))
    with torch.no_grad():
        return bound.eval()(theta, PolicySimulator(simulator, policy, HORIZON)(theta))


def slow(names, which):
    """Cases, of which some take longer than default tests may."""
    return [pytest.param(name, marks=pytest.mark.slow if name in which else ()) for name in names]


@pytest.mark.parametrize("name", slow(BUILD, {"RatioBound"}))
def test_a_trained_bound_is_just_below_the_exact_gain(name):
    model, simulator = implicit()
    policy = StaticPolicy(simulator, HORIZON, torch.tensor([[1.0], [-0.6]]))
    trainer = DAD(simulator, HORIZON, policy, bound=BUILD[name](simulator), show_progress_bars=False)
    trainer.train(400, 256, learning_rate=2e-3, seed=0)
    terms = held_out(simulator, policy, trainer.bound)
    exact = float(model.gain_of(policy.fixed))
    stderr = float(terms.std()) / math.sqrt(len(terms))
    assert exact - 0.1 < float(terms.mean()) < exact + 3 * stderr


BUILD_CLIMBERS = {
    "InfoNCE": BUILD["InfoNCE"],
    "PosteriorBound": BUILD["PosteriorBound"],
    "LikelihoodBound": lambda s: LikelihoodBound(s, num_components=1, num_contrastive=64, proposal="local"),
}


@pytest.mark.parametrize("name", slow(BUILD_CLIMBERS, {"LikelihoodBound"}))
def test_policy_and_net_climb_together_to_the_best_designs(name):
    model, simulator = implicit()
    torch.manual_seed(1)
    policy = DeepSetsPolicy(simulator, 32, 8)
    bound = BUILD_CLIMBERS[name](simulator)
    DAD(simulator, HORIZON, policy, bound=bound, show_progress_bars=False).train(300, 256, learning_rate=5e-3, seed=0)
    with torch.no_grad():
        x = PolicySimulator(simulator, policy, HORIZON)(simulator.prior.sample((500,)))
    gain = float(model.gain_of(x[..., :1]).mean())
    assert gain > 0.97 * model.best_gain(HORIZON)


def test_steps_of_the_net_alone_leave_a_policy_and_improve_the_bound():
    _, simulator = implicit()
    policy = StaticPolicy(simulator, HORIZON, torch.tensor([[1.0], [-0.6]]))
    bounds = []
    for fitting_steps in (0, 4):
        torch.manual_seed(0)
        bound = LikelihoodBound(simulator, fitting_steps=fitting_steps)
        trainer = DAD(simulator, HORIZON, policy, bound=bound, show_progress_bars=False)
        trainer.train(40, 64, learning_rate=1e-3, seed=0)
        bounds.append(held_out(simulator, policy, trainer.bound))
    difference = bounds[1] - bounds[0]
    assert float(difference.mean()) > 4 * float(difference.std()) / math.sqrt(len(difference))
    assert torch.equal(policy.fixed, torch.tensor([[1.0], [-0.6]]))


def test_a_learned_likelihood_with_local_samples_estimates_the_gain_from_above():
    """E[log q(h | θ_0) − log q̂(h)]: for q the likelihood the gain, plus the error of 64 weighted samples."""
    model, simulator = implicit()
    policy = StaticPolicy(simulator, HORIZON, torch.tensor([[1.0], [-0.6]]))
    bound = LikelihoodBound(simulator, num_components=1, num_contrastive=64, proposal="local", fitting_steps=4)
    DAD(simulator, HORIZON, policy, bound=bound, show_progress_bars=False).train(100, 256, learning_rate=5e-3, seed=0)
    torch.manual_seed(5)
    means = []
    for _ in range(100):  # all experiments of a batch share their 64 samples
        theta = simulator.prior.sample((256,))
        means.append(bound.loss(theta, PolicySimulator(simulator, policy, HORIZON)(theta))[1].mean())
    mean, stderr = float(torch.stack(means).mean()), float(torch.stack(means).std()) / 10
    exact = float(model.gain_of(policy.fixed))
    assert exact - 3 * stderr < mean < exact + 0.1


def test_infonce_cannot_exceed_the_logarithm_of_the_batch():
    _, simulator = implicit()
    bound = InfoNCE(simulator, 16, 32)
    x = PolicySimulator(simulator, lambda h: torch.ones(*h.shape[:-2], 1), HORIZON)(simulator.prior.sample((8,)))
    with torch.no_grad():
        bound.of_theta[-1].weight.mul_(1e4)
        assert (bound(simulator.prior.sample((8,)), x) <= math.log(8) + 1e-5).all()


def test_the_posterior_inside_the_npe_form_is_the_posterior():
    """θ | h ~ N(Σ ξ y / σ² v, v), v = 1 / (1 + Σ ξ² / σ²)."""
    _, simulator = implicit()
    policy = StaticPolicy(simulator, HORIZON, torch.tensor([[1.0], [0.5]]))
    bound = PosteriorBound(simulator, HORIZON, num_components=1)
    DAD(simulator, HORIZON, policy, bound=bound, show_progress_bars=False).train(500, 256, learning_rate=5e-3, seed=0)
    x = torch.tensor([[[1.0, 0.8, 1.0], [0.5, 0.1, 1.0]]])
    draws = bound.posterior().sample((4000,), x=x, show_progress_bars=False)
    variance = 1 / (1 + 1.25 / 0.25)
    assert abs(float(draws.mean()) - variance * 0.85 / 0.25) < 0.1
    assert float(draws.std()) == pytest.approx(math.sqrt(variance), rel=0.15)


def test_a_bound_ignores_padding():
    _, simulator = implicit()
    theta = simulator.prior.sample((8,))
    x = PolicySimulator(simulator, lambda h: torch.ones(*h.shape[:-2], 1), 1)(theta)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1))
    for build in BUILD.values():
        bound = build(simulator).eval()
        torch.testing.assert_close(bound(theta, x), bound(theta, padded))


def test_what_a_bound_cannot_do_is_refused():
    _, simulator = implicit()
    hidden = DesignSimulator(
        simulator.prior,
        lambda theta, design, state: (theta + state, state),
        DesignSpace(torch.distributions.constraints.real),
        initial_state=torch.zeros_like,
        reparameterized=True,
    )
    with pytest.raises(ValueError, match="share a hidden state"):
        LikelihoodBound(hidden)
    with pytest.raises(ValueError, match="proposal must be"):
        LikelihoodBound(simulator, proposal="posterior")
    with pytest.raises(TypeError, match="bound must be a Bound"):
        DAD(simulator, 2, bound=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="PCE needs a simulator with a log_likelihood"):
        DAD(simulator, 2, bound=PCE())
    with pytest.warns(UserWarning, match="num_contrastive has no effect: InfoNCE contrasts with the rest of the batch"):
        DAD(simulator, 2, show_progress_bars=False).train(1, 8, num_contrastive=7)
    discrete = DesignSimulator(
        simulator.prior, lambda t, d: (t > d).float(), DesignSpace(torch.distributions.constraints.real)
    )
    with pytest.raises(ValueError, match="log_likelihood, one made by process_design_simulator"):
        DAD(discrete, 2)


def test_the_gain_of_an_implicit_experiment_is_bounded_from_below():
    model, simulator = implicit()
    policy = StaticPolicy(simulator, HORIZON, torch.tensor([[1.0], [-0.6]]))
    trainer = DAD(simulator, HORIZON, policy, bound=InfoNCE(simulator, 16, 32), show_progress_bars=False)
    trainer.train(300, 256, learning_rate=2e-3, seed=0)
    gain = expected_information_gain(simulator, policy, HORIZON, 2000, seed=1, bound=trainer.bound)
    exact = float(model.gain_of(policy.fixed))
    assert exact - 0.1 < gain.lower < exact + 3 * gain.lower_stderr and gain.upper == math.inf
    with pytest.raises(ValueError, match="needs a simulator with a log_likelihood, or bound="):
        expected_information_gain(simulator, policy, HORIZON)
    with pytest.raises(ValueError, match="takes no prior"):
        expected_information_gain(simulator, policy, HORIZON, bound=trainer.bound, max_gap=0.1)
