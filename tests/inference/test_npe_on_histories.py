"""NPE trained on histories against exact posteriors, at the full length, at half of it, and over all lengths (SBC)."""

import math
import pickle

import pytest
import torch
from reference import grid_posterior
from sbi.diagnostics import check_sbc, run_sbc
from sbi.inference import NPE, simulate_for_sbi
from sbi.neural_nets import posterior_nn
from sbi.utils.metrics import c2st
from sbi_bed.inference import DAD
from sbi_bed.neural_nets.embedding_nets.history import HistoryEmbedding
from sbi_bed.policies import RandomPolicy, StaticPolicy
from sbi_bed.simulators import DesignSimulator, LocationFinding, PolicySimulator
from sbi_bed.utils import pack_history
from torch.nn.functional import pad

BOUNDS = (-6.0, 6.0)  # six standard deviations of the prior


def train_npe(experiment, num_simulations, epochs, model="mdn", embedding=None, batch_size=256, **flow):
    """NPE on simulations of an experiment; the last third of the epochs at a tenth of the learning rate."""
    simulator = experiment.simulator
    theta, x = simulate_for_sbi(
        experiment, simulator.prior, num_simulations, simulation_batch_size=None, seed=1, show_progress_bar=False
    )
    build = posterior_nn(
        model=model, embedding_net=HistoryEmbedding(simulator, **(embedding or {})), z_score_x="none", **flow
    )
    inference = NPE(simulator.prior, density_estimator=build, show_progress_bars=False)
    inference.append_simulations(theta, x)
    settings = {"training_batch_size": batch_size, "validation_fraction": 0.05, "stop_after_epochs": epochs}
    inference.train(learning_rate=2e-3, max_num_epochs=2 * epochs // 3, **settings)
    for group in inference.optimizer.param_groups:
        group["lr"] = 2e-4
    inference.train(resume_training=True, max_num_epochs=epochs, **settings)
    return inference.build_posterior()


def shorten(x, num_trials):
    """The same histories with trials after `num_trials` not yet run."""
    return x * (torch.arange(x.shape[-2]) < num_trials).unsqueeze(-1)


def mean_c2st(posterior, simulator, x, num_samples=1000):
    """Mean over histories of the accuracy with which a classifier tells exact draws from the posterior's."""
    exact = torch.stack([grid_posterior(simulator, history, BOUNDS).sample(num_samples) for history in x])
    draws = posterior.sample_batched((num_samples,), x=x, show_progress_bars=False).transpose(0, 1)
    scores = [float(c2st(one, other)) for one, other in zip(exact, draws, strict=True)]
    print(f"C2ST {sum(scores) / len(scores):.3f}, from {min(scores):.3f} to {max(scores):.3f}")
    return sum(scores) / len(scores)


def sbc_p_values(posterior, experiment, num_experiments, num_samples=200):
    """Uniformity of the ranks of both coordinates and of the log density, over histories of all lengths: p-values (3,)."""
    theta = experiment.simulator.prior.sample((num_experiments,))
    x = experiment(theta)
    p_values = []
    for reduce in ("marginals", posterior.log_prob):
        ranks, draws = run_sbc(theta, x, posterior, num_samples, reduce_fns=reduce, show_progress_bar=False)
        ranks = ranks + torch.rand_like(ranks.float())  # ranks are whole numbers, the test wants a continuum
        p_values.append(check_sbc(ranks, theta, draws, num_samples + 1)["ks_pvals"])
    p_values = torch.cat(p_values)
    print("SBC p-values", p_values.tolist())
    return p_values


@pytest.fixture(scope="module")
def small():
    """Six fixed designs, lengths 1 to 6."""
    torch.manual_seed(0)
    simulator = LocationFinding()
    angles = torch.arange(5) * 2 * 2 * math.pi / 5
    designs = torch.cat([1.2 * torch.stack([angles.cos(), angles.sin()], -1), torch.zeros(1, 2)])
    experiment = PolicySimulator(simulator, StaticPolicy(simulator, 6, designs), horizon=6, min_trials=1)
    posterior = train_npe(experiment, 12_000, 24, embedding={"hidden_dim": 32}, num_components=8)
    return experiment, posterior


@pytest.mark.parametrize("num_trials", [6, 3], ids=["full", "half"])
def test_posterior_is_close_to_the_exact_one(small, num_trials):
    experiment, posterior = small
    x = shorten(experiment(experiment.simulator.prior.sample((200,))), num_trials)
    x = x[x[..., -1].sum(-1) == num_trials][:6]
    assert mean_c2st(posterior, experiment.simulator, x) < 0.65
    other = mean_c2st(posterior, experiment.simulator, x.roll(1, 0)) 
    assert other > 0.8


def test_ranks_are_uniform(small):
    assert sbc_p_values(small[1], small[0], 300).min() > 1e-3
