"""Evidences from posteriors: exact where the posterior is, unbiased by importance where it is not."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from sbi_bed.diagnostics import compare_evidence_routes
from sbi_bed.inference import PosteriorEvidence, posterior_evidence

NUM = 5  # observations


class Gaussian:
    """x_i ~ N(θ, 1), θ ~ N(0, s²); q(θ | x) is its posterior, widened and shifted."""

    def __init__(self, sd=1.0, widen=1.0, shift=0.0):
        self.sd, self.widen, self.shift = sd, widen, shift
        self.prior = Independent(Normal(torch.zeros(1), sd * torch.ones(1)), 1)

    def log_likelihood(self, theta, x):
        return Normal(theta, 1.0).log_prob(x).sum(-1)

    def exact(self, x):
        covariance = self.sd**2 * torch.ones(NUM, NUM) + torch.eye(NUM)
        return MultivariateNormal(torch.zeros(NUM).double(), covariance.double()).log_prob(x.double())

    def _q(self, x):
        precision = 1 / self.sd**2 + NUM
        mean = x.sum(-1, keepdim=True) / precision + self.shift
        return Independent(Normal(mean, self.widen * precision**-0.5), 1)

    def sample_batched(self, shape, x, show_progress_bars=False):
        return self._q(x).sample(shape)

    def log_prob_batched(self, theta, x):
        return self._q(x).log_prob(theta)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(300, 1) + torch.randn(300, NUM)


@pytest.mark.parametrize("method", ["importance", "identity"])
def test_an_exact_posterior_gives_the_exact_evidence_whatever_the_draws(x, method):
    model = Gaussian()
    found = posterior_evidence(model, model.log_likelihood, model.prior, x, 10, method, 1, seed=0)
    torch.testing.assert_close(found.log_evidence, model.exact(x), atol=1e-4, rtol=0)
    assert found.stderr.max() < 1e-4 and found.effective_sample_size.min() > 9.999


def test_a_poor_posterior_is_mended_by_importance_and_seen_in_the_spread(x):
    model = Gaussian(widen=1.5, shift=0.3)
    weighted, identity = (
        posterior_evidence(model, model.log_likelihood, model.prior, x, 4000, method, 1, seed=0)
        for method in ("importance", "identity")
    )
    error = (weighted.log_evidence - model.exact(x)) / weighted.stderr
    assert abs(float(error.mean())) < 4 / math.sqrt(len(x)) + 0.05 and 0.8 < float(error.std()) < 1.2
    # KL(q ‖ posterior) of normals: ½ (s² + d² λ − 1) − log s, with λ the posterior precision.
    gap = 0.5 * (1.5**2 + 0.3**2 * (1 + NUM) - 1) - math.log(1.5)
    shortfall = (model.exact(x) - identity.log_evidence).mean()
    assert float(shortfall) == pytest.approx(gap, abs=0.02)
    assert 1000 < float(weighted.effective_sample_size.mean()) < 3900


def test_rounds_adapt_where_the_posterior_given_lies_far_off(x):
    """q is six posterior standard deviations beside the posterior: one round says little, five are right."""
    model = Gaussian(shift=6 * (1 + NUM) ** -0.5)
    errors = []
    for num_rounds in (1, 5):
        found = posterior_evidence(model, model.log_likelihood, model.prior, x, 500, num_rounds=num_rounds, seed=0)
        errors.append(found.log_evidence - model.exact(x))
    assert errors[0].abs().mean() > 1
    assert errors[1].abs().max() < 0.3 and abs(float((errors[1] / found.stderr).mean())) < 4 / math.sqrt(len(x)) + 0.05
    assert found.effective_sample_size.min() > 200


def test_draws_outside_the_prior_count_nothing():
    """θ ~ U(0, 1): the untruncated normal q leaks below 0, and p(x) is an integral over [0, 1]."""
    model = Gaussian()
    prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
    torch.manual_seed(0)
    x = 0.1 + torch.randn(50, NUM)
    found = posterior_evidence(model, model.log_likelihood, prior, x, 20_000, num_rounds=1, seed=0)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    values = Normal(grid[:, None, None], 1.0).log_prob(x.double()).sum(-1).exp()
    exact = torch.trapezoid(values, grid, dim=0).log()
    assert ((found.log_evidence - exact) / found.stderr).abs().max() < 4.5


def test_probabilities_and_routes(x):
    models = [Gaussian(sd=0.2), Gaussian(sd=2.0, widen=1.3)]
    exact = torch.stack([model.exact(x) for model in models], -1)
    arguments = [models, [m.log_likelihood for m in models], [m.prior for m in models]]
    route = PosteriorEvidence(*arguments, model_prior=[0.2, 0.8], num_samples=4000, seed=0)
    prior = torch.tensor([0.2, 0.8], dtype=torch.float64).log()
    torch.testing.assert_close(route.log_probs(x), (exact + prior).log_softmax(-1), atol=0.1, rtol=0)
    torch.testing.assert_close(route.log_bayes_factor(x, 1, 0), exact[:, 1] - exact[:, 0], atol=0.1, rtol=0)
    assert torch.equal(route.probs(x), route.probs(x))  # the seed
    poor = PosteriorEvidence(*arguments, num_samples=4000, method="identity", seed=0)
    routes = compare_evidence_routes({"weighted": route, "identity": poor}, x, exact)
    assert routes.reference == "exact"
    assert routes.errors("weighted").abs().max() < 0.1 < routes.errors("identity").abs().mean() + 0.07
    assert "identity" in str(routes) and len(str(routes).splitlines()) == 4
    assert float(routes.spread.max()) < 0.1


def test_what_is_wrong_is_named(x):
    model = Gaussian()
    arguments = (model, model.log_likelihood, model.prior)
    with pytest.raises(ValueError, match="method must be"):
        posterior_evidence(*arguments, x, method="harmonic")
    with pytest.raises(ValueError, match=r"x .*NaN|x.*nan|finite"):
        posterior_evidence(*arguments, x * math.nan)
    with pytest.raises(ValueError, match=r"no posterior draw of x\[0\]"):
        posterior_evidence(model, lambda theta, x: torch.full(theta.shape[:-1], -math.inf), model.prior, x)
    with pytest.raises(ValueError, match="one posterior, likelihood and prior"):
        PosteriorEvidence([model], [model.log_likelihood], [model.prior])
    route = PosteriorEvidence([model] * 2, [model.log_likelihood] * 2, [model.prior] * 2)
    with pytest.raises(ValueError, match="at least two routes"):
        compare_evidence_routes({"one": route}, x)
    with pytest.raises(ValueError, match="one shape"):
        compare_evidence_routes({"one": route}, x, torch.zeros(len(x), 3))
    with pytest.raises(ValueError, match="models are numbered"):
        route.log_bayes_factor(x, 2, 0)


def test_data_sets_that_are_hard_to_find_get_more_rounds(x):
    """q lies twelve posterior standard deviations beside the posterior where the first observation is positive."""
    model = Gaussian()
    mean_of = model._q
    far = 12 * (1 + NUM) ** -0.5
    model._q = lambda x: Independent(Normal(mean_of(x).mean + far * (x[..., :1] > 0), (1 + NUM) ** -0.5), 1)
    found = posterior_evidence(model, model.log_likelihood, model.prior, x, 500, seed=0)
    assert found.effective_sample_size.min() > 50
    # "Settled" is .2 nats, and 50 draws leave a standard error of .14.
    assert (found.log_evidence - model.exact(x)).abs().max() < 0.2 + 3 * 0.14


def test_a_posterior_that_leads_nowhere_is_replaced_by_the_prior(x):
    model = Gaussian(widen=0.001, shift=40.0)  # a needle, forty prior sds away, and so are all draws near it
    found = posterior_evidence(model, model.log_likelihood, model.prior, x[:20], 500, seed=0)
    assert ((found.log_evidence - model.exact(x[:20])).abs() < 5 * found.stderr).all()
    assert found.effective_sample_size.min() > 50
