"""Present-biased discounting: its value of later money, exponential without the bias, its prior, finite gradients."""

import math

import pytest
import torch
from scipy import stats

from sbi_bed.simulators import ExponentialDiscounting, ModelMixture, PresentBiasedDiscounting


def test_likelihood_follows_the_equation():
    simulator = PresentBiasedDiscounting(lapse=0.03)
    theta = simulator.prior.sample((500,)).double()
    design = simulator.design_space.sample((500,)).double()
    later = 100 * theta[:, 2] * torch.exp(-theta[:, 0].exp() * design[:, 1])
    p = 0.03 + 0.94 * torch.from_numpy(stats.norm.cdf(((later - design[:, 0]) / theta[:, 1]).numpy()))
    ones = torch.ones(500, 1).double()
    torch.testing.assert_close(simulator.log_likelihood(theta, design, ones).exp(), p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, 0 * ones).exp(), 1 - p, rtol=1e-12, atol=1e-12)


def test_choices_come_with_the_probabilities_of_the_likelihood():
    simulator, theta, design = PresentBiasedDiscounting(), torch.tensor([-4.0, 10.0, 0.7]), torch.tensor([25.0, 60.0])
    p = float(simulator.log_likelihood(theta, design, torch.ones(1)).exp())
    share = float(simulator(theta.expand(40_000, 3), design).mean())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 40_000)


def test_without_bias_it_is_exponential():
    theta, design = (
        PresentBiasedDiscounting().prior.sample((200,)),
        ExponentialDiscounting().design_space.sample((200,)),
    )
    unbiased = torch.cat([theta[:, :2], torch.ones(200, 1)], -1)
    torch.testing.assert_close(
        PresentBiasedDiscounting().scaled_preference(unbiased, design),
        ExponentialDiscounting().scaled_preference(theta[:, :2], design),
    )


def test_prior_is_the_one_in_the_docstring():
    torch.manual_seed(0)
    theta = PresentBiasedDiscounting().prior.sample((20_000,)).double().numpy()
    known = stats.norm(-4.25, 1.5), stats.halfnorm(scale=2), stats.beta(4, 1)
    for column, distribution in zip(theta.T, known, strict=True):
        assert stats.kstest(column, distribution.cdf).pvalue > 1e-3
    density = PresentBiasedDiscounting().prior.log_prob(torch.tensor([[-4.0, 1.0, 0.8]]))
    expected = sum(d.logpdf(value) for d, value in zip(known, (-4.0, 1.0, 0.8), strict=True))
    assert float(density) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_finite_everywhere_also_in_a_mixture_with_a_model_of_fewer_parameters():
    mixture = ModelMixture([ExponentialDiscounting(), PresentBiasedDiscounting()])
    for simulator, dim in ((PresentBiasedDiscounting(), 3), (mixture, 4)):
        theta, design = simulator.prior.sample((4000,)), simulator.design_space.sample((4000,)).requires_grad_()
        assert theta.shape == (4000, dim)
        value = simulator.log_likelihood(theta, design, torch.randint(2, (4000, 1)).float())
        (gradient,) = torch.autograd.grad(value.sum(), design)
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def test_lapses_of_half_and_more_are_refused():
    with pytest.raises(ValueError, match=r"lapse must lie in \[0, 0.5\)"):
        PresentBiasedDiscounting(lapse=0.5)
