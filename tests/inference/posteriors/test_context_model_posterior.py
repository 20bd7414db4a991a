"""Model probabilities in contexts: one by one and together, under another prior over models, exact at the baseline."""

import pytest
import torch

from sbi_bed.diagnostics import atypicality, kl_to_exact, model_report, prior_sensitivity, simulation_gap
from sbi_bed.inference import ContextModelPosterior, DeepEnsemblePosterior, ModelComparison, ModelPosterior
from sbi_bed.neural_nets import ContextEmbedding, EvidenceClassifier, HierarchicalEmbedding
from sbi_bed.simulators import Contexts, LogUniform, NestedNormal, simulate_models_with_context
from sbi_bed.utils import pack_context

CONTEXTS = Contexts(gamma=LogUniform(0.1, 10.0))


def test_a_net_over_models_in_contexts():
    contexts = CONTEXTS
    net = EvidenceClassifier(ContextEmbedding((4,), 1, log_columns=[True]), num_models=3, summary_dim=37)
    posterior = ContextModelPosterior(ModelPosterior(net, torch.tensor([0.5, 0.3, 0.2]), (5,)), contexts)
    x = torch.randn(6, 4)
    context = contexts.sample((6,))
    together = posterior.log_probs(x, context)
    for row in range(6):
        one = posterior.condition_on(context[row])
        torch.testing.assert_close(one.log_probs(x[row : row + 1]), together[row : row + 1])
        factor = posterior.log_bayes_factor(x[row : row + 1], 0, 2, context[row])
        torch.testing.assert_close(one.log_bayes_factor(x[row : row + 1], 0, 2), factor)
        assert float(factor) == pytest.approx(float(together[row, 0] - together[row, 2]) - 0.9162907, abs=1e-5)
    other = [1.0, 1.0, 2.0]
    torch.testing.assert_close(one.probs(x[5:], other), posterior.probs(x[5:], context[5], other))
    found = prior_sensitivity(posterior, x, [[0.5], [1.0]])
    assert found.columns == ("gamma",) and float(found.kl[1].abs().max()) < 1e-12
    with pytest.raises(ValueError, match=r"gamma = 20 lies outside what the net was trained on, \[0.1, 10\]"):
        posterior.probs(x, [20.0])
    with pytest.raises(ValueError, match="one context"):
        posterior.condition_on(context)


def test_an_ensemble_in_one_context_is_an_ensemble_and_reports_take_it(tmp_path):
    torch.manual_seed(0)
    nets = [EvidenceClassifier(ContextEmbedding((4,), 1, log_columns=[True]), 3, 37) for _ in range(3)]
    ensemble = DeepEnsemblePosterior([ModelPosterior(net, torch.ones(3), (5,)) for net in nets], [1.0, 2.0, 3.0])
    posterior, x, reference_x = ContextModelPosterior(ensemble, CONTEXTS), torch.randn(4, 4), torch.randn(200, 4)
    x[3] = 30.0  # nothing like it was simulated
    one, packed, other = posterior.condition_on([2.0]), pack_context(x, [2.0]), [1.0, 1.0, 2.0]
    torch.testing.assert_close(one.probs(x, other), posterior.probs(x, [2.0], other))
    torch.testing.assert_close(one.spread(x), ensemble.spread(packed))
    torch.testing.assert_close(one.log_bayes_factor(x, 0, 2), posterior.log_bayes_factor(x, 0, 2, [2.0]))
    with pytest.raises(TypeError, match="save needs members that are ModelPosterior"):
        one.save(tmp_path / "posterior.pt")
    by_hand = ensemble, packed, pack_context(reference_x, [2.0])
    gap = simulation_gap(one, x, reference_x, seed=0)
    torch.testing.assert_close(gap.p_value, simulation_gap(*by_hand, seed=0).p_value)
    assert gap.p_value[3] < 0.02 < gap.p_value[:3].min()
    assert str(model_report(one, x, reference_x, seed=0)) == str(model_report(*by_hand, seed=0))
    for report in (simulation_gap, model_report, atypicality):
        with pytest.raises(TypeError, match=r"in which context\? Give posterior.condition_on\(context\)"):
            report(posterior, x, reference_x, seed=0)


@pytest.fixture(scope="module")
def trained():
    """Nested normals of 6 groups of 5, the prior of the mean to powers from 0.1 to 10."""
    models = NestedNormal(6, 5)
    model_index, x, context = simulate_models_with_context(models.scaled_models, 10_000, CONTEXTS, seed=1)
    embedding = ContextEmbedding(models.x_shape, 1, HierarchicalEmbedding(1, hidden_dim=32), CONTEXTS.log_columns)
    trainer = ModelComparison(2, embedding, show_progress_bars=False)
    trainer.append_simulations(model_index, pack_context(x, context)).train(max_num_epochs=6, seed=0)
    return trainer.build_posterior()


@pytest.mark.parametrize("gamma", [0.2, 1.0, 5.0])
def test_probabilities_are_close_to_exact_ones(trained, gamma):
    models, posterior = NestedNormal(6, 5, mean_variance=1 / gamma), ContextModelPosterior(trained, CONTEXTS)
    x = torch.cat([models.simulate(index, 100, seed=index) for index in (0, 1)])
    exact = models.log_probs(x)
    right = kl_to_exact(exact, posterior.log_probs(x, [gamma])).mean()
    assert right < 0.03
    if gamma != 1:  # what the context is there for
        assert right < 0.5 * kl_to_exact(exact, posterior.log_probs(x, [1 / gamma])).mean()


def test_files_keep_it(trained, tmp_path):
    trained.save(tmp_path / "posterior.pt")
    net = ContextEmbedding((6, 5, 2), 1, HierarchicalEmbedding(1, hidden_dim=32), [True])
    loaded = ContextModelPosterior(ModelPosterior.load(tmp_path / "posterior.pt", net), CONTEXTS)
    x = NestedNormal(6, 5).simulate(1, 4, seed=0)
    expected = ContextModelPosterior(trained, CONTEXTS).probs(x, [0.5])
    torch.testing.assert_close(loaded.probs(x, [0.5]), expected)


def test_scaled_models_draw_from_the_scaled_prior():
    models = NestedNormal(200, 1, mean_variance=4.0)
    gamma = torch.tensor([[0.25], [16.0]]).repeat(2000, 1)
    for index, expected in ((0, [0.0, 0.0]), (1, [4.0, 0.5])):
        x = models.scaled_models[index]({"gamma": gamma})
        centres = x[..., 0].mean((1, 2)).reshape(2000, 2)
        noise = 2 * 0.8 / 200  # mean of both variances over the number of values
        found = (centres.var(0) - noise).clamp_min(0).sqrt()
        assert torch.allclose(found, torch.tensor(expected), rtol=0.07, atol=0.05)


def test_what_is_refused():
    with pytest.raises(TypeError, match="contexts must be Contexts"):
        simulate_models_with_context(NestedNormal(2, 2).scaled_models, 10, torch.ones(1))
    with pytest.raises(ValueError, match="mean_variance must be positive"):
        NestedNormal(2, 2, mean_variance=0.0)
