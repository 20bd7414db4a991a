"""Actors: closed forms against quadrature, accuracy after a minute of training, speed against the minimiser."""

import time

import pytest
import torch
from report import report
from torch.distributions import Uniform

from sbi_bed.diagnostics import actor_validation
from sbi_bed.inference import ActorTrainer
from sbi_bed.simulators import (
    AbsoluteCost,
    AbsoluteEffortCost,
    ActorCost,
    AsymmetricQuadraticCost,
    InvertedGaussianCost,
    LogNormalPerception,
    PinballCost,
    QuadraticCost,
    QuadraticEffortCost,
    ReachingCost,
    ReachingPerception,
    minimise_expected_cost,
)
from sbi_bed.simulators.actors.perception import Belief
from sbi_bed.simulators.actors.situations import draw_situations

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_actors.py -k"
COSTS = [
    QuadraticCost(),
    QuadraticEffortCost(),
    AbsoluteCost(),
    PinballCost(),
    AbsoluteEffortCost(),
    AsymmetricQuadraticCost(),
    InvertedGaussianCost(),
]
STEPS = 5000


@pytest.mark.parametrize("cost", [c for c in COSTS if not isinstance(c, InvertedGaussianCost)], ids=lambda c: c.name)
def test_closed_forms(cost):
    """1,000 random parameters."""
    torch.manual_seed(1)
    given = draw_situations(cost, LogNormalPerception(), 1000)
    belief = Belief(given.belief.location.double(), given.belief.spread.double())
    sigma_r = given.person["sigma_r"].double()
    parameters = {name: value.double() for name, value in given.cost_parameters.items()}
    closed = cost.closed_form(LogNormalPerception(), belief, sigma_r, **parameters)
    start = time.process_time()
    searched = minimise_expected_cost(cost, LogNormalPerception(), belief, sigma_r, parameters)
    seconds = time.process_time() - start
    error = (searched / closed - 1).abs()
    text = (
        f"largest relative difference {float(error.max()):.1e}, median {float(error.median()):.1e}; {seconds:.1f} CPU s"
    )
    report(f"closed form and minimiser, {cost.name}", text, f"{COMMAND} closed")
    assert error.max() < 1e-4


@pytest.mark.parametrize("cost", COSTS, ids=lambda c: c.name)
def test_accuracy_and_speed(cost):
    trainer = ActorTrainer(cost, show_progress_bars=False)
    start, wall = time.process_time(), time.perf_counter()
    actor = trainer.train(STEPS, seed=0, num_validation=0)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    validation = actor_validation(actor, 10_000, seed=5)
    errors, region = validation.errors, validation.worst_region
    where = f"worst region {region.name} {region.low:.3g} to {region.high:.3g} (95th percentile {region.upper:.2%})"
    report(
        f"actor, {cost.name}",
        f"{errors}; {where}; {STEPS:,} steps in {seconds:.0f} CPU s ({wall:.0f} s)",
        f"{COMMAND} accuracy",
    )
    ratio = speed_ratio(actor)
    report(f"actor, {cost.name}, actions a second", ratio[1], f"{COMMAND} accuracy")
    assert errors.median <= 0.005 and errors.upper <= 0.02 and errors.worst <= 0.1 and not errors.indifferent.any()
    assert seconds <= 60 and ratio[0] >= 300


def speed_ratio(actor, rounds=5, num_net=20_000, num_search=200):
    """Median over rounds of the net's actions per CPU second in units of the minimiser's, taken in turn."""
    given = draw_situations(actor.cost, actor.perception, num_net)
    few = {name: value[:num_search].double() for name, value in given.parameters.items()}
    belief = Belief(*(part[:num_search].double() for part in given.belief))
    parameters = {name: few[name] for name in actor.cost.parameters}

    def act():
        with torch.no_grad():
            actor(given.measurement, **given.parameters)

    def search():
        minimise_expected_cost(actor.cost, actor.perception, belief, few["sigma_r"], parameters)

    rates = []
    for _ in range(rounds + 1):
        rate = []
        for run, num in ((act, num_net), (search, num_search)):
            start = time.process_time()
            run()
            rate.append(num / (time.process_time() - start))
        rates.append(rate)
    net, minimiser = torch.tensor(rates[1:]).median(0).values.tolist()  # the first round warms up
    ratio = float(torch.tensor([a / b for a, b in rates[1:]]).median())
    return ratio, f"net {net:,.0f}, minimiser {minimiser:,.0f}, ratio {ratio:,.0f}"


def test_own_cost():
    """A dead zone, whose expected cost is flat where it is wide against the noise."""

    def dead_zone(response, state, width):
        return ((response - state).abs() - width).clamp_min(0)

    trainer = ActorTrainer(ActorCost.from_function(dead_zone, {"width": Uniform(0.1, 1.0)}), show_progress_bars=False)
    start = time.process_time()
    trainer.train(STEPS, seed=0, num_validation=3000)
    seconds = time.process_time() - start
    report(
        "actor, dead zone", f"{trainer.errors}; {STEPS:,} steps and validation in {seconds:.0f} CPU s", f"{COMMAND} own"
    )
    assert trainer.errors.median <= 0.005 and trainer.errors.upper <= 0.02


def test_reaching():
    trainer = ActorTrainer(ReachingCost(), ReachingPerception(), show_progress_bars=False)
    start = time.process_time()
    trainer.train(4000, batch_size=64, seed=0, num_validation=0)
    seconds = time.process_time() - start
    validation = actor_validation(trainer.actor, 200, seed=5)
    text = f"{validation.errors} (in units of the noise); 4,000 steps in {seconds:.0f} CPU s"
    report("actor, reaching in two dimensions", text, f"{COMMAND} reaching")
    assert validation.errors.median <= 0.03 and validation.errors.upper <= 0.1
