"""Sensitivity to the prior, measured on exact posteriors: the null, shifts, model probabilities."""

import pytest
import torch
from models import LinearGaussianData

from sbi_bed.diagnostics import prior_sensitivity
from sbi_bed.simulators import Contexts, LogUniform, NestedNormal

MODEL = LinearGaussianData()
X = torch.tensor([2.0, -1.0, 0.5, 1.0])
GRID = torch.tensor([0.5, 0.9, 1.0, 2.0]).unsqueeze(-1).expand(-1, 3)


class Exact:
    """The exact posterior in the form of a `ContextPosterior`."""

    contexts = Contexts(gamma=LogUniform(0.5, 2.0, 3))

    def sample_batched(self, sample_shape, x, context):
        return MODEL.posterior(x, context).sample(sample_shape).float()


def test_shifts_are_those_of_exact_posteriors():
    found = prior_sensitivity(Exact(), X, GRID, num_samples=800, num_null=20, seed=0)
    exact, base = MODEL.posterior(X, GRID), MODEL.posterior(X, torch.ones(3))
    noise = 4.5 / 800**0.5
    torch.testing.assert_close(found.mean_shift, (exact.mean - base.mean) / base.stddev, atol=1.5 * noise, rtol=0)
    torch.testing.assert_close(found.sd_ratio, exact.stddev / base.stddev, atol=noise, rtol=0.02)
    normal = torch.distributions.Normal(exact.mean, exact.stddev)
    for level, shift in zip(found.levels, found.quantile_shift.unbind(1), strict=True):
        base_quantile = torch.distributions.Normal(base.mean, base.stddev).icdf(torch.tensor(level).double())
        expected = (normal.icdf(torch.tensor(level).double()) - base_quantile) / base.stddev
        torch.testing.assert_close(shift, expected, atol=2.5 * noise, rtol=0)


def test_distance_grows_with_the_power_and_is_null_at_the_baseline():
    found = prior_sensitivity(Exact(), X, GRID, num_samples=600, seed=1)
    far, near, none, narrow = found.root_mmd.tolist()
    assert far > near and narrow > near and min(far, narrow) > found.null_upper
    assert found.p_value[0] < 0.02 and found.p_value[3] < 0.02
    assert none < 2 * found.null_upper  # its p-value is uniform: below .02 with one seed in 50
    assert found.null.shape == (100,)
    again = prior_sensitivity(Exact(), X, GRID, num_samples=600, seed=1)
    assert torch.equal(again.root_mmd, found.root_mmd)
    text = str(found)
    assert text.split()[:2] == ["gamma", "√MMD"] and f"{far:.3f}" in text and "baseline gamma = 1:" in text


def test_tables_name_contexts_and_parameters():
    apart = torch.tensor([[0.5, 1.0, 2.0], [1.0, 1.0, 1.0]])
    found = prior_sensitivity(Exact(), X, apart, num_samples=100, num_null=20, names=("a", "b", "c"), seed=0)
    header, _, first, second, note = str(found).splitlines()
    assert header.split() == ["gamma[0]", "gamma[1]", "gamma[2]", "√MMD", "p", "a", "b", "c"]
    assert first.split()[:3] == ["0.5", "1", "2"] and second.split()[:3] == ["1", "1", "1"]
    assert f"{float(found.mean_shift[0, 2]):+.2f} (×{float(found.sd_ratio[0, 2]):.2f})" in first
    assert "baseline gamma[0] = 1, gamma[1] = 1, gamma[2] = 1" in note


def test_p_values_are_uniform_where_nothing_changes():
    """The false alarms of the test, with its smallest null: levels of 1/21, as often as they say."""
    ones = torch.ones(1, 3)
    p_values = torch.cat(
        [prior_sensitivity(Exact(), X, ones, num_samples=30, num_null=20, seed=seed).p_value for seed in range(200)]
    )
    # √MMD is 0 for about half of the pairs, which tie: p-values are then too large, never too small.
    for level in (1 / 21, 2 / 21, 4 / 21, 8 / 21):
        share = float((p_values <= level + 1e-9).double().mean())
        assert share <= level + 3.5 * (level * (1 - level) / 200) ** 0.5
    assert float((p_values <= 4 / 21 + 1e-9).double().mean()) > 0.08


class ExactModels:
    """Exact probabilities of the nested normal models, in the form of a `ContextModelPosterior`."""

    def log_probs(self, x, context):
        return NestedNormal(6, 5, mean_variance=1 / float(context[0])).log_probs(x)

    def log_bayes_factor(self, x, i, j, context):
        raise NotImplementedError


def test_model_probabilities_move_as_they_should():
    x = NestedNormal(6, 5).simulate(1, 5, seed=0)
    found = prior_sensitivity(ExactModels(), x, [[0.1], [1.0], [10.0]])
    assert found.kl.shape == (3, 5) and bool((found.kl[1].abs() < 1e-12).all()) and bool((found.kl[0] > 0).all())
    p, q = found.probs[2, 0], found.baseline_probs[0]
    assert float(found.kl[2, 0]) == pytest.approx(float((p * (p / q).log()).sum()))
    # Data at zero: the wider the prior of the mean, the more the simpler model is preferred (Lindley).
    zero = x * torch.tensor([0.0, 1.0]) + torch.randn(5, 6, 5, 1) * torch.tensor([1.0, 0.0])
    probs = prior_sensitivity(ExactModels(), zero, [[0.1], [1.0], [10.0]]).probs[..., 0].mean(-1)
    assert probs[0] > probs[1] > probs[2]
    assert "other best" in str(found) and "baseline context[0] = 1; 5 data sets" in str(found)
    assert "other best      M0      M1" in str(found) and f"{float(found.probs[0, :, 1].mean()):.4f}" in str(found)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"contexts": torch.ones(3)}, r"contexts must have shape \(G, C\)"),
        ({"contexts": torch.ones(2, 3), "baseline": [1.0]}, "baseline must have 3 values"),
        ({"contexts": torch.ones(2, 3), "num_null": 5}, "num_null must be at least 20"),
        ({"contexts": torch.ones(2, 3), "names": ["a"]}, "names must be 3 names, one for each parameter"),
    ],
)
def test_what_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        prior_sensitivity(Exact(), X, **settings)
