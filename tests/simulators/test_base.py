"""The contract of a simulator with a design: shapes, errors, copies."""

import copy
import pickle

import numpy as np
import pytest
import torch
from models import LinearGaussian, RandomWalk, gaussian_prior
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform, constraints

from sbi_bed.simulators import DesignSimulator
from sbi_bed.simulators.base import prior_log_prob

SPACE = constraints.interval(torch.zeros(2), torch.ones(2))


def build(**changes):
    arguments = {
        "prior": gaussian_prior(2),
        "simulate": lambda theta, design: (theta * design).sum(-1, keepdim=True),
        "design_space": SPACE,
        "log_likelihood": lambda theta, design, outcome: -((theta * design).sum(-1) - outcome.squeeze(-1)).square(),
    }
    return DesignSimulator(**{**arguments, **changes})


def test_what_it_says_of_itself():
    simulator = build()
    assert (simulator.theta_dim, simulator.design_dim, simulator.outcome_dim) == (2, 2, 1)
    assert simulator.has_likelihood and not simulator.reparameterized and not simulator.discrete
    assert not build(log_likelihood=None).has_likelihood
    assert build(outcome_space=constraints.boolean).discrete
    assert build(design_space=[[0.0, 1.0], [1.0, 1.0]]).design_space.free_dim == 2


@pytest.mark.parametrize(
    ("theta_shape", "design_shape"), [((), ()), ((5,), ()), ((), (5,)), ((4, 1), (3,)), ((2, 1, 1), (4, 3))]
)
def test_leading_dimensions_broadcast(theta_shape, design_shape):
    simulator = build()
    theta, design = torch.randn(*theta_shape, 2), torch.rand(*design_shape, 2)
    expected = (theta * design).sum(-1)
    outcome = simulator(theta, design)
    torch.testing.assert_close(outcome.squeeze(-1), expected)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, outcome + 1), -torch.ones(expected.shape))
    many = simulator.log_likelihood(theta, design, torch.zeros(6, *([1] * expected.ndim), 1))
    assert many.shape == (6, *expected.shape) and torch.allclose(many[3], -expected.square())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prior": "normal"}, TypeError, "prior must be a distribution"),
        ({"prior": Normal(0.0, 1.0)}, ValueError, r"event shape \(P,\); a sample has shape \(\)"),
        ({"prior": MultivariateNormal(torch.zeros(3, 2), torch.eye(2))}, ValueError, r"a sample has shape \(3, 2\)"),
        ({"prior": Uniform(torch.zeros(2), torch.ones(2))}, ValueError, r"a batch of \(2,\).*Independent"),
        ({"simulate": 3}, TypeError, "simulate must be a callable"),
        ({"log_likelihood": 3}, TypeError, "log_likelihood must be a callable"),
        ({"initial_state": 3}, TypeError, "initial_state must be a callable theta -> state, or None, got 3"),
        (
            {"initial_state": torch.clone},
            ValueError,
            "trials that share a hidden state are not independent given theta",
        ),
        ({"outcome_shape": ()}, ValueError, r"outcome_shape must be \(O,\), got \(\)"),
        ({"outcome_shape": (2, 2)}, ValueError, "flatten the outcome"),
        ({"outcome_shape": (0,)}, ValueError, "must be at least 1"),
        ({"design_space": "box"}, TypeError, "candidates must be numbers"),
    ],
)
def test_what_cannot_be_a_simulator_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("theta", "design", "message"),
    [
        (torch.zeros(5, 3), torch.zeros(2), r"theta must have shape \(..., 2\), got \(5, 3\)"),
        (torch.zeros(5, 2), torch.zeros(5, 1), r"design must have shape \(..., 2\), got \(5, 1\)"),
        (torch.zeros(()), torch.zeros(2), "theta must have shape"),
        (
            torch.zeros(5, 2),
            torch.zeros(4, 2),
            r"leading dimensions of theta \(5,\) and design \(4,\) do not broadcast",
        ),
    ],
)
def test_wrong_arguments_are_refused(theta, design, message):
    with pytest.raises(ValueError, match=message):
        build()(theta, design)
    with pytest.raises(ValueError, match=message):
        build().log_likelihood(theta, design, torch.zeros(1))


def test_wrong_outcomes_are_refused():
    simulator = build()
    with pytest.raises(ValueError, match=r"outcome must have shape \(..., 1\), got \(5, 2\)"):
        simulator.log_likelihood(torch.zeros(5, 2), torch.zeros(2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"outcome \(4,\) do not broadcast"):
        simulator.log_likelihood(torch.zeros(5, 2), torch.zeros(2), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="this simulator has no likelihood"):
        build(log_likelihood=None).log_likelihood(torch.zeros(2), torch.zeros(2), torch.zeros(1))


def test_callables_that_return_the_wrong_thing_are_named():
    with pytest.raises(ValueError, match=r"simulator returned shape \(5,\) for theta .*; expected \(5, 1\)"):
        build(simulate=lambda theta, design: (theta * design).sum(-1))(torch.zeros(5, 2), torch.zeros(2))
    with pytest.raises(TypeError, match="simulator must return a tensor, got ndarray"):
        build(simulate=lambda theta, design: np.zeros((5, 1)))(torch.zeros(5, 2), torch.zeros(2))
    wrong = build(log_likelihood=lambda theta, design, outcome: theta * design)
    with pytest.raises(ValueError, match=r"log_likelihood returned shape \(5, 2\) for leading dimensions \(5,\)"):
        wrong.log_likelihood(torch.zeros(5, 2), torch.zeros(2), torch.zeros(1))
    with pytest.raises(TypeError, match="log_likelihood must return a tensor, got float"):
        build(log_likelihood=lambda *_: 0.0).log_likelihood(torch.zeros(2), torch.zeros(2), torch.zeros(1))


def test_recorded_outcomes_are_checked():
    simulator = build(outcome_space=constraints.positive)
    assert simulator.check_outcome(2.0).tolist() == [2.0]
    with pytest.raises(ValueError, match="outside the outcome space"):
        simulator.check_outcome([-1.0])
    with pytest.raises(ValueError, match="outcome must be finite, got nan"):
        simulator.check_outcome([float("nan")])
    with pytest.raises(ValueError, match="outcome must have 1 values"):
        simulator.check_outcome([1.0, 2.0])


def test_outcomes_are_read_in_unconstrained_coordinates():
    y = torch.tensor([[0.5], [2.0]])
    assert torch.equal(build(outcome_space=constraints.positive).standardize_outcome(y), y.log())
    assert torch.equal(build(outcome_space=constraints.boolean).standardize_outcome(y), y)
    torch.testing.assert_close(
        build(outcome_space=constraints.interval(0.0, 4.0)).standardize_outcome(y), torch.logit(y / 4)
    )


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_real_outcomes_are_read_as_they_are_also_by_copies(duplicate):
    large = torch.tensor([[1e4], [-1e3]])
    for space in (constraints.real, constraints.real_vector, constraints.independent(constraints.real, 1)):
        simulator = LinearGaussian()
        simulator.outcome_space = space
        assert torch.equal(duplicate(simulator).standardize_outcome(large), large)
        assert torch.equal(simulator.standardize_outcome(large), large)


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build().with_prior(gaussian_prior(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_prior_keeps_the_experiment():
    simulator = build(outcome_space=constraints.positive, reparameterized=True)
    shifted = MultivariateNormal(torch.full((2,), 3.0), torch.eye(2))
    other = simulator.with_prior(shifted)
    assert other.prior is shifted and simulator.prior is not shifted
    assert (other.outcome_space, other.reparameterized, other.design_space) == (
        simulator.outcome_space,
        True,
        simulator.design_space,
    )
    theta, design, outcome = torch.randn(4, 2), torch.rand(2), torch.rand(1)
    assert torch.equal(other.log_likelihood(theta, design, outcome), simulator.log_likelihood(theta, design, outcome))


def test_a_hidden_state_goes_from_trial_to_trial():
    simulator = RandomWalk()
    theta, designs = torch.randn(3, 4, 1), torch.rand(6, 3, 4, 1)
    state = first = simulator.start(theta)
    for trial, design in enumerate(designs):
        outcome, state = simulator.step(theta, design, state)
        torch.testing.assert_close(outcome, first + trial + theta * design)
    assert simulator.has_state and not build().has_state and build().start(torch.zeros(2)) is None
    plain, none = build().step(torch.ones(2), torch.ones(2))
    assert (plain.tolist(), none) == ([2.0], None)
    kept = simulator.with_prior(gaussian_prior(1))
    assert torch.equal(kept.step(theta, designs[0], first)[0], simulator.step(theta, designs[0], first)[0])


def test_a_single_trial_starts_from_a_fresh_state():
    assert RandomWalk()(torch.zeros(1), torch.zeros(5, 1)).unique().numel() == 5
    assert RandomWalk()(torch.zeros(4, 1, 1), torch.zeros(3, 1)).unique().numel() == 12


def test_a_hidden_state_that_does_not_fit_is_named():
    simulator, theta = RandomWalk(), torch.zeros(5, 1)
    with pytest.raises(ValueError, match="has a hidden state: give the one that start"):
        simulator.step(theta, theta)
    with pytest.raises(ValueError, match="has no hidden state, but one was given"):
        build().step(torch.zeros(2), torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"theta and design \(5,\) and state \(4,\) do not broadcast"):
        simulator.step(theta, theta, torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"theta must have shape \(..., 1\), got \(5, 2\)"):
        simulator.start(torch.zeros(5, 2))
    started = {"log_likelihood": None, "initial_state": lambda theta: theta[..., :1]}
    with pytest.raises(TypeError, match=r"must return a pair of tensors \(outcome, state\)"):
        build(**started, simulate=lambda theta, design, state: state)(torch.zeros(2), torch.zeros(2))
    for wrong, shape in ((torch.zeros(()), r"\(\)"), (torch.zeros(3, 1), r"\(3, 1\)")):
        returned = {"log_likelihood": None, "initial_state": lambda theta, wrong=wrong: wrong}
        with pytest.raises(ValueError, match=rf"returned shape {shape} for theta \(5, 2\); expected \(5, 'S'\)"):
            build(**returned).start(torch.zeros(5, 2))
    with pytest.raises(TypeError, match="initial_state must return a tensor, got int"):
        build(log_likelihood=None, initial_state=lambda theta: 0).start(torch.zeros(5, 2))


def test_prior_density_is_minus_infinity_outside_the_support():
    box = Independent(Uniform(torch.zeros(2), torch.full((2,), 2.0)), 1)
    theta = torch.tensor([[[1.0, 1.0], [3.0, 1.0]], [[0.5, -1.0], [0.0, 0.0]]])
    value = prior_log_prob(box, theta)
    expected = torch.tensor([[0.25, 0.0], [0.0, 0.25]]).log()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(prior_log_prob(box, theta.double()), expected.double(), rtol=1e-6, atol=0)
    double = gaussian_prior(2, torch.float64)
    torch.testing.assert_close(
        prior_log_prob(double, torch.ones(3, 2)), double.log_prob(torch.ones(3, 2).double()).float()
    )
