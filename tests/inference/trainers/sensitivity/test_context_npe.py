"""One posterior for every prior: against exact posteriors, in moving supports, and as sbi's own posterior."""

import copy
import pickle

import pytest
import torch
from models import LinearGaussianData
from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.inference import NLE, ImportanceSamplingPosterior, MCMCPosterior
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils import BoxUniform
from scipy import stats
from torch import nn
from torch.distributions import Exponential, Independent, Normal

from sbi_bed.inference import ContextNPE, ContextPosterior, train_ensemble
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import Choice, Contexts, LogUniform, PowerScaledPrior, UniformRange, simulate_with_context
from sbi_bed.utils import NoTracker, seeded

MODEL = LinearGaussianData()
POWERS = Contexts(gamma=LogUniform(0.5, 2.0, 3))
SMALL = {"hidden_features": 32, "num_transforms": 3}


@pytest.fixture(scope="module")
def gaussian():
    simulations = simulate_with_context(MODEL, MODEL.prior, 20_000, POWERS, seed=1)
    trainer = ContextNPE(MODEL.prior, show_progress_bars=False, contexts=POWERS, **SMALL)
    trainer.append_simulations(*simulations).train(256, 3e-3, max_num_epochs=8, seed=0)
    return trainer.build_posterior()


def errors(posterior, x, context, num=1000):
    """Errors of means, in exact standard deviations, and ratios of standard deviations, (B, P) both."""
    draws = posterior.sample_batched((num,), x, context).double()
    exact = MODEL.posterior(x, context)
    return (draws.mean(0) - exact.mean) / exact.stddev, draws.std(0) / exact.stddev


def test_posteriors_are_close_to_exact_ones_at_every_power(gaussian):
    _, x, context = simulate_with_context(MODEL, MODEL.prior, 100, POWERS, seed=2)
    error, ratio = errors(gaussian, x, context)
    assert error.abs().mean() < 0.15 and abs(ratio.mean() - 1) < 0.06
    # What the context is there for: the posterior at other powers is further away.
    wide, narrow = torch.full((100, 3), 0.5), torch.full((100, 3), 2.0)
    shift = (MODEL.posterior(x, wide).mean - MODEL.posterior(x, narrow).mean) / MODEL.posterior(x, narrow).stddev
    for powers in (wide, narrow):
        assert errors(gaussian, x, powers)[0].abs().mean() < 0.4 * shift.abs().mean()


def test_the_spread_follows_the_power(gaussian):
    x = torch.zeros(1, 4)
    wide, narrow = (gaussian.sample_batched((4000,), x, [[g] * 3]).std(0) for g in (0.5, 2.0))
    expected = MODEL.posterior(x, torch.full((1, 3), 0.5)).stddev / MODEL.posterior(x, torch.full((1, 3), 2.0)).stddev
    torch.testing.assert_close((wide / narrow).double(), expected, rtol=0.12, atol=0)


def test_density_and_draws_in_all_their_forms(gaussian):
    x, context = torch.randn(3, 4), torch.tensor([[0.5, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, 0.7, 1.0]])
    theta = torch.randn(6, 3, 3)
    batched = gaussian.log_prob_batched(theta, x, context)
    conditioned = gaussian.condition_on(context[1])
    assert isinstance(conditioned, DirectPosterior)
    for row in range(3):
        one = gaussian.log_prob(theta[:, row], x=x[row], context=context[row])
        torch.testing.assert_close(batched[:, row], one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(conditioned.log_prob(theta[:, 1], x=x[1]), batched[:, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(conditioned.log_prob_batched(theta[:, 1:2], x[1:2])[:, 0], batched[:, 1])
    torch.manual_seed(1)
    draws = gaussian.sample((2, 5), x=x[1], context=context[1])
    torch.manual_seed(1)
    assert draws.shape == (2, 5, 3) and torch.equal(conditioned.sample((10,), x=x[1]), draws.reshape(10, 3))
    assert gaussian.sample_batched((2, 5), x, context[0]).shape == (2, 5, 3, 3)
    by_default = copy.copy(gaussian).set_default_x(x[1])
    torch.testing.assert_close(by_default.log_prob(theta[:, 1], context=context[1]), batched[:, 1])
    torch.testing.assert_close(by_default.condition_on(context[1]).log_prob(theta[:, 1]), batched[:, 1])


def test_everything_of_sbi_works_in_one_context(gaussian):
    gamma = torch.tensor([2.0, 1.0, 0.5])
    posterior, prior = gaussian.condition_on(gamma), MODEL.prior.condition(gamma)
    theta = prior.sample((200,))
    x = MODEL(theta)
    ranks, _ = run_sbc(theta, x, posterior, num_posterior_samples=200, show_progress_bar=False)
    ranks = (ranks + torch.rand(ranks.shape)) / 201
    assert min(stats.kstest(rank, "uniform").pvalue for rank in ranks.T.numpy()) > 1e-3
    coverage, alpha = run_tarp(theta, x, posterior, num_posterior_samples=100, show_progress_bar=False)
    assert check_tarp(coverage, alpha)[1] > 0.05
    x_o, exact = x[0], MODEL.posterior(x[0], gamma)
    mode = posterior.set_default_x(x_o).map(num_iter=100, num_to_optimize=10, num_init_samples=100)
    assert ((mode[0] - exact.mean) / exact.stddev).abs().max() < 0.7
    chains = {"num_chains": 20, "warmup_steps": 20, "thin": 2}
    mcmc = MCMCPosterior(posterior.potential_fn, prior, posterior.theta_transform, "slice_np_vectorized", **chains)
    sampled = mcmc.sample((400,), x=x_o, show_progress_bars=False)
    weighted = ImportanceSamplingPosterior(posterior.potential_fn, proposal=prior)
    for draws in (sampled, weighted.sample((400,), x=x_o, oversampling_factor=64, show_progress_bars=False)):
        assert ((draws.mean(0) - exact.mean) / exact.stddev).abs().max() < 0.5


@pytest.mark.parametrize("copy_of", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy])
def test_copies_give_the_same_numbers(gaussian, copy_of):
    theta, x = torch.randn(5, 3), torch.randn(4)
    expected = gaussian.log_prob(theta, x=x, context=[1.0, 0.5, 1.0])
    torch.testing.assert_close(copy_of(gaussian).log_prob(theta, x=x, context=[1.0, 0.5, 1.0]), expected)
    torch.testing.assert_close(copy_of(gaussian.condition_on([1.0, 0.5, 1.0])).log_prob(theta, x=x), expected)


def test_a_saved_posterior_gives_the_same_numbers(gaussian, tmp_path):
    gaussian.save(tmp_path / "posterior.pt")
    loaded = ContextPosterior.load(tmp_path / "posterior.pt", MODEL.prior)
    theta, x = torch.randn(5, 3), torch.randn(4)
    expected = gaussian.log_prob(theta, x=x, context=[1.0, 0.5, 1.0])
    assert torch.equal(loaded.log_prob(theta, x=x, context=[1.0, 0.5, 1.0]), expected)
    loaded.save(tmp_path / "again.pt")
    again = ContextPosterior.load(tmp_path / "again.pt", MODEL.prior)
    assert torch.equal(again.log_prob(theta, x=x, context=[1.0, 0.5, 1.0]), expected)
    with pytest.raises(ValueError, match="trained on"):
        loaded.sample((1,), x=x, context=[3.0, 1.0, 1.0])


@pytest.mark.filterwarnings("ignore:Unknown kwargs")  # of sbi, which hands it on
def test_a_setting_that_is_no_plain_data_is_refused_when_it_is_saved(tmp_path):
    theta, x, context = simulate_with_context(MODEL, MODEL.prior, 200, POWERS, seed=0)
    trainer = ContextNPE(MODEL.prior, show_progress_bars=False, activation=nn.Tanh, **SMALL)
    trainer.append_simulations(theta, x, context).train(max_num_epochs=1, seed=0)
    posterior = trainer.build_posterior()
    with pytest.raises(TypeError, match=r"model_settings\['activation'\] cannot be saved"):
        posterior.save(tmp_path / "posterior.pt")
    assert not (tmp_path / "posterior.pt").exists()


# ---- supports that move with the context


class MovedBox:
    """U(0, upper)², where the context is `upper`."""

    def condition(self, context):
        return BoxUniform(torch.zeros(*context.shape[:-1], 2), context.expand(*context.shape[:-1], 2))


@pytest.fixture(scope="module")
def moved():
    contexts = Contexts(upper=UniformRange(1.0, 3.0))

    def simulate(theta):
        return theta + 0.5 * torch.randn_like(theta)

    trainer = ContextNPE(MovedBox(), show_progress_bars=False, contexts=contexts, **SMALL)
    trainer.append_simulations(*simulate_with_context(simulate, MovedBox(), 10_000, contexts, seed=0))
    trainer.train(256, 3e-3, max_num_epochs=5, seed=0)
    return trainer.build_posterior()


def test_no_draw_lies_outside_the_support_of_its_context(moved):
    x, context = torch.full((3, 2), 1.2), torch.tensor([[1.0], [2.0], [3.0]])
    draws = moved.sample_batched((2000,), x, context)
    assert bool(((draws >= 0) & (draws <= context)).all())
    # The net alone leaks; a posterior that rejected at the widest prior would keep it.
    raw = moved.estimator.sample((2000,), condition=torch.cat([x, context], -1))
    assert float((raw[:, 0] > 1.0).any(-1).float().mean()) > 0.02
    inside = moved.log_prob_batched(torch.full((1, 3, 2), 0.9), x, context)
    outside = moved.log_prob_batched(torch.full((1, 3, 2), 1.1), x, context)
    assert torch.isfinite(inside).all() and torch.isfinite(outside[0]).tolist() == [False, True, True]
    conditioned = moved.condition_on([1.0]).set_default_x(x[0])
    assert conditioned.sample((500,), show_progress_bars=False).max() <= 1 and moved.default_x is None
    assert conditioned.map(num_iter=50, num_to_optimize=5, num_init_samples=50).max() <= 1


def grid(upper, num=100):
    """Centres (num², 2) of the cells of a square, and their size."""
    axis = (torch.arange(num) + 0.5) / num * upper
    return torch.cartesian_prod(axis, axis), (upper / num) ** 2


@pytest.mark.parametrize("upper", [1.0, 1.7, 3.0])
def test_the_density_integrates_to_one_and_again_after_the_data_change(moved, upper):
    theta, cell = grid(upper)
    first, second = torch.tensor([0.1, 0.3]), torch.tensor([upper / 2, upper / 2])
    conditioned = moved.condition_on([upper])
    for x in (first, second, first):
        assert float(moved.log_prob(theta, x=x, context=[upper]).exp().sum() * cell) == pytest.approx(1, abs=0.02)
        conditioned.set_default_x(x)
        for _ in range(2):  # found, and then kept
            assert float(conditioned.log_prob(theta).exp().sum() * cell) == pytest.approx(1, abs=0.02)


def test_positive_parameters_in_logs_leak_nothing(tmp_path):
    """θ ~ Exp(γ) and one x = θ + noise: all draws of the net itself are positive, its density is normalised as it is."""
    prior = PowerScaledPrior(Independent(Exponential(torch.ones(1)), 1))
    settings = {"z_score_theta": "transform_to_unconstrained", **SMALL}
    trainer = ContextNPE(prior, show_progress_bars=False, **settings)
    simulator = lambda theta: theta + 0.5 * torch.randn_like(theta)  # noqa: E731
    trainer.append_simulations(*simulate_with_context(simulator, prior, 3000, seed=0))
    trainer.train(128, 3e-3, max_num_epochs=4, seed=0)
    posterior = trainer.build_posterior()
    theta, x = (torch.arange(2000).unsqueeze(-1) + 0.5) / 250, torch.tensor([0.1])
    assert posterior.estimator.sample((2000,), condition=torch.tensor([[0.1, 1.0]])).min() > 0
    density = posterior.log_prob(theta, x, [1.0], norm_posterior=False).exp()
    assert float(density.sum() / 250) == pytest.approx(1, abs=0.01)
    exact = torch.exp(-theta - 0.5 * ((x - theta) / 0.5) ** 2).squeeze(-1)
    mean = float((exact * theta.squeeze(-1)).sum() / exact.sum())
    # so short a training is 0.05 to 0.21 above, whatever the seed; the prior's mean is 0.65 above
    assert float((density * theta.squeeze(-1)).sum() / density.sum()) == pytest.approx(mean, abs=0.3)
    posterior.save(tmp_path / "posterior.pt")
    loaded = ContextPosterior.load(tmp_path / "posterior.pt", prior)
    assert torch.equal(loaded.log_prob(theta, x, [1.0], norm_posterior=False).exp(), density)
    with pytest.raises(ValueError, match="a support that is the same in all contexts"):
        ContextPosterior.load(tmp_path / "posterior.pt", MovedBox())


@pytest.mark.slow
def test_a_likelihood_learned_by_sbi_takes_any_power_without_training():
    theta = MODEL.prior.prior.sample((10_000,))
    inference = NLE(MODEL.prior.prior, show_progress_bars=False, tracker=NoTracker())
    inference.append_simulations(theta, MODEL(theta)).train(max_num_epochs=15)
    x, chains = torch.tensor([2.0, -1.0, 1.0, 0.5]), MCMCPosteriorParameters(num_chains=50, warmup_steps=50, thin=3)
    for power in (0.5, 2.0):
        prior = MODEL.prior.condition(power)
        posterior = inference.build_posterior(prior=prior, posterior_parameters=chains)
        draws, exact = (
            posterior.sample((1000,), x=x, show_progress_bars=False),
            MODEL.posterior(x, torch.full((3,), power)),
        )
        assert ((draws.mean(0) - exact.mean) / exact.stddev).abs().max() < 0.3
        torch.testing.assert_close(draws.std(0).double(), exact.stddev, rtol=0.15, atol=0)


# ---- training


def simulations(num=300):
    return simulate_with_context(MODEL, MODEL.prior, num, POWERS, seed=1)


def appended(theta, x, context, **settings):
    return small_trainer(**settings).append_simulations(theta, x, context)


def small_trainer(**settings):
    trainer = ContextNPE(MODEL.prior, show_progress_bars=False, **{**SMALL, **settings})
    return trainer.append_simulations(*simulations())


def log_prob_of(trainer):
    theta = torch.linspace(-1, 1, 15).reshape(5, 3)
    return trainer.build_posterior().log_prob(theta, x=torch.zeros(4), context=[1.0, 1.0, 1.0], norm_posterior=False)


def test_a_second_training_goes_on_from_the_first():
    trainer = small_trainer()
    trainer.train(64, 3e-3, max_num_epochs=3, seed=0)
    first = trainer.validation_losses
    trainer.append_simulations(*simulate_with_context(MODEL, MODEL.prior, 3000, POWERS, seed=5))
    trainer.train(64, 3e-3, max_num_epochs=3, seed=0)
    assert trainer.validation_losses[0] < first[0] - 0.5 and trainer.validation_losses[-1] < first[-1]


def test_time_is_limited():
    trainer = small_trainer()
    trainer.train(32, max_num_epochs=100_000, stop_after_epochs=100_000, max_seconds=0.5, seed=0)
    assert 1 <= len(trainer.validation_losses) < 1000


def test_ranges_are_learned_from_simulations_where_none_are_given():
    trainer = small_trainer()
    trainer.train(64, max_num_epochs=1, seed=0)
    posterior = trainer.build_posterior()
    posterior.sample((1,), x=torch.zeros(4), context=[0.5, 2.0, 1.0])  # bounds are reached up to a little
    for outside in ([0.4, 1.0, 1.0], [1.0, 1.0, 2.5]):
        with pytest.raises(ValueError, match="lies outside what the net was trained on"):
            posterior.sample((1,), x=torch.zeros(4), context=outside)
    assert posterior.contexts.log_columns == [True] * 3


def test_the_simulator_is_a_context_and_grouped_data_have_their_own_net(tmp_path):
    """Two simulators of opposite sign: which of them is meant decides the posterior."""
    prior = PowerScaledPrior(Independent(Normal(torch.zeros(1), torch.ones(1)), 1))
    contexts = Contexts(gamma=LogUniform(0.5, 2.0), simulator=Choice(("plus", "minus")))

    def simulate(theta, parts):
        sign = parts["simulator"] @ torch.tensor([[1.0], [-1.0]])
        values = (sign * theta).reshape(-1, 1, 1, 1) + torch.randn(len(theta), 2, 4, 1)
        return torch.cat([values, torch.ones_like(values)], -1)

    trainer = ContextNPE(
        prior, "mdn", show_progress_bars=False, embedding_net=HierarchicalEmbedding(1, hidden_dim=16), contexts=contexts
    )
    trainer.append_simulations(*simulate_with_context(simulate, prior, 4000, contexts, seed=0))
    trainer.train(128, 3e-3, max_num_epochs=5, seed=0)
    posterior = trainer.build_posterior()
    posterior.save(tmp_path / "posterior.pt")
    values = torch.randn(2, 4, 1)
    x = torch.cat([values - values.mean() + 1.5, torch.ones(2, 4, 1)], -1)
    plus, minus = (contexts.vector(gamma=1.0, simulator=name) for name in ("plus", "minus"))
    expected = 8 * 1.5 / 9
    assert float(posterior.sample((500,), x=x, context=plus).mean()) == pytest.approx(expected, abs=0.3)
    assert float(posterior.sample((500,), x=x, context=minus).mean()) == pytest.approx(-expected, abs=0.3)
    loaded = ContextPosterior.load(tmp_path / "posterior.pt", prior)
    theta = torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(loaded.log_prob(theta, x, plus, False), posterior.log_prob(theta, x, plus, False))


def test_a_net_of_a_users_own_is_given_again_to_load(tmp_path):
    trainer = small_trainer(embedding_net=nn.Linear(4, 5))
    trainer.train(64, max_num_epochs=1, seed=0)
    path = tmp_path / "posterior.pt"
    trainer.build_posterior().save(path)
    loaded = ContextPosterior.load(path, MODEL.prior, nn.Linear(4, 5))
    theta = torch.randn(3, 3)
    arguments = torch.zeros(4), [1.0, 1.0, 1.0], False
    assert torch.equal(loaded.log_prob(theta, *arguments), trainer.build_posterior().log_prob(theta, *arguments))
    with pytest.raises(ValueError, match="saved Linear cannot be rebuilt"):
        ContextPosterior.load(path, MODEL.prior)
    with pytest.raises(ValueError, match="do not fit"):
        ContextPosterior.load(path, MODEL.prior, nn.Linear(4, 6))


def test_ensembles_take_it():
    settings = {"training_batch_size": 64, "max_num_epochs": 1}
    ensemble = train_ensemble(small_trainer, 2, seed=0, train_settings=settings)
    x, context, theta = torch.zeros(4), [1.0, 1.0, 1.0], torch.zeros(2, 3)
    logs = torch.stack([member.log_prob(theta, x=x, context=context) for member in ensemble])
    expected = logs.exp().mean(0).log()
    torch.testing.assert_close(ensemble.log_prob(theta, x=x, context=context), expected, atol=1e-4, rtol=1e-4)
    assert ensemble.sample((7,), x=x, context=context).shape == (7, 3)
    assert ensemble.held_out_losses.shape == (2, round(0.05 * len(simulations()[0])))


def test_the_split_has_a_seed_of_its_own_and_the_losses_are_those_of_the_posterior():
    data = simulations()
    trainer = small_trainer()
    net = trainer.train(64, max_num_epochs=1, seed=0, split_seed=7)
    assert net is trainer.estimator
    with seeded(7):
        rows = torch.randperm(len(data[0]))[: round(0.05 * len(data[0]))]
    theta, x, context = (part[rows] for part in data)
    found = trainer.build_posterior().log_prob_batched(theta.unsqueeze(0), x, context, norm_posterior=False)
    torch.testing.assert_close(trainer.held_out_losses, -found.squeeze(0).double(), rtol=1e-4, atol=1e-4)


# ---- what is refused


def over_two_parameters():
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    return ContextNPE(prior, show_progress_bars=False).append_simulations(*simulations())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ContextNPE(3.0), TypeError, "prior must be"),
        (lambda: ContextNPE(MODEL.prior, embedding_net=3), TypeError, "torch module"),
        (lambda: ContextNPE(MODEL.prior, contexts=torch.ones(3)), TypeError, "Contexts"),
        (lambda: ContextNPE(MODEL.prior, context=POWERS), TypeError, "what contexts are drawn from is contexts="),
        (lambda: ContextNPE(MODEL.prior, x_dist=MODEL.prior.prior), TypeError, "x_dist is no .* known from prior"),
        (lambda: ContextNPE(MODEL.prior, z_score_x="none"), TypeError, "z_score_x is no setting of the estimator"),
        (lambda: ContextNPE(MODEL.prior).train(), ValueError, "there are no simulations"),
        (lambda: ContextNPE(MODEL.prior).build_posterior(), ValueError, "call train"),
        (
            lambda: appended(torch.ones(2, 3), torch.ones(3, 4), POWERS.sample((2,))),
            ValueError,
            "one length",
        ),
        (
            lambda: appended(torch.ones(2, 3), torch.ones(2, 5), POWERS.sample((2,))),
            ValueError,
            "one shape in all",
        ),
        (
            lambda: ContextNPE(MODEL.prior).append_simulations(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 1)),
            ValueError,
            "begin with the 3 powers",
        ),
        (
            lambda: appended(torch.ones(1, 3), torch.ones(1, 4), [[1, 1, 9.0]], contexts=POWERS),
            ValueError,
            "outside",
        ),
        (
            lambda: appended([[1, torch.nan, 1]], torch.ones(1, 4), torch.ones(1, 3)),
            ValueError,
            r"theta must be finite.*\(0, 1\)",
        ),
        (lambda: small_trainer(density_estimator="spline").train(), ValueError, "posterior_nn knows, got 'spline'"),
        (lambda: small_trainer().train(learning_rate=0.0), ValueError, "learning_rate"),
        (lambda: small_trainer().train(resume=True), ValueError, "resume=True needs"),
        (lambda: small_trainer().train(learning_rate=1e9, clip_max_norm=None, seed=0), ValueError, "NaN or infinite"),
        (
            lambda: (
                ContextNPE(BoxUniform(torch.zeros(2), torch.ones(2)), show_progress_bars=False)
                .append_simulations(*simulations())
                .train()
            ),
            ValueError,
            "the prior is over",
        ),
    ],
)
def test_trainings_that_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: p.sample((1,), x=torch.zeros(4)), "context must be given"),
        (lambda p: p.sample((1,), context=[1.0, 1.0, 1.0]), "x must be given"),
        (lambda p: p.sample((1,), x=torch.zeros(2, 4), context=[1.0] * 3), "one data set.*sample_batched"),
        (lambda p: p.sample((1,), x=torch.zeros(4), context=torch.ones(2, 3)), "must be one.*sample_batched"),
        (lambda p: p.sample((1,), x=torch.zeros(4), context=[1.0]), "3 values"),
        (lambda p: p.condition_on(torch.ones(2, 3)), "one context"),
        (lambda p: p.condition_on([0.1, 1.0, 1.0]), r"gamma\[0\] = 0.1 lies outside"),
        (lambda p: p.sample_batched((1,), torch.zeros(3, 4), torch.ones(2, 3)), "same length"),
        (lambda p: p.sample_batched((1,), torch.zeros(3, 5), torch.ones(3, 3)), r"x must be \(B, 4\)"),
        (lambda p: p.log_prob([[0, 0, torch.nan]], x=torch.zeros(4), context=[1.0] * 3), "theta must be finite"),
    ],
)
def test_questions_that_are_refused(gaussian, call, match):
    with pytest.raises(ValueError, match=match):
        call(gaussian)


def test_files_that_are_refused(tmp_path):
    from sbi_bed.utils.files import save_file

    save_file(tmp_path / "half.pt", "context_posterior", {"model": "maf"})
    with pytest.raises(ValueError, match="lacks parts of a context posterior"):
        ContextPosterior.load(tmp_path / "half.pt", MODEL.prior)
