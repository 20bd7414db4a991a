"""Sequential Monte Carlo against closed forms: Gaussian, ring, two modes, Beta; thresholds are standard errors."""

import math

import pytest
import torch
from models import LinearGaussian
from scipy import stats
from torch.distributions import AffineTransform, Beta, Normal, SigmoidTransform
from torch.distributions.transforms import IndependentTransform, identity_transform

from sbi_bed.utils.smc import ParticleBelief, assimilate, rejuvenate

IDENTITY = IndependentTransform(identity_transform, 1)
TO_LOGIT = IndependentTransform(SigmoidTransform(), 1).inv


def within(values, exact, num_se=4.5):
    """Whether replicates (R, ...) average to `exact` within their standard error."""
    error = values.double().std(0) / math.sqrt(len(values))
    return bool(((values.double().mean(0) - exact).abs() <= num_se * error).all())


def normal_target(sd):
    return lambda theta: Normal(0.0, sd).log_prob(theta).sum(-1)


def linear_gaussian_exact(model, designs, outcomes):
    designs, outcomes = designs.double(), outcomes.double().squeeze(-1)
    precision = torch.eye(model.dim).double() + designs.T @ designs / model.noise_sd**2
    covariance = torch.linalg.inv(precision)
    marginal = designs @ designs.T + model.noise_sd**2 * torch.eye(len(designs)).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(designs)).double(), marginal).log_prob(outcomes)
    return covariance @ designs.T @ outcomes / model.noise_sd**2, covariance.diagonal().sqrt(), evidence


def test_a_batch_of_different_histories_gives_each_its_exact_posterior():
    model, num_runs, num_histories, num_trials = LinearGaussian(dim=2, noise_sd=0.2), 24, 3, 5
    designs = torch.rand(num_histories, num_trials, 2) * 2 - 1
    outcomes = model(torch.tensor([[0.0, 0.0], [1.5, -1.0], [-4.0, 3.0]]).unsqueeze(1), designs)
    belief = ParticleBelief.from_samples(model.prior.sample((num_runs, num_histories, 600)))
    for trial in range(num_trials):

        def log_target(theta, trial=trial):
            past = designs[:, None, :trial], outcomes[:, None, :trial]
            return model.prior.log_prob(theta) + model.log_likelihood(theta.unsqueeze(-2), *past).sum(-1)

        def log_likelihood(theta, trial=trial):
            return model.log_likelihood(theta, designs[:, None, trial], outcomes[:, None, trial])

        belief = assimilate(belief, log_likelihood, log_target, IDENTITY)
    for i in range(num_histories):
        mean, sd, evidence = linear_gaussian_exact(model, designs[i], outcomes[i])
        assert within(belief.mean()[:, i], mean)
        assert ((belief.stddev()[:, i].mean(0) / sd - 1).abs() < 0.03).all()  # sd has a bias of order 1 / N
        assert within((belief.log_evidence[:, i] - evidence).exp(), 1.0)  # the evidence itself is unbiased
        assert (belief.log_evidence[:, i].std() < 0.35).all()
    assert (belief.effective_sample_size > 250).all()


@pytest.mark.parametrize("width", [0.2, 0.02])
def test_a_ring(width):
    runs, radius = 16, 2.0

    def log_likelihood(theta):
        return -0.5 * ((theta.norm(dim=-1) - radius) / width).square()

    belief = ParticleBelief.from_samples(2 * torch.randn(runs, 800, 2))
    belief = assimilate(belief, log_likelihood, normal_target(2.0), IDENTITY)
    r = torch.linspace(1e-6, 12, 400_001).double()
    density = r / 4 * torch.exp(-(r**2) / 8 - 0.5 * ((r - radius) / width) ** 2)
    evidence = torch.trapezoid(density, r)
    assert within((belief.log_evidence - evidence.log()).exp(), 1.0)
    assert within(belief.mean(), 0.0)
    weights = belief.log_weights.exp()
    assert within((weights * belief.theta.norm(dim=-1)).sum(-1), torch.trapezoid(r * density, r) / evidence)
    assert (belief.effective_sample_size > 350).all()


def test_two_narrow_modes_keep_their_masses():
    runs, width = 24, 0.05

    def log_likelihood(theta):
        distance = (
            (theta - torch.tensor([-3.0, 2.0])).square().sum(-1),
            (theta - torch.tensor([3.0, 2.0])).square().sum(-1),
        )
        return torch.logaddexp(
            math.log(0.25) - distance[0] / (2 * width**2), math.log(0.75) - distance[1] / (2 * width**2)
        )

    belief = ParticleBelief.from_samples(3 * torch.randn(runs, 800, 2))
    belief = assimilate(belief, log_likelihood, normal_target(3.0), IDENTITY)
    share = (belief.log_weights.exp() * (belief.theta[..., 0] > 0)).sum(-1)
    assert within(share, 0.75) and share.std() < 0.1
    log_evidence = Normal(0.0, math.hypot(3, width)).log_prob(torch.tensor([3.0, 2.0]).double()).sum()
    assert within((belief.log_evidence - log_evidence - math.log(2 * math.pi * width**2)).exp(), 1.0)


def test_bounded_parameters_meet_the_jacobian():
    runs = 24

    def log_likelihood(theta):
        return (8 * theta.log() + 2 * torch.log1p(-theta)).sum(-1)

    def log_target(theta):
        return torch.zeros_like(theta[..., 0])

    belief = ParticleBelief.from_samples(torch.rand(runs, 600, 2))
    belief = assimilate(belief, log_likelihood, log_target, TO_LOGIT)
    log_evidence = 2 * (math.lgamma(9) + math.lgamma(3) - math.lgamma(12))
    assert within(belief.mean(), 0.75)
    assert within((belief.log_evidence - log_evidence).exp(), 1.0)
    assert belief.theta.min() > 0 and belief.theta.max() < 1


def test_rejuvenation_leaves_the_target_and_parts_the_copies():
    target = Beta(0.6, 3.0)
    log_target = lambda theta: target.log_prob(theta).sum(-1)  # noqa: E731
    exact = target.sample((4000, 1))
    moved = rejuvenate(ParticleBelief.from_samples(exact), log_target, TO_LOGIT, num_moves=10)
    changed = (moved.theta != exact).double().mean()
    assert changed > 0.9
    assert stats.kstest(moved.theta.flatten().numpy(), stats.beta(0.6, 3.0).cdf).pvalue > 1e-3
    copies = ParticleBelief.from_samples(exact[:400].repeat(10, 1))
    assert copies.effective_sample_size <= 400
    assert rejuvenate(copies, log_target, TO_LOGIT).effective_sample_size > 2500


def test_a_very_sharp_likelihood_and_units_far_from_one():
    sharpness = 1e9
    to_free = IndependentTransform(AffineTransform(torch.tensor([1000.0]), torch.tensor([50.0])), 1).inv
    prior = Normal(1000.0, 50.0)

    def log_likelihood(theta):
        return -0.5 * sharpness * ((theta[..., 0] - 930.0) / 1000).square()

    belief = ParticleBelief.from_samples(prior.sample((16, 500, 1)))
    belief = assimilate(belief, log_likelihood, lambda theta: prior.log_prob(theta).sum(-1), to_free)
    sd = 1000 / math.sqrt(sharpness)
    log_evidence = prior.log_prob(torch.tensor(930.0)).item() + math.log(math.sqrt(2 * math.pi) * sd)
    assert within((belief.log_evidence - log_evidence).exp(), 1.0)
    assert within(belief.mean(), 930.0)


def test_impossible_regions_and_impossible_data():
    half_line = lambda theta: torch.where(theta[..., 0] > 0, 0.0, -torch.inf)  # noqa: E731
    belief = ParticleBelief.from_samples(torch.randn(24, 500, 1))
    after = assimilate(belief, half_line, normal_target(1.0), IDENTITY)
    assert within(after.log_evidence.exp(), 0.5)
    assert within(after.mean(), math.sqrt(2 / math.pi))
    with pytest.raises(ValueError, match="no particle has a positive likelihood"):
        assimilate(belief, lambda theta: torch.full_like(theta[..., 0], -torch.inf), normal_target(1.0), IDENTITY)
    with pytest.raises(ValueError, match="must be finite or -inf, got nan"):
        assimilate(belief, lambda theta: theta[..., 0].log(), normal_target(1.0), IDENTITY)
    with pytest.raises(ValueError, match=r"log_likelihood returned shape \(24, 500, 1\)"):
        assimilate(belief, lambda theta: -theta.square(), normal_target(1.0), IDENTITY)
    with pytest.raises(ValueError, match="at least 4"):
        ParticleBelief.from_samples(torch.zeros(3, 2))


def test_an_easy_step_only_reweights_and_the_input_is_left_alone():
    belief = ParticleBelief.from_samples(torch.randn(2, 300, 1))
    before = belief.theta.clone()
    easy = assimilate(belief, lambda theta: -0.05 * theta[..., 0].square(), normal_target(1.0), IDENTITY)
    assert torch.equal(easy.theta, before) and easy.log_weights.std() > 0
    assert torch.allclose(easy.log_weights.logsumexp(-1), torch.zeros(2).double(), atol=1e-12)
    hard = lambda: assimilate(belief, lambda t: -50 * t[..., 0].square(), normal_target(1.0), IDENTITY)  # noqa: E731
    torch.manual_seed(3)
    first = hard()
    torch.manual_seed(3)
    assert torch.equal(first.theta, hard().theta)
    rejuvenate(belief, normal_target(1.0), IDENTITY)
    assert torch.equal(belief.theta, before)


def test_resampling_is_systematic_and_copies_count_once():
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]).double()
    theta = (torch.arange(4.0) + 0.5).reshape(1, 4, 1).expand(2, 4, 1)
    belief = ParticleBelief(theta, weights.log(), torch.zeros(2).double())
    drawn = belief.resample(1000).theta[..., 0]
    counts = (drawn.unsqueeze(-1) == torch.arange(4.0) + 0.5).sum(-2)
    assert (counts - 1000 * weights).abs().max() <= 1
    assert not torch.equal(drawn, drawn.sort(-1).values)
    assert torch.allclose(belief.effective_sample_size, 1 / weights.square().sum(-1))
    assert torch.allclose(belief.resample(1000).effective_sample_size, 1 / weights.square().sum(-1), rtol=0.02)
