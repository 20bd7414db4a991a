r"""One-step lookahead: after each trial, Bayes' rule on particles, and then the design whose single outcome tells most.

This is the traditional adaptive design (Lindley 1956; Houlsby et al. 2011, arXiv 1112.5745), with nothing to train. It
is myopic and has to think between trials; it is the baseline that trained policies have to beat, and the method of
choice where questions come from a short list and outcomes are few.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ...objectives.decision import Decision
from ...objectives.targets import check_target_designs
from ...simulators.base import DesignSimulator, parameter_indices
from ...simulators.batched import BatchedSimulator
from ...simulators.design_space import DesignSpace
from ...utils.checks import as_finite_tensor, check_choice, check_count
from ...utils.quasi_random import quasi_random_draws
from ...utils.seeding import seeded
from ..base import Policy
from .design_search import best_design, starting_designs
from .one_step_gain import (
    OutcomeTable,
    cells_of,
    finite_outcomes,
    log_likely_targets,
    mutual_information,
    nested_information,
    nested_utility,
    nested_variance_reduction,
    predictive_information,
    value_of_information,
    variance_reduction,
)
from .particle_filter import GreedyState, ParticleFilter, flatten, map_state
from .plate_search import one_after_the_other

__all__ = ["GreedyPolicy"]

_NUM_ACTIONS = 128  # of a continuous space
_MAX_ELEMENTS = 2**22  # likelihoods computed at a time, which bounds memory
_STREAM = 5_000_011  # keeps the policy's random numbers apart from those of a simulation with the same small seed


class GreedyPolicy(Policy):
    r"""Propose the design of largest expected gain from the next trial alone.

    The posterior is held by particles: draws of the prior (quasi-random where its quantile function is known),
    reweighted by each outcome; where the weights have come to rest on few of them, they are tempered and moved anew
    (`sbi_bed.utils.smc.assimilate`), for each experiment of a batch by itself. Designs are chosen

    - among candidates, those of a finite design space or the ones given: exactly for the particles where outcomes are
      finite (boolean, or a small `constraints.integer_interval`), else by nested Monte Carlo. What the particles say of
      each candidate is tabulated once, so that a question costs well under a millisecond;
    - in any other space, from `num_candidates` designs, of which the best `num_starts` are improved by gradient
      where outcomes are finite (and enumerated) or reparameterised (a contrastive bound, by the pathwise gradient), and by
      other choices of categories, whole numbers and candidates among the design values;
    - in batches of readings (`BatchedSimulator`), first one after the other, and then the whole batch like that.

    The next design is a deterministic function of the history, so a run that is reloaded goes on as it would have.
    Random numbers come from the policy's own seed; the global generator is left alone.

    Args:
        simulator: The experiment to design; it must have a likelihood.
        candidates: Designs (J, D) to choose among; those of the design space if it is finite, else the whole space.
        objective: "information" about theta (mutual information), or about the parameters named in `of`, all others a
            nuisance; "variance" of these, the expected fall of their log sd, which needs fewer particles; "prediction":
            the mean information about outcomes at `target_designs` ("EPIG"), for when it is those that matter; or
            "utility": the expected utility that an outcome adds to a `decision`.
        of: For "information" and "variance", the parameters of interest: indices of theta, or names where the simulator
            has `parameter_names`. The information is that about which of up to 16 cells of equal probability they lie in.
        target_designs: For "prediction", designs (I, D), equally likely; if None the candidates.
        decision: For "utility", a `sbi_bed.objectives.Decision`; of continuous actions 128 random ones are considered. A
            file of a policy cannot hold it.
        num_particles: Number N of particles.
        num_candidates: Designs scored first in a continuous space.
        num_starts: Gradient ascents for each experiment.
        num_steps: Steps of each ascent; 0 for none.
        learning_rate: Of the first step, in free coordinates; it falls to 1/100 of it.
        num_inner: Particles behind each marginal likelihood in nested Monte Carlo.
        num_outer: Simulated outcomes of each design in nested Monte Carlo; at most `num_inner`.
        ess_threshold: Share of N below which the effective sample size may not fall before particles are moved.
        seed: Seed of all random numbers.

    Attributes:
        outcomes: All possible outcomes, (K, O), where these are finite and known, else None.
        theta: Particles of the prior, (num_particles, P).

    Raises:
        ValueError: If there is no likelihood, the design space depends on the history, a candidate lies outside the
            design space, or an argument is out of range.

    Source: Lindley 1956; BALD, arXiv 1112.5745; EPIG, arXiv 2304.08151; the contrastive bound, arXiv 1911.00294; designs
    for some of the parameters, Chaloner & Verdinelli 1995; the value of sample information, Raiffa & Schlaifer 1961.

    Example:
        >>> from sbi_bed.simulators import HyperbolicDiscounting
        >>> simulator = HyperbolicDiscounting()
        >>> policy = GreedyPolicy(simulator, candidates=[[20.0, 30.0], [50.0, 30.0], [80.0, 30.0]])
        >>> state = policy.initial_state()
        >>> design = policy.propose(state)
        >>> state = policy.update(state, design, torch.ones(1))
        >>> state.belief.mean().shape
        torch.Size([2])
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        *,
        candidates: Any = None,
        objective: Literal["information", "prediction", "variance", "utility"] = "information",
        of: Sequence[int | str] | None = None,
        target_designs: Any = None,
        decision: Decision | None = None,
        num_particles: int = 2048,
        num_candidates: int = 128,
        num_starts: int = 8,
        num_steps: int = 20,
        learning_rate: float = 0.2,
        num_inner: int = 256,
        num_outer: int = 128,
        ess_threshold: float = 0.05,
        seed: int = 0,
    ):
        super().__init__(
            simulator,
            candidates=None,
            objective=objective,
            of=of,
            target_designs=None,
            num_particles=num_particles,
            num_candidates=num_candidates,
            num_starts=num_starts,
            num_steps=num_steps,
            learning_rate=learning_rate,
            num_inner=num_inner,
            num_outer=num_outer,
            ess_threshold=ess_threshold,
            seed=seed,
        )
        _check_suits(simulator, objective, of, target_designs, decision)
        simulator = simulator.surrogate
        if not 0 < ess_threshold <= 1:
            raise ValueError(f"ess_threshold must lie in (0, 1], got {ess_threshold}.")
        self.simulator, self.objective = simulator, objective
        self.of = [] if of is None else parameter_indices(simulator, of)
        self.config["of"] = self.of or None
        self._has_nuisance = 0 < len(self.of) < simulator.theta_dim
        self._seed = _STREAM + 1009 * seed
        self.candidates = self._check_candidates(candidates)
        self.outcomes = finite_outcomes(simulator)
        self.target_designs = self._check_target_designs(target_designs)
        self._predicted = simulator  # also where designs of fewer readings are scored
        self.decision = decision
        self._actions = None if decision is None else _considered_actions(simulator, decision)
        self.num_candidates = check_count(num_candidates, "num_candidates")
        self.num_starts = check_count(num_starts, "num_starts")
        differentiable = self.outcomes is not None or simulator.reparameterized
        self.num_steps = check_count(num_steps, "num_steps", 0) if differentiable else 0
        self.learning_rate = float(learning_rate)
        self.num_inner = check_count(num_inner, "num_inner")
        self.num_outer = min(check_count(num_outer, "num_outer"), self.num_inner)
        theta = quasi_random_draws(simulator.prior, check_count(num_particles, "num_particles", 4), self._seed)
        # Every second quasi-random point lies in one half of the prior, and resampling takes every second one.
        with seeded(self._seed):
            self.theta = theta[torch.randperm(len(theta))]
        self._filter = ParticleFilter(simulator, self.theta, ess_threshold, self._seed)
        self._table: OutcomeTable | None = None
        self._target_table: Tensor | None = None
        self._first: Tensor | None = None

    def initial_state(self, batch_shape: Sequence[int] = ()) -> GreedyState:
        """The prior, and no trials."""
        return self._filter.initial_state(tuple(batch_shape))

    @torch.no_grad()
    def update(self, state: GreedyState, design: Tensor, outcome: Tensor) -> GreedyState:
        """Bayes' rule for one more trial, and new particles where too few are left that count.

        An outcome that is impossible for every particle is kept, with a warning: the belief then allows for lapses.

        Raises:
            ValueError: If design or outcome have another shape or are not finite, or a likelihood is NaN.

        Warns:
            UserWarning: If the outcome is impossible for every particle.
        """
        design = as_finite_tensor(design, "design", last_dim=self.design_dim).to(self.theta)
        outcome = as_finite_tensor(outcome, "outcome", last_dim=self.outcome_dim).to(self.theta)
        new = self._filter.update(state, design, outcome)
        if new.table is None and new.moved and self.candidates is not None and self.outcomes is not None:
            size = new.belief.log_weights.numel() * len(self.candidates) * len(self.outcomes)
            if size <= _MAX_ELEMENTS:
                return new._replace(table=self._tabulate(new.belief.theta))
        return new

    @torch.no_grad()
    def propose(self, state: GreedyState, space: DesignSpace | None = None) -> Tensor:
        """Next design (*batch, D); `space` is never another than the policy's own."""
        if self.candidates is not None:
            return self.candidates[self.best_candidate(state)]
        batch_shape, num_trials = state.designs.shape[:-2], state.designs.shape[-2]
        if num_trials > 0:
            return self._in_chunks(self._search, state).reshape(*batch_shape, self.design_dim)
        if self._first is None:  # the same for every experiment
            self._first = self._search(flatten(self.initial_state()))[0]
        return self._first.expand(*batch_shape, -1)

    def propose_among(self, state: GreedyState, allowed: Tensor) -> Tensor:
        """Next design (*batch, D) among the candidates that `allowed`, a boolean (*batch, J) or (J,), marks.

        Raises:
            ValueError: If the policy has no candidates, or none is allowed.
        """
        index = self.best_candidate(state, allowed)
        return self.candidates[index]  # pyright: ignore[reportOptionalSubscript]

    def best_candidate(self, state: GreedyState, allowed: Tensor | None = None) -> Tensor:
        """Index (*batch) of the candidate of largest gain; arguments and errors as for `propose_among`."""
        gains = self.candidate_gains(state)
        if allowed is not None:
            if allowed.dtype != torch.bool or allowed.shape[-1:] != gains.shape[-1:]:
                raise ValueError(
                    f"allowed must be a boolean mask over {gains.shape[-1]} candidates, got {allowed.dtype} of shape "
                    f"{tuple(allowed.shape)}."
                )
            if not allowed.any(-1).all():
                raise ValueError("no candidate is left: allowed marks none.")
            gains = gains.masked_fill(allowed.logical_not(), -torch.inf)
        return gains.argmax(-1)

    @torch.no_grad()
    def candidate_gains(self, state: GreedyState) -> Tensor:
        """Expected gain of each candidate, (*batch, J), in nats.

        Raises:
            ValueError: If the policy has no candidates, or a likelihood is NaN.
        """
        if self.candidates is None:
            raise ValueError(
                "this policy chooses in a continuous space; build it with candidates= to choose among designs."
            )
        gains = self._in_chunks(self._score_candidates, state)
        if torch.isnan(gains).any():
            index = int(gains.isnan().any(0).nonzero()[0])
            raise ValueError(f"the log-likelihood is NaN for candidate {index}, {self.candidates[index].tolist()}.")
        return gains.reshape(*state.designs.shape[:-2], -1)

    def _check_candidates(self, candidates: Any) -> Tensor | None:
        if candidates is None:
            return self.design_space.candidates
        candidates = self.design_space.check(as_finite_tensor(candidates, "candidates", last_dim=self.design_dim))
        if candidates.ndim != 2 or len(candidates) == 0:
            raise ValueError(f"candidates must have shape (J, {self.design_dim}), got {tuple(candidates.shape)}.")
        self.config["candidates"] = candidates.tolist()
        return candidates

    def _check_target_designs(self, designs: Any) -> Tensor | None:
        if self.objective != "prediction":
            return None
        if designs is not None:
            designs = check_target_designs(self.simulator, designs)
            self.config["target_designs"] = designs.tolist()
            return designs
        if self.candidates is None:
            raise ValueError('objective="prediction" in a continuous space needs target_designs=, where to predict.')
        return self.candidates

    def _in_chunks(self, function: Any, state: GreedyState) -> Tensor:
        """Apply a function of a flat state of few experiments to a state of any batch shape."""
        num_designs = self.num_candidates if self.candidates is None else len(self.candidates)
        per_outcome = len(self.theta) if self.outcomes is not None else self.num_inner
        size = num_designs * per_outcome * (len(self.outcomes) if self.outcomes is not None else self.num_outer)
        chunk, flat = max(1, _MAX_ELEMENTS // size), flatten(state)
        rows = torch.arange(len(flat.designs)).split(chunk)
        return torch.cat([function(map_state(flat, lambda part, index=index: part[index])) for index in rows])

    def _tabulate(self, theta: Tensor, designs: Tensor | None = None) -> OutcomeTable:
        """What particles say of designs, the candidates if None."""
        designs = self.candidates if designs is None else designs
        return OutcomeTable.of(self.simulator, theta, designs.to(theta), self.outcomes.to(theta))  # pyright: ignore

    def _score_candidates(self, state: GreedyState) -> Tensor:
        """Gains (B, J) for a flat state."""
        if self.outcomes is None:
            candidates = self.candidates.to(self.theta)  # pyright: ignore[reportOptionalMemberAccess]
            return self._nested_gain(state)(candidates.expand(len(state.designs), -1, -1))
        if state.moved:
            table = self._tabulate(state.belief.theta) if state.table is None else state.table
        else:
            self._table = table = self._tabulate(self.theta) if self._table is None else self._table
        weights = state.belief.log_weights.exp().to(table.probability)
        return self._criterion(state, weights)(table)

    def _search(self, state: GreedyState) -> Tensor:
        """Next designs (B, D) in a continuous space, for a flat state."""
        with seeded(self._seed + state.designs.shape[-2]):
            designs = starting_designs(self.design_space, self.num_candidates, state.designs)
            climbs: dict[str, Any] = {
                "num_starts": self.num_starts,
                "num_steps": self.num_steps,
                "learning_rate": self.learning_rate,
            }
            if isinstance(self.simulator, BatchedSimulator):
                arguments = self.simulator, partial(self._gain_with, state), state.designs, self.num_candidates
                designs = torch.cat([one_after_the_other(*arguments, **climbs).unsqueeze(1), designs], 1)
            gain = self._nested_gain(state) if self.outcomes is None else self._exact_gain(state)
            return best_design(gain, designs, self.design_space, **climbs)

    def _gain_with(self, state: GreedyState, simulator: DesignSimulator) -> Any:
        """designs (B, S, D) -> gain (B, S) for an experiment with fewer readings."""
        other = copy.copy(self)
        other.simulator = simulator
        return other._nested_gain(state)

    def _exact_gain(self, state: GreedyState) -> Any:
        """designs (B, S, D) -> gain (B, S)."""
        outcomes, weights = self.outcomes.to(self.theta), state.belief.log_weights.exp().to(self.theta)  # pyright: ignore
        theta, criterion = state.belief.theta, self._criterion(state, weights)
        return lambda designs: criterion(OutcomeTable.of(self.simulator, theta, designs, outcomes))

    def _criterion(self, state: GreedyState, weights: Tensor) -> Callable[[OutcomeTable], Tensor]:
        """table -> gain (B, J) of its designs."""
        theta = state.belief.theta
        if self.objective == "variance":
            return partial(variance_reduction, weights=weights, values=theta[..., self.of].to(weights))
        if self.objective == "utility":
            return partial(value_of_information, weights=weights, utilities=self._utilities(theta).to(weights))
        if self.objective == "information" and self._has_nuisance:
            return partial(predictive_information, weights=weights, targets=cells_of(theta[..., self.of], weights))
        if self.objective == "information":
            return partial(mutual_information, weights=weights)
        if self.target_designs is self.candidates:
            return partial(predictive_information, weights=weights)
        if state.moved:
            targets = self._tabulate(theta, self.target_designs).probability
        else:
            if self._target_table is None:
                self._target_table = self._tabulate(self.theta, self.target_designs).probability
            targets = self._target_table
        return partial(predictive_information, weights=weights, targets=targets)

    def _utilities(self, theta: Tensor) -> Tensor:
        """Utilities (*batch, N, K) of the actions that are considered, for particles (*batch, N, P)."""
        decision, actions = self.decision, self._actions.to(theta)  # pyright: ignore[reportOptionalMemberAccess]
        return decision.utility(theta.unsqueeze(-2), actions)  # pyright: ignore[reportOptionalMemberAccess]

    def _nested_gain(self, state: GreedyState) -> Any:
        """designs (B, S, D) -> gain (B, S) by nested Monte Carlo, with the same random numbers each time."""
        seed = self._seed + state.designs.shape[-2]
        with seeded(seed):
            theta = state.belief.resample(self.num_inner).theta
            criterion = self._nested_criterion(theta)
        # All designs see the same random numbers, so they can be taken a few at a time.
        chunk = max(1, _MAX_ELEMENTS // (theta.shape[:-1].numel() * self.num_outer))

        def gain(designs: Tensor) -> Tensor:
            with seeded(seed):
                parts = designs.split(chunk, -2)
                return torch.cat([criterion(self.simulator, theta, d, self.num_outer, seed) for d in parts], -1)

        return gain

    def _nested_criterion(self, theta: Tensor) -> Callable[..., Tensor]:
        """The criterion for outcomes that cannot be enumerated, for equally weighted particles (B, N, P)."""
        if self.objective == "variance":
            return partial(nested_variance_reduction, of=self.of)
        if self.objective == "utility":
            return partial(nested_utility, utilities=self._utilities(theta))
        if self.objective == "information" and self._has_nuisance:
            cells = cells_of(theta[..., self.of], theta.new_full((self.num_inner,), 1 / self.num_inner)).squeeze(-2)
            return partial(nested_information, log_targets=(cells[..., : self.num_outer].mT @ cells).log())
        if self.target_designs is None:
            return nested_information
        targets = log_likely_targets(self._predicted, theta, self.target_designs, self.num_outer)
        return partial(nested_information, log_targets=targets)


def _considered_actions(simulator: DesignSimulator, decision: Decision) -> Tensor:
    """Actions (K, A) that particles choose among."""
    decision.check(simulator)
    if decision.is_finite:
        return decision.space.candidates  # pyright: ignore[reportReturnType]
    with seeded(0):
        return decision.space.sample((_NUM_ACTIONS,))


def _check_suits(
    simulator: DesignSimulator, objective: str, of: Sequence[int | str] | None, target_designs: Any, decision: Any
) -> None:
    """Refuse simulators and objectives for which the gain of one more trial cannot be computed."""
    if not simulator.has_likelihood:
        raise ValueError("GreedyPolicy needs a simulator with a log_likelihood.")
    if simulator.design_space.depends_on_history:
        raise ValueError("GreedyPolicy searches one space; it cannot follow one that depends on the history.")
    check_choice(objective, "objective", ("information", "prediction", "variance", "utility"))
    if objective == "variance" and of is None:
        raise ValueError('objective="variance" needs of=, the parameters of interest.')
    if objective not in ("variance", "information") and of is not None:
        raise ValueError('of= names the parameters of objective="variance" or "information", and is for no other.')
    if objective != "prediction" and target_designs is not None:
        raise ValueError('target_designs= is for objective="prediction" alone.')
    if (objective == "utility") != isinstance(decision, Decision):
        raise ValueError('objective="utility" and decision=, a Decision(utility, actions), come together.')
