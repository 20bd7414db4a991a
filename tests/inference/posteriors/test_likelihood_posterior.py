"""Posteriors from histories against closed forms and grids, for every way of sampling."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from models import LinearGaussian, YesNo
from sbi.inference.posteriors import ImportanceSamplingPosterior, MCMCPosterior
from sbi.utils import BoxUniform
from scipy import stats
from torch.distributions import Exponential, Independent, MultivariateNormal, Uniform

from sbi_bed.inference import ActorTrainer
from sbi_bed.inference.posteriors.defensive_proposal import DefensiveProposal
from sbi_bed.inference.posteriors.history_potential import HistoryPotential
from sbi_bed.inference.posteriors.likelihood_posterior import chain_sample_size, likelihood_posterior
from sbi_bed.simulators import (
    BayesianActor,
    ConstantElasticity,
    DesignSimulator,
    ExponentialDiscounting,
    HyperbolicDiscounting,
    LocationFinding,
    ModelMixture,
    QuadraticCost,
)
from sbi_bed.simulators.base import prior_log_prob
from sbi_bed.utils.history import pack_history
from sbi_bed.utils.smc import ParticleBelief
from sbi_bed.utils.transforms import to_unconstrained

SAMPLERS = ["mcmc", "importance", "smc"]


@pytest.fixture(scope="module")
def gaussian():
    """A linear-Gaussian experiment, a history of it, and its exact posterior and log evidence."""
    torch.manual_seed(2)
    model = LinearGaussian(dim=2, noise_sd=0.3)
    designs = torch.rand(6, 2) * 2 - 1
    outcomes = model(torch.tensor([1.0, -0.5]), designs)
    d, y = designs.double(), outcomes.double().squeeze(-1)
    covariance = torch.linalg.inv(torch.eye(2).double() + d.T @ d / model.noise_sd**2)
    posterior = MultivariateNormal(covariance @ d.T @ y / model.noise_sd**2, covariance)
    marginal = MultivariateNormal(torch.zeros(6).double(), d @ d.T + model.noise_sd**2 * torch.eye(6).double())
    return model, pack_history(designs, outcomes, horizon=8), posterior, marginal.log_prob(y).item()


def grid_draws(simulator, history, low, high, num=20_000, size=800):
    """Exact draws by a fine grid over the box [low, high], and the log evidence."""
    axes = [torch.linspace(a, b, size + 1)[:-1] + (b - a) / size / 2 for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    cell = math.prod((b - a) / size for a, b in zip(low, high, strict=True))
    log_joint = prior_log_prob(simulator.prior, grid).double()
    for trial in history:
        log_joint += simulator.log_likelihood(grid, trial[: simulator.design_dim], trial[simulator.design_dim : -1])
    index = torch.multinomial((log_joint - log_joint.max()).exp().float(), num, replacement=True)
    jitter = (torch.rand(num, 2) - 0.5) * torch.tensor([(b - a) / size for a, b in zip(low, high, strict=True)])
    return grid[index] + jitter, (log_joint.logsumexp(0) + math.log(cell)).item()


def agree(draws, exact, num_effective):
    """Two-sample Kolmogorov tests along coordinates and random directions, at the 1e-4 level each."""
    directions = torch.cat([torch.eye(2), torch.randn(6, 2)]) / exact.std(0)
    limit = 2.23 * math.sqrt(1 / num_effective + 1 / len(exact))
    distances = [stats.ks_2samp((draws @ v).numpy(), (exact @ v).numpy()).statistic for v in directions]
    return max(distances) < limit


@pytest.mark.parametrize("sample_with", SAMPLERS)
def test_linear_gaussian_is_exact(gaussian, sample_with):
    model, history, exact, log_evidence = gaussian
    posterior = likelihood_posterior(model, history, sample_with, seed=1)
    theta = posterior.sample((2000,))
    report = posterior.report
    num = min(2000.0, report.effective_sample_size)
    assert report.sample_with == sample_with and report.num_trials == 6 and num > 300
    assert abs(report.log_evidence - log_evidence) < 0.15  # 4 standard errors of 4096 particles
    assert ((theta.mean(0) - exact.mean).abs() < 4.5 * exact.stddev / math.sqrt(num)).all()
    assert ((theta.std(0) / exact.stddev - 1).abs() < 4.5 / math.sqrt(2 * num)).all()
    error = posterior.log_prob(theta) - exact.log_prob(theta.double())
    assert error.std() < 1e-3 and abs(error.mean()) < 0.15  # normalised
    assert torch.allclose(posterior.map(num_iter=300).double(), exact.mean, atol=0.01)
    assert min(report.check.surprise_p_value, report.check.prior_conflict_p_value) > 1e-3


@pytest.mark.parametrize("sample_with", SAMPLERS)
def test_location_finding_with_two_modes_or_a_ring(sample_with):
    simulator = LocationFinding()
    torch.manual_seed(5)
    designs = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.1, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    history = pack_history(designs, simulator(torch.tensor([1.2, -1.0]), designs))
    for trials in (history[:2], history):
        exact, log_evidence = grid_draws(simulator, trials, (-5, -5), (5, 5))
        posterior = likelihood_posterior(simulator, trials, sample_with, seed=0)
        draws = posterior.sample((2000,))
        report = posterior.report
        assert agree(draws, exact, min(2000, report.effective_sample_size))
        assert abs(report.log_evidence - log_evidence) < 0.12
        assert sample_with == "mcmc" or report.effective_sample_size > 2000  # of 4096


@pytest.mark.parametrize("sample_with", SAMPLERS)
def test_discounting_and_a_bounded_prior(sample_with):
    simulator = HyperbolicDiscounting()
    designs = torch.stack([torch.linspace(10, 95, 14), torch.tensor([5.0, 30.0]).repeat(7)], -1)
    history = pack_history(designs, simulator(torch.tensor([-3.5, 4.0]), designs))
    exact, log_evidence = grid_draws(simulator, history, (-12, 0), (4, 12))
    posterior = likelihood_posterior(simulator, history, sample_with, seed=0)
    assert agree(posterior.sample((2000,)), exact, min(2000, posterior.report.effective_sample_size))
    assert abs(posterior.report.log_evidence - log_evidence) < 0.12

    box = LocationFinding(prior=BoxUniform(torch.zeros(2), torch.ones(2)))  # the data pull theta into a corner
    history = pack_history(torch.tensor([[0.5, 0.5], [0.9, 0.8]]), torch.tensor([[1.5], [8.0]]))
    exact, log_evidence = grid_draws(box, history, (0, 0), (1, 1))
    posterior = likelihood_posterior(box, history, sample_with, seed=0)
    draws = posterior.sample((2000,))
    assert agree(draws, exact, min(2000, posterior.report.effective_sample_size))
    assert draws.min() >= 0 and draws.max() <= 1
    assert abs(posterior.report.log_evidence - log_evidence) < 0.12
    assert posterior.log_prob(torch.tensor([[1.5, 0.5]])) == -torch.inf


@pytest.mark.parametrize("sample_with", SAMPLERS)
def test_without_trials_it_is_the_prior(sample_with):
    simulator = LocationFinding()
    theta = torch.randn(50, 2)
    for history in (torch.zeros(0, 4), torch.zeros(1, 5, 4)):
        posterior = likelihood_posterior(simulator, history, sample_with, seed=0)
        draws = posterior.sample((1500,))
        assert stats.kstest(draws.norm(dim=-1).square().numpy(), stats.chi2(2).cdf).pvalue > 1e-3
        assert torch.allclose(posterior.log_prob(theta), simulator.prior.log_prob(theta), atol=0.05)
        assert posterior.report.num_trials == 0 and posterior.report.check.prior_conflict_p_value == 1.0


@pytest.mark.parametrize("sample_with", SAMPLERS)
def test_seeds_padding_new_histories_and_pickling(gaussian, sample_with):
    model, history, exact, _ = gaussian
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    options = {"num_particles": 500, **({"num_chains": 10, "warmup_steps": 5} if sample_with == "mcmc" else {})}

    def draw(x):
        posterior = likelihood_posterior(model, x, sample_with, seed=4, **options)
        torch.manual_seed(8)
        return posterior, posterior.sample((60,))

    posterior = likelihood_posterior(model, history, sample_with, seed=4, **options)
    assert torch.equal(torch.get_rng_state(), states[0])
    posterior, first = draw(history)
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    for other in (history[:6], history.unsqueeze(0)):  # unpadded, batched
        assert torch.equal(draw(other)[1], first)
    torch.manual_seed(8)
    assert torch.equal(pickle.loads(pickle.dumps(posterior)).sample((60,)), first)

    far = history.clone()
    far[:6, 2] += 3 * history[:6, 0]  # an outcome that moves the posterior of theta_1 by nearly 3
    shift = posterior.sample((400,), x=far).mean(0) - exact.mean
    assert shift[0] > 2 and (posterior.sample((400,)).mean(0) - exact.mean).abs().max() < 0.3
    batch = posterior.sample_batched((400,), x=torch.stack([history, far]))
    assert batch.shape == (400, 2, 2) and (batch.mean(0)[1] - batch.mean(0)[0])[0] > 2
    before = posterior.report.log_evidence
    posterior.set_default_x(far)
    assert posterior.sample((400,)).mean(0)[0] - exact.mean[0] > 2 and posterior.report.log_evidence != before


def test_they_are_posteriors_of_sbi_and_take_its_options(gaussian):
    model, history, exact, log_evidence = gaussian
    mcmc = likelihood_posterior(model, history, "mcmc", num_chains=7, thin=2, warmup_steps=10)
    assert isinstance(mcmc, MCMCPosterior) and (mcmc.num_chains, mcmc.thin) == (7, 2)
    importance = likelihood_posterior(model, history, "importance", proposal=model.prior, num_particles=20_000)
    assert isinstance(importance, ImportanceSamplingPosterior)
    adapted = likelihood_posterior(model, history, "importance", num_particles=20_000).report
    share = importance.report.effective_sample_size / 20_000
    assert share < 0.2 and adapted.effective_sample_size > 0.6 * 20_000
    assert abs(importance.report.log_evidence - log_evidence) < 4.5 / math.sqrt(20_000 * share)
    assert abs(adapted.log_evidence - log_evidence) < 0.03
    theta, log_weights = importance.sample((20_000,), method="importance")
    weights = log_weights.softmax(0)
    assert ((weights @ theta - exact.mean).abs() < 4.5 * exact.stddev / math.sqrt(20_000 * share)).all()
    wide = likelihood_posterior(model, history, "smc", prior=MultivariateNormal(torch.zeros(2), 25 * torch.eye(2)))
    assert wide.sample((1000,)).std(0)[0] > exact.stddev[0] * 0.95 and wide.report.log_evidence < log_evidence


def test_potential_has_exact_gradients_and_minds_the_support():
    model = LinearGaussian(dim=2, noise_sd=0.3)
    designs, outcomes = torch.rand(4, 2), torch.randn(4, 1)
    potential = HistoryPotential(model, x_o=pack_history(designs, outcomes, horizon=9))
    theta = torch.randn(5, 2, requires_grad=True)
    potential(theta).sum().backward()
    exact = -theta + ((outcomes.T - theta @ designs.T) / model.noise_sd**2) @ designs
    assert torch.allclose(theta.grad, exact, rtol=1e-4, atol=1e-4)
    assert not potential(theta, track_gradients=False).requires_grad
    with pytest.raises(ValueError, match="No observed data"):
        HistoryPotential(model)(theta)
    box = HistoryPotential(LocationFinding(prior=BoxUniform(torch.zeros(2), torch.ones(2))), x_o=torch.ones(1, 4))
    value = box(torch.tensor([[0.5, 0.5], [1.5, 0.5]]))
    assert torch.isfinite(value[0]) and value[1] == -torch.inf


def test_effective_sample_size_of_chains():
    rho, length = 0.8, 4000
    noise = torch.randn(4, length, 2) * math.sqrt(1 - rho**2)
    chains = torch.zeros(4, length, 2)
    chains[:, 0] = torch.randn(4, 2)
    for t in range(1, length):
        chains[:, t] = rho * chains[:, t - 1] + noise[:, t]
    exact = 4 * length * (1 - rho) / (1 + rho)
    assert ((chain_sample_size(chains) / exact - 1).abs() < 0.25).all()
    stuck = torch.randn(4, 500, 1) * 0.1 + torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None, None]
    assert chain_sample_size(stuck) < 10
    assert 0.8 < chain_sample_size(torch.randn(20, 50, 1)) / 1000 < 1.3


def test_errors_say_what_was_given():
    model, history = LinearGaussian(dim=2), torch.ones(3, 4)
    without = DesignSimulator(model.prior, model.simulate, model.design_space)
    wrong = DesignSimulator(model.prior, model.simulate, model.design_space, lambda t, d, y: -y.square())
    for simulator, x, sample_with, message in [
        (model, history, "hmc", "sample_with must be 'mcmc', 'importance' or 'smc', got 'hmc'"),
        (without, history, "smc", "needs a simulator with log_likelihood="),
        (wrong, history, "smc", r"log_likelihood returned shape \(1,\) for leading dimensions \(4096,\)"),
        (model, torch.full((3, 4), torch.nan), "mcmc", r"history must be finite, got nan at index \(0, 0\)"),
        (model, torch.ones(3, 5), "importance", "history must have 4 values in its last dimension"),
        (model, torch.ones(2, 3, 4), "smc", "one history"),
        (model, torch.ones(4), "smc", "history must have shape"),
        (YesNo(), torch.full((2, 3), 0.5), "smc", "mask"),
        (YesNo(), torch.tensor([[1.0, 0.5, 1.0]]), "smc", "outside the outcome space"),
    ]:
        with pytest.raises(ValueError, match=message):
            likelihood_posterior(simulator, x, sample_with)
    with pytest.raises(ValueError, match="takes no proposal"):
        likelihood_posterior(model, history, "smc", proposal=model.prior)
    with pytest.raises(ValueError, match="num_particles must be at least 100"):
        likelihood_posterior(model, history, num_particles=3)


def test_on_the_edge_of_the_prior_a_proposal_has_the_priors_share_of_density():
    """There the free coordinates are infinite, which must not make the density NaN."""
    prior = Independent(Exponential(torch.ones(2)), 1)
    proposal = DefensiveProposal(ParticleBelief.from_samples(prior.sample((400,))), prior, to_unconstrained(prior))
    value = proposal.log_prob(torch.tensor([[0.0, 0.5], [0.4, 0.0], [0.0, 0.0]]))
    assert value.tolist() == pytest.approx([math.log(0.1) - 0.5, math.log(0.1) - 0.4, math.log(0.1)], abs=1e-5)


def test_nuts_where_pyro_is_installed(gaussian):
    pytest.importorskip("pyro")
    model, history, exact, _ = gaussian
    posterior = likelihood_posterior(model, history, "mcmc", method="nuts_pyro", num_chains=1, warmup_steps=50, seed=1)
    theta = posterior.sample((200,))
    assert ((theta.mean(0) - exact.mean).abs() < 5 * exact.stddev / math.sqrt(50)).all()
    assert ((theta.std(0) / exact.stddev - 1).abs() < 5 / math.sqrt(2 * 50)).all()


@pytest.mark.parametrize("sample_with", ["smc", "importance", "mcmc"])
def test_posteriors_of_impossible_data_are_pickled_and_copied(sample_with, tmp_path):
    """They hold a simulator with lapses."""
    options = {"num_particles": 200, **({"num_chains": 4, "warmup_steps": 2} if sample_with == "mcmc" else {})}
    history = pack_history(torch.zeros(2, 1), torch.tensor([[0.2], [0.8]]))
    with pytest.warns(UserWarning, match="impossible under the prior"):
        posterior = likelihood_posterior(UniformNoise(), history, sample_with, seed=0, **options)
    torch.save(posterior, tmp_path / "posterior.pt")
    loaded = torch.load(tmp_path / "posterior.pt", weights_only=False)
    theta = torch.tensor([[0.2], [0.5]])
    for same in (pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior), loaded):
        assert torch.equal(same.log_prob(theta), posterior.log_prob(theta))


class UniformNoise(DesignSimulator):
    """y = θ + U(−0.1, 0.1), θ ~ U(0, 1)."""

    def __init__(self):
        prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
        super().__init__(prior, self._simulate, torch.zeros(1, 1), self._log_density)

    def _simulate(self, theta, design):
        return theta + design + 0.2 * torch.rand_like(theta + design) - 0.1

    def _log_density(self, theta, design, outcome):
        return torch.where(((outcome - theta - design).abs() < 0.1).squeeze(-1), math.log(5), -math.inf)


def test_posteriors_of_every_simulator_are_pickled():
    actor = ActorTrainer(QuadraticCost(), show_progress_bars=False).train(num_steps=2, num_validation=0, seed=0)
    mixture = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()])
    for simulator in (BayesianActor(actor, fixed={"sigma": 0.2}), mixture, ConstantElasticity(), LocationFinding()):
        designs = simulator.design_space.sample((2,))
        history = pack_history(designs, simulator(simulator.prior.sample((1,)).expand(2, -1), designs))
        posterior = likelihood_posterior(simulator, history, seed=0, num_particles=100)
        theta = simulator.prior.sample((3,))
        assert torch.equal(pickle.loads(pickle.dumps(posterior)).log_prob(theta), posterior.log_prob(theta))
