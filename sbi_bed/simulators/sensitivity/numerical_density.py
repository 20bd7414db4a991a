r"""A power of any density of one variable, by quadrature.

For p on a support that T maps the real line onto, x = T(m + s sinh t) with m, s the place and width of prior draws,

    q(x) = p(x)^γ / Z,    Z = ∫ p(x(t))^γ |dx/dt| dt,

by the trapezoidal rule on a grid of t. The grid ends where the integrand has fallen by 16 powers of ten, or far out in a
tail that falls as a power of the distance d from the end of the support (or from the place m). There the mass beyond is

    p(x)^γ d / κ,

and it falls as d^{∓κ}, with κ as in `tails.py`. If κ ≤ 0, p^γ has no finite integral. log q is exact but for Z. Draws come
from the grid's distribution function (masses of cells by cubics, a log density that is linear between nodes) and from the
tails' masses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ...utils.seeding import seeded
from .tails import Tails, as_double, check_powers, tails_of

__all__ = ["PoweredDensity"]

_GRIDS = ((2049, 20.0), (8193, 20.0), (32769, 60.0))  # nodes and largest t; the next one if a grid is not exact
_FALL = 36.8  # nats: 16 powers of ten
_LOG_RANGE = 300.0  # largest distance of log d from the middle
_RESOLVED = 1e-11  # smallest d at a finite end, relative to the end
_TOLERANCE, _LARGEST_ERROR = 1e-4, 1e-3  # of integrals: aimed at, and allowed on the finest grid
_CELLS_AT_A_TIME = 2**21


class PoweredDensity(Distribution):
    """p(x)^γ / Z for scalar distributions p with a batch of γ; `sample`, `log_prob`, `icdf`.

    Args:
        base: Distribution of event shape (), with `support`, `sample`, `log_prob`; its batch shape broadcasts with γ.
        gamma: Powers, positive, (...).
        tails: Tails of `base`; computed if None.

    Raises:
        ValueError: If p^γ has no finite integral, `base` is not continuous in one variable, or it cannot be integrated.

    Example:
        >>> from torch.distributions import Normal
        >>> squared = PoweredDensity(Normal(0.0, 1.0), torch.tensor([1.0, 4.0]))
        >>> squared.icdf(torch.tensor(0.975))
        tensor([1.9600, 0.9800])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __init__(self, base: Distribution, gamma: Tensor, tails: Tails | None = None):
        support: Any = base.support
        if len(base.event_shape) or support.is_discrete:
            raise ValueError(f"powers are taken of densities of one continuous variable, got {base!r}.")
        self.base, self.tails = base, tails_of(base) if tails is None else tails
        self.gamma = gamma.broadcast_to(torch.broadcast_shapes(gamma.shape, base.batch_shape))
        with torch.no_grad(), seeded(0):
            draws = base.sample(Size((1000,)))
        self._dtype, self._double = draws.dtype, as_double(base)
        check_powers(self.gamma, self.tails, type(base).__name__, self._dtype)
        with torch.no_grad():
            self._fit_grid(draws.double())
        super().__init__(self.gamma.shape, Size(), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Interval, half-line or real line between the ends of the support."""
        low, high = self.tails.low.to(self._dtype), self.tails.high.to(self._dtype)
        above, below = not bool(low.isinf().any()), not bool(high.isinf().any())
        if above and below:
            return constraints.interval(low, high)
        if above:
            return constraints.positive if bool((low == 0).all()) else constraints.greater_than_eq(low)
        return constraints.less_than(high) if below else constraints.real

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, *batch), of the dtype of the base."""
        return self.icdf(torch.rand(*sample_shape, *self.batch_shape, dtype=torch.float64))

    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles at probabilities (..., *batch), of the dtype of the base and within its range."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        batch = self.batch_shape.numel()
        levels = value.double().expand(shape).reshape(-1, batch).T.contiguous()
        gammas, base_rows = self._rows()
        step, parts = max(1, _CELLS_AT_A_TIME // (self._points.shape[1] + levels.shape[1])), []
        for start in range(0, batch, step):
            rows = slice(start, start + step)
            parts.append(self._quantiles(levels[rows], gammas[rows], base_rows[rows]))
        largest = torch.finfo(self._dtype).max
        return torch.cat(parts).T.reshape(shape).clamp(-largest, largest).to(self._dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of x (..., *batch); −inf outside the support."""
        x = value.double()
        inside = (x >= self.tails.low) & (x <= self.tails.high)
        density = self.gamma * self._double.log_prob(torch.where(inside, x, self._middle)) - self._log_integral()
        return torch.where(inside, density, -torch.inf).to(value.dtype)

    # ---- the grid

    def _fit_grid(self, draws: Tensor) -> None:
        to_x, to_u = _coordinates(self.tails.low, self.tails.high)
        u = to_u(draws)
        low, place, high = u.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=u.dtype), dim=0)
        width = (high - low).clamp_min(1e-12)
        for num_nodes, furthest in _GRIDS:
            self._build(to_x, place, width, num_nodes, furthest)
            error = self._error()
            if error < (_LARGEST_ERROR if num_nodes == _GRIDS[-1][0] else _TOLERANCE):
                return
        raise ValueError(
            f"the density of {type(self.base).__name__} cannot be integrated on a grid: its integrals are off by "
            f"{error:.2g}. Its log_prob may not be normalised, or its peaks are too narrow beside their distances."  # pyright: ignore
        )

    def _build(
        self, to_x: Callable[[Tensor], tuple[Tensor, Tensor]], place: Tensor, width: Tensor, num: int, furthest: float
    ) -> None:
        """Points (N, n), and logs of p and of dx/dt there, out to where the smallest power has fallen."""
        smallest, reach = min(float(self.gamma.min()), 1.0), 2.0  # 1, because ∫ p is checked
        while True:
            t = torch.linspace(-reach, reach, num, dtype=torch.float64).reshape(-1, *[1] * place.ndim)
            u = place + width * t.sinh()
            x, log_slope = to_x(u)
            log_step = (width * t.cosh()).log() + log_slope
            log_p, log_step = self._log_density(x, log_step, (width * t.sinh()).abs())
            value = smallest * log_p + log_step
            if reach >= furthest or bool((torch.maximum(value[0], value[-1]) < value.amax(0) - _FALL).all()):
                break
            reach = min(1.15 * reach, furthest)
        self._middle, self._t_step = x[num // 2], 2 * reach / (num - 1)
        nodes = [part.reshape(num, -1).T for part in (x, u, log_p, log_step)]
        self._points, self._u, self._log_p, self._log_step = nodes
        known = self._log_p.isfinite().double()
        self._first, self._last = known.argmax(-1), num - 1 - known.flip(-1).argmax(-1)

    def _log_density(self, x: Tensor, log_step: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """log p and log dx/dt at nodes; −inf and 0 outside of what numbers resolve, where the tails take over."""
        low, high = self.tails.low, self.tails.high
        known = torch.isfinite(log_step) & (x > low) & (x < high)
        known &= low.isinf() | (x - low > _RESOLVED * low.abs())
        known &= high.isinf() | (high - x > _RESOLVED * high.abs())
        if bool((low.isfinite() | high.isfinite()).any()):
            known &= gap < _LOG_RANGE
        middle = x[len(x) // 2]
        log_p = self._double.log_prob(torch.where(known, x, middle)).double()
        known &= torch.isfinite(log_p)
        return torch.where(known, log_p, -torch.inf), torch.where(known, log_step, 0.0)

    def _error(self) -> float:
        """Largest relative error: of ∫ p at γ = 1, and of coarser sums (every second node) at the extreme powers."""
        gammas, base_rows = self._rows()
        rows = torch.arange(len(self._points))
        total = (self._log_integrals(torch.ones(len(rows), dtype=torch.float64), rows).exp() - 1).abs().max()
        extremes = torch.stack([gammas.argmin(), gammas.argmax()])
        gammas, base_rows = gammas[extremes], base_rows[extremes]
        value, cells, _ = self._cells(gammas, base_rows)
        coarse = value[:, ::2].logsumexp(-1) + math.log(2) - value.logsumexp(-1)
        fine, wide = (part / part.sum(-1, keepdim=True) for part in (cells, self._cells(gammas, base_rows, every=2)[1]))
        differences = fine.cumsum(-1)[:, 1::2] - wide.cumsum(-1)
        shares = differences.abs().max() / 3  # at worst the error falls as the square of the step
        return float(torch.stack([total, coarse.abs().max(), shares]).max())

    def _rows(self) -> tuple[Tensor, Tensor]:
        """γ of each element of the batch, (N,), and the row of the grid that belongs to it, (N,)."""
        base_rows = torch.arange(max(1, self.base.batch_shape.numel())).reshape(self.base.batch_shape)
        return self.gamma.double().reshape(-1), base_rows.expand(self.gamma.shape).reshape(-1)

    # ---- masses, relative to the largest value of the integrand

    def _cells(self, gammas: Tensor, base_rows: Tensor, every: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Log integrand at nodes, (N, n); mass of each cell between nodes, (N, n − 1); log of the largest value, (N, 1)."""
        log_p, log_step = (part[base_rows, ::every] for part in (self._log_p, self._log_step))
        value = gammas[:, None] * log_p + log_step
        top = value.amax(-1, keepdim=True)
        node = (value - top).exp() * self._t_step * every
        # A cubic through four nodes: the sum of all cells is the trapezoidal rule's, but each of them is exact to h⁴.
        slope = torch.nn.functional.pad(node, (1, 1))
        slope = (slope[:, 2:] - slope[:, :-2]) / 24
        cells = (0.5 * (node[:, 1:] + node[:, :-1]) - slope.diff()).clamp_min(0)
        place = torch.arange(0, log_p.shape[-1] - 1) * every
        inside = (place >= self._first[base_rows, None]) & (place < self._last[base_rows, None])
        return value, torch.where(inside, cells, 0.0), top

    def _tail(self, gammas: Tensor, base_rows: Tensor, top: Tensor, side: int) -> tuple[Tensor, ...]:
        """Mass beyond the grid on one side, κ, the place that distances start from, and the grid's distance; (N,) each."""
        tails = self.tails
        ends, exponents = ((tails.low, tails.left), (tails.high, tails.right))[side]
        other = (tails.high, tails.low)[side]
        start = torch.where(ends.isfinite(), ends, torch.where(other.isfinite(), other, self._middle))
        end, exponent, start = (part.reshape(-1)[base_rows] for part in (ends, exponents, start))
        rows = base_rows, (self._first, self._last)[side][base_rows]
        distance = (self._points[rows] - start).abs()
        kappa = gammas * exponent + torch.where(end.isinf(), -1.0, 1.0)
        mass = (gammas * self._log_p[rows] + distance.log() - top.squeeze(-1)).exp() / kappa
        return mass, torch.where(end.isinf(), -kappa, kappa), start, distance

    def _quantiles(self, levels: Tensor, gammas: Tensor, base_rows: Tensor) -> Tensor:
        value, cells, top = self._cells(gammas, base_rows)
        left, right = (self._tail(gammas, base_rows, top, side) for side in (0, 1))
        cumulative = torch.nn.functional.pad(cells, (1, 0)).cumsum(-1)
        middle = cumulative[:, -1:]
        total = left[0][:, None] + middle + right[0][:, None]
        below_grid, above_grid = levels * total, (1 - levels) * total
        wanted = (below_grid - left[0][:, None]).clamp_min(0).minimum(middle)
        place = torch.searchsorted(cumulative, wanted).clamp(1, cumulative.shape[-1] - 1)
        below, above = cumulative.gather(1, place - 1), cumulative.gather(1, place)
        share = ((wanted - below) / (above - below).clamp_min(1e-300)).clamp(0, 1)
        rise = value.gather(1, place) - value.gather(1, place - 1)  # the logarithm of the density is linear in a cell
        bent = (1 + share * torch.expm1(rise.clamp(-50, 50))).log() / rise
        share = torch.where(rise.abs() > 1e-6, bent, share).nan_to_num(0.5).clamp(0, 1)
        u = self._u[base_rows]
        to_x, _ = _coordinates(*(end.reshape(-1)[base_rows, None] for end in (self.tails.low, self.tails.high)))
        # Linear in u, not in x: the ends of a cell may differ by a factor.
        x = to_x(u.gather(1, place - 1) * (1 - share) + u.gather(1, place) * share)[0]
        for beyond, side, (mass, power, start, distance) in ((below_grid, 0, left), (above_grid, 1, right)):
            mass, power, start, distance = (part[:, None] for part in (mass, power, start, distance))
            reached = distance * (beyond / mass.clamp_min(1e-300)) ** (1 / power)
            inwards = torch.where(power > 0, 1.0, -1.0)  # from a finite end, or from the middle
            towards = inwards if side == 0 else -inwards
            x = torch.where(beyond < mass, start + towards * reached, x)
        return x

    def _log_integrals(self, gammas: Tensor, base_rows: Tensor) -> Tensor:
        _, cells, top = self._cells(gammas, base_rows)
        tails = sum(self._tail(gammas, base_rows, top, side)[0] for side in (0, 1))
        return (cells.sum(-1) + tails).log() + top.squeeze(-1)

    def _log_integral(self) -> Tensor:
        gammas, base_rows = self._rows()
        step, parts = max(1, _CELLS_AT_A_TIME // self._points.shape[1]), []
        for start in range(0, len(gammas), step):
            parts.append(self._log_integrals(gammas[start : start + step], base_rows[start : start + step]))
        return torch.cat(parts).reshape(self.gamma.shape)


def _coordinates(
    low: Tensor, high: Tensor
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
    """u → (x, log dx/du) from the real line onto the support from low to high, and x → u."""
    above, below = (not bool(end.isinf().any()) for end in (low, high))
    if above and below:
        logit = torch.logit
        log_sigmoid = torch.nn.functional.logsigmoid
        return (
            lambda u: (low + (high - low) * u.sigmoid(), log_sigmoid(u) + log_sigmoid(-u) + (high - low).log()),
            lambda x: logit((x - low) / (high - low), eps=1e-12),
        )
    if above:
        return lambda u: (low + u.exp(), u), lambda x: (x - low).clamp_min(1e-300).log()
    if below:
        return lambda u: (high - (-u).exp(), -u), lambda x: -(high - x).clamp_min(1e-300).log()
    return lambda u: (u, torch.zeros_like(u)), lambda x: x
