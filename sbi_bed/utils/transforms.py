r"""Unconstrained coordinates of parameters, for any prior, and functions of rows on batches.

A prior is cut into its independent parts (those of sbi's `MultipleIndependent`, else one). Each continuous part gets a
bijection u ↦ θ from its support: the one of torch for that constraint (a simplex by stick-breaking, so that K
probabilities have K − 1 coordinates), the one of the base distribution followed by the transforms of a
`TransformedDistribution`, the hull of all components for a mixture, and the identity where no support is known. Where the
bijection is the identity, coordinates are standardised by the prior's mean and standard deviation.

Discrete parts have no such coordinates. They are kept as they are, and moves of particles propose whole new values:
another value of a short list, a jump by whole numbers, or a fresh draw of that part of the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)
from torch.distributions.transforms import AffineTransform, ComposeTransform

from .seeding import seeded

__all__ = ["DiscretePart", "UnconstrainedTransform", "inside_support", "rowwise", "to_unconstrained"]

_NUM_DRAWS = 1000  # that measure scales, and show which parameters are whole numbers
_SHORT_LIST = 16  # values between which a discrete parameter jumps without regard to distance


class DiscretePart(NamedTuple):
    """Parameters of a prior that are discrete.

    Attributes:
        where: Their places among the unconstrained coordinates.
        low: Smallest values (p,), for whole numbers without further conditions; None for others (one-hot vectors, models
            with their parameters).
        num_values: How many values each has; 0 where there is no end, or too many to list.
        whole: Whether all values are whole numbers; not so where a model's parameters come with its index.
        distribution: This part of the prior.
    """

    where: slice
    low: Tensor | None
    num_values: int
    whole: bool
    distribution: Any


class UnconstrainedTransform(Transform):
    """Bijection from theta (..., P) to unconstrained coordinates (..., F).

    Args:
        parts: Number of parameters, number of coordinates and bijection from coordinates to parameters for each part;
            None as the bijection where the part is kept as it is.
        discrete_parts: The discrete ones.

    Attributes:
        theta_dim: Number P of parameters.
        free_dim: Number F of coordinates.
        discrete: Which coordinates are discrete, (F,), boolean.
    """

    domain, codomain = constraints.real_vector, constraints.real_vector
    bijective = True

    def __init__(self, parts: list[tuple[int, int, Any]], discrete_parts: list[DiscretePart]):
        super().__init__()
        self._parts, self.discrete_parts = parts, discrete_parts
        self.theta_dim, self.free_dim = sum(part[0] for part in parts), sum(part[1] for part in parts)
        self.discrete = torch.zeros(self.free_dim, dtype=torch.bool)
        for part in discrete_parts:
            self.discrete[part.where] = True

    def _call(self, x: Tensor) -> Tensor:
        values = x.split([part[0] for part in self._parts], -1)
        pairs = zip(values, self._parts, strict=True)
        return torch.cat([v if part[2] is None else part[2].inv(v).to(x) for v, part in pairs], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        pairs = zip(y.split([part[1] for part in self._parts], -1), self._parts, strict=True)
        return torch.cat([u if part[2] is None else part[2](u).to(y) for u, part in pairs], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |du/dθ|, shape (...), at theta x (..., P) and u = y (..., F)."""
        thetas, frees = (z.split([part[i] for part in self._parts], -1) for i, z in enumerate((x, y)))
        total = torch.zeros_like(y[..., 0])
        for theta, free, (_, _, bijection) in zip(thetas, frees, self._parts, strict=True):
            if bijection is not None:
                value = bijection.log_abs_det_jacobian(free, theta)
                total = total - (value.sum(-1) if value.ndim == y.ndim else value).to(y)
        return total

    def forward_shape(self, shape: Any) -> torch.Size:
        """Shape of coordinates for a shape of theta."""
        return torch.Size([*shape[:-1], self.free_dim])

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Shape of theta for a shape of coordinates."""
        return torch.Size([*shape[:-1], self.theta_dim])

    def propose_discrete(self, free: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """New values of one discrete part for each row, and the log of p(old) / p(new) where they are prior draws.

        Args:
            free: Coordinates (*batch, n, F).
            other: Other particles (*batch, m, F), which give the size of jumps.

        Returns:
            Coordinates (*batch, n, F), and the correction (*batch, n) that a Metropolis step needs.
        """
        new, correction = free.clone(), free.new_zeros(free.shape[:-1], dtype=torch.float64)
        which = torch.randint(len(self.discrete_parts), free.shape[:-1], device=free.device)
        for index, part in enumerate(self.discrete_parts):
            rows, old = which == index, free[..., part.where]
            if part.low is None:
                drawn = part.distribution.sample((old[..., 0].numel(),)).to(old).reshape(old.shape)
                ratio = [rowwise(part.distribution.log_prob, v).double() for v in (old, drawn)]
                correction = torch.where(rows, ratio[0] - ratio[1], correction)
            elif part.num_values:
                step = torch.randint(1, max(part.num_values, 2), old.shape, device=old.device)
                drawn = part.low.to(old) + (old - part.low.to(old) + step) % part.num_values
            else:
                scale = other[..., part.where].std(-2, keepdim=True).clamp_min(1.0)
                drawn = old + (torch.randn_like(old) * scale).abs().ceil() * (2 * torch.randint_like(old, 2) - 1)
            if part.low is not None and old.shape[-1] > 1:  # one of several parameters
                one = torch.randint(old.shape[-1], old.shape[:-1], device=old.device).unsqueeze(-1)
                drawn = torch.where(torch.arange(old.shape[-1], device=old.device) == one, drawn, old)
            new[..., part.where] = torch.where(rows.unsqueeze(-1), drawn, old)
        return new, correction


def to_unconstrained(prior: Any, keep_discrete: bool = False) -> Any:
    """The `UnconstrainedTransform` of a prior, from theta to unconstrained coordinates; draws that set scales have a seed.

    Args:
        prior: Distribution of theta (P,), or any object with `sample` and `log_prob`.
        keep_discrete: Whether discrete parameters may be kept as they are, for what moves or draws them as a whole.

    Raises:
        ValueError: If theta is discrete in part, as that of a `ModelMixture`, and that is not allowed.

    Example:
        >>> prior = torch.distributions.Dirichlet(torch.ones(3))
        >>> transform = to_unconstrained(prior)
        >>> transform(prior.sample((5,))).shape
        torch.Size([5, 2])
    """
    with seeded(0):
        draws = prior.sample((_NUM_DRAWS,))
    parts: list[tuple[int, int, Any]] = []
    discrete: list[DiscretePart] = []
    place = start = 0
    for distribution, size in _independent_parts(prior, draws.shape[-1]):
        values, start = draws[:, start : start + size], start + size
        support = _support_of(distribution)
        if getattr(support, "is_discrete", False) or (support is None and bool((values == values.round()).all())):
            discrete.append(_discrete_part(distribution, support, slice(place, place + size), values))
            parts.append((size, size, None))
        else:
            bijection = _standardized(_bijection_onto(distribution), distribution, values)
            parts.append((size, bijection.inv(values[:1]).shape[-1], bijection))
        place += parts[-1][1]
    if discrete and not keep_discrete:
        raise ValueError(
            "theta is discrete in part, as that of a mixture of models: it has no unconstrained coordinates. Draws of the "
            "prior serve for it, and so does a posterior by sequential Monte Carlo or importance sampling."
        )
    return UnconstrainedTransform(parts, discrete)


def inside_support(prior: Any, theta: Tensor) -> Tensor:
    """Whether the prior gives theta (N, P) a density, (N,), boolean; True where the prior says nothing of its support."""
    inside = torch.ones(len(theta), dtype=torch.bool, device=theta.device)
    start = 0
    for distribution, size in _independent_parts(prior, theta.shape[-1]):
        inside &= _inside(distribution, theta[:, start : start + size]).reshape(len(theta), -1).all(-1)
        start += size
    return inside


def rowwise(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Apply a function of rows (M, P), as sbi's transforms are, to tensors (*batch, N, P)."""
    result = function(*(value.reshape(-1, value.shape[-1]) for value in values))
    return result.reshape(*values[0].shape[:-1], *result.shape[1:])


def _independent_parts(prior: Any, dim: int) -> list[tuple[Any, int]]:
    """The independent parts of a prior, each with its number of parameters."""
    if type(prior).__name__ == "PytorchReturnTypeWrapper":  # of sbi, around a prior of another precision
        return _independent_parts(prior.prior, dim)
    if hasattr(prior, "dists") and hasattr(prior, "dims_per_dist"):  # sbi's MultipleIndependent
        pairs = zip(prior.dists, prior.dims_per_dist, strict=True)
        return [part for distribution, size in pairs for part in _independent_parts(distribution, int(size))]
    return [(prior, dim)]


def _support_of(distribution: Any) -> Any:
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):
        return None


def _inherits_support(distribution: Any) -> bool:
    """Whether a transformed distribution knows only the image of its last transform, which may be larger."""
    return isinstance(distribution, TransformedDistribution) and (
        type(distribution).support is TransformedDistribution.support
    )


def _inside(distribution: Any, value: Tensor) -> Tensor:
    if isinstance(distribution, Independent):
        return _inside(distribution.base_dist, value)
    if _inherits_support(distribution) and all(step.bijective for step in distribution.transforms):
        inside = torch.ones_like(value, dtype=torch.bool)
        for step in reversed(distribution.transforms):
            checked = step.codomain.check(value)
            inside = inside & (checked if checked.shape == inside.shape else checked.unsqueeze(-1))
            value = step.inv(value)
        below = _inside(distribution.base_dist, value)
        return inside & (below if below.ndim == inside.ndim else below.unsqueeze(-1))
    if isinstance(distribution, MixtureSameFamily):
        in_vectors = len(distribution.event_shape)
        checked = _inside(distribution.component_distribution, value.unsqueeze(-1 - in_vectors))
        return (checked.all(-1) if in_vectors and checked.ndim > value.ndim else checked).any(-1)
    support = _support_of(distribution)
    return torch.ones_like(value[..., 0], dtype=torch.bool) if support is None else support.check(value)


def _discrete_part(distribution: Any, support: Any, where: slice, draws: Tensor) -> DiscretePart:
    """How the discrete parameters of one part can move, whose draws are (N, p)."""
    size, whole = draws.shape[-1], bool((draws == draws.round()).all())
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, type(constraints.boolean)):
        return DiscretePart(where, torch.zeros(size), 2, whole, distribution)
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None or getattr(support, "event_dim", 1) != 0:
        return DiscretePart(where, None, 0, whole, distribution)
    low = torch.as_tensor(low, dtype=torch.get_default_dtype()).expand(size).clone()
    counts = None if high is None else (torch.as_tensor(high) - low + 1).unique()
    one_list = counts is not None and len(counts) == 1 and counts[0] <= _SHORT_LIST
    return DiscretePart(where, low, int(counts[0]) if one_list and counts is not None else 0, whole, distribution)


def _bijection_onto(distribution: Any) -> Any:
    """Bijection from unconstrained coordinates onto the support of a continuous distribution."""
    if isinstance(distribution, Independent):
        return _bijection_onto(distribution.base_dist)
    if _inherits_support(distribution) and all(step.bijective for step in distribution.transforms):
        return ComposeTransform([_bijection_onto(distribution.base_dist), *distribution.transforms])
    support = _support_of(distribution)
    if isinstance(distribution, MixtureSameFamily):
        component = distribution.component_distribution
        support = _hull(_support_of(component), len(component.event_shape))
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    try:
        return biject_to(support)  # pyright: ignore[reportArgumentType]
    except NotImplementedError:  # no support, or one that torch does not know: what falls outside has no density
        return torch.distributions.identity_transform


def _hull(support: Any, event_dim: int) -> Any:
    """The smallest constraint of its kind around the supports of all components."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    low, high = (
        getattr(bound, extreme)(-1 - event_dim) if isinstance(bound, Tensor) and bound.ndim > event_dim else bound
        for bound, extreme in zip(bounds, ("amin", "amax"), strict=True)
    )
    if low is not None and high is not None:
        return constraints.interval(low, high)
    if low is not None:
        return constraints.greater_than(low)
    return support if high is None else constraints.less_than(high)


def _standardized(bijection: Any, distribution: Distribution, draws: Tensor) -> Any:
    """The bijection from coordinates of order one, where it is the identity; else itself."""
    if not (isinstance(bijection, ComposeTransform) and not bijection.parts):  # torch's identity has no parts
        return bijection
    try:
        loc, scale = distribution.mean.reshape(-1), distribution.stddev.reshape(-1)
        loc, scale = loc.expand(draws.shape[-1]), scale.expand(draws.shape[-1])
    except (NotImplementedError, AttributeError, RuntimeError):
        loc = scale = draws.new_full((draws.shape[-1],), torch.nan)
    low, middle, high = draws.double().quantile(draws.new_tensor([0.16, 0.5, 0.84]).double(), dim=0).to(draws)
    known = loc.isfinite() & scale.isfinite() & (scale > 0)
    spread = torch.where(high > low, (high - low) / 2, torch.ones_like(high))
    return AffineTransform(torch.where(known, loc, middle), torch.where(known, scale, spread))
