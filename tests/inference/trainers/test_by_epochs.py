"""The loop of trainings by epochs: stopped anywhere and resumed it gives what an uninterrupted training gives."""

import copy
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Independent, Normal

from sbi_bed.inference import ContextNPE, ModelComparison
from sbi_bed.inference.trainers.by_epochs import EpochSettings, EpochTrainer
from sbi_bed.inference.trainers.held_out import split_rows
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import PowerScaledPrior

PRIOR = PowerScaledPrior(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
COMMON = {"training_batch_size": 32, "max_num_epochs": 4, "seed": 3, "learning_rate": 3e-3, "validation_fraction": 0.2}


def models():
    torch.manual_seed(5)
    trainer = ModelComparison(2, nn.Sequential(nn.Linear(2, 4)), show_progress_bars=False)
    index = torch.arange(120) % 2
    return trainer.append_simulations(index, torch.randn(120, 2) + index[:, None])


def grouped_models():
    """Simulations of one size, in groups, and a net that is built without a seed."""
    trainer = ModelComparison(
        2, HierarchicalEmbedding(1, output_dim=3, hidden_dim=4, lowest_dim=4), show_progress_bars=False
    )
    torch.manual_seed(5)
    index = torch.arange(120) % 2
    x = torch.randn(120, 3, 4, 1) + 2 * index.view(-1, 1, 1, 1)
    return trainer.append_simulations(index, torch.cat([x, torch.ones_like(x)], -1))


def alike_models():
    """Models that are the same: such a training is started again from chance."""
    torch.manual_seed(5)
    trainer = ModelComparison(2, nn.Sequential(nn.Linear(2, 4)), show_progress_bars=False)
    return trainer.append_simulations(torch.arange(120) % 2, torch.randn(120, 2))


def contexts():
    torch.manual_seed(5)
    theta, gamma = torch.randn(120, 2), 0.5 + torch.rand(120, 2)
    trainer = ContextNPE(PRIOR, "maf", hidden_features=np.int64(4), num_transforms=1, show_progress_bars=False)
    return trainer.append_simulations(theta, theta + 0.5 * torch.randn(120, 2), gamma)


TRAINERS = {"models": models, "grouped": grouped_models, "alike": alike_models, "contexts": contexts}
each_trainer = pytest.mark.parametrize("build", TRAINERS.values(), ids=TRAINERS.keys())


def results_of(trainer):
    """All that users can read of a trained trainer, as nested plain data."""
    net = trainer.classifier if isinstance(trainer, ModelComparison) else trainer.estimator
    weights = {name: value.tolist() for name, value in net.state_dict().items()}
    losses = trainer.held_out_losses.tolist()
    return weights, trainer.validation_losses, losses, trainer.num_epochs, net.training


class Stop(Exception):
    pass


def train_until(trainer, num_batches, **arguments):
    """Train until the loss of so many batches was asked for; whether that came before the end."""
    losses, asked = trainer._losses, 0

    def stop_at(batch):
        nonlocal asked
        asked += 1
        if asked > num_batches:
            raise Stop
        return losses(batch)

    trainer._losses = stop_at
    try:
        trainer.train(**arguments)
    except Stop:
        return True
    finally:
        del trainer._losses
    return False


@pytest.fixture(scope="module")
def uninterrupted():
    found = {}
    for build in TRAINERS.values():
        trainer = build()
        trainer.train(**COMMON)
        found[build] = results_of(trainer)
    return found


@pytest.mark.filterwarnings("ignore:the net tells the models no better apart:RuntimeWarning")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    build=st.sampled_from(list(TRAINERS.values())),
    stops=st.lists(st.integers(0, 45), max_size=3),
    every=st.integers(1, 6),
    same_trainer=st.booleans(),
    numpy=st.booleans(),
)
def test_a_training_stopped_anywhere_and_resumed_is_an_uninterrupted_one(
    uninterrupted, tmp_path_factory, build, stops, every, same_trainer, numpy
):
    path = tmp_path_factory.mktemp("training") / "checkpoint"
    arguments = {**COMMON, "checkpoint": path, "checkpoint_every": every, "resume": True}
    if numpy:
        number = {int: np.int64, float: np.float64}
        arguments = {name: number.get(type(value), lambda v: v)(value) for name, value in arguments.items()}
    trainer = build()
    for stop in stops:
        train_until(trainer, stop, **arguments)
        trainer = trainer if same_trainer else build()
        torch.manual_seed(99)
    for _ in range(2):  # the second time it is over already
        trainer.train(**arguments)
        assert results_of(trainer) == uninterrupted[build]
        trainer = trainer if same_trainer else build()


@pytest.mark.filterwarnings("ignore:the net tells the models no better apart:RuntimeWarning")
@each_trainer
def test_without_a_seed_the_caller_s_generator_is_used_and_goes_on(build, tmp_path):
    arguments = {**COMMON, "seed": None, "checkpoint": tmp_path / "checkpoint"}
    trainer = build()
    torch.manual_seed(11)
    whole_net, generator = copy.deepcopy(trainer), torch.get_rng_state()
    whole_net.train(**{**arguments, "checkpoint": None})
    after = torch.get_rng_state()
    assert not torch.equal(after, generator)
    torch.set_rng_state(generator)
    assert train_until(trainer, 9, **arguments)
    torch.manual_seed(98)
    trainer.train(**arguments, resume=True)
    assert results_of(trainer) == results_of(whole_net) and torch.equal(torch.get_rng_state(), after)


@pytest.mark.filterwarnings("ignore:the net tells the models no better apart:RuntimeWarning")
@each_trainer
def test_the_same_seed_is_the_same_training(build):
    """Also with an embedding net of this package whose weights were drawn without a seed."""
    first, second, other = build(), build(), build()
    before = torch.get_rng_state()
    for trainer, seed in ((first, 1), (second, 1), (other, 2)):
        arguments = {**COMMON, "max_num_epochs": 2, "seed": seed}
        trainer.train(**arguments)
    assert torch.equal(torch.get_rng_state(), before)
    assert results_of(first) == results_of(second) != results_of(other)


@each_trainer
def test_another_training_s_checkpoint_is_refused(build, tmp_path):
    path = tmp_path / "checkpoint"
    train_until(build(), 9, checkpoint=path, **COMMON)
    for change in ({"seed": 4}, {"split_seed": 1}, {"max_num_epochs": 5}, {"learning_rate": 1e-3}):
        with pytest.raises(ValueError, match=f"is a checkpoint of a training with .*{next(iter(change))}"):
            build().train(**{**COMMON, **change}, checkpoint=path, resume=True)


@pytest.mark.filterwarnings("ignore:the net tells the models no better apart:RuntimeWarning")
@each_trainer
def test_what_training_used_is_forgotten(build):
    """A trainer can be copied after training, and holds its simulations once."""
    trainer = build()
    train_until(trainer, 3, **COMMON)
    trainer.train(**COMMON)
    assert results_of(copy.deepcopy(trainer)) == results_of(trainer)


class Line(EpochTrainer):
    """The smallest trainer: y = w t, by least squares."""

    def _tensors(self):
        t = torch.linspace(-1, 1, 200).unsqueeze(-1)
        return t, 3 * t

    def _build(self, rows):
        return nn.Linear(1, 1, bias=False)

    def _losses(self, batch):
        t, y = batch
        return (self._net(t) - y).square().sum(-1)

    def train(self, max_num_epochs, **arguments):
        fixed = {"training_batch_size": 10, "validation_fraction": 0.1, "stop_after_epochs": 100, "learning_rate": 0.1}
        return self._train(EpochSettings(max_num_epochs=max_num_epochs, **fixed, **arguments))


def test_a_new_trainer_says_no_more_than_its_data_its_net_and_its_loss():
    trainer = Line(show_progress_bars=False)
    net = trainer.train(20, seed=0)
    assert abs(net.weight.item() - 3) < 1e-2 and trainer.num_epochs == len(trainer.validation_losses) == 20
    assert trainer.held_out_losses.shape == (20,) and trainer.held_out_losses.max() < 1e-3


def test_seconds_count_from_the_call_and_those_before_a_stop_count_too(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Line):
        def _build(self, rows):
            now[0] += 5  # building takes time, too
            return super()._build(rows)

        def _losses(self, batch):
            now[0] += 1
            return super()._losses(batch)

    whole = Slow(show_progress_bars=False)
    whole.train(100, seed=0, max_seconds=60)
    assert now[0] == pytest.approx(60, abs=2) and whole.num_epochs == 3  # 5 to build, 18 + 1 an epoch
    path, now[0] = tmp_path / "checkpoint", 1000.0
    broken = Slow(show_progress_bars=False)
    assert train_until(broken, 30, max_num_epochs=100, seed=0, max_seconds=60, checkpoint=path)
    now[0] = 5000.0
    resumed = Slow(show_progress_bars=False)
    resumed.train(100, seed=0, max_seconds=60, checkpoint=path, resume=True)
    # 24 of the 35 seconds before the stop were kept, with the first epoch; building took 5 again.
    assert now[0] == pytest.approx(5000 + 60 - 24, abs=2)


def test_rows_are_split_by_their_own_seed():
    torch.manual_seed(0)
    trained, held_out = split_rows(100, 0.05, split_seed=3)
    after = torch.rand(())
    assert len(held_out) == 5 and torch.equal(torch.cat([held_out, trained]).sort().values, torch.arange(100))
    torch.manual_seed(0)
    assert torch.equal(torch.rand(()), after)  # the global generator is left alone
    assert torch.equal(split_rows(100, 0.05, 3)[0], trained) and not torch.equal(split_rows(100, 0.05, 4)[0], trained)
    assert len(split_rows(11, 0.01, 0, fewest=10)[0]) == 10
    with pytest.raises(ValueError, match="too few to train on and to validate with: 10"):
        split_rows(10, 0.01, 0, fewest=10)
