"""Pictures draw what they are given, on the axes they are given."""

import pytest
import torch

from sbi_bed.analysis import (
    plot_atypicality,
    plot_bayes_factor_recovery,
    plot_confusion,
    plot_discounting,
    plot_experiment_in_plane,
    plot_model_probs,
    plot_posterior_spread,
    plot_reliability,
)
from sbi_bed.diagnostics import ModelReport, model_calibration, summary_atypicality
from sbi_bed.utils import pack_history


def test_designs_in_the_plane(axes):
    designs = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    history = pack_history(designs, torch.ones(3, 1), horizon=5)
    assert plot_experiment_in_plane(history, torch.randn(50, 2), torch.zeros(2), refined_after=2, ax=axes) is axes
    drawn = [torch.as_tensor(part.get_offsets().data) for part in axes.collections]
    assert any(torch.equal(part.float(), designs[:2]) for part in drawn)
    assert any(torch.equal(part.float(), designs[2:]) for part in drawn)
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]


def test_spread_of_the_posterior(axes):
    clouds = [torch.randn(4000, 2) * sd for sd in (1.0, 0.1)]
    assert plot_posterior_spread(clouds, torch.zeros(2), ax=axes) is axes
    spread = axes.lines[0].get_ydata()
    assert spread[0] == pytest.approx(2**0.5, rel=0.05) and spread[1] == pytest.approx(0.1 * 2**0.5, rel=0.05)


def test_discount_curve(axes):
    designs = torch.tensor([[50.0, 100.0, 10.0], [20.0, 100.0, 100.0]])
    log_k = torch.full((100,), 0.01).log()
    assert plot_discounting(pack_history(designs, torch.tensor([[1.0], [0.0]])), log_k, ax=axes) is axes
    days, middle = (torch.as_tensor(values) for values in axes.lines[0].get_data())
    assert torch.allclose(middle, 1 / (1 + 0.01 * days), atol=1e-5)


# ---- model comparison


@pytest.fixture
def calibration():
    torch.manual_seed(0)
    log_probs = torch.randn(500, 3, dtype=torch.float64).log_softmax(-1)
    return model_calibration(log_probs, torch.multinomial(log_probs.exp(), 1).squeeze(-1), 30, seed=0)


def test_reliability(axes, calibration):
    assert plot_reliability(calibration, 2, model_name="third", ax=axes) is axes
    bins, full = calibration.bins, calibration.bins.count[2] > 0
    assert not full.all()  # a bin is empty, and is left out
    points = torch.as_tensor(axes.collections[-1].get_offsets().data)
    torch.testing.assert_close(points, torch.stack([bins.mean_prob[2], bins.frequency[2]], -1)[full])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    expected = bins.expected[2][full]
    assert band.min() == pytest.approx(float(expected.min())) and band.max() == pytest.approx(float(expected.max()))
    assert "third" in axes.get_xlabel() and "third" in axes.get_ylabel()
    with pytest.raises(ValueError, match="models are numbered from 0 to 2, got 3"):
        plot_reliability(calibration, 3, ax=axes)


def test_confusion(axes, calibration):
    assert plot_confusion(calibration, model_names=["a", "b", "c"], ax=axes) is axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    mean, count = float(calibration.confusion[0, 2]), int(calibration.confusion_count[0, 2])
    assert texts[2, 0] == f"{mean:.3f}\n({count})"  # row: the true model, column: the judged one
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="model_names must be 3 names"):
        plot_confusion(calibration, model_names=["a"], ax=axes)


def test_recovery_of_bayes_factors(axes):
    exact = torch.tensor([-3.0, 0.5, 20.0, 400.0])
    found = torch.tensor([-2.0, 0.7, 15.0, 300.0])
    assert plot_bayes_factor_recovery(found, exact, ax=axes) is axes
    points = torch.as_tensor(axes.collections[0].get_offsets().data).float()
    assert torch.equal(points, torch.stack([exact, found], -1))
    low, high = axes.get_xlim()
    assert low < -3 and high > 400 and axes.get_ylim() == (low, high)
    assert axes.get_xscale() == "symlog"
    with pytest.raises(ValueError, match="must have one shape"):
        plot_bayes_factor_recovery(found, exact[:2], ax=axes)


@pytest.fixture
def atypical():
    torch.manual_seed(0)
    index = torch.arange(400) % 2
    reference = torch.randn(400, 3) * torch.tensor([3.0, 1, 0.1]) + index.unsqueeze(-1)
    return summary_atypicality(torch.tensor([[0.0, 0, 0], [1, 1, 8]]), reference, index, seed=0)


def test_model_probabilities_beside_atypicality(axes, atypical):
    log_probs = torch.tensor([[0.7, 0.3], [0.01, 0.99]]).log()
    report = ModelReport(log_probs, torch.full((2, 2), 0.05), atypical, ("a", "b"), 0.01)
    assert plot_model_probs(report, ax=axes) is axes
    widths = torch.tensor([[bar.get_width() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")])
    torch.testing.assert_close(widths.T.float(), log_probs.exp())
    texts = [text.get_text() for text in axes.texts]
    assert f"p = {float(atypical.p_value[0]):.2g}" in texts
    assert f"p = {float(atypical.p_value[1]):.2g} atypical" in texts


def test_summaries_in_a_plane(axes, atypical):
    assert plot_atypicality(atypical, model_names=["a", "b"], ax=axes) is axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["simulated, a", "simulated, b", "observed", "observed, p < 0.01"]
    first = torch.cat([torch.as_tensor(part.get_offsets().data) for part in axes.collections[:2]])[:, 0]
    values = torch.linalg.eigvalsh(atypical.reference_summary.T.cov())
    assert first.var() == pytest.approx(float(values[-1]), rel=1e-6)
    assert f"{float(values[-1] / values.sum()):.0%}" in axes.get_xlabel()
    flat = summary_atypicality(torch.zeros(1, 1), torch.randn(100, 1))
    with pytest.raises(ValueError, match="at least 2 numbers"):
        plot_atypicality(flat, ax=axes)
