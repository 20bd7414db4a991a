"""Errors against exact evidences: by hand, and their standard errors by repetition."""

import math

import pytest
import torch

from sbi_bed.diagnostics import evidence_recovery, kl_to_exact, probability_recovery


def test_errors_by_ranges_are_those_counted_by_hand():
    exact = torch.tensor([0.0, -8.0, 9.0, -39.0, 40.0, 300.0])
    found = exact + torch.tensor([1.0, -2.0, 3.0, 4.0, -30.0, -60.0])
    recovery = evidence_recovery(found, exact)
    assert recovery.count.tolist() == [2, 2, 2]
    expected = [math.sqrt(2.5), math.sqrt(12.5), math.sqrt((900 + 3600) / 2)]
    torch.testing.assert_close(recovery.rmse, torch.tensor(expected).double())
    torch.testing.assert_close(recovery.bias, torch.tensor([-0.5, 3.5, -45.0]).double())
    torch.testing.assert_close(recovery.bias_stderr, torch.tensor([1.5, 0.5, 15.0]).double())
    assert "9 to 40" in str(recovery)


def test_ranges_without_data_sets_are_nan_and_blank():
    recovery = evidence_recovery([1.0, 20.0], [1.5, 30.0], edges=(0, 9, 15, math.inf))
    assert recovery.count.tolist() == [1, 0, 1]
    assert recovery.rmse.isnan().tolist() == [False, True, False] and recovery.bias_stderr.isnan().all()
    assert "nan" not in str(recovery).splitlines()[3]


def test_standard_errors_are_those_of_repetition():
    torch.manual_seed(0)
    exact = torch.linspace(-8, 8, 200)
    found = [evidence_recovery(exact + 0.5 * torch.randn(200) + 0.1, exact) for _ in range(300)]
    for name in ("rmse", "bias"):
        spread = torch.stack([getattr(f, name)[0] for f in found]).std()
        claimed = torch.stack([getattr(f, f"{name}_stderr")[0] for f in found]).mean()
        assert claimed == pytest.approx(float(spread), rel=0.15)


def test_divergence_and_error_of_probabilities():
    exact = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    found = torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.1, 0.8]]).log()
    first = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4)
    torch.testing.assert_close(kl_to_exact(exact, found), torch.tensor([first, 0.0]).double(), atol=1e-7, rtol=1e-6)
    recovery = probability_recovery(exact, found)
    assert recovery.kl == pytest.approx(first / 2, rel=1e-5) and recovery.kl_stderr == pytest.approx(
        first / 2, rel=1e-5
    )
    assert recovery.error == pytest.approx(0.2 / 3 / 2) and "2 data sets" in str(recovery)


def test_divergence_of_certainties_is_finite():
    """KL of Bernoulli(σ(−600)) and Bernoulli(σ(−500)) from each other: 100 e^−500 ≈ 0, and 600 if turned round."""
    sure = torch.tensor([[0.0, -600.0]])
    assert kl_to_exact(sure, torch.tensor([[0.0, -500.0]])).item() == pytest.approx(0, abs=1e-12)
    assert kl_to_exact(sure, sure.flip(-1)).item() == pytest.approx(600)


def test_errors():
    with pytest.raises(ValueError, match=r"must have one shape \(N,\), N > 0, got \(3,\) and \(2,\)"):
        evidence_recovery(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="N > 0"):
        evidence_recovery([], [])
    with pytest.raises(ValueError, match="log_bayes_factor_exact must be finite, got inf at index"):
        evidence_recovery([1.0], [math.inf])
    with pytest.raises(ValueError, match="edges must be at least two increasing numbers"):
        evidence_recovery([1.0], [1.0], edges=(0, 9, 9))
    with pytest.raises(ValueError, match="exact_log_probs and log_probs must have one shape"):
        kl_to_exact(torch.zeros(1, 2).log_softmax(-1), torch.zeros(2, 2).log_softmax(-1))
    with pytest.raises(ValueError, match="exact_log_probs must be logs of probabilities that sum to 1"):
        probability_recovery(torch.zeros(1, 2), torch.zeros(1, 2).log_softmax(-1))
