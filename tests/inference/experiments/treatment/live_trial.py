"""A live treatment experiment that is killed again and again; run by test_treatment_experiment in a process of its own.

    python live_trial.py DIRECTORY NUM_KILLS SEED

A child assigns units, records outcomes, some of them late, withdraws some units, and reports each call after it has
returned; at a random moment it is killed with SIGKILL. Then everything reported must be in the file, exact, and every arm
and propensity must be that of a run that was never interrupted.
"""

import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import torch

from sbi_bed.inference.experiments.treatment.experiment import TreatmentExperiment
from sbi_bed.policies import NonContextualNeyman

NUM_UNITS, LATE = 80, 3  # outcomes come after LATE further units


def covariate_of(unit):
    return [0.1 * unit, -1.0 / (unit + 1)]


def outcome_of(unit, arm):
    return arm * 2.0 + (1 + 2 * arm) * ((unit * 37) % 11 - 5) / 3


def finished(experiment):
    return experiment.num_units == NUM_UNITS and not experiment.pending


def go_on(experiment, tell=lambda *report: None):
    """Run from where the experiment is: outcomes that are due come before the next unit."""
    while not finished(experiment):
        pending = experiment.pending
        due = pending and (experiment.num_units == NUM_UNITS or len(pending) > LATE)
        if due and pending[0] % 7 == 6:
            experiment.withdraw(pending[0])
            tell(2, pending[0], 0.0, 0.0)
        elif due:
            arm = int(experiment.log.arm[pending[0]])
            experiment.update(outcome_of(pending[0], arm), pending[0])
            tell(1, pending[0], outcome_of(pending[0], arm), 0.0)
        else:
            unit = experiment.num_units
            arm, propensity = experiment.assign(covariate_of(unit))
            tell(0, unit, float(arm), float(propensity))


def child(path, pipe):
    if path.exists():
        experiment = TreatmentExperiment.load(path)
    else:
        experiment = TreatmentExperiment(NonContextualNeyman(2), seed=5, journal=path)
    go_on(experiment, lambda *report: os.write(pipe, struct.pack("iidd", *report)))
    time.sleep(60)


def kill_one(path, delay):
    """Fork, wait, kill; returns the calls that were acknowledged."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            child(path, write_end)
        except BaseException as err:
            print(f"child failed: {err!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        reports = pipe.read()
    assert os.WIFSIGNALED(status), status
    return list(struct.iter_unpack("iidd", reports[: len(reports) // 24 * 24]))


def main(directory, num_kills, seed):
    torch.set_num_threads(1)
    chance = random.Random(seed)
    reference = TreatmentExperiment(NonContextualNeyman(2), seed=5)
    go_on(reference)
    wanted, run, acknowledged = reference.log, 0, 0
    for _ in range(num_kills):
        path = directory / f"run{run}.journal"
        reports = kill_one(path, chance.uniform(0.005, 0.15))
        acknowledged += len(reports)
        if not path.exists():  # killed before it began
            assert not reports
            continue
        loaded = TreatmentExperiment.load(path)
        log, done = loaded.log, len(loaded.log)
        for event, unit, first, second in reports:
            if event == 0:
                assert (float(log.arm[unit]), float(log.propensity[unit])) == (first, second)
            elif event == 2:
                assert log.withdrawn[unit] and not log.observed[unit]
            else:
                assert log.observed[unit] and float(log.outcome[unit]) == first
        for name in ("covariates", "arm", "propensity", "predicted"):
            assert torch.equal(getattr(log, name), getattr(wanted, name)[:done]), name
        assert torch.equal(log.outcome[log.observed], wanted.outcome[:done][log.observed])
        if finished(loaded):
            assert loaded.estimate() == reference.estimate()
            run += 1
        loaded.close()
    print(f"killed {num_kills} times, {acknowledged} calls acknowledged, {run} runs finished")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
