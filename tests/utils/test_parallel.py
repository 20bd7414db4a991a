"""Jobs give the same numbers in this process, in others, in threads, and inside each other."""

import os
import signal

import joblib
import pytest
import torch

from sbi_bed.utils.parallel import run_seeded


def draw(num):
    return torch.randn(num)


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_results_depend_on_the_seed_alone():
    """Lambdas travel; one job more changes no other job."""
    job, arguments = (lambda num: torch.randn(num) @ torch.randn(num, 3)), [3, 5, 4]
    here = run_seeded(job, arguments, seed=1)
    assert same(here, run_seeded(job, arguments, seed=1, num_workers=2))
    assert same(here[:2], run_seeded(job, arguments[:2], seed=1))
    assert not same(here, run_seeded(job, arguments, seed=2))


def test_jobs_have_different_seeds_and_leave_the_callers_state_alone():
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    results = run_seeded(lambda _: (torch.initial_seed(), torch.get_num_threads()), range(1000), seed=0)
    after = torch.get_num_threads()
    torch.set_num_threads(1)
    seeds, threads = zip(*results, strict=True)
    assert len(set(seeds)) == 1000 and max(seeds) < 2**32  # all that torch's generator reads
    assert set(threads) == {1} and after == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(3)
    first, second = run_seeded(draw, [2, 2]), run_seeded(draw, [2, 2])
    torch.manual_seed(3)
    assert same(first, run_seeded(draw, [2, 2])) and not same(first, second)


def test_an_active_configuration_of_joblib_decides_where_jobs_run():
    whose = lambda _: os.getpid()  # noqa: E731
    assert set(run_seeded(whose, range(4), seed=0)) == {os.getpid()}
    with joblib.parallel_config("loky", n_jobs=2):
        assert os.getpid() not in run_seeded(whose, range(4), seed=0)


def test_threads_take_turns():
    """They share torch's generator, so that jobs side by side would draw each other's numbers."""
    job = lambda num: torch.cat([torch.randn(1) for _ in range(num)])  # noqa: E731
    with joblib.parallel_config("threading", n_jobs=4):
        threaded = run_seeded(job, [300] * 12, seed=0)
    assert same(threaded, run_seeded(job, [300] * 12, seed=0))


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_jobs_inside_jobs_run_where_they_are(backend):
    def outer(num):
        return torch.stack(run_seeded(lambda n: torch.randn(n), [num, num], num_workers=2))

    here = run_seeded(outer, [2, 3], seed=4)
    with joblib.parallel_config(backend, n_jobs=2):
        assert same(run_seeded(outer, [2, 3], seed=4), here)


def test_an_error_in_a_job_is_an_error_here():
    with pytest.raises(ZeroDivisionError):
        run_seeded(lambda value: 1 / value, [1, 0], seed=0, num_workers=2)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_here_and_the_next_call_works():
    caller = os.getpid()

    def job(num):
        if num == 2 and os.getpid() != caller:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(num)

    with pytest.raises(RuntimeError, match="unexpectedly terminated"):
        run_seeded(job, [1, 2, 3, 4], seed=0, num_workers=2)
    again = run_seeded(lambda num: torch.randn(num), [1, 2, 3], seed=0, num_workers=2)
    assert same(again, run_seeded(draw, [1, 2, 3], seed=0))


@pytest.mark.parametrize("num_workers", [0, -2])
def test_numbers_of_workers_are_checked(num_workers):
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        run_seeded(draw, [1], num_workers=num_workers)
