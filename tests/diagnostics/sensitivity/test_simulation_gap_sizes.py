"""Simulation gap where sizes differ: p-values by sizes as trained and as observed, and one warning."""

import warnings

import pytest
import torch
from scipy.stats import kstest

from sbi_bed.diagnostics import simulation_gap
from sbi_bed.inference import DeepEnsemblePosterior, ModelPosterior
from sbi_bed.neural_nets import EvidenceClassifier, HierarchicalEmbedding


def simulate(num, groups=5, observations=8):
    """Packed data sets (num, 5, 8, 2) with so many groups and observations, the rest padding."""
    x = torch.zeros(num, 5, 8, 2)
    x[:, :groups, :observations, 0] = torch.randn(num, groups, observations) + torch.randn(num, 1, 1)
    x[:, :groups, :observations, 1] = 1
    return x


def ensemble(groups=5, observations=8):
    """Nets with random weights that remember these sizes from training."""
    members = []
    for _ in range(3):
        embedding = HierarchicalEmbedding(1, output_dim=4)
        embedding.fit_scale(simulate(200, groups, observations))
        net = EvidenceClassifier(embedding, 2, 4)
        members.append(ModelPosterior(net, torch.ones(2) / 2, (5, 8, 2)))
    return DeepEnsemblePosterior(members)


@pytest.mark.filterwarnings("ignore:the data leave the range")
def test_p_values_by_observed_sizes_are_uniform():
    members, references = ensemble(), [simulate(200) for _ in range(80)]
    gaps = [simulation_gap(members, simulate(1, 2, 2), reference, seed=s) for s, reference in enumerate(references)]
    by_size = torch.cat([gap.same_size_p_value for gap in gaps])
    assert kstest(by_size - torch.rand(80, dtype=torch.float64) / 101, "uniform").pvalue > 1e-3
    assert all("cut to the sizes of each data set" in str(gap) for gap in gaps if gap.same_size_p_value != gap.p_value)


def test_strange_values_are_strange_at_any_size():
    members, x = ensemble(), simulate(2, 2, 2)
    x[1, ..., 0] *= 40
    with pytest.warns(
        RuntimeWarning, match="groups: 2, trained on 5; observations per group: 2, trained on 8"
    ) as caught:
        gap = simulation_gap(members, x, simulate(600), seed=0)
    assert len(caught) == 1 and "answers are guesses" in str(gap)
    assert gap.same_size_p_value[1] < 0.02 and gap.same_size_p_value[1] < gap.same_size_p_value[0]
    assert gap.to_dataframe().same_size_p_value.tolist() == gap.same_size_p_value.tolist()


def test_the_sizes_of_training_need_no_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gap = simulation_gap(ensemble(), simulate(3), simulate(100), seed=0)
    assert torch.equal(gap.same_size_p_value, gap.p_value) and gap.sizes == "" and "cut to" not in str(gap)


def test_a_reference_of_other_sizes_is_named():
    """Of the same sizes as the data both leave training; of other sizes the reference alone does."""
    members = ensemble()
    with pytest.warns(RuntimeWarning, match="the data leave the range"):
        simulation_gap(members, simulate(1, 3, 3), simulate(100, 3, 3), seed=0)
    with pytest.warns(RuntimeWarning, match="reference_x leaves the sizes .*groups: 3, trained on 5") as caught:
        gap = simulation_gap(members, simulate(1), simulate(100, 3, 3), seed=0)
    assert len(caught) == 1 and bool(gap.same_size_p_value.isnan().all())  # nothing of that size to compare with
