"""Simulators without a likelihood, made into experiments by `process_design_simulator`, and what they reach.

Where there is a likelihood, it judges alone: training does not see it. Each training takes about two minutes.
"""
# ruff: noqa: NPY002 - the generators that simulators of users draw from

import time

import numpy as np
import pytest
import torch
from black_box_examples import EXAMPLES
from report import report
from torch.distributions import Independent, Normal, Uniform, constraints

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD, AdaptiveExperiment
from sbi_bed.policies import GreedyPolicy
from sbi_bed.simulators import DesignSimulator, Pharmacokinetics, process_design_simulator

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
COMMAND = "pytest -m benchmark tests/benchmarks/test_black_boxes.py"
PRIOR = Independent(Uniform(torch.tensor([1.0, 0.1]), torch.tensor([5.0, 2.0])), 1)
TIMES = constraints.interval(torch.zeros(1), torch.full((1,), 10.0))


def decay(theta, design):  # as users write: one theta, numpy
    return theta[0] * np.exp(-theta[1] * design[0]) + 0.1 * np.random.normal()


def decay_with_likelihood():
    def noisy(theta, design):
        return Normal(theta[..., :1] * torch.exp(-theta[..., 1:] * design), 0.1)

    return DesignSimulator(
        PRIOR,
        lambda theta, design: noisy(theta, design).rsample(),
        TIMES,
        lambda theta, design, outcome: noisy(theta, design).log_prob(outcome).sum(-1),
        reparameterized=True,
    )


@pytest.mark.parametrize("seed", range(10))
def test_decay(seed):
    simulator = process_design_simulator(decay, PRIOR, TIMES)
    trainer, start = DAD(simulator, 4, show_progress_bars=False), time.process_time()
    policy = trainer.train(seed=seed, max_seconds=100)
    seconds = time.process_time() - start
    gain = expected_information_gain(decay_with_likelihood(), policy, 4, 2000, 20_000, seed=1)
    report(
        f"decay, T=4, no likelihood, seed {seed}, {seconds:.0f} s of CPU, {trainer.num_steps} steps", str(gain), COMMAND
    )
    assert gain.lower >= 4.45 - 2 * gain.lower_stderr


@pytest.mark.parametrize("name", ["decay", "sir"])
@pytest.mark.parametrize("objective", ["information", "variance"])
def test_one_step_lookahead_takes_at_most_a_second(name, objective):
    example = (decay, PRIOR, TIMES) if name == "decay" else EXAMPLES[name]
    simulator = process_design_simulator(*example)
    simulator.learn_likelihood(500, seed=0)
    policy = GreedyPolicy(simulator, objective=objective, of=[0] if objective == "variance" else None)
    experiment, seconds = AdaptiveExperiment(policy, simulator, 4, seed=0), []
    while not experiment.done:
        start = time.process_time()
        design = experiment.next_design()
        seconds.append(time.process_time() - start)
        experiment.record(simulator(simulator.prior.mean, design))
    report(f"{name}, GreedyPolicy, {objective}", f"{max(seconds):.2f} s of CPU for the slowest design", COMMAND)
    assert max(seconds) <= 1.0


def test_pharmacokinetics():
    """Its published figure, 3.20, without a likelihood (iDAD)."""
    truth = Pharmacokinetics()
    simulator = process_design_simulator(truth.simulate, truth.prior, truth.design_space)
    trainer, start = DAD(simulator, 5, show_progress_bars=False), time.process_time()
    policy = trainer.train(10_000, 128, 511, 3e-3, seed=0, max_seconds=120)
    seconds = time.process_time() - start
    gain = expected_information_gain(truth, policy, 5, 2000, 20_000, seed=1)
    what = f"pharmacokinetics, T=5, no likelihood, {seconds:.0f} s of CPU, {trainer.num_steps} steps"
    report(what, f"by its likelihood, which training did not see: {gain}", COMMAND)
    assert gain.lower >= 3.20 - 2 * gain.lower_stderr
