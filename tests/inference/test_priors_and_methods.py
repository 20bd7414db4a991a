"""Every kind of prior with every way of sampling: the exact posterior within its error, or one clear error."""

import itertools
import math

import pytest
import torch
from models import linear_in
from priors import CONTINUOUS, DISCRETE, PRIORS, STANDARD, OwnNormal, joined, ones
from torch.distributions import (
    Bernoulli,
    Categorical,
    Dirichlet,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    Uniform,
)

from sbi_bed.inference import AdaptiveExperiment, likelihood_posterior, predictive_check
from sbi_bed.inference.posteriors.defensive_proposal import DefensiveProposal
from sbi_bed.policies import DeepSetsPolicy, GreedyPolicy, RandomPolicy, TransformerPolicy
from sbi_bed.simulators import DesignSimulator, ExponentialDiscounting, HyperbolicDiscounting, ModelMixture
from sbi_bed.simulators.base import prior_log_prob
from sbi_bed.utils import pack_history
from sbi_bed.utils.smc import ParticleBelief
from sbi_bed.utils.transforms import inside_support, to_unconstrained


def data_of(prior, seed=1):
    """A simulator y = θ · ξ + N(0, 1), and a history of six trials of one theta."""
    simulator = linear_in(prior)
    torch.manual_seed(seed)
    theta, designs = prior.sample((1,)), torch.randn(6, simulator.theta_dim)
    return simulator, pack_history(designs, simulator(theta, designs))


def by_prior_draws(simulator, history, num=200_000):
    """Posterior mean and sd (P,), log evidence, and the number of independent draws behind them."""
    torch.manual_seed(2)
    theta = simulator.prior.sample((num,))
    designs, outcomes = history[:, : simulator.design_dim], history[:, simulator.design_dim : -1]
    log_weights = sum(
        simulator.log_likelihood(theta, design, outcome) for design, outcome in zip(designs, outcomes, strict=True)
    ).double()
    weights = log_weights.softmax(0)
    mean = weights @ theta.double()
    sd = (weights @ (theta.double() - mean).square()).sqrt()
    return mean, sd, float(log_weights.logsumexp(0) - math.log(num)), float(1 / weights.square().sum())


@pytest.mark.parametrize(
    ("name", "sample_with"), [pair for pair in itertools.product(PRIORS, ("smc", "importance", "mcmc"))]
)
def test_the_posterior_is_right_or_refused(name, sample_with):
    simulator, history = data_of(PRIORS[name])
    options = {"num_chains": 20, "warmup_steps": 5} if sample_with == "mcmc" else {}
    if sample_with == "mcmc" and name in DISCRETE:
        with pytest.raises(ValueError, match="theta is discrete in part; use 'smc' or 'importance'"):
            likelihood_posterior(simulator, history, sample_with)
        return
    mean, sd, log_evidence, known = by_prior_draws(simulator, history)
    posterior = likelihood_posterior(simulator, history, sample_with, seed=0, num_particles=2000, **options)
    torch.manual_seed(3)
    num = 100 if sample_with == "mcmc" else 1000
    theta = posterior.sample((num,))
    # Draws share ancestors, candidates or chains: they are worth fewer than their number.
    worth = min(num, posterior.effective_sample_size) / 2
    # A value that hardly any draw has comes once now and then: that moves the mean by 1 / worth (Bernstein's inequality).
    least = worth**-0.5 if name in DISCRETE else 1e-3
    error = sd.clamp_min(least) * math.sqrt(1 / worth + 1 / known)
    assert ((theta.mean(0) - mean).abs() < 5 * error).all()
    assert abs(posterior.log_evidence - log_evidence) < 5 * math.sqrt(20 / 2000 + 1 / known)
    assert inside_support(simulator.prior, theta).all() and torch.isfinite(posterior.log_prob(theta)).all()


@pytest.mark.parametrize("sample_with", ["smc", "importance"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_coin_and_a_normal_have_the_probability_of_the_closed_form(sample_with, share):
    """θ = (b, μ): y = b ξ_1 + μ ξ_2 + N(0, 1). Given b all is normal, so that p(b | h) and p(h) have closed forms."""
    simulator, history = data_of(joined(Bernoulli(share * ones(1)), STANDARD), seed=4)
    designs, outcomes = history[:, :2].double(), history[:, 2].double()
    covariance = torch.eye(6).double() + designs[:, 1:] @ designs[:, 1:].T
    of_each = [MultivariateNormal(b * designs[:, 0], covariance).log_prob(outcomes) for b in (0, 1)]
    log_joint = torch.stack([of_each[0] + math.log(1 - share), of_each[1] + math.log(share)])
    exact = float(log_joint.softmax(0)[1])
    posterior = likelihood_posterior(simulator, history, sample_with, seed=0)
    found = float(posterior.sample((4000,))[:, 0].mean())
    assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / 1000)
    assert abs(posterior.log_evidence - float(log_joint.logsumexp(0))) < 5 * math.sqrt(20 / 4096)


@pytest.mark.parametrize("sample_with", ["smc", "importance"])
def test_counts_have_the_probabilities_of_their_list(sample_with):
    simulator = linear_in(Independent(Poisson(torch.tensor([4.0])), 1))
    history = pack_history(0.5 * torch.ones(3, 1), torch.tensor([[3.0], [4.0], [2.5]]))
    counts = torch.arange(60.0).unsqueeze(-1)
    log_joint = simulator.prior.log_prob(counts) + simulator.log_likelihood(
        counts.unsqueeze(1), history[:, :1], history[:, 1:2]
    ).sum(-1)
    exact = log_joint.double().softmax(0)
    posterior = likelihood_posterior(simulator, history, sample_with, seed=0)
    theta = posterior.sample((4000,)).long().squeeze(-1)
    found = torch.bincount(theta, minlength=60) / 4000
    assert ((found - exact).abs() < 5 * (exact * (1 - exact) / 1000).sqrt() + 1e-3).all()
    assert abs(posterior.log_evidence - float(log_joint.double().logsumexp(0))) < 5 * math.sqrt(20 / 4096)
    assert torch.allclose(posterior.log_prob(counts[3:12]).double().exp(), exact[3:12], rtol=0.3)


def test_probabilities_have_the_posterior_of_the_conjugate_prior():
    """Dirichlet probabilities of three answers: the posterior adds the counts."""
    prior = Dirichlet(torch.tensor([1.0, 2.0, 3.0]))
    simulator = DesignSimulator(
        prior,
        lambda theta, design: (
            Categorical(theta.expand(*torch.broadcast_shapes(theta.shape[:-1], design.shape[:-1]), 3))
            .sample()
            .unsqueeze(-1)
            .float()
        ),
        torch.zeros(1, 1),
        log_likelihood=lambda theta, design, y: (
            theta.clamp_min(1e-30)
            .log()
            .expand(*torch.broadcast_shapes(theta.shape[:-1], y.shape[:-1]), 3)
            .gather(-1, y.long().expand(*torch.broadcast_shapes(theta.shape[:-1], y.shape[:-1]), 1))
            .squeeze(-1)
        ),
        outcome_space=torch.distributions.constraints.integer_interval(0, 2),
    )
    answers = torch.tensor([0, 0, 1, 2, 2, 2, 2, 0, 2, 1]).unsqueeze(-1)
    history = pack_history(torch.zeros(10, 1), answers.float())
    exact = Dirichlet(torch.tensor([4.0, 4.0, 8.0]))
    for sample_with in ("smc", "importance"):
        posterior = likelihood_posterior(simulator, history, sample_with, seed=0)
        theta = posterior.sample((2000,))
        assert ((theta.mean(0) - exact.mean).abs() < 5 * exact.stddev / math.sqrt(500)).all()
        density = exact.log_prob(theta)
        assert (posterior.log_prob(theta) - density).abs().max() < 0.3  # all of it the error of the evidence
    report = posterior.report
    assert 0 <= report.check.surprise_p_value <= 1


def test_a_mixture_of_models_by_draws_of_its_prior():
    mixture = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()])
    torch.manual_seed(3)
    theta, designs = mixture.prior.sample((1,)), mixture.design_space.sample((6,))
    history = pack_history(designs, mixture(theta, designs))
    mean, _, log_evidence, known = by_prior_draws(mixture, history)
    share = float(mean[0])
    for sample_with in ("smc", "importance"):
        posterior = likelihood_posterior(mixture, history, sample_with, seed=0)
        found = float(posterior.sample((2000,))[:, 0].mean())
        worth = min(posterior.effective_sample_size, 2000) / 2
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) * (1 / worth + 1 / known)) + 0.01
        assert abs(posterior.log_evidence - log_evidence) < 5 * math.sqrt(20 / 4096 + 1 / known)


@pytest.mark.parametrize("name", PRIORS)
def test_policies_and_live_runs_take_the_prior(name):
    simulator, _ = data_of(PRIORS[name])
    greedy = GreedyPolicy(simulator, num_particles=256, num_candidates=8, num_inner=32, num_outer=16)
    for policy in (DeepSetsPolicy(simulator), TransformerPolicy(simulator, 3), RandomPolicy(simulator), greedy):
        experiment = AdaptiveExperiment(policy, simulator, 3, seed=0)
        torch.manual_seed(0)
        theta = simulator.prior.sample()
        while not experiment.done:
            experiment.record(simulator(theta, experiment.next_design()))
        draws = experiment.posterior(num_particles=200).sample((50,))
        assert draws.shape == (50, simulator.theta_dim) and inside_support(simulator.prior, draws).all()
    check = predictive_check(simulator, experiment.history, num_particles=200, num_replicates=20, seed=0)
    assert 0 <= check.prior_conflict_p_value <= 1


@pytest.mark.parametrize("name", CONTINUOUS)
def test_coordinates_go_there_and_back_with_the_right_volume(name):
    prior = CONTINUOUS[name]
    torch.manual_seed(0)
    transform, theta = to_unconstrained(prior), prior.sample((20,))
    free = transform(theta)
    torch.testing.assert_close(transform.inv(free), theta, rtol=1e-3, atol=1e-4)
    assert inside_support(prior, transform.inv(3 * torch.randn(50, transform.free_dim))).all() or "own" in name
    kept = [i for i in range(transform.theta_dim) if not (name.startswith("dirichlet") and i == 2)]
    for u, value in zip(free.double(), transform.log_abs_det_jacobian(theta, free), strict=True):
        inverse = torch.autograd.functional.jacobian(lambda v: transform.inv(v.unsqueeze(0))[0, kept], u)
        assert float(-torch.linalg.slogdet(inverse)[1]) == pytest.approx(float(value), abs=2e-3)


@pytest.mark.parametrize("name", PRIORS)
def test_a_proposal_integrates_to_one(name):
    """E_p[q(θ) / p(θ)] = 1, for a proposal q adapted to draws of the prior p; its share of p bounds p / q."""
    prior = PRIORS[name]
    torch.manual_seed(0)
    proposal = DefensiveProposal(
        ParticleBelief.from_samples(prior.sample((1000,))), prior, to_unconstrained(prior, keep_discrete=True)
    )
    theta = proposal.sample((4000,))
    ratio = (prior_log_prob(prior, theta) - proposal.log_prob(theta)).double().exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(4000) and ratio.max() < 10.01


class Batch(OwnNormal):
    def log_prob(self, theta):
        return Normal(0.0, 1.0).log_prob(theta)


class Contradicting(OwnNormal):
    def log_prob(self, theta):
        return torch.full_like(theta[..., 0], -torch.inf)


class InDoubles(OwnNormal):
    def sample(self, sample_shape=()):
        return [0.0, 1.0]


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (Batch(), ValueError, "prior.log_prob must return one value for each theta"),
        (Contradicting(), ValueError, "sample and log_prob do not agree"),
        (InDoubles(), TypeError, r"prior.sample\(\) must return a tensor"),
        (Independent(Categorical(ones(2, 3)), 1), TypeError, "draws must be floating-point numbers"),
        (Uniform(torch.zeros(2), ones(2)), ValueError, "one distribution over vectors"),
        (MixtureSameFamily(Categorical(ones(2)), Normal(torch.zeros(2), ones(2))), ValueError, "over vectors"),
        ("normal", TypeError, "prior must be a distribution with sample and log_prob"),
    ],
)
def test_priors_that_cannot_serve_are_refused_at_once(prior, error, message):
    with pytest.raises(error, match=message):
        linear_in(prior)
