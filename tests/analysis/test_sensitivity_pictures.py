"""Pictures of sensitivity draw what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sbi_bed.analysis import (
    plot_ensemble_disagreement,
    plot_gamma_map,
    plot_gamma_ridges,
    plot_power_scaling,
    plot_sources_of_sensitivity,
)
from sbi_bed.diagnostics import PowerScaling, SimulationGap


def test_map_of_two_powers(axes):
    gamma = torch.logspace(-1, 1, 5)
    values = torch.rand(3, 5)
    assert plot_gamma_map(values, gamma, gamma[1:4], ax=axes) is axes
    image = axes.images[0]
    assert np.allclose(image.get_array(), values) and image.origin == "lower" and image.norm.vmin == 0
    across, up = axes.lines  # at γ = 1
    assert across.get_xdata()[0] == pytest.approx(2, abs=1e-6) and up.get_ydata()[0] == pytest.approx(1, abs=1e-6)
    ticks = dict(zip([t.get_text() for t in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert ticks["0.1"] == pytest.approx(0) and ticks["1"] == pytest.approx(2, abs=1e-6)


def test_map_of_names_and_signed_values(axes):
    values = torch.tensor([[-2.0, 0.0, 1.0], [0.5, 0.0, -0.5]])
    plot_gamma_map(values, [0.5, 1.0, 2.0], ["α", "β"], ax=axes)
    image = axes.images[0]
    assert image.norm.vmin == -2 and image.norm.vmax == 2 and image.origin == "upper"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["α", "β"]


def test_ridges(axes):
    draws = [torch.randn(3000) + shift for shift in (0.0, 5.0, 10.0)]
    assert plot_gamma_ridges(draws, [0.5, 1.0, 2.0], name="drift", ax=axes) is axes
    ridges = [line for line in axes.lines if len(line.get_xdata()) > 2][::-1]  # drawn from the top
    for row, ridge in enumerate(ridges):
        assert abs(ridge.get_xdata()[ridge.get_ydata().argmax()] - 5 * row) < 0.6
    assert axes.get_xlabel() == "drift" and [t.get_text() for t in axes.get_yticklabels()] == ["0.5", "1", "2"]


def test_sources(axes):
    sources = {"prior": torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), "data": torch.randn(1000, 2)}
    assert plot_sources_of_sensitivity(sources, names=["α", "β"], ax=axes) is axes
    dots = [np.asarray(part.get_offsets()) for part in axes.collections if len(part.get_offsets()) > 1]
    assert sorted(dots[0][:, 1]) == [-1.0, 1.0] and abs(dots[0][:, 0].mean() + 0.2) < 0.1
    assert max(len(part) for part in dots) <= 300
    assert [t.get_text() for t in axes.get_xticklabels()] == ["prior", "data"]


def test_disagreement_against_its_null(axes):
    null = torch.rand(500, dtype=torch.float64) + 0.01
    both = torch.tensor([0.4, 0.001], dtype=torch.float64)
    gap = SimulationGap(both, torch.tensor([0.5, 30.0], dtype=torch.float64), null, both, both)
    assert plot_ensemble_disagreement(gap, names=["ann", "bob"], ax=axes) is axes
    assert sum(patch.get_height() for patch in axes.patches) == 500
    assert [text.get_text() for text in axes.texts] == ["ann, p = 0.4", "bob, p = 0.001"]
    assert axes.texts[0].get_color() != axes.texts[1].get_color()
    assert axes.lines[0].get_xdata()[0] == pytest.approx(float(null.quantile(0.95)))


def test_power_scaling():
    gamma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    mean = torch.randn(3, 2, dtype=torch.float64)
    shape = torch.tensor([0.9, -torch.inf, 0.2], dtype=torch.float64)
    found = PowerScaling(gamma, mean, mean.abs(), shape, gamma, mean[0], mean[0], 4000)
    drawn = plot_power_scaling(found, exact_mean=mean, exact_sd=mean.abs(), others={"context network": mean})
    assert len(drawn) == 3
    solid = {line.get_label(): line.get_ydata() for line in drawn[1].lines}
    assert np.isnan(solid["importance weights"][0]) and np.allclose(solid["importance weights"][1:], mean[1:, 1])
    assert np.allclose(solid["exact"], mean[:, 1]) and "context network" in solid
    plt.close(drawn[0].figure)
    with pytest.raises(ValueError, match=r"context network must have shape \(3, 2\)"):
        plot_power_scaling(found, others={"context network": mean[:2]})
    with pytest.raises(ValueError, match="names must be 2 names"):
        plot_power_scaling(found, names=["α"])
    with pytest.raises(ValueError, match="there must be 3 axes"):
        plot_power_scaling(found, axes=drawn[:2])


def test_errors(axes):
    with pytest.raises(ValueError, match=r"values must be \(2, 3\), rows by gamma, got \(3, 2\)"):
        plot_gamma_map(torch.zeros(3, 2), [0.5, 1.0, 2.0], ["α", "β"], ax=axes)
    with pytest.raises(ValueError, match="draws for each of 2 powers, got 1"):
        plot_gamma_ridges([torch.randn(10)], [1.0, 2.0], ax=axes)
    with pytest.raises(ValueError, match="shifts \\(R, K\\) of the same K conclusions"):
        plot_sources_of_sensitivity({"prior": torch.zeros(3, 2), "data": torch.zeros(3, 1)}, ax=axes)
    with pytest.raises(ValueError, match="names must be 1 names"):
        plot_sources_of_sensitivity({"prior": torch.zeros(3)}, names=["α", "β"], ax=axes)
    both = torch.tensor([0.4])
    with pytest.raises(ValueError, match="names must be 1 names, one for each data set"):
        plot_ensemble_disagreement(SimulationGap(both, both, both, both, both), names=["a", "b"], ax=axes)
