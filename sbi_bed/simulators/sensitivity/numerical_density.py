r"""A power of any density of one variable, by quadrature.

For p on a support that T maps the real line onto, x = T(m + s sinh t) with m, s the place and width of prior draws,

    q(x) = p(x)^γ / Z,    Z = ∫ p(x(t))^γ |dx/dt| dt,

by the trapezoidal rule on a grid of t, which reaches to where the integrand has fallen by 16 powers of ten at both ends:
tails that fall as a power of x fall exponentially in t. If it does not fall, p^γ has no finite integral. log q is exact
but for Z; draws come from the grid's distribution function, linear in t between nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, biject_to, constraints

from ...utils.seeding import seeded

__all__ = ["PoweredDensity"]

_NODES = 2049
_FALL = 36.8  # nats: 16 powers of ten
_CELLS_AT_A_TIME = 2**21


class PoweredDensity(Distribution):
    """p(x)^γ / Z for scalar distributions p with a batch of γ; `sample`, `log_prob`, `icdf`.

    Args:
        base: Distribution of event shape (), with `support`, `sample`, `log_prob`; its batch shape broadcasts with γ.
        gamma: Powers, positive, (...).

    Raises:
        ValueError: If p^γ has no finite integral, or `base` is not continuous in one variable.

    Example:
        >>> from torch.distributions import Normal
        >>> squared = PoweredDensity(Normal(0.0, 1.0), torch.tensor([1.0, 4.0]))
        >>> squared.icdf(torch.tensor(0.975))
        tensor([1.9600, 0.9800])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __init__(self, base: Distribution, gamma: Tensor):
        support: Any = base.support
        if len(base.event_shape) or support.is_discrete:
            raise ValueError(f"powers are taken of densities of one continuous variable, got {base!r}.")
        self.base, self.gamma = base, gamma.broadcast_to(torch.broadcast_shapes(gamma.shape, base.batch_shape))
        self._grid_of(gamma)
        super().__init__(self.gamma.shape, Size(), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of the base."""
        return self.base.support  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, *batch)."""
        return self.icdf(torch.rand(*sample_shape, *self.batch_shape, dtype=torch.float64))

    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles at probabilities (..., *batch), float32."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        batch = self.batch_shape.numel()
        levels = value.double().expand(shape).reshape(-1, batch).T.contiguous()
        gammas, base_rows = self._rows()
        step, parts = max(1, _CELLS_AT_A_TIME // (_NODES + levels.shape[1])), []
        for start in range(0, batch, step):
            rows = slice(start, start + step)
            parts.append(self._quantiles(levels[rows], gammas[rows], base_rows[rows]))
        return torch.cat(parts).T.reshape(shape).float()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of x (..., *batch); −inf outside the support."""
        inside = self.support.check(value)  # pyright: ignore
        somewhere = torch.where(inside, value, self._middle.to(value))
        density = self.gamma * self.base.log_prob(somewhere) - self._log_integral().to(value)
        return torch.where(inside, density, -torch.inf)

    # ---- pieces

    @torch.no_grad()
    def _grid_of(self, gamma: Tensor) -> None:
        """Points (N, n), and logs of p and of |dx/dt| there, reaching far enough for the smallest power."""
        support: Any = self.base.support
        transform = biject_to(getattr(support, "base_constraint", support))  # a mixture's is that of its components
        with seeded(0):
            u = transform.inv(self.base.sample(Size((1000,)))).double()
        low, place, high = u.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=u.dtype), dim=0)
        width, smallest = (high - low).clamp_min(1e-12), float(gamma.min())
        reach = 2.0
        while True:
            t = torch.linspace(-reach, reach, _NODES, dtype=torch.float64).reshape(-1, *[1] * place.ndim)
            u = place + width * t.sinh()
            x = transform(u)
            log_step = (width * t.cosh()).log() + transform.log_abs_det_jacobian(u, x)
            log_p = self.base.log_prob(x.to(place.dtype)).double()
            known = support.check(x) & torch.isfinite(log_p) & torch.isfinite(log_step)
            log_p, log_step = torch.where(known, log_p, -torch.inf), torch.where(known, log_step, 0.0)
            value = smallest * log_p + log_step
            ends, top = torch.maximum(value[0], value[-1]), value.amax(0)
            if bool((ends < top - _FALL).all()):
                break
            reach *= 1.15
            if reach > 60:
                raise ValueError(
                    f"p(θ)^γ has no finite integral at γ = {smallest:g} for {self.base!r}: choose a larger γ."
                )
        self._middle, self._t_step = x[_NODES // 2], 2 * reach / (_NODES - 1)
        self._points, self._log_p, self._log_step = (part.reshape(_NODES, -1).T for part in (x, log_p, log_step))

    def _rows(self) -> tuple[Tensor, Tensor]:
        """γ of each element of the batch, (N,), and the row of the grid that belongs to it, (N,)."""
        base_rows = torch.arange(max(1, self.base.batch_shape.numel())).reshape(self.base.batch_shape)
        return self.gamma.double().reshape(-1), base_rows.expand(self.gamma.shape).reshape(-1)

    def _masses(self, gammas: Tensor, base_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mass of each node relative to the largest, (N, n), and the log of that, (N, 1)."""
        log_p, log_step = (part[base_rows] for part in (self._log_p, self._log_step))
        value = gammas[:, None] * log_p + log_step
        top = value.amax(-1, keepdim=True)
        return (value - top).exp(), top

    def _quantiles(self, levels: Tensor, gammas: Tensor, base_rows: Tensor) -> Tensor:
        mass = self._masses(gammas, base_rows)[0]
        cumulative = torch.nn.functional.pad(0.5 * (mass[:, 1:] + mass[:, :-1]), (1, 0)).cumsum(-1)
        wanted = levels * cumulative[:, -1:]
        right = torch.searchsorted(cumulative, wanted).clamp(1, _NODES - 1)
        below, above = cumulative.gather(1, right - 1), cumulative.gather(1, right)
        share = ((wanted - below) / (above - below).clamp_min(1e-300)).clamp(0, 1)
        points = self._points[base_rows]
        return points.gather(1, right - 1) * (1 - share) + points.gather(1, right) * share

    def _log_integral(self) -> Tensor:
        gammas, base_rows = self._rows()
        step, parts = max(1, _CELLS_AT_A_TIME // _NODES), []
        for start in range(0, len(gammas), step):
            mass, top = self._masses(gammas[start : start + step], base_rows[start : start + step])
            parts.append(mass.sum(-1).log() + top.squeeze(-1) + math.log(self._t_step))
        return torch.cat(parts).reshape(self.gamma.shape)
