"""What trainers share: steps until the time is up, the simulations held out, settings from a call's arguments."""

import inspect
import time

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from sbi_bed.inference import (
    DAD,
    ActorTrainer,
    ContextDAD,
    ContextNPE,
    ImitationTrainer,
    ModelComparison,
    train_ensemble,
)
from sbi_bed.inference.trainers.settings import TrainingSettings
from sbi_bed.inference.trainers.shared_split import split_rows
from sbi_bed.inference.trainers.steps import Steps
from sbi_bed.policies import DeepSetsPolicy, ExperimenterTransformer, NeymanTeacher
from sbi_bed.simulators import LocationFinding, QuadraticEffortCost, TreatmentStream
from sbi_bed.utils.checks import check_positive


def test_all_that_trains_shows_its_progress_unless_told_not_to():
    trainers = ActorTrainer, ContextDAD, ContextNPE, DAD, ImitationTrainer, ModelComparison, train_ensemble
    for trainer in trainers:
        assert inspect.signature(trainer).parameters["show_progress_bars"].default is True, trainer


def trained_policy(**settings):
    torch.manual_seed(4)
    policy = DeepSetsPolicy(LocationFinding(), hidden_dim=4, summary_dim=2)
    return DAD(LocationFinding(), 2, policy, show_progress_bars=False).train(4, 4, 3, seed=0, **settings)


def trained_actor(**settings):
    trainer = ActorTrainer(QuadraticEffortCost(), hidden_dim=4, num_layers=1, show_progress_bars=False)
    return trainer.train(4, 16, num_validation=0, seed=0, **settings)


def trained_experimenter(**settings):
    torch.manual_seed(4)
    student = ExperimenterTransformer(1, hidden_dim=8, num_layers=1, num_heads=2)
    trainer = ImitationTrainer(TreatmentStream(1.5), NeymanTeacher(1, 1.5), student, show_progress_bars=False)
    return trainer.train(4, 2, num_episodes=2, num_units=6, units_per_episode=3, seed=3, **settings)


@pytest.mark.parametrize("train", [trained_policy, trained_actor, trained_experimenter])
def test_gradients_are_clipped_to_a_norm_or_to_none(train):
    free, far, tight = (
        parameters_to_vector(train(clip_max_norm=norm).parameters()).detach() for norm in (None, 1e9, 1e-12)
    )
    assert torch.equal(free, far) and not torch.allclose(free, tight, atol=1e-5)


def test_steps_count_on_from_where_a_training_stood():
    steps = Steps(7, "testing", start=2, show=False)
    taken = [(step, done, steps.taken, steps.every(3)) for step, done in steps]
    assert [step for step, *_ in taken] == [2, 3, 4, 5, 6]
    assert [done for _, done, *_ in taken] == [step / 7 for step in range(2, 7)]
    assert [number for *_, number, _ in taken] == [3, 4, 5, 6, 7]
    assert [turn for *_, turn in taken] == [True, False, False, True, True]  # every third, and the last of all


def test_steps_end_with_the_time_and_hurry_towards_it():
    steps = Steps(10**6, "testing", max_seconds=0.2, begin=time.perf_counter() - 0.1, show=False)
    shares = [done for _, done in steps if not time.sleep(0.01)]
    assert 0.5 <= shares[0] < 0.75 and shares[-1] < 1 and len(shares) < 12
    assert shares == sorted(shares)
    assert list(Steps(5, "testing", max_seconds=1.0, begin=time.perf_counter() - 2, show=False)) == []


def test_steps_show_the_mean_of_the_last_ten(capsys):
    steps, values = Steps(12, "testing a bar"), []
    for step, _ in steps:
        values.append(100.0 if step < 2 else step)
        steps.say("loss", values)
    shown = capsys.readouterr().err
    assert "testing a bar: 100%" in shown and "loss=6.5" in shown  # of 2, …, 11


def test_rows_are_parted_by_their_own_seed():
    torch.manual_seed(0)
    rows, (trained, held_out) = split_rows(100, 0.05, split_seed=3)
    after = torch.rand(())
    assert len(held_out) == 5 and torch.equal(torch.cat([held_out, trained]), rows)
    assert torch.equal(rows.sort().values, torch.arange(100))
    torch.manual_seed(0)
    assert torch.equal(torch.rand(()), after)  # the global generator is left alone
    assert torch.equal(split_rows(100, 0.05, 3)[0], rows) and not torch.equal(split_rows(100, 0.05, 4)[0], rows)
    assert torch.equal(split_rows(100, 0.2, None, rows)[1][1], rows[:20])  # a training that was kept
    assert len(split_rows(11, 0.01, 0, least=10)[1][0]) == 10
    with pytest.raises(ValueError, match="too few to train on and to validate with: 10"):
        split_rows(10, 0.01, 0, least=10)


def test_settings_are_taken_from_arguments_by_name():
    def train(learning_rate, num_steps, seed=None, unrelated=None):
        rest = dict.fromkeys(("max_design_gradient", "num_shards", "max_seconds", "first_trials"))
        rest |= {"gradient": "auto", "baseline": "prefix", "proposal": "prior", "objective": "parameters"}
        rest |= {"batch_size": 8, "num_contrastive": 7, "clip_max_norm": 1.0, "compile": False, "bound_steps": 0}
        return TrainingSettings.of({**locals(), **rest}, final_learning_rate=0.5)

    settings = train(0.1, 20, seed=4)
    assert (settings.learning_rate, settings.num_steps, settings.seed, settings.batch_size) == (0.1, 20, 4, 8)
    assert settings.final_learning_rate == 0.5 and "unrelated" not in settings.as_plain_data()
    with pytest.raises(KeyError, match="batch_size"):
        TrainingSettings.of({"learning_rate": 0.1, "final_learning_rate": 0.1, "clip_max_norm": 1.0, "num_steps": 3})


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (0.0, ValueError, r"width must be positive, got 0\.0"),
        (float("nan"), ValueError, "width must be positive, got nan"),
        (float("inf"), ValueError, "width must be finite, got inf"),
        ("wide", TypeError, "width must be a number, got 'wide'"),
        (None, TypeError, "width must be a number, got None"),
    ],
)
def test_numbers_that_are_not_positive(value, error, match):
    with pytest.raises(error, match=match):
        check_positive(value, "width")
    assert check_positive(torch.tensor(2), "width") == 2.0
