"""Studies, reports and replays of treatment designs against what is known of them exactly."""

import pytest
import torch

from sbi_bed.diagnostics import gate_weights, replay_trial, run_treatment_study, treatment_report, treatment_table
from sbi_bed.inference.experiments.treatment.a2ipw import a2ipw_scores
from sbi_bed.policies import CoinFlip, MixtureOfExperimenters, NonContextualNeyman, OracleNeyman, TreatmentPolicy
from sbi_bed.simulators import RecordedTrial
from sbi_bed.simulators.treatment.problem import linear_benchmark, two_arm_benchmark
from sbi_bed.simulators.treatment.stream import TreatmentStream


def within(figure, expected, slack=0.0):
    value, stderr = figure
    return abs(value - expected) < 4 * stderr + slack


class ByCovariate(TreatmentPolicy):
    """Treats by the first covariate alone, from .2 to .8; predicts nothing."""

    has_predictions = False

    def initial_state(self, batch_shape=()):
        return torch.zeros(*batch_shape)

    def update(self, state, covariates, arm, outcome):
        return state

    def propensity(self, state, covariates):
        return 0.2 + 0.6 * covariates[..., 0].sigmoid()


# ---- studies


@pytest.fixture(scope="module")
def two_arms():
    problem = two_arm_benchmark()
    designs = {"coin": CoinFlip(0), "adaptive": NonContextualNeyman(0), "oracle": OracleNeyman(problem)}
    return {name: run_treatment_study(problem, policy, 300, 2000, seed=0) for name, policy in designs.items()}


def test_two_arms_of_known_variance(two_arms):
    reports = {name: treatment_report(study) for name, study in two_arms.items()}
    assert within(reports["coin"].efficiency, 1.25) and reports["coin"].regret[0] == pytest.approx(0.25)
    assert within(reports["oracle"].efficiency, 1.0) and reports["oracle"].late_regret[0] == 0
    assert within(reports["adaptive"].efficiency, 1.0, slack=0.05) and reports["adaptive"].late_regret[0] < 0.01
    for report in reports.values():
        assert within(report.coverage, 0.95, slack=0.005)
        assert report.sequence_coverage[0] > 0.95 - 3 * report.sequence_coverage[1]
        assert report.repeated_coverage[0] < 0.75
    table = treatment_table(reports).splitlines()
    assert len(table) == 5 and table[2].startswith("coin") and "0.250 ± 0.000" in table[2]
    assert str(reports["coin"]).splitlines()[2].startswith("design")


def test_units_are_the_same_under_every_policy(two_arms):
    coin, oracle = two_arms["coin"].log, two_arms["oracle"].log
    same = coin.arm == oracle.arm
    assert torch.equal(coin.outcome[same], oracle.outcome[same]) and 0.6 < float(same.double().mean()) < 0.9


def test_the_logged_numbers_are_those_of_the_policy():
    problems, policy = TreatmentStream(1.5).sample(4, seed=0), NonContextualNeyman(1)
    log = run_treatment_study(problems, policy, 30, seed=1).log
    for t in (0, 7, 29):
        state = policy.read(log.history[:, :t])
        assert torch.equal(log.propensity[:, t], policy.propensity(state, log.covariates[:, t]))
        assert torch.equal(log.predicted[:, t], policy.predict(state, log.covariates[:, t])[0])


def test_regret_is_the_variance_lost():
    problem = linear_benchmark()
    study = run_treatment_study(problem, ByCovariate(5), 50, 400, seed=0)
    lost = float(problem.variance(lambda x: ByCovariate(5).propensity(None, x)) - problem.bound)
    report = treatment_report(study, num_late=50)
    assert within(report.regret, lost / 1.21)


@pytest.mark.parametrize("seed", [0, 1])
def test_garbage_predictions_cost_precision_and_no_bias(seed):
    class Garbage(NonContextualNeyman):
        def predict(self, state, covariates):
            mean, log_variance = super().predict(state, covariates)
            return 5 * torch.sin(37 * mean + 100 * covariates[..., :1]), log_variance

    problem = linear_benchmark()
    study = run_treatment_study(problem, CoinFlip(5), 100, 3000, nuisance=Garbage(5), seed=seed)
    final = study.log.estimate()
    z = (final.ate.mean() - 0.5) / (final.ate.std() / 3000**0.5)
    assert abs(float(z)) < 3 and treatment_report(study).efficiency[0] > 5
    assert within(treatment_report(study).coverage, 0.95, slack=0.01)


def test_a_leak_would_be_seen():
    """Predictions that have seen the outcome make the estimate biased: why the API cannot take them."""
    study = run_treatment_study(two_arm_benchmark(), CoinFlip(0), 200, 500, seed=0)
    log = study.log
    honest = log.estimate().ate
    assert abs(honest.mean()) < 4 * honest.std() / 500**0.5
    leaked = torch.stack([log.outcome, log.outcome.abs()], -1)
    ate = a2ipw_scores(log.arm, log.outcome, log.propensity, leaked).mean(-1)
    assert abs(ate.mean()) > 10 * ate.std() / 500**0.5


def test_wrong_arguments():
    problem, batch = two_arm_benchmark(), TreatmentStream(1.5).sample(3, seed=0)
    with pytest.raises(ValueError, match="num_experiments= is the number"):
        run_treatment_study(problem, CoinFlip(0), 10)
    with pytest.raises(ValueError, match="Got 4 for a batch of shape"):
        run_treatment_study(batch, CoinFlip(1), 10, 4)
    with pytest.raises(ValueError, match="policy is for 2 covariates, the problem has 0"):
        run_treatment_study(problem, CoinFlip(2), 10, 4)
    with pytest.raises(TypeError, match="must be a TreatmentPolicy"):
        run_treatment_study(problem, lambda history, x: 0.5, 10, 4)
    with pytest.raises(ValueError, match="the study has 10 units"):
        treatment_report(run_treatment_study(problem, CoinFlip(0), 10, 4, seed=0))


def test_gate_weights_are_posterior_probabilities_of_experts():
    class Fixed(CoinFlip):
        def predict(self, state, covariates):
            shape = (*covariates.shape[:-1], 2)
            return torch.full(shape, self.value).double(), torch.zeros(shape).double()

    experts = [Fixed(1), Fixed(1)]
    experts[0].value, experts[1].value = 0.0, 1.0
    history = torch.tensor([[0.0, 1, 2.0, 1], [0.0, 0, -9.0, 0], [0.0, 0, 0.25, 1]], dtype=torch.float64)
    weights = gate_weights(MixtureOfExperimenters(experts), history)
    # log N(y; 1, 1) − log N(y; 0, 1) = y − ½, and the unit whose outcome is pending says nothing
    expected = torch.tensor([0.0, 1.5, 1.5, 1.25], dtype=torch.float64).sigmoid()
    assert torch.allclose(weights[:, 1], expected) and torch.allclose(weights.sum(-1), torch.ones(4).double())


# ---- replays


def trial_of(n, share, seed=0):
    """Outcomes depend on covariates and arms: the effect is 1 + x, of mean 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    arm = (torch.rand(n, generator=generator) < share).double()
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return RecordedTrial(x, arm, 2 * x[:, 0] + arm * (1 + x[:, 0]) + noise, ("x",))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_units_that_enter_are_like_the_trials_and_arms_follow_the_policy(share):
    trial, policy = trial_of(2000, share), ByCovariate(1)
    replay = replay_trial(trial, policy, 100, seed=1)
    log = replay.log
    assert torch.equal(log.covariates, trial.covariates[replay.rows]) and torch.equal(log.arm, trial.arm[replay.rows])
    assert torch.equal(log.outcome, trial.outcome[replay.rows])
    assert all(len(set(rows)) == len(rows) for rows in replay.rows.tolist())  # nobody enters twice
    expected = min(trial.propensity, 1 - trial.propensity) / 0.95 * 2000
    assert 0.85 * expected < len(log) <= 1.05 * expected
    assert torch.allclose(log.propensity, policy.propensity(None, log.covariates[..., :]))
    middle = log.covariates.mean() - trial.covariates.mean()
    assert abs(float(middle)) < 0.02  # sd .02 if replays were one, and they are a hundred
    standardised = (log.arm - log.propensity) / (log.propensity * (1 - log.propensity)).sqrt()
    assert abs(float(standardised.mean())) < 0.06
    found = log.estimate().ate
    assert abs(float(found.mean()) - 1.0) < 4 * trial.effect_stderr
    assert f"{len(log)} units" in str(replay)


def test_replays_are_reproducible_and_predictions_come_from_the_past():
    trial, policy = trial_of(300, 0.4), NonContextualNeyman(1)
    replay, again = (replay_trial(trial, policy, 3, seed=2) for _ in range(2))
    assert torch.equal(replay.rows, again.rows) and torch.equal(replay.log.propensity, again.log.propensity)
    for t in (0, 5, len(replay.log) - 1):
        state = policy.read(replay.log.history[:, :t])
        assert torch.equal(replay.log.predicted[:, t], policy.predict(state, replay.log.covariates[:, t])[0])
    other = replay_trial(trial, CoinFlip(1), 3, nuisance=NonContextualNeyman(1), seed=2)
    t = len(other.log) - 1
    state = policy.read(other.log.history[:, :t])
    assert torch.equal(other.log.predicted[:, t], policy.predict(state, other.log.covariates[:, t])[0])


def test_replay_refuses():
    class Wild(ByCovariate):
        def propensity(self, state, covariates):
            return torch.full(covariates.shape[:-1], 0.99)

    trial = trial_of(200, 0.5)
    with pytest.raises(ValueError, match=r"proposes 0\.99, beyond its clip, 0\.05"):
        replay_trial(trial, Wild(1), seed=0)
    with pytest.raises(ValueError, match="policy is for 2 covariates, the trial has 1"):
        replay_trial(trial, CoinFlip(2))
    with pytest.raises(TypeError, match="must be a TreatmentPolicy"):
        replay_trial(trial, "coin")
