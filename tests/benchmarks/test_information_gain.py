"""How much the policies learn, against published figures. Each test trains; together they take about an hour."""

import math
import time

import pytest
import torch
from report import report

from sbi_bed.diagnostics import expected_information_gain, step_dad_information_gain
from sbi_bed.inference import DAD
from sbi_bed.policies import GreedyPolicy, RandomPolicy, load_policy
from sbi_bed.simulators import ConstantElasticity, HyperbolicDiscounting, LocationFinding

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
COMMAND = "pytest -m benchmark tests/benchmarks/test_information_gain.py"
LOCATION_TRAINING = {"num_steps": 8000, "batch_size": 512, "num_contrastive": 1023, "learning_rate": 1e-3, "seed": 0}


def _trained(simulator, horizon, **training):
    start = time.perf_counter()
    policy = DAD(simulator, horizon).train(**training)
    return policy, time.perf_counter() - start


@pytest.fixture(scope="module")
def location_policy(tmp_path_factory):
    """The policy for location K=1, T=10, and its training time; SBI_BED_LOCATION_POLICY may name a saved one."""
    import os

    simulator = LocationFinding(1)
    saved = os.environ.get("SBI_BED_LOCATION_POLICY")
    if saved:
        return load_policy(saved, simulator), math.nan
    policy, seconds = _trained(simulator, 10, **LOCATION_TRAINING)
    policy.save(tmp_path_factory.mktemp("policy") / "location.pt")
    return policy, seconds


def test_location(location_policy):
    policy, seconds = location_policy
    simulator = LocationFinding(1)
    random = expected_information_gain(simulator, RandomPolicy(simulator), 10, 2000, 100_000, seed=1)
    gain = expected_information_gain(simulator, policy, 10, 2000, 100_000, seed=1)
    report("location K=1, N(0, I), T=10, random", str(random), COMMAND)
    report(f"location K=1, N(0, I), T=10, DAD trained {seconds:.0f} s on 2 cores", str(gain), COMMAND)
    assert gain.lower >= 6.9
    assert abs(random.lower - 3.65) < 4 * random.lower_stderr + 0.05


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


def test_discounting():
    simulator = HyperbolicDiscounting()
    policy, seconds = _trained(
        simulator, 20, num_steps=5200, batch_size=512, num_contrastive=255, learning_rate=3e-4, seed=0
    )
    gain = expected_information_gain(simulator, policy, 20, 2000, 100_000, seed=1)
    report(f"discounting T=20 (link Φ), DAD trained {seconds:.0f} s on 2 cores", str(gain), COMMAND)
    assert gain.lower >= 4.6


def test_constant_elasticity():
    simulator = ConstantElasticity()
    random = expected_information_gain(simulator, RandomPolicy(simulator), 10, 100, 1_000_000, seed=1)
    policy, seconds = _trained(
        simulator, 10, num_steps=1200, batch_size=256, num_contrastive=1023, learning_rate=3e-4, seed=0
    )
    gain = expected_information_gain(simulator, policy, 10, 100, 1_000_000, seed=1)
    report("CES T=10, random", str(random), COMMAND)
    report(f"CES T=10, DAD trained {seconds:.0f} s on 2 cores", str(gain), COMMAND)
    assert gain.lower - random.lower >= 2


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
