"""Live treatment experiments: known variances, coverage, speed, and replays of trials that were really run."""

import math
import time
from pathlib import Path

import pytest
import torch
from report import report

from sbi_bed.diagnostics import replay_trial, run_treatment_study, treatment_report
from sbi_bed.inference import TreatmentExperiment
from sbi_bed.inference.experiments.treatment.a2ipw import a2ipw_scores, estimate_ate
from sbi_bed.policies import CoinFlip, NeymanTeacher, NonContextualNeyman, OracleNeyman
from sbi_bed.simulators import TreatmentProblem, multi_arm_benchmark, read_trial
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


@pytest.mark.parametrize("sds", [(3.0, 1.0, 1.0), (1.0, 3.0, 1.0)])
def test_three_arms(sds):
    problem, start = multi_arm_benchmark(sds), time.process_time()
    oracle = OracleNeyman(problem)
    teacher = NeymanTeacher(0, num_arms=3, refit_every=20)
    designs = {"coin": CoinFlip(0, num_arms=3), "arms' variances": NonContextualNeyman(0, num_arms=3)}
    variances = {}
    for name, policy in {**designs, "teacher": teacher, "oracle": oracle}.items():
        study = run_treatment_study(problem, policy, 600, 2000, seed=0)
        found, final = treatment_report(study), study.log.estimate()
        low, high = final.joint_interval
        joint = ((low <= study.effect) & (study.effect <= high)).all(-1).double().mean()
        variances[name] = 1 + found.regret[0]  # V(e) / V*, free of the noise of 2,000 errors
        text = (
            f"V(e)/V* {variances[name]:.3f}, T·MSE/V* {as_text(found.efficiency)}, coverage {as_text(found.coverage)}, "
        )
        text += f"of both effects {joint:.3f}, at all times {as_text(found.sequence_coverage)}; 2,000 runs of 600, "
        report(
            f"three arms, σ = {sds}, {name}",
            f"{text}{time.process_time() - start:.0f} CPU s so far",
            f"{COMMAND} three",
        )
        assert abs(found.coverage[0] - 0.95) < 0.005 + 3 * found.coverage[1] and found.sequence_coverage[0] >= 0.95
    assert variances["teacher"] < 1.1 < variances["coin"]


OTHER_OUTCOMES = {  # simulator, means, variances, space, runs
    "binary": (lambda mean, _: torch.bernoulli(mean), (0.1, 0.1, 0.1), (0.09, 0.09, 0.09), "binary", 400),
    "counts": (lambda mean, _: torch.poisson(mean), (2.0, 2.0, 5.0), (2.0, 2.0, 5.0), "real", 2000),
    "bounded": (
        lambda mean, _: torch.distributions.Beta(2 * mean, 2 - 2 * mean).sample(),
        (0.5, 0.7, 0.5),
        (0.25 / 3, 0.21 / 3, 0.25 / 3),
        (0.0, 1.0),
        400,
    ),
}


@pytest.mark.parametrize("kind", OTHER_OUTCOMES)
def test_three_arms_other_outcomes(kind):
    simulate, means, variances, space, num = OTHER_OUTCOMES[kind]

    def moments(x):
        ones = torch.ones(*x.shape[:-1], 3, dtype=torch.float64)
        return ones * torch.tensor(means).double(), ones * torch.tensor(variances).double()

    nodes = torch.zeros(1, 0, dtype=torch.float64)
    problem, start = (
        TreatmentProblem(lambda n: torch.zeros(n, 0).double(), moments, nodes, simulate),
        time.process_time(),
    )
    for name, policy in {"coin": CoinFlip(0, num_arms=3), "variances": NonContextualNeyman(0, num_arms=3)}.items():
        study = run_treatment_study(problem, policy, 300, num, seed=0)
        found, effect = study.log.running(outcome_space=space), study.effect.unsqueeze(1)
        single, joint, always = (
            (ends[0] <= effect + 1e-12) & (effect - 1e-12 <= ends[1])
            for ends in (found.interval, found.joint_interval, found.confidence_sequence)
        )
        shares = [float(single[:, -1].double().mean()), float(joint[:, -1].all(-1).double().mean())]
        shares.append(float(always.flatten(1).all(-1).double().mean()))
        text = "interval {:.4f}, both joint intervals {:.4f}, at all times {:.4f}".format(*shares)
        text += f"; {num:,} runs of 300, {time.process_time() - start:.0f} CPU s so far"
        report(f"three arms, {kind} outcomes, {name}", text, f"{COMMAND} three_arms_other")
        assert min(shares) >= 0.95 - 3 * (0.95 * 0.05 / num) ** 0.5


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


def plain_problem(simulate, means=(0.0, 0.0)):
    """No covariates; outcomes of both arms from `simulate`, of which `means` are the means."""

    def moments(x):
        mean = torch.tensor(means, dtype=torch.float64).expand(*x.shape[:-1], 2)
        return mean, torch.ones_like(mean)

    nodes = torch.zeros(1, 0, dtype=torch.float64)
    return TreatmentProblem(lambda n: torch.zeros(n, 0).double(), moments, nodes, simulate)


NUM_RARE = 400
PLACES = (40, 100, 200, 400, 1000)


@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.03, 0.03), (0.01, 0.03)])
def test_rare_events(rates):
    problem, start = plain_problem(lambda mean, _: torch.bernoulli(mean), rates), time.process_time()
    effect, error = rates[1] - rates[0], (0.95 * 0.05 / NUM_RARE) ** 0.5
    designs = {
        "coin": CoinFlip(0),
        "arms' variances": NonContextualNeyman(0),
        "teacher": NeymanTeacher(0, refit_every=20),
    }
    for name, policy in designs.items():
        found = run_treatment_study(problem, policy, max(PLACES), NUM_RARE, seed=1).log.running(outcome_space="binary")
        fixed, sequence = (
            ((low <= effect + 1e-12) & (effect - 1e-12 <= high)).double()
            for low, high in (found.interval, found.confidence_sequence)
        )
        shares = [float(fixed[:, place - 2].mean()) for place in PLACES]  # the first unit does not enter
        always, half = (
            float(sequence.amin(-1).mean()),
            float((found.interval[1] - found.interval[0])[:, -1].median()) / 2,
        )
        text = f"fixed at {PLACES} units {', '.join(f'{share:.3f}' for share in shares)}; at all times {always:.3f}; "
        text += f"half-width at the end {half:.4f}; {NUM_RARE} runs, {time.process_time() - start:.0f} CPU s so far"
        report(f"binary outcomes at {rates}, {name}", text, f"{COMMAND} rare_events")
        assert min(shares) >= 0.945 - 2 * error and always >= 0.95 - 2 * error


def _rare(like, rate):
    return torch.bernoulli(torch.full_like(like, rate))


KINDS = {  # outcomes and their mean
    "normal": (torch.randn_like, 0.0),
    "lognormal": (lambda like: torch.randn_like(like).exp(), math.exp(0.5)),
    "exponential": (lambda like: -torch.rand_like(like).log(), 1.0),
    "zero-inflated": (lambda like: _rare(like, 0.1) * torch.randn_like(like).exp(), 0.1 * math.exp(0.5)),
    "Student t, 3 degrees": (lambda like: torch.distributions.StudentT(3.0).sample(like.shape).to(like), 0.0),
    "Pareto, index 3": (lambda like: torch.distributions.Pareto(1.0, 3.0).sample(like.shape).to(like), 1.5),
    "binary": (lambda like: _rare(like, 0.05), 0.05),
}


@pytest.mark.parametrize("where", ["both arms", "one arm"])
@pytest.mark.parametrize("kind", KINDS)
def test_stopping_without_effect(kind, where):
    """In one arm: the other has nearly constant outcomes of the same mean."""
    draw, mean = KINDS[kind]

    def simulate(means, _):
        both = draw(means)
        control = mean + 0.05 * torch.randn_like(means[..., 0])
        return both if where == "both arms" else torch.stack([control, both[..., 1]], -1)

    designs = {
        "coin": (CoinFlip(0), 2000),
        "arms' variances": (NonContextualNeyman(0), 2000),
        "teacher": (NeymanTeacher(0, refit_every=20), 400),
    }
    text = []
    for name, (policy, num) in designs.items():
        log = run_treatment_study(plain_problem(simulate), policy, 500, num, seed=1).log
        for label, found in (("plain", estimate_ate(log.scores)), ("", log.running())):
            low, high = found.confidence_sequence
            wrong = (low > 0) | (high < 0)
            early, late = (float(wrong[:, : place - 1].any(-1).double().mean()) for place in (100, 500))
            text.append(f"{name} {label or f'{early:.3f}, {late:.3f}'}" + (f" {late:.3f}" if label else ""))
            assert label or max(early, late) <= 0.05 + 2 * (0.05 * 0.95 / num) ** 0.5
    what = f"type I error at 100 and 500 units, {kind} outcomes in {where}"
    report(what, "; ".join(text) + "; 2,000 runs (teacher 400)", f"{COMMAND} stopping")


NUM_LOST, UNITS_LOST = 400, 100


def lossy_trial(policy, seed, loss=0.0, delay=0, space="real"):
    """A trial whose arm 1 loses a share of its outcomes, or has them `delay` units late; the effect is 1, or 0.1."""
    generator = torch.Generator().manual_seed(seed)
    x, noise, lost, chance = torch.rand(4, UNITS_LOST, generator=generator, dtype=torch.float64)
    normal = torch.special.ndtri(noise)
    experiment, arms = TreatmentExperiment(policy, seed=seed, outcome_space=space), []
    for t in range(UNITS_LOST):
        arms.append(int(experiment.assign()[0]))
        due = [t] if arms[t] == 0 or not delay else []
        if delay and t >= delay and arms[t - delay] == 1:
            due.append(t - delay)
        for unit in due:
            arm = arms[unit]
            real = 3 + 4 * x[unit] + arm + (1 + arm) * 0.5 * normal[unit]
            if arm == 0 or lost[unit] >= loss:
                experiment.update(float(real if space == "real" else chance[unit] < 0.2 + 0.1 * arm), unit=unit)
    return experiment.estimate()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "how", [{"loss": 0.6}, {"delay": 40}, {"loss": 0.6, "space": "binary"}], ids=["loss", "delay", "binary loss"]
)
@pytest.mark.parametrize("policy", [CoinFlip(0), NonContextualNeyman(0)], ids=["coin", "arms' variances"])
def test_loss_and_delay(policy, how, request):
    effect, start = 0.1 if "space" in how else 1.0, time.process_time()
    found = [lossy_trial(policy, seed, **how) for seed in range(NUM_LOST)]
    ate = torch.tensor([each.ate for each in found], dtype=torch.float64)
    bias, stderr = float(ate.mean()) - effect, float(ate.std()) / NUM_LOST**0.5
    covered = sum(each.interval[0] <= effect <= each.interval[1] for each in found) / NUM_LOST
    error = (0.95 * 0.05 / NUM_LOST) ** 0.5
    text = f"bias {bias:.4f} ± {stderr:.4f}, coverage {covered:.3f}; {NUM_LOST} runs of {UNITS_LOST}, "
    what = f"arm 1 {how}, {request.node.callspec.id}"
    report(what, text + f"{time.process_time() - start:.0f} CPU s", f"{COMMAND} loss_and_delay")
    assert abs(bias) < 3 * stderr and covered > 0.95 - 3 * error
