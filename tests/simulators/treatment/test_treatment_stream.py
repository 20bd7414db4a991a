"""Treatment problems: moments against simulated outcomes, variances of designs against their definition."""

import math

import pytest
import torch

from sbi_bed.policies import CoinFlip, NeymanTeacher
from sbi_bed.simulators import TreatmentProblem, TreatmentStream, assign_stream, linear_benchmark, two_arm_benchmark
from sbi_bed.simulators.treatment.function_basis import CosineSeries, RandomFeatures


def half(x):
    return torch.full(x.shape[:-1], 0.5).double()


@pytest.mark.parametrize("covariate_dim", [0, 1, 2])
def test_regret_is_what_a_design_adds_to_the_bound(covariate_dim):
    problem = TreatmentStream(1.5, covariate_dim).sample(5, seed=0)
    x = problem.nodes.expand(5, -1, -1)
    mean, variance = problem.moments(x)
    effect = mean[..., 1] - mean[..., 0]

    def design(x):
        return 0.2 + 0.5 * torch.sigmoid(x.sum(-1))

    e = design(x)
    direct = variance[..., 1] / e + variance[..., 0] / (1 - e) + (effect - effect.mean(1, keepdim=True)).square()
    torch.testing.assert_close(problem.variance(design), direct.mean(1))
    torch.testing.assert_close(problem.effect, effect.mean(1))
    torch.testing.assert_close(problem.variance(problem.oracle), problem.bound)


def test_benchmarks_have_the_known_answers():
    problem = two_arm_benchmark()
    assert float(problem.bound) == 16 and float(problem.oracle(torch.zeros(1, 0).double())) == 0.75
    assert float(problem.variance(half)) == 20
    problem = linear_benchmark()
    assert float(problem.bound) == pytest.approx(1.21, abs=1e-12)
    assert float(problem.variance(half)) == pytest.approx(1.46, abs=1e-12)
    assert float(problem.effect) == pytest.approx(0.5, abs=1e-12)
    x = problem.draw_covariates(4000)
    assert x.shape == (4000, 5) and x.mean(0).abs().max() < 4 / math.sqrt(4000)
    torch.testing.assert_close(problem.moments(x)[0][:, 0], x.sum(-1) + 0.3)


@pytest.mark.parametrize("outcome", ["normal", "binary"])
def test_outcomes_have_the_moments_that_the_problem_tells(outcome):
    problem = TreatmentStream((0.5, 4.0), outcome=outcome).sample(3, seed=1)
    x = problem.draw_covariates(1).expand(3, 40_000, 1)
    y, (mean, variance) = problem.outcomes(x), problem.moments(x[:, :1])
    assert ((y.mean(1) - mean[:, 0]).abs() < 4 * (variance[:, 0] / 40_000).sqrt()).all()
    torch.testing.assert_close(y.var(1), variance[:, 0], rtol=0.05, atol=0)
    if outcome == "binary":
        assert set(y.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(variance, mean * (1 - mean))


def test_users_simulate_outcomes_themselves():
    def skewed(mean, variance):
        return mean + variance.sqrt() * (torch.distributions.Exponential(1.0).sample(mean.shape) - 1)

    problem = TreatmentStream(1.5, outcome=skewed).sample(1, seed=0)
    x = torch.full((1, 50_000, 1), 0.3)
    y, (mean, variance) = problem.outcomes(x), problem.moments(x)
    score = (y - mean) / variance.sqrt()
    assert float(score.min()) >= -1 - 1e-9
    assert (score.pow(3).mean((0, 1)) - 2).abs().max() < 0.3  # an exponential's skewness, its third moment's sd is 20


def test_random_functions_have_the_prior_they_say():
    basis = CosineSeries(1, 10)
    nodes = (torch.arange(512).double().unsqueeze(-1) + 0.5) / 512
    features = basis.features(nodes)
    torch.testing.assert_close(features.mT @ features / 512, torch.eye(10).double())
    sd = basis.sd(1.5, 2.0)
    assert float(sd.square().sum()) == pytest.approx(4) and float(sd[0] ** 2) == pytest.approx(4 / 3)
    torch.testing.assert_close(sd[1:] / sd[1], torch.arange(1, 10).double() ** -2.0)
    two = CosineSeries(2, 6)
    assert two.indices.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [2, 0]]
    grid = torch.cartesian_prod(nodes[::8, 0], nodes[::8, 0]) + 3.5 / 512
    features = two.features(grid)
    torch.testing.assert_close(features.mT @ features / len(grid), torch.eye(6).double())
    problems = TreatmentStream((0.5, 4.0), mean_scale=1.3).sample(3000, seed=2)
    values = problems.moments(torch.full((3000, 1, 1), 0.21))[0][problems.smoothness_class == 1].flatten()
    features = basis.features(torch.tensor([0.21]).double())
    expected = float((features * basis.sd(4.0, 1.3)).square().sum())
    assert float(values.square().mean()) == pytest.approx(expected, rel=4 * math.sqrt(2 / len(values)))


def test_random_features_of_many_covariates():
    basis = RandomFeatures(6, 40, 1.5, seed=3)
    x = torch.rand(5, 6).double()
    features = basis.features(x)
    assert features.shape == (5, 40) and len(basis.sd(1.5, 1.0)) == 40
    torch.testing.assert_close(features[:, 1:7], (x - 0.5) * math.sqrt(12))
    torch.testing.assert_close(features, RandomFeatures(6, 40, 1.5, seed=3).features(x))


def test_units_are_the_same_whoever_assigns_them():
    problem = TreatmentStream(1.5).sample(4, seed=0)
    coin = assign_stream(problem, CoinFlip(1), 60, seed=5)
    taught = assign_stream(problem, NeymanTeacher(1, 1.5), 60, seed=5, with_predictions=True)
    assert coin.history.shape == (4, 60, 4) and coin.mean is None and taught.mean.shape == (4, 60, 2)
    assert torch.equal(coin.history[..., 0], taught.history[..., 0])
    same = coin.history[..., 1] == taught.history[..., 1]
    assert same.any() and torch.equal(coin.history[..., 2][same], taught.history[..., 2][same])
    assert torch.equal(coin.history[:, :20], taught.history[:, :20])  # the burn-in is a coin
    torch.testing.assert_close(coin.regret, problem.regret(coin.history[..., :1], half(coin.history[..., :1])))
    again = assign_stream(problem, CoinFlip(1), 60, seed=5)
    assert torch.equal(coin.history, again.history)


def test_arms_come_with_their_propensity():
    problem = TreatmentProblem(
        lambda n: torch.zeros(5000, n, 0).double(),
        lambda x: (torch.zeros(*x.shape[:-1], 2).double(), torch.ones(*x.shape[:-1], 2).double()),
        torch.zeros(1, 0),
        batch_shape=(5000,),
    )
    teacher = NeymanTeacher(0, burn_in=0, refit_every=1)
    rollout = assign_stream(problem, teacher, 3, seed=0)
    gap = rollout.history[..., 0] - rollout.propensity
    error = (rollout.propensity * (1 - rollout.propensity)).mean().sqrt() / math.sqrt(5000)
    assert (gap.mean(0).abs() < 4 * error).all()


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="smoothness must be positive, got -1"):
        TreatmentStream(-1.0)
    with pytest.raises(ValueError, match="a number or several"):
        TreatmentStream([])
    with pytest.raises(ValueError, match="log_variance_scale must be positive"):
        TreatmentStream(1.5, log_variance_scale=0.0)
    with pytest.raises(ValueError, match="'normal', 'binary' or a simulator"):
        TreatmentStream(1.5, outcome="poisson")
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        two_arm_benchmark().regret(torch.zeros(1, 0), torch.ones(1))
    with pytest.raises(ValueError, match="num_functions must be at least 8"):
        RandomFeatures(6, 5, 1.5)
    with pytest.raises(ValueError, match="num_episodes must be at least 1"):
        TreatmentStream(1.5).sample(0)
