"""Data sensitivity: variants hold what they should, and shifts are those of exact posteriors."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sbi_bed.diagnostics import data_sensitivity
from sbi_bed.diagnostics.sensitivity.data_sensitivity import bootstrap_data, leave_one_out_data, missing_data
from sbi_bed.inference import DeepEnsemblePosterior


class Exact:
    """theta ~ N(0, 1), observations N(theta, 1), masked: exact draws, of any packed data."""

    def __init__(self):
        self.batches = []

    def sample_batched(self, sample_shape, x, shift=0.0, show_progress_bars=True):
        self.batches.append(len(x))
        mean, sd = self.moments(x)
        draws = mean.unsqueeze(-1) + sd.unsqueeze(-1) * torch.randn(*sample_shape, len(x), 1, dtype=torch.float64)
        return draws + shift

    @staticmethod
    def moments(x):
        values, mask = x[..., 0].flatten(1).double(), x[..., 1].flatten(1).double()
        precision = 1 + mask.sum(-1)
        return (values * mask).sum(-1) / precision, precision.rsqrt()


class Classifier:
    """Two models; log odds are the sum of what was observed."""

    def log_probs(self, x, model_prior=None):
        odds = (x[..., 0] * x[..., 1]).flatten(1).sum(-1)
        return torch.stack([torch.zeros_like(odds), odds], -1).log_softmax(-1)


def packed(*shape, missing=0.0):
    mask = (torch.rand(*shape, 1) >= missing).float()
    return torch.cat([torch.randn(*shape, 1) * mask, mask], -1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**31))
def test_observations_are_drawn_again_within_their_group(groups, observations, seed):
    torch.manual_seed(seed)
    x = packed(groups, observations, missing=0.3)
    x[0, :2] = 1.0
    variants = bootstrap_data(x, 20)
    torch.testing.assert_close(variants[..., 1].sum(-1), x[..., 1].sum(-1).expand(20, -1))
    for group in range(groups):
        there = x[group, x[group, :, 1] > 0, 0].tolist()
        drawn = variants[:, group][variants[:, group, :, 1] > 0][:, 0]
        assert set(drawn.tolist()) <= set(there)
    assert (variants[variants[..., 1] == 0] == 0).all()


def test_groups_are_drawn_whole():
    x = packed(4, 3, missing=0.2)
    x[:, 0] = 1.0
    x[:3, 0, 0] = torch.tensor([10.0, 20.0, 30.0])
    x[3] = 0  # padding
    variants = bootstrap_data(x, 3000, "groups")
    assert (variants[:, 3] == 0).all()
    for place in range(3):
        which = (variants[:, place, 0, 0] / 10).long() - 1
        torch.testing.assert_close(variants[:, place], x[which])
        assert (torch.bincount(which, minlength=3) - 1000).abs().max() < 5 * (3000 * 2 / 9) ** 0.5


def test_each_observation_is_left_out_once_and_each_group():
    x = packed(3, 4, missing=0.3)
    x[:, 0, 1] = 1
    there = int(x[..., 1].sum())
    variants = leave_one_out_data(x)
    assert variants.shape == (there, 3, 4, 2)
    gone = x - variants
    assert (gone[..., 1].flatten(1).sum(-1) == 1).all() and torch.equal(gone.sum(0), x)
    by_group = leave_one_out_data(x, "groups")
    assert by_group.shape[0] == 3 and torch.equal((x - by_group).sum(0), x)
    assert (by_group[torch.arange(3), torch.arange(3)] == 0).all()


def test_a_share_is_missing():
    x = packed(5, 10)
    variants = missing_data(x, 400, 0.2)
    assert (variants[..., 1].sum((1, 2)) == 40).all()
    often = (1 - variants[..., 1]).sum(0)  # each observation equally often
    assert (often - 80).abs().max() < 5 * (400 * 0.2 * 0.8) ** 0.5
    assert missing_data(x[:1, :2], 3, 0.01)[..., 1].sum() == 3  # at least one, never all


def test_shifts_are_those_of_the_exact_posterior_in_one_pass():
    torch.manual_seed(1)
    x = packed(5, 8, missing=0.2)
    posterior = Exact()
    doubled = x.clone()
    doubled[..., 0] *= 2
    found = data_sensitivity(
        posterior, x, level="groups", num_bootstrap=100, prepared={"doubled": doubled}, num_samples=4000, seed=0
    )
    assert posterior.batches == [16 + 100 + 5 + 100 + 1]
    mean, sd = Exact.moments(x.unsqueeze(0))
    noise = 5 * 2**0.5 / 4000**0.5
    exact = (Exact.moments(leave_one_out_data(x, "groups"))[0] - mean) / sd
    assert (found.shifts["leave one out"].squeeze(-1) - exact).abs().max() < noise + 5 * 0.02 * exact.abs().max()
    assert abs(float(found.shifts["doubled"]) - float(mean / sd)) < noise + 0.1 * abs(float(mean / sd))
    assert abs(float(found.scale / sd) - 1) < 5 / (2 * 4000) ** 0.5
    assert "leave one out" in str(found) and "root mean square shift" in str(found)
    again = data_sensitivity(posterior, x, level="groups", num_samples=100, seed=0, shift=9.0)
    assert float(again.baseline) > 7  # keywords reach sample_batched


def test_small_shifts_are_not_hidden_in_monte_carlo_error():
    """Each of 60 observations moves the mean by about .02 sd; 300 draws alone would show .06."""
    x = packed(5, 60)
    mean, sd = Exact.moments(x.unsqueeze(0))
    exact = ((Exact.moments(leave_one_out_data(x))[0] - mean) / sd).square().mean()
    squares, uncorrected, errors = [], [], []
    for seed in range(30):
        found = data_sensitivity(Exact(), x, num_bootstrap=0, num_missing=0, num_samples=300, seed=seed)
        shift, error = found.shifts["leave one out"], found.errors["leave one out"]
        torch.testing.assert_close(error, torch.full_like(error, 300**-0.5), rtol=0.3, atol=0)
        corrected = (shift.square() - error.square()).mean()
        assert float(found.root_mean_squares["leave one out"]) == pytest.approx(float(corrected.clamp_min(0)) ** 0.5)
        squares.append(corrected), uncorrected.append(shift.square().mean()), errors.append(error.square().mean())
    squares = torch.stack(squares)
    assert (squares.mean() - exact).abs() < 4 * squares.std() / 30**0.5
    assert torch.stack(uncorrected).mean() - exact > 0.7 * torch.stack(errors).mean()  # without the correction


def test_an_ensemble_over_parameters_is_one_over_parameters():
    x = packed(2, 6)
    found = data_sensitivity(DeepEnsemblePosterior([Exact(), Exact()]), x, num_samples=4000, seed=0)
    assert found.names == ("theta_0",)
    exact = Exact.moments(x.unsqueeze(0))
    # One standard error is 1/√4000 of a posterior deviation.
    assert abs(float(found.baseline) - float(exact[0])) < 4 * float(exact[1]) / 4000**0.5


def test_influence_of_one_trial_on_models():
    x = packed(30)
    x[7, 0] = 40.0
    found = data_sensitivity(Classifier(), x, num_bootstrap=0, num_missing=0, names=["no", "yes"], seed=0)
    assert list(found.estimates) == ["leave one out"] and found.names == ("no", "yes")
    shifts = found.shifts["leave one out"][:, 1]
    assert int(shifts.abs().argmax()) == 7
    expected = Classifier().log_probs(leave_one_out_data(x)).exp()
    torch.testing.assert_close(found.estimates["leave one out"], expected)


def test_errors():
    x = packed(3, 4)
    with pytest.raises(ValueError, match="last channel is a mask of 0 and 1"):
        data_sensitivity(Exact(), torch.randn(3, 4, 2))
    with pytest.raises(ValueError, match='has no groups: give level="observations"'):
        data_sensitivity(Exact(), x[0], level="groups")
    with pytest.raises(ValueError, match="level must be 'groups' or 'observations'"):
        data_sensitivity(Exact(), x, level="persons")
    with pytest.raises(ValueError, match="missing must be strictly between 0 and 1"):
        data_sensitivity(Exact(), x, missing=1.0)
    with pytest.raises(ValueError, match=r"cleaned must be data of shape \(3, 4, 2\)"):
        data_sensitivity(Exact(), x, prepared={"cleaned": x[:2]})
    with pytest.raises(ValueError, match="at least two groups with observations, got 1"):
        data_sensitivity(Exact(), x[:1], level="groups")
    with pytest.raises(ValueError, match="at least two observations, got 1"):
        data_sensitivity(Exact(), x[0, :1])
    with pytest.raises(ValueError, match="names must be 1 names"):
        data_sensitivity(Exact(), x, names=["a", "b"], num_samples=10)
