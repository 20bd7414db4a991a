"""Costs: their closed forms against figures of the paper's equations and against quadrature, scaling, gradients, errors."""

from typing import ClassVar

import pytest
import torch
from torch.distributions import Beta, Gamma, HalfNormal, LogNormal, Normal, Uniform

from sbi_bed.simulators import (
    AbsoluteCost,
    AbsoluteEffortCost,
    ActorCost,
    AsymmetricQuadraticCost,
    InvertedGaussianCost,
    LogNormalPerception,
    NormalPerception,
    PinballCost,
    QuadraticCost,
    QuadraticEffortCost,
    minimise_expected_cost,
    optimal_action,
)
from sbi_bed.simulators.actors.cost import prior_range
from sbi_bed.simulators.actors.perception import Belief
from sbi_bed.simulators.actors.situations import draw_situations

CHECKS = [
    (QuadraticCost(), {}, 1.98377),
    (AbsoluteCost(), {}, 1.93479),
    (PinballCost(), {"alpha": 0.8}, 2.62072),
    (AbsoluteEffortCost(), {"beta": 0.8}, 1.32689),
    (AsymmetricQuadraticCost(), {"alpha": 0.2}, 1.62916),
    (InvertedGaussianCost(), {"gamma": 1.0}, 1.93210),
    (QuadraticEffortCost(), {"beta": 0.8}, 0.8 * 1.98377),
]
COSTS = [cost for cost, _, _ in CHECKS]


def doubles(parameters):
    return {name: torch.as_tensor(value).double() for name, value in parameters.items()}


@pytest.mark.parametrize(("cost", "parameters", "expected"), CHECKS)
def test_known_actions(cost, parameters, expected):
    belief, sigma_r = Belief(*torch.tensor([0.7, 0.3]).double()), torch.tensor(0.2).double()
    perception, parameters = LogNormalPerception(), doubles(parameters)
    searched = minimise_expected_cost(cost, perception, belief, sigma_r, parameters)
    assert float(searched) == pytest.approx(expected, abs=2e-5)
    closed = cost.closed_form(perception, belief, sigma_r, **parameters)
    if not isinstance(cost, InvertedGaussianCost):
        assert float(closed) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
@pytest.mark.parametrize("perception", [LogNormalPerception(), NormalPerception()], ids=["log-normal", "normal"])
def test_closed_forms_are_what_the_search_finds(cost, perception):
    given = draw_situations(cost, perception, 60)
    sigma_r, parameters = given.person["sigma_r"].double(), doubles(given.cost_parameters)
    belief = Belief(given.belief.location.double(), given.belief.spread.double())
    closed = cost.closed_form(perception, belief, sigma_r, **parameters)
    if closed is None:
        assert (type(cost), type(perception)) in {
            (InvertedGaussianCost, LogNormalPerception),
            (AbsoluteEffortCost, NormalPerception),
            (AsymmetricQuadraticCost, NormalPerception),
        }
        return
    searched = minimise_expected_cost(cost, perception, belief, sigma_r, parameters)
    scale = closed if perception.scale_free else (belief.spread.square() + sigma_r.square()).sqrt()
    assert ((searched - closed) / scale).abs().max() < 1e-4


@pytest.mark.parametrize("cost", [cost for cost in COSTS if cost.homogeneous], ids=lambda cost: cost.name)
def test_costs_that_scale_scale_and_so_do_their_actions(cost):
    perception = LogNormalPerception()
    given = draw_situations(cost, perception, 20)
    parameters, person, m = doubles(given.cost_parameters), doubles(given.person), given.measurement.double()
    response, state = torch.rand(2, 20).double() + 0.1
    power = torch.log(cost(2 * response, 2 * state, **parameters) / cost(response, state, **parameters)) / torch.log(
        torch.tensor(2.0)
    )
    torch.testing.assert_close(power, power.round())
    once = optimal_action(cost, perception, m, **person, **parameters)
    scaled = optimal_action(cost, perception, 3 * m, **(person | {"mu_0": 3 * person["mu_0"]}), **parameters)
    torch.testing.assert_close(scaled, 3 * once, rtol=1e-10, atol=0)


def test_no_effort_and_wide_wells_are_the_simpler_costs():
    belief, sigma_r = Belief(*torch.tensor([0.7, 0.3]).double()), torch.tensor(0.2).double()
    perception, one = LogNormalPerception(), torch.tensor(1.0).double()
    absolute = AbsoluteCost().closed_form(perception, belief, sigma_r)
    torch.testing.assert_close(AbsoluteEffortCost().closed_form(perception, belief, sigma_r, one), absolute)
    torch.testing.assert_close(PinballCost().closed_form(perception, belief, sigma_r, one / 2), absolute)
    quadratic = QuadraticCost().closed_form(perception, belief, sigma_r)
    torch.testing.assert_close(AsymmetricQuadraticCost().closed_form(perception, belief, sigma_r, one / 2), quadratic)
    wide = minimise_expected_cost(InvertedGaussianCost(), perception, belief, sigma_r, {"gamma": 200 * one})
    torch.testing.assert_close(wide, quadratic, rtol=2e-4, atol=0)


@pytest.mark.parametrize("cost", [AbsoluteEffortCost(), AsymmetricQuadraticCost()], ids=lambda cost: cost.name)
def test_roots_are_differentiable(cost):
    perception = LogNormalPerception()
    values = torch.tensor([[0.7, 0.3, 0.2, 0.6], [-0.5, 0.1, 0.4, 0.8]]).double().requires_grad_()

    def action(values):
        location, spread, sigma_r, parameter = values.unbind(-1)
        return cost.closed_form(perception, Belief(location, spread), sigma_r, parameter)

    assert torch.autograd.gradcheck(action, values)


def test_ranges_of_priors():
    assert prior_range(Uniform(0.5, 1.0)) == (0.5, 1.0)
    assert prior_range(Beta(2.0, 3.0)) == (0.0, 1.0)
    low, high = prior_range(Normal(1.0, 2.0))
    assert low == pytest.approx(1 - 2 * 3.2905, abs=1e-3) and high == pytest.approx(1 + 2 * 3.2905, abs=1e-3)
    low, high = prior_range(LogNormal(0.0, 1.0))
    assert 0 < low < 0.05 and 20 < high < 30
    for prior in (HalfNormal(1.0), Gamma(2.0, 1.0)):  # a gamma distribution has no quantile function in torch
        low, high = prior_range(prior)
        assert 0 < low < 0.1 and 3 < high < 15


def test_a_cost_of_ones_own():
    class DeadZone(ActorCost):
        parameters: ClassVar = {"width": Uniform(0.1, 1.0)}

        def __call__(self, response, state, width):
            return ((response - state).abs() - width).clamp_min(0)

    function = ActorCost.from_function(
        lambda response, state, width: ((response - state).abs() - width).clamp_min(0), {"width": Uniform(0.1, 1.0)}
    )
    perception, width = LogNormalPerception(), torch.tensor(0.4).double()
    belief, sigma_r = Belief(*torch.tensor([0.7, 0.3]).double()), torch.tensor(0.2).double()
    actions = [
        minimise_expected_cost(cost, perception, belief, sigma_r, {"width": width}) for cost in (DeadZone(), function)
    ]
    assert float(actions[0]) == float(actions[1]) and 1.5 < float(actions[0]) < 2.2
    assert DeadZone().describe()["parameters"] == {"width": [pytest.approx(0.1), 1.0]}


def test_errors_say_what_is_wrong():
    with pytest.raises(TypeError, match="function must be a callable"):
        ActorCost.from_function(3)
    with pytest.raises(TypeError, match="width needs a torch distribution"):
        ActorCost.from_function(lambda r, s, width: r, {"width": 0.3})
    with pytest.raises(TypeError, match="PinballCost has parameters: alpha; got: beta"):
        optimal_action(
            PinballCost(),
            LogNormalPerception(),
            torch.tensor(1.0),
            sigma=0.1,
            sigma_0=0.1,
            mu_0=1.0,
            sigma_r=0.1,
            beta=0.3,
        )
    with pytest.raises(NotImplementedError, match="must define __call__"):
        ActorCost()(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize("cost", [AbsoluteEffortCost(), AsymmetricQuadraticCost()], ids=lambda cost: cost.name)
def test_gradients_of_roots_are_exact_whichever_parameters_they_are_wanted_of(cost):
    location, spread, sigma_r, own = (torch.tensor(v).double() for v in ([0.7, -0.4], [0.3, 0.1], [0.2, 0.4], 0.8))
    (name,) = cost.parameters

    def action(location, spread, sigma_r, own):
        return cost.closed_form(LogNormalPerception(), Belief(location, spread), sigma_r, **{name: own})

    values = [location, spread, sigma_r, own]
    assert torch.autograd.gradcheck(action, [value.clone().requires_grad_() for value in values])
    for i in range(4):
        some = [value.clone().requires_grad_(i == j) for j, value in enumerate(values)]
        assert torch.autograd.gradcheck(action, some)
    assert not action(*values).requires_grad
