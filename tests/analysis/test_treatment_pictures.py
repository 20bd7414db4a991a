"""Pictures of treatment experiments draw what they are given, on the axes they are given."""

import pytest
import torch

from sbi_bed.analysis import plot_allocation, plot_efficiency, plot_gate_weights, plot_regret, plot_running_effect
from sbi_bed.diagnostics import run_treatment_study, treatment_report
from sbi_bed.inference.experiments.treatment.a2ipw import estimate_ate
from sbi_bed.policies import CoinFlip, NonContextualNeyman
from sbi_bed.simulators.treatment.problem import two_arm_benchmark


@pytest.fixture(scope="module")
def reports():
    problem = two_arm_benchmark()
    policies = {"coin": CoinFlip(0), "adaptive": NonContextualNeyman(0)}
    return {name: treatment_report(run_treatment_study(problem, p, 60, 50, seed=0)) for name, p in policies.items()}


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_allocation(axes):
    x = torch.linspace(0, 1, 11)
    propensities = {"20 units": torch.full((11,), 0.4), "200 units": 0.2 + 0.5 * x}
    assert plot_allocation(x.unsqueeze(-1), propensities, 0.3 + 0.4 * x, clip=0.1, ax=axes) is axes
    assert labels(axes) == ["20 units", "200 units", "oracle"]
    assert torch.allclose(torch.as_tensor(axes.lines[1].get_ydata()), propensities["200 units"])
    assert [line.get_ydata()[0] for line in axes.lines[3:]] == [0.1, 0.9]


def test_running_effect(axes):
    running = estimate_ate(torch.randn(80, generator=torch.Generator().manual_seed(0)))
    assert plot_running_effect(running, 0.5, ax=axes) is axes
    assert torch.equal(torch.as_tensor(axes.lines[0].get_ydata()), running.ate) and axes.lines[1].get_ydata()[0] == 0.5
    sequence, wald = (band.get_paths()[0].vertices[:, 1] for band in axes.collections)
    final = running.at(-1)
    for band, ends in ((sequence, final.confidence_sequence), (wald, final.interval)):
        assert all(min(abs(band - end)) < 1e-9 for end in ends)
    assert axes.get_ylim()[0] < final.confidence_sequence[0] < final.confidence_sequence[1] < axes.get_ylim()[1]


def test_running_effect_of_few_units(axes):
    plot_running_effect(estimate_ate([1.0, 3.0, 2.0]), ax=axes)
    assert axes.get_ylim() == (-2.0, 6.0)  # no sequence yet


def test_regret(axes, reports):
    assert plot_regret(reports, smooth=20, ax=axes) is axes and labels(axes) == ["coin", "adaptive"]
    assert axes.lines[0].get_xdata().tolist() == [10.5, 30.5, 50.5]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.25] * 3)
    expected = reports["adaptive"].regret_curve.reshape(3, 20).mean(-1)
    assert torch.allclose(torch.as_tensor(axes.lines[1].get_ydata()), expected)


def test_efficiency(axes, reports):
    assert plot_efficiency(reports, ax=axes) is axes
    assert [bar.get_width() for bar in axes.patches] == [report.efficiency[0] for report in reports.values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["coin", "adaptive"]


def test_gate_weights(axes):
    weights = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]])
    assert plot_gate_weights(torch.stack([weights, weights]), ["rough", "smooth"], ax=axes) is axes
    top = axes.collections[0].get_paths()[0].vertices
    assert {(x, round(float(y), 6)) for x, y in top} >= {(0.0, 0.5), (1.0, 0.2), (2.0, 0.1)}
    assert labels(axes) == ["rough", "smooth"]
    with pytest.raises(ValueError, match="names must be 2"):
        plot_gate_weights(weights, ["one"], ax=axes)
    with pytest.raises(ValueError, match=r"weights must have shape \(T, K\)"):
        plot_gate_weights(torch.ones(3), ax=axes)
