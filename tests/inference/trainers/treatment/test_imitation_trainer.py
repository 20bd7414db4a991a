"""Training by imitation: the loss against closed forms, that it falls, and that a training resumes exactly."""

import math

import numpy as np
import pytest
import torch

from sbi_bed.inference import ImitationTrainer
from sbi_bed.inference.trainers.treatment.imitation import ImitationSettings, imitation_loss
from sbi_bed.policies import ExperimenterTransformer, GradientExperimenter, NeymanTeacher
from sbi_bed.policies.treatment.base import StreamPredictions, neyman_propensity
from sbi_bed.simulators import TreatmentStream, assign_stream

SHORT = {"num_episodes": 12, "num_units": 60, "batch_size": 4, "units_per_episode": 10, "seed": 3}


def trainer(student=None, **keywords):
    return ImitationTrainer(TreatmentStream(1.5), NeymanTeacher(1, 1.5), student, show_progress_bars=False, **keywords)


def small():
    torch.manual_seed(4)
    return ExperimenterTransformer(1, hidden_dim=8, num_layers=1, num_heads=2)


def test_loss_is_a_divergence_and_a_regret():
    mean, log_variance, said_mean, said = torch.randn(4, 5, 7, 2).double()
    found = imitation_loss(StreamPredictions(said[..., 0], said_mean, said), mean, log_variance, 0.0)
    normals = [torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in ((mean, log_variance), (said_mean, said))]
    expected = torch.distributions.kl_divergence(*normals).sum(-1).mean()
    torch.testing.assert_close(found, expected)
    same = StreamPredictions(said[..., 0], mean, log_variance)
    assert float(imitation_loss(same, mean, log_variance, 2.0)) == pytest.approx(0, abs=1e-12)
    with_regret = imitation_loss(StreamPredictions(said[..., 0], said_mean, said), mean, log_variance, 3.0)
    e, best = neyman_propensity(said, 1e-3), neyman_propensity(log_variance, 1e-3)
    variance = log_variance.exp()
    loss = variance[..., 1] / e + variance[..., 0] / (1 - e) - variance[..., 1] / best - variance[..., 0] / (1 - best)
    scale = (0.5 * log_variance).exp().sum(-1).square().mean()
    torch.testing.assert_close(with_regret - expected, 3 * loss.mean() / scale)


@torch.no_grad()
def losses_on_new_problems(student):
    """Loss of a student in each of 100 problems that no training saw, (100,)."""
    teacher = NeymanTeacher(1, 1.5)
    seen = assign_stream(TreatmentStream(1.5).sample(100, seed=5), teacher, 60, seed=6, with_predictions=True)
    said = student.along(seen.history)
    rows = zip(*said, seen.mean, seen.log_variance, strict=True)
    return torch.stack([imitation_loss(StreamPredictions(*row[:3]), *row[3:], 2.0) for row in rows])


def test_a_training_lowers_the_loss_and_depends_on_its_seed_alone():
    first = trainer(small())
    before = losses_on_new_problems(first.student)
    state = torch.get_rng_state()
    student = first.train(60, learning_rate=5e-3, **SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert not student.training and first.num_steps == 60
    fall = before - losses_on_new_problems(student)
    assert fall.mean() > 3 * fall.std() / 10, (fall.mean(), fall.std())  # paired: single batches differ too much
    torch.randn(7)
    second = trainer(small())
    second.train(60, learning_rate=5e-3, **SHORT)
    assert first.losses == second.losses


def test_numbers_of_numpy_are_settings(tmp_path):
    numbers = {name: np.int64(value) for name, value in SHORT.items()}
    done = trainer(small())
    options = {
        "propensity_weight": np.float32(1.0),
        "learning_rate": np.float64(1e-3),
        "clip_max_norm": np.float64(1.0),
    }
    done.train(np.int64(3), **numbers, **options, checkpoint=tmp_path / "training")
    again = trainer(small())
    again.train(3, **SHORT, propensity_weight=1.0, learning_rate=1e-3, checkpoint=tmp_path / "training", resume=True)
    assert again.num_steps == 3 and again.losses == done.losses
    with pytest.raises(ValueError, match="is a checkpoint of a training with"):
        trainer(small()).train(4, **SHORT, checkpoint=tmp_path / "training", resume=True)


def test_the_default_student_is_built_under_the_seed():
    torch.manual_seed(1)
    first = trainer().train(1, **SHORT)
    torch.manual_seed(2)
    second = trainer().train(1, **SHORT)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_time_runs_out_and_streams_grow():
    timed = trainer(GradientExperimenter(1, 1.5))
    timed.train(10_000, max_seconds=1.5, **SHORT)
    assert 0 < timed.num_steps < 10_000
    settings = ImitationSettings(
        learning_rate=1e-3,
        num_steps=10,
        batch_size=4,
        num_episodes=8,
        num_units=300,
        units_per_episode=16,
        propensity_weight=1.0,
    )
    assert [settings.length_at(done) for done in (0.0, 0.25, 0.5, 1.0)] == [40, 170, 300, 300]


def test_old_names_work_with_a_warning():
    import sbi_bed.inference as room

    with pytest.warns(FutureWarning, match="ExperimenterTrainer is now sbi_bed.inference.ImitationTrainer"):
        assert room.ExperimenterTrainer is ImitationTrainer
    with pytest.warns(FutureWarning, match="width= is now hidden_dim="):
        assert ExperimenterTransformer(1, width=8, num_heads=2).config["hidden_dim"] == 8


def test_errors_say_what_is_wrong():
    stream, teacher = TreatmentStream(1.5), NeymanTeacher(1)
    with pytest.raises(TypeError, match="the teacher must be a TreatmentPolicy that predicts"):
        ImitationTrainer(stream, "teacher")
    with pytest.raises(TypeError, match="the student must be a TreatmentPolicy that predicts"):
        ImitationTrainer(stream, teacher, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="stream has 1 covariates, the student was built for 2"):
        ImitationTrainer(stream, teacher, GradientExperimenter(2))
    with pytest.raises(ValueError, match="NeymanTeacher has nothing to train"):
        ImitationTrainer(stream, teacher, NeymanTeacher(1))
    ready = trainer(small())
    for name, value, message in (
        ("num_steps", 0, "num_steps must be at least 1"),
        ("learning_rate", -1.0, "learning_rate must be positive"),
        ("propensity_weight", -1.0, "must not be negative"),
        ("clip_max_norm", 0.0, "clip_max_norm must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            ready.train(**{name: value})
    with pytest.raises(ValueError, match="needs checkpoint="):
        ready.train(resume=True)
    with pytest.raises(ValueError, match="the gradient became NaN or infinite: lower the learning rate"):
        broken = small()
        broken.head[1].bias.data.fill_(math.nan)
        trainer(broken).train(1, **SHORT)
    with pytest.raises(ValueError, match="must predict outcomes"):
        imitation_loss(StreamPredictions(torch.zeros(1), None, None), torch.zeros(1, 2), torch.zeros(1, 2), 1.0)
