r"""Any simulator as an experiment: a callable (θ, ξ) → y without a likelihood, in numpy, torch or another program.

Its likelihood is learned from simulations, θ ~ p(θ), ξ from the design space (neural likelihood estimation; Papamakarios
et al. 2019, arXiv 1805.07226, with the design as a part of the condition), when it is first needed. Policies then
plan with what was learned (`surrogate`), which is fast and has gradients; the simulator itself is run for more
simulations where a policy goes, and wherever an experiment is simulated by the user.

A run that fails (an error, NaN, infinity) is left out: the likelihood is p(y | θ, ξ, the run succeeds), and so a posterior
says nothing of how likely success was.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from ...utils.checks import check_count, check_positive
from ...utils.files import load_file, rebuilding, save_file
from ...utils.seeding import seeded
from ...utils.warn_user import warn_user
from ..base import DesignSimulator
from ..design_space import as_design_space
from .any_callable import AnyCallable, count_workers
from .conditional_density import ConditionalDensity
from .learned_likelihood import LearnedSimulator, LikelihoodReport, check_density, fit_density

__all__ = ["BlackBoxSimulator", "process_design_simulator"]

_MOST_ATTEMPTS = 10  # runs of a row that keeps failing
# Shares of the time limit of a training: for the likelihood at first, at first if runs are slow, and where a policy goes.
_LEARNING, _LEARNING_SLOWLY, _IMPROVING = 0.25, 0.5, 0.1
_SIMULATING = 0.6  # share of these that simulations may take
_SAVE_EVERY = 10.0  # seconds
_FEWEST = 200  # simulations that a likelihood is learned from
_PILOT = 20  # simulations that show the scale of outcomes; half of them may fail


class Simulations(NamedTuple):
    """Simulated trials: theta (N, P), designs (N, D), outcomes (N, O)."""

    theta: Tensor
    design: Tensor
    outcome: Tensor


def process_design_simulator(
    simulator: Callable[..., Any], prior: Distribution, design_space: Any, **settings: Any
) -> BlackBoxSimulator:
    """Make an experiment of any simulator, as sbi's `process_simulator` does for one without designs.

    Nothing need be said about a likelihood: `DAD`, `GreedyPolicy`, `StepDAD`, `AdaptiveExperiment` and
    `likelihood_posterior` learn it from simulations when they first need it.

    Args:
        simulator: Callable (theta, design) -> outcome, random, of one row or of many.
        prior: Distribution of theta, event shape (P,), as sbi takes it.
        design_space: A torch constraint, candidates of shape (N, D), or a `DesignSpace`.
        **settings: `num_simulations` (50,000), `max_seconds` (60), `num_workers` (1), `cache` and `show_progress_bars`, as
            `BlackBoxSimulator` says, and so are errors.

    Example:
        >>> import numpy as np
        >>> from torch.distributions import constraints
        >>> prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> simulator = process_design_simulator(
        ...     lambda theta, time: theta[0] + theta[1] * time + 0.1 * np.random.normal(),  # one theta at a time
        ...     prior,
        ...     constraints.interval(torch.tensor([0.0]), torch.tensor([1.0])),
        ... )
        >>> simulator(prior.sample((5,)), torch.tensor([0.3])).shape
        torch.Size([5, 1])
    """
    return BlackBoxSimulator(simulator, prior, design_space, **settings)


class BlackBoxSimulator(DesignSimulator):
    """A `DesignSimulator` made from any callable, with a likelihood that it learns; `process_design_simulator` makes it.

    The callable is tried with a few draws at once: whether it takes arrays of numpy or tensors, one row or many, and what
    it returns.

    Args:
        simulator: Callable (theta, design) -> outcome, random: of one row, (P,) and (D,), or of many, (N, P) and (N, D);
            a number, array, tensor, list, tuple or dict, which is flattened to (O,). It should draw from the global
            generators of numpy, torch or Python, since only those follow a seed.
        prior: Distribution of theta, event shape (P,), as sbi takes it.
        design_space: A torch constraint, candidates of shape (N, D), or a `DesignSpace`.
        num_simulations: Simulations from which the likelihood is learned, at most.
        max_seconds: Time limit for them and for the learning, where whoever needs the likelihood has none of its own. A run
            that has begun is not cut short; simulations that are done when the time is over are learned from.
        num_workers: Processes for these simulations, −1 for one for each core; an active `joblib.parallel_config("dask")`
            distributes them.
        cache: File that keeps these simulations, written every ten seconds and at the end, whole or not at all. If it
            exists, they are read from it, and only missing ones are run. Delete it when the simulator changes.
        show_progress_bars: Whether to show the progress of simulations.

    Attributes:
        runner: The callable as one of batches, with what was found out about it and the number of runs that failed.
        simulations: The simulations so far that succeeded.
        report: How well the learned likelihood holds, or None.

    Raises:
        TypeError: If the simulator cannot be called, or returns something other than numbers.
        ValueError: If it fails for every draw, or is deterministic with outcomes that are not whole numbers, or as
            `DesignSimulator` does.

    Example:
        >>> from torch.distributions import constraints
        >>> prior = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> simulator = BlackBoxSimulator(
        ...     lambda theta, dose: torch.poisson((theta + dose).exp()), prior, constraints.interval(0.0, 1.0)
        ... )
        >>> simulator.learn_likelihood(2000, seed=0).num_simulations
        2000
        >>> simulator.log_likelihood(torch.zeros(1), torch.zeros(1), torch.tensor([3.0])).exp() < 0.15  # exactly .061
        tensor(True)
    """

    def __init__(
        self,
        simulator: Callable[..., Any],
        prior: Distribution,
        design_space: Any,
        *,
        num_simulations: int = 50_000,
        max_seconds: float = 60.0,
        num_workers: int = 1,
        cache: str | Path | None = None,
        show_progress_bars: bool = False,
    ):
        if not callable(simulator):
            raise TypeError(f"simulator must be a callable (theta, design) -> outcome, got {simulator!r}.")
        self.num_simulations = check_count(num_simulations, "num_simulations", _FEWEST)
        self.max_seconds = check_positive(max_seconds, "max_seconds")
        space = as_design_space(design_space)
        with seeded(0):
            theta, design = prior.sample((20,)), space.sample((20,))
        begin = time.perf_counter()
        self.runner = AnyCallable(simulator, theta, design)
        self._seconds_per_run = (time.perf_counter() - begin) / max(1, self.runner.num_runs)
        super().__init__(
            prior, self._simulate_until_success, space, self._learned_log_likelihood, (self.runner.outcome_dim,)
        )
        self.simulations = Simulations(
            *(torch.zeros(0, n) for n in (self.theta_dim, self.design_dim, self.outcome_dim))
        )
        self.num_workers = -1 if num_workers == -1 else check_count(num_workers, "num_workers")
        self.cache = None if cache is None else Path(cache)
        if self.cache is not None and self.cache.exists():
            with rebuilding(self.cache):
                self.simulations = self._checked(load_file(self.cache, "simulations")["simulations"])
        self.report: LikelihoodReport | None = None
        self._show_progress_bars = show_progress_bars
        self._density: ConditionalDensity | None = None
        self._surrogate: DesignSimulator | None = None
        self._check_randomness()

    @property
    def likelihood_is_learned(self) -> bool:
        """Whether the likelihood is there already."""
        return self._density is not None

    @property
    def learns_likelihood(self) -> bool:
        """True."""
        return True

    @property
    def seconds_per_run(self) -> float:
        """How long one run takes, by the few at construction."""
        return self._seconds_per_run

    @property
    def surrogate(self) -> DesignSimulator:
        """The same experiment with outcomes drawn from the learned likelihood; learns it first where there is none."""
        if self._density is None:
            self.learn_likelihood(seed=0)
        if self._surrogate is None:
            self._surrogate = LearnedSimulator(self.prior, self._density, self.design_space, self.outcome_shape)
        return self._surrogate

    def learn_likelihood(
        self, num_simulations: int | None = None, *, seed: int | None = None, max_seconds: float | None = None
    ) -> LikelihoodReport:
        """Learn p(y | θ, ξ) from simulations: those that there are, and new ones from the prior and random designs.

        Args:
            num_simulations: Simulations in all, at most; `num_simulations` of the simulator if None.
            seed: Seed; the global generator if None.
            max_seconds: Time limit for simulations and learning; `max_seconds` of the simulator if None.

        Raises:
            ValueError: If too few runs succeed within the time limit.

        Warns:
            UserWarning: If the likelihood is not calibrated on held-out simulations.
        """
        begin = time.perf_counter()
        total = self.num_simulations if num_simulations is None else check_count(num_simulations, "num_simulations", 2)
        limit = self.max_seconds if max_seconds is None else check_positive(max_seconds, "max_seconds")
        with seeded(seed):
            self._simulate_more(total, begin + _SIMULATING * limit)
            if self._density is None:
                self._density = ConditionalDensity(*self.simulations)
                self._density.requires_grad_()
            return self._fit(begin, limit)

    def prepare_planning(self, max_seconds: float | None = None) -> int:
        """Learn the likelihood, if it is not there yet; see `DesignSimulator`."""
        if self.likelihood_is_learned:
            return 0
        if max_seconds is not None:
            simulating = self._seconds_per_run * self.num_simulations / count_workers(self.num_workers)
            max_seconds *= _LEARNING_SLOWLY if simulating > _LEARNING * max_seconds else _LEARNING
        self.learn_likelihood(max_seconds=max_seconds)
        return self.num_simulations // 2

    def improve_likelihood(
        self, theta: Tensor, designs: Tensor, *, seed: int | None = None, max_seconds: float | None = None
    ) -> None:
        """Simulate trials where a policy goes, and learn from these, too; see `DesignSimulator`."""
        begin, limit = time.perf_counter(), _IMPROVING * (self.max_seconds if max_seconds is None else max_seconds)
        with seeded(seed):
            self._simulate_rows(theta, designs, begin + _SIMULATING * limit)
            self._fit(begin, limit)

    def pilot(self, num: int) -> tuple[Tensor, Tensor]:
        """Designs (num, D) and outcomes (num, O) of random trials: the first simulations, new ones where there are fewer."""
        with seeded(0):
            missing = min(num, _PILOT) - len(self.simulations.theta)
            if missing > 0:  # however long a run takes
                self._simulate_rows(self.prior.sample((missing,)), self.design_space.sample((missing,)), math.inf)
            if len(self.simulations.theta) < num:
                self._simulate_more(num, time.perf_counter() + 1.0, fewest=_PILOT // 2)
        return self.simulations.design[:num], self.simulations.outcome[:num]

    def with_prior(self, prior: Distribution) -> DesignSimulator:
        """The same experiment under another prior, with the likelihood that was learned, if it was."""
        other = copy.copy(self)
        checked = DesignSimulator(prior, self.simulate, self.design_space)
        other.prior, other.dtype, other._surrogate = prior, checked.dtype, None
        other.simulate, other._log_likelihood = other._simulate_until_success, other._learned_log_likelihood
        if checked.theta_dim != self.theta_dim:
            raise ValueError(f"the prior must be over {self.theta_dim} values, got {checked.theta_dim}.")
        if self._density is not None:
            with seeded(0):
                self._density.warn_outside(theta=prior.sample((1000,)))
        return other

    def check_outcome(self, outcome: Any) -> Tensor:
        """As for every simulator, with a warning where the likelihood is learned and has not seen such an outcome."""
        outcome = super().check_outcome(outcome)
        if self._density is not None:
            self._density.warn_outside(outcome=outcome)
        return outcome

    def save_likelihood(self, path: str | Path) -> None:
        """Save the learned likelihood in one file, for `load_likelihood`.

        Raises:
            ValueError: If there is none.
        """
        state = self.learned_state()
        if state is None:
            raise ValueError("there is no likelihood to save: call learn_likelihood first.")
        save_file(path, "likelihood", state)

    def load_likelihood(self, path: str | Path) -> None:
        """Load what `save_likelihood` of this experiment wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, or of another experiment.
        """
        content = load_file(path, "likelihood")
        with rebuilding(path):
            self.restore_learned(content)

    def learned_state(self) -> dict[str, Any] | None:
        """Simulations, weights and report; see `DesignSimulator`."""
        if self._density is None or self.report is None:
            return None
        return {
            "simulations": list(self.simulations),
            "weights": self._density.state_dict(),
            "report": vars(self.report),
        }

    def restore_learned(self, state: dict[str, Any]) -> None:
        """Take up what `learned_state` gave; see `DesignSimulator`."""
        simulations = self._checked(state["simulations"])
        density = ConditionalDensity(*simulations)
        density.load_state_dict(state["weights"])
        self.report = LikelihoodReport(**state["report"])
        self.simulations, self._density, self._surrogate = simulations, density.eval().requires_grad_(False), None

    def _checked(self, simulations: list[Tensor]) -> Simulations:
        """Simulations of a file, if they are of such an experiment."""
        sizes = [x.shape[-1] for x in simulations]
        if sizes != [self.theta_dim, self.design_dim, self.outcome_dim]:
            raise ValueError(f"it is of theta, design and outcome of sizes {sizes}.")
        return Simulations(*simulations)

    def _check_randomness(self) -> None:
        """A density exists only where outcomes are random, or discrete."""
        if not self.runner.is_deterministic:
            return
        outcome = self.pilot(20)[1]
        if (outcome != outcome.round()).any():
            raise ValueError(
                "the simulator returns the same outcome each time it is called with the same theta and design: it has no "
                "likelihood that could be learned. Add the noise of your measurement; if it makes a generator with a "
                "fixed seed in each call, draw from numpy's or torch's global generator instead."
            )

    def _simulate_until_success(self, theta: Tensor, design: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(theta.shape[:-1], design.shape[:-1])
        rows = [x.detach().expand(*lead, -1).reshape(lead.numel(), -1) for x in (theta, design)]
        outcome = self.runner(*rows)
        for _ in range(_MOST_ATTEMPTS - 1):
            failed = outcome.isnan().any(-1)
            if not failed.any():
                break
            outcome[failed] = self.runner(*(x[failed] for x in rows))
        failed = outcome.isnan().any(-1)
        if failed.any():
            index = int(failed.nonzero()[0])
            raise ValueError(
                f"the simulator failed {_MOST_ATTEMPTS} times for theta {rows[0][index].tolist()} and design "
                f"{rows[1][index].tolist()} ({int(failed.sum())} of {len(failed)} rows), last with: "
                f"{self.runner.last_error!r}. Narrow the prior or the design space, or return an outcome "
                "that stands for failure."
            )
        return outcome.reshape(*lead, -1)

    def _simulate_more(self, total: int, until: float, fewest: int = _FEWEST) -> None:
        """Simulate trials of the prior and random designs until there are `total`, or the time is over."""
        missing = total - len(self.simulations.theta)
        if missing > 0:
            self._simulate_rows(self.prior.sample((missing,)), self.design_space.sample((missing,)), until)
        if len(self.simulations.theta) < min(fewest, total):
            raise ValueError(
                f"only {len(self.simulations.theta)} simulations succeeded within the time limit, of {self.runner.num_runs} "
                f"runs ({self.runner.num_failed} failed); {fewest} are needed. Give more max_seconds, or a faster simulator."
                + (f" The last failure: {self.runner.last_error!r}." if self.runner.last_error else "")
            )

    def _simulate_rows(self, theta: Tensor, design: Tensor, until: float) -> None:
        """Simulate rows until the time is over, and keep those that succeed."""
        size, start, saved = 1, 0, time.perf_counter()
        many = count_workers(self.num_workers)
        with tqdm(total=len(theta), desc="simulations", disable=not self._show_progress_bars) as bar:
            while start < len(theta) and (start == 0 or time.perf_counter() < until):
                begin = time.perf_counter()
                rows = slice(start, start + size * many)
                part = theta[rows].to(self.dtype), design[rows].to(self.dtype)
                outcome = self.runner.in_processes(*part, self.num_workers)
                kept = torch.isfinite(outcome).all(-1)
                new = [x[kept] for x in (*part, outcome)]
                self.simulations = Simulations(*(torch.cat(x) for x in zip(self.simulations, new, strict=True)))
                start += len(outcome)
                bar.update(len(outcome))
                now = time.perf_counter()
                size = max(1, min(4 * size, int(size / max(now - begin, 1e-9)), 20_000))  # about a second each
                if self.cache is not None and (now - saved > _SAVE_EVERY or start == len(theta) or now >= until):
                    save_file(self.cache, "simulations", {"simulations": list(self.simulations)})
                    saved = now

    def _fit(self, begin: float, limit: float) -> LikelihoodReport:
        density: Any = self._density
        density.requires_grad_()
        remaining = max(0.0, limit - (time.perf_counter() - begin))
        fit_density(density, *self.simulations, max_seconds=remaining)
        density.eval().requires_grad_(False)
        self.report = check_density(density, *self.simulations, self.runner.num_failed, time.perf_counter() - begin)
        excess = self.report.calibration_error - self.report.calibration_noise
        if excess > 0.03:
            warn_user(
                "the learned likelihood is not calibrated: the ranks of held-out outcomes are "
                f"{self.report.calibration_error:.2f} from uniform. "
                "Give more simulations (num_simulations=, max_seconds=), or an outcome of fewer values."
            )
        return self.report

    def _learned_log_likelihood(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        surrogate: Any = self.surrogate
        surrogate.density.warn_outside(theta=theta, design=design, outcome=outcome)
        return surrogate.log_likelihood(theta, design, outcome)
