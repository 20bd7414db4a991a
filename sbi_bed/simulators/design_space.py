r"""Where designs live: under a torch constraint, in a finite set of candidates, or in parts of several such kinds.

A policy net speaks in free coordinates u ∈ ℝ^F, roughly standard normal; `space_parts` says how each part reads them.
Linear constraints between coordinates make a polytope of bounds (`polytope`).

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
from torch.distributions import constraints

from ..utils.checks import as_finite_tensor, check_count
from .polytope import Polytope
from .space_parts import Choices, base_of, constraint_dim, parts_of

__all__ = ["DesignSpace", "as_design_space"]


class DesignSpace:
    """The designs that an experiment allows.

    Args:
        constraint: A torch constraint, e.g. `constraints.interval(low, high)` with bounds of shape (D,). Whole numbers
            (`constraints.integer_interval`) may be among its values, by `constraints.cat` beside continuous ones.
        candidates: Instead of a constraint, the allowed designs, shape (N, D).
        dim: Number D of design values; read from candidates or bounds where None, else 1.
        loc: Centre of the space in free coordinates, before the bijection; scalar or (D,).
        scale: Spread of the space in free coordinates; scalar or (D,).
        names: Names of the D design values, for tables and pictures.
        given: Where the next design is limited further by the trials so far, the callable history (*batch, n, D + O + 1)
            -> torch constraint with bounds of shape (*batch, D), inside `constraint`. It is asked before every trial.
        linear: Linear constraints A ξ ≤ b inside an interval, the pair (A, b) of shapes (R, D) and (R,).

    Attributes:
        parts: The parts of a design, one after the other.
        num_features: Values of a standardised design: D, on a simplex D − 1, for a category as many as there are.
        free_dim: Free coordinates F that `from_free` reads.
        labels: Names of the categories, for design values that are such.

    Raises:
        TypeError: If the constraint is not a torch constraint, or `given` cannot be called.
        ValueError: If both or neither of constraint and candidates are given, candidates are empty or not finite, or
            dim, bounds, loc and scale do not fit together, `given` comes with choices, or `linear` leaves no design.

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
        linear: tuple[Any, Any] | None = None,
    ):
        if (constraint is None) == (candidates is None):
            raise ValueError("give a design space either a constraint or candidates.")
        if given is not None and not callable(given):
            raise TypeError(f"given must be a callable history -> constraint, or None, got {given!r}.")
        if candidates is not None:
            if given is not None:
                raise ValueError("given= limits a constraint; a finite set of candidates cannot depend on the history.")
            if linear is not None:
                raise ValueError("linear= limits an interval; leave out the candidates that break it instead.")
            candidates = as_finite_tensor(candidates, "candidates")
            if candidates.ndim != 2 or len(candidates) == 0:
                raise ValueError(f"candidates must have shape (N, D) with N > 0, got {tuple(candidates.shape)}.")
            parts: list[Any] = [Choices(candidates)]
        else:
            parts = parts_of(constraint if linear is None else _cut(constraint, linear), dim, loc, scale)
            if given is not None and any(part.is_choice for part in parts):
                raise ValueError("given= limits continuous designs; whole numbers cannot depend on the history.")
        self._set(parts, names, given)
        if len(parts) == 1 and not parts[0].is_choice:
            self._check_centre()

    @classmethod
    def of_parts(cls, **parts: Any) -> DesignSpace:
        """A space of named parts of any kind, one after the other in the design.

        Args:
            **parts: Under its name each part: a torch constraint (`constraints.interval(0.0, 10.0)`, or
                `constraints.integer_interval(1, 24)` for whole numbers), a `DesignSpace`, a list of numbers that are
                allowed, or a list of words, which are categories without an order. A category is one design value, its
                index; nets read it one-hot.

        Raises:
            ValueError: If there is no part, or one that depends on the history.

        Example:
            >>> space = DesignSpace.of_parts(
            ...     dose=constraints.interval(0.0, 10.0),
            ...     drug=["placebo", "A", "B"],
            ...     time=constraints.integer_interval(1, 24),
            ... )
            >>> space.dim, space.num_features
            (3, 5)
            >>> space.describe([2.5, 1.0, 12.0])
            {'dose': 2.5, 'drug': 'A', 'time': 12}
        """
        if not parts:
            raise ValueError("of_parts needs parts, such as dose=constraints.interval(0.0, 10.0).")
        spaces = {name: _part_space(name, value) for name, value in parts.items()}
        names = []
        for name, space in spaces.items():
            names += [name] if space.dim == 1 else [f"{name}_{i + 1}" for i in range(space.dim)]
        return cls._joined(list(spaces.values()), tuple(names))

    def repeated(self, times: int) -> DesignSpace:
        """The space of several designs chosen together, one after the other, (times · D).

        Raises:
            ValueError: If the space depends on the history.

        Example:
            >>> DesignSpace(constraints.interval(0.0, 24.0), names=("time",)).repeated(3).names
            ('time_1', 'time_2', 'time_3')
        """
        times = check_count(times, "times")
        names = tuple(f"{name}_{i + 1}" for i in range(times) for name in self.names)
        return self._joined([self] * times, names)

    @classmethod
    def _joined(cls, spaces: list[DesignSpace], names: tuple[str, ...]) -> DesignSpace:
        if any(space.depends_on_history for space in spaces):
            raise ValueError("a space that depends on the history cannot be a part of another one.")
        joined = cls.__new__(cls)
        joined._set([part for space in spaces for part in space.parts], names, None)
        return joined

    def _set(self, parts: list[Any], names: tuple[str, ...] | None, given: Any) -> None:
        self.parts: list[Any] = parts
        self._given, self._record = given, None
        self.dim = sum(part.dim for part in parts)
        self.num_features = sum(part.num_features for part in parts)
        self.free_dim = sum(part.free_dim for part in parts)
        self.names = names or tuple(f"design_{i + 1}" for i in range(self.dim))
        if len(self.names) != self.dim:
            raise ValueError(f"{self.dim} design values need as many names, got {self.names}.")
        self.labels = {name: part.labels for name, part in self._named_parts() if getattr(part, "labels", None)}

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
    def constraint(self) -> Any:
        """The torch constraint where there is one part, and it is continuous; else None."""
        return None if len(self.parts) > 1 or self.has_choices else self.parts[0].constraint

    @property
    def candidates(self) -> Tensor | None:
        """All designs (N, D) where there is one part, and it is finite; else None."""
        return self.parts[0].values if len(self.parts) == 1 and self.has_choices else None

    @property
    def has_choices(self) -> bool:
        """Whether some design values come from a finite set."""
        return any(part.is_choice for part in self.parts)

    @property
    def is_finite(self) -> bool:
        """Whether all design values come from finite sets."""
        return all(part.is_choice for part in self.parts)

    @property
    def is_unbounded(self) -> bool:
        """Whether each design value may be any real number."""
        real = type(constraints.real)
        return not self.has_choices and all(isinstance(base_of(part.constraint), real) for part in self.parts)

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
        space, shape = copy.copy(self), tuple(history.shape)
        space._given = None
        space.parts = [self.parts[0].under(self._given(history), (*shape[:-2], self.dim), shape)]
        return space

    def recording(self, record: list[Tensor]) -> DesignSpace:
        """The same space for training: `from_free` draws what is to be chosen, and appends its log-probability (...)."""
        space = copy.copy(self)
        space._record = record
        return space

    def from_free(self, free: Tensor) -> Tensor:
        """Map free coordinates (..., F) to designs (..., D), differentiably; of what is chosen, the best."""
        if self._record is None:
            return self._by_part("from_free", (free, [part.free_dim for part in self.parts]))
        pieces, log_prob = [], free.new_zeros(free.shape[:-1])
        for part, own in zip(self.parts, self._split(free, [part.free_dim for part in self.parts]), strict=True):
            if part.is_choice:
                piece, more = part.draw(own)
                log_prob = log_prob + more
            else:
                piece = part.from_free(own)
            pieces.append(piece)
        self._record.append(log_prob)
        return torch.cat(pieces, -1)

    def standardize(self, design: Tensor) -> Tensor:
        """Describe designs (..., D) to a net: unconstrained, centred, of order one, shape (..., num_features)."""
        return self._by_part("standardize", (design, self._dims))

    def from_features(self, features: Tensor) -> Tensor:
        """The design (..., D) at standardised values (..., num_features), or the nearest one."""
        return self._by_part("from_features", (features, [part.num_features for part in self.parts]))

    def free_gradient(self, design: Tensor, gradient: Tensor) -> Tensor:
        """A gradient in designs (..., D) taken to free coordinates; for choices, to their standardised values.

        Args:
            design: Where it was taken, (..., D).
            gradient: Derivatives in the design, (..., D).
        """
        return self._by_part("free_gradient", (design, self._dims), (gradient, self._dims))

    def contains(self, design: Tensor, tolerance: float = 1e-5) -> Tensor:
        """Whether each design (..., D) is allowed, as a boolean (...); choices match within `tolerance`, relative."""
        pieces = self._split(design, self._dims)
        inside = [part.contains(piece, tolerance) for part, piece in zip(self.parts, pieces, strict=True)]
        return inside[0] if len(inside) == 1 else torch.stack(inside).all(0)

    def on_border(self, design: Tensor, share: float = 0.01) -> Tensor:
        """Whether design values (..., D) lie within this share of their interval from one of its ends; never elsewhere."""
        pieces = zip(self.parts, self._split(design, self._dims), strict=True)
        return torch.cat([part.on_border(piece, share) for part, piece in pieces], -1)

    def check(self, design: Any) -> Tensor:
        """Return `design` as a tensor (..., D) that lies in the space; a `ValueError` otherwise."""
        design = as_finite_tensor(design, "design", last_dim=self.dim)
        inside = self.contains(design)
        if not inside.all():
            bad = design[inside.logical_not()][0] if design.ndim > 1 else design
            reasons = "; ".join(self._reasons(bad))
            raise ValueError(f"design {bad.tolist()} lies outside the design space ({reasons or self}).")
        return design

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Random designs (*sample_shape, D): any choice, uniform between bounds, else a standard normal u mapped in.

        In the space given a batch of histories, `sample_shape` ends in the shape of the batch.
        """
        if len(self.parts) == 1:
            return self.parts[0].sample(sample_shape)
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)

    def neighbours(self, design: Tensor) -> Tensor:
        """Designs (..., M, D) that differ from each of (..., D) in one choice."""
        pieces, found = self._split(design, self._dims), []
        for index, part in enumerate(self.parts):
            if part.is_choice:
                others = part.neighbours(pieces[index])
                shape = (*others.shape[:-1], -1)
                kept = [others if i == index else p.unsqueeze(-2).expand(shape) for i, p in enumerate(pieces)]
                found.append(torch.cat(kept, -1))
        return torch.cat(found, -2)

    def continuous_free(self, design: Tensor) -> Tensor:
        """Free coordinates (..., F') of the continuous values of designs (..., D)."""
        pieces = zip(self.parts, self._split(design, self._dims), strict=True)
        return torch.cat([design[..., :0], *(part.to_free(p) for part, p in pieces if not part.is_choice)], -1)

    def with_continuous(self, design: Tensor, free: Tensor) -> Tensor:
        """Designs (..., D) with other continuous values, from their free coordinates (..., F'), differentiably."""
        sizes = [part.free_dim for part in self.parts if not part.is_choice]
        own = iter(free.split(sizes, -1))
        pieces = zip(self.parts, self._split(design, self._dims), strict=True)
        return torch.cat([p if part.is_choice else part.from_free(next(own)).to(p) for part, p in pieces], -1)

    def describe(self, design: Any) -> dict[str, Any]:
        """A design (D,) in words: each value under its name, a category by its label, a whole number as such."""
        design = self.check(design)
        found: dict[str, Any] = {}
        for name, value in zip(self.names, design.tolist(), strict=True):
            found[name] = self.labels[name][round(value)] if name in self.labels else value
        for name, part in self._named_parts():
            if part.is_choice and part.whole:
                found[name] = round(found[name])
        return found

    @property
    def _dims(self) -> list[int]:
        return [part.dim for part in self.parts]

    def _named_parts(self) -> list[tuple[str, Any]]:
        """The parts of one value, with its name."""
        named, start = [], 0
        for part in self.parts:
            if part.dim == 1:
                named.append((self.names[start], part))
            start += part.dim
        return named

    def _split(self, tensor: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        return (tensor,) if len(sizes) == 1 else tensor.split(sizes, -1)

    def _by_part(self, method: str, *arguments: tuple[Tensor, list[int]]) -> Tensor:
        """What each part makes of its own share of the arguments, joined."""
        shares = [self._split(tensor, sizes) for tensor, sizes in arguments]
        pieces = [getattr(part, method)(*own) for part, *own in zip(self.parts, *shares, strict=True)]
        return pieces[0] if len(pieces) == 1 else torch.cat([piece.to(pieces[0]) for piece in pieces], -1)

    def _reasons(self, design: Tensor) -> list[str]:
        """Why a design (D,) is not allowed, in words."""
        reasons, start = [], 0
        for part in self.parts:
            own, names = design[start : start + part.dim], self.names[start : start + part.dim]
            start += part.dim
            constraint = None if part.is_choice else base_of(part.constraint)
            broken = constraint.broken(own) if isinstance(constraint, Polytope) else ""
            if broken:
                reasons.append(broken)
            elif (len(self.parts) > 1 or (part.is_choice and part.whole)) and not part.contains(own, 1e-5):
                got = own.item() if part.dim == 1 else own.tolist()
                reasons.append(f"{', '.join(names)} must be {part.expects()}, got {got}")
        return reasons

    def __repr__(self) -> str:
        inside = ", ".join(part.expects() for part in self.parts)
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


def _part_space(name: str, value: Any) -> DesignSpace:
    """A part of `DesignSpace.of_parts` as a space."""
    if not isinstance(value, (list, tuple, range)):
        return as_design_space(value)
    if len(value) and all(isinstance(one, str) for one in value):
        if len(set(value)) < len(value):
            raise ValueError(f"the categories of {name} must differ, got {list(value)}.")
        space = DesignSpace(candidates=torch.arange(float(len(value))).unsqueeze(-1))
        space._set([Choices(space.parts[0].values, tuple(str(one) for one in value))], (name,), None)
        return space
    numbers = as_finite_tensor(list(value), name)
    return DesignSpace(candidates=numbers.unsqueeze(-1) if numbers.ndim == 1 else numbers)


def _cut(constraint: Any, linear: tuple[Any, Any]) -> Polytope:
    """A constraint with linear ones inside it."""
    base = base_of(constraint)
    low, high = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if low is None or high is None or base.is_discrete:
        raise ValueError(f"linear= limits an interval, constraints.interval(low, high), got {constraint!r}.")
    if not isinstance(linear, (tuple, list)) or len(linear) != 2:
        raise ValueError("linear= must be the pair (A, b).")
    dim = constraint_dim(constraint)
    matrix = as_finite_tensor(linear[0], "linear[0]")
    if dim not in (1, matrix.shape[-1]):
        raise ValueError(
            f"A of linear=(A, b) must have {dim} columns, one for each design value, got {matrix.shape[-1]}."
        )
    return Polytope(low, high, matrix, linear[1])
