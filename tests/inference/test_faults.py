"""What goes wrong while something runs: processes that are killed, disks that are full, and very long experiments."""

import errno
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_trainings import SIMULATOR, TRAININGS, weights_of

from sbi_bed.inference import AdaptiveExperiment, StepDAD, TreatmentExperiment
from sbi_bed.inference.experiments.design.trials import Trials
from sbi_bed.inference.experiments.journal import read_journal
from sbi_bed.policies import CoinFlip, DeepSetsPolicy, NonContextualNeyman, RandomPolicy

HERE = Path(__file__)


def in_other_processes(what, folder):
    done = subprocess.run(
        [sys.executable, HERE.with_name("killed_processes.py"), what, folder],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_killed_trainings_end_as_uninterrupted_ones(tmp_path):
    assert in_other_processes("trainings", tmp_path).count("ended alike") == len(TRAININGS)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    assert in_other_processes("journals", tmp_path).count("free after the kill") == 2


# ---- full disks


class Disk:
    """A limit on the size of files, as a full disk: writes are cut in the middle."""

    def __init__(self, room):
        self.room = room

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def step_dad(path):
    torch.manual_seed(0)
    few = {"num_steps": 1, "batch_size": 8, "num_contrastive": 7, "num_particles": 100, "num_held_out": 8}
    policy = DeepSetsPolicy(SIMULATOR, hidden_dim=4, summary_dim=2)
    options = {"refine_settings": few, "show_progress_bars": False, "seed": 0}
    return StepDAD(policy, SIMULATOR, 8, (4,), path, **options)


def one_trial(experiment):
    design = experiment.next_design()
    experiment.record(design.sum(-1, keepdim=True).abs())


def one_unit(experiment):
    if not experiment.pending:
        experiment.assign([1.0, 0.1 * experiment.num_units])
    experiment.update(float(experiment.num_units % 7))


LIVE = {
    "adaptive": (
        lambda path: AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 8, path, seed=0),
        one_trial,
        lambda e: e.num_trials,
        lambda path: AdaptiveExperiment.load(path, SIMULATOR, journal=False),
    ),
    "step-dad": (
        step_dad,
        one_trial,
        lambda e: e.num_trials,
        lambda path: StepDAD.load(path, SIMULATOR, journal=False),
    ),
    "treatment": (
        lambda path: TreatmentExperiment(NonContextualNeyman(2), seed=0, journal=path),
        one_unit,
        lambda e: e.num_observed,
        lambda path: TreatmentExperiment.load(path, journal=False),
    ),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_full_disk_loses_nothing_that_was_acknowledged(name, tmp_path):
    """Every call fails once for want of space, again and again; what is on the disk is what was acknowledged."""
    start, step, count, load = LIVE[name]
    path, whole = tmp_path / "run", start(None)
    experiment, failures = start(path), 0
    while count(experiment) < 8:
        done = count(experiment)
        step(whole)
        for room in (0, 1, 50):
            with Disk(path.stat().st_size + room):
                try:
                    step(experiment)
                except OSError as err:
                    assert "nothing was recorded" in str(err) and str(path) in str(err)
                    failures += 1
            if count(experiment) > done:
                break
            assert count(load(path)) == done
        else:
            step(experiment)
        assert count(experiment) == count(load(path)) == done + 1
    assert failures >= 16
    ours, theirs = load(path), whole
    assert torch.equal(ours.history, theirs.history) and ours.seed == theirs.seed
    assert read_journal(path)[1] == theirs._entries


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_on_a_full_disk_keeps_its_checkpoint(name, tmp_path, monkeypatch):
    train, path = TRAININGS[name], tmp_path / "training"
    expected, fsync, calls = weights_of(train(tmp_path / "whole")), os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(path)
    assert sorted(os.listdir(tmp_path)) == ["training", "whole"]  # no half-written file is left
    assert torch.equal(weights_of(train(path, resume=True)), expected)


# ---- long experiments


@pytest.mark.parametrize("batch_shape", [(), (3,)])
def test_trials_are_what_was_added(batch_shape):
    trials, designs, outcomes = Trials(batch_shape, 2, 1), [], []
    assert trials.designs.shape == (*batch_shape, 0, 2) and trials.history(torch.float32, 4).shape[-2:] == (4, 4)
    rooms = set()
    for number in range(70):
        dtype = torch.float64 if number == 40 else torch.float32
        designs.append(torch.randn(*batch_shape, 2, dtype=dtype))
        outcomes.append(torch.randn(*batch_shape, 1))
        trials.add(designs[-1], outcomes[-1], 0.1)
        rooms.add(trials._designs._room.data_ptr())
    assert len(trials) == 70 and trials.spent == pytest.approx(7)
    assert torch.equal(trials.designs, torch.stack([d.double() for d in designs], -2))
    assert torch.equal(trials.outcomes, torch.stack(outcomes, -2)) and trials.outcomes.dtype == torch.float32
    design, outcome = trials[69]
    assert torch.equal(design, designs[69].double()) and torch.equal(outcome, outcomes[69])
    trials.designs.zero_()
    design.zero_()
    assert torch.equal(trials[69][0], designs[69].double())  # nobody else can change them
    assert len(rooms) <= 5  # not moved at every trial


def cpu_seconds(step, experiment):
    start = time.process_time()
    step(experiment)
    return time.process_time() - start


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


LONG = {
    "random": lambda path: AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 10_001, path, seed=0),
    "deep sets": lambda path: AdaptiveExperiment(DeepSetsPolicy(SIMULATOR), SIMULATOR, 10_001, path, seed=0),
    "coin": lambda path: TreatmentExperiment(CoinFlip(2), seed=0, journal=path),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_ten_thousand_trials(name, tmp_path):
    """A late trial takes at most half as long again as an early one, and a trial at most 10 kB of memory."""
    step = one_unit if name == "coin" else one_trial
    late, memory = LONG[name](tmp_path / "late"), 0
    for number in range(9000):
        memory = resident() if number == 1000 else memory
        step(late)
    memory = (resident() - memory) / 8000
    early = LONG[name](tmp_path / "early")  # beside the late one, so that what else the machine does slows both
    seconds = [(cpu_seconds(step, late), cpu_seconds(step, early)) for _ in range(1000)]
    slow, fast = (1e3 * statistics.median(column) for column in zip(*seconds, strict=True))
    late.close()
    start = time.process_time()
    if name == "coin":
        loaded = TreatmentExperiment.load(tmp_path / "late")
    else:
        loaded = AdaptiveExperiment.load(tmp_path / "late", SIMULATOR)
    loading = time.process_time() - start
    print(
        f"\n{name}: {fast:.2f} ms a trial early, {slow:.2f} ms late, {memory:.0f} bytes a trial, loaded in {loading:.1f} s"
    )
    assert torch.equal(loaded.history, late.history) and len(read_journal(tmp_path / "late")[1]) >= 10_000
    assert slow < 1.5 * fast and memory < 10_000 and loading < 60
