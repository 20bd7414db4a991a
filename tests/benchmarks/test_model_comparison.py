"""Model probabilities of hierarchical models against exact ones, and how long the net takes to train and to answer."""

import csv
import itertools
import math
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from report import report

from sbi_bed.diagnostics import (
    ProbabilityRecovery,
    evidence_recovery,
    model_calibration,
    model_report,
    probability_recovery,
)
from sbi_bed.inference import ModelComparison, train_ensemble
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import Classrooms, EvidenceAccumulation, NestedNormal, RecognitionMemory, simulate_models
from sbi_bed.utils import pack_groups

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_model_comparison.py -k"

# Evidence accumulation: step of the simulation in seconds, data sets trained on and judged, passes, nets, processes.
ACCUMULATION = {"dt": 0.01, "simulations": 5000, "tests": 1000, "epochs": 10, "members": 3, "workers": 2}


def exact_evidences(models, x):
    return torch.stack([models.log_evidence(x, j) for j in range(2)], -1)


class Found(NamedTuple):
    """What a benchmark asserts on."""

    probability: ProbabilityRecovery
    near: float  # RMSE of log Bayes factors below 9 nats
    accuracy: float  # less that of exact probabilities on the same data sets
    x: torch.Tensor
    seconds: float
    rate: float


def scores(evidences, found, model_index):
    """Recovery of probabilities and of log Bayes factors, accuracy less that of exact probabilities, and these as text."""
    exact, found = evidences.log_softmax(-1), found.double().log_softmax(-1)
    probability = probability_recovery(exact, found)
    factor = evidence_recovery(found[:, 1] - found[:, 0], exact[:, 1] - exact[:, 0], (0, 9, math.inf))
    accuracy, exact_accuracy = ((p.argmax(-1) == model_index).double().mean().item() for p in (found, exact))
    near, far = factor.rmse.tolist()
    text = f"{probability}; RMSE of log BF below 9 nats {near:.2f}, beyond {far:.1f}; accuracy {accuracy:.4f} "
    text += f"(exact {exact_accuracy:.4f})"
    return probability, near, accuracy - exact_accuracy, text


def train_and_test(models, num_simulations, epochs, num_test, name, command, num_members=1, num_levels=2):
    """Train nets with at most six minutes and report; returns the figures, the test data, seconds and speed."""
    model_index, x = simulate_models(models, num_simulations, seed=1)
    test_index, test_x = simulate_models(models, num_test, seed=2)

    def build():
        embedding_net = HierarchicalEmbedding(1, num_levels=num_levels)
        trainer = ModelComparison(2, embedding_net, show_progress_bars=False)
        return trainer.append_simulations(model_index, x)

    settings = {"max_num_epochs": epochs, "max_seconds": 330 / -(-num_members // 2), "vary_sizes": False}
    start = time.perf_counter()
    ensemble = train_ensemble(build, num_members, seed=0, num_workers=min(2, num_members), train_settings=settings)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    ensemble.members[0].log_probs(test_x)
    rate = num_test / (time.perf_counter() - start)
    exact = exact_evidences(models, test_x)
    probability, near, accuracy, text = scores(exact, ensemble.log_probs(test_x), test_index)
    text += f"; {seconds:.0f} s for at most {epochs} epochs, {rate:,.0f} data sets a second by one net"
    if num_members > 1:
        alone = [scores(exact, member.log_probs(test_x), test_index)[0].kl for member in ensemble]
        text += f"; KL of single nets {', '.join(f'{kl:.5f}' for kl in alone)}"
    report(f"{name}, {num_simulations:,} simulations, {num_members} nets", text, f"{COMMAND} {command}")
    return Found(probability, near, accuracy, test_x, seconds, rate)


def test_twenty_by_twenty():
    found = train_and_test(NestedNormal(20, 20), 40_000, 48, 1500, "nested normal 20×20", "twenty", num_members=2)
    assert found.probability.kl <= 0.0008 and found.near <= 0.5
    assert found.seconds <= 360 and found.rate >= 8000


def test_fifty_by_fifty():
    found = train_and_test(NestedNormal(50, 50), 40_000, 20, 5000, "nested normal 50×50", "fifty", num_members=2)
    assert found.probability.kl <= 0.001 and found.probability.error <= 0.01 and found.near <= 0.3
    assert found.accuracy >= -0.002
    assert found.seconds <= 360 and found.rate >= 1500


def test_varying_sizes():
    models = NestedNormal((5, 50), (1, 100), missing=0.2)
    found = train_and_test(models, 80_000, 14, 2000, "5–50 groups of 1–100, 20 % missing", "varying")
    assert found.probability.kl <= 0.002
    sizes = {
        "groups": (found.x[..., 1].amax(2).sum(1), (0, 20, 35, 50)),
        "observations": (found.x[..., 1].amax(1).sum(1), (0, 20, 50, 100)),
    }
    for what, (size, bounds) in sizes.items():
        for low, high in itertools.pairwise(bounds):
            part = found.probability.kl_each[(size > low) & (size <= high)].mean()
            report(f"of these, {low + 1}–{high} {what}", f"KL {float(part):.4f}", f"{COMMAND} varying")
            assert part <= 2 * found.probability.kl


def test_three_levels():
    models = Classrooms((4, 10), (5, 20), 10)
    found = train_and_test(
        models, 40_000, 16, 1000, "4–10 classes of 5–20 pupils with 10 answers", "three", num_levels=3
    )
    assert found.probability.kl <= 0.006


def test_recognition_memory():
    """Signal detection or two high thresholds, 25 persons × 50 words: six minutes of two cores, beside exact evidences."""
    models, start = RecognitionMemory(), time.perf_counter()
    model_index, x = simulate_models(models, 100_000, seed=1)

    def build():
        trainer = ModelComparison(2, HierarchicalEmbedding(2), show_progress_bars=False)
        return trainer.append_simulations(model_index, x)

    training = {"training_batch_size": 128, "max_num_epochs": 16, "max_seconds": 330, "vary_sizes": False}
    ensemble = train_ensemble(build, 2, seed=0, num_workers=2, train_settings=training)
    seconds = time.perf_counter() - start
    test_index, test_x = simulate_models(models, 10_000, seed=2)
    log_probs = ensemble.log_probs(test_x)
    found = model_calibration(log_probs, test_index, seed=0)
    judged, rows = 1500, torch.arange(1500)
    exact = exact_evidences(models, test_x[:judged]).log_softmax(-1)
    excess = (exact - log_probs[:judged])[rows, test_index[:judged]]
    floor = model_calibration(exact, test_index[:judged], seed=0)
    name, command = "signal detection or thresholds, 25 × 50", f"{COMMAND} recognition"
    report(f"{name}, 100,000 simulations, 2 nets", f"{found}; {seconds:.0f} s with simulation", command)
    error = float(excess.std()) / judged**0.5
    text = f"accuracy {floor.accuracy:.4f} ± {floor.accuracy_stderr:.4f}, log score {floor.log_score:.4f} ± "
    text += f"{floor.log_score_stderr:.4f}; the net's log score is higher by {float(excess.mean()):.4f} ± {error:.4f}"
    report(f"{name}, exact evidences of {judged:,} of these", text, command)
    assert found.accuracy >= 0.93 - found.accuracy_stderr and seconds <= 360
    assert found.log_score <= 0.152 + found.log_score_stderr  # exact evidences scatter as much from one test to another


def read_deciders():
    """For each person hard and easy trials, [stimulus, response time, choice]: the drift is up for easy ones.

    None where the recorded response times are not there.
    """
    path = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "response_times_cavanagh.csv"
    if not path.exists():
        return None
    people = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            easy, correct = row["stim"] == "WL", float(row["response"]) == 1
            trial = [float(easy), float(row["rt"]), float(correct == easy)]
            people.setdefault(row["participant_id"], ([], []))[easy].append(trial)
    return list(people.values())


def test_evidence_accumulation():
    """Four models of 14 persons with 200 to 310 trials each, and of 14 people whose response times were recorded."""
    scale, people, start = ACCUMULATION, read_deciders(), time.perf_counter()
    if people is None:
        counts = torch.randint(100, 156, (14, 2), generator=torch.Generator().manual_seed(0))
    else:
        counts = torch.tensor([[len(hard), len(easy)] for hard, easy in people])
    models = EvidenceAccumulation(len(counts), 2 * int(counts.max()), dt=scale["dt"])
    place = torch.arange(models.x_shape[1])
    keep = (place % counts.max() < counts[:, place // counts.max()]).unsqueeze(
        -1
    )  # of each stimulus as many as there were
    simulators = [lambda num, model=model: model(num) * keep for model in models.models]
    settings = {"batch_size": 100, "num_workers": scale["workers"]}
    model_index, x = simulate_models(simulators, scale["simulations"], seed=1, **settings)
    test_index, test_x = simulate_models(simulators, scale["tests"], seed=2, **settings)
    simulated = time.perf_counter() - start

    def build():
        trainer = ModelComparison(4, HierarchicalEmbedding(3), show_progress_bars=False)
        return trainer.append_simulations(model_index, x)

    training = {"training_batch_size": 64, "max_num_epochs": scale["epochs"], "vary_sizes": False}
    ensemble = train_ensemble(build, scale["members"], 0, scale["workers"], train_settings=training)
    seconds = time.perf_counter() - start
    found = model_calibration(ensemble.log_probs(test_x), test_index, seed=0)
    name, command = "evidence accumulation, 14 persons × 200–310 trials", f"{COMMAND} accumulation"
    settings = ", ".join(f"{key} {value}" for key, value in scale.items())
    report(f"{name} ({settings})", f"{found}; {simulated:.0f} s simulating, {seconds:.0f} s in all", command)
    singles = [model_calibration(member.log_probs(test_x), test_index, seed=0) for member in ensemble.members]
    report(
        "of these, single nets", "; ".join(f"log score {s.log_score:.4f}, ECE {s.ece:.4f}" for s in singles), command
    )
    report(f"of these, confusion ({', '.join(models.names)})", str(found.confusion.numpy().round(3).tolist()), command)
    if people is not None:
        observed = pack_groups([[hard + easy for hard, easy in people]])
        judged = model_report(ensemble, observed, test_x, test_index, model_names=models.names, seed=0)
        print(judged)
        probs = zip(models.names, judged.probs[0].tolist(), judged.spread[0].tolist(), strict=True)
        text = ", ".join(f"{model} {p:.3f} ± {sd:.3f}" for model, p, sd in probs)
        p_values = ", ".join(f"{p:.3f}" for p in judged.atypicality.model_p_value[0].tolist())
        text += f"; atypicality p = {float(judged.atypicality.p_value[0]):.4f} (of each model alone: {p_values})"
        report("14 people (Cavanagh et al. 2011), easy and hard trials", text, command)
    assert found.ece <= 2 * found.ece_floor_upper and found.accuracy >= 0.7
