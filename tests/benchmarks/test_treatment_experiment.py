"""Live treatment experiments: known variances, coverage, speed, and replays of trials that were really run."""

import time
from pathlib import Path

import pytest
import torch
from report import report

from sbi_bed.diagnostics import replay_trial, run_treatment_study, treatment_report
from sbi_bed.inference import TreatmentExperiment
from sbi_bed.inference.experiments.treatment.a2ipw import a2ipw_scores, estimate_ate
from sbi_bed.policies import CoinFlip, NeymanTeacher, NonContextualNeyman, OracleNeyman
from sbi_bed.simulators import TreatmentProblem, read_trial
from sbi_bed.simulators.treatment.problem import linear_benchmark, two_arm_benchmark
from sbi_bed.simulators.treatment.stream import TreatmentStream

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_treatment_experiment.py -k"
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def as_text(figure):
    return "{:.3f} ± {:.3f}".format(*figure)


def mean_squared_error(log, effect, predicted=None):
    """T·MSE and its standard error, and z of the bias, from a log (E, T)."""
    predicted = log.predicted if predicted is None else predicted
    error = a2ipw_scores(log.arm, log.outcome, log.propensity, predicted).mean(-1) - effect
    squares = len(log) * error.square()
    root = len(error) ** 0.5
    return (float(squares.mean()), float(squares.std()) / root), float(error.mean() / (error.std() / root))


def test_two_arms():
    problem, start, found = two_arm_benchmark(), time.process_time(), {}
    designs = {
        "coin": (CoinFlip(0), 20_000),
        "arms' variances": (NonContextualNeyman(0), 20_000),
        "teacher": (NeymanTeacher(0, outcome_scale=3.0, refit_every=10), 4000),
        "oracle": (OracleNeyman(problem), 20_000),
    }
    for name, (policy, num) in designs.items():
        found[name] = treatment_report(run_treatment_study(problem, policy, 400, num, seed=0))
        text = f"T·MSE/V* {as_text(found[name].efficiency)}, coverage {as_text(found[name].coverage)}, at all times "
        text += f"{as_text(found[name].sequence_coverage)}, repeated looks {as_text(found[name].repeated_coverage)}"
        text += f"; {num:,} runs of 400, {time.process_time() - start:.0f} CPU s so far"
        report(f"no covariates, σ = (1, 3), {name}", text, f"{COMMAND} two_arms")
    assert abs(found["coin"].efficiency[0] - 1.25) < 0.08
    assert all(abs(found[name].efficiency[0] - 1) < 0.08 for name in ("arms' variances", "teacher", "oracle"))
    for each in found.values():
        assert 0.935 < each.coverage[0] < 0.965 and each.sequence_coverage[0] > 0.95 and each.repeated_coverage[0] < 0.7


def test_five_covariates():
    problem = linear_benchmark()
    coin, oracle = (
        run_treatment_study(problem, policy, 400, 20_000, seed=0).log
        for policy in (CoinFlip(5, clip=0.01), OracleNeyman(problem, clip=0.01))
    )
    zero = torch.zeros_like(coin.predicted)
    weighting, z = mean_squared_error(coin, 0.5, zero)
    shift = torch.where(coin.arm > 0, 0.8, 0.3)
    centred = a2ipw_scores(coin.arm, coin.outcome - shift, coin.propensity, zero).mean(-1)
    squares = 400 * centred.square()
    no_intercepts = (float(squares.mean()), float(squares.std()) / 20_000**0.5)
    adjusted, _ = mean_squared_error(oracle, 0.5)
    text = f"coin with inverse weighting T·MSE {as_text(weighting)} (theory 22.67), without intercepts "
    text += f"{as_text(no_intercepts)} (theory 21.46), oracle with A2IPW {as_text(adjusted)} (theory 1.21); "
    text += "20,000 runs of 400"
    report("five covariates, linear means", text, f"{COMMAND} five_covariates")
    assert abs(z) < 3.5
    assert abs(weighting[0] / 22.67 - 1) < 0.05 and abs(no_intercepts[0] / 21.46 - 1) < 0.05
    assert abs(adjusted[0] / 1.21 - 1) < 0.05


def test_stream_with_covariates():
    problems, start = TreatmentStream(1.5).sample(4000, seed=0), time.process_time()
    teacher = NeymanTeacher(1, smoothness=1.5, refit_every=10)
    designs = {"coin": CoinFlip(1), "arms' variances": NonContextualNeyman(1), "teacher": teacher}
    for name, policy in designs.items():
        found = treatment_report(run_treatment_study(problems, policy, 300, nuisance=teacher, seed=1))
        text = f"T·MSE/V* {as_text(found.efficiency)}, late regret/V* {as_text(found.late_regret)}, coverage "
        text += (
            f"{as_text(found.coverage)}, at all times {as_text(found.sequence_coverage)}; 4,000 problems, 300 units, "
        )
        text += f"{time.process_time() - start:.0f} CPU s so far"
        report(f"one covariate, smoothness 1.5, {name}, teacher's predictions", text, f"{COMMAND} stream")
        assert 0.935 < found.coverage[0] < 0.965 and found.sequence_coverage[0] > 0.95


def test_speed_of_an_assignment(tmp_path):
    teachers = [NeymanTeacher(d, refit_every=10) for d in (1, 5)]
    for d, policy in ((1, NonContextualNeyman(1)), (1, teachers[0]), (5, teachers[1])):
        experiment = TreatmentExperiment(policy, seed=0, journal=tmp_path / f"{d}{type(policy).__name__}")
        experiment.assign(torch.rand(990, d))
        experiment.update(torch.randn(990))
        seconds, both = 0.0, 0.0
        for x in torch.rand(20, d):
            start = time.process_time()
            experiment.assign(x)
            seconds += time.process_time() - start
            experiment.update(float(torch.randn(())))
            both += time.process_time() - start
        experiment.close()
        text = f"assign {seconds / 20 * 1e3:.2f} ms, with update {both / 20 * 1e3:.2f} ms of CPU, journal included"
        report(f"assignment after 1,000 units, {type(policy).__name__}, d = {d}", text, f"{COMMAND} speed")
        assert seconds / 20 < 0.005


@pytest.mark.skipif(not DATA.exists(), reason="the folder of recorded data is not here")
@pytest.mark.parametrize(
    ("file", "columns", "scale"),
    [
        (
            "nsw_job_training.csv",
            ("treat", "re78", ["age", "educ"]),
            {"outcome_centre": 5000.0, "outcome_scale": 6500.0},
        ),
        (
            "hiv_results_incentives.csv",
            ("any", "got", ["distvct", "age"]),
            {"outcome_centre": 0.5, "outcome_scale": 0.5},
        ),
    ],
)
def test_real_trials(file, columns, scale):
    trial, start = read_trial(DATA / file, *columns), time.process_time()
    low, high = (trial.covariates.quantile(q, dim=0).tolist() for q in (0.02, 0.98))
    teacher = NeymanTeacher(2, covariate_low=low, covariate_high=high, refit_every=10, **scale)
    designs = {"coin": CoinFlip(2), "arms' variances": NonContextualNeyman(2), "teacher": teacher}
    for name, policy in designs.items():
        replay = replay_trial(trial, policy, 200 if len(trial) < 1000 else 40, nuisance=teacher, seed=0)
        final = replay.log.estimate()
        holds = (final.interval[0] <= trial.effect) & (trial.effect <= final.interval[1])
        variance = len(replay.log) * float(final.stderr.square().mean())
        text = f"{replay}; T·stderr² {variance:.4g}; holds the trial's effect {float(holds.double().mean()):.3f}; "
        text += f"propensity at the end {float(replay.log.propensity[:, -50:].mean()):.2f}; "
        report(f"{file}, {name}", text + f"{time.process_time() - start:.0f} CPU s so far", f"{COMMAND} real_trials")
        assert abs(float(final.ate.mean()) - trial.effect) < 0.5 * trial.effect_stderr


def without_effect(draw):
    """No covariates, no effect, outcomes from `draw`."""

    def moments(x):
        ones = torch.ones(*x.shape[:-1], 2, dtype=torch.float64)
        return 0 * ones, ones

    nodes = torch.zeros(1, 0, dtype=torch.float64)
    return TreatmentProblem(lambda n: torch.zeros(n, 0).double(), moments, nodes, lambda mean, _: draw(mean))


@pytest.mark.parametrize("rate", [0.01, 0.03])
@pytest.mark.parametrize("num_units", [40, 200])
def test_rare_events(rate, num_units):
    problem = without_effect(lambda like: torch.bernoulli(torch.full_like(like, rate)))
    for name, policy in (("coin", CoinFlip(0)), ("arms' variances", NonContextualNeyman(0))):
        log = run_treatment_study(problem, policy, num_units, 400, seed=1).log
        for space in ("real", "binary"):
            found, text = log.running(outcome_space=space), []
            for label, ends in (("fixed", found.interval), ("at all times", found.confidence_sequence)):
                holds = ((ends[0] <= 0) & (ends[1] >= 0)).double()
                share = float(holds[:, -1].mean() if label == "fixed" else holds.amin(-1).mean())
                text.append(f"{label} {share:.3f}, half-width {float((ends[1] - ends[0])[:, -1].median()) / 2:.3f}")
                assert share >= 0.945
            report(f"{num_units} units, events at {rate}, {name}, {space}", "; ".join(text), f"{COMMAND} rare_events")


@pytest.mark.parametrize("kind", ["binary", "zero-inflated", "lognormal", "normal"])
def test_stopping_without_effect(kind):
    draws = {
        "binary": lambda like: torch.bernoulli(torch.full_like(like, 0.05)),
        "zero-inflated": lambda like: torch.bernoulli(torch.full_like(like, 0.2)) * torch.randn_like(like).exp(),
        "lognormal": lambda like: torch.randn_like(like).exp(),
        "normal": torch.randn_like,
    }
    designs = {
        "coin": CoinFlip(0),
        "arms' variances": NonContextualNeyman(0),
        "teacher": NeymanTeacher(0, refit_every=20),
    }
    for name, policy in designs.items():
        log = run_treatment_study(without_effect(draws[kind]), policy, 300, 1000, seed=1).log
        for label, found in (("plain", estimate_ate(log.scores)), ("with events", log.running())):
            low, high = found.confidence_sequence
            wrong = 1 - float(((low <= 0) & (high >= 0)).all(-1).double().mean())
            text = f"type I error {wrong:.3f} when stopping at the first sequence without 0; 1,000 runs of 300"
            report(f"{kind} outcomes, {name}, {label} sequence", text, f"{COMMAND} stopping")
            assert label == "plain" or wrong <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5
