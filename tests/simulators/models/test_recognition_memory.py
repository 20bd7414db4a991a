"""Signal detection and two high thresholds: evidences against plain Monte Carlo and each other's mean Bayes factor."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from sbi_bed.simulators import MultinomialTree, RecognitionMemory, SignalDetection
from sbi_bed.simulators.models import multinomial_tree
from sbi_bed.simulators.models.recognition_memory import answer_counts

POINTS, NODES = 2**12, 41


def small(num_persons=2, words=4, missing=0.0):
    return RecognitionMemory(
        num_persons, words, words, missing, multinomial_tree=MultinomialTree(num_points=POINTS, num_nodes=NODES)
    )


@pytest.mark.parametrize("model_index", [0, 1])
def test_evidence_is_the_mean_likelihood_of_prior_draws(model_index):
    models = small()
    counts = torch.tensor([[[3, 4, 1, 4], [4, 4, 0, 3]], [[2, 4, 2, 4], [0, 0, 0, 0]], [[0, 4, 4, 4], [1, 4, 4, 4]]])
    draws = 200_000
    hit, false_alarm = (rate.double() for rate in models.kinds[model_index].sample_rates(draws, 2))
    for data, value in zip(counts, models.kinds[model_index].log_evidence(counts).tolist(), strict=True):
        k, n, j, m = data.double().unbind(-1)
        likelihood = (hit**k * (1 - hit) ** (n - k) * false_alarm**j * (1 - false_alarm) ** (m - j)).prod(1)
        error = 4 * float(likelihood.std()) / math.sqrt(draws) + 0.01 * model_index * math.exp(value)
        assert abs(float(likelihood.mean()) - math.exp(value)) < error


def test_signal_detection_is_converged():
    counts = small(25, 25).models[1](20)
    counts = torch.cat([counts, small(25, 25).models[0](20)])
    values = [
        RecognitionMemory(signal_detection=SignalDetection(spacing=spacing)).log_evidence(counts, 0)
        for spacing in ((0.04, 0.1), (0.025, 0.06))
    ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)


def test_signal_detection_in_extreme_answers():
    """Everyone right always: the table's tails, against an integral in closed form, E[∫ Φ(h) N(h; μ, σ²) dh] of one word."""
    counts = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 0, 0]]])
    values = SignalDetection().log_evidence(counts).exp()
    assert float(values.sum()) == pytest.approx(1, abs=1e-6)
    sd = torch.linspace(1e-4, 60, 2_000_000, dtype=torch.float64)
    rate = torch.special.ndtr(1 / (1 + 0.25 + sd.square()).sqrt()) * torch.exp(-sd)
    assert float(values[0]) == pytest.approx(float(torch.trapezoid(rate, sd)) + 1e-4 * 0.814, abs=1e-6)


@pytest.mark.parametrize("model_index", [0, 1])
def test_probabilities_of_all_data_sum_to_one(model_index):
    """One person, two old and two new words: all counts with their number of orders."""
    kind = small(1, 2).kinds[model_index]
    counts = torch.tensor([[[k, 2, j, 2]] for k in range(3) for j in range(3)])
    orders = torch.tensor([math.comb(2, k) * math.comb(2, j) for k in range(3) for j in range(3)])
    assert float((kind.log_evidence(counts).exp() * orders).sum()) == pytest.approx(
        1, abs=1e-3 if model_index else 1e-6
    )


def test_mean_bayes_factor_is_one():
    models = small(3, 3, missing=0.1)
    num = 3000
    log_probs = models.log_probs(torch.cat([model(num) for model in models.models]))
    log_factor = log_probs[:, 1] - log_probs[:, 0]
    for factor in (log_factor[:num].exp(), (-log_factor[num:]).exp()):
        assert abs(float(factor.mean()) - 1) < 4 * float(factor.std()) / math.sqrt(num)


def test_hyper_parameters_are_the_priors():
    num = 20_000
    mean, sd, correlation = (value.double() for value in MultinomialTree().sample_hyper_parameters(num))
    assert stats.kstest(mean[:, 0].numpy(), stats.norm(0, 0.25).cdf).pvalue > 1e-3
    covariance = stats.invwishart(3, [[1, 0], [0, 1]]).rvs(num, random_state=1)
    scale = 2 * stats.uniform().rvs((num, 2), random_state=2)
    expected = scale * covariance[:, [0, 1], [0, 1]] ** 0.5
    for k in (0, 1):
        assert stats.ks_2samp(sd[:, k].numpy(), expected[:, k]).pvalue > 1e-3
    of_wishart = covariance[:, 0, 1] / (covariance[:, 0, 0] * covariance[:, 1, 1]) ** 0.5
    assert stats.ks_2samp(correlation.numpy(), of_wishart).pvalue > 1e-3
    product = (sd[:, 0] * sd[:, 1] * correlation).numpy()  # dependence of all three at once
    assert stats.ks_2samp(product, expected.prod(1) * of_wishart).pvalue > 1e-3


def test_hyper_parameters_are_independent_as_the_evidence_takes_them():
    """ρ ~ U(−1, 1), and r = σ √(1 − ρ²) with F(r) = r (1 − exp(−2/r²)) √(2/π) + erfc(√2 / r), all independent."""
    _, sd, correlation = (value.double() for value in MultinomialTree().sample_hyper_parameters(20_000))
    r = sd * (1 - correlation.square()).sqrt()[:, None]

    def cdf(r):
        return r * -np.expm1(-2 / r**2) * math.sqrt(2 / math.pi) + special.erfc(math.sqrt(2) / r)

    assert stats.kstest(r[:, 0].numpy(), cdf).pvalue > 1e-3 and stats.kstest(r[:, 1].numpy(), cdf).pvalue > 1e-3
    assert stats.kstest(correlation.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    for first, second in ((r[:, 0], r[:, 1]), (r[:, 0], correlation), (r[:, 1], correlation.abs())):
        assert stats.spearmanr(first, second).pvalue > 1e-3
    kind = MultinomialTree(num_points=2**14)
    points, log_weight = kind._common_points()
    assert float(log_weight.exp().sum()) == pytest.approx(1, abs=1e-3)
    share = float(log_weight[points[:, 2] < math.log(0.5)].exp().sum())
    assert share == pytest.approx(float(cdf(0.5)), abs=3e-3)


def test_refinement_agrees_with_the_common_points():
    counts = answer_counts(small(12, 12).models[1](6))
    common = MultinomialTree(num_points=2**14, num_nodes=NODES).log_evidence(counts)
    refined = [
        MultinomialTree(num_points=2**12, num_nodes=NODES, refine_points=1024, seed=seed).log_evidence(counts)
        for seed in (1, 40)
    ]
    assert (refined[0] - refined[1]).square().mean().sqrt() < 0.12
    assert (refined[0] - common).square().mean().sqrt() < 0.2


def test_tables_are_kept_within_bounds(monkeypatch):
    counts = answer_counts(small(3, 3).models[0](40))
    kind = MultinomialTree(num_points=2**8, num_nodes=21)
    expected = kind.log_evidence(counts)
    monkeypatch.setattr(multinomial_tree, "_MOST_ROWS", 8)
    kind = MultinomialTree(num_points=2**8, num_nodes=21)
    torch.testing.assert_close(kind.log_evidence(counts), expected, rtol=0, atol=1e-4)
    assert len(kind._rows) <= 8


def test_order_and_padding_change_nothing():
    models = small(4, 5, missing=0.2)
    x = models.simulate(1, 6)
    shuffled = torch.nn.functional.pad(x[:, torch.randperm(4)][:, :, torch.randperm(10)], (0, 0, 0, 3, 0, 2))
    for model_index in (0, 1):
        value, other = models.log_evidence(x, model_index), models.log_evidence(shuffled, model_index)
        torch.testing.assert_close(value, other, rtol=0, atol=1e-4)


def test_errors_say_what_is_wrong():
    models = small()
    with pytest.raises(ValueError, match="must be 0 or 1, but not so at index"):
        models.log_evidence(torch.tensor([[[1.0, 0.5, 1.0]]]), 0)
    with pytest.raises(ValueError, match="missing is a share"):
        RecognitionMemory(missing=-0.1)
