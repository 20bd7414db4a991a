"""Readings chosen together: one trial of an experiment that everything takes as any other."""

import itertools
import math

import pytest
import torch
from models import LinearGaussian, RandomWalk, YesNo, blood_samples_in_order, gaussian_prior
from torch.distributions import constraints

from sbi_bed.inference import DAD, AdaptiveExperiment, StepDAD
from sbi_bed.policies import GreedyPolicy, TransformerPolicy
from sbi_bed.simulators import BatchedSimulator, DesignSimulator, Pharmacokinetics, rollout


def line_on_candidates():
    """y ~ N(θ_1 + θ_2 ξ, ½²) at seven places, whose gain has a closed form."""
    exact = LinearGaussian(2)

    def full(design):
        return torch.cat([torch.ones_like(design), design], -1)

    simulator = DesignSimulator(
        gaussian_prior(2),
        lambda theta, design: exact._simulate(theta, full(design)),
        torch.linspace(-1.0, 1.0, 7).unsqueeze(-1),
        lambda theta, design, outcome: exact._log_density(theta, full(design), outcome),
        reparameterized=True,
    )
    return simulator, lambda designs: exact.gain_of(full(designs))


def test_a_batch_is_its_readings():
    single, batch = Pharmacokinetics(), BatchedSimulator(Pharmacokinetics(), 3)
    theta, design = single.prior.sample((200,)), batch.design_space.sample((200,))
    outcome = batch(theta, design)
    assert (batch.design_dim, batch.outcome_dim, outcome.shape) == (3, 3, (200, 3))
    expected = sum(
        single.log_likelihood(theta, design[:, b : b + 1], outcome[:, b : b + 1]) for b in range(batch.batch_size)
    )
    torch.testing.assert_close(batch.log_likelihood(theta, design, outcome), expected)
    assert torch.equal(batch.readings(outcome)[:, 1], outcome[:, 1:2])
    # Noise of the readings is their own.
    residual = (outcome - batch.simulator.concentration(theta.unsqueeze(-2), batch.readings(design))).T
    assert (torch.corrcoef(residual) - torch.eye(3)).abs().max() < 4.5 / math.sqrt(200)
    other = batch.with_prior(gaussian_prior(3))
    assert isinstance(other, BatchedSimulator) and other.batch_size == 3 and other.prior.mean.abs().max() == 0


def test_outcome_spaces_are_those_of_the_readings():
    assert BatchedSimulator(YesNo(), 4).outcome_space is YesNo().outcome_space
    bounds = torch.tensor([1.0, 5.0])
    two = DesignSimulator(
        gaussian_prior(1),
        lambda theta, design: bounds * torch.rand(*torch.broadcast_shapes(theta.shape, design.shape)[:-1], 2),
        constraints.interval(0.0, 1.0),
        outcome_shape=(2,),
        outcome_space=constraints.interval(torch.zeros(2), bounds),
    )
    batch = BatchedSimulator(two, 2)
    assert batch.check_outcome([0.5, 4.0, 0.5, 4.0]).shape == (4,)
    with pytest.raises(ValueError, match="outside the outcome space"):
        batch.check_outcome([0.5, 4.0, 4.0, 0.5])


def test_what_cannot_be_chosen_together_is_refused():
    with pytest.raises(ValueError, match="share a hidden state depend on their order"):
        BatchedSimulator(RandomWalk(), 2)
    with pytest.raises(ValueError, match="depends on the history cannot be a part"):
        BatchedSimulator(blood_samples_in_order(), 2)
    with pytest.raises(TypeError, match="must be a DesignSimulator"):
        BatchedSimulator("plate", 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch_size"):
        BatchedSimulator(Pharmacokinetics(), 0)
    batch = BatchedSimulator(Pharmacokinetics(), 3)
    with pytest.raises(ValueError, match="4 values are not those of 3 readings"):
        batch.readings(torch.zeros(4))
    with pytest.raises(ValueError, match="design must have 3 values"):
        AdaptiveExperiment(TransformerPolicy(batch, 2), batch, 2).record([1.0, 1.0, 1.0], design=[1.0, 2.0])


def test_greedy_chooses_a_batch_among_candidates_without_trying_all():
    simulator, gain_of = line_on_candidates()
    places = simulator.design_space.candidates
    best = max(float(gain_of(torch.stack(list(batch)))) for batch in itertools.combinations_with_replacement(places, 4))
    policy = GreedyPolicy(BatchedSimulator(simulator, 4), num_particles=1024, num_candidates=16, num_steps=0)
    chosen = policy(torch.zeros(0, 9)).unflatten(-1, (4, 1))
    assert gain_of(chosen) > 0.97 * best
    assert simulator.design_space.contains(chosen).all()


def test_greedy_chooses_a_batch_in_a_continuous_space():
    exact = LinearGaussian(2)
    policy = GreedyPolicy(BatchedSimulator(exact, 2), num_candidates=32, num_starts=4, num_steps=40)
    chosen = policy(torch.zeros(0, 7)).unflatten(-1, (2, 2))
    # 256 particles are noisy; two designs in one direction have 0.64 of it
    assert exact.gain_of(chosen) > 0.88 * exact.best_gain(2)


def test_a_policy_is_trained_for_batches_and_uses_both_readings():
    exact = LinearGaussian(2)
    batch = BatchedSimulator(exact, 2)
    policy = DAD(batch, 2, show_progress_bars=False).train(200, 128, 127, 1e-2, seed=0)
    with torch.no_grad():
        designs = rollout(batch, policy, batch.prior.sample((64,)), 2).designs
    assert exact.gain_of(batch.readings(designs).flatten(1, 2)).mean() > 0.9 * exact.best_gain(4)


def test_live_runs_of_batches_are_saved_and_loaded_and_have_the_posterior_of_all_readings(tmp_path):
    exact = LinearGaussian(1)
    batch = BatchedSimulator(exact, 3)
    torch.manual_seed(0)
    experiment = AdaptiveExperiment(TransformerPolicy(batch, 2), batch, 2, journal=tmp_path / "run.jsonl", seed=0)
    theta = torch.tensor([0.7])
    design = experiment.next_design()
    assert design.shape == (3,)
    experiment.record(batch(theta, design))
    experiment.close()
    experiment = AdaptiveExperiment.load(tmp_path / "run.jsonl", batch)
    experiment.record(batch(theta, experiment.next_design()))
    assert experiment.done
    designs, outcomes = experiment.designs.flatten().double(), experiment.outcomes.flatten().double()
    precision = 1 + designs.square().sum() / exact.noise_sd**2
    mean, sd = (designs * outcomes).sum() / exact.noise_sd**2 / precision, precision.rsqrt()
    samples = experiment.posterior().sample((4000,), show_progress_bars=False).flatten().double()
    assert abs(samples.mean() - mean) < 4.5 * sd / math.sqrt(1000)  # draws are worth a quarter of their number at least
    assert abs(samples.std() / sd - 1) < 4.5 / math.sqrt(2000)


def test_step_dad_refines_for_the_batches_that_remain():
    batch = BatchedSimulator(LinearGaussian(1), 2)
    policy = TransformerPolicy(batch, 2)
    experiment = StepDAD(
        policy, batch, 2, refine_after=(1,), seed=0,
        refine_settings={"num_steps": 3, "batch_size": 16, "num_contrastive": 15},
    )  # fmt: skip
    while not experiment.done:
        experiment.record(batch(torch.tensor([0.5]), experiment.next_design()))
    assert experiment.history.shape == (2, 5) and experiment.policy is not policy
