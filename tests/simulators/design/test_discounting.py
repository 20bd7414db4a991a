"""Models of discounting: values of later money, link, lapse and priors as specified, finite gradients."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import (
    DesignSpace,
    ExponentialDiscounting,
    HyperbolicDiscounting,
    ModelMixture,
    PresentBiasedDiscounting,
    simulate_histories,
)


def draws(n):
    simulator = HyperbolicDiscounting()
    theta = simulator.prior.sample((n,)).double()
    return simulator, theta, simulator.design_space.sample((n,)).double()


def chance_of_later(theta: np.ndarray, design: np.ndarray) -> np.ndarray:
    k, noise = np.exp(theta[:, 0]), theta[:, 1]
    now, later = design[:, 0], 100 / (1 + k * design[:, 1])
    return 0.01 + 0.98 * stats.norm.cdf((later - now) / noise)


def test_likelihood_has_the_normal_link_and_the_lapse():
    simulator, theta, design = draws(500)
    p = torch.from_numpy(chance_of_later(theta.numpy(), design.numpy()))
    ones = torch.ones(500, 1).double()
    torch.testing.assert_close(simulator.log_likelihood(theta, design, ones).exp(), p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, 0 * ones).exp(), 1 - p, rtol=1e-12, atol=1e-12)


def test_probabilities_sum_to_one_and_never_fall_below_the_lapse():
    simulator, theta, design = draws(2000)
    one, zero = (simulator.log_likelihood(theta, design, torch.full((2000, 1), y).double()).exp() for y in (1.0, 0.0))
    torch.testing.assert_close(one + zero, torch.ones(2000).double(), rtol=1e-14, atol=1e-14)
    assert torch.minimum(one, zero).min() >= 0.01 - 1e-15
    single = simulator.log_likelihood(theta.float(), design.float(), torch.ones(2000, 1))
    torch.testing.assert_close(single.exp().double(), one, atol=2e-4, rtol=0)


def test_link_is_phi_not_erf():
    simulator = HyperbolicDiscounting()
    theta, design = (
        torch.tensor([math.log(0.01), 20.0], dtype=torch.float64),
        torch.tensor([30.0, 100.0], dtype=torch.float64),
    )
    # k D = 1: the later reward is worth 50, one noise unit above 30.
    expected = 0.01 + 0.98 * 0.8413447460685429
    assert float(simulator.log_likelihood(theta, design, torch.ones(1).double()).exp()) == pytest.approx(
        expected, rel=1e-12
    )


def test_choices_come_with_the_probabilities_of_the_likelihood():
    simulator, n = HyperbolicDiscounting(), 40_000
    for theta, design in [([-4.0, 10.0], [40.0, 60.0]), ([-2.0, 1.0], [99.0, 5.0]), ([-6.0, 30.0], [95.0, 10.0])]:
        choices = simulator(torch.tensor(theta).expand(n, 2), torch.tensor(design))
        assert set(choices.unique().tolist()) <= {0.0, 1.0}
        p = chance_of_later(np.array([theta]), np.array([design]))[0]
        assert abs(float(choices.mean()) - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_prior_is_the_one_in_the_docstring():
    theta = HyperbolicDiscounting().prior.sample((20_000,)).double().numpy()
    assert stats.kstest(theta[:, 0], stats.norm(-4.25, 1.5).cdf).pvalue > 1e-3
    assert stats.kstest(theta[:, 1], stats.halfnorm(scale=2).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(theta.T)[0, 1]) < 4 / math.sqrt(20_000)
    density = HyperbolicDiscounting().prior.log_prob(torch.tensor([[-4.0, 1.0]]))
    assert float(density) == pytest.approx(
        stats.norm(-4.25, 1.5).logpdf(-4.0) + stats.halfnorm(scale=2).logpdf(1.0), rel=1e-5
    )


def test_design_space_is_amounts_and_delays():
    space = HyperbolicDiscounting().design_space
    assert space.names == ("immediate_reward", "delay_days")
    designs = torch.tensor([[50.0, 1e-3], [50.0, 1e4], [-1.0, 5.0], [101.0, 5.0], [50.0, -1.0]])
    assert space.contains(designs).tolist() == [True, True, False, False, False]
    # Free coordinates of 0 are an even trade at the prior's typical discount rate: half the reward, exp(4.25) days.
    torch.testing.assert_close(space.from_free(torch.zeros(2)), torch.tensor([50.0, math.exp(4.25)]))


def test_gradients_are_finite_everywhere_and_alive_where_people_waver():
    simulator, theta, design = draws(4000)
    design = design.float().requires_grad_()
    value = simulator.log_likelihood(theta.float(), design, torch.randint(2, (4000, 1)).float())
    (gradient,) = torch.autograd.grad(value.sum(), design)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    wavering = simulator.scaled_preference(theta.float(), design).detach().abs() < 3
    assert wavering.any() and (gradient[wavering].abs() > 0).all()


def test_outcomes_are_discrete():
    simulator = HyperbolicDiscounting()
    assert simulator.discrete and not simulator.reparameterized
    assert simulator.check_outcome([1.0]).tolist() == [1.0]
    with pytest.raises(ValueError, match="outside the outcome space"):
        simulator.check_outcome([0.5])
    assert simulator.log_likelihood(torch.zeros(4, 1, 2) + 1, torch.ones(3, 2), torch.ones(1)).shape == (4, 3)


@pytest.mark.parametrize("kind", [HyperbolicDiscounting, ExponentialDiscounting, PresentBiasedDiscounting])
def test_questions_may_be_a_list(kind):
    questions = torch.tensor([[20.0, 7.0], [50.0, 30.0], [80.0, 365.0]])
    simulator = kind(design_space=questions)
    theta, x = simulate_histories(simulator, RandomPolicy(simulator), 20, 10, seed=0)
    assert {tuple(q) for q in x[..., :2].flatten(0, 1).tolist()} == {tuple(q) for q in questions.tolist()}
    free = kind().log_likelihood(theta.unsqueeze(1), x[..., :2], x[..., 2:3])
    assert torch.equal(simulator.log_likelihood(theta.unsqueeze(1), x[..., :2], x[..., 2:3]), free)
    assert kind(design_space=DesignSpace(candidates=questions, names=("now", "days"))).design_space.names == (
        "now",
        "days",
    )
    with pytest.raises(ValueError, match="design_space must have 2 values, got 1"):
        kind(design_space=torch.ones(4, 1))


def test_likelihood_follows_the_equation_of_exponential_discounting():
    simulator = ExponentialDiscounting(lapse=0.03)
    theta = simulator.prior.sample((500,)).double()
    design = simulator.design_space.sample((500,)).double()
    later = 100 * torch.exp(-theta[:, 0].exp() * design[:, 1])
    p = 0.03 + 0.94 * torch.from_numpy(stats.norm.cdf(((later - design[:, 0]) / theta[:, 1]).numpy()))
    ones = torch.ones(500, 1).double()
    torch.testing.assert_close(simulator.log_likelihood(theta, design, ones).exp(), p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, 0 * ones).exp(), 1 - p, rtol=1e-12, atol=1e-12)


def test_choices_come_with_the_probabilities_of_the_likelihood_of_exponential_discounting():
    simulator, theta, design = ExponentialDiscounting(), torch.tensor([-4.0, 10.0]), torch.tensor([30.0, 60.0])
    p = float(simulator.log_likelihood(theta, design, torch.ones(1)).exp())
    share = float(simulator(theta.expand(40_000, 2), design).mean())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 40_000)


def test_short_delays_are_discounted_as_hyperbolically_and_long_ones_more():
    theta = torch.tensor([math.log(0.01), 20.0]).double()
    for delay, difference in ((1.0, 0.0), (300.0, 1.0)):
        design = torch.tensor([10.0, delay]).double()
        gap = HyperbolicDiscounting().scaled_preference(theta, design) - ExponentialDiscounting().scaled_preference(
            theta, design
        )
        assert float(gap) == pytest.approx(difference * 5 * (1 / 4 - math.exp(-3)), abs=3e-4)


def test_gradients_are_finite_everywhere_of_exponential_discounting():
    simulator = ExponentialDiscounting()
    theta, design = simulator.prior.sample((4000,)), simulator.design_space.sample((4000,)).requires_grad_()
    value = simulator.log_likelihood(theta, design, torch.randint(2, (4000, 1)).float())
    (gradient,) = torch.autograd.grad(value.sum(), design)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def test_likelihood_follows_the_equation_of_present_biased_discounting():
    simulator = PresentBiasedDiscounting(lapse=0.03)
    theta = simulator.prior.sample((500,)).double()
    design = simulator.design_space.sample((500,)).double()
    later = 100 * theta[:, 2] * torch.exp(-theta[:, 0].exp() * design[:, 1])
    p = 0.03 + 0.94 * torch.from_numpy(stats.norm.cdf(((later - design[:, 0]) / theta[:, 1]).numpy()))
    ones = torch.ones(500, 1).double()
    torch.testing.assert_close(simulator.log_likelihood(theta, design, ones).exp(), p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(simulator.log_likelihood(theta, design, 0 * ones).exp(), 1 - p, rtol=1e-12, atol=1e-12)


def test_choices_come_with_the_probabilities_of_the_likelihood_of_present_biased_discounting():
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


def test_prior_is_the_one_in_the_docstring_of_present_biased_discounting():
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


@pytest.mark.parametrize("kind", [HyperbolicDiscounting, ExponentialDiscounting, PresentBiasedDiscounting])
def test_lapses_of_half_and_more_are_refused(kind):
    with pytest.raises(ValueError, match=r"lapse must lie in \[0, 0.5\)"):
        kind(lapse=0.5)
