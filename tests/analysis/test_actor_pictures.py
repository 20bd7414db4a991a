"""Pictures of Bayesian actors draw what they are given."""

import pytest
import torch

from sbi_bed.analysis import plot_response_bands, plot_ridge
from sbi_bed.simulators import BayesianActor, OptimalActor, QuadraticCost
from sbi_bed.utils import pack_history


def test_response_bands_hold_their_share(axes):
    """A new person's responses lie inside the drawn 80 % band 80 % of the time."""
    simulator = BayesianActor(OptimalActor(QuadraticCost()))
    theta = torch.tensor([0.15, 1.5, 0.1])
    torch.manual_seed(0)
    stimuli = simulator.design_space.sample((4000,))
    responses = simulator(theta, stimuli)
    history = pack_history(stimuli, responses, horizon=4010)
    assert plot_response_bands(simulator, history, theta.expand(4000, 3), level=0.8, seed=1, ax=axes) is axes
    points = torch.as_tensor(axes.collections[-1].get_offsets().data).float()
    assert torch.equal(points, torch.cat([stimuli, responses], -1))
    line, middle = (torch.as_tensor(values) for values in axes.lines[0].get_data())
    vertices = torch.as_tensor(axes.collections[0].get_paths()[0].vertices).float()
    below = torch.stack([vertices[(vertices[:, 0] - x).abs() < 1e-6, 1].min() for x in line])
    above = torch.stack([vertices[(vertices[:, 0] - x).abs() < 1e-6, 1].max() for x in line])
    nearest = (stimuli - line).abs().argmin(-1)
    inside = (responses[:, 0] > below[nearest]) & (responses[:, 0] < above[nearest])
    assert inside.float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert ((middle > below) & (middle < above)).all()
    with pytest.raises(ValueError, match="level must be strictly between"):
        plot_response_bands(simulator, history, theta.expand(5, 3), level=90)
    with pytest.raises(ValueError, match="no trials to draw"):
        plot_response_bands(simulator, history[:0], theta.expand(5, 3))


def test_ridge(axes):
    """A known product: the line has slope −1 in logarithms."""
    torch.manual_seed(0)
    prior = torch.rand(2000, 3) + 0.5
    theta = torch.stack([prior[:, 0], 1 / prior[:, 0] * (1 + 0.01 * torch.randn(2000)), prior[:, 2] * 0.01 + 1], -1)
    names = ("a", "b", "c")
    assert plot_ridge(theta, prior, names, ("a", "b"), truth=torch.ones(3), ax=axes) is axes
    x, y = (torch.as_tensor(values).log() for values in axes.lines[0].get_data())
    assert ((y[1] - y[0]) / (x[1] - x[0])).item() == pytest.approx(-1, abs=0.02)
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "a" and "-1.00" in axes.get_title()
    with pytest.raises(ValueError, match="no parameter 'd', only a, b, c"):
        plot_ridge(theta, prior, names, ("a", "d"), ax=axes)
    with pytest.raises(ValueError, match="must be positive"):
        plot_ridge(-theta, prior, names, ("a", "b"), ax=axes)
