"""Simulation gap: exact p-values for simulated data, small ones for strange data, whichever of both scores shows it."""

import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from sbi_bed.diagnostics import simulation_gap
from sbi_bed.diagnostics.sensitivity.simulation_gap import _combine, _mean_kl, _moments
from sbi_bed.inference import DeepEnsemblePosterior, ModelPosterior
from sbi_bed.neural_nets.classifiers import EvidenceClassifier


class Estimator(nn.Module):
    """theta ~ N(x_0 + slope · max(|x_0| − 3, 0), 0.1²); its embedding sees x with a 1 behind it, as a context would be."""

    def __init__(self, slope):
        super().__init__()
        self.slope, self.embedding_net = slope, nn.Linear(3, 3)

    def sample(self, sample_shape, condition):
        self.embedding_net(torch.cat([condition, torch.ones(len(condition), 1)], -1))
        mean = condition[:, :1] + self.slope * (condition[:, :1].abs() - 3).clamp_min(0)
        return mean + 0.1 * torch.randn(*sample_shape, *mean.shape)


class Member:
    def __init__(self, slope):
        self.posterior_estimator = Estimator(slope)

    def sample(self, sample_shape=(), x=None):
        raise AssertionError("draws are not to be cut to the prior")


def ensemble():
    return DeepEnsemblePosterior([Member(slope) for slope in (-1.0, 0.0, 1.0)])


def classifiers(num=3):
    nets = [EvidenceClassifier(nn.Linear(2, 4), 2, 4) for _ in range(num)]
    return DeepEnsemblePosterior([ModelPosterior(net, torch.ones(2) / 2, (2,)) for net in nets])


@pytest.mark.parametrize("make", [ensemble, classifiers])
def test_p_values_of_simulated_data_are_uniform(make):
    members = make()
    reference_x = torch.randn(150, 200, 2)  # a new reference for each data set, so that p-values are independent
    gaps = [simulation_gap(members, torch.randn(1, 2), r, num_samples=20) for r in reference_x]
    for name in ("p_value", "disagreement_p_value", "atypicality_p_value"):
        p_values = torch.cat([getattr(gap, name) for gap in gaps])
        assert kstest(p_values - torch.rand(150, dtype=torch.float64) / 101, "uniform").pvalue > 1e-3
        assert float(p_values.min()) >= 1 / 101 - 1e-12


def test_either_score_shows_strange_data():
    torch.manual_seed(1)
    x = torch.tensor([[0.1, 0.1], [6.0, 0.0], [0.0, 6.0]])
    gap = simulation_gap(ensemble(), x, torch.randn(1000, 2), seed=0)
    assert gap.p_value[0] > 0.05 and (gap.p_value[1:] < 0.02).all()
    assert gap.disagreement_p_value[1] < 0.005 and gap.disagreement_p_value[2] > 0.02  # members agree in the second
    assert (gap.atypicality_p_value[1:] < 0.005).all()
    assert str(gap).count("\n") == 2 and "data set 1: p = 0.002" in str(gap)
    one = simulation_gap(ensemble(), x[1], torch.randn(1000, 2), seed=0)
    assert one.p_value.shape == (1,) and one.p_value < 0.01


def test_models_are_told_by_the_spread_of_their_probabilities():
    members = classifiers()
    x, reference_x = torch.tensor([[0.0, 0.0], [40.0, -40.0]]), torch.randn(1000, 2)
    gap = simulation_gap(members, x, reference_x, seed=0)
    torch.testing.assert_close(
        gap.disagreement, members.spread(x)[:, 0].double(), rtol=1e-5, atol=1e-6
    )  # of two models both have the same
    assert gap.p_value[0] > 0.05 and gap.p_value[1] < 0.005


def test_the_combined_p_value_is_that_of_its_definition():
    x_scores, scores = torch.randn(2, 6).round(decimals=1), torch.randn(2, 60).round(decimals=1)  # with ties
    found, first = _combine(x_scores[0], scores[0], x_scores[1], scores[1])
    for b in range(6):
        pool = torch.cat([x_scores[:, [b]], scores], -1)
        ranks = torch.tensor([[int((row >= value).sum()) for value in row] for row in pool])
        assert first[b] == ranks[0, 0] / torch.tensor(61.0, dtype=torch.float64)
        smallest = ranks.min(0).values
        assert found[b] == (smallest <= smallest[0]).sum() / torch.tensor(61.0, dtype=torch.float64)


def test_the_same_seed_gives_the_same_result():
    members, x, reference_x = ensemble(), torch.randn(4, 2), torch.randn(100, 2)
    first, second, other = (simulation_gap(members, x, reference_x, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.p_value, second.p_value) and torch.equal(first.disagreement, second.disagreement)
    assert not torch.equal(first.disagreement, other.disagreement)


def test_disagreement_is_the_mean_kl_divergence_of_pairs():
    roots = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    covariance = roots @ roots.mT + torch.eye(2, dtype=torch.float64)
    mean = torch.randn(3, 4, 2, dtype=torch.float64)
    normals = [MultivariateNormal(m, c) for m, c in zip(mean, covariance, strict=True)]
    expected = torch.stack([kl_divergence(p, q) for p in normals for q in normals if p is not q]).mean(0)
    torch.testing.assert_close(_mean_kl(mean, covariance), expected)
    found, spread = _moments(Member(1.0), torch.tensor([[5.0, 0.0], [0.0, 0.0]]), 4000)
    assert (found.flatten() - torch.tensor([7.0, 0.0])).abs().max() < 5 * 0.1 / 4000**0.5
    assert (spread.flatten() - 0.01).abs().max() < 5 * 0.01 * (2 / 4000) ** 0.5 + 1e-7


def test_errors():
    x, reference_x = torch.randn(2, 2), torch.randn(100, 2)
    with pytest.raises(ValueError, match="an ensemble of at least two members"):
        simulation_gap(DeepEnsemblePosterior([Member(0.0)]), x, reference_x)
    with pytest.raises(ValueError, match="must be data sets of the same shape"):
        simulation_gap(ensemble(), torch.randn(2, 3), reference_x)
    with pytest.raises(ValueError, match="at least 40 simulated data sets, got 39"):
        simulation_gap(ensemble(), x, reference_x[:39])
    with pytest.raises(ValueError, match="reference_x must be finite"):
        simulation_gap(ensemble(), x, reference_x / 0)
    with pytest.raises(TypeError, match=r"posterior_estimator or summary.*got Normal"):
        normals = [torch.distributions.Normal(0.0, 1.0)] * 2
        simulation_gap(DeepEnsemblePosterior(normals), x, reference_x)
