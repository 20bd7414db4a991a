"""A net that acts: exact symmetries, gradients, ranges, files, and how its errors are measured."""

import pytest
import torch
from torch.distributions import Uniform

from sbi_bed.neural_nets import NeuralActor, actor_errors
from sbi_bed.simulators import (
    AbsoluteCost,
    AbsoluteEffortCost,
    ActorCost,
    CircularPerception,
    InvertedGaussianCost,
    LogNormalPerception,
    NormalPerception,
    PinballCost,
    ReachingCost,
    ReachingPerception,
)

GIVEN = {"sigma": 0.2, "sigma_0": 0.3, "mu_0": 1.5, "sigma_r": 0.25}


def randomised(actor):
    """The actor with other weights than its first ones, which act at the belief's location."""
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return actor.eval()


def test_symmetries_are_exact():
    actor = randomised(NeuralActor(PinballCost()))
    m = torch.tensor([0.5, 1.0, 3.0]).double()
    once = actor(m, **GIVEN, alpha=0.3)
    torch.testing.assert_close(actor(2 * m, **(GIVEN | {"mu_0": 3.0}), alpha=0.3), 2 * once, rtol=1e-6, atol=0)
    normal = randomised(NeuralActor(PinballCost(), NormalPerception()))
    moved = normal(m - 2, **(GIVEN | {"mu_0": -0.5}), alpha=0.3)
    torch.testing.assert_close(moved, normal(m, **GIVEN, alpha=0.3) - 2, rtol=0, atol=1e-6)
    free = randomised(NeuralActor(AbsoluteEffortCost()))
    ratio = free(2 * m, **(GIVEN | {"mu_0": 3.0}), beta=0.7) / free(m, **GIVEN, beta=0.7)
    assert (ratio - 2).abs().min() > 1e-3  # a cost that does not scale


@pytest.mark.parametrize(
    ("cost", "perception", "m"),
    [
        (AbsoluteEffortCost(), None, torch.tensor([0.5, 1.0])),
        (ActorCost.from_function(lambda r, s: 1 - torch.cos(r - s)), CircularPerception(), torch.tensor([0.5, 1.0])),
        (ReachingCost(), ReachingPerception(), torch.tensor([[0.5, 1.0], [0.0, -1.0], [2.0, 2.0]])),
    ],
)
def test_actions_broadcast_and_are_differentiable(cost, perception, m):
    actor = randomised(NeuralActor(cost, perception)).double()
    values = {name: torch.tensor(value).double().requires_grad_() for name, value in GIVEN.items()}
    values |= {
        name: torch.tensor([[0.5 * (lo + hi)]] * 2).double().requires_grad_()
        for name, (lo, hi) in cost.training_box.items()
    }
    action = actor(m.double(), **values)
    wide = (2,) if cost.parameters else ()
    assert action.shape == (*wide, *m.shape)
    names = list(values)
    assert torch.autograd.gradcheck(
        lambda *v: actor(m.double(), **dict(zip(names, v, strict=True))), list(values.values())
    )


def test_what_is_outside_raises_or_warns():
    actor = NeuralActor(InvertedGaussianCost())
    actor.outside = "raise"
    m = torch.tensor(1.0)
    with pytest.raises(
        ValueError, match=r"sigma = 0.7 is outside the range that this actor was trained in, 0.01 to 0.5"
    ):
        actor(m, **(GIVEN | {"sigma": 0.7}), gamma=2.0)
    with pytest.raises(ValueError, match="gamma = 40 is outside"):
        actor(m, **GIVEN, gamma=torch.tensor([2.0, 40.0]))
    with pytest.raises(ValueError, match=r"measurement = 10000 is outside"):
        actor(torch.tensor(1e4), **GIVEN, gamma=2.0)
    with pytest.raises(ValueError, match="sigma = nan is outside"):
        actor.check_inside("warn", sigma=float("nan"))
    with pytest.warns(RuntimeWarning, match="stimulus = 9 is outside"):
        actor.check_inside(outside="warn", stimulus=9.0)
    actor.outside = "warn"
    with pytest.warns(RuntimeWarning, match="sigma_r = 0.6 is outside") as caught:
        actor(m, **(GIVEN | {"sigma_r": 0.6}), gamma=2.0)
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="no parameter 'tau'"):
        actor.check_inside(tau=1.0)
    with pytest.raises(ValueError, match="'raise' or 'warn', got 'ignore'"):
        actor.check_inside("ignore", sigma=0.1)
    actor.check_inside(**{name: torch.tensor(bounds) for name, bounds in actor.training_box.items()})  # ends are inside


def test_saved_and_loaded_it_acts_the_same(tmp_path):
    path = tmp_path / "actor.pt"
    m = torch.tensor([[0.5, 1.0], [2.0, 3.0]])
    for cost, perception in (
        (AbsoluteCost(), NormalPerception(sigma=(0.1, 0.9))),
        (ReachingCost(), ReachingPerception(0.2)),
    ):
        actor = randomised(NeuralActor(cost, perception, hidden_dim=8, num_layers=1))
        actor.errors = {"median": 0.1}
        actor.save(path)
        own = cost if isinstance(cost, ReachingCost) else None
        loaded = NeuralActor.load(path, cost=own)
        parameters = {name: 1.0 for name in cost.parameters}
        assert torch.equal(loaded(m, **GIVEN, **parameters), actor(m, **GIVEN, **parameters))
        assert loaded.training_box == actor.training_box and loaded.errors == actor.errors


def test_a_cost_of_ones_own_must_be_given_again(tmp_path):
    path = tmp_path / "actor.pt"

    def dead_zone(r, s, width):
        return ((r - s).abs() - width).clamp_min(0)

    cost = ActorCost.from_function(dead_zone, {"width": Uniform(0.1, 1.0)})
    NeuralActor(cost).save(path)
    with pytest.raises(ValueError, match="a cost of your own, 'dead_zone': give it as cost="):
        NeuralActor.load(path)
    with pytest.raises(ValueError, match=r"was trained with cost .*dead_zone.*, got .*PinballCost"):
        NeuralActor.load(path, cost=PinballCost())
    with pytest.raises(ValueError, match="was trained with perception"):
        NeuralActor.load(path, cost=cost, perception=LogNormalPerception(sigma=(0.1, 0.2)))
    assert NeuralActor.load(path, cost=cost).training_box["width"] == (pytest.approx(0.1), 1.0)
    NeuralActor(PinballCost(Uniform(0.2, 0.3))).save(path)
    with pytest.raises(ValueError, match="was trained with cost"):
        NeuralActor.load(path)  # of the usual prior there is none


def test_errors_are_measured_against_optimal_actions():
    """An untrained net acts at the median, which errs by |expm1(σ_r²)| under absolute cost."""
    errors = actor_errors(NeuralActor(AbsoluteCost()), num_actions=500)
    expected = torch.expm1(errors.situations.person["sigma_r"].double() ** 2)
    torch.testing.assert_close(errors.error, expected, rtol=1e-5, atol=1e-7)
    assert errors.worst == float(errors.error.max()) and not errors.indifferent.any()
    assert errors.worst_situation["sigma_r"] == float(errors.situations.person["sigma_r"].max())
    searched = actor_errors(NeuralActor(AbsoluteCost()), num_actions=100, numerically=True)
    expected = torch.expm1(searched.situations.person["sigma_r"].double() ** 2)
    torch.testing.assert_close(searched.error, expected, rtol=0, atol=2e-5)
    assert "median error" in str(errors) and errors.as_plain_data()["num_actions"] == 500


def test_where_it_does_not_matter_errors_do_not_count():
    cost = ActorCost.from_function(lambda r, s: ((r - s).abs() - 3.0).clamp_min(0), shift_invariant=True)
    perception = NormalPerception(sigma=(0.05, 0.2), sigma_0=(0.05, 0.2), sigma_r=(0.05, 0.2))
    errors = actor_errors(NeuralActor(cost, perception), num_actions=50)
    assert errors.indifferent.all() and errors.worst == 0 and "without 50" in str(errors)
