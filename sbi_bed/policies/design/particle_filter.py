"""What is known after some trials, by particles: Bayes' rule for each trial, and new particles where too few count.

Draws of the prior are reweighted by each outcome. Where the weights have come to rest on few of them, the particles are
tempered and moved (`sbi_bed.utils.smc.assimilate`), for each experiment of a batch by itself. From an outcome on that is
impossible for every particle, the belief allows for lapses (`sbi_bed.simulators.lapses`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...simulators.base import DesignSimulator, prior_log_prob
from ...simulators.lapses import with_lapses
from ...utils.seeding import seeded
from ...utils.smc import ImpossibleOutcomeError, ParticleBelief, assimilate
from ...utils.transforms import to_unconstrained
from ...utils.warn_user import warn_user
from .one_step_gain import OutcomeTable

__all__ = ["GreedyState", "ParticleFilter", "flatten", "map_state"]

_MAX_ELEMENTS = 2**22  # likelihoods computed at a time, which bounds memory


class GreedyState(NamedTuple):
    """What is known after some trials.

    Attributes:
        belief: The posterior as weighted particles; theta (*batch, N, P).
        designs: Designs so far, (*batch, n, D).
        outcomes: Outcomes so far, (*batch, n, O).
        table: What the particles say of the candidates, once they have moved; else None.
        moved: Whether the particles are no longer draws of the prior.
        lapsed: Where an outcome was impossible for all particles, (*batch), boolean, or None where none was.
    """

    belief: ParticleBelief
    designs: Tensor
    outcomes: Tensor
    table: OutcomeTable | None = None
    moved: bool = False
    lapsed: Tensor | None = None


def map_state(state: GreedyState, function: Callable[[Tensor], Tensor]) -> GreedyState:
    """Apply a function to every tensor of a state."""
    belief = ParticleBelief(*(function(part) for part in state.belief))
    table = None if state.table is None else OutcomeTable(*(function(part) for part in state.table))
    lapsed = None if state.lapsed is None else function(state.lapsed)
    return GreedyState(belief, function(state.designs), function(state.outcomes), table, state.moved, lapsed)


def flatten(state: GreedyState) -> GreedyState:
    """The same state with batch shape (B,)."""
    batch_shape = state.designs.shape[:-2]
    return map_state(state, lambda part: part.reshape(batch_shape.numel(), *part.shape[len(batch_shape) :]))


class ParticleFilter:
    """Follows experiments of any batch shape.

    Args:
        simulator: The experiment.
        theta: Particles of the prior, (N, P).
        ess_threshold: Share of N below which the effective sample size may not fall before particles are moved.
        seed: Seed of the moves.
    """

    def __init__(self, simulator: DesignSimulator, theta: Tensor, ess_threshold: float, seed: int):
        self._simulator, self._theta, self._seed = simulator, theta, seed
        self._most_squares = 1 / (ess_threshold * len(theta))
        self._transform = to_unconstrained(simulator.prior, keep_discrete=True)

    def initial_state(self, shape: tuple[int, ...]) -> GreedyState:
        """The prior, and no trials."""
        num = len(self._theta)
        log_weights = torch.full((*shape, num), -math.log(num), dtype=torch.float64)
        belief = ParticleBelief(self._theta.expand(*shape, -1, -1), log_weights, log_weights.new_zeros(shape))
        none = self._theta.new_zeros(*shape, 0, 1)
        designs, outcomes = (
            none.expand(*shape, 0, n) for n in (self._simulator.design_dim, self._simulator.outcome_dim)
        )
        return GreedyState(belief, designs, outcomes)

    def update(self, state: GreedyState, design: Tensor, outcome: Tensor) -> GreedyState:
        """State after one more trial; where particles move, it has no table."""
        belief = state.belief
        trial = belief.theta, design.unsqueeze(-2), outcome.unsqueeze(-2)
        likelihood = self._simulator.log_likelihood(*trial)
        if state.lapsed is not None and state.lapsed.any():
            likelihood = torch.where(state.lapsed.unsqueeze(-1), self._forgiving.log_likelihood(*trial), likelihood)
        joint = belief.log_weights + likelihood
        increment = joint.logsumexp(-1)
        log_weights = joint - increment.unsqueeze(-1)
        new = state._replace(
            belief=ParticleBelief(belief.theta, log_weights, belief.log_evidence + increment),
            designs=torch.cat([state.designs, design.unsqueeze(-2)], -2),
            outcomes=torch.cat([state.outcomes, outcome.unsqueeze(-2)], -2),
        )
        enough = log_weights.exp().square().sum(-1) <= self._most_squares  # written so that NaN counts as too few
        return new if enough.all() else self._move(new, belief, enough.logical_not())

    def _move(self, state: GreedyState, before: ParticleBelief, where: Tensor) -> GreedyState:
        """Temper and move the particles where `where` (*batch) says, starting `before` the last trial."""
        batch_shape = where.shape
        flat, before = flatten(state), flatten(state._replace(belief=before)).belief
        belief = ParticleBelief(*(part.clone() for part in flat.belief))
        num_trials = state.designs.shape[-2]
        chunk = max(1, _MAX_ELEMENTS // (num_trials * len(self._theta)))
        with seeded(self._seed + num_trials):
            for index in where.reshape(-1).nonzero().squeeze(-1).split(chunk):
                start = ParticleBelief(*(part[index] for part in before))
                trials, known = (flat.designs[index], flat.outcomes[index]), flat.lapsed
                moved, lapsed = self._moved(start, *trials, None if known is None else known[index])
                for old, new in zip(belief, moved, strict=True):
                    old[index] = new.to(old)
                if lapsed is not None:
                    known = torch.zeros(len(flat.designs), dtype=torch.bool) if known is None else known.clone()
                    known[index] = lapsed
                    flat = flat._replace(lapsed=known)
        flat = flat._replace(belief=belief, table=None, moved=True)
        return map_state(flat, lambda part: part.reshape((*batch_shape, *part.shape[1:])))

    @cached_property
    def _forgiving(self) -> DesignSimulator:
        return with_lapses(self._simulator)

    def _moved(
        self, belief: ParticleBelief, designs: Tensor, outcomes: Tensor, lapsed: Tensor | None
    ) -> tuple[ParticleBelief, Tensor | None]:
        """Belief (b, N) of all but the last trial → belief of all, and which (b) allow for lapses; None if none does."""
        if lapsed is None or not lapsed.any():
            try:
                return self._assimilate_last(self._simulator, belief, designs, outcomes), lapsed
            except ImpossibleOutcomeError:
                pass
        parts, flags = [], []
        for row in range(len(designs)):
            own = ParticleBelief(*(part[row : row + 1] for part in belief))
            trials, known = (designs[row : row + 1], outcomes[row : row + 1]), lapsed is not None and bool(lapsed[row])
            try:
                simulator = self._forgiving if known else self._simulator
                parts.append(self._assimilate_last(simulator, own, *trials))
            except ImpossibleOutcomeError:
                warn_user(
                    f"outcome {outcomes[row, -1].tolist()} of trial {designs.shape[1]} is impossible for every particle. "
                    "It is kept, and from here on the belief allows for outcomes that have nothing to do with theta. Give "
                    "the model a lapse rate or wider noise."
                )
                parts.append(self._from_the_prior(*trials))
                known = True
            flags.append(known)
        return ParticleBelief(*(torch.cat(part) for part in zip(*parts, strict=True))), torch.tensor(flags)

    def _from_the_prior(self, designs: Tensor, outcomes: Tensor) -> ParticleBelief:
        """Belief (1, N) of all trials (1, n, ·) with lapses, tempered from the prior."""
        start, prior = ParticleBelief.from_samples(self._theta.unsqueeze(0)), self._simulator.prior
        log_likelihood = _log_likelihood_of(self._forgiving, designs, outcomes)
        return assimilate(start, log_likelihood, partial(prior_log_prob, prior), self._transform)

    def _assimilate_last(
        self, simulator: DesignSimulator, belief: ParticleBelief, designs: Tensor, outcomes: Tensor
    ) -> ParticleBelief:
        """Belief (b, N) of all but the last trial → belief of all trials, with moved particles."""
        earlier = _log_likelihood_of(simulator, designs[:, :-1], outcomes[:, :-1])

        def log_target(theta: Tensor) -> Tensor:
            return (prior_log_prob(self._simulator.prior, theta) + earlier(theta)).nan_to_num(nan=-torch.inf)

        def log_likelihood(theta: Tensor) -> Tensor:
            return simulator.log_likelihood(theta, designs[:, None, -1], outcomes[:, None, -1])

        return assimilate(belief, log_likelihood, log_target, self._transform, max_moves=12, decorrelation=0.25)


def _log_likelihood_of(simulator: DesignSimulator, designs: Tensor, outcomes: Tensor) -> Callable[[Tensor], Any]:
    """theta (b, N, P) → log-likelihood (b, N) of trials (b, n, ·)."""
    return lambda theta: simulator.log_likelihood(theta.unsqueeze(-2), designs[:, None], outcomes[:, None]).sum(-1)
