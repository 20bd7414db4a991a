r"""Independent parameters, each with a distribution of its own inside bounds of its own.

With F the distribution function of a parameter, its density inside [l, h] is

    p(x | l ≤ x ≤ h) = p(x) / (F(h) − F(l)),   F⁻¹_{l,h}(u) = F⁻¹(F(l) + u (F(h) − F(l))).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["TruncatedIndependent"]


class TruncatedIndependent(Distribution):
    """A vector (P,) of independent parameters, each from a distribution over numbers, cut to bounds.

    Args:
        distributions: P distributions over single numbers (batch and event shape ()).
        bounds: For each the pair (low, high) that cuts it, or None. A bound beyond the support changes nothing.

    Raises:
        TypeError: If one is not a distribution of torch.
        ValueError: If one is not over single numbers, has no mass inside its bounds, or is to be cut although torch has no
            distribution function for it.

    Example:
        >>> from torch.distributions import HalfNormal, Uniform
        >>> prior = TruncatedIndependent([HalfNormal(0.25), Uniform(0.1, 5.0)], [(0.01, 0.5), None])
        >>> prior.icdf(torch.tensor([1.0, 0.5])).tolist()
        [0.5, 2.549999952316284]
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch declares it)

    def __init__(
        self, distributions: Sequence[Distribution], bounds: Sequence[tuple[float, float] | None] | None = None
    ):
        bounds = [None] * len(distributions) if bounds is None else list(bounds)
        if len(distributions) == 0 or len(distributions) != len(bounds):
            raise ValueError(
                f"there must be as many bounds as distributions, at least one; got {len(distributions)}, {len(bounds)}."
            )
        self.distributions = tuple(distributions)
        self.low, self.high, self.cdf_low, self.cdf_high = (
            torch.tensor(column, dtype=torch.float64)
            for column in zip(*(_cut(*pair) for pair in zip(distributions, bounds, strict=True)), strict=True)
        )
        super().__init__(torch.Size(), torch.Size([len(self.distributions)]), validate_args=False)

    @property
    def support(self) -> Any:
        """Constraint on vectors (P,)."""
        low, high = self.low.to(torch.get_default_dtype()), self.high.to(torch.get_default_dtype())
        if torch.isfinite(low).all() and torch.isfinite(high).all():
            return constraints.independent(constraints.interval(low, high), 1)
        parts = [_constraint(*pair) for pair in zip(self.low.tolist(), self.high.tolist(), strict=True)]
        return constraints.independent(constraints.cat(parts, dim=-1, lengths=[1] * len(parts)), 1)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles (..., P) at probabilities (..., P).

        Raises:
            NotImplementedError: If torch has no quantile function of one of the distributions.
        """
        share = self.cdf_low + value.double() * (self.cdf_high - self.cdf_low)
        columns = [one.icdf(u) for one, u in zip(self.distributions, share.unbind(-1), strict=True)]
        return torch.stack(columns, -1).double().clamp(self.low, self.high).to(value)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, P)."""
        shape, columns = torch.Size(sample_shape), []
        for i, one in enumerate(self.distributions):
            if self.cdf_low[i] == 0 and self.cdf_high[i] == 1:
                columns.append(one.sample(shape).double())
                continue
            share = torch.rand(shape, dtype=torch.float64)
            share = self.cdf_low[i] + share * (self.cdf_high[i] - self.cdf_low[i])
            columns.append(one.icdf(share).double().clamp(self.low[i], self.high[i]))
        return torch.stack(columns, -1).to(torch.get_default_dtype())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (...) of vectors (..., P); −inf outside the bounds."""
        inside = (value >= self.low.to(value)) & (value <= self.high.to(value))
        some = self._inside_point().to(value)
        parts = torch.where(inside, value, some).unbind(-1)
        each = torch.stack([one.log_prob(part) for one, part in zip(self.distributions, parts, strict=True)], -1)
        each = each - (self.cdf_high - self.cdf_low).log().to(each)
        return torch.where(inside, each, -torch.inf).sum(-1)

    def _inside_point(self) -> Tensor:
        low, high = self.low.clamp_min(-1e6), self.high.clamp_max(1e6)
        return torch.where(torch.isfinite(self.low), self.low + (high - low) * 1e-3, 0.0).clamp(low, high)


def _cut(distribution: Any, bounds: tuple[float, float] | None) -> tuple[float, float, float, float]:
    """Low, high, and the distribution function there."""
    if not isinstance(distribution, Distribution):
        raise TypeError(f"a parameter needs a distribution of torch.distributions, got {distribution!r}.")
    if distribution.batch_shape + distribution.event_shape:
        raise ValueError(f"each distribution must be over single numbers, got {distribution}.")
    low, high = _support(distribution)
    if bounds is None or (bounds[0] <= low and bounds[1] >= high):
        return low, high, 0.0, 1.0
    low, high = max(low, float(bounds[0])), min(high, float(bounds[1]))
    if not low < high:
        raise ValueError(f"{distribution} has no mass inside the bounds {tuple(bounds)}.")
    ends = torch.tensor([low, high], dtype=torch.float64)
    try:
        cdf_low, cdf_high = distribution.cdf(ends).double().tolist()
    except NotImplementedError as err:
        raise ValueError(
            f"torch has no distribution function for {distribution}, so it cannot be cut to {tuple(bounds)}: take a "
            "distribution whose support lies inside."
        ) from err
    if not cdf_high > cdf_low:
        raise ValueError(f"{distribution} has no mass inside the bounds {tuple(bounds)}.")
    return low, high, cdf_low, cdf_high


def _support(distribution: Distribution) -> tuple[float, float]:
    support: Any = distribution.support
    low, high = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    return float(low), float(high)


def _constraint(low: float, high: float) -> constraints.Constraint:
    if math.isfinite(low) and math.isfinite(high):
        return constraints.interval(low, high)
    if math.isfinite(low):
        return constraints.greater_than(low)
    return constraints.less_than(high) if math.isfinite(high) else constraints.real
