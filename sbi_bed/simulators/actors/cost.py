r"""What a response costs: ℓ(r, s) of a response r when the state of the world is s, with parameters of its own.

The base class of all costs, and costs from a function. The costs of the package are in `costs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...utils.checks import check_count
from ...utils.seeding import seeded
from .perception import Belief, Perception

__all__ = ["ActorCost", "check_names", "prior_range"]

_RESERVED = (
    "sigma",
    "sigma_0",
    "mu_0",
    "sigma_r",
    "measurement",
    "stimulus",
    "response",
    "state",
    "belief",
    "perception",
)
_TAIL = 5e-4  # probability cut off at an unbounded end of a parameter's prior


class ActorCost:
    """A cost ℓ(response, state; parameters): subclass it, or use `from_function`.

    A subclass defines `__call__`. It sets the attributes below, in the class or in its constructor, where they differ.

    Attributes:
        parameters: Name -> distribution of a number, from which training draws.
        homogeneous: Whether ℓ(c r, c s; parameters) = c^p ℓ(r, s; parameters) for some p and all c > 0. Then a* is
            proportional to the belief's median if perception is log-normal, and so are the actions of nets.
        shift_invariant: Whether ℓ(r + c, s + c; parameters) = ℓ(r, s; parameters) for all c. Then a* is at a constant
            distance from the belief's centre if perception is normal or circular, and so are the actions of nets.
        action_dim: Length D of responses and states; with 1 they have shape (...), else (..., D), and costs always (...).
        name: Name of the cost, for errors and files.

    Example:
        >>> from torch.distributions import Uniform
        >>> class DeadZone(ActorCost):
        ...     parameters = {"width": Uniform(0.1, 1.0)}
        ...
        ...     def __call__(self, response, state, width):
        ...         return ((response - state).abs() - width).clamp_min(0)
        >>> float(DeadZone()(torch.tensor(2.0), torch.tensor(1.0), width=0.25))
        0.75
    """

    parameters: Mapping[str, Distribution] = {}
    homogeneous: bool = False
    shift_invariant: bool = False
    action_dim: int = 1

    def __call__(self, response: Tensor, state: Tensor, **parameters: Tensor) -> Tensor:
        """Costs (...) of responses (...) where states are (...), all broadcasting."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(response, state, **parameters).")

    @property
    def name(self) -> str:
        """Name of the cost, for errors and files."""
        return type(self).__name__

    @property
    def training_box(self) -> dict[str, tuple[float, float]]:
        """Name -> (low, high) of each parameter: its prior's support, cut at 0.05 % of the probability where unbounded."""
        return {name: prior_range(prior) for name, prior in self.parameters.items()}

    def describe(self) -> dict[str, Any]:
        """Name, ranges of parameters, symmetry and dimension, as plain data."""
        box = {name: list(bounds) for name, bounds in self.training_box.items()}
        return {
            "name": self.name,
            "parameters": box,
            "homogeneous": bool(self.homogeneous),
            "shift_invariant": bool(self.shift_invariant),
            "action_dim": int(self.action_dim),
        }

    def closed_form(
        self, perception: Perception, belief: Belief, sigma_r: Tensor, **parameters: Tensor
    ) -> Tensor | None:
        """Optimal action (...) in closed form or as a root; None if no such form is known."""
        return None

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise a TypeError unless exactly this cost's parameters are given."""
        if parameters.keys() != self.parameters.keys():
            wanted = ", ".join(self.parameters) or "none"
            raise TypeError(f"{self.name} has parameters: {wanted}; got: {', '.join(parameters) or 'none'}.")

    @staticmethod
    def from_function(
        function: Callable[..., Tensor],
        parameters: Mapping[str, Distribution] | None = None,
        homogeneous: bool = False,
        action_dim: int = 1,
        shift_invariant: bool = False,
    ) -> ActorCost:
        """A cost from a function (response, state, **parameters) -> costs.

        Raises:
            TypeError: If `function` cannot be called, or a parameter has no distribution.
            ValueError: If a parameter has a name that actors use otherwise, such as sigma.

        Example:
            >>> from torch.distributions import Uniform
            >>> cubic = ActorCost.from_function(lambda r, s, b: b * (r - s).abs() ** 3, {"b": Uniform(1.0, 2.0)})
            >>> float(cubic(torch.tensor(3.0), torch.tensor(1.0), b=1.0))
            8.0
        """
        return _FunctionCost(function, parameters or {}, (homogeneous, shift_invariant), action_dim)


def check_names(parameters: Mapping[str, Any], name: str) -> None:
    """Raise a ValueError if a parameter of the cost `name` has a name that means something else in calls of actors."""
    for parameter in parameters:
        if parameter in _RESERVED:
            raise ValueError(
                f"{name} has a parameter named {parameter!r}, but actors use that name for perception. Rename it; reserved "
                f"are {', '.join(_RESERVED)}."
            )


class _FunctionCost(ActorCost):
    def __init__(
        self, function: Any, parameters: Mapping[str, Distribution], symmetries: tuple[bool, bool], action_dim: int
    ):
        if not callable(function):
            raise TypeError(f"function must be a callable (response, state, **parameters) -> costs, got {function!r}.")
        for name, prior in parameters.items():
            if not isinstance(prior, Distribution):
                raise TypeError(f"the parameter {name} needs a torch distribution to be trained with, got {prior!r}.")
        check_names(parameters, str(getattr(function, "__name__", type(function).__name__)))
        self._function: Any = function
        self.parameters = dict(parameters)
        self.homogeneous, self.shift_invariant = symmetries
        self.action_dim = check_count(action_dim, "action_dim")

    def __call__(self, response: Tensor, state: Tensor, **parameters: Tensor) -> Tensor:
        return self._function(response, state, **parameters)

    @property
    def name(self) -> str:
        return str(getattr(self._function, "__name__", type(self._function).__name__))


def prior_range(prior: Distribution) -> tuple[float, float]:
    """Support of a distribution of numbers; where it is unbounded, cut at 0.05 % of the probability."""
    support: Any = prior.support
    low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    bounds = [None if bound is None else float(bound) for bound in (low, high)]
    unbounded = [bound is None for bound in bounds]
    if bounds[0] == 0 and unbounded[1]:
        unbounded[0] = True  # a scale: zero itself makes no sense
    if any(unbounded):
        tails = torch.tensor([_TAIL, 1 - _TAIL])
        try:
            quantiles = prior.icdf(tails)
        except NotImplementedError:
            with seeded(0):
                quantiles = prior.sample((100_000,)).quantile(tails)
        bounds = [float(q) if cut else bound for q, cut, bound in zip(quantiles, unbounded, bounds, strict=True)]
    return bounds[0], bounds[1]  # pyright: ignore[reportReturnType]
