"""How much the policies learn, against published figures. Each test trains; together they take about an hour."""

import math
import os
import time

import pytest
import torch
from report import report

from sbi_bed.diagnostics import expected_information_gain, step_dad_information_gain
from sbi_bed.inference import DAD
from sbi_bed.objectives import PCE, InfoNCE, LikelihoodBound
from sbi_bed.policies import GreedyPolicy, RandomPolicy, StaticPolicy, TransformerPolicy, load_policy
from sbi_bed.simulators import (
    ConstantElasticity,
    HyperbolicDiscounting,
    LocationFinding,
    Pharmacokinetics,
    StochasticEpidemic,
)

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
COMMAND = "pytest -m benchmark tests/benchmarks/test_information_gain.py"
LOCATION_TRAINING = {"num_steps": 3000, "batch_size": 512, "num_contrastive": 511, "learning_rate": 2e-3, "seed": 0}


def _trained(simulator, horizon, num_layers=1, bound=None, **training):
    """A transformer trained under a seed, and the seconds it took on one core."""
    torch.manual_seed(training["seed"])
    policy, start = TransformerPolicy(simulator, horizon, num_layers=num_layers), time.perf_counter()
    DAD(simulator, horizon, policy, bound=bound, show_progress_bars=False).train(**training)
    return policy, time.perf_counter() - start


@pytest.fixture(scope="module")
def location_policy(tmp_path_factory):
    """The policy for location K=1, T=10, and its training time; SBI_BED_LOCATION_POLICY may name a saved one."""
    simulator = LocationFinding(1)
    saved = os.environ.get("SBI_BED_LOCATION_POLICY")
    if saved:
        return load_policy(saved, simulator), math.nan
    policy, seconds = _trained(simulator, 10, bound=PCE(proposal="local", compile=True), **LOCATION_TRAINING)
    policy.save(tmp_path_factory.mktemp("policy") / "location.pt")
    return policy, seconds


def test_location(location_policy):
    policy, seconds = location_policy
    simulator = LocationFinding(1)
    random = expected_information_gain(simulator, RandomPolicy(simulator), 10, 2000, 100_000, seed=1)
    gain = expected_information_gain(simulator, policy, 10, 2000, seed=1, proposal="posterior")
    report("location K=1, N(0, I), T=10, random", str(random), COMMAND)
    report(f"location K=1, N(0, I), T=10, DAD trained {seconds:.0f} s on one core", str(gain), COMMAND)
    assert gain.lower >= 8
    assert abs(random.lower - 3.65) < 4 * random.lower_stderr + 0.05


def test_seconds_to_a_bound():
    """Five trainings of 700 steps with L=255: each lower bound with L=100,000, and the seconds."""
    simulator, rows = LocationFinding(1), []
    for seed in range(5):
        policy, seconds = _trained(
            simulator, 10, num_steps=700, batch_size=256, num_contrastive=255, learning_rate=2e-3, seed=seed
        )
        rows.append((expected_information_gain(simulator, policy, 10, 1000, 100_000, seed=1).lower, seconds))
    lower, seconds = zip(*rows, strict=True)
    report(
        "location K=1, T=10, five seeds, 700 steps on one core",
        f"lower {', '.join(f'{x:.2f}' for x in lower)}; {sorted(seconds)[2]:.0f} s in the median",
        f"{COMMAND} -k seconds",
    )
    assert sorted(lower)[2] >= 7 and sorted(seconds)[2] <= 120


TRAININGS = {
    "location K=2, N(0, I), T=10": (
        lambda: LocationFinding(2),
        10,
        2,
        {"num_steps": 6000, "batch_size": 512, "num_contrastive": 512, "learning_rate": 2e-3, "proposal": "local"},
        7.9,
    ),
    "location K=2, N(0, I), T=30": (
        lambda: LocationFinding(2),
        30,
        1,
        {"num_steps": 2500, "batch_size": 256, "num_contrastive": 256, "learning_rate": 1.5e-3, "proposal": "local"},
        10.97,
    ),
    "discounting T=20 (link Φ)": (
        HyperbolicDiscounting,
        20,
        1,
        {"num_steps": 1500, "batch_size": 256, "num_contrastive": 255, "learning_rate": 2e-3},
        4.7,
    ),
    "CES T=10": (
        ConstantElasticity,
        10,
        1,
        {"num_steps": 1000, "batch_size": 256, "num_contrastive": 256, "learning_rate": 2e-3, "proposal": "local"},
        12.0,
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_policies_against_published_figures(name):
    build, horizon, num_layers, training, least = TRAININGS[name]
    simulator = build()
    policy, seconds = _trained(simulator, horizon, num_layers, seed=0, **training)
    random = expected_information_gain(simulator, RandomPolicy(simulator), horizon, 1000, seed=1, proposal="posterior")
    gain = expected_information_gain(simulator, policy, horizon, 1000, seed=1, proposal="posterior")
    report(f"{name}, random", str(random), COMMAND)
    report(f"{name}, DAD trained {seconds:.0f} s on one core", str(gain), COMMAND)
    assert gain.lower >= least


IMPLICIT = {
    "epidemic (SIR) T=5": (StochasticEpidemic, 5, {"batch_size": 512, "num_steps": 5000, "learning_rate": 2e-3}),
    "pharmacokinetics T=5": (Pharmacokinetics, 5, {"batch_size": 512, "num_steps": 4000, "learning_rate": 3e-3}),
}


@pytest.mark.parametrize("name", IMPLICIT)
def test_policies_trained_with_a_critic(name):
    build, horizon, training = IMPLICIT[name]
    simulator, num_steps = build(), training["num_steps"]
    torch.manual_seed(0)
    policies = {
        "random": (RandomPolicy(simulator), num_steps // 4),
        "static, 16 starts": (StaticPolicy(simulator, horizon, num_starts=16), num_steps // 2),
        "DAD with InfoNCE": (TransformerPolicy(simulator, horizon), num_steps),
    }
    lower = {}
    for label, (policy, steps) in policies.items():
        start = time.perf_counter()
        trainer = DAD(simulator, horizon, policy, bound=InfoNCE(simulator), show_progress_bars=False)
        trainer.train(**{**training, "num_steps": steps}, seed=0)
        seconds = time.perf_counter() - start
        gain = expected_information_gain(simulator, policy, horizon, 4000, seed=1, bound=trainer.bound)
        text = str(gain)
        if simulator.has_likelihood:  # which was not used in training
            gain = expected_information_gain(simulator, policy, horizon, 1000, seed=1, proposal="posterior")
            text += f"; by its likelihood {gain}"
        lower[label] = gain.lower
        report(f"{name} without a likelihood, {label}, trained {seconds:.0f} s on one core", text, COMMAND)
    assert lower["DAD with InfoNCE"] > max(lower["random"], lower["static, 16 starts"])


def test_a_policy_trained_with_a_learned_likelihood():
    """Location K=2, T=10: gains above the log of any batch, its own likelihood unused in training."""
    simulator = LocationFinding(2)
    torch.manual_seed(0)
    policy, start = TransformerPolicy(simulator, 10), time.process_time()
    net = {"hidden_features": 64, "num_components": 2, "fitting_steps": 4, "max_design_gradient": 1.0}
    bound = LikelihoodBound(simulator, num_contrastive=64, proposal="local", **net)
    trainer = DAD(simulator, 10, policy, bound=bound, show_progress_bars=False)
    trainer.train(2400, 256, learning_rate=2e-3, seed=0)
    seconds = time.process_time() - start
    gain = expected_information_gain(simulator, policy, 10, 1000, seed=1, proposal="posterior")
    what = "location K=2, N(0, I), T=10, without its likelihood, DAD with LikelihoodBound"
    report(f"{what}, trained {seconds:.0f} s of CPU", f"by its likelihood {gain}", COMMAND)
    assert gain.lower >= 7.5 - 2 * gain.lower_stderr


def test_step_dad_on_location(location_policy):
    simulator = LocationFinding(1)
    gain = step_dad_information_gain(
        location_policy[0], simulator, 10, (6,), 32, num_reference=2_000_000, num_rollouts=2048, seed=0
    )
    difference = gain.refined_samples - gain.unrefined_samples
    report(
        "location K=1, T=10, Step-DAD after 6 trials against its unrefined twin, 32 deployments, reference 2e6 prior draws",
        f"{gain}; worst deployment {difference.min():+.3f} ± {gain.noise_samples[difference.argmin()]:.3f}; "
        f"{gain.accepted:.0%} of refinements kept",
        COMMAND,
    )
    assert gain.difference >= 0.3
    assert difference.min() >= -0.05


def test_prior_shift(location_policy):
    shifted = LocationFinding(1, prior=torch.distributions.MultivariateNormal(torch.full((2,), 3.0), torch.eye(2)))
    gain = step_dad_information_gain(location_policy[0], shifted, 10, (6,), 32, num_reference=2_000_000, seed=0)
    report(
        "location K=1, T=10, policy trained under N(0, I), deployed and inferred under N(3, I), refined after 6 trials",
        str(gain),
        COMMAND,
    )
    assert gain.refined >= 2


@pytest.mark.parametrize(
    ("simulator", "horizon", "num_contrastive"),
    [(LocationFinding(1), 10, 1_000_000), (HyperbolicDiscounting(), 20, 100_000)],
)
def test_greedy(simulator, horizon, num_contrastive):
    policy = GreedyPolicy(simulator)
    start = time.process_time()
    gain = expected_information_gain(simulator, policy, horizon, 128, num_contrastive, seed=1)
    each = (time.process_time() - start) / (128 * horizon)
    report(
        f"{type(simulator).__name__}, T={horizon}, GreedyPolicy, {1e3 * each:.0f} ms of CPU a design",
        str(gain),
        COMMAND,
    )
    random = expected_information_gain(simulator, RandomPolicy(simulator), horizon, 1000, num_contrastive, seed=1)
    assert gain.lower > random.upper + 3 * gain.lower_stderr
