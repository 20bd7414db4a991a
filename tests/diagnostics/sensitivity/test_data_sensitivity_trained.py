"""Data sensitivity of trained nets: shifts within 15 % of exact ones with varying sizes, and a warning without."""

import warnings

import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_bed.diagnostics import data_sensitivity
from sbi_bed.diagnostics.sensitivity.data_sensitivity import bootstrap_data, leave_one_out_data
from sbi_bed.inference import ContextNPE
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import PowerScaledPrior, simulate_with_context
from sbi_bed.utils import seeded

PRIOR = PowerScaledPrior(Independent(Normal(torch.zeros(1), torch.ones(1)), 1))
GROUPS, OBSERVATIONS = 1, 12
CONTEXT = torch.ones(1)


def simulator(theta):
    """θ ~ N(0, 1), observations N(θ, 1), all there."""
    values = theta[:, None, None] + torch.randn(len(theta), GROUPS, OBSERVATIONS, 1)
    return torch.cat([values, torch.ones_like(values)], -1)


def exact_mean(x):
    values, mask = x[..., 0].flatten(1), x[..., 1].flatten(1)
    return (values * mask).sum(-1) / (1 + mask.sum(-1))


def train(num, epochs, **settings):
    simulations = simulate_with_context(simulator, PRIOR, num, seed=0)
    net = HierarchicalEmbedding(1, output_dim=8)
    trainer = ContextNPE(
        PRIOR, embedding_net=net, show_progress_bars=False, num_transforms=2, hidden_features=32
    ).append_simulations(*simulations)
    trainer.train(max_num_epochs=epochs, learning_rate=2e-3, seed=0, **settings)
    return trainer.build_posterior()


def test_a_net_trained_on_complete_data_says_so_once():
    posterior = train(400, 1, vary_sizes=False)
    with seeded(0):
        x = simulator(torch.zeros(1, 1))[0]
    with pytest.warns(RuntimeWarning, match="observations per group: .*trained on 12") as caught:
        found = data_sensitivity(posterior, x, num_samples=50, context=CONTEXT, seed=0)
    assert len(caught) == 1
    assert "trained on 12" in found.sizes and "their shifts are guesses" in str(found)
    varied = train(400, 1, vary_sizes=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = data_sensitivity(varied, x, num_samples=50, context=CONTEXT, seed=0)
    assert found.sizes == "" and found.sizes_are_known and "guesses" not in str(found)
    assert len(found.to_dataframe()) == 200 + 12 + 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shifts_of_a_net_with_varying_sizes_are_within_15_percent():
    posterior, num_samples = train(20_000, 15, vary_sizes=True), 4000
    exact_sd = (1 + OBSERVATIONS) ** -0.5
    ratios = {"leave one out": [], "bootstrap": []}
    for seed in range(4):
        with seeded(seed):
            x = simulator(torch.randn(1, 1))[0]
        found = data_sensitivity(
            posterior, x, num_bootstrap=200, num_missing=0, num_samples=num_samples, context=CONTEXT, seed=seed
        )
        with seeded(seed):
            variants = {"leave one out": leave_one_out_data(x), "bootstrap": bootstrap_data(x, 200)}
        for kind, data in variants.items():
            exact = (exact_mean(data) - exact_mean(x.unsqueeze(0))) / exact_sd
            root_mean_square = found.root_mean_squares[kind]
            ratios[kind].append(float(root_mean_square / exact.square().mean().sqrt()))
    assert all(abs(ratio - 1) < 0.15 for each in ratios.values() for ratio in each), ratios
