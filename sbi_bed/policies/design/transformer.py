"""Causal transformer over the trials: the default, and needed where outcomes depend on their order.

Attention can compare single trials, which a sum of encodings cannot: on source location it reaches gains one to two
nats above `DeepSetsPolicy` in the same time.

Keys and values of earlier trials are cached: one trial costs one token, in rollouts and in life.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...neural_nets.attention import CausalBlock
from ...neural_nets.trial_features import TrialFeatures
from ...simulators.base import DesignSimulator
from ...simulators.design_space import DesignSpace
from ...utils.checks import check_count
from ...utils.renamed import renamed_arguments
from ..base import Policy

__all__ = ["TransformerPolicy"]


class _State(NamedTuple):
    summary: Tensor  # the newest token, (*batch, hidden_dim)
    caches: tuple[tuple[Tensor, Tensor], ...]

    @property
    def num_trials(self) -> int:
        return self.caches[0][0].shape[-2] - 1  # the start token is not a trial


class TransformerPolicy(Policy):
    """Policy that reads the trials in their order.

    Args:
        simulator: The experiment to design.
        horizon: Largest number of trials.
        hidden_dim: Size of a token.
        num_layers: Number of attention blocks.
        num_heads: Attention heads of each.

    Attributes:
        features: What is read of a trial.
        embed: Linear map of it into that size.
        start: Token before the first trial, (hidden_dim,).
        position: Embedding of places, (horizon, hidden_dim).
        blocks: Attention blocks.
        head: Net to the free coordinates of a design.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> policy = TransformerPolicy(LocationFinding(), horizon=10)  # for `DAD` to train
        >>> policy(torch.zeros(5, 3, 4)).shape
        torch.Size([5, 2])
    """

    @renamed_arguments(width="hidden_dim")
    def __init__(
        self, simulator: DesignSimulator, horizon: int, hidden_dim: int = 64, num_layers: int = 1, num_heads: int = 4
    ):
        horizon = check_count(horizon, "horizon")
        super().__init__(simulator, horizon=horizon, hidden_dim=hidden_dim, num_layers=num_layers, num_heads=num_heads)
        self.horizon = horizon
        self.features = TrialFeatures(simulator)
        self.embed = nn.Linear(self.features.output_dim, hidden_dim)
        self.start = nn.Parameter(0.1 * torch.randn(hidden_dim))
        self.position = nn.Parameter(0.1 * torch.randn(horizon, hidden_dim))
        self.blocks = nn.ModuleList(CausalBlock(hidden_dim, num_heads) for _ in range(num_layers))
        self.head = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, self.design_space.free_dim))

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """State after the learned start token."""
        return self._advance(self.start.expand(*batch_shape, 1, -1), (None,) * len(self.blocks))

    def update(self, state: _State, design: Tensor, outcome: Tensor) -> _State:
        """Attend from one more trial to all before it."""
        if state.num_trials >= self.horizon:
            raise ValueError(f"this policy was built for {self.horizon} trials.")
        token = self.embed(self.features(design, outcome)) + self.position[state.num_trials]
        return self._advance(token.unsqueeze(-2), state.caches)

    def propose(self, state: _State, space: DesignSpace | None = None) -> Tensor:
        """Next design (*batch, D)."""
        return (space or self.design_space).from_free(self.head(state.summary))

    def _advance(self, tokens: Tensor, caches: tuple) -> _State:
        new_caches = []
        for block, cache in zip(self.blocks, caches, strict=True):
            tokens, cache = block(tokens, cache)
            new_caches.append(cache)
        return _State(tokens[..., -1, :], tuple(new_caches))
