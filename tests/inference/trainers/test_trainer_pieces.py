"""What trainers share: progress bars, clipping, the split into training and held-out simulations."""

import inspect

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
    return trainer.train(4, 4, num_episodes=8, num_units=30, units_per_episode=20, seed=3, **settings)


@pytest.mark.parametrize("train", [trained_policy, trained_actor, trained_experimenter])
def test_gradients_are_clipped_to_a_norm_or_to_none(train):
    free, far, tight = (
        parameters_to_vector(train(clip_max_norm=norm).parameters()).detach() for norm in (None, 1e9, 1e-12)
    )
    assert torch.equal(free, far) and not torch.allclose(free, tight, atol=1e-5)


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
