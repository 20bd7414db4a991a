"""Any simulator (θ, ξ) → y as one of batches of tensors, whatever it takes and returns.

A few draws at construction find out whether it takes arrays or tensors, many rows at once or one at a time, and what it
returns. It is called with many rows only if that is shown to be right: a row's outcome may not change when other rows do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor

from ...utils.parallel import run_seeded
from ...utils.seeding import seeded

__all__ = ["AnyCallable", "count_workers"]

_NUM_CHECKED = (5, 7, 11, 13)  # rows tried at once: a number that is not a size of theta or design
_NUM_REPEATED = 16  # runs of one row in two processes, which must not be the same


class AnyCallable:
    """(θ (N, P), ξ (N, D)) → outcomes (N, O), NaN where a run failed.

    Args:
        simulator: Callable (theta, design) -> outcome: of one row, (P,) and (D,), or of many, (N, P) and (N, D); of arrays
            of numpy or tensors; a number, array, tensor, or a list, tuple or dict of these, which is flattened.
        theta: Draws of the prior (M, P), M > 13, to try it with.
        design: Random designs (M, D).

    Attributes:
        takes_many: Whether it takes many rows at once.
        takes_tensors: Whether it takes tensors.
        outcome_dim: Size O of a flattened outcome.
        is_deterministic: Whether it returned the same outcome when it was called again.
        repeats: Whether it draws all its random numbers from the global generators of torch, numpy and Python.
        num_failed: Runs that raised an error or returned NaN or infinity, so far.
        num_runs: Runs so far.
        last_error: What the last failed run said.

    Raises:
        TypeError: If it returns something other than numbers.
        ValueError: If it failed in all rows, or outcomes differ in size.
    """

    def __init__(self, simulator: Callable[..., Any], theta: Tensor, design: Tensor):
        self.simulator, self.dtype = simulator, theta.dtype
        self.takes_tensors = self.takes_many = False
        self.outcome_dim = self.num_failed = self.num_runs = 0
        self.last_error: Exception | None = None
        self._copies_differ = False
        sizes = (theta.shape[-1], design.shape[-1])
        num = next(n for n in _NUM_CHECKED if n not in sizes)
        self._find_kind(theta[:num], design[:num])
        rows = theta[:num], design[:num]
        with seeded(1):
            first = self(*rows)
            second = self(*rows)
        with seeded(1):
            again = self(*rows)
        both = torch.isfinite(first).all(-1) & torch.isfinite(second).all(-1)
        if not both.any():
            raise ValueError(
                f"the simulator failed for each of {num} draws of prior and design space, last with: {self.last_error!r}."
            )
        self.is_deterministic = bool(torch.equal(first[both], second[both]))
        self.repeats = bool(torch.equal(first[both], again[both]))

    def __call__(self, theta: Tensor, design: Tensor) -> Tensor:
        """Run every row."""
        with torch.no_grad():
            outcome = self._many(theta, design) if self.takes_many else self._one_by_one(theta, design)
        failed = torch.isfinite(outcome).all(-1).logical_not()
        outcome[failed] = torch.nan
        self.num_runs += len(outcome)
        self.num_failed += int(failed.sum())
        if failed.any() and self.last_error is None:
            self.last_error = ValueError("NaN or infinity in the outcome")
        return outcome

    def in_processes(self, theta: Tensor, design: Tensor, num_workers: int) -> Tensor:
        """Run every row, in processes or as an active `joblib.parallel_config` says; the same numbers wherever rows run.

        Raises:
            ValueError: If the simulator has a random generator of its own, of which each process would have a copy.
        """
        num = count_workers(num_workers)
        if num == 1:
            return self(theta, design)
        if not self._copies_differ:
            self._check_copies(theta, design, num_workers)
        size = -(-len(theta) // num)
        parts = list(zip(theta.split(size), design.split(size), strict=True))
        found = run_seeded(self._alone(), parts, num_workers=num_workers)
        outcome = torch.cat(found)
        self.num_runs += len(outcome)
        self.num_failed += int(outcome.isnan().any(-1).sum())
        return outcome

    def _check_copies(self, theta: Tensor, design: Tensor, num_workers: int) -> None:
        rows = theta[:1].expand(_NUM_REPEATED, -1), design[:1].expand(_NUM_REPEATED, -1)
        first, second = run_seeded(self._alone(), [rows, rows], num_workers=num_workers)
        if not self.is_deterministic and torch.equal(first, second):
            raise ValueError(
                "the simulator has a random generator of its own, and each process would draw the same numbers from its "
                "copy: draw from the global generator of numpy or torch, or leave num_workers at 1."
            )
        self._copies_differ = True

    def _alone(self) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
        """Runs rows in another process, without the errors of this one, which may not be picklable."""
        other = copy.copy(self)
        other.last_error = None
        return partial(_run_rows, other)

    def _find_kind(self, theta: Tensor, design: Tensor) -> None:
        errors: list[Exception] = []
        for self.takes_tensors in (False, True):
            one = self._try(errors, lambda: self._row(theta[0], design[0]))
            if one is None:  # this draw may be one where it fails
                one = self._try(errors, lambda: self._row(theta[1], design[1]))
            many = self._try(errors, lambda: self._rows(theta, design))
            self.takes_many = many is not None and (
                one is None or (one.shape[-1] == many.shape[-1] and self._rows_are_separate(theta, design))
            )
            found = many if self.takes_many else one
            if found is not None:
                self.outcome_dim = found.shape[-1]
                if self.outcome_dim == 0:
                    raise ValueError("the simulator returned an empty outcome.")
                return
        first = next((error for error in errors if isinstance(error, _OutcomeError)), errors[0])
        raise ValueError(
            f"the simulator takes neither one theta {tuple(theta.shape[1:])} with one design {tuple(design.shape[1:])}, "
            f"nor {len(theta)} of each; as arrays, and as tensors. It said: {first!r}"
        ) from first

    @staticmethod
    def _try(errors: list[Exception], run: Callable[[], Tensor]) -> Tensor | None:
        try:
            with torch.no_grad():
                return run()
        except Exception as error:  # a user's simulator raises anything
            errors.append(error)
            return None

    def _rows_are_separate(self, theta: Tensor, design: Tensor) -> bool:
        """Whether the outcome of the first and last row stays when all other rows change."""
        for kept in (0, -1):
            others = theta.roll(1, 0), design.roll(1, 0)
            for new, old in zip(others, (theta, design), strict=True):
                new[kept] = old[kept]
            try:
                with seeded(2):
                    before = self._rows(theta, design)[kept]
                with seeded(2):
                    after = self._rows(*others)[kept]
            except Exception:
                return False
            if not torch.equal(before, after):
                return False
        return True

    def _many(self, theta: Tensor, design: Tensor) -> Tensor:
        try:
            return self._checked(self._rows(theta, design))
        except _OutcomeError:
            raise
        except Exception as error:
            self.last_error = error
            if len(theta) == 1:
                return torch.full((1, self.outcome_dim), torch.nan, dtype=self.dtype)
        return torch.cat([self._many(t, d) for t, d in zip(theta.split(1), design.split(1), strict=True)])

    def _one_by_one(self, theta: Tensor, design: Tensor) -> Tensor:
        outcome = torch.full((len(theta), self.outcome_dim), torch.nan, dtype=self.dtype)
        for index, (one_theta, one_design) in enumerate(zip(theta, design, strict=True)):
            try:
                outcome[index] = self._checked(self._row(one_theta, one_design))
            except _OutcomeError:
                raise
            except Exception as error:
                self.last_error = error
        return outcome

    def _checked(self, outcome: Tensor) -> Tensor:
        if outcome.shape[-1] != self.outcome_dim:
            raise _OutcomeError(
                f"the simulator returned {outcome.shape[-1]} values, but {self.outcome_dim} at first; outcomes must all "
                "have one size."
            )
        return outcome

    def _row(self, theta: Tensor, design: Tensor) -> Tensor:
        return torch.cat([part.reshape(-1) for part in self._parts(self._run(theta, design))])

    def _rows(self, theta: Tensor, design: Tensor) -> Tensor:
        outcome = self._run(theta, design)
        parts = [outcome] if not isinstance(outcome, (tuple, dict)) else outcome
        parts = [self._tensor(part) for part in (parts.values() if isinstance(parts, dict) else parts)]
        if any(part.ndim == 0 or len(part) != len(theta) for part in parts):
            raise ValueError(f"outcomes of shape {[tuple(p.shape) for p in parts]} for {len(theta)} rows")
        return torch.cat([part.reshape(len(theta), -1) for part in parts], -1)

    def _run(self, theta: Tensor, design: Tensor) -> Any:
        if self.takes_tensors:
            return self.simulator(theta.clone(), design.to(theta.dtype).clone())
        return self.simulator(theta.double().numpy().copy(), design.double().numpy().copy())

    def _parts(self, outcome: Any) -> list[Tensor]:
        """The numbers of one outcome, however nested."""
        if isinstance(outcome, dict):
            outcome = list(outcome.values())
        if isinstance(outcome, (list, tuple)):
            return [part for each in outcome for part in self._parts(each)]
        return [self._tensor(outcome)]

    def _tensor(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise _OutcomeError(f"the simulator must return numbers, got {type(value).__name__}: {value!r}")
            value = torch.as_tensor(array.astype(float))
        return value.detach().to(self.dtype)


def count_workers(num_workers: int) -> int:
    """Processes that `run_seeded` uses for `num_workers`: with 1, as many as an active `joblib.parallel_config` says."""
    jobs: Any = None if num_workers == 1 else num_workers
    return max(1, joblib.effective_n_jobs(jobs))


def _run_rows(runner: AnyCallable, rows: tuple[Tensor, Tensor]) -> Tensor:
    return runner(*rows)


class _OutcomeError(ValueError):
    """Outcomes that no run may have: a fault of the simulator, not a failed run."""
