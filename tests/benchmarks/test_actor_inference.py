"""Inference of people from their responses: accuracy and time of MCMC and NPE, recovery, identifiability, designs."""

import time

import pytest
import torch
from reference import grid_moments
from report import report
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn

from sbi_bed.diagnostics import resolving_designs
from sbi_bed.inference import DAD, ActorTrainer, batched_posteriors, likelihood_posterior
from sbi_bed.neural_nets import ResponseEmbedding
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import (
    AbsoluteCost,
    AbsoluteEffortCost,
    AsymmetricQuadraticCost,
    BayesianActor,
    InvertedGaussianCost,
    OptimalActor,
    PinballCost,
    PolicySimulator,
    QuadraticCost,
    QuadraticEffortCost,
    simulate_histories,
)
from sbi_bed.utils import NoTracker, pack_history

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_actor_inference.py -k"
THETA = torch.tensor([0.15, 1.5, 0.1])
RIDGE = torch.tensor([0.2, 1.5, 0.15, 0.9])
COSTS = [
    QuadraticCost(),
    AbsoluteCost(),
    PinballCost(),
    QuadraticEffortCost(),
    AsymmetricQuadraticCost(),
    AbsoluteEffortCost(),
    InvertedGaussianCost(),
]


def observe(simulator, theta, num_people, num_trials):
    stimuli = simulator.design_space.sample((num_people, num_trials))
    return pack_history(stimuli, simulator(theta, stimuli))


def exact_moments(simulator, histories, found):
    low, high = (found.mean - 6 * found.stddev).clamp_min(0.0101), found.mean + 6 * found.stddev
    pairs = [grid_moments(simulator, *row, num=61) for row in zip(histories, low.tolist(), high.tolist(), strict=True)]
    return (torch.stack(column) for column in zip(*pairs, strict=True))


def as_text(values):
    return "(" + ", ".join(f"{value:.3f}" for value in values.tolist()) + ")"


def test_one_person_by_mcmc():
    simulator = BayesianActor(OptimalActor(QuadraticCost()))
    torch.manual_seed(0)
    x = observe(simulator, THETA, 1, 60)
    start = time.process_time()
    found = batched_posteriors(simulator, x, seed=0)
    seconds = time.process_time() - start
    start = time.process_time()
    slices = likelihood_posterior(simulator, x[0], "mcmc", seed=0).sample((2000,))
    slice_seconds = time.process_time() - start
    mean, sd = exact_moments(simulator, x, found)
    shift, ratio = (found.mean - mean) / sd, found.stddev / sd
    text = f"means off by {as_text(shift[0])} sd, sds {as_text(ratio[0])} of exact, effective draws "
    text += f"{as_text(found.effective_sample_size[0])}, {seconds:.1f} CPU s; slice sampling: means off by "
    text += f"{as_text((slices.mean(0) - mean[0]) / sd[0])} sd, {slice_seconds:.1f} CPU s"
    report("one person, 60 trials, by populations of particles", text, f"{COMMAND} one_person")
    assert shift.abs().max() < 0.15 and (ratio - 1).abs().max() < 0.1
    assert (found.effective_sample_size > 400).all() and seconds < 20


def test_hundred_people_by_mcmc():
    for cost in (QuadraticCost(), QuadraticEffortCost()):
        simulator = BayesianActor(OptimalActor(cost))
        torch.manual_seed(0)
        x = observe(simulator, simulator.prior.sample((100, 1)), 100, 60)
        start = time.process_time()
        found = batched_posteriors(simulator, x, seed=0)
        seconds = time.process_time() - start
        size = found.effective_sample_size.amin(-1)
        text = f"{seconds:.1f} CPU s; effective draws of the worst parameter: median {size.median():.0f}, least "
        text += f"{size.min():.0f}; largest R-hat {found.rhat.max():.3f}"
        report(f"100 people, 60 trials, {cost.name}", text, f"{COMMAND} hundred")
        assert seconds < 120 and found.rhat.max() < 1.05


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
def test_recovery(cost):
    """100 people per cost: coverage of 90 % intervals, and R² of posterior means.

    Where costs do not scale, people act by the numerical minimiser, and are inferred with a trained net, which is faster.
    """
    people = simulator = BayesianActor(OptimalActor(cost))
    if not people.power_law:
        simulator = BayesianActor(ActorTrainer(cost, show_progress_bars=False).train(num_steps=5000, seed=0))
    torch.manual_seed(3)
    theta = simulator.prior.sample((100,))
    x = observe(people, theta.unsqueeze(1), 100, 60)
    start = time.process_time()
    found = batched_posteriors(simulator, x, seed=0)
    seconds = time.process_time() - start
    low, high = found.theta.quantile(torch.tensor([0.05, 0.95]).double(), dim=0)
    coverage = ((theta >= low) & (theta <= high)).double().mean(0)
    r_squared = 1 - (found.mean - theta).square().sum(0) / (theta - theta.mean(0)).square().sum(0)
    text = f"{', '.join(simulator.parameter_names)}: coverage {as_text(coverage)}, mean {coverage.mean():.3f}, R² "
    text += f"{as_text(r_squared)}; R-hat above 1.05 for {int((found.rhat > 1.05).any(-1).sum())} people, at most "
    text += f"{found.rhat.max():.3f}; {seconds:.0f} CPU s"
    report(f"recovery, 100 people, 60 trials, {cost.name}", text, f"{COMMAND} recovery")
    assert 0.86 <= coverage.mean() <= 0.94


def test_identifiability_and_design():
    """Correlation of μ_0 and β; sd of μ_0 after random stimuli, two noise levels, random and designed experiments."""
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()), noise_range=(0.05, 0.4))
    grid = torch.cartesian_prod(torch.tensor([0.1, 0.3, 1.0, 3.0, 7.0]), torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4]))
    designed = resolving_designs(simulator, simulator.prior.sample((500,)), [1], grid, 90, seed=0).designs
    torch.manual_seed(0)
    random = simulator.design_space.sample((20, 90))
    two_levels = torch.tensor([0.1, 0.2]).repeat_interleave(45).expand(20, 90)
    experiments = {
        "random stimuli, sigma .2": torch.stack([random[..., 0], torch.full((20, 90), 0.2)], -1),
        "random stimuli, sigma .1 or .2": torch.stack([random[..., 0], two_levels], -1),
        "random stimuli and sigma": random,
        "designed": designed.expand(20, 90, 2),
    }
    sds = {}
    for name, designs in experiments.items():
        found = batched_posteriors(simulator, pack_history(designs, simulator(RIDGE, designs)), seed=0)
        correlation = torch.stack([torch.corrcoef(draws.T)[1, 3] for draws in found.theta.unbind(1)])
        sds[name] = sd = found.stddev[:, 1]
        text = f"sd of μ_0 {sd.mean():.3f} ± {sd.std() / 20**0.5:.3f}; correlation of μ_0 and β {correlation.mean():+.3f}, "
        text += f"from {correlation.min():+.2f} to {correlation.max():+.2f}; largest R-hat {found.rhat.max():.2f}"
        report(f"20 people, 90 trials, {name}", text, f"{COMMAND} identifiability")
        if name == "random stimuli, sigma .2":
            assert correlation.max() < -0.8
    ratio = sds["designed"] / sds["random stimuli, sigma .2"]
    assert ratio.mean() + 2 * ratio.std() / 20**0.5 < 0.5


def test_a_policy_that_breaks_the_ridge():
    """Twelve trials: DAD, trained for all parameters, chooses stimuli and noise levels; sd of μ_0 over 20 people."""
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()), noise_range=(0.05, 0.4))
    torch.manual_seed(0)
    start = time.process_time()
    policy = DAD(simulator, 12, show_progress_bars=False).train(500, 256, 255, 1e-3, seed=0)
    seconds = time.process_time() - start
    random = simulator.design_space.sample((20, 12))
    fixed = torch.stack([random[..., 0], torch.full((20, 12), 0.2)], -1)
    experiments = {
        name: pack_history(designs, simulator(RIDGE, designs))
        for name, designs in {"random stimuli, sigma .2": fixed, "random stimuli and sigma": random}.items()
    }
    experiments["DAD"] = PolicySimulator(simulator, policy, 12)(RIDGE.expand(20, -1))
    sds = {}
    for name, histories in experiments.items():
        found = batched_posteriors(simulator, histories, seed=0)
        sds[name] = sd = found.stddev[:, 1]
        text = f"sd of μ_0 {sd.mean():.3f} ± {sd.std() / 20**0.5:.3f}; largest R-hat {found.rhat.max():.2f}"
        text += f"; {seconds:.0f} CPU s of training" if name == "DAD" else ""
        report(f"20 people, 12 trials, {name}", text, f"{COMMAND} ridge")
    ratio = sds["DAD"] / sds["random stimuli, sigma .2"]
    assert ratio.mean() + 2 * ratio.std() / 20**0.5 < 0.5


def test_npe_for_many_people():
    simulator = BayesianActor(OptimalActor(QuadraticCost()))
    start = time.process_time()
    theta, x = simulate_histories(simulator, RandomPolicy(simulator), 60, 30_000, seed=1)
    torch.manual_seed(0)
    build = posterior_nn("maf", embedding_net=ResponseEmbedding(simulator), z_score_x="none")
    inference = NPE(simulator.prior, density_estimator=build, show_progress_bars=False, tracker=NoTracker())
    inference.append_simulations(theta, x)
    settings = {"training_batch_size": 256, "validation_fraction": 0.05, "stop_after_epochs": 24}
    inference.train(learning_rate=2e-3, max_num_epochs=16, **settings)
    for group in inference.optimizer.param_groups:
        group["lr"] = 2e-4
    inference.train(resume_training=True, max_num_epochs=24, **settings)
    seconds = time.process_time() - start
    torch.manual_seed(5)
    x_o = observe(simulator, THETA, 10, 60)
    exact = batched_posteriors(simulator, x_o, seed=0)
    draws = inference.build_posterior().sample_batched((2000,), x=x_o, show_progress_bars=False)
    shift, ratio = (draws.mean(0) - exact.mean) / exact.stddev, draws.std(0) / exact.stddev
    text = f"means off by {as_text(shift.abs().mean(0))} sd, sds {as_text(ratio.mean(0))} of exact; {seconds:.0f} CPU s"
    report("10 people, 60 trials, by NPE", text, f"{COMMAND} npe")
    assert shift.abs().mean(0).max() < 0.3 and (ratio.mean(0) - 1).abs().max() < 0.2
