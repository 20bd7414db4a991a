r"""Tails of densities of one variable: for which powers γ is ∫ p(x)^γ dx finite?

Let d be the distance from a finite end of the support, or |x| at an infinite end. If log p ≈ b log d near a finite end and
log p ≈ −a log d at an infinite end, then

    ∫ p^γ dx is finite   ⇔   κ = 1 + γ b > 0 at each finite end   and   κ = γ a − 1 > 0 at each infinite end,

and the mass beyond a distance d is in proportion to d^κ or d^{−κ}. b = ∞ or a = ∞ where p falls faster than any power. a and
b are known for the families of torch. For other densities they are slopes of log p against log d, at distances that double
on the log scale; the limit of the slopes is extrapolated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import Distribution, constraints

from ...utils.seeding import seeded

__all__ = ["Tails", "as_double", "check_powers", "closed_form_tails", "gamma_bounds", "tails_of"]

_DECADES = (2.5, 5, 10, 20, 40, 80)  # distances at an end, in powers of ten
_STEP = 0.5  # of log distance, to each side, for a slope
_STEEP = 100.0  # a slope beyond it counts as infinite
_SAME = 1e-6  # slopes that differ less are equal
_SLOW = 2e-3  # κ of a density itself, up to which a power law is not told from one with logarithms
_LOST = math.log(100)  # nats: 1 % of the mass


@dataclass(frozen=True)
class Tails:
    """Ends of the supports and exponents of a batch of densities; all of the batch shape, float64.

    Attributes:
        low: Lower end of the support, −∞ if there is none.
        high: Upper end of the support, ∞ if there is none.
        left: b at a finite lower end, a at −∞.
        right: b at a finite upper end, a at ∞.
    """

    low: Tensor
    high: Tensor
    left: Tensor
    right: Tensor

    def rates(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """κ at the left and the right end for powers γ, (...)."""
        return _rate(gamma, self.left, self.low), _rate(gamma, self.right, self.high)


def gamma_bounds(tails: Tails) -> tuple[Tensor, Tensor]:
    """The open interval of powers γ for which p^γ has a finite integral: its lower and upper ends, of the batch shape."""
    lower, upper = torch.zeros_like(tails.left), torch.full_like(tails.left, math.inf)
    for exponent, end in ((tails.left, tails.low), (tails.right, tails.high)):
        infinite = end.isinf()
        lower = torch.where(infinite, torch.maximum(lower, 1 / exponent), lower)
        upper = torch.where(~infinite & (exponent < 0), torch.minimum(upper, -1 / exponent), upper)
    return lower, upper


def check_powers(gamma: Tensor, tails: Tails, family: str, dtype: torch.dtype) -> None:
    """Check that p^γ has a finite integral, and that `dtype` can hold its draws, for powers γ (..., *batch).

    Raises:
        ValueError: If not; it says the bound of γ.
    """
    if not bool((torch.stack(tails.rates(torch.ones(()).double())) > _SLOW).all()):
        raise ValueError(
            f"powers of {family} cannot be computed: its tails fall hardly faster than 1/x, such as 1/(x log² x). Choose "
            "another prior."
        )
    lower, upper = gamma_bounds(tails)
    left, right = tails.rates(gamma.double())
    reach = math.log(torch.finfo(dtype).max)
    wide = (tails.low.isinf() & (left * reach < _LOST)) | (tails.high.isinf() & (right * reach < _LOST))
    for bad, problem in (
        ((left <= _SAME) | (right <= _SAME), "has no finite integral"),
        (wide, f"is so wide that more than 1 % of its draws exceed the range of {dtype}"),
    ):
        if bool(bad.any()):
            first = tuple(bad.nonzero()[0].tolist())
            value = gamma.expand(bad.shape)[first].item()
            least, most = (bound.expand(bad.shape)[first].item() for bound in (lower, upper))
            bounds = f"above {least:g}" if most == math.inf else f"above {least:g} and below {most:g}"
            raise ValueError(
                f"p(θ)^γ {problem} at γ = {value:g} for {family}: it is finite for γ {bounds}. Choose γ nearer to 1, or "
                "another prior."
            )


def tails_of(base: Distribution) -> Tails:
    """Tails of a continuous distribution of one variable (event shape ()), any batch shape.

    Raises:
        ValueError: If log p is NaN towards an end of the support.
    """
    base = as_double(base)
    known = closed_form_tails(base)
    return _measured(base) if known is None else known


def closed_form_tails(base: Distribution) -> Tails | None:
    """Tails of a distribution of a known family, or of a mixture or an affine transform of such; else None."""
    if type(base) in _FAMILIES:
        low, high, left, right = (torch.as_tensor(v, dtype=torch.float64) for v in _FAMILIES[type(base)](base))
        return Tails(*(value.expand(base.batch_shape) for value in (low, high, left, right)))
    if type(base) is td.MixtureSameFamily:
        return _of_mixture(base)
    if type(base) is td.TransformedDistribution and all(isinstance(t, td.AffineTransform) for t in base.transforms):
        return _of_affine(base)
    if isinstance(base, td.Independent) and base.reinterpreted_batch_ndims == 0:
        return closed_form_tails(base.base_dist)
    return None


def as_double(value: Any, copies: dict[int, Any] | None = None) -> Any:
    """A copy of a distribution, or of a part of one, with float64 tensors and without checks of values."""
    copies = {} if copies is None else copies  # a transform and its inverse refer to each other
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(as_double(part, copies) for part in value)
    if isinstance(value, (Distribution, td.Transform, constraints.Constraint)):
        copied = copies[id(value)] = copy.copy(value)
        for name, part in vars(value).items():
            copied.__dict__[name] = as_double(part, copies)
        if isinstance(value, Distribution):
            copied.__dict__["_validate_args"] = False
        return copied
    return value


# ---- known families: lower end, upper end, exponents at both


def _family(low: Any, high: Any, left: Any, right: Any) -> Callable[[Any], tuple[Any, ...]]:
    return lambda d: tuple(part(d) if callable(part) else part for part in (low, high, left, right))


_INF = math.inf
_FAMILIES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    td.Normal: _family(-_INF, _INF, _INF, _INF),
    td.Laplace: _family(-_INF, _INF, _INF, _INF),
    td.Gumbel: _family(-_INF, _INF, _INF, _INF),
    td.VonMises: _family(-math.pi, math.pi, 0.0, 0.0),
    td.Cauchy: _family(-_INF, _INF, 2.0, 2.0),
    td.StudentT: _family(-_INF, _INF, lambda d: d.df + 1, lambda d: d.df + 1),
    td.HalfNormal: _family(0.0, _INF, 0.0, _INF),
    td.HalfCauchy: _family(0.0, _INF, 0.0, 2.0),
    td.Exponential: _family(0.0, _INF, 0.0, _INF),
    td.Gamma: _family(0.0, _INF, lambda d: d.concentration - 1, _INF),
    td.Chi2: _family(0.0, _INF, lambda d: d.concentration - 1, _INF),
    td.Weibull: _family(0.0, _INF, lambda d: d.concentration - 1, _INF),
    td.InverseGamma: _family(0.0, _INF, _INF, lambda d: d.concentration + 1),
    td.LogNormal: _family(0.0, _INF, _INF, _INF),
    td.Pareto: _family(lambda d: d.scale, _INF, 0.0, lambda d: d.alpha + 1),
    td.FisherSnedecor: _family(0.0, _INF, lambda d: d.df1 / 2 - 1, lambda d: d.df2 / 2 + 1),
    td.Beta: _family(0.0, 1.0, lambda d: d.concentration1 - 1, lambda d: d.concentration0 - 1),
    td.Kumaraswamy: _family(0.0, 1.0, lambda d: d.concentration1 - 1, lambda d: d.concentration0 - 1),
    td.ContinuousBernoulli: _family(0.0, 1.0, 0.0, 0.0),
    td.Uniform: _family(lambda d: d.low, lambda d: d.high, 0.0, 0.0),
}


def _of_mixture(base: td.MixtureSameFamily) -> Tails | None:
    """The heaviest component decides, if all components have the same support."""
    of_components = closed_form_tails(base.component_distribution)
    if of_components is None:
        return None
    low, high = of_components.low, of_components.high
    if not (bool((low == low[..., :1]).all()) and bool((high == high[..., :1]).all())):
        return None
    present = base.mixture_distribution.probs > 0
    left, right = (
        torch.where(present, exponent, _INF).amin(-1) for exponent in (of_components.left, of_components.right)
    )
    return Tails(low[..., 0], high[..., 0], left, right)


def _of_affine(base: td.TransformedDistribution) -> Tails | None:
    found = closed_form_tails(base.base_dist)
    if found is None:
        return None
    low, high, left, right = found.low, found.high, found.left, found.right
    for transform in base.transforms:
        scale = torch.as_tensor(transform.scale, dtype=torch.float64)  # pyright: ignore[reportAttributeAccessIssue]
        low, high, left, right = torch.broadcast_tensors(transform(low), transform(high), left, right, scale)[:4]
        mirrored = (scale < 0).expand(low.shape)
        low, high = torch.where(mirrored, high, low), torch.where(mirrored, low, high)
        left, right = torch.where(mirrored, right, left), torch.where(mirrored, left, right)
    return Tails(*(value.expand(base.batch_shape) for value in (low, high, left, right)))


# ---- other densities


def _measured(base: Distribution) -> Tails:
    low, high = _support(base)
    with seeded(0):
        draws = base.sample(Size((1000,))).double()
    place, width = draws.median(0).values, (draws.quantile(0.75, 0) - draws.quantile(0.25, 0)).clamp_min(1e-300)
    return Tails(low, high, _exponent(base, low, -1, place, width), _exponent(base, high, 1, place, width))


def _exponent(base: Distribution, end: Tensor, side: int, place: Tensor, width: Tensor) -> Tensor:
    """b or a at one end of the support, of the batch shape; `side` is −1 for the lower end and 1 for the upper."""
    infinite = end.isinf()
    start, outwards = torch.where(infinite, place, end), torch.where(infinite, 1.0, -1.0).double()
    decades = torch.tensor(_DECADES, dtype=torch.float64).reshape(-1, *[1] * place.ndim)
    distance = width * 10 ** (outwards * decades)
    shift = torch.tensor([-_STEP, 0.0, _STEP], dtype=torch.float64).reshape(-1, *[1] * distance.ndim)
    log_p = base.log_prob(start + side * outwards * distance * shift.exp())
    slope = -outwards * (log_p[2] - log_p[0]) / (2 * _STEP)
    lowest = log_p.amin(0)  # NaN if one is
    resolved = infinite | (distance > 1e-12 * start.abs())
    at_end = infinite.expand(distance.shape)
    columns = (part.reshape(len(_DECADES), -1).T.tolist() for part in (slope, lowest, resolved, at_end))
    limits = [_limit(*column) for column in zip(*columns, strict=True)]
    return torch.tensor(limits, dtype=torch.float64).reshape(place.shape)


def _limit(slopes: list[float], lowest: list[float], resolved: list[bool], infinite: list[bool]) -> float:
    """Limit of slopes of log p at distances whose logarithms double; ∞ if they grow without end."""
    values: list[float] = []
    for slope, log_p, is_resolved, is_infinite in zip(slopes, lowest, resolved, infinite, strict=True):
        if log_p == -math.inf and values and values[-1] < 0 and not is_infinite:
            break  # a density that rises towards an end, and is lost to rounding close to it
        if slope > _STEEP or (log_p == -math.inf and len(values) < 3):
            return math.inf
        if not is_resolved or not math.isfinite(log_p):
            break
        values.append(slope)
    if not values:
        raise ValueError("log_prob is not a number towards an end of the support.")
    if len(values) < 3:
        return values[-1]
    before, last = values[-2] - values[-3], values[-1] - values[-2]
    if abs(last) < _SAME * (1 + abs(values[-1])):
        return values[-1]
    if last > 0 and last > 0.75 * before:
        return math.inf
    ratio = min(max(last / before, -0.5), 0.6) if before else 0.0  # 1/2 for slopes that approach as c / log d
    return values[-1] + last * ratio / (1 - ratio)


def _support(base: Distribution) -> tuple[Tensor, Tensor]:
    """Ends of the support, of the batch shape."""
    if type(base) is td.TransformedDistribution:
        low, high = _support(base.base_dist)
        for transform in base.transforms:
            push: Any = torch.sigmoid if isinstance(transform, td.SigmoidTransform) else transform  # torch's is clipped
            ends = push(low), push(high)
            low, high = torch.minimum(*ends), torch.maximum(*ends)
        return low.expand(base.batch_shape), high.expand(base.batch_shape)
    if type(base) is td.MixtureSameFamily:
        low, high = _support(base.component_distribution)
        return low.amin(-1), high.amax(-1)
    known = closed_form_tails(base)
    if known is not None:
        return known.low, known.high
    support: Any = base.support
    support = getattr(support, "base_constraint", support)
    low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    ends = (torch.as_tensor(value, dtype=torch.float64).expand(base.batch_shape) for value in (low, high))
    return tuple(ends)  # pyright: ignore[reportReturnType]


def _rate(gamma: Tensor, exponent: Tensor, end: Tensor) -> Tensor:
    power = torch.where(exponent.isinf(), math.inf, gamma * torch.where(exponent.isinf(), 0.0, exponent))
    return torch.where(end.isinf(), power - 1, power + 1)
