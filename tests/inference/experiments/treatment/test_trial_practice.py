"""What happens in real trials: corrections, missing covariates, frames, arms that open and close, reports, subgroups."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from sbi_bed.inference import TreatmentExperiment
from sbi_bed.inference.experiments.treatment.log import TreatmentLog
from sbi_bed.policies import CoinFlip, NonContextualNeyman


def outcomes_of(arm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * arm + (1 + arm) * torch.randn(len(arm), generator=generator, dtype=torch.float64)


def run(experiment, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for x in rows:
        arm, _ = experiment.assign(x)
        experiment.update(float(2 * arm + (1 + arm) * torch.randn((), generator=generator)))
    return experiment


# ---- corrections


@pytest.mark.parametrize("options", [{}, {"nuisance": LinearRegression()}])
def test_a_corrected_outcome_counts_from_then_on(tmp_path, options):
    rows = torch.rand(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy = NonContextualNeyman(1)
    trial = run(TreatmentExperiment(policy, seed=0, journal=tmp_path / "trial", **options), rows)
    before = trial.log
    trial.correct([50.0, -3.0], unit=[3, 10])
    after = trial.log
    assert torch.equal(before.propensity, after.propensity) and torch.equal(before.predicted, after.predicted)
    changed = (before.outcome != after.outcome).nonzero().flatten().tolist()
    assert changed == [3, 10] and after.outcome[[3, 10]].tolist() == [50.0, -3.0]
    residual = 2 * after.arm - 1  # what one unit's outcome does to the sum of scores
    chance = torch.where(after.arm > 0, after.propensity, 1 - after.propensity)
    shift = ((after.outcome - before.outcome) * residual / chance).sum() / 39
    if not options:
        assert trial.estimate().ate - before.estimate().ate == pytest.approx(float(shift))
        state = policy.read(trial.history)
        assert torch.allclose(trial.assign([0.5])[1], policy.propensity(state, torch.tensor([0.5])).double())
    trial.close()
    again = TreatmentExperiment.load(tmp_path / "trial", journal=False, **options)
    trial._journal = None
    assert again.log.corrected.sum() == 2 and again.estimate() == trial.estimate()
    for first, second in zip(again.assign([0.2]), trial.assign([0.2]), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(again.log.predicted, trial.log.predicted)


def test_what_cannot_be_corrected():
    trial = TreatmentExperiment(CoinFlip(0), seed=0, outcome_space="binary")
    trial.assign()
    with pytest.raises(ValueError, match="unit 0 has no outcome to correct"):
        trial.correct(1.0, 0)
    trial.update(1.0)
    for outcome, unit, error, message in [
        (0.5, 0, ValueError, "must be 0 or 1"),
        (1.0, 9, ValueError, "unit 9 is unknown"),
        (1.0, None, TypeError, "must name the units"),
        ([1.0, 0.0], 0, ValueError, "one number for each of 1 units"),
    ]:
        with pytest.raises(error, match=message):
            trial.correct(outcome, unit)
    trial.withdraw(int(trial.assign()[0] * 0) + 1)
    with pytest.raises(ValueError, match="unit 1 has no outcome to correct"):
        trial.correct(1.0, 1)


# ---- frames and missing covariates


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("num_arms", [2, 3])
def test_a_frame_in_and_a_frame_out(library, num_arms, tmp_path):
    frames = pytest.importorskip(library)
    data = {"person": ["a", "b", "c"], "age": [30.0, 50.0, None], "dose": [1, 2, 3]}
    trial = TreatmentExperiment(
        NonContextualNeyman(2, num_arms=num_arms), seed=0, missing_covariates="mean", journal=tmp_path / "trial"
    )
    given = frames.DataFrame(data)
    found = trial.assign(given, unit="person")
    assert type(found) is type(given) and list(given.columns) == list(data)
    chances = ["propensity"] if num_arms == 2 else ["p0", "p1", "p2"]
    assert list(found.columns) == [*data, "unit", "arm", *chances]
    log = trial.log
    assert list(found["unit"]) == ["a", "b", "c"] and list(found["arm"]) == log.arm.tolist()
    assert np.allclose(np.stack([found[name].to_numpy() for name in chances], -1), log.propensity.reshape(3, -1))
    assert log.covariates.tolist() == [[30.0, 1.0], [50.0, 2.0], [40.0, 3.0]]
    trial.update(found["arm"] * 2.0, unit=found["person"])
    more = frames.DataFrame({"dose": [5], "other": ["x"], "age": [70.0], "person": ["d"]})  # by name, in any order
    trial.assign(more, unit="person")
    assert trial.log.covariates[-1].tolist() == [70.0, 5.0] and trial.log.units[-1] == "d"
    assert list(trial.log.columns())[2:4] == ["age", "dose"] and list(trial.log.to_pandas().columns)[2] == "age"
    with pytest.raises(ValueError, match="has no column 'age'"):
        trial.assign(frames.DataFrame({"dose": [1]}))
    with pytest.raises(ValueError, match="has no column 'id'"):
        trial.assign(more, unit="id")
    trial.close()
    again = TreatmentExperiment.load(tmp_path / "trial", journal=False)
    assert again.covariate_names == ["age", "dose"] and again.log.incomplete.tolist() == [False, False, True, False]


def test_missing_covariates_follow_the_rule(tmp_path):
    with pytest.raises(ValueError, match="covariates must be finite, got nan"):
        TreatmentExperiment(CoinFlip(2), seed=0).assign([1.0, math.nan])
    numbers = TreatmentExperiment(CoinFlip(2), seed=0, missing_covariates=[-1.0, 7.0])
    numbers.assign([[1.0, math.nan], [math.nan, 2.0]])
    assert numbers.log.covariates.tolist() == [[1.0, 7.0], [-1.0, 2.0]]
    means = TreatmentExperiment(CoinFlip(2), seed=0, missing_covariates="mean", journal=tmp_path / "trial")
    with pytest.raises(ValueError, match="missing that no unit has yet"):
        means.assign([1.0, math.nan])
    means.assign([[1.0, 4.0], [3.0, None]])
    means.assign([math.nan, 10.0])
    means.close()
    means = TreatmentExperiment.load(tmp_path / "trial")
    means.assign([math.nan, math.nan])  # means of what was given, not of what was filled
    assert means.log.covariates.tolist() == [[1.0, 4.0], [3.0, 4.0], [2.0, 10.0], [2.0, 7.0]]
    with pytest.raises(ValueError, match="covariates must be finite, got inf"):
        means.assign([math.inf, 1.0])
    with pytest.raises(ValueError, match="missing_covariates must be 'mean'"):
        TreatmentExperiment(CoinFlip(2), missing_covariates="median")
    means.close()


# ---- reports, ratios, subgroups


def test_report_counts_what_happened():
    trial = TreatmentExperiment(CoinFlip(1, num_arms=3), seed=0, missing_covariates=[0.0])
    covariates = torch.rand(90, 1, dtype=torch.float64)
    covariates[5] = math.nan
    arm, _ = trial.assign(covariates)
    trial.update(outcomes_of(arm[:80].double()), unit=range(80))
    trial.correct(1.0, 7)
    trial.withdraw([80, 81])
    report = trial.report()
    columns = report.columns()
    for a in range(3):
        assert columns["assigned"][a] == int((arm == a).sum())
        assert columns["observed"][a] == int((arm[:80] == a).sum())
        assert columns["withdrawn"][a] == int((arm[80:82] == a).sum())
        assert columns["waiting"][a] == int((arm[82:] == a).sum())
        assert columns["corrected"][a] == int(arm[7] == a) and columns["incomplete"][a] == int(arm[5] == a)
        assert columns["mean"][a] == pytest.approx(float(trial.log.outcome[:80][arm[:80] == a].mean()))
    assert columns["effect"] == [None, *trial.estimate().ate.tolist()]
    assert len(report.to_dataframe()) == 3 and "effect against arm 0" in str(report)


def test_risk_ratio_covers():
    rates, num, size, found = torch.tensor([0.2, 0.3, 0.2]).double(), 300, 240, []
    generator = torch.Generator().manual_seed(0)
    thirds, seen = torch.full((size, 3), 1 / 3).double(), torch.ones(size, dtype=torch.bool)
    for _ in range(num):
        arm = torch.randint(3, (size,), generator=generator)
        outcome = (torch.rand(size, generator=generator, dtype=torch.float64) < rates[arm]).double()
        log = TreatmentLog(torch.zeros(size, 0), arm.double(), outcome, thirds, 0.2 + 0 * thirds, seen)
        found.append(log.risk_ratio())
    low, high = (torch.stack([each.interval[end] for each in found]) for end in (0, 1))
    truth = rates[1:] / rates[0]
    held = ((low < truth) & (truth < high)).double().mean(0)
    assert ((held - 0.95).abs() < 4.5 * (0.95 * 0.05 / num) ** 0.5).all()
    logs = torch.stack([each.ratio for each in found]).log()
    errors = torch.stack([each.log_stderr for each in found])
    assert (
        (logs.mean(0) - truth.log()).abs() < 4.5 * logs.std(0) / num**0.5 + 0.01
    ).all()  # a ratio is biased by 1 / n
    assert ((errors.square().mean(0) / logs.var(0)).log().abs() < 4.5 * (2 / num) ** 0.5).all()


def test_risk_ratio_without_events_and_what_is_refused():
    trial = TreatmentExperiment(CoinFlip(0), seed=0, outcome_space="binary")
    arm, _ = trial.assign(torch.zeros(60, 0))
    trial.update((arm == 1).double() * (torch.arange(60) % 2))
    found = trial.log.risk_ratio()
    assert math.isnan(found.ratio) and found.interval == (0.0, math.inf) and "arm 1 / arm 0" in str(found)
    real = TreatmentExperiment(CoinFlip(0), seed=0)
    real.assign(torch.zeros(3, 0))
    real.update([1.0, -1.0, 2.0])
    with pytest.raises(ValueError, match="none of them negative"):
        real.log.risk_ratio()


def test_effect_of_a_subgroup():
    trial = TreatmentExperiment(NonContextualNeyman(1), seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        old = float(torch.rand((), generator=generator) < 0.4)
        arm, _ = trial.assign([old])
        trial.update(float((1 + 2 * old) * arm + torch.randn((), generator=generator)))
    log = trial.log
    parts = {is_old: log.subgroup(log.covariates[:, 0] == is_old).estimate() for is_old in (0.0, 1.0)}
    for is_old, found in parts.items():
        assert abs(found.ate - (1 + 2 * is_old)) < 4.5 * found.stderr
    sizes = torch.tensor([float(found.num_units) for found in parts.values()])
    both = sum(n * found.ate for n, found in zip(sizes, parts.values(), strict=True)) / sizes.sum()
    assert float(both) == pytest.approx(trial.estimate().ate, abs=0.05)  # the first unit of each part does not enter
    with pytest.raises(ValueError, match="members must be 400 truth values"):
        log.subgroup([True, False])


# ---- arms that open and close


def test_arms_open_and_close(tmp_path):
    trial = TreatmentExperiment(
        NonContextualNeyman(0, num_arms=4), seed=0, open_arms=[0, 1], journal=tmp_path / "trial"
    )
    shift, generator = 0.0, torch.Generator().manual_seed(0)

    def go_on(num):
        for _ in range(num):
            arm, _ = trial.assign()
            trial.update(float(2 * arm + shift + torch.randn((), generator=generator)))

    go_on(120)
    trial.open_arm(2)
    shift = 10.0  # the world changes: arm 2 may be compared with the control of its own time only
    go_on(200)
    trial.close_arm(1)
    go_on(80)
    log, found = trial.log, trial.estimate()
    assert (log.propensity[:120, 2] == 0).all() and (log.propensity[:, 3] == 0).all()
    assert (log.propensity[320:, 1] == 0).all() and not (log.arm[320:] == 1).any()
    assert torch.allclose(log.propensity.sum(-1), torch.ones(400).double())
    given = log.propensity[log.propensity > 0]
    assert float(given.min()) >= 0.05 - 1e-9
    assert found.num_units[1:].tolist() == [280, 0] and int(found.num_units[0]) == 319
    assert abs(float(found.ate[1]) - 4) < 4.5 * float(found.stderr[1]) < 9  # 14, if with the control of all times
    assert found.stderr[2] == math.inf and math.isnan(found.ate[2]) and found.interval[1][2] == math.inf
    assert torch.equal(trial.running().ate[-1, :2], found.ate[:2]) and "arm 3" in str(trial.report())
    running = trial.running()
    assert running.ate[50, 1].isnan() and running.num_units[50].tolist() == [51, 0, 0]
    trial.close()
    again = TreatmentExperiment.load(tmp_path / "trial", journal=False)
    trial._journal = None
    assert again.open_arms == [0, 2]
    for first, second in zip(again.assign(), trial.assign(), strict=True):
        assert torch.equal(first, second)


def test_what_cannot_be_opened_or_closed():
    trial = TreatmentExperiment(CoinFlip(0, num_arms=3), seed=0, open_arms=[0, 1])
    for act, arm in [("close_arm", 0), ("close_arm", 1), ("close_arm", 2), ("open_arm", 1), ("open_arm", 3)]:
        with pytest.raises(ValueError, match="arm must be a treatment, 1 to 2"):
            getattr(trial, act)(arm)
    for wrong in ([1, 2], [0], [0, 3], [0, 1, 1]):
        with pytest.raises(ValueError, match="open_arms must be arm 0"):
            TreatmentExperiment(CoinFlip(0, num_arms=3), open_arms=wrong)
