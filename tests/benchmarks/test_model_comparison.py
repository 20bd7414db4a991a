"""Model probabilities of hierarchical models against exact ones, and how long the net takes to train and to answer."""

import itertools
import time

import pytest
import torch
from report import report

from sbi_bed.inference import ModelComparison
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import NestedNormal, simulate_models

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_model_comparison.py -k"


def exact_evidences(models, x):
    return torch.stack([models.log_evidence(x, j) for j in range(2)], -1)


def scores(log_evidences, net, model_index):
    """KL(exact ‖ net), error of probabilities, error of log Bayes factors below 9 nats and beyond, accuracies."""
    exact, found = log_evidences.log_softmax(-1), net.double().log_softmax(-1)
    factor, guess = (logs[:, 1] - logs[:, 0] for logs in (log_evidences, net.double()))
    near, error = factor.abs() < 9, (factor - guess).square()
    return {
        "KL": (exact.exp() * (exact - found)).sum(-1),
        "error of p": (exact.exp() - found.exp())[:, 1].abs(),
        "RMSE of log BF below 9": error[near].mean().sqrt(),
        "beyond": error[~near].mean().sqrt(),
        "accuracy": (found.argmax(-1) == model_index).double().mean(),
        "exact": (exact.argmax(-1) == model_index).double().mean(),
    }


def as_text(figures):
    return ", ".join(f"{name} {float(torch.as_tensor(value).mean()):.4f}" for name, value in figures.items())


def train_and_test(models, num_simulations, epochs, num_test, name, command):
    """Train with at most six minutes and report; returns the figures, the test data and the exact evidences."""
    model_index, x = simulate_models(models, num_simulations, seed=1)
    test_index, test_x = simulate_models(models, num_test, seed=2)
    torch.manual_seed(0)
    comparison = ModelComparison(2, HierarchicalEmbedding(1), show_progress_bars=False)
    comparison.append_simulations(model_index, x)
    start = time.perf_counter()
    comparison.train(max_num_epochs=epochs, max_seconds=350, seed=0)
    seconds = time.perf_counter() - start
    posterior = comparison.build_posterior()
    start = time.perf_counter()
    net = posterior.log_evidences(test_x)
    rate = num_test / (time.perf_counter() - start)
    figures = scores(exact_evidences(models, test_x), net, test_index)
    passes = len(comparison.validation_losses)
    text = f"{as_text(figures)}; {seconds:.0f} s for {passes} epochs, {rate:,.0f} data sets a second"
    report(f"{name}, {num_simulations:,} simulations", text, f"{COMMAND} {command}")
    return figures, test_x, seconds, rate


def test_twenty_by_twenty():
    figures, _, seconds, rate = train_and_test(NestedNormal(20, 20), 40_000, 24, 1500, "nested normal 20×20", "twenty")
    assert figures["KL"].mean() <= 0.0008 and seconds <= 360 and rate >= 8000
    assert figures["RMSE of log BF below 9"] <= 0.5


def test_fifty_by_fifty():
    figures, _, seconds, rate = train_and_test(NestedNormal(50, 50), 40_000, 20, 5000, "nested normal 50×50", "fifty")
    assert figures["KL"].mean() <= 0.001 and figures["error of p"].mean() <= 0.01 and seconds <= 360 and rate >= 1500
    assert figures["accuracy"] >= 0.885 - 0.0045  # its standard error
    assert figures["RMSE of log BF below 9"] <= 0.3


def test_varying_sizes():
    models = NestedNormal((5, 50), (1, 100), missing=0.2)
    figures, x, _, _ = train_and_test(models, 80_000, 14, 2000, "5–50 groups of 1–100, 20 % missing", "varying")
    assert figures["KL"].mean() <= 0.002
    sizes = {
        "groups": (x[..., 1].amax(2).sum(1), (0, 20, 35, 50)),
        "observations": (x[..., 1].amax(1).sum(1), (0, 20, 50, 100)),
    }
    for what, (size, bounds) in sizes.items():
        for low, high in itertools.pairwise(bounds):
            part = figures["KL"][(size > low) & (size <= high)].mean()
            report(f"of these, {low + 1}–{high} {what}", f"KL {float(part):.4f}", f"{COMMAND} varying")
            assert part <= 2 * figures["KL"].mean()
