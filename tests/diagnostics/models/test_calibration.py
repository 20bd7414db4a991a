"""Calibration of model probabilities: scores by hand, exact probabilities within their floor, others above it."""

import math

import pytest
import torch

from sbi_bed.diagnostics import model_calibration

LOGS = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]]).log()
TRUTH = torch.tensor([0, 1, 1, 1])


def predictions(num, num_models, sharpness=1.0, seed=0):
    """Labels of exact probabilities, and log probabilities made `sharpness` times as sure."""
    torch.manual_seed(seed)
    logits = 1.5 * torch.randn(num, num_models, dtype=torch.float64)
    return (sharpness * logits).log_softmax(-1), torch.multinomial(logits.softmax(-1), 1).squeeze(-1)


def test_scores_are_those_counted_by_hand():
    found = model_calibration(LOGS, TRUTH, num_bins=2, seed=0)
    brier = torch.tensor([2 * 0.2**2, 2 * 0.3**2, 2 * 0.6**2, 2 * 0.1**2]).double()
    logs = -torch.tensor([0.8, 0.7, 0.4, 0.9]).double().log()
    assert found.brier == pytest.approx(float(brier.mean())) and found.brier_stderr == pytest.approx(brier.std() / 2)
    assert found.log_score == pytest.approx(float(logs.mean())) and found.log_score_stderr == pytest.approx(
        logs.std() / 2
    )
    assert found.accuracy == 0.75 and found.accuracy_stderr == pytest.approx(0.25)
    # Model 1, in (0, ½): 0.2 and 0.4, one of which is true; in (½, 1): 0.7 and 0.9, both true. Model 0 mirrors it.
    assert found.ece == pytest.approx((abs(1 - 0.6) + abs(2 - 1.6)) / 4)
    assert found.bins.count.tolist() == [[2, 2], [2, 2]]
    torch.testing.assert_close(found.bins.mean_prob[1], torch.tensor([0.3, 0.8]).double())
    torch.testing.assert_close(found.bins.frequency[1], torch.tensor([0.5, 1.0]).double())
    # Clopper-Pearson of 2 out of 2 and of 1 out of 2, in closed form.
    root = math.sqrt(0.025)
    torch.testing.assert_close(found.bins.interval[1, 1], torch.tensor([root, 1.0]).double())
    side = 1 - math.sqrt(1 - 0.025)
    torch.testing.assert_close(found.bins.interval[1, 0], torch.tensor([side, 1 - side]).double())


def test_confusion_is_counted():
    log_probs, truth = predictions(300, 3)
    found = model_calibration(log_probs, truth, num_replicates=20)
    for i in range(3):
        torch.testing.assert_close(found.confusion[i], log_probs.exp()[truth == i].mean(0))
        for j in range(3):
            assert found.confusion_count[i, j] == ((truth == i) & (log_probs.argmax(-1) == j)).sum()
    torch.testing.assert_close(found.confusion.sum(-1), torch.ones(3).double())


@pytest.mark.parametrize("num_models", [2, 4])
def test_exact_probabilities_lie_within_their_floor(num_models):
    """Over 100 experiments, p-values are uniform and the ECE has the floor as its mean."""
    found = [model_calibration(*predictions(400, num_models, seed=s), num_replicates=100, seed=s) for s in range(100)]
    p_values = torch.tensor([f.ece_p_value for f in found])
    assert 0.4 < p_values.mean() < 0.6 and (p_values < 0.1).float().mean() < 0.2  # 10 ± 3 of 100
    ratio = torch.tensor([f.ece / f.ece_floor for f in found])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 10
    assert torch.tensor([f.ece <= f.ece_floor_upper for f in found]).float().mean() >= 0.88
    bins = [f.bins for f in found]
    inside = torch.stack([((b.frequency >= b.expected[..., 0]) & (b.frequency <= b.expected[..., 1])) for b in bins])
    covered = torch.stack([((b.mean_prob >= b.interval[..., 0]) & (b.mean_prob <= b.interval[..., 1])) for b in bins])
    full = torch.stack([b.count > 0 for b in bins])
    assert inside[full].float().mean() > 0.93 and covered[full].float().mean() > 0.94


@pytest.mark.parametrize("sharpness", [3.0, 0.4])
def test_too_sure_and_too_unsure_probabilities_exceed_it(sharpness):
    found = model_calibration(*predictions(1000, 3, sharpness), seed=0)
    assert found.ece > 2 * found.ece_floor_upper and found.ece_p_value < 0.002
    exact = model_calibration(*predictions(1000, 3), seed=0)
    assert found.log_score > exact.log_score and found.brier > exact.brier
    assert "calibration error" in str(found)


def test_standard_error_of_a_clear_calibration_error():
    found = [model_calibration(*predictions(1000, 3, 3.0, seed=s), num_replicates=20) for s in range(100)]
    spread = torch.tensor([f.ece for f in found]).std()
    assert torch.tensor([f.ece_stderr for f in found]).mean() == pytest.approx(float(spread), rel=0.3)


def test_certainty_is_kept_in_logs():
    """A true model at e^−500 costs 500 nats, and a missing model or an empty bin is NaN."""
    log_probs = torch.tensor([[-500.0, 0.0], [-500.0, 0.0]])
    found = model_calibration(log_probs, [0, 0])
    assert found.log_score == pytest.approx(500)
    assert found.confusion[1].isnan().all() and found.bins.frequency[0, 5].isnan()
    assert found.bins.interval[0, 5].isnan().all() and found.bins.expected[0, 5].isnan().all()


def test_the_same_seed_gives_the_same_floor():
    before = torch.get_rng_state()
    first, second = (model_calibration(LOGS, TRUTH, seed=3) for _ in range(2))
    assert first.ece_floor == second.ece_floor and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("log_probs", "model_index", "message"),
    [
        (LOGS[0], 0, r"log_probs must have shape \(N, J\)"),
        (LOGS[:0], [], r"log_probs must have shape \(N, J\).*got \(0, 2\)"),
        (LOGS[:, :1], TRUTH, "at least 2 models"),
        (LOGS[:1], [0], "at least 2 data sets, got 1"),
        (LOGS.index_fill(0, torch.tensor(2), math.nan), TRUTH, r"log_probs must be finite, got nan at index \(2, 0\)"),
        (LOGS.exp(), TRUTH, r"sum to 1, got a sum of 3.44\S* at index 0: apply log_softmax"),
        (LOGS, TRUTH[:3], r"model_index must have shape \(4,\)"),
        (LOGS, [0, 1, 2, 1], "whole numbers from 0 to 1, got 2 at index 2"),
        (LOGS, [0, 0.5, 1, 1], "whole numbers from 0 to 1, got 0.5 at index 1"),
    ],
)
def test_errors(log_probs, model_index, message):
    with pytest.raises(ValueError, match=message):
        model_calibration(log_probs, model_index)
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        model_calibration(LOGS, TRUTH, num_bins=0)
