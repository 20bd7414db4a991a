"""Every shipped experiment, anywhere in its prior: draws are possible, and so is what they make."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_bed.simulators import (
    AbsoluteCost,
    BayesianActor,
    ConstantElasticity,
    ExponentialDiscounting,
    HyperbolicDiscounting,
    LocationFinding,
    ModelMixture,
    OptimalActor,
    Pharmacokinetics,
    PresentBiasedDiscounting,
    QuadraticEffortCost,
    StochasticEpidemic,
)
from sbi_bed.utils.transforms import to_unconstrained

EXPERIMENTS = {
    "location": LocationFinding(),
    "two locations": LocationFinding(num_sources=2),
    "slider": ConstantElasticity(),
    "hyperbolic": HyperbolicDiscounting(),
    "exponential": ExponentialDiscounting(),
    "present-biased": PresentBiasedDiscounting(),
    "pharmacokinetics": Pharmacokinetics(),
    "epidemic": StochasticEpidemic(),
    "actor with effort": BayesianActor(OptimalActor(QuadraticEffortCost())),
    "actor": BayesianActor(OptimalActor(AbsoluteCost())),
    "mixture": ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()]),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
@given(seed=st.integers(0, 2**31), shape=st.lists(st.integers(1, 3), max_size=2))
@settings(max_examples=15, deadline=None)
def test_whatever_the_prior_draws_is_possible(name, seed, shape):
    experiment = EXPERIMENTS[name]
    torch.manual_seed(seed)
    theta = experiment.prior.sample((torch.Size(shape).numel(),)).reshape(*shape, experiment.theta_dim)
    design = experiment.design_space.sample(shape)
    assert torch.isfinite(experiment.prior.log_prob(theta.reshape(-1, experiment.theta_dim))).all()
    if name != "epidemic":  # whose outcomes are of a hidden state
        outcome = experiment(theta, design)
        assert torch.equal(experiment.check_outcome(outcome), outcome) and torch.isfinite(outcome).all()
        value = experiment.log_likelihood(theta, design, outcome)
        assert value.shape == tuple(shape) and torch.isfinite(value).all()
        rows = zip(*(part.reshape(-1, part.shape[-1]) for part in (theta, design, outcome)), strict=True)
        one_by_one = torch.stack([experiment.log_likelihood(*row) for row in rows])
        torch.testing.assert_close(value.flatten(), one_by_one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS.keys() - {"mixture"}))
@given(far=st.floats(-6, 6))
@settings(max_examples=15, deadline=None)
def test_unconstrained_coordinates_stay_inside_the_prior(name, far):
    prior = EXPERIMENTS[name].prior
    transform = to_unconstrained(prior)
    theta = transform.inv(torch.full((1, EXPERIMENTS[name].theta_dim), far))
    assert torch.isfinite(theta).all() and torch.isfinite(prior.log_prob(theta)).all()
    torch.testing.assert_close(transform.inv(transform(theta)), theta, rtol=1e-3, atol=1e-4)
