r"""A transformer that has learned to predict as Bayesian beliefs about a treatment experiment would.

Each unit that was assigned is a token and attends to the tokens before it. The next unit is a token with its covariates
only. It attends to all others and to itself, and gives the predictive mean and log variance of the outcome in each arm;
the propensity follows from these (`policies/treatment/base.py`). There is no positional encoding. Keys and values are
cached, so one live step costs O(t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...neural_nets.attention import CausalBlock
from ...utils.checks import check_count
from ...utils.renamed import renamed_arguments
from .base import StreamPredictions, TreatmentPolicy, neyman_propensity
from .unit_features import UnitFeatures

__all__ = ["ExperimenterTransformer"]


class _State(NamedTuple):
    caches: tuple[tuple[Tensor, Tensor], ...]  # of each block, (*batch, heads, n, hidden_dim / heads)


class ExperimenterTransformer(TreatmentPolicy):
    """Assigns units by a causal transformer over the units before, trained by `ImitationTrainer`.

    Args:
        covariate_dim: Number d of covariates.
        hidden_dim: Size of a token.
        num_layers: Number of attention blocks.
        num_heads: Attention heads of each.
        clip: Propensities lie in [clip, 1 − clip].
        num_functions: Features of the covariates that it reads; see `UnitFeatures`.
        covariate_low: Covariates lie roughly between these, a number or one for each.
        covariate_high: See `covariate_low`.
        outcome_centre: What outcomes are roughly around.
        outcome_scale: About the sd of an outcome.

    Attributes:
        units: Features of a unit.
        embed_unit: Net that reads a past unit.
        embed_next: Linear map of the covariates of the next one.
        blocks: Attention blocks.
        head: What predictions are read from.

    Example:
        >>> policy = ExperimenterTransformer(covariate_dim=2)
        >>> state = policy.initial_state((4,))
        >>> policy.propensity(state, torch.rand(4, 2)).shape
        torch.Size([4])
    """

    @renamed_arguments(width="hidden_dim")
    def __init__(
        self,
        covariate_dim: int,
        hidden_dim: int = 48,
        num_layers: int = 3,
        num_heads: int = 4,
        clip: float = 0.05,
        num_functions: int | None = None,
        covariate_low: float | Sequence[float] = 0.0,
        covariate_high: float | Sequence[float] = 1.0,
        outcome_centre: float = 0.0,
        outcome_scale: float = 1.0,
    ):
        super().__init__(
            covariate_dim=covariate_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            clip=clip,
            num_functions=num_functions,
            covariate_low=covariate_low,
            covariate_high=covariate_high,
            outcome_centre=outcome_centre,
            outcome_scale=outcome_scale,
        )
        scaling = (num_functions, covariate_low, covariate_high, outcome_centre, outcome_scale)
        self.units = UnitFeatures(covariate_dim, 1.5, *scaling)
        num = len(self.units)
        self.embed_unit = nn.Sequential(
            nn.Linear(2 * num + 7, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.embed_next = nn.Linear(num, hidden_dim)
        check_count(num_layers, "num_layers")
        self.blocks = nn.ModuleList(CausalBlock(hidden_dim, num_heads) for _ in range(num_layers))
        self.head = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, 4))

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """No unit."""
        return self._append(None, self.embed_next.weight.new_zeros(*batch_shape, 0, len(self.units) + 3))

    def update(self, state: _State, covariates: Tensor, arm: Tensor, outcome: Tensor) -> _State:
        """Attend from one more unit to all before it."""
        return self._append(state, self.units.encode_unit(covariates.to(self.embed_next.weight), arm, outcome))

    def read(self, history: Tensor) -> _State:
        """All observed units of a history (*batch, T, d + 3) at once; the mask must be the same in the whole batch."""
        observed = (history[..., -1].unsqueeze(0).flatten(0, -2) > 0).any(0)
        return self._append(None, self.units.encode(history[..., observed, :].to(self.embed_next.weight)))

    def predict(self, state: _State, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive mean and log variance; see `TreatmentPolicy`."""
        key = state.caches[0][0]
        num_batch = key.ndim - 3
        sample_shape = covariates.shape[: covariates.ndim - 1 - num_batch]
        flat = covariates.to(key).reshape(sample_shape.numel(), *covariates.shape[len(sample_shape) :]).movedim(0, -2)
        visible = torch.ones(flat.shape[-2], key.shape[-2], dtype=torch.bool, device=key.device)
        both = self._ask(state, self.units.features(flat), visible)
        mean, log_variance = (part.movedim(-2, 0).reshape(*covariates.shape[:-1], 2) for part in both)
        return mean, log_variance

    def along(self, history: Tensor, places: Tensor | None = None) -> StreamPredictions:
        """All units, or those at some places, side by side; see `TreatmentPolicy`."""
        if not bool((history[..., -1] > 0).all()):
            return super().along(history, places)
        units = self.units.encode(history.to(self.embed_next.weight))
        places = torch.arange(units.shape[-2]) if places is None else places
        visible = torch.arange(units.shape[-2], device=units.device) < places.to(units.device).unsqueeze(-1)
        mean, log_variance = self._ask(self._append(None, units), units[..., places, :-3], visible)
        return StreamPredictions(neyman_propensity(log_variance, self.clip), mean, log_variance)

    def _append(self, state: _State | None, units: Tensor) -> _State:
        """State after encoded units (*batch, n, m + 3), after those of `state`."""
        tokens, caches = self._embed(units), []
        for i, block in enumerate(self.blocks):
            tokens, cache = block(tokens, None if state is None else state.caches[i])
            caches.append(cache)
        return _State(tuple(caches))

    def _embed(self, units: Tensor) -> Tensor:
        """Tokens (*batch, n, hidden_dim) of encoded units; outcomes enter by asinh, so that none is too large."""
        features, arm, outcome = units[..., :-3], units[..., -3:-2], units[..., -2:-1]
        outcome = torch.asinh(outcome)
        square, sign = outcome.square(), 2 * arm - 1
        parts = [features, features * outcome, sign, outcome, square, outcome.abs(), sign * outcome, sign * square]
        return self.embed_unit(torch.cat([*parts, sign * outcome.abs()], -1))

    def _ask(self, state: _State, features: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (*batch, q, 2) for next units with features (*batch, q, m), of what they may see."""
        tokens = self.embed_next(features)
        for block, cache in zip(self.blocks, state.caches, strict=True):
            tokens = block.ask(tokens, cache, visible)  # pyright: ignore[reportCallIssue]
        mean, log_variance = self.head(tokens).split(2, -1)
        return self.units.rescale(mean, log_variance)
