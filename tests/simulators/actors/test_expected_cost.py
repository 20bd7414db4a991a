"""Expected costs by quadrature against closed forms, and the refusal of those that are infinite."""

import math

import pytest
import torch
from torch.distributions import Uniform

from sbi_bed.simulators import (
    AbsoluteCost,
    AbsoluteEffortCost,
    ActorCost,
    CircularPerception,
    InvertedGaussianCost,
    LogNormalPerception,
    NormalPerception,
    QuadraticCost,
    ReachingCost,
    ReachingPerception,
)
from sbi_bed.simulators.actors.cost_checks import check_cost, check_symmetries
from sbi_bed.simulators.actors.expected_cost import expected_cost, noise_lattice
from sbi_bed.simulators.actors.perception import Belief

LINEX = ActorCost.from_function(lambda r, s, a: torch.exp(a * (r - s)) - a * (r - s) - 1, {"a": Uniform(0.01, 1.0)})


def double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_smooth_costs_are_exact_with_few_nodes_wherever_the_lattice_lies():
    location, spread, sigma_r = double(0.7, 0.3, 0.2)
    x_action = torch.tensor([0.2, 0.7, 1.1]).double()
    a, s = x_action.exp(), math.exp(0.7)
    exact = a**2 * math.exp(2 * 0.04) - 2 * a * s * math.exp(0.065) + s**2 * math.exp(0.18)
    for shift in (0.5, 0.1):
        place = torch.tensor([shift]).double()
        shifts = place, 1 - place
        found = expected_cost(
            QuadraticCost(), LogNormalPerception(), Belief(location, spread), x_action, sigma_r, {}, 16, shifts
        )
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


def test_a_random_lattice_is_right_on_average_for_a_cost_with_a_kink():
    perception, (spread, sigma_r) = NormalPerception(), double(0.6, 0.8)
    num = 2000
    belief, x_action = Belief(torch.zeros(num).double(), spread.expand(num)), torch.full((num, 1), 0.5).double()
    shift = torch.rand(2, num, 1).double()
    found = expected_cost(
        AbsoluteCost(), perception, belief, x_action, sigma_r.expand(num), {}, 12, (shift[0], shift[1])
    ).squeeze(-1)
    exact = 2 * math.exp(-0.125) / math.sqrt(2 * math.pi) + 0.5 * math.erf(0.5 / math.sqrt(2))  # of N(½, 1)
    assert found.std() > 1e-4 and abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(num) + 1e-5


def test_lattices_have_the_noise_s_moments():
    for response in (False, True):
        offsets, weights = noise_lattice(ReachingPerception(0.5), torch.tensor(0.4).double(), 14, response=response)
        second = torch.einsum("n,ni,nj->ij", weights, offsets, offsets)
        off = 0.08 if response else 0.0
        torch.testing.assert_close(second, torch.tensor([[0.16, off], [off, 0.16]]).double(), rtol=1e-5, atol=1e-9)
    offsets, weights = noise_lattice(CircularPerception(), torch.tensor(1.5).double(), 40)  # all around the circle
    kappa = torch.tensor(1 / 1.5**2).double()
    ratio = torch.special.i1(kappa) / torch.special.i0(kappa)
    torch.testing.assert_close((weights * offsets.cos()).sum(), ratio)


@pytest.mark.parametrize(
    ("cost", "perception"),
    [
        (QuadraticCost(), LogNormalPerception()),
        (AbsoluteEffortCost(), LogNormalPerception()),
        (InvertedGaussianCost(), LogNormalPerception()),
        (ActorCost.from_function(lambda r, s: (r - s) ** 8), LogNormalPerception()),
        (ActorCost.from_function(lambda r, s: 1 / r + s * r), LogNormalPerception()),
        (LINEX, NormalPerception()),
        (ActorCost.from_function(lambda r, s: 1 - torch.cos(r - s)), CircularPerception()),
        (ReachingCost(), ReachingPerception()),
    ],
)
def test_finite_costs_pass(cost, perception):
    check_cost(cost, perception)


@pytest.mark.parametrize(
    ("cost", "perception", "where"),
    [
        (LINEX, LogNormalPerception(), "responses go to the upper end"),
        (
            ActorCost.from_function(lambda r, s: (s - r).clamp_min(0).exp()),
            LogNormalPerception(),
            "states go to the upper",
        ),
        (
            ActorCost.from_function(lambda r, s: torch.exp(1 / r)),
            LogNormalPerception(),
            "responses go to the lower end",
        ),
        (ActorCost.from_function(lambda r, s: torch.exp(3 * r.log() ** 2)), LogNormalPerception(), "infinite"),
        (ActorCost.from_function(lambda r, s: torch.exp(r**2)), NormalPerception(), "infinite"),
    ],
)
def test_infinite_costs_are_refused(cost, perception, where):
    with pytest.raises(ValueError, match=where):
        check_cost(cost, perception)


def test_symmetries_that_costs_claim_are_checked():
    for cost in (QuadraticCost(), AbsoluteCost(), InvertedGaussianCost(), ReachingCost()):
        check_symmetries(cost)
    with pytest.raises(ValueError, match="claims to be homogeneous"):
        check_symmetries(ActorCost.from_function(lambda r, s: (r - s).abs() + r**2, homogeneous=True))
    with pytest.raises(ValueError, match="claims to be shift_invariant"):
        check_symmetries(ActorCost.from_function(lambda r, s: (r / s).log().abs(), shift_invariant=True))


def test_errors_say_what_is_wrong():
    perception = LogNormalPerception()
    with pytest.raises(ValueError, match="not finite at ordinary responses"):
        check_cost(ActorCost.from_function(lambda r, s: torch.log(r - s)), perception)
    with pytest.raises(TypeError, match="must return a tensor of costs, got float"):
        check_cost(ActorCost.from_function(lambda r, s: 1.0), perception)
    with pytest.raises(ValueError, match=r"returned shape \(3, 3\).*one cost for each response and state"):
        check_cost(ActorCost.from_function(lambda r, s: r[:, None] - s), perception)
