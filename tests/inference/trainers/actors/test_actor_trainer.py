"""Training an actor: errors against optimal actions, a cost of one's own, resumption, seeds, refusals."""

import math

import pytest
import torch
from torch.distributions import Uniform

from sbi_bed.diagnostics import actor_validation
from sbi_bed.inference import ActorTrainer
from sbi_bed.inference.trainers.actors.actor import newton_step
from sbi_bed.neural_nets import NeuralActor
from sbi_bed.simulators import (
    AbsoluteCost,
    ActorCost,
    CircularPerception,
    LogNormalPerception,
    NormalPerception,
    QuadraticCost,
    QuadraticEffortCost,
    ReachingCost,
    ReachingPerception,
)
from sbi_bed.simulators.actors.perception import Belief


def train(cost, num_steps, perception=None, **settings):
    trainer = ActorTrainer(cost, perception, show_progress_bars=False)
    return trainer, trainer.train(num_steps, seed=0, **settings)


def test_the_step_is_newton_s_for_a_quadratic_expected_cost():
    """Under normal noise the expected cost of β (r − s)² + (1 − β) r² is a parabola about β μ_p."""
    location, beta = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.6, 0.9]).double()
    spread, sigma_r = torch.tensor([0.3, 0.5]).double(), torch.tensor([0.2, 0.7]).double()
    offset = torch.tensor([0.05, -0.1]).double()
    step = newton_step(
        QuadraticEffortCost(), NormalPerception(), Belief(location, spread), offset, sigma_r, {"beta": beta}, 13
    )
    torch.testing.assert_close(step, offset + (1 - beta) * location, rtol=1e-6, atol=0)


def test_the_step_of_vectors_follows_each_axis():
    cost = ActorCost.from_function(
        lambda r, s: ((r - s - torch.tensor([0.3, -0.2])) ** 2).sum(-1), action_dim=2, shift_invariant=True
    )
    belief = Belief(torch.zeros(4, 2).double(), torch.full((4,), 0.3).double())
    offset = torch.randn(4, 2).double() * 0.1
    step = newton_step(cost, ReachingPerception(), belief, offset, torch.full((4,), 0.4).double(), {}, 11)
    torch.testing.assert_close(step, offset - torch.tensor([0.3, -0.2]), rtol=0, atol=1e-5)


def test_a_short_training_is_accurate_and_says_how_much(tmp_path):
    trainer, actor = train(QuadraticEffortCost(), 400, num_validation=500)
    assert trainer.errors.median < 0.005 and trainer.errors.upper < 0.02 and trainer.errors.worst < 0.1
    assert actor.errors == trainer.errors.as_plain_data() and not actor.training
    actor.save(tmp_path / "actor.pt")
    loaded = NeuralActor.load(tmp_path / "actor.pt")
    validation = actor_validation(loaded, 1000, seed=3)
    assert validation.errors.upper < 0.02 and validation.worst_region.upper >= validation.errors.upper
    assert sum(r.count for r in validation.regions if r.name == "beta") == 1000
    assert "beta" in str(validation)


@pytest.mark.parametrize(
    ("cost", "perception"),
    [
        (AbsoluteCost(), NormalPerception()),
        (ActorCost.from_function(lambda r, s: 1 - torch.cos(r - s), shift_invariant=True), CircularPerception()),
    ],
    ids=["normal", "circular"],
)
def test_other_perceptions(cost, perception):
    trainer, _ = train(cost, 150, perception, num_validation=100)
    assert trainer.errors.upper < 0.02  # of the noise of state and response together


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kink", "jump"])
def test_a_cost_of_ones_own_with_kinks_or_jumps(kind):
    def dead_zone(response, state, width):
        distance = (response - state).abs()
        return (distance > width) if kind == "jump" else (distance - width).clamp_min(0)

    cost = ActorCost.from_function(dead_zone, {"width": Uniform(0.1, 1.0)})
    trainer, _ = train(cost, 3000, num_validation=500)
    assert trainer.errors.median < 0.01 and trainer.errors.upper < 0.03 and 0 < trainer.errors.indifferent.sum() < 100


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path):
    cost, path = QuadraticEffortCost(), tmp_path / "training.pt"
    _, whole = train(cost, 40, num_validation=0)
    trainer = ActorTrainer(cost, show_progress_bars=False)
    interrupted = {"checkpoint": path, "checkpoint_every": 25, "num_validation": 0, "seed": 0}
    stop = iter(range(25))
    original = trainer._step

    def step_until(*arguments):
        if next(stop, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    trainer._step = step_until
    with pytest.raises(KeyboardInterrupt):
        trainer.train(40, **interrupted)
    resumed = ActorTrainer(cost, show_progress_bars=False).train(40, resume=True, **interrupted)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)
    again = ActorTrainer(cost, show_progress_bars=False)
    again.train(40, resume=True, **interrupted)
    assert again.num_steps == 40 and len(again.distances) == 1 and all(map(math.isfinite, again.distances))
    with pytest.raises(ValueError, match="is a checkpoint of a training with"):
        ActorTrainer(cost, show_progress_bars=False).train(50, resume=True, **interrupted)


def test_seeds_decide_and_leave_the_caller_s_generator_alone():
    state = torch.get_rng_state()
    (first, a), (_, b) = (train(AbsoluteCost(), 5, num_validation=20) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert first.num_steps == 5


def test_time_ends_a_training_and_a_tracker_is_told():
    class Tracker:
        def __init__(self):
            self.params, self.metrics = {}, []

        def log_params(self, params):
            self.params = params

        def log_metrics(self, metrics, step=None):
            self.metrics.append(step)

    tracker = Tracker()
    trainer = ActorTrainer(QuadraticCost(), tracker=tracker, show_progress_bars=False)
    trainer.train(100_000, batch_size=8, max_seconds=1.0, seed=0, num_validation=0)
    assert 0 < trainer.num_steps < 100_000 and tracker.params["cost"]["name"] == "QuadraticCost"
    assert tracker.metrics[0] <= 99 and len(trainer.distances) == len(tracker.metrics)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="the expected cost of linex is infinite"):

        def linex(response, state):
            return torch.exp(response - state) - (response - state) - 1

        ActorTrainer(ActorCost.from_function(linex))
    with pytest.raises(TypeError, match="cost must be an ActorCost"):
        ActorTrainer("quadratic")
    with pytest.raises(ValueError, match="must have the same number"):
        ActorTrainer(ReachingCost(), LogNormalPerception())
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        perception = NormalPerception()
        perception.action_dim = 3
        ActorTrainer(ActorCost.from_function(lambda r, s: (r - s).square().sum(-1), action_dim=3), perception)
    trainer = ActorTrainer(QuadraticCost(), show_progress_bars=False)
    for settings, message in (
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"num_nodes": 2}, "num_nodes must be at least 4"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"max_seconds": 0.0}, "max_seconds must be positive"),
        ({"resume": True}, "needs checkpoint="),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.train(**settings)
    with pytest.raises(TypeError, match="actor must be a NeuralActor"):
        actor_validation(QuadraticCost())
