"""How fast: a training step against the naive form, interleaved in one run; and a design for a live experiment."""

import statistics
import subprocess
import sys
import time

import pytest
import torch
from naive import tiled_spce_loss
from report import report

from sbi_bed.inference import AdaptiveExperiment
from sbi_bed.objectives import pathwise_loss
from sbi_bed.policies import DeepSetsPolicy
from sbi_bed.simulators import HyperbolicDiscounting, LocationFinding, rollout

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1200)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("num_sources", [1, 2])
def test_a_training_step_takes_an_eighth_of_the_naive_one(num_sources):
    batch_size, num_contrastive, horizon = 1024, 1023, 10
    torch.manual_seed(0)
    simulator = LocationFinding(num_sources)
    policy = DeepSetsPolicy(simulator)

    def ours():
        theta = simulator.prior.sample((batch_size,))
        trials = rollout(simulator, policy, theta, horizon)
        pathwise_loss(simulator, theta, trials, simulator.prior.sample((num_contrastive,)))[0].backward()

    def naive():
        tiled_spce_loss(simulator, policy, horizon, batch_size, num_contrastive).backward()

    ours(), naive()
    times = [(_seconds(ours), _seconds(naive)) for _ in range(7)]
    fast, slow = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    report(
        f"training step, location K={num_sources}, B=1024, L=1023, T=10, one thread",
        f"{1e3 * fast:.0f} ms against {1e3 * slow:.0f} ms naive, ratio {ratio:.1f}",
        "pytest -m benchmark tests/benchmarks/test_speed.py",
    )
    assert ratio >= 8


def test_the_next_design_comes_within_two_milliseconds():
    simulator = HyperbolicDiscounting()
    experiment = AdaptiveExperiment(DeepSetsPolicy(simulator), simulator, horizon=20, seed=0)
    times = []
    for _ in range(20):
        times.append(_seconds(experiment.next_design))
        experiment.record([1.0])
    median = statistics.median(times)
    report(
        "next_design, default policy, T=20, one thread",
        f"{1e3 * median:.2f} ms median, {1e3 * max(times):.2f} ms largest",
        "pytest -m benchmark tests/benchmarks/test_speed.py",
    )
    assert median <= 2e-3


PEAK_MEMORY = """
import sys
import torch
from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import LocationFinding

def peak():  # of this process alone: getrusage would count what its parent held when it forked
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

torch.set_num_threads(1)
simulator = LocationFinding()
before = peak()
expected_information_gain(simulator, RandomPolicy(simulator), 10, 200, int(sys.argv[1]), seed=0)
print(before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_does_not_grow_with_contrastive_samples():
    """In a process each; all likelihoods of the larger one at once would take 8 GB."""
    peaks = {}
    for num_contrastive in (10_000, 100_000, 1_000_000):
        command = [sys.executable, "-c", PEAK_MEMORY, str(num_contrastive)]
        before, peak = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        peaks[num_contrastive] = peak
        report(
            f"peak memory of expected_information_gain, L={num_contrastive:,}, 200 rollouts, T=10",
            f"{peak:.0f} MB, {peak - before:.0f} MB more than after imports",
            "pytest -m benchmark tests/benchmarks/test_speed.py",
        )
    assert max(peaks.values()) <= 1.1 * min(peaks.values())
