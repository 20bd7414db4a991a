"""Actors outside their range, in other units and types: the right answer, or one warning that names what is outside."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Uniform

from sbi_bed.neural_nets import NeuralActor, actor_errors
from sbi_bed.simulators import (
    AbsoluteCost,
    AbsoluteEffortCost,
    ActorCost,
    BayesianActor,
    InvertedGaussianCost,
    LogNormalPerception,
    NormalPerception,
    OptimalActor,
    QuadraticCost,
    QuadraticEffortCost,
)

GIVEN = {"sigma": 0.2, "sigma_0": 0.3, "mu_0": 1.5, "sigma_r": 0.25}


def dead_zone(response, state, width):
    return ((response - state).abs() - width).clamp_min(0)


DEAD_ZONE = ActorCost.from_function(dead_zone, {"width": Uniform(0.1, 1.0)})


def randomised(actor, seed=0):
    torch.manual_seed(seed)
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return actor.eval()


def warned(call):
    """Messages of the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("name", "value", "trained"),
    [
        ("sigma", 0.7, "0.01 to 0.5"),
        ("sigma", 0.001, "0.01 to 0.5"),
        ("sigma_0", 2.0, "0.01 to 0.5"),
        ("sigma_r", np.array([0.2, 0.9]), "0.01 to 0.5"),
        ("mu_0", 300.0, "0.1 to 7"),
        ("width", torch.tensor([0.5, 4.0]).double(), "0.1 to 1"),
        ("measurement", torch.tensor([900.0, 3000.0]), "0.0082"),
        ("measurement", 1e-4, "0.0082"),
    ],
)
def test_one_warning_names_argument_value_and_range(name, value, trained):
    actor = randomised(NeuralActor(DEAD_ZONE))
    arguments = {"measurement": torch.tensor([1.0, 2.0]), **GIVEN, "width": 0.4}
    assert warned(lambda: actor(**arguments)) == []
    (message,) = warned(lambda: actor(**(arguments | {name: value})))
    outermost = float(np.max(np.asarray(value)))
    assert f"{name} = {outermost:.6g} is outside the range" in message and trained in message


def test_several_arguments_outside_are_one_warning_and_a_file_keeps_the_ranges(tmp_path):
    perception = LogNormalPerception(sigma=(0.1, 0.2), stimulus=(1.0, 3.0))
    randomised(NeuralActor(DEAD_ZONE, perception)).save(tmp_path / "actor.pt")
    actor = NeuralActor.load(tmp_path / "actor.pt", cost=DEAD_ZONE, perception=perception)
    m = torch.tensor(2.0)
    (message,) = warned(lambda: actor(m, **(GIVEN | {"sigma_r": 0.6}), width=3.0))
    assert all(part in message for part in ("sigma_r = 0.6", "width = 3", "0.1 to 1")) and "sigma = 0.2" not in message
    (message,) = warned(lambda: actor(m, **(GIVEN | {"sigma": 0.05}), width=0.3))
    assert "sigma = 0.05" in message and "0.1 to 0.2" in message


def test_inside_the_range_nothing_warns():
    """Situations as in training, for costs with and without symmetry, on both kinds of coordinates."""
    for cost in (DEAD_ZONE, QuadraticCost(), AbsoluteEffortCost()):
        for perception in (LogNormalPerception(), NormalPerception()):
            actor = randomised(NeuralActor(cost, perception))
            simulator = BayesianActor(actor, fixed={})
            theta, stimulus = simulator.prior.sample((2000, 1)), simulator.design_space.sample((2000, 3))

            def use(simulator=simulator, theta=theta, stimulus=stimulus):
                simulator.log_likelihood(theta, stimulus, simulator(theta, stimulus))

            torch.manual_seed(0)
            assert warned(use) == []


@pytest.mark.parametrize("unit", [1000.0, 0.001])
def test_other_units_are_exact_where_costs_scale_and_warn_where_they_do_not(unit):
    m, scaled = torch.tensor([0.5, 2.0, 6.0]), GIVEN | {"mu_0": 1.5 * unit}
    for cost in (QuadraticCost(), AbsoluteCost(), QuadraticEffortCost()):
        actor = randomised(NeuralActor(cost))
        own = {name: 0.7 for name in cost.parameters}
        once = actor(m, **GIVEN, **own)
        assert warned(lambda actor=actor, own=own: actor(m * unit, **scaled, **own)) == []
        torch.testing.assert_close(actor(m * unit, **scaled, **own), unit * once, rtol=1e-4, atol=0)
    (message,) = warned(lambda: randomised(NeuralActor(InvertedGaussianCost()))(m * unit, **scaled, gamma=2.0))
    assert "measurement = " in message and "mu_0 = " in message
    wide = LogNormalPerception(stimulus=(0.1 * unit, 7 * unit), mu_0=(0.1 * unit, 7 * unit))
    assert warned(lambda: NeuralActor(InvertedGaussianCost(), wide)(m * unit, **scaled, gamma=2.0)) == []


def test_sizes_and_types():
    """Numbers, numpy arrays, float64 and float32 tensors, one or no action: the same actions, in the measurement's type."""
    actor = randomised(NeuralActor(AbsoluteEffortCost()))
    one = actor(torch.tensor(2.0), **GIVEN, beta=0.8)
    assert one.shape == () and one.dtype == torch.float32
    for m, dtype in (
        (np.array([2.0, 2.0]), torch.float64),
        (np.array([2.0, 2.0], np.float32), torch.float32),
        (torch.tensor([2, 2]), torch.float32),
        (torch.tensor([2.0, 2.0]).double(), torch.float64),
    ):
        found = actor(m, **{k: np.float64(v) for k, v in GIVEN.items()}, beta=np.array([0.8, 0.8]))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), one.double().expand(2), rtol=1e-5, atol=0)
    assert actor(torch.zeros(0), **GIVEN, beta=0.8).shape == (0,)
    with pytest.raises(ValueError, match="measurement = nan"):
        actor(torch.tensor([1.0, math.nan]), **GIVEN, beta=0.8)


def test_stimuli_outside_the_experiment_warn_once():
    for actor in (OptimalActor(QuadraticCost()), randomised(NeuralActor(QuadraticEffortCost()))):
        simulator = BayesianActor(actor)
        theta, stimulus = simulator.prior.sample(), torch.tensor([[500.0], [3000.0]])
        (message,) = warned(lambda s=simulator, t=theta, x=stimulus: s.log_likelihood(t, x, x))
        assert "stimulus = 3000 is outside the range of this experiment, 0.1 to 7" in message
        (message,) = warned(lambda s=simulator, t=theta: s(t, torch.tensor([0.01])))
        assert "stimulus = 0.01" in message
    outside = BayesianActor(randomised(NeuralActor(QuadraticEffortCost())))
    (message,) = warned(lambda: outside(torch.tensor([0.9, 1.0, 0.1, 0.8]), torch.tensor([1.0])))
    assert "sigma_0 = 0.9 is outside the range that this actor was trained in" in message
    (message,) = warned(lambda: BayesianActor(NeuralActor(DEAD_ZONE), stimulus_range=(100.0, 7000.0)))
    assert "measurement = 7000" in message


def test_an_actor_with_large_errors_is_warned_of_or_refused():
    actor = randomised(NeuralActor(QuadraticCost()))
    for upper, excess in ((0.02, 0.05), (0.1, 0.1)):
        actor.errors = {"upper": upper, "upper_excess": excess}
        assert warned(lambda: BayesianActor(actor)) == []
    for upper, excess in ((0.3, 0.01), (0.02, 0.4)):
        actor.errors = {"upper": upper, "upper_excess": excess}
        (message,) = warned(lambda: BayesianActor(actor))
        assert f"{upper:.3g}" in message and f"{excess:.3g}" in message and "at most 0.1" in message
    for errors in ({"upper": 1.2}, {"upper": 0.1, "upper_excess": 3.0}, {"upper": math.nan}):
        actor.errors = errors
        with pytest.raises(ValueError, match="the actor is not close to optimal"):
            BayesianActor(actor)


def test_excess_cost_is_the_squared_error_of_a_quadratic_cost():
    """Under normal noise, in units of τ² for an error of τ: the excess is the square of the error in units of τ."""
    actor = randomised(NeuralActor(QuadraticCost(), NormalPerception()))
    for numerically in (False, True):
        errors = actor_errors(actor, 100, seed=0, numerically=numerically)
        tau = (errors.situations.belief.spread**2 + errors.situations.person["sigma_r"] ** 2).double()
        floor = tau.clamp_min(0.01 * float(tau.mean()))
        torch.testing.assert_close(errors.excess, errors.error**2 * tau / floor, rtol=1e-4, atol=1e-6)
        assert (errors.gap == math.inf).all() and errors.share_tied == 0
    assert errors.as_plain_data()["upper_excess"] == errors.upper_excess and "excess cost" in str(errors)


def test_where_the_cost_is_flat_or_tied_the_report_says_so():
    def wells(response, state, depth):
        gap = response - state
        return -torch.exp(-0.5 * ((gap + 2) / 0.3) ** 2) - depth * torch.exp(-0.5 * ((gap - 2) / 0.3) ** 2)

    perception = NormalPerception(sigma=(0.05, 0.5), sigma_0=(0.05, 0.5), sigma_r=(0.05, 0.5))
    cost = ActorCost.from_function(wells, {"depth": Uniform(0.2, 2.0)}, shift_invariant=True)
    actor = NeuralActor(cost, perception)  # untrained, it acts in the middle between both
    given = GIVEN | {"mu_0": 0.0}
    report = actor.report(torch.zeros(4).double(), **given, depth=torch.tensor([0.5, 0.99, 1.01, 1.9]).double())
    torch.testing.assert_close(report.best, torch.tensor([-2.0, -2.0, 2.0, 2.0]).double(), rtol=0, atol=1e-5)
    assert report.tied.tolist() == [False, True, True, False] and not report.flat.any() and (report.excess > 1).all()
    torch.testing.assert_close(report.other[1:3], torch.tensor([2.0, -2.0]).double(), rtol=0, atol=1e-5)
    table = report.to_dataframe()
    assert list(table["tied"]) == report.tied.tolist() and "tied" in str(report)
    errors = actor_errors(actor, 200, seed=0)  # one in twelve is nearly tied
    depth = errors.situations.cost_parameters["depth"]
    assert (depth[errors.gap < 0.1] - 1).abs().max() < 0.3
    assert 0 < errors.share_tied < 0.3 and errors.median_excess > 1

    wide = NeuralActor(
        ActorCost.from_function(dead_zone, {"width": Uniform(2.0, 3.0)}, shift_invariant=True), perception
    )
    report = wide.report(torch.tensor([0.0, 1.0]), **given, width=2.5)
    assert report.flat.all() and (report.excess == 0).all()
    sharp = NeuralActor(QuadraticCost(), perception).report(1.0, **given)
    assert not bool(sharp.flat) and not bool(sharp.tied) and abs(float(sharp.excess)) < 1e-6
    with pytest.raises(ValueError, match="single numbers"):
        from sbi_bed.simulators import ReachingCost, ReachingPerception

        NeuralActor(ReachingCost(), ReachingPerception()).report(torch.zeros(2), **GIVEN, penalty=1.0)
