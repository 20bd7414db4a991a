"""Errors of the net in `prior_sensitivity`: members of an ensemble, importance weights, named priors, baselines."""

import warnings

import pytest
import torch
from models import LinearGaussianData
from sbi.inference.posteriors import DirectPosterior
from sbi.utils import MultipleIndependent
from torch.distributions import Gamma, HalfNormal, Independent, MultivariateNormal, Normal, Uniform

from sbi_bed.diagnostics import prior_sensitivity
from sbi_bed.diagnostics.sensitivity.pareto_smoothing import smoothed_weights, weighted_quantiles
from sbi_bed.diagnostics.sensitivity.reweighting import Baseline
from sbi_bed.inference import ContextModelPosterior, DeepEnsemblePosterior, ModelPosterior, likelihood_posterior
from sbi_bed.neural_nets import ContextEmbedding, EvidenceClassifier
from sbi_bed.simulators import Choice, Contexts, HyperbolicDiscounting, LogUniform, PowerScaledPrior, UniformRange

MODEL = LinearGaussianData()
X = torch.tensor([2.0, -1.0, 0.5, 1.0])


PRIORS = {
    "own": MultivariateNormal(torch.zeros(3), torch.eye(3)),
    "narrow": MultivariateNormal(torch.zeros(3), 0.7 * torch.eye(3)),
    "shifted": MultivariateNormal(torch.full((3,), 0.5), torch.eye(3)),
}


class Member:
    """The exact posterior of the linear Gaussian model, moved by an error of the net that depends on the context."""

    contexts = Contexts(gamma=LogUniform(0.25, 4.0, 3))
    prior = MODEL.prior
    event_shape = (4,)

    def __init__(self, error=0.0, ignores_context=False):
        self.error, self.ignores_context = torch.as_tensor(error), ignores_context

    def moments(self, x, context):
        context = torch.ones_like(context) if self.ignores_context else context
        exact = MODEL.posterior(x, context)
        return exact, (context.log().sum(-1, keepdim=True) * self.error * exact.stddev)

    def sample(self, sample_shape=(), x=None, context=None):
        return self.sample_batched(sample_shape, x.unsqueeze(0), context.unsqueeze(0)).squeeze(len(sample_shape))

    def sample_batched(self, sample_shape, x, context):
        exact, moved = self.moments(x, context)
        return (exact.sample(torch.Size(sample_shape)) + moved).float()

    def log_prob(self, theta, x=None, context=None):
        exact, moved = self.moments(x.unsqueeze(0), context.unsqueeze(0))
        return exact.log_prob(theta.double().unsqueeze(1) - moved).squeeze(1)


def exact_shift(context):
    base = MODEL.posterior(X, torch.ones(3))
    return (MODEL.posterior(X, context).mean - base.mean) / base.stddev


def log_likelihood(theta, x):
    return Normal(theta @ MODEL.matrix.T, MODEL.noise_sd).log_prob(x).sum(-1)


# ---- weights that check the net


def test_smoothing_is_that_of_arviz():
    arviz = pytest.importorskip("arviz")
    for scale in (0.3, 0.6, 1.0):
        log_weights = scale * torch.distributions.Exponential(1.0).sample((4000,)).double()
        expected, shape = arviz.psislw(log_weights.numpy().copy())
        weights, found = smoothed_weights(log_weights)
        assert found == pytest.approx(float(shape), abs=1e-6)
        torch.testing.assert_close(weights.log(), torch.as_tensor(expected), rtol=1e-6, atol=1e-6)
    weights, found = smoothed_weights(torch.zeros(100))
    assert found == -torch.inf and bool((weights == 0.01).all())
    assert smoothed_weights(torch.tensor([0.0] * 3 + [-torch.inf] * 97))[1] == torch.inf
    theta = torch.randn(2000, 2).double()
    torch.testing.assert_close(
        weighted_quantiles(theta, torch.full((2000,), 1 / 2000), torch.tensor([0.1, 0.9])),
        theta.quantile(torch.tensor([0.1, 0.9]).double(), dim=0),
        atol=0.02,
        rtol=0,
    )


@pytest.mark.parametrize("with_likelihood", [False, True])
def test_weights_contradict_a_net_that_ignores_its_context(with_likelihood):
    """The net's shift is 0 with p = 1; weights give the exact shift, and one warning says that they differ."""
    grid = torch.tensor([[0.6, 0.6, 0.6], [1.0, 1.0, 1.0], [2.0, 1.0, 0.7]])  # k̂ near 0.3: weights on the baseline
    settings = {"log_likelihood": log_likelihood} if with_likelihood else {}
    with pytest.warns(UserWarning, match="the net moves the mean of θ0 by .* importance weights by") as caught:
        found = prior_sensitivity(Member(ignores_context=True), X, grid, num_null=20, seed=0, **settings)
    assert len(caught) == 1
    exact = torch.stack([exact_shift(context) for context in grid])
    assert bool((found.pareto_k < 0.7).all())
    assert bool(((found.weighted_shift - exact).abs() <= 4.5 * found.weighted_shift_stderr + 1e-9).all())
    assert bool(found.disagrees[0].any()) and not bool(found.disagrees[1].any())
    assert "weighted θ0" in str(found) and "!" in str(found) and "k̂" in str(found)
    assert "Monte Carlo error alone, without the error of the net" in str(found)


def test_weights_agree_with_an_exact_posterior_without_a_word():
    grid = torch.tensor([[0.5, 0.5, 0.5], [2.0, 1.0, 0.7]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = prior_sensitivity(Member(), X, grid, num_null=20, log_likelihood=log_likelihood, seed=0)
    error = (found.mean_shift_stderr.square() + found.weighted_shift_stderr.square()).sqrt()
    assert bool(((found.mean_shift - found.weighted_shift).abs() < 4.5 * error).all())
    table = found.to_dataframe()
    assert len(table) == 6 and table.weighted_shift[0] == pytest.approx(float(found.weighted_shift[0, 0]))


def test_a_wider_prior_is_checked_from_its_own_draws():
    """Draws of the baseline do not reach γ = ¼ in three parameters; draws at γ = ¼ reach the baseline."""
    model, x = LinearGaussianData(), torch.tensor([2.0, -1.0, 0.5, 1.0])
    context = torch.full((3,), 0.25)
    source = Baseline(Member(), x, torch.ones(3), None, Member.contexts)
    change = source.weighted_change_to(context, source.draws(10_000)[:, 0])
    exact, base = model.posterior(x, context), model.posterior(x, torch.ones(3))
    shift, ratio = (exact.mean - base.mean) / base.stddev, exact.stddev / base.stddev
    assert bool(((change.mean_shift - shift).abs() < 4.5 * change.stderr + 1e-3).all())
    torch.testing.assert_close(change.sd_ratio, ratio.double(), rtol=0.1, atol=0)


def test_a_single_net_that_nothing_checks_is_said_once():
    """Two simulators as contexts: no weights without a likelihood. An ensemble has an error bar of its own."""

    class Switched:
        contexts = Contexts(simulator=Choice(("SIR", "SEIR")))
        prior = Normal(0.0, 1.0)
        event_shape = (1,)

        def sample_batched(self, sample_shape, x, context):
            return torch.randn(*sample_shape, len(context), 1) + context[:, -1:]

    rows, settings = torch.eye(2), {"num_samples": 100, "num_null": 20, "seed": 0}
    with pytest.warns(UserWarning, match="nothing tells the error of a single net at 2 of 2 contexts") as caught:
        found = prior_sensitivity(Switched(), torch.zeros(1), rows, **settings)
    assert len(caught) == 1 and found.unchecked.tolist() == [True, True]
    assert "without the error of the net" in str(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior_sensitivity(DeepEnsemblePosterior([Switched(), Switched()]), torch.zeros(1), rows, **settings)


def test_a_likelihood_also_corrects_the_baseline():
    """A net that is wrong at γ = ½: its shift is off, the weights with a likelihood are right, from wrong draws."""

    class Wide(Member):
        def moments(self, x, context):
            exact, moved = super().moments(x, context)
            return MultivariateNormal(exact.mean, 1.5 * exact.covariance_matrix), moved

    grid = torch.full((1, 3), 0.5)
    found = prior_sensitivity(Wide(), X, grid, num_null=20, log_likelihood=log_likelihood, seed=0)
    exact, base = MODEL.posterior(X, grid[0]), MODEL.posterior(X, torch.ones(3))
    expected = (exact.mean - base.mean) / base.stddev
    assert bool(((found.weighted_shift[0] - expected).abs() < 4.5 * found.weighted_shift_stderr[0] + 0.02).all())


def test_a_likelihood_of_theta_data_and_context():
    def with_parts(theta, x, parts):
        assert parts["gamma"].shape == (3,)
        return log_likelihood(theta, x)

    plain, found = (
        prior_sensitivity(Member(), X, torch.full((1, 3), 0.5), num_null=20, log_likelihood=function, seed=0)
        for function in (log_likelihood, with_parts)
    )
    assert torch.equal(plain.weighted_shift, found.weighted_shift)
    with pytest.raises(ValueError, match=r"log_likelihood must return log p\(x | θ\) \(S,\)"):
        prior_sensitivity(Member(), X, torch.ones(1, 3), num_null=20, log_likelihood=lambda theta, x: theta)


# ---- ensembles


@pytest.mark.filterwarnings("ignore:prior_sensitivity")
def test_the_spread_of_members_is_part_of_the_error():
    """Errors of nets at c, exact answers unknown to the test of draws: 95 % intervals cover in an ensemble, p is large."""
    context, covered, alarms, stderr = torch.full((1, 3), 0.5), [], [], []
    for seed in range(40):
        torch.manual_seed(seed)
        ensemble = DeepEnsemblePosterior([Member(0.3 * torch.randn(3)) for _ in range(5)])
        found = prior_sensitivity(ensemble, X, context, num_samples=100, num_null=20, seed=seed)
        # A t distribution with 4 degrees of freedom and one mean of 5 members: their sd overstates its error.
        covered.append((found.mean_shift[0] - exact_shift(context[0])).abs() < 2.78 * found.mean_shift_stderr[0])
        stderr.append(found.mean_shift_stderr[0])
        alone = prior_sensitivity(ensemble.members[0], X, context, num_samples=100, num_null=20, seed=seed)
        alarms.append((alone.mean_shift[0] - exact_shift(context[0])).abs() < 2.78 * alone.mean_shift_stderr[0])
    assert float(torch.stack(covered).double().mean()) > 0.95 - 3 * (0.95 * 0.05 / 40) ** 0.5
    assert float(torch.stack(alarms).double().mean()) < 0.8  # Monte Carlo error alone does not cover the net's error
    assert float(torch.stack(stderr).mean()) > 0.3
    assert "Monte Carlo error and the spread of 5 members" in str(found)


class Constant(Member):
    """A net with one and the same error in all contexts, and a posterior that the context does not move."""

    prior = PRIORS["own"]

    def moments(self, x, context):
        exact = MODEL.posterior(x, torch.ones_like(context))
        return exact, self.error * exact.stddev


def test_members_that_disagree_are_no_change():
    """Where the context changes nothing, members that differ do not make p small; a real change does."""
    rng = torch.Generator().manual_seed(0)
    p_values = []
    for seed in range(30):
        ensemble = DeepEnsemblePosterior([Constant(torch.randn(3, generator=rng)) for _ in range(4)])
        found = prior_sensitivity(ensemble, X, torch.full((1, 3), 0.5), num_samples=60, num_null=20, seed=seed)
        p_values.append(float(found.p_value))
    assert sum(p <= 0.05 for p in p_values) <= 5  # 1.5 expected; 5 is 3 standard errors above
    same = DeepEnsemblePosterior([Member(), Member()])
    far = prior_sensitivity(same, X, torch.tensor([[0.25] * 3, [1.0] * 3]), num_samples=200, num_null=40, seed=0)
    assert far.p_value[0] < 0.05 and far.root_mmd[0] > 2 * max(float(far.root_mmd[1]), far.null_upper)


def test_model_probabilities_show_the_spread_of_members():
    def member(seed):
        torch.manual_seed(seed)
        net = EvidenceClassifier(ContextEmbedding((4,), 1, log_columns=[True]), num_models=2, summary_dim=37)
        return ModelPosterior(net, torch.tensor([0.5, 0.5]), (5,))

    contexts = Contexts(gamma=LogUniform(0.5, 2.0))
    members, x = [member(seed) for seed in range(3)], torch.randn(6, 4)
    found = prior_sensitivity(ContextModelPosterior(DeepEnsemblePosterior(members), contexts), x, [[0.5]])
    each = torch.stack([ContextModelPosterior(one, contexts).probs(x, [0.5]) for one in members])
    torch.testing.assert_close(found.members_sd[0], each.std(0, correction=0), rtol=1e-4, atol=1e-6)
    assert "largest sd of members" in str(found) and len(found.to_dataframe()) == 12
    alone = prior_sensitivity(ContextModelPosterior(members[0], contexts), x, [[0.5]])
    assert bool(alone.members_sd.isnan().all()) and "errors of the net are not known" in str(alone)


# ---- named priors


def posterior_with(prior):
    precision = torch.linalg.inv(prior.covariance_matrix.double())
    matrix = MODEL.matrix.double()
    total = precision + matrix.T @ matrix / MODEL.noise_sd**2
    mean = torch.linalg.solve(total, precision @ prior.mean.double() + matrix.T @ X.double() / MODEL.noise_sd**2)
    return mean, torch.linalg.inv(total).diagonal().sqrt()


class Direct(DirectPosterior):
    """The exact posterior as sbi's own."""

    def __init__(self):
        self.prior = PRIORS["own"]
        self._x = None

    @property
    def default_x(self):
        return self._x

    def sample(self, sample_shape=(), x=None, show_progress_bars=True):
        assert not show_progress_bars
        return MODEL.posterior(x, torch.ones(3)).sample(sample_shape).float()


@pytest.mark.parametrize("posterior", [Member(), Direct(), DeepEnsemblePosterior([Member(), Member()])])
def test_named_priors_by_weights(posterior):
    found = prior_sensitivity(posterior, X, priors=PRIORS, seed=0)
    base_mean, base_sd = posterior_with(PRIORS["own"])
    for row, prior in enumerate(PRIORS.values()):
        mean, sd = posterior_with(prior)
        noise = 4.5 * found.mean_shift_stderr[row] + 1e-9
        assert bool((((mean - base_mean) / base_sd - found.mean_shift[row]).abs() < noise).all())
        torch.testing.assert_close(found.sd_ratio[row], sd / base_sd, rtol=0.05, atol=0)
    assert found.priors == tuple(PRIORS) and found.pareto_k[0] == -torch.inf and bool(found.p_value.isnan().all())
    text = str(found)
    assert "shifted" in text and "k̂" in text and "√MMD" not in text
    assert list(found.to_dataframe().alternative.unique()) == list(PRIORS)


def test_contexts_and_named_priors_in_one_table():
    found = prior_sensitivity(Member(), X, torch.full((2, 3), 0.5), priors=PRIORS, num_null=20, seed=0)
    assert found.mean_shift.shape == (5, 3) and found.labels == ["gamma = 0.5", "gamma = 0.5", *PRIORS]
    assert bool(found.p_value[:2].isfinite().all()) and bool(found.p_value[2:].isnan().all())
    narrow = prior_sensitivity(Member(), X, torch.full((1, 3), 1 / 0.7), num_null=20, seed=0)
    error = (narrow.mean_shift_stderr[0].square() + found.mean_shift_stderr[3].square()).sqrt()
    assert bool(((narrow.mean_shift[0] - found.mean_shift[3]).abs() < 4.5 * error).all())


def test_priors_that_weights_cannot_reach_are_nan_with_one_warning():
    far = {
        "far": MultivariateNormal(torch.full((3,), 8.0), 0.01 * torch.eye(3)),
        "own": PRIORS["own"],
    }
    with pytest.warns(UserWarning, match=r"weights for the prior 'far' are not reliable \(k̂ = .*NaN") as caught:
        found = prior_sensitivity(Member(), X, priors=far, seed=0)
    assert len(caught) == 1 and bool(found.mean_shift[0].isnan().all()) and bool(found.mean_shift[1].isfinite().all())

    class Boxed(Direct):
        def __init__(self):
            super().__init__()
            self.prior = Independent(Uniform(-torch.full((3,), 9.0), torch.full((3,), 9.0)), 1)

    wide = {"wide": MultivariateNormal(torch.zeros(3), 400 * torch.eye(3))}
    with pytest.warns(UserWarning, match="lies where the posterior's own prior is 0"):
        found = prior_sensitivity(Boxed(), X, priors=wide, seed=0)
    assert bool(found.mean_shift.isnan().all())


def test_other_posteriors_with_draws():
    """A posterior by likelihood: weights give what the same likelihood gives with the other prior."""
    history = torch.tensor([[50.0, 30.0, 1.0, 1.0], [50.0, 300.0, 0.0, 1.0], [40.0, 60.0, 1.0, 1.0]])
    simulator = HyperbolicDiscounting()
    own = likelihood_posterior(simulator, history, sample_with="smc")
    other = MultipleIndependent(
        [Normal(torch.tensor([-4.0]), torch.tensor([1.2])), HalfNormal(torch.tensor([1.5]))], validate_args=False
    )
    found = prior_sensitivity(own, history, priors={"other": other}, num_samples=100, seed=0)
    direct = likelihood_posterior(simulator, history, sample_with="smc", prior=other).sample((2000,)).double()
    base = own.sample((2000,)).double()
    expected = (direct.mean(0) - base.mean(0)) / base.std(0)
    assert bool(((found.mean_shift[0] - expected).abs() < 4.5 * (3 / 2000) ** 0.5 + 0.1).all())


@pytest.mark.parametrize(
    ("posterior", "settings", "error", "match"),
    [
        (Member(), {}, ValueError, "give contexts="),
        (Member(), {"priors": {"a": 3.0}}, TypeError, r"priors\['a'\] must be a distribution"),
        (Member(), {"priors": {"a": Normal(torch.zeros(3), 1.0)}}, ValueError, r"Independent\(\.\.\., 1\)"),
        (Member(), {"priors": {"a": Independent(Normal(torch.zeros(2), 1.0), 1)}}, ValueError, r"vectors \(3,\)"),
        (Member(), {"contexts": [[9.0, 1.0, 1.0]]}, ValueError, r"contexts: gamma\[0\] = 9"),
        (Member(), {"contexts": [[1.0] * 3], "baseline": [9.0, 1.0, 1.0]}, ValueError, r"baseline: gamma\[0\] = 9"),
    ],
)
def test_what_is_refused(posterior, settings, error, match):
    with pytest.raises(error, match=match):
        prior_sensitivity(posterior, X, num_null=20, **settings)


# ---- the default baseline


def test_the_default_baseline_lies_inside_the_contexts():
    """Powers at 1, ranges without 1 in their middle, and the first option of a choice."""

    class Mixed:
        contexts = Contexts(
            gamma=LogUniform(0.5, 2.0, 2), upper=UniformRange(3.0, 5.0), simulator=Choice(("SIR", "SEIR", "SIS"))
        )
        event_shape = (1,)

        def sample_batched(self, sample_shape, x, context):
            return torch.randn(*sample_shape, len(context), 1) + context[:, -1:]

    rows = torch.stack([Mixed.contexts.vector(gamma=1.0, upper=4.0, simulator=name) for name in ("SIR", "SEIR", "SIS")])
    found = prior_sensitivity(Mixed(), torch.zeros(1), rows, num_samples=200, num_null=40, seed=0)
    assert found.baseline.tolist() == [1.0, 1.0, 4.0, 1.0, 0.0, 0.0]
    assert float(found.root_mmd[2]) > 3 * max(float(found.root_mmd[:2].max()), found.null_upper)
    with pytest.raises(ValueError, match=r"contexts: simulator=SIR = 0\.5 .* one-hot"):
        prior_sensitivity(Mixed(), torch.zeros(1), [[1.0, 1.0, 4.0, 0.5, 0.5, 0.0]])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_two_gamma_model_with_a_trained_net():
    """x ~ N(log θ_1 + log θ_2, ½) with Gamma priors: the weighted shift at γ = (1, ½) is that of quadrature.

    Without the likelihood a net with the wrong shift (a third of the exact one, p = 0.2) is contradicted, or marked.
    """
    from sbi_bed.inference import ContextNPE
    from sbi_bed.simulators import simulate_with_context

    base = Independent(Gamma(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 1.0])), 1)
    prior = PowerScaledPrior(base)

    def simulator(theta):
        return theta.log().sum(-1, keepdim=True) + 0.5 * torch.randn(len(theta), 1)

    simulations = simulate_with_context(simulator, prior, 3000, seed=0)
    trainer = ContextNPE(prior, show_progress_bars=False, z_score_theta="transform_to_unconstrained")
    trainer.append_simulations(*simulations).train(max_num_epochs=3, seed=0)
    posterior, x = trainer.build_posterior(), torch.tensor([0.4])

    def likelihood(theta, x):
        return Normal(theta.log().sum(-1), 0.5).log_prob(x)

    context = torch.tensor([1.0, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may say that the net is off
        found = prior_sensitivity(posterior, x, context.unsqueeze(0), log_likelihood=likelihood, seed=0)
        unaided = prior_sensitivity(posterior, x, context.unsqueeze(0), seed=0)
    grid = torch.linspace(0.005, 40, 3000, dtype=torch.float64)
    theta = torch.cartesian_prod(grid, grid)
    means, sds = [], []
    for powers in (torch.ones(2), context):
        weights = likelihood(theta, x) + prior.condition(powers).log_prob(theta.float()).double()
        weights = weights.softmax(0)
        means.append(weights @ theta)
        sds.append((weights @ (theta - means[-1]).square()).sqrt())
    exact = (means[1] - means[0]) / sds[0]
    assert bool((found.pareto_k < 0.7).all())
    assert bool(((found.weighted_shift[0] - exact).abs() < 4.5 * found.weighted_shift_stderr[0] + 0.02).all())
    assert not bool(unaided.unchecked.any())
    off = (unaided.mean_shift[0] - exact).abs() > 0.1 + 4.5 * unaided.mean_shift_stderr[0]
    assert bool((~off | unaided.disagrees[0]).all())
