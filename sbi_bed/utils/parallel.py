r"""Jobs in processes or on machines, by joblib, with results that depend on nothing but one seed.

Job i runs on one thread of torch, under a seed of its own,

    s_i = (h(seed) + i · c) mod 2³²,   h: numpy's SeedSequence,   c = 2654435769, odd, about 2³² over the golden ratio,

so all s_i differ (torch's CPU generator reads only 32 bits of a seed). Job i gives the same result however many jobs
follow it, wherever it runs and in whatever order. joblib decides where it runs: in processes of this machine, or as an
active `joblib.parallel_config` says, such as on a dask cluster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
import torch
from tqdm.auto import tqdm

from .checks import check_count
from .seeding import seeded

__all__ = ["one_thread", "run_seeded"]

_GOLDEN = 0x9E3779B9

_turn = threading.RLock()  # torch's generator belongs to the process: jobs in threads of one process take turns
_here = threading.local()  # whether this thread is in a job


def run_seeded(
    function: Callable[[Any], Any],
    arguments: Iterable[Any],
    seed: int | None = None,
    num_workers: int = 1,
    *,
    description: str = "jobs",
    show_progress_bars: bool = False,
) -> list[Any]:
    """[function(argument) for argument in arguments], each call with a seed of its own, in parallel if asked.

    Args:
        function: Callable of one argument that draws its random numbers from the global generators of torch, numpy or
            Python; see `seeded`. Workers get it by cloudpickle, so a lambda works.
        arguments: One for each job.
        seed: Seed of all jobs; drawn from the global generator if None. Results depend on nothing else.
        num_workers: Processes on this machine, −1 for one for each core. With 1 an active `joblib.parallel_config` decides;
            without one, jobs run here, one after the other. A job that itself runs jobs runs them in its own process.
        description: What the progress bar says.
        show_progress_bars: Whether to show progress, counted as jobs are handed out.

    Returns:
        Results in the order of `arguments`.

    Raises:
        ValueError: If `num_workers` is neither −1 nor at least 1.

    Example:
        >>> draw = lambda num: torch.randn(num)
        >>> first, second = run_seeded(draw, [2, 3], seed=0)
        >>> torch.equal(first, run_seeded(draw, [2], seed=0)[0])
        True
    """
    if num_workers != -1:
        check_count(num_workers, "num_workers")
    arguments = list(arguments)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    seeds = [(first + index * _GOLDEN) % 2**32 for index in range(len(arguments))]
    jobs = tqdm(list(zip(arguments, seeds, strict=True)), description, disable=not show_progress_bars)
    if getattr(_here, "in_job", False):
        return [_run_job(function, *job) for job in jobs]
    parallel = joblib.Parallel(n_jobs=None if num_workers == 1 else num_workers)
    return list(parallel(joblib.delayed(_run_job)(function, *job) for job in jobs))


def _run_job(function: Callable[[Any], Any], argument: Any, seed: int) -> Any:
    with _turn, _in_job(), one_thread(), seeded(seed):
        return function(argument)


@contextmanager
def _in_job() -> Iterator[None]:
    outside, _here.in_job = getattr(_here, "in_job", False), True
    try:
        yield
    finally:
        _here.in_job = outside


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: workers do not crowd each other, and sums are taken in one order everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
