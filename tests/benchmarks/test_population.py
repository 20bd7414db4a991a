"""Populations of people: means and sds by NPE, their calibration; and designs aimed at one parameter of a person."""

import time

import pytest
import torch
from report import report
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from scipy.stats import kstest

from sbi_bed.inference import batched_posteriors
from sbi_bed.neural_nets import PopulationEmbedding, ResponseEmbedding
from sbi_bed.policies import GreedyPolicy
from sbi_bed.simulators import BayesianActor, OptimalActor, Population, QuadraticCost, QuadraticEffortCost, rollout
from sbi_bed.utils import NoTracker, pack_history

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_population.py -k"
RIDGE = torch.tensor([0.2, 1.5, 0.15, 0.9])


def as_text(values):
    return "(" + ", ".join(f"{value:.3f}" for value in values.tolist()) + ")"


def trained(population, num_simulations, num_epochs):
    """NPE with a person's regression and a `HierarchicalEmbedding` over people."""
    phi, x = population.sample(num_simulations, seed=0)
    torch.manual_seed(0)
    net = PopulationEmbedding(ResponseEmbedding(population.simulator, 4, 8), 12).fit_scale(x[:500])
    build = posterior_nn("zuko_nsf", embedding_net=net, z_score_x="none")
    inference = NPE(population.prior, density_estimator=build, show_progress_bars=False, tracker=NoTracker())
    settings = {"training_batch_size": 100, "validation_fraction": 0.05, "stop_after_epochs": num_epochs}
    inference.append_simulations(phi, x).train(learning_rate=2e-3, max_num_epochs=num_epochs, **settings)
    for group in inference.optimizer.param_groups:
        group["lr"] = 2e-4
    inference.train(resume_training=True, max_num_epochs=num_epochs + num_epochs // 2, **settings)
    return inference.build_posterior()


def test_population_by_npe():
    """Fresh populations: R² and coverage of 90 % intervals, and ranks of the truth among draws, uniform if calibrated."""
    population = Population(BayesianActor(OptimalActor(QuadraticCost())), num_persons=20, num_trials=60)
    start = time.process_time()
    posterior = trained(population, 15_000, 8)
    seconds = time.process_time() - start
    phi, x = population.sample(300, seed=1)
    torch.manual_seed(0)
    draws = posterior.sample_batched((500,), x=x, show_progress_bars=False)
    low, high = draws.quantile(torch.tensor([0.05, 0.95]), dim=0)
    inside = ((phi >= low) & (phi <= high)).double()
    ranks = (draws < phi).double().mean(0)
    p_values = torch.tensor([kstest(column.numpy(), "uniform").pvalue for column in ranks.T])
    r_squared = 1 - (draws.mean(0) - phi).square().sum(0) / (phi - phi.mean(0)).square().sum(0)
    coverage, error = inside.mean(), inside.mean(1).std() / len(phi) ** 0.5
    text = f"R² {as_text(r_squared)} of {', '.join(population.names)}; coverage of 90 % intervals {coverage:.3f} ± "
    text += f"{error:.3f}, each {as_text(inside.mean(0))}; SBC ranks, KS p {as_text(p_values)}; {seconds:.0f} CPU s"
    report("populations of 20 people, 60 trials, by NPE", text, f"{COMMAND} npe")
    assert (r_squared[:3] > 0.8).all() and (r_squared[3:] > 0.3).all()
    assert abs(coverage - 0.9) < 3 * error + 0.02 and p_values.min() > 1e-3


@pytest.mark.parametrize("objective", ["variance", "information"])
def test_greedy_designs_for_one_parameter(objective):
    """20 people on the ridge, 90 trials chosen one by one: sd of μ_0 (other designs: test_actor_inference)."""
    simulator = BayesianActor(OptimalActor(QuadraticEffortCost()), noise_range=(0.05, 0.4))
    grid = torch.cartesian_prod(torch.tensor([0.1, 0.3, 1.0, 3.0, 7.0]), torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4]))
    options = {"num_particles": 1024, "num_inner": 256, "num_outer": 64}
    of = ("mu_0",) if objective == "variance" else None
    policy = GreedyPolicy(simulator, candidates=grid, objective=objective, of=of, **options)
    torch.manual_seed(0)
    start = time.process_time()
    trials = rollout(simulator, policy, RIDGE.expand(20, -1), 90)
    seconds = time.process_time() - start
    found = batched_posteriors(simulator, pack_history(*trials), seed=0)
    sd = found.stddev[:, 1]
    text = f"sd of μ_0 {sd.mean():.4f} ± {sd.std() / 20**0.5:.4f}; largest R-hat {found.rhat.max():.3f}; {seconds:.0f} CPU s"
    report(f"20 people, 90 trials, GreedyPolicy, {objective}", text, f"{COMMAND} greedy")
    assert found.rhat.max() < 1.05 and sd.mean() < (0.08 if objective == "variance" else 0.1)
