"""Experiments to which everything happens, killed again and again; run by test_laboratory in a process of its own.

    python laboratory_kills.py DIRECTORY NUM_KILLS SEED KIND...

Of each kind one experiment goes through a random sequence of events without interruption. Another goes through the same
events in forked children, each of which loads the journal, goes on where it ends, and is killed with SIGKILL at a random
moment. After each kill the journal must begin like that of the first experiment, hold every event that was acknowledged,
and load to what the first one was at that point; at the end both are the same.
"""

import functools
import os
import random
import struct
import sys
import time
from pathlib import Path

import torch
from laboratory_runs import ACTIONS, happen, load, look_of, make, quietly
from live_run import Trickle, kill_one

from sbi_bed.inference.experiments.journal import journal_bytes, read_journal

NUM_EVENTS = 40


class Uninterrupted:
    """What an experiment is after each of its events.

    Attributes:
        events: Pairs (action, number).
        ends: Number of entries of the journal after each event.
        entries: All entries.
    """

    def __init__(self, name: str, chance: random.Random, folder: Path):
        self.name, self.folder = name, folder
        self.events = [(chance.choice(ACTIONS), chance.randrange(1000)) for _ in range(NUM_EVENTS)]
        experiment = quietly(make, name)
        self.header, self.ends = experiment._header, [0]
        for event in self.events:
            happen(experiment, *event)
            self.ends.append(len(experiment._entries))
        self.entries = experiment._entries

    def look_after(self, num_entries: int) -> dict:
        """What can be seen when there are so many entries."""
        path = self.folder / f"{self.name} reference"
        path.write_bytes(journal_bytes(self.header, self.entries[:num_entries]))
        return look_of(load(self.name, path))

    def events_in(self, num_entries: int) -> int:
        """How many events are complete with so many entries."""
        return max(i for i, end in enumerate(self.ends) if end <= num_entries)


def child(name: str, path: Path, plan: Uninterrupted, slow: bool, pipe: int) -> None:
    """Go on from where the journal ends, reporting each event that has returned."""
    experiment = load(name, path, journal=True) if path.exists() else quietly(make, name, path)
    os.write(pipe, b"go")
    for number in range(plan.events_in(len(experiment._entries)), NUM_EVENTS):
        journal = experiment._journal
        if slow and journal is not None and not isinstance(journal._file, Trickle):
            journal._file = Trickle(journal._file)
        happen(experiment, *plan.events[number])
        os.write(pipe, struct.pack("i", number + 1))
    time.sleep(60)


def main(directory: Path, num_kills: int, seed: int, *names: str) -> None:
    torch.set_num_threads(1)
    chance, torn, interrupted = random.Random(seed), 0, 0
    plans = [Uninterrupted(name, chance, directory) for name in names]
    killed = 0
    while killed < num_kills:
        plan = plans[killed % len(plans)]
        path = directory / f"{plan.name} {killed}"
        acknowledged, done = 0, 0
        while done < NUM_EVENTS and killed < num_kills:
            delay, wait, slow = chance.uniform(0, 0.12), chance.random() < 0.8, chance.random() < 0.5
            reports = kill_one(functools.partial(child, plan.name, path, plan, slow), delay, wait)
            killed += 1
            acknowledged = max([acknowledged, *(n for (n,) in struct.iter_unpack("i", reports))])
            if not path.exists():  # killed before it began
                assert not reports
                continue
            torn += not path.read_bytes().endswith(b"\n")
            entries = read_journal(path)[1]
            assert entries == plan.entries[: len(entries)], (plan.name, len(entries))
            assert len(entries) >= plan.ends[acknowledged], (plan.name, len(entries), acknowledged)
            assert look_of(load(plan.name, path)) == plan.look_after(len(entries)), (plan.name, len(entries))
            done = plan.events_in(len(entries))
            interrupted += 0 < len(entries) < len(plan.entries)
    print(f"killed {killed} times, {interrupted} in the middle, {torn} half lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
