"""Outcomes that come late or never, more so in one arm: rates by hand, no bias, coverage, warnings, files."""

import warnings

import pytest
import torch

from sbi_bed.inference import TreatmentExperiment
from sbi_bed.inference.experiments.treatment.log import TreatmentLog
from sbi_bed.inference.experiments.treatment.observation import delay_dependence, observation_rates
from sbi_bed.policies import CoinFlip, NonContextualNeyman

EFFECT = 1.0


def test_without_delay_rates_are_shares():
    arm = torch.tensor([0, 1, 0, 1, 1, 1])
    seen = torch.tensor([True, True, False, False, False, True])
    found = observation_rates(arm, seen)
    assert found.rates[:, 0].tolist() == [0.5] * 6 and found.rates[:, 1].tolist() == [0.5] * 6
    assert found.included.all() and found.num_decided.tolist() == [2, 4]
    assert observation_rates(arm, seen & (arm == 0)) is None


def test_rates_by_age_are_those_of_kaplan_and_meier():
    """Arm 1: outcomes at ages 0 and 2, one unit waits since age 1, one was withdrawn."""
    arm = torch.tensor([0, 1, 1, 1, 1])
    seen = torch.tensor([True, True, True, False, False])
    delay, age = torch.tensor([0, 0, 2, 0, 0]), torch.tensor([5, 4, 3, 1, 0])
    withdrawn = torch.tensor([False, False, False, False, True])
    found = observation_rates(arm, seen, delay, age, withdrawn)
    at_0 = 1 / 4
    at_2 = 1 - (1 - at_0) * (1 - 1 / 2)  # at risk at age 2: the one whose outcome came then, and the one withdrawn
    assert found.rates[:, 1].tolist() == pytest.approx([at_2, at_2, at_2, at_0, at_0])
    assert found.final.tolist() == pytest.approx([1.0, at_2])
    assert found.included.tolist() == [True, True, True, False, False]  # before age 2 too few of arm 1's have come


def test_rates_of_a_constant_delay():
    n, late = 100, 10
    arm, age = torch.arange(n) % 2, torch.arange(n - 1, -1, -1)
    delay = arm * late
    found = observation_rates(arm, age >= delay, delay, age)
    assert found.final.tolist() == [1.0, 1.0] and torch.equal(found.included, age >= late)
    assert found.rates[found.included].eq(1).all()


def experiments(policy, num_units, seed, loss=0.0, delay=0, withdraw=False, **options):
    """One experiment whose predictions are off: means depend on a covariate that the policy does not use."""
    generator = torch.Generator().manual_seed(seed)
    x, noise, lost = (torch.rand(num_units, generator=generator, dtype=torch.float64) for _ in range(3))
    experiment, arms = TreatmentExperiment(policy, seed=seed, **options), []

    def outcome(t):
        return float(3 + 4 * x[t] + EFFECT * arms[t] + (1 + arms[t]) * (noise[t] - 0.5))

    for t in range(num_units):
        arms.append(int(experiment.assign()[0]))
        if arms[t] == 0 or (not delay and lost[t] >= loss):
            experiment.update(outcome(t), unit=t)
        elif withdraw:
            experiment.withdraw(t)
        if delay and t >= delay and arms[t - delay] == 1:
            experiment.update(outcome(t - delay), unit=t - delay)
    return experiment


def log_of(seed, num=120, loss=0.0, delay=0):
    """A log whose propensities vary and whose predictions are off: they miss a covariate."""
    generator = torch.Generator().manual_seed(seed)
    x, noise, lost, e, u = (torch.rand(num, generator=generator, dtype=torch.float64) for _ in range(5))
    e = 0.3 + 0.4 * e
    arm = (u < e).double()
    outcome = 3 + 4 * x + EFFECT * arm + (1 + arm) * (noise - 0.5)
    age, late = torch.arange(num - 1, -1, -1), delay * arm
    seen = (age >= late) & ((arm == 0) | (lost >= loss))
    predicted = torch.stack([2 + 0 * x, 3 + 0 * x], -1)
    return TreatmentLog(x[:, None], arm, outcome * seen, e, predicted, seen, delay=late, age=age)


@pytest.mark.parametrize("how", [{"loss": 0.6}, {"delay": 30}, {"loss": 0.4, "delay": 20}])
def test_loss_and_delay_that_differ_between_arms_leave_no_bias(how):
    num = 500
    logs = [log_of(seed, **how) for seed in range(num)]
    found = [log.estimate() for log in logs]
    ate = torch.tensor([each.ate for each in found])
    holds = torch.tensor([each.interval[0] <= EFFECT <= each.interval[1] for each in found]).double().mean()
    assert abs(float(ate.mean()) - EFFECT) < 3 * float(ate.std()) / num**0.5
    assert float(holds) > 0.95 - 3 * (0.95 * 0.05 / num) ** 0.5
    seen_alone = torch.tensor([_of_observed_units(log) for log in logs])
    assert abs(float(seen_alone.mean()) - EFFECT) > 4 * float(seen_alone.std()) / num**0.5  # why weights are needed


def _of_observed_units(log):
    seen = log.observed
    columns = (log.covariates, log.arm, log.outcome, log.propensity, log.predicted, log.observed)
    return TreatmentLog(*(part[seen] for part in columns)).estimate().ate


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"loss": 0.6}, {"loss": 0.6, "withdraw": True}, {"delay": 30}])
@pytest.mark.parametrize("policy", [NonContextualNeyman(0), CoinFlip(0)], ids=["adaptive", "coin"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_live_experiments_with_loss_and_delay(policy, how):
    num = 120
    found = [experiments(policy, 90, seed, **how).estimate() for seed in range(num)]
    ate = torch.tensor([each.ate for each in found])
    holds = torch.tensor([each.interval[0] <= EFFECT <= each.interval[1] for each in found]).double().mean()
    assert abs(float(ate.mean()) - EFFECT) < 3 * float(ate.std()) / num**0.5
    assert float(holds) > 0.95 - 3 * (0.95 * 0.05 / num) ** 0.5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_live_experiment_logs_delays_and_ages():
    log = experiments(NonContextualNeyman(0), 40, 0, delay=10).log
    assert torch.equal(log.age, torch.arange(39, -1, -1).double())
    assert log.delay[log.observed].tolist() == [10 * a for a in log.arm[log.observed].tolist()]
    assert torch.equal(log.observed, log.age >= 10 * log.arm) and log.estimate().num_units == 29


def test_withdrawn_units_are_kept_in_files(tmp_path):
    experiment = experiments(CoinFlip(0), 30, 0, loss=0.6, withdraw=True, journal=tmp_path / "trial")
    with pytest.warns(UserWarning, match=r"0% of the outcomes of arm 0 and \d+% of the outcomes of arm 1 do not come"):
        estimate = experiment.estimate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment.estimate()  # warned once
    gone = int(experiment.log.withdrawn.nonzero()[0])
    assert experiment.pending == []
    for call in (lambda: experiment.update(1.0, unit=gone), lambda: experiment.withdraw(gone)):
        with pytest.raises(ValueError, match=f"unit {gone} was withdrawn"):
            call()
    with pytest.raises(ValueError, match=r"unit 0 has its outcome already|unit 0 was withdrawn"):
        experiment.withdraw(0)
    with pytest.raises(ValueError, match="unit 99 is unknown"):
        experiment.withdraw(99)
    experiment.close()
    loaded = TreatmentExperiment.load(tmp_path / "trial")
    with pytest.warns(UserWarning):
        assert loaded.estimate() == estimate
    assert torch.equal(loaded.log.withdrawn, experiment.log.withdrawn) and torch.equal(
        loaded.log.age, experiment.log.age
    )


def test_equal_loss_is_no_reason_to_warn():
    experiment = TreatmentExperiment(CoinFlip(0), seed=0)
    for t in range(200):
        experiment.assign()
        if t % 3:
            experiment.update(float(torch.sin(torch.tensor(10.0 * t))), unit=t)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment.estimate()


def test_an_arm_without_outcomes_has_no_estimate():
    experiment = TreatmentExperiment(CoinFlip(0), seed=0)
    for t in range(20):
        arm, _ = experiment.assign()
        if arm == 0:
            experiment.update(float(t), unit=t)
    with pytest.warns(UserWarning, match="an arm has no outcome yet"):
        found = experiment.estimate()
    assert found.stderr == float("inf") and found.interval == (-float("inf"), float("inf"))


def late_trial(seed, depends, num=150):
    """Outcome, whether it is there, delay and age; delay rises with the outcome, or the mean of outcomes with time."""
    generator = torch.Generator().manual_seed(seed)
    age = torch.arange(num, 0, -1).double()
    outcome = torch.randn(num, generator=generator, dtype=torch.float64) - 0.02 * age * (not depends)
    noise = -10 * torch.rand(num, generator=generator, dtype=torch.float64).log()
    delay = (noise * outcome.exp() if depends else noise).round()
    return outcome, delay <= age, delay, age


def test_delay_that_depends_on_outcomes_is_found_and_drift_is_not_taken_for_it():
    p_values = torch.tensor([delay_dependence(*late_trial(seed, False))[1] for seed in range(400)])
    for level in (0.01, 0.1, 0.5):
        share = float((p_values < level).double().mean())
        assert abs(share - level) < 4.5 * (level * (1 - level) / 400) ** 0.5
    found = [delay_dependence(*late_trial(seed, True)) for seed in range(50)]
    assert sum(tau > 0 and p < 1e-4 for tau, p, _ in found) >= 36 and min(num for _, _, num in found) > 40
    outcome, seen, delay, age = late_trial(0, True)
    assert delay_dependence(outcome, seen, torch.zeros_like(delay), age) == (0.0, 1.0, int(seen.sum()))
    assert delay_dependence(outcome, seen & (age < 0), delay, age) == (0.0, 1.0, 0)


def test_a_live_trial_warns_of_delay_that_depends_on_outcomes():
    for depends in (True, False):
        trial = TreatmentExperiment(CoinFlip(0), seed=0)
        generator = torch.Generator().manual_seed(1)
        due: dict[int, list[tuple[int, float]]] = {}
        for t in range(160):
            trial.assign()
            outcome = float(torch.rand((), generator=generator))
            delay = int(20 * outcome) if depends else int(20 * float(torch.rand((), generator=generator)))
            due.setdefault(t + delay, []).append((t, outcome))
            for unit, value in due.pop(t, []):
                trial.update(value, unit)
        if depends:
            with pytest.warns(UserWarning, match="come late are larger than those that come soon"):
                trial.estimate()
        else:
            trial.estimate()
