r"""What a training has come to: the gain of a policy beside that of simple ones, by the same judge.

The judge is the contrastive lower bound (sPCE) under the simulator's likelihood, or under one that is learned from
simulations where there is none. With outcomes of the simulator itself, that is a lower bound for any learned likelihood.
The simple policies are random designs, the best fixed designs of a short training, and one-step lookahead among a few
designs, all with the aim of the training, be it some parameters, predictions or a decision. Beside the gains stand two
signs of a collapse: designs on the border of their space, and designs that do not depend on the history.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....objectives.base import Bound, NeuralBound
from ....objectives.bounds import estimate_bounds
from ....policies.design.greedy import GreedyPolicy
from ....policies.design.random import RandomPolicy
from ....policies.design.static import StaticPolicy
from ....simulators.base import DesignSimulator
from ....simulators.design.black_box import process_design_simulator
from ....simulators.experiments import Experiments, sampler_of
from ....simulators.rollout import rollout
from ....utils.seeding import seeded
from ....utils.text_table import format_table

__all__ = ["PolicyReport", "report_on"]

_NUM_ROLLOUTS, _NUM_LOOKAHEAD = 256, 48
_NUM_CONTRASTIVE = 2047
_LOOKAHEAD: dict[str, Any] = {
    "num_candidates": 24,
    "num_particles": 512,
    "num_inner": 64,
    "num_outer": 32,
    "num_steps": 0,
}
_SLOW = 1e-3  # seconds of a run from which runs are too slow to judge with
_CERTAIN = 2.0  # standard errors
_ALL, _NONE = 0.9, 0.02  # share of designs on the border; spread over histories, of that of random designs


@dataclass(frozen=True)
class PolicyReport:
    """A trained policy beside simple ones.

    Attributes:
        gains: Policy → gain: "trained", "random", "static", "one step ahead"; the first alone has to be there.
        stderrs: Their standard errors.
        judge: What the gains were computed with.
        on_border: Share of design values within 1 % of an end of their interval.
        spread: Standard deviation of a design over histories, after the first trial, in that of random designs.
        problems: What is wrong, in words; empty if nothing is.
        unit: Unit of the gains: nats, or that of a utility.

    Example:
        >>> from sbi_bed.inference import DAD
        >>> from sbi_bed.simulators import LocationFinding
        >>> trainer = DAD(LocationFinding(), horizon=2, show_progress_bars=False)
        >>> policy = trainer.train(num_steps=5, batch_size=32, num_contrastive=31, seed=0)
        >>> sorted(trainer.report.gains)
        ['one step ahead', 'random', 'static', 'trained']
    """

    gains: dict[str, float]
    stderrs: dict[str, float]
    judge: str
    on_border: float
    spread: float
    problems: tuple[str, ...]
    unit: str = "nats"

    def __str__(self) -> str:
        rows = [[name, f"{gain:.2f}", f"± {self.stderrs[name]:.2f}"] for name, gain in self.gains.items()]
        table = format_table(["policy", f"gain ({self.unit})", ""], rows) if rows else ""
        facts = f"{self.on_border:.0%} of design values on the border; spread over histories {self.spread:.2f}"
        return "\n".join(filter(None, [table, f"judge: {self.judge}", facts, *self.problems]))


def report_on(
    policy: Any,
    simulator: DesignSimulator,
    horizon: int,
    *,
    bound: Bound | None = None,
    seed: int | None = None,
    max_seconds: float | None = None,
) -> PolicyReport:
    """Judge a policy; simple policies for which no time is left are not compared.

    Args:
        policy: The policy.
        simulator: The experiment.
        horizon: Number T of trials.
        bound: The aim of the training, if it is not the gain about all of theta; fixed designs are then compared only where
            their training needs no net.
        seed: Seed; the global generator if None.
        max_seconds: Time limit.
    """
    with seeded(seed):
        judge = _Judge(simulator, horizon, max_seconds, bound)
        judge.add("trained", policy)
        judge.add("random", RandomPolicy(simulator))
        if judge.has_time and not isinstance(policy, StaticPolicy) and not isinstance(judge.aim, NeuralBound):
            judge.add("static", judge.best_fixed_designs())
        if judge.has_time and not simulator.design_space.depends_on_history:
            judge.add(
                "one step ahead", lambda: GreedyPolicy(judge.model, **_LOOKAHEAD, **judge.lookahead), _NUM_LOOKAHEAD
            )
        return judge.conclusion(policy)


class _Judge:
    """Gains of several policies on the same draws of theta."""

    def __init__(self, simulator: DesignSimulator, horizon: int, max_seconds: float | None, bound: Bound | None):
        self.aim = copy.deepcopy(bound) if bound is not None and bound.has_aim else None
        self.lookahead = {} if self.aim is None else self.aim.lookahead
        self.begin, self.max_seconds, self.horizon = time.perf_counter(), max_seconds, horizon
        self.simulator, self.truth, self.model, self.name = simulator, simulator, simulator, "likelihood"
        if simulator.learns_likelihood:
            self.model, self.name = simulator.surrogate, "learned likelihood"
            if simulator.seconds_per_run > _SLOW:
                self.truth, self.name = self.model, "learned likelihood, and outcomes drawn from it"
        elif not simulator.has_likelihood and not simulator.has_state:
            limit = 10.0 if max_seconds is None else 0.6 * max_seconds
            learner = process_design_simulator(simulator, simulator.prior, simulator.design_space, max_seconds=limit)
            self.model, self.name = learner.surrogate, "likelihood learned for this report"
        self.can_judge = self.model.has_likelihood
        if not self.can_judge:
            self.name = "none: trials that share a hidden state have no likelihood of their own"
        self.seed = int(torch.randint(2**31, ()))
        self.samples: dict[str, Tensor] = {}

    @property
    def has_time(self) -> bool:
        """Whether there is time for another policy, if it takes as long as the mean one so far."""
        used = time.perf_counter() - self.begin
        return self.can_judge and (
            self.max_seconds is None or used * (1 + 1 / max(1, len(self.samples))) < self.max_seconds
        )

    def add(self, name: str, policy: Any, num_rollouts: int = _NUM_ROLLOUTS) -> None:
        if not self.can_judge:
            return
        policy = policy() if name == "one step ahead" else policy
        if self.aim is not None:
            with seeded(self.seed):
                experiments = Experiments(self.model, self.horizon)
                samples = self.aim.held_out(experiments, policy, num_rollouts, _NUM_CONTRASTIVE)
            self.samples[name] = samples.double()
            return
        with seeded(self.seed):
            gain = estimate_bounds(
                self.model,
                policy,
                self.horizon,
                num_rollouts,
                _NUM_CONTRASTIVE,
                sample_theta=sampler_of(self.simulator.prior),
                truth=self.truth,
            )
        self.samples[name] = gain.lower_samples.double()

    def best_fixed_designs(self) -> StaticPolicy:
        """Fixed designs of a short training, the best of 16 starts: only a few designs may tell anything at first."""
        from .dad import DAD

        limit = None if self.max_seconds is None else 0.5 * (self.max_seconds - (time.perf_counter() - self.begin))
        policy = StaticPolicy(self.model, self.horizon, num_starts=16)
        trainer = DAD(self.model, self.horizon, policy, bound=self.aim, show_progress_bars=False)
        trainer.train(150, 128, 127, 0.05, max_seconds=limit)
        return policy

    @torch.no_grad()
    def conclusion(self, policy: Any) -> PolicyReport:
        gains = {name: float(samples.mean()) for name, samples in self.samples.items()}
        stderrs = {name: float(x.std()) / math.sqrt(len(x)) for name, x in self.samples.items()}
        space = self.simulator.design_space
        with seeded(self.seed):
            theta = self.simulator.prior.sample((_NUM_ROLLOUTS,))
            designs = rollout(self.truth, policy, theta, self.horizon).designs
            spread_of_random = space.standardize(space.sample((1000,)).to(designs)).std(0)
        on_border = float(space.on_border(designs).double().mean())
        later = space.standardize(designs[:, 1:])
        spread = float((later.std(0) / spread_of_random).mean()) if self.horizon > 1 else math.nan
        problems = _problems(gains, stderrs, on_border, spread, policy)
        unit = "nats" if self.aim is None else self.aim.unit
        return PolicyReport(gains, stderrs, self.name, on_border, spread, problems, unit)


def _problems(
    gains: dict[str, float], stderrs: dict[str, float], on_border: float, spread: float, policy: Any
) -> tuple[str, ...]:
    """What is wrong: a gain that simple policies reach, and with it what designs look like."""

    def ahead(name: str) -> float:
        """By how many standard errors the trained policy is better."""
        if name not in gains:
            return math.inf
        return (gains["trained"] - gains[name]) / max(1e-12, math.hypot(stderrs[name], stderrs["trained"]))

    problems = []
    if ahead("random") < _CERTAIN:
        problems.append("the policy is no better than random designs")
    for name, text in (("static", "fixed designs"), ("one step ahead", "one-step lookahead")):
        if ahead(name) < -_CERTAIN:
            problems.append(f"the policy is worse than {text}")
    if problems and on_border > _ALL:
        problems.append(f"{on_border:.0%} of its design values sit on the border of the design space")
    if problems and spread < _NONE and not isinstance(policy, StaticPolicy):
        problems.append("its designs do not depend on the history")
    return tuple(problems)
