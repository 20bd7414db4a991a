"""Power scaling by importance: the exact moments where k̂ allows, and k̂ that forbids where they are wrong."""

import pytest
import torch

from sbi_bed.diagnostics import power_scaling_by_importance


def linear_gaussian(prior_sd, x, num=20000, gamma=1.0):
    """Draws of theta ~ N(0, prior_sd²/γ) given x ~ N(theta, 1), their log prior (γ = 1), and exact moments at γ."""
    precision = torch.as_tensor(gamma, dtype=torch.float64) / prior_sd**2 + 1
    theta = x / precision + torch.randn(num, 1, dtype=torch.float64) / precision.sqrt()
    return theta, -0.5 * (theta / prior_sd).square().squeeze(-1), x / precision, precision.rsqrt()


def test_moments_are_exact_where_weights_can_be_relied_on():
    gamma = torch.tensor([0.5, 0.8, 1.0, 1.5, 2.0], dtype=torch.float64)
    theta, log_prior, *_ = linear_gaussian(1.0, 1.5)
    *_, mean, sd = linear_gaussian(1.0, 1.5, gamma=gamma)
    found = power_scaling_by_importance(theta, log_prior, gamma)
    assert found.reliable.all() and found.largest_pareto_k == pytest.approx(0.7)
    error = sd / found.effective_sample_size.sqrt()
    assert ((found.mean.squeeze(-1) - mean).abs() < 5 * error).all()
    assert ((found.sd.squeeze(-1) / sd - 1).abs() < 5 / found.effective_sample_size.sqrt()).all()
    assert found.pareto_k[2] == -torch.inf and found.effective_sample_size[2] == pytest.approx(20000)
    torch.testing.assert_close(found.shift[2], torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-9)


def test_pareto_k_says_where_they_fail():
    theta, log_prior, *_ = linear_gaussian(0.2, 10.0, 4000)  # a strong prior far from the data
    found = power_scaling_by_importance(theta, log_prior, [0.05, 0.95])
    *_, mean, sd = linear_gaussian(0.2, 10.0, gamma=0.05)
    assert found.reliable.tolist() == [False, True]
    assert abs(float(found.mean[0]) - float(mean)) > 2 * float(sd)  # it is far off there
    lines, table = str(found).splitlines(), found.to_dataframe()
    assert "!" in lines[2] and "!" not in lines[3] and table.reliable.tolist() == [False, True]


def test_a_constant_does_not_matter_and_neither_does_the_other_parameters_prior():
    theta, log_prior, *_ = linear_gaussian(1.0, 1.0, 2000)
    both = torch.cat([theta, torch.randn(2000, 1, dtype=torch.float64)], -1)
    first = power_scaling_by_importance(both, log_prior, [0.7, 1.4])
    second = power_scaling_by_importance(both, log_prior - 1e3, [0.7, 1.4])
    torch.testing.assert_close(first.mean, second.mean)
    assert (first.shift[:, 1].abs() < 0.15).all() and (first.shift[:, 0].abs() > 0.08).all()


def test_errors():
    theta = torch.randn(100, 2)
    with pytest.raises(ValueError, match="must be at least 25 draws"):
        power_scaling_by_importance(theta, theta, [1.0])
    with pytest.raises(ValueError, match="gamma must be positive powers"):
        power_scaling_by_importance(theta, theta[:, 0], [0.0])
    with pytest.raises(ValueError, match="log_component must be finite"):
        power_scaling_by_importance(theta, theta[:, 0] / 0, [1.0])
