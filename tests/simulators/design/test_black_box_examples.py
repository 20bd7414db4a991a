"""Five simulators of users, from the callable to a checked posterior: policy, live run, posterior of sbi, calibration."""

import math

import pytest
import torch
from black_box_examples import EXAMPLES

from sbi_bed.inference import DAD, AdaptiveExperiment, likelihood_posterior
from sbi_bed.simulators import PolicySimulator, process_design_simulator
from sbi_bed.utils import seeded

SECONDS = {"other program": 150}  # 500 simulations, as 60 seconds allow, are too few for a calibrated posterior
HORIZON, NUM_RUNS, NUM_DRAWS = 3, 40, 99


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", EXAMPLES)
def test_from_a_callable_to_a_checked_posterior(name):
    simulator = process_design_simulator(*EXAMPLES[name])
    trainer = DAD(simulator, HORIZON, show_progress_bars=False)
    policy = trainer.train(seed=0, max_seconds=SECONDS.get(name, 60))
    gains, stderrs = trainer.report.gains, trainer.report.stderrs
    assert gains["trained"] > gains["random"] - 3 * math.hypot(stderrs["trained"], stderrs["random"]), str(
        trainer.report
    )

    experiment, truth = AdaptiveExperiment(policy, simulator, HORIZON, seed=0), simulator.prior.sample()
    while not experiment.done:
        experiment.record(simulator(truth, experiment.next_design()))
    assert experiment.posterior().sample((10,), show_progress_bars=False).shape == (10, 2)

    with seeded(1):
        theta = simulator.prior.sample((NUM_RUNS,))
        histories = PolicySimulator(simulator, policy, HORIZON)(theta)
    ranks = []
    for number, history in enumerate(histories):
        posterior = likelihood_posterior(simulator, history, num_particles=1024, seed=number)
        with seeded(number):
            draws = posterior.sample((NUM_DRAWS,), show_progress_bars=False)
        ranks.append((draws < theta[number]).double().mean(0))
    ranks = torch.stack(ranks).sort(0).values
    uniform = (torch.arange(NUM_RUNS).double().unsqueeze(-1) + 0.5) / NUM_RUNS
    largest = (ranks - uniform).abs().max()
    print(f"\n{name}: {simulator.report}\n{trainer.report}\nlargest distance of ranks {largest:.3f}")
    assert largest < 1.95 / math.sqrt(NUM_RUNS) + 0.03  # 99.9 % quantile of chance, and an error of .03
