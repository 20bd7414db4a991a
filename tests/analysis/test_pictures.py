"""Pictures draw what they are given, on the axes they are given."""

import matplotlib.pyplot as plt
import pytest
import torch

from sbi_bed.analysis import plot_discounting, plot_experiment_in_plane, plot_posterior_spread
from sbi_bed.utils import pack_history


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


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
