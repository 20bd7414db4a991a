r"""Competing models of the same data, with their evidences: the ground truth of model comparison.

Model M_j with parameters θ_j ~ p(θ_j | M_j) and data x ~ p(x | θ_j, M_j) has the evidence and the posterior probability

    p(x | M_j) = ∫ p(x | θ_j, M_j) p(θ_j | M_j) dθ_j,    p(M_j | x) = p(M_j) p(x | M_j) / Σ_i p(M_i) p(x | M_i).

Data are packed: x has shape (groups, observations, features + 1), with more leading levels where there are more, and its
last channel is 1 where something was observed and 0 where not (the features are then 0 too).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor, check_count
from ...utils.seeding import seeded

__all__ = [
    "ModelFamily",
    "as_log_prior",
    "as_model_index",
    "check_packed",
    "check_share_missing",
    "check_size",
    "draw_sizes",
    "pack_present",
]


class ModelFamily(ABC):
    """Models that compete for the same data.

    A subclass gives `names`, `x_shape`, `_simulate` and, where the evidence can be computed, `_log_evidence`.

    Attributes:
        names: What the models are called, in order of their index.
        x_shape: Shape of one packed data set.

    Example:
        >>> class Noise(ModelFamily):
        ...     names, x_shape = ("quiet", "loud"), (3, 4, 2)
        ...
        ...     def _simulate(self, model_index, num):
        ...         values = (1.0 + model_index) * torch.randn(num, 3, 4, 1)
        ...         return pack_present(values, torch.ones(num, 3, 4, dtype=torch.bool))
        >>> Noise().simulate(1, 10, seed=0).shape
        torch.Size([10, 3, 4, 2])
    """

    names: tuple[str, ...]
    x_shape: tuple[int, ...]

    @property
    def models(self) -> list[Callable[[int], Tensor]]:
        """One callable num -> x (num, *x_shape) for each model: prior draws and data of them, as `simulate_models` takes."""
        return [partial(self.simulate, model_index) for model_index in range(len(self.names))]

    @torch.no_grad()
    def simulate(self, model_index: int, num: int, *, seed: int | None = None) -> Tensor:
        """`num` data sets (num, *x_shape) of one model, each with parameters of its own from that model's prior.

        Raises:
            ValueError: If there is no such model.
        """
        with seeded(seed):
            return self._simulate(self._check_index(model_index), check_count(num, "num", 0))

    @torch.no_grad()
    def log_evidence(self, x: Any, model_index: Any) -> Tensor:
        """log p(x | M_j), shape (...), float64, of packed data x (..., *x_shape); sizes may differ from the simulated ones.

        Args:
            x: Packed data.
            model_index: Index j of one model, or one for each data set, shape (...).

        Raises:
            ValueError: If there is no such model, or x is not packed data of this kind.
        """
        x = check_packed(x, self.x_shape).double()
        batch_shape, x = x.shape[: x.ndim - len(self.x_shape)], x.reshape(-1, *x.shape[x.ndim - len(self.x_shape) :])
        index = torch.as_tensor(model_index)
        if index.ndim == 0:
            return self._log_evidence(x, self._check_index(index.item())).reshape(batch_shape)
        index = index.expand(batch_shape).flatten()
        value = x.new_empty(len(x))
        for j in index.unique().tolist():
            value[index == j] = self._log_evidence(x[index == j], self._check_index(j))
        return value.reshape(batch_shape)

    def log_probs(self, x: Any, model_prior: Any = None) -> Tensor:
        """log p(M_j | x), shape (..., J), float64, of packed data x (..., *x_shape), under a prior over models (J,).

        Raises:
            ValueError: If x is not packed data of this kind, or the prior not over the models.
        """
        evidences = torch.stack([self.log_evidence(x, j) for j in range(len(self.names))], -1)
        return torch.log_softmax(evidences + as_log_prior(model_prior, len(self.names)), -1)

    @abstractmethod
    def _simulate(self, model_index: int, num: int) -> Tensor:
        """Data sets (num, *x_shape) of a model."""

    def _log_evidence(self, x: Tensor, model_index: int) -> Tensor:
        """Log-evidences (B,) of x (B, ...), float64 and checked."""
        raise ValueError(f"{type(self).__name__} has no evidence in closed form or by quadrature.")

    def _check_index(self, model_index: Any) -> int:
        index = check_count(model_index, "model_index", 0)
        if index >= len(self.names):
            raise ValueError(f"model_index must be below {len(self.names)}, got {index}: models are {self.names}.")
        return index


def as_log_prior(model_prior: Any, num_models: int) -> Tensor:
    """Log-probabilities (J,), float64, of a prior over models, given as positive weights or None for a uniform one.

    Raises:
        ValueError: If there is not one finite weight for each model, or one is not positive.
    """
    if model_prior is None:
        return torch.full((num_models,), 1 / num_models, dtype=torch.float64).log()
    weights = as_finite_tensor(model_prior, "model_prior").double()
    if weights.shape != (num_models,) or (weights <= 0).any():
        raise ValueError(
            f"model_prior must be {num_models} positive weights, one for each model, got {weights.tolist()}."
        )
    return (weights / weights.sum()).log()


def as_model_index(model_index: Any, num: int, num_models: int, name: str = "model_index") -> Tensor:
    """Indices of models (num,) as int64 on the CPU.

    Raises:
        ValueError: If the shape is another, or an index is not a whole number below `num_models`.
    """
    index = torch.as_tensor(model_index).detach().cpu()
    if index.shape != (num,):
        raise ValueError(f"{name} must have shape ({num},), one index for each data set, got {tuple(index.shape)}.")
    wrong = ~((index >= 0) & (index < num_models) & (index == index.round() if index.is_floating_point() else True))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} must be whole numbers from 0 to {num_models - 1}, got {index[first].item()} at index {first}."
        )
    return index.long()


def check_packed(x: Any, x_shape: tuple[int, ...]) -> Tensor:
    """Return `x` as a tensor if it is finite, has the levels and features of `x_shape`, and a mask of 0 and 1.

    Raises:
        ValueError: If it is not.
    """
    x = as_finite_tensor(x, "x", last_dim=x_shape[-1])
    if x.ndim < len(x_shape):
        raise ValueError(f"x must have shape (..., {', '.join(map(str, x_shape))}), sizes free; got {tuple(x.shape)}.")
    mask = x[..., -1]
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("the last channel of x is its mask and must be 0 or 1.")
    return x


def check_share_missing(missing: float) -> float:
    """Return `missing` if it is a share in [0, 1).

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= missing < 1:
        raise ValueError(f"missing is a share of what could be observed and must lie in [0, 1), got {missing}.")
    return missing


def check_size(size: Any, name: str, minimum: int = 1) -> tuple[int, int]:
    """A size, or the (low, high) between which it is drawn for each data set, as (low, high).

    Raises:
        ValueError: If it is below `minimum`, or not in order.
    """
    low, high = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    low, high = check_count(low, name, minimum), check_count(high, name, minimum)
    if low > high:
        raise ValueError(f"{name} must be a number or (low, high) with low ≤ high, got {size}.")
    return low, high


def draw_sizes(size: tuple[int, int], num: int) -> Tensor:
    """`num` sizes between low and high, both included, shape (num,)."""
    return torch.randint(size[0], size[1] + 1, (num,))


def pack_present(features: Tensor, present: Tensor) -> Tensor:
    """Features (..., F) with their mask (...) as a last channel, and 0 where nothing was observed: (..., F + 1)."""
    mask = present.unsqueeze(-1).to(features)
    return torch.cat([torch.where(present.unsqueeze(-1), features, features.new_zeros(())), mask], -1)
