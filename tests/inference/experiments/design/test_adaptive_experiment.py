"""Live experiments: the same numbers whether or not they were interrupted, limits that hold, clear errors."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import LinearGaussian, TinyPolicy, YesNo, blood_samples_in_order
from torch import nn

from sbi_bed.inference.experiments.design.adaptive import AdaptiveExperiment
from sbi_bed.inference.experiments.design.stopping import (
    after_trials,
    gain_below,
    posterior_sd_below,
    restore_rule,
    trial_gain,
)
from sbi_bed.inference.experiments.journal import journal_bytes, read_journal
from sbi_bed.policies import DeepSetsPolicy, GreedyPolicy, RandomPolicy, StaticPolicy, TransformerPolicy
from sbi_bed.simulators import DesignSimulator, HyperbolicDiscounting, LocationFinding
from sbi_bed.utils import pack_history, seeded

SIMULATOR = LocationFinding()
GRID = torch.linspace(-1, 1, 9).unsqueeze(-1)


def answer(design, trial=0):
    """A deterministic outcome of any design, different in each trial."""
    return 0.1 + (design - 0.3 * trial).square().sum(-1, keepdim=True)


def run(experiment, num_trials=None):
    for _ in range(experiment.horizon if num_trials is None else num_trials):
        if experiment.done:
            break
        experiment.record(answer(experiment.next_design(), experiment.num_trials))
    return experiment


def on_grid(**options):
    """A linear experiment with nine candidates, under a policy that always wants 0.3."""
    linear = LinearGaussian(1)
    simulator = DesignSimulator(linear.prior, linear.simulate, GRID, linear.log_likelihood)
    policy = lambda history: torch.full((*history.shape[:-2], 1), 0.25)  # noqa: E731
    return AdaptiveExperiment(policy, simulator, options.pop("horizon", 12), **options)


POLICIES = {
    "deep_sets": lambda: DeepSetsPolicy(SIMULATOR, hidden_dim=16, summary_dim=8),
    "transformer": lambda: TransformerPolicy(SIMULATOR, horizon=6, hidden_dim=16),
    "static": lambda: StaticPolicy(SIMULATOR, horizon=6),
    "random": lambda: RandomPolicy(SIMULATOR),
    "greedy": lambda: GreedyPolicy(
        SIMULATOR, num_particles=128, num_candidates=16, num_steps=2, num_inner=32, num_outer=16
    ),
}


# ---- the same numbers


@pytest.mark.parametrize("name", POLICIES)
def test_save_load_and_continue(name, tmp_path):
    """Interrupted after every trial, by file and by journal, a run gives the designs of one that was not."""
    policy = POLICIES[name]()
    whole = run(AdaptiveExperiment(policy, SIMULATOR, 6, seed=3))
    live = AdaptiveExperiment(policy, SIMULATOR, 6, tmp_path / "journal", seed=3)
    for trial in range(6):
        live.save(tmp_path / f"saved{trial}")
        live.close()
        torch.manual_seed(trial)  # whatever the program does with the global generator
        live = AdaptiveExperiment.load(tmp_path / "journal", SIMULATOR)
        saved = AdaptiveExperiment.load(tmp_path / f"saved{trial}", SIMULATOR)
        assert live.num_trials == saved.num_trials == trial
        assert torch.equal(saved.next_design(), live.next_design())
        assert torch.equal(live.next_design(), whole.designs[trial])
        saved.close()
        run(live, 1)
    assert live.done and live.stopped_because == "horizon"
    assert torch.equal(live.history, whole.history)
    assert (tmp_path / "journal").read_bytes() == journal_bytes(live._header, live._entries)


def test_asking_twice_gives_the_same_and_leaves_the_generator_alone():
    experiment = AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 3, seed=1)
    before = torch.get_rng_state()
    first = experiment.next_design()
    first_again = experiment.next_design()
    assert torch.equal(first, first_again)
    first += 1.0  # a caller's own copy
    assert torch.equal(experiment.next_design(), first_again)
    experiment.record([1.0])
    assert torch.equal(experiment.designs[0], first_again)
    assert not torch.equal(experiment.next_design(), first_again)
    assert torch.equal(torch.get_rng_state(), before)


def test_designs_are_those_of_the_policy():
    policy = DeepSetsPolicy(SIMULATOR)
    experiment = AdaptiveExperiment(policy, SIMULATOR, 4)
    for _ in range(4):
        with torch.no_grad():
            torch.testing.assert_close(experiment.next_design(), policy(experiment.history))
        run(experiment, 1)
    history = experiment.history
    assert torch.equal(history, pack_history(experiment.designs, experiment.outcomes, 4))


def test_no_seed_draws_one_that_is_kept(tmp_path):
    policy = RandomPolicy(SIMULATOR)
    seeds = {AdaptiveExperiment(policy, SIMULATOR, 2).seed for _ in range(3)}
    assert len(seeds) == 3
    experiment = AdaptiveExperiment(policy, SIMULATOR, 2)
    experiment.save(tmp_path / "a")
    loaded = AdaptiveExperiment.load(tmp_path / "a", SIMULATOR)
    assert torch.equal(loaded.next_design(), experiment.next_design())
    loaded.close()


def test_a_batch_equals_single_experiments(tmp_path):
    policy, theta = DeepSetsPolicy(SIMULATOR, hidden_dim=16), SIMULATOR.prior.sample((5,))
    batch = AdaptiveExperiment(policy, SIMULATOR, 4, tmp_path / "batch", num_experiments=5, min_distance=0.3, seed=1)
    while not batch.done:
        with seeded(batch.num_trials):
            batch.record(SIMULATOR(theta, batch.next_design()))
    assert batch.history.shape == (5, 4, 4) and batch.designs.shape == (5, 4, 2)
    assert torch.equal(AdaptiveExperiment.load(tmp_path / "batch", SIMULATOR).history, batch.history)
    for i in range(5):
        single = AdaptiveExperiment(policy, SIMULATOR, 4, min_distance=0.0, seed=1)
        for trial in range(4):
            proposed, wanted = single.next_design(), batch.designs[i, trial]
            if trial == 0 or torch.cdist(proposed[None], batch.designs[i, :trial]).min() > 0.3:
                torch.testing.assert_close(proposed, wanted)
            single.record(batch.outcomes[i, trial], design=wanted)
    with pytest.raises(ValueError, match="say which of the 5"):
        batch.posterior()
    assert batch.posterior(experiment=2).default_x.shape[-2:] == (4, 4)


def test_outcomes_keep_their_precision(tmp_path):
    policy = DeepSetsPolicy(SIMULATOR, hidden_dim=8)
    experiment = AdaptiveExperiment(policy, SIMULATOR, 3, tmp_path / "a")
    experiment.next_design()
    experiment.record(torch.tensor([1 / 3], dtype=torch.float64), design=[0.1, 0.2])
    experiment.next_design()
    experiment.record([2])
    loaded = AdaptiveExperiment.load(tmp_path / "a", SIMULATOR, journal=False)
    for each in (experiment, loaded):
        assert each.outcomes.tolist() == [[1 / 3], [2.0]] and each.outcomes.dtype == torch.float64
        assert each.history.dtype == torch.float32
        assert each.designs[0].tolist() == pytest.approx([0.1, 0.2])
    assert torch.equal(loaded.next_design(), experiment.next_design())
    experiment.close()


def test_float64_policies():
    simulator = LinearGaussian(1, dtype=torch.float64)
    experiment = run(AdaptiveExperiment(TinyPolicy(simulator).double(), simulator, 3))
    assert experiment.history.dtype == experiment.designs.dtype == torch.float64


# ---- the journal


def test_record_is_on_the_disk_before_it_returns(tmp_path):
    experiment = AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 3, tmp_path / "a")
    for trial in range(1, 4):
        run(experiment, 1)
        reader = AdaptiveExperiment.load(tmp_path / "a", SIMULATOR, journal=False)  # while it is in use
        assert torch.equal(reader.history, experiment.history) and reader.num_trials == trial


def test_a_running_journal_is_locked_and_a_finished_one_is_free(tmp_path):
    path = tmp_path / "a"
    experiment = AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 2, path)
    with pytest.raises(ValueError, match="in use"):
        AdaptiveExperiment.load(path, SIMULATOR)
    with pytest.raises(ValueError, match="exists already"):
        AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 2, path)
    with pytest.raises(ValueError, match="is the journal"):
        experiment.save(path)
    run(experiment)
    assert AdaptiveExperiment.load(path, SIMULATOR).done
    assert AdaptiveExperiment.load(path, SIMULATOR).done


def test_a_failed_write_leaves_the_experiment_as_it_was(tmp_path, monkeypatch):
    experiment = AdaptiveExperiment(DeepSetsPolicy(SIMULATOR, hidden_dim=8), SIMULATOR, 3, tmp_path / "a")
    run(experiment, 1)
    design = experiment.next_design()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="nothing was recorded"):
            experiment.record([1.0])
    assert experiment.num_trials == 1 and torch.equal(experiment.next_design(), design)
    experiment.record([1.0])
    assert experiment.num_trials == 2
    loaded = AdaptiveExperiment.load(tmp_path / "a", SIMULATOR, journal=False)
    assert torch.equal(loaded.next_design(), experiment.next_design())
    experiment.close()
    experiment.next_design()
    with pytest.raises(ValueError, match="is closed"):
        experiment.record([1.0])
    assert experiment.num_trials == 2


def kill(directory: Path, num_kills: int, seed: int) -> str:
    script = Path(__file__).with_name("live_run.py")
    done = subprocess.run(
        [sys.executable, script, directory, str(num_kills), str(seed)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_kill_at_a_few_moments(tmp_path):
    kill(tmp_path, 8, seed=0)


@pytest.mark.slow
def test_kill_at_fifty_moments(tmp_path):
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        report = kill(tmp_path / str(seed), 50, seed)
        assert " 0 trials" not in report and " 0 half lines" not in report


def test_truncation_at_every_byte(tmp_path):
    path, cut = tmp_path / "a", tmp_path / "cut"
    run(AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 3, path), 3)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for length in {*range(0, ends[0], 101), *range(ends[0] - 2, len(data))}:
        cut.write_bytes(data[:length])
        if length < ends[0] - 1:
            with pytest.raises(ValueError, match="cut"):
                AdaptiveExperiment.load(cut, SIMULATOR, journal=False)
        else:
            loaded = AdaptiveExperiment.load(cut, SIMULATOR, journal=False)
            assert loaded.num_trials == sum(end - 1 <= length for end in ends[1:])


def rewrite(path, change):
    """Write the file anew, with sound checksums, after `change(header, entries)`."""
    header, entries = read_journal(path)
    change(header, entries)
    path.write_bytes(journal_bytes(header, entries))


CHANGES = {
    "holds a StepDAD; use StepDAD.load": lambda header, entries: header.update(kind="StepDAD"),
    "it lacks 'horizon'": lambda header, entries: header.pop("horizon"),
    "design_dim 7": lambda header, entries: header.update(design_dim=7),
    "more trials than its horizon": lambda header, entries: entries.extend(entries * 3),
    "event 'dance'": lambda header, entries: entries.append({"event": "dance"}),
    "outcome .* lies outside": lambda header, entries: entries[0]["outcome"].update(values=[-1.0]),
    "outcome must be finite": lambda header, entries: entries[0]["outcome"].update(values=[1e39], dtype="float32"),
    "design must have shape": lambda header, entries: entries[0]["design"].update(values=[[0.0, 0.0]]),
    "expected a tensor": lambda header, entries: entries[0].update(design=3),
    "weights of the policy": lambda header, entries: header["policy"].update(weights="AAAA"),
    "does not fit this simulator": lambda header, entries: header["policy"].update(policy="DeepSetsPolicy"),
    "cannot be built from .*sort": lambda header, entries: header["policy"].update(config={"sort": 1}),
    "give policy=": lambda header, entries: header["policy"].update(config=None),
    "not one of sbi_bed's policies": lambda header, entries: header["policy"].update(policy="Evil"),
    "unknown stopping rule": lambda header, entries: header.update(stop_when={"rule": "eval"}),
}


@pytest.mark.parametrize("message", CHANGES)
def test_files_that_do_not_make_sense(message, tmp_path):
    path = tmp_path / "a"
    experiment = run(AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 3), 1)
    experiment.save(path)
    rewrite(path, CHANGES[message])
    for journal in (True, False):
        with pytest.raises(ValueError, match=message) as err:
            AdaptiveExperiment.load(path, SIMULATOR, journal=journal)
        assert str(path) in str(err.value)


def test_foreign_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        AdaptiveExperiment.load(tmp_path / "missing", SIMULATOR)
    DeepSetsPolicy(SIMULATOR, hidden_dim=4).save(tmp_path / "policy")
    with pytest.raises(ValueError, match="not a journal"):
        AdaptiveExperiment.load(tmp_path / "policy", SIMULATOR)
    run(AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 3)).save(tmp_path / "a")
    with pytest.raises(ValueError, match="design_dim 2, the simulator 3"):
        AdaptiveExperiment.load(tmp_path / "a", LocationFinding(dim=3))
    for option in ("seed", "min_distance", "horizon", "budget"):
        with pytest.raises(ValueError, match=f"{option} cannot be changed"):
            AdaptiveExperiment.load(tmp_path / "a", SIMULATOR, **{option: 1})


# ---- policies of one's own


class Follow(nn.Module):
    """Somebody's own net: designs from the mean of what was seen."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, history):
        return self.linear(history.sum(-2))


def test_ones_own_policies(tmp_path):
    net = Follow()
    whole = run(AdaptiveExperiment(net, SIMULATOR, 4))
    run(AdaptiveExperiment(net, SIMULATOR, 4), 2).save(tmp_path / "net")
    with pytest.raises(ValueError, match="'Follow', cannot be built from the file; give policy="):
        AdaptiveExperiment.load(tmp_path / "net", SIMULATOR)
    with pytest.raises(ValueError, match="under a policy 'Follow', got 'Linear'"):
        AdaptiveExperiment.load(tmp_path / "net", SIMULATOR, nn.Linear(1, 1))
    another = Follow()
    before = [w.clone() for w in another.parameters()]
    loaded = AdaptiveExperiment.load(tmp_path / "net", SIMULATOR, another)
    assert torch.equal(run(loaded).history, whole.history)
    assert all(torch.equal(a, b) for a, b in zip(before, another.parameters(), strict=True))
    another.linear = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="does not fit the weights"):
        AdaptiveExperiment.load(tmp_path / "net", SIMULATOR, another)

    centre = lambda history: torch.zeros(*history.shape[:-2], 2)  # noqa: E731
    run(AdaptiveExperiment(centre, SIMULATOR, 4), 2).save(tmp_path / "function")
    loaded = AdaptiveExperiment.load(tmp_path / "function", SIMULATOR, centre, journal=False)
    assert run(loaded).done


def test_a_policy_that_cannot_take_the_outcome_loses_nothing(tmp_path):
    class Fragile(RandomPolicy):
        def update(self, state, design, outcome):
            raise ZeroDivisionError("no")

    experiment = AdaptiveExperiment(Fragile(SIMULATOR), SIMULATOR, 3, tmp_path / "a")
    run(experiment, 1)
    assert len(read_journal(tmp_path / "a")[1]) == experiment.num_trials == 1
    with pytest.raises(ZeroDivisionError):
        experiment.next_design()
    experiment.close()


class Refined(AdaptiveExperiment):
    """A subclass in the manner of Step-DAD: after two trials it goes on with another policy."""

    def __init__(self, policy, simulator, horizon, journal=None, *, after=2, scale=0.5, **options):
        self.after, self.scale = after, scale
        self._options = {"after": after, "scale": scale}
        super().__init__(policy, simulator, horizon, journal, **options)

    def _before_proposal(self):
        if self.num_trials < self.after or self.changes:
            return
        policy = DeepSetsPolicy(self.simulator, hidden_dim=8)
        policy.load_state_dict({name: self.scale * w for name, w in self.policy.state_dict().items()})
        self._adopt_policy(policy, gain=0.25)


def test_a_refined_policy_survives(tmp_path):
    policy = DeepSetsPolicy(SIMULATOR, hidden_dim=8)
    whole = run(Refined(policy, SIMULATOR, 5, after=3, seed=0))
    assert whole.changes == [{"num_trials": 3, "changed": "policy", "gain": 0.25}]
    plain = run(AdaptiveExperiment(policy, SIMULATOR, 5, seed=0))
    assert torch.equal(whole.designs[:3], plain.designs[:3]) and not torch.equal(whole.designs[3], plain.designs[3])
    live = Refined(policy, SIMULATOR, 5, tmp_path / "a", after=3, seed=0)
    for trial in range(5):
        live.next_design()
        live.close()  # killed after the refinement, before the outcome
        live = Refined.load(tmp_path / "a", SIMULATOR)
        assert live.after == 3 and live.scale == 0.5 and len(live.changes) == (trial >= 3)
        assert torch.equal(live.next_design(), whole.designs[trial])
        run(live, 1)
    assert torch.equal(live.history, whole.history)
    assert [entry["event"] for entry in live._entries] == ["trial"] * 3 + ["policy"] + ["trial"] * 2
    with pytest.raises(ValueError, match=r"Refined; use Refined\.load"):
        AdaptiveExperiment.load(tmp_path / "a", SIMULATOR)
    kept = AdaptiveExperiment(policy, SIMULATOR, 5, tmp_path / "b", seed=0)
    kept._adopt_policy(None, note="no better")
    with pytest.raises(ValueError, match="built for 3 trials"):
        kept._adopt_policy(StaticPolicy(SIMULATOR, 3))
    with pytest.raises(ValueError, match="plain data"):
        kept._adopt_policy(policy, simulator=SIMULATOR)
    kept.close()
    kept = AdaptiveExperiment.load(tmp_path / "b", SIMULATOR)
    assert kept.changes == [{"num_trials": 0, "changed": "policy", "note": "no better"}]
    assert torch.equal(run(kept).designs, plain.designs)


# ---- limits


def test_min_distance_among_candidates():
    experiment = run(on_grid(min_distance=1e-9))
    assert experiment.num_trials == 9 and experiment.stopped_because == "no allowed design is left"
    assert experiment.designs.unique().numel() == 9
    wanted = GRID[(GRID - 0.25).abs().squeeze().argsort(stable=True)]
    assert torch.equal((experiment.designs - 0.25).abs(), (wanted - 0.25).abs())  # always the nearest that is left
    with pytest.raises(ValueError, match="no allowed design is left"):
        experiment.next_design()
    wide = run(on_grid(min_distance=0.7))  # in units of the grid's sd, .645
    gaps = torch.pdist(wide.designs) / GRID.std(correction=0)
    assert gaps.min() >= 0.7 and wide.num_trials == 4  # 0.25, −0.25, 0.75, −0.75
    free = run(on_grid())
    assert free.designs.unique().numel() == 1


def test_min_distance_asks_a_policy_that_can_choose():
    linear = LinearGaussian(1)
    on_list = DesignSimulator(linear.prior, linear.simulate, GRID, linear.log_likelihood, reparameterized=True)
    best_first = GRID[GRID.abs().squeeze().argsort(descending=True, stable=True)].abs().squeeze().tolist()
    # Candidates of the space, or of the policy in a continuous space.
    for simulator, candidates in [(on_list, None), (linear, GRID.tolist())]:
        policy = GreedyPolicy(simulator, candidates=candidates, num_particles=512, num_inner=512, num_outer=512)
        experiment = AdaptiveExperiment(policy, simulator, 12, min_distance=1e-6)
        while not experiment.done:
            experiment.record(experiment.next_design() * 0.7)
        assert experiment.stopped_because == "no allowed design is left"
        assert experiment.designs.abs().squeeze().tolist() == best_first  # the largest |ξ| tell most


@pytest.mark.parametrize(
    "simulator", [SIMULATOR, HyperbolicDiscounting(), LinearGaussian(1)], ids=lambda s: type(s).__name__
)
def test_min_distance_in_continuous_spaces(simulator):
    space = simulator.design_space
    stuck = space.from_free(torch.full((space.free_dim,), 0.4))
    policy = lambda history: stuck.expand(*history.shape[:-2], -1)  # noqa: E731
    experiment = AdaptiveExperiment(policy, simulator, 12, min_distance=0.25)
    while not experiment.done:
        design = experiment.next_design()
        assert space.contains(design)
        experiment.record([1.0])
    places = space.standardize(experiment.designs)
    assert torch.pdist(places).min() >= 0.25
    far = (places - places[0]).norm(dim=-1).max()
    assert far < (0.25 * 6.1 if space.dim == 1 else 0.25 * 3.5)  # no further than it must be
    free = AdaptiveExperiment(policy, simulator, 3)
    free.next_design()
    free.record([1.0])
    assert torch.equal(free.next_design(), free.designs[0])


def test_min_distance_counts_designs_that_were_run_instead():
    experiment = on_grid(min_distance=1e-6)
    experiment.record([0.0], design=[0.25])
    assert experiment.next_design().item() in (0.0, 0.5)


def test_budget(tmp_path):
    cost = lambda design: 0.1 + 0 * design.abs().sum()  # noqa: E731
    experiment = AdaptiveExperiment(
        RandomPolicy(SIMULATOR), SIMULATOR, 50, tmp_path / "a", design_cost=cost, budget=1.0, seed=2
    )
    run(experiment, 4)
    experiment.close()
    with pytest.raises(ValueError, match="give design_cost= again"):
        AdaptiveExperiment.load(tmp_path / "a", SIMULATOR)
    experiment = run(AdaptiveExperiment.load(tmp_path / "a", SIMULATOR, design_cost=cost))
    assert experiment.num_trials == 10 and experiment.stopped_because == "budget"  # rounding does not cost a trial
    assert experiment.spent == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"done \(budget\)"):
        experiment.next_design()
    with pytest.raises(ValueError, match=r"done \(budget\)"):
        experiment.record([1.0])
    finished = AdaptiveExperiment.load(tmp_path / "a", SIMULATOR)  # no cost is needed to look at it
    assert finished.stopped_because == "budget" and finished.spent == experiment.spent
    run(AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 2)).save(tmp_path / "free")
    with pytest.raises(ValueError, match="was run without design_cost"):
        AdaptiveExperiment.load(tmp_path / "free", SIMULATOR, design_cost=cost)


def test_budget_among_candidates_and_for_designs_run_instead():
    costs = on_grid(design_cost=lambda design: 1 + design.abs(), budget=4.0)
    costs.next_design()
    costs.record([0.0], design=[1.0])
    assert costs.spent == 2.0
    run(costs, 1)
    assert costs.spent == 3.25 and costs.done and costs.stopped_because == "budget"  # nothing costs less than 1
    dear = on_grid(design_cost=lambda design: 1 + design.abs(), budget=2.3)
    run(dear, 1)
    assert dear.designs.tolist() == [[0.25]] and not dear.done
    assert dear.next_design().tolist() == [0.0]  # 0.25 again would cost 1.25, 1.05 are left
    run(dear)
    assert dear.num_trials == 2 and dear.stopped_because == "budget"


# ---- stopping rules


def exact_sd(experiment):
    precision = 1 + (experiment.designs.double() ** 2).sum() / experiment.simulator.noise_sd**2
    return precision.item() ** -0.5


def linear_run(horizon=12, **options):
    simulator = LinearGaussian(1)
    policy = lambda history: torch.full((*history.shape[:-2], 1), 0.9)  # noqa: E731
    return AdaptiveExperiment(policy, simulator, horizon, seed=0, **options)


def test_posterior_sd_rule_against_the_exact_sd(tmp_path):
    levels = [1 / math.sqrt(1 + t * 0.81 / 0.25) for t in range(13)]  # after t trials
    experiment = linear_run(stop_when=posterior_sd_below(0.5 * (levels[5] + levels[6])), journal=tmp_path / "a")
    run(experiment)
    assert experiment.num_trials == 6 and experiment.stopped_because.startswith("posterior sd below 0.2")
    assert exact_sd(experiment) == pytest.approx(levels[6])
    loaded = AdaptiveExperiment.load(tmp_path / "a", experiment.simulator, experiment.policy)
    assert loaded.done and loaded.stopped_because == experiment.stopped_because


def test_gain_rule_against_the_exact_gain(tmp_path):
    """In a linear experiment the t-th trial gains ½ log((1 + t a) / (1 + (t − 1) a)) whatever its outcome."""
    a = 0.81 / 0.25
    gains = [0.5 * math.log((1 + t * a) / (1 + (t - 1) * a)) for t in range(1, 13)]
    experiment = linear_run(5)
    run(experiment)
    for trial in (1, 3, 5):
        assert trial_gain(experiment, trial, 2000) == pytest.approx(gains[trial - 1], abs=0.04)
    with pytest.raises(ValueError, match="from 1 to 5"):
        trial_gain(experiment, 6)
    stopped = run(linear_run(stop_when=gain_below(0.5 * (gains[3] + gains[4]), num_samples=1500)))
    assert stopped.num_trials in (4, 5, 6) and "gain below" in stopped.stopped_because
    mean = lambda t: (gains[t - 1] + gains[t - 2]) / 2  # noqa: E731
    stopped = run(linear_run(stop_when=gain_below(mean(4), num_trials=2, num_samples=1500)))
    assert stopped.num_trials in (4, 5)


def test_rules_join_and_survive_a_file(tmp_path):
    rule = (after_trials(4) & posterior_sd_below([9.0], [0])) | gain_below(1e-6)
    assert str(restore_rule(rule.plain)) == str(rule) and restore_rule(rule.plain).plain == rule.plain
    path = tmp_path / "a"
    experiment = run(linear_run(stop_when=rule, journal=path), 3)
    assert not experiment.done
    experiment.close()
    loaded = run(AdaptiveExperiment.load(path, experiment.simulator, experiment.policy))
    assert loaded.num_trials == 4 and loaded.stopped_because == str(rule)
    # Killed between the trial and the stop that should have followed it:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    again = AdaptiveExperiment.load(path, experiment.simulator, experiment.policy)
    assert again.done and again.stopped_because == str(rule)
    assert read_journal(path)[1][-1] == {"event": "stop", "reason": str(rule)}


def test_ones_own_rule(tmp_path):
    def tired(experiment):
        return experiment.num_trials >= 2

    experiment = run(linear_run(stop_when=tired, journal=tmp_path / "a"), 1)
    experiment.close()
    load = lambda **options: AdaptiveExperiment.load(  # noqa: E731
        tmp_path / "a", experiment.simulator, experiment.policy, **options
    )
    with pytest.raises(ValueError, match="give stop_when= again, its stopping rule 'tired'"):
        load()
    loaded = run(load(stop_when=tired))
    assert loaded.num_trials == 2 and loaded.stopped_because == "tired"
    assert load().stopped_because == "tired"
    assert run(linear_run(stop_when=after_trials(9) | tired)).stopped_because == "(after 9 trials or tired)"

    broken = linear_run(stop_when=lambda experiment: 1 / 0)
    broken.next_design()
    with pytest.raises(RuntimeError, match="it is recorded, but the stopping rule"):
        broken.record([0.0])
    assert broken.num_trials == 1


def test_a_stop_that_cannot_be_written_is_found_again(tmp_path, monkeypatch):
    experiment = linear_run(stop_when=after_trials(1), journal=tmp_path / "a")
    experiment.next_design()
    fsync, calls = __import__("os").fsync, []

    def second_fails(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", second_fails)
        experiment.record([0.0])
    assert experiment.done and len(read_journal(tmp_path / "a")[1]) == 1
    loaded = AdaptiveExperiment.load(tmp_path / "a", experiment.simulator, experiment.policy)
    assert loaded.done and len(read_journal(tmp_path / "a")[1]) == 2


# ---- the posterior


def test_posterior_is_exact():
    experiment = run(linear_run(5))
    mean = (experiment.designs * experiment.outcomes).sum().item() / 0.25 * exact_sd(experiment) ** 2
    for sample_with in ("smc", "importance"):
        draws = experiment.posterior(sample_with, seed=0).sample((4000,), show_progress_bars=False)
        assert draws.mean().item() == pytest.approx(mean, abs=0.03)
        assert draws.std().item() == pytest.approx(exact_sd(experiment), rel=0.1)
    early = experiment.posterior(num_trials=2, seed=0).sample((4000,))
    assert early.std().item() == pytest.approx((1 + 2 * 0.81 / 0.25) ** -0.5, rel=0.1)


def test_a_trained_posterior_is_given_the_history():
    class Trained:
        _leakage_density_correction_factor = 3.0

        def __init__(self):
            self.default_x, self.posteriors = None, []

        def set_default_x(self, x):
            self.default_x = x
            return self

        def sample(self, shape, show_progress_bars=True):
            return 0.01 * torch.randn(*shape, 1)

    trained, experiment = Trained(), run(linear_run(5), 3)
    posterior = experiment.posterior(trained)
    assert torch.equal(posterior.default_x, experiment.history.unsqueeze(0)) and trained.default_x is None
    assert posterior._leakage_density_correction_factor is None
    with pytest.raises(TypeError, match="a trained sbi posterior"):
        experiment.posterior(3)
    rule = posterior_sd_below(0.1, sample_with=trained)
    assert rule.plain is None
    assert run(linear_run(stop_when=rule)).num_trials == 1


# ---- errors


def test_errors_of_record():
    experiment = AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 2)
    with pytest.raises(ValueError, match="nothing to record"):
        experiment.record([1.0])
    design = experiment.next_design()
    wrong = [
        ([1.0, 2.0], None, "outcome must have 1 values"),
        ([[1.0]], None, "outcome must have shape"),
        ([float("nan")], None, "outcome must be finite"),
        ([float("inf")], None, "outcome must be finite"),
        ([-1.0], None, "outside the outcome space"),
        (torch.tensor([1e-60], dtype=torch.float64), None, "outside the outcome space"),  # 0 in the policy's precision
        (torch.tensor([1e60], dtype=torch.float64), None, "outcome must be finite"),
        ([1.0], [1.0], "design must have 2 values"),
        ([1.0], [[1.0, 1.0]], "design must have shape"),
        ([1.0], [1.0, float("nan")], "design must be finite"),
    ]
    for outcome, other, message in wrong:
        with pytest.raises(ValueError, match=message):
            experiment.record(outcome, other)
    with pytest.raises(TypeError, match="outcome must be numbers"):
        experiment.record("yes")
    assert experiment.num_trials == 0 and torch.equal(experiment.next_design(), design)
    with pytest.raises(ValueError, match="outside the design space"):
        on_grid().record([0.0], design=[0.3])
    run(experiment)
    for call in (lambda: experiment.record([1.0]), experiment.next_design):
        with pytest.raises(ValueError, match=r"done \(horizon\)"):
            call()


def test_errors_of_construction():
    def make(policy=None, simulator=SIMULATOR, horizon=2, **options):
        policy = RandomPolicy(SIMULATOR) if policy is None else policy
        return AdaptiveExperiment(policy, simulator, horizon, **options)

    blind = DesignSimulator(SIMULATOR.prior, SIMULATOR.simulate, SIMULATOR.design_space)
    wrong = [
        (TypeError, "must be a DesignSimulator", {"simulator": None}),
        (TypeError, "policy must be a callable", {"policy": 3}),
        (ValueError, "horizon must be at least 1", {"horizon": 0}),
        (ValueError, "built for 3 trials, the horizon is 4", {"policy": StaticPolicy(SIMULATOR, 3), "horizon": 4}),
        (ValueError, "has design_dim 3, the simulator 2", {"policy": RandomPolicy(LocationFinding(dim=3))}),
        (ValueError, "min_distance must be finite", {"min_distance": -1.0}),
        (ValueError, "budget must be finite", {"budget": math.inf, "design_cost": len}),
        (ValueError, "needs design_cost", {"budget": 1.0}),
        (TypeError, "design_cost must be a callable", {"design_cost": 3.0}),
        (TypeError, "stopping rule must be a callable", {"stop_when": 3.0}),
        (ValueError, "single experiments", {"num_experiments": 2, "stop_when": after_trials(1)}),
        (ValueError, "num_experiments must be at least 1", {"num_experiments": 0}),
        (ValueError, "needs a simulator with a log_likelihood", {"simulator": blind, "stop_when": gain_below(0.1)}),
    ]
    for error, message, arguments in wrong:
        with pytest.raises(error, match=message):
            make(**arguments)
    for rule in (lambda: posterior_sd_below(0.0), lambda: gain_below(-1.0), lambda: after_trials(0)):
        with pytest.raises(ValueError):
            rule()
    with pytest.raises(ValueError, match="log_likelihood"):
        run(make(simulator=blind)).posterior()


def test_errors_of_policies_and_costs():
    for proposal, message in [
        (torch.zeros(3), "2 values"),
        (torch.tensor([0.0, torch.nan]), "finite"),
        (None, "numbers"),
    ]:
        experiment = AdaptiveExperiment(lambda history, p=proposal: p, SIMULATOR, 2)
        with pytest.raises(ValueError, match=rf"the policy must propose designs \(2,\).*{message}"):
            experiment.next_design()
    with pytest.raises(ValueError, match=r"must propose designs \(2, 2\)"):
        AdaptiveExperiment(lambda history: torch.zeros(3, 2), SIMULATOR, 2, num_experiments=2).next_design()
    for cost in (lambda design: -1.0, lambda design: design):
        experiment = AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 2, design_cost=cost)
        experiment.next_design()
        with pytest.raises(ValueError, match="design_cost must return one cost"):
            experiment.record([1.0])


# ---- speed


def median_latency(horizon=20, num_runs=5):
    """Median seconds of `next_design` for the default policy, over all trials of some experiments."""
    policy, times = DeepSetsPolicy(SIMULATOR), []
    for seed in range(num_runs):
        experiment = AdaptiveExperiment(policy, SIMULATOR, horizon, seed=seed)
        while not experiment.done:
            start = time.perf_counter()
            design = experiment.next_design()
            times.append(time.perf_counter() - start)
            experiment.record(answer(design))
    return sorted(times)[len(times) // 2]


@pytest.mark.benchmark
def test_next_design_takes_at_most_two_milliseconds():
    latency = median_latency(num_runs=20)
    print(f"\nnext_design: median {1e3 * latency:.3f} ms")
    assert latency <= 0.002


def test_yes_no_experiment_on_real_line():
    """Boolean outcomes, given as Python values."""
    simulator = YesNo(torch.float32)
    experiment = AdaptiveExperiment(DeepSetsPolicy(simulator, hidden_dim=8), simulator, 2)
    for outcome in (True, 0):
        experiment.next_design()
        experiment.record(outcome)
    assert experiment.outcomes.tolist() == [[1.0], [0.0]]
    with pytest.raises(ValueError, match="outside the outcome space"):
        AdaptiveExperiment(DeepSetsPolicy(simulator), simulator, 2).record(0.5, design=0.1)


# ---- design spaces that depend on the history


IN_ORDER = blood_samples_in_order()
IN_ORDER_POLICIES = {
    "deep_sets": lambda: DeepSetsPolicy(IN_ORDER, hidden_dim=16, summary_dim=8),
    "transformer": lambda: TransformerPolicy(IN_ORDER, horizon=5, hidden_dim=16),
    "static": lambda: StaticPolicy(IN_ORDER, horizon=5),
    "random": lambda: RandomPolicy(IN_ORDER),
}


@pytest.mark.parametrize("name", IN_ORDER_POLICIES)
def test_designs_in_order_survive_a_file(name, tmp_path):
    policy = IN_ORDER_POLICIES[name]()
    whole = run(AdaptiveExperiment(policy, IN_ORDER, 5, seed=3))
    times = whole.designs[:, 0]
    assert (times.diff() > 0).all() and times.max() < 24
    live = AdaptiveExperiment(policy, IN_ORDER, 5, seed=3)
    for trial in range(5):
        live.save(tmp_path / f"saved{trial}")
        assert torch.equal(run(AdaptiveExperiment.load(tmp_path / f"saved{trial}", IN_ORDER)).history, whole.history)
        run(live, 1)
    assert whole.posterior("importance").sample((3,)).shape == (3, 3)


def test_a_design_that_was_run_must_follow_the_history_too(tmp_path):
    experiment = AdaptiveExperiment(IN_ORDER_POLICIES["static"](), IN_ORDER, 5, seed=0)
    experiment.record([1.0], design=[10.0])
    with pytest.raises(ValueError, match=r"design \[9.0\] lies outside the design space"):
        experiment.record([1.0], design=[9.0])
    assert experiment.num_trials == 1 and experiment.next_design() > 10
    experiment.record([1.0], design=[12.0])
    experiment.save(tmp_path / "saved")
    assert AdaptiveExperiment.load(tmp_path / "saved", IN_ORDER).next_design() > 12
    decreasing = lambda history: torch.full((*history.shape[:-2], 1), 9.0 - history.shape[-2])  # noqa: E731
    experiment = run(AdaptiveExperiment(decreasing, IN_ORDER, 5), 1)
    with pytest.raises(ValueError, match=r"must propose designs \(1,\) inside the design space: design \[8.0\] lies"):
        experiment.next_design()
    with pytest.raises(TypeError, match=r"the policy needs propose\(state, space\)"):
        AdaptiveExperiment(TinyPolicy(IN_ORDER), IN_ORDER, 5)


@pytest.mark.parametrize("num_experiments", [None, 3])
def test_min_distance_moves_designs_within_what_the_history_leaves(num_experiments):
    """A policy that stays as near to the last time as it can is moved on, never back."""
    hold = StaticPolicy(IN_ORDER, 5)
    hold.free.data[:] = -8.0
    hold.free.data.view(-1)[0] = 0.0  # the first design
    experiment = AdaptiveExperiment(hold, IN_ORDER, 5, min_distance=0.25, num_experiments=num_experiments, seed=0)
    while not experiment.done:
        design = experiment.next_design()
        experiment.record(torch.ones_like(design))
    times = experiment.designs[..., 0]
    places = IN_ORDER.design_space.standardize(experiment.designs)[..., 0]
    assert (times.diff() > 0).all()
    torch.testing.assert_close(places.diff(), torch.full_like(places.diff(), 0.25), rtol=0.02, atol=0)
