"""A live run that is killed again and again; run by test_adaptive_experiment in a process of its own.

    python live_run.py DIRECTORY NUM_KILLS SEED

Children are forked, so that each costs milliseconds. A child records trials and reports each one after `record` has
returned; at a random moment it is killed with SIGKILL. Then every reported trial must be in the file, exact, and the
next design must be that of a run that was never interrupted.
"""

import functools
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import torch

from sbi_bed.inference.experiments.design.adaptive import AdaptiveExperiment
from sbi_bed.inference.experiments.journal import read_journal
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import LocationFinding

HORIZON = 60


def outcome_of(design: torch.Tensor) -> torch.Tensor:
    return 1.0 + design.square().sum(-1, keepdim=True)


class Trickle:
    """A file that takes a few bytes at a time, so that a kill finds lines half-written."""

    def __init__(self, file):
        self.file = file

    def write(self, data) -> int:
        time.sleep(2e-4)
        return self.file.write(data[:5])

    def __getattr__(self, name):
        return getattr(self.file, name)


def child(path: Path, simulator, policy, slow: bool, pipe: int) -> None:
    """Run the experiment from where it is, reporting each acknowledged trial."""
    if path.exists():
        experiment = AdaptiveExperiment.load(path, simulator)
    else:
        experiment = AdaptiveExperiment(policy, simulator, HORIZON, path, seed=5)
    os.write(pipe, b"go")
    if slow and experiment._journal is not None:
        experiment._journal._file = Trickle(experiment._journal._file)
    while not experiment.done:
        design = experiment.next_design()
        outcome = outcome_of(design)
        experiment.record(outcome)
        os.write(pipe, struct.pack("i3f", experiment.num_trials, *design, *outcome))
    time.sleep(60)


def kill_one(run, delay: float, wait: bool) -> bytes:
    """Fork, `run(pipe)`, wait (for its "go", if asked), kill; returns what it wrote to the pipe behind that."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            run(write_end)
        except BaseException as err:
            print(f"child failed: {err!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        started = pipe.read(2) if wait else b""
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        reports = pipe.read()
    assert os.WIFSIGNALED(status) and started == (b"go" if wait else b""), (started, status)
    return reports if wait else reports[2:]


def trials_in(reports: bytes) -> list[tuple]:
    """The trials that were acknowledged."""
    size = struct.calcsize("i3f")
    return [struct.unpack_from("i3f", reports, i) for i in range(0, len(reports) - size + 1, size)]


def main(directory: Path, num_kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance, simulator = random.Random(seed), LocationFinding()
    policy = RandomPolicy(simulator)
    reference = AdaptiveExperiment(policy, simulator, HORIZON, seed=5)
    expected = []
    while not reference.done:
        expected.append(reference.next_design())
        reference.record(outcome_of(expected[-1]))
    run, known, acknowledged, torn = 0, 0, 0, 0
    for _ in range(num_kills):
        path = directory / f"run{run}.journal"
        delay, wait, slow = chance.uniform(0, 0.1), chance.random() < 0.8, chance.random() < 0.5
        run_child = functools.partial(child, path, simulator, policy, slow)
        reports = trials_in(kill_one(run_child, delay, wait))
        if not path.exists():  # killed before it began
            assert not reports
            continue
        acknowledged += len(reports)
        torn += not path.read_bytes().endswith(b"\n")
        read_journal(path)
        loaded = AdaptiveExperiment.load(path, simulator)
        assert loaded.num_trials >= known + len(reports), (loaded.num_trials, known, len(reports))
        assert loaded.num_trials <= known + len(reports) + 1  # at most the one that was being recorded
        for number, *values in reports:
            trial = [*loaded.designs[number - 1].tolist(), *loaded.outcomes[number - 1].tolist()]
            assert trial == values, (number, trial, values)
        for design, outcome, wanted in zip(loaded.designs, loaded.outcomes, expected, strict=False):
            assert torch.equal(design, wanted) and torch.equal(outcome, outcome_of(wanted))
        if loaded.done:
            run, known = run + 1, 0
        else:
            known = loaded.num_trials
            assert torch.equal(loaded.next_design(), expected[known])
        loaded.close()
    print(f"killed {num_kills} times, {acknowledged} trials acknowledged, {torn} half lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
