"""Learned beliefs against posteriors, in closed form and on a grid; actors that act on them."""

import numpy as np
import pytest
import torch
from torch.distributions import StudentT

from sbi_bed.inference import ActorTrainer, PerceptionTrainer
from sbi_bed.neural_nets import LearnedPerception, NeuralActor
from sbi_bed.simulators import LogNormalPerception, OptimalActor, QuadraticCost


def log_normal_state(sigma_0, mu_0):
    return mu_0 * torch.exp(sigma_0 * torch.randn_like(sigma_0))


def log_normal_measurement(state, sigma):
    return state * torch.exp(sigma * torch.randn_like(state))


def uniform_state(sigma_0, mu_0):
    return mu_0 * torch.exp(sigma_0 * (2 * torch.rand_like(sigma_0) - 1) * 3**0.5)


def heavy_measurement(state, sigma):
    return state * torch.exp(sigma * StudentT(4.0).sample(state.shape))


RANGES = {"sigma": (0.1, 0.4), "sigma_0": (0.1, 0.4)}


def test_where_there_is_a_closed_form_it_is_kept():
    learned = LearnedPerception(log_normal_state, log_normal_measurement, **RANGES)
    PerceptionTrainer(learned, show_progress_bars=False).train(100, seed=0)
    m, sigma, sigma_0, mu_0 = torch.tensor([1.0, 2.0, 2.2]), 0.2, torch.tensor([0.2, 0.3, 0.15]), 1.5
    found, exact = (p.belief(m, sigma, sigma_0, mu_0) for p in (learned, LogNormalPerception()))
    assert ((found.location - exact.location) / exact.spread).abs().max() < 0.1
    assert (found.spread / exact.spread - 1).abs().max() < 0.1


def test_a_posterior_without_closed_form_has_its_mean_and_spread():
    learned = LearnedPerception(uniform_state, heavy_measurement, **RANGES)
    PerceptionTrainer(learned, show_progress_bars=False).train(600, seed=0)
    sigma, sigma_0, mu_0 = 0.25, 0.3, 1.5
    for m in (1.0, 1.5, 2.6):
        x = (torch.linspace(-1, 1, 4001) * sigma_0 * 3**0.5).double()  # log(s / μ_0)
        noise = torch.tensor(m / mu_0).double().log() - x
        weight = StudentT(torch.tensor(4.0).double()).log_prob(noise / sigma).softmax(0)
        mean = weight @ x
        spread = (weight @ (x - mean).square()).sqrt()
        with torch.no_grad():
            belief = learned.belief(torch.tensor(m), sigma, sigma_0, mu_0)
        assert abs(float(belief.location) - float(mean + torch.tensor(mu_0).log())) < 0.15 * float(spread)
        assert float(belief.spread) == pytest.approx(float(spread), rel=0.12)


def test_an_actor_on_learned_beliefs_trains_saves_and_loads(tmp_path):
    perception = LearnedPerception(log_normal_state, log_normal_measurement, **RANGES)
    trainer = ActorTrainer(QuadraticCost(), perception, show_progress_bars=False)
    PerceptionTrainer(perception, show_progress_bars=False).train(50, seed=0)
    actor = trainer.train(100, seed=0, num_validation=100)
    assert perception.fitted and trainer.errors.upper < 0.02
    actor.save(tmp_path / "actor.pt")
    fresh = LearnedPerception(log_normal_state, log_normal_measurement, **RANGES)
    loaded = NeuralActor.load(tmp_path / "actor.pt", perception=fresh)
    m = torch.tensor([1.0, 2.0])
    given = {"sigma": 0.2, "sigma_0": 0.3, "mu_0": 1.5, "sigma_r": 0.1}
    assert torch.equal(loaded(m, **given), actor(m, **given)) and fresh.fitted
    with pytest.raises(ValueError, match="'LearnedPerception', of your own: give it as perception="):
        NeuralActor.load(tmp_path / "actor.pt")


def test_errors_say_what_is_wrong():
    with pytest.raises(TypeError, match="sample_state must be a callable"):
        LearnedPerception(3, log_normal_measurement)
    with pytest.raises(ValueError, match="use simulation-based inference"):
        perception = LearnedPerception(log_normal_state, log_normal_measurement)
        perception.log_prob_measurement(torch.ones(1), torch.ones(1), 0.1)
    with pytest.raises(ValueError, match="a state must be positive"):
        impossible = LearnedPerception(lambda sigma_0, mu_0: -mu_0, lambda state, sigma: -state)
        PerceptionTrainer(impossible, show_progress_bars=False).train(1, seed=0)


def test_the_old_fit_is_the_trainer_s(tmp_path):
    torch.manual_seed(0)
    old = LearnedPerception(uniform_state, heavy_measurement, **RANGES)
    torch.manual_seed(0)
    new = LearnedPerception(uniform_state, heavy_measurement, **RANGES)
    with pytest.warns(FutureWarning, match="is now sbi_bed.inference.PerceptionTrainer") as caught:
        assert old.fit(7, 32, seed=np.int64(3)) is old
    assert caught[0].filename == __file__
    path = tmp_path / "perception.pt"
    settings = {"batch_size": 32, "seed": 3, "checkpoint": path, "checkpoint_every": 4}
    trainer = PerceptionTrainer(new, show_progress_bars=False)
    trainer.train(7, **settings)
    assert all(torch.equal(p, q) for p, q in zip(old.parameters(), new.parameters(), strict=True))
    assert old.fitted and new.fitted and len(trainer.reports) == 1
    with pytest.raises(TypeError, match="must be a LearnedPerception"):
        PerceptionTrainer(OptimalActor(QuadraticCost()))


def test_an_untrained_perception_is_trained_with_the_actor():
    perception = LearnedPerception(log_normal_state, log_normal_measurement, **RANGES)
    trainer = ActorTrainer(QuadraticCost(), perception, show_progress_bars=False)
    perception.simulated_log_prob = lambda num: LearnedPerception.simulated_log_prob(perception, 4)  # to be quick
    trainer.train(3, 8, seed=0, num_validation=0)
    assert perception.fitted
