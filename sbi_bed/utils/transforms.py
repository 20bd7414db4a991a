"""Unconstrained coordinates of parameters, and functions of rows on batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from .seeding import seeded

__all__ = ["rowwise", "to_unconstrained"]


def to_unconstrained(prior: Distribution) -> Any:
    """sbi's bijection from theta to unconstrained coordinates; it is built from draws of a fixed seed of its own.

    Raises:
        ValueError: If theta is discrete in part, as that of a `ModelMixture`.
    """
    if getattr(getattr(prior, "support", None), "is_discrete", False):
        raise ValueError(
            "theta is discrete in part, as that of a mixture of models: it has no unconstrained coordinates for particles "
            "to move in. Draws of the prior serve for it."
        )
    from sbi.utils import mcmc_transform  # importing sbi takes seconds

    with seeded(0):
        return mcmc_transform(prior)


def rowwise(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Apply a function of rows (M, P), as sbi's transforms are, to tensors (*batch, N, P)."""
    result = function(*(value.reshape(-1, value.shape[-1]) for value in values))
    return result.reshape(*values[0].shape[:-1], *result.shape[1:])
