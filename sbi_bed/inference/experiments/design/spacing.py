r"""Designs that keep their distance from earlier ones.

Distance is Euclidean in the design space's standardised coordinates, where a unit is the spread of the space. A design
that comes too close is moved to the nearest allowed place: the nearest allowed candidate, or, in a continuous space,
the nearest of many points on spheres of that radius around the earlier designs. Where some values are chosen, random
designs and those with one other choice are looked at, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....simulators.design_space import DesignSpace

__all__ = ["allowed_candidates", "keep_apart", "nearest_candidate"]

_SAME = 1e-5  # designs closer than this are one
_NUM_RANDOM = 1024  # designs to look at where some values are chosen


def allowed_candidates(space: DesignSpace, candidates: Tensor, earlier: Tensor, distances: Tensor) -> Tensor:
    """Which candidates (N, D) are at `distances` (n,) or more from earlier designs (*batch, n, D): (*batch, N)."""
    places = space.standardize(candidates.to(earlier))
    gap = (places.unsqueeze(-2) - space.standardize(earlier).unsqueeze(-3)).norm(dim=-1)
    return (gap >= distances.to(gap).clamp(min=_SAME)).all(-1)


def nearest_candidate(space: DesignSpace, candidates: Tensor, design: Tensor, allowed: Tensor) -> Tensor:
    """The allowed candidate (*batch, D) nearest to each design (*batch, D); allowed (*batch, N) has one in each row."""
    candidates = candidates.to(design)
    gap = (space.standardize(design).unsqueeze(-2) - space.standardize(candidates)).norm(dim=-1)
    return candidates[gap.masked_fill(allowed.logical_not(), torch.inf).argmin(-1)]


def keep_apart(
    space: DesignSpace,
    design: Tensor,
    earlier: Tensor,
    distances: Tensor,
    num_directions: int = 256,
    within: DesignSpace | None = None,
) -> Tensor | None:
    """Move design (D,) to the nearest place at `distances` (n,) or more from earlier designs (n, D).

    They are those of `space`; the place lies also in `within`, the part of it that the history leaves. Draws
    directions, and designs where some values are chosen, from torch's global generator. Returns None if it finds no such
    place.
    """
    proposed, taken = space.standardize(design), space.standardize(earlier.to(design))
    distances = distances.to(proposed).clamp(min=_SAME)
    if ((taken - proposed).norm(dim=-1) >= distances).all():
        return design
    axes = torch.eye(space.num_features).to(design)
    directions = [axes, -axes]
    if space.num_features > 1:
        directions.append(
            torch.nn.functional.normalize(torch.randn(num_directions, space.num_features), dim=-1).to(design)
        )
    towards = torch.nn.functional.normalize(proposed - taken, dim=-1).unsqueeze(-2)
    rays = torch.cat([torch.cat(directions).expand(len(taken), -1, -1), towards], dim=-2)
    points = (taken.unsqueeze(-2) + 1.001 * distances[:, None, None] * rays).flatten(0, 1)
    designs = space.from_features(points)
    if space.has_choices:  # a short step does not reach another choice
        others = space.neighbours(torch.cat([design.unsqueeze(0), earlier.to(design)])).flatten(0, 1)
        designs = torch.cat([designs, others, space.sample((_NUM_RANDOM,)).to(design)])
    reached = space.standardize(designs)
    gap = torch.cdist(reached, taken, compute_mode="donot_use_mm_for_euclid_dist")  # the fast mode is not exact
    allowed = (gap >= distances).all(-1)
    allowed &= torch.isfinite(designs).all(-1) & (within or space).contains(designs)
    if not allowed.any():
        return None
    gap = (reached - proposed).norm(dim=-1).masked_fill(allowed.logical_not(), torch.inf)
    return designs[gap.argmin()]
