r"""Rules that end an experiment before its horizon.

A rule is asked after each trial. Rules join by `&` and `|`; any callable experiment -> bool serves as one too. The
rules made here are written into the experiment's file and restored by `load`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ....simulators.base import DesignSimulator
from ....utils.checks import as_finite_tensor, check_count, check_positive
from ....utils.seeding import seeded

__all__ = ["StoppingRule", "after_trials", "gain_below", "posterior_sd_below", "restore_rule", "trial_gain"]


class RunningExperiment(Protocol):
    """What a rule asks of an experiment: its trials, its posterior, and seeds of its own."""

    simulator: DesignSimulator

    @property
    def num_trials(self) -> int:
        """Number of trials recorded."""
        ...

    @property
    def designs(self) -> Tensor:
        """Designs as recorded, (n, D)."""
        ...

    @property
    def outcomes(self) -> Tensor:
        """Outcomes as recorded, (n, O)."""
        ...

    def posterior(self, sample_with: Any = "smc", *, num_trials: int | None = None) -> Any:
        """The posterior given the first trials."""
        ...

    def seed_for(self, purpose: str) -> int:
        """A seed that depends on the experiment and a purpose alone."""
        ...


class StoppingRule:
    """A condition on an experiment, asked after each trial.

    Args:
        check: Callable experiment -> bool.
        reason: What to say when it holds.
        plain: The rule as plain data, from which `restore_rule` makes it again; None for one that a file cannot hold.
        needs_likelihood: Whether the simulator must have one.

    Example:
        >>> rule = after_trials(5) & posterior_sd_below(0.1) | gain_below(0.02)
        >>> str(rule)
        '((after 5 trials and posterior sd below 0.1) or gain below 0.02 nats per trial)'
    """

    def __init__(
        self,
        check: Callable[[RunningExperiment], bool],
        reason: str,
        plain: dict[str, Any] | None = None,
        needs_likelihood: bool = False,
    ):
        self.check, self.reason, self.plain, self.needs_likelihood = check, reason, plain, needs_likelihood

    def __call__(self, experiment: RunningExperiment) -> bool:
        """Whether the experiment should stop now."""
        return bool(self.check(experiment))

    def __and__(self, other: Any) -> StoppingRule:
        return _join("and", self, as_rule(other))

    def __or__(self, other: Any) -> StoppingRule:
        return _join("or", self, as_rule(other))

    def __str__(self) -> str:
        return self.reason

    def __repr__(self) -> str:
        return f"StoppingRule({self.reason})"


def as_rule(rule: Any) -> StoppingRule:
    """A `StoppingRule` from itself or any callable experiment -> bool; a `TypeError` otherwise."""
    if isinstance(rule, StoppingRule):
        return rule
    if not callable(rule):
        raise TypeError(f"a stopping rule must be a callable experiment -> bool, got {rule!r}.")
    return StoppingRule(lambda experiment: bool(rule(experiment)), getattr(rule, "__name__", type(rule).__name__))


def after_trials(num_trials: int) -> StoppingRule:
    """Holds from trial `num_trials` on; to join with others.

    Example:
        >>> from types import SimpleNamespace
        >>> rule = after_trials(10)
        >>> rule(SimpleNamespace(num_trials=9)), rule(SimpleNamespace(num_trials=10))
        (False, True)
    """
    num_trials = check_count(num_trials, "num_trials")
    plain = {"rule": "after_trials", "num_trials": num_trials}
    return StoppingRule(lambda experiment: experiment.num_trials >= num_trials, f"after {num_trials} trials", plain)


def posterior_sd_below(
    level: float | Sequence[float],
    parameters: Sequence[int] | None = None,
    num_samples: int = 1000,
    sample_with: Any = "smc",
) -> StoppingRule:
    """Stop when the posterior sd of every parameter is below `level`.

    Args:
        level: Level in the parameters' units; one, or one for each of `parameters`.
        parameters: Indices of the parameters to look at; all if None.
        num_samples: Posterior draws that the sd is measured on.
        sample_with: What `AdaptiveExperiment.posterior` takes: a way to sample, or a trained sbi posterior (which must
            be given again when the experiment is loaded).

    Raises:
        ValueError: If the level is not positive.

    Example:
        >>> posterior_sd_below(0.1, parameters=[0])  # AdaptiveExperiment(..., stop_when=this)
        StoppingRule(posterior sd of parameters [0] below 0.1)
    """
    levels = as_finite_tensor(level, "level")
    if not (levels > 0).all():
        raise ValueError(f"level must be positive, got {level}.")
    num_samples = check_count(num_samples, "num_samples", 2)
    chosen = None if parameters is None else [int(p) for p in parameters]

    def check(experiment: RunningExperiment) -> bool:
        sd = _draws(experiment, experiment.num_trials, num_samples, sample_with).std(0)
        return bool(((sd if chosen is None else sd[chosen]) < levels.to(sd)).all())

    shown = ", ".join(f"{value:g}" for value in levels.tolist())
    which = "" if chosen is None else f" of parameters {chosen}"
    plain = {"rule": "posterior_sd_below", "level": levels.tolist(), "parameters": chosen}
    plain |= {"num_samples": num_samples, "sample_with": sample_with}
    by_name = isinstance(sample_with, str)
    return StoppingRule(check, f"posterior sd{which} below {shown}", plain if by_name else None, by_name)


def gain_below(level: float, num_trials: int = 1, num_samples: int = 512, sample_with: str = "smc") -> StoppingRule:
    """Stop when the last trials were expected to gain less than `level` nats each; see `trial_gain`.

    Expected before its outcome was seen, a trial's gain does not depend on luck: one dull answer does not end a run.

    Args:
        level: Level in nats per trial.
        num_trials: Number of last trials whose gains are averaged.
        num_samples: Posterior draws that a gain is measured on; it cannot exceed log(num_samples).
        sample_with: How to sample, as in `AdaptiveExperiment.posterior`.

    Raises:
        ValueError: If the level is not positive.

    Example:
        >>> gain_below(0.05, num_trials=3) & after_trials(10)  # AdaptiveExperiment(..., stop_when=this)
        StoppingRule((gain below 0.05 nats per trial and after 10 trials))
    """
    level = check_positive(level, "level")
    num_trials, num_samples = check_count(num_trials, "num_trials"), check_count(num_samples, "num_samples", 2)
    known: WeakKeyDictionary[Any, dict[Any, float]] = WeakKeyDictionary()

    def gain_of(experiment: RunningExperiment, trial: int) -> float:
        gains, before = known.setdefault(experiment, {}), (experiment.designs[:trial], experiment.outcomes[: trial - 1])
        key = experiment.simulator, str([part.tolist() for part in before])  # trials may be taken back
        if key not in gains:
            gains[key] = trial_gain(experiment, trial, num_samples, sample_with)
        return gains[key]

    def check(experiment: RunningExperiment) -> bool:
        done = experiment.num_trials
        if done < num_trials:
            return False
        return sum(gain_of(experiment, trial) for trial in range(done - num_trials + 1, done + 1)) < level * num_trials

    plain = {"rule": "gain_below", "level": level, "num_trials": num_trials, "num_samples": num_samples}
    reason = f"gain below {level:g} nats per trial"
    return StoppingRule(check, reason, plain | {"sample_with": sample_with}, needs_likelihood=True)


@torch.no_grad()
def trial_gain(experiment: RunningExperiment, trial: int, num_samples: int = 512, sample_with: str = "smc") -> float:
    r"""Expected information gain of a trial's design ξ, in nats, given the trials before it.

    With draws θ_i ~ p(θ | h_{t−1}) and y_i ~ p(y | θ_i, ξ), the nested Monte Carlo estimate (Foster et al. 2021,
    arXiv 2103.02438, its sPCE bound of one trial) mean_i [log p(y_i | θ_i, ξ) − log mean_j p(y_i | θ_j, ξ)].

    Args:
        experiment: A single experiment whose simulator has a likelihood.
        trial: Which trial, from 1 on.
        num_samples: Number of draws.
        sample_with: How to sample, as in `AdaptiveExperiment.posterior`.
    """
    if not 1 <= trial <= experiment.num_trials:
        raise ValueError(f"trial must be from 1 to {experiment.num_trials}, got {trial}.")
    simulator, design = experiment.simulator.surrogate, experiment.designs[trial - 1].to(experiment.simulator.dtype)
    theta = _draws(experiment, trial - 1, num_samples, sample_with).to(simulator.dtype)
    with seeded(experiment.seed_for(f"gain of trial {trial}")):
        outcome = simulator(theta, design)
    log_likelihood = simulator.log_likelihood(theta, design, outcome.unsqueeze(-2)).double()  # [outcome, theta]
    evidence = log_likelihood.logsumexp(-1) - math.log(len(theta))
    return float((log_likelihood.diagonal() - evidence).mean())


def restore_rule(plain: dict[str, Any]) -> StoppingRule:
    """Make a rule again from its plain data; a `ValueError` if it is none of this file's."""
    makers = {"after_trials": after_trials, "posterior_sd_below": posterior_sd_below, "gain_below": gain_below}
    try:
        name, arguments = plain["rule"], {key: value for key, value in plain.items() if key != "rule"}
        if name in ("and", "or"):
            return _join(name, *(restore_rule(part) for part in arguments["parts"]))
        return makers[name](**arguments)
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"unknown stopping rule {plain!r}.") from err


def _join(word: str, first: StoppingRule, second: StoppingRule) -> StoppingRule:
    parts = (first.plain, second.plain)
    plain = None if None in parts else {"rule": word, "parts": list(parts)}
    combine: Any = all if word == "and" else any
    return StoppingRule(
        lambda experiment: bool(combine(rule(experiment) for rule in (first, second))),
        f"({first.reason} {word} {second.reason})",
        plain,
        first.needs_likelihood or second.needs_likelihood,
    )


def _draws(experiment: RunningExperiment, num_trials: int, num_samples: int, sample_with: Any) -> Tensor:
    """Draws (num_samples, P) from the posterior after `num_trials` trials; the same ones each time it is asked."""
    with seeded(experiment.seed_for(f"posterior after trial {num_trials}")):
        if num_trials == 0 and isinstance(sample_with, str):
            return experiment.simulator.prior.sample((num_samples,))
        posterior = experiment.posterior(sample_with, num_trials=num_trials)
        return posterior.sample((num_samples,), show_progress_bars=False)
