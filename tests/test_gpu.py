"""On a CUDA device: the same bounds and gradients as on the CPU, and every trainer trains there."""

import os
import time
import warnings

import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_bed.inference import DAD, ActorTrainer, ContextNPE, ImitationTrainer, ModelComparison
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.objectives import PCE, InfoNCE, log_sum_likelihood
from sbi_bed.policies import DeepSetsPolicy, NeymanTeacher, RandomPolicy, TransformerPolicy
from sbi_bed.simulators import (
    HyperbolicDiscounting,
    LocationFinding,
    LogNormalPerception,
    PowerScaledPrior,
    QuadraticCost,
    StochasticEpidemic,
    TreatmentStream,
    optimal_action,
    rollout,
    simulate_with_context,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("compile", [False, True])
def test_bounds_and_gradients_equal_those_of_the_cpu(compile):
    simulator = LocationFinding(2)
    theta, contrastive = simulator.prior.sample((64,)), simulator.prior.sample((500,))
    trials = rollout(simulator, RandomPolicy(simulator), theta, 5)
    results = []
    for device in ("cpu", "cuda"):
        designs, outcomes = (x.to(device, torch.float64).requires_grad_() for x in trials)
        value = log_sum_likelihood(simulator, contrastive.to(device, torch.float64), designs, outcomes, compile=compile)
        results.append([x.cpu() for x in (value, *torch.autograd.grad(value.sum(), (designs, outcomes)))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("simulator", [LocationFinding(), HyperbolicDiscounting(), StochasticEpidemic()])
@pytest.mark.parametrize("build", [lambda s: DeepSetsPolicy(s, 16, 8), lambda s: TransformerPolicy(s, 4, 16)])
def test_training_raises_the_bound_on_the_device(simulator, build):
    torch.manual_seed(0)
    trainer = DAD(simulator, 4, build(simulator), device="cuda", show_progress_bars=False)
    policy = trainer.train(500, 256, None if trainer.bound.num_contrastive is None else 127, 3e-3, seed=0)
    assert all(p.is_cuda and torch.isfinite(p).all() for p in policy.parameters())
    assert sum(trainer.bounds[-8:]) > sum(trainer.bounds[:8])


def waits_for_the_device(trainer, num_steps):
    """How often a training of so many steps waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train(num_steps, 64, seed=0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("build_bound", [lambda s: PCE(63), InfoNCE])
def test_a_step_does_not_wait_for_the_device(build_bound):
    simulator = LocationFinding()
    policy, bound = TransformerPolicy(simulator, 3, 16), build_bound(simulator)
    trainer = DAD(simulator, 3, policy, "cuda", show_progress_bars=False, bound=bound)
    trainer.train(2, 64, seed=0)
    assert waits_for_the_device(trainer, 4) == waits_for_the_device(trainer, 18)  # one report each, at the end


def test_a_resumed_training_on_the_device_equals_an_uninterrupted_one(tmp_path):
    def train(num_steps, **keep):
        torch.manual_seed(0)
        policy = DeepSetsPolicy(LocationFinding(), 8, 4)
        trainer = DAD(LocationFinding(), 2, policy, "cuda", show_progress_bars=False)
        return trainer, lambda: trainer.train(num_steps, 32, 15, seed=0, **keep)

    whole, run = train(12)
    run()
    stopped, run = train(12, checkpoint=tmp_path / "file", checkpoint_every=5)
    step = stopped._step

    def step_until(*arguments):
        if stopped.num_steps == 8:
            raise KeyboardInterrupt
        return step(*arguments)

    stopped._step = step_until
    with pytest.raises(KeyboardInterrupt):
        run()
    resumed, run = train(12, checkpoint=tmp_path / "file", checkpoint_every=5, resume=True)
    run()
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.bounds == whole.bounds


def test_model_probabilities_are_learned_on_the_device():
    index = torch.arange(2000) % 2
    x = torch.stack([torch.randn(2000, 6, 4) + 3 * index.view(-1, 1, 1), torch.ones(2000, 6, 4)], -1)
    trainer = ModelComparison(2, HierarchicalEmbedding(1), device="cuda", show_progress_bars=False)
    trainer.append_simulations(index, x).train(max_num_epochs=4, seed=0)
    probs = trainer.build_posterior().probs(x[:200])
    assert (probs.argmax(-1) == index[:200]).float().mean() > 0.95


def test_a_posterior_in_contexts_is_learned_on_the_device():
    prior = PowerScaledPrior(Independent(Normal(torch.zeros(1), torch.ones(1)), 1))
    theta, x, context = simulate_with_context(lambda t: t + 0.5 * torch.randn_like(t), prior, 4000, seed=0)
    trainer = ContextNPE(prior, device="cuda", show_progress_bars=False)
    trainer.append_simulations(theta, x, context).train(max_num_epochs=8, seed=0)
    draws = trainer.build_posterior().sample((2000,), x=torch.ones(1), context=[1.0])
    assert float(draws.mean()) == pytest.approx(0.8, abs=0.1)


def test_an_actor_is_trained_on_the_device():
    trainer = ActorTrainer(QuadraticCost(), device="cuda", show_progress_bars=False)
    trainer.train(1500, 256, seed=0, num_validation=0)
    actor = trainer.actor.cpu()
    person = {"sigma": 0.2, "sigma_0": 0.3, "mu_0": 1.5, "sigma_r": 0.1}
    action = actor(torch.tensor([1.0, 2.0]), **person)
    exact = optimal_action(QuadraticCost(), LogNormalPerception(), torch.tensor([1.0, 2.0]), **person)
    torch.testing.assert_close(action, exact.to(action), rtol=0.05, atol=0)


def test_a_student_imitates_on_the_device():
    stream, teacher = TreatmentStream(smoothness=1.5), NeymanTeacher(1, smoothness=1.5)
    trainer = ImitationTrainer(stream, teacher, device="cuda", show_progress_bars=False)
    student = trainer.train(60, num_episodes=64, num_units=40, seed=0)
    assert trainer.losses[-1] < trainer.losses[0] and all(p.is_cuda for p in student.parameters())


def test_seconds_of_a_training_step():
    """The whole step of default `DAD.train`, optimiser included, on the device and on all cores of the CPU."""
    simulator = LocationFinding()
    seconds = {}
    for device, num_steps in (("cuda", 60), ("cpu", 6)):
        torch.set_num_threads(os.cpu_count() or 1)
        trainer = DAD(simulator, 10, device=device, show_progress_bars=False)
        trainer.train(3, 1024, 1023, seed=0)
        begin = time.perf_counter()
        trainer.train(num_steps, 1024, 1023, seed=0)
        seconds[device] = (time.perf_counter() - begin) / num_steps
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name()
    print(
        f"\ntraining step, location K=1, B=1024, L=1023, T=10, default policy, optimiser included: {name} "
        f"{1e3 * seconds['cuda']:.1f} ms, {os.cpu_count()} cores {1e3 * seconds['cpu']:.0f} ms"
    )
    assert seconds["cuda"] < seconds["cpu"]
