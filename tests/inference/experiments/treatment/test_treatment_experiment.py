"""A live treatment experiment: it learns from the past alone, logs what it did, survives, and refuses what is wrong."""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from sbi_bed.inference import AdaptiveExperiment, TreatmentExperiment
from sbi_bed.inference.experiments.treatment.a2ipw import a2ipw_scores
from sbi_bed.inference.experiments.treatment.nuisance import PastNuisance
from sbi_bed.policies import CoinFlip, NonContextualNeyman, OracleNeyman
from sbi_bed.simulators import LocationFinding
from sbi_bed.simulators.treatment.problem import linear_benchmark, two_arm_benchmark

D = 2


def covariates_of(number):
    generator = torch.Generator().manual_seed(number)
    return torch.rand(number, D, generator=generator, dtype=torch.float64)


def outcome_of(x, arm):
    x, arm = torch.as_tensor(x), int(arm)
    return float(x.sum() + 2 * arm + (1 + 2 * arm) * torch.sin(1000 * x.sum()))


def build(policy=None, **options):
    return TreatmentExperiment(NonContextualNeyman(D) if policy is None else policy, **{"seed": 0, **options})


def run(experiment, rows):
    for x in rows:
        arm, _ = experiment.assign(x)
        experiment.update(outcome_of(x, arm))
    return experiment


def refit(history, x):
    """A design of one's own, a plain callable: it treats by how arm 1 has done so far."""
    seen = history[history[:, D] == 1]
    return 0.5 if len(seen) < 5 else (0.2 + 0.1 * seen[:, D + 1].mean() + 0.1 * x[0]).sigmoid()


# ---- what it does


def test_log_and_estimate_are_what_happened():
    rows = covariates_of(60)
    experiment, answers = build(), []
    for x in rows:
        arm, propensity = experiment.assign(x)
        answers.append((int(arm), float(propensity), outcome_of(x, arm)))
        experiment.update(answers[-1][2])
    log, (arms, propensities, outcomes) = experiment.log, zip(*answers, strict=True)
    assert (
        torch.equal(log.covariates, rows) and log.arm.tolist() == list(arms) and log.outcome.tolist() == list(outcomes)
    )
    assert log.propensity.tolist() == list(propensities) and len(set(propensities)) > 1
    estimate = experiment.estimate(0.9)
    scores = a2ipw_scores(log.arm, log.outcome, log.propensity, log.predicted)[1:]  # nothing was known of the first
    assert estimate.ate == pytest.approx(float(scores.mean())) and estimate.num_units == 59
    half = 1.6448536 * float(scores.std()) / 59**0.5
    ends = (estimate.ate - half, estimate.ate + half)
    assert estimate.interval == pytest.approx(ends, abs=0.02 * half)  # Student's quantile for the effective number
    low, high = estimate.confidence_sequence
    assert low < estimate.interval[0] < estimate.interval[1] < high
    assert experiment.running(0.9).at(-1) == estimate and experiment.num_observed == experiment.num_units == 60


def test_predictions_and_propensities_are_those_of_the_policy_on_the_past():
    rows, policy = covariates_of(40), NonContextualNeyman(D)
    experiment = run(build(policy), rows)
    log = experiment.log
    for t in (0, 1, 17, 39):
        state = policy.read(experiment.history[:t])
        assert torch.equal(log.propensity[t], policy.propensity(state, rows[t]))
        assert torch.equal(log.predicted[t], policy.predict(state, rows[t])[0])


@pytest.mark.parametrize("options", [{}, {"nuisance": LinearRegression()}, {"nuisance": CoinFlip(D)}])
@pytest.mark.parametrize("policy", [NonContextualNeyman(D), refit])
def test_nothing_at_or_after_t_changes_what_was_decided_before(policy, options):
    rows, t = covariates_of(60), 30
    logs = []
    for change in (False, True):
        experiment = build(policy, covariate_dim=D, **options)
        for i, x in enumerate(rows):
            x = x + 5 if change and i > t else x
            arm, _ = experiment.assign(x)
            experiment.update(outcome_of(x, arm) + (100 if change and i >= t else 0))
        logs.append(experiment.log)
    for name in ("propensity", "predicted", "arm"):
        first, second = (getattr(log, name) for log in logs)
        assert torch.equal(first[: t + 1], second[: t + 1]), name
    assert not torch.equal(logs[0].predicted[t + 1 :], logs[1].predicted[t + 1 :])


def test_predictions_are_fixed_before_the_outcome_is_known():
    experiment = run(build(), covariates_of(20))
    experiment.assign([0.5, 0.5])
    before = experiment.log
    experiment.update(1e9)
    after = experiment.log
    assert torch.equal(before.predicted, after.predicted) and torch.equal(before.propensity, after.propensity)


def test_a_callable_reads_the_units_before():
    seen = []

    def policy(history, x):
        seen.append((history.clone(), x.clone()))
        return 0.5

    rows = covariates_of(5)
    experiment = run(build(policy, covariate_dim=D), rows)
    for t, (history, x) in enumerate(seen):
        assert torch.equal(history, experiment.history[:t]) and torch.equal(x, rows[t])
    means = experiment.log.predicted  # a design that predicts nothing: arms' means
    assert torch.equal(means[3], CoinFlip(D).predict(CoinFlip(D).read(experiment.history[:3]), rows[3])[0])


def test_same_seed_same_arms_and_their_frequency():
    rows = covariates_of(300)
    first, second = (build(CoinFlip(D, 0.3), seed=s).assign(rows) for s in (1, 1))
    assert torch.equal(first[0], second[0]) and first[1].tolist() == [0.3] * 300
    assert abs(float(first[0].double().mean()) - 0.3) < 4 * (0.21 / 300) ** 0.5
    assert not torch.equal(first[0], build(CoinFlip(D, 0.3), seed=2).assign(rows)[0])
    state = torch.random.get_rng_state()
    run(build(), rows[:3])
    assert torch.equal(state, torch.random.get_rng_state())


def test_no_covariates_and_numpy_and_one_number():
    experiment = TreatmentExperiment(NonContextualNeyman(0), seed=0)
    for i in range(4):
        arm, propensity = experiment.assign()
        assert arm.shape == propensity.shape == () and arm in (0, 1)
        experiment.update(i)
    assert experiment.history.shape == (4, 3) and experiment.estimate().num_units == 3
    single = TreatmentExperiment(NonContextualNeyman(1), seed=0)
    single.assign(0.1)
    single.update(np.float64(0.1))
    single.assign(np.array([0.2]))
    assert single.log.covariates.tolist() == [[0.1], [0.2]] and single.log.outcome[0] == 0.1  # double throughout


def test_clip():
    def bold(history, x):
        return 0.999

    _, propensity = TreatmentExperiment(bold, 1).assign([0.0])
    assert float(propensity) == 0.95
    assert float(TreatmentExperiment(bold, 1, clip=0.2).assign([0.0])[1]) == 0.8
    assert TreatmentExperiment(CoinFlip(1, clip=0.3)).clip == 0.3


# ---- batches and late outcomes


def test_a_batch_is_assigned_from_what_is_known():
    rows = covariates_of(30)
    experiment = run(build(), rows[:20])
    state = experiment.policy.read(experiment.history)
    arm, propensity = experiment.assign(rows[20:], unit=[f"u{i}" for i in range(10)])
    assert torch.allclose(propensity, experiment.policy.propensity(state, rows[20:])) and experiment.num_observed == 20
    assert experiment.pending == [f"u{i}" for i in range(10)] and experiment.history[20:, -1].eq(0).all()
    experiment.update([1.0, 2.0], unit=["u3", "u0"], arm=[arm[3], arm[0]])
    assert experiment.log.outcome[[20, 23]].tolist() == [2.0, 1.0] and experiment.estimate().num_units == 21
    experiment.update(torch.arange(8), unit=experiment.pending)
    assert experiment.pending == [] and experiment.log.observed.all()


def test_units_without_names():
    experiment = build()
    experiment.assign(covariates_of(3))
    experiment.update([1.0, 2.0, 3.0])
    assert experiment.log.units == [0, 1, 2] and experiment.log.outcome.tolist() == [1.0, 2.0, 3.0]


def test_it_must_be_clear_whose_outcome_it_is():
    experiment = build()
    with pytest.raises(ValueError, match=r"no unit waits for an outcome: call assign\(\) first"):
        experiment.update(1.0)
    experiment.assign([0.1, 0.2])
    experiment.assign([0.3, 0.4])
    with pytest.raises(ValueError, match="2 units wait for outcomes: say unit="):
        experiment.update(1.0)
    experiment.update(1.0, unit=1)
    with pytest.raises(ValueError, match="1 units wait for outcomes: say unit="):
        experiment.update(1.0)  # it might be meant for unit 1 again
    assert experiment.log.observed.tolist() == [False, True]


def test_what_is_pending_is_not_learnt_from():
    rows = covariates_of(30)
    experiment = run(build(), rows[:20])
    experiment.assign(rows[20], unit="late")
    run_on = run(build(), rows[:20])
    _, propensity = experiment.assign(rows[21], unit="next")
    assert torch.equal(propensity, run_on.policy.propensity(run_on.policy.read(run_on.history), rows[21]))
    experiment.update(3.0, unit="next")
    experiment.update(1e6, unit="late")
    assert experiment.policy.read(experiment.history[:20]).mean.abs().max() < 100
    assert float(experiment.assign(rows[22])[1]) != float(propensity)


# ---- nuisances


def test_a_regressor_is_fitted_to_each_arms_past():
    rows = covariates_of(60)
    experiment = run(build(nuisance=LinearRegression()), rows)
    log, t = experiment.log, 50
    for arm in range(2):
        past = (log.arm[:t] == arm).numpy()
        model = LinearRegression().fit(rows[:t].numpy()[past], log.outcome[:t].numpy()[past])
        assert float(log.predicted[t, arm]) == pytest.approx(model.predict(rows[t : t + 1].numpy())[0])
    assert log.predicted[0].tolist() == [0.0, 0.0]


def test_the_regressor_given_is_left_alone_and_refitted_now_and_then():
    fits = []

    class Mean:
        def fit(self, x, y):
            fits.append(len(y))
            self.value = y.mean()

        def predict(self, x):
            return np.full(len(x), self.value)

    regressor = Mean()
    run(build(nuisance=regressor, refit_every=10), covariates_of(80))
    assert not hasattr(regressor, "value") and len(fits) >= 6
    assert all(n % 10 == 0 for n in fits) and max(fits.count(n) for n in fits) <= 2  # once for each arm


@pytest.mark.parametrize("garbage", [torch.zeros(10, 2), np.zeros(3), lambda x: x, LinearRegression, 3.0])
def test_predictions_made_elsewhere_cannot_be_passed_in(garbage):
    with pytest.raises(TypeError, match=r"an object with fit\(X, y\) and predict\(X\)"):
        build(nuisance=garbage)


def test_garbage_from_the_past_is_unbiased():
    """Propensities adapt, predictions are nonsense that depends on the past; the true effect is ½."""

    class Nonsense:
        def fit(self, x, y):
            self.value = 10 * np.sin(1000 * y.sum())

        def predict(self, x):
            return self.value + 5 * np.cos(50 * x[:, 0])

    problem, found = linear_benchmark(), []
    generator = torch.Generator().manual_seed(0)
    for seed in range(50):
        x, noise = (torch.randn(40, k, generator=generator, dtype=torch.float64) for k in (5, 1))
        experiment = TreatmentExperiment(NonContextualNeyman(5), nuisance=Nonsense(), seed=seed)
        mean, variance = problem.moments(x)
        both = mean + variance.sqrt() * noise
        for row, pair in zip(x, both, strict=True):
            arm, _ = experiment.assign(row)
            experiment.update(pair[arm])
        found.append(experiment.estimate().ate)
    found = torch.tensor(found)
    assert abs(float(found.mean() - 0.5) / float(found.std() / 50**0.5)) < 3


def test_a_nuisance_that_fails_stops_nothing_else():
    class Broken(LinearRegression):
        def predict(self, x):
            return np.full(len(x), np.nan)

    experiment = build(nuisance=Broken())
    with pytest.raises(ValueError, match="the nuisance must predict 1 finite numbers for arm"):
        run(experiment, covariates_of(60))
    assert experiment.num_units == experiment.num_observed > 10 and math.isfinite(experiment.estimate().ate)

    class Failing(LinearRegression):
        def fit(self, x, y):
            raise RuntimeError("singular")

    nuisance = PastNuisance(Failing())
    for i in range(10):
        nuisance.observe(torch.zeros(1), 0, float(i))
    with pytest.raises(ValueError, match="failed for arm 0 after 10 of its units: singular"):
        nuisance.predict(torch.zeros(1, 1))


# ---- files


@pytest.mark.parametrize("nuisance", [None, LinearRegression(), CoinFlip(D)])
def test_loaded_it_goes_on_as_if_nothing_had_happened(tmp_path, nuisance):
    path, rows = tmp_path / "trial.journal", covariates_of(70)
    options = {"nuisance": nuisance, "refit_every": 3, "tightest_at": 60, "clip": 0.1}
    whole = build(**options)
    experiment = build(journal=path, **options)
    for each in (whole, experiment):
        run(each, rows[:40])
        each.assign(rows[40:50], unit=[f"u{i}" for i in range(10)])
        each.update([1.0, 2.0], unit=["u7", "u2"])
    experiment.close()
    loaded = TreatmentExperiment.load(path, nuisance=nuisance)
    assert loaded.pending == whole.pending and loaded.estimate() == whole.estimate()
    for each in (whole, loaded):
        run_late = each.pending
        each.update(range(8), unit=run_late)
        run(each, rows[50:])
    for name in ("covariates", "arm", "outcome", "propensity", "predicted", "observed"):
        assert torch.equal(getattr(whole.log, name), getattr(loaded.log, name)), name
    loaded.save(tmp_path / "copy")
    assert TreatmentExperiment.load(tmp_path / "copy", nuisance=nuisance, journal=False).estimate() == whole.estimate()


def test_cut_anywhere_a_journal_is_a_whole_number_of_events(tmp_path):
    path, rows = tmp_path / "trial.journal", covariates_of(6)
    experiment = run(build(journal=path), rows)
    experiment.close()
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    for end in range(header, len(data), 41):
        path.write_bytes(data[:end])
        loaded = TreatmentExperiment.load(path, journal=False)
        n, m = loaded.num_units, loaded.num_observed
        assert n - m in (0, 1) and torch.equal(loaded.log.propensity, experiment.log.propensity[:n])
        if n == m and n < 6:
            assert float(loaded.assign(rows[n])[1]) == float(experiment.log.propensity[n])


def test_killed_at_a_few_moments(tmp_path):
    script = Path(__file__).with_name("live_trial.py")
    done = subprocess.run([sys.executable, script, tmp_path, "15", "0"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_design_of_ones_own_must_be_given_again(tmp_path):
    path, rows = tmp_path / "trial.journal", covariates_of(20)
    experiment = run(build(refit, covariate_dim=D, journal=path), rows)
    experiment.close()
    with pytest.raises(ValueError, match="give policy=, one like it"):
        TreatmentExperiment.load(path)
    loaded = TreatmentExperiment.load(path, refit)
    assert torch.equal(loaded.assign([0.3, 0.3])[1], run(build(refit, covariate_dim=D), rows).assign([0.3, 0.3])[1])
    oracle = TreatmentExperiment(OracleNeyman(two_arm_benchmark()), journal=tmp_path / "oracle")
    oracle.close()
    with pytest.raises(ValueError, match="give policy=, one like it"):
        TreatmentExperiment.load(tmp_path / "oracle")


def test_what_load_refuses(tmp_path):
    path = tmp_path / "trial.journal"
    experiment = build(journal=path, nuisance=LinearRegression())
    with pytest.raises(ValueError, match="in use"):
        TreatmentExperiment.load(path)
    experiment.close()
    with pytest.raises(ValueError, match="give nuisance= again"):
        TreatmentExperiment.load(path)
    build(journal=tmp_path / "plain").close()
    with pytest.raises(ValueError, match="it was run without a nuisance"):
        TreatmentExperiment.load(tmp_path / "plain", nuisance=LinearRegression())
    with pytest.raises(ValueError, match=r"use TreatmentExperiment\.load"):
        AdaptiveExperiment.load(path, LocationFinding())
    simulator = LocationFinding()
    AdaptiveExperiment(lambda history: torch.zeros(2), simulator, 3, tmp_path / "other").close()
    with pytest.raises(ValueError, match=r"use AdaptiveExperiment\.load"):
        TreatmentExperiment.load(tmp_path / "other")
    with pytest.raises(ValueError, match="exists already"):
        build(journal=path)


def test_a_full_disk_records_nothing(tmp_path, monkeypatch):
    experiment = run(build(journal=tmp_path / "trial.journal"), covariates_of(5))
    experiment.assign([0.5, 0.5])
    before, write = experiment.log, type(experiment._journal)._write

    def fail(self, data, offset=0):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(experiment._journal), "_write", fail)
    for call in (lambda: experiment.update(1.0), lambda: experiment.assign([0.1, 0.1])):
        with pytest.raises(OSError, match="nothing was recorded"):
            call()
    assert experiment.num_units == 6 and experiment.num_observed == 5
    assert torch.equal(experiment.log.arm, before.arm) and experiment.pending == [5]
    monkeypatch.setattr(type(experiment._journal), "_write", write)
    experiment.update(1.0)
    assert experiment.num_observed == 6


# ---- what users hand in


def test_lists_arrays_and_rows_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [0.1, 0.3, 0.5], "dose": [1, 2, 3]}, index=["a", "b", "c"])
    experiment = build()
    experiment.assign(frame.iloc[0], unit="a")
    experiment.assign(frame.loc[["b", "c"]], unit=frame.index[1:])
    experiment.update(pandas.Series([2.0, 3.0], index=["b", "c"]), unit=frame.index[1:])
    experiment.update(np.float64(1.0), unit="a")
    experiment.assign([np.float32(0.5), torch.tensor(4.0)], unit=np.int64(7))
    experiment.update([np.float64(0.25)], unit=[7])
    log = experiment.log
    assert log.covariates.tolist() == [[0.1, 1.0], [0.3, 2.0], [0.5, 3.0], [0.5, 4.0]]
    assert log.outcome.tolist() == [1.0, 2.0, 3.0, 0.25] and log.units == ["a", "b", "c", 7]
    with pytest.raises(TypeError, match=r"covariates must be numbers, got 'old'"):
        experiment.assign(pandas.Series({"age": "old", "dose": 1}))


@pytest.mark.parametrize(
    ("proposal", "error", "message"),
    [
        (
            torch.tensor([0.2, 0.3, 0.5]),
            ValueError,
            r"policy must return one number.*got shape \(3,\): there are two arms",
        ),
        ([0.5, 0.5], ValueError, r"got shape \(2,\)"),
        (None, TypeError, "policy must return the probability of arm 1, a number, got None"),
        ("half", TypeError, "a number, got 'half'"),
    ],
)
def test_a_design_that_returns_no_probability(proposal, error, message):
    experiment = TreatmentExperiment(lambda history, x: proposal, 1)
    with pytest.raises(error, match=message):
        experiment.assign([0.0])
    assert experiment.num_units == 0


# ---- mistakes: one clear error each, and the log intact


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.assign([math.nan, 0.0]), ValueError, r"covariates must be finite, got nan at index \(0,\)"),
        (lambda e: e.assign([[0.0, 0.0], [0.0, math.inf]]), ValueError, r"got inf at index \(1, 1\)"),
        (lambda e: e.assign([0.0]), ValueError, "covariates must have 2 values in its last dimension"),
        (lambda e: e.assign(torch.zeros(1, 1, 2)), ValueError, r"must have shape \(d,\) or \(n, d\)"),
        (lambda e: e.assign(torch.zeros(0, 2)), ValueError, "n > 0"),
        (lambda e: e.assign("old"), TypeError, "covariates must be numbers"),
        (lambda e: e.assign([0.0, 0.0], unit="ann"), ValueError, "unit 'ann' has been assigned already"),
        (lambda e: e.assign([0.0, 0.0], unit=[1, 2]), ValueError, "unit must name 1 different units"),
        (lambda e: e.assign([0.0, 0.0], unit=1.5), TypeError, "must be a whole number or a string, got 1.5"),
        (lambda e: e.update(1.0), ValueError, "one number for each of 2 units"),
        (lambda e: e.update(1.0, unit="eve"), ValueError, "unit 'eve' is unknown: 3 units have been assigned"),
        (lambda e: e.update(1.0, unit="ann"), ValueError, "unit 'ann' has its outcome already, 4"),
        (lambda e: e.update(math.nan, unit="bob"), ValueError, "outcome must be finite, got nan"),
        (lambda e: e.update("good", unit="bob"), TypeError, "outcome must be numbers"),
        (lambda e: e.update([1.0, 2.0], unit="bob"), ValueError, "one number for each of 1 units"),
        (lambda e: e.update([1.0, 2.0], unit=["bob", "bob"]), ValueError, "must name different units"),
        (lambda e: e.update(1.0, unit="bob", arm=1 - int(e.log.arm[1])), ValueError, r"were assigned to \[[01]\]"),
        (lambda e: e.update(1.0, unit="bob", arm=2), ValueError, r"arm \[2.0\] was given"),
        (lambda e: e.estimate(), ValueError, "at least 2 observed outcomes, there are 1"),
    ],
)
def test_mistakes(call, error, message, tmp_path):
    path = tmp_path / "trial.journal"
    experiment = build(journal=path)
    experiment.assign([0.1, 0.2], unit="ann")
    experiment.update(4.0)
    experiment.assign([[0.1, 0.2], [0.3, 0.4]], unit=["bob", "cat"])
    data, history = path.read_bytes(), experiment.history
    with pytest.raises(error, match=message):
        call(experiment)
    assert path.read_bytes() == data and torch.equal(experiment.history, history)
    assert experiment.assign([0.0, 0.0], unit="eve")[0] in (0, 1)


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (0.0, "propensity must be strictly between 0 and 1, got 0"),
        (1, "propensity must be strictly between 0 and 1, got 1"),
        (-0.2, "strictly between 0 and 1, got -0.2"),
        (math.nan, "propensity must be finite, got nan"),
    ],
)
def test_proposals_that_are_no_propensities(proposal, message):
    experiment = TreatmentExperiment(lambda history, x: 0.5 if len(history) < 2 else proposal, 1)
    for _ in range(2):
        experiment.assign([0.0])
        experiment.update(1.0)
    with pytest.raises(ValueError, match=message):
        experiment.assign([0.0])
    assert experiment.num_units == 2 and experiment.pending == []


def test_an_outcome_is_safe_when_the_policy_fails(tmp_path):
    class Failing(CoinFlip):
        def update(self, state, covariates, arm, outcome):
            if outcome > 50:
                raise RuntimeError("the design broke down")
            return super().update(state, covariates, arm, outcome)

    experiment = build(Failing(D), journal=tmp_path / "trial.journal")
    run(experiment, covariates_of(4))
    experiment.assign([0.5, 0.5])
    experiment.update(90.0)
    assert experiment.num_observed == 5 and experiment.estimate().num_units == 4
    with pytest.raises(RuntimeError, match="the design broke down"):
        experiment.assign([0.5, 0.5])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": "coin"}, TypeError, "must be a TreatmentPolicy or a callable"),
        ({"policy": refit}, ValueError, "covariate_dim= is needed"),
        ({"policy": CoinFlip(2), "covariate_dim": 3}, ValueError, "covariate_dim is 3, but the policy is for 2"),
        ({"policy": CoinFlip(2), "clip": 0.5}, ValueError, "clip must be strictly between 0 and 1/2"),
        ({"policy": CoinFlip(2), "clip": 0.0}, ValueError, "clip must be strictly between 0 and 1/2"),
        ({"policy": CoinFlip(2), "refit_every": 0}, ValueError, "refit_every must be at least 1"),
        ({"policy": CoinFlip(2), "nuisance": CoinFlip(3)}, ValueError, "nuisance must predict outcomes from 2"),
    ],
)
def test_bad_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        TreatmentExperiment(**arguments)


@pytest.mark.benchmark
def test_an_assignment_late_in_the_run_is_quick():
    experiment = TreatmentExperiment(NonContextualNeyman(5), seed=0)
    experiment.assign(torch.zeros(1000, 5))
    experiment.update(torch.arange(1000.0))
    start = time.process_time()
    for i in range(20):
        experiment.assign(torch.zeros(5))
        experiment.update(float(i))
    assert (time.process_time() - start) / 20 < 0.005
