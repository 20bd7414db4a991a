r"""Outcomes that designs in flight might have, for the policy to go on with.

A policy that saw only the outcomes so far would propose the same design again. So each design in flight is given a central
outcome of the posterior predictive, ∫ p(y | θ, ξ) p(θ | h) dθ: of many draws the one nearest to their median, which is a
possible outcome in any outcome space (compare the "kriging believer", Ginsbourger et al. 2010). The draws of θ are prior
draws, redrawn with their likelihood as weight; without a likelihood they are those whose simulated outcomes are nearest to
those of the history (approximate Bayesian computation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....simulators.base import DesignSimulator
from ....utils.seeding import seeded
from .trials import Trials

__all__ = ["imagined_outcomes"]

_NUM_PRIOR_DRAWS, _NUM_DRAWS = 4096, 64


@torch.no_grad()
def imagined_outcomes(simulator: DesignSimulator, trials: Trials, designs: Tensor, seed: int) -> Tensor:
    """One outcome (*batch, k, O) for each of k designs (*batch, k, D), given the trials so far.

    Args:
        simulator: The experiment, whose trials share no hidden state.
        trials: Trials of *batch experiments side by side.
        designs: Designs in flight.
        seed: Seed of everything.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> trials = Trials((), 2, 1)
        >>> trials.add(torch.tensor([1.0, 1.0]), torch.tensor([9.0]))  # a strong signal: the source is near
        >>> near_and_far = torch.tensor([[1.0, 1.0], [-3.0, -3.0]])
        >>> near, far = imagined_outcomes(LocationFinding(), trials, near_and_far, seed=0)
        >>> bool(near > 10 * far)
        True
    """
    model = simulator.surrogate
    with seeded(seed):
        theta = model.prior.sample((_NUM_PRIOR_DRAWS,)).to(model.dtype)
        chosen = theta[_explaining(model, theta, trials)].reshape(_NUM_DRAWS, *designs.shape[:-2], 1, -1)
        outcomes = model(chosen, designs.to(model.dtype)).to(model.dtype)
    read = model.standardize_outcome(outcomes)
    central = (read - read.median(0).values).abs().sum(-1).argmin(0)
    return outcomes.gather(0, central[None, ..., None].expand_as(outcomes[:1])).squeeze(0)


def _explaining(model: DesignSimulator, theta: Tensor, trials: Trials) -> Tensor:
    """Indices (M, B) of M draws of theta (N, P) for each of B experiments: such as could have had its outcomes."""
    designs, outcomes = (x.to(model.dtype).flatten(0, -3) for x in (trials.designs[None], trials.outcomes[None]))
    fit = torch.zeros(len(theta), len(designs), dtype=torch.float64)
    for design, outcome in zip(designs.unbind(-2), outcomes.unbind(-2), strict=True):
        if model.has_likelihood:
            fit += model.log_likelihood(theta.unsqueeze(-2), design, outcome).double()
        else:
            read = model.standardize_outcome(model(theta.unsqueeze(-2), design))
            gap = (read - model.standardize_outcome(outcome)) / read.std(0).clamp_min(1e-6)
            fit -= gap.square().sum(-1).double()
    if not model.has_likelihood:
        return fit.topk(_NUM_DRAWS, 0).indices
    fit = fit.nan_to_num(nan=-torch.inf).clamp(min=-1e300)  # where nothing explains an outcome, all are alike
    return (fit - fit.amax(0)).exp().T.multinomial(_NUM_DRAWS, replacement=True).T
