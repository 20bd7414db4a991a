"""Predictive checks: uniform under the model, small where the prior or the likelihood is wrong."""

import math

import pytest
import torch
from models import LinearGaussian, YesNo
from sbi.utils import BoxUniform, mcmc_transform
from scipy import stats

from sbi_bed.inference.posteriors.predictive_check import WidenedPrior, predictive_check
from sbi_bed.simulators import LocationFinding
from sbi_bed.utils.history import pack_history

FAST = {"num_particles": 400, "num_replicates": 150}


def checks(model, truth, num, num_trials, adaptive=False, **settings):
    """Checks of `num` histories simulated by `truth`, a callable () -> (theta, simulator)."""
    results = []
    for _ in range(num):
        theta, simulator = truth()
        designs, outcomes = [], []
        for _ in range(num_trials):
            design = 0.7 * torch.randn(simulator.design_dim)
            if adaptive and outcomes:
                design = design + outcomes[-1].log1p()  # moves on where much was seen
            designs.append(design)
            outcomes.append(simulator(theta, design))
        history = pack_history(torch.stack(designs), torch.stack(outcomes))
        results.append(predictive_check(model, history, **{**FAST, **settings}))
    return results


@pytest.mark.parametrize(("model", "num"), [(LocationFinding(), 40), (YesNo(dtype=torch.float32), 40)])
def test_uniform_under_the_model_whatever_chose_the_designs(model, num):
    adaptive = isinstance(model, LocationFinding)
    results = checks(model, lambda: (model.prior.sample(), model), num, num_trials=5, adaptive=adaptive)
    for name in ("trial_surprise", "trial_prior_conflict"):
        values = torch.stack([getattr(result, name) for result in results])
        assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
        scores = torch.special.ndtri(values)
        independence = (scores[:, 1:] * scores[:, :-1]).sum(-1)
        assert abs(independence.mean()) < 4.5 * independence.std() / math.sqrt(num)
    for name in ("surprise_p_value", "prior_conflict_p_value"):
        p_values = [getattr(result, name) for result in results]
        assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    deviance = torch.tensor([result.deviance_p_value for result in results])
    assert (deviance < 0.05).double().mean() < 0.12  # conservative, not uniform


def test_only_prior_conflict_notices_a_misplaced_prior():
    model = LocationFinding()
    results = checks(model, lambda: (model.prior.sample() + 3, model), num=16, num_trials=10)
    assert sum(result.prior_conflict_p_value < 0.05 for result in results) >= 11  # nine in ten
    assert sum(result.deviance_p_value < 0.05 for result in results) <= 5
    gaussian, far = LinearGaussian(dim=1, noise_sd=0.5), torch.tensor([8.0])
    results = checks(gaussian, lambda: (far, gaussian), num=5, num_trials=4)
    assert sorted(result.prior_conflict_p_value for result in results)[2] < 0.02  # some designs show nothing


def test_the_others_notice_a_wrong_likelihood():
    model, noisy = LocationFinding(), LocationFinding()
    noisy.noise_sd = 1.5
    results = checks(model, lambda: (model.prior.sample(), noisy), num=16, num_trials=8)
    # Of 48 results, 43 and 41 are below .05: fewer than nine of 16 come once in a thousand.
    assert sum(result.deviance_p_value < 0.05 for result in results) >= 9
    assert sum(result.surprise_p_value < 0.05 for result in results) >= 9


def test_the_wider_prior_is_what_it_says():
    model = LinearGaussian(dim=2)
    wide = WidenedPrior(model.prior, mcmc_transform(model.prior), factor=3.0)
    theta = wide.sample((20_000,))
    assert ((theta.std(0) / 3 - 1).abs() < 4.5 / math.sqrt(40_000)).all()
    exact = torch.distributions.Normal(-2 * wide._mean, 3.0).log_prob(theta).sum(-1)
    assert torch.allclose(wide.log_prob(theta), exact, atol=1e-4)
    box = BoxUniform(torch.tensor([-1.0]), torch.tensor([3.0]))
    bounded = WidenedPrior(box, mcmc_transform(box))
    middle = bounded._mean.double()

    def cdf(x):  # a uniform is logistic in logit space, where the stretch takes place
        logit = torch.logit((torch.as_tensor(x).double() + 1) / 4)
        return torch.sigmoid(middle + (logit - middle) / 3).numpy()

    assert stats.kstest(bounded.sample((4000,)).flatten().numpy(), cdf).pvalue > 1e-3
    points = torch.linspace(-0.9, 2.9, 39).double()
    slope = torch.tensor((cdf(points + 1e-4) - cdf(points - 1e-4)) / 2e-4)
    assert torch.allclose(bounded.log_prob(points.float().unsqueeze(-1)).exp().double(), slope, rtol=1e-3)


def test_seeds_and_settings():
    model = LinearGaussian(dim=1)
    history = pack_history(torch.rand(4, 1), torch.randn(4, 1), horizon=6)
    first, again = (predictive_check(model, history, seed=3, **FAST) for _ in range(2))
    assert first.trial_surprise.shape == (4,) and torch.equal(first.trial_surprise, again.trial_surprise)
    assert first.prior_conflict_p_value == again.prior_conflict_p_value
    with pytest.raises(ValueError, match="num_replicates must be at least 10, got 3"):
        predictive_check(model, history, num_replicates=3)
