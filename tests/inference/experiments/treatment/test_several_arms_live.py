"""Live experiments with several treatments and a control."""

import math

import pytest
import torch
from sklearn.linear_model import LinearRegression

from sbi_bed.diagnostics import run_treatment_study, treatment_report
from sbi_bed.inference import TreatmentExperiment
from sbi_bed.inference.experiments.treatment.a2ipw import a2ipw_scores
from sbi_bed.inference.experiments.treatment.log import TreatmentLog
from sbi_bed.policies import CoinFlip, NeymanTeacher, NonContextualNeyman, OracleNeyman
from sbi_bed.simulators import TreatmentStream, multi_arm_benchmark

MEANS, SDS = (1.0, 3.0, 0.0), (2.0, 1.0, 1.0)


def run(experiment, num, late=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num):
        x = torch.rand(1, generator=generator, dtype=torch.float64)
        arm, _ = experiment.assign(x)
        outcome = float(x) + MEANS[int(arm)] + SDS[int(arm)] * float(torch.randn((), generator=generator))
        if not (late and experiment.num_units % late == 0):
            experiment.update(outcome, unit=experiment.num_units - 1)
    return experiment


def callable_policy(history, x):
    return [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (lambda: NeymanTeacher(1, num_arms=3, refit_every=20), {}),
        (lambda: NonContextualNeyman(1, num_arms=3), {"nuisance": LinearRegression()}),
        (lambda: callable_policy, {"covariate_dim": 1, "num_arms": 3}),
    ],
)
def test_estimate_from_the_log_and_from_a_file(policy, options, tmp_path):
    given = {name: value for name, value in options.items() if name == "nuisance"}
    experiment = run(TreatmentExperiment(policy(), seed=0, journal=tmp_path / "trial", **options), 150)
    log, found = experiment.log, experiment.estimate()
    assert log.propensity.shape == log.predicted.shape == (150, 3)
    scores = a2ipw_scores(log.arm, log.outcome, log.propensity, log.predicted)[-found.num_units.min() :]
    assert torch.allclose(found.ate, scores.mean(0)) and found.ate.shape == (2,)
    assert torch.allclose(found.stderr, scores.std(0) / len(scores) ** 0.5)
    assert ((found.ate - torch.tensor([2.0, -1.0])).abs() < 4.5 * found.stderr).all()
    half, joint, always = (
        (ends[1] - ends[0]) / 2 for ends in (found.interval, found.joint_interval, found.confidence_sequence)
    )
    assert torch.allclose(half, 1.96 * found.stderr, rtol=0.03)  # Student's quantile for the effective number
    assert torch.allclose(joint / half, torch.tensor(2.2414 / 1.96).double(), rtol=0.01) and (always > joint).all()
    assert torch.equal(experiment.running().at(-1).ate, found.ate)
    assert [line.split()[:4] for line in str(found).splitlines()[-2:]] == [["arm", a, "−", "arm"] for a in "12"]
    columns = log.columns()
    assert columns["p2"] == log.propensity[:, 2].tolist() and columns["f1"] == log.predicted[:, 1].tolist()
    experiment.close()
    again = TreatmentExperiment.load(tmp_path / "trial", policy(), journal=False, **given)
    assert again.num_arms == 3 and str(again.estimate()) == str(found)
    for first, second in zip(again.assign([0.5]), experiment_after(experiment, tmp_path, policy, given), strict=True):
        assert torch.equal(first, second)


def experiment_after(experiment, tmp_path, policy, given):
    experiment._journal = None  # go on in memory
    return experiment.assign([0.5])


def test_each_effect_is_that_of_a_log_of_two_arms_and_late_outcomes_are_allowed_for():
    experiment = run(TreatmentExperiment(CoinFlip(1, num_arms=3), seed=1), 240, late=7)
    experiment.withdraw(experiment.pending[:3])
    log, found = experiment.log, experiment.estimate()
    running = experiment.running()
    for arm in (1, 2):
        single = log.contrast(arm).estimate()
        assert single.ate == pytest.approx(float(found.ate[arm - 1])) and math.isfinite(single.stderr)
        assert single.stderr == pytest.approx(float(found.stderr[arm - 1]))
        assert single.confidence_sequence[1] < float(found.confidence_sequence[1][arm - 1])
    assert running.ate.shape[1] == 2 and torch.equal(running.ate[-1], found.ate)
    two = TreatmentLog(
        *(getattr(log.contrast(1), n) for n in ("covariates", "arm", "outcome", "propensity", "predicted", "observed"))
    )
    assert two.contrast(1) is two
    with pytest.raises(ValueError, match=r"take contrast\(arm\)"):
        _ = log.scores
    with pytest.raises(ValueError, match="arm must be one of 1 to 2"):
        log.contrast(3)


def test_an_arm_without_outcomes_is_unknown_and_the_others_are_not():
    num = 60
    arm, generator = torch.arange(num).double() % 2, torch.Generator().manual_seed(0)
    outcome = torch.randn(num, generator=generator, dtype=torch.float64)
    seen = torch.ones(num, dtype=torch.bool)
    arm[-1], seen[-1] = 2, False
    thirds = torch.full((num, 3), 1 / 3).double()
    log = TreatmentLog(torch.zeros(num, 0), arm, outcome, thirds, torch.zeros(num, 3).double(), seen)
    found = log.estimate()
    assert found.stderr[1] == math.inf and found.interval[0][1] == -math.inf and math.isfinite(found.stderr[0])


def test_bounded_outcomes_of_three_arms():
    experiment = TreatmentExperiment(CoinFlip(0, num_arms=3), seed=0, outcome_space="binary")
    arm, _ = experiment.assign(torch.zeros(90, 0))
    experiment.update((arm == 2).double())
    found = experiment.estimate()
    for ends in (found.interval, found.joint_interval, found.confidence_sequence):
        assert float(ends[0][0]) < 0 < float(ends[1][0]) and 0 < float(ends[0][1]) <= 1 <= float(ends[1][1])
    widths = [ends[1] - ends[0] for ends in (found.interval, found.joint_interval, found.confidence_sequence)]
    assert (widths[0] < widths[1]).all() and (widths[1] < widths[2]).all()


def test_many_experiments_cover_all_effects():
    problem, num = multi_arm_benchmark((3.0, 1.0, 1.0), (5.0, 6.0, 4.5)), 1000
    found = {
        name: treatment_report(run_treatment_study(problem, policy, 200, num, seed=0))
        for name, policy in (("adaptive", NonContextualNeyman(0, num_arms=3)), ("oracle", OracleNeyman(problem)))
    }
    error = (0.95 * 0.05 / num) ** 0.5
    assert abs(found["adaptive"].coverage[0] - 0.95) < 4.5 * error + 0.005  # asymptotic: 200 units
    assert found["adaptive"].sequence_coverage[0] > 0.95 and found["adaptive"].regret[0] < 0.06
    assert found["oracle"].regret[0] == pytest.approx(0, abs=1e-12)
    (mean, stderr), (best, _) = found["adaptive"].efficiency, found["oracle"].efficiency
    assert mean < 1.1 * best + 4.5 * stderr


def test_covariates_and_three_arms():
    problems = TreatmentStream(1.5, num_arms=3).sample(20, seed=0)
    study = run_treatment_study(problems, NeymanTeacher(1, num_arms=3, refit_every=30), 120, seed=0)
    coin = run_treatment_study(problems, CoinFlip(1, num_arms=3), 120, seed=0)
    late = slice(60, None)
    gain = (coin.regret - study.regret)[:, late].mean(-1) / study.bound
    assert study.effect.shape == (20, 2) and float(gain.mean()) > 3 * float(gain.std()) / 20**0.5
    with pytest.raises(ValueError, match="the policy is for 2 arms, the problem has 3"):
        run_treatment_study(problems, CoinFlip(1), 10)


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_arms is 3, but the policy is for 2"):
        TreatmentExperiment(CoinFlip(0), num_arms=3)
    with pytest.raises(ValueError, match="clip must be strictly between 0 and 1/3"):
        TreatmentExperiment(CoinFlip(0, num_arms=3), clip=0.4)
    with pytest.raises(ValueError, match="nuisance must predict 3 arms"):
        TreatmentExperiment(CoinFlip(0, num_arms=3), nuisance=CoinFlip(0))
    for proposed in ([0.5, 0.5], [0.5, 0.5, 0.5]):
        with pytest.raises(ValueError, match="3 probabilities that sum to 1"):
            TreatmentExperiment(lambda history, x, p=proposed: p, 0, num_arms=3).assign()
    shares = TreatmentExperiment(lambda history, x: [0.98, 0.01, 0.01], 0, num_arms=3, seed=0).assign()[1]
    assert shares.tolist() == pytest.approx([0.9, 0.05, 0.05])
