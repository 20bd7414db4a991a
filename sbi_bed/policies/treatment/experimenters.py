r"""A transformer that has learned to predict as Bayesian beliefs about a treatment experiment would.

Each unit that was assigned is a token and attends to the tokens before it. The next unit is a token with its covariates
only. It attends to all others and to itself, and gives the predictive mean and log variance of the outcome in each arm;
the propensity follows from these (`policies/treatment/base.py`). There is no positional encoding. Keys and values are
cached, so one live step costs O(t), apart from the steps at which the location and scale of outcomes are estimated anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...neural_nets.attention import CausalBlock
from ...utils.checks import check_count
from ...utils.renamed import renamed_arguments
from .arm_moments import ArmMoments
from .base import StreamPredictions, TreatmentPolicy, neyman_propensity
from .unit_features import OutcomeUnit, UnitFeatures

__all__ = ["ExperimenterTransformer"]


_FIRST_LOOK = 8  # outcomes from which location and scale are first estimated


class _State(NamedTuple):
    units: Tensor  # (*batch, n, m + 3), all observed
    unit: OutcomeUnit | None  # None until there are enough outcomes to estimate it
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
        outcome_centre: Location of outcomes. If None, the mean of the first 8, 16, 32, … outcomes.
        outcome_scale: Scale of outcomes. If None, the standard deviation within arms of these.

    Without a given location and scale, units are read anew whenever the number of outcomes has doubled, and the first 8
    units are assigned by the Neyman rule from the arms' running variances.

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
        outcome_centre: float | None = None,
        outcome_scale: float | None = None,
    ):
        unit: dict[str, Any] = {"num_functions": num_functions, "outcome_centre": outcome_centre}
        unit |= {"outcome_scale": outcome_scale, "covariate_low": covariate_low, "covariate_high": covariate_high}
        net = {"hidden_dim": hidden_dim, "num_layers": num_layers, "num_heads": num_heads}
        super().__init__(covariate_dim, clip, **net, **unit)
        self.needs_outcomes = outcome_centre is None
        self.units = UnitFeatures(covariate_dim, 1.5, **unit)
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
        return self._start(torch.zeros(*batch_shape, 0, len(self.units) + 3, dtype=torch.float64))

    def update(self, state: _State, covariates: Tensor, arm: Tensor, outcome: Tensor) -> _State:
        """Attend from one more unit to all before it."""
        unit = self.units.encode_unit(covariates, arm, outcome)
        units = torch.cat([state.units, unit], -2)
        if self._num_looked_at(units.shape[-2]) != self._num_looked_at(state.units.shape[-2]):
            return self._start(units)
        if state.unit is None:
            return _State(units, None, ())
        return _State(units, state.unit, self._append(state.caches, unit, state.unit))

    def read(self, history: Tensor) -> _State:
        """All observed units of a history (*batch, T, d + 3) at once; the mask must be the same in the whole batch."""
        observed = (history[..., -1].unsqueeze(0).flatten(0, -2) > 0).any(0)
        return self._start(self.units.encode(history[..., observed, :]))

    def predict(self, state: _State, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive mean and log variance; see `TreatmentPolicy`."""
        shape = covariates.shape[:-1]
        if state.unit is None:
            mean, log_variance = ArmMoments.of(*state.units[..., -3:].unbind(-1)).predict()
            return mean.expand(*shape, 2), log_variance.expand(*shape, 2)
        key = state.caches[0][0]
        num_batch = key.ndim - 3
        sample_shape = covariates.shape[: covariates.ndim - 1 - num_batch]
        flat = covariates.to(key).reshape(sample_shape.numel(), *covariates.shape[len(sample_shape) :]).movedim(0, -2)
        visible = torch.ones(flat.shape[-2], key.shape[-2], dtype=torch.bool, device=key.device)
        both = self._ask(state.caches, self.units.features(flat), visible)
        mean, log_variance = (part.movedim(-2, 0).reshape(*shape, 2) for part in both)
        return state.unit.rescale_any(mean, log_variance, len(self.units))

    def along(self, history: Tensor, places: Tensor | None = None) -> StreamPredictions:
        """All units, or those at some places, side by side; see `TreatmentPolicy`."""
        if not bool((history[..., -1] > 0).all()):
            return super().along(history, places)
        units = self.units.encode(history)
        places = torch.arange(units.shape[-2]) if places is None else places
        looked_at = torch.tensor([self._num_looked_at(place) for place in places.tolist()])
        parts, order = [], []
        for num in looked_at.unique().tolist():  # places with one unit of outcomes are asked together
            same = (looked_at == num).nonzero().squeeze(-1)
            parts.append(self._ask_along(units, places[same], num))
            order.append(same)
        back = torch.cat(order).argsort().to(units.device)
        mean, log_variance = (torch.cat(part, -2)[..., back, :] for part in zip(*parts, strict=True))
        return StreamPredictions(neyman_propensity(log_variance, self.clip), mean, log_variance)

    # ---- inside

    def _num_looked_at(self, num_units: int) -> int:
        """How many of the first units the location and scale of outcomes are estimated from."""
        if self.units.knows_unit:
            return -1
        return 0 if num_units < _FIRST_LOOK else _FIRST_LOOK * 2 ** ((num_units // _FIRST_LOOK).bit_length() - 1)

    def _outcome_unit(self, units: Tensor, num: int) -> OutcomeUnit:
        return self.units.outcome_unit(*units[..., : max(num, 0), -3:].unbind(-1))

    def _start(self, units: Tensor) -> _State:
        """State after encoded units (*batch, n, m + 3)."""
        num = self._num_looked_at(units.shape[-2])
        if num == 0:
            return _State(units, None, ())
        unit = self._outcome_unit(units, num)
        return _State(units, unit, self._append(None, units, unit))

    def _ask_along(self, units: Tensor, places: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Mean and log variance (*batch, S, 2) at places whose unit of outcomes rests on the first `num` units."""
        last = int(places.max())
        if num == 0:
            before = torch.arange(last, device=units.device) < places.to(units.device).unsqueeze(-1)
            arm, outcome, mask = (part.unsqueeze(-2) for part in units[..., :last, -3:].unbind(-1))
            return ArmMoments.of(arm, outcome, mask * before).predict()
        seen, unit = units[..., :last, :], self._outcome_unit(units, num)
        visible = torch.arange(last, device=units.device) < places.to(units.device).unsqueeze(-1)
        both = self._ask(self._append(None, seen, unit), units[..., places, :-3], visible)
        return unit.for_rows().rescale_any(*both, len(self.units))

    def _append(
        self, caches: tuple[tuple[Tensor, Tensor], ...] | None, units: Tensor, unit: OutcomeUnit
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Caches after encoded units (*batch, n, m + 3), after those of `caches`."""
        tokens, after = self._embed(units, unit), []
        for i, block in enumerate(self.blocks):
            tokens, cache = block(tokens, None if caches is None else caches[i])
            after.append(cache)
        return tuple(after)

    def _embed(self, units: Tensor, unit: OutcomeUnit) -> Tensor:
        """Tokens (*batch, n, hidden_dim) of encoded units; outcomes enter by asinh, so that none is too large."""
        outcome = torch.asinh(unit.standardise(units[..., -2])).unsqueeze(-1)
        features, arm, outcome = (
            part.to(self.embed_next.weight) for part in (units[..., :-3], units[..., -3:-2], outcome)
        )
        square, sign = outcome.square(), 2 * arm - 1
        parts = [features, features * outcome, sign, outcome, square, outcome.abs(), sign * outcome, sign * square]
        return self.embed_unit(torch.cat([*parts, sign * outcome.abs()], -1))

    def _ask(
        self, caches: tuple[tuple[Tensor, Tensor], ...], features: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance (*batch, q, 2), in standard units, for features (*batch, q, m), of what they may see."""
        tokens = self.embed_next(features.to(self.embed_next.weight))
        for block, cache in zip(self.blocks, caches, strict=True):
            tokens = block.ask(tokens, cache, visible)  # pyright: ignore[reportCallIssue]
        mean, log_variance = self.head(tokens).split(2, -1)
        return mean, log_variance
