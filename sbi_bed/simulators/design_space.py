r"""Where designs live: a torch constraint, or a finite set of candidates.

A policy net speaks in free coordinates u ∈ ℝ^F, roughly standard normal. A constrained space maps them by
ξ = b(loc + scale · u), b = `biject_to(constraint)`; where b bends, u first saturates softly at ±6, so that no net can
drive a design to its bound or to infinity, where gradients die. A finite space reads u as scores of its candidates and
takes the best one; in the backward pass the choice is a softmax (a straight-through gradient).

A space may depend on the history: measurement times increase, a dose rises by steps. It is then a space of all designs,
which nets standardise with, and for each history h_t the part of it where ξ_{t+1} lies, which maps u into the present
bounds. Autograd passes through the bounds: a design that moves takes later ones along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from ..utils.checks import as_finite_tensor

__all__ = ["DesignSpace", "as_design_space"]


class DesignSpace:
    """The designs that an experiment allows.

    Args:
        constraint: A torch constraint, e.g. `constraints.interval(low, high)` with bounds of shape (D,).
        candidates: Instead of a constraint, the allowed designs, shape (N, D).
        dim: Number D of design values; read from candidates or bounds where None, else 1.
        loc: Centre of the space in free coordinates, before the bijection; scalar or (D,).
        scale: Spread of the space in free coordinates; scalar or (D,).
        names: Names of the D design values, for tables and pictures.
        given: Where the next design is limited further by the trials so far, the callable history (*batch, n, D + O + 1)
            -> torch constraint with bounds of shape (*batch, D), inside `constraint`. It is asked before every trial.

    Attributes:
        num_features: Values of a standardised design: D, on a simplex D − 1.
        free_dim: Free coordinates F that `from_free` reads: as many, or one score for each candidate.

    Raises:
        TypeError: If the constraint is not a torch constraint, or `given` cannot be called.
        ValueError: If both or neither of constraint and candidates are given, candidates are empty or not finite, or
            dim, bounds, loc and scale do not fit together, or `given` comes with candidates.

    Example:
        >>> space = DesignSpace(constraints.interval(torch.zeros(2), torch.tensor([1.0, 100.0])))
        >>> space.dim, space.from_free(torch.zeros(2)).tolist()
        (2, [0.5, 50.0])
    """

    def __init__(
        self,
        constraint: constraints.Constraint | None = None,
        *,
        candidates: Any = None,
        dim: int | None = None,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        names: tuple[str, ...] | None = None,
        given: Callable[[Tensor], constraints.Constraint] | None = None,
    ):
        if (constraint is None) == (candidates is None):
            raise ValueError("give a design space either a constraint or candidates.")
        if given is not None and not callable(given):
            raise TypeError(f"given must be a callable history -> constraint, or None, got {given!r}.")
        if given is not None and candidates is not None:
            raise ValueError("given= limits a constraint; a finite set of candidates cannot depend on the history.")
        self.constraint = constraint
        self._given = given
        self._copies: dict[tuple[torch.device, torch.dtype], Any] = {}
        self.candidates: Tensor | None = None
        if candidates is not None:
            self.candidates = as_finite_tensor(candidates, "candidates")
            if self.candidates.ndim != 2 or len(self.candidates) == 0:
                raise ValueError(f"candidates must have shape (N, D) with N > 0, got {tuple(self.candidates.shape)}.")
            self.dim = self.candidates.shape[-1]
            self._loc, self._scale = self.candidates.mean(0), self.candidates.std(0, correction=0)
            self._scale = torch.where(
                self._scale > 1e-6 * (1 + self._loc.abs()), self._scale, 1.0
            )  # else one value only
        else:
            self.dim = _constraint_dim(constraint) if dim is None else dim
            self._loc, self._scale = torch.as_tensor(loc).float(), torch.as_tensor(scale).float()
            self._bijection = _bijection_onto(constraint)
            self._saturates = _saturates(constraint)
        # Sizes that `standardize` returns and `from_free` reads: D values, on a simplex one fewer, or scores of candidates.
        self.num_features = self.dim if candidates is not None else self._num_free()
        self.free_dim = self.num_features if self.candidates is None else len(self.candidates)
        if candidates is None:
            self._check_centre()
        self.names = names or tuple(f"design_{i + 1}" for i in range(self.dim))
        if len(self.names) != self.dim:
            raise ValueError(f"{self.dim} design values need as many names, got {self.names}.")

    def _num_free(self) -> int:
        try:
            return self._bijection.inverse_shape(torch.Size([self.dim]))[-1]
        except RuntimeError:  # bounds of another size: `_check_centre` says so
            return self.dim

    def _check_centre(self) -> None:
        try:
            centre = self.from_free(torch.zeros(self.free_dim))
            fits = self.free_dim > 0 and centre.shape == (self.dim,) and bool(self.contains(centre))
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{self} does not describe {self.dim} design values: dim, bounds, loc and scale must agree, and "
                "lower bounds lie below upper ones."
            )

    @property
    def depends_on_history(self) -> bool:
        """Whether the trials so far limit the next design."""
        return self._given is not None

    def given(self, history: Tensor) -> DesignSpace:
        """The space of the next design after trials (*batch, n, D + O + 1) without padding; itself if all are alike.

        Raises:
            TypeError: If the callable `given` returns something other than a torch constraint.
            ValueError: If the bounds that it returns are not (*batch, D).
        """
        if self._given is None:
            return self
        constraint = self._given(history)
        space = copy.copy(self)
        space.constraint, space._given = constraint, None
        space._bijection, space._saturates = _bijection_onto(constraint), _saturates(constraint)
        shape = (*history.shape[:-2], self.dim)
        for bound in _bound_tensors(constraint):
            try:
                bound.expand(shape)
            except RuntimeError as err:
                raise ValueError(
                    f"given= returned bounds of shape {tuple(bound.shape)} for a history {tuple(history.shape)}; expected "
                    f"{shape}."
                ) from err
        return space

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor, Any]:
        """`loc`, `scale` and candidates on the device and of the dtype of `like`, copied once: a copy makes a GPU wait."""
        kind = like.device, like.dtype
        if kind not in self._copies:
            self._copies[kind] = tuple(
                None if c is None else c.to(like) for c in (self._loc, self._scale, self.candidates)
            )
        return self._copies[kind]

    def from_free(self, free: Tensor) -> Tensor:
        """Map free coordinates (..., F) to designs (..., D), differentiably."""
        if self.candidates is None:
            if self._saturates:
                free = 6.0 * torch.tanh(free / 6.0)
            loc, scale, _ = self._constants(free)
            return self._bijection(loc + scale * free)
        candidates = self._constants(free)[2]
        chosen = candidates[free.argmax(-1)]
        if not free.requires_grad:
            return chosen
        soft = free.softmax(-1) @ candidates
        return chosen + (soft - soft.detach())

    def standardize(self, design: Tensor) -> Tensor:
        """Describe designs (..., D) to a net: unconstrained, centred, of order one, shape (..., num_features)."""
        loc, scale, _ = self._constants(design)
        if self.candidates is not None:
            return (design - loc) / scale
        return ((self._bijection.inv(design) - loc) / scale).clamp(-12.0, 12.0)

    def free_gradient(self, design: Tensor, gradient: Tensor) -> Tensor:
        """A gradient in designs (..., D) taken to free coordinates, (..., F); in candidates, to their standardised values.

        Args:
            design: Where it was taken, (..., D).
            gradient: Derivatives in the design, (..., D).
        """
        if self.candidates is not None:
            return gradient * self._constants(gradient)[1]
        loc, scale, _ = self._constants(gradient)
        with torch.enable_grad():
            free = ((self._bijection.inv(design.detach()) - loc) / scale).detach().requires_grad_()
            return torch.autograd.grad(self._bijection(loc + scale * free), free, gradient)[0]

    def contains(self, design: Tensor, tolerance: float = 1e-5) -> Tensor:
        """Whether each design (..., D) is allowed, as a boolean (...); candidates match within `tolerance`, relative."""
        if self.candidates is not None:
            design = design.to(self.candidates)
            gap = ((design.unsqueeze(-2) - self.candidates) / self._scale).abs().amax(-1)
            return gap.amin(-1) <= tolerance
        inside = self.constraint.check(design)  # pyright: ignore[reportOptionalMemberAccess]
        return inside if inside.ndim < design.ndim else inside.all(-1)

    def on_border(self, design: Tensor, share: float = 0.01) -> Tensor:
        """Whether design values (..., D) lie within this share of their interval from one of its ends; never elsewhere."""
        bounds = _bounds(self.constraint)
        if self.candidates is not None or bounds is None:
            return torch.zeros_like(design, dtype=torch.bool)
        low, high = (torch.as_tensor(b).to(design) for b in bounds)
        return torch.minimum(design - low, high - design) < share * (high - low)

    def check(self, design: Any) -> Tensor:
        """Return `design` as a tensor (..., D) that lies in the space; a `ValueError` otherwise."""
        design = as_finite_tensor(design, "design", last_dim=self.dim)
        inside = self.contains(design)
        if not inside.all():
            bad = design[inside.logical_not()][0] if design.ndim > 1 else design
            raise ValueError(f"design {bad.tolist()} lies outside the design space ({self}).")
        return design

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Random designs (*sample_shape, D): any candidate, uniform between bounds, else a standard normal u mapped in.

        In the space given a batch of histories, `sample_shape` ends in the shape of the batch.
        """
        if self.candidates is not None:
            return self.candidates[torch.randint(len(self.candidates), sample_shape)]
        bounds = _bounds(self.constraint)
        if bounds is not None:
            low, high = (torch.as_tensor(b, dtype=torch.get_default_dtype()) for b in bounds)
            return low + (high - low) * torch.rand(*sample_shape, self.dim)
        return self.from_free(torch.randn(*sample_shape, self.free_dim))

    def __repr__(self) -> str:
        inside = f"{self.free_dim} candidates" if self.candidates is not None else f"{self.constraint}"
        return f"DesignSpace({inside}, dim={self.dim})"


def as_design_space(space: Any) -> DesignSpace:
    """A `DesignSpace` from itself, a torch constraint, or candidates of shape (N, D)."""
    if isinstance(space, DesignSpace):
        return space
    if isinstance(space, constraints.Constraint):
        return DesignSpace(space)
    if isinstance(space, type) and issubclass(space, constraints.Constraint):
        return DesignSpace(space())
    return DesignSpace(candidates=space)


def _bijection_onto(constraint: Any) -> Any:
    if not isinstance(constraint, constraints.Constraint):
        raise TypeError(f"constraint must be one of torch.distributions.constraints, got {constraint!r}.")
    try:
        return biject_to(constraint)
    except NotImplementedError as err:
        raise ValueError(f"torch has no bijection onto {constraint}; give the allowed designs as candidates.") from err


def _base(constraint: Any) -> Any:
    """The constraint on single values inside `independent` ones."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _bounds(constraint: Any) -> tuple[Any, Any] | None:
    constraint = _base(constraint)
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    return None if low is None or high is None else (low, high)


def _saturates(constraint: Any) -> bool:
    """Whether its bijection bends."""
    return not isinstance(_base(constraint), type(constraints.real))


def _bound_tensors(constraint: Any) -> list[Tensor]:
    constraint = _base(constraint)
    bounds = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    return [bound for bound in bounds if isinstance(bound, Tensor)]


def _constraint_dim(constraint: Any) -> int:
    """Number of design values a constraint speaks of: the size of its bounds, the sum of its parts, else 1."""
    constraint = _base(constraint)
    if hasattr(constraint, "lengths"):
        return int(sum(constraint.lengths))
    return max([bound.numel() for bound in _bound_tensors(constraint)] + [1])
