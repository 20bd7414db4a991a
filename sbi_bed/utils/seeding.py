"""Seeds: an argument of every random function, forked so that the caller's generator is left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seed_for", "seeded"]


@contextmanager
def seeded(seed: int | None, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block under its own seed and restore torch's generators afterwards.

    With `seed=None` the block draws from the global generators, as any torch code does.

    Example:
        >>> with seeded(1):
        ...     a = torch.randn(2)
        >>> with seeded(1):
        ...     b = torch.randn(2)
        >>> torch.equal(a, b)
        True
    """
    if seed is None:
        yield
        return
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def seed_for(seed: int, purpose: str) -> int:
    """A seed in [0, 2^62) that depends on another seed and a purpose, and on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "big") >> 2
