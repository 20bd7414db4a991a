"""One net for all priors: against exact answers, against separate nets, and what a thousand priors cost."""

import time

import pytest
import torch
from models import LinearGaussianData
from report import report
from sbi.utils import BoxUniform
from sbi.utils.metrics import c2st

from sbi_bed.diagnostics import prior_sensitivity, probability_recovery
from sbi_bed.inference import ContextModelPosterior, ContextNPE, ModelComparison
from sbi_bed.neural_nets import ContextEmbedding, HierarchicalEmbedding
from sbi_bed.simulators import (
    Contexts,
    CovidOutbreak,
    LogUniform,
    NestedNormal,
    PowerScaledPrior,
    UniformRange,
    simulate_models_with_context,
    simulate_with_context,
)
from sbi_bed.utils import pack_context

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_sensitivity.py -k"
MODEL = LinearGaussianData()
POWERS = Contexts(gamma=LogUniform(0.5, 2.0, 3))
SETTINGS = {"training_batch_size": 256, "learning_rate": 2e-3, "max_num_epochs": 20, "seed": 0}


class Clock:
    """Seconds of processor and of wall since it was made."""

    def __init__(self):
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def __str__(self):
        return f"{time.process_time() - self.cpu:.0f} CPU s, {time.perf_counter() - self.wall:.0f} s"


def train_gaussian(num_simulations, contexts=POWERS):
    trainer = ContextNPE(MODEL.prior, show_progress_bars=False, contexts=contexts)
    trainer.append_simulations(*simulate_with_context(MODEL, MODEL.prior, num_simulations, contexts, seed=1))
    trainer.train(**SETTINGS)
    return trainer.build_posterior()


def errors_of_means_and_sds(posterior, x, context, num=2000):
    """Mean |error of means| in exact sd and ratio of sds, over data sets and parameters, each (B,)."""
    draws, exact = posterior.sample_batched((num,), x, context).double(), MODEL.posterior(x, context)
    return ((draws.mean(0) - exact.mean) / exact.stddev).abs().mean(-1), (draws.std(0) / exact.stddev).mean(-1)


def c2st_to_exact(posterior, x, context, num=1000):
    """Accuracy with which a classifier tells draws from exact ones, for each data set."""
    draws, exact = posterior.sample_batched((num,), x, context), MODEL.posterior(x, context).sample((num,)).float()
    return torch.tensor([float(c2st(exact[:, i], draws[:, i])) for i in range(len(x))])


def mean_of(values):
    return f"{float(values.mean()):.3f} ± {float(values.std()) / len(values) ** 0.5:.3f}"


def test_linear_gaussian_at_every_power():
    """One net of 60,000 simulations; beside it three, each of 20,000 at a power of its own."""
    clock = Clock()
    posterior = train_gaussian(60_000)
    _, x, context = simulate_with_context(MODEL, MODEL.prior, 200, POWERS, seed=2)
    error, ratio = errors_of_means_and_sds(posterior, x, context)
    name, command = "linear-Gaussian, 3 powers in [0.5, 2]", f"{COMMAND} linear"
    text = f"error of means {mean_of(error)} sd, sd ratio {mean_of(ratio)} ({float(ratio.min()):.3f} to "
    report(f"{name}, 200 data sets", f"{text}{float(ratio.max()):.3f}); {clock}", command)
    assert error.mean() <= 0.1 and 0.93 <= ratio.mean() <= 1.07
    for gamma in (0.5, 1.0, 2.0):
        powers = torch.full((6, 3), gamma)
        theta = MODEL.prior.condition(gamma).sample((6,))
        at = MODEL(theta)
        alone = Contexts(gamma=LogUniform(gamma * 0.9999, gamma * 1.0001, 3))
        separate = train_gaussian(20_000, alone)
        found, other = (c2st_to_exact(p, at, powers) for p in (posterior, separate))
        means, others = (errors_of_means_and_sds(p, at, powers)[0] for p in (posterior, separate))
        text = f"C2ST {mean_of(found)}, error of means {mean_of(means)} sd; separate net C2ST {mean_of(other)}, "
        report(f"{name}, all at {gamma:g}", f"{text}{mean_of(others)} sd", command)
        assert found.mean() <= 0.55 and found.mean() <= other.mean() + 0.02
    grid = torch.tensor([0.5, 0.7, 1.0, 1.4, 2.0]).unsqueeze(-1).expand(-1, 3)
    print(prior_sensitivity(posterior, x[0], grid, seed=0))


class MovedBox:
    """U(0, upper)², where the context is `upper`."""

    def condition(self, context):
        return BoxUniform(torch.zeros(*context.shape[:-1], 2), context.expand(*context.shape[:-1], 2))


def test_a_support_that_moves():
    contexts = Contexts(upper=UniformRange(1.0, 3.0))
    trainer = ContextNPE(MovedBox(), show_progress_bars=False, contexts=contexts)
    simulator = lambda theta: theta + 0.5 * torch.randn_like(theta)  # noqa: E731
    trainer.append_simulations(*simulate_with_context(simulator, MovedBox(), 20_000, contexts, seed=0))
    trainer.train(**SETTINGS)
    posterior, integrals, outside, total = trainer.build_posterior(), [], 0, 0
    for upper in torch.linspace(1, 3, 9).tolist():
        axis = (torch.arange(150) + 0.5) / 150 * upper
        theta, conditioned = torch.cartesian_prod(axis, axis), posterior.condition_on([upper])
        for x in ([0.1, 0.3], [upper / 2, upper], [upper, upper + 0.3]):
            conditioned.set_default_x(torch.tensor(x))
            integrals.append(float(conditioned.log_prob(theta).exp().sum() * (upper / 150) ** 2))
            draws = posterior.sample((10_000,), x=x, context=[upper])
            outside, total = outside + int(((draws < 0) | (draws > upper)).any(-1).sum()), total + len(draws)
    integrals = torch.tensor(integrals)
    text = f"{outside} of {total:,} draws outside, density integrates to {float(integrals.min()):.4f} to "
    report("uniform prior, bounds moved by the context", f"{text}{float(integrals.max()):.4f}", f"{COMMAND} support")
    assert outside == 0 and (integrals - 1).abs().max() <= 0.02


def test_model_probabilities_under_scaled_priors():
    """Nested normals, 20 × 20: γ of the prior of μ from 0.1 to 10, against exact probabilities at each γ."""
    contexts, models, clock = Contexts(gamma=LogUniform(0.1, 10.0)), NestedNormal(20, 20), Clock()
    model_index, x, context = simulate_models_with_context(models.scaled_models, 60_000, contexts, seed=1)
    embedding = ContextEmbedding(models.x_shape, 1, HierarchicalEmbedding(1), contexts.log_columns)
    trainer = ModelComparison(2, embedding, show_progress_bars=False)
    trainer.append_simulations(model_index, pack_context(x, context))
    trainer.train(128, max_num_epochs=12, seed=0, vary_sizes=False)
    trained = str(clock)
    posterior = ContextModelPosterior(trainer.build_posterior(), contexts)
    _, test_x, test_context = simulate_models_with_context(models.scaled_models, 1000, contexts, seed=2)
    exact = torch.stack(
        [
            NestedNormal(20, 20, mean_variance=1 / float(gamma)).log_probs(data)
            for data, gamma in zip(test_x, test_context, strict=True)
        ]
    )
    found = probability_recovery(exact, posterior.log_probs(test_x, test_context))
    at = torch.tensor([[0.1], [0.3], [1.0], [3.0], [10.0]])
    print(prior_sensitivity(posterior, test_x[:200], at))
    name = "nested normal 20 × 20, γ in [0.1, 10], 60,000 simulations"
    report(name, f"{found}; {trained}", f"{COMMAND} probabilities")
    assert found.kl <= 0.004


def coverage_errors(posterior, theta, x, context, num=99):
    """Median over levels of |coverage of central intervals − level|, for each parameter, (P,)."""
    below = (posterior.sample_batched((num,), x, context) < theta).sum(0)
    place = (below + 0.5) / (num + 1)
    levels = torch.linspace(0.05, 0.95, 19)
    covered = ((place - 0.5).abs().unsqueeze(-1) <= levels / 2).double().mean(0)
    return (covered - levels).abs().median(-1).values


@pytest.mark.parametrize("num_simulations", [4000, 32_000])
def test_an_outbreak_under_a_thousand_priors(num_simulations):
    """Five powers; beside one net three of their own; the time of 1000 priors, of three measured and extrapolated."""
    outbreak = CovidOutbreak()
    prior, contexts = PowerScaledPrior(outbreak.prior), Contexts(gamma=LogUniform(0.5, 2.0, 5))
    name, command = f"outbreak, 5 powers, {num_simulations:,} simulations", f"{COMMAND} outbreak"

    logs = {"z_score_theta": "transform_to_unconstrained"}

    def train(in_contexts):
        net = torch.nn.Sequential(torch.nn.Linear(14, 64), torch.nn.SiLU(), torch.nn.Linear(64, 32))
        trainer = ContextNPE(prior, show_progress_bars=False, embedding_net=net, contexts=in_contexts, **logs)
        trainer.append_simulations(*simulate_with_context(outbreak, prior, num_simulations, in_contexts, seed=1))
        trainer.train(128, 1e-3, max_num_epochs=40, seed=0)
        return trainer.build_posterior()

    torch.manual_seed(0)
    clock = Clock()
    posterior = train(contexts)
    together = time.process_time() - clock.cpu
    theta, x, context = simulate_with_context(outbreak, prior, 4000, contexts, seed=2)
    errors = coverage_errors(posterior, theta, x, context)
    grid = contexts.sample((1000,))
    clock = Clock()
    posterior.sample_batched((200,), x[:1], grid)
    asking, alone, separate = time.process_time() - clock.cpu, [], []
    for gamma in (0.5, 1.0, 2.0):
        clock = Clock()
        single = Contexts(gamma=LogUniform(gamma * 0.9999, gamma * 1.0001, 5))
        net = train(single)
        alone.append(time.process_time() - clock.cpu)
        at_theta, at_x, _ = simulate_with_context(outbreak, prior, 1000, single, seed=3)
        at = at_theta, at_x, torch.full((1000, 5), gamma)
        pair = [float(coverage_errors(p, *at).mean()) for p in (posterior, net)]
        separate.append(pair)
    report(name, f"calibration error {float(errors.mean()):.4f} ({', '.join(f'{e:.4f}' for e in errors)})", command)
    text = "; ".join(f"{one:.4f} against {other:.4f}" for one, other in separate)
    report(f"{name}, at powers 0.5, 1, 2 against a net of its own", text, command)
    each = sum(alone) / 3
    text = (
        f"one net {together:.0f} CPU s and {asking:.1f} s for 1000 priors; 3 nets of their own {sum(alone):.0f} CPU s, "
    )
    report(f"{name}, time", f"{text}{1000 * each:.0f} s for 1000 (extrapolated)", command)
    assert errors.mean() <= 0.01
