r"""A simulator whose outcomes now and then have nothing to do with theta, for data that the model calls impossible.

    p̃(y | θ, ξ) = (1 − s) p(y | θ, ξ) + s · max_θ' p(y | θ', ξ),   θ' among draws of the prior.

Where no θ gives all outcomes of a history a positive likelihood, this posterior is that of the θ which contradict the
fewest. An outcome that no θ' allows tells nothing. The share s is small: it changes a likelihood only where it is tiny.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..utils.seeding import seeded
from .base import DesignSimulator

__all__ = ["with_lapses"]


def with_lapses(simulator: DesignSimulator, share: float = 1e-3, num_draws: int = 256) -> DesignSimulator:
    """The same experiment with the likelihood p̃ above.

    Args:
        simulator: Experiment with a likelihood.
        share: s.
        num_draws: Number of draws θ', by a fixed seed.
    """
    return DesignSimulator(
        simulator.prior,
        simulator.simulate,
        simulator.design_space,
        _WithLapses(simulator, share, num_draws),
        simulator.outcome_shape,
        outcome_space=simulator.outcome_space,
    )


class _WithLapses:
    """log p̃(y | θ, ξ); a class, so that what holds it can be pickled."""

    def __init__(self, simulator: DesignSimulator, share: float, num_draws: int):
        self.simulator, self.share = simulator, share
        with seeded(0):
            self.draws = simulator.prior.sample((num_draws,))

    def __call__(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(design.shape[:-1], outcome.shape[:-1])
        others = self.draws.to(theta).reshape(len(self.draws), *[1] * len(lead), -1)
        top = self.simulator.log_likelihood(others, design, outcome).amax(0)
        top = torch.where(torch.isneginf(top), 0.0, top)
        strict = self.simulator.log_likelihood(theta, design, outcome)
        return torch.logaddexp(strict + math.log1p(-self.share), top + math.log(self.share))
