"""What happens in a laboratory: skipped and invalid trials, slips, several designs at a time, changes of course."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laboratory_runs import (
    ACTIONS,
    CONTINUOUS,
    FEW,
    KINDS,
    ON_GRID,
    cost,
    deep_sets,
    happen,
    load,
    look_of,
    make,
    quietly,
)
from models import LinearGaussian, YesNo, blood_samples_in_order
from torch.distributions import constraints

from sbi_bed.inference import AdaptiveExperiment, StepDAD
from sbi_bed.inference.experiments.design.imagined import imagined_outcomes
from sbi_bed.inference.experiments.design.stopping import after_trials, gain_below, trial_gain
from sbi_bed.inference.experiments.design.trials import Trials
from sbi_bed.inference.experiments.journal import read_journal
from sbi_bed.policies import GreedyPolicy, RandomPolicy, StaticPolicy, TransformerPolicy
from sbi_bed.simulators import DesignSimulator, DesignSpace, LocationFinding, StochasticEpidemic
from sbi_bed.utils import seeded


def begin(policy=None, simulator=CONTINUOUS, horizon=5, **options):
    return AdaptiveExperiment(policy or RandomPolicy(simulator), simulator, horizon, **{"seed": 3, **options})


def run(experiment, *outcomes):
    for outcome in outcomes:
        experiment.next_design()
        experiment.record([outcome])
    return experiment


# ---- any sequence of events


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=12)
@given(events=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 999)), max_size=18))
def test_a_file_holds_what_any_events_made(name, events, tmp_path_factory):
    """After each event a loaded experiment looks like the live one, and a refused event changes nothing."""
    path = tmp_path_factory.mktemp("any") / "saved"
    experiment = quietly(make, name)
    look = look_of(experiment)
    for action, number in events:
        before, problem = look, happen(experiment, action, number)
        experiment.save(path)
        look = look_of(experiment)
        assert problem is None or look == before, problem
        assert look_of(load(name, path)) == look


@pytest.mark.parametrize("name", KINDS)
def test_a_journal_cut_anywhere_is_an_earlier_experiment(name, tmp_path):
    chance, path, cut, looks = random.Random(1), tmp_path / "a", tmp_path / "cut", {}
    experiment = quietly(make, name, path)
    for _ in range(25):
        happen(experiment, chance.choice(ACTIONS), chance.randrange(1000))
        counts = len(experiment._entries)
        looks[counts] = look = look_of(experiment)
        looks[len(experiment._entries)] = look
    lines, looked_at = path.read_bytes().splitlines(keepends=True), 0
    for num in range(1, len(lines) + 1):
        whole = b"".join(lines[:num])
        torn = lines[num][: chance.randrange(len(lines[num]) - 1)] if num < len(lines) else b""
        for data in (whole, whole[:-1], whole + torn):
            cut.write_bytes(data)
            loaded = load(name, cut)
            if num - 1 in looks:
                assert look_of(loaded) == looks[num - 1]
                looked_at += 1
    assert looked_at > 15


def killed(folder, num_kills, seed, *names):
    script = Path(__file__).with_name("laboratory_kills.py")
    tests = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    arguments = [sys.executable, script, folder, str(num_kills), str(seed), *names]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_events_killed_at_a_few_moments(tmp_path):
    assert "killed 6 times" in killed(tmp_path, 6, 0, "random", "budget")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_events_killed_at_fifty_moments(seed, tmp_path):
    report = killed(tmp_path, 50, seed, *KINDS)
    assert "killed 50 times" in report and " 0 half lines" not in report and " 0 in the middle" not in report


def test_a_journal_of_an_earlier_version_goes_on(tmp_path):
    path = tmp_path / "old"
    shutil.copy(Path(__file__).with_name("journal_of_0.1.0.jsonl"), path)
    experiment, new = AdaptiveExperiment.load(path, CONTINUOUS), begin(horizon=4, seed=11, min_distance=0.25)
    for design, outcome in zip(experiment.designs, experiment.outcomes, strict=True):
        new.record(outcome, design)
    assert experiment.handles == [0, 1] and experiment.outcomes.tolist() == [[1.5], [0.25]]
    assert torch.equal(experiment.next_design(), new.next_design())
    if "SEED_OFFSET" not in os.environ:
        assert experiment.next_design().tolist() == [0.2893947958946228, -0.28343233466148376]  # that version's
    experiment.record([2.0])
    experiment.undo()
    experiment.undo()
    experiment.close()
    assert AdaptiveExperiment.load(path, CONTINUOUS, journal=False).outcomes.tolist() == [[1.5]]


# ---- undo


def test_undo_goes_back_trial_by_trial():
    policy = deep_sets(CONTINUOUS)
    experiment = run(begin(policy), 1.0, 2.0, 3.0, 4.0, 5.0)
    designs = experiment.designs
    assert experiment.stopped_because == "horizon"
    for num in (4, 3, 2, 1, 0):
        experiment.undo()
        assert experiment.num_trials == num and not experiment.done
        assert torch.equal(experiment.designs, designs[:num]) and torch.equal(experiment.next_design(), designs[num])
        with torch.no_grad():
            torch.testing.assert_close(experiment.next_design(), policy(experiment.history))
    with pytest.raises(ValueError, match="nothing to undo"):
        experiment.undo()
    assert torch.equal(run(experiment, 1.0, 2.0, 3.0, 4.0, 5.0).designs, designs)


def test_undo_takes_back_costs_and_stops():
    experiment = begin(simulator=ON_GRID, design_cost=lambda design: 1.0, budget=2.5)
    run(experiment, 0.1, 0.2)
    assert experiment.done and experiment.stopped_because == "budget" and experiment.spent == 2.0
    experiment.undo()
    assert not experiment.done and experiment.spent == 1.0
    ruled = run(begin(stop_when=after_trials(2)), 1.0, 2.0)
    assert ruled.stopped_because == "after 2 trials"
    ruled.undo()
    assert not ruled.done
    assert run(ruled, 3.0).stopped_because == "after 2 trials" and ruled.outcomes.tolist() == [[1.0], [3.0]]


def test_undo_takes_back_a_refined_policy(tmp_path):
    policy = deep_sets(CONTINUOUS)
    few = {**FEW, "num_steps": 20, "learning_rate": 0.02, "show_progress_bars": False}
    experiment = StepDAD(policy, CONTINUOUS, 5, (2,), tmp_path / "a", refine_settings=few, seed=0)
    adopt = experiment._adopt_policy
    experiment._adopt_policy = lambda refined, **details: adopt(deep_sets(CONTINUOUS, 7), **details)  # always adopted
    run(experiment, 1.0, 2.0)
    third = experiment.next_design()
    assert len(experiment.changes) == 1 and experiment.policy is not policy
    experiment.undo()
    assert experiment.changes == [] and experiment.policy.state_dict().keys() == policy.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(experiment.policy.parameters(), policy.parameters(), strict=True))
    run(experiment, 2.0)
    assert torch.equal(experiment.next_design(), third) and len(experiment.refinements) == 2
    experiment.mark_invalid(0)
    assert experiment.changes == [] and experiment.num_trials == 1
    experiment.undo()  # the mark: the refinement holds again
    assert len(experiment.changes) == 1 and torch.equal(experiment.next_design(), third)
    assert len(experiment.refinements) == 2


def test_a_finished_journal_is_opened_again_for_an_undo(tmp_path):
    path = tmp_path / "a"
    experiment = run(begin(horizon=2, journal=path), 1.0, 2.0)
    other = AdaptiveExperiment.load(path, CONTINUOUS)  # it is finished, so it is free
    experiment.undo()
    with pytest.raises(ValueError, match="in use"):
        other.undo()
    with pytest.raises(ValueError, match="in use"):
        AdaptiveExperiment.load(path, CONTINUOUS)
    run(experiment, 2.5)
    with pytest.raises(ValueError, match="another process has written"):
        other.undo()
    assert other.num_trials == 2 and other.done
    assert AdaptiveExperiment.load(path, CONTINUOUS).outcomes.tolist() == [[1.0], [2.5]]
    experiment.undo()
    experiment.close()
    with pytest.raises(ValueError, match="is closed"):
        experiment.undo()


def test_what_was_ended_is_looked_at_without_its_cost_but_not_continued(tmp_path):
    run(begin(simulator=ON_GRID, horizon=2, journal=tmp_path / "a", design_cost=cost), 0.1, 0.2)
    ended = AdaptiveExperiment.load(tmp_path / "a", ON_GRID)
    with pytest.raises(ValueError, match="give design_cost= again"):
        ended.undo()
    assert ended.done and len(read_journal(tmp_path / "a")[1]) == 2
    ended = AdaptiveExperiment.load(tmp_path / "a", ON_GRID, design_cost=cost)
    ended.undo()
    assert run(ended, 0.3).num_trials == 2


def test_an_undo_that_does_not_fit_is_refused(tmp_path):
    experiment = run(begin(horizon=3, journal=tmp_path / "a"), 1.0, 2.0, 3.0)
    experiment.mark_invalid(0)
    experiment.change_horizon(2)
    with pytest.raises(ValueError, match=r"more trials than its horizon, 2.*change_horizon"):
        experiment.undo()
    assert experiment.num_trials == 2 and experiment.done
    experiment.change_horizon(3)
    experiment.undo()
    assert experiment.handles == [0, 1, 2]


# ---- skip


def test_a_skipped_design_is_proposed_anew_and_costs_no_trial():
    experiment = begin(horizon=2)
    first = experiment.next_design()
    experiment.skip(reason="needle broke")
    second = experiment.next_design()
    assert not torch.equal(first, second)
    assert [(each.handle, each.reason) for each in experiment.skipped] == [(0, "needle broke")]
    assert torch.equal(experiment.skipped[0].design, first)
    run(experiment, 1.0, 2.0)
    assert experiment.done and torch.equal(experiment.designs[0], second) and experiment.handles == [1, 2]
    with pytest.raises(ValueError, match=r"done \(horizon\)"):
        experiment.skip()
    fresh = begin()
    with pytest.raises(ValueError, match="nothing to skip: call next_design"):
        fresh.skip()


def test_skips_among_candidates_take_the_next_best():
    policy = GreedyPolicy(ON_GRID, num_particles=256, num_inner=64, num_outer=32)
    order = policy.candidate_gains(policy.initial_state()).argsort(descending=True)
    experiment = begin(policy, ON_GRID, horizon=3)
    for rank in range(9):
        assert torch.equal(experiment.next_design(), ON_GRID.design_space.candidates[order[rank]])
        experiment.skip(for_good=rank == 0)
    assert experiment.done and experiment.stopped_because == "no allowed design is left"
    experiment.undo()
    assert not experiment.done
    run(experiment, 0.3)  # after a trial only what was skipped for good is out
    state = policy.update(policy.initial_state(), experiment.designs[0], experiment.outcomes[0])
    gains = policy.candidate_gains(state)
    gains[order[0]] = -torch.inf
    assert torch.equal(experiment.next_design(), ON_GRID.design_space.candidates[gains.argmax()])


@pytest.mark.parametrize("num_experiments", [None, 2])
def test_skips_in_a_continuous_space_keep_away(num_experiments):
    still = lambda history: torch.zeros(*history.shape[:-2], 2)  # noqa: E731
    experiment = begin(still, num_experiments=num_experiments)
    for _ in range(4):
        experiment.next_design()
        experiment.skip()
    designs = torch.stack([each.design for each in experiment.skipped], -2)
    places = CONTINUOUS.design_space.standardize(designs).reshape(-1, 4, 2)
    assert all(torch.pdist(each).min() >= 0.1 for each in places)
    experiment.record(torch.ones(*experiment._batch_shape, 1), design=torch.ones(*experiment._batch_shape, 2))
    assert not experiment.next_design().any()


@pytest.mark.parametrize("finite", [True, False])
def test_designs_of_several_kinds_keep_apart(finite):
    """Twelve combinations of a drug and a time are all found, each once; with a dose there is always another design."""
    parts = {"drug": ["placebo", "A", "B"], "time": constraints.integer_interval(1, 4)}
    space = DesignSpace.of_parts(**parts, **({} if finite else {"dose": constraints.interval(0.0, 10.0)}))
    effect = lambda theta, design: theta * design[..., 1:2] + torch.randn_like(theta * design[..., 1:2])  # noqa: E731
    simulator = DesignSimulator(LinearGaussian(1).prior, effect, space)
    first = torch.tensor([1.0, 2.0, 5.0])[: space.dim]
    still = lambda history: first.expand(*history.shape[:-2], -1)  # noqa: E731
    experiment = begin(still, simulator, horizon=20, min_distance=1e-6)
    while not experiment.done:
        space.check(experiment.next_design())
        experiment.record([0.0])
    places = space.standardize(experiment.designs)
    assert experiment.num_trials == (12 if finite else 20) and torch.pdist(places).min() >= 1e-5
    skipping = begin(still, simulator, horizon=20)
    while not skipping.done and len(skipping.skipped) < 20:
        skipping.next_design()
        skipping.skip()
    assert len({tuple(each.design.tolist()) for each in skipping.skipped}) == (12 if finite else 20)
    if finite:  # what counts as a repeat is clear
        assert run(begin(still, simulator, no_repeat_within=1), 0.0, 0.0).designs.unique(dim=0).shape[0] == 2


# ---- invalid trials


def test_a_gain_is_measured_anew_when_trials_before_it_change():
    """The second trial tells less than the first, whose place it takes when that is marked invalid."""
    gains = []
    rule = gain_below(1e-6, num_samples=1000)
    experiment = begin(lambda history: torch.ones(*history.shape[:-2], 1), LinearGaussian(1), stop_when=rule)
    run(experiment, 0.3, 0.4)
    gains.append(trial_gain(experiment, 2, 1000))
    experiment.mark_invalid(0)
    gains.append(trial_gain(experiment, 1, 1000))
    exact = [0.5 * math.log((1 + 2 / 0.25) / (1 + 1 / 0.25)), 0.5 * math.log(1 + 1 / 0.25)]
    assert gains == pytest.approx(exact, abs=0.1) and not experiment.done
    between = gain_below(0.5 * sum(exact), num_samples=1000)
    stopped = run(begin(experiment.policy, LinearGaussian(1), stop_when=between), 0.3, 0.4)
    assert stopped.done
    stopped.mark_invalid(0)
    assert not stopped.done and stopped.num_trials == 1


def test_an_invalid_trial_counts_for_nothing_but_its_cost():
    policy = deep_sets(CONTINUOUS)
    experiment = run(begin(policy, horizon=4, design_cost=lambda design: 2.0), 1.0, 9.0, 3.0, 4.0)
    designs, outcomes = experiment.designs, experiment.outcomes
    experiment.mark_invalid(1, reason="asleep")
    rest = [0, 2, 3]
    assert experiment.handles == rest and not experiment.done and experiment.spent == 8.0
    assert torch.equal(experiment.designs, designs[rest]) and torch.equal(experiment.outcomes, outcomes[rest])
    (invalid,) = experiment.invalid
    assert (invalid.handle, invalid.outcome.item(), invalid.reason) == (1, 9.0, "asleep")
    with torch.no_grad():
        torch.testing.assert_close(experiment.next_design(), policy(experiment.history))
    run(experiment, 5.0)
    assert experiment.handles == [0, 2, 3, 4] and experiment.done and experiment.spent == 10.0
    experiment.mark_invalid()
    assert experiment.handles == rest
    for handle in (1, 17):
        with pytest.raises(ValueError, match=f"no valid trial with handle {handle}"):
            experiment.mark_invalid(handle)
    with pytest.raises(ValueError, match="no trial to mark"):
        begin().mark_invalid()


def test_an_invalid_trial_leaves_belief_and_posterior():
    """A greedy policy's belief, and the posterior, are those of a run without the trial."""
    policy = GreedyPolicy(ON_GRID, num_particles=256, num_inner=64, num_outer=32)
    marked, without = begin(policy, ON_GRID), begin(policy, ON_GRID)
    for experiment, answers in ((marked, (0.3, 5.0, 0.4)), (without, (0.3, 0.4))):
        for answer in answers:
            experiment.record([answer], design=[1.0])
    marked.mark_invalid(1)
    assert torch.equal(marked.next_design(), without.next_design())
    draws = []
    for experiment in (marked, without):
        with seeded(0):
            draws.append(experiment.posterior("smc").sample((100,)))
    assert torch.equal(*draws)


def test_a_stop_that_an_invalid_trial_caused_is_taken_back():
    large = lambda experiment: bool((experiment.outcomes > 5).any())  # noqa: E731
    experiment = run(begin(stop_when=large), 1.0, 9.0)
    assert experiment.done
    experiment.mark_invalid()
    assert not experiment.done
    assert run(experiment, 7.0).done


# ---- designs in flight


def test_designs_in_flight_are_answered_in_any_order(tmp_path):
    experiment = begin(deep_sets(CONTINUOUS), horizon=5, journal=tmp_path / "a")
    given = experiment.next_designs(3)
    assert list(given) == [0, 1, 2] and len({tuple(design.tolist()) for design in given.values()}) == 3
    experiment.close()
    experiment = AdaptiveExperiment.load(tmp_path / "a", CONTINUOUS)
    assert all(torch.equal(experiment.in_flight[handle], design) for handle, design in given.items())
    experiment.record([1.0], handle=2)
    experiment.record([2.0], handle=0, design=[0.5, 0.5])
    assert experiment.handles == [2, 0] and experiment.outcomes.tolist() == [[1.0], [2.0]]
    assert torch.equal(experiment.designs[0], given[2]) and experiment.designs[1].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"no design with handle 2 is in flight, only \[1\]"):
        experiment.record([1.0], handle=2)
    with pytest.raises(ValueError, match=r"nothing to record: .* handle=, one of \[1\] in flight"):
        experiment.record([1.0])
    assert list(experiment.next_designs(9)) == [3, 4]  # what the horizon leaves
    assert experiment.next_designs(1) == {}
    for call in (experiment.next_design, lambda: experiment.record([1.0], design=[0.0, 0.0])):
        with pytest.raises(ValueError, match=r"every trial that remains is in flight, with handles \[1, 3, 4\]"):
            call()
    experiment.skip(3, reason="lost")
    assert not experiment.done and list(experiment.in_flight) == [1, 4]
    run(experiment, 3.0)
    experiment.undo()
    experiment.undo()  # the skip
    assert list(experiment.in_flight) == [1, 4, 3] or list(experiment.in_flight) == [1, 3, 4]
    for handle in (1, 3, 4):
        experiment.record([0.5], handle=handle)
    assert experiment.done and experiment.num_trials == 5
    experiment.undo()
    assert list(experiment.in_flight) == [4] and not experiment.done


def test_the_first_of_several_designs_is_the_next_one():
    for policy in (RandomPolicy(CONTINUOUS), deep_sets(CONTINUOUS)):
        experiment, other = begin(policy), begin(policy)
        first = experiment.next_design()
        assert torch.equal(experiment.next_designs(2)[0], first)
        a, b = other.next_designs(1)[0], other.next_designs(1)[1]  # one by one is the same as together
        assert torch.equal(a, first) and torch.equal(b, experiment.in_flight[1])


def test_recording_one_in_flight_does_not_change_whose_outcome_comes_next():
    """The proposal at hand is void then; an outcome cannot be taken for that of another design."""
    experiment = begin()
    experiment.next_designs(1)
    at_hand = experiment.next_design()
    experiment.record([1.0], handle=0)
    with pytest.raises(ValueError, match="nothing to record"):
        experiment.record([2.0])
    experiment.record([2.0], design=at_hand)
    assert torch.equal(experiment.designs[1], at_hand)


def test_stopped_experiments_take_what_is_in_flight(tmp_path):
    experiment = begin(stop_when=after_trials(1), journal=tmp_path / "a")
    experiment.next_designs(3)
    experiment.record([1.0], handle=1)
    assert experiment.done and experiment.stopped_because == "after 1 trials"
    with pytest.raises(ValueError, match=r"done \(after 1 trials\)"):
        experiment.next_designs(1)
    experiment.record([2.0], handle=0)
    experiment.skip(2)
    assert AdaptiveExperiment.load(tmp_path / "a", CONTINUOUS).num_trials == 2  # closed with the last of them


def test_budget_and_distances_hold_for_designs_in_flight():
    experiment = begin(simulator=ON_GRID, horizon=9, design_cost=lambda design: 1.0, budget=3.5)
    assert len(experiment.next_designs(5)) == 3 and not experiment.done
    assert experiment.next_designs(1) == {}
    with pytest.raises(
        ValueError, match=r"nothing can be proposed \(budget\) until the outcomes of handles \[0, 1, 2\]"
    ):
        experiment.next_design()
    experiment.skip(0)
    assert list(experiment.next_designs(2)) == [3]  # a skipped design costs nothing
    for handle in (1, 2, 3):
        experiment.record([0.0], handle=handle)
    assert experiment.done and experiment.stopped_because == "budget"
    still = lambda history: torch.zeros(*history.shape[:-2], 1)  # noqa: E731
    apart = begin(still, ON_GRID, horizon=9, no_repeat_within=4)
    assert len({design.item() for design in apart.next_designs(5).values()}) == 5
    assert {design.item() for design in begin(still, ON_GRID).next_designs(3).values()} == {0.0}


def test_trials_that_depend_on_those_before_are_run_one_by_one():
    for simulator in (blood_samples_in_order(), StochasticEpidemic()):
        with pytest.raises(ValueError, match="do not depend on those before"):
            begin(RandomPolicy(simulator), simulator).next_designs(2)


@pytest.mark.parametrize("num_experiments", [None, 3])
@pytest.mark.parametrize("has_likelihood", [True, False])
def test_imagined_outcomes_are_central_ones_of_the_posterior_predictive(has_likelihood, num_experiments):
    """y_1 = θ + ε_1 has been seen; y_2 is normal, with mean and variance from the exact posterior: the median of 64."""
    linear = LinearGaussian(1)
    simulator = linear if has_likelihood else DesignSimulator(linear.prior, linear.simulate, linear.design_space)
    batch = () if num_experiments is None else (num_experiments,)
    trials, one = Trials(batch, 1, 1), torch.ones(*batch, 1)
    trials.add(one, 0.8 * one)
    twice = one.unsqueeze(-2).expand(*batch, 2, 1)
    y = torch.stack([imagined_outcomes(simulator, trials, twice, seed) for seed in range(100)]).double()
    assert y.shape == (100, *batch, 2, 1)
    variance = 1 / (1 + 1 / 0.25)
    mean, sd_of_median = 0.8 * variance / 0.25, (math.pi / 2 * (variance + 0.25) / 64) ** 0.5
    assert abs(y.mean() - mean) < 4.5 * sd_of_median / len(y) ** 0.5  # experiments and designs may share their draws
    assert y.std() < 1.5 * sd_of_median


def test_imagined_outcomes_are_possible_ones():
    simulator = YesNo(torch.float32)
    for answer in (0.0, 1.0):
        trials = Trials((), 1, 1)
        for _ in range(20):
            trials.add(torch.ones(1), torch.full((1,), answer))
        assert imagined_outcomes(simulator, trials, torch.ones(2, 1), seed=0).tolist() == [[answer]] * 2


def gain_of(history, theta, num_contrastive=20_000):
    """sPCE terms (B,) of histories (B, T, D + O + 1) of theta (B, 2) in the location experiment."""
    log_likelihood = lambda theta: CONTINUOUS.log_likelihood(theta, history[..., :2], history[..., 2:3]).sum(-1)  # noqa: E731
    contrastive = CONTINUOUS.prior.sample((num_contrastive,)).split(1000)
    others = torch.stack([log_likelihood(part[:, None, None]).logsumexp(0) for part in contrastive]).logsumexp(0)
    own = log_likelihood(theta.unsqueeze(-2))
    return own - torch.logaddexp(own, others) + math.log(num_contrastive + 1)


@pytest.mark.slow
def test_designs_in_flight_tell_more_than_one_design_three_times():
    """Nine readings by one-step lookahead on a grid, three at a time, in 80 experiments."""
    grid, gains = torch.cartesian_prod(*[torch.linspace(-2, 2, 9)] * 2), []
    policy = GreedyPolicy(CONTINUOUS, candidates=grid, num_particles=1024, num_inner=128, num_outer=32)
    theta = CONTINUOUS.prior.sample((80,))
    for in_flight in (True, False):
        experiment = begin(policy, horizon=9, num_experiments=len(theta))
        while not experiment.done:
            if in_flight:
                for handle, design in experiment.next_designs(3).items():
                    experiment.record(CONTINUOUS(theta, design), handle=handle)
            else:
                design = experiment.next_design()
                for _ in range(3):
                    experiment.record(CONTINUOUS(theta, design), design)
        gains.append(gain_of(experiment.history, theta))
    difference = gains[0] - gains[1]
    print(f"\nin flight {gains[0].mean():.2f}, three times over {gains[1].mean():.2f}")
    assert difference.mean() > 2 * difference.std() / len(difference) ** 0.5


# ---- changes of course


def test_the_horizon_can_be_changed(tmp_path):
    experiment = run(begin(deep_sets(CONTINUOUS), horizon=2, journal=tmp_path / "a"), 1.0, 2.0)
    assert experiment.done
    experiment.change_horizon(4, reason="they stay longer")
    assert not experiment.done and experiment.history.shape == (4, 4)
    experiment.next_designs(1)
    with pytest.raises(ValueError, match="horizon, 2: there are 2 and 1 designs in flight"):
        experiment.change_horizon(2)
    experiment.change_horizon(3)
    experiment.record([1.0], handle=2)
    assert experiment.stopped_because == "horizon"
    loaded = AdaptiveExperiment.load(tmp_path / "a", CONTINUOUS)
    assert loaded.horizon == 3 and loaded.done and loaded.changes[0]["reason"] == "they stay longer"
    for wrong, error in ((2, ValueError), (0, ValueError), (1.5, TypeError)):
        with pytest.raises(error):
            loaded.change_horizon(wrong)


def test_a_trained_posterior_reads_histories_of_its_own_length():
    class Trained:
        posterior_estimator = SimpleNamespace(condition_shape=(5, 4))

        def set_default_x(self, x):
            self.default_x = x

    experiment = run(begin(), 1.0, 2.0)
    x = experiment.posterior(Trained()).default_x
    assert x.shape == (1, 5, 4) and torch.equal(x[0], experiment.history)
    for horizon in (3, 7):
        experiment.change_horizon(horizon)
        assert torch.equal(experiment.posterior(Trained()).default_x, x)
    run(experiment, 1.0, 2.0, 3.0, 4.0)
    with pytest.raises(ValueError, match="reads 5 trials, there are 6"):
        experiment.posterior(Trained())
    assert experiment.posterior(Trained(), num_trials=5).default_x[0, :, -1].all()


def test_a_policy_limits_how_far_the_horizon_goes():
    with pytest.raises(ValueError, match="built for 3 trials, the horizon is 4"):
        begin(TransformerPolicy(CONTINUOUS, horizon=3), horizon=3).change_horizon(4)
    policy = deep_sets(CONTINUOUS)
    policy.trained_horizon = 5
    experiment = begin(policy)
    experiment.change_horizon(4)
    with pytest.warns(UserWarning, match="trained for 5 trials and is asked for 6"):
        experiment.change_horizon(6)
    with warnings.catch_warnings():  # it was said
        warnings.simplefilter("error")
        run(experiment, 1.0).undo()


def test_a_policy_for_fewer_trials_can_take_over(tmp_path):
    experiment = run(begin(horizon=6, journal=tmp_path / "a"), 1.0, 2.0)
    four = StaticPolicy(CONTINUOUS, 4)
    with pytest.raises(ValueError, match="built for 4 trials, the horizon is 6"):
        experiment.replace(four, reason="short")
    experiment.change_horizon(4)
    experiment.replace(four, reason="short")
    third = experiment.next_design()
    experiment.close()
    loaded = AdaptiveExperiment.load(tmp_path / "a", CONTINUOUS)
    assert torch.equal(loaded.next_design(), third) and torch.equal(third, four(loaded.history[:2]).detach())
    loaded.undo()
    assert torch.equal(loaded.next_design(), four(loaded.history[:1]).detach())


def test_a_shortened_step_dad_loads(tmp_path):
    few = {**FEW, "show_progress_bars": False}
    experiment = StepDAD(deep_sets(CONTINUOUS), CONTINUOUS, 5, (3,), tmp_path / "a", refine_settings=few, seed=0)
    run(experiment, 1.0)
    experiment.change_horizon(2)
    experiment.close()
    loaded = StepDAD.load(tmp_path / "a", CONTINUOUS)
    assert run(loaded, 2.0).done and loaded.refinements == []
    with pytest.raises(TypeError, match="weights"):
        loaded.replace(RandomPolicy(CONTINUOUS), reason="no weights")
    blind = DesignSimulator(CONTINUOUS.prior, CONTINUOUS.simulate, CONTINUOUS.design_space)
    with pytest.raises(ValueError, match="Step-DAD needs a simulator with a log_likelihood"):
        loaded.replace(simulator=blind, reason="no likelihood")


def test_step_dad_refines_between_batches_that_pass_its_number():
    few = {**FEW, "show_progress_bars": False}
    experiment = StepDAD(deep_sets(CONTINUOUS), CONTINUOUS, 7, (2,), refine_settings=few, seed=0)
    for _ in range(2):
        for handle in experiment.next_designs(3):
            experiment.record([1.0], handle=handle)
    experiment.next_design()
    assert [change["num_trials"] for change in experiment.changes] == [3] and len(experiment.refinements) == 1


def test_policy_and_simulator_can_be_replaced_after_a_contradiction(tmp_path):
    """Noise twice as large as was thought: the posterior has the new width, the file loads with the new simulator."""
    old, new = LinearGaussian(1, noise_sd=0.5), LinearGaussian(1, noise_sd=1.0)
    small = {"num_particles": 256, "num_inner": 64, "num_outer": 32}
    experiment = begin(GreedyPolicy(old, **small), old, journal=tmp_path / "a")
    for outcome in (2.0, -1.0, 1.5):
        experiment.record([outcome], design=[1.0])
    experiment.next_designs(1)
    with pytest.raises(ValueError, match="give policy= too"):
        experiment.replace(simulator=new, reason="noise")
    experiment.replace(GreedyPolicy(new, **small), new, reason="more noise than thought")
    draws = experiment.posterior("smc").sample((4000,))
    assert draws.mean().item() == pytest.approx(2.5 / (1 + 3), abs=0.06)
    assert draws.std().item() == pytest.approx((1 + 3) ** -0.5, rel=0.1)
    assert experiment.changes == [
        {"num_trials": 3, "changed": "policy and simulator", "reason": "more noise than thought"}
    ]
    design = experiment.next_design()
    experiment.close()
    loaded = AdaptiveExperiment.load(tmp_path / "a", new)
    assert torch.equal(loaded.next_design(), design) and list(loaded.in_flight) == [3]


def test_replacements_are_checked():
    experiment, half = run(begin(), 1.0), torch.tensor([0.5])
    wrong = [
        (ValueError, "give policy=, simulator=, or both", {}),
        (TypeError, "must be a DesignSimulator", {"simulator": 3}),
        (TypeError, "policy must be a callable", {"policy": 3}),
        (ValueError, "design_dim 2, the new simulator 3", {"simulator": LocationFinding(dim=3)}),
        (ValueError, "lies outside the outcome space", {"simulator": with_outcomes_below(0.5)}),
        (ValueError, "built for 3 trials", {"policy": StaticPolicy(CONTINUOUS, 3)}),
    ]
    look = look_of(experiment)
    for error, message, replacement in wrong:
        with pytest.raises(error, match=message):
            experiment.replace(**replacement, reason="")
    assert look_of(experiment) == look
    flying = begin(lambda history: torch.full((*history.shape[:-2], 1), 0.9), LinearGaussian(1))
    flying.next_designs(1)
    narrow = DesignSimulator(LinearGaussian(1).prior, LinearGaussian(1).simulate, constraints.interval(-half, half))
    with pytest.raises(ValueError, match="lies outside the design space"):
        flying.replace(simulator=narrow, reason="the dial is broken")
    flying.skip(0)
    flying.replace(simulator=narrow, reason="the dial is broken")
    experiment.mark_invalid(0)  # what does not count need not lie in the new spaces
    experiment.replace(simulator=with_outcomes_below(0.5), reason="")


def with_outcomes_below(limit):
    simulate = CONTINUOUS.simulate
    space = torch.distributions.constraints.interval(0.0, limit)
    return DesignSimulator(
        CONTINUOUS.prior, simulate, CONTINUOUS.design_space, CONTINUOUS.log_likelihood, outcome_space=space
    )


# ---- no repeats


def test_no_repeat_within_n_trials():
    still = lambda history: torch.zeros(*history.shape[:-2], 1)  # noqa: E731
    designs = run(begin(still, ON_GRID, horizon=12, no_repeat_within=2), *[0.1] * 12).designs.squeeze(-1).tolist()
    assert all(len(set(designs[i : i + 3])) == 3 for i in range(10)) and designs.count(0.0) == 4
    with pytest.raises(ValueError, match="no_repeat_within= needs min_distance="):
        begin(no_repeat_within=2)
    at_origin = lambda history: torch.zeros(*history.shape[:-2], 2)  # noqa: E731
    apart = run(begin(at_origin, horizon=6, no_repeat_within=1, min_distance=0.5), *[1.0] * 6)
    places = CONTINUOUS.design_space.standardize(apart.designs)
    assert ((places[1:] - places[:-1]).norm(dim=-1) >= 0.5).all()
    assert not apart.designs[::2].any()  # each other time it may go back
