"""Contexts: the choices of an analysis, as one vector of named parts. Each simulation draws its own context.

A context says which prior (powers γ), which simulator or which data (one-hot) were chosen, or gives any other setting in a
range. One net is trained on all contexts, and the context is part of its input (arXiv 2310.11122). Powers γ are always the
first part, because a `PowerScaledPrior` reads the first values of a context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor, check_count
from .power_scaled_prior import PowerScaledPrior

__all__ = ["Choice", "Contexts", "LogUniform", "UniformRange", "prior_of_context"]

_ROUNDING = 1e-5  # of float32, relative


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    dim: int = 1
    in_logs: ClassVar[bool] = False

    def __post_init__(self):
        smallest = 0.0 if self.in_logs else -math.inf
        if not (smallest < float(self.low) < float(self.high) < math.inf):
            raise ValueError(
                f"a range must have low < high, finite{' and positive' if self.in_logs else ''}; "
                f"got {self.low} and {self.high}."
            )
        object.__setattr__(self, "dim", check_count(self.dim, "dim"))

    def sample(self, num: int) -> Tensor:
        """Draws (num, dim)."""
        low, high = (math.log(v) if self.in_logs else v for v in (self.low, self.high))
        value = low + (high - low) * torch.rand(num, self.dim)
        return (value.exp() if self.in_logs else value).clamp(self.low, self.high)

    def columns(self, name: str) -> list[str]:
        """Names of the values."""
        return [name] if self.dim == 1 else [f"{name}[{i}]" for i in range(self.dim)]

    def outside(self, value: Tensor) -> Tensor:
        """Whether each value (..., dim) lies outside the range."""
        slack = _ROUNDING * max(abs(self.low), abs(self.high))
        return (value < self.low - slack) | (value > self.high + slack)

    def encode(self, value: Any, name: str) -> Tensor:
        """Values (..., dim) from numbers: one for all values, or one for each."""
        value = as_finite_tensor(value, name).float()
        return value.expand(*value.shape[:-1], self.dim) if value.shape[-1] == 1 else value

    def in_words(self) -> str:
        """The range, for an error."""
        return f"[{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class UniformRange(_Range):
    """`dim` settings, uniform on [low, high].

    Example:
        >>> UniformRange(-1.0, 1.0).outside(torch.tensor([[0.5], [1.5]]))
        tensor([[False],
                [ True]])
    """


@dataclass(frozen=True)
class LogUniform(_Range):
    """`dim` positive settings, log-uniform on [low, high]: powers γ of a prior, for example. Nets read their logarithms.

    Example:
        >>> LogUniform(0.5, 2.0, 3).sample(4).shape
        torch.Size([4, 3])
    """

    in_logs: ClassVar[bool] = True


@dataclass(frozen=True)
class Choice:
    """One of several options, one-hot: which simulator, which preprocessing of the data.

    Args:
        options: Names.
        weights: Positive weights with which options are drawn; equal if None.

    Example:
        >>> Choice(("wet", "dry")).encode("dry", "climate")
        tensor([0., 1.])
    """

    options: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    in_logs: ClassVar[bool] = False

    def __post_init__(self):
        object.__setattr__(self, "options", tuple(map(str, self.options)))
        if len(self.options) < 2 or len(set(self.options)) < len(self.options):
            raise ValueError(f"options must be at least two different names, got {self.options}.")
        if self.weights is not None:
            weights = tuple(as_finite_tensor(self.weights, "weights", len(self.options)).double().tolist())
            if min(weights) <= 0:
                raise ValueError(f"weights must be positive, got {weights}.")
            object.__setattr__(self, "weights", weights)

    @property
    def dim(self) -> int:
        """Number of options."""
        return len(self.options)

    def sample(self, num: int) -> Tensor:
        """One-hot draws (num, dim)."""
        weights = torch.ones(self.dim) if self.weights is None else torch.tensor(self.weights)
        return torch.eye(self.dim)[
            torch.multinomial(weights, max(num, 1), replacement=True)[:num]
        ]  # multinomial refuses to draw nothing

    def columns(self, name: str) -> list[str]:
        """Names of the values."""
        return [f"{name}={option}" for option in self.options]

    def outside(self, value: Tensor) -> Tensor:
        """Whether each value (..., dim) belongs to a vector that is not one-hot."""
        one_hot = ((value == 0) | (value == 1)).all(-1, keepdim=True) & (value.sum(-1, keepdim=True) == 1)
        return ~one_hot.expand(value.shape)

    def encode(self, value: Any, name: str) -> Tensor:
        """One-hot vector of an option's name."""
        if value not in self.options:
            raise ValueError(f"{name} must be one of {self.options}, got {value!r}.")
        return torch.eye(self.dim)[self.options.index(value)]

    def in_words(self) -> str:
        """The options, for an error."""
        return f"one-hot of {self.options}"


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (LogUniform, UniformRange, Choice)}


class Contexts:
    """A distribution over context vectors (C,), with named parts.

    Args:
        **parts: `LogUniform`, `UniformRange` or `Choice`, in the order of the vector. `gamma`, the powers of a
            `PowerScaledPrior`, must come first.

    Attributes:
        dim: Number C of values.
        columns: Name of each value.
        log_columns: Whether nets read the logarithm of each value.
        parts: Name → part.

    Raises:
        TypeError: If a part is of another kind.
        ValueError: If there is no part, or gamma is not the first.

    Example:
        >>> contexts = Contexts(gamma=LogUniform(0.5, 2.0, 2), simulator=Choice(("SIR", "SEIR")))
        >>> contexts.columns
        ['gamma[0]', 'gamma[1]', 'simulator=SIR', 'simulator=SEIR']
        >>> contexts.vector(gamma=1.0, simulator="SEIR")
        tensor([1., 1., 0., 1.])
        >>> contexts.sample((5,)).shape
        torch.Size([5, 4])
    """

    def __init__(self, **parts: LogUniform | UniformRange | Choice):
        if not parts:
            raise ValueError("contexts need at least one part, such as gamma=LogUniform(0.5, 2.0, dim).")
        for name, part in parts.items():
            if not isinstance(part, tuple(_KINDS.values())):
                raise TypeError(f"{name} must be a LogUniform, a UniformRange or a Choice, got {part!r}.")
        if "gamma" in parts and next(iter(parts)) != "gamma":
            raise ValueError(f"gamma must be the first part of a context, got the order {tuple(parts)}.")
        self.parts = dict(parts)
        self.dim = sum(part.dim for part in parts.values())
        self.columns = [column for name, part in parts.items() for column in part.columns(name)]
        self.log_columns = [part.in_logs for part in parts.values() for _ in range(part.dim)]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, C)."""
        num = torch.Size(sample_shape).numel()
        drawn = torch.cat([part.sample(num) for part in self.parts.values()], -1)
        return drawn.reshape(*sample_shape, self.dim)

    def split(self, context: Tensor) -> dict[str, Tensor]:
        """Parts (..., dim of the part) of contexts (..., C), by name."""
        return dict(zip(self.parts, context.split([part.dim for part in self.parts.values()], -1), strict=True))

    def vector(self, **values: Any) -> Tensor:
        """A context (C,) from numbers for ranges and names for choices. One number fills all values of its part.

        Raises:
            ValueError: If a part is missing, unknown, or outside its range.
        """
        if values.keys() != self.parts.keys():
            raise ValueError(f"a context consists of {tuple(self.parts)}, got {tuple(values)}.")
        return self.check_inside(torch.cat([part.encode(values[name], name) for name, part in self.parts.items()], -1))

    def check_inside(self, context: Any, name: str = "context") -> Tensor:
        """Return contexts (..., C) as a float32 tensor if they lie inside the range of training.

        Args:
            context: The contexts.
            name: Name of the argument, for an error.

        Raises:
            ValueError: If a value is not finite or outside its range, or the number of values is wrong.
        """
        context = as_finite_tensor(context, name, self.dim).float()
        argument = "" if name == "context" else f"{name}: "
        for part_name, part in self.split(context).items():
            kind = self.parts[part_name]
            outside = kind.outside(part)
            if bool(outside.any()):
                *row, column = outside.nonzero()[0].tolist()
                raise ValueError(
                    f"{argument}{kind.columns(part_name)[column]} = {part[(*row, column)].item():g}"
                    f"{f' at index {tuple(row)}' if row else ''} lies outside what the net was trained on, {kind.in_words()}"
                    ": choose a value inside, or train with wider contexts."
                )
        return context

    def description(self) -> dict[str, Any]:
        """The parts as plain data, for `from_description`."""
        return {name: {"kind": type(part).__name__, **vars(part)} for name, part in self.parts.items()}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Contexts:
        """Contexts from the result of `description`."""
        parts = {name: dict(part) for name, part in description.items()}
        return cls(**{name: _KINDS[part.pop("kind")](**part) for name, part in parts.items()})

    @classmethod
    def power_scaling(cls, prior: PowerScaledPrior, low: float = 0.5, high: float = 2.0) -> Contexts:
        """Powers of a prior alone, each from [low, high].

        Raises:
            ValueError: If p(θ)^γ has no finite integral for a power in this range; the error says which powers have one.
        """
        contexts = cls(gamma=LogUniform(low, high, prior.num_gammas))
        contexts.check_powers(prior)
        return contexts

    def check_powers(self, prior: Any) -> None:
        """Check that a `PowerScaledPrior` is proper in the whole range of the contexts; other priors are not checked.

        Raises:
            ValueError: If it is not, or the number of powers is not that of the prior.
        """
        part = self.parts.get("gamma")
        if not isinstance(prior, PowerScaledPrior) or not isinstance(part, _Range):
            return
        if part.dim != prior.num_gammas:
            raise ValueError(
                f"gamma must have {prior.num_gammas} values, one for each block of the prior, got {part.dim}."
            )
        for name, end in (("low", part.low), ("high", part.high)):
            try:
                prior.condition(end)  # propriety and width are monotone in γ
            except ValueError as err:
                raise ValueError(
                    f"contexts with gamma from {part.in_words()} contain powers that this prior does not have: {err} Give "
                    f"another {name}, such as Contexts.power_scaling(prior, low, high) with proper powers."
                ) from err


def prior_of_context(prior: Any, context: Tensor) -> Any:
    """The prior in contexts (..., C).

    Args:
        prior: `PowerScaledPrior`, which reads the first values of a context; any object with `condition(context)`; or a
            distribution, if the prior is the same in all contexts.
        context: One context, or a batch.
    """
    if isinstance(prior, PowerScaledPrior):
        return prior.condition(context[..., : prior.num_gammas])
    return prior.condition(context) if hasattr(prior, "condition") else prior
