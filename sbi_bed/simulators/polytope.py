r"""Designs between bounds under linear constraints, {ξ : low ≤ ξ ≤ high, A ξ ≤ b}, as a torch constraint.

`biject_to` maps ℝ^D onto it by the gauge map. With c the centre of the largest ball inside (in units of the half widths h;
a linear program), z = tanh(u / 2) in the unit box, v = h · z, and the gauge γ(v) = max_i a_i·v / (b_i − a_i·c) over all
rows, bounds included,

    ξ = c + v ‖z‖_∞ / γ(v):

rays from the centre stay rays, and the surface of the box becomes that of the polytope. Its inverse is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from ..utils.checks import as_finite_tensor

__all__ = ["Polytope"]

_NUM_TRIES, _NUM_MOVES = 64, 100  # of rejection, after which draws come from hit-and-run


class Polytope(constraints.Constraint):
    """Bounds and linear inequalities on a design (..., D).

    Args:
        low: Lower bounds (D,).
        high: Upper bounds (D,).
        matrix: A, (R, D).
        bound: b, (R,).

    Attributes:
        lower_bound: As `low`.
        upper_bound: As `high`.
        centre: Centre of the largest ball inside, (D,), float64.

    Raises:
        ValueError: If shapes do not fit, or the inequalities leave nothing, or only a set without volume.

    Example:
        >>> space = Polytope(torch.zeros(2), torch.ones(2), [[1.0, 1.0]], [1.0])  # two doses, together at most 1
        >>> space.check(torch.tensor([[0.5, 0.4], [0.9, 0.4]]))
        tensor([ True, False])
    """

    event_dim = 1  # pyright: ignore[reportAssignmentType]

    def __init__(self, low: Any, high: Any, matrix: Any, bound: Any):
        matrix, bound = as_finite_tensor(matrix, "linear[0]"), as_finite_tensor(bound, "linear[1]")
        dim = matrix.shape[-1]
        if matrix.ndim != 2 or bound.shape != matrix.shape[:1]:
            raise ValueError(
                f"linear=(A, b) needs A of shape (R, D) and b of shape (R,), got {tuple(matrix.shape)} and "
                f"{tuple(bound.shape)}."
            )
        self.lower_bound, self.upper_bound = (torch.as_tensor(x).float().expand(dim).clone() for x in (low, high))
        low, high = self.lower_bound.double(), self.upper_bound.double()
        if not bool(torch.isfinite(high - low).all() and (high > low).all()):
            raise ValueError("linear= needs finite bounds, lower ones below upper ones.")
        half, eye = (high - low) / 2, torch.eye(dim, dtype=torch.float64)
        self._matrix = torch.cat([matrix.double(), eye, -eye])
        self._bound = torch.cat([bound.double(), high, -low])
        self._half, self._num_linear = half, len(matrix)
        lengths = (self._matrix * half).norm(dim=-1, keepdim=True)
        result = linprog(
            [*[0.0] * dim, -1.0],
            A_ub=torch.cat([self._matrix, lengths], -1).numpy(),
            b_ub=self._bound.numpy(),
            bounds=[(None, None)] * dim + [(None, 1.0)],
        )
        if result.x is None or result.x[-1] < 1e-6:
            raise ValueError(
                f"the linear constraints A ξ ≤ b, A = {matrix.tolist()}, b = {bound.tolist()}, leave no room between the "
                f"bounds {low.tolist()} and {high.tolist()}: check signs and units."
            )
        self.centre = torch.as_tensor(result.x[:-1])
        self._slack = self._bound - self._matrix @ self.centre
        self._size = (self._matrix.abs() * torch.maximum(low.abs(), high.abs()).clamp_min(half)).sum(-1)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each design (..., D) satisfies all of it, up to rounding, (...)."""
        excess = value.double() @ self._matrix.to(value.device).mT - self._bound.to(value.device)
        return (excess <= 1e-6 * self._size.to(value.device)).all(-1)

    def broken(self, value: Tensor) -> str:
        """Which linear constraint a design (D,) breaks, in words; empty if none."""
        left = value.double() @ self._matrix.mT
        bad = (left - self._bound > 1e-6 * self._size)[: self._num_linear].nonzero().flatten().tolist()
        if not bad:
            return ""
        return (
            f"row {bad[0]} of A ξ ≤ b is {float(left[bad[0]]):.6g} ≤ {float(self._bound[bad[0]]):.6g}, which is false"
        )

    def gauge(self, direction: Tensor) -> Tensor:
        """γ of directions (..., D) from the centre, (..., 1): 1 on the surface."""
        return (direction @ (self._matrix / self._slack.unsqueeze(-1)).to(direction).mT).amax(-1, keepdim=True)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform designs (*sample_shape, D): rejection from the bounds, else hit-and-run."""
        num, dim = torch.Size(sample_shape).numel(), len(self._half)
        found = torch.zeros(0, dim, dtype=torch.float64)
        for _ in range(_NUM_TRIES):
            if len(found) >= num:
                break
            drawn = self.lower_bound + 2 * self._half * torch.rand(max(num, 64), dim, dtype=torch.float64)
            found = torch.cat([found, drawn[self.check(drawn)]])
        if len(found) < num:  # a thin polytope
            found = self._hit_and_run(num)
        return found[:num].reshape(*sample_shape, dim).to(torch.get_default_dtype())

    def _hit_and_run(self, num: int) -> Tensor:
        """Half of the designs move at a time, along differences of the other half, which take on the polytope's shape."""
        size = max(num + num % 2, 64)
        design = self.centre.repeat(size, 1)
        for move in range(_NUM_MOVES):
            order = torch.randperm(size)
            mine, others = order[: size // 2], order[size // 2 :]
            step = self._half * torch.randn(len(mine), design.shape[-1], dtype=torch.float64)
            if move % 4:
                step = design[others] - design[others.roll(1)] + 1e-9 * step
            rate, slack = step @ self._matrix.mT, (self._bound - design[mine] @ self._matrix.mT).clamp_min(0.0)
            reach = slack / rate
            furthest = reach.masked_fill(rate <= 0, torch.inf).amin(-1, keepdim=True)
            nearest = reach.masked_fill(rate >= 0, -torch.inf).amax(-1, keepdim=True)
            share = torch.rand(len(mine), 1, dtype=torch.float64)
            design[mine] = design[mine] + step * (nearest + (furthest - nearest) * share)
        return design[torch.randperm(size)]

    def __repr__(self) -> str:
        bounds = f"{self.lower_bound.tolist()}, {self.upper_bound.tolist()}"
        return f"Polytope({bounds}, {self._num_linear} linear constraints)"


class _GaugeMap(Transform):
    """ℝ^D → the inside of a polytope."""

    domain = constraints.real_vector
    bijective = True

    def __init__(self, polytope: Polytope):
        super().__init__()
        self.codomain = self._polytope = polytope

    def _call(self, x: Tensor) -> Tensor:
        unit = torch.tanh(x / 2)
        direction = unit * self._polytope._half.to(x)
        return self._polytope.centre.to(x) + direction * _ratio(
            unit.abs().amax(-1, keepdim=True), self._polytope.gauge(direction)
        )

    def _inverse(self, y: Tensor) -> Tensor:
        away = y - self._polytope.centre.to(y)
        unit = away / self._polytope._half.to(y)
        unit = unit * _ratio(self._polytope.gauge(away), unit.abs().amax(-1, keepdim=True))
        return 2 * torch.atanh(unit.clamp(-1 + 1e-6, 1 - 1e-6))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Their quotient; 1 at the centre, where both are 0."""
    at_centre = below <= 0
    return torch.where(at_centre, 1.0, above / torch.where(at_centre, 1.0, below))


@biject_to.register(Polytope)
def _onto(polytope: Polytope) -> _GaugeMap:
    return _GaugeMap(polytope)
