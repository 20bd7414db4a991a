"""Simulated histories are the same numbers whoever simulates them, and what sbi takes."""

import joblib
import pytest
import torch
from torch.distributions import MultivariateNormal, constraints

from sbi_bed.policies import RandomPolicy, StaticPolicy
from sbi_bed.simulators import DesignSimulator, LocationFinding, simulate_histories
from sbi_bed.utils import NoTracker


@pytest.fixture
def simulator():
    """Built from lambdas, as a user's is."""
    return DesignSimulator(
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda theta, design: (
            (theta * design).sum(-1, keepdim=True) + torch.randn_like(theta[..., :1] * design[..., :1])
        ),
        constraints.interval(-torch.ones(2), torch.ones(2)),
    )


def simulate(simulator, **settings):
    arguments = {"batch_size": 64, "seed": 7, "min_trials": 1, **settings}
    return simulate_histories(simulator, RandomPolicy(simulator), 4, 200, **arguments)


def assert_same(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_processes_give_the_same_numbers(simulator):
    theta, x = here = simulate(simulator)
    assert theta.shape == (200, 2) and x.shape == (200, 4, 4)
    assert_same(here, simulate(simulator, num_workers=2))
    assert len(theta.unique(dim=0)) == 200  # batches differ from each other
    assert not torch.equal(theta, simulate(simulator, seed=8)[0])


@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")
def test_a_dask_cluster_gives_the_same_numbers(simulator):
    distributed = pytest.importorskip("distributed")
    here = simulate(simulator)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    )
    with cluster, distributed.Client(cluster) as client, joblib.parallel_config("dask"):
        there = simulate(simulator)
        tasks = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert_same(here, there)
    assert sum(tasks.values()) >= 4  # it was the cluster that worked


def test_histories_are_the_experiments_of_their_theta():
    """Under a fixed design the outcome is θ plus noise, so that x goes with its own θ."""
    simulator, designs = LocationFinding(), torch.zeros(6, 2)
    theta, x = simulate_histories(simulator, StaticPolicy(simulator, 6, designs), 6, 500, batch_size=128, seed=0)
    expected = simulator.log_intensity(theta, designs[0])
    residual = (x[..., 2].log().mean(-1) - expected) / (0.5 / 6**0.5)
    assert abs(float(residual.mean())) < 4 / 500**0.5 and abs(float(residual.std()) - 1) < 0.15


def test_sbi_takes_them(simulator):
    from sbi.inference import NPE

    wide = MultivariateNormal(torch.zeros(2).double(), 4 * torch.eye(2).double())
    theta, x = simulate(simulator, prior=wide)
    assert 1.6 < theta.std() < 2.4
    inference = NPE(simulator.prior, tracker=NoTracker(), show_progress_bars=False).append_simulations(theta, x)
    kept_theta, kept_x, _ = inference.get_simulations()
    assert torch.equal(kept_theta, theta) and torch.equal(kept_x, x) and kept_x.dtype == torch.float32


@pytest.mark.parametrize("name", ["num_simulations", "batch_size", "horizon"])
def test_numbers_are_checked(simulator, name):
    arguments = {"horizon": 2, "num_simulations": 4, "batch_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        simulate_histories(simulator, RandomPolicy(simulator), **arguments)
