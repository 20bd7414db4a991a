"""Seeds: every random function takes one as an argument, and leaves the caller's generators as they were."""
# ruff: noqa: NPY002 - the generators that simulators of users draw from

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seed_for", "seeded"]


@contextmanager
def seeded(seed: int | None, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block under its own seed, and restore the global generators of torch, numpy and Python afterwards.

    A simulator that draws from any of these repeats its draws, then. A generator that it made itself, such as one of
    `numpy.random.default_rng`, is not reached. With `seed=None` the block draws from the global generators as they are.

    Example:
        >>> with seeded(1):
        ...     a = torch.randn(2), np.random.normal()
        >>> with seeded(1):
        ...     b = torch.randn(2), np.random.normal()
        >>> torch.equal(a[0], b[0]) and a[1] == b[1]
        True
    """
    if seed is None:
        yield
        return
    device = torch.device(device)
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def seed_for(seed: int, purpose: str) -> int:
    """A seed in [0, 2^62) that depends on another seed and a purpose, and on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "big") >> 2
