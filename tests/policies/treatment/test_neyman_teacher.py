"""The teacher's beliefs against closed forms and integrals, and what a posterior cannot depend on."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sbi_bed.policies import CoinFlip, NeymanTeacher
from sbi_bed.policies.treatment.base import neyman_propensity
from sbi_bed.simulators import TreatmentProblem, TreatmentStream, assign_stream, binary_outcomes

UNIT = {"outcome_centre": 0.0, "outcome_scale": 1.0}
ALMOST_KNOWN = 1e-4  # a log_variance_scale with which the noise is known to have variance 1


def some_units(num, covariate_dim=1, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*batch, num, covariate_dim, generator=generator).double()
    arm = (torch.rand(*batch, num, 1, generator=generator) < 0.5).double()
    y = arm + (1 + arm) * torch.randn(*batch, num, 1, generator=generator).double()
    return torch.cat([x, arm, y, torch.ones_like(y)], -1)


@pytest.mark.parametrize("covariate_dim", [0, 1, 2, 6])
def test_order_of_units_changes_nothing(covariate_dim):
    history = some_units(47, covariate_dim, (3,))
    teacher, x = NeymanTeacher(covariate_dim), torch.rand(3, covariate_dim)
    shuffled = history[:, torch.randperm(47)]
    torch.testing.assert_close(teacher(history, x), teacher(shuffled, x), rtol=0, atol=1e-10)
    torch.testing.assert_close(teacher.log_evidence(history), teacher.log_evidence(shuffled), rtol=1e-10, atol=0)


def test_units_that_are_not_observed_and_the_batch_change_nothing():
    history = some_units(40, 1, (3,))
    history[0, 25:, -1], history[1, ::7, -1] = 0, 0
    teacher, x = NeymanTeacher(1, burn_in=5), torch.rand(3, 1)
    found = teacher(history, x)
    for row in range(3):
        seen = history[row][history[row, :, -1] > 0]
        torch.testing.assert_close(teacher(seen, x[row]), found[row], rtol=0, atol=1e-10)
        torch.testing.assert_close(teacher.log_evidence(seen), teacher.log_evidence(history)[row], rtol=1e-10, atol=0)


def test_with_known_noise_beliefs_are_those_of_a_bayesian_regression():
    history, teacher = some_units(60), NeymanTeacher(1, 1.5, log_variance_scale=ALMOST_KNOWN, **UNIT)
    x = torch.rand(1)
    mean, log_variance = teacher.predict(teacher.read(history), x)
    features, next_one = (teacher.units.features(part.double()) for part in (history[:, :1], x))
    prior = torch.diag(teacher.mean_sd**2)
    log_evidence = 0.0
    for arm in (0, 1):
        rows = history[:, 1] == arm
        phi, y = features[rows], history[rows, 2]
        gain = prior @ phi.mT @ torch.linalg.inv(phi @ prior @ phi.mT + torch.eye(len(y)))
        assert float(mean[arm]) == pytest.approx(float(next_one @ gain @ y), abs=1e-6)
        variance = 1 + next_one @ (prior - gain @ phi @ prior) @ next_one
        assert float(log_variance[arm].exp()) == pytest.approx(float(variance), rel=1e-6)
        covariance = phi @ prior @ phi.mT + torch.eye(len(y))
        log_evidence += torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    assert float(teacher.log_evidence(history)) == pytest.approx(float(log_evidence), abs=1e-5)


@pytest.mark.parametrize("num", [6, 60])
def test_evidence_is_near_the_integral_over_the_noise(num):
    """Without covariates what is left is one integral for each arm; Laplace's error falls as 1/n.

    It depends on how far the variance is from the prior's: of 60 histories each of 6, 20, 60 and 200 units, n times the
    error was 1.4 to 1.5 in the mean, with sd 1.2, and at most 4.2: the threshold is 4.5 standard errors of 60 above.
    """
    teacher = NeymanTeacher(0, log_variance_scale=1.5, mean_scale=1.0, **UNIT)

    def log_integral(y):
        def integrand(v):
            n, s2 = len(y), math.exp(v)
            quadratic = (y @ y - y.sum() ** 2 / (n + s2)) / s2
            log_density = -0.5 * (n * math.log(2 * math.pi * s2) + math.log1p(n / s2) + quadratic)
            return math.exp(log_density) * stats.norm.pdf(v, scale=1.5)

        return math.log(integrate.quad(integrand, -8, 8, epsabs=0)[0])

    errors = []
    for seed in range(60):
        history = some_units(num, 0, seed=seed)
        exact = sum(log_integral(history[history[:, 0] == arm, 1].numpy()) for arm in (0, 1))
        errors.append(num * abs(float(teacher.log_evidence(history)) - exact))
    assert np.mean(errors) < 2.2


def test_evidence_and_predictions_follow_the_units_of_outcome_and_covariates():
    history = some_units(50)
    other = history * torch.tensor([4.0, 1.0, 100.0, 1.0]) + torch.tensor([-1.0, 0.0, 7.0, 0.0])
    scaled = NeymanTeacher(1, covariate_low=-1.0, covariate_high=3.0, outcome_centre=7.0, outcome_scale=100.0)
    plain, x = NeymanTeacher(1, **UNIT), torch.tensor([0.3]).double()
    torch.testing.assert_close(plain(history, x), scaled(other, 4 * x - 1))
    torch.testing.assert_close(plain.log_evidence(history) - 50 * math.log(100), scaled.log_evidence(other))
    mean, log_variance = plain.predict(plain.read(history), x)
    found = scaled.predict(scaled.read(other), 4 * x - 1)
    torch.testing.assert_close(found[0], 100 * mean + 7)
    torch.testing.assert_close(found[1], log_variance + 2 * math.log(100))


def binary_units(num, seed=0, values=(0.0, 1.0)):
    history = some_units(num, seed=seed)
    share = torch.where(history[:, 1] > 0, 0.2 + 0.6 * history[:, 0], 0.05 + 0.2 * history[:, 0])
    ones = torch.rand(num, generator=torch.Generator().manual_seed(seed + 1)).double() < share
    history[:, 2] = torch.where(ones, values[1], values[0])
    return history


def test_binary_beliefs_are_near_the_integral_over_the_logit():
    """Without covariates what is left is one integral for each arm."""
    history, teacher = binary_units(60)[:, 1:], NeymanTeacher(0, outcome_space="binary", logit_scale=1.5)
    rate = (float(history[:, 1].sum()) + 0.5) / (len(history) + 1)
    centre, total = math.log(rate / (1 - rate)), 0.0
    mean, log_variance = teacher.predict(teacher.read(history), torch.zeros(0))
    for arm in (0, 1):
        y = history[history[:, 0] == arm, 1].numpy()

        def integrand(w, extra=0.0, y=y):
            p = 1 / (1 + math.exp(-centre - w))
            log_density = y.sum() * math.log(p) + (len(y) - y.sum()) * math.log(1 - p)
            return math.exp(log_density) * stats.norm.pdf(w, scale=1.5) * p**extra

        evidence = integrate.quad(integrand, -9, 9, epsabs=0)[0]
        expected = integrate.quad(lambda w, f=integrand: f(w, 1.0), -9, 9, epsabs=0)[0] / evidence
        total += math.log(evidence)
        assert float(mean[arm]) == pytest.approx(expected, abs=0.02)
        assert float(log_variance[arm].exp()) == pytest.approx(float(mean[arm] * (1 - mean[arm])))
    assert float(teacher.log_evidence(history)) == pytest.approx(total, abs=0.1)


def test_two_values_are_binary_until_there_is_a_third():
    history, x = binary_units(60, values=(3.0, 5.0)), torch.tensor([0.8])
    told = history.clone()
    told[:, 2] = (history[:, 2] - 3) / 2
    torch.testing.assert_close(NeymanTeacher(1)(history, x), NeymanTeacher(1, outcome_space="binary")(told, x))
    assert abs(float(NeymanTeacher(1)(history, x) - NeymanTeacher(1, outcome_space="real")(history, x))) > 1e-3
    history[-1, 2] = 4.0
    assert float(NeymanTeacher(1)(history, x)) == float(NeymanTeacher(1, outcome_space="real")(history, x))
    with pytest.raises(ValueError, match="binary outcomes are 0 or 1, got 3"):
        NeymanTeacher(1, outcome_space="binary")(history, x)
    with pytest.raises(ValueError, match="outcome_space must be 'real', 'binary' or None, got 'counts'"):
        NeymanTeacher(1, outcome_space="counts")


@pytest.mark.parametrize("shares", [(0.05, 0.2, 0.2, 0.6), (0.02, 0.02, 0.1, 0.1)])
def test_on_binary_outcomes_the_teacher_is_better_than_a_coin(shares):
    low, slope, other, other_slope = shares

    def moments(x):
        p = torch.cat([low + slope * x, other + other_slope * x], -1)
        return p, p * (1 - p)

    nodes = (torch.arange(100).double().unsqueeze(-1) + 0.5) / 100
    problem = TreatmentProblem(lambda n: torch.rand(n, 1).double(), moments, nodes, binary_outcomes, (60,))
    problem.draw_covariates = lambda n: torch.rand(60, n, 1).double()
    regret, coin = (
        assign_stream(problem, policy, 150, seed=0).regret.mean(-1) / problem.bound
        for policy in (NeymanTeacher(1), CoinFlip(1))
    )
    assert float(regret.mean()) + 3 * float(regret.std()) / 60**0.5 < float(coin.mean())


def test_right_smoothness_has_the_higher_evidence():
    alphas, num = (0.5, 4.0), 200
    for true in alphas:
        problem = TreatmentStream(true).sample(num, seed=3)
        x = problem.draw_covariates(150)
        arm = torch.bernoulli(torch.full((num, 150, 1), 0.5)).double()
        y = problem.outcomes(x).gather(-1, arm.long())
        history = torch.cat([x, arm, y, torch.ones_like(y)], -1)
        evidence = torch.stack([NeymanTeacher(1, alpha).log_evidence(history) for alpha in alphas], -1)
        gap = (evidence[:, alphas.index(true)] - evidence[:, 1 - alphas.index(true)]).double()
        assert float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(num)


def test_rules():
    history, x = some_units(80), torch.rand(1)
    teachers = {rule: NeymanTeacher(1, rule=rule) for rule in ("predictive", "posterior", "plug-in")}
    state = teachers["posterior"].read(history)
    e = torch.linspace(0.01, 0.99, 9801).double()
    variance = teachers["predictive"].predict(state, x)[1].exp()
    best = e[(variance[1] / e + variance[0] / (1 - e)).argmin()]
    assert float(teachers["predictive"](history, x)) == pytest.approx(float(best), abs=2e-4)
    _, _, log_variance, spread = teachers["posterior"]._moments(state, x)
    draws = log_variance + spread.sqrt() * torch.randn(400_000, 2).double()
    sample = neyman_propensity(draws, 1e-6)
    error = 4 * float(sample.std()) / math.sqrt(len(sample))
    assert float(teachers["posterior"](history, x)) == pytest.approx(float(sample.mean()), abs=error)
    expected = neyman_propensity(log_variance, 0.05)
    torch.testing.assert_close(teachers["plug-in"](history, x), expected)


def test_propensities_are_clipped_and_the_burn_in_is_a_coin():
    history = some_units(60)
    history[:, 2] = torch.where(history[:, 1] > 0, 1000.0, 0.001) * torch.randn(60)
    teacher = NeymanTeacher(1, clip=0.1)
    assert float(teacher(history, torch.rand(1))) == 0.9
    assert float(teacher(history[:19], torch.rand(1))) == 0.5


def test_between_refits_beliefs_stay():
    history, x = some_units(25), torch.tensor([0.4])
    teacher = NeymanTeacher(1, refit_every=10, burn_in=0)
    state, found = teacher.initial_state(), []
    for unit in history:
        state = teacher.update(state, unit[:1], unit[1], unit[2])
        found.append(float(teacher.propensity(state, x)))
    for t in range(25):
        assert found[t] == pytest.approx(float(teacher(history[: (t + 1) // 10 * 10], x)), abs=1e-12)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="clip must lie between 0 and 1/2"):
        NeymanTeacher(1, clip=0.5)
    with pytest.raises(ValueError, match="smoothness must be positive"):
        NeymanTeacher(1, smoothness=0.0)
    with pytest.raises(ValueError, match="rule must be 'predictive', 'posterior' or 'plug-in', got 'best'"):
        NeymanTeacher(1, rule="best")
    with pytest.raises(ValueError, match="mean_scale must be positive"):
        NeymanTeacher(1, mean_scale=-1.0)
    with pytest.raises(ValueError, match="outcome_scale must be positive"):
        NeymanTeacher(1, outcome_scale=0.0)
    with pytest.raises(ValueError, match="covariate_high must be above covariate_low"):
        NeymanTeacher(1, covariate_low=1.0)
    teacher, history = NeymanTeacher(1), some_units(4)
    with pytest.raises(ValueError, match="history must have 4 values in its last dimension"):
        teacher(history[:, 1:], torch.zeros(1))
    with pytest.raises(ValueError, match=r"arm of a unit must be 0 or 1, got 0.5 at \(2,\)"):
        teacher(history.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(0.5).double()), torch.zeros(1))
    with pytest.raises(ValueError, match=r"history must be finite.*\(1, 2\)"):
        teacher(history.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan).double()), torch.zeros(1))
    with pytest.raises(ValueError, match="of one batch"):
        teacher(history, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="units, d"):
        teacher(history[0], torch.zeros(1))
