"""Unconstrained coordinates of parameters."""

from __future__ import annotations

from typing import Any

from torch.distributions import Distribution

from .seeding import seeded

__all__ = ["to_unconstrained"]


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
