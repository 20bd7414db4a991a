r"""Deep sets: ξ_{t+1} = head(Σ_{i ≤ t} encoder(ξ_i, y_i)), for trials whose order does not matter.

The sum is the state, so a rollout of T trials costs T encodings. Before the first trial the sum is a learned vector, so
the first design is learned with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...neural_nets.trial_features import TrialFeatures, mlp
from ...simulators.base import DesignSimulator
from ...simulators.design_space import DesignSpace
from ..base import Policy

__all__ = ["DeepSetsPolicy"]


class DeepSetsPolicy(Policy):
    """Permutation-invariant policy with a running sum.

    Args:
        simulator: The experiment to design.
        hidden_dim: Width of the hidden layers of encoder and head.
        summary_dim: Size of the pooled summary.
        num_layers: Number of hidden layers in each.

    Attributes:
        features: What is read of a trial.
        encoder: Net of one trial.
        empty: Sum before the first trial, (summary_dim,).
        head: Net from the sum to the free coordinates of a design.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> policy = DeepSetsPolicy(LocationFinding())
        >>> policy(torch.zeros(0, 4)).shape
        torch.Size([2])
    """

    def __init__(self, simulator: DesignSimulator, hidden_dim: int = 128, summary_dim: int = 32, num_layers: int = 2):
        super().__init__(simulator, hidden_dim=hidden_dim, summary_dim=summary_dim, num_layers=num_layers)
        hidden = (hidden_dim,) * num_layers
        self.features = TrialFeatures(simulator)
        self.encoder = mlp(self.features.output_dim, hidden, summary_dim)
        self.empty = nn.Parameter(0.1 * torch.randn(summary_dim))
        self.head = mlp(summary_dim, hidden, self.design_space.free_dim)

    def initial_state(self, batch_shape: Sequence[int] = ()) -> Tensor:
        """The learned summary (*batch, summary_dim) of no trials."""
        return self.empty.expand(*batch_shape, -1)

    def update(self, state: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        """Add one trial to the summary."""
        return state + self.encoder(self.features(design, outcome))

    def propose(self, state: Tensor, space: DesignSpace | None = None) -> Tensor:
        """Next design (*batch, D)."""
        return (space or self.design_space).from_free(self.head(state))

    def read(self, history: Tensor) -> Tensor:
        """Summary (*batch, summary_dim) of histories of any lengths."""
        features, mask = self.features.of_history(history)
        return self.empty + (self.encoder(features) * mask).sum(-2)
