"""Contrastive samples near the truth: unbiased for the evidence, and better where the gain is large."""

import math

import pytest
import torch
from models import LinearGaussian

from sbi_bed.objectives import LocalProposal, log_likelihood_of_history, log_sum_likelihood
from sbi_bed.simulators import ConstantElasticity, HyperbolicDiscounting, LocationFinding


@pytest.mark.parametrize("simulator", [LocationFinding(2), HyperbolicDiscounting(), ConstantElasticity()])
def test_weights_have_mean_one_and_are_bounded(simulator):
    torch.manual_seed(0)
    theta = simulator.prior.sample((50,))
    contrastive, log_weights = LocalProposal(simulator.prior).sample(theta, 4000)
    assert contrastive.shape == (4000, 50, simulator.theta_dim) and log_weights.shape == (4000, 50)
    weights = log_weights.exp()
    assert float(weights.max()) <= 2 + 1e-3
    # The wide half is shared by all 50: the error is that of 4,000 draws, not of 200,000.
    stderr = float(weights.std()) / math.sqrt(4000)
    assert abs(float(weights.mean()) - 1) < 4 * stderr
    assert torch.isfinite(contrastive).all()


def test_the_evidence_is_unbiased_and_much_closer_where_the_data_are_sharp():
    simulator = LinearGaussian(noise_sd=0.01)
    torch.manual_seed(1)
    theta = simulator.prior.sample((400,))
    designs = torch.ones(400, 4, 1)
    outcomes = simulator(theta.unsqueeze(1), designs)
    precision = 1 + 4 / 0.01**2
    mean = outcomes.sum(1) / 0.01**2 / precision
    own = log_likelihood_of_history(simulator, theta, designs, outcomes).sum(-1)
    posterior = torch.distributions.Normal(mean, precision**-0.5)
    exact = own + simulator.prior.log_prob(theta) - posterior.log_prob(theta).squeeze(-1)
    local = LocalProposal(simulator.prior, smallest_scale=0.001)
    ratios = []
    for _ in range(30):  # histories share what is drawn
        errors = {}
        for name, (samples, log_weights) in {
            "prior": (simulator.prior.sample((256,)), None),
            "local": local.sample(theta, 256),
        }.items():
            estimate = log_sum_likelihood(simulator, samples, designs, outcomes, log_weights) - math.log(256)
            errors[name] = (estimate - exact).clamp(-20, 20)
        ratios.append(errors["local"].exp().mean())
    ratio = torch.stack(ratios)
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 30**0.5 < 0.2
    # All histories share the prior's draws. About 256 / 125 of them fall within a posterior sd: errors of a nat or more.
    assert float(errors["local"].abs().mean()) < 0.3 < 1 < float(errors["prior"].abs().mean())


def test_scales_are_checked():
    with pytest.raises(ValueError, match="smallest_scale must lie in"):
        LocalProposal(LinearGaussian().prior, smallest_scale=0.0)
