"""Unconstrained coordinates of parameters."""

from __future__ import annotations

from typing import Any

from torch.distributions import Distribution

from .seeding import seeded

__all__ = ["to_unconstrained"]


def to_unconstrained(prior: Distribution) -> Any:
    """sbi's bijection from theta to unconstrained coordinates; it is built from draws of a fixed seed of its own."""
    from sbi.utils import mcmc_transform  # importing sbi takes seconds

    with seeded(0):
        return mcmc_transform(prior)
