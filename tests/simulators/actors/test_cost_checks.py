"""Costs that make no sense are refused when an actor or trainer is built; those that do are not, in any unit."""

import pytest
import torch
from torch.distributions import LogNormal, Uniform

from sbi_bed.inference import ActorTrainer
from sbi_bed.neural_nets import NeuralActor
from sbi_bed.simulators import (
    AbsoluteCost,
    AbsoluteEffortCost,
    ActorCost,
    AsymmetricQuadraticCost,
    CircularPerception,
    InvertedGaussianCost,
    LogNormalPerception,
    NormalPerception,
    OptimalActor,
    PinballCost,
    QuadraticCost,
    QuadraticEffortCost,
    ReachingCost,
    ReachingPerception,
)
from sbi_bed.simulators.actors.cost_checks import check_cost

METRES = 1.0, LogNormalPerception(), NormalPerception()
MILLIMETRES = (
    1e3,
    LogNormalPerception(stimulus=(100.0, 7000.0), mu_0=(100.0, 7000.0)),
    NormalPerception(**{n: (1e3 * a, 1e3 * b) for n, (a, b) in NormalPerception.default_ranges.items()}),
)
NO_MINIMUM = {
    "large responses are free": lambda r, s: -r,
    "s - 2 r": lambda r, s: s - 2 * r,
    "errors are rewarded": lambda r, s: -(r - s).abs(),
    "squares are rewarded": lambda r, s: -(r - s).square(),
    "only too small is wrong": lambda r, s: torch.relu(s - r),
    "saturating": lambda r, s: torch.tanh(s / r.abs().clamp_min(1e-300) - 1) if (r > 0).all() else torch.tanh(s - r),
    "more reward than error": lambda r, s: (r - s).abs() - 2 * r,
}
INFINITE = {
    "1/d^2": lambda r, s: 1 / (r - s).square(),
    "1/|d|": lambda r, s: 1 / (r - s).abs(),
    "a pole elsewhere": lambda r, s: (r - s).square() + s.square() / (r - 1.3 * s).square(),
    "a pole of negative cost": lambda r, s: (r - s).square() - 1 / (r - s).abs(),
}


@pytest.mark.parametrize("kind", NO_MINIMUM)
def test_costs_without_a_minimum_are_refused(kind):
    for _, *perceptions in (METRES, MILLIMETRES):
        for perception in perceptions:
            if kind == "saturating" and isinstance(perception, NormalPerception):
                continue
            with pytest.raises(ValueError, match="has no minimum"):
                check_cost(ActorCost.from_function(NO_MINIMUM[kind]), perception)


@pytest.mark.parametrize("kind", INFINITE)
def test_costs_of_infinite_expectation_are_refused(kind):
    for _, *perceptions in (METRES, MILLIMETRES):
        for perception in perceptions:
            with pytest.raises(ValueError, match="is infinite"):
                check_cost(ActorCost.from_function(INFINITE[kind]), perception)


def test_costs_that_make_sense_pass_in_any_unit():
    for unit, *perceptions in (METRES, MILLIMETRES):

        def dead_zone(r, s, width, unit=unit):
            return ((r - s).abs() - width * unit).clamp_min(0)

        costs = [QuadraticCost(), AbsoluteCost(), PinballCost(), AsymmetricQuadraticCost(), InvertedGaussianCost()]
        costs += [ActorCost.from_function(dead_zone, {"width": Uniform(0.1, 1.0)})]
        costs += [ActorCost.from_function(lambda r, s, w=w * unit: (r - s).abs() > w) for w in (0.01, 0.3, 2.0)]
        costs += [ActorCost.from_function(lambda r, s: (r - s).abs().sqrt())]
        costs += [ActorCost.from_function(lambda r, s, u=unit: (r - s).square() / u**2 - ((r - s) / u).abs().log())]
        costs += [ActorCost.from_function(lambda r, s, u=unit: (r - s).square() / u**2 + ((r - s) / u).abs() ** -0.5)]
        costs += [ActorCost.from_function(lambda r, s, b: b * (r - s).abs() ** 3, {"b": LogNormal(0.0, 1.0)})]
        positive = [QuadraticEffortCost(Uniform(0.0, 1.0)), AbsoluteEffortCost()]
        for perception in perceptions:
            more = positive if isinstance(perception, LogNormalPerception) else [QuadraticEffortCost()]
            for cost in costs + more:
                check_cost(cost, perception)
    check_cost(ReachingCost(), ReachingPerception())
    check_cost(ActorCost.from_function(lambda r, s: 1 - torch.cos(r - s)), CircularPerception())
    check_cost(ActorCost.from_function(lambda r, s: 1 - torch.cos(r - s)), NormalPerception())


def test_vectors():
    for function, message in (
        (lambda r, s: -(r - s)[..., 0], "has no minimum"),
        (lambda r, s: 1 / (r - s).square().sum(-1), "is infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_cost(ActorCost.from_function(function, action_dim=2), ReachingPerception())


@pytest.mark.parametrize("build", [OptimalActor, NeuralActor, ActorTrainer])
def test_whatever_is_built_refuses_them(build):
    for cost, message in (
        (ActorCost.from_function(lambda r, s: 1 / (r - s) ** 2), "is infinite"),
        (ActorCost.from_function(lambda r, s: -r), "has no minimum"),
    ):
        with pytest.raises(ValueError, match=message):
            build(cost)


@pytest.mark.parametrize("name", ["sigma", "sigma_0", "mu_0", "sigma_r", "measurement", "stimulus"])
def test_parameters_named_like_those_of_perception_are_refused(name):
    with pytest.raises(ValueError, match=f"parameter named '{name}'"):
        ActorCost.from_function(lambda r, s, **given: (r - s) ** 2, {name: Uniform(0.1, 1.0)})

    class Own(ActorCost):
        parameters = {name: Uniform(0.1, 1.0)}  # noqa: RUF012

        def __call__(self, response, state, **given):
            return (response - state) ** 2

    for build in (OptimalActor, NeuralActor, ActorTrainer):
        with pytest.raises(ValueError, match=f"Own has a parameter named '{name}'"):
            build(Own())


@pytest.mark.parametrize("place", [0.0, 0.3, 2.0, 5.0])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_small_pole_is_seen_anywhere_within_the_noise(place, power):
    """Ever so small beside what larger errors cost."""
    cost = ActorCost.from_function(lambda r, s: (r - s).square() + 0.01 * (r - s - place).abs() ** -power)
    with pytest.raises(ValueError, match="infinite: near some response and state"):
        check_cost(cost, NormalPerception())


@pytest.mark.parametrize(
    "bump",
    [
        lambda d: 0.01 * (d - 0.3).abs().clamp_min(1e-12) ** -0.5,
        lambda d: -0.1 * (d - 2).abs().clamp_min(1e-12).log(),
        lambda d: 5.0 * (d.abs() > 0.37),
        lambda d: (20 * d).sin(),
        lambda d: 3 * (-0.5 * ((d - 0.5) / 1e-3).square()).exp(),
    ],
    ids=["integrable pole", "log", "jump", "waves", "narrow bump"],
)
def test_peaks_that_are_no_poles_are_allowed(bump):
    check_cost(ActorCost.from_function(lambda r, s: (r - s).square() + bump(r - s)), NormalPerception())
