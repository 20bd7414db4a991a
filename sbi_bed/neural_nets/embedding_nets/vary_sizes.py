r"""Data sets of random sizes out of full ones: training data from which a net learns to read any sizes.

From the mask of a packed data set, elements are taken away at random, at each level from the highest to the lowest:

- with probability 1/4 the data set stays as it is;
- of each level, each set keeps m of its n elements: with probability 1/2 all of them, otherwise m log-uniform in 1, …, n,
  one m for all sets of a data set; but with probability 1/2 a share of the sets, uniform in [0, 1], has a size of its own,
  log-uniform and at most as large;
- with probability 1/2 a share of all observations, uniform in [0, 0.6], is missing.

So there are data sets of one group, groups of one observation beside large ones, and all in between. Nothing is drawn for
features. What is left is data of that size, if observations are exchangeable within their sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_sizes"]

_UNCHANGED, _LEVEL_FULL, _SOME_OWN, _NONE_MISSING, _MOST_MISSING = 0.25, 0.5, 0.5, 0.5, 0.6


@torch.no_grad()
def random_sizes(mask: Tensor) -> Tensor:
    """Masks of data sets of random sizes, as above, each with at least one observation.

    Args:
        mask: What was observed, (B, *levels), boolean; each data set has at least one observation.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mask = random_sizes(torch.ones(1000, 4, 6, dtype=torch.bool))
        >>> mask.any(-1).sum(-1).unique().tolist(), int(mask.sum((1, 2)).min()), int(mask.sum((1, 2)).max())
        ([1, 2, 3, 4], 1, 24)
    """
    kept = mask
    for level in range(mask.ndim - 1):
        kept = _thin_level(kept, level)
    share = _MOST_MISSING * torch.rand(len(mask), device=mask.device) * ~_chance(mask, _NONE_MISSING)
    observed = kept & (torch.rand(mask.shape, device=mask.device) >= _as_column(share, mask))
    observed = torch.where(_as_column(observed.flatten(1).any(1), mask), observed, kept)
    return torch.where(_as_column(_chance(mask, _UNCHANGED), mask), mask, observed)


def _thin_level(mask: Tensor, level: int) -> Tensor:
    """Take elements of sets at one level away, 0 the highest, from masks (B, *levels)."""
    there = mask if level == mask.ndim - 2 else mask.flatten(level + 2).any(-1)  # (B, *sets, elements)
    size = there.sum(-1)
    largest = size.flatten(1).amax(1) if size.ndim > 1 else size
    usual = _as_column(torch.where(_chance(mask, _LEVEL_FULL), largest, _log_uniform(largest)), size).expand_as(size)
    own = _log_uniform(torch.minimum(usual, size.clamp_min(1)))
    share_of_own = torch.rand(len(mask), device=mask.device) * _chance(mask, _SOME_OWN)
    has_own = torch.rand(size.shape, device=mask.device) < _as_column(share_of_own, size)
    wanted = torch.where(has_own, own, usual)
    order = torch.where(there, torch.rand(there.shape, device=mask.device), 2.0)
    limit = order.sort(-1).values.gather(-1, (wanted.clamp(1, there.shape[-1]) - 1).unsqueeze(-1))
    kept = there & (order <= limit)
    return mask & kept.reshape(*kept.shape, *[1] * (mask.ndim - kept.ndim))


def _log_uniform(largest: Tensor) -> Tensor:
    """Whole numbers from 1 to `largest`, log-uniform."""
    top = largest.clamp_min(1).to(torch.float32)
    return torch.minimum(
        (torch.rand(top.shape, device=top.device) * (top + 1).log()).exp().long(), largest.clamp_min(1)
    )


def _chance(mask: Tensor, probability: float) -> Tensor:
    """A toss for each data set, (B,)."""
    return torch.rand(len(mask), device=mask.device) < probability


def _as_column(value: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, …) beside a tensor (B, …)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
