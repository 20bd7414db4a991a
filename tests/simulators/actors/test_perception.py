"""Perception: beliefs against posteriors on a grid, densities against draws, gradients, and what is refused."""

import math

import pytest
import torch
from scipy import stats

from sbi_bed.simulators import CircularPerception, LogNormalPerception, NormalPerception, ReachingPerception

KINDS = [LogNormalPerception, NormalPerception, CircularPerception]


def grid(perception):
    """Values (N,) that cover the space of states, and their widths."""
    x = torch.linspace(-math.pi, math.pi, 40_001, dtype=torch.float64)
    x = x if isinstance(perception, CircularPerception) else 2 * x
    middle, width = (x[1:] + x[:-1]) / 2, x.diff()
    if isinstance(perception, LogNormalPerception):
        return middle.exp(), middle.exp() * width
    return middle, width


@pytest.mark.parametrize("kind", KINDS)
def test_the_belief_is_the_posterior(kind):
    perception = kind()
    values, widths = grid(perception)
    m, sigma, sigma_0, mu_0 = (torch.tensor(v, dtype=torch.float64) for v in (1.3, 0.45, 0.3, 0.7))
    log_joint = perception.log_prob_measurement(m, values, sigma) + perception.log_prob_measurement(
        values, mu_0, sigma_0
    )
    joint = log_joint.exp() * widths
    belief = perception.belief(m, sigma, sigma_0, mu_0)
    x = perception.to_coordinate(values)
    found = (perception.noise_log_prob(perception.wrap(x - belief.location), belief.spread).exp()) * (x[1] - x[0])
    torch.testing.assert_close(found, joint / joint.sum(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_densities(kind):
    perception = kind()
    stimulus = torch.full((20_000,), 1.5)
    for draw, density in (
        (perception.sample_measurement, perception.log_prob_measurement),
        (perception.sample_response, perception.log_prob_response),
    ):
        values, widths = grid(perception)
        mass = density(values, torch.tensor(1.5).double(), 0.4).exp() * widths
        assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
        cumulative = mass.cumsum(0).numpy()
        sample = draw(stimulus, 0.4).double()
        place = torch.searchsorted(values, sample).clamp_max(len(values) - 1)
        assert stats.kstest(cumulative[place.numpy()], "uniform").pvalue > 1e-3
    belief = perception.belief(torch.tensor(1.5), 0.4, 0.3, 1.0)
    states = perception.to_coordinate(perception.sample_state(belief, 20_000))
    assert abs(float(perception.wrap(states - belief.location).mean())) < 5 * float(belief.spread) / math.sqrt(20_000)


def test_draws_are_differentiable_where_noise_is_normal():
    for perception in (LogNormalPerception(), NormalPerception(), ReachingPerception()):
        shape = () if perception.action_dim == 1 else (2,)
        action = torch.full(shape, 1.5, requires_grad=True)
        sigma = torch.tensor(0.3, requires_grad=True)
        response = perception.sample_response(action, sigma)
        grads = torch.autograd.grad(response.sum(), [action, sigma])
        x = perception.to_coordinate(response.detach()) - perception.to_coordinate(action.detach())
        slope = response.detach() if isinstance(perception, LogNormalPerception) else torch.ones(shape)
        torch.testing.assert_close(grads[1], (slope * x / 0.3).sum())


def test_a_concentrated_von_mises_is_normal_and_an_even_one_is_bounded():
    perception = CircularPerception()
    offset = torch.tensor([0.0, 0.01, 0.02]).double()
    expected = torch.distributions.Normal(0.0, 0.01).log_prob(offset)
    torch.testing.assert_close(
        perception.noise_log_prob(offset, torch.tensor(0.01).double()), expected, rtol=0, atol=1e-3
    )
    flat = perception.belief(torch.tensor(math.pi).double(), 0.5, 0.5, 0.0)
    assert math.isfinite(float(flat.spread)) and float(flat.spread) > 1e3


def test_locations_of_beliefs_lie_in_their_range():
    for kind in KINDS:
        perception = kind()
        low, high = perception.location_range()
        bounds = perception.ranges
        s = bounds["stimulus"][0] + torch.rand(20_000) * (bounds["stimulus"][1] - bounds["stimulus"][0])
        sigma, sigma_0 = (b[0] + torch.rand(20_000) * (b[1] - b[0]) for b in (bounds["sigma"], bounds["sigma_0"]))
        belief = perception.belief(perception.sample_measurement(s, sigma), sigma, sigma_0, s.flip(0))
        assert low <= belief.location.min() and belief.location.max() <= high


def test_errors_say_what_is_wrong():
    perception = LogNormalPerception()
    with pytest.raises(ValueError, match="measurement must be positive for LogNormalPerception, got -2"):
        perception.belief(torch.tensor([1.0, -2.0]), 0.1, 0.1, 1.0)
    with pytest.raises(ValueError, match=r"stimulus must be positive.*got nan"):
        perception.sample_measurement(torch.tensor([math.nan]), 0.1)
    with pytest.raises(ValueError, match="mu_0 must be positive"):
        perception.belief(torch.tensor(1.0), 0.1, 0.1, 0.0)
    with pytest.raises(ValueError, match="no range of 'tau'"):
        LogNormalPerception(tau=(0.1, 1.0))
    with pytest.raises(ValueError, match="two increasing numbers"):
        LogNormalPerception(sigma=(0.5, 0.1))
    with pytest.raises(ValueError, match="sigma must be positive"):
        LogNormalPerception(sigma=(0.0, 0.1))
    with pytest.raises(ValueError, match="stimulus and mu_0 must be positive"):
        LogNormalPerception(stimulus=(-1.0, 2.0))
    with pytest.raises(ValueError, match=r"measurement must have shape \(..., 2\)"):
        ReachingPerception().belief(torch.zeros(3), 0.1, 0.1, 0.0)
    with pytest.raises(ValueError, match="correlation must lie between"):
        ReachingPerception(correlation=1.0)
