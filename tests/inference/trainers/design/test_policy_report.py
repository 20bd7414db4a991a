"""What a training has come to: gains beside exact ones, and one warning where it has failed."""

import math
import warnings

import pytest
import torch
from models import LinearGaussian, RandomWalk, gaussian_prior
from torch.distributions import Independent, LogNormal, Normal, constraints

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy
from sbi_bed.simulators import DesignSimulator, process_design_simulator, rollout

WHOLE = {"num_steps": 2, "batch_size": 25_000, "num_contrastive": 3}  # enough experiments for a report, and no training


def decay(reparameterized=True, likelihood=True):
    """A concentration that decays: late in the interval there is nothing left to measure."""

    def mean(theta, time):
        return theta[..., :1] * torch.exp(-theta[..., 1:] * time)

    return DesignSimulator(
        Independent(LogNormal(torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.5])), 1),
        lambda theta, time: mean(theta, time) + 0.1 * torch.randn_like(mean(theta, time)),
        constraints.interval(torch.tensor([0.0]), torch.tensor([30.0])),
        (lambda theta, time, y: Normal(mean(theta, time), 0.1).log_prob(y).sum(-1)) if likelihood else None,
        reparameterized=reparameterized,
    )


def policy_at(simulator, free):
    """A policy that goes to one place, whatever the history."""
    policy = DeepSetsPolicy(simulator, 8, 4)
    with torch.no_grad():
        policy.head[-1].weight.zero_()
        policy.head[-1].bias.fill_(free)
    return policy


def train(simulator, policy=None, horizon=2, **settings):
    trainer = DAD(simulator, horizon, policy, show_progress_bars=False)
    trainer.train(**{"learning_rate": 1e-9, "seed": 0, **WHOLE, **settings})
    return trainer


def test_gains_are_the_exact_ones():
    simulator = LinearGaussian()
    report = train(simulator, policy_at(simulator, 9.0)).report
    best = simulator.best_gain(2)
    random = float(
        simulator.gain_of(rollout(simulator, RandomPolicy(simulator), torch.zeros(20_000, 1), 2).designs).mean()
    )
    for name, exact in (("trained", best), ("static", best), ("random", random)):
        assert abs(report.gains[name] - exact) < 4 * report.stderrs[name] + 0.02, name
    assert report.judge == "likelihood" and report.on_border == 1.0 and report.spread < 1e-3
    assert not report.problems  # the best designs are there, and no history would change them


def test_a_collapse_is_one_warning():
    simulator = decay()
    with pytest.warns(UserWarning, match="may have failed") as caught:
        report = train(simulator, policy_at(simulator, 9.0)).report
    assert sum("may have failed" in str(w.message) for w in caught) == 1
    text = str(caught[-1].message)
    for part in (
        "no better than random",
        "worse than fixed",
        "100% of its design values sit on the border",
        "the history",
    ):
        assert part in text and part in str(report) + "fixed designs"
    assert (
        report.gains["static"] > report.gains["trained"] + 0.5
        and report.gains["one step ahead"] > report.gains["random"]
    )


def test_a_policy_that_works_is_not_warned_about(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = train(decay(), num_steps=400, batch_size=128, num_contrastive=127, learning_rate=3e-3, horizon=3)
    assert trainer.report.gains["trained"] > trainer.report.gains["random"] + 0.5
    lines = str(trainer.report).splitlines()
    assert lines[0].split() == ["policy", "gain", "(nats)"] and lines[2].split()[0] == "trained"
    assert capsys.readouterr().out == ""  # printed with the progress bars


def test_a_report_that_fails_does_not_take_the_training_with_it(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no judge")

    monkeypatch.setattr("sbi_bed.inference.trainers.design.dad.report_on", fail)
    simulator = LinearGaussian()
    with pytest.warns(UserWarning, match="trained, but could not be compared with simple ones: no judge"):
        trainer = train(simulator)
    assert trainer.num_steps == 2 and not trainer.policy.training


def test_it_is_printed_where_progress_is_shown(capsys):
    simulator = LinearGaussian()
    DAD(simulator, 2, policy_at(simulator, 9.0)).train(**WHOLE, learning_rate=1e-9, seed=0)
    assert "one step ahead" in capsys.readouterr().out


@pytest.mark.slow
def test_without_a_likelihood_one_is_learned_for_the_judge():
    simulator = decay(likelihood=False)
    with pytest.warns(UserWarning, match="no better than random"):
        report = train(simulator, policy_at(simulator, 9.0), num_contrastive=None, num_steps=100, batch_size=500).report
    exact = expected_information_gain(decay(), RandomPolicy(simulator), 2, 2000, 5000, seed=1)
    assert report.judge == "likelihood learned for this report"
    assert (
        abs(report.gains["random"] - exact.lower) < 4 * math.hypot(report.stderrs["random"], exact.lower_stderr) + 0.1
    )


def test_trials_that_share_a_state_are_looked_at_without_a_judge():
    simulator = RandomWalk()
    simulator.reparameterized = True
    trainer = DAD(simulator, 2, show_progress_bars=False)
    trainer.train(2, 8, seed=0)
    assert trainer.report.gains == {} and "judge: none" in str(trainer.report)


def test_the_report_takes_a_share_of_the_time():
    simulator = LinearGaussian()
    trainer = train(simulator, num_steps=10**6, batch_size=16, max_seconds=2.0)
    assert trainer._share_after(trainer._settings) == 0.05
    assert {"trained", "random"} <= trainer.report.gains.keys()
    small = train(simulator, num_steps=5, batch_size=16)
    assert small._share_after(small._settings) == 0.0 and small._policy_report is None
    assert small.report is small.report  # made once


def test_no_report_where_the_gain_is_another():
    simulator = LinearGaussian()
    with pytest.raises(ValueError, match="a policy that was trained"):
        _ = DAD(simulator, 2, show_progress_bars=False).report
    refined = DAD(
        simulator, 2, show_progress_bars=False, prior=torch.randn(50, 1), history=torch.tensor([[1.0, 0.0, 1.0]])
    )
    refined.train(2, 25_000, 3, seed=0)
    with pytest.raises(ValueError, match="from the first trial on"):
        _ = refined.report


def test_a_gain_without_an_upper_bound_says_so():
    simulator = process_design_simulator(
        lambda theta, design: theta[:, :1] * design + 0.5 * torch.randn(len(theta), 1).numpy(),
        gaussian_prior(1),
        constraints.interval(-torch.ones(1), torch.ones(1)),
    )
    simulator.learn_likelihood(4000, seed=0)
    gain = expected_information_gain(simulator, RandomPolicy(simulator), 2, 1000, 2000, seed=0)
    exact = LinearGaussian().gain_of(
        rollout(LinearGaussian(), RandomPolicy(simulator), torch.zeros(20_000, 1), 2).designs
    )
    assert "without an upper bound" in str(gain) and math.isinf(gain.upper)
    assert exact.mean() - 0.1 < gain.lower < exact.mean() + 3 * gain.lower_stderr
    with pytest.raises(ValueError, match="max_gap= needs an upper bound"):
        expected_information_gain(simulator, RandomPolicy(simulator), 2, 10, 10, max_gap=0.1)
