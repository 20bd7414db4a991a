"""Causal transformer over the trials: the default, and needed where outcomes depend on their order.

Attention can compare single trials, which a sum of encodings cannot: on source location it reaches gains one to two
nats above `DeepSetsPolicy` in the same time.

Keys and values of earlier trials are cached: one trial costs one token, in rollouts and in life.

Where designs are unbounded, the next one is a step from an attention-weighted mean of
earlier ones (`sbi_bed.neural_nets.pointer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...neural_nets.attention import CausalBlock
from ...neural_nets.pointer import PointerHead
from ...neural_nets.trial_features import TrialFeatures
from ...simulators.base import DesignSimulator
from ...simulators.design_space import DesignSpace
from ...utils.checks import check_choice, check_count
from ...utils.renamed import renamed_arguments
from ..base import Policy

__all__ = ["TransformerPolicy"]


class _State(NamedTuple):
    summary: Tensor  # the newest token, (*batch, hidden_dim)
    caches: tuple[tuple[Tensor, Tensor], ...]
    keys: Tensor  # what the head compares places by: the origin and earlier designs, (*batch, 1 + n, key_dim)
    places: Tensor  # these in free coordinates, (*batch, 1 + n, F)

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
        head: "pointer" for a step from a mean of earlier designs, "linear" for free coordinates alone. If None "pointer"
            where designs are unbounded, and "linear" between bounds, where pointers were measured to be no better or worse.
            Always "linear" where designs have choices or their space depends on the history.

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
        self,
        simulator: DesignSimulator,
        horizon: int,
        hidden_dim: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        head: Literal["pointer", "linear"] | None = None,
    ):
        horizon = check_count(horizon, "horizon")
        sizes = {"hidden_dim": hidden_dim, "num_layers": num_layers, "num_heads": num_heads}
        super().__init__(simulator, horizon=horizon, **sizes)
        space = self.design_space
        has_steps = not (space.has_choices or space.depends_on_history)
        if head is None:
            head = "pointer" if has_steps and space.is_unbounded else "linear"
        self.config["head"] = check_choice(head, "head", ("pointer", "linear"))
        self.horizon = horizon
        self.features = TrialFeatures(simulator)
        self.embed = nn.Linear(self.features.output_dim, hidden_dim)
        self.start = nn.Parameter(0.1 * torch.randn(hidden_dim))
        self.position = nn.Parameter(0.1 * torch.randn(horizon, hidden_dim))
        self.blocks = nn.ModuleList(CausalBlock(hidden_dim, num_heads) for _ in range(num_layers))
        if head == "linear" or not has_steps:
            self.head = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, space.free_dim))
        else:
            self.head = PointerHead(hidden_dim, space.free_dim)

    @classmethod
    def rebuild(cls, config: dict[str, Any], simulator: DesignSimulator | None) -> Policy:
        """A policy with new weights, for `simulator`; a config that names no head is of a time when all were linear."""
        return super().rebuild({"head": "linear", **config}, simulator)

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """State after the learned start token."""
        start = self.start.expand(*batch_shape, 1, -1)
        origin = start.new_zeros(*batch_shape, 1, self.design_space.num_features)
        return self._advance(start, origin, None)

    def update(self, state: _State, design: Tensor, outcome: Tensor) -> _State:
        """Attend from one more trial to all before it."""
        if state.num_trials >= self.horizon:
            raise ValueError(f"this policy was built for {self.horizon} trials.")
        features = self.features(design, outcome)
        token = self.embed(features) + self.position[state.num_trials]
        place = features[..., : self.design_space.num_features]
        return self._advance(token.unsqueeze(-2), place.unsqueeze(-2), state)

    def propose(self, state: _State, space: DesignSpace | None = None) -> Tensor:
        """Next design (*batch, D)."""
        pointed = isinstance(self.head, PointerHead)
        free = self.head(state.summary, state.keys, state.places) if pointed else self.head(state.summary)
        return (space or self.design_space).from_free(free)

    def _advance(self, tokens: Tensor, places: Tensor, before: _State | None) -> _State:
        """State after one more token (*batch, 1, hidden_dim), whose design is at `places` (*batch, 1, F)."""
        keys = self.head.to_key(tokens) if isinstance(self.head, PointerHead) else tokens[..., :0]
        if before is not None:
            keys, places = torch.cat([before.keys, keys], -2), torch.cat([before.places, places], -2)
        caches = []
        for block, cache in zip(self.blocks, before.caches if before else (None,) * len(self.blocks), strict=True):
            tokens, cache = block(tokens, cache)
            caches.append(cache)
        return _State(tokens[..., -1, :], tuple(caches), keys, places)
