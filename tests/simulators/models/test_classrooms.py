"""Three levels: evidences against Monte Carlo and direct integrals, identities of Bayes factors, invariances."""

import math

import pytest
import torch
from scipy import integrate, special, stats

from sbi_bed.simulators import Classrooms

COUNTS = torch.tensor([[[2, 3], [3, 3]], [[0, 2], [1, 3]]])  # right and all answers: two classes of two pupils


def packed(counts):
    answers = torch.arange(int(counts.max()))
    right = (answers < counts[..., :1]).float()
    return torch.stack([right, (answers < counts[..., 1:]).float()], -1)


def log_pupil(k, n, location, s=8.0):
    a, b = special.expit(location) * s, special.expit(-location) * s
    return special.betaln(a + k, b + n - k) - special.betaln(a, b)


def test_evidence_without_classes_is_an_integral_of_scipy():
    def integrand(location):
        terms = [log_pupil(k, n, location) for k, n in COUNTS.flatten(0, 1).tolist()]
        return math.exp(sum(terms) + stats.norm.logpdf(location))

    value = math.log(integrate.quad(integrand, -12, 12, epsabs=0, epsrel=1e-11)[0])
    assert float(Classrooms().log_evidence(packed(COUNTS), 0)) == pytest.approx(value, abs=1e-9)


def test_evidence_with_classes_is_the_mean_likelihood_of_prior_draws():
    draws, models = 400_000, Classrooms()
    school, spread = models.sample_parameters(1, draws).double().unbind(-1)
    likelihood = torch.ones(draws).double()
    for pupils in COUNTS.tolist():
        location = (school + spread * torch.randn(draws).double()).numpy()
        likelihood *= torch.from_numpy(sum(log_pupil(k, n, location) for k, n in pupils)).exp()
    error = 4 * float(likelihood.std()) / math.sqrt(draws)
    assert abs(float(models.log_evidence(packed(COUNTS), 1).exp() - likelihood.mean())) < error


@pytest.mark.parametrize("model_index", [0, 1])
def test_the_quadrature_has_converged(model_index):
    x = torch.cat([model(4) for model in Classrooms().models])
    coarse, fine = (Classrooms(spacing=spacing).log_evidence(x, model_index) for spacing in (0.05, 0.03))
    torch.testing.assert_close(coarse, fine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_index", [0, 1])
def test_probabilities_of_all_data_sum_to_one(model_index):
    counts = torch.tensor([[[[k, 2], [j, 1]], [[i, 2], [0, 0]]] for k in range(3) for j in range(2) for i in range(3)])
    orders = torch.tensor([math.comb(2, k) * math.comb(2, i) for k in range(3) for _ in range(2) for i in range(3)])
    value = Classrooms().log_evidence(packed(counts), model_index).exp()
    assert float((value * orders).sum()) == pytest.approx(1, abs=1e-9)


def test_mean_bayes_factor_is_one():
    models, num = Classrooms((1, 3), (1, 3), (1, 4), missing=0.1), 2000
    log_probs = models.log_probs(torch.cat([model(num) for model in models.models]))
    log_factor = log_probs[:, 1] - log_probs[:, 0]
    for factor in (log_factor[:num].exp(), (-log_factor[num:]).exp()):
        assert abs(float(factor.mean()) - 1) < 4 * float(factor.std()) / math.sqrt(num)


def test_order_at_each_level_and_padding_change_nothing():
    models = Classrooms(3, (2, 4), (1, 5), missing=0.2)
    x = models.simulate(1, 5)
    assert x.shape == (5, 3, 4, 5, 2) and not x[x[..., 1] == 0].any()
    shuffled = x[:, torch.randperm(3)][:, :, torch.randperm(4)][:, :, :, torch.randperm(5)]
    padded = torch.nn.functional.pad(shuffled, (0, 0, 0, 2, 0, 1, 0, 3))
    for model_index in (0, 1):
        value, other = models.log_evidence(x, model_index), models.log_evidence(padded, model_index)
        torch.testing.assert_close(value, other, rtol=0, atol=1e-9)


def test_pupils_of_a_class_are_alike_where_classes_differ():
    models = Classrooms(200, 30, 30)
    share = models.simulate_parameters(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))[..., 0].mean((2, 3))
    within = (0.25 / 9 * (1 + 8 / 30)) / 30  # variance of a class mean if all classes are one: beta-binomial shares
    assert float(share[0].var()) == pytest.approx(within, rel=0.4)
    assert float(share[1].var()) > 10 * within


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="answers must be 0 or 1"):
        Classrooms().log_evidence(torch.full((1, 1, 1, 2), 1.0) * torch.tensor([0.5, 1.0]), 0)
    with pytest.raises(ValueError, match="concentration and spacing must be positive"):
        Classrooms(concentration=0.0)
    with pytest.raises(ValueError, match="missing is a share"):
        Classrooms(missing=1.0)
