r"""Embedding of a population: one net summarises each person's trials, a second net summarises the people.

    e_i = person_net(x_i),    summary = people_net({e_1, …, e_n}),

The first net is the same for all persons and invariant to the order of trials. The second, a `HierarchicalEmbedding` of one
level, is invariant to the order of persons. So x may be permuted and padded at both levels. A person's net that knows the
experiment (`ResponseEmbedding`: the regression of responses on stimuli) passes on what a general net would have to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .hierarchical import HierarchicalEmbedding

__all__ = ["PopulationEmbedding"]


class PopulationEmbedding(nn.Module):
    """Embedding net for people's trials, x (B, persons, trials, D + O + 1) → summary (B, output_dim).

    A person without trials counts as absent. Build the estimator with ``z_score_x="none"``, and call `fit_scale` once
    before training: it measures the scale of people's features.

    Args:
        person_net: Net for one history, (n, trials, D + O + 1) → (n, features): `ResponseEmbedding` or
            `HistoryEmbedding`; it standardises its input.
        num_features: Features it returns.
        output_dim: Size of the summary.
        hidden_dim: Width of the net for people.

    Attributes:
        people_net: Net for the set of people, from the summaries of `person_net`.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> from sbi_bed.neural_nets import HistoryEmbedding
        >>> from sbi_bed.simulators import HyperbolicDiscounting, Population
        >>> simulator = HyperbolicDiscounting()
        >>> phi, x = Population(simulator, num_persons=5, num_trials=20).sample(3, seed=0)
        >>> PopulationEmbedding(HistoryEmbedding(simulator, 16, 16), 16)(x).shape
        torch.Size([3, 32])
    """

    def __init__(self, person_net: nn.Module, num_features: int, output_dim: int = 32, hidden_dim: int = 64):
        super().__init__()
        self.person_net = person_net
        self.people_net = HierarchicalEmbedding(num_features, output_dim, hidden_dim, num_levels=1)

    @torch.no_grad()
    def fit_scale(self, x: Tensor) -> PopulationEmbedding:
        """Measure mean and sd of persons' features, as the untrained net gives them; returns the net itself.

        Args:
            x: Some hundreds of populations, (B, persons, trials, D + O + 1).
        """
        self.people_net.fit_scale(self._people(x))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Summaries (B, output_dim) of populations (B, persons, trials, D + O + 1).

        Raises:
            ValueError: If x has another number of dimensions, or a population has no trial at all.
        """
        return self.people_net(self._people(x))

    def _people(self, x: Tensor) -> Tensor:
        """Features and mask of persons, (B, persons, num_features + 1)."""
        if x.ndim != 4:
            raise ValueError(f"populations must have shape (B, persons, trials, features), got {tuple(x.shape)}.")
        if self.training and len(x) <= 1 and not ((x[..., -1] == 0) | (x[..., -1] == 1)).all():
            x = torch.ones_like(x)  # sbi's mixture density net probes with one row of noise
        there = x[..., -1].amax(-1) > 0
        read = self.person_net(x[there])
        features = read.new_zeros(*there.shape, read.shape[-1]).masked_scatter(there.unsqueeze(-1), read)
        return torch.cat([features, there.unsqueeze(-1).to(features)], -1)
