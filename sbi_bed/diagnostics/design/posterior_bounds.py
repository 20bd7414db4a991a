r"""Bounds from contrastive samples drawn near each history's posterior, for gains of any size.

Where a history h tells much more than log L nats, none of L prior draws falls where its posterior is: sPCE is then
log(L + 1), and sNMC is far above. Draws of a proposal q(θ | h) near the posterior fall there, and get a weight
(Foster et al. 2020, arXiv 1911.00294): with θ_1, …, θ_L ~ q(θ | h) and w(θ) = p(θ) / q(θ | h)

    ACE  = E[ log p(h | θ_0) − log 1/(L+1) Σ_{l=0..L} w(θ_l) p(h | θ_l) ]  ≤  EIG,
    VNMC = E[ log p(h | θ_0) − log 1/L Σ_{l=1..L} w(θ_l) p(h | θ_l) ]      ≥  EIG.

Both hold for any q; the lower one needs a q made from h alone, one that has not seen θ_0. Here tempered sequential Monte
Carlo carries prior draws to the posterior of each history, a batch of histories at a time, and a defensive mixture is
fitted to the particles of each. A poor q loosens the bounds. The effective sample size (Σ_l v_l)² / Σ_l v_l² of the
v_l = w(θ_l) p(h | θ_l) tells how well q fits where it went; the distance of the bounds also sees where it did not go.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from ...inference.posteriors.defensive_proposal import DefensiveProposal
from ...objectives.bounds import InformationGain, accumulate_bounds, check_rollouts
from ...objectives.contrastive import log_likelihood_of_history
from ...simulators.base import DesignSimulator, prior_log_prob
from ...simulators.rollout import rollout
from ...utils.smc import ParticleBelief, assimilate
from ...utils.transforms import to_unconstrained

__all__ = ["posterior_bounds"]

_MAX_ELEMENTS = 2**18  # likelihoods of single trials at a time: about what a core's cache holds


@torch.no_grad()
def posterior_bounds(
    simulator: DesignSimulator,
    policy: Any,
    num_trials: int,
    num_rollouts: int,
    num_contrastive: int,
    *,
    prior: Distribution,
    num_particles: int = 1024,
    history: Tensor | None = None,
    truth: DesignSimulator | None = None,
    max_gap: float | None = None,
    max_contrastive: int = 10**7,
    show_progress_bars: bool = False,
) -> InformationGain:
    """Both bounds for `num_trials` trials after an optional history; see `expected_information_gain` for the rest."""
    theta = prior.sample((num_rollouts,))
    designs, outcomes = rollout(truth or simulator, policy, theta, num_trials, history)
    log_likelihood = check_rollouts(outcomes, log_likelihood_of_history(simulator, theta, designs, outcomes)).sum(-1)
    proposals = _proposals(simulator, prior, designs, outcomes, num_particles, show_progress_bars)
    own = torch.cat([q.log_weight(t) for q, t in zip(proposals, theta.split(1), strict=True)])
    gain = accumulate_bounds(
        log_likelihood.double(),
        own,
        lambda block, size: proposals[int(block)].draw(size),
        torch.arange(num_rollouts).split(1),
        num_contrastive,
        max_gap=max_gap,
        max_contrastive=max_contrastive,
        show_progress_bars=show_progress_bars,
    )
    sizes = torch.tensor([q.effective_sample_size for q in proposals])
    return dataclasses.replace(gain, effective_sample_sizes=sizes)


class _HistoryProposal:
    """q(θ | h) of one history, the weighted likelihoods of its draws, and what these draws are worth."""

    def __init__(self, simulator: DesignSimulator, proposal: DefensiveProposal, designs: Tensor, outcomes: Tensor):
        self._simulator, self._proposal, self._trials = simulator, proposal, (designs, outcomes)
        self._log_sum = self._log_sum_of_squares = torch.tensor(-torch.inf, dtype=torch.float64)

    def log_weight(self, theta: Tensor) -> Tensor:
        """log w(θ) p(h | θ), shape (N,), of theta (N, P)."""
        log_likelihood = log_likelihood_of_history(self._simulator, theta, *self._trials).sum(-1).double()
        log_ratio = prior_log_prob(self._proposal.prior, theta).double() - self._proposal.log_prob(theta).double()
        log_weight = log_likelihood + log_ratio
        return log_weight.masked_fill(log_weight.isnan(), -torch.inf)  # as on the edge of the prior's support

    def draw(self, num: int) -> Tensor:
        """log Σ_l w(θ_l) p(h | θ_l) over `num` fresh draws, shape (1,)."""
        log_weight = self.log_weight(self._proposal.sample((num,)))
        self._log_sum = torch.logaddexp(self._log_sum, log_weight.logsumexp(0))
        self._log_sum_of_squares = torch.logaddexp(self._log_sum_of_squares, (2 * log_weight).logsumexp(0))
        return log_weight.logsumexp(0, keepdim=True)

    @property
    def effective_sample_size(self) -> float:
        return float((2 * self._log_sum - self._log_sum_of_squares).exp())


def _proposals(
    simulator: DesignSimulator,
    prior: Distribution,
    designs: Tensor,
    outcomes: Tensor,
    num_particles: int,
    show_progress_bars: bool,
) -> list[_HistoryProposal]:
    """One proposal for each history, designs (B, T, D) and outcomes (B, T, O)."""
    transform, size = (
        to_unconstrained(prior, keep_discrete=True),
        max(1, _MAX_ELEMENTS // (num_particles * designs.shape[1])),
    )
    parts = list(zip(designs.split(size), outcomes.split(size), strict=True))
    proposals = []
    for part in tqdm(parts, desc="proposals", disable=not show_progress_bars, leave=False):
        belief = _posterior_particles(simulator, prior, transform, *part, num_particles)
        for row in zip(*belief, *part, strict=True):
            proposal = DefensiveProposal(ParticleBelief(*row[:3]), prior, transform)
            proposals.append(_HistoryProposal(simulator, proposal, *row[3:]))
    return proposals


def _posterior_particles(
    simulator: DesignSimulator, prior: Distribution, transform: Any, designs: Tensor, outcomes: Tensor, num: int
) -> ParticleBelief:
    """Beliefs (B, num) in the posteriors of histories (B, T, ·), tempered from the prior over all trials at once."""

    def log_prior(theta: Tensor) -> Tensor:
        return prior_log_prob(prior, theta)

    def log_likelihood(theta: Tensor) -> Tensor:
        return simulator.log_likelihood(theta.unsqueeze(-2), designs.unsqueeze(1), outcomes.unsqueeze(1)).sum(-1)

    start = ParticleBelief.from_samples(prior.sample((len(designs) * num,)).reshape(len(designs), num, -1))
    # The particles only shape a proposal, so that larger steps and fewer moves than usual will do.
    return assimilate(start, log_likelihood, log_prior, transform, ess_threshold=0.3, max_moves=12)
