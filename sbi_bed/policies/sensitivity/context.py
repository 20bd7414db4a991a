r"""One policy for all contexts: designs that depend on the experimenter's prior.

    ξ_{t+1} = head( net(c) + Σ_{i ≤ t} encoder(ξ_i, y_i) ),

This is `DeepSetsPolicy` whose sum over trials starts at a net of the context c. If c are the powers γ of a
`PowerScaledPrior`, another prior needs no other training, only another c.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...neural_nets.trial_features import mlp
from ...simulators.base import DesignSimulator
from ...simulators.sensitivity.contexts import Contexts
from ..design.deep_sets import DeepSetsPolicy

__all__ = ["ContextPolicy"]


class ContextPolicy(DeepSetsPolicy):
    """Permutation-invariant policy for any context; `in_context(context)` is the policy in one. `ContextDAD` trains it.

    Args:
        simulator: The experiment to design.
        contexts: Distribution of contexts, or its `description()`.
        hidden_dim: Width of the hidden layers of the encoder, the head and the net of the context.
        summary_dim: Size of the pooled summary.
        num_layers: Number of hidden layers in each.

    Attributes:
        context_net: Net from a context to the first value of the sum over trials.
        log_columns: Whether each value of a context is read as its logarithm, (C,).

    Example:
        >>> from sbi_bed.simulators import LocationFinding, LogUniform
        >>> policy = ContextPolicy(LocationFinding(), Contexts(gamma=LogUniform(0.5, 2.0, 2)))
        >>> policy.in_context([0.5, 1.0])(torch.zeros(0, 4)).shape
        torch.Size([2])
    """

    log_columns: Tensor

    def __init__(
        self,
        simulator: DesignSimulator,
        contexts: Contexts | dict[str, Any],
        hidden_dim: int = 128,
        summary_dim: int = 32,
        num_layers: int = 2,
    ):
        super().__init__(simulator, hidden_dim, summary_dim, num_layers)
        self.contexts = contexts if isinstance(contexts, Contexts) else Contexts.from_description(contexts)
        self.config = {"contexts": self.contexts.description(), **self.config}
        self.context_net = mlp(self.contexts.dim, (hidden_dim,) * num_layers, summary_dim)
        self.register_buffer("log_columns", torch.tensor(self.contexts.log_columns))
        self._context: Tensor | None = None

    def in_context(self, context: Any) -> ContextPolicy:
        """The policy in one context (C,), or in one context for each experiment of a batch, (B, C). Weights are shared.

        Raises:
            ValueError: If a context is outside the range of training.
        """
        chosen = copy.copy(self)
        chosen._context = self.contexts.check_inside(context)
        return chosen

    def initial_state(self, batch_shape: Sequence[int] = ()) -> Tensor:
        """Summary (*batch, summary_dim) before the first trial, in the context.

        Raises:
            ValueError: If no context was chosen.
        """
        if self._context is None:
            raise ValueError("the policy does not know which context is meant: use policy.in_context(context).")
        context = self._context.to(self.empty)
        known = self.context_net(torch.where(self.log_columns, context.clamp_min(1e-30).log(), context))
        return (self.empty + known).expand(*batch_shape, -1)

    def read(self, history: Tensor) -> Tensor:
        """Summary (*batch, summary_dim) of histories of any lengths."""
        features, mask = self.features.of_history(history)
        return self.initial_state(history.shape[:-2]) + (self.encoder(features) * mask).sum(-2)
