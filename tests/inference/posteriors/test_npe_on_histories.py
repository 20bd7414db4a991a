"""NPE trained on histories against exact posteriors, at the full length, at half of it, and over all lengths (SBC)."""

import copy
import math
import pickle

import pytest
import torch
from reference import grid_posterior
from sbi.diagnostics import check_sbc, run_sbc
from sbi.inference import NPE, simulate_for_sbi
from sbi.neural_nets import posterior_nn
from sbi.utils.metrics import c2st
from torch.nn.functional import pad

from sbi_bed.inference import DAD
from sbi_bed.neural_nets.embedding_nets.history import HistoryEmbedding
from sbi_bed.policies import RandomPolicy, StaticPolicy
from sbi_bed.simulators import LocationFinding, PolicySimulator
from sbi_bed.utils import pack_history

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


def observe(experiment, num_trials, num_experiments):
    """Histories of `num_trials` trials, padded to the horizon as for an experiment that is still running."""
    full = PolicySimulator(experiment.simulator, experiment.policy, experiment.horizon)
    x = full(experiment.simulator.prior.sample((num_experiments,)))
    return x * (torch.arange(experiment.horizon) < num_trials).unsqueeze(-1)


def mean_c2st(posterior, simulator, x, x_exact=None, num_samples=1000):
    """Mean over histories of the accuracy with which a classifier tells the posterior's draws from exact ones."""
    x_exact = x if x_exact is None else x_exact
    exact = [grid_posterior(simulator, history, BOUNDS).sample(num_samples) for history in x_exact]
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
    posterior = train_npe(experiment, 20_000, 21, embedding={"hidden_dim": 32}, num_components=8)
    return experiment, posterior


@pytest.mark.parametrize("num_trials", [6, 3], ids=["full", "half"])
def test_posterior_is_close_to_the_exact_one(small, num_trials):
    """Twenty seconds of training do not reach 0.6 for each history; `test_ten_trials` asks for that."""
    experiment, posterior = small
    x = observe(experiment, num_trials, 8)
    assert mean_c2st(posterior, experiment.simulator, x, num_samples=500) < 0.68
    # What the classifier can tell: the posterior of another history.
    assert mean_c2st(posterior, experiment.simulator, x[:1], x_exact=x[1:2], num_samples=500) > 0.75


def test_ranks_are_uniform(small):
    assert sbc_p_values(small[1], small[0], 300).min() > 1e-3


def test_every_form_of_a_history_that_sbi_takes_gives_the_same_posterior(small):
    experiment, posterior = small
    x = observe(experiment, 3, 5)
    x_o, theta = x[0], experiment.simulator.prior.sample((7,))
    log_prob = posterior.log_prob(theta, x=x_o)
    torch.testing.assert_close(posterior.log_prob(theta, x=x_o.unsqueeze(0)), log_prob)
    shuffled = x_o[torch.tensor([5, 1, 4, 0, 3, 2])]
    torch.testing.assert_close(posterior.log_prob(theta, x=shuffled), log_prob, rtol=1e-4, atol=1e-4)
    repacked = pack_history(x_o[:3, :2], x_o[:3, 2:3], horizon=experiment.horizon)
    assert torch.equal(posterior.log_prob(theta, x=repacked), log_prob)
    batched = posterior.log_prob_batched(theta[:1].expand(1, 5, 2), x)
    torch.testing.assert_close(batched[0, 0], log_prob[0], rtol=1e-4, atol=1e-3)
    copied = pickle.loads(pickle.dumps(posterior))
    torch.testing.assert_close(copied.log_prob(theta, x=x_o), log_prob)


@pytest.mark.parametrize("change", [lambda x: x[:, :3], lambda x: pad(x, (0, 0, 0, 2))], ids=["shorter", "longer"])
def test_another_number_of_rows_is_an_error_and_never_a_wrong_answer(small, change):
    experiment, posterior = small
    x = change(observe(experiment, 3, 2))
    theta = torch.zeros(1, 2)
    calls = [
        lambda: posterior.sample((3,), x=x[0], show_progress_bars=False),
        lambda: posterior.sample_batched((3,), x=x, show_progress_bars=False),
        lambda: posterior.log_prob(theta, x=x[0]),
        lambda: copy.deepcopy(posterior).set_default_x(x[0]).map(num_iter=2, num_to_optimize=2),
    ]
    for call in calls:
        with pytest.raises((RuntimeError, ValueError), match="shape"):
            call()


def test_map_finds_the_mode(small):
    experiment, posterior = small
    x_o = observe(experiment, 6, 1)
    best = copy.deepcopy(posterior).set_default_x(x_o).map(num_iter=200, num_to_optimize=20, num_init_samples=200)
    draws = posterior.sample((500,), x=x_o, show_progress_bars=False)
    assert posterior.log_prob(best, x=x_o) >= posterior.log_prob(draws, x=x_o).max() - 0.01


def test_workers_simulate_histories():
    simulator = LocationFinding()
    experiment = PolicySimulator(simulator, RandomPolicy(simulator), horizon=3, min_trials=1)
    theta, x = simulate_for_sbi(
        experiment, simulator.prior, 40, num_workers=2, simulation_batch_size=10, seed=0, show_progress_bar=False
    )
    assert theta.shape == (40, 2) and x.shape == (40, 3, 4) and x.dtype == torch.float32
    assert len(x[:, 0, 0].unique()) == 40 and set(x[..., -1].sum(-1).tolist()) == {1.0, 2.0, 3.0}
    assert torch.isfinite(HistoryEmbedding(simulator)(x)).all()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("policy", "num_simulations", "epochs", "at_full_length"),
    [("random", 400_000, 6, 0.6), ("adaptive", 100_000, 24, 0.75)],
    ids=["random", "adaptive"],
)
def test_ten_trials(policy, num_simulations, epochs, at_full_length):
    """Random designs from N(0, I): 0.560 at 10 trials and 0.549 at 5 (about 200 s on one core).

    A trained policy: 0.684 and 0.544. At full length its posteriors are some 0.02 wide inside a prior of width 1, which
    this budget does not resolve to 0.6; the limit is what was measured, not what is wanted.
    """
    torch.manual_seed(0)
    simulator = LocationFinding()
    designs = RandomPolicy(simulator)
    if policy == "adaptive":
        designs = DAD(simulator, 10, show_progress_bars=False).train(2000, 256, 255, 1e-3, seed=0)
    experiment = PolicySimulator(simulator, designs, horizon=10, min_trials=1)
    posterior = train_npe(experiment, num_simulations, epochs, num_components=12, hidden_features=64)
    torch.manual_seed(5)
    for num_trials, limit in ((10, at_full_length), (5, 0.6)):
        assert mean_c2st(posterior, simulator, observe(experiment, num_trials, 16)) <= limit
    assert sbc_p_values(posterior, experiment, 400).min() > 1e-3
