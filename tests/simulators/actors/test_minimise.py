"""The numerical minimiser on costs that jump: against scipy's quadrature, in many widths, units and spreads."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import ndtr

from sbi_bed.simulators import (
    ActorCost,
    CircularPerception,
    LogNormalPerception,
    NormalPerception,
    minimise_expected_cost,
)
from sbi_bed.simulators.actors.cost_curve import Decisions, on_cost_curves
from sbi_bed.simulators.actors.minimise import find_minima
from sbi_bed.simulators.actors.perception import Belief

SPREADS = [(0.2, 0.1), (0.35, 0.4), (0.3, 0.02), (0.01, 0.01), (0.002, 0.2)]


def double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def window(width):
    return ActorCost.from_function(lambda r, s: (r - s).abs() > width, shift_invariant=True)


def hit_probability(log_action, location, spread, sigma_r, width):
    """P(|r − s| ≤ width): s by its distribution function, r by an even lattice of 20,001 points."""
    u = np.linspace(-9, 9, 20_001)
    weight = np.exp(-0.5 * u**2)
    r = np.exp(log_action + sigma_r * u)
    above = ndtr((np.log(r + width) - location) / spread)
    below = np.where(r > width, ndtr((np.log(np.maximum(r - width, 1e-300)) - location) / spread), 0.0)
    return (weight * (above - below)).sum() / weight.sum()


def best_log_action(location, spread, sigma_r, width):
    tau = math.hypot(spread, sigma_r)
    grid = location + tau * np.linspace(-6, 6, 121)
    values = [hit_probability(x, location, spread, sigma_r, width) for x in grid]
    place = int(np.clip(np.argmax(values), 1, 119))
    ends = grid[place - 1], grid[place + 1]
    found = optimize.minimize_scalar(
        lambda x: -hit_probability(x, location, spread, sigma_r, width),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-9},
    )
    return found.x


@pytest.mark.parametrize("unit", [0.001, 1.0, 1000.0])
@pytest.mark.parametrize("width", [0.003, 0.1, 0.5, 1.7])
def test_windows_of_all_widths_in_all_units(unit, width):
    """1[|r − s| > w] where that is not flat: the window is no wider than five standard deviations of r − s."""
    for spread, sigma_r in SPREADS:
        if width > 5 * 2 * math.hypot(spread, sigma_r):
            continue
        location = math.log(2 * unit)
        belief = Belief(*double(location, spread))
        found = minimise_expected_cost(window(width * unit), LogNormalPerception(), belief, double(sigma_r)[0], {})
        exact = best_log_action(location, spread, sigma_r, width * unit)
        assert float(found.log()) == pytest.approx(exact, abs=2e-5), (spread, sigma_r)
        normal = Belief(*double(2 * unit, spread * unit))
        found = minimise_expected_cost(window(width * unit), NormalPerception(), normal, double(sigma_r * unit)[0], {})
        assert float(found) / unit == pytest.approx(2.0, abs=1e-4 * math.hypot(spread, sigma_r))


def test_expected_costs_of_a_window_are_exact():
    sigma_r, x = double([0.3, 0.01, 0.2])[0], double([0.5, 0.9, -0.2])[0]
    belief = Belief(*double([0.7, 0.6, 0.0], [0.2, 0.3, 0.004]))
    decisions = Decisions(window(0.3), NormalPerception(), belief, sigma_r, {})
    found = on_cost_curves(decisions, belief.location, decisions.tau * 2, lambda c, rows: c(x[rows].unsqueeze(-1)))
    ends = [torch.special.ndtr((x - belief.location + sign * 0.3) / decisions.tau) for sign in (-1, 1)]
    torch.testing.assert_close(found.squeeze(-1), 1 - (ends[1] - ends[0]), rtol=0, atol=1e-7)


def test_a_cost_that_jumps_in_the_response_alone():
    """(r − s)² and a fee above a limit: d/da [a² − 2 a μ + fee Φ((a − limit)/σ_r)] = 0."""
    fee, limit, sigma_r = 0.5, 1.0, 0.05
    cost = ActorCost.from_function(lambda r, s: (r - s).square() + fee * (r > limit))
    belief = Belief(*double(1.1, 0.2))
    found = float(minimise_expected_cost(cost, NormalPerception(), belief, double(sigma_r)[0], {}))
    exact = optimize.minimize_scalar(
        lambda a: (a - 1.1) ** 2 + fee * ndtr((a - limit) / sigma_r), bounds=(0.5, 1.0), method="bounded"
    ).x
    assert found == pytest.approx(exact, abs=1e-5)


def test_a_window_on_the_circle_and_an_uneven_one():
    belief, (sigma_r,) = Belief(*double(3.0, 0.3)), double(0.2)
    found = minimise_expected_cost(
        ActorCost.from_function(lambda r, s: CircularPerception().wrap(r - s).abs() > 0.2),
        CircularPerception(),
        belief,
        sigma_r,
        {},
    )
    assert float(found) == pytest.approx(3.0, abs=1e-5)
    uneven = ActorCost.from_function(lambda r, s: (r - s < -0.1) | (r - s > 0.4))
    found = minimise_expected_cost(uneven, NormalPerception(), belief, sigma_r, {})
    assert float(found) == pytest.approx(3.15, abs=1e-5)


def test_a_flat_minimum_is_met_in_its_middle():
    """A window of 40 standard deviations: to any precision all actions inside it are equal."""
    found = minimise_expected_cost(window(2.0), NormalPerception(), Belief(*double(1.0, 0.08)), double(0.06)[0], {})
    assert float(found) == pytest.approx(1.0, abs=0.05)


def test_other_minima_and_what_errors_cost():
    """Quadratic: a rise of τ² for an error of τ, and no other minimum. Two wells of nearly equal depth: the other one."""
    belief, sigma_r = Belief(*double([0.0, 1.0], [0.3, 0.1])), torch.full((2,), 0.2).double()
    square = ActorCost.from_function(lambda r, s: (r - s).square())
    minima = find_minima(Decisions(square, NormalPerception(), belief, sigma_r, {}))
    torch.testing.assert_close(minima.rise, belief.spread**2 + sigma_r**2, rtol=1e-5, atol=0)
    assert minima.x_other.isnan().all() and (minima.other_cost == torch.inf).all()

    def wells(response, state):
        gap = response - state
        return -torch.exp(-0.5 * ((gap + 2) / 0.3) ** 2) - 0.9 * torch.exp(-0.5 * ((gap - 2) / 0.3) ** 2)

    minima = find_minima(Decisions(ActorCost.from_function(wells), NormalPerception(), belief, sigma_r, {}))
    torch.testing.assert_close(minima.x_action, belief.location - 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(minima.x_other, belief.location + 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(minima.other_cost / minima.cost, torch.full((2,), 0.9).double(), rtol=1e-5, atol=0)
