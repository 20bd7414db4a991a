"""A2IPW: unbiased under any predictable nuisance, and intervals that hold when they say so."""

import math

import pytest
import torch

from sbi_bed.inference.experiments.treatment.a2ipw import a2ipw_scores, estimate_ate, mixture_scale


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scores_by_hand():
    scores = a2ipw_scores([1, 0], [5.0, 2.0], [0.25, 0.8], [[1.0, 3.0], [1.0, 3.0]])
    assert scores.tolist() == pytest.approx([3 - 1 + (5 - 3) / 0.25, 3 - 1 - (2 - 1) / 0.2])


def test_true_predictions_leave_the_arms_noise_alone():
    arm = torch.tensor([[0.0, 1.0, 1.0]])
    predicted = torch.tensor([[[1.0, 4.0]] * 3])
    outcome = torch.where(arm > 0, 4.0, 1.0)
    assert torch.equal(a2ipw_scores(arm, outcome, torch.full((1, 3), 0.3), predicted), torch.full((1, 3), 3.0).double())


def test_running_estimate_is_that_of_each_prefix():
    scores = 1e6 + draws(3, 50)  # far from zero: sums of squares must not cancel
    running = estimate_ate(scores)
    for t in (2, 7, 50):
        part = scores[:, :t]
        assert torch.allclose(running.ate[:, t - 1], part.mean(-1))
        assert torch.allclose(running.stderr[:, t - 1], part.std(-1) / t**0.5, rtol=1e-4)
    assert running.stderr[:, 0].isinf().all() and running.num_units[0, -1] == 50
    low, high = running.interval
    assert torch.allclose((high - low)[:, -1], 2 * 1.959964 * running.stderr[:, -1])


def test_formula_of_the_confidence_sequence():
    running, t, level = estimate_ate(draws(1, 300), 0.9, 100), 250, 0.9
    rho = mixture_scale(level, 100)
    sd, alpha = float(running.stderr[0, t - 1]) * t**0.5, 0.1
    width = sd * math.sqrt(2 * (t * rho**2 + 1) / (t**2 * rho**2) * math.log(math.sqrt(t * rho**2 + 1) / alpha))
    assert float(running.confidence_sequence[1][0, t - 1] - running.ate[0, t - 1]) == pytest.approx(width)
    assert (
        running.confidence_sequence[0][0, :19].isinf().all() and running.confidence_sequence[0][0, 19:].isfinite().all()
    )


def test_the_sequence_is_tightest_where_it_should_be():
    t = 80.0

    def width(tightest_at):
        s = t * mixture_scale(0.95, tightest_at) ** 2
        return (s + 1) / s * (math.log(s + 1) - 2 * math.log(0.05))

    assert all(width(80) < width(other) for other in (70, 90, 40, 160))


def test_coverage_at_one_time_and_at_all_times():
    num = 4000
    running = estimate_ate(draws(num, 400, seed=1))
    wald, sequence = ((ends[0] <= 0) & (ends[1] >= 0) for ends in (running.interval, running.confidence_sequence))
    stderr = (0.95 * 0.05 / num) ** 0.5
    assert abs(float(wald[:, -1].double().mean()) - 0.95) < 4 * stderr
    assert float(sequence.all(-1).double().mean()) > 0.95 - 2 * stderr
    assert float(wald[:, 19:].all(-1).double().mean()) < 0.7  # looking again and again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": [1, 2]}, r"arm must be 0 or 1, got 2 at index \(1,\)"),
        ({"propensity": [0.5, 1.0]}, r"propensity must be strictly between 0 and 1, got 1 at index \(1,\)"),
        ({"propensity": [0.0, 0.5]}, r"propensity must be strictly between 0 and 1, got 0 at index \(0,\)"),
        ({"outcome": [math.nan, 1.0]}, r"outcome must be finite, got nan at index \(0,\)"),
        ({"outcome": [1.0]}, "must have shapes"),
        ({"predicted": [[0.0, 0.0, 0.0]]}, "predicted must have 2 values"),
    ],
)
def test_bad_logs(change, message):
    good = {"arm": [1, 0], "outcome": [1.0, 2.0], "propensity": [0.5, 0.5], "predicted": [[0.0, 0.0], [0.0, 0.0]]}
    with pytest.raises(ValueError, match=message):
        a2ipw_scores(**good | change)


@pytest.mark.parametrize("level", [0, 1, 95, "0.95", True])
def test_bad_levels(level):
    with pytest.raises(ValueError, match="level must be strictly between 0 and 1"):
        estimate_ate([1.0, 2.0], level)


def test_no_units():
    with pytest.raises(ValueError, match="at least one unit"):
        estimate_ate(torch.zeros(3, 0))


def test_estimate_reads_well():
    assert (
        str(estimate_ate([1.0, 3.0]).at(-1))
        == "effect 2 ± 1, 95% interval [0.04004, 3.96], at any time [-inf, inf] (2 units)"
    )
    assert str(estimate_ate(torch.ones(2, 3))) == "AteEstimate of shape (2, 3) at level 0.95"
