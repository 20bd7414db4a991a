"""Data like the simulated ones have uniform p-values; others are flagged, however sure the classifier is of them."""

import math

import pytest
import torch
from scipy.stats import ks_2samp, kstest

from sbi_bed.diagnostics import atypicality, model_report, summary_atypicality
from sbi_bed.diagnostics.typicality import model_proportions
from sbi_bed.inference import DeepEnsemblePosterior, ModelComparison
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import NestedNormal, simulate_models

MODELS = NestedNormal(8, 8)


@pytest.fixture(scope="module")
def posterior():
    """Two nets, trained for a second or two each."""
    model_index, x = simulate_models(MODELS, 2000, seed=1)

    def member(seed):
        torch.manual_seed(seed)
        embedding = HierarchicalEmbedding(1, output_dim=12, hidden_dim=32, lowest_dim=12)
        trainer = ModelComparison(2, embedding, show_progress_bars=False).append_simulations(model_index, x)
        trainer.train(max_num_epochs=6, seed=seed)
        return trainer.build_posterior()

    return DeepEnsemblePosterior([member(0), member(1)])


@pytest.fixture(scope="module")
def reference():
    return simulate_models(MODELS, 1500, seed=2)


def scaled(x, factor, shift=0.0):
    return torch.cat([factor * x[..., :1] + shift, x[..., 1:]], -1)


# ---- summaries of known distributions


def two_models(num):
    """Summaries of M0 around (0, 0, 0), of M1 around (4, 0, 0)."""
    index = torch.randint(2, (num,))
    return index, torch.randn(num, 3) + torch.tensor([4.0, 0, 0]) * index.unsqueeze(-1)


@pytest.mark.parametrize("score", ["neighbours", "gaussian"])
@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_p_values_are_uniform_for_what_is_simulated_alike(score, num_neighbors):
    """Of one data set each from 300 repetitions: p-values of one reference share its chance."""
    torch.manual_seed(0)
    p_values, of_models = [], []
    for _ in range(300):
        (observed_index, summary), (index, reference) = two_models(1), two_models(200)
        found = summary_atypicality(summary, reference, index, score=score, num_neighbors=num_neighbors)
        p_values.append(float(found.p_value))
        of_models.append(float(found.model_p_value[0, observed_index]))
        assert found.set_p_value is None
    # Eight such p-values in all: by chance one falls below .001 with one seed in 125.
    assert kstest(p_values, "uniform").pvalue > 1e-3 and kstest(of_models, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("score", ["neighbours", "gaussian"])
def test_what_is_far_is_flagged_and_what_is_between_models_is_of_neither(score):
    torch.manual_seed(1)
    index, reference = two_models(1000)
    summary = torch.tensor([[0.0, 0, 0], [4, 0, 0], [2, 5, 0], [-6, 0, 0]])
    found = summary_atypicality(summary, reference, index, score=score, num_neighbors=5, seed=0)
    assert (found.p_value < 0.01).tolist() == [False, False, True, True]
    assert (found.model_p_value > 0.05).tolist() == [[True, False], [False, True], [False, False], [False, False]]
    num = len(found.reference_score)
    assert num == 1000 - sum(int(count) // 2 for count in index.bincount())
    exceeded = (found.reference_score >= found.score.unsqueeze(-1)).sum(-1)
    torch.testing.assert_close(found.p_value, (1 + exceeded).double() / (1 + num))


@pytest.mark.parametrize("score", ["neighbours", "gaussian"])
def test_scales_and_rotations_of_summaries_do_not_matter(score):
    torch.manual_seed(2)
    _, reference = two_models(400)
    summary = two_models(20)[1]
    matrix = torch.tensor([[100.0, 3, 0], [0, 0.01, 2], [5, 0, 1]])
    first = summary_atypicality(summary, reference, score=score, seed=0)
    second = summary_atypicality(summary @ matrix, reference @ matrix, score=score, seed=0)
    torch.testing.assert_close(first.p_value, second.p_value, atol=0.006, rtol=0)


def test_a_direction_without_variance_betrays_what_moves_there():
    torch.manual_seed(3)
    reference = torch.cat([torch.randn(400, 2), torch.ones(400, 1)], -1)
    summary = torch.tensor([[0.1, 0.2, 1.0], [0.1, 0.2, 1.1]])
    assert (summary_atypicality(summary, reference, seed=0).p_value < 0.01).tolist() == [False, True]


def test_observed_sets_may_all_be_of_one_model():
    """Against the mixture they stand out; against the models in the observed proportions they do not."""
    torch.manual_seed(4)
    index, reference = two_models(1000)
    p_values = []
    for _ in range(50):
        summary, (of_model, simulated) = torch.randn(50, 3) + torch.tensor([4.0, 0, 0]), two_models(600)
        settings = {"model_weights": [0.0, 1.0], "num_permutations": 99}
        p_values.append(summary_atypicality(summary, simulated, of_model, **settings).set_p_value)
    assert kstest(p_values, "uniform").pvalue > 1e-3
    assert summary_atypicality(summary, reference, index, seed=0).set_p_value < 0.002
    narrow = summary_atypicality(4 + 0.2 * torch.randn(50, 3), reference, index, model_weights=[0.0, 1.0], seed=0)
    assert narrow.set_p_value < 0.002


def test_proportions_of_models_are_found_without_the_prior():
    torch.manual_seed(5)
    index = (torch.rand(4000) < 0.2).long()
    x = torch.randn(4000).double() + 1.5 * index
    log_evidences = torch.stack([-0.5 * x.square(), -0.5 * (x - 1.5).square()], -1)
    assert model_proportions(log_evidences)[1] == pytest.approx(0.2, abs=0.04)


# ---- a classifier of simulations


def test_simulated_data_are_typical(posterior, reference):
    model_index, x = reference
    _, fresh = simulate_models(MODELS, 300, seed=3)
    found = atypicality(posterior, fresh, x, model_index, seed=0)
    assert ks_2samp(found.score, found.reference_score).pvalue > 1e-3  # exact, though all share one reference
    # Uniform by `test_observed_sets_may_all_be_of_one_model`; two of them fall below .002 with one seed in 250.
    assert found.set_p_value > 0.002
    assert atypicality(posterior, MODELS.simulate(1, 60, seed=4), x, model_index, seed=0).set_p_value > 0.002


def test_data_of_neither_model_are_flagged_though_the_classifier_is_sure_of_them(posterior, reference):
    model_index, x = reference
    _, fresh = simulate_models(MODELS, 100, seed=5)
    torch.manual_seed(6)
    heavy = torch.distributions.StudentT(1.2).sample((100, 8, 8, 1))
    alien = {
        "3 times the values": (scaled(fresh, 3.0), 0.5),
        "5 added": (scaled(fresh, 1.0, 5.0), 0.7),
        "heavy tails": (torch.cat([heavy, torch.ones_like(heavy)], -1), 0.7),
    }
    for name, (data, power) in alien.items():
        found = atypicality(posterior, data, x, model_index, seed=0)
        assert (found.p_value < 0.05).double().mean() > power, name
        assert found.set_p_value < 0.002, name
    sure = posterior.probs(alien["5 added"][0]).amax(-1) > 0.99
    assert sure.double().mean() > 0.9


def test_the_report_shows_probabilities_spread_and_atypicality(posterior, reference):
    model_index, x = reference
    data = torch.cat([simulate_models(MODELS, 2, seed=7)[1], scaled(MODELS.simulate(1, 1, seed=8), 1.0, 30.0)])
    report = model_report(posterior, data, x, model_index, model_names=MODELS.names, seed=0)
    assert report.atypical.tolist() == [False, False, True]
    lines = str(report).splitlines()
    assert "p(mean is zero)" in lines[0] and "atypicality p" in lines[0]
    torch.testing.assert_close(report.spread, posterior.spread(data))
    for b in range(3):
        line = lines[2 + b]
        assert f"{float(report.probs[b, 0]):.3f} ± {float(report.spread[b, 0]):.3f}" in line
        assert f"{float(report.atypicality.p_value[b]):.2g}" in line and ("ATYPICAL" in line) == (b == 2)
    assert lines[5].startswith("<- ATYPICAL") and lines[6].startswith("All 3 together")
    single = model_report(posterior.members[0], data[0], x, seed=0)
    assert single.spread is None and single.atypicality.set_p_value is None and "±" not in str(single)
    assert single.atypicality.model_p_value is None


def test_the_same_seed_gives_the_same_answer(posterior, reference):
    before = torch.get_rng_state()
    first, second = (atypicality(posterior, reference[1][:5], reference[1], seed=1) for _ in range(2))
    assert torch.equal(first.p_value, second.p_value) and first.set_p_value == second.set_p_value
    assert torch.equal(before, torch.get_rng_state())
    assert "5 data sets have p < 0.05" in str(first)


def test_errors(posterior, reference):
    _, x = reference
    with pytest.raises(TypeError, match=r"needs posteriors with a summary\(x\), got object"):
        atypicality(object(), x, x)
    with pytest.raises(ValueError, match="level must be strictly between"):
        model_report(posterior, x, x, level=0.0)
    with pytest.raises(ValueError, match="model_names must be 2 names"):
        model_report(posterior, x, x, model_names=["one"])
    summary, simulated = torch.randn(3, 2), torch.randn(100, 2)
    for s, r in ((summary[:0], simulated), (summary, simulated[:, :1]), (summary[0], simulated)):
        with pytest.raises(ValueError, match="must have the same columns, B > 0"):
            summary_atypicality(s, r)
    with pytest.raises(ValueError, match=r"summary must be finite, got nan at index \(0, 0\)"):
        summary_atypicality(summary * math.nan, simulated)
    with pytest.raises(ValueError, match="as many summaries as reference_summaries, got 2 and 1"):
        summary_atypicality([summary, summary], [simulated])
    with pytest.raises(ValueError, match="must be of the same data sets"):
        summary_atypicality([summary, summary[:2]], [simulated, simulated])
    with pytest.raises(ValueError, match=r"at least 20 simulated sets of each model, got \[90, 10\]"):
        summary_atypicality(summary, simulated, (torch.arange(100) >= 90).long())
    with pytest.raises(ValueError, match=r"model_index must have shape \(100,\)"):
        summary_atypicality(summary, simulated, torch.zeros(99))
    with pytest.raises(ValueError, match="got 2 at index 0"):
        summary_atypicality(summary, simulated, torch.full((100,), 2), model_weights=[0.5, 0.5])
    with pytest.raises(ValueError, match="score must be 'neighbours' or 'gaussian'"):
        summary_atypicality(summary, simulated, score="depth")
    with pytest.raises(ValueError, match="num_neighbors must be at most half"):
        summary_atypicality(summary, simulated, num_neighbors=51)
