"""Processes that are killed with SIGKILL at chosen moments; run by test_faults in a process of its own.

    python killed_processes.py trainings|journals DIRECTORY

`trainings`: each training is killed before, within and after the writing of its second checkpoint, is resumed in another
process, and must end with the weights of one that was never interrupted. `journals`: while a process has an experiment's
journal open another is refused; when it is killed, the next one goes on.
"""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from small_trainings import SIMULATOR, TRAININGS, weights_of

from sbi_bed.inference import AdaptiveExperiment, TreatmentExperiment
from sbi_bed.policies import NonContextualNeyman, RandomPolicy

MOMENTS = ["before", "within", "after"]


def in_child(function):
    """Run in a forked process; returns the signal that ended it, 0 if it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as err:
            print(f"child failed: {err!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die_at(moment):
    """Kill this process at the second file that is written whole."""
    done, fsync, replace = [], os.fsync, os.replace

    def killing_fsync(descriptor):
        if moment == "within" and len(done) == 1:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def killing_replace(source, target):
        if moment == "before" and len(done) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        done.append(target)
        if moment == "after" and len(done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = killing_fsync, killing_replace


def check_training(name, folder):
    train = TRAININGS[name]
    expected = weights_of(train(folder / f"{name} whole"))  # here, so that children find all modules imported
    for moment in MOMENTS:
        path, result = folder / f"{name} {moment}", folder / "result"

        def killed(moment=moment, path=path):
            die_at(moment)
            train(path)

        def resumed(path=path, result=result):
            torch.save(weights_of(train(path, resume=True)), result)

        assert in_child(killed) == signal.SIGKILL, (name, moment)
        assert path.exists() and in_child(resumed) == 0
        assert torch.equal(expected, torch.load(result)), (name, moment)
    print(f"{name}: killed {len(MOMENTS)} times, ended alike")


def start_adaptive(path):
    experiment = AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 9, path, seed=0)
    experiment.next_design()
    experiment.record([1.0])
    return experiment


def load_adaptive(path):
    experiment = AdaptiveExperiment.load(path, SIMULATOR)
    experiment.next_design()
    experiment.record([2.0])
    assert experiment.outcomes.tolist() == [[1.0], [2.0]]
    return experiment


def start_treatment(path):
    experiment = TreatmentExperiment(NonContextualNeyman(1), seed=0, journal=path)
    experiment.assign([1.0])
    experiment.update(1.0)
    return experiment


def load_treatment(path):
    experiment = TreatmentExperiment.load(path)
    experiment.assign([1.0])
    experiment.update(2.0)
    assert experiment.log.outcome.tolist() == [1.0, 2.0]
    return experiment


def check_journal(start, load, path):
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            experiment = start(path)
            os.write(told, b"x")
            time.sleep(60)
            experiment.close()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"x"
        try:
            load(path)
        except ValueError as err:
            assert "in use by a running experiment" in str(err)
        else:
            raise AssertionError("a second process wrote into the journal")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    load(path).close()
    print(f"{path.name}: refused while in use, free after the kill")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "trainings":
        for training in TRAININGS:
            check_training(training, folder)
    else:
        check_journal(start_adaptive, load_adaptive, folder / "adaptive")
        check_journal(start_treatment, load_treatment, folder / "treatment")
